"""Tiny models of every kind, with weights that leave nothing at its neutral initial value."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hvae_sr import VDVAE, LRConditioner, LREncoder, SuperResolutionPipeline

REFERENCE = Path(os.environ.get("HVAE_SR_REFERENCE", Path(__file__).resolve().parents[1] / "../shared/reference"))
DATA = Path(os.environ.get("HVAE_SR_DATA", REFERENCE.parent / "data"))

DECODER = "4x1,8m4,8x1,16m8"
VDVAE_CONFIG: dict[str, Any] = {
    "image_size": 16,
    "width": 8,
    "encoder_blocks": "16x1,16d2,8x1,8d2,4x1",
    "decoder_blocks": DECODER,
    "latent_channels": 4,
    "num_mixtures": 2,
    "initial_log_scale": -2.0,
}
LR_CONFIG: dict[str, Any] = {
    "image_size": 4,
    "blocks": "4x2",
    "upsampling_blocks": "8m4,8x1",
    "width": 8,
    "decoder_blocks": DECODER,
    "decoder_width": 8,
}


def _randomise(model: nn.Module, seed: int) -> None:
    """Replaces weights that start at zero, so that no branch of the network is silent."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.any() and "gate" not in name:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


@pytest.fixture(autouse=True)
def same_draws() -> None:
    """What a test draws depends on no other test, and so on no order of files and processes."""
    torch.manual_seed(0)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def make_vdvae() -> Callable[..., VDVAE]:
    def make(seed: int = 0, randomise: bool = True, **changes: Any) -> VDVAE:
        torch.manual_seed(seed)
        model = VDVAE(**{**VDVAE_CONFIG, **changes}).eval()
        if randomise:
            _randomise(model, seed)
        return model

    return make


@pytest.fixture
def make_lr_network() -> Callable[..., LREncoder | LRConditioner]:
    def make(kind: str, seed: int = 1, randomise: bool = True, **changes: Any) -> LREncoder | LRConditioner:
        torch.manual_seed(seed)
        if kind == "cvdvae":
            config = {**LR_CONFIG, "latent_channels": 4, "num_conditioned_groups": 3, **changes}
            model: LREncoder | LRConditioner = LREncoder(**config).eval()
        else:
            model = LRConditioner(**{**LR_CONFIG, "gate_init": 0.5, **changes}).eval()
        if randomise:
            _randomise(model, seed)
        return model

    return make


@pytest.fixture
def make_model(make_vdvae: Any, make_lr_network: Any) -> Callable[..., VDVAE | LREncoder | LRConditioner]:
    """A model by name: "vdvae", "cvdvae" (its LR encoder) or "vdvae-sr" (its LR conditioner)."""

    def make(kind: str, **changes: Any) -> VDVAE | LREncoder | LRConditioner:
        return make_vdvae(**changes) if kind == "vdvae" else make_lr_network(kind, **changes)

    return make


@pytest.fixture
def model_inputs() -> Callable[..., dict[str, Any]]:
    """Arguments of a model's `forward` that make it deterministic."""

    def make(model: VDVAE | LREncoder | LRConditioner, batch_size: int = 2) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(3)
        side = model.config.image_size
        sample = torch.rand(batch_size, 3, side, side, generator=generator) * 2 - 1
        if not isinstance(model, VDVAE):
            return {"sample": sample}
        shapes = [model.latent_shape(group, batch_size, (side, side)) for group in range(model.num_groups)]
        noise: list[Tensor] = [torch.randn(shape, generator=generator) for shape in shapes]
        return {"sample": sample, "noise": noise}

    return make


@pytest.fixture
def make_pipeline(make_vdvae: Any, make_lr_network: Any) -> Callable[..., SuperResolutionPipeline]:
    def make(kind: str = "cvdvae", lr: dict[str, Any] | None = None, **changes: Any) -> SuperResolutionPipeline:
        pipe = SuperResolutionPipeline(make_vdvae(**changes), make_lr_network(kind, **(lr or {})))
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return make


@pytest.fixture(scope="session")
def benchmark_folder() -> Path:
    """The folder of Set5, Set14, BSD100 and T91; tests that need it are skipped where there is none."""
    if not (DATA / "benchmarks").is_dir():
        pytest.skip("the benchmark images are absent: set HVAE_SR_DATA to the folder that has `benchmarks`")
    return DATA / "benchmarks"
