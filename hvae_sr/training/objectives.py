"""What each training stage minimises. A stage is an objective and its trainable parameters; the loop is one."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..data import convert_pairs, make_pairs
from ..models import VDVAE, LRConditioner, LREncoder, VDVAEOutput
from ..models.condition import Features, GroupConditioning
from ..models.distributions import DiagonalGaussian
from ..models.outputs import TopDownOutput
from ..noise import CounterNoise
from ..operators import Downsampling

NATS_PER_BIT = 0.6931471805599453

GROUPS = "group_bits_per_dim"
"""The figure that is a vector: the KL of every group, bits per dimension of x."""

Loss = tuple[Tensor, dict[str, Tensor]]
"""The loss to minimise, a scalar, and figures to log: scalars, and one vector with a number for each group."""


class Objective(nn.Module):
    """A loss over a batch of photographs, and the networks it trains."""

    figure = "bits_per_dim"
    """The figure in the log that the stage is judged by."""
    method: str
    """What the stage is, in a few words."""

    def forward(self, images: Tensor, seeds: Sequence[int], rate_weight: float = 1, low: Tensor | None = None) -> Loss:
        """The loss and its figures.

        Args:
            images: `[B, 3, H, W]` uint8.
            seeds: one integer for each image, addresses the noise of its latents.
            rate_weight: factor of the rate in an ELBO; below 1 it lets latents come alive (Sønderby et al., 2016).
            low: `[B, 3, h, w]` uint8, the LR images where they are given; else H makes them.
        """
        raise NotImplementedError

    def components(self) -> dict[str, Any]:
        """The networks under the names that a pipeline gives them."""
        raise NotImplementedError


class PairedObjective(Objective):
    """An objective that sees y.

    Args:
        operator: H, makes y from x; the same operator as at inference.
    """

    def __init__(self, operator: Downsampling) -> None:
        super().__init__()
        self.operator = operator

    def pairs(self, images: Tensor, low: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x and y on [-1, 1], from 8-bit images."""
        return make_pairs(images, self.operator) if low is None else convert_pairs(images, low)


class ConditionalObjective(PairedObjective):
    """An objective with a prior and an LR network.

    Args:
        vdvae: the prior.
        lr_network: the LR network.
        operator: H, makes y from x; the same operator as at inference.
    """

    lr_network: LREncoder | LRConditioner

    def __init__(self, vdvae: VDVAE, lr_network: LREncoder | LRConditioner, operator: Downsampling) -> None:
        super().__init__(operator)
        self.vdvae = vdvae
        self.lr_network = lr_network

    def components(self) -> dict[str, Any]:
        return {"vdvae": self.vdvae, "lr_encoder": self.lr_network}


class ELBO(Objective):
    """Stage `vdvae`: the negative ELBO of x (VD-VAE, eq. 1), in nats per dimension.

    Args:
        vdvae: the prior.
    """

    method = "VD-VAE prior (negative ELBO)"

    def __init__(self, vdvae: VDVAE) -> None:
        super().__init__()
        self.vdvae = vdvae

    def components(self) -> dict[str, Any]:
        return {"vdvae": self.vdvae}

    def forward(self, images: Tensor, seeds: Sequence[int], rate_weight: float = 1, low: Tensor | None = None) -> Loss:
        x = images.float() / 127.5 - 1
        return _elbo(self.vdvae(x, noise=CounterNoise(seeds)), rate_weight)


class ConditionalELBO(ConditionalObjective):
    """Stage `vdvae-sr`: the negative conditional ELBO (thesis, eq. 4.5, or 5.1 where the posterior does not see y)."""

    method = "VDVAE-SR: conditioned VD-VAE (conditional ELBO)"

    def forward(self, images: Tensor, seeds: Sequence[int], rate_weight: float = 1, low: Tensor | None = None) -> Loss:
        x, y = self.pairs(images, low)
        out = self.vdvae(x, noise=CounterNoise(seeds), condition=self.lr_network.encode(y))
        return _elbo(out, rate_weight)


class Distillation(ConditionalObjective):
    """Stage `lr-encoder`: KL(q_phi(z_<k|x) || q_psi(z_<k|y)), VD-VAE frozen (CVDVAE, eq. 13-14).

    z is drawn from q_phi. The sum runs over groups and elements and is averaged over the batch; with
    `kl_reduction="group_mean"` each group's KL is averaged over its elements instead, as in the published code.

    Args:
        kl_reduction: "sum" or "group_mean".
    """

    figure = "kl_bits_per_dim"
    method = "CVDVAE: LR encoder distilled from a frozen VD-VAE prior"

    def __init__(self, vdvae: VDVAE, lr_network: LREncoder, operator: Downsampling, kl_reduction: str = "sum") -> None:
        super().__init__(vdvae, lr_network, operator)
        if kl_reduction not in ("sum", "group_mean"):
            raise ValueError(f"`kl_reduction` must be 'sum' or 'group_mean', got {kl_reduction!r}")
        self.kl_reduction = kl_reduction
        self.vdvae.requires_grad_(False)

    def forward(self, images: Tensor, seeds: Sequence[int], rate_weight: float = 1, low: Tensor | None = None) -> Loss:
        x, y = self.pairs(images, low)
        group_kl = self.group_kl(x, y, CounterNoise(seeds))
        group_nats = torch.stack([kl.sum(dim=(1, 2, 3)).mean() for kl in group_kl])
        nats = group_nats.sum()
        per_dimension = nats / x[0].numel()
        loss = per_dimension  # so that the gradient's scale does not depend on the size of the crops
        if self.kl_reduction == "group_mean":
            loss = torch.stack([kl.mean() for kl in group_kl]).sum()
        return loss, {
            "kl_bits_per_dim": per_dimension.detach() / NATS_PER_BIT,
            "kl_nats": nats.detach(),
            GROUPS: group_nats.detach() / (x[0].numel() * NATS_PER_BIT),
        }

    def group_kl(self, x: Tensor, y: Tensor, noise: CounterNoise | Sequence[Tensor]) -> list[Tensor]:
        """The KL of every element of the k conditioned groups in nats, `[B, C, h, w]` each.

        Args:
            x, y: `[B, 3, H, W]` and `[B, 3, h, w]` on [-1, 1].
            noise: the draws of z from q_phi.
        """
        lr_encoder = self.lr_network
        assert isinstance(lr_encoder, LREncoder)
        with torch.no_grad():
            activations = self.vdvae.encode(x)
        size, condition, groups = (x.shape[-2], x.shape[-1]), lr_encoder.encode(y), len(lr_encoder.heads)
        out = self.vdvae.top_down(len(x), size, noise, activations=activations, condition=condition, num_groups=groups)
        return [q.kl(lr) for q, lr in _posteriors(out)]


class Joint(ConditionalObjective):
    """Stage `joint`: the negative ELBO of x, and q_psi(z_l | z_<l, y) distilled from it in the same top-down pass.

        -ELBO(x) + KL(sg[q_phi(z_<k|x)] || q_psi(z_<k | sg[z_<k], y)),  nats per dimension,

    sg[.] stops gradients: the prior trains as in stage `vdvae`, and the LR encoder follows it while it still moves
    (CVDVAE, eq. 13-14, with phi and theta of the moment), for the cost of the LR encoder alone.
    """

    method = "CVDVAE: VD-VAE prior and LR encoder trained together"

    def forward(self, images: Tensor, seeds: Sequence[int], rate_weight: float = 1, low: Tensor | None = None) -> Loss:
        x, y = self.pairs(images, low)
        condition = self.lr_network.encode(y)
        follower = replace(condition, network=_Follower(condition.network))
        size, activations = (x.shape[-2], x.shape[-1]), self.vdvae.encode(x)
        out = self.vdvae.top_down(len(x), size, CounterNoise(seeds), activations=activations, condition=follower)
        loss, figures = _elbo(self.vdvae.elbo(x, out), rate_weight)
        kl = torch.stack([_detached(q).kl(lr).sum() for q, lr in _posteriors(out)]).sum() / x.numel()
        figures["kl_bits_per_dim"] = kl.detach() / NATS_PER_BIT
        return loss + kl, figures


class _Follower(GroupConditioning):
    """An LR encoder whose q_psi sends no gradient into the prior."""

    def __init__(self, followed: GroupConditioning) -> None:
        self.followed = followed

    def posterior(self, features: Features, group: int, h: Tensor, prior: DiagonalGaussian) -> DiagonalGaussian | None:
        """q_psi(z_l | sg[z_<l], y)."""
        return self.followed.posterior(features, group, h.detach(), _detached(prior))


def _posteriors(out: TopDownOutput) -> list[tuple[DiagonalGaussian, DiagonalGaussian]]:
    """q_phi and q_psi of the groups that have both."""
    pairs = [(group.posterior, group.lr_posterior) for group in out.groups]
    return [(q, lr) for q, lr in pairs if q and lr]


def _detached(gaussian: DiagonalGaussian) -> DiagonalGaussian:
    return DiagonalGaussian(*(part.detach() for part in gaussian))


def _elbo(out: VDVAEOutput, rate_weight: float) -> tuple[Tensor, dict[str, Tensor]]:
    """distortion + rate_weight * rate, and the figures of the ELBO itself in bits per dimension."""
    bits = {"bits_per_dim": out.loss, "distortion": out.distortion, "rate": out.rate}
    figures = {name: value.detach().mean() / NATS_PER_BIT for name, value in bits.items()}
    groups = torch.stack([kl.detach().mean() for kl in out.group_kl])
    figures[GROUPS] = groups / (out.sample[0].numel() * NATS_PER_BIT)
    return (out.distortion + rate_weight * out.rate).mean(), figures
