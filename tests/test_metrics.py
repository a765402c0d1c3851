import doctest
import math
from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from hvae_sr.evaluation import metrics
from hvae_sr.operators import Downsampling


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def images(rng):
    a = rng.integers(0, 256, (24, 20, 3), dtype=np.uint8)
    b = np.clip(a + rng.normal(0, 12, a.shape), 0, 255).astype(np.uint8)
    return a, b


def test_the_examples_in_the_docstrings_hold():
    assert doctest.testmod(metrics).failed == 0


def test_psnr_is_its_formula_and_symmetric(rng):
    a, b = rng.random((2, 5, 7))
    expected = 20 * math.log10(2 / math.sqrt(sum((p - q) ** 2 for p, q in zip(a.flat, b.flat, strict=True)) / 35))
    assert metrics.psnr(a, b, 2.0) == pytest.approx(expected)
    assert metrics.psnr(a, b, 2.0) == metrics.psnr(b, a, 2.0)


def test_psnr_of_identical_images_is_infinite(images):
    a, _ = images
    assert metrics.psnr(a, a, 255) == math.inf
    assert metrics.psnr_y(a, a.copy()) == math.inf


def test_unsigned_images_do_not_wrap_around():
    assert metrics.psnr(np.uint8([0]), np.uint8([255]), 255) == 0
    assert metrics.psnr_y(np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), 255, np.uint8)) < 2


def test_arrays_and_tensors_give_the_same_number(images, rng):
    a, b = images
    for name in ("psnr_y", "ssim_rgb", "ssim_y"):
        function = getattr(metrics, name)
        assert function(a, b) == function(torch.from_numpy(a), torch.from_numpy(b))
    x, t = rng.random((20, 7, 7)), rng.random((7, 7))
    for name in ("coverage", "crps", "diversity_score", "mse_ratio"):
        function = getattr(metrics, name)
        assert function(x, t) == function(torch.from_numpy(x), torch.from_numpy(t))


def test_luma_weighs_the_channels_as_bt601():
    pure = np.eye(3, dtype=np.uint8)[None] * 255
    np.testing.assert_allclose(metrics.luma(pure), [[81.481, 144.553, 40.966]])


def test_psnr_y_ignores_the_cropped_border(images):
    a, _ = images
    b = a.copy()
    b[:4] = 255 - b[:4]
    b[:, -4:] = 0
    assert metrics.psnr_y(a, b) < 30
    assert metrics.psnr_y(a, b, crop_border=4) == math.inf


def test_ssim_y_is_the_formula_of_wang_et_al(images):
    a, b = images
    x, y = metrics.luma(a), metrics.luma(b)

    def blur(image):  # 11 taps, full windows only
        return gaussian_filter(image, 1.5, radius=5)[5:-5, 5:-5]

    mx, my = blur(x), blur(y)
    vx, vy, cov = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    expected = ((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean()
    assert metrics.ssim_y(a, b) == pytest.approx(expected, abs=1e-10)


def test_ssim_rgb_is_one_only_for_equal_images(images):
    a, b = images
    assert metrics.ssim_rgb(a, a) == pytest.approx(1)
    assert 0 < metrics.ssim_rgb(a, b) < 1


def test_lr_psnr_is_high_after_the_projection(rng):
    operator = Downsampling(4)
    x, y = torch.from_numpy(rng.random((3, 16, 24))), torch.from_numpy(rng.random((3, 4, 6)))
    assert metrics.lr_psnr(x, y, operator) == pytest.approx(metrics.psnr(operator(x), y, 1.0))
    assert metrics.lr_psnr(operator.project(x, y), y, operator) > 200


def test_average_pairwise_distance_is_the_mean_over_pairs_in_any_order(rng):
    x = rng.random((5, 4, 4, 3))
    expected = np.mean([np.mean((x[i] - x[j]) ** 2) for i, j in combinations(range(5), 2)])
    assert metrics.average_pairwise_distance(x) == pytest.approx(expected)
    assert metrics.average_pairwise_distance(x[::-1]) == pytest.approx(expected)
    assert metrics.average_pairwise_distance(x, lambda a, b: ((a - b) ** 2).mean()) == pytest.approx(expected)


def test_average_pairwise_distance_of_equal_samples_is_zero():
    assert metrics.average_pairwise_distance(np.ones((3, 2, 2))) == 0


@pytest.mark.parametrize(("n", "level"), [(64, 0.9), (19, 0.9), (100, 0.5)])
def test_a_calibrated_gaussian_sampler_covers_the_level(rng, n, level):
    mean, sigma = rng.normal(size=20_000), rng.uniform(0.5, 2, size=20_000)
    target = mean + sigma * rng.normal(size=20_000)
    samples = mean + sigma * rng.normal(size=(n, 20_000))
    assert metrics.coverage(samples, target, level) == pytest.approx(level, abs=0.01)
    assert metrics.coverage(mean + 0.5 * (samples - mean), target, level) < level - 0.1
    assert metrics.calibration(samples, target).keys() == {"coverage", "interval_width"}


def test_interval_width_of_a_gaussian_is_that_of_its_quantiles(rng):
    assert metrics.interval_width(rng.normal(size=(5000, 50))) == pytest.approx(2 * 1.6449, rel=0.01)


def test_crps_of_a_point_mass_is_the_mean_absolute_error(rng):
    point, target = rng.random((2, 6, 6))
    mae = np.abs(point - target).mean()
    for samples in (point[None], np.stack([point] * 5)):
        assert metrics.crps(samples, target) == pytest.approx(mae)
        assert metrics.crps(samples, target, fair=False) == pytest.approx(mae)


@pytest.mark.parametrize("fair", [True, False])
def test_crps_is_its_double_sum(rng, fair):
    x, t = rng.random((6, 10)), rng.random(10)
    pairs = np.abs(x[:, None] - x[None]).sum(axis=(0, 1)) / (2 * (6 * 5 if fair else 36))
    assert metrics.crps(x, t, fair=fair) == pytest.approx((np.abs(x - t).mean(axis=0) - pairs).mean())


def test_fair_crps_of_a_gaussian_is_its_closed_form_for_few_samples(rng):
    # E over t ~ N(0, 1) of CRPS(N(0, 1), t) = 1 / sqrt(pi)
    score = metrics.crps(rng.normal(size=(3, 200_000)), rng.normal(size=200_000))
    assert score == pytest.approx(1 / math.sqrt(math.pi), abs=0.005)


def test_diversity_score_is_zero_without_diversity_and_grows_with_finer_neighbourhoods(rng):
    target, x = rng.random((9, 9, 3)), rng.random((4, 9, 9, 3))
    assert metrics.diversity_score(np.stack([x[0]] * 3), target) == pytest.approx(0, abs=1e-9)
    fine, coarse = (metrics.diversity_score(x, target, n) for n in (1, 7))
    assert 0 <= coarse < fine <= 100
    error = ((x - target) ** 2).mean(axis=-1)
    assert fine == pytest.approx(100 * (1 - error.min(axis=0).mean() / error.mean(axis=(1, 2)).min()))
    assert metrics.diversity_score(x, target, 1, lambda a, b: ((a - b) ** 2).mean(-1)) == pytest.approx(fine)
    assert metrics.diversity_score(np.stack([target, x[0]]), target) == 0


@pytest.mark.parametrize(("n", "tau"), [(8, 1.0), (64, 0.8), (8, 0.2)])
def test_mse_ratio_of_a_calibrated_sampler_follows_the_temperature(rng, n, tau):
    target, samples = rng.normal(size=40_000), tau * rng.normal(size=(n, 40_000))
    assert metrics.mse_ratio(samples, target) == pytest.approx((1 + tau**2) / (1 + tau**2 / n), rel=0.03)


def test_mse_ratio_of_exact_samples_is_defined():
    target = np.zeros(3)
    assert metrics.mse_ratio(np.zeros((2, 3)), target) == 1
    assert metrics.mse_ratio(np.array([[1.0] * 3, [-1.0] * 3]), target) == math.inf


ZERO = np.zeros((12, 12, 3), np.uint8)
NAN = np.full((2, 8, 8), np.nan)
SAMPLES = np.zeros((2, 8, 8))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.psnr(np.zeros(2), np.zeros(3), 1), r"`a` and `b`.*\(2,\) and \(3,\)"),
        (lambda: metrics.psnr(np.zeros(2), np.array([0, np.nan]), 1), "`b` must not contain NaN, got 1 of 2"),
        (lambda: metrics.psnr(np.zeros(2), np.zeros(2), 0), "`data_range` must be positive, got 0"),
        (lambda: metrics.psnr(np.zeros(0), np.zeros(0), 1), "`a` must not be empty"),
        (lambda: metrics.psnr_y(ZERO / 255, ZERO), "`a` must be a uint8"),
        (lambda: metrics.psnr_y(ZERO[..., 0], ZERO[..., 0]), r"`a` must be a uint8 \[H, W, 3\]"),
        (lambda: metrics.psnr_y(ZERO, ZERO, crop_border=6), "`crop_border`.*got 6"),
        (lambda: metrics.ssim_rgb(ZERO[:5], ZERO[:5]), "at least 7x7"),
        (lambda: metrics.ssim_y(ZERO, ZERO, crop_border=1), "at least 11x11"),
        (lambda: metrics.lr_psnr(np.zeros((3, 8, 8)), np.zeros((3, 4, 4)), Downsampling(4)), "`y`"),
        (lambda: metrics.average_pairwise_distance(SAMPLES[:1]), r"`samples`.*at least 2.*\(1, 8, 8\)"),
        (lambda: metrics.average_pairwise_distance(SAMPLES, "lpips"), "`distance`.*'lpips'"),
        (lambda: metrics.average_pairwise_distance(NAN), "`samples` must not contain NaN"),
        (lambda: metrics.coverage(SAMPLES, SAMPLES[0]), "at least 19 samples for level 0.9, got 2"),
        (lambda: metrics.coverage(SAMPLES, SAMPLES[0], level=1.0), "`level`.*got 1.0"),
        (lambda: metrics.crps(SAMPLES, SAMPLES), "`target` must have the shape of one sample"),
        (lambda: metrics.diversity_score(SAMPLES[:1], SAMPLES[0]), "`samples`"),
        (lambda: metrics.diversity_score(SAMPLES, SAMPLES[0], 4), "`neighbourhood`.*got 4"),
        (lambda: metrics.diversity_score(SAMPLES, SAMPLES[0], 9), "`neighbourhood`.*got 9"),
        (lambda: metrics.mse_ratio(SAMPLES[:1], SAMPLES[0]), "`samples`"),
        (lambda: metrics.to_uint8(NAN), "`image` must not contain NaN"),
    ],
)
def test_bad_input_is_an_error_that_names_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call()
