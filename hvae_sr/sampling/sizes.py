"""Which sizes of y the two networks take: the one place that knows minimum, multiple, fixed side and padding."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from ..models import VDVAE, LRConditioner, LREncoder

MINIMUM = 2
"""Pixels of y's shorter side at the least."""


@dataclass(frozen=True)
class SizeRequirements:
    """What two networks ask of the size of y.

    Args:
        scale_factor: sides of x over sides of y.
        multiple: what the sides of y must be multiples of; y is padded until they are.
        fixed_side: the only side of y that the networks take (`bias_type="spatial"`), or None.
    """

    scale_factor: int
    multiple: int
    fixed_side: int | None = None

    @classmethod
    def of(cls, vdvae: "VDVAE", network: "LREncoder | LRConditioner", scale_factor: int) -> "SizeRequirements":
        """Those of a prior and an LR network: strides of both must divide the padded image."""
        coarsest = vdvae.size_multiple
        multiple = math.lcm(network.size_multiple, coarsest // math.gcd(coarsest, scale_factor))
        fixed = network.config.image_size if vdvae.config.bias_type == "spatial" else None
        return cls(scale_factor, multiple, fixed)

    def check(self, size: tuple[int, int], tile: bool | None = False, description: str | None = None) -> None:
        """Raises a ValueError for a y of `size` = (h, w) that cannot be padded to what the networks take.

        Args:
            size: of y.
            tile: whether a y of another size than `fixed_side` is worked on in tiles; None where that is no choice.
            description: of what the model expects, for the message.
        """
        height, width = size
        if min(size) < MINIMUM:
            raise ValueError(
                f"`image` must be at least {MINIMUM}x{MINIMUM} pixels, got {width}x{height} (width x height)"
            )
        if self.fixed_side is not None and size != (self.fixed_side,) * 2 and not tile:
            advice = "" if tile is None else ". `tile=True` blends tiles of that size"
            expects = f" of {description}" if description else ""
            raise ValueError(
                f"`image` must be {self.fixed_side}x{self.fixed_side} pixels{expects}: this model works at one size "
                f"only; got {width}x{height}{advice}"
            )

    def padded(self, size: tuple[int, int]) -> tuple[int, int]:
        """(h, w) of the padded y."""
        if self.fixed_side is not None:
            return max(size[0], self.fixed_side), max(size[1], self.fixed_side)
        return size[0] + -size[0] % self.multiple, size[1] + -size[1] % self.multiple

    def output(self, size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) of the padded x, which latents and noise belong to."""
        height, width = self.padded(size)
        return height * self.scale_factor, width * self.scale_factor


def pad_to(y: Tensor, size: tuple[int, int], reflect: bool = False) -> Tensor:
    """`[N, 3, h, w]` to (h', w') = `size`: the last row and column repeated, or mirrored where y is so large."""
    bottom, right = size[0] - y.shape[-2], size[1] - y.shape[-1]
    mirrored = reflect and bottom < y.shape[-2] and right < y.shape[-1]
    return F.pad(y, (0, right, 0, bottom), mode="reflect" if mirrored else "replicate")
