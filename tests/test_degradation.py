"""The warning that an input does not look like what the model was trained on."""

import io

import numpy as np
import pytest
import skimage
import torch
from PIL import Image
from scipy import ndimage

from hvae_sr import Downsampling
from hvae_sr.images import find_images, load_image, to_pil, to_tensor
from hvae_sr.images.degradation import inspect


@pytest.fixture(scope="module", params=["chelsea", "astronaut", "coffee"])
def clean(request):
    return to_tensor(np.asarray(to_pil(Downsampling(2)(to_tensor(getattr(skimage.data, request.param)())))))


def warned(levels):
    text = " ".join(inspect(to_tensor(levels)).warnings())
    return {name for name, word in (("noise", "noisy"), ("jpeg", "JPEG"), ("blur", "blurred")) if word in text}


def test_a_clean_photograph_is_not_warned_of(clean):
    assert inspect(clean).warnings() == []


@pytest.mark.parametrize(("name", "step"), [("BSD100", 4), ("T91", 1)])
def test_few_clean_photographs_are_warned_of_and_most_noisy_ones(benchmark_folder, name, step):
    operator, given = Downsampling(4), []
    for seed, path in enumerate(find_images(benchmark_folder / name)[::step]):
        y = operator(to_tensor(load_image(path)))
        levels = np.asarray(to_pil(y))
        noisy = levels + np.random.default_rng(seed).normal(0, 5, levels.shape)
        if inspect(y) is not None:
            given.append((bool(warned(levels)), "noise" in warned(np.rint(noisy).clip(0, 255).astype(np.uint8))))
    clean, noisy = np.mean(given, axis=0)
    assert len(given) >= 25 and clean <= 0.05 and noisy >= 0.9  # colourful textures of T91 look like noise


def test_noise_blocks_and_blur_are_told_apart(clean):
    levels = np.asarray(to_pil(clean))
    noisy = levels + np.random.default_rng(0).normal(0, 6, levels.shape)
    assert warned(np.rint(noisy).clip(0, 255).astype(np.uint8)) == {"noise"}
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "JPEG", quality=50)
    compressed = np.asarray(Image.open(file))
    assert "jpeg" in warned(compressed)
    assert "jpeg" in warned(compressed[3:, 5:])  # a crop: the grid begins elsewhere
    blurred = torch.from_numpy(ndimage.gaussian_filter(clean.numpy(), (0, 1.5, 1.5)))
    assert "blur" in warned(np.asarray(to_pil(blurred)))


def test_images_too_small_or_flat_to_tell_give_nothing():
    assert inspect(torch.rand(3, 31, 90)) is None
    assert inspect(torch.full((3, 64, 64), 0.3)) is None
