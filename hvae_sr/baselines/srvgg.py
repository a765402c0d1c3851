"""SRVGGNetCompact: the plain network of Real-ESRGAN's fast models (Wang et al., "Real-ESRGAN: Training Real-World Blind
Super-Resolution with Pure Synthetic Data", ICCV workshops 2021, and its repository)."""

import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from ..loading import StrictLoading
from .common import RegressionNetwork, check_whole


class PReLU(nn.PReLU):
    """With slopes in the dtype of the map: hooks that store weights in fewer bits leave those of activations alone."""

    def forward(self, x: Tensor) -> Tensor:
        """max(0, x) + slope min(0, x), with a slope for each channel."""
        return F.prelu(x, self.weight.to(x.dtype))


class SRVGGNetCompact(RegressionNetwork, StrictLoading, ModelMixin, ConfigMixin):
    """Convolutions and PReLUs in a row, one pixel shuffle, and y enlarged by nearest neighbours added.

    The weights' names are those of the published code: `body` alternates convolutions and activations.

    Args:
        scale_factor: s, of the one pixel shuffle; 4 as published.
        num_layers: inner convolutions; 16 (realesr-animevideov3) or 32 (realesr-general-x4v3).
        width: channels; 64.
    """

    @register_to_config
    def __init__(self, scale_factor: int = 4, num_layers: int = 16, width: int = 64) -> None:
        super().__init__()
        check_whole(scale_factor=scale_factor, num_layers=num_layers, width=width)
        layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1), PReLU(width)]
        for _ in range(num_layers):
            layers += [nn.Conv2d(width, width, 3, padding=1), PReLU(width)]
        layers.append(nn.Conv2d(width, 3 * scale_factor**2, 3, padding=1))
        self.body = nn.Sequential(*layers)

    def _image(self, sample: Tensor) -> Tensor:
        s = self.config.scale_factor
        return F.pixel_shuffle(self.body(sample), s) + F.interpolate(sample, scale_factor=s, mode="nearest")
