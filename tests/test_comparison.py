"""The commands that compare CVDVAE and VDVAE-SR: what they would train fits the prior, and where their tables go."""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from stand_ins import photo_folder

from hvae_sr import VDVAE, LRConditioner, LREncoder, SuperResolutionPipeline

ROOT = Path(__file__).parents[1]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of `benchmarks` by name."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


@pytest.fixture
def given(tmp_path: Path) -> argparse.Namespace:
    given = {"photographs": ["p", "q"], "benchmarks": "b", "output_dir": str(tmp_path), "updates": 3, "seed": 0}
    given |= {"train_batch_size": 2, "learning_rate": 1e-3, "pretrained_learning_rate": 1e-4, "lr_warmup_steps": 1}
    return argparse.Namespace(**given, document=None)


def test_every_row_of_the_ablation_fits_the_prior_and_trains_what_it_says(command, given, monkeypatch):
    ablation, short_runs = command("ablation"), command("short_runs")
    asked: dict[str, tuple[Any, Any]] = {}

    def note(given: Any, name: str, stage: str, lr_config: Any = None, **more: Any) -> dict[str, float]:
        assert stage == "vdvae-sr"
        asked[name] = (lr_config, more)
        return {}

    for module in (ablation, short_runs):
        monkeypatch.setattr(module, "train", note)
    for row in ablation.ROWS:
        for decoder in ablation.DECODERS:
            ablation.train_row(given, row, decoder)
    assert len(asked) == 8
    with torch.device("meta"):
        vdvae = VDVAE.from_config(json.loads((short_runs.SOURCE / "vdvae" / "config.json").read_text()))
        for name, (config, more) in asked.items():
            network = LRConditioner(**config)
            SuperResolutionPipeline(vdvae, network)  # which compares the two
            row, decoder = name.rsplit("-", 1)
            assert network.config.conditioning == row
            assert more == {"train_encoder": False, "train_decoder": decoder == "trainable"}


def test_the_systems_have_as_many_parameters_to_train(command):
    short_runs = command("short_runs")
    source = short_runs.SOURCE
    with torch.device("meta"):
        config = json.loads((source / "vdvae" / "config.json").read_text())
        decoder = VDVAE.from_config(config, encoder_blocks=None)
        conditioner = LRConditioner(**short_runs.conditioner_config())
        cvdvae = LREncoder.from_config(json.loads((source / "lr_encoder" / "config.json").read_text()))

    def count(*networks: torch.nn.Module) -> int:
        return sum(p.numel() for network in networks for p in network.parameters())

    assert abs(count(decoder, conditioner) / count(cvdvae) - 1) < 0.05


def test_a_run_with_other_options_is_not_taken_for_this_one(command, given, tmp_path, monkeypatch):
    short_runs = command("short_runs")
    given.photographs, given.updates = [str(tmp_path / "photos")], 2
    photo_folder(tmp_path / "photos", dict.fromkeys("ab", (40, 40)))
    config = json.loads((short_runs.SOURCE / "lr_encoder" / "config.json").read_text())

    def train() -> dict[str, float]:
        return short_runs.train(given, "cvdvae", "lr-encoder", config)

    from hvae_sr.training import Trainer

    whole = Trainer.train

    def stopped(self: Trainer) -> Any:
        self.config.max_train_steps = 1
        whole(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "train", stopped)
    with pytest.raises(KeyboardInterrupt):
        train()
    monkeypatch.undo()
    given.seed = 1  # a stopped run is not gone on with as another one
    with pytest.raises(ValueError, match="cvdvae is of a run with other seed;"):
        train()
    given.seed = 0
    spent = float((tmp_path / "cvdvae" / "processor_seconds.txt").read_text())
    first = train()
    assert first["step"] == 2 and first["processor_seconds"] > spent > 0
    assert train() == first
    for name, value in {"seed": 1, "learning_rate": 0.5, "train_batch_size": 4, "photographs": ["q"]}.items():
        before = getattr(given, name)
        setattr(given, name, value)
        with pytest.raises(ValueError, match=f"`output_dir`.*cvdvae is of a run with other {name};"):
            train()
        setattr(given, name, before)
    assert train() == first


def test_tables_take_their_place_in_a_document(command, given, tmp_path, capsys):
    document = tmp_path / "document.md"
    document.write_text("before\n<!-- ablation -->\nold\n<!-- end of ablation -->\nafter\n")
    given.document = str(document)
    for table in ("| first |\n", "| second |\n"):
        command("short_runs").publish(given, "ablation", table)
    lines = document.read_text().splitlines()
    assert lines[:2] == ["before", "<!-- ablation -->"]
    assert lines[-3:] == ["| second |", "<!-- end of ablation -->", "after"]
    assert any(line.startswith("python benchmarks/ablation.py") and "--updates 3" in line for line in lines)
    assert str(tmp_path) not in document.read_text() and "first" not in document.read_text()
    assert (tmp_path / "ablation.md").read_text() == "| second |\n" and "| second |" in capsys.readouterr().out
    with pytest.raises(ValueError, match="`document`.*<!-- equal_terms -->"):
        command("short_runs").publish(given, "equal_terms", "| third |\n")


@pytest.mark.parametrize("name", ["ablation", "equal_terms"])
def test_the_report_has_a_place_for_each_command(name):
    text = (ROOT / "docs" / "comparison.md").read_text()
    assert text.count(f"<!-- {name} -->\n") == text.count(f"<!-- end of {name} -->\n") == 1


def test_swin2sr_is_scored_beside_a_model_on_the_same_pairs(command, make_pipeline, tmp_path, capsys):
    transformers = pytest.importorskip("transformers")
    config = {"image_size": 16, "embed_dim": 12, "depths": [1], "num_heads": [2], "window_size": 8, "upscale": 4}
    config = transformers.Swin2SRConfig(**config, upsampler="pixelshuffle")
    transformers.Swin2SRForImageSuperResolution(config).save_pretrained(tmp_path / "weights")
    pad = {"image_processor_type": "Swin2SRImageProcessor", "do_pad": True, "do_rescale": True, "size_divisor": 8}
    (tmp_path / "weights" / "preprocessor_config.json").write_text(json.dumps({**pad, "rescale_factor": 1 / 255}))
    make_pipeline("vdvae-sr").save_pretrained(tmp_path / "ours")
    photo_folder(tmp_path / "photos", dict.fromkeys("ab", (60, 50)))
    given = ["--data", tmp_path / "photos", "--output_dir", tmp_path / "out", "--swin2sr", tmp_path / "weights"]
    given += ["--model", tmp_path / "ours", "--size", 48, "--num_samples", 2, "--temperatures", 0.5]
    rows = {row["name"]: row for row in command("swin2sr").main([str(value) for value in given])}
    assert {"bicubic", "swin2sr", "swin2sr projected", "sample t=0.5", "mean t=0.5 projected"} <= rows.keys()
    assert rows["swin2sr projected"]["lr_psnr_float"] > 100 > rows["swin2sr"]["lr_psnr_float"]
    assert sorted(path.name for path in (tmp_path / "out" / "swin2sr").iterdir()) == ["a.png", "b.png"]
    assert Image.open(tmp_path / "out" / "swin2sr" / "a.png").size == (48, 48)
    assert "| swin2sr projected |" in capsys.readouterr().out
    (tmp_path / "out" / "swin2sr" / "mine.txt").write_text("kept")
    with pytest.raises(ValueError, match="`output_dir`.*mine.txt"):
        command("swin2sr").main([str(value) for value in given])
    assert (tmp_path / "out" / "swin2sr" / "mine.txt").read_text() == "kept"
