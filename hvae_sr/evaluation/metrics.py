"""Distortion and consistency of one super-resolved image.

Metrics take NumPy arrays or torch tensors and return Python floats: one, or two where they say so. What checks and
prepares images (`as_array` to `luma`) returns arrays and tensors. Whole images are ``[H, W, 3]``. Bad input is a
`ValueError` that names the argument. Sets of samples: `hvae_sr.evaluation.posterior`.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from numbers import Real
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

from ..checks import check_count

Array = NDArray[Any]
ArrayLike = Array | torch.Tensor
Uint8 = NDArray[np.uint8]

_ssim: Callable[..., Any] = structural_similarity
_LUMA = np.array([65.481, 128.553, 24.966]) / 255


def as_array(name: str, value: ArrayLike, finite: bool = True) -> Array:
    """`value` as a non-empty NumPy array without NaN, and without infinities if it must be `finite`."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    array = np.asarray(value)
    if array.dtype.kind not in "buif":
        raise ValueError(f"`{name}` must be a numeric array, got dtype {array.dtype}.")
    if array.size == 0:
        raise ValueError(f"`{name}` must not be empty, got shape {array.shape}.")
    if array.dtype.kind == "f":
        wrong = int((~np.isfinite(array) if finite else np.isnan(array)).sum())
        if wrong:
            raise ValueError(
                f"`{name}` must not contain NaN{' or infinity' if finite else ''}, got {wrong} of {array.size} values."
            )
    return array


def as_pair(a: ArrayLike, b: ArrayLike, names: tuple[str, str] = ("a", "b")) -> tuple[Array, Array]:
    """Two arrays of one shape."""
    left, right = as_array(names[0], a), as_array(names[1], b)
    if left.shape != right.shape:
        raise ValueError(f"`{names[0]}` and `{names[1]}` must have one shape, got {left.shape} and {right.shape}.")
    return left, right


def as_rgb(name: str, value: ArrayLike) -> Uint8:
    """`value` as an 8-bit RGB image ``[H, W, 3]``."""
    image = as_array(name, value)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"`{name}` must be a uint8 [H, W, 3] image, got {image.dtype} {image.shape}.")
    return image


def as_rgb_pair(a: ArrayLike, b: ArrayLike, crop_border: int = 0, least: int = 1) -> tuple[Uint8, Uint8]:
    """Two 8-bit RGB images of one size, without their borders, of `least` pixels a side."""
    left, right = (as_rgb(name, image) for name, image in zip("ab", as_pair(a, b), strict=True))
    check_count("crop_border", crop_border, 0)
    if 2 * crop_border >= min(left.shape[:2]):
        raise ValueError(f"`crop_border` must leave pixels of a {left.shape[:2]} image, got {crop_border}.")
    inner = tuple(slice(crop_border, side - crop_border) for side in left.shape[:2])
    if min(left[inner].shape[:2]) < least:
        raise ValueError(f"`a` must be at least {least}x{least} inside its border, got {left[inner].shape[:2]}.")
    return left[inner], right[inner]


def to_uint8(image: ArrayLike) -> Uint8:
    """An image in [0, 1] as 8 bits: clipped, then rounded.

    >>> to_uint8(np.array([-0.1, 0.5, 2.0])).tolist()
    [0, 128, 255]
    """
    return np.round(np.clip(as_array("image", image), 0, 1) * 255).astype(np.uint8)


def to_planes(image: ArrayLike) -> torch.Tensor:
    """``[..., H, W, 3]`` as a float32 tensor ``[..., 3, H, W]``."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(as_array("image", image), -1, -3), np.float32))


def luma(image: ArrayLike) -> NDArray[np.float64]:
    """Y of ITU-R BT.601 in [16, 235] from an 8-bit RGB image, not rounded.

    Y = (65.481 R + 128.553 G + 24.966 B) / 255 + 16.

    >>> luma(np.array([[[0, 0, 0], [255, 255, 255]]], dtype=np.uint8)).round(6).tolist()
    [[16.0, 235.0]]
    """
    array = as_array("image", image)
    if array.ndim < 1 or array.shape[-1] != 3:
        raise ValueError(f"`image` must be [..., 3], got shape {array.shape}.")
    return array @ _LUMA + 16


def psnr(a: ArrayLike, b: ArrayLike, data_range: float) -> float:
    """Peak signal-to-noise ratio, 10 log10(data_range² / MSE), in dB; `inf` for equal input.

    >>> psnr(np.zeros((2, 2)), np.full((2, 2), 0.1), data_range=1.0)
    20.0
    """
    left, right = as_pair(a, b)
    if not isinstance(data_range, Real) or not 0 < data_range < inf:
        raise ValueError(f"`data_range` must be a finite number above 0, got {data_range!r}.")
    mse = float(np.mean((left.astype(np.float64) - right.astype(np.float64)) ** 2))
    return inf if mse == 0 else float(10 * np.log10(data_range**2 / mse))


def psnr_y(a: ArrayLike, b: ArrayLike, crop_border: int = 0) -> float:
    """PSNR of the Y channels (`luma`) of two 8-bit RGB images, peak 255, after cropping `crop_border` pixels.

    >>> a = np.zeros((4, 4, 3), dtype=np.uint8)
    >>> round(psnr_y(a, a + np.uint8(10)), 4)   # 20 log10(255 / (10 * 219 / 255))
    29.4527
    """
    left, right = as_rgb_pair(a, b, crop_border)
    return psnr(luma(left), luma(right), data_range=255)


def psnr_rgb(a: ArrayLike, b: ArrayLike) -> float:
    """PSNR over all three channels of two 8-bit RGB images, peak 255."""
    return psnr(*as_rgb_pair(a, b), data_range=255)


def ssim_rgb(a: ArrayLike, b: ArrayLike) -> float:
    """Structural similarity of two 8-bit RGB images: uniform window of 7, mean over the channels."""
    return float(_ssim(*as_rgb_pair(a, b, least=7), channel_axis=2, win_size=7, data_range=255))


def ssim_y(a: ArrayLike, b: ArrayLike, crop_border: int = 0) -> float:
    """Structural similarity of Y (Wang et al. 2004): Gaussian window of 11, sigma 1.5, full windows only."""
    left, right = (luma(image) for image in as_rgb_pair(a, b, crop_border, least=11))
    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return float(_ssim(left, right, data_range=255, **window))


def detail_ratios(estimate: ArrayLike, truth: ArrayLike) -> tuple[float, float]:
    """Detail of an 8-bit RGB image over that of the truth: mean, and 99.9th percentile, of |Laplacian of Y|.

    The Laplacian is that of the four neighbours, without the border. A mean far below 1 is blur; a percentile far above
    the mean's ratio is specks. `inf` where the truth alone has none, 1 where neither has.
    """
    found = []
    for image in as_rgb_pair(estimate, truth, least=3):
        y = luma(image)
        # Differences, which are exactly zero where the image is flat.
        down, across = np.diff(y, 2, axis=0)[:, 1:-1], np.diff(y, 2, axis=1)[1:-1]
        found.append(np.abs(down + across))
    mean, tail = (ratio(*map(of, found)) for of in (np.mean, lambda detail: np.quantile(detail, 0.999)))
    return mean, tail


def ratio(a: float, b: float) -> float:
    """a / b; 1 where both are zero, else `inf` where b is."""
    return float(a / b) if b > 0 else inf if a > 0 else 1.0


def lr_psnr(operator: Callable[[torch.Tensor], torch.Tensor], x: ArrayLike, y: ArrayLike) -> float:
    """Consistency of an HR estimate with its LR image: PSNR(H x, y) in dB, both in [0, 1].

    `x` is ``[..., H, W]`` and `y`, as `operator` makes it of such a tensor, ``[..., h, w]``.

    >>> x = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    >>> round(lr_psnr(lambda t: t[:, ::2, ::2], x, x[:, ::2, ::2] + 0.01), 3)
    40.0
    """
    degraded = operator(torch.as_tensor(np.ascontiguousarray(as_array("x", x))))
    return psnr(*as_pair(degraded, y, ("operator(x)", "y")), data_range=1.0)
