"""The recipe of a sample: which noise enters which latent group, and which region of it.

Groups run from coarse to fine, so a version that keeps the first k groups' seeds keeps the layout and gets new texture.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from numbers import Integral

import numpy as np
import torch
from torch import Tensor

from ..checks import check_count
from ..noise import CounterNoise
from ..sampling.sampler import WindowNoise


@dataclass(frozen=True, eq=False)
class Region:
    """Pixels whose noise has another seed.

    Args:
        mask: booleans `[H, W]` over the result.
        seed: of the noise there.
        feather: HR pixels inside the mask over which the change grows to its full size.
        groups: how many groups, the first ones, it is drawn anew in; None is all.
    """

    mask: np.ndarray
    seed: int
    feather: int = 8
    groups: int | None = None

    def first(self, groups: int) -> "Region":
        """The same in the first `groups` groups alone."""
        return replace(self, groups=groups if self.groups is None else min(self.groups, groups))


@dataclass(frozen=True)
class Recipe:
    """Where the noise of a sample comes from: a seed for each group, then regions, later ones over earlier ones.

    Args:
        group_seeds: one for each latent group.
        regions: drawn again, in this order; see `posterior.redraw.composite` for the picture.
    """

    group_seeds: tuple[int, ...]
    regions: tuple[Region, ...] = ()

    @classmethod
    def of(cls, seed: int, num_groups: int) -> "Recipe":
        """That of the pipeline's sample of a seed."""
        return cls((seed,) * num_groups)

    @property
    def seed(self) -> int | None:
        """The pipeline's `seed` that gives this sample, if one does."""
        return self.group_seeds[0] if len(set(self.group_seeds)) == 1 and not self.regions else None

    def vary(self, kept: int, seed: int) -> "Recipe":
        """The first `kept` groups as they are, the others with the noise of `seed`, inside regions too.

        Raises:
            ValueError: `kept` is no number of its groups.
        """
        check_count("kept", kept, 0, len(self.group_seeds))
        regions = self.regions
        if kept < len(self.group_seeds):
            regions = tuple(region.first(kept) for region in regions) if kept else ()
        return Recipe((*self.group_seeds[:kept], *(seed for _ in self.group_seeds[kept:])), regions)

    def redraw(self, mask: np.ndarray, seed: int, feather: int = 8) -> "Recipe":
        """The noise of `seed` where `mask`, booleans `[H, W]`, is true; see `Region`."""
        return Recipe(self.group_seeds, (*self.regions, Region(mask, seed, feather)))

    def check(self, num_groups: int, size: tuple[int, int]) -> None:
        """Raises a ValueError unless the recipe is for `num_groups` groups, and its masks of an image of (H, W)."""
        if len(self.group_seeds) != num_groups:
            raise ValueError(f"`recipes`: {len(self.group_seeds)} group seeds for a model of {num_groups} groups")
        seeds = (*self.group_seeds, *(region.seed for region in self.regions))
        if not all(isinstance(seed, Integral) and not isinstance(seed, bool) for seed in seeds):
            raise ValueError(f"`recipes`: seeds must be whole numbers, got {seeds}")
        for region in self.regions:
            found = region.mask.shape if isinstance(region.mask, np.ndarray) else type(region.mask).__name__
            if found != size or region.mask.dtype != bool or not region.mask.any():
                raise ValueError(f"`recipes`: a region's mask must be booleans [H, W] = {size}, some true; got {found}")
            if not isinstance(region.feather, Integral) or region.feather < 1:
                raise ValueError(f"`recipes`: a region's feather must be a whole number >= 1, got {region.feather!r}")
            given = num_groups if region.groups is None else region.groups
            if not isinstance(given, Integral) or isinstance(given, bool) or not 1 <= given <= num_groups:
                raise ValueError(
                    f"`recipes`: a region's groups must be None or a whole number between 1 and {num_groups}, got "
                    f"{given!r}"
                )


class RecipeNoise:
    """The noise of a batch whose row b has the recipe `recipes[b]`; a `NoiseSource`.

    Args:
        recipes: one for each row of the batch.
        origin: (row, column) of the window's corner in pixels of the HR image.
    """

    def __init__(self, recipes: Sequence[Recipe], origin: tuple[int, int] = (0, 0)) -> None:
        self.recipes, self.origin = recipes, origin

    def __call__(self, group: int, stride: int, shape: tuple[int, int, int, int], device: torch.device) -> Tensor:
        """Standard normals `[B, C, h, w]`, fp32: an element has the noise of a region that holds any of its pixels."""
        seeds = [recipe.group_seeds[group] for recipe in self.recipes]
        draws = CounterNoise(seeds, self.origin)(group, stride, shape, device)
        for row, recipe in enumerate(self.recipes):
            for region in recipe.regions:
                if region.groups is not None and group >= region.groups:
                    continue
                fresh = CounterNoise([region.seed], self.origin)(group, stride, (1, *shape[1:]), device)
                inside = self._elements(region.mask, stride, shape[2:]).to(device)
                draws[row] = torch.where(inside, fresh[0], draws[row])
        return draws

    def uniform(self, number: int, shape: tuple[int, int, int, int], device: torch.device) -> Tensor:
        """Uniforms in (0, 1) for pixels `[B, C, H, W]`, those of the finest group's seed."""
        return CounterNoise([recipe.group_seeds[-1] for recipe in self.recipes], self.origin).uniform(
            number, shape, device
        )

    def _elements(self, mask: np.ndarray, stride: int, shape: tuple[int, ...]) -> Tensor:
        """Which elements of a map `[h, w]` of the window hold pixels of the mask, which may end before it does."""
        (top, left), (height, width) = self.origin, (side * stride for side in shape)
        part = mask[top : top + height, left : left + width]
        padded = np.zeros((height, width), dtype=bool)
        padded[: part.shape[0], : part.shape[1]] = part
        return torch.from_numpy(padded.reshape(shape[0], stride, shape[1], stride).any(axis=(1, 3)))


def noise_of(recipes: Sequence[Recipe]) -> WindowNoise:
    """The noise of samples of these recipes, from a window's origin."""
    seeds = [recipe.seed for recipe in recipes if recipe.seed is not None]
    return partial(CounterNoise, seeds) if len(seeds) == len(recipes) else partial(RecipeNoise, recipes)
