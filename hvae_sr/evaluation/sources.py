"""Where the images of an evaluation come from: a folder, a data set of the Hub, or another method's results."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..checks import check_count
from ..files import files_below
from ..images import IMAGE_SUFFIXES, find_images, load_image, open_file, read_metadata
from ..images.errors import image_errors

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class SourceImage:
    """One image of a data set.

    Args:
        name: of the file, or made of its number.
        sha256: of its bytes, shortened: results are kept under name and content.
        load: decodes it, as RGB.
        number: of the image in the data set, from 0, in the order of names.
    """

    name: str
    sha256: str
    load: Callable[[], Image.Image]
    number: int = 0

    @property
    def stem(self) -> str:
        """The name without the suffix of an image file."""
        return _stem(self.name)


@dataclass(frozen=True)
class ImageSource:
    """The images of a data set, in order.

    Args:
        name: of the set.
        images: those of them that are asked for.
        names: of all that there are.
        options: those of `hvae-sr evaluate` that name a data set of the Hub or of parquet files.
    """

    name: str
    images: list[SourceImage]
    names: list[str]
    options: dict[str, str] = field(default_factory=dict)


def _stem(name: str) -> str:
    path = Path(name)
    return path.stem if path.suffix.lower() in IMAGE_SUFFIXES else name


def _digest(data: bytes | Path) -> str:
    """The shortened SHA-256 of bytes, or of a file's."""
    if isinstance(data, Path):
        with open_file(data) as file:
            data = file.read()
    return hashlib.sha256(data).hexdigest()[:16]


def list_images(folder: PathLike, argument: str = "data") -> list[Path]:
    """The image files of a folder, sorted by name; a ValueError that names `argument` if there are none."""
    if not Path(folder).exists():
        raise ValueError(f"`{argument}`: there is no folder {os.fspath(folder)!r}.")
    files = sorted(find_images(folder)) if Path(folder).is_dir() else []
    if not files:
        raise ValueError(f"`{argument}` must be a folder of images, got {os.fspath(folder)!r}.")
    return files


def check_stems(images: Sequence[SourceImage]) -> None:
    """Raises a ValueError if two images have one `stem`, by which files of other methods are known."""
    owners: dict[str, str] = {}
    for image in images:
        if image.stem in owners:
            raise ValueError(f"`data`: {owners[image.stem]} and {image.name} are of the same name; rename one of them.")
        owners[image.stem] = image.name


def open_source(
    data: PathLike, split: str = "test", image_column: str = "image", num_images: int | None = None, every: int = 1
) -> ImageSource:
    """The images of `data`: a folder of image files, or what `datasets.load_dataset` can load, such as a Hub id.

    Args:
        data: a folder of images, one of .parquet files in any depth without images beside them, or "owner/name".
        split: of a data set that `load_dataset` loads.
        image_column: its column of images.
        num_images: only the first so many.
        every: only each so-many-th image, from the first on.

    Raises ValueError: neither (of "folder/name" where such a folder is here: at once, without a look at the Hub), no
    such split or column, no images, or the extra `data` is not installed.
    """
    check_count("num_images", num_images, 1, optional=True)
    check_count("every", every, 1)
    folder = Path(data)
    holds_images = folder.is_dir() and len(find_images(folder)) > 0
    holds_data = folder.is_dir() and not holds_images and any(file.suffix == ".parquet" for file in files_below(folder))
    is_hub_id = not folder.exists() and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", os.fspath(data)) is not None
    if is_hub_id and folder.parent.is_dir():  # rather a typing error, which should not wait for the Hub
        raise ValueError(f"`data`: there is no {folder.name!r} in the folder {os.fspath(folder.parent)!r}.")
    if holds_data or is_hub_id:
        return _open_dataset(data, split, image_column, num_images, every)
    files = list_images(data)
    images = [
        SourceImage(file.name, _digest(file), partial(load_image, file), number)
        for number, file in list(enumerate(files))[::every][:num_images]
    ]
    return ImageSource(folder.resolve().name, images, [file.name for file in files])


def _open_dataset(data: PathLike, split: str, column: str, num_images: int | None, every: int) -> ImageSource:
    from ..data.datasets import open_dataset

    try:
        table, column = open_dataset(os.fspath(data), split=split, image_column=column)
    except ValueError as error:
        raise ValueError(f"`data`: {error}" + ("" if Path(data).exists() else "; nor is it a folder here")) from error
    if not len(table):
        raise ValueError(f"`data`: {os.fspath(data)!r} has no images in its split {split!r}.")

    def read(index: int) -> bytes:
        value = table[index][column]
        if value is None:
            raise ValueError(f"`data`: row {index} of {os.fspath(data)!r} has no image in {column!r}.")
        if value["bytes"] is not None:
            return bytes(value["bytes"])
        with open_file(value["path"]) as file:
            return file.read()

    def load(index: int, name: str) -> Image.Image:
        with image_errors(name):
            return load_image(BytesIO(read(index)))

    names = [f"{split}-{index:06d}" for index in range(len(table))]
    chosen = list(enumerate(names))[::every][:num_images]
    images = [SourceImage(name, _digest(read(i)), partial(load, i, name), i) for i, name in chosen]
    known = Path(data).name if Path(data).exists() else os.fspath(data)  # a folder by its name, as everywhere
    options = {"data": known, "split": split, "image_column": column}
    return ImageSource(Path(data).name, images, names, options)


class Predictions:
    """Images that another method made, `--predictions DIR`: several samples of an image by suffix.

    The samples of ``img_001.png`` are ``img_001.png`` itself, or ``img_001_0.png``, ``img_001-seed7.jpg`` and the
    like: the name, a separator (one of ``_ - . space``) and anything, in the order of their names. A file belongs to
    the longest name in the data set that fits, of an image that is asked for or not. Means and uncertainty maps that
    `hvae-sr upscale` wrote are left out.

    Raises ValueError: not a folder of images, or one with the name of another row, an image without a sample, numbers
    of samples that differ, or images of one name.
    """

    def __init__(self, folder: PathLike, source: ImageSource):
        self.name = Path(folder).resolve().name
        if self.name in ("bicubic", "bicubic projected", "truth"):
            raise ValueError(f"`predictions`: {self.name!r} is taken; rename the folder, which the rows are named by.")
        check_stems(source.images)
        stems = sorted({_stem(name) for name in source.names}, key=len, reverse=True)
        self.files: dict[str, list[Path]] = {image.stem: [] for image in source.images}
        for file in list_images(folder, "predictions"):
            own = (stem for stem in stems if file.stem == stem or file.stem.startswith(tuple(stem + c for c in "_-. ")))
            owner = next(own, None)
            if owner in self.files and "what" not in read_metadata(file):
                self.files[owner].append(file)
        missing = [stem for stem, files in self.files.items() if not files]
        if missing:
            raise ValueError(f"`predictions`: {os.fspath(folder)!r} has no image of {', '.join(sorted(missing)[:5])}.")
        counts = {stem: len(files) for stem, files in self.files.items()}
        self.num_samples = min(counts.values())
        if len(set(counts.values())) > 1:
            least, most = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
            raise ValueError(
                f"`predictions` must hold as many samples of each image, got {counts[least]} of {least!r} and "
                f"{counts[most]} of {most!r}."
            )
        content = "".join(_digest(file) for stem in sorted(self.files) for file in self.files[stem])
        self.sha256 = _digest(content.encode())

    def load(self, image: SourceImage, height: int, width: int) -> NDArray[np.float32]:
        """The samples of an image, ``[N, H, W, 3]`` in [0, 1]; ValueError if a size is not (`height`, `width`)."""
        samples = []
        for file in self.files[image.stem]:
            sample = np.asarray(load_image(file), dtype=np.float32) / 255
            if sample.shape[:2] != (height, width):
                raise ValueError(
                    f"`predictions`: {file.name} must be {width}x{height} pixels, as the protocol's HR image, got "
                    f"{sample.shape[1]}x{sample.shape[0]}."
                )
            samples.append(sample)
        return np.stack(samples)
