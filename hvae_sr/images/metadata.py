"""What a file says beside its pixels: EXIF, resolution, and the settings that made a result."""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image

from .tiff import POINTERS

logger = logging.getLogger(__name__)

METADATA_KEY = "hvae-sr"
EXIF_DESCRIPTION = 0x010E  # the EXIF and TIFF tag ImageDescription
EXIF_PREFIX = f"{METADATA_KEY}: "
MAX_METADATA = 2**20
"""Characters of settings that are read from a file."""

LONGEST_EXIF = 65533 - 6
"""Bytes of EXIF that a JPEG takes: a segment without its length and the word "Exif"."""
_MAKER_NOTE = 0x927C
ORIENTATION = ExifTags.Base.Orientation
_X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT = 282, 283, 296
_CENTIMETRE = 3
# EXIF among the tags of a TIFF: caption, make, model, resolution, software, dates, people, ratings, and the pointers to
# exposure and place. Others tell how its own pixels are stored, or are private and of any size.
TIFF_EXIF = {270, 271, 272, 282, 283, 296, 305, 306, 315, 316, 18246, 18249, 33432, *range(40091, 40096), *POINTERS}


_told: deque[tuple[str, bytes]] = deque(maxlen=16)
"""What was said, and of which photographs' EXIF: of each once."""


def kept_exif(found: Image.Exif, of_tiff: bool) -> bytes:
    """EXIF as `Photo` has it."""
    with contextlib.suppress(Exception):  # unreadable EXIF is not passed on
        kept = Image.Exif()
        kept.endian = found.endian
        for tag in found:
            if tag in TIFF_EXIF or (not of_tiff and tag != ORIENTATION):
                value = dict(found.get_ifd(tag)) if tag in POINTERS else found[tag]
                if value != {}:
                    kept[tag] = value
        if ExifTags.IFD.Interop in kept.get(ExifTags.IFD.Exif, ()):
            kept[ExifTags.IFD.Exif][ExifTags.IFD.Interop] = found.get_ifd(ExifTags.IFD.Interop)
        as_stored(kept)
        _leave_out_damaged(kept)
        return kept.tobytes() if len(kept) else b""
    return b""


def _leave_out_damaged(tags: Image.Exif) -> None:
    """Takes out what cannot be written, such as a number that a file holds as text: with it, all would be lost."""
    if _can_be_written(tags):
        return
    for tag in list(tags):
        one = Image.Exif()
        one[tag] = tags[tag]
        if not _can_be_written(one):
            del tags[tag]


def _can_be_written(tags: Image.Exif) -> bool:
    with contextlib.suppress(Exception):  # of many types: what Pillow's writers raise for values of the wrong one
        tags.tobytes()
        return True
    return False


def as_stored(tags: Image.Exif) -> None:
    """Texts that are not ASCII as the bytes that a file had: Pillow reads them as Latin-1, and would write "?"."""
    parts = [tags[tag] if isinstance(tags[tag], dict) else tags.get_ifd(tag) for tag in POINTERS if tag in tags]
    for found in (tags, *parts):
        for tag, value in dict(found).items():
            if isinstance(value, str) and not value.isascii():
                with contextlib.suppress(UnicodeEncodeError):
                    found[tag] = value.encode("latin-1")


def add_settings(tags: Image.Exif, settings: str) -> None:
    """Puts settings into ImageDescription, on a line of their own after a photograph's caption."""
    caption = tags.get(EXIF_DESCRIPTION, "")
    caption = caption.decode("latin-1") if isinstance(caption, bytes) else str(caption)
    caption = caption.partition(EXIF_PREFIX)[0].rstrip()  # without the settings of an input that was itself a result
    tags[EXIF_DESCRIPTION] = (f"{caption}\n" if caption else "") + EXIF_PREFIX + settings


def orientation(exif: Mapping[int, Any]) -> int:
    """How the stored image is to be turned, 1 to 8 as in EXIF; 1 is upright."""
    with contextlib.suppress(Exception):  # unreadable EXIF says nothing about the pixels
        value = exif.get(ORIENTATION, 1)
        return value if value in range(1, 9) else 1
    return 1


def upright(size: tuple[int, int], turn: int) -> tuple[int, int]:
    """Width and height of a picture stored as `size` once it is turned as `orientation` tells."""
    return size[::-1] if turn in (5, 6, 7, 8) else size


def resolution(info: dict[str, Any], exif: Image.Exif) -> tuple[float, float] | None:
    """Dots per inch, horizontally and vertically as stored; None where nothing tells, or in no unit."""
    with contextlib.suppress(Exception):  # unreadable EXIF, or a division by zero
        found = info.get("dpi")
        if found == (72, 72) and _X_RESOLUTION not in exif and info.get("jfif_unit") not in (1, 2):
            return None  # Pillow's guess for a JPEG that does not tell
        unit = exif.get(_RESOLUTION_UNIT, 2)
        if found is None and unit != 1:
            found = [float(exif[tag]) * (2.54 if unit == _CENTIMETRE else 1) for tag in (_X_RESOLUTION, _Y_RESOLUTION)]
        x, y = (float(value) for value in found or ())
        return (x, y) if 1 < min(x, y) and max(x, y) < 1e6 else None
    return None


def describe(tags: Image.Exif, size: tuple[int, int], dpi: tuple[float, float] | None) -> None:
    """Has EXIF tell the size and the resolution of a result instead of its input's."""
    tags.pop(ExifTags.Base.ImageWidth, None)
    tags.pop(ExifTags.Base.ImageLength, None)
    exposure = tags.get_ifd(ExifTags.IFD.Exif)
    for tag, side in zip((ExifTags.Base.ExifImageWidth, ExifTags.Base.ExifImageHeight), size, strict=True):
        if tag in exposure:
            exposure[tag] = side
    if dpi is not None:
        tags[_X_RESOLUTION], tags[_Y_RESOLUTION], tags[_RESOLUTION_UNIT] = *dpi, 2


def fit_into_jpeg(tags: Image.Exif, exif: bytes, path: Path) -> Image.Exif:
    """What is left, of `tags`, without what a JPEG has no room for: the maker's notes, and then all of `exif`.

    A warning names the `path` of the first JPEG alone: a photograph's samples are many.
    """
    tags.get_ifd(ExifTags.IFD.Exif).pop(_MAKER_NOTE, None)
    what = "the maker's notes of a photograph's EXIF"
    if len(tags.tobytes()) > LONGEST_EXIF:
        settings = str(tags.get(EXIF_DESCRIPTION, "")).partition(EXIF_PREFIX)[2]
        tags = Image.Exif()  # not `clear`, after which Pillow 11 still writes the sub-directories
        if settings:
            add_settings(tags, settings)
        what = "a photograph's EXIF"
    if (what, exif) not in _told:
        _told.append((what, exif))
        logger.warning("%s: %s are left out: %d bytes, of which a JPEG has room for 64 kB", path, what, len(exif))
    return tags
