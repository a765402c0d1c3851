"""Building blocks that the HR encoder, the decoder and the LR networks share."""

from collections import defaultdict
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .fast import ACTIVATIONS, Convolution, Span, activate, apply, inside_block, strips

MAX_BLOCKS, MAX_WIDTH = 10_000, 2**16
"""Beyond these a configuration is damaged, or meant to fill the memory."""


class BlockSpec(NamedTuple):
    """One residual block of VD-VAE's block notation: its resolution, and how it changes resolution, if it does."""

    resolution: int
    down_rate: int | None = None
    mixin: int | None = None


def parse_blocks(blocks: str, argument: str = "blocks") -> list[BlockSpec]:
    """Reads VD-VAE's block notation.

    "32x3" is three blocks at resolution 32; "32d2" a block at 32 followed by average pooling by 2; "32m16" a block
    at 32 that adds the stream of resolution 16, upsampled; "32" a single block.

    Args:
        blocks: comma-separated items, such as `"1x2,4m1,4x3"`.
        argument: the name to use in errors.

    Raises:
        ValueError: an item that does not follow the notation, or more than 10,000 blocks; the message names it.
    """
    specs: list[BlockSpec] = []
    for item in (part.strip() for part in blocks.split(",")):
        kind = next((letter for letter in "xdm" if letter in item), None)
        try:
            numbers = [int(number) for number in (item.split(kind) if kind else [item])]
        except ValueError:
            numbers = []
        if len(numbers) != (2 if kind else 1) or any(number < 1 for number in numbers):
            raise ValueError(f"`{argument}`: {item!r} is not block notation such as '32x3', '32d2' or '32m16'")
        if kind == "d":
            specs.append(BlockSpec(numbers[0], down_rate=numbers[1]))
        elif kind == "m":
            specs.append(BlockSpec(numbers[0], mixin=numbers[1]))
        else:
            count = numbers[1] if kind else 1
            if len(specs) + count > MAX_BLOCKS:
                raise ValueError(f"`{argument}`: {item!r} makes more than {MAX_BLOCKS} blocks")
            specs.extend([BlockSpec(numbers[0])] * count)
    return specs


def parse_widths(width: int, custom_widths: str | None) -> dict[int, int]:
    """Channels at each resolution: `width`, unless "32:64,16:96" names another.

    Raises:
        ValueError: an item that is not "resolution:width", or a width that is not between 1 and 65536.
    """
    widths: dict[int, int] = defaultdict(lambda: width)
    for item in filter(None, (part.strip() for part in (custom_widths or "").split(","))):
        try:
            resolution, channels = (int(number) for number in item.split(":"))
        except ValueError:
            raise ValueError(f"`custom_widths`: {item!r} is not 'resolution:width', such as '32:64'") from None
        widths[resolution] = channels
    for channels in (width, *widths.values()):
        if not 1 <= channels <= MAX_WIDTH:
            raise ValueError(f"`width` and `custom_widths` must be between 1 and {MAX_WIDTH}, got {channels}")
    return widths


def set_channels(x: Tensor, channels: int) -> Tensor:
    """Pads with zeros, or truncates, to `channels`: VD-VAE's change of width between resolutions."""
    if x.shape[1] == channels:
        return x
    # Not a slice, whose gradient would have its planes apart in memory, and with it all that it is added to.
    return F.pad(x, (0, 0, 0, 0, 0, channels - x.shape[1]))


def convolution(in_channels: int, out_channels: int, kernel_size: int = 1, zero_weights: bool = False) -> Convolution:
    """A "same" convolution with torch's default weights and zero bias, as VD-VAE initialises it."""
    layer = Convolution(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    if zero_weights:
        nn.init.zeros_(layer.weight)
    return layer


class Bottleneck(nn.Module):
    """VD-VAE's block: four convolutions (1x1, kxk, kxk, 1x1), each after the activation; optional residual, pooling.

    Args:
        in_channels, middle_channels, out_channels: widths.
        kernel_size: of the two middle convolutions: 3, or 1 where the map is too small for 3.
        residual: whether the input is added to the output.
        down_rate: average pooling after the block, or None.
        zero_last: zero weights in the last convolution at the start.
        activation: "gelu" or "silu".
    """

    def __init__(
        self,
        in_channels: int,
        middle_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        residual: bool = False,
        down_rate: int | None = None,
        zero_last: bool = False,
        activation: str = "gelu",
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"`activation` must be one of {', '.join(ACTIVATIONS)}; got {activation!r}")
        if middle_channels < 1:
            raise ValueError(f"`bottleneck_multiple` leaves no channels inside a block of {in_channels}")
        self.residual = residual
        self.down_rate = down_rate
        self.activation = activation
        self.out_channels = out_channels
        self.c1 = convolution(in_channels, middle_channels)
        self.c2 = convolution(middle_channels, middle_channels, kernel_size)
        self.c3 = convolution(middle_channels, middle_channels, kernel_size)
        self.c4 = convolution(middle_channels, out_channels, zero_weights=zero_last)

    def hidden(self, stream: "Stream", columns: Span = None, plus: Tensor | None = None) -> Tensor:
        """All but the last convolution, `[B, middle_channels, H, W]`.

        Args:
            stream: the input.
            columns: which of the block's input channels these are, if not all; then `plus` holds the others' share of
                the first convolution, its bias included, `[B or 1, middle_channels, H, W]`.
        """
        name = self.activation
        if columns is None:
            h = stream.enter(self.c1, name)
        else:
            h = activate(name, self.c1(stream.active(name), plus=plus, columns=columns, bias=False))
        return apply(self.c3, apply(self.c2, h, then=name), then=name)

    def forward(self, x: Tensor, overwrite: bool = False) -> Tensor:
        """`[B, in_channels, H, W]` -> `[B, out_channels, H / down_rate, W / down_rate]`; may `overwrite` x."""
        with inside_block(x.device.type):
            h = self.hidden(Stream(x))
        if x.dtype == torch.float32 and not torch.is_grad_enabled():
            h = h.float()  # the sum is as exact as the stream; where autocast is on, it casts
        h = apply(self.c4, h, plus=x if self.residual else None, overwrite=overwrite)
        if self.down_rate is not None:
            h = F.avg_pool2d(h, kernel_size=self.down_rate, stride=self.down_rate)
        return h


class Stream:
    """The stream that enters a group, and its activation, computed once for all heads that read it.

    Args:
        x: `[B, width, h, w]`.
    """

    def __init__(self, x: Tensor) -> None:
        self.x = x
        self._active: dict[str, Tensor] = {}

    def active(self, name: str) -> Tensor:
        """The activation ("gelu", "silu") of x."""
        if name not in self._active:
            self._active[name] = activate(name, self.x)
        return self._active[name]

    def enter(self, layer: nn.Module, name: str) -> Tensor:
        """The activation of `layer` of the activation of x; `layer` is a block's first convolution, a 1x1."""
        parts = strips(self.x) if name not in self._active else None
        if parts is None:
            return apply(layer, self.active(name), then=name)
        return torch.cat([apply(layer, activate(name, part), then=name) for part in parts], dim=2)


def kernel_size_at(resolution: int) -> int:
    """3, but 1 at resolutions 1 and 2, where a 3x3 kernel would mostly see padding (VD-VAE)."""
    return 3 if resolution > 2 else 1


class BottomUp(nn.Module):
    """VD-VAE's bottom-up network: a stem and residual blocks; one feature map for each resolution.

    Args:
        blocks: block notation from the finest resolution down, such as `"32x2,32d2,16x2"`.
        widths: channels at each nominal resolution.
        bottleneck_multiple: inner width of a block as a share of its width.
        patch_size: space-to-depth factor before the stem (1 as published).
        skip: adds the stem's output after the last block at the finest resolution (EDSR's long skip).
        activation: "gelu" or "silu".
        argument: the name of `blocks` in errors.
    """

    def __init__(
        self,
        blocks: str,
        widths: dict[int, int],
        bottleneck_multiple: float = 0.25,
        patch_size: int = 1,
        skip: bool = False,
        activation: str = "gelu",
        argument: str = "encoder_blocks",
    ) -> None:
        super().__init__()
        specs = parse_blocks(blocks, argument)
        self.patch_size = patch_size
        self.widths = {spec.resolution: widths[spec.resolution] for spec in specs}
        self.resolution = specs[0].resolution
        self.skip_after = max(
            (i for i, spec in enumerate(specs) if spec.resolution == self.resolution and spec.down_rate is None),
            default=None,
        )
        if not skip:
            self.skip_after = None
        self.in_conv = convolution(3 * patch_size**2, widths[self.resolution], 3)
        layers = []
        for i, spec in enumerate(specs):
            width = widths[spec.resolution]
            after = spec.resolution // (spec.down_rate or 1)
            following = specs[i + 1].resolution if i + 1 < len(specs) else after
            if spec.mixin is not None or after != following or after < 1:
                raise ValueError(f"`{argument}`: resolution {after} cannot be followed by {following} in {blocks!r}")
            self.widths[after] = widths[after]
            layers.append(
                Bottleneck(
                    width,
                    int(width * bottleneck_multiple),
                    width,
                    kernel_size_at(spec.resolution),
                    residual=True,
                    down_rate=spec.down_rate,
                    activation=activation,
                )
            )
        for layer in layers:
            with torch.no_grad():
                layer.c4.weight.mul_((1 / len(layers)) ** 0.5)
        self.blocks = nn.ModuleList(layers)
        self.resolutions_after = [spec.resolution // (spec.down_rate or 1) for spec in specs]
        self.gradient_checkpointing = False

    def forward(self, x: Tensor) -> dict[int, Tensor]:
        """`[B, 3, H, W]` -> the last feature map of each nominal resolution, `{resolution: [B, width, h, w]}`."""
        if self.patch_size > 1:
            x = F.pixel_unshuffle(x, self.patch_size)
        x = self.in_conv(x)
        stem = x
        features = {self.resolution: x}
        for i, block in enumerate(self.blocks):
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
            if i == self.skip_after:
                x = x + stem
            x = set_channels(x, self.widths[self.resolutions_after[i]])
            features[self.resolutions_after[i]] = x
        return features
