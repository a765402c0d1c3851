"""How an observation y enters VD-VAE's top-down pass: features of y, and what each latent group does with them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..hooks import entry_point, per_group
from ..operators import Downsampling
from .blocks import (
    BottomUp,
    Convolution,
    Upsampler,
    network_input,
    parse_blocks,
    parse_widths,
    residual_block,
    set_compute_dtype,
)
from .distributions import DiagonalGaussian
from .outputs import LRFeatures

Features = dict[int, Tensor]
"""Maps of y, `{nominal resolution: [B, width, h, w]}`."""


@dataclass(frozen=True)
class Condition:
    """Features of a batch of observations y: all that a top-down pass knows of y, beside the network that reads them.

    Args:
        network: the LR network; its methods say what group l makes of the features.
        features: `{nominal resolution: [B, width, h, w]}`.
        location: `[B, 3, H, W]` on [-1, 1], what the likelihood is centred on, or None.
        estimate: `[B, 3, H, W]` on [-1, 1], what a restorer makes of y, or None.
    """

    network: "GroupConditioning"
    features: Features
    location: Tensor | None = None
    estimate: Tensor | None = None

    @property
    def batch_size(self) -> int:
        """B."""
        return len(next(iter(self.features.values())))

    @property
    def nbytes(self) -> int:
        """Bytes of all maps."""
        return sum(x.nbytes for x in (*self.features.values(), self.location, self.estimate) if x is not None)

    def finish(self, x: Tensor, temperature: float | Sequence[float] | Tensor) -> Tensor:
        """Samples `[n, 3, H, W]` drawn at a temperature, as they are shown: see `LRConditioner.finish`."""
        if self.estimate is None:
            return x
        highest = temperature if isinstance(temperature, Tensor) else max(np.atleast_1d(temperature))
        return self.network.finish(x, self.estimate, torch.as_tensor(highest, device="cpu"))

    def select(self, index: Tensor) -> "Condition":
        """The condition of the batch rows `index` (int64, may repeat): many samples share one bottom-up pass."""
        return self._with_rows(lambda x: x[index])

    def repeat(self, times: int) -> "Condition":
        """The condition of the whole batch `times` over, whose gradients keep their channels last in memory."""
        return self if times == 1 else self._with_rows(lambda x: torch.cat([x] * times))

    def _with_rows(self, choose: Callable[[Tensor], Tensor]) -> "Condition":
        features = {resolution: choose(x) for resolution, x in self.features.items()}
        location, estimate = (None if image is None else choose(image) for image in (self.location, self.estimate))
        return replace(self, features=features, location=location, estimate=estimate)


class LinearFeatures(nn.Module):
    """A linear map of the pixels of y that a position of a coarser resolution covers, to `channels` that start at 0.

    It is the encoder of VDVAE-SR's trivial version (thesis, section 5.4), where the resolution is 1.
    """

    def __init__(self, image_size: int, resolution: int, channels: int) -> None:
        super().__init__()
        if image_size % resolution:
            raise ValueError(
                f"`image_size` must be a multiple of the top group's resolution {resolution}, got {image_size}"
            )
        self.stride = image_size // resolution
        self.widths = {resolution: channels}
        self.conv = Convolution(3 * self.stride**2, channels, zero_weights=True)
        self.gradient_checkpointing = False  # there is nothing to run again

    def forward(self, y: Tensor) -> dict[int, Tensor]:
        """`[B, 3, h, w]`, normalised -> `{resolution: [B, channels, h / stride, w / stride]}`."""
        (resolution,) = self.widths
        return {resolution: self.conv(F.pixel_unshuffle(y, self.stride))}


class LRFeatureNetwork(nn.Module):
    """Feature maps of y at its own resolution and below (`blocks`, see `BottomUp`), and above it.

    `upsampling_blocks` such as `"32m16,32x1"` make resolution 32 from 16, then a block there; None makes none.
    """

    def __init__(
        self,
        blocks: str,
        upsampling_blocks: str | None,
        widths: dict[int, int],
        bottleneck_multiple: float,
        skip: bool,
        activation: str,
        extra_channels: int = 0,
    ) -> None:
        super().__init__()
        self.bottom_up = BottomUp(blocks, widths, bottleneck_multiple, 1, skip, activation, "blocks", extra_channels)
        self.widths = dict(self.bottom_up.widths)
        self.up_specs = parse_blocks(upsampling_blocks, "upsampling_blocks", "xm") if upsampling_blocks else []
        up_layers: list[nn.Module] = []
        for spec in self.up_specs:
            width = widths[spec.resolution]
            if spec.mixin is not None and spec.mixin in self.widths and spec.resolution % spec.mixin == 0:
                up_layers.append(Upsampler(self.widths[spec.mixin], width, spec.resolution // spec.mixin))
            elif spec.mixin is None and spec.resolution in self.widths:
                up_layers.append(residual_block(width, bottleneck_multiple, spec.resolution, activation))
            else:
                raise ValueError(f"`upsampling_blocks`: nothing to make {spec} from in {upsampling_blocks!r}")
            self.widths[spec.resolution] = width
        self.up_blocks = nn.ModuleList(up_layers)

    def forward(self, y: Tensor) -> dict[int, Tensor]:
        """`[B, 3, h, w]`, normalised -> `{nominal resolution: [B, width, ...]}`."""
        features = self.bottom_up(y)
        for spec, block in zip(self.up_specs, self.up_blocks, strict=True):
            features[spec.resolution] = block(features[spec.mixin or spec.resolution])
        return features


class GroupConditioning:
    """What group l of a top-down pass makes of features of y: here nothing; the LR networks say what they change."""

    def add_to_stream(self, features: Features, group: int, x: Tensor) -> Tensor:
        """The stream `[B, width, h, w]` before the group, with what y adds to it."""
        return x

    def add_to_activation(self, features: Features, group: int, activation: Tensor) -> Tensor:
        """The HR activation `[B, width, h, w]` that q(z_l | z_<l, x) reads, with what y adds to it."""
        return activation

    def prior(self, features: Features, group: int, prior: DiagonalGaussian) -> DiagonalGaussian:
        """p(z_l | z_<l, y) from p(z_l | z_<l)."""
        return prior

    def finish(self, x: Tensor, estimate: Tensor, temperature: Tensor) -> Tensor:
        """Samples as they are shown, from those drawn at a temperature (the highest of the groups) and an estimate."""
        return x

    def has_posterior(self, group: int) -> bool:
        """Whether `posterior` gives something."""
        return False

    def posterior(self, features: Features, group: int, h: Tensor, prior: DiagonalGaussian) -> DiagonalGaussian | None:
        """q_psi(z_l | z_<l, y) from the group's activated stream h and prior, or None."""
        return None


class LRNetwork(GroupConditioning):
    """What `LREncoder` and `LRConditioner` share: normalisation, features, and the decoder they were made for."""

    config: Any
    network: LRFeatureNetwork | LinearFeatures
    dtype: torch.dtype
    compute_dtype: torch.dtype | None = None

    set_compute_dtype = set_compute_dtype

    @property
    def read_channels(self) -> dict[str, int]:
        """What the stem reads, in its order, and the channels of each: y, and maps that other networks make of it."""
        return {"y": 3}

    def _build_network(self) -> None:
        """Makes the feature network from the configuration."""
        c = self.config
        widths, beside = parse_widths(c.width, c.custom_widths), sum(self.read_channels.values()) - 3
        self.network = LRFeatureNetwork(
            c.blocks, c.upsampling_blocks, widths, c.bottleneck_multiple, c.long_skip, c.activation, beside
        )
        if self.network.bottom_up.resolution != c.image_size:
            raise ValueError(f"`blocks` must start at image_size = {c.image_size}, got {c.blocks!r}")

    def _conditioned_resolutions(self) -> list[int]:
        """Those of the first `num_conditioned_groups` groups."""
        c = self.config
        specs = parse_blocks(c.decoder_blocks, "decoder_blocks", "xmr")
        k = len(specs) if c.num_conditioned_groups is None else c.num_conditioned_groups
        if not 0 < k <= len(specs):
            raise ValueError(f"`num_conditioned_groups` must be between 1 and {len(specs)}, got {k}")
        return [spec.resolution for spec in specs[:k]]

    def check_fit(self, vdvae: Any, operator: Downsampling) -> None:
        """Raises a ValueError unless this network was made for a decoder, whose configuration is `vdvae`, and an H."""
        own, scale = self.config, operator.scale_factor
        if vdvae.image_size != own.image_size * scale:
            sizes = f"the VDVAE works at {vdvae.image_size}, the LR network at {own.image_size}"
            raise ValueError(f"`scale_factor` = {scale} does not fit: {sizes}")
        expected = {"decoder_blocks": vdvae.decoder_blocks, "decoder_width": vdvae.width}
        expected["decoder_custom_widths"] = vdvae.custom_widths
        if own.get("conditioning") != "final":  # which has no parameters of any latent
            expected["latent_channels"] = vdvae.get("custom_latent_channels") or vdvae.latent_channels
        if own.get("restorer_blocks") is not None:
            expected["scale_factor"] = scale
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

    def _input(self, sample: Tensor) -> Tensor:
        """y as the bottom-up network reads it, checked."""
        y, multiple = network_input(sample, self.config, self.dtype), self.size_multiple
        if sample.shape[-2] % multiple or sample.shape[-1] % multiple or not sample.numel():
            raise ValueError(f"`sample` must have sides that are multiples of {multiple}, got {tuple(sample.shape)}")
        return y

    def _read(self, sample: Tensor) -> tuple[Features, Tensor | None, Tensor | None]:
        """Features, location and estimate of y, see `Condition`."""
        return self.network(self._input(sample)), None, None

    @entry_point
    def encode(self, sample: Tensor) -> Condition:
        """Features of y for a top-down pass, and the location of the likelihood.

        Args:
            sample: y, `[B, 3, h, w]` on [-1, 1].

        Raises:
            ValueError: not [B, 3, h, w], or sides that are no multiples of `size_multiple`.
        """
        features, location, estimate = self._read(sample)
        return Condition(self, self._for_groups(features), location, estimate)

    def _for_groups(self, features: Features) -> Features:
        """The features as the groups read them."""
        return features

    def forward(self, sample: Tensor, return_dict: bool = True) -> LRFeatures | tuple[Any, ...]:
        """The features of y, `[B, 3, h, w]` on [-1, 1]."""
        features, *_ = self._read(sample)
        ordered = per_group(features[resolution] for resolution in sorted(features))
        output = LRFeatures(sample=ordered[-1], features=ordered)
        return output if return_dict else output.to_tuple()
