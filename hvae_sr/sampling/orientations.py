"""Samples drawn in several orientations of one image: the geometric self-ensemble (EDSR; Lim et al., 2017)."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..hooks import PerGroup
from ..models import VDVAESample
from ..noise import CounterNoise
from .sampler import WindowSampler

NUM_ORIENTATIONS = 8
"""Mirrored or not, upside down or not, transposed or not: the symmetries of the square grid."""


def _mirrored(orientation: int) -> list[int]:
    return [axis for bit, axis in ((1, -2), (2, -1)) if orientation & bit]


def orient(image: Tensor, orientation: int) -> Tensor:
    """`[..., H, W]` in another orientation, 0 to 7: bits for rows and columns reversed, and then the two exchanged."""
    mirrored = image.flip(_mirrored(orientation))
    return mirrored.transpose(-2, -1) if orientation & 4 else mirrored


def restore(image: Tensor, orientation: int) -> Tensor:
    """The inverse of `orient`."""
    turned = image.transpose(-2, -1) if orientation & 4 else image
    return turned.flip(_mirrored(orientation))


class SelfEnsemble:
    """Draws every sample in the orientation g that its seed names, and turns it back: g⁻¹ x, x ~ p(x | g y).

    Over the eight orientations this is the mixture (1/8) sum_g p(g x | g y). It does not depend on how y is turned, as
    p itself, a network with learned kernels, only nearly does; and the mean of samples averages over the errors that p
    makes in single orientations.

    Args:
        make: gives the sampler of a y.
        y: `[3, h, w]`.
    """

    def __init__(self, make: Callable[[Tensor], WindowSampler], y: Tensor) -> None:
        self._make, self._y = make, y
        self._orientation, self._sampler = 0, make(y)

    def sample(self, seeds: Sequence[int], **arguments: Any) -> VDVAESample:
        """Images `[n, 3, H, W]` on [-1, 1], in the orientation of y, one for each seed, which names its own.

        `arguments` are of `WindowSampler.sample`. There are no latents: those of samples have no common grid.
        """
        orientations = [seed % NUM_ORIENTATIONS for seed in seeds]
        height, width = (side * self._sampler.scale for side in self._y.shape[-2:])
        whole = torch.empty(len(seeds), 3, height, width, dtype=torch.float32, device=self._y.device)
        for orientation in dict.fromkeys(orientations):
            chosen = [row for row, own in enumerate(orientations) if own == orientation]
            if self._orientation != orientation:  # one at a time: each holds features of y
                self._orientation, self._sampler = orientation, self._make(orient(self._y, orientation))
            noise = partial(CounterNoise, [seeds[row] for row in chosen])
            out = self._sampler.sample(len(chosen), noise, **arguments)
            rows, columns = (width, height) if orientation & 4 else (height, width)
            turned = restore(out.sample[..., :rows, :columns], orientation)
            del out  # a large image is held twice, not three times
            whole[chosen] = turned
        return VDVAESample(sample=whole, latents=PerGroup())
