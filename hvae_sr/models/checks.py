"""Checks of what a top-down pass is given; every error names the argument and its value."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def is_count(value: Any) -> bool:
    """Whether a value is a whole number >= 1, also one that a graph knows as a symbol."""
    return isinstance(value, (int, np.integer, torch.SymInt)) and not isinstance(value, bool) and bool(value >= 1)


def check_maps(
    argument: str, maps: Mapping[int, Tensor], sizes: Mapping[int, tuple[int, int]], batch_size: int | None = None
) -> None:
    """Raises a ValueError unless maps are as large as the decoder's.

    Args:
        argument: name of `maps`.
        maps: `{nominal resolution: [B, width, h, w]}`; those of resolutions that are not in `sizes` are not used.
        sizes: `{nominal resolution: (h, w)}`.
        batch_size: B, or None for any.
    """
    for resolution in maps.keys() & sizes.keys():
        rows, _, *found = maps[resolution].shape
        if tuple(found) != tuple(sizes[resolution]) or batch_size not in (None, rows):
            wanted = (
                f"{'B' if batch_size is None else batch_size}, width, {sizes[resolution][0]}, {sizes[resolution][1]}"
            )
            raise ValueError(
                f"`{argument}` at resolution {resolution} must have shape [{wanted}] to fit `size` and `batch_size`, "
                f"got {tuple(maps[resolution].shape)}"
            )


def tensors_of_groups(
    name: str, values: Sequence[Tensor | None] | None, shapes: Sequence[tuple[int, ...]], rows: tuple[int, ...]
) -> list[Tensor | None]:
    """Given tensors of the groups: one entry for each group, in fp32, None where none is given.

    Args:
        name: of the argument, for errors.
        values: at most one `[N, C, h, w]` for each group, or None.
        shapes: (C, h, w) of each group.
        rows: what N may be.

    Raises:
        ValueError: too many, or another shape; the message names the argument and the group.
    """
    given: list[Tensor | None] = list(values) if isinstance(values, (list, tuple)) else []
    if len(given) > len(shapes) or not isinstance(values, (list, tuple, type(None))):
        found = len(given) or type(values).__name__
        raise ValueError(f"`{name}` must be a list of at most {len(shapes)} tensors, one for each group; got {found}")
    for group, z in enumerate(given):
        if z is None:
            continue
        shape = list(shapes[group])
        if not isinstance(z, Tensor) or z.ndim != 4 or list(z.shape[1:]) != shape or len(z) not in rows:
            counts = " or ".join(str(count) for count in dict.fromkeys(rows))
            got = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
            raise ValueError(
                f"`{name}[{group}]` must have shape [N, {', '.join(map(str, shape))}] with N = {counts}, got {got}"
            )
        given[group] = z.float()
    return [*given, *[None] * (len(shapes) - len(given))]
