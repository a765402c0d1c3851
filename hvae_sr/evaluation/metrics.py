"""Distortion, consistency, diversity and calibration of super-resolved images.

Every function takes NumPy arrays or torch tensors and returns a Python float. Whole images are ``[H, W, 3]``,
sets of samples have the sample index first. Bad input is a `ValueError` that names the argument.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter
from skimage.metrics import structural_similarity

Array = NDArray[Any]
ArrayLike = Array | torch.Tensor
Distance = Callable[[Any, Any], Any]

_ssim: Callable[..., Any] = structural_similarity

#: Title and format of each metric in a table.
COLUMNS = {
    "psnr": ("PSNR", ".2f"),
    "ssim": ("SSIM", ".4f"),
    "psnr_gain": ("PSNR gain", "+.2f"),
    "ssim_gain": ("SSIM gain", "+.4f"),
    "lr_psnr": ("LR-PSNR", ".1f"),
    "lr_psnr_float": ("LR-PSNR float", ".1f"),
    "std": ("std", ".4f"),
    "mse_ratio": ("MSE ratio", ".3f"),
    "coverage": ("coverage", ".3f"),
}
_LUMA = np.array([65.481, 128.553, 24.966]) / 255


def _array(name: str, value: ArrayLike) -> Array:
    """`value` as a non-empty NumPy array without NaN."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    array = np.asarray(value)
    if array.dtype.kind not in "buif":
        raise ValueError(f"`{name}` must be a numeric array, got dtype {array.dtype}.")
    if array.size == 0:
        raise ValueError(f"`{name}` must not be empty, got shape {array.shape}.")
    if array.dtype.kind == "f":
        nans = int(np.isnan(array).sum())
        if nans:
            raise ValueError(f"`{name}` must not contain NaN, got {nans} of {array.size} values.")
    return array


def _pair(a: ArrayLike, b: ArrayLike, names: tuple[str, str] = ("a", "b")) -> tuple[Array, Array]:
    left, right = _array(names[0], a), _array(names[1], b)
    if left.shape != right.shape:
        raise ValueError(f"`{names[0]}` and `{names[1]}` must have one shape, got {left.shape} and {right.shape}.")
    return left, right


def _rgb_pair(a: ArrayLike, b: ArrayLike, crop_border: int = 0) -> tuple[Array, Array]:
    """Two 8-bit RGB images of one size, without their borders."""
    left, right = _pair(a, b)
    for name, image in (("a", left), ("b", right)):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(f"`{name}` must be a uint8 [H, W, 3] image, got {image.dtype} {image.shape}.")
    if crop_border < 0 or 2 * crop_border >= min(left.shape[:2]):
        raise ValueError(f"`crop_border` must leave pixels of a {left.shape[:2]} image, got {crop_border}.")
    inner = (slice(crop_border, left.shape[0] - crop_border), slice(crop_border, left.shape[1] - crop_border))
    return left[inner], right[inner]


def _ensemble(samples: ArrayLike, minimum: int = 2) -> Array:
    """`samples` as a floating-point array of at least `minimum` samples."""
    array = _array("samples", samples)
    if array.ndim < 2 or array.shape[0] < minimum:
        raise ValueError(f"`samples` must be [N, ...] with at least {minimum} samples, got shape {array.shape}.")
    return array if array.dtype.kind == "f" else array.astype(np.float64)


def _ensemble_and_target(samples: ArrayLike, target: ArrayLike, minimum: int = 2) -> tuple[Array, Array]:
    array, truth = _ensemble(samples, minimum), _array("target", target)
    if array.shape[1:] != truth.shape:
        raise ValueError(f"`target` must have the shape of one sample, {array.shape[1:]}, got {truth.shape}.")
    return array, truth.astype(np.float64)


def to_uint8(image: ArrayLike) -> NDArray[np.uint8]:
    """An image in [0, 1] as 8 bits: clipped, then rounded.

    >>> to_uint8(np.array([-0.1, 0.5, 2.0])).tolist()
    [0, 128, 255]
    """
    return np.round(np.clip(_array("image", image), 0, 1) * 255).astype(np.uint8)


def to_planes(image: ArrayLike) -> torch.Tensor:
    """``[..., H, W, 3]`` as a float32 tensor ``[..., 3, H, W]``."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(_array("image", image), -1, -3), np.float32))


def luma(image: ArrayLike) -> NDArray[np.float64]:
    """Y of ITU-R BT.601 in [16, 235] from an 8-bit RGB image, not rounded.

    Y = (65.481 R + 128.553 G + 24.966 B) / 255 + 16.

    >>> luma(np.array([[[0, 0, 0], [255, 255, 255]]], dtype=np.uint8)).round(6).tolist()
    [[16.0, 235.0]]
    """
    array = _array("image", image)
    if array.ndim < 1 or array.shape[-1] != 3:
        raise ValueError(f"`image` must be [..., 3], got shape {array.shape}.")
    return array @ _LUMA + 16


def psnr(a: ArrayLike, b: ArrayLike, data_range: float) -> float:
    """Peak signal-to-noise ratio, 10 log10(data_range² / MSE), in dB; `inf` for equal input.

    >>> psnr(np.zeros((2, 2)), np.full((2, 2), 0.1), data_range=1.0)
    20.0
    >>> psnr(np.zeros((2, 2)), np.zeros((2, 2)), data_range=1.0)
    inf
    """
    left, right = _pair(a, b)
    if not data_range > 0:
        raise ValueError(f"`data_range` must be positive, got {data_range}.")
    mse = float(np.mean((left.astype(np.float64) - right.astype(np.float64)) ** 2))
    return float("inf") if mse == 0 else float(10 * np.log10(data_range**2 / mse))


def psnr_y(a: ArrayLike, b: ArrayLike, crop_border: int = 0) -> float:
    """PSNR of the Y channels (`luma`) of two 8-bit RGB images, peak 255, after cropping `crop_border` pixels.

    >>> a = np.zeros((4, 4, 3), dtype=np.uint8)
    >>> round(psnr_y(a, a + np.uint8(10)), 4)   # 20 log10(255 / (10 * 219 / 255))
    29.4527
    """
    left, right = _rgb_pair(a, b, crop_border)
    return psnr(luma(left), luma(right), data_range=255)


def ssim_rgb(a: ArrayLike, b: ArrayLike) -> float:
    """Structural similarity of two 8-bit RGB images: uniform window of 7, mean over the channels.

    >>> a = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    >>> ssim_rgb(a, a)
    1.0
    """
    left, right = _rgb_pair(a, b)
    if min(left.shape[:2]) < 7:
        raise ValueError(f"`a` must be at least 7x7, got {left.shape[:2]}.")
    return float(_ssim(left, right, channel_axis=2, win_size=7, data_range=255))


def ssim_y(a: ArrayLike, b: ArrayLike, crop_border: int = 0) -> float:
    """Structural similarity of Y (Wang et al. 2004): Gaussian window of 11, sigma 1.5, full windows only.

    >>> a = np.zeros((16, 16, 3), dtype=np.uint8)
    >>> ssim_y(a, a, crop_border=2)
    1.0
    """
    left, right = _rgb_pair(a, b, crop_border)
    if min(left.shape[:2]) < 11:
        raise ValueError(f"`a` must be at least 11x11 inside its border, got {left.shape[:2]}.")
    return float(
        _ssim(
            luma(left),
            luma(right),
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=255,
        )
    )


def lr_psnr(x: ArrayLike, y: ArrayLike, operator: Callable[[torch.Tensor], torch.Tensor]) -> float:
    """Consistency of an HR estimate with its LR image: PSNR(H x, y) in dB, both in [0, 1].

    `x` is ``[..., H, W]`` and `y`, as `operator` makes it of such a tensor, ``[..., h, w]``.

    >>> x = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    >>> round(lr_psnr(x, x[:, ::2, ::2] + 0.01, lambda t: t[:, ::2, ::2]), 3)
    40.0
    """
    degraded = operator(torch.as_tensor(_array("x", x)))
    return psnr(*_pair(degraded, y, ("operator(x)", "y")), data_range=1.0)


def average_pairwise_distance(samples: ArrayLike, distance: str | Distance = "mse") -> float:
    """Diversity of N samples: the mean of d(x_i, x_j) over all pairs i < j.

    `distance` is ``"mse"`` (in the squared unit of the samples) or a symmetric function of two samples, which
    is given the samples in their own type.

    >>> average_pairwise_distance(np.array([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]]))   # (1 + 1 + 4) / 3
    2.0
    >>> average_pairwise_distance(np.eye(2), distance=lambda a, b: abs(a - b).sum())
    2.0
    """
    array = _ensemble(samples)
    if callable(distance):
        return float(np.mean([float(distance(samples[i], samples[j]))
                              for i, j in combinations(range(len(array)), 2)]))  # fmt: skip
    if distance != "mse":
        raise ValueError(f"`distance` must be 'mse' or a function of two samples, got {distance!r}.")
    # The mean squared difference over pairs is twice the unbiased variance.
    return float(2 * np.mean(np.var(array, axis=0, ddof=1, dtype=np.float64)))


def _central_interval(array: Array, level: float) -> tuple[Array, Array]:
    if not 0 < level < 1:
        raise ValueError(f"`level` must lie between 0 and 1, got {level}.")
    tail = (1 - level) / 2
    needed = int(np.ceil(1 / tail - 1e-9)) - 1
    if len(array) < needed:
        raise ValueError(f"`samples` must hold at least {needed} samples for level {level}, got {len(array)}.")
    # One more exchangeable value lies below the k-th of N with probability k / (N + 1): these are Weibull's
    # plotting positions. NumPy's default would cover 87 % instead of 90 % with 64 samples.
    low, high = np.quantile(array, [tail, 1 - tail], axis=0, method="weibull")
    return low, high


def coverage(samples: ArrayLike, target: ArrayLike, level: float = 0.9) -> float:
    """Share of target values inside the samples' central interval; equals `level` if they are calibrated.

    `samples` is ``[N, ...]``, `target` has the shape of one sample, N >= 2 / (1 - level) - 1 (19 for 0.9).

    >>> samples = np.arange(19.0).reshape(19, 1) * np.ones(2)
    >>> coverage(samples, np.array([9.0, 18.5]))
    0.5
    """
    array, truth = _ensemble_and_target(samples, target)
    low, high = _central_interval(array, level)
    return float(np.mean((low <= truth) & (truth <= high)))


def interval_width(samples: ArrayLike, level: float = 0.9) -> float:
    """Mean width of the intervals of `coverage`: of two calibrated samplers the narrower knows more.

    >>> round(interval_width(np.arange(19.0).reshape(19, 1)), 6)
    18.0
    """
    low, high = _central_interval(_ensemble(samples), level)
    return float(np.mean(high - low))


def crps(samples: ArrayLike, target: ArrayLike, fair: bool = True) -> float:
    """Continuous ranked probability score, E|X - t| - E|X - X'| / 2 (Gneiting & Raftery 2007), mean.

    `fair=True` averages the second term over pairs of different samples, which is unbiased in N (Ferro 2014);
    `fair=False` is the score of the empirical distribution. One sample is a point mass: its score is the MAE.

    >>> crps(np.array([[0.0], [2.0]]), np.array([1.0]), fair=False)
    0.5
    >>> crps(np.array([[0.5]]), np.array([1.0]))
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

    >>> target = np.zeros((4, 4))
    >>> left, right = np.tile([0.0, 0.0, 1.0, 1.0], (4, 1)), np.tile([1.0, 1.0, 0.0, 0.0], (4, 1))
    >>> diversity_score(np.stack([left, right]), target, neighbourhood=1)
    100.0
    >>> diversity_score(np.stack([left, left]), target, neighbourhood=1)
    0.0
    """
    array, truth = _ensemble_and_target(samples, target)
    if array.ndim not in (3, 4):
        raise ValueError(f"`samples` must be [N, H, W] or [N, H, W, C], got shape {array.shape}.")
    if neighbourhood < 1 or neighbourhood % 2 == 0 or neighbourhood > min(array.shape[1:3]):
        raise ValueError(f"`neighbourhood` must be odd and fit into {array.shape[1:3]} pixels, got {neighbourhood}.")
    if distance is None:
        maps = (array - truth) ** 2
        maps = maps.mean(axis=-1) if maps.ndim == 4 else maps
    else:
        maps = np.stack([_array("distance", distance(sample, target)) for sample in samples])
    if maps.shape != array.shape[:3]:
        raise ValueError(f"`distance` must return {array.shape[1:3]} maps, got {maps.shape[1:]}.")
    global_best = float(maps.mean(axis=(1, 2)).min())
    if global_best == 0:
        return 0.0
    local = np.min([uniform_filter(m, size=neighbourhood, mode="reflect") for m in maps], axis=0)
    return 100 * (global_best - float(local.mean())) / global_best


def mse_ratio(samples: ArrayLike, target: ArrayLike) -> float:
    """Mean MSE of the samples over the MSE of their mean.

    For a calibrated sampler whose spread is scaled by tau it is (1 + tau²) / (1 + tau² / N), so 2 N / (N + 1)
    at tau = 1; a smaller value means too little spread. `inf` if only the mean is exact, 1 if all are.

    >>> mse_ratio(np.array([[1.0, 1.0], [1.0, -1.0]]), np.array([0.0, 0.0]))
    2.0
    """
    array, truth = _ensemble_and_target(samples, target)
    of_samples = float(np.mean((array - truth) ** 2))
    of_mean = float(np.mean((array.mean(axis=0, dtype=np.float64) - truth) ** 2))
    if of_mean == 0:
        return 1.0 if of_samples == 0 else float("inf")
    return of_samples / of_mean


def spread(samples: ArrayLike, target: ArrayLike) -> dict[str, float]:
    """What a set of images ``[N, H, W, C]`` says about its diversity, by name; `std` is the mean over pixels.

    >>> sorted(spread(np.eye(7)[:, :, None] * np.ones(7), np.ones((7, 7))))
    ['apd_mse', 'crps', 'diversity_score', 'mse_ratio', 'std']
    """
    array, truth = _ensemble_and_target(samples, target)
    return {
        "std": float(array.std(axis=0, ddof=1, dtype=np.float64).mean()),
        "mse_ratio": mse_ratio(array, truth),
        "apd_mse": average_pairwise_distance(array),
        "crps": crps(array, truth),
        "diversity_score": diversity_score(array, truth),
    }


def calibration(samples: ArrayLike, target: ArrayLike) -> dict[str, float]:
    """`coverage` and `interval_width` of the central 90 % intervals, by name."""
    return {"coverage": coverage(samples, target), "interval_width": interval_width(samples)}


def mean_rows(images: Sequence[Mapping[str, Mapping[str, float]]]) -> list[dict[str, Any]]:
    """Means over images of rows of metrics, and their gains in PSNR and SSIM over the first row.

    >>> bicubic = {"psnr": 20.0, "ssim": 0.5}
    >>> images = [{"bicubic": bicubic, "ours": {"psnr": p, "ssim": 0.75}} for p in (21, 22)]
    >>> mean_rows(images)[1]
    {'name': 'ours', 'psnr': 21.5, 'ssim': 0.75, 'psnr_gain': 1.5, 'ssim_gain': 0.25}
    """
    rows: list[dict[str, Any]] = []
    for name, first in images[0].items():
        row: dict[str, Any] = {"name": name}
        row |= {key: float(np.mean([image[name][key] for image in images])) for key in first}
        base = rows[0] if rows else row
        for key in ("psnr", "ssim"):  # two infinite values have no difference
            row[f"{key}_gain"] = 0.0 if row[key] == base[key] else row[key] - base[key]
        rows.append(row)
    return rows
