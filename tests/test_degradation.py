"""The warning that an input does not look like what the model was trained on."""

import io

import numpy as np
import pytest
import skimage
import torch
from PIL import Image, ImageDraw
from scipy import ndimage

from hvae_sr import Downsampling
from hvae_sr.images import find_images, load_image, read_photo, to_pil, to_tensor
from hvae_sr.images.degradation import inspect


@pytest.fixture(scope="module", params=["chelsea", "astronaut", "coffee"])
def clean(request):
    return to_tensor(np.asarray(to_pil(Downsampling(2)(to_tensor(getattr(skimage.data, request.param)())))))


def compressed(levels, quality):
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def with_noise(levels, deviation, seed=0):
    noisy = levels + np.random.default_rng(seed).normal(0, deviation, levels.shape)
    return np.rint(noisy).clip(0, 255).astype(np.uint8)


def warned(levels, alpha=None):
    text = " ".join(inspect(to_tensor(levels), alpha).warnings())
    return {name for name, word in (("noise", "noisy"), ("jpeg", "JPEG"), ("blur", "blurred")) if word in text}


def test_a_clean_photograph_is_not_warned_of(clean):
    assert inspect(clean).warnings() == []


@pytest.mark.parametrize(("name", "step"), [("BSD100", 4), ("T91", 1)])
def test_few_clean_photographs_are_warned_of_and_most_noisy_ones(benchmark_folder, name, step):
    operator, given = Downsampling(4), []
    for seed, path in enumerate(find_images(benchmark_folder / name)[::step]):
        y = operator(to_tensor(load_image(path)))
        levels = np.asarray(to_pil(y))
        if inspect(y) is not None:
            given.append((bool(warned(levels)), "noise" in warned(with_noise(levels, 5, seed))))
    clean, noisy = np.mean(given, axis=0)
    assert len(given) >= 25 and clean <= 0.05 and noisy >= 0.9  # colourful textures of T91 look like noise


def test_noise_blocks_and_blur_are_told_apart(clean):
    levels = np.asarray(to_pil(clean))
    assert warned(with_noise(levels, 6)) == {"noise"}
    blocks = compressed(levels, 50)
    assert "jpeg" in warned(blocks)
    assert "jpeg" in warned(blocks[3:, 5:])  # a crop: the grid begins elsewhere
    blurred = torch.from_numpy(ndimage.gaussian_filter(clean.numpy(), (0, 1.5, 1.5)))
    assert "blur" in warned(np.asarray(to_pil(blurred)))


@pytest.mark.parametrize("added", ["bars", "frame", "highlights", "cut-out"])
def test_noise_is_seen_beside_what_cannot_show_it(clean, added, tmp_path):
    levels, alpha = np.asarray(to_pil(clean)).astype(float), None
    found = []
    for deviation in (0, 10):
        given = with_noise(1.6 * levels if added == "highlights" else levels, deviation)
        if added == "bars":
            given = np.pad(given, ((len(given) // 12,) * 2, (0, 0), (0, 0)))
        elif added == "frame":
            given = np.pad(given, ((8, 8), (8, 8), (0, 0)), constant_values=255)
        elif added == "cut-out":
            rows, columns = np.mgrid[-1 : 1 : len(given) * 1j, -1 : 1 : given.shape[1] * 1j]
            hidden = np.where(rows**2 + columns**2 < 0.64, 255, 0).astype(np.uint8)
            Image.fromarray(np.dstack([given, hidden])).save(tmp_path / "a.png")
            photo = read_photo(tmp_path / "a.png")
            given, alpha = photo.pixels, torch.from_numpy(np.array(photo.alpha))
        found.append("noise" in warned(given, alpha))
    assert found == [False, True]


@pytest.mark.parametrize("smooth", [True, False])
def test_a_clean_drawing_does_not_look_noisy(smooth):
    random, drawing = np.random.default_rng(0), Image.new("RGB", (1600, 1200), (250, 240, 200))
    for _ in range(40):
        (left, top), width, height = random.integers(0, 1200, 2).tolist(), *random.integers(20, 400, 2).tolist()
        colour, line = (tuple(random.integers(0, 256, 3).tolist()) for _ in range(2))
        ImageDraw.Draw(drawing).ellipse([left, top, left + width, top + height], colour, line, width=8)
    resample = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    assert "noise" not in warned(np.asarray(drawing.resize((400, 300), resample)))


def test_blocks_are_seen_anywhere_in_a_large_image(clean):
    part = np.asarray(to_pil(clean))[:248, :248]
    large = np.full((512, 512, 3), 255, np.uint8)
    large[-len(part) :, -part.shape[1] :] = part
    levels = compressed(large, 30)
    assert "jpeg" in warned(levels) and "jpeg" in warned(levels[::-1, ::-1])


def test_images_too_small_or_flat_to_tell_give_nothing():
    assert inspect(torch.rand(3, 31, 90)) is None
    assert inspect(torch.full((3, 64, 64), 0.3)) is None


@pytest.mark.parametrize("frame", ["bars", "page", "cut-out"])
def test_blur_and_blocks_are_seen_within_a_frame_and_in_what_is_visible(clean, frame, tmp_path):
    def framed(levels):
        photo = Image.fromarray(levels)
        width, height = photo.size
        if frame == "cut-out":
            mask = Image.new("L", photo.size)
            ImageDraw.Draw(mask).ellipse((5, 5, width - 5, height - 5), fill=255)
            photo.putalpha(mask)
            photo.save(tmp_path / "cut.png")
            read = read_photo(tmp_path / "cut.png")
            return np.asarray(read.image), to_tensor(read.alpha)[0]
        side = 60 if frame == "bars" else 100
        around = Image.new("RGB", (width + 2 * side * (frame == "page"), height + 2 * side), "white")
        around.paste(photo, (side * (frame == "page"), side))
        return np.asarray(around), None

    levels = np.asarray(to_pil(clean))
    blurred = ndimage.gaussian_filter(levels, (1.5, 1.5, 0))
    assert warned(*framed(levels)) == set()
    assert "blur" in warned(*framed(blurred)) and "jpeg" in warned(*framed(compressed(levels, 40)))
