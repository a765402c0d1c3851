"""RRDBNet: residual-in-residual dense blocks, the network of ESRGAN (Wang et al., "ESRGAN: Enhanced Super-Resolution
Generative Adversarial Networks", ECCV workshops 2018) and Real-ESRGAN (Wang et al., ICCV workshops 2021)."""

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from ..loading import StrictLoading
from ..models.blocks import check_choice
from .common import ImageOutput, check_images, check_whole

RESIDUAL_SCALE = 0.2
NEGATIVE_SLOPE = 0.2


class RRDBNet(StrictLoading, ModelMixin, ConfigMixin):
    """Dense residual blocks at the resolution of y, then two steps of nearest neighbours and convolution.

    With h = Conv(y) and a = LeakyReLU(0.2): x = Conv(a(Conv(u(u(h + Conv(RRDB_n(... RRDB_1(h)))))))), where
    u(h) = a(Conv(h enlarged by 2)). For scale factors below 4 the input is pixel-unshuffled by 4 / s first, and the
    sides of y must be multiples of that.

    The weights' names are BasicSR's; `hvae-sr convert` also reads those of the ESRGAN repository, old and new.

    Args:
        scale_factor: 4, 2 (unshuffled by 2) or 1 (by 4).
        num_blocks: n; 23 as published, 6 in the network for drawings.
        width: channels; 64.
        growth: channels that each layer of a dense block adds; 32.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(self, scale_factor: int = 4, num_blocks: int = 23, width: int = 64, growth: int = 32) -> None:
        super().__init__()
        check_choice("scale_factor", scale_factor, (1, 2, 4))
        for name, value in (("num_blocks", num_blocks), ("width", width), ("growth", growth)):
            check_whole(name, value)
        self.unshuffle = 4 // scale_factor
        self.conv_first = _conv(3 * self.unshuffle**2, width)
        self.body = nn.Sequential(*(RRDB(width, growth) for _ in range(num_blocks)))
        self.conv_body = _conv(width, width)
        self.conv_up1 = _conv(width, width)
        self.conv_up2 = _conv(width, width)
        self.conv_hr = _conv(width, width)
        self.conv_last = _conv(width, 3)
        self.gradient_checkpointing = False

    def forward(self, sample: Tensor, return_dict: bool = True) -> ImageOutput | tuple[Tensor]:
        """x from y.

        Args:
            sample: y, `[B, 3, h, w]` on [0, 1]; sides multiples of 4 / scale_factor.
            return_dict: False for a tuple.

        Returns:
            `[B, 3, s h, s w]`, nominally on [0, 1], not clamped.

        Raises:
            ValueError: a tensor of another type or shape.
        """
        check_images("sample", sample, multiple=self.unshuffle)
        h = x = self.conv_first(F.pixel_unshuffle(sample, self.unshuffle))
        for block in self.body:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = self._gradient_checkpointing_func(block, x)
            else:
                x = block(x)
        x = h + self.conv_body(x)
        for layer in (self.conv_up1, self.conv_up2):
            x = _activate(layer(F.interpolate(x, scale_factor=2, mode="nearest")))
        x = self.conv_last(_activate(self.conv_hr(x)))
        return ImageOutput(x) if return_dict else (x,)


class RRDB(nn.Module):
    """Three dense blocks in a residual one: h + 0.2 D_3(D_2(D_1(h))), `[B, width, h, w]` to the same."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.rdb1 = DenseBlock(width, growth)
        self.rdb2 = DenseBlock(width, growth)
        self.rdb3 = DenseBlock(width, growth)

    def forward(self, h: Tensor) -> Tensor:
        """The block's output."""
        return h + RESIDUAL_SCALE * self.rdb3(self.rdb2(self.rdb1(h)))


class DenseBlock(nn.Module):
    """D(h) = h + 0.2 Conv_5([h, c_1, ..., c_4]) with c_i = LeakyReLU(Conv_i([h, c_1, ..., c_(i-1)]))."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.conv1 = _conv(width, growth)
        self.conv2 = _conv(width + growth, growth)
        self.conv3 = _conv(width + 2 * growth, growth)
        self.conv4 = _conv(width + 3 * growth, growth)
        self.conv5 = _conv(width + 4 * growth, width)

    def forward(self, h: Tensor) -> Tensor:
        """D(h)."""
        features = [h]
        for layer in (self.conv1, self.conv2, self.conv3, self.conv4):
            features.append(_activate(layer(torch.cat(features, 1))))
        return h + RESIDUAL_SCALE * self.conv5(torch.cat(features, 1))


def _activate(x: Tensor) -> Tensor:
    return F.leaky_relu(x, NEGATIVE_SLOPE)


def _conv(width_in: int, width_out: int) -> nn.Conv2d:
    return nn.Conv2d(width_in, width_out, 3, padding=1)
