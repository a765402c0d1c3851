"""What the VDVAE's methods return."""

from dataclasses import dataclass

from diffusers.utils import BaseOutput
from torch import Tensor

from .loading import PerGroup


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
    # The defaults are never seen: accelerate's hooks rebuild an output from a dictionary, which needs them.
    loss: Tensor = None  # type: ignore[assignment]
    distortion: Tensor = None  # type: ignore[assignment]
    rate: Tensor = None  # type: ignore[assignment]
    group_kl: PerGroup = None  # type: ignore[assignment]


@dataclass
class VDVAESample(BaseOutput):
    """What `VDVAE.sample` returns.

    Args:
        sample: `[B, 3, H, W]`, nominally on [-1, 1], fp32, not clamped.
        latents: the values z of every group, one `[B, latent_channels, h, w]` tensor each.
    """

    sample: Tensor
    latents: PerGroup = None  # type: ignore[assignment]  # as in `VDVAEOutput`
