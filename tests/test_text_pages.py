"""Pages of text are images that training reads: the same for a seed, of every size of letters, legible."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hvae_sr.data import ImageFolder
from hvae_sr.data.text_pages import PAGE, draw_page, find_fonts, main, read_words


def pages(folder):
    return [np.asarray(Image.open(file)) for file in sorted(Path(folder).iterdir())]


def test_a_folder_of_pages_trains(tmp_path):
    main([str(tmp_path / "pages"), "--count", "3"])
    dataset = ImageFolder(tmp_path / "pages", 64)
    assert dataset.num_images == 3 and not dataset.skipped
    assert all(page.shape == (PAGE[1], PAGE[0], 3) for page in pages(tmp_path / "pages"))


def test_pages_depend_on_the_seed_and_their_number_alone(tmp_path):
    for folder, count, seed in (("a", 3, 5), ("b", 2, 5), ("c", 2, 6)):
        main([str(tmp_path / folder), "--count", str(count), "--seed", str(seed)])
    a, b, c = (pages(tmp_path / folder) for folder in "abc")
    assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=False))
    assert not any(np.array_equal(x, y) for x, y in zip(b, c, strict=True))
    assert not np.array_equal(a[0], a[1])


def test_there_is_ink_on_paper_and_letters_of_many_sizes():
    fonts, words = find_fonts(), read_words()
    ink, changes = [], []
    for number in range(24):
        page = np.asarray(draw_page(np.random.default_rng(number), words, fonts).convert("L"), dtype=float)
        paper = np.median(page)
        ink.append((abs(page - paper) > 60).mean())
        changes.append(abs(np.diff(page, axis=1)).mean())
    assert 0.05 < np.mean(ink) < 0.5 and max(ink) < 0.75
    assert max(changes) > 3 * min(changes)  # strokes of small letters are many, those of large ones few


def test_fonts_have_letters():
    names = [path.name for path in find_fonts()]
    assert "DejaVuSans.ttf" in names and not any(name.startswith(("cmsy", "STIXSiz")) for name in names)


def test_words_come_from_the_files(tmp_path):
    (tmp_path / "words.txt").write_text("Grüße, (an) dich!\n--- 3.14", encoding="utf-8")
    assert read_words([tmp_path / "words.txt"]) == ["Grüße,", "(an)", "dich!", "3.14"]
    assert len(set(read_words())) > 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--count", "0"], "`count` must be at least 1, got 0"),
        (["--seed", "-1"], "`seed` must be at least 0, got -1"),
        (["--fonts", "nowhere"], "`fonts` 'nowhere' is not a folder"),
        (["--fonts", "."], "hold no .ttf or .otf file"),
        (["--text", "nowhere.txt"], "`text`: there is no file 'nowhere.txt'"),
        (["--text", "empty.txt"], "hold no words"),
    ],
)
def test_wrong_options_are_named_and_nothing_is_written(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").touch()
    with pytest.raises(SystemExit) as stopped:
        main(["pages", *arguments])
    assert stopped.value.code == 2 and message in capsys.readouterr().err
    assert not Path("pages").exists()


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path, capsys):
    (tmp_path / "page-0000.png").write_bytes(b"mine")
    with pytest.raises(SystemExit):
        main([str(tmp_path)])
    assert "is not empty" in capsys.readouterr().err
    assert (tmp_path / "page-0000.png").read_bytes() == b"mine"
