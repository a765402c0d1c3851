"""Image files, written whole or not at all, with the settings that made them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from PIL import Image, PngImagePlugin

from .arrays import to_pil
from .reading import EXIF_DESCRIPTION, EXIF_PREFIX, METADATA_KEY, ImageError, PathLike, load_image
from .temporary import temporary_path

_SAVE_OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {}),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".webp": ("WEBP", {"lossless": True, "exact": True}),
    ".tif": ("TIFF", {"compression": "tiff_lzw"}),
    ".tiff": ("TIFF", {"compression": "tiff_lzw"}),
}
SUFFIXES = tuple(_SAVE_OPTIONS)
LOSSY_SUFFIXES = (".jpg", ".jpeg")


def save_image(
    image: Image.Image | torch.Tensor,
    path: PathLike,
    metadata: dict[str, Any] | None = None,
    exif: bytes = b"",
    quality: int | None = None,
) -> None:
    """Write an image so that `path` holds the whole file or is left as it was.

    The file is written under a temporary name in the same folder, flushed to disk and renamed: a link of the name is
    replaced, not followed. What a killed process leaves behind, `remove_abandoned` removes. The suffix sets the format:
    PNG, TIFF and WebP are lossless, JPEG has quality 95 without chroma subsampling and no alpha.

    Args:
        image: A PIL image, or a float tensor [3, H, W] in [0, 1].
        path: `.png`, `.jpg`, `.jpeg`, `.webp`, `.tif` or `.tiff`, in a folder that exists.
        metadata: Settings to keep in the file as JSON (arrays as lists, what JSON lacks as str): in a PNG's
            text chunk "hvae-sr", elsewhere in the EXIF or TIFF tag ImageDescription. See `read_metadata`.
        exif: EXIF to keep beside them, as in `Photo.exif`.
        quality: Of a JPEG, or of a WebP that may lose, 1 to 100; others ignore it.

    Raises:
        ImageError: Unknown suffix.
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
    if len(tags):
        options["exif"] = tags
    temporary = temporary_path(path)
    try:
        with open(temporary, "x+b") as file:
            image.save(file, format=file_format, **options)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
