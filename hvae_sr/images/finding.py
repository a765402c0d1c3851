"""Image files in folders."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from .errors import ImageError, PathLike

_COMMON = "bmp gif jpe jpeg jpg png tif tiff webp"
_OTHERS = "apng avif dib heic heif hif j2k jfif jp2 jpf jpx mpo pbm pgm pnm ppm"
IMAGE_SUFFIXES = tuple(f".{name}" for name in f"{_COMMON} {_OTHERS}".split())


def _natural_key(path: Path) -> tuple[Any, ...]:
    """Order "img2" before "img10", and keep a folder's content together."""
    parts = (re.split(r"([0-9]+)", part.casefold()) for part in path.parts)
    return *([int(p) if i % 2 else p for i, p in enumerate(part)] for part in parts), [str(path)]


def find_images(
    paths: PathLike | Iterable[PathLike], recursive: bool = False, leave_out: Iterable[PathLike] = (),
    errors: list[Exception] | None = None,
) -> list[Path]:  # fmt: skip
    """List image files: files are taken as given, folders are searched for known suffixes.

    Arguments keep their order, a folder's files are in natural order ("img2" before "img10"), and a file met
    twice is listed once. Folders in folders are searched if `recursive`, also through links; hidden ones and
    hidden files are not, nor are the folders of `leave_out`, such as one that results go to. Raises ImageError for a
    path that does not exist, and for a folder that cannot be listed unless there is a list of `errors` to add it to.
    """
    found: list[Path] = []
    for given in map(Path, [paths] if isinstance(paths, (str, os.PathLike)) else paths):
        try:
            given.stat()
        except OSError as error:
            missing = isinstance(error, (FileNotFoundError, NotADirectoryError))
            raise ImageError(f"{given}: {'no such file or folder' if missing else error.strerror}") from error
        found.extend(
            sorted(_walk(given, recursive, leave_out, errors), key=_natural_key) if given.is_dir() else [given]
        )
    return list(dict.fromkeys(found))


def _walk(
    folder: Path, recursive: bool, leave_out: Iterable[PathLike], errors: list[Exception] | None
) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        found = ImageError(f"{error.filename}: the folder cannot be listed: {error.strerror}")
        if errors is None:
            raise found from error
        errors.append(found)

    left_out = set(map(os.path.realpath, leave_out)) - {os.path.realpath(folder)}
    visited = set(left_out)  # a link may lead back up
    for root, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(root)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        below = [name for name in folders if recursive and not name.startswith(".")]
        folders[:] = [name for name in below if os.path.realpath(os.path.join(root, name)) not in left_out]
        for name in names:
            if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith("."):
                yield Path(root, name)
