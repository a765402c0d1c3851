"""Arrays and tensors to images and back."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from .reading import ImageError, ImageInput, Photo, image_errors, load_image, read_photo

LUMA = (0.299, 0.587, 0.114)
"""Shares of red, green and blue in the luminance (ITU-R BT.601)."""

_RANGE_TOLERANCE = 1e-3
_STRIP_PIXELS = 2**18
# Eleven equally spaced colours of the "magma" map (van der Walt and Smith, CC0).
_MAGMA = np.array(
    [[0, 0, 3], [20, 13, 53], [59, 15, 111], [99, 25, 127], [140, 41, 128], [181, 54, 121]]
    + [[221, 73, 104], [246, 110, 91], [253, 159, 108], [253, 205, 144], [251, 252, 191]]
)


def to_tensor(image: ImageInput) -> torch.Tensor:
    """Convert one image to a float32 tensor [3, H, W] in [0, 1].

    Args:
        image: A PIL image or path (see `load_image`); a numpy array [H, W] or [H, W, 1 | 3 | 4] (the fourth
            channel, alpha, is dropped); or a tensor [1 | 3, H, W]. Arrays and tensors are uint8 in 0..255, or
            float in [0, 1] (excesses up to 1e-3 are clamped). The device of a tensor is kept.

    Raises:
        ImageError: Wrong type, shape or range, NaN or infinite values, or no pixels.
    """
    return _to_tensor(image, "image")


def _to_tensor(image: Any, name: str) -> torch.Tensor:
    if isinstance(image, (str, os.PathLike)):
        image = load_image(image)
    if isinstance(image, Image.Image):
        with image_errors(name):
            tensor = torch.from_numpy(np.array(load_image(image))).permute(2, 0, 1)
    elif isinstance(image, np.ndarray):
        if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)):
            raise ImageError(f"{name} as a numpy array must be [H, W] or [H, W, 1|3|4], got {image.shape}")
        if image.dtype != np.uint8 and not np.issubdtype(image.dtype, np.floating):
            raise ImageError(f"{name} must be uint8 or float, got dtype {image.dtype}")
        channels = image[None] if image.ndim == 2 else image[..., :3].transpose(2, 0, 1)
        tensor = torch.from_numpy(np.array(channels, np.uint8 if image.dtype == np.uint8 else np.float32))
    elif isinstance(image, torch.Tensor):
        if image.ndim != 3 or image.shape[0] not in (1, 3):
            raise ImageError(f"{name} as a tensor must be [3, H, W] or [1, H, W], got {tuple(image.shape)}")
        if image.dtype != torch.uint8 and not image.is_floating_point():
            raise ImageError(f"{name} must be uint8 or float, got dtype {image.dtype}")
        tensor = image
    else:
        kind = type(image).__name__
        raise ImageError(f"{name} must be a path, a PIL image, a numpy array or a tensor, got {kind}")
    if tensor.numel() == 0:
        raise ImageError(f"{name} has no pixels: shape {tuple(image.shape)}")
    tensor = tensor.expand(3, -1, -1).contiguous()
    if tensor.dtype == torch.uint8:
        return tensor.float().div_(255.0)
    tensor = tensor.float()
    if not torch.isfinite(tensor).all():
        raise ImageError(f"{name} holds NaN or infinite values")
    low, high = (float(value) for value in torch.aminmax(tensor))
    if low < -_RANGE_TOLERANCE or high > 1 + _RANGE_TOLERANCE:
        raise ImageError(f"{name} as floats must lie in [0, 1], got values from {low:.4g} to {high:.4g}")
    return tensor.clamp(0.0, 1.0)


def prepare_images(image: ImageInput | Sequence[ImageInput]) -> list[torch.Tensor]:
    """Convert one image, a batch, or a list of either to float32 tensors [3, H, W] in [0, 1].

    Args:
        image: What `to_tensor` takes, a numpy batch [N, H, W, C], a tensor batch [N, C, H, W], or a list or
            tuple of any of these; sizes may differ.

    Raises:
        ImageError: The list or batch is empty, or an image is unusable (named by its path or position).
    """
    return [tensor for tensor, _ in prepare_photos(image)]


def prepare_photos(image: ImageInput | Photo | Sequence[ImageInput | Photo]) -> list[tuple[torch.Tensor, Photo | None]]:
    """As `prepare_images`; beside each tensor, the `Photo` it came from if it was a file, a PIL image or a `Photo`.

    The colours under transparent pixels of files and PIL images are those of `read_photo`.
    """
    items = list(image) if isinstance(image, (list, tuple)) else [image]
    found: list[tuple[torch.Tensor, Photo | None]] = []
    for i, item in enumerate(items):
        name = f"image[{i}]" if items[0] is not image else "image"
        if isinstance(item, (np.ndarray, torch.Tensor)) and item.ndim == 4:
            found.extend((_to_tensor(element, f"{name}[{j}]"), None) for j, element in enumerate(item))
        elif isinstance(item, Image.Image):
            with image_errors(name):
                photo = read_photo(item)
            found.append((_to_tensor(photo.image, name), photo))
        elif isinstance(item, (str, os.PathLike, Photo)):
            photo = item if isinstance(item, Photo) else read_photo(item)
            found.append((_to_tensor(photo.image, name), photo))
        else:
            found.append((_to_tensor(item, name), None))
    if not found:
        raise ImageError("image is empty: at least one image is needed")
    return found


def row_strips(height: int, width: int) -> Iterator[slice]:
    """Rows of a large image that are worked on together: the steps for all of them would take several times its memory.

    Yields:
        Slices of rows from the top, of a quarter of a million pixels each.
    """
    step = max(_STRIP_PIXELS // width, 1)
    return (slice(low, min(low + step, height)) for low in range(0, height, step))


def to_pil(tensor: torch.Tensor) -> Image.Image:
    """Convert a float tensor [3, H, W] to 8-bit RGB: clamp to [0, 1], then round to the nearest level.

    Raises:
        ImageError: Not a float tensor [3, H, W], or it holds NaN.
    """
    if tensor.ndim != 3 or tensor.shape[0] != 3 or tensor.numel() == 0 or not tensor.is_floating_point():
        raise ImageError(f"tensor must be float [3, H, W], got {tensor.dtype} {tuple(tensor.shape)}")
    if torch.isnan(tensor.detach().min()):
        raise ImageError("tensor holds NaN values")
    height, width = tensor.shape[1:]
    image = Image.new("RGB", (width, height))
    for rows in row_strips(height, width):
        strip = tensor[:, rows].detach().float().clamp(0.0, 1.0).mul_(255.0).round_()
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
    values = torch.as_tensor(std).detach()
    if values.ndim == 3 and values.shape[2] == 3 and isinstance(std, np.ndarray):
        values = values.permute(2, 0, 1)
    if values.numel() == 0 or values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[0] != 3):
        raise ImageError(f"std must have shape [H, W] or [3, H, W], got {tuple(std.shape)}")
    low, high = (float(value) for value in torch.aminmax(values))
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
