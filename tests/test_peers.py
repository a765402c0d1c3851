"""The table of weights that exist beside ours, and its place in a document."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import peers  # noqa: E402

from hvae_sr import RRDBNet  # noqa: E402
from hvae_sr.pipelines import RegressionPipeline  # noqa: E402


@pytest.fixture
def made(tmp_path: Path) -> dict[str, Path]:
    torch.manual_seed(0)
    for name in ("first", "second"):
        RegressionPipeline(RRDBNet(4, 1, 8, 4)).save_pretrained(tmp_path / name)
    (tmp_path / "photos").mkdir()
    for i in range(3):
        Image.effect_noise((260, 256), 30 + i).convert("RGB").save(tmp_path / "photos" / f"{i}.png")
    return {name: tmp_path / name for name in ("first", "second", "photos")}


def test_every_system_has_a_line_with_its_cost_and_one_in_so_many_images_is_measured(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(peers, "convert_package", lambda package, output: {"second": made["second"]})
    document = tmp_path / "document.md"
    document.write_text("before\n<!-- peers -->\nold\n<!-- end of peers -->\nafter\n")
    given: list[Any] = ["package.whl", "--output_dir", tmp_path / "out", "--table", made["photos"], "--every", 2]
    given += ["--models", made["first"], "--document", document]
    (tmp_path / "out").mkdir()
    peers.main([str(value) for value in given])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    names = [line.split("|")[1].strip() for line in lines]
    assert names == ["system", "bicubic", "first", "second"]
    parameters = f"{sum(p.numel() for p in RRDBNet(4, 1, 8, 4).parameters()) / 1e6:.2f}"
    assert all(f"| {parameters} |" in line for line in lines[2:])
    text = document.read_text()
    assert text.startswith("before\n<!-- peers -->\n```\npython benchmarks/peers.py PACKAGE") and "old" not in text
    assert "--every 2" in text and "--models first" in text and text.endswith("<!-- end of peers -->\nafter\n")
    assert len(list((tmp_path / "out").glob("first-photos-2-1-*.json"))) == 1


def test_a_document_without_a_place_for_the_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "document.md").write_text("nothing")
    given = peers.argparse.Namespace(document=tmp_path / "document.md")
    with pytest.raises(ValueError, match="lacks the lines <!-- peers -->"):
        peers.publish("table", given)
