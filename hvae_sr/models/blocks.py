"""VD-VAE's parts: block notation, convolutions, the residual block, the bottom-up network."""

from collections import defaultdict
from collections.abc import Callable, Collection
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..hooks import run_layer

MAX_BLOCKS, MAX_WIDTH = 10_000, 2**16
"""Beyond these a configuration is damaged, or meant to fill the memory."""


def gelu(x: Tensor, inplace: bool = False) -> Tensor:
    """As `F.silu` is called; torch has no GELU that overwrites its input."""
    return F.gelu(x)


ACTIVATIONS: dict[str, Callable[..., Tensor]] = {"gelu": gelu, "silu": F.silu}


def is_count(value: Any) -> bool:
    """Whether a value is a whole number >= 1, also one that a graph knows as a symbol."""
    return isinstance(value, (int, np.integer, torch.SymInt)) and not isinstance(value, bool) and bool(value >= 1)


def check_choice(name: str, value: Any, allowed: Collection[Any]) -> None:
    """Raises a ValueError that names the argument unless its value is one of `allowed`."""
    if value not in allowed or isinstance(value, bool):
        raise ValueError(f"`{name}` must be one of {', '.join(map(str, allowed))}; got {value!r}")


class BlockSpec(NamedTuple):
    """One block of VD-VAE's block notation: its resolution, how it changes resolution, if it does, and what follows it.

    Args:
        resolution: nominal.
        down_rate: of the average pooling after the block.
        mixin: resolution of the coarser stream that is added.
        residual_blocks: blocks without latents after a latent group.
    """

    resolution: int
    down_rate: int | None = None
    mixin: int | None = None
    residual_blocks: int = 0


def parse_blocks(blocks: str, argument: str = "blocks", kinds: str = "xdmr") -> list[BlockSpec]:
    """Reads VD-VAE's block notation.

    "32x3" is three blocks at resolution 32; "32d2" a block at 32 followed by average pooling by 2; "32m16" a block
    at 32 that adds the stream of resolution 16, upsampled; "32" a single block. Beyond VD-VAE, "32r3" is three residual
    blocks that draw no latent: they belong to the group before them, and are no groups themselves.

    Args:
        blocks: comma-separated items, such as `"1x2,4m1,4x3"`.
        argument: the name to use in errors.
        kinds: letters that may occur.

    Raises:
        ValueError: an item that does not follow the notation, or more than 10,000 blocks; the message names it.
    """
    specs: list[BlockSpec] = []
    total = 0
    for item in (part.strip() for part in blocks.split(",")):
        kind = next((letter for letter in kinds if letter in item), None)
        try:
            resolution, number = (int(part) for part in (item.split(kind) if kind else (item, "1")))
        except ValueError:
            resolution = number = 0
        if min(resolution, number) < 1:
            examples = " or ".join(f"'32{letter}2'" for letter in kinds)
            raise ValueError(f"`{argument}`: {item!r} is not block notation such as {examples}")
        total += number if kind in ("x", "r") else 1
        if total > MAX_BLOCKS:
            raise ValueError(f"`{argument}`: {item!r} makes more than {MAX_BLOCKS} blocks")
        if kind == "r":
            if not specs or specs[-1].resolution != resolution or specs[-1].down_rate is not None:
                raise ValueError(f"`{argument}`: {item!r} must follow a group at resolution {resolution}")
            specs[-1] = specs[-1]._replace(residual_blocks=specs[-1].residual_blocks + number)
        elif kind in ("d", "m"):
            specs.append(BlockSpec(resolution, **{"down_rate" if kind == "d" else "mixin": number}))
        else:
            specs.extend([BlockSpec(resolution)] * number)
    return specs


def parse_widths(width: int, custom_widths: str | None, argument: str = "width") -> dict[int, int]:
    """Channels at each resolution: `width`, unless "32:64,16:96" names another.

    `argument` is the name of `width` in errors; that of the other is "custom_" and its plural.

    Raises:
        ValueError: an item that is not "resolution:channels", or channels that are not between 1 and 65536.
    """
    custom = f"custom_{argument.removesuffix('s')}s"
    widths: dict[int, int] = defaultdict(lambda: width)
    for item in filter(None, (part.strip() for part in (custom_widths or "").split(","))):
        try:
            resolution, channels = (int(number) for number in item.split(":"))
        except ValueError:
            raise ValueError(f"`{custom}`: {item!r} is not 'resolution:channels', such as '32:64'") from None
        widths[resolution] = channels
    for channels in (width, *widths.values()):
        if not 1 <= channels <= MAX_WIDTH:
            raise ValueError(f"`{argument}` and `{custom}` must be between 1 and {MAX_WIDTH}, got {channels}")
    return widths


def network_input(sample: Tensor, config: Any, dtype: torch.dtype) -> Tensor:
    """An image `[B, 3, H, W]` on [-1, 1] as a bottom-up network reads it: (image on 0..255 + shift) * scale.

    Raises:
        ValueError: another shape, or integers.
    """
    if sample.ndim != 4 or sample.shape[1] != 3 or not sample.is_floating_point():
        raise ValueError(f"`sample` must be [B, 3, H, W] of floats, got {tuple(sample.shape)} of {sample.dtype}")
    return (((sample.float() + 1) * 127.5 + config.input_shift) * config.input_scale).to(dtype)


def set_channels(x: Tensor, channels: int) -> Tensor:
    """Pads with zeros, or truncates, to `channels`: VD-VAE's change of width between resolutions."""
    if x.shape[1] == channels:
        return x
    # Not a slice, whose gradient would have its planes apart in memory, and with it all that it is added to.
    return F.pad(x, (0, 0, 0, 0, 0, channels - x.shape[1]))


class Convolution(nn.Conv2d):
    """A "same" convolution with VD-VAE's initial weights, computed in `compute_dtype`; None is that of its weights."""

    compute_dtype: torch.dtype | None = None

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 1, zero_weights: bool = False) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
        assert self.bias is not None
        nn.init.zeros_(self.bias)
        if zero_weights:
            nn.init.zeros_(self.weight)

    def forward(self, x: Tensor, beside: Tensor | None = None) -> Tensor:
        """The convolution of x `[B, C, h, w]`; or of x and the channels of `beside`, without a map of both.

        Args:
            beside: `[B, C', h, w]`, where the layer has C + C' input channels; it or x may be of one row.
        """
        weight, bias, dtype = self.weight, self.bias, self.compute_dtype
        if dtype is not None:
            x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        elif x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
            x = x.to(weight.dtype)  # a hook casts the weights of single layers (`enable_layerwise_casting`)
        if beside is None:
            return self._conv_forward(x, weight, bias)
        own, other = weight.split((x.shape[1], beside.shape[1]), dim=1)
        return add_in_place(self._conv_forward(x, own, bias), self._conv_forward(beside.to(x), other, None))


class ExactConvolution(Convolution):
    """A convolution in the dtype of its weights, also where autocast has others in half precision.

    Of what it gives, an image, that would keep whole grey levels alone.
    """

    def forward(self, x: Tensor, beside: Tensor | None = None) -> Tensor:
        """As `Convolution`; the dtype is read here, where a hook that stores weights in fewer bits has suited it."""
        # What is counted on the meta device has no autocast.
        with nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False):
            return super().forward(x.to(self.weight.dtype), beside)


class Bias(nn.Module):
    """The learned start of the stream of one resolution: `[1, C, h, w]` of a fixed size, or `[1, C, 1, 1]`."""

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1, channels, side, side))

    def forward(self, batch_size: int, height: int, width: int) -> Tensor:
        return self.bias.expand(batch_size, -1, height, width)


class Affine(nn.Module):
    """x * gain + bias for each channel, before the likelihood's convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain.to(x.dtype) + self.bias.to(x.dtype)


class Bottleneck(nn.Module):
    """VD-VAE's block: four convolutions (1x1, kxk, kxk, 1x1), each after the activation; optional residual, pooling.

    Args:
        resolution: nominal; k is 3, but 1 at resolutions 1 and 2, where a 3x3 kernel would mostly see padding.
        residual: whether the input is added to the output.
        down_rate: average pooling after the block, or None.
        zero_last: zero weights in the last convolution at the start.
    """

    def __init__(
        self,
        in_channels: int,
        middle_channels: int,
        out_channels: int,
        resolution: int,
        residual: bool = False,
        down_rate: int | None = None,
        zero_last: bool = False,
        activation: str = "gelu",
    ) -> None:
        super().__init__()
        check_choice("activation", activation, ACTIVATIONS)
        if middle_channels < 1:
            raise ValueError(f"`bottleneck_multiple` leaves no channels inside a block of {in_channels}")
        if middle_channels > MAX_WIDTH:
            raise ValueError(f"`bottleneck_multiple` makes {middle_channels} channels, more than {MAX_WIDTH}")
        kernel_size = 3 if resolution > 2 else 1
        self.residual = residual
        self.down_rate = down_rate
        self.activation = ACTIVATIONS[activation]
        self.c1 = Convolution(in_channels, middle_channels)
        self.c2 = Convolution(middle_channels, middle_channels, kernel_size)
        self.c3 = Convolution(middle_channels, middle_channels, kernel_size)
        self.c4 = Convolution(middle_channels, out_channels, zero_weights=zero_last)

    @property
    def reducible(self) -> tuple[nn.Module, ...]:
        """What may convolve in a smaller dtype: heads and those that change the width may not."""
        return (self.c1, self.c2, self.c3, self.c4) if self.residual else ()

    def forward(self, x: Tensor, features: Tensor | None = None, activated: bool = False) -> Tensor:
        """`[B, in_channels, H, W]` -> `[B, out_channels, H / down_rate, W / down_rate]`, in the dtype of x.

        Args:
            x: the stream.
            features: channels beside those of x, activated. Either may have one row for all of the other.
            activated: whether x is so too, once for many blocks.
        """
        h = x if activated else self.activation(x)
        if features is None:
            h = self.c1(h)
        elif isinstance(self.c1, Convolution):
            h = self.c1(h, features)
        else:  # a layer in its place, such as LoRA's, takes one map
            rows = h.shape[0] if features.shape[0] == 1 else features.shape[0]  # which may be a symbol, not so `len`
            h = self.c1(torch.cat([part.expand(rows, -1, -1, -1) for part in (h, features.to(h))], dim=1))
        inplace = not torch.is_grad_enabled()  # what no gradient needs is overwritten: new memory would take longer
        h = self.c2(self.activation(h, inplace=inplace))
        h = self.c3(self.activation(h, inplace=inplace))
        h = self.c4(self.activation(h, inplace=inplace))
        if self.residual:
            h = add_in_place(h, x)
        if self.down_rate is not None:
            h = F.avg_pool2d(h, kernel_size=self.down_rate, stride=self.down_rate)
        return h


def residual_block(
    width: int, multiple: float, resolution: int, activation: str, depth: int = 1, down_rate: int | None = None
) -> Bottleneck:
    """A `Bottleneck` of `int(width * multiple)` channels inside that is added to its input, one of `depth` in a row."""
    block = Bottleneck(width, int(width * multiple), width, resolution, True, down_rate, activation=activation)
    with torch.no_grad():
        block.c4.weight.mul_((1 / depth) ** 0.5)
    return block


def add_in_place(total: Tensor, x: Tensor) -> Tensor:
    """total + x, in the memory of `total`, which nothing else needs, or in memory of its own where it does not fit."""
    if total.shape != x.shape:
        return total + x
    # Of two dtypes torch would make a copy in the larger one, and then memory for the sum beside it.
    return total.to(torch.promote_types(total.dtype, x.dtype)).add_(x)


def set_compute_dtype(model: Any, dtype: torch.dtype | None) -> None:
    """The dtype policy: `reducible` convolutions compute in `dtype` (None: that of the weights), all else as it is.

    The rounding of a coarse group is amplified by the finer ones, most of all by their heads: with streams, heads,
    Gaussians and likelihood in bfloat16 too, a window of a large image, which sees a little less than the whole, would
    differ from it by more than a grey level in single pixels.
    """
    model.compute_dtype = dtype
    for block in model.modules():
        for layer in getattr(block, "reducible", ()):
            if isinstance(layer, Convolution):
                layer.compute_dtype = dtype


class Upsampler(nn.Module):
    """A 3x3 convolution and a pixel shuffle: a map at `factor` times the resolution."""

    def __init__(self, in_channels: int, out_channels: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.conv = Convolution(in_channels, out_channels * factor**2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.conv(x), self.factor)


class BottomUp(nn.Module):
    """VD-VAE's bottom-up network: a stem and residual blocks; one feature map for each resolution.

    Args:
        blocks: block notation from the finest resolution down, such as `"32x2,32d2,16x2"`.
        widths: channels at each nominal resolution.
        patch_size: space-to-depth factor before the stem (1 as published).
        skip: adds the stem's output after the last block at the finest resolution (EDSR's long skip).
        argument: the name of `blocks` in errors.
        extra_channels: what the stem reads beside the image.
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
        extra_channels: int = 0,
    ) -> None:
        super().__init__()
        specs = parse_blocks(blocks, argument, "xd")
        self.patch_size = patch_size
        self.resolution = specs[0].resolution
        self.resolutions_after = [spec.resolution // (spec.down_rate or 1) for spec in specs]
        following = [*(spec.resolution for spec in specs[1:]), self.resolutions_after[-1]]
        for after, then in zip(self.resolutions_after, following, strict=True):
            if after != then or after < 1:
                raise ValueError(f"`{argument}`: resolution {after} cannot be followed by {then} in {blocks!r}")
        self.widths = {resolution: widths[resolution] for resolution in (self.resolution, *self.resolutions_after)}
        last = [i for i, spec in enumerate(specs) if spec == BlockSpec(self.resolution)]
        self.skip_after = last[-1] if skip and last else None
        self.in_conv = Convolution(3 * patch_size**2 + extra_channels, widths[self.resolution], 3)
        self.blocks = nn.ModuleList(
            residual_block(widths[s.resolution], bottleneck_multiple, s.resolution, activation, len(specs), s.down_rate)
            for s in specs
        )
        self.gradient_checkpointing = False

    def forward(self, x: Tensor) -> dict[int, Tensor]:
        """`[B, 3, H, W]` -> the last feature map of each nominal resolution, `{resolution: [B, width, h, w]}`."""
        if self.patch_size > 1:
            x = F.pixel_unshuffle(x, self.patch_size)
        stem = x = self.in_conv(x.contiguous(memory_format=torch.channels_last))
        features = {self.resolution: x}
        for i, block in enumerate(self.blocks):
            x = run_layer(self, block, x)
            if i == self.skip_after:
                x = x + stem
            x = set_channels(x, self.widths[self.resolutions_after[i]])
            features[self.resolutions_after[i]] = x
        return features
