"""Image files, written whole or not at all, with the settings that made them."""

from __future__ import annotations

import functools
import json
import logging
from pathlib import Path
from typing import Any

import torch
from PIL import ExifTags, Image, PngImagePlugin

from ..files import replacing
from .arrays import to_pil
from .reading import EXIF_DESCRIPTION, EXIF_PREFIX, METADATA_KEY, ImageError, PathLike, load_image

logger = logging.getLogger(__name__)

_SAVE_OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {}),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".webp": ("WEBP", {"lossless": True, "exact": True}),
    ".tif": ("TIFF", {"compression": "tiff_lzw"}),
    ".tiff": ("TIFF", {"compression": "tiff_lzw"}),
}
SUFFIXES = tuple(_SAVE_OPTIONS)
_LONGEST_EXIF = 65533 - 6
"""Bytes of EXIF that a JPEG takes: a segment without its length and the word "Exif"."""
_MAKER_NOTE = 0x927C
LOSSY_SUFFIXES = (".jpg", ".jpeg")


def save_image(
    image: Image.Image | torch.Tensor,
    path: PathLike,
    metadata: dict[str, Any] | None = None,
    exif: bytes = b"",
    quality: int | None = None,
) -> None:
    """Write an image so that `path` holds the whole file or is left as it was.

    See `hvae_sr.files` for how. The suffix sets the format: PNG, TIFF and WebP are lossless, JPEG has quality 95
    without chroma subsampling and no alpha.

    Args:
        image: A PIL image, or a float tensor [3, H, W] in [0, 1].
        path: `.png`, `.jpg`, `.jpeg`, `.webp`, `.tif` or `.tiff`, in a folder that exists.
        metadata: Settings to keep in the file as JSON (arrays as lists, what JSON lacks as str): in a PNG's
            text chunk "hvae-sr", elsewhere in the EXIF or TIFF tag ImageDescription. See `read_metadata`.
        exif: EXIF to keep beside them, as in `Photo.exif`.
        quality: Of a JPEG, or of a WebP that may lose, 1 to 100; others ignore it.

    Raises:
        ImageError: Unknown suffix, or settings that a JPEG has no room for.
        OSError: The file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in _SAVE_OPTIONS:
        raise ImageError(f"{path}: unknown suffix {path.suffix!r}, use one of {', '.join(_SAVE_OPTIONS)}")
    file_format, defaults = _SAVE_OPTIONS[path.suffix.lower()]
    options = dict(defaults)
    if quality is not None and file_format in ("JPEG", "WEBP"):
        options = {"quality": quality}
    if isinstance(image, torch.Tensor):
        image = to_pil(image)
    profile = image.info.get("icc_profile")
    if file_format == "JPEG" and image.mode not in ("L", "RGB"):
        image = image.getchannel("L") if image.mode == "LA" else load_image(image)
    elif file_format == "WEBP" and image.mode not in ("RGB", "RGBA"):
        profile = profile if (profile or b"")[16:20] == b"RGB " else None  # WebP has no grey
        image = image.convert("RGBA" if image.mode == "LA" else "RGB")
    if profile:
        options["icc_profile"] = profile
    tags = Image.Exif()
    if exif:
        tags.load(exif)
        if file_format == "TIFF":
            del options["compression"]  # libtiff takes no tags that point to further tags
    if metadata is not None:
        text = json.dumps(metadata, default=lambda v: v.tolist() if hasattr(v, "tolist") else str(v))
        if file_format == "PNG":
            options["pnginfo"] = PngImagePlugin.PngInfo()
            options["pnginfo"].add_text(METADATA_KEY, text)
        else:
            tags[EXIF_DESCRIPTION] = EXIF_PREFIX + text
    if file_format == "JPEG" and len(tags.tobytes()) > _LONGEST_EXIF:
        _fit_into_jpeg(tags, exif)
        if len(tags.tobytes()) > _LONGEST_EXIF:
            raise ImageError(f"{path}: the settings are longer than the 64 kB that a JPEG has room for")
    if len(tags):
        options["exif"] = tags
    with replacing(path) as file:
        image.save(file, format=file_format, **options)


def _fit_into_jpeg(tags: Image.Exif, exif: bytes) -> None:
    """Removes of a photograph's EXIF what a JPEG has no room for: the maker's notes, and then all of it."""
    tags.get_ifd(ExifTags.IFD.Exif).pop(_MAKER_NOTE, None)
    what = "the maker's notes of a photograph's EXIF"
    if len(tags.tobytes()) > _LONGEST_EXIF:
        settings = str(tags.get(EXIF_DESCRIPTION, ""))
        tags.clear()
        if settings.startswith(EXIF_PREFIX):
            tags[EXIF_DESCRIPTION] = settings
        what = "a photograph's EXIF"
    _warn_once(what, exif)


@functools.lru_cache(maxsize=16)
def _warn_once(what: str, exif: bytes) -> None:
    """Of each photograph, whose samples are many."""
    logger.warning("%s are left out: %d bytes, of which a JPEG has room for 64 kB", what, len(exif))
