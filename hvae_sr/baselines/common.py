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


def check_images(name: str, value: Any, channels: int = 3, multiple: int = 1) -> None:
    """Raises a ValueError unless `value` is floating-point `[B, channels, h, w]`, sides divisible by `multiple`."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        found = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"`{name}` must be a floating-point tensor [B, {channels}, h, w], got {found}")
    if value.ndim != 4 or value.shape[1] != channels or 0 in value.shape:
        raise ValueError(f"`{name}` must be [B, {channels}, h, w], got {tuple(value.shape)}")
    if value.shape[2] % multiple or value.shape[3] % multiple:
        raise ValueError(f"the sides of `{name}` must be multiples of {multiple}, got {tuple(value.shape[2:])}")


def check_whole(name: str, value: Any, minimum: int = 1) -> None:
    """Raises a ValueError unless `value` is a whole number of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ValueError(f"`{name}` must be a whole number >= {minimum}, got {value!r}")


def on_meta(network: Any) -> Any:
    """A copy of a network of diffusers' kind, or one of `torch.compile`, without numbers: to count on."""
    network = uncompiled(network)
    with torch.device("meta"):
        copy = type(network)(**{key: value for key, value in network.config.items() if not key.startswith("_")})
    return nn.Module.to(copy, network.dtype)  # diffusers' own `to` warns
