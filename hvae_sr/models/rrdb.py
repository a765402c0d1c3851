"""Residual-in-residual dense blocks: the layers of ESRGAN's network (Wang et al., "ESRGAN: Enhanced Super-Resolution
Generative Adversarial Networks", ECCV workshops 2018), which `RRDBNet` and a `Restorer` are made of."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..hooks import run_layer
from .blocks import Convolution, ExactConvolution, check_choice

UPSAMPLINGS = ("nearest", "pixelshuffle")
RESIDUAL_SCALE = 0.2
NEGATIVE_SLOPE = 0.2


class RRDBLayers:
    """Dense residual blocks at the resolution of y, then two steps of nearest neighbours and convolution.

    With h = Conv(y) and a = LeakyReLU(0.2): f = h + Conv(RRDB_n(... RRDB_1(h))) and x = Conv(a(Conv(u(u(f))))), where
    u(f) = a(Conv(f enlarged by 2)). The weights' names are BasicSR's.

    With `upsampling` "pixelshuffle" the second step comes last, as the sub-pixel convolution of ESPCN (Shi et al., CVPR
    2016): x = shuffle(Conv(a(Conv(u(f))))), where the last Conv has 12 channels. What follows the blocks takes a
    quarter of the operations, for it stays at half the resolution of x.
    """

    body: nn.Sequential
    upsampling: str
    gradient_checkpointing = False

    def _build_layers(
        self, in_channels: int, num_blocks: int, width: int = 64, growth: int = 32, upsampling: str = "nearest"
    ) -> None:
        check_choice("upsampling", upsampling, UPSAMPLINGS)
        self.upsampling = upsampling
        shuffled = upsampling == "pixelshuffle"
        self.conv_first = _conv(in_channels, width)
        self.body = nn.Sequential(*(RRDB(width, growth) for _ in range(num_blocks)))
        self.conv_body = _conv(width, width)
        self.conv_up1 = _conv(width, width)
        if not shuffled:
            self.conv_up2 = _conv(width, width)
        self.conv_hr = _conv(width, width)
        self.conv_last = ExactConvolution(width, 12 if shuffled else 3, 3)

    @property
    def reducible(self) -> tuple[nn.Module, ...]:
        """What may convolve in a smaller dtype, beside the blocks' own: all but the first and the last convolution."""
        return self.conv_body, *self._enlarging, self.conv_hr

    @property
    def _enlarging(self) -> tuple[nn.Module, ...]:
        """The convolutions after steps of nearest neighbours."""
        return (self.conv_up1,) if self.upsampling == "pixelshuffle" else (self.conv_up1, self.conv_up2)

    def features(self, y: Tensor) -> Tensor:
        """f, `[B, width, h, w]`, from `[B, in_channels, h, w]` on [0, 1]."""
        h = x = self.conv_first(y)
        for block in self.body:
            x = run_layer(self, block, x)
        return h + self.conv_body(x)

    def image(self, features: Tensor) -> Tensor:
        """x, `[B, 3, 4 h, 4 w]`, nominally on [0, 1], from f."""
        x = features
        for layer in self._enlarging:
            x = _activate(layer(F.interpolate(x, scale_factor=2, mode="nearest")))
        x = self.conv_last(_activate(self.conv_hr(x)))
        return F.pixel_shuffle(x, 2) if self.upsampling == "pixelshuffle" else x


class RRDB(nn.Module):
    """Three dense blocks in a residual one: h + 0.2 D_3(D_2(D_1(h))), `[B, width, h, w]` to the same."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.rdb1 = DenseBlock(width, growth)
        self.rdb2 = DenseBlock(width, growth)
        self.rdb3 = DenseBlock(width, growth)

    def forward(self, h: Tensor) -> Tensor:
        return torch.add(h, self.rdb3(self.rdb2(self.rdb1(h))), alpha=RESIDUAL_SCALE)


class DenseBlock(nn.Module):
    """D(h) = h + 0.2 Conv_5([h, c_1, ..., c_4]) with c_i = LeakyReLU(Conv_i([h, c_1, ..., c_(i-1)]))."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.conv1 = _conv(width, growth)
        self.conv2 = _conv(width + growth, growth)
        self.conv3 = _conv(width + 2 * growth, growth)
        self.conv4 = _conv(width + 3 * growth, growth)
        self.conv5 = _conv(width + 4 * growth, width)

    @property
    def reducible(self) -> tuple[nn.Module, ...]:
        """What may convolve in a smaller dtype: all."""
        return self.conv1, self.conv2, self.conv3, self.conv4, self.conv5

    def forward(self, h: Tensor) -> Tensor:
        features = [h.to(getattr(self.conv1, "compute_dtype", None) or h.dtype)]  # a LoRA in its place has none
        for layer in (self.conv1, self.conv2, self.conv3, self.conv4):
            features.append(_activate(layer(torch.cat(features, 1))))
        return torch.add(h, self.conv5(torch.cat(features, 1)), alpha=RESIDUAL_SCALE)


def _activate(x: Tensor) -> Tensor:
    return F.leaky_relu(x, NEGATIVE_SLOPE)


def _conv(width_in: int, width_out: int) -> Convolution:
    return Convolution(width_in, width_out, 3)
