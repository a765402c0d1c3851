"""The way to a face model, rehearsed on a small stand-in: convert a published prior, train the LR encoder, evaluate."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import train
from hvae_sr import SuperResolutionPipeline
from hvae_sr.checkpoints.convert import _published_names, config_from_hparams
from hvae_sr.cli import main
from hvae_sr.models import VDVAE

SIDE = 32
HPARAMS = {
    "width": 8, "zdim": 2, "custom_width_str": "", "no_bias_above": 8, "num_mixtures": 2, "image_size": SIDE,
    "enc_blocks": "32x1,32d2,16d2,8x1,8d2,4d4,1x1", "dec_blocks": "1x1,4m1,8m4,16m8,32m16", "shift": -112.9,
    "scale": 0.0144,
}  # fmt: skip
"""Published names, as those of FFHQ-256, of a prior with biases of a fixed size."""
LR_BLOCKS = {4: "8x1,8d2,4d4,1x1", 8: "4x1,4d4,1x1"}


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A checkpoint as openai/vdvae writes one, with random weights, and the file of its hyper-parameters."""
    torch.manual_seed(0)
    prior = VDVAE(**config_from_hparams(HPARAMS))
    weights = prior.state_dict()
    torch.save({name: weights[own] for own, name in _published_names(prior).items()}, tmp_path / "ema.th")
    (tmp_path / "hparams.json").write_text(json.dumps(HPARAMS))
    return tmp_path / "ema.th"


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    folder = tmp_path / "faces"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(4):
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.mark.parametrize(("scale", "groups"), [(4, 3), (8, 2)])
def test_convert_train_and_evaluate_one_command_each(
    published: Path, faces: Path, tmp_path: Path, scale: int, groups: int, capsys: Any
) -> None:
    prior, model, report = tmp_path / "prior", tmp_path / "model", tmp_path / "report.json"
    assert main(["convert", str(published), "-o", str(prior), "--hparams", str(tmp_path / "hparams.json")]) == 0

    config = {"image_size": SIDE // scale, "blocks": LR_BLOCKS[scale], "width": 8, "num_conditioned_groups": groups}
    config |= {"decoder_blocks": HPARAMS["dec_blocks"], "decoder_width": 8, "latent_channels": 2}
    config |= {"decoder_bottleneck_multiple": 0.25, "input_shift": HPARAMS["shift"], "input_scale": HPARAMS["scale"]}
    (tmp_path / "lr.json").write_text(json.dumps(config))
    recipe = {"stage": "lr-encoder", "lr_config": "lr.json", "scale_factor": scale, "resolution": SIDE, "scales": [1.0]}
    recipe |= {"max_train_steps": 2, "train_batch_size": 2, "rotate": False}
    recipe |= {"kl_reduction": "group_mean"} if scale == 8 else {}  # as the published code
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    arguments = ["--config", tmp_path / "recipe.json", "--pretrained_vdvae", prior, "--train_data_dir", faces]
    train.main([str(value) for value in (*arguments, "--output_dir", model)])

    pipe = SuperResolutionPipeline.from_pretrained(model)
    assert pipe.config.scale_factor == scale and len(pipe.lr_encoder.heads) == groups
    weights = VDVAE.from_pretrained(prior).state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in pipe.vdvae.state_dict().items())

    arguments = ["evaluate", "--model", model, "--data", faces, "--protocol", "paper", "--size", SIDE]
    arguments += ["--temperatures", "0.1", "0.8", "--num_samples", 2, "-o", report]
    assert main([str(value) for value in arguments]) == 0
    rows = {row["name"]: row for row in json.loads(report.read_text())["rows"]}
    assert rows["sample t=0.8 projected"]["lr_psnr"] > 40 > rows["sample t=0.8"]["lr_psnr"]
    assert rows["sample t=0.8 projected"]["apd_mse"] > rows["sample t=0.1 projected"]["apd_mse"] > 0
    assert "sample t=0.1 projected" in capsys.readouterr().out
