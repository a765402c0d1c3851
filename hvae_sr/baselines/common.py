"""What the compared networks share: their output, the check of their inputs, a copy to count on."""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from ..hooks import uncompiled


@dataclass
class ImageOutput(BaseOutput):
    """What a regression network returns.

    Args:
        sample: `[B, 3, H, W]` in the network's range of values, not clamped.
    """

    sample: Tensor


class RegressionNetwork:
    """`forward` of the networks whose output is one image: a mixin."""

    unshuffle = 1
    """What the sides of y must be multiples of."""

    def forward(self, sample: Tensor, return_dict: bool = True) -> ImageOutput | tuple[Tensor]:
        """x from y.

        Args:
            sample: y, `[B, 3, h, w]` on [0, 1] (EDSR: [0, value_range]); sides multiples of `unshuffle`, which is above
                1 for an `RRDBNet` of a scale factor below 4 alone.
            return_dict: False for a tuple.

        Returns:
            `[B, 3, s h, s w]`, nominally on the same range, not clamped.

        Raises:
            ValueError: a tensor of another type or shape.
        """
        check_images("sample", sample, multiple=self.unshuffle)
        x = self._image(sample)
        return ImageOutput(x) if return_dict else (x,)

    def _image(self, sample: Tensor) -> Tensor:
        raise NotImplementedError


def check_images(name: str, value: Any, multiple: int = 1) -> None:
    """Raises a ValueError unless `value` is floating-point `[B, 3, h, w]`, sides divisible by `multiple`."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        found = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"`{name}` must be a floating-point tensor [B, 3, h, w], got {found}")
    if value.ndim != 4 or value.shape[1] != 3 or 0 in value.shape:
        raise ValueError(f"`{name}` must be [B, 3, h, w], got {tuple(value.shape)}")
    if value.shape[2] % multiple or value.shape[3] % multiple:
        raise ValueError(f"the sides of `{name}` must be multiples of {multiple}, got {tuple(value.shape[2:])}")


def check_whole(minimum: int = 1, **values: Any) -> None:
    """Raises a ValueError unless all `values`, arguments by their names, are whole numbers of at least `minimum`."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise ValueError(f"`{name}` must be a whole number >= {minimum}, got {value!r}")


def on_meta(network: Any) -> Any:
    """A copy of a network of diffusers' kind, or one of `torch.compile`, without numbers: to count on."""
    network = uncompiled(network)
    with torch.device("meta"):
        copy = type(network)(**{key: value for key, value in network.config.items() if not key.startswith("_")})
    return nn.Module.to(copy, network.dtype)  # diffusers' own `to` warns
