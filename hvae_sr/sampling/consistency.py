"""How a sample is made to agree with y, and how well it does: projection, clamp, LR-PSNR.

A sample of a large image is held once: every step works in place or on strips of rows.
"""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..images import LUMA, row_strips
from ..operators import Downsampling


class Consistency:
    """Makes samples of one y agree with it.

    Args:
        operator: H.
        y: `[3, h, w]` in [0, 1]. Where its channels are equal, so are those of the samples: their luminance, which has
            the same Hx = y.
        enforce: whether samples are projected on {x : Hx = y}.
        grey: whether the channels of samples are made equal; None lets y tell.
    """

    def __init__(self, operator: Downsampling, y: Tensor, enforce: bool = True, grey: bool | None = None) -> None:
        self.operator, self.y, self.enforce = operator, y, enforce
        self.grey = bool((y == y[:1]).all()) if grey is None else grey

    def __call__(self, sample: Tensor, clamp: bool = True) -> tuple[Tensor, float, float]:
        """The finished sample, and how well it agreed with y on the way.

        Args:
            sample: `[3, H', W']` on [-1, 1], overwritten; what exceeds the size of y times the scale is cut off.
            clamp: whether what lies outside [0, 1] is cut off, as it is in the end.

        Returns:
            x `[3, H, W]` in [0, 1]; LR-PSNR in dB before the clamp, and before the projection.

        Raises:
            ValueError: NaN or infinite values.
        """
        x = self._colours(sample)
        unprojected = self.lr_psnr(x)
        if self.enforce:
            self.operator.project_(x, self.y)
        exact = self.lr_psnr(x)
        return x.clamp_(0, 1) if clamp else x, exact, unprojected

    def image(self, sample: Tensor, clamp: bool = True) -> Tensor:
        """As a call, but not measured: x alone."""
        x = self._colours(sample)
        if self.enforce:
            self.operator.project_(x, self.y)
        return x.clamp_(0, 1) if clamp else x

    def lr_psnr(self, x: Tensor | Image.Image) -> float:
        """`lr_psnr` of x against this y."""
        return lr_psnr(self.operator, x, self.y)

    def _colours(self, sample: Tensor) -> Tensor:
        """`[3, H', W']` on [-1, 1] -> `[3, H, W]` on [0, 1], in place."""
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


def lr_psnr(operator: Downsampling, x: Tensor | Image.Image, y: Tensor) -> float:
    """PSNR(Hx, y) in dB, peak 1; computed strip by strip, in float64 where the device has it.

    Args:
        operator: H.
        x: `[3, H, W]` in [0, 1], or an RGB image, `scale_factor` times as large as y.
        y: `[3, h, w]` in [0, 1].
    """
    rows: Callable[[int, int], Tensor] = (
        partial(_rows_of, x, y.device) if isinstance(x, Image.Image) else lambda low, high: x[:, low:high].to(y.device)
    )
    size = (y.shape[-2] * operator.scale_factor, y.shape[-1] * operator.scale_factor)
    total, row = 0.0, 0
    for strip in operator.apply_rows(rows, size, y.device):
        expected = y[:, row : row + strip.shape[-2]]
        total += (strip - expected.to(strip.dtype)).square().sum().item()
        row += strip.shape[-2]
    return decibels(total / y.numel())


def _rows_of(image: Image.Image, device: torch.device, low: int, high: int) -> Tensor:
    """Rows of an RGB image as floats in [0, 1], `[3, high - low, W]`."""
    levels = np.array(image.crop((0, low, image.width, high)))
    return torch.from_numpy(levels).permute(2, 0, 1).to(device).float() / 255


def decibels(mean_squared_error: float) -> float:
    """PSNR in dB of an MSE at peak 1; infinite for equal images."""
    return math.inf if mean_squared_error == 0 else -10 * math.log10(mean_squared_error)
