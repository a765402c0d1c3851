"""CVDVAE's stochastic encoder (Prost et al., 2023): q_psi(z_l | z_<l, y) for the first k groups of a frozen prior."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from ..loading import StrictLoading
from .blocks import ACTIVATIONS, Bottleneck, kernel_size_at, parse_widths
from .condition import Condition, LRFeatures, LRNetwork
from .distributions import DiagonalGaussian
from .hooks import entry_point


class LRHead(Bottleneck):
    """The posterior head of one group: a block that reads the stream and the features of y, `cat((x, f))`."""

    def forward(self, x: Tensor, features: Tensor) -> Tensor:  # type: ignore[override]
        """Mean and log_sigma, `[B, 2 C, h, w]`.

        Args:
            x: the stream, `[B or 1, width, h, w]`.
            features: activated already, once for all samples and heads, `[B or 1, width', h, w]`.
        """
        rows = x.shape[0] if features.shape[0] == 1 else features.shape[0]
        parts = (part.expand(rows, -1, -1, -1) for part in (self.activation(x), features.to(x)))
        return self.inner(torch.cat(tuple(parts), dim=1))


@dataclass(frozen=True)
class LREncoderCondition(Condition):
    """q_psi(z_l | z_<l, y) for l < k.

    Args:
        activated: the features' activations, which all heads and samples read.
    """

    activated: dict[int, Tensor] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of all maps."""
        return super().nbytes + sum(x.nbytes for x in self.activated.values())

    def _with_rows(self, choose: Callable[[Tensor], Tensor]) -> Condition:
        activated = {resolution: choose(x) for resolution, x in self.activated.items()}
        chosen = super()._with_rows(choose)
        return LREncoderCondition(self.network, chosen.features, chosen.location, activated)

    def has_posterior(self, group: int) -> bool:
        """Whether l < k."""
        return group < len(self.network.heads)

    def posterior(self, group: int, x: Tensor, prior: DiagonalGaussian) -> DiagonalGaussian | None:
        """q_psi(z_l | z_<l, y) for l < k (CVDVAE, eq. 12); within `max_deviation` of the group's prior."""
        return self.network.posterior(self.activated, group, x, prior) if self.has_posterior(group) else None


class LREncoder(LRNetwork, StrictLoading, ModelMixin, ConfigMixin):
    """CVDVAE's stochastic encoder q_psi(z_<k | y): a bottom-up network over y and one posterior head per group.

    Heads of groups finer than y read features that `upsampling_blocks` make. Resolutions are nominal, as in `VDVAE`:
    `image_size` here is the nominal side of y, the VDVAE's divided by the scale.

    Args:
        image_size: nominal side of y.
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
    _no_split_modules = ["Bottleneck", "LRHead"]
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
        num_conditioned_groups: int | None = 6,
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
        specs = self._conditioned_groups()
        widths = parse_widths(decoder_width, decoder_custom_widths)
        resolutions = [spec.resolution for spec in specs]
        for index, resolution in enumerate(resolutions):
            if resolution not in self.network.widths:
                raise ValueError(
                    f"`num_conditioned_groups`: group {index} works at resolution {resolution}, where there are "
                    "no features of y; extend `blocks` or `upsampling_blocks`, or condition fewer groups"
                )
        self.heads = nn.ModuleList(
            LRHead(
                widths[resolution] + self.network.widths[resolution],
                int(widths[resolution] * decoder_bottleneck_multiple),
                2 * latent_channels,
                kernel_size_at(resolution),
                activation=activation,
            )
            for resolution in resolutions
        )
        self.resolutions = resolutions

    @entry_point
    def encode(self, sample: Tensor) -> Condition:
        """Features of y for a top-down pass.

        Args:
            sample: y, `[B, 3, h, w]` on [-1, 1].

        Raises:
            ValueError: not [B, 3, h, w], or sides that are no multiples of `size_multiple`.
        """
        activation = ACTIVATIONS[self.config.activation]
        features = self._features(sample)
        return LREncoderCondition(
            self, features, None, {resolution: activation(x) for resolution, x in features.items()}
        )

    @entry_point
    def posterior(
        self, features: dict[int, Tensor], group: int, x: Tensor, prior: DiagonalGaussian
    ) -> DiagonalGaussian:
        """q_psi(z_l | z_<l, y) for l < k (eq. 12); within `max_deviation` of the group's prior.

        Args:
            features: of y, activated, `{nominal resolution: [B, width, h, w]}`.
            group: l.
            x: the group's stream, `[B or 1, width, h, w]`.
            prior: of the group.
        """
        q_psi = DiagonalGaussian.from_parameters(self.heads[group](x, features[self.resolutions[group]]))
        if self.config.max_deviation is None:
            return q_psi
        # The prior's own deviation is bounded too: after one latent far out, it may be anything.
        reach = self.config.max_deviation * torch.exp(prior.log_sigma.clamp(max=1.0))
        mean = torch.clamp(q_psi.mean, prior.mean - reach, prior.mean + reach)
        return DiagonalGaussian(mean, q_psi.log_sigma.clamp(max=2.5))

    def forward(self, sample: Tensor, return_dict: bool = True) -> LRFeatures | tuple[Any, ...]:
        """The features of y, `[B, 3, h, w]` on [-1, 1]."""
        return self._output(sample, return_dict)
