"""SPAN (Wan et al., "Swift Parameter-free Attention Network for Efficient Super-Resolution", CVPR workshops 2024)."""

from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from ..loading import StrictLoading
from ..models.span import SPANLayers
from .common import RegressionNetwork, check_whole


class SPAN(SPANLayers, RegressionNetwork, StrictLoading, ModelMixin, ConfigMixin):
    """Six attention blocks without parameters and one pixel shuffle: a regression that takes little time.

    The layers are `SPANLayers`.

    Args:
        scale_factor: s, of the one pixel shuffle; 2 or 4 as published.
        width: channels; 48 or 52 as published.
    """

    @register_to_config
    def __init__(self, scale_factor: int = 4, width: int = 48) -> None:
        super().__init__()
        check_whole(scale_factor=scale_factor, width=width)
        self._build_layers(scale_factor, width)

    def _image(self, sample: Tensor) -> Tensor:
        return self.image(self.features(sample))
