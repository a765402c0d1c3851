"""Feature maps of an observation y at every resolution that a conditioned group works at."""

from dataclasses import dataclass

import torch.nn.functional as F
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from .layers import Bottleneck, BottomUp, convolution, kernel_size_at, parse_blocks
from .loading import PerGroup


@dataclass
class LRFeatures(BaseOutput):
    """What the `forward` of an LR network returns.

    Args:
        sample: `[B, width, h, w]`, the finest feature map.
        features: the feature map of each nominal resolution, coarse to fine.
    """

    sample: Tensor
    features: PerGroup = None  # type: ignore[assignment]  # accelerate's hooks rebuild outputs from a dictionary


class Upsampler(nn.Module):
    """A 3x3 convolution and a pixel shuffle: features of y at a resolution above y's own."""

    def __init__(self, in_channels: int, out_channels: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.conv = convolution(in_channels, out_channels * factor**2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.conv(x), self.factor)


class LinearFeatures(nn.Module):
    """A single convolution from y to a coarser resolution, each position of which reads the pixels of y it covers.

    The encoder of VDVAE-SR's trivial version (thesis, section 5.4): at resolution 1 a linear map of the whole y.

    Args:
        image_size: nominal side of y.
        resolution: of the feature map.
        channels: of the feature map; they are zero at the start.
    """

    def __init__(self, image_size: int, resolution: int, channels: int) -> None:
        super().__init__()
        if image_size % resolution:
            raise ValueError(
                f"`image_size` must be a multiple of the top group's resolution {resolution}, got {image_size}"
            )
        self.stride = image_size // resolution
        self.widths = {resolution: channels}
        self.conv = convolution(3 * self.stride**2, channels, zero_weights=True)
        self.gradient_checkpointing = False  # there is nothing to run again

    def forward(self, y: Tensor) -> dict[int, Tensor]:
        """`[B, 3, h, w]`, normalised -> `{resolution: [B, channels, h / stride, w / stride]}`."""
        (resolution,) = self.widths
        return {resolution: self.conv(F.pixel_unshuffle(y, self.stride))}


class LRFeatureNetwork(nn.Module):
    """Feature maps of y at its own resolution and below (bottom-up), and above it (upsampling blocks).

    Args:
        blocks: bottom-up block notation in nominal resolutions, starting at y's.
        upsampling_blocks: such as `"32m16,32x1"`: resolution 32 made from 16, then a block there; None for none.
        widths: channels at each nominal resolution.
        bottleneck_multiple, skip, activation: see `BottomUp`.
    """

    def __init__(
        self,
        blocks: str,
        upsampling_blocks: str | None,
        widths: dict[int, int],
        bottleneck_multiple: float,
        skip: bool,
        activation: str,
    ) -> None:
        super().__init__()
        self.bottom_up = BottomUp(
            blocks, widths, bottleneck_multiple, skip=skip, activation=activation, argument="blocks"
        )
        self.widths = dict(self.bottom_up.widths)
        self.up_specs = parse_blocks(upsampling_blocks, "upsampling_blocks") if upsampling_blocks else []
        up_layers: list[nn.Module] = []
        for spec in self.up_specs:
            width = widths[spec.resolution]
            if spec.mixin is not None and spec.mixin in self.widths and spec.resolution % spec.mixin == 0:
                up_layers.append(Upsampler(self.widths[spec.mixin], width, spec.resolution // spec.mixin))
            elif spec.mixin is None and spec.down_rate is None and spec.resolution in self.widths:
                middle = int(width * bottleneck_multiple)
                kernel_size = kernel_size_at(spec.resolution)
                up_layers.append(Bottleneck(width, middle, width, kernel_size, residual=True, activation=activation))
            else:
                raise ValueError(f"`upsampling_blocks`: nothing to make {spec} from in {upsampling_blocks!r}")
            self.widths[spec.resolution] = width
        self.up_blocks = nn.ModuleList(up_layers)

    def forward(self, y: Tensor) -> dict[int, Tensor]:
        """`[B, 3, h, w]`, normalised -> `{nominal resolution: [B, width, ...]}`."""
        features = self.bottom_up(y)
        for spec, block in zip(self.up_specs, self.up_blocks, strict=True):
            features[spec.resolution] = block(features[spec.mixin if spec.mixin is not None else spec.resolution])
        return features
