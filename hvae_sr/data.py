"""Training data: random crops of a folder of photographs, and the LR images that belong to them."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from .images import ImageError, PathLike, find_images, load_image

logger = logging.getLogger(__name__)

DEFAULT_SCALES = (1.0, 0.75, 0.5, 0.33, 0.25)
_NAMES_LOGGED = 20
_T = TypeVar("_T")


class ImageFolder(Dataset[dict[str, torch.Tensor]]):
    """Random square crops of all images below one or several folders.

    Item i is a function of (seed, epoch, i) alone: its random numbers come from
    `SeedSequence([seed, epoch, i])`, so it depends neither on the worker, the process and the order, nor on
    the cache. Item i shows image i mod n, where n is the number of usable images: at one of the scales at
    which both sides hold a crop, at a uniform position, mirrored and turned as asked.

    At the start the headers of all files are read. Files that are damaged, or too small at every scale, are
    left out with one warning that counts and names them (`skipped` has all of them, with reasons). Every mode
    and format is converted by `hvae_sr.images.load_image`. A file with a good header and a bad body is
    logged once (per process), and the next image is shown in its place.

    If the decoded images with their downsized copies take at most `cache_bytes`, all are decoded at the start
    and kept in one array; else each item decodes its file. The items are the same.

    Args:
        train_data_dir: A folder or several; nested folders are searched.
        crop_size: Side of the crops in pixels.
        seed: Seed of the augmentation, not negative.
        horizontal_flip: Mirror half of the crops left to right.
        vertical_flip: Mirror half of the crops top to bottom.
        rotate: Turn the crops by 0, 90, 180 or 270 degrees with equal probability.
        scales: Factors in (0, 1] by which images are downsized (antialiased bicubic), drawn with equal
            probability among those that leave both sides at `crop_size` or more.
        crops_per_image: Crops of every image in an epoch; the length is n times this.
        cache_bytes: Limit of the cache in bytes; 0 turns it off.

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
    ) -> None:
        if crop_size < 1:
            raise ValueError(f"crop_size must be at least 1, got {crop_size}")
        if crops_per_image < 1:
            raise ValueError(f"crops_per_image must be at least 1, got {crops_per_image}")
        if seed < 0:
            raise ValueError(f"seed must not be negative, got {seed}")
        if not scales or not all(0 < scale <= 1 for scale in scales):
            raise ValueError(f"scales must hold factors in (0, 1], got {scales}")
        self.train_data_dir = train_data_dir
        self.crop_size = crop_size
        self.seed = seed
        self.horizontal_flip = horizontal_flip
        self.vertical_flip = vertical_flip
        self.rotate = rotate
        self.scales = tuple(scales)
        self.crops_per_image = crops_per_image
        self.skipped: dict[Path, str] = {}  # file -> reason
        # In shared memory, so that persistent workers see a new epoch too.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._undecodable: set[int] = set()
        self._buffer: torch.Tensor | None = None  # one tensor: workers that are spawned share it as one file
        self._offsets: list[list[int]] = []  # of the levels of each image in the buffer
        self.paths: list[Path] = []
        self._sizes: list[tuple[int, int]] = []  # (width, height)
        self._scan()
        self._fill_cache(cache_bytes)

    def __len__(self) -> int:
        """Number of crops in an epoch."""
        return len(self.paths) * self.crops_per_image

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
        """Return {"image": uint8 tensor [3, crop_size, crop_size]}.

        Raises:
            IndexError: `index` is not in 0..len - 1.
            ValueError: No image in the folder can be decoded.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"index must lie in 0..{len(self) - 1}, got {index}")
        rng = np.random.default_rng(np.random.SeedSequence([self.seed, self.epoch, index]))
        # Always all of them, so that switching one augmentation leaves the others' draws alone.
        scale, top, left, horizontal, vertical, turns = rng.random(6)
        pixels = self._pixels(index % len(self.paths), scale)
        size = self.crop_size
        y = int(top * (pixels.shape[0] - size + 1))
        x = int(left * (pixels.shape[1] - size + 1))
        crop = pixels[y : y + size, x : x + size]
        if self.horizontal_flip and horizontal < 0.5:
            crop = crop[:, ::-1]
        if self.vertical_flip and vertical < 0.5:
            crop = crop[::-1]
        if self.rotate:
            crop = np.rot90(crop, int(turns * 4))
        return {"image": torch.from_numpy(np.array(crop.transpose(2, 0, 1), order="C"))}

    def _levels(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        """The sizes, of those given by `scales`, that hold a crop."""
        sizes = [(round(size[0] * scale), round(size[1] * scale)) for scale in self.scales]
        return [level for level in sizes if min(level) >= self.crop_size]

    def _pixels(self, image: int, draw: float) -> np.ndarray:
        """One level [h, w, 3] of an image, or of the next that can be decoded; `draw` picks the level."""
        count = len(self.paths)
        for candidate in ((image + step) % count for step in range(count)):
            if candidate in self._undecodable:
                continue
            if self._buffer is None:
                decoded = self._decode(candidate)
                if decoded is None:
                    continue
                levels = self._levels(decoded.size)
                return np.asarray(_resize(decoded, levels[int(draw * len(levels))]))
            levels = self._levels(self._sizes[candidate])
            level = int(draw * len(levels))
            width, height = levels[level]
            start = self._offsets[candidate][level]
            return self._buffer[start : start + width * height * 3].numpy().reshape(height, width, 3)
        raise ValueError(f"train_data_dir {self._where()} holds no image that can be decoded")

    def _decode(self, image: int) -> Image.Image | None:
        try:
            decoded: Image.Image = load_image(self.paths[image])
            # EXIF orientation may swap the sides; anything else means that the header did not tell the truth.
            if sorted(decoded.size) != sorted(self._sizes[image]):
                raise ImageError(f"{self.paths[image]}: size {decoded.size} is not that of the header")
            return decoded
        except ImageError as error:
            self._undecodable.add(image)
            logger.warning("Another image takes the place of one that cannot be decoded: %s", error)
            return None

    def _scan(self) -> None:
        """Read the headers of all files."""
        folders = self.train_data_dir
        folders = [folders] if isinstance(folders, (str, os.PathLike)) else folders
        for folder in folders:
            if not Path(folder).is_dir():
                raise ValueError(f"train_data_dir {str(folder)!r} is not a folder")
        files = find_images(folders, recursive=True)
        with ThreadPoolExecutor(_threads()) as pool:
            headers = _progress(pool.map(_header_size, files), len(files), "Reading image headers")
            for path, header in zip(files, headers, strict=True):
                if isinstance(header, str):
                    self.skipped[path] = header
                elif not self._levels(header):
                    self.skipped[path] = f"{header[0]}x{header[1]} is smaller than crop_size={self.crop_size}"
                else:
                    self.paths.append(path)
                    self._sizes.append(header)
        if self.skipped:
            shown = [f"{path} ({reason})" for path, reason in self.skipped.items()][:_NAMES_LOGGED]
            more = len(self.skipped) - len(shown)
            text = "; ".join(shown) + (f"; and {more} more" if more else "")
            logger.warning("%d of %d image files are skipped: %s", len(self.skipped), len(files), text)
        if not self.paths:
            raise ValueError(
                f"train_data_dir {self._where()} holds no usable image: {len(files)} image files found, "
                f"none is readable with both sides of at least crop_size={self.crop_size} pixels"
            )

    def _fill_cache(self, cache_bytes: int) -> None:
        """Decode everything into one buffer, if it fits."""
        total = 0
        for size in self._sizes:
            offsets = []
            for width, height in self._levels(size):
                offsets.append(total)
                total += width * height * 3
            self._offsets.append(offsets)
        if total > cache_bytes:
            logger.info(
                "%d images need %d bytes of cache, the limit is %d: each crop decodes its file",
                len(self.paths), total, cache_bytes,
            )  # fmt: skip
            return
        buffer = torch.empty(total, dtype=torch.uint8)
        flat = buffer.numpy()

        def fill(image: int) -> None:
            decoded = self._decode(image)
            if decoded is None:
                return
            self._sizes[image] = decoded.size
            for start, size in zip(self._offsets[image], self._levels(decoded.size), strict=True):
                level = np.asarray(_resize(decoded, size))
                flat[start : start + level.size] = level.reshape(-1)

        count = len(self.paths)
        with ThreadPoolExecutor(_threads()) as pool:
            for _ in _progress(pool.map(fill, range(count)), count, "Decoding images"):
                pass
        if len(self._undecodable) == count:
            raise ValueError(f"train_data_dir {self._where()} holds no image that can be decoded")
        self._buffer = buffer

    def _where(self) -> str:
        folders = self.train_data_dir
        return repr(str(folders) if isinstance(folders, (str, os.PathLike)) else [str(f) for f in folders])


def _header_size(path: Path) -> tuple[int, int] | str:
    """(width, height) as stored, or why the file cannot be used."""
    try:
        with Image.open(path) as image:
            return image.size
    except Exception as error:  # Pillow's readers raise nearly every type on damaged files
        return " ".join(f"{type(error).__name__}: {error}".split())


def _resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)


def _threads() -> int:
    return min(8, os.cpu_count() or 1)


def _progress(items: Iterable[_T], total: int, description: str) -> Iterable[_T]:
    """A progress bar that shows itself only when it is waited for."""
    bar: Iterable[_T] = tqdm(items, total=total, desc=description, delay=2.0, leave=False)
    return bar


def make_pairs(
    images: torch.Tensor, operator: Callable[[torch.Tensor], torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn 8-bit HR images u into pairs x = 2 u / 255 - 1 and y = 2 round(clip(H u, 0, 255)) / 255 - 1.

    H is the same operator as at inference. y is rounded to 8 bit because that is how LR images arrive there.
    Computed in float32 without gradients, also under autocast.

    Args:
        images: u, uint8 tensor [B, 3, H, W].
        operator: H, from float [B, 3, H, W] to [B, 3, h, w], such as `hvae_sr.operators.Downsampling`.

    Returns:
        (x, y): float32 in [-1, 1], [B, 3, H, W] and [B, 3, h, w].

    Raises:
        ValueError: `images` is not uint8 of shape [B, 3, H, W].
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be uint8 [B, 3, H, W], got {images.dtype} {tuple(images.shape)}")
    with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        levels = images.float()
        low = operator(levels).clamp(0.0, 255.0).round()
        return levels / 127.5 - 1.0, low / 127.5 - 1.0
