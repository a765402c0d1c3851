"""What is raised for images that cannot be used."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Union

from PIL import UnidentifiedImageError

PathLike = Union[str, "os.PathLike[str]"]


class ImageError(ValueError):
    """An image file or array that cannot be used; the message is one line and names the file or argument."""


@contextlib.contextmanager
def image_errors(name: PathLike) -> Iterator[None]:
    """Turn what Pillow raises on damaged files (nearly every type) into an ImageError of one line."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, ImageError):  # of an image that has a better name here
            reason = reason.removeprefix("image: ")
        elif isinstance(error, UnidentifiedImageError):
            reason = "not an image, or of an unknown format"
        elif isinstance(error, AssertionError) or reason.startswith("'NoneType' object"):  # Pillow's: its file is None
            reason = "its file was closed before its pixels were read"
        elif isinstance(error, OSError) and error.strerror:
            reason = error.strerror
        raise ImageError(f"{os.fspath(name)}: {reason}") from error
