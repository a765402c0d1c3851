"""From what the networks give to what is returned: cropped, projected, clamped and measured, one sample at a time.

A sample of a large image is held once: every step works in place or on strips of rows.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hvae_sr.images import LUMA, Photo, row_strips
from hvae_sr.operators import Downsampling

from .output import RunningMoments, Sample, convert


class Finisher:
    """Finishes the samples of one image, and keeps their mean and standard deviation.

    Args:
        operator: H.
        y: `[3, h, w]` in [0, 1]. Where its channels are equal, so are those of the samples: their luminance, which has
            the same Hx = y.
        photo: where y came from, if from a file or a PIL image: PIL results get its alpha and profile.
        output_type: "pil", "np" or "pt".
        num_samples: of the image.
        enforce_consistency: whether samples are projected.
        grey: whether the channels of samples are made equal; None lets y tell.
    """

    def __init__(
        self,
        operator: Downsampling,
        y: Tensor,
        photo: Photo | None,
        output_type: str,
        num_samples: int,
        enforce_consistency: bool,
        grey: bool | None = None,
    ) -> None:
        self.operator, self.y, self.photo = operator, y, photo
        self.output_type, self.num_samples, self.enforce_consistency = output_type, num_samples, enforce_consistency
        self.grey = bool((y == y[:1]).all()) if grey is None else grey
        self.moments = RunningMoments()

    def add(self, sample: Tensor, index: int, seed: int | None) -> Sample:
        """Finishes one sample, `[3, H', W']` on [-1, 1], which is overwritten."""
        x = self._colours(sample)
        unprojected = self.lr_psnr_of(x)
        if self.enforce_consistency:
            self.operator.project_(x, self.y)
        exact = self.lr_psnr_of(x)
        x.clamp_(0, 1)
        if self.output_type == "pil":
            image = convert(x, "pil")
            returned = lr_psnr_of_image(self.operator, image, self.y)
            if self.photo is not None:
                image = self.photo.finish(image)
        else:
            returned = self.lr_psnr_of(x)
            image = convert(x, self.output_type)
        if self.num_samples > 1:
            self.moments.add(x)
        else:
            self.single, self.size = image, tuple(x.shape)
        return Sample(index, image, seed, returned, exact, unprojected)

    def unit(self, sample: Tensor) -> Tensor:
        """As `add`, but only the image, `[3, H, W]` in [0, 1], not measured and not counted."""
        x = self._colours(sample)
        if self.enforce_consistency:
            self.operator.project_(x, self.y)
        return x.clamp_(0, 1)

    def _colours(self, sample: Tensor) -> Tensor:
        """`[3, H', W']` on [-1, 1] -> `[3, H, W]` on [0, 1], in place.

        Raises:
            ValueError: NaN or infinite values.
        """
        height, width = (side * self.operator.scale_factor for side in self.y.shape[-2:])
        x = sample[:, :height, :width].float()
        # Neither NaN nor infinities get past these.
        if not all(bound.isfinite() for strip in row_strips(height, width) for bound in x[:, strip].aminmax()):
            raise ValueError(
                "the sample holds values that are not finite: the networks' weights are damaged, or numbers are too "
                "large for their `dtype`, for the `temperature`, or in given `latents` or `noise`"
            )
        x.add_(1).div_(2)
        if self.grey:
            for strip in row_strips(height, width):
                rows = x[:, strip]
                rows[:] = sum(weight * channel for weight, channel in zip(LUMA, rows, strict=True))
        return x

    def lr_psnr_of(self, x: Tensor) -> float:
        """PSNR(Hx, y) in dB, peak 1, of `[3, H, W]`."""
        return _lr_psnr(self.operator, lambda low, high: x[:, low:high], self.y)

    def mean(self) -> Any:
        """The mean of the samples, in the output type; of one alone that sample itself, in no memory of its own."""
        if self.num_samples == 1:
            return self.single
        mean = convert(self.moments.mean, self.output_type)
        return self.photo.finish(mean) if self.output_type == "pil" and self.photo is not None else mean

    def std(self) -> np.ndarray | Tensor:
        """Their standard deviation, `[3, H, W]` for "pt", else an array `[H, W, 3]`; uses the moments up."""
        if self.num_samples > 1:
            std = self.moments.std_()
        else:  # numpy's zeros take no memory until they are touched
            std = torch.from_numpy(np.zeros(self.size, np.float32)).to(self.y.device)
        return std if self.output_type == "pt" else std.permute(1, 2, 0).cpu().numpy()


def lr_psnr_of_image(operator: Downsampling, image: Image.Image, y: Tensor) -> float:
    """PSNR(Hx, y) in dB, peak 1, of an RGB image `scale_factor` times as large as y, `[3, h, w]` in [0, 1]."""
    return _lr_psnr(operator, partial(_rows_of, image, y.device), y)


def _lr_psnr(operator: Downsampling, rows: Callable[[int, int], Tensor], y: Tensor) -> float:
    """PSNR(Hx, y) in dB, peak 1, of x given by its rows; computed in float64 where the device has it."""
    size = (y.shape[-2] * operator.scale_factor, y.shape[-1] * operator.scale_factor)
    total, row = 0.0, 0
    for strip in operator.apply_rows(rows, size, y.device):
        expected = y[:, row : row + strip.shape[-2]]
        total += (strip - expected.to(strip.dtype)).square().sum().item()
        row += strip.shape[-2]
    return _decibels(total / y.numel())


def _rows_of(image: Image.Image, device: torch.device, low: int, high: int) -> Tensor:
    """Rows of an RGB image as floats in [0, 1], `[3, high - low, W]`."""
    levels = np.array(image.crop((0, low, image.width, high)))
    return torch.from_numpy(levels).permute(2, 0, 1).to(device).float() / 255


def psnr(a: Tensor, b: Tensor) -> float:
    """PSNR in dB, peak 1; infinite for equal images."""
    return _decibels((a - b.to(a.dtype)).square().mean().item())


def _decibels(error: float) -> float:
    return math.inf if error == 0 else -10 * math.log10(error)
