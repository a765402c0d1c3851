"""SPAN: six attention blocks without parameters (Wan et al., "Swift Parameter-free Attention Network for Efficient
Super-Resolution", CVPR workshops 2024), the layers of the network `SPAN` and of an LR network's regression."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import Convolution, ExactConvolution
from .outputs import Regressed

NUM_BLOCKS = 6
COLOUR_MEAN = (0.4488, 0.4371, 0.4040)
"""Of DIV2K's photographs, on [0, 1]: subtracted from y."""
RANGE = 255.0


class SPANLayers:
    """Convolutions at the resolution of y, each block's output times its own attention, and one pixel shuffle.

    With f_0 = Conv(255 (y - mean)) and SPAB (`SPAB`): f_i = SPAB_i(f_(i-1)), f = Conv_1x1([f_0, Conv(f_6), f_1, a_6]),
    x = shuffle(Conv(f)), where a_6 is the first convolution's output in the sixth block. The weights' names are those
    of the published code, its three convolutions in training merged into the one that they amount to.
    """

    scale_factor: int

    def _build_layers(self, scale_factor: int, width: int) -> None:
        self.scale_factor = scale_factor
        self.conv_1 = Convolution(3, width, 3)
        for index in range(1, NUM_BLOCKS + 1):
            setattr(self, f"block_{index}", SPAB(width))
        self.conv_2 = Convolution(width, width, 3)
        self.conv_cat = Convolution(4 * width, width)
        self.upsampler = nn.Sequential(ExactConvolution(width, 3 * scale_factor**2, 3), nn.PixelShuffle(scale_factor))

    @property
    def reducible(self) -> tuple[nn.Module, ...]:
        """What may convolve in a smaller dtype, beside the blocks' own: all but the last, which gives the image."""
        return self.conv_1, self.conv_2, self.conv_cat

    def features(self, y: Tensor) -> Tensor:
        """f, `[B, width, h, w]`, from `[B, 3, h, w]` on [0, 1]."""
        stem = self.conv_1((y - y.new_tensor(COLOUR_MEAN).view(3, 1, 1)) * RANGE)
        x, first, inner = stem, stem, stem
        for index in range(1, NUM_BLOCKS + 1):
            x, inner = getattr(self, f"block_{index}")(x)
            first = x if index == 1 else first
        return self.conv_cat(torch.cat([stem, self.conv_2(x).to(stem), first.to(stem), inner.to(stem)], dim=1))

    def image(self, features: Tensor) -> Tensor:
        """x, `[B, 3, s h, s w]`, nominally on [0, 1], from f."""
        return self.upsampler(features)


class SPAB(nn.Module):
    """(x + o) (sigmoid(o) - 1/2) with o = Conv(SiLU(Conv(SiLU(a)))) and a = Conv(x): the attention is odd in o."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c1_r, self.c2_r, self.c3_r = (Convolution(width, width, 3) for _ in range(3))

    @property
    def reducible(self) -> tuple[nn.Module, ...]:
        """What may convolve in a smaller dtype: all."""
        return self.c1_r, self.c2_r, self.c3_r

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The block's output, `[B, width, h, w]`, and SiLU(a)."""
        inner = F.silu(self.c1_r(x))
        o = self.c3_r(F.silu(self.c2_r(inner)))
        return (o + x) * (torch.sigmoid(o) - 0.5), inner


class Regression(SPANLayers, nn.Module):
    """The layers of a trained `SPAN` in an LR network, whose likelihood is centred on its estimate of E[x | y].

    No training changes them further: what the hierarchy learns is what they leave.

    Args:
        scale_factor: s.
        width: channels.
    """

    def __init__(self, scale_factor: int, width: int) -> None:
        super().__init__()
        self._build_layers(scale_factor, width)
        self.requires_grad_(False)

    def forward(self, y: Tensor) -> Regressed:
        """Features and estimate from y, `[B, 3, h, w]` on [-1, 1]."""
        features = self.features((y + 1) / 2)
        return Regressed(features, self.image(features).float() * 2 - 1)
