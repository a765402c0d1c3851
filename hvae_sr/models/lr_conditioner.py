"""VDVAE-SR's conditioning of a VD-VAE on y: the thesis' final model, and what it is compared with in table 5.1."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from ..hooks import entry_point
from ..loading import StrictLoading
from ..operators import cached_downsampling
from .blocks import Convolution, check_choice, is_count, parse_widths
from .condition import Features, LinearFeatures, LRNetwork
from .distributions import DiagonalGaussian
from .restorer import RESTORER_WIDTH, Restorer, move_towards
from .span import Regression

CONDITIONINGS = ("trivial", "lr_encoder", "posterior", "final")
"""The rows of table 5.1 of the VDVAE-SR thesis, as `LRConditioner` names them."""

_CLOSED = -3.0
"""Where the gates of a location start, before the sigmoid: at 1/20 of the regression, so that they learn either way."""

_LEAST_TOLERANCE = 0.1
"""Grey levels: less than the rounding of an image."""


def _parse_shares(text: str | None) -> list[tuple[float, float]]:
    """(temperature, share) pairs of `restored_shares`; raises a ValueError for what are none."""
    try:
        found = [(float(t), float(m)) for t, m in (item.split(":") for item in (text or "").split(",") if item)]
        if any(low >= high for (low, _), (high, _) in pairwise(found)) or not np.isfinite(found).all():
            raise ValueError("not rising, or not finite")
    except ValueError as error:
        raise ValueError(
            f"`restored_shares` must be pairs of rising temperatures and shares, got {text!r}: {error}"
        ) from error
    return found


class Gate(nn.Module):
    """x + features * gate, a gate for each channel (thesis, section 5.7.2; after ReZero)."""

    def __init__(self, channels: int, initial: float) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.full((1, channels, 1, 1), initial))

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        return torch.addcmul(x, features.to(x), self.gate.to(x.dtype))


class LRConditioner(LRNetwork, StrictLoading, ModelMixin, ConfigMixin):
    """VDVAE-SR's conditioning of a VD-VAE on y: the final model of the thesis, or one that it is compared with.

    `conditioning` names the row of table 5.1 (thesis, chapter 5):

    - "final" (section 5.7): features of y, times a learned gate per group, are added to the top-down stream, so that
      prior and posterior of a group both see them.
    - "trivial" (5.4): p(z_0 | y) of the top group is a linear map of y; `blocks` and what shapes them are not used.
    - "lr_encoder" (5.5): p(z_0 | y) is made by the bottom-up network.
    - "posterior" (5.6): as "lr_encoder", and features of y are added to the activations of x that the posteriors read.

    Trained with the conditional ELBO: in "final" and "posterior" q(z | x, y) sees y (eq. 4.5); in the others y enters
    p(z_0 | y) alone, not the stream, so that q(z | x) does not see it (eq. 5.1). p(z_0 | y) is p(z_0), its mean and
    log_sigma moved by the features of y, at first by nothing: with these zeros, and gates at zero, a new conditioner of
    any kind leaves what a pretrained VDVAE samples exactly as it is; and its ELBO too, but for "posterior", whose
    features of y are added without a gate, as in the thesis.

    Args:
        image_size, blocks, upsampling_blocks, width, custom_widths, bottleneck_multiple, activation, long_skip,
            input_shift, input_scale: see `LREncoder`. Widths must be the decoder's where features are added to it.
        num_conditioned_groups: conditions the first so many groups; None means every group that has features of y, and
            for "trivial" and "lr_encoder" the top group, the only one that they condition.
        gate_init: value the gates of "final" start at; 0 protects a pretrained prior.
        scale_factor: sides of x over sides of y.
        likelihood_location: what the likelihood's means are offsets from: None (nothing), "bicubic" (y resized),
            "projection" (y resized and projected on the images consistent with y), "regression" (a network's
            estimate of E[x | y], so that the hierarchy is left with what y does not tell), or "gated" (y resized, moved
            towards that estimate by a share between 0 and 1 that is learned for each place: a regression of clean
            images, where y is one).
        downsampling_kernel: H of the projection, see `Downsampling`.
        decoder_blocks, decoder_width, decoder_custom_widths: as in the VDVAE's configuration.
        conditioning: "trivial", "lr_encoder", "posterior" or "final".
        latent_channels: as in the VDVAE's configuration; not used by "final".
        restorer_blocks: None, or how many blocks a `Restorer` has that y is read through, for x4: the bottom-up network
            reads its features beside y, and the finest features get its estimate, as an offset from y resized, or from
            the regression where the likelihood is centred on that.
        restored_shares: None, or pairs "temperature:share" such as "0:-0.4,0.35:0.4,1:0": at a temperature t the sample
            is moved that share of the way to the restorer's estimate, linear between the pairs. A negative share takes
            out of the sample what it has of the estimate.
        restored_tolerance: None, or tau in grey levels of 0..255: where estimate and sample differ by d at y's own
            resolution, only exp(-(d / tau)^2) of the share is taken. Letters that it makes up do not agree with y.
        restorer_upsampling: of the restorer: "nearest" or "pixelshuffle", see `RRDBLayers`.
        restorer_padding: pixels by which the borders of y are repeated outwards for it, see `Restorer`.
        regression_width: channels of the network of likelihood_location "regression" or "gated", see `SPANLayers`; the
            bottom-up network reads its features beside y. None with another location.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["Bottleneck", "RRDB"]
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
        num_conditioned_groups: int | None = None,
        gate_init: float = 0.0,
        scale_factor: int = 4,
        likelihood_location: str | None = None,
        downsampling_kernel: str | Sequence[float] | Tensor = "bicubic",
        decoder_blocks: str = "4x2,8m4,8x2,16m8,16x2,32m16,32x2",
        decoder_width: int = 32,
        decoder_custom_widths: str | None = None,
        conditioning: str = "final",
        latent_channels: int = 16,
        restorer_blocks: int | None = None,
        restored_shares: str | None = None,
        restored_tolerance: float | None = None,
        restorer_upsampling: str = "nearest",
        restorer_padding: int = 0,
        regression_width: int | None = None,
    ) -> None:
        super().__init__()
        check_choice("likelihood_location", likelihood_location, (None, "bicubic", "projection", "regression", "gated"))
        self._check_conditioning()
        self.resolutions = self._conditioned_resolutions()
        self._build_network()
        widths = parse_widths(decoder_width, decoder_custom_widths)
        # What is added to the decoder: gates of the stream, or features as they are for the posteriors.
        self.gates = nn.ModuleDict()
        self.added: set[int] = set()
        for index, resolution in enumerate(self.resolutions):
            if conditioning not in ("posterior", "final") or resolution not in self.network.widths:
                continue
            if self.network.widths[resolution] != widths[resolution]:
                raise ValueError(
                    f"`custom_widths`: {self.network.widths[resolution]} channels at resolution {resolution}, where "
                    f"the decoder has {widths[resolution]}; what is added to it must have the same"
                )
            self.added.add(index)
            if conditioning == "final":
                self.gates[str(index)] = Gate(widths[resolution], gate_init)
        if conditioning == "final" and not self.gates:
            found = sorted(set(self.resolutions))
            raise ValueError(f"`blocks`: no features of y where groups are conditioned, {found}, in {blocks!r}")
        self.top: nn.Module | None = None
        if conditioning in ("lr_encoder", "posterior"):
            if self.resolutions[0] not in self.network.widths:
                raise ValueError(
                    f"`blocks`: no features of y at resolution {self.resolutions[0]} of the top group, which "
                    f"conditioning={conditioning!r} needs, in {blocks!r}"
                )
            self.top = Convolution(self.network.widths[self.resolutions[0]], 2 * latent_channels, zero_weights=True)
        self._build_restorer()
        self.regression = None if regression_width is None else Regression(scale_factor, regression_width)
        self.location_gate: Convolution | None = None
        if likelihood_location == "gated":
            self.location_gate = Convolution(self.network.widths[image_size], 1, zero_weights=True)
            nn.init.constant_(self.location_gate.get_parameter("bias"), _CLOSED)
        self.operator = cached_downsampling(scale_factor, downsampling_kernel)
        self.register_to_config(downsampling_kernel=self.operator.kernel)  # as JSON can hold it

    def _check_conditioning(self) -> None:
        """Raises a ValueError for options that do not go with `conditioning`."""
        c = self.config
        given, k, location = f"conditioning={c.conditioning!r}", c.num_conditioned_groups, c.likelihood_location
        check_choice("conditioning", c.conditioning, CONDITIONINGS)
        if c.conditioning != "final" and c.gate_init:
            raise ValueError(f"`gate_init` must be 0 for {given}, which has no gates; got {c.gate_init}")
        if c.conditioning in ("trivial", "lr_encoder") and k not in (None, 1):
            raise ValueError(f"`num_conditioned_groups` must be None or 1 for {given}: the top group alone; got {k}")
        needed = location in ("regression", "gated")
        if needed != (c.regression_width is not None) or (needed and not is_count(c.regression_width)):
            raise ValueError(
                "`regression_width` must be a whole number >= 1 with likelihood_location 'regression' or 'gated', and "
                f"None with another, got {c.regression_width!r} with {location!r}"
            )
        if needed and c.conditioning == "trivial":
            raise ValueError(f"`likelihood_location` {location!r} needs features of y, which {given} does not read")
        above = c.upsampling_blocks
        if c.conditioning == "lr_encoder" and above:
            raise ValueError(f"`upsampling_blocks` must be None for {given}, which reads none; got {above!r}")

    @property
    def read_channels(self) -> dict[str, int]:
        restorer = RESTORER_WIDTH if self.config.restorer_blocks else 0
        return {"y": 3, "restorer": restorer, "regression": self.config.regression_width or 0}

    def _build_network(self) -> None:
        c = self.config
        if c.conditioning == "trivial":
            self.network = LinearFeatures(c.image_size, self.resolutions[0], 2 * c.latent_channels)
        else:
            super()._build_network()

    def _build_restorer(self) -> None:
        c = self.config
        self.restorer: Restorer | None = None
        self.shares = _parse_shares(c.restored_shares)
        if c.restorer_blocks is None:
            names = ("restored_shares", "restored_tolerance", "restorer_upsampling", "restorer_padding")
            for name, value in zip(names, (None, None, "nearest", 0), strict=True):
                if c[name] != value:
                    raise ValueError(f"`{name}` needs `restorer_blocks`, got {c[name]!r} without them")
            return
        tau = c.restored_tolerance
        if tau is not None and (not self.shares or not tau >= _LEAST_TOLERANCE):
            raise ValueError(
                f"`restored_tolerance` must be None or at least {_LEAST_TOLERANCE} grey levels with `restored_shares`, "
                f"got {tau!r} with {c.restored_shares!r}"
            )
        if not is_count(c.restorer_blocks) or c.scale_factor != 4 or c.conditioning != "final":
            raise ValueError(
                f"`restorer_blocks` must be None or a whole number >= 1, with scale_factor 4 and conditioning 'final', "
                f"got {c.restorer_blocks!r}, {c.scale_factor} and {c.conditioning!r}"
            )
        if c.restorer_padding != 0 and not is_count(c.restorer_padding):
            raise ValueError(f"`restorer_padding` must be a whole number >= 0, got {c.restorer_padding!r}")
        self.restorer = Restorer(c.restorer_blocks, c.restorer_upsampling, c.restorer_padding)
        finest = max(self.network.widths)
        side = c.scale_factor * c.image_size
        if side % finest:
            raise ValueError(
                f"`upsampling_blocks` must end at a resolution that divides {side}, that of x, with `restorer_blocks`; "
                f"got {finest} of {c.upsampling_blocks!r}"
            )
        self.stride = side // finest
        self.estimate = Convolution(3 * self.stride**2, self.network.widths[finest], zero_weights=True)

    def _read(self, sample: Tensor) -> tuple[Features, Tensor | None, Tensor | None]:
        y, c = self._input(sample), self.config
        restored: Any = None if self.restorer is None else self.restorer(sample.to(self.dtype))
        regressed: Any = None if self.regression is None else self.regression(sample.to(self.dtype))
        beside = [read.features.to(y.dtype) for read in (restored, regressed) if read is not None]
        features = self.network(torch.cat([y, *beside], dim=1))
        if c.likelihood_location is None and restored is None:
            return features, None, None
        if c.likelihood_location == "regression":
            base = regressed.image
        else:
            base = F.interpolate(sample.float(), scale_factor=c.scale_factor, mode="bicubic", align_corners=False)
        location = None if c.likelihood_location is None else base
        if c.likelihood_location == "projection":
            location = self.operator.project(base, sample.float())
        if self.location_gate is not None:
            gate = self.location_gate(features[c.image_size]).float().sigmoid()
            share = F.interpolate(gate, scale_factor=c.scale_factor, mode="bilinear", align_corners=False)
            location = torch.lerp(base, regressed.image, share)
        if restored is None:
            return features, location, None
        offset = F.pixel_unshuffle(restored.image - base, self.stride)
        finest = max(features)
        features[finest] = features[finest] + self.estimate(offset.to(features[finest].dtype))
        return features, location, restored.image

    def finish(self, x: Tensor, estimate: Tensor, temperature: Tensor) -> Tensor:
        """Samples of temperature t moved by the share m(t) of `restored_shares` towards the estimate (`move_towards`).

        x and the estimate G(y) are `[n, 3, H, W]` on [-1, 1], G(y) may be one for all. What is likely, what looks right
        and what is true to the spread are three images, at temperatures of 0, of the default and of 1: m is the share
        of the estimate in each.
        """
        if not self.shares:
            return x
        share = torch.full_like(temperature, self.shares[0][1], dtype=torch.float32)
        for (low, before), (high, after) in pairwise(self.shares):
            share = share + (temperature.clamp(low, high) - low) * ((after - before) / (high - low))
        return move_towards(x, estimate, share.to(x), self.config.restored_tolerance, self.config.scale_factor)

    @entry_point
    def add_to_stream(self, features: Features, group: int, x: Tensor) -> Tensor:
        """x + gate_l * features of y at the group's resolution, where there are any ("final")."""
        if str(group) not in self.gates:
            return x
        return self.gates[str(group)](x, features[self.resolutions[group]]).to(x.device)

    def add_to_activation(self, features: Features, group: int, activation: Tensor) -> Tensor:
        """The activation of x plus the features of y at the group's resolution ("posterior")."""
        if self.config.conditioning != "posterior" or group not in self.added:
            return activation
        return activation + features[self.resolutions[group]].to(activation)

    @entry_point
    def prior(self, features: Features, group: int, prior: DiagonalGaussian) -> DiagonalGaussian:
        """p(z_0 | y) of the top group, of any conditioning but "final": p(z_0), its mean and log_sigma moved."""
        if group > 0 or self.config.conditioning == "final":
            return prior
        parameters = features[self.resolutions[0]]
        if self.top is not None:
            parameters = self.top(parameters)
        moved = DiagonalGaussian.from_parameters(parameters.to(prior.mean.device))
        return DiagonalGaussian(prior.mean + moved.mean, prior.log_sigma + moved.log_sigma)
