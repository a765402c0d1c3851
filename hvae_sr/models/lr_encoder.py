"""CVDVAE's stochastic encoder (Prost et al., 2023): q_psi(z_l | z_<l, y) for the first k groups of a frozen prior."""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from ..hooks import entry_point
from ..loading import StrictLoading
from .blocks import ACTIVATIONS, Bottleneck, parse_widths
from .condition import Features, LRNetwork
from .distributions import DiagonalGaussian


class LREncoder(LRNetwork, StrictLoading, ModelMixin, ConfigMixin):
    """CVDVAE's stochastic encoder q_psi(z_<k | y): a bottom-up network over y and one posterior head per group.

    Heads of groups finer than y read features that `upsampling_blocks` make. Resolutions are nominal, as in `VDVAE`.

    Args:
        image_size: nominal side of y, the VDVAE's divided by the scale.
        blocks: bottom-up block notation, such as `"16x3,16d2,8x2"`.
        upsampling_blocks: such as `"32m16,32x1"`, or None.
        width, custom_widths, bottleneck_multiple, activation: of the bottom-up network.
        long_skip: adds the stem's features after the blocks at y's resolution (EDSR).
        input_shift, input_scale: the network reads (y + input_shift) * input_scale, y on 0..255.
        num_conditioned_groups: k; None means every group.
        decoder_blocks, decoder_width, decoder_custom_widths, decoder_bottleneck_multiple, latent_channels: as in the
            VDVAE's configuration.
        max_deviation: keeps the means of q_psi within so many standard deviations of the prior's (each at most e), so
            that an input unlike any photograph, such as noise, cannot send the stream to infinity; None (as published)
            leaves them free.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["Bottleneck"]
    _repeated_blocks = ["Bottleneck"]

    @register_to_config
    def __init__(
        self,
        image_size: int = 8,
        blocks: str = "8x2,8d2,4x2",
        upsampling_blocks: str | None = None,
        width: int = 32,
        custom_widths: str | None = None,
        bottleneck_multiple: float = 0.25,
        activation: str = "gelu",
        long_skip: bool = False,
        input_shift: float = -127.5,
        input_scale: float = 1 / 127.5,
        num_conditioned_groups: int | None = 5,
        decoder_blocks: str = "4x2,8m4,8x2,16m8,16x2,32m16,32x2",
        decoder_width: int = 32,
        decoder_custom_widths: str | None = None,
        decoder_bottleneck_multiple: float = 0.25,
        latent_channels: int = 16,
        max_deviation: float | None = None,
    ) -> None:
        super().__init__()
        if max_deviation is not None and not max_deviation > 0:
            raise ValueError(f"`max_deviation` must be None or above 0, got {max_deviation}")
        self._build_network()
        widths = parse_widths(decoder_width, decoder_custom_widths)
        self.resolutions = self._conditioned_resolutions()
        self.heads = nn.ModuleList()
        for index, resolution in enumerate(self.resolutions):
            if resolution not in self.network.widths:
                raise ValueError(
                    f"`num_conditioned_groups`: group {index} works at resolution {resolution}, where there are "
                    "no features of y; extend `blocks` or `upsampling_blocks`, or condition fewer groups"
                )
            read = widths[resolution] + self.network.widths[resolution]
            inner = int(widths[resolution] * decoder_bottleneck_multiple)
            self.heads.append(Bottleneck(read, inner, 2 * latent_channels, resolution, activation=activation))

    def _for_groups(self, features: Features) -> Features:
        """Activated here, once for all heads and samples."""
        activation = ACTIVATIONS[self.config.activation]
        return {resolution: activation(x) for resolution, x in features.items()}

    def has_posterior(self, group: int) -> bool:
        """Whether l < k."""
        return group < len(self.heads)

    @entry_point
    def posterior(self, features: Features, group: int, h: Tensor, prior: DiagonalGaussian) -> DiagonalGaussian | None:
        """q_psi(z_l | z_<l, y) for l < k (CVDVAE, eq. 12), within `max_deviation` of the group's prior.

        It reads the features of y and the group's stream h `[B or 1, width, h, w]`, both activated.
        """
        if not self.has_posterior(group):
            return None
        y = features[self.resolutions[group]]
        q_psi = DiagonalGaussian.from_parameters(self.heads[group](h.to(y.dtype), y, activated=True))
        if self.config.max_deviation is None:
            return q_psi
        # The prior's own deviation is bounded too: after one latent far out, it may be anything.
        reach = self.config.max_deviation * torch.exp(prior.log_sigma.clamp(max=1.0))
        mean = torch.clamp(q_psi.mean, prior.mean - reach, prior.mean + reach)
        return DiagonalGaussian(mean, q_psi.log_sigma.clamp(max=2.5))
