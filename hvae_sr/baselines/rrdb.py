"""RRDBNet: residual-in-residual dense blocks, the network of ESRGAN (Wang et al., "ESRGAN: Enhanced Super-Resolution
Generative Adversarial Networks", ECCV workshops 2018) and Real-ESRGAN (Wang et al., ICCV workshops 2021)."""

import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from ..loading import StrictLoading
from ..models.blocks import check_choice
from ..models.rrdb import RRDBLayers
from .common import RegressionNetwork, check_whole


class RRDBNet(RRDBLayers, RegressionNetwork, StrictLoading, ModelMixin, ConfigMixin):
    """Dense residual blocks at the resolution of y, then two steps of nearest neighbours and convolution.

    The layers are `RRDBLayers`, for either `upsampling`. For scale factors below 4 the input is pixel-unshuffled by
    4 / s first, and the sides of y must be multiples of that.

    The weights' names are BasicSR's; `hvae-sr convert` also reads those of the ESRGAN repository, old and new.

    Args:
        scale_factor: 4, 2 (unshuffled by 2) or 1 (by 4).
        num_blocks: n; 23 as published, 6 in the network for drawings.
        width: channels; 64.
        growth: channels that each layer of a dense block adds; 32.
        upsampling: "nearest", as published, or "pixelshuffle", in a quarter of the operations after the blocks.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        scale_factor: int = 4,
        num_blocks: int = 23,
        width: int = 64,
        growth: int = 32,
        upsampling: str = "nearest",
    ) -> None:
        super().__init__()
        check_choice("scale_factor", scale_factor, (1, 2, 4))
        check_whole(num_blocks=num_blocks, width=width, growth=growth)
        self.unshuffle = 4 // scale_factor
        self._build_layers(3 * self.unshuffle**2, num_blocks, width, growth, upsampling)

    def _image(self, sample: Tensor) -> Tensor:
        return self.image(self.features(F.pixel_unshuffle(sample, self.unshuffle)))
