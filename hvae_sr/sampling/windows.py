"""Windows of a large image: what is computed together, and which part of it is kept."""

import math
from dataclasses import dataclass
from typing import Any

import torch
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

    def view(self, numerator: int = 1, denominator: int = 1) -> tuple[Any, slice, slice]:
        """Index of `outer` in the image, or in a map of numerator / denominator elements a pixel: `[..., h, w]`."""
        return _index(self.outer, (0, 0), numerator, denominator)

    def kept(self, part: Tensor, numerator: int = 1, denominator: int = 1) -> Tensor:
        """What is kept of `part`, a map `[..., h, w]` of `outer`, of numerator / denominator elements a pixel."""
        return part[_index(self.inner, (self.outer[0], self.outer[1]), numerator, denominator)]

    def paste(self, part: Tensor, whole: Tensor, numerator: int = 1, denominator: int = 1) -> None:
        """Copies what is kept of `part`, a map of `outer`, to its place in `whole`, a map of the image.

        Args:
            part, whole: `[..., h, w]`, numerator / denominator elements a pixel.
        """
        whole[_index(self.inner, (0, 0), numerator, denominator)] = self.kept(part, numerator, denominator)


@dataclass(frozen=True)
class Tile(Window):
    """A window of fixed size that overlaps its neighbours and is blended with them.

    Args:
        outer, inner: the same box.
        shared: pixels shared with the neighbours above, to the left, below and to the right; 0 where there is none.
        blend: pixels in the middle of what is shared over which one passes into the other.
    """

    shared: Box
    blend: int

    def paste(self, part: Tensor, whole: Tensor, numerator: int = 1, denominator: int = 1) -> None:
        """Adds `part` to its place in `whole`, weighted so that the weights of all tiles sum to 1 everywhere."""
        if denominator != 1:
            raise ValueError("latents of tiles cannot be joined")
        top, left, bottom, right = (shared * numerator for shared in self.shared)
        rows = _weights(part.shape[-2], top, bottom, self.blend * numerator).to(part)
        columns = _weights(part.shape[-1], left, right, self.blend * numerator).to(part)
        whole[self.view(numerator)] += part * (rows[:, None] * columns)


def _weights(length: int, before: int, after: int, blend: int) -> Tensor:
    """Of a tile along one axis: 0, a rise in the middle of the first `before`, 1, a fall in the last `after`, 0."""
    weights = torch.ones(length, device="cpu")
    ramp = (torch.arange(blend, device="cpu") + 0.5) / blend

    def fall(shared: int) -> Tensor:
        lead = (shared - blend) // 2
        return torch.cat((ramp.new_ones(lead), 1 - ramp, ramp.new_zeros(shared - blend - lead)))

    if before:
        weights[:before] *= 1 - fall(before)
    if after:
        weights[length - after :] *= fall(after)
    return weights


def tiles(height: int, width: int, side: int, blend: int) -> list[Tile]:
    """Tiles of exactly `side` x `side` pixels that cover a height x width image.

    Args:
        height, width: of the image, `side` or more each.
        side: of a tile.
        blend: pixels over which neighbours are blended; a third of `side` at the most.
    """
    found = []
    rows, columns = (_starts(length, side, blend) for length in (height, width))
    for i, top in enumerate(rows):
        for j, left in enumerate(columns):
            shared = (
                rows[i - 1] + side - top if i else 0,
                columns[j - 1] + side - left if j else 0,
                top + side - rows[i + 1] if i + 1 < len(rows) else 0,
                left + side - columns[j + 1] if j + 1 < len(columns) else 0,
            )
            box = (top, left, top + side, left + side)
            found.append(Tile(box, box, shared, blend))
    return found


def _starts(length: int, side: int, blend: int) -> list[int]:
    """Where tiles begin, evenly spread, neighbours sharing `blend` pixels or more."""
    count = 1 + -(-(length - side) // (side - blend))
    return [round(i * (length - side) / max(count - 1, 1)) for i in range(count)]


def _index(box: Box, corner: tuple[int, int], numerator: int, denominator: int) -> tuple[Any, slice, slice]:
    top, left, bottom, right = (
        (side - start) * numerator // denominator for side, start in zip(box, corner * 2, strict=True)
    )
    return ..., slice(top, bottom), slice(left, right)


def split(height: int, width: int, side: int, margin: int) -> list[Window]:
    """Windows of one size, at most `side` + 2 `margin` pixels a side, that cover a height x width image, row by row.

    An image of no more than `side` + 2 `margin` pixels a side is one window. Windows of one size let the networks reuse
    the memory of the last one.

    Args:
        height, width: of the image.
        side: of the inner boxes; with `margin` a multiple of what the networks need, so that every window begins on
            the grid of the coarsest latents.
        margin: seen on each side but not kept, except at the image's border.
    """
    rows, columns = (_spans(length, side, margin) for length in (height, width))
    return [Window((r[0], c[0], r[3], c[3]), (r[1], c[1], r[2], c[2])) for r in rows for c in columns]


def _spans(length: int, side: int, margin: int) -> list[tuple[int, int, int, int]]:
    """(outer start, inner start, inner stop, outer stop) of each window along one axis."""
    if length <= side + 2 * margin:
        return [(0, 0, length, length)]
    grid = math.gcd(side, margin)
    count = -(-(length - 2 * margin) // side)
    stride = -(-(length - 2 * margin) // (count * grid)) * grid
    full = stride + 2 * margin
    borders = [0, *(margin + i * stride for i in range(1, count)), length]
    starts = [min(i * stride, length - full) for i in range(count)]
    return [
        (start, low, high, start + full) for start, low, high in zip(starts, borders[:-1], borders[1:], strict=True)
    ]
