"""Evaluation protocols: how (HR, LR) pairs are made of images, and how distortion is measured on them.

``thesis``: squares of S x S pixels, LR by PIL's bicubic, PSNR on Y and SSIM on RGB, no border crop (VDVAE-SR).
``paper``: squares of S x S pixels, LR by antialiased bicubic, PSNR and SSIM on RGB, no border crop (CVDVAE).
``standard``: full images, LR by MATLAB's bicubic, PSNR and SSIM on Y, `scale_factor` border pixels cropped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from ..checks import check_count
from ..data import Degradation, degrade
from ..images import load_image
from ..operators import cached_downsampling
from . import metrics
from .metrics import Uint8


def downsample(kernel: str, hr: Uint8, scale_factor: int) -> Uint8:
    """LR of an 8-bit image ``[H, W, 3]`` by `Downsampling`, rounded to 8 bits."""
    return metrics.to_uint8(cached_downsampling(scale_factor, kernel)(metrics.to_planes(hr / 255)).permute(1, 2, 0))


def _check(image: Image.Image, size: int, scale_factor: int) -> Image.Image:
    check_count("scale_factor", scale_factor, 1)
    check_count("size", size, 1)
    if size < scale_factor or size % scale_factor:
        raise ValueError(f"`size` must be a positive multiple of `scale_factor` ({scale_factor}), got {size}.")
    return load_image(image)


def prepare_thesis(image: Image.Image, size: int, scale_factor: int = 4) -> tuple[Uint8, Uint8]:
    """(HR, LR) of the thesis protocol, 8-bit ``[S, S, 3]`` and ``[S/s, S/s, 3]``.

    The shorter side is resized to `size` (PIL bilinear, antialiased), the centre square is cut out, and PIL's
    bicubic gives the LR image.

    >>> [part.shape for part in prepare_thesis(Image.new("RGB", (300, 200)), 64)]
    [(64, 64, 3), (16, 16, 3)]
    """
    image = _check(image, size, scale_factor)
    long = int(size * max(image.size) / min(image.size))
    width, height = (size, long) if image.width < image.height else (long, size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    hr = image.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + size, top + size))
    lr = hr.resize((size // scale_factor, size // scale_factor), Image.Resampling.BICUBIC)
    return np.asarray(hr), np.asarray(lr)


def prepare_paper(image: Image.Image, size: int = 256, scale_factor: int = 4) -> tuple[Uint8, Uint8]:
    """(HR, LR) of the paper's protocol, 8-bit ``[S, S, 3]`` and ``[S/s, S/s, 3]``.

    FFHQ-256 is taken as it is. Of other images the centre square is cut out and resized to S by PIL's bicubic. LR by
    the antialiased bicubic `Downsampling`, rounded to 8 bits: without rounding in between, unlike PIL's.
    """
    image, side = _check(image, size, scale_factor), min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    hr = np.asarray(square if side == size else square.resize((size, size), Image.Resampling.BICUBIC))
    return hr, downsample("bicubic", hr, scale_factor)


def prepare_standard(image: Image.Image, scale_factor: int = 4) -> tuple[Uint8, Uint8]:
    """(HR, LR) of the standard protocol, 8-bit ``[H, W, 3]`` and ``[H/s, W/s, 3]``.

    The image is cropped at its right and bottom to multiples of `scale_factor`; LR by MATLAB's bicubic.

    >>> [part.shape for part in prepare_standard(Image.new("RGB", (50, 41)))]
    [(40, 48, 3), (10, 12, 3)]
    """
    check_count("scale_factor", scale_factor, 1)
    image = load_image(image)  # turned as its metadata say, before it is cropped
    width, height = (side // scale_factor * scale_factor for side in image.size)
    if not min(width, height):
        found = f"{image.width}x{image.height}"
        raise ValueError(f"`image` must be at least {scale_factor}x{scale_factor} pixels, got {found}.")
    hr = np.asarray(image)[:height, :width]
    return hr, downsample("matlab-bicubic", hr, scale_factor)


def _check_low(lr: Uint8, scale_factor: int) -> Uint8:
    check_count("scale_factor", scale_factor, 1)
    return metrics.as_rgb("lr", lr)


def upsample_pil(lr: Uint8, scale_factor: int = 4) -> Uint8:
    """PIL's bicubic interpolation of an 8-bit image ``[h, w, 3]``."""
    lr = _check_low(lr, scale_factor)
    size = (lr.shape[1] * scale_factor, lr.shape[0] * scale_factor)
    return np.asarray(Image.fromarray(lr).resize(size, Image.Resampling.BICUBIC))


def upsample_matlab(lr: Uint8, scale_factor: int = 4) -> Uint8:
    """MATLAB's ``imresize(lr, scale_factor)``: bicubic with a = -0.5, symmetric borders, rounded to 8 bits.

    It is s² Hᵀ of MATLAB's downsampling, whose kernel is this one stretched by s and divided by its sum.

    >>> np.unique(upsample_matlab(np.full((4, 4, 3), 7, np.uint8))).tolist()
    [7]
    """
    lr = _check_low(lr, scale_factor)
    size = (lr.shape[0] * scale_factor, lr.shape[1] * scale_factor)
    upsampled = scale_factor**2 * cached_downsampling(scale_factor, "matlab-bicubic").adjoint(
        metrics.to_planes(lr / 255), size
    )
    return metrics.to_uint8(upsampled.permute(1, 2, 0))


@dataclass(frozen=True)
class EvaluationProtocol:
    """The functions take (image, size, scale), (LR, scale) and (HR, estimate, scale).

    Args:
        kernel: of the downsampling that LR-PSNR and projections are by.
        prepare: HR and LR of an image.
        upsample: the bicubic row.
        psnr, ssim: distortion, of 8-bit images.
        ssim_window: side of the window of SSIM, which an image must hold.
        full_images: whether there is no size S.
        size: S where none is given, or None where it must be.
        num_samples: of each image, where no number is given.
        perceptual: metrics that the published tables have.
    """

    kernel: str
    prepare: Callable[[Image.Image, int, int], tuple[Uint8, Uint8]]
    upsample: Callable[[Uint8, int], Uint8]
    psnr: Callable[[Uint8, Uint8, int], float]
    ssim: Callable[[Uint8, Uint8, int], float]
    ssim_window: int = 7
    full_images: bool = False
    size: int | None = None
    num_samples: int = 8
    perceptual: tuple[str, ...] = ()


def _whole(metric: Callable[[Uint8, Uint8], float]) -> Callable[[Uint8, Uint8, int], float]:
    """Without a border that is cropped."""
    return lambda hr, estimate, scale: metric(hr, estimate)


PROTOCOLS: dict[str, EvaluationProtocol] = {
    "thesis": EvaluationProtocol(
        kernel="bicubic",
        prepare=prepare_thesis,
        upsample=upsample_pil,
        psnr=_whole(metrics.psnr_y),
        ssim=_whole(metrics.ssim_rgb),
    ),
    "paper": EvaluationProtocol(
        kernel="bicubic",
        prepare=prepare_paper,
        upsample=upsample_pil,
        psnr=_whole(metrics.psnr_rgb),
        ssim=_whole(metrics.ssim_rgb),
        size=256,
        num_samples=5,
        perceptual=("brisque", "lpips"),
    ),
    "standard": EvaluationProtocol(
        kernel="matlab-bicubic",
        prepare=lambda image, size, scale: prepare_standard(image, scale),
        upsample=upsample_matlab,
        psnr=metrics.psnr_y,
        ssim=metrics.ssim_y,
        ssim_window=11,
        full_images=True,
    ),
}


def degraded(protocol: EvaluationProtocol, degradation: Degradation, seed: int, number: int) -> EvaluationProtocol:
    """The protocol with y of `hvae_sr.data.degrade`: the HR image, and the metrics, are as they were.

    The image's `number` in its data set is the index of its degradation.
    """

    def prepare(image: Image.Image, size: int, scale: int) -> tuple[Uint8, Uint8]:
        hr, _ = protocol.prepare(image, size, scale)
        return hr, degrade(hr, degradation, seed, number, scale)

    return replace(protocol, prepare=prepare)


def protocol_named(name: str) -> EvaluationProtocol:
    """One of `PROTOCOLS`; a ValueError for another name."""
    if name not in PROTOCOLS:
        raise ValueError(f"`protocol` must be one of {sorted(PROTOCOLS)}, got {name!r}.")
    return PROTOCOLS[name]
