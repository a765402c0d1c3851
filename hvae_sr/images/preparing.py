"""What a user may give as an image, to tensors."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from .errors import ImageError, PathLike, image_errors
from .photo import Photo, on_white
from .reading import ImageInput, load_pixels, read_photo

logger = logging.getLogger(__name__)

_RANGE_TOLERANCE = 1e-3


def to_tensor(image: ImageInput | Photo) -> torch.Tensor:
    """Convert one image to a float32 tensor [3, H, W] in [0, 1].

    Args:
        image: A PIL image or path (as `load_image` reads it, but with all the bits of the file); a `Photo`, without its
            alpha; a numpy array [H, W] or [H, W, 1 | 3 | 4] (the fourth channel is alpha, seen on white); or a tensor
            [1 | 3, H, W]. Arrays are uint8, uint16 in 0..65535, or float in [0, 1] (excesses up to 1e-3 are clamped),
            tensors uint8 or float. The device of a tensor is kept.

    Raises:
        ImageError: Wrong type, shape or range, NaN or infinite values, or no pixels.
    """
    return _to_tensor(image, "image")


def _to_tensor(image: Any, name: str) -> torch.Tensor:
    if isinstance(image, (str, os.PathLike)):
        image = load_pixels(image)
    elif isinstance(image, Image.Image):
        with image_errors(name):
            image = load_pixels(image)
    elif isinstance(image, Photo):
        image = image.pixels
    if isinstance(image, np.ndarray):
        if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)):
            raise ImageError(f"{name} as a numpy array must be [H, W] or [H, W, 1|3|4], got {image.shape}")
        image = image.astype(image.dtype.newbyteorder("="), copy=False)
        if image.dtype not in (np.uint8, np.uint16) and not np.issubdtype(image.dtype, np.floating):
            raise ImageError(f"{name} must be uint8, uint16 or float, got dtype {image.dtype}")
        if image.ndim == 3 and image.shape[2] == 4:
            if np.issubdtype(image.dtype, np.floating) and not np.abs(image).max(initial=0) <= 1 + _RANGE_TOLERANCE:
                raise ImageError(f"{name} as floats must lie in [0, 1], got values up to {np.abs(image).max():.4g}")
            image = on_white(image[..., :3], image[..., 3])
        channels = image[None] if image.ndim == 2 else image.transpose(2, 0, 1)
        tensor = torch.from_numpy(np.array(channels, np.uint8 if image.dtype == np.uint8 else np.float32))
        if image.dtype == np.uint16:
            tensor /= 65535
    elif isinstance(image, torch.Tensor):
        if image.ndim != 3 or image.shape[0] not in (1, 3):
            raise ImageError(f"{name} as a tensor must be [3, H, W] or [1, H, W], got {tuple(image.shape)}")
        if image.dtype != torch.uint8 and not image.is_floating_point():
            raise ImageError(f"{name} must be uint8 or float, got dtype {image.dtype}")
        if image.layout != torch.strided or image.device.type == "meta":
            raise ImageError(f"{name} must be a dense tensor with values, got {image.layout} on {image.device}")
        tensor = image.detach()
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
                photo = _read(item, name)
            found.append((_to_tensor(photo, name), photo))
        elif isinstance(item, (str, os.PathLike, Photo)):
            photo = item if isinstance(item, Photo) else _read(item, os.fspath(item))
            found.append((_to_tensor(photo, name), photo))
        else:
            found.append((_to_tensor(item, name), None))
    if not found:
        raise ImageError("image is empty: at least one image is needed")
    return found


def _read(source: PathLike | Image.Image, name: str) -> Photo:
    photo = read_photo(source)
    for line in photo.warnings:
        logger.warning("%s: %s", name, line)
    return photo
