"""Image files of any kind to upright 8-bit RGB, and what comes with the colours: alpha, profile, EXIF."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Union

import numpy as np
import torch
from PIL import ExifTags, Image, ImageCms, ImageOps, UnidentifiedImageError
from scipy import ndimage

PathLike = Union[str, "os.PathLike[str]"]
ImageInput = PathLike | Image.Image | np.ndarray | torch.Tensor

MAX_PIXELS = 2**27
"""Pixels that are read of one image: 134 megapixels. Four times the sides of more would not be held anywhere."""

METADATA_KEY = "hvae-sr"
EXIF_DESCRIPTION = 0x010E  # the EXIF and TIFF tag ImageDescription
EXIF_PREFIX = f"{METADATA_KEY}: "
MAX_METADATA = 2**20
"""Characters of settings that are read from a file."""

# Formats that are decoded by code of their own. Pillow knows others: EPS, for one, runs a program on the file.
_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "DIB", "AVIF", "GIF", "PPM", "JPEG2000")
# Pixels that a byte of the file can hold at the most: LZW codes of 4096 pixels, Huffman codes of one bit for 64.
_PIXELS_PER_BYTE = {"GIF": 2731, "JPEG": 512, "MPO": 512}
_BITS = {"RGB": 24, "RGBA": 32, "CMYK": 32, "F": 32, "LA": 16, "I;16": 12, "I": 16}  # a pixel; others: 1 or more
# Bytes that a byte of the file can stand for.
_RATIOS = {"raw": 1, "packbits": 64, "tiff_lzw": 2731, "tiff_adobe_deflate": 1032, "deflate": 1032, "PNG": 1032}
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_GREY_MODES = ("1", "L", "LA", "La", "F")
_ICC_PROFILE, _BITS_PER_SAMPLE = 34675, 258  # TIFF tags
_POINTERS = (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)
# EXIF among the tags of a TIFF: caption, make, model, resolution, software, dates, people, ratings, and the pointers to
# exposure and place. Others tell how its own pixels are stored, or are private and of any size.
_TIFF_EXIF = {270, 271, 272, 282, 283, 296, 305, 306, 315, 316, 18246, 18249, 33432, *range(40091, 40096), *_POINTERS}


class ImageError(ValueError):
    """An image file or array that cannot be used; the message is one line and names the file or argument."""


@dataclass(frozen=True)
class Photo:
    """One image, upright, with what is written beside its colours.

    Args:
        image: mode RGB. Under transparent pixels stand the colours of the nearest visible ones.
        alpha: mode L, of the same size; None where the file has no transparency.
        grey: whether the file holds one channel of colour.
        icc_profile: the profile of the colours, RGB or grey; empty where there is none, or where the colours were
            converted (CMYK).
        exif: EXIF without the orientation, which is applied, as Pillow writes it; empty where there is none. Of a
            TIFF, what it shares with EXIF and not what it says of its own pixels.
    """

    image: Image.Image
    alpha: Image.Image | None = None
    grey: bool = False
    icc_profile: bytes = b""
    exif: bytes = b""

    def finish(self, colours: Image.Image, keep_grey: bool = False) -> Image.Image:
        """An image made from this one, `colours` (RGB, of any size), with its alpha and profile.

        Alpha is resized by bicubic interpolation, apart from the colours.

        Args:
            colours: of the result.
            keep_grey: whether a grey photograph gives one channel (and its grey profile, if any); else RGB.
        """
        grey = self.grey and keep_grey
        finished = colours.convert("L") if grey else colours
        if self.alpha is not None:
            alpha = self.alpha.resize(colours.size, Image.Resampling.BICUBIC)
            finished = finished.convert("LA" if grey else "RGBA")
            finished.putalpha(alpha)
        speaks = self.icc_profile[16:20] == (b"GRAY" if grey else b"RGB ")
        finished.info = {"icc_profile": self.icc_profile} if speaks else {}
        return finished


def load_image(source: PathLike | Image.Image) -> Image.Image:
    """Read an image as 8-bit RGB, upright.

    The EXIF orientation is applied, and only the first frame of an animation is read. Modes are converted so:

    - grey, palette, 1 bit: the RGB colours they stand for;
    - alpha (LA, RGBA, palette with transparency): dropped. The colours are those stored, not composited on a
      background; premultiplied colours are first divided by alpha;
    - CMYK: through the embedded ICC profile where there is one, else by Pillow's formula;
    - 16-bit grey: round(v / 257). (Pillow itself reads 16-bit *colour* files as their high bytes.)
    - 32-bit integers: as 8 bit where no value exceeds 255, else as 16 bit, clipped; values that need more than
      17 bits are refused;
    - float: scaled by 255 where no value exceeds 1, else clipped to [0, 255] and rounded.

    Args:
        source: A path, or a PIL image (left as it is; a new image is returned).

    Returns:
        A PIL image of mode RGB. An RGB ICC profile is kept in `info["icc_profile"]`, as `save_image` expects.

    Raises:
        ImageError: The file is missing, empty, damaged, truncated, no image, or too large (Pillow's limit
            against decompression bombs, and `MAX_PIXELS`).
    """
    with _opened(source) as image:
        upright, profile = _upright(image)
        rgb = _to_rgb(upright, profile)
        rgb = rgb.copy() if rgb is image else rgb
        # Orientation, transparency and the like no longer hold; the profile does if it speaks of RGB values.
        rgb.info = {"icc_profile": profile} if profile[16:20] == b"RGB " else {}
        return rgb


def read_photo(source: PathLike | Image.Image, frame: int | None = None) -> Photo:
    """Read an image with its alpha, profile and EXIF; the colours as `load_image` does.

    Args:
        source: A path, or a PIL image (left as it is).
        frame: Of an animation, counted from 0; None takes the first, or the one a PIL image stands at.

    Raises:
        ImageError: As `load_image`; or there is no such frame.
    """
    with _opened(source) as image:
        if frame is not None:
            image.seek(frame)
            _check_size(image)
        # Pillow has no mode for 16-bit grey with alpha, and reads it as RGBA.
        wide_grey = any("LA;16B" in tile for tile in getattr(image, "tile", ()))
        upright, profile = _upright(image)
        exif = _exif(image)
        alpha = _alpha(upright)
        rgb = _to_rgb(upright, profile)
        rgb = rgb.copy() if rgb is image else rgb
        rgb.info = {}
        grey = upright.mode in _GREY_MODES or upright.mode.startswith("I") or wide_grey
        wanted = (b"GRAY", b"RGB ") if grey else (b"RGB ",)
        if alpha is not None:
            rgb = _fill_transparent(rgb, alpha)
        return Photo(rgb, alpha, grey, profile if profile[16:20] in wanted else b"", exif)


def count_frames(source: PathLike) -> int:
    """The frames of an animation; 1 for other images.

    Raises:
        ImageError: As `load_image`.
    """
    with _opened(source) as image:
        return int(getattr(image, "n_frames", 1))


def read_metadata(path: PathLike) -> dict[str, Any]:
    """Return what `save_image` wrote as metadata, or {} where there is none.

    Raises:
        ImageError: The file is missing or no image, or the metadata is damaged.
    """
    with _opened(path) as image:
        text = image.info.get(METADATA_KEY)
        if text is None:
            before, prefix, text = str(image.getexif().get(EXIF_DESCRIPTION)).partition(EXIF_PREFIX)
            if before or not prefix:
                return {}
        if len(text) > MAX_METADATA:
            raise ValueError(f"the settings take {len(text)} characters")
        found = json.loads(text)
        if not isinstance(found, dict):
            raise ValueError("the settings are not a JSON object")
        return found


@contextlib.contextmanager
def image_errors(name: PathLike) -> Iterator[None]:
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


@contextlib.contextmanager
def _opened(source: PathLike | Image.Image) -> Iterator[Image.Image]:
    """The image, checked by what its header says; every failure until the end of the block is an ImageError."""
    if isinstance(source, Image.Image):
        with image_errors("image"):
            _check_size(source)
            yield source
        return
    if not isinstance(source, (str, os.PathLike)):
        raise ImageError(f"image must be a path or a PIL image, got {type(source).__name__}")
    with image_errors(source), _open(source) as image:
        _check_size(image)
        _check_plausible(image, os.path.getsize(source))
        yield image


def open_file(path: PathLike) -> io.BufferedReader:
    """A file opened for reading.

    Raises:
        ImageError: it cannot be opened, or is a pipe or a device, which could be waited for or read for ever.
    """
    with image_errors(path):
        _check_regular(path)
        return open(path, "rb")


def _check_regular(path: PathLike) -> None:
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        raise ValueError("not a regular file")


def _open(path: PathLike) -> Image.Image:
    _check_regular(path)
    try:
        return Image.open(path, formats=_FORMATS)
    except UnidentifiedImageError:
        with open(path, "rb") as file:
            if file.read(4) not in _TIFF_MAGIC:
                raise
            return _open_float_tiff(file)


def _open_float_tiff(file: io.BufferedReader) -> Image.Image:
    """A TIFF of several float or 16-bit channels, which Pillow does not know, as 8-bit RGB or RGBA with its tags."""
    import tifffile

    file.seek(0)
    with tifffile.TiffFile(file) as tiff:
        page = tiff.pages[0]
        shape, kind = tuple(page.shape), page.dtype
        if len(shape) != 3 or shape[2] not in (3, 4) or kind is None or kind.kind not in "fu" or kind.itemsize > 8:
            raise ValueError(f"a TIFF of shape {shape} and type {kind} is not read")
        if shape[0] * shape[1] > MAX_PIXELS // 4:
            raise ValueError(f"{shape[1]}x{shape[0]} pixels of several floats are more than are read")
        values = page.asarray()
        image = Image.fromarray(_levels(values, 255.0 if kind.kind == "f" else 255 / np.iinfo(kind).max))
        image.format = "TIFF"
        with contextlib.suppress(Exception):  # unreadable EXIF says nothing about the pixels
            exif = image.getexif()
            exif.bigtiff, exif.endian = tiff.is_bigtiff, tiff.byteorder
            exif.load_from_fp(file, page.offset)
            image.info["icc_profile"] = exif.get(_ICC_PROFILE)
            for tag in _POINTERS:
                exif.get_ifd(tag)  # while the file is open
    return image


def _levels(values: np.ndarray, scale: float) -> np.ndarray:
    """Floats or integers to uint8. Floats are scaled where none exceeds 1; NaN is refused."""
    floats = values.astype(np.float32)
    if not np.isfinite(floats).all():
        raise ValueError("the image holds NaN or infinite values")
    if values.dtype.kind != "f" or floats.max() <= 1:
        floats *= scale
    return np.rint(floats, out=floats).clip(0, 255).astype(np.uint8)


def _check_size(image: Image.Image) -> None:
    width, height = image.size
    if min(image.size) < 1:
        raise ValueError(f"the image has no pixels: size {image.size}")
    if width * height > MAX_PIXELS:
        limit = MAX_PIXELS / 1e6
        raise ValueError(f"{width}x{height} pixels are more than the {limit:.0f} megapixels that are read")


def _check_plausible(image: Image.Image, size: int) -> None:
    """Raises a ValueError where a header promises more pixels than the file can hold, before memory is taken."""
    pixels = image.width * image.height
    most = _PIXELS_PER_BYTE.get(image.format or "", 0) * size
    ratio = _RATIOS.get("PNG" if image.format == "PNG" else str(image.info.get("compression")), 0)
    if image.format in ("PNG", "TIFF"):
        most = size * ratio * 8 // _BITS.get(image.mode, 1)
    if most and pixels > max(most, 2**16):
        raise ValueError(f"truncated or damaged: {image.width}x{image.height} pixels cannot be in {size} bytes")


def _upright(image: Image.Image) -> tuple[Image.Image, bytes]:
    """The decoded image with its EXIF orientation applied, and its ICC profile."""
    image.load()
    profile = image.info.get("icc_profile") or b""
    has_12_bits = image.mode.startswith("I;16") and getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE) == (12,)
    with contextlib.suppress(Exception):  # unreadable EXIF says nothing about the pixels
        image = ImageOps.exif_transpose(image)
    if has_12_bits:  # which Pillow leaves in the range of 12
        levels = np.asarray(image).astype(np.uint16)
        image = Image.fromarray(levels << 4 | levels >> 8)
    return image, profile


def _exif(image: Image.Image) -> bytes:
    """EXIF of a decoded image, as `Photo` has it."""
    with contextlib.suppress(Exception):  # unreadable EXIF is not passed on
        found, kept = image.getexif(), Image.Exif()
        kept.endian = found.endian
        for tag in found:
            if tag in _TIFF_EXIF or (image.format != "TIFF" and tag != ExifTags.Base.Orientation):
                value = dict(found.get_ifd(tag)) if tag in _POINTERS else found[tag]
                if value != {}:
                    kept[tag] = value
        if ExifTags.IFD.Interop in kept.get(ExifTags.IFD.Exif, ()):
            kept[ExifTags.IFD.Exif][ExifTags.IFD.Interop] = found.get_ifd(ExifTags.IFD.Interop)
        return kept.tobytes() if len(kept) else b""
    return b""


def _to_rgb(image: Image.Image, profile: bytes) -> Image.Image:
    mode = image.mode
    if mode.startswith("I"):
        integers = np.asarray(image)
        if max(int(integers.max()), -int(integers.min())) >= 2**17:  # unsigned ones beyond 2^31 have become negative
            raise ValueError("32-bit integers beyond the range of 16 bits are not read")
        if mode != "I" or integers.max() > 255:
            wide = integers.clip(0, 65535).astype(np.uint32)
            wide += 128
            wide //= 257
            integers = wide
        image = Image.fromarray(integers.clip(0, 255).astype(np.uint8))
    elif mode == "F":
        image = Image.fromarray(_levels(np.asarray(image), 255.0))
    elif mode == "CMYK" and profile:
        with contextlib.suppress(Exception):  # an unusable profile, or Pillow without LittleCMS
            source, target = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
            image = ImageCms.profileToProfile(image, source, target, outputMode="RGB") or image
    elif mode in ("P", "PA", "RGBa", "La"):
        image = image.convert("LA" if mode == "La" else "RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


def _alpha(image: Image.Image) -> Image.Image | None:
    """Mode L, or None where the image has no transparency."""
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        return image.getchannel("A" if image.mode in ("RGBA", "LA", "PA") else image.getbands()[-1])
    key = image.info.get("transparency")
    if image.mode in ("1", "L", "P") and key is not None:
        return image.convert("RGBA").getchannel("A")
    if image.mode.startswith("I") and isinstance(key, int):
        return _visible(np.asarray(image) != key)
    if image.mode == "RGB" and isinstance(key, tuple):
        # Of 16-bit colours Pillow reads the high bytes, but the whole of the transparent one.
        key = [value >> 8 for value in key] if max(key) > 255 else key
        return _visible((np.asarray(image) != np.array(key)).any(axis=-1))
    return None


def _visible(mask: np.ndarray) -> Image.Image:
    return Image.fromarray(np.where(mask, np.uint8(255), np.uint8(0)))


def _fill_transparent(rgb: Image.Image, alpha: Image.Image) -> Image.Image:
    """Puts the colour of the nearest visible pixel wherever nothing is seen of the own.

    What is stored there is often black or white, and would bleed across the edge when the colours are upscaled.
    """
    hidden = np.asarray(alpha) == 0
    if not hidden.any() or hidden.all():
        return rgb
    rows, columns = ndimage.distance_transform_edt(hidden, return_distances=False, return_indices=True)
    return Image.fromarray(np.asarray(rgb)[rows, columns])
