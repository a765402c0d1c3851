"""Properties that every compared network has: folders, batches, checkpointing, checks of inputs, inverses."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_compared_conversion import CONFIGS
from torch import Tensor, nn

from hvae_sr.baselines import AncestralScheduler, HCFlow, SR3UNet
from hvae_sr.baselines.diffusion import space_timesteps
from hvae_sr.baselines.dps import dps_chain
from hvae_sr.baselines.guided_diffusion import GuidedDiffusionUNet, published_options
from hvae_sr.baselines.sr3 import sr3_chain
from hvae_sr.checkpoints.compared import ARCHITECTURES
from hvae_sr.noise import CounterNoise
from hvae_sr.operators import Downsampling

NAMES = list(ARCHITECTURES)


def make(name: str, seed: int = 0) -> Any:
    """A small network whose layers that start at zero do not."""
    torch.manual_seed(seed)
    model = ARCHITECTURES[name](**CONFIGS[name]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter += 0.1 * torch.randn(parameter.shape)
    return model


def run(model: Any, images: Tensor, first: int = 0) -> Tensor:
    """Some deterministic output of the model for images `[B, 3, 16, 16]` on [0, 1], at steps from the `first` on."""
    if isinstance(model, HCFlow):
        y, u = torch.nn.functional.avg_pool2d(images, 4), images.flip(3)
        return model(images, y, u).loss
    if isinstance(model, SR3UNet):
        return model(images, images.flip(2), images.mean((1, 2, 3))).sample
    if isinstance(model, GuidedDiffusionUNet):
        return model(images, first + torch.arange(len(images))).sample
    return model(images * 255 if "EDSR" in type(model).__name__ else images).sample


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_network_loads_again_and_strictly(name: str, images: Tensor, tmp_path: Path) -> None:
    model = make(name)
    model.save_pretrained(tmp_path)
    loaded = ARCHITECTURES[name].from_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["_class_name"] == name
    assert torch.equal(run(loaded, images), run(model, images))
    assert ARCHITECTURES[name].from_pretrained(tmp_path, dtype=torch.float16).dtype == torch.float16
    other = make(name)
    other.register_parameter("another", nn.Parameter(torch.ones(1)))
    other.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"hold unknown keys of {name}: another"):
        ARCHITECTURES[name].from_pretrained(tmp_path)
    torch.save({}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="pickled weights"):
        ARCHITECTURES[name].from_pretrained(tmp_path)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_weights_kept_in_eight_bits_compute_in_more(name: str, dtype: torch.dtype, images: Tensor) -> None:
    model = make(name)
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=dtype)
    found = run(model, images.to(dtype))
    assert found.isfinite().all() and (dtype != torch.float32 or found.dtype == dtype)


@torch.no_grad()
def test_an_edsr_under_autocast_gives_more_than_whole_grey_levels(images: Tensor) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        levels = make("EDSR")(images * 255).sample.float()
    bright = levels[levels >= 128]
    assert (bright % 1).count_nonzero() > len(bright) // 2


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_a_batch_is_its_images_one_by_one(name: str, images: Tensor) -> None:
    model = make(name)
    singles = [run(model, images[i : i + 1], first=i) for i in range(3)]
    torch.testing.assert_close(run(model, images), torch.cat(singles), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in NAMES if ARCHITECTURES[name]._supports_gradient_checkpointing])
def test_checkpointed_gradients_are_the_same(name: str, images: Tensor) -> None:
    gradients = []
    for checkpointed in (False, True):
        model = make(name).train()
        if checkpointed:
            model.enable_gradient_checkpointing()
        run(model, images).sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "call", "message"),
    [
        ("EDSR", lambda m: m(torch.zeros(1, 4, 8, 8)), r"`sample` must be \[B, 3, h, w\], got \(1, 4, 8, 8\)"),
        ("EDSR", lambda m: m(torch.zeros(1, 3, 8, 8, dtype=torch.uint8)), "floating-point tensor .* got torch.uint8"),
        ("RRDBNet", lambda m: m(torch.zeros(1, 3, 9, 8)), r"sides of `sample` must be multiples of 2, got \(9, 8\)"),
        ("SRVGGNetCompact", lambda m: m([1]), "got list"),
        ("SPAN", lambda m: m(torch.zeros(3, 8, 8)), r"`sample` must be \[B, 3, h, w\], got \(3, 8, 8\)"),
        ("HCFlow", lambda m: m(*[torch.zeros(1, 3, 8, 8)] * 3), r"`low_resolution` must be \(1, 3, 2, 2\)"),
        ("HCFlow", lambda m: m.sample(torch.zeros(1, 3, 2, 2), [torch.zeros(1)] * 2), r"`noise\[1\]` must be a tensor"),
        (
            "SR3UNet",
            lambda m: m(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 4, 4), torch.zeros(1)),
            r"`condition` must have the shape of `sample`, got \(1, 3, 4, 4\)",
        ),
        ("SR3UNet", lambda m: m(*[torch.zeros(2, 3, 8, 8)] * 2, torch.zeros(1)), r"`noise_level` must be \[2\]"),
    ],
)
def test_wrong_inputs_are_named(name: str, call: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(make(name))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("EDSR", {"scale_factor": 8}, "`scale_factor` must be one of 2, 3, 4; got 8"),
        ("EDSR", {"mean": [0.1]}, "`mean` must be three numbers"),
        ("EDSR", {"value_range": 0}, "`value_range`"),
        ("RRDBNet", {"scale_factor": 3}, "`scale_factor` must be one of 1, 2, 4; got 3"),
        ("SRVGGNetCompact", {"num_layers": 0}, "`num_layers` must be a whole number >= 1, got 0"),
        ("SPAN", {"width": 0}, "`width` must be a whole number >= 1, got 0"),
        ("HCFlow", {"num_steps": 0}, "`num_steps` must be a whole number >= 1, got 0"),
        ("HCFlow", {"feature_blocks": [1]}, "`feature_blocks` must be two numbers"),
        ("SR3UNet", {"norm_groups": 3}, "`norm_groups` must divide `width` 8, got 3"),
    ],
)
def test_wrong_configurations_are_named(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ARCHITECTURES[name](**(CONFIGS[name] | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_scale_shift_norm": False}, "`use_scale_shift_norm` must be True, got False"),
        ({"class_cond": True}, "`class_cond` must be False, got True"),
        ({"image_size": 96}, "`channel_mult` must be given for image_size=96"),
        ({"num_channels": 48}, r"multiples of 32, got \[48, 48"),
        ({"channel_mult": "0.5,1"}, "`channel_mult` must begin with a whole number, got '0.5,1'"),
        (
            {"channel_mult": (1, 1), "num_head_channels": -1, "num_heads": 4, "num_heads_upsample": 2},
            "`num_heads_upsample` must be -1 or 4, got 2",
        ),
        ({"noise_schedule": "cosine"}, "`noise_schedule` must be 'linear', got 'cosine'"),
        ({"predict_xstart": True}, "`predict_xstart` must be False, got True"),
        ({"num_head_chanels": 16}, "`num_head_chanels` is no option of guided diffusion, got 16"),
    ],
)
def test_a_prior_that_diffusers_has_not_is_refused(changes: dict[str, Any], message: str) -> None:
    options: dict[str, Any] = dict(image_size=256, num_channels=64, num_res_blocks=1, num_head_channels=32)
    with pytest.raises(ValueError, match=message):
        published_options(**(options | changes))


def test_multiples_are_text_or_numbers_and_what_changes_nothing_is_taken() -> None:
    options: dict[str, Any] = dict(image_size=32, num_channels=32, num_res_blocks=1, num_head_channels=32)
    unused = {"use_fp16": True, "model_path": "a", "num_heads_upsample": 2, "noise_schedule": "linear"}
    assert published_options(**options, channel_mult=[1, 2]) == published_options(
        **options, channel_mult="1,2", **unused
    )


@torch.no_grad()
def test_a_flow_inverts_what_it_encodes(images: Tensor) -> None:
    model = make("HCFlow")
    y = torch.nn.functional.avg_pool2d(images, 4)
    out = model.encode(images, y, torch.zeros_like(images))
    back = model.sample(out.lr_estimate, [level.noise for level in out.levels]).sample
    torch.testing.assert_close(back, images, rtol=0, atol=1e-4)


def test_a_first_batch_leaves_a_flow_with_unit_activations(images: Tensor) -> None:
    model = HCFlow(**CONFIGS["HCFlow"])
    y = torch.nn.functional.avg_pool2d(images, 4)
    model.initialise(images, y, torch.rand(images.shape, generator=torch.Generator().manual_seed(1)))
    step = model.levels[0][0]
    z, _ = step.actnorm(torch.nn.functional.pixel_unshuffle(images, 2), torch.zeros(3))
    torch.testing.assert_close(z.std((0, 2, 3)), torch.ones(12), rtol=0, atol=0.05)
    before = [parameter.clone() for parameter in model.parameters()]
    model(images, y, torch.zeros_like(images))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_short_chains_keep_the_noise_of_their_steps() -> None:
    scheduler = AncestralScheduler(100)
    whole = scheduler.alphas_cumprod.copy()
    scheduler.set_timesteps("10,5")
    np.testing.assert_allclose(scheduler.alphas_cumprod, whole[scheduler.timestep_map])
    np.testing.assert_allclose(np.cumprod(1 - scheduler.betas), scheduler.alphas_cumprod)
    scheduler.set_timesteps()
    assert scheduler.num_steps == 100
    for chosen, message in ((101, "101 steps cannot be kept of 100"), ("ddim80", "no whole stride"), ("a", "got 'a'")):
        with pytest.raises(ValueError, match=message):
            space_timesteps(100, chosen)
    with pytest.raises(ValueError, match="^`timesteps` must keep at least one step, got 0$"):
        scheduler.set_timesteps(0)


@torch.no_grad()
@pytest.mark.parametrize("system", ["sr3", "dps"])
def test_a_sample_of_a_chain_depends_on_its_seed_alone(system: str, images: Tensor) -> None:
    """Neither on the batch it was drawn in nor on torch's generator."""
    operator = Downsampling(4, "matlab-bicubic")
    if system == "sr3":
        unet, scheduler = make("SR3UNet"), AncestralScheduler(4, 1e-4, 0.5)
    else:
        unet, scheduler = make("GuidedDiffusionUNet"), AncestralScheduler(4, 1e-4, 0.5, "learned_range")

    def sample(rows: slice, seeds: list[int]) -> Tensor:
        given = (2 * images - 1)[rows]
        if system == "sr3":
            chain: Any = sr3_chain(unet, scheduler, given, CounterNoise(seeds))
        else:
            chain = dps_chain(unet, scheduler, operator(given), operator, (16, 16), CounterNoise(seeds), 0.5)
        return list(chain)[-1].previous

    both = sample(slice(0, 2), [5, 6])
    alone = torch.cat([sample(slice(0, 1), [5]), sample(slice(1, 2), [6])])
    torch.testing.assert_close(both, alone, rtol=0, atol=2e-3)
    assert not torch.allclose(both[0], both[1])


@torch.no_grad()
def test_guidance_pulls_a_sample_to_its_observation(images: Tensor) -> None:
    operator = Downsampling(4, "matlab-bicubic")
    unet, scheduler = make("GuidedDiffusionUNet"), AncestralScheduler(20, 1e-3, 0.2, "learned_range")
    y = operator(2 * images - 1)
    residuals = []
    for scale in (0.0, 0.5):
        steps = list(dps_chain(unet, scheduler, y, operator, (16, 16), CounterNoise([1, 2, 3]), scale))
        residuals.append((operator(steps[-1].previous.clamp(-1, 1)) - y).square().mean())
    assert residuals[1] < residuals[0]
