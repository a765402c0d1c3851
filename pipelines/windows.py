"""Windows of a large image: what is computed together, and which part of it is kept."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

Box = tuple[int, int, int, int]
"""(top, left, bottom, right) in pixels, bottom and right exclusive."""


@dataclass(frozen=True)
class Window:
    """One window of an image.

    Args:
        outer: what the networks see.
        inner: what is kept of it; the inner boxes of all windows tile the image.
    """

    outer: Box
    inner: Box

    @property
    def crop(self) -> tuple[Any, slice, slice]:
        """Index of `outer` in the image, `[..., h, w]`."""
        return self.view()

    def view(self, numerator: int = 1, denominator: int = 1) -> tuple[Any, slice, slice]:
        """Index of `outer` in a map of numerator / denominator elements a pixel."""
        return _index(self.outer, (0, 0), numerator, denominator)

    def paste(self, part: Tensor, whole: Tensor, numerator: int = 1, denominator: int = 1) -> None:
        """Copies what is kept of `part`, a map of `outer`, to its place in `whole`, a map of the image.

        Args:
            part, whole: `[..., h, w]`, numerator / denominator elements a pixel.
        """
        kept = _index(self.inner, (self.outer[0], self.outer[1]), numerator, denominator)
        whole[_index(self.inner, (0, 0), numerator, denominator)] = part[kept]


def _index(box: Box, corner: tuple[int, int], numerator: int, denominator: int) -> tuple[Any, slice, slice]:
    top, left, bottom, right = (
        (side - start) * numerator // denominator for side, start in zip(box, corner * 2, strict=True)
    )
    return ..., slice(top, bottom), slice(left, right)


def split(height: int, width: int, side: int, margin: int) -> list[Window]:
    """Windows of at most `side` + 2 `margin` pixels a side that cover a height x width image, row by row.

    An image of no more than `side` + 2 `margin` pixels a side is one window.

    Args:
        height, width: of the image.
        side: of the inner boxes; with `margin` a multiple of what the networks need, so that every window begins on
            the grid of the coarsest latents.
        margin: seen on each side but not kept, as far as there is image.
    """
    rows, columns = (_spans(length, side, margin) for length in (height, width))
    return [Window((r[0], c[0], r[3], c[3]), (r[1], c[1], r[2], c[2])) for r in rows for c in columns]


def _spans(length: int, side: int, margin: int) -> list[tuple[int, int, int, int]]:
    """(outer start, inner start, inner stop, outer stop) of each window along one axis."""
    if length <= side + 2 * margin:
        return [(0, 0, length, length)]
    return [
        (max(start - margin, 0), start, min(start + side, length), min(start + side + margin, length))
        for start in range(0, length, side)
    ]
