"""Arrays and tensors to levels and images."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image

from .errors import ImageError

LUMA = (0.299, 0.587, 0.114)
"""Shares of red, green and blue in the luminance (ITU-R BT.601)."""

_STRIP_PIXELS = 2**18
_NARROW = ((np.arange(65536) + 128) // 257).astype(np.uint8)
# Eleven equally spaced colours of the "magma" map (van der Walt and Smith, CC0).
_MAGMA = np.array(
    [[0, 0, 3], [20, 13, 53], [59, 15, 111], [99, 25, 127], [140, 41, 128], [181, 54, 121]]
    + [[221, 73, 104], [246, 110, 91], [253, 159, 108], [253, 205, 144], [251, 252, 191]]
)


def row_strips(height: int, width: int) -> Iterator[slice]:
    """Rows of a large image that are worked on together: the steps for all of them would take several times its memory.

    Yields:
        Slices of rows from the top, of a quarter of a million pixels each.
    """
    step = max(_STRIP_PIXELS // width, 1)
    return (slice(low, min(low + step, height)) for low in range(0, height, step))


def to_8_bits(levels: np.ndarray) -> np.ndarray:
    """uint8 or uint16 to uint8, to the nearest level."""
    return levels if levels.dtype == np.uint8 else _NARROW[levels]


def level_strips(tensor: torch.Tensor, most: int) -> Iterator[tuple[slice, torch.Tensor]]:
    """A float tensor `[3, H, W]`, clamped to [0, 1], in levels from 0 to `most`: rows, and the floats `[3, rows, W]`.

    Raises an ImageError unless it is one, and without NaN.
    """
    if not isinstance(tensor, torch.Tensor):
        raise ImageError(f"tensor must be a float tensor [3, H, W], got {type(tensor).__name__}")
    if tensor.ndim != 3 or tensor.shape[0] != 3 or tensor.numel() == 0 or not tensor.is_floating_point():
        raise ImageError(f"tensor must be float [3, H, W], got {tensor.dtype} {tuple(tensor.shape)}")
    if torch.isnan(tensor.detach().min()):
        raise ImageError("tensor holds NaN values")
    return (
        (rows, tensor[:, rows].detach().float().clamp(0.0, 1.0).mul_(float(most)).round_())
        for rows in row_strips(*tensor.shape[1:])
    )


def to_pil(tensor: torch.Tensor) -> Image.Image:
    """Convert a float tensor [3, H, W] to 8-bit RGB: clamp to [0, 1], then round to the nearest level.

    Raises:
        ImageError: Not a float tensor [3, H, W], or it holds NaN.
    """
    strips = level_strips(tensor, 255)
    image = Image.new("RGB", (tensor.shape[2], tensor.shape[1]))
    for rows, strip in strips:
        levels = strip.to(torch.uint8).permute(1, 2, 0).contiguous().cpu().numpy()
        image.paste(Image.fromarray(levels), (0, rows.start))
    return image


def uncertainty_to_pil(std: torch.Tensor | np.ndarray, max_std: float = 0.1) -> Image.Image:
    """Draw a map of standard deviations as a heat map.

    The colours are those of "magma", from black for 0 to pale yellow for `max_std` and above: perceptually
    uniform, readable with colour-blind eyes. The scale is fixed, so that maps of different images compare.

    Args:
        std: Standard deviations [H, W] or [3, H, W], in units of the image range [0, 1]. An array whose last side
            is 3 is [H, W, 3]. Three channels are pooled by their root mean square.
        max_std: The value that gets the top colour; 0.1 is 25.5 grey levels.

    Raises:
        ImageError: Wrong shape, NaN, infinite or negative values, or `max_std` not positive.
    """
    if not (max_std > 0 and math.isfinite(max_std)):
        raise ImageError(f"max_std must be positive and finite, got {max_std}")
    if not isinstance(std, (torch.Tensor, np.ndarray)):
        raise ImageError(f"std must be a tensor or an array, got {type(std).__name__}")
    values = torch.as_tensor(std).detach()
    if values.ndim == 3 and values.shape[2] == 3 and isinstance(std, np.ndarray):
        values = values.permute(2, 0, 1)
    if values.numel() == 0 or values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[0] != 3):
        raise ImageError(f"std must have shape [H, W] or [3, H, W], got {tuple(std.shape)}")
    low, high = torch.aminmax(values)
    if not (low >= 0 and high < math.inf):
        raise ImageError("std must be finite and not negative")
    anchors = np.linspace(0.0, max_std, len(_MAGMA))
    height, width = values.shape[-2:]
    image = Image.new("RGB", (width, height))
    for rows in row_strips(height, width):
        strip = values[..., rows, :].double().cpu().numpy()
        if strip.ndim == 3:
            strip = np.sqrt(np.square(strip).mean(axis=0))
        colours = [np.interp(strip, anchors, _MAGMA[:, channel]) for channel in range(3)]
        levels = np.rint(np.stack(colours, axis=-1)).astype(np.uint8)
        image.paste(Image.fromarray(levels), (0, rows.start))
    return image
