"""BRISQUE, image quality without a reference (Mittal, Moorthy & Bovik, IEEE Trans. Image Processing 2012).

After the authors' own release: zero-padded 7x7 Gaussian windows, MATLAB's grey levels and halving, and the support
vector regression that they trained on the LIVE database (`brisque_model.npz`, with its notice beside it). 0 is best,
100 worst; values outside are possible.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.special import gammaln

from ..operators import Downsampling
from .metrics import ArrayLike, as_array, as_rgb

Float = NDArray[np.float64]

_SHAPES = np.arange(200, 10001) / 1000  # candidate shape parameters
_LOG_GAMMA = {n: gammaln(n / _SHAPES) for n in (1, 2, 3)}
_RATIOS = np.exp(2 * _LOG_GAMMA[2] - _LOG_GAMMA[1] - _LOG_GAMMA[3])  # (E|x|)² / E x² of a generalised Gaussian
_NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (-1, 1))
_GREY = np.array([0.298936021293775, 0.587043074451121, 0.114020904255103])  # MATLAB's rgb2gray
_TINY = np.finfo(np.float64).tiny
_LEAST = 16  # pixels a side
_HALVING = Downsampling(2, kernel="matlab-bicubic")


def _blur(image: Float) -> Float:
    return np.asarray(gaussian_filter(image, 7 / 6, radius=3, mode="constant"), dtype=np.float64)


def _normalised(image: Float) -> Float:
    """Luminance minus its local mean, over its local standard deviation plus one grey level (eq. 1-3)."""
    mean = _blur(image)
    deviation = np.sqrt(np.abs(_blur(image * image) - mean * mean))
    return (image - mean) / (deviation + 1)


def _root_mean_square(values: Float) -> float:
    return float(np.sqrt(np.mean(values**2))) if values.size else 0.0


def _fit_symmetric(values: Float) -> list[float]:
    """Shape and variance of a generalised Gaussian (eq. 4-5), by matching moments."""
    square = max(float(np.mean(values**2)), _TINY)
    ratio = float(np.mean(np.abs(values))) ** 2 / square
    return [float(_SHAPES[np.argmin(np.abs(1 / _RATIOS - 1 / max(ratio, _TINY)))]), square]


def _fit_asymmetric(values: Float) -> list[float]:
    """Shape, mean and both variances of an asymmetric generalised Gaussian (eq. 7-10), by matching moments."""
    left, right = (_root_mean_square(values[side]) for side in (values < 0, values > 0))
    skew = left / max(right, _TINY)
    ratio = float(np.mean(np.abs(values))) ** 2 / max(float(np.mean(values**2)), _TINY)
    ratio *= (skew**3 + 1) * (skew + 1) / (skew**2 + 1) ** 2 if skew < 1e6 else 1.0  # its limit
    index = int(np.argmin((_RATIOS - ratio) ** 2))
    one, two, three = (_LOG_GAMMA[n][index] for n in (1, 2, 3))
    mean = (right - left) * float(np.exp(two - one + (one - three) / 2))
    return [float(_SHAPES[index]), mean, left**2, right**2]


def brisque_features(grey: ArrayLike) -> Float:
    """The 36 statistics of a grey image ``[H, W]`` on 0..255: 18 at full size, 18 at half size.

    >>> ramp = np.add.outer(np.arange(32.0), np.arange(32.0) % 7)
    >>> brisque_features(ramp).shape
    (36,)
    """
    image = as_array("grey", grey).astype(np.float64)
    if image.ndim != 2 or min(image.shape) < _LEAST:
        raise ValueError(f"`grey` must be [H, W] of at least {_LEAST}x{_LEAST} pixels, got shape {image.shape}.")
    features: list[float] = []
    for _ in range(2):
        values = _normalised(image)
        features += _fit_symmetric(values)
        for shift in _NEIGHBOURS:
            features += _fit_asymmetric(values * np.roll(values, shift, axis=(0, 1)))
        image = _HALVING(torch.from_numpy(image)[None])[0].numpy()
    return np.array(features)


@cache
def _model() -> dict[str, Any]:
    with resources.files(__package__).joinpath("brisque_model.npz").open("rb") as file, np.load(file) as arrays:
        return {name: arrays[name].astype(np.float64) for name in arrays.files}


def brisque_score(features: ArrayLike) -> float:
    """The regression of the release on 36 features: sum_i a_i exp(-gamma |f - v_i|²) - rho, f scaled to [-1, 1]."""
    values = as_array("features", features).astype(np.float64)
    if values.shape != (36,):
        raise ValueError(f"`features` must be 36 numbers, got shape {values.shape}.")
    model = _model()
    scaled = 2 * (values - model["minimum"]) / (model["maximum"] - model["minimum"]) - 1
    distances = ((model["support_vectors"] - scaled) ** 2).sum(axis=1)
    return float(model["coefficients"] @ np.exp(-model["gamma"] * distances) - model["rho"])


def brisque(image: ArrayLike) -> float:
    """BRISQUE of an 8-bit RGB image ``[H, W, 3]`` of at least 16x16 pixels: about 0 (best) to 100.

    Raises ValueError: another type or shape, or a smaller image.

    >>> noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    >>> brisque(noise) > 80
    True
    """
    pixels = as_rgb("image", image)
    if min(pixels.shape[:2]) < _LEAST:
        raise ValueError(f"`image` must be at least {_LEAST}x{_LEAST} pixels for BRISQUE, got {pixels.shape[:2]}.")
    return brisque_score(brisque_features(np.round(pixels @ _GREY)))
