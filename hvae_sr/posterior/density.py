"""How likely samples are: log p(z|y) of their latents, and the order it gives."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..sampling import WindowSampler

LOG_SIGMA_FLOOR = -16.0
"""About the logarithm of float32's precision: no latent of a narrower Gaussian can be told from its mean."""


@dataclass(frozen=True)
class Rank:
    """How a sample compares with the others of its image.

    Args:
        index: of the sample.
        log_density: log p(z|y) of its latents at temperature 1, nats per latent.
        lr_psnr_unprojected: in dB, of the network's own output.
    """

    index: int
    log_density: float
    lr_psnr_unprojected: float


def rank(densities: Sequence[float], lr_psnr_unprojected: Sequence[float], by: str) -> list[Rank]:
    """Samples, best first.

    Args:
        densities, lr_psnr_unprojected: of each.
        by: "log_density" (the most likely first) or "lr_psnr_unprojected" (the most faithful first).

    Raises:
        ValueError: `by` is something else, or a density is not finite.
    """
    if not all(map(math.isfinite, densities)):
        raise ValueError(f"`densities` must be finite, got {list(densities)}")
    if by not in ("log_density", "lr_psnr_unprojected"):
        raise ValueError(f"`by` must be 'log_density' or 'lr_psnr_unprojected', got {by!r}")
    ranks = [Rank(index, *values) for index, values in enumerate(zip(densities, lr_psnr_unprojected, strict=True))]
    return sorted(ranks, key=lambda one: -getattr(one, by))


def log_density(sampler: WindowSampler, latents: Sequence[Tensor]) -> Tensor:
    """log p(z|y) of latents at temperature 1, in nats per latent: sum_l log p(z_l | z_<l, y) over their number.

    p(z_l | z_<l, y) is q_psi where the model has one, else the (conditioned) prior; a log_sigma below `LOG_SIGMA_FLOOR`
    counts as that.

    Args:
        sampler: of the image.
        latents: one `[N, C, h, w]` for each group.

    Returns:
        `[N]`, float64 on the CPU.

    Raises:
        ValueError: not the latents of every group, or of an image of another size.
    """
    groups = sampler.vdvae.num_groups
    if not isinstance(latents, (list, tuple)) or len(latents) != groups or any(z is None for z in latents):
        given = len(latents) if isinstance(latents, (list, tuple)) else type(latents).__name__
        raise ValueError(f"`latents` must be a list of {groups} tensors, one for each group; got {given}")
    count = max(len(latents[0]), 1) if isinstance(latents[0], Tensor) and latents[0].ndim else 1
    sampler.vdvae.check_latents("latents", latents, sampler.size, (count,))
    total = torch.zeros(count, dtype=torch.float64, device="cpu")
    for window in sampler.windows:
        for row in range(count):
            for group, statistics in enumerate(sampler.statistics(window, [z[row : row + 1] for z in latents])):
                distribution = statistics.lr_posterior or statistics.prior
                distribution = distribution._replace(log_sigma=distribution.log_sigma.clamp(min=LOG_SIGMA_FLOOR))
                terms = distribution.log_prob(statistics.z)
                terms = window.kept(terms, sampler.scale, sampler.vdvae.stride(group))
                total[row] += terms.double().sum().cpu()
        sampler.forget()
    return total / sum(z[0].numel() for z in latents)
