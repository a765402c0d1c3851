"""Reading, checking and writing images.

Everything that enters the package passes through `load_image` (files, PIL images) or `to_tensor` (arrays,
tensors), and leaves through `to_pil` and `save_image`. Inside, an image is float32 [3, H, W] in [0, 1].
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Union

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps, PngImagePlugin, UnidentifiedImageError

PathLike = Union[str, "os.PathLike[str]"]
ImageInput = PathLike | Image.Image | np.ndarray | torch.Tensor

IMAGE_SUFFIXES = tuple(
    f".{name}" for name in "avif bmp gif jfif jp2 jpe jpeg jpg pbm pgm png pnm ppm tif tiff webp".split()
)
METADATA_KEY = "hvae-sr"

_RANGE_TOLERANCE = 1e-3
_EXIF_DESCRIPTION = 0x010E  # the EXIF and TIFF tag ImageDescription
_EXIF_PREFIX = f"{METADATA_KEY}: "
_SAVE_OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {}),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".webp": ("WEBP", {"lossless": True}),
    ".tif": ("TIFF", {"compression": "tiff_lzw"}),
    ".tiff": ("TIFF", {"compression": "tiff_lzw"}),
}
# Eleven equally spaced colours of the "magma" map (van der Walt and Smith, CC0).
_MAGMA = np.array(
    [[0, 0, 3], [20, 13, 53], [59, 15, 111], [99, 25, 127], [140, 41, 128], [181, 54, 121]]
    + [[221, 73, 104], [246, 110, 91], [253, 159, 108], [253, 205, 144], [251, 252, 191]]
)


class ImageError(ValueError):
    """An image file or array that cannot be used; the message is one line and names the file or argument."""


def load_image(source: PathLike | Image.Image) -> Image.Image:
    """Read an image as 8-bit RGB, upright.

    The EXIF orientation is applied, and only the first frame of an animation is read. Modes are converted so:

    - grey, palette, 1 bit: the RGB colours they stand for;
    - alpha (LA, RGBA, palette with transparency): dropped. The colours are those stored, not composited on a
      background; premultiplied colours are first divided by alpha;
    - CMYK: through the embedded ICC profile where there is one, else by Pillow's formula;
    - 16-bit grey: round(v / 257). (Pillow itself reads 16-bit *colour* files as their high bytes.)
    - 32-bit integers: as 8 bit where no value exceeds 255, else as 16 bit, clipped;
    - float: scaled by 255 where no value exceeds 1, else clipped to [0, 255] and rounded.

    Args:
        source: A path, or a PIL image (left as it is; a new image is returned).

    Returns:
        A PIL image of mode RGB. An RGB ICC profile is kept in `info["icc_profile"]`, as `save_image` expects.

    Raises:
        ImageError: The file is missing, empty, damaged, truncated, no image, or too large (Pillow's limit
            against decompression bombs).
    """
    if isinstance(source, Image.Image):
        with _image_errors("image"):
            return _convert(source)
    if not isinstance(source, (str, os.PathLike)):
        raise ImageError(f"image must be a path or a PIL image, got {type(source).__name__}")
    with _image_errors(source), Image.open(source) as image:
        return _convert(image)


@contextlib.contextmanager
def _image_errors(name: PathLike) -> Iterator[None]:
    """Turn what Pillow raises on damaged files (nearly every type) into an ImageError of one line."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = "not an image, or of an unknown format" if os.path.getsize(name) else "the file is empty"
        elif isinstance(error, OSError) and error.strerror:
            reason = error.strerror
        raise ImageError(f"{os.fspath(name)}: {reason}") from error


def _convert(image: Image.Image) -> Image.Image:
    if min(image.size) < 1:
        raise ValueError(f"the image has no pixels: size {image.size}")
    image.load()
    profile = image.info.get("icc_profile") or b""
    with contextlib.suppress(Exception):  # unreadable EXIF says nothing about the pixels
        image = ImageOps.exif_transpose(image)
    rgb = _to_rgb(image, profile)
    # Orientation, transparency and the like no longer hold; the profile does if it speaks of RGB values.
    rgb.info = {"icc_profile": profile} if profile[16:20] == b"RGB " else {}
    return rgb


def _to_rgb(image: Image.Image, profile: bytes) -> Image.Image:
    mode = image.mode
    if mode.startswith("I"):
        integers = np.asarray(image).astype(np.int64).clip(0, 65535)
        if mode != "I" or integers.max() > 255:
            integers = (integers + 128) // 257
        image = Image.fromarray(integers.astype(np.uint8))
    elif mode == "F":
        floats = np.asarray(image)
        if not np.isfinite(floats).all():
            raise ValueError("the image holds NaN or infinite values")
        levels = np.rint((floats * 255.0 if floats.max() <= 1 else floats).clip(0, 255))
        image = Image.fromarray(levels.astype(np.uint8))
    elif mode == "CMYK" and profile:
        with contextlib.suppress(Exception):  # an unusable profile, or Pillow without LittleCMS
            source, target = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
            image = ImageCms.profileToProfile(image, source, target, outputMode="RGB") or image
    elif mode in ("P", "PA", "RGBa", "La"):
        image = image.convert("LA" if mode == "La" else "RGBA")
    return image.copy() if image.mode == "RGB" else image.convert("RGB")


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
        with _image_errors(name):
            tensor = torch.from_numpy(np.array(_convert(image))).permute(2, 0, 1)
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
        return tensor.float() / 255.0
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
    items = list(image) if isinstance(image, (list, tuple)) else [image]
    tensors: list[torch.Tensor] = []
    for i, item in enumerate(items):
        name = f"image[{i}]" if items[0] is not image else "image"
        if isinstance(item, (np.ndarray, torch.Tensor)) and item.ndim == 4:
            tensors.extend(_to_tensor(element, f"{name}[{j}]") for j, element in enumerate(item))
        else:
            tensors.append(_to_tensor(item, name))
    if not tensors:
        raise ImageError("image is empty: at least one image is needed")
    return tensors


def to_pil(tensor: torch.Tensor) -> Image.Image:
    """Convert a float tensor [3, H, W] to 8-bit RGB: clamp to [0, 1], then round to the nearest level.

    Raises:
        ImageError: Not a float tensor [3, H, W], or it holds NaN.
    """
    if tensor.ndim != 3 or tensor.shape[0] != 3 or tensor.numel() == 0 or not tensor.is_floating_point():
        raise ImageError(f"tensor must be float [3, H, W], got {tensor.dtype} {tuple(tensor.shape)}")
    if torch.isnan(tensor).any():
        raise ImageError("tensor holds NaN values")
    levels = (tensor.detach().float().clamp(0.0, 1.0) * 255.0).round().to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).contiguous().cpu().numpy())


def uncertainty_to_pil(std: torch.Tensor | np.ndarray, max_std: float = 0.1) -> Image.Image:
    """Draw a map of standard deviations as a heat map.

    The colours are those of "magma", from black for 0 to pale yellow for `max_std` and above: perceptually
    uniform, readable with colour-blind eyes. The scale is fixed, so that maps of different images compare.

    Args:
        std: Standard deviations [H, W] or [3, H, W] (numpy also [H, W, 3]), in units of the image range
            [0, 1]. Three channels are pooled by their root mean square.
        max_std: The value that gets the top colour; 0.1 is 25.5 grey levels.

    Raises:
        ImageError: Wrong shape, NaN, infinite or negative values, or `max_std` not positive.
    """
    if not (max_std > 0 and math.isfinite(max_std)):
        raise ImageError(f"max_std must be positive and finite, got {max_std}")
    values = torch.as_tensor(std).detach().double().cpu().numpy()
    if values.ndim == 3 and values.shape[0] != 3 and isinstance(std, np.ndarray):
        values = values.transpose(2, 0, 1)
    if values.size == 0 or values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[0] != 3):
        raise ImageError(f"std must have shape [H, W] or [3, H, W], got {tuple(std.shape)}")
    if not np.isfinite(values).all() or values.min() < 0:
        raise ImageError("std must be finite and not negative")
    if values.ndim == 3:
        values = np.sqrt(np.square(values).mean(axis=0))
    anchors = np.linspace(0.0, max_std, len(_MAGMA))
    colours = np.stack([np.interp(values, anchors, _MAGMA[:, channel]) for channel in range(3)], axis=-1)
    return Image.fromarray(np.rint(colours).astype(np.uint8))


def save_image(image: Image.Image | torch.Tensor, path: PathLike, metadata: dict[str, Any] | None = None) -> None:
    """Write an image so that `path` holds the whole file or is left as it was.

    The file is written under a temporary name in the same folder, flushed to disk and renamed. The suffix
    sets the format: PNG, TIFF and WebP are lossless, JPEG has quality 95 without chroma subsampling.

    Args:
        image: A PIL image, or a float tensor [3, H, W] in [0, 1].
        path: `.png`, `.jpg`, `.jpeg`, `.webp`, `.tif` or `.tiff`, in a folder that exists.
        metadata: Settings to keep in the file as JSON (arrays as lists, what JSON lacks as str): in a PNG's
            text chunk "hvae-sr", elsewhere in the EXIF or TIFF tag ImageDescription. See `read_metadata`.

    Raises:
        ImageError: Unknown suffix.
        OSError: The file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in _SAVE_OPTIONS:
        raise ImageError(f"{path}: unknown suffix {path.suffix!r}, use one of {', '.join(_SAVE_OPTIONS)}")
    file_format, defaults = _SAVE_OPTIONS[path.suffix.lower()]
    options = dict(defaults)
    if isinstance(image, torch.Tensor):
        image = to_pil(image)
    if file_format == "JPEG" and image.mode not in ("L", "RGB"):
        image = load_image(image)
    if image.info.get("icc_profile"):
        options["icc_profile"] = image.info["icc_profile"]
    if metadata is not None:
        text = json.dumps(metadata, default=lambda v: v.tolist() if hasattr(v, "tolist") else str(v))
        if file_format == "PNG":
            options["pnginfo"] = PngImagePlugin.PngInfo()
            options["pnginfo"].add_text(METADATA_KEY, text)
        else:
            options["exif"] = Image.Exif()
            options["exif"][_EXIF_DESCRIPTION] = _EXIF_PREFIX + text
    temporary = path.with_name(f".{METADATA_KEY}-{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "x+b") as file:
            image.save(file, format=file_format, **options)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_metadata(path: PathLike) -> dict[str, Any]:
    """Return what `save_image` wrote as metadata, or {} where there is none.

    Raises:
        ImageError: The file is missing or no image, or the metadata is damaged.
    """
    with _image_errors(path), Image.open(path) as image:
        text = image.info.get(METADATA_KEY)
        if text is None:
            before, prefix, text = str(image.getexif().get(_EXIF_DESCRIPTION)).partition(_EXIF_PREFIX)
            if before or not prefix:
                return {}
        return dict(json.loads(text))


def _natural_key(path: Path) -> tuple[Any, ...]:
    """Order "img2" before "img10", and keep a folder's content together."""
    parts = (re.split(r"([0-9]+)", part.casefold()) for part in path.parts)
    return *([int(p) if i % 2 else p for i, p in enumerate(part)] for part in parts), [str(path)]


def find_images(paths: PathLike | Iterable[PathLike], recursive: bool = False) -> list[Path]:
    """List image files: files are taken as given, folders are searched for known suffixes.

    Arguments keep their order, a folder's files are in natural order ("img2" before "img10"), and a file met
    twice is listed once. Folders in folders are searched if `recursive`, also through links; hidden ones and
    hidden files are not. Raises ImageError for a path that does not exist.
    """
    found: list[Path] = []
    for given in map(Path, [paths] if isinstance(paths, (str, os.PathLike)) else paths):
        if not given.exists():
            raise ImageError(f"{given}: no such file or folder")
        found.extend(sorted(_walk(given, recursive), key=_natural_key) if given.is_dir() else [given])
    return list(dict.fromkeys(found))


def _walk(folder: Path, recursive: bool) -> Iterator[Path]:
    visited: set[str] = set()  # a link may lead back up
    for root, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = [name for name in folders if recursive and not name.startswith(".")]
        for name in names:
            if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith("."):
                yield Path(root, name)
