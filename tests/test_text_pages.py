"""Pages of text are images that training reads: the same for a seed, of every size of letters, legible."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hvae_sr.data import ImageFolder


@pytest.fixture
def text_pages(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    return importlib.import_module("text_pages")


def pages(folder: Path) -> list[np.ndarray]:
    return [np.asarray(Image.open(file)) for file in sorted(folder.iterdir())]


def test_pages_train_and_depend_on_the_seed_and_their_number_alone(text_pages: Any, tmp_path: Path) -> None:
    for folder, count, seed in (("a", 3, 5), ("b", 2, 5), ("c", 2, 6)):
        text_pages.main([str(tmp_path / folder), "--count", str(count), "--seed", str(seed)])
    a, b, c = (pages(tmp_path / folder) for folder in "abc")
    assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=False))
    assert not any(np.array_equal(x, y) for x, y in zip(b, c, strict=True)) and not np.array_equal(a[0], a[1])
    dataset = ImageFolder(tmp_path / "a", 64)
    assert dataset.num_images == 3 and not dataset.skipped


def test_there_is_ink_on_paper_and_letters_of_many_sizes(text_pages: Any) -> None:
    fonts, words = text_pages.find_fonts(), text_pages.read_words()
    names = [path.name for path in fonts]
    assert "DejaVuSans.ttf" in names and not any(name.startswith(("cmsy", "STIXSiz")) for name in names)
    ink, changes = [], []
    for number in range(24):
        page = np.asarray(text_pages.draw_page(np.random.default_rng(number), words, fonts).convert("L"), dtype=float)
        ink.append((abs(page - np.median(page)) > 60).mean())
        changes.append(abs(np.diff(page, axis=1)).mean())
    assert 0.05 < np.mean(ink) < 0.5 and max(ink) < 0.75
    assert max(changes) > 3 * min(changes)  # strokes of small letters are many, those of large ones few


def test_words_come_from_the_files(text_pages: Any, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("Grüße, (an) dich!\n--- 3.14", encoding="utf-8")
    assert text_pages.read_words([tmp_path / "words.txt"]) == ["Grüße,", "(an)", "dich!", "3.14"]
    assert len(set(text_pages.read_words())) > 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--count", "0"], "`count` must be at least 1, got 0"),
        (["--seed", "-1"], "`seed` must be at least 0, got -1"),
        (["--fonts", "nowhere"], "`fonts` 'nowhere' is not a folder"),
        (["--fonts", "."], "hold no .ttf or .otf file"),
        (["--text", "nowhere.txt"], "`text`: there is no file 'nowhere.txt'"),
        (["--text", "pages/mine.txt"], "hold no words"),
        ([], "is not empty"),
    ],
)
def test_wrong_options_are_named_and_nothing_is_written(
    text_pages: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pages").mkdir()
    Path("pages/mine.txt").touch()
    with pytest.raises(SystemExit) as stopped:
        text_pages.main(["pages", *arguments])
    assert stopped.value.code == 2 and message in capsys.readouterr().err
    assert [path.name for path in Path("pages").iterdir()] == ["mine.txt"]
