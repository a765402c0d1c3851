"""Crops of a set of images that can be addressed: files in folders here, rows of a table in `datasets`."""

from __future__ import annotations

import itertools
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from ..checks import check_count
from ..images import ImageError, PathLike, find_images, image_size, load_image
from .augmentation import DEFAULT_SCALES, Augmentation, draw, resize

logger = logging.getLogger("hvae_sr.data")

NAMES_LOGGED = 20
_T = TypeVar("_T")
Degrader = Callable[[torch.Tensor, int], torch.Tensor]
"""(crop [3, H, W] uint8, its number) -> its LR image; must be picklable, and a function of the two alone."""
_Source = Any
"""What `load_image` takes: a path, the bytes of a file, or an image."""


class ImageCrops(Dataset[dict[str, torch.Tensor]]):
    """Random square crops of images that can be addressed by number.

    Item i is a function of (seed, epoch, i) alone: its random numbers come from
    `SeedSequence([seed, epoch, i])`, so it depends neither on the worker, the process and the order, nor on
    the cache. Item i shows image i mod n, where n is the number of usable images: at one of the scales at
    which both sides hold a crop, at a uniform position, mirrored and turned as asked.

    At the start the headers of all images are read. Those that are damaged, or too small at every scale, are
    left out with one warning that counts and names them (`skipped` has all of them, with reasons). Every mode
    and format is converted by `hvae_sr.images.load_image`. An image with a good header and a bad body is
    logged once (per process), and the next image is shown in its place.

    If the decoded images with their resized copies take at most `cache_bytes`, all are decoded at the start
    and kept in one array; else each item decodes its image. The items are the same.

    Args:
        count: Number of images, usable or not.
        where: The argument that named them and its value, for messages.
        augmentation: Size, scales, mirrors and turns of the crops.
        seed: Seed of the augmentation, not negative.
        crops_per_image: Crops of every image in an epoch; the length is n times this.
        cache_bytes: Limit of the cache in bytes; 0 turns it off.
        factor: Sides of the images over those of the LR images, for a source that has `low_source`; else 1.

    Raises:
        ValueError: An argument is out of range, or there is no usable image.
    """

    def __init__(
        self,
        count: int,
        where: str,
        augmentation: Augmentation,
        seed: int = 0,
        crops_per_image: int = 1,
        cache_bytes: int = 2 * 2**30,
        factor: int = 1,
    ) -> None:
        check_count("crops_per_image", crops_per_image, 1)
        check_count("seed", seed, 0)
        check_count("factor", factor, 1)
        if not isinstance(cache_bytes, (int, float)) or not cache_bytes >= 0:
            raise ValueError(f"`cache_bytes` must be at least 0, got {cache_bytes!r}")
        self.augmentation = augmentation
        self.seed = seed
        self.crops_per_image = crops_per_image
        self.factor = factor
        self.degrade: Degrader | None = None  # makes "low" of a crop and its number, in the workers
        self.skipped: dict[Any, str] = {}  # name -> reason
        self._where = where
        # In shared memory, so that persistent workers see a new epoch too.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._undecodable: set[int] = set()
        self._buffer: torch.Tensor | None = None  # one tensor: workers that are spawned share it as one file
        self._starts: list[int] = []  # of the pictures of each image in the buffer
        self._usable: list[int] = []  # image -> number of its source
        self._sizes: list[tuple[int, int]] = []  # (width, height)
        self._scan(count)
        self._fill_cache(cache_bytes)

    def source(self, number: int) -> _Source:
        """Source `number`, as `load_image` takes it."""
        raise NotImplementedError

    def low_source(self, number: int) -> _Source:
        """The LR image that belongs to source `number`, or None where LR images are not given.

        Raises:
            ImageError: It has none.
        """
        return None

    def name(self, number: int) -> Any:
        """What source `number` is called in messages."""
        raise NotImplementedError

    def __len__(self) -> int:
        """Number of crops in an epoch."""
        return self.num_images * self.crops_per_image

    @property
    def num_images(self) -> int:
        """Number of usable images."""
        return len(self._usable)

    @property
    def epoch(self) -> int:
        """The epoch that the next items belong to."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, in this process and in the workers that share this dataset.

        Raises:
            ValueError: `epoch` is negative.
        """
        if epoch < 0:
            raise ValueError(f"epoch must not be negative, got {epoch}")
        self._epoch.fill_(epoch)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Return {"image": uint8 tensor [3, crop_size, crop_size]}, and "low" where LR images are given or made.

        Raises:
            IndexError: `index` is not in 0..len - 1.
            ValueError: No image can be decoded.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"index must lie in 0..{len(self) - 1}, got {index}")
        draws = draw(self.seed, self.epoch, index)
        pictures = self._pictures(index % self.num_images, float(draws[0]))
        crop = self.augmentation.crop(pictures[0], draws, pictures[1] if self.factor > 1 else None, self.factor)
        if self.degrade is not None:
            crop["low"] = self.degrade(crop["image"], (self.epoch << 32) + index)
        return crop

    def _shapes(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        """The sizes of all pictures that an image of `size` is kept as: its levels, or itself and its LR image."""
        if self.factor == 1:
            return self.augmentation.levels(size)
        return [size, (-(-size[0] // self.factor), -(-size[1] // self.factor))]

    def _pictures(self, image: int, scale: float) -> list[np.ndarray]:
        """One level [h, w, 3] of an image, or of the next that can be decoded, and its LR image if one is given."""
        for candidate in ((image + step) % self.num_images for step in range(self.num_images)):
            decoded = None
            if self._buffer is None and candidate not in self._undecodable:
                decoded = self._decode(candidate)
            if candidate in self._undecodable:
                continue
            shapes = self._shapes(self._sizes[candidate])
            wanted = [int(scale * len(shapes))] if self.factor == 1 else [0, 1]
            if decoded is None:
                kept = self._kept(candidate)
                return [kept[i] for i in wanted]
            return [_resized(decoded, i, shapes[i]) for i in wanted]
        raise ValueError(f"{self._where} holds no image that can be decoded")

    def _kept(self, image: int) -> list[np.ndarray]:
        """The pictures [h, w, 3] of an image in the buffer."""
        assert self._buffer is not None
        place, found = self._starts[image], []
        for width, height in self._shapes(self._sizes[image]):
            found.append(self._buffer[place : place + width * height * 3].view(height, width, 3).numpy())
            place += width * height * 3
        return found

    def _decode(self, image: int) -> list[Image.Image] | None:
        """The image, and its LR image if one is given; None, with one line in the log, if they cannot be decoded."""
        number = self._usable[image]
        try:
            decoded = [load_image(self.source(number))]
            # EXIF orientation may swap the sides; anything else means that the header did not tell the truth.
            if sorted(decoded[0].size) != sorted(self._sizes[image]):
                raise ImageError(f"{self.name(number)}: size {decoded[0].size} is not that of the header")
            if self.factor > 1:
                decoded.append(load_image(self.low_source(number)))
                if decoded[1].size != self._shapes(decoded[0].size)[1]:
                    raise ImageError(f"{self.name(number)}: its LR image has size {decoded[1].size} once upright")
            self._sizes[image] = decoded[0].size
            return decoded
        except Exception as error:  # Pillow's readers raise nearly every type on damaged files
            self._undecodable.add(image)
            text = "Another image takes the place of one that cannot be decoded: %s: %s"
            logger.warning(text, self.name(number), self._reason(error, number))
            return None

    def _scan(self, count: int) -> None:
        """Read the headers of all images."""
        for number, header in enumerate(_mapped(self._header, count, "Reading image headers")):
            if isinstance(header, str):
                self.skipped[self.name(number)] = header
            else:
                self._usable.append(number)
                self._sizes.append(header)
        if self.skipped:
            shown = [f"{path} ({reason})" for path, reason in self.skipped.items()][:NAMES_LOGGED]
            more = len(self.skipped) - len(shown)
            text = "; ".join(shown) + (f"; and {more} more" if more else "")
            logger.warning("%d of %d image files are skipped: %s", len(self.skipped), count, text)
        if not self._usable:
            raise ValueError(
                f"{self._where} holds no usable image: {count} image files found, none is readable with both sides of "
                f"at least crop_size={self.augmentation.crop_size} pixels"
                + (f" (the first: {next(iter(self.skipped.values()))})" if self.skipped else "")
            )

    def _header(self, number: int) -> tuple[int, int] | str:
        """(width, height), or why the image cannot be used."""
        try:
            size = image_size(self.source(number))
            if not self.augmentation.levels(size):
                return f"{size[0]}x{size[1]} is smaller than crop_size={self.augmentation.crop_size}"
            if self.factor > 1:
                found, expected = image_size(self.low_source(number)), self._shapes(size)[1]
                if sorted(found) != sorted(expected):  # one of them may lie on its side
                    return f"its LR image is {found[0]}x{found[1]}, not {expected[0]}x{expected[1]}"
            return size
        except Exception as error:  # as in `_decode`
            return self._reason(error, number)

    def _reason(self, error: Exception, number: int) -> str:
        """What is wrong with source `number`, in one line and without its name."""
        text = str(error) if isinstance(error, ImageError) else one_line(error)
        return text.removeprefix(f"{self.name(number)}: ").removeprefix("image: ")

    def _fill_cache(self, cache_bytes: int) -> None:
        """Decode everything into one buffer, if it fits."""
        bytes_of = [sum(width * height * 3 for width, height in self._shapes(size)) for size in self._sizes]
        count, total = self.num_images, sum(bytes_of)
        if total > cache_bytes:
            logger.info(
                "%d images need %d bytes of cache, the limit is %d: each crop decodes its file",
                count, total, cache_bytes,
            )  # fmt: skip
            return
        self._starts = list(itertools.accumulate(bytes_of, initial=0))
        self._buffer = torch.empty(total, dtype=torch.uint8)

        def fill(image: int) -> None:
            if (decoded := self._decode(image)) is not None:
                for i, picture in enumerate(self._kept(image)):
                    picture[:] = _resized(decoded, i, picture.shape[1::-1])

        for _ in _mapped(fill, count, "Decoding images"):
            pass
        if len(self._undecodable) == count:
            raise ValueError(f"{self._where} holds no image that can be decoded")


class ImageFolder(ImageCrops):
    """Random square crops of all images below one or several folders; see `ImageCrops`.

    Args:
        train_data_dir: A folder or several; nested folders are searched.
        crop_size: Side of the crops in pixels.
        seed, crops_per_image, cache_bytes: See `ImageCrops`.
        horizontal_flip, vertical_flip, rotate, scales: See `Augmentation`.
        train_lr_dir: Folders of ready-made LR images, one for each of `train_data_dir`, or none. The LR image of
            a/b.png is a/b.png, or a file of that name and another format if there is one alone and no other HR image of
            that name, or likewise a/bx4.png for a scale of 4 (as in DIV2K); its sides must be
            ceil(side / scale_factor). HR images are then not resized (scales = 1).
        scale_factor: Sides of the images over those of the LR images.
        leave_out: Folders whose images are not used, such as a run's output inside the photographs' folder.

    Raises:
        ValueError: An argument is out of range, or there is no usable image in `train_data_dir`.
    """

    def __init__(
        self,
        train_data_dir: PathLike | Sequence[PathLike],
        crop_size: int = 64,
        *,
        seed: int = 0,
        horizontal_flip: bool = True,
        vertical_flip: bool = False,
        rotate: bool = False,
        scales: Sequence[float] = DEFAULT_SCALES,
        crops_per_image: int = 1,
        cache_bytes: int = 2 * 2**30,
        train_lr_dir: PathLike | Sequence[PathLike] = (),
        scale_factor: int = 4,
        leave_out: Sequence[PathLike] = (),
    ) -> None:
        folders, low_folders = _folders("train_data_dir", train_data_dir), _folders("train_lr_dir", train_lr_dir)
        if low_folders and len(low_folders) != len(folders):
            raise ValueError(f"train_lr_dir must name one folder for each of train_data_dir, got {len(low_folders)}")
        check_count("crop_size", crop_size, 1)
        check_count("scale_factor", scale_factor, 1)
        if low_folders and crop_size % scale_factor:
            raise ValueError(f"crop_size must be a multiple of scale_factor={scale_factor}, got {crop_size}")
        self._files: list[Path] = []
        self._low_files: list[Path | str] = []  # or why there is none
        for i, folder in enumerate(folders):
            seen = {os.path.realpath(file) for file in self._files}
            files = [file for file in find_images(folder, True, leave_out) if os.path.realpath(file) not in seen]
            self._files += files
            if low_folders:
                low = {file.relative_to(low_folders[i]): file for file in find_images(low_folders[i], True, leave_out)}
                self._low_files += _pair([file.relative_to(folder) for file in files], low, scale_factor)
        augmentation = Augmentation(
            crop_size, horizontal_flip, vertical_flip, rotate, (1.0,) if low_folders else tuple(scales)
        )
        given = [str(folder) for folder in folders]
        where = f"train_data_dir {given[0] if len(given) == 1 else given!r}"
        factor = scale_factor if low_folders else 1
        super().__init__(len(self._files), where, augmentation, seed, crops_per_image, cache_bytes, factor)

    @property
    def paths(self) -> list[Path]:
        """The usable files; image i is the i-th."""
        return [self._files[number] for number in self._usable]

    def source(self, number: int) -> _Source:
        return self._files[number]

    def low_source(self, number: int) -> _Source:
        found = self._low_files[number] if self._low_files else None
        if isinstance(found, str):
            raise ImageError(found)
        return found

    def name(self, number: int) -> Path:
        return self._files[number]


def _resized(decoded: list[Image.Image], number: int, size: tuple[int, int]) -> np.ndarray:
    """Picture `number` of an image: one of its levels, or itself and then its LR image."""
    return np.asarray(resize(decoded[min(number, len(decoded) - 1)], size))


def _folders(argument: str, given: PathLike | Sequence[PathLike]) -> list[Path]:
    folders = [Path(folder) for folder in ([given] if isinstance(given, (str, os.PathLike)) else given)]
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{argument} {str(folder)!r} is not a folder")
    return folders


def _pair(names: Sequence[Path], low: Mapping[Path, Path], scale_factor: int) -> list[Path | str]:
    """The LR image of each name: that of its own suffix, else the only one for the only name; or why there is none.

    Args:
        names: Of HR images, relative to their folder.
        low: LR images by such names.
        scale_factor: See `ImageFolder`.
    """
    by_stem: dict[Path, list[Path]] = {}
    for each in low:
        by_stem.setdefault(each.with_suffix(""), []).append(each)
    stems = Counter(name.with_suffix("") for name in names)
    found: list[Path | str] = []
    for name in names:
        stem = name.with_suffix("")
        fitting = by_stem.get(stem) or by_stem.get(stem.with_name(f"{stem.name}x{scale_factor}"), [])
        own = [each for each in fitting if each.suffix == name.suffix]
        if own or len(fitting) == stems[stem] == 1:
            found.append(low[(own or fitting)[0]])
        elif fitting:
            given = " and ".join(each.name for each in fitting)
            found.append(f"{given} may be of another {stem.name}; name them alike")
        else:
            found.append("no LR image belongs to it")
    return found


def one_line(error: BaseException) -> str:
    """The type and the message of an error, without its line breaks."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def _mapped(function: Callable[[int], _T], count: int, description: str) -> Iterator[_T]:
    """`function` of 0..count - 1, by several threads; a progress bar shows itself only when it is waited for."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        yield from tqdm(pool.map(function, range(count)), total=count, desc=description, delay=2.0, leave=False)
