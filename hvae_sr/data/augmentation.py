"""Random crops: the same rules for every source of images."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from ..checks import check_count

DEFAULT_SCALES = (1.0, 0.75, 0.5, 0.33, 0.25)
MAX_SCALE = 4.0
"""A larger image has no detail of its own left at the scale of an LR image's pixels."""


@dataclass(frozen=True)
class Augmentation:
    """How a crop is taken from an image, as a function of six uniform draws.

    Args:
        crop_size: Side of the crops in pixels.
        horizontal_flip: Mirror half of the crops left to right.
        vertical_flip: Mirror half of the crops top to bottom.
        rotate: Turn the crops by 0, 90, 180 or 270 degrees with equal probability.
        scales: Factors in (0, 4] by which images are resized, drawn with equal probability among those that leave
            both sides at `crop_size` or more; one that is named twice is drawn twice as often. Smaller ones are
            antialiased bicubic; larger ones bilinear, as soft as photographs that somebody enlarged before.

    Raises:
        ValueError: An argument is out of range.
    """

    crop_size: int = 64
    horizontal_flip: bool = True
    vertical_flip: bool = False
    rotate: bool = False
    scales: Sequence[float] = DEFAULT_SCALES

    def __post_init__(self) -> None:
        check_count("crop_size", self.crop_size, 1)
        found = list(self.scales) if isinstance(self.scales, Iterable) else []
        if not found or not all(0 < scale <= MAX_SCALE for scale in found):
            raise ValueError(f"scales must hold factors in (0, {MAX_SCALE:g}], got {self.scales}")

    def levels(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        """The sizes (width, height), of those given by `scales`, that hold a crop."""
        sizes = [(round(size[0] * scale), round(size[1] * scale)) for scale in self.scales]
        return [level for level in sizes if min(level) >= self.crop_size]

    def crop(
        self, pixels: np.ndarray, draws: np.ndarray, low: np.ndarray | None = None, factor: int = 1
    ) -> dict[str, torch.Tensor]:
        """A crop at a uniform position, mirrored and turned.

        Args:
            pixels: [h, w, 3] uint8, at the scale that was drawn.
            draws: Six uniforms in [0, 1): scale (not used here), row, column, two mirrors, turn.
            low: The LR image [ceil(h / factor), ceil(w / factor), 3], or None. With it crops begin at multiples of
                `factor`, which must divide `crop_size`.
            factor: Sides of the image over sides of `low`.

        Returns:
            {"image": uint8 [3, crop_size, crop_size]} and, where `low` is given, "low" of the same part of it.
        """
        size = self.crop_size
        row = int(draws[1] * ((pixels.shape[0] - size) // factor + 1))
        column = int(draws[2] * ((pixels.shape[1] - size) // factor + 1))
        found = {"image": self._part(pixels, row * factor, column * factor, size, draws)}
        if low is not None:
            found["low"] = self._part(low, row, column, size // factor, draws)
        return found

    def _part(self, pixels: np.ndarray, row: int, column: int, size: int, draws: np.ndarray) -> torch.Tensor:
        crop = pixels[row : row + size, column : column + size]
        if self.horizontal_flip and draws[3] < 0.5:
            crop = crop[:, ::-1]
        if self.vertical_flip and draws[4] < 0.5:
            crop = crop[::-1]
        if self.rotate:
            crop = np.rot90(crop, int(draws[5] * 4))
        return torch.from_numpy(np.array(crop.transpose(2, 0, 1), order="C"))


def draw(*key: int) -> np.ndarray:
    """The six uniforms that belong to a key of integers that are not negative.

    Always all of them, so that switching one augmentation leaves the others' draws alone.
    """
    return np.random.default_rng(np.random.SeedSequence(key)).random(6)


def resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The image at `size` = (width, height): antialiased bicubic where it is smaller, else bilinear."""
    if image.size == size:
        return image
    larger = size > image.size  # by the first side that differs: one factor resizes both
    return image.resize(size, Image.Resampling.BILINEAR if larger else Image.Resampling.BICUBIC)
