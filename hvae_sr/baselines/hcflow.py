"""HCFlow: a hierarchical conditional flow (Liang et al., "Hierarchical Conditional Flow: A Unified Framework for Image
Super-Resolution and Image Rescaling", ICCV 2021), the flow that the CVDVAE paper compares with.

One invertible network maps x to an LR image and high-frequency variables a_1, ..., a_L; the density of each a_l is a
conditional flow, given what is coarser than it. Sampling runs both backwards from y.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from ..hooks import UNSET, entry_point, run_layer
from ..loading import StrictLoading
from ..models.blocks import Convolution
from ..models.distributions import DiagonalGaussian
from ..models.rrdb import RRDB
from ..noise import NoiseSource, as_noise_source
from .common import check_images, check_whole
from .flow import ActNorm, FlowStep, ZeroConv, cross_split

LR_LOG_SIGMA = -6.0
"""Of the Gaussian around the given y that the quantised LR estimate is judged by."""


@dataclass
class Level:
    """What one level of the flow computed; sizes are those of level l, C_l channels at 1 / 2^(l + 1) of x's sides.

    Args:
        split: a_l, `[B, C_l, h, w]`.
        latent: the conditional flow's value of it, z_l.
        mean, log_sigma: of z_l, given the coarser.
        noise: (z_l - mean) / exp(log_sigma); when sampling, times the temperature's inverse.
        features: `[B, 2 feature_width, h, w]`, what the conditional flow reads.
        log_det_before, log_det: `[B]`, before and after the conditional flow and log N(z_l).
    """

    split: Tensor
    latent: Tensor
    mean: Tensor
    log_sigma: Tensor
    noise: Tensor
    features: Tensor
    log_det_before: Tensor | None = None
    log_det: Tensor | None = None


@dataclass
class HCFlowEncoding(BaseOutput):
    """What `HCFlow.encode` returns.

    Args:
        loss: `[B]`, -objective / (H W ln 2): bits per pixel (not per dimension) up to the dequantisation's constant.
        objective: `[B]`, log_det + log N(quantised LR estimate; y, exp(-6)).
        log_det: `[B]`, of the whole flow, with log N(z_l) of all levels.
        lr_estimate: `[B, 3, h, w]`, what the flow makes of x.
        quantised_lr: the same on 8-bit levels of [0, 1].
        levels: from the finest (0) to the deepest.
    """

    loss: Tensor
    objective: Tensor = UNSET
    log_det: Tensor = UNSET
    lr_estimate: Tensor = UNSET
    quantised_lr: Tensor = UNSET
    levels: tuple[Level, ...] = ()


@dataclass
class HCFlowSample(BaseOutput):
    """What `HCFlow.sample` returns.

    Args:
        sample: `[B, 3, H, W]`, nominally on [0, 1], not clamped (the published code clamps).
        levels: from the finest (0) to the deepest.
    """

    sample: Tensor
    levels: tuple[Level, ...] = ()


class HCFlow(StrictLoading, ModelMixin, ConfigMixin):
    """The flow, and the conditional flows of its levels.

    Level l squeezes (pixel-unshuffles by 2), runs `num_steps - num_conditional_steps` flow steps, and splits: half of
    the channels go on, at the last level the 3 of the LR image; the others, a_l, go to the level's conditional flow of
    `num_conditional_steps` steps. Scale factor 2^num_levels.

    Args:
        num_levels: 2 (x4) or 3 (x8, faces).
        num_steps: K, flow steps of a level; 26 as published.
        num_conditional_steps: of these, those after the split; 13.
        hidden_width: channels of the couplings' networks; 64.
        feature_blocks: RRDBs before and after the features' first half; (7, 7) at x4, (5, 5) at x8.
        feature_width: channels of either half of the features; 64.
        feature_growth: growth of the RRDBs; 32.
        quantisation: uniform noise on [0, 1 / quantisation) is added to x before it is encoded; 64 for photographs at
            x4, 256 for faces.
    """

    _supports_gradient_checkpointing = True
    levels: Any  # lists that `torch.nn.ModuleList` does not type
    conditionals: Any

    @register_to_config
    def __init__(
        self,
        num_levels: int = 2,
        num_steps: int = 26,
        num_conditional_steps: int = 13,
        hidden_width: int = 64,
        feature_blocks: Sequence[int] = (7, 7),
        feature_width: int = 64,
        feature_growth: int = 32,
        quantisation: int = 64,
    ) -> None:
        super().__init__()
        check_whole(num_levels=num_levels, num_conditional_steps=num_conditional_steps, hidden_width=hidden_width)
        check_whole(feature_width=feature_width, quantisation=quantisation)
        check_whole(num_conditional_steps, num_steps=num_steps)
        if len(feature_blocks) != 2:
            raise ValueError(f"`feature_blocks` must be two numbers, got {feature_blocks!r}")
        features = (feature_width, feature_growth, tuple(feature_blocks))
        self.scale_factor = 2**num_levels
        levels, conditionals = [], []
        channels = 3
        for level in range(num_levels):
            channels *= 4
            kept = channels // 2 if level < num_levels - 1 else 3
            steps = num_steps - num_conditional_steps
            levels.append(nn.ModuleList(FlowStep(channels, hidden_width) for _ in range(steps)))
            read = kept + (num_levels - 1 - level) * 2 * feature_width
            conditionals.append(ConditionalFlow(channels - kept, read, num_conditional_steps, hidden_width, *features))
            channels = kept
        self.levels = nn.ModuleList(levels)
        self.conditionals = nn.ModuleList(conditionals)
        self.gradient_checkpointing = False

    @property
    def num_groups(self) -> int:
        """Latent groups: one a level."""
        return len(self.conditionals)

    def forward(
        self, sample: Tensor, low_resolution: Tensor, uniform: Tensor, return_dict: bool = True
    ) -> HCFlowEncoding | tuple[Tensor, ...]:
        """`encode`: the training step."""
        out = self.encode(sample, low_resolution, uniform)
        return out if return_dict else (out.loss,)

    @entry_point
    def encode(self, sample: Tensor, low_resolution: Tensor, uniform: Tensor) -> HCFlowEncoding:
        """The negative log-likelihood of pairs, and what it is made of.

        Args:
            sample: x, `[B, 3, H, W]` on [0, 1], sides multiples of 2^num_levels.
            low_resolution: y, `[B, 3, h, w]` on [0, 1].
            uniform: dequantisation noise on [0, 1), of x's shape: x + uniform / quantisation is encoded.

        Raises:
            ValueError: a tensor of another type or shape.
        """
        check_images("sample", sample, multiple=self.scale_factor)
        batch, _, height, width = sample.shape
        lr_shape = (batch, 3, height // self.scale_factor, width // self.scale_factor)
        for name, value, shape in (("low_resolution", low_resolution, lr_shape), ("uniform", uniform, sample.shape)):
            if tuple(value.shape) != tuple(shape):
                raise ValueError(f"`{name}` must be {tuple(shape)}, got {tuple(value.shape)}")
        z = sample + uniform / self.config.quantisation
        log_det = sample.new_full((batch,), -math.log(self.config.quantisation) * height * width)
        parts = []
        for steps, conditional in zip(self.levels, self.conditionals, strict=True):
            z = F.pixel_unshuffle(z, 2)
            for step in steps:
                z, log_det = run_layer(self, step, z, log_det)
            z, a = z[:, : -conditional.channels], z[:, -conditional.channels :]
            parts.append((conditional, z, a))
        levels: list[Level] = []
        for conditional, kept, a in reversed(parts):
            level = conditional(a, log_det, _condition(kept, levels))
            levels.append(level)
            log_det = level.log_det
        quantised = _quantise(z)
        around = DiagonalGaussian(low_resolution, low_resolution.new_tensor(LR_LOG_SIGMA))
        objective = log_det + around.log_prob(quantised).sum((1, 2, 3))
        return HCFlowEncoding(
            loss=-objective / (math.log(2) * height * width),
            objective=objective,
            log_det=log_det,
            lr_estimate=z,
            quantised_lr=quantised,
            levels=tuple(reversed(levels)),
        )

    @entry_point
    def sample(
        self,
        low_resolution: Tensor,
        noise: NoiseSource | Sequence[Tensor],
        temperature: float = 1.0,
    ) -> HCFlowSample:
        """x from y: the flow backwards, from z_l = mean + temperature exp(log_sigma) noise.

        Args:
            low_resolution: y, `[B, 3, h, w]` on [0, 1].
            noise: standard normals of every level, in `latent_shape`: tensors, finest level first, or a source.
            temperature: 0.9 (x4) and 0.8 (faces) in the published results.

        Raises:
            ValueError: a tensor of another type or shape.
        """
        check_images("low_resolution", low_resolution)
        source = as_noise_source(noise)
        z = low_resolution
        levels: list[Level] = []
        log_det = z.new_zeros(())
        for index in reversed(range(self.num_groups)):
            conditional = self.conditionals[index]
            shape = (len(z), conditional.channels, z.shape[2], z.shape[3])
            draw = source(index, 2 ** (index + 1), shape, z.device).to(z.dtype)
            level = conditional(draw, log_det, _condition(z, levels), temperature, reverse=True)
            levels.append(level)
            z = torch.cat((z, level.split), 1)
            for step in reversed(self.levels[index]):
                z, _ = step(z, log_det, reverse=True)
            z = F.pixel_shuffle(z, 2)
        return HCFlowSample(z, tuple(reversed(levels)))

    def latent_shape(self, level: int, batch_size: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """The shape of a level's latents for HR images of `size` = (H, W)."""
        stride = 2 ** (level + 1)
        return batch_size, self.conditionals[level].channels, size[0] // stride, size[1] // stride

    @torch.no_grad()
    def initialise(self, sample: Tensor, low_resolution: Tensor, uniform: Tensor) -> HCFlowEncoding:
        """Sets every activation normalisation by a first batch, then returns what `encode` makes of it.

        To be called once, before training (Glow, section 3.1); the arguments are those of `encode`.
        """
        layers = [module for module in self.modules() if isinstance(module, ActNorm)]
        for layer in layers:
            layer.initialising = True
        try:
            return self.encode(sample, low_resolution, uniform)
        finally:
            for layer in layers:
                layer.initialising = False


class ConditionalFlow(nn.Module):
    """p(a_l | coarser): features of the coarser, flow steps that read them, and a Gaussian made of them.

    Args:
        channels: of a_l.
        condition_channels: of what it is conditioned on.
        num_steps, hidden_width: of the flow steps and their couplings.
        feature_width, feature_growth, feature_blocks: as in `HCFlow`.
    """

    def __init__(
        self,
        channels: int,
        condition_channels: int,
        num_steps: int,
        hidden_width: int,
        feature_width: int,
        feature_growth: int,
        feature_blocks: tuple[int, ...],
    ) -> None:
        super().__init__()
        self.channels = channels
        self.conv_first = Convolution(condition_channels, feature_width, 3)
        trunks = [nn.Sequential(*(RRDB(feature_width, feature_growth) for _ in range(n))) for n in feature_blocks]
        self.trunk0, self.trunk1 = trunks
        self.trunk_conv = nn.Conv2d(feature_width, feature_width, 3, padding=1)
        self.steps = nn.ModuleList(FlowStep(channels, hidden_width, 2 * feature_width) for _ in range(num_steps))
        self.gaussian = ZeroConv(2 * feature_width, 2 * channels)

    def forward(
        self, value: Tensor, log_det: Tensor, condition: Tensor, temperature: float = 1.0, reverse: bool = False
    ) -> Level:
        """What the level makes of a_l or, with `reverse=True`, of standard normals.

        Args:
            value: a_l or, in reverse, the normals; `[B, channels, h, w]`.
            log_det: `[B]`, so far.
            condition: `[B, condition_channels, h, w]`.
            temperature: of the normals.
            reverse: sampling.
        """
        features = self.features(condition)
        mean, log_sigma = cross_split(self.gaussian(features))
        if reverse:
            z = a = mean + torch.exp(log_sigma) * temperature * value
            for step in reversed(self.steps):  # type: ignore[call-overload]
                a, log_det = step(a, log_det, features, reverse=True)
            return Level(a, z, mean, log_sigma, value, features)
        before, z = log_det, value
        for step in self.steps:
            z, log_det = step(z, log_det, features)
        log_det = log_det + DiagonalGaussian(mean, log_sigma).log_prob(z).sum((1, 2, 3))
        noise = (z - mean) * torch.exp(-log_sigma)
        return Level(value, z, mean, log_sigma, noise, features, before, log_det)

    def features(self, condition: Tensor) -> Tensor:
        """`[B, 2 feature_width, h, w]`: the first trunk's output, and the second's with a long residual connection."""
        first = self.conv_first(condition)
        half = self.trunk0(first)
        return torch.cat((half, self.trunk_conv(self.trunk1(half)) + first), 1)


def _condition(kept: Tensor, deeper: Sequence[Level]) -> Tensor:
    """What a level is conditioned on: the coarser image of its own size, and the features of the deeper levels."""
    size = kept.shape[2:]
    return torch.cat((kept, *(F.interpolate(x.features, size=size, mode="nearest") for x in reversed(deeper))), 1)


def _quantise(y: Tensor) -> Tensor:
    """On 8-bit levels of [0, 1]; the gradient passes as if it were the identity."""
    return y + ((y.clamp(0, 1) * 255).round() / 255 - y).detach()
