"""The bundled checkpoints, on photographs that nobody trained on, and the package that carries them."""

import json
from pathlib import Path

import numpy as np
import pytest
import skimage
import torch
from PIL import Image

import hvae_sr
from hvae_sr import SuperResolutionPipeline
from hvae_sr.checkpoints.names import bundled_checkpoints
from hvae_sr.cli.settings import default_model
from hvae_sr.data import degrade
from hvae_sr.evaluation.metrics import psnr_y
from hvae_sr.evaluation.protocols import prepare_thesis, upsample_pil

ROOT = Path(__file__).resolve().parent.parent
PHOTOS = Path(skimage.__file__).parent / "data"
BUNDLED = ["natural-x2", "natural-x4", "natural-x4-cvdvae", "natural-x8"]
"""Models of y = Hx; photo-x4, which does not know H, has tests of its own."""
GAINS = {2: 1.5, 4: 0.8, 8: 0.4}
"""dB over bicubic that the mean of eight samples gains at the least, by factor."""
SPREADS = {2: 15, 4: 15, 8: 25}
"""Grey levels: the mean standard deviation of samples at temperature 0.8 at the most. What x8 leaves open is more."""


@pytest.fixture(scope="module", params=BUNDLED)
def pipeline(request):
    pipe = SuperResolutionPipeline.from_pretrained(request.param)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module", params=["chelsea.png", "astronaut.png"])
def photo(request):
    return Image.open(PHOTOS / request.param).convert("RGB")


@pytest.fixture
def pair(photo, pipeline):
    """A photograph of scikit-image at 128x128 and its LR image, thesis protocol."""
    return prepare_thesis(photo, 128, pipeline.config.scale_factor)


def test_the_bundled_checkpoints_fit_into_the_package_with_their_notices_cards_and_recipes():
    found = bundled_checkpoints()
    assert {*BUNDLED, "photo-x4"} <= set(found)
    sizes = {name: sum(f.stat().st_size for f in folder.rglob("*.safetensors")) for name, folder in found.items()}
    assert all(size <= 24 * 2**20 for size in sizes.values()) and sum(sizes.values()) <= 72 * 2**20
    for folder in (found[name] for name in (*BUNDLED, "photo-x4")):
        notice = (folder / "LICENSE.weights").read_text()
        assert "Berkeley" in notice and "ImageNet" in notice and "research" in notice
        assert (folder / "train.yaml").is_file()
        assert "license_name" in (folder / "README.md").read_text()


@pytest.mark.parametrize("name", BUNDLED)
def test_images_of_the_bundled_weights_stay_as_they_are(name):
    """48 values of two samples each in float32, as revision a4c5aa3 gave them, before the models were rebuilt.

    Those of natural-x4 and natural-x2 are of their weights of 2026-12-01 and 2026-11-30.
    """
    small = (np.random.default_rng(7).random((5, 6, 3)) * 255).astype(np.uint8)
    y = Image.fromarray(small).resize((26, 22), Image.Resampling.BICUBIC)
    pipe = SuperResolutionPipeline.from_pretrained(name, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    images = np.asarray(pipe(y, num_samples=2, seed=11, temperature=0.7, output_type="np").images).reshape(2, -1)
    expected = np.array(json.loads((ROOT / "tests/bundled_reference.json").read_text())[name]["values"])
    places = np.linspace(0, images.shape[1] - 1, 48).astype(int)
    assert np.abs(images[:, places] - expected).max() < 1e-5


def test_the_mean_of_samples_is_closer_to_the_truth_than_bicubic_and_samples_are_consistent(pipeline, pair):
    hr, lr = pair
    out = pipeline(Image.fromarray(lr), num_samples=8, seed=0)
    scale = pipeline.config.scale_factor
    gain = psnr_y(hr, np.asarray(out.mean[0])) - psnr_y(hr, upsample_pil(lr, scale))
    assert gain > GAINS[scale]
    assert min(out.lr_psnr_float) >= 100
    assert min(out.lr_psnr) >= 45


def test_samples_spread_a_little_and_have_the_colours_and_brightness_of_the_input(pipeline, pair):
    _, lr = pair
    std = pipeline(Image.fromarray(lr), num_samples=8, seed=0, temperature=0.8).std[0].mean() * 255
    assert 0.5 < std < SPREADS[pipeline.config.scale_factor]  # more than rounding, less than a carpet of noise
    # At a low temperature: the share of a restorer's image, whose colours are its own, is projected with the sample.
    out = pipeline(Image.fromarray(lr), num_samples=2, seed=0, temperature=0.2, enforce_consistency=False)
    shift = np.asarray(out.images[0], dtype=float).mean(axis=(0, 1)) - lr.astype(float).mean(axis=(0, 1))
    assert np.abs(shift).max() < 1.0  # grey levels, before the projection could have mended it


def test_a_flat_image_stays_flat(pipeline):
    colours = [(128, 128, 128), (90, 120, 160), (20, 20, 20), (250, 250, 250), (120, 60, 200)]
    flat = [Image.new("RGB", (18, 16), colour) for colour in colours]
    images = pipeline(flat, seed=0, output_type="np").images
    scale = pipeline.config.scale_factor
    for image, colour in zip(images, colours, strict=True):
        assert image.shape == (16 * scale, 18 * scale, 3)
        difference = 255 * image - colour
        assert np.sqrt((difference**2).mean()) <= 2  # grey levels
        assert np.abs(difference.mean(axis=(0, 1))).max() <= 0.1
        assert np.abs(difference).max() <= 25  # also in the corners


@pytest.mark.parametrize("temperature", [0.0, 1.0, 1.5])
def test_inputs_unlike_any_photograph_stay_finite_and_consistent(pipeline, temperature):
    noise, black = np.random.default_rng(0).random((16, 16, 3), np.float32), np.zeros((16, 16, 3), np.float32)
    images = [noise, (noise > 0.5).astype(np.float32), black, black + np.float32([1, 0, 0])]
    out = pipeline(images, temperature=temperature, seed=0, output_type="np")
    assert np.isfinite(out.images).all() and min(out.lr_psnr_float) >= 100


def test_windows_leave_no_trace(pipeline):
    unit = 48 // pipeline.config.scale_factor  # half of the margin, in pixels of y
    photo = Image.open(PHOTOS / "chelsea.png").convert("RGB").crop((60, 0, 60 + 10 * unit, 4 * unit))
    options = {"seed": 0, "temperature": 0.8, "output_type": "np"}

    def difference():
        whole, windowed = (pipeline(photo, window_size=side, **options).images[0] for side in (10 * unit, 4 * unit))
        return 255 * np.abs(whole - windowed).max()

    restored = getattr(pipeline.lr_encoder, "restorer", None) is not None
    assert difference() <= (4 if restored else 1)  # single pixels, by roundings
    pipeline.disable_fast_inference()
    try:
        assert difference() <= 0.25  # what the margin cuts off, in the worst of all pixels
    finally:
        pipeline.enable_fast_inference()


def test_bfloat16_stays_close_to_float32(photo):
    _, lr = prepare_thesis(photo, 128)
    images = []
    for dtype in (torch.float32, torch.bfloat16):
        pipe = SuperResolutionPipeline.from_pretrained("natural-x4", dtype=dtype)
        pipe.set_progress_bar_config(disable=True)
        images.append(pipe(Image.fromarray(lr), seed=0, output_type="np").images[0])
    assert np.isfinite(images[1]).all()
    assert -10 * np.log10(((images[0] - images[1]) ** 2).mean()) >= 35


def test_photo_x4_takes_blocks_and_noise_away_where_a_projection_would_bring_them_back(photo):
    hr, lr = prepare_thesis(photo, 256)
    y = degrade(hr, "noise", seed=0, index=0)
    pipe = SuperResolutionPipeline.from_pretrained("photo-x4")
    pipe.set_progress_bar_config(disable=True)
    assert pipe.config.consistency == "none"
    point = np.asarray(pipe(Image.fromarray(y), temperature=0, seed=0).images[0])
    projected = np.moveaxis(
        pipe.operator.project(torch.from_numpy(point / 255).moveaxis(-1, 0), torch.from_numpy(y / 255).moveaxis(-1, 0))
        .clamp(0, 1).numpy(), 0, -1,
    )  # fmt: skip
    assert psnr_y(hr, point) > psnr_y(hr, upsample_pil(y, 4))
    assert psnr_y(hr, point) > psnr_y(hr, np.rint(projected * 255).astype(np.uint8)) + 0.5
    with pytest.raises(ValueError, match="degradation is not known"):
        pipe(Image.fromarray(lr), enforce_consistency=True)


def test_the_default_model_is_that_of_the_next_larger_factor():
    factors = {None: 4, 0.5: 2, 2: 2, 2.1: 4, 4: 4, 4.5: 8, 8: 8, 12: 8, 12.5: 4, 16: 4, 64: 4, float("nan"): 4}
    for outscale, factor in factors.items():
        assert default_model(outscale) == f"natural-x{factor}"
    assert {default_model(outscale) for outscale in factors} <= set(bundled_checkpoints())


def test_every_configuration_in_hub_configs_can_be_built():
    for path in sorted((ROOT / "hub_configs").glob("**/config.json")):
        config = json.loads(path.read_text())
        with torch.device("meta"):
            model = getattr(hvae_sr, config["_class_name"]).from_config(config)
        assert sum(p.numel() for p in model.parameters()) > 5e5, path


def test_the_package_offers_its_names():
    assert all(hasattr(hvae_sr, name) for name in hvae_sr.__all__)
