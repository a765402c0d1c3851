"""What a set of samples of one posterior says: diversity, calibration, and distortion as a function of their number.

Samples are NumPy arrays or torch tensors, the sample index first; results are Python floats, alone, in lists or by
name, but for the images of `mean_of_n`. Bad input is a `ValueError` that names the argument.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from math import comb
from typing import Any

import numpy as np
from scipy.ndimage import uniform_filter

from ..checks import check_count
from .metrics import Array, ArrayLike, as_array, ratio

Distance = Callable[[Any, Any], Any]

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Nominal levels of the intervals of a calibration curve; 0.9 needs 19 samples."""


def _ensemble(samples: ArrayLike, minimum: int = 2) -> Array:
    """`samples` as a floating-point array of at least `minimum` samples."""
    array = as_array("samples", samples)
    if array.ndim < 2 or array.shape[0] < minimum:
        raise ValueError(f"`samples` must be [N, ...] with at least {minimum} samples, got shape {array.shape}.")
    return array if array.dtype.kind == "f" else array.astype(np.float64)


def _ensemble_and_target(samples: ArrayLike, target: ArrayLike, minimum: int = 2) -> tuple[Array, Array]:
    array, truth = _ensemble(samples, minimum), as_array("target", target)
    if array.shape[1:] != truth.shape:
        raise ValueError(f"`target` must have the shape of one sample, {array.shape[1:]}, got {truth.shape}.")
    return array, truth.astype(np.float64)


def average_pairwise_distance(samples: ArrayLike, distance: str | Distance = "mse") -> float:
    """Diversity of N samples: the mean of d(x_i, x_j) over all pairs i < j.

    `distance` is ``"mse"`` (in the squared unit of the samples) or a symmetric function of two samples, which
    is given the samples in their own type.

    >>> average_pairwise_distance(np.array([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]]))   # (1 + 1 + 4) / 3
    2.0
    """
    array = _ensemble(samples)
    if callable(distance):
        return float(np.mean([float(distance(a, b)) for a, b in combinations(samples, 2)]))
    if distance != "mse":
        raise ValueError(f"`distance` must be 'mse' or a function of two samples, got {distance!r}.")
    # The mean squared difference over pairs is twice the unbiased variance.
    return float(2 * np.mean(np.var(array, axis=0, ddof=1, dtype=np.float64)))


def _intervals(array: Array, levels: Sequence[float], band: int) -> Iterator[tuple[slice, Array, Array]]:
    """Values by values (flattened), the ends of the central intervals, ``[levels, n]`` each; `band` values at a time.

    One more exchangeable value lies below the k-th of N with probability k / (N + 1): these are Weibull's plotting
    positions. NumPy's default would cover 87 % instead of 90 % with 64 samples.
    """
    count = len(array)
    for level in levels:
        if not 0 < level < 1:
            raise ValueError(f"`level` must lie between 0 and 1, got {level}.")
        needed = int(np.ceil(2 / (1 - level) - 1e-9)) - 1
        if count < needed:
            raise ValueError(f"`samples` must hold at least {needed} samples for level {level}, got {count}.")
    tails = (1 - np.array(levels)) / 2
    positions = np.concatenate((tails, 1 - tails)) * (count + 1) - 1
    below = np.clip(np.floor(positions + 1e-9).astype(int), 0, count - 1)
    above, share = np.minimum(below + 1, count - 1), np.clip(positions - below, 0, 1)
    flat, step = array.reshape(count, -1), max(1, band // count)
    for start in range(0, flat.shape[1], step):
        chosen = slice(start, start + step)
        values = np.sort(flat[:, chosen].T, axis=1)  # [n, N]: sorted along contiguous memory
        low, high = values[:, below], values[:, above]
        ends = (low + share * (high - low)).T  # exactly their value where both are equal
        yield chosen, ends[: len(tails)], ends[len(tails) :]


def calibration_curve(
    samples: ArrayLike, target: ArrayLike, levels: Sequence[float] = LEVELS, band: int = 2**21
) -> dict[str, list[float]]:
    """Coverage and mean width of the samples' central intervals, for each nominal level.

    Of a calibrated sampler the coverage equals the level where (N + 1) (1 - level) / 2 is whole, and is at most .01
    above it elsewhere; below it, the samples spread too little. Of two calibrated samplers the one with narrower
    intervals knows more. A level needs 2 / (1 - level) - 1 samples (19 for 0.9). `band` values are sorted at a time, so
    that memory beyond the samples stays at some 50 MB.

    Returns:
        ``{"level": [...], "coverage": [...], "width": [...]}``; widths in the unit of the samples.

    >>> curve = calibration_curve(np.arange(19.0).reshape(19, 1), np.array([13.0]), levels=(0.2, 0.9))
    >>> curve["coverage"], [round(width, 6) for width in curve["width"]]
    ([0.0, 1.0], [4.0, 18.0])
    """
    array, truth = _ensemble_and_target(samples, target)
    flat = truth.reshape(-1)
    inside, width = np.zeros(len(levels)), np.zeros(len(levels))
    for chosen, low, high in _intervals(array, levels, band):
        inside += ((low <= flat[chosen]) & (flat[chosen] <= high)).sum(axis=1)
        width += (high - low).sum(axis=1)
    return {
        "level": [float(level) for level in levels],
        "coverage": (inside / flat.size).tolist(),
        "width": (width / flat.size).tolist(),
    }


def coverage(samples: ArrayLike, target: ArrayLike, level: float = 0.9) -> float:
    """Share of target values inside the samples' central interval: one level of `calibration_curve`."""
    return calibration_curve(samples, target, (level,))["coverage"][0]


def interval_width(samples: ArrayLike, level: float = 0.9) -> float:
    """Mean width of the intervals of `coverage`: of two calibrated samplers the narrower knows more."""
    array = _ensemble(samples)
    return calibration_curve(array, np.zeros(array.shape[1:]), (level,))["width"][0]


def error_by_spread(samples: ArrayLike, target: ArrayLike, parts: int = 5) -> tuple[list[float], list[float]]:
    """Whether errors are large where samples differ: (standard deviations of the samples, errors of their mean).

    Values are sorted by the samples' standard deviation, and cut into `parts` of one size; of each, the root mean
    square of it, and that of the mean's error. A calibrated sampler has the same two numbers everywhere, but for two
    things: the factor (1 + 1/N)^(1/2) of a mean of N samples; and the parts' own choice, as a deviation that N samples
    show too small by chance comes into the first part, and one too large into the last (with N = 64 and one true
    deviation everywhere by .87 and 1.12 of five). One whose map says nothing has errors that do not grow.

    >>> samples = np.array([[-1.0, -2.0], [1.0, 2.0]])
    >>> [[round(value, 3) for value in part] for part in error_by_spread(samples, np.array([0.5, -3.0]), parts=2)]
    [[1.414, 2.828], [0.5, 3.0]]
    """
    array, truth = _ensemble_and_target(samples, target)
    variance = array.var(axis=0, ddof=1, dtype=np.float64).reshape(-1)
    error = np.square(array.mean(axis=0, dtype=np.float64) - truth).reshape(-1)
    check_count("parts", parts, 1, variance.size)
    groups = np.array_split(np.argsort(variance, kind="stable"), parts)
    spread, found = ([float(np.sqrt(square[group].mean())) for group in groups] for square in (variance, error))
    return spread, found


def crps(samples: ArrayLike, target: ArrayLike, fair: bool = True) -> float:
    """Continuous ranked probability score, E|X - t| - E|X - X'| / 2 (Gneiting & Raftery 2007), mean.

    `fair=True` averages the second term over pairs of different samples, which is unbiased in N (Ferro 2014);
    `fair=False` is the score of the empirical distribution. One sample is a point mass: its score is the MAE.

    >>> crps(np.array([[0.0], [2.0]]), np.array([1.0]), fair=False)
    0.5
    """
    array, truth = _ensemble_and_target(samples, target, minimum=1)
    n = len(array)
    error = float(np.mean(np.abs(array - truth)))
    if n == 1:
        return error
    # Sum over pairs i < j of |x_i - x_j|, from the order statistics.
    ranks = 2 * np.arange(n) - (n - 1)
    pairs = float(np.mean(np.tensordot(ranks.astype(np.float64), np.sort(array, axis=0), axes=1)))
    return error - pairs / (n * (n - 1) if fair else n * n)


def diversity_score(
    samples: ArrayLike, target: ArrayLike, neighbourhood: int = 7, distance: Distance | None = None
) -> float:
    """Diversity score of NTIRE's learning-SR-space challenge: 100 (global best - local best) / global best.

    The global best is the smallest mean distance of a whole sample; the local best takes, at each pixel, the
    sample with the smallest distance averaged over `neighbourhood` x `neighbourhood` pixels (odd; reflected
    at the borders, which keeps the mean, so the score lies in [0, 100]). `samples` is ``[N, H, W]`` or
    ``[N, H, W, C]``; `distance(sample, target)` returns an ``[H, W]`` map, squared error by default.

    >>> left, right = np.tile([0.0, 0.0, 1.0, 1.0], (4, 1)), np.tile([1.0, 1.0, 0.0, 0.0], (4, 1))
    >>> diversity_score(np.stack([left, right]), np.zeros((4, 4)), neighbourhood=1)
    100.0
    """
    array, truth = _ensemble_and_target(samples, target)
    if array.ndim not in (3, 4):
        raise ValueError(f"`samples` must be [N, H, W] or [N, H, W, C], got shape {array.shape}.")
    _check_neighbourhood(neighbourhood, array.shape[1:3])  # before distances are computed
    if distance is None:
        maps = (array - truth) ** 2
        maps = maps.mean(axis=-1) if maps.ndim == 4 else maps
    else:
        maps = np.stack([as_array("distance", distance(sample, target)) for sample in samples])
    if maps.shape != array.shape[:3]:
        raise ValueError(f"`distance` must return {array.shape[1:3]} maps, got {maps.shape[1:]}.")
    return diversity_of_maps(maps, neighbourhood)


def diversity_of_maps(maps: ArrayLike, neighbourhood: int = 1) -> float:
    """`diversity_score` of the samples' distances at each pixel, ``[N, H, W]``.

    Maps of LPIPS see their neighbourhoods by themselves: that of 1 pixel is theirs.
    """
    maps = as_array("maps", maps)
    if maps.ndim != 3:
        raise ValueError(f"`maps` must be [N, H, W], got shape {maps.shape}.")
    _check_neighbourhood(neighbourhood, maps.shape[1:])
    global_best = float(maps.mean(axis=(1, 2)).min())
    if global_best == 0:
        return 0.0
    local = np.min([uniform_filter(m, size=neighbourhood, mode="reflect") for m in maps], axis=0)
    return 100 * (global_best - float(local.mean())) / global_best


def _check_neighbourhood(neighbourhood: int, size: tuple[int, ...]) -> None:
    check_count("neighbourhood", neighbourhood, 1)
    if neighbourhood % 2 == 0 or neighbourhood > min(size):
        raise ValueError(f"`neighbourhood` must be odd and fit into {size} pixels, got {neighbourhood}.")


def mse_parts(samples: ArrayLike, target: ArrayLike) -> dict[str, float]:
    """Mean MSE of the samples, MSE of their mean, and their unbiased variance (mean over values), by name.

    >>> mse_parts(np.array([[1.0, 1.0], [1.0, -1.0]]), np.array([0.0, 0.0]))
    {'mse': 1.0, 'mse_of_mean': 0.5, 'variance': 1.0}
    """
    array, truth = _ensemble_and_target(samples, target)
    return {
        "mse": float(np.mean((array - truth) ** 2)),
        "mse_of_mean": float(np.mean((array.mean(axis=0, dtype=np.float64) - truth) ** 2)),
        "variance": float(np.mean(np.var(array, axis=0, ddof=1, dtype=np.float64))),
    }


def mse_ratio_of_parts(mse: float, mse_of_mean: float, variance: float, num_samples: int) -> tuple[float, float]:
    """MSE of a sample over that of the mean of N samples, and over that of the posterior's own mean.

    The mean of N samples is off by variance / N more than the posterior's mean, which gives the estimate
    mse / (mse_of_mean - variance / N) of the second ratio. See `expected_mse_ratio` for what to expect. `inf` if the
    denominator is not above zero, 1 if all samples are exact.

    >>> mse_ratio_of_parts(2.0, 1.25, 1.0, 4)
    (1.6, 2.0)
    """
    return ratio(mse, mse_of_mean), ratio(mse, mse_of_mean - variance / num_samples)


def mse_ratio(samples: ArrayLike, target: ArrayLike) -> float:
    """Mean MSE of the samples over the MSE of their mean; compare with `expected_mse_ratio`."""
    return mse_ratio_of_parts(**mse_parts(samples, target), num_samples=len(samples))[0]


def expected_mse_ratio(temperature: float, num_samples: int | None = None) -> float:
    """`mse_ratio` of a sampler that is calibrated at temperature 1 and whose spread is proportional to it.

    (1 + tau²) / (1 + tau² / N) over the mean of N samples, 1 + tau² over the posterior's own mean (`num_samples`
    None). A smaller ratio means too little spread.

    >>> expected_mse_ratio(1.0), expected_mse_ratio(1.0, 4)
    (2.0, 1.6)
    """
    if not temperature >= 0:
        raise ValueError(f"`temperature` must not be negative, got {temperature}.")
    check_count("num_samples", num_samples, 1, optional=True)
    square = float(temperature) ** 2
    return (1 + square) / (1 + (square / num_samples if num_samples else 0))


def best_of_n(values: Sequence[float] | ArrayLike, n: int, largest: bool = True) -> float:
    """Expected best of n values (such as PSNRs) drawn without repetition from N >= n: exact, over all subsets.

    With the values in order, worst first, it is sum_i C(i - 1, n - 1) / C(N, n) v_(i).

    >>> round(best_of_n([20.0, 22.0, 24.0], 2), 4)    # of (20, 22), (20, 24), (22, 24)
    23.3333
    """
    array = np.sort(as_array("values", values, finite=False).astype(np.float64))  # type: ignore[arg-type]
    if array.ndim != 1:
        raise ValueError(f"`values` must be one number for each sample, got shape {array.shape}.")
    check_count("n", n, 1, len(array))
    ordered = array if largest else array[::-1]
    total = comb(len(array), n)  # exact: more than a float can hold of some thousand samples
    shares = [comb(i, n - 1) / total for i in range(len(array))]
    # Infinity times zero is no number.
    return float(sum(share * value for share, value in zip(shares, ordered, strict=True) if share))


def mean_of_n(samples: ArrayLike, n: int) -> Iterator[Array]:
    """The means of disjoint groups of n samples, ``[...]`` each: as many as there are whole groups.

    >>> [float(mean[0]) for mean in mean_of_n(np.array([[1.0], [3.0], [4.0], [6.0], [9.0]]), 2)]
    [2.0, 5.0]
    """
    array = _ensemble(samples, minimum=1)
    check_count("n", n, 1, len(array))
    for start in range(0, len(array) - n + 1, n):
        yield array[start : start + n].mean(axis=0)


def spread(samples: ArrayLike, target: ArrayLike) -> dict[str, float]:
    """What a set of images ``[N, H, W, C]`` says about its diversity, by name; `std` is the mean over pixels."""
    array, truth = _ensemble_and_target(samples, target)
    return {
        "std": float(array.std(axis=0, ddof=1, dtype=np.float64).mean()),
        **mse_parts(array, truth),
        "apd_mse": average_pairwise_distance(array),
        "crps": crps(array, truth),
        "diversity_score": diversity_score(array, truth),
    }
