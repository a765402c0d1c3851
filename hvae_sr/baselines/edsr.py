"""EDSR (Lim et al., "Enhanced Deep Residual Networks for Single Image Super-Resolution", CVPR workshops 2017): the
regression that the VDVAE-SR thesis compares with."""

from collections.abc import Sequence

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from ..hooks import run_layer
from ..loading import StrictLoading
from ..models.blocks import ExactConvolution, check_choice
from .common import RegressionNetwork, check_whole

DIV2K_MEAN = (0.4488, 0.4371, 0.404)
"""Mean colour of DIV2K's training images, on [0, 1]."""


class EDSR(RegressionNetwork, StrictLoading, ModelMixin, ConfigMixin):
    """A residual network without normalisation at the resolution of y, then pixel shuffles.

    With m the mean colour, h = Head(y - m) and residual blocks f_i(h) = h + r Conv(ReLU(Conv(h))),

        x = m + Tail(h + Conv(f_n(... f_1(h)))).

    Trained with the L1 loss. The weights' names are those of the published code (sanghyun-son/EDSR-PyTorch).

    Args:
        scale_factor: 2, 3 or 4 (two shuffles of 2).
        num_blocks: n; 16 in the published baseline, 32 in the large model.
        width: channels; 64 and 256.
        residual_scale: r; 1 and 0.1. It is in no state dict, and a wrong one loads silently.
        value_range: images are on [0, value_range]; 255 as published.
        mean: m on [0, 1]. Its two layers are stored with the weights, which win.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        scale_factor: int = 4,
        num_blocks: int = 16,
        width: int = 64,
        residual_scale: float = 1.0,
        value_range: float = 255.0,
        mean: Sequence[float] = DIV2K_MEAN,
    ) -> None:
        super().__init__()
        check_choice("scale_factor", scale_factor, (2, 3, 4))
        check_whole(num_blocks=num_blocks, width=width)
        if not 0 < value_range < float("inf"):
            raise ValueError(f"`value_range` must be above 0 and finite, got {value_range!r}")
        if len(mean) != 3:
            raise ValueError(f"`mean` must be three numbers, got {mean!r}")
        shift = [value_range * m for m in mean]
        self.sub_mean = _shift([-m for m in shift])
        self.add_mean = _shift(shift)
        self.head = nn.Sequential(_conv(3, width))
        blocks = [ResidualBlock(width, residual_scale) for _ in range(num_blocks)]
        self.body = nn.Sequential(*blocks, _conv(width, width))
        upsampler = nn.Sequential()
        for factor in {2: (2,), 3: (3,), 4: (2, 2)}[scale_factor]:
            upsampler.extend([_conv(width, width * factor**2), nn.PixelShuffle(factor)])
        self.tail = nn.Sequential(upsampler, ExactConvolution(width, 3, 3))
        self.gradient_checkpointing = False

    def _image(self, sample: Tensor) -> Tensor:
        h = x = self.head(self.sub_mean(sample))
        for block in self.body:
            x = run_layer(self, block, x)
        return self.add_mean(self.tail(h + x))


class ResidualBlock(nn.Module):
    """f(h) = h + r Conv(ReLU(Conv(h))): `[B, width, h, w]` to the same."""

    def __init__(self, width: int, residual_scale: float) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv(width, width), nn.ReLU(), _conv(width, width))
        self.residual_scale = residual_scale

    def forward(self, h: Tensor) -> Tensor:
        return h + self.residual_scale * self.body(h)


def _conv(width_in: int, width_out: int) -> nn.Conv2d:
    return nn.Conv2d(width_in, width_out, 3, padding=1)


def _shift(bias: Sequence[float]) -> nn.Conv2d:
    """Adds a colour: a fixed 1x1 convolution, as the published state dicts store it."""
    layer = ExactConvolution(3, 3)
    layer.weight = nn.Parameter(torch.eye(3)[:, :, None, None], requires_grad=False)
    layer.bias = nn.Parameter(torch.tensor(bias, dtype=torch.float32), requires_grad=False)
    return layer
