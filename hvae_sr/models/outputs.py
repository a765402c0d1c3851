"""What the networks return."""

from dataclasses import dataclass, field
from typing import NamedTuple

from diffusers.utils import BaseOutput
from torch import Tensor

from ..hooks import UNSET, PerGroup
from .distributions import DiagonalGaussian


class Regressed(NamedTuple):
    """What a restorer or a regression makes of y: features `[B, width, h, w]` and x, `[B, 3, s h, s w]` on [-1, 1]."""

    features: Tensor
    image: Tensor


@dataclass
class VDVAEOutput(BaseOutput):
    """What `VDVAE.forward` returns.

    Args:
        sample: `[B, 3, H, W]` on [-1, 1]: E[x|z], the reconstruction.
        loss: `[B]`, the negative ELBO = distortion + rate, nats per dimension.
        distortion: `[B]`, -log p(x|z), nats per dimension.
        rate: `[B]`, KL(q(z|x) || p(z)), nats per dimension.
        group_kl: one `[B]` tensor for each group, nats.
    """

    sample: Tensor
    loss: Tensor = UNSET
    distortion: Tensor = UNSET
    rate: Tensor = UNSET
    group_kl: PerGroup = UNSET


@dataclass
class VDVAESample(BaseOutput):
    """What `VDVAE.sample` returns.

    Args:
        sample: `[B, 3, H, W]`, nominally on [-1, 1], fp32, not clamped.
        latents: the values z of every group, one `[B, latent_channels, h, w]` tensor each.
    """

    sample: Tensor
    latents: PerGroup = UNSET


@dataclass
class GroupStatistics:
    """One latent group of one top-down pass; a distribution is None where it does not exist.

    Args:
        z: `[B, C, h, w]`, the value that was passed on; this and the others of one row where all rows share them.
        prior: p(z_l | z_<l), given y too if y conditions the prior.
        posterior: q(z_l | z_<l, x), given y too if y conditions the stream or the posterior.
        lr_posterior: q_psi(z_l | z_<l, y).
    """

    z: Tensor
    prior: DiagonalGaussian
    posterior: DiagonalGaussian | None = None
    lr_posterior: DiagonalGaussian | None = None


@dataclass
class TopDownOutput:
    """The end of a top-down pass.

    Args:
        stream: at the finest resolution, `[B, width, h, w]`, or of one row if all are the same.
        latents: the values z of every group, `[B, C, h, w]` each, if they are kept.
        groups: what happened in each group, if it is kept.
    """

    stream: Tensor
    latents: list[Tensor] = field(default_factory=list)
    groups: list[GroupStatistics] = field(default_factory=list)


@dataclass
class LRFeatures(BaseOutput):
    """What the `forward` of an LR network returns.

    Args:
        sample: `[B, width, h, w]`, the finest feature map.
        features: the feature map of each nominal resolution, coarse to fine.
    """

    sample: Tensor
    features: PerGroup = UNSET
