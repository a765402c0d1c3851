"""Large images are sampled window by window, and those of models of one size in blended tiles."""

from functools import partial

import numpy as np
import pytest
import torch

from hvae_sr import SuperResolutionPipeline
from hvae_sr.noise import CounterNoise
from hvae_sr.sampling import WindowSampler
from hvae_sr.sampling.memory import ASIDE, KEPT_FEATURES, Budget, budget, bytes_per_pixel
from hvae_sr.sampling.windows import split, tiles


@pytest.fixture(params=["vdvae-sr", "cvdvae"])
def pipe(request, make_pipeline):
    return make_pipeline(request.param, {"likelihood_location": "bicubic"} if request.param == "vdvae-sr" else {})


@pytest.fixture
def photo():
    return np.random.default_rng(0).random((45, 61, 3), dtype=np.float32)


@pytest.mark.parametrize("size", [(7, 9), (100, 37), (256, 256), (5, 300)])
def test_what_is_kept_of_all_windows_tiles_the_image_once(size):
    count = torch.zeros(1, *size)
    for window in split(*size, side=24, margin=8):
        part = torch.ones(1, *size)[window.view()]
        top, left, bottom, right = window.outer
        assert part.shape[1:] == (bottom - top, right - left)
        assert bottom - top <= 40 and right - left <= 40
        whole = torch.zeros(1, *size)
        window.paste(part, whole)
        count += whole
    assert (count == 1).all()
    assert len(split(40, 40, side=24, margin=8)) == 1
    assert len(split(41, 40, side=24, margin=8)) == 2


@pytest.mark.parametrize("output_type", ["np", "latent"])
def test_windows_give_what_the_whole_gives(pipe, photo, output_type):
    options = {"num_samples": 3, "seed": 4, "temperature": 0.9, "output_type": output_type, "batch_size": 2}
    whole = pipe(photo, **options)
    windowed = pipe(photo, window_size=8, **options)
    for a, b in zip(whole.images, windowed.images, strict=True):
        assert np.abs(np.asarray(a) - np.asarray(b)).max() < 1e-5
    assert whole.seeds == windowed.seeds


def test_windows_take_their_part_of_given_noise_and_latents(pipe, photo):
    latents = pipe(photo, num_samples=2, seed=1, output_type="latent").latents
    for given in ({"latents": latents}, {"noise": [torch.randn(z.shape) for z in latents]}):
        options = {"num_samples": 2, "output_type": "np", **given}
        assert np.abs(pipe(photo, **options).images - pipe(photo, window_size=8, **options).images).max() < 1e-5


def test_pixel_draws_are_the_same_in_windows(pipe, photo):
    options = {"seed": 3, "sample_pixels": True, "output_type": "np"}
    assert np.abs(pipe(photo, **options).images - pipe(photo, window_size=8, **options).images).max() < 1e-4


def test_large_images_are_split_without_being_asked(pipe, photo):
    y = torch.from_numpy(photo).movedim(-1, 0)
    sampler = WindowSampler(pipe.networks, y, budget=Budget(96**2, 0), margin=32)
    assert len(sampler.windows) > 2 and sampler.samples_at_once == 1
    for window in sampler.windows:
        top, left, bottom, right = window.outer
        assert (bottom - top) * (right - left) * 16 <= 96**2


def test_features_of_windows_serve_every_sample_while_there_is_room(pipe, photo, monkeypatch):
    seen, encode = [], pipe.lr_encoder.encode
    monkeypatch.setattr(pipe.lr_encoder, "encode", lambda y: seen.append(1) or encode(y))
    y, noise = torch.from_numpy(photo).movedim(-1, 0), partial(CounterNoise, [0])

    def draw(features: int) -> list[torch.Tensor]:
        sampler = WindowSampler(pipe.networks, y, 8, Budget(2**20, features), margin=32)
        with torch.no_grad():
            return [sampler.sample(1, noise, temperature=0.5).sample for _ in range(3)]

    kept, windows = draw(2**30), len(seen)
    assert windows > 2
    with torch.no_grad():
        one = WindowSampler(pipe.networks, y, 8, margin=32)
        size = one.condition(one.windows[0]).nbytes
    seen.clear()
    some = draw(2 * size)
    assert len(seen) == windows + 2 * (windows - 2)
    assert all(torch.equal(a, b) for a, b in zip(kept, some, strict=True))


def test_what_is_kept_of_windows_is_within_the_bound_of_memory(pipe, photo, monkeypatch):
    monkeypatch.setattr("hvae_sr.sampling.memory.used_and_available", lambda device: (0, 2**40))
    arguments = (pipe.vdvae, (4096, 4096), 3, "pil", True)
    plenty = budget(*arguments, 2**34, torch.device("cpu"))
    assert plenty == Budget(2**20, KEPT_FEATURES)
    with pytest.raises(ValueError, match="`max_memory`"):
        budget(*arguments, 2**28, torch.device("cpu"))
    taken = 12 + 24 + 4 * 3 + 5 + 4  # of each pixel: one sample, mean and squares, 8-bit images
    for spare in (0, 1000, 2**20):
        bound = 4096**2 * taken + ASIDE + 2**20 * bytes_per_pixel(pipe.vdvae) + spare
        assert budget(*arguments, bound, torch.device("cpu")) == Budget(2**20, spare)
    single = (pipe.vdvae, (4096, 4096), 1, "pil", True)
    assert budget(*single, 2**34, torch.device("cpu")).features == 0
    assert budget(*arguments, 2**34, torch.device("cpu"), self_ensemble=True).features == 0


def test_samples_that_are_held_whole_are_few(pipe):
    small, large = (torch.zeros(3, side, side) for side in (64, 512))
    at_once = [WindowSampler(pipe.networks, y.to("meta"), 8).samples_at_once for y in (small, large)]
    assert at_once[0] > 1 and at_once[1] == 1
    assert WindowSampler(pipe.networks, small, 8).samples_at_once == 1  # a CPU rounds batches of other sizes otherwise


@pytest.mark.parametrize("kind", ["gradient", "texture"])
def test_no_seam_is_left_in_a_gradient_or_a_texture(kind):
    pipe = SuperResolutionPipeline.from_pretrained("natural-x4")
    pipe.set_progress_bar_config(disable=True)
    rows, columns = np.indices((80, 96), dtype=np.float32)
    gradient = np.stack([0.2 + 0.6 * rows / 80, 0.3 + 0.4 * columns / 96, 0.7 - 0.3 * (rows + columns) / 176], axis=-1)
    texture = gradient + 0.15 * np.sin(rows * columns / 23)[..., None] * np.cos(columns / 2)[..., None]
    image = np.clip(gradient if kind == "gradient" else texture, 0, 1)
    whole, windowed = (
        255 * pipe(image, seed=0, temperature=0.8, output_type="np", window_size=side).images[0] for side in (96, 24)
    )
    windows = split(80, 96, 24, 24)
    assert len(windows) >= 4
    difference = np.abs(windowed - whole).mean(axis=2)
    for axis, borders in enumerate(zip(*[window.inner[:2] for window in windows], strict=True)):
        steps = np.abs(np.diff(windowed, axis=axis)).mean(axis=(1 - axis, 2))
        expected = np.abs(np.diff(whole, axis=axis)).mean(axis=(1 - axis, 2))
        for border in {4 * border for border in borders if border}:
            # As large a step as without a border, and no more of a difference there than anywhere else.
            assert abs(steps[border - 1] - expected[border - 1]) < 0.1
            near = difference.take(range(border - 2, border + 2), axis=axis).mean()
            assert near < 0.25 and near < 3 * difference.mean() + 0.01


# Tiles of models of one size: other sizes are refused, or worked on in tiles.


@pytest.mark.parametrize(("size", "side", "blend"), [((64, 64), 64, 16), ((65, 200), 64, 16), ((33, 63), 32, 10)])
def test_weights_of_tiles_sum_to_one_everywhere(size, side, blend):
    total = torch.zeros(1, 4 * size[0], 4 * size[1])
    for tile in tiles(*size, side, blend):
        tile.paste(torch.ones(1, 4 * side, 4 * side), total, 4)
    assert (total - 1).abs().max() < 1e-6


@pytest.fixture
def of_one_size(make_pipeline):
    pipeline = make_pipeline(bias_type="spatial")
    pipeline.register_to_config(input_description="a face aligned as in FFHQ")
    return pipeline


def test_another_size_is_refused_with_the_size_and_alignment_that_fit(of_one_size):
    with pytest.raises(ValueError, match="4x4 pixels of a face aligned as in FFHQ.*got 9x6.*tile=True"):
        of_one_size(np.zeros((6, 9, 3), dtype=np.uint8))


@pytest.mark.parametrize("size", [(4, 4), (3, 4), (6, 9), (2, 13)])
def test_tiles_give_exactly_scale_times_the_size_and_stay_consistent(of_one_size, size):
    photo = np.random.default_rng(0).random((*size, 3)) * 0.1 + 0.45
    out, again = (of_one_size(photo, tile=True, seed=0, output_type="np") for _ in range(2))
    assert out.images.shape == (1, 4 * size[0], 4 * size[1], 3) and out.lr_psnr_float[0] > 100
    assert np.array_equal(out.images, again.images)


def test_latents_of_several_tiles_are_refused(of_one_size):
    with pytest.raises(ValueError, match="several tiles"):
        of_one_size(np.zeros((6, 9, 3)), tile=True, output_type="latent")
    for name in ("window_size", "window_margin"):
        with pytest.raises(ValueError, match=f"`{name}` has no effect on this model: it works at one size only"):
            of_one_size(np.zeros((6, 9, 3)), tile=True, **{name: 4})
