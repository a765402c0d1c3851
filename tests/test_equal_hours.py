"""Training for the same hours: every run ends at its time with a pipeline's folder, and goes on when called again."""

import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import equal_hours  # noqa: E402
import hours  # noqa: E402

from hvae_sr import VDVAE, LRConditioner, RegressionPipeline  # noqa: E402
from hvae_sr.training import parse_arguments  # noqa: E402

SMALL = {
    "baseline": {"architecture": "EDSR", "num_blocks": 1, "width": 8},
    "resolution": 32, "train_batch_size": 2, "mixed_precision": "no",
}  # fmt: skip


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    (tmp_path / "photographs").mkdir()
    for i in range(2):
        Image.effect_noise((48, 40), 30 + i).convert("RGB").save(tmp_path / "photographs" / f"{i}.png")
    return tmp_path / "photographs"


def test_a_run_ends_at_its_time_and_goes_on(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = equal_hours.systems()
    monkeypatch.setattr(equal_hours, "systems", lambda: {"edsr-baseline": {**known["edsr-baseline"], **SMALL}})
    given = ["--photographs", str(photographs), "--output_dir", str(tmp_path / "out")]
    updates = []
    for given_hours in ("0.001", "0.002"):
        equal_hours.main([*given, "--hours", given_hours])
        updates.append(int(capsys.readouterr().out.splitlines()[-1].split("|")[3]))
    assert 0 < updates[0] < updates[1]
    pipe = RegressionPipeline.from_pretrained(tmp_path / "out" / "edsr-baseline")
    assert pipe(Image.new("RGB", (8, 8))).images[0].size == (32, 32)
    with pytest.raises(ValueError, match="`--hours` must be above 0, got 0"):
        equal_hours.main([*given, "--hours", "0"])


def test_a_run_that_is_killed_has_had_its_hours(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is written at the end: what the clock says is what was kept on the way."""
    run, kept = tmp_path / "out", []

    class Killed(BaseException):
        pass

    def training(trainer: object) -> None:
        deadline = time.monotonic() + 60
        while not (clock := run / "processor_seconds.txt").is_file() or float(clock.read_text() or 0) < 0.05:
            assert time.monotonic() < deadline
        kept.append(float(clock.read_text()))
        raise Killed

    monkeypatch.setattr(hours, "CLOCK_SECONDS", 0.01)
    monkeypatch.setattr("hvae_sr.training.Trainer.train", training)
    monkeypatch.setattr(hours.signal, "setitimer", lambda *_: None)
    options = {**equal_hours.systems()["edsr-baseline"], **SMALL}
    with pytest.raises(Killed):
        hours.train(run, options, [photographs], 1.0)
    assert kept and kept[0] >= 0.05


def test_the_sampler_is_that_of_natural_x4_and_all_see_as_many_crops() -> None:
    systems = equal_hours.systems()
    assert {options["train_batch_size"] for options in systems.values()} == {16}
    with torch.device("meta"):
        VDVAE.from_config(systems["sampler"]["vdvae_config"])
        LRConditioner.from_config(systems["sampler"]["lr_config"])
    for options in systems.values():
        scalars = {name: value for name, value in options.items() if not isinstance(value, (dict, list))}
        parse_arguments(
            [f"--{name}={value}" for name, value in scalars.items()]
            + ["--train_data_dir", "photographs", "--output_dir", "out"]
            + (["--vdvae_config=a.json", "--lr_config=b.json"] if "vdvae_config" in options else [])
        )
