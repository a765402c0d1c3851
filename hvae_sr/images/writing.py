"""Image files, written whole or not at all, with the settings that made them."""

from __future__ import annotations

import functools
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, PngImagePlugin

from ..files import replacing, strict
from . import colour, png, tiff
from .arrays import to_pil
from .errors import ImageError, PathLike
from .metadata import LONGEST_EXIF, METADATA_KEY, TIFF_EXIF, add_settings, as_stored, describe, fit_into_jpeg
from .photo import WideImage
from .reading import load_image, read_photo

logger = logging.getLogger(__name__)

_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF"}
_OPTIONS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"lossless": True, "exact": True},
}
SUFFIXES = tuple(_FORMATS)
LOSSY_SUFFIXES = (".jpg", ".jpeg")
WIDE_SUFFIXES = (".png", ".tif", ".tiff")
"""Of formats that hold 16 bits a channel."""


def save_image(
    image: Image.Image | torch.Tensor | WideImage,
    path: PathLike,
    metadata: dict[str, Any] | None = None,
    exif: bytes = b"",
    quality: int | None = None,
) -> None:
    """Write an image so that `path` holds the whole file or is left as it was.

    See `hvae_sr.files` for how. The suffix sets the format: PNG, TIFF and WebP are lossless, JPEG has quality 95
    without chroma subsampling, and what is transparent is white in it. A grey profile, which WebP does not hold, and
    one of more than 1 MiB, which many programs do not read in a PNG, are applied there: the colours become sRGB.

    Args:
        image: A PIL image, or a float tensor [3, H, W] in [0, 1]; a `WideImage` for PNG and TIFF. What `Photo.finish`
            keeps in its `info` is written: profile, resolution, chunks of a PNG.
        path: `.png`, `.jpg`, `.jpeg`, `.webp`, `.tif` or `.tiff`, in a folder that exists.
        metadata: Settings to keep in the file as JSON (arrays as lists, what JSON lacks as str, such as infinity): in a
            PNG's text chunk "hvae-sr", elsewhere in the EXIF or TIFF tag ImageDescription, on a line after the caption
            that `exif` may have there. See `read_metadata`.
        exif: EXIF to keep beside them, as in `Photo.exif`; of size and resolution it is made to tell those of `image`.
        quality: Of a JPEG, or of a WebP that may lose, 1 to 100; others ignore it.

    Raises:
        ImageError: Another kind of image, unknown suffix, 16 bits in a format that does not hold them, or in a PNG
            with a profile of more than 1 MiB, or settings that a JPEG has no room for.
        OSError: The file cannot be written.
    """
    if not isinstance(image, (Image.Image, torch.Tensor, WideImage)):
        raise ImageError(
            f"`image` must be a PIL image, a float tensor [3, H, W] or a WideImage, got {type(image).__name__}"
        )
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in _FORMATS:
        raise ImageError(f"{path}: unknown suffix {path.suffix!r}, use one of {', '.join(_FORMATS)}")
    file_format = _FORMATS[suffix]
    if isinstance(image, WideImage) and suffix not in WIDE_SUFFIXES:
        raise ImageError(f"{path}: {file_format} holds 8 bits, not 16; use one of {', '.join(WIDE_SUFFIXES)}")
    options = _OPTIONS.get(file_format, {}) if quality is None else {"quality": quality}
    if isinstance(image, torch.Tensor):
        image = to_pil(image)
    elif isinstance(image, Image.Image) and image.mode.startswith("I") and suffix in WIDE_SUFFIXES:
        image = _as_wide(image)
    profile, dpi, chunks = (image.info.get(name) for name in ("icc_profile", "dpi", "png_chunks"))
    profile = profile or b""
    if isinstance(image, Image.Image):
        image, profile = _in_a_mode_of(file_format, image, profile)
    elif file_format == "PNG" and len(profile) > PngImagePlugin.MAX_TEXT_CHUNK:
        raise ImageError(f"{path}: many programs do not read a PNG with a profile of {len(profile)} bytes; use .tif")
    tags = Image.Exif()
    if exif:
        tags.load(exif)
    if file_format == "TIFF":  # whose tags say how its own pixels are stored, and not how those of the photograph were
        for tag in set(tags) - TIFF_EXIF:
            del tags[tag]
    describe(tags, image.size, dpi if exif or file_format == "WEBP" else None)
    info = PngImagePlugin.PngInfo()
    if metadata is not None:
        plain = json.loads(json.dumps(metadata, default=lambda v: v.tolist() if hasattr(v, "tolist") else str(v)))
        text = json.dumps(strict(plain), allow_nan=False)
        if file_format == "PNG":
            info.add_text(METADATA_KEY, text)
        else:
            add_settings(tags, text)
    for name, data in chunks or ():
        if file_format == "PNG" and not (profile and name == b"sRGB"):
            info.add(name, data)
        elif name == b"cICP" and not profile:
            _warn_of_colours(path.suffix, data)
    if file_format == "JPEG" and len(tags.tobytes()) > LONGEST_EXIF:
        tags = fit_into_jpeg(tags, exif, path)
        if len(tags.tobytes()) > LONGEST_EXIF:
            raise ImageError(f"{path}: the settings are longer than the 64 kB that a JPEG has room for")
    as_stored(tags)
    with replacing(path) as file:
        if file_format == "TIFF":
            pixels = image.pixels if isinstance(image, WideImage) else np.asarray(image)
            tiff.write(file, pixels.reshape(*pixels.shape[:2], -1), tags, profile, dpi)
        elif isinstance(image, WideImage):
            png.write_16_bits(file, image.pixels, info, profile, dpi, tags.tobytes() if len(tags) else b"")
        else:
            if file_format == "JPEG" and dpi and round(max(dpi)) > 0xFFFF:
                dpi = None  # JFIF has 16 bits for it
            extra = {"icc_profile": profile, "dpi": dpi, "exif": tags if len(tags) else None}
            options = options | {name: value for name, value in extra.items() if value}
            image.save(file, format=file_format, pnginfo=info, **options)


def _in_a_mode_of(file_format: str, image: Image.Image, profile: bytes) -> tuple[Image.Image, bytes]:
    """The image, and its profile, in a mode that the format holds."""
    if image.mode in ("RGBa", "PA", "La"):
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA"):
        image = _as_read(image)
        profile = image.info.get("icc_profile", b"")
    if file_format == "JPEG" and image.mode not in ("L", "RGB"):
        return _as_read(image).convert("L" if image.mode == "LA" else "RGB"), profile
    long = file_format == "PNG" and len(profile) > PngImagePlugin.MAX_TEXT_CHUNK
    if long or (file_format == "WEBP" and image.mode not in ("RGB", "RGBA")):
        converted = image.convert("RGBA" if image.mode != "L" and image.has_transparency_data else "RGB")
        grey = colour.space(profile) == "GRAY"
        in_srgb = colour.to_srgb(image.convert("L" if grey else "RGB"), profile) if grey or long else None
        if in_srgb is not None and converted.mode == "RGBA":
            in_srgb.putalpha(converted.getchannel("A"))
        return in_srgb or converted, b""
    if file_format == "TIFF" and image.mode not in ("L", "LA", "RGB", "RGBA"):
        return image.convert("RGBA" if image.has_transparency_data else "RGB"), profile
    return image, profile


def _as_wide(image: Image.Image) -> Image.Image | WideImage:
    """Grey levels of integers wider than 8 bits, as they are read."""
    photo = read_photo(_bare(image))
    info = {str(name): value for name, value in image.info.items() if name != "transparency"}
    if photo.wide is not None:
        return WideImage(np.ascontiguousarray(photo.wide[..., [0, *range(3, photo.wide.shape[-1])]]), info)
    narrow = photo.image.getchannel(0)
    narrow = narrow if photo.alpha is None else Image.merge("LA", (narrow, photo.alpha))
    narrow.info.update(info)
    return narrow


def _as_read(image: Image.Image) -> Image.Image:
    """`load_image` of the pixels as they stand."""
    return load_image(_bare(image), limited=False)


def _bare(image: Image.Image) -> Image.Image:
    """Without what else `info` says, which was applied, or is written beside the pixels."""
    bare = image.copy()
    bare.info = {name: image.info[name] for name in ("icc_profile", "transparency") if name in image.info}
    return bare


@functools.lru_cache(maxsize=16)
def _warn_of_colours(suffix: str, data: bytes) -> None:
    """Of each kind, whose images are many."""
    logger.warning("%s files cannot say what a PNG's cICP (%s) says of the colours: PNG can", suffix, tuple(data))
