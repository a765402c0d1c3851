"""Low-resolution networks: how an observation y enters VD-VAE's top-down pass.

`LREncoder` gives q_psi(z_l | z_<l, y) for the first k groups of a frozen prior (CVDVAE, eq. 10-12); `LRConditioner`
(`lr_conditioner.py`) conditions prior and posterior themselves (VDVAE-SR). Both are a network over y, and both are seen
by `VDVAE.top_down` through the same small interface, `Condition`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from ..operators import Downsampling
from .distributions import DiagonalGaussian
from .fast import activate, bare
from .layers import BlockSpec, Bottleneck, Stream, kernel_size_at, parse_blocks, parse_widths
from .loading import StrictLoading, entry_point, per_group
from .lr_features import LinearFeatures, LRFeatureNetwork, LRFeatures


@dataclass
class Condition:
    """Features of a batch of observations y, bound to the network that knows how each group uses them.

    Args:
        network: the LR network.
        features: `{nominal resolution: [B, width, h, w]}`.
        location: `[B, 3, H, W]` on [-1, 1], what the likelihood is centred on, or None.
        shares: what the heads have computed of the features alone, for each group; it serves every sample.
    """

    network: "LRNetwork"
    features: dict[int, Tensor]
    location: Tensor | None = None
    shares: dict[int, Tensor] = field(default_factory=dict)

    @property
    def batch_size(self) -> int:
        """B."""
        return len(next(iter(self.features.values())))

    @property
    def nbytes(self) -> int:
        """Bytes of all maps."""
        location = () if self.location is None else (self.location,)
        return sum(x.nbytes for x in (*self.features.values(), *self.shares.values(), *location))

    def check_batch_size(self, batch_size: int) -> None:
        """Raises a ValueError unless the condition is of one observation, or of `batch_size`."""
        if self.batch_size not in (1, batch_size):
            raise ValueError(f"`condition` is of {self.batch_size} observations, for a batch of {batch_size}")

    def add_to_stream(self, group: int, x: Tensor) -> Tensor:
        """The stream `[B, width, h, w]` of the group, with what the network adds to it."""
        return self.network.add_to_stream(self.features, group, x)

    def add_to_activation(self, group: int, activation: Tensor) -> Tensor:
        """The HR activation `[B, width, h, w]` that the group's q(z | x) reads, with what the network adds to it."""
        return self.network.add_to_activation(self.features, group, activation)

    def has_prior(self, group: int) -> bool:
        """Whether the network makes p(z_group | z_<group, y) of the group's prior, beside the stream."""
        return self.network.has_prior(group)

    def prior(self, group: int, prior: DiagonalGaussian) -> DiagonalGaussian:
        """p(z_group | z_<group, y) from p(z_group | z_<group)."""
        return self.network.prior(self.features, group, prior)

    def has_posterior(self, group: int) -> bool:
        """Whether the network gives q_psi(z_group | z_<group, y)."""
        return self.network.has_posterior(group)

    @property
    def needs_prior(self) -> bool:
        """Whether `posterior` must be given the prior."""
        return bool(self.network.config.get("max_deviation"))

    def posterior(self, group: int, stream: Stream, prior: DiagonalGaussian | None) -> DiagonalGaussian:
        """q_psi(z_group | z_<group, y) from the group's stream, and its prior where `needs_prior`."""
        return self.network.posterior(self.features, self.shares, group, stream, prior)

    def select(self, index: Tensor) -> "Condition":
        """The condition of the batch rows `index` (int64, may repeat): many samples share one bottom-up pass."""
        return self._with_rows(lambda x: x[index])

    def repeat(self, times: int) -> "Condition":
        """The condition of the whole batch `times` over, whose gradients keep their channels last in memory."""
        return self if times == 1 else self._with_rows(lambda x: torch.cat([x] * times))

    def _with_rows(self, choose: Callable[[Tensor], Tensor]) -> "Condition":
        return replace(
            self,
            features={resolution: choose(x) for resolution, x in self.features.items()},
            shares={group: choose(x) for group, x in self.shares.items()},
            location=None if self.location is None else choose(self.location),
        )


class LRNetwork:
    """What `LREncoder` and `LRConditioner` share: normalisation, features and their binding to a decoder.

    By default y conditions nothing; each of the two says what it does condition.
    """

    config: Any
    network: LRFeatureNetwork | LinearFeatures
    dtype: torch.dtype

    def _build_network(self) -> None:
        """Makes the feature network from the configuration."""
        c = self.config
        self.network = LRFeatureNetwork(
            c.blocks,
            c.upsampling_blocks,
            parse_widths(c.width, c.custom_widths),
            c.bottleneck_multiple,
            c.long_skip,
            c.activation,
        )
        if self.network.bottom_up.resolution != c.image_size:
            raise ValueError(f"`blocks` must start at image_size = {c.image_size}, got {c.blocks!r}")

    def _conditioned_groups(self) -> list[BlockSpec]:
        """The blocks of the first `num_conditioned_groups` groups."""
        c = self.config
        specs = parse_blocks(c.decoder_blocks, "decoder_blocks")
        k = c.num_conditioned_groups
        if k is None:
            k = len(specs)
        if not 0 < k <= len(specs):
            raise ValueError(f"`num_conditioned_groups` must be between 1 and {len(specs)}, got {k}")
        return specs[:k]

    def check_fit(self, vdvae: Any, operator: Downsampling) -> None:
        """Raises a ValueError unless this network was made for a decoder and a degradation.

        Args:
            vdvae: the VDVAE's configuration.
            operator: H.
        """
        own, scale = self.config, operator.scale_factor
        if vdvae.image_size != own.image_size * scale:
            raise ValueError(
                f"`scale_factor` = {scale} does not fit: the VDVAE works at {vdvae.image_size}, the LR network at "
                f"{own.image_size}"
            )
        expected = {
            "decoder_blocks": vdvae.decoder_blocks,
            "decoder_width": vdvae.width,
            "decoder_custom_widths": vdvae.custom_widths,
        }
        if own.get("conditioning") != "final":  # which has no parameters of any latent
            expected["latent_channels"] = vdvae.latent_channels
        if own.get("likelihood_location") is not None:
            expected |= {"scale_factor": scale, "downsampling_kernel": operator.kernel}
        for name, value in expected.items():
            found = own.get(name, value)
            found = tuple(found) if isinstance(found, list) else found  # a kernel that was read from JSON
            if (found or None) != (value or None):
                raise ValueError(f"`lr_encoder` was made for {name} {found!r}, not {value!r}")

    @property
    def size_multiple(self) -> int:
        """What the sides of y must be multiples of, for every feature map to have a whole size."""
        return self.config.image_size // min(self.network.widths)

    def add_to_stream(self, features: dict[int, Tensor], group: int, x: Tensor) -> Tensor:
        """The stream as it is."""
        return x

    def add_to_activation(self, features: dict[int, Tensor], group: int, activation: Tensor) -> Tensor:
        """The HR activation as it is."""
        return activation

    def has_prior(self, group: int) -> bool:
        """False."""
        return False

    def prior(self, features: dict[int, Tensor], group: int, prior: DiagonalGaussian) -> DiagonalGaussian:
        """The prior as it is."""
        return prior

    def has_posterior(self, group: int) -> bool:
        """False."""
        return False

    def posterior(
        self,
        features: dict[int, Tensor],
        shares: dict[int, Tensor],
        group: int,
        stream: Stream,
        prior: DiagonalGaussian | None,
    ) -> DiagonalGaussian:
        """There is none."""
        raise ValueError("this model has no q_psi(z|y)")

    def _features(self, sample: Tensor) -> dict[int, Tensor]:
        if sample.ndim != 4 or sample.shape[1] != 3:
            raise ValueError(f"`sample` must be [B, 3, h, w], got {tuple(sample.shape)}")
        if not sample.is_floating_point():
            raise ValueError(f"`sample` must be floating point on [-1, 1], got {sample.dtype}")
        multiple = self.size_multiple
        if sample.shape[-2] % multiple or sample.shape[-1] % multiple or not sample.numel():
            raise ValueError(f"`sample` must have sides that are multiples of {multiple}, got {tuple(sample.shape)}")
        y = ((sample.float() + 1) * 127.5 + self.config.input_shift) * self.config.input_scale
        return self.network(y.to(self.dtype))

    def _output(self, sample: Tensor, return_dict: bool) -> LRFeatures | tuple[Any, ...]:
        features = self._features(sample)
        ordered = per_group(features[resolution] for resolution in sorted(features))
        output = LRFeatures(sample=ordered[-1], features=ordered)
        return output if return_dict else output.to_tuple()


class LRHead(Bottleneck):
    """The posterior head of one group: a block that reads the stream and the features of y, `cat((x, f))`.

    Activation and first convolution (1x1) act on each of the two alone, so the features' share of them is computed
    once for an image, not once for each of its samples.
    """

    def forward(  # type: ignore[override]
        self, stream: Stream, features: Tensor, shares: dict[int, Tensor], group: int
    ) -> DiagonalGaussian:
        """Mean and log_sigma, `[B, C, h, w]` each.

        Args:
            stream: `[B or 1, width, h, w]`.
            features: `[B or 1, width', h, w]`.
            shares: where the features' share is kept, under `group`.
        """
        # With gradients there is nothing to share: every row of a training batch is another image. And a layer in the
        # place of one of ours, or a hook, is to see one call with all channels.
        if torch.is_grad_enabled() or not (bare(self.c1) and bare(self.c4)):
            rows = max(len(stream.x), len(features))
            parts = (x.expand(rows, -1, -1, -1) for x in (stream.x, features.to(stream.x)))
            return DiagonalGaussian.from_parameters(super().forward(torch.cat(tuple(parts), dim=1)))
        width, channels = stream.x.shape[1], self.out_channels // 2
        if group not in shares:
            active = activate(self.activation, features)
            shares[group] = self.c1(active.to(stream.x.device), columns=(width, None))
        h = self.hidden(stream, columns=(0, width), plus=shares[group])
        return DiagonalGaussian(
            self.c4(h, rows=(0, channels)).float(), self.c4(h, rows=(channels, 2 * channels)).float()
        )


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
        heads = []
        for index, spec in enumerate(specs):
            if spec.resolution not in self.network.widths:
                raise ValueError(
                    f"`num_conditioned_groups`: group {index} works at resolution {spec.resolution}, where there are "
                    "no features of y; extend `blocks` or `upsampling_blocks`, or condition fewer groups"
                )
            heads.append(
                LRHead(
                    widths[spec.resolution] + self.network.widths[spec.resolution],
                    int(widths[spec.resolution] * decoder_bottleneck_multiple),
                    2 * latent_channels,
                    kernel_size_at(spec.resolution),
                    activation=activation,
                )
            )
        self.heads = nn.ModuleList(heads)
        self.resolutions = [spec.resolution for spec in specs]

    @entry_point
    def encode(self, sample: Tensor) -> Condition:
        """Features of y for a top-down pass.

        Args:
            sample: y, `[B, 3, h, w]` on [-1, 1].

        Raises:
            ValueError: not [B, 3, h, w], or sides that are no multiples of `size_multiple`.
        """
        return Condition(self, self._features(sample))

    def has_posterior(self, group: int) -> bool:
        """Whether group l < k."""
        return group < len(self.heads)

    @entry_point
    def posterior(
        self,
        features: dict[int, Tensor],
        shares: dict[int, Tensor],
        group: int,
        stream: Stream,
        prior: DiagonalGaussian | None,
    ) -> DiagonalGaussian:
        """q_psi(z_l | z_<l, y) for l < k (eq. 12); within `max_deviation` of the group's prior."""
        q_psi = self.heads[group](stream, features[self.resolutions[group]], shares, group)
        if self.config.max_deviation is None or prior is None:
            return q_psi
        # The prior's own deviation is bounded too: after one latent far out, it may be anything.
        reach = self.config.max_deviation * torch.exp(prior.log_sigma.clamp(max=1.0))
        mean = torch.clamp(q_psi.mean, prior.mean - reach, prior.mean + reach)
        return DiagonalGaussian(mean, q_psi.log_sigma.clamp(max=2.5))

    def forward(self, sample: Tensor, return_dict: bool = True) -> LRFeatures | tuple[Any, ...]:
        """The features of y, `[B, 3, h, w]` on [-1, 1]."""
        return self._output(sample, return_dict)
