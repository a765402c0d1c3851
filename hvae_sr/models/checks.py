"""Checks of what a top-down pass is given; every error names the argument and its value."""

from collections.abc import Mapping
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
