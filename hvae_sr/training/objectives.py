"""What each training stage minimises. A stage is an objective and its trainable parameters; the loop is one."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..data import make_pairs
from ..models import VDVAE, LRConditioner, LREncoder, VDVAEOutput
from ..noise import CounterNoise
from ..operators import Downsampling

NATS_PER_BIT = 0.6931471805599453


class Objective(nn.Module):
    """A loss over a batch of photographs, and the networks it trains.

    Args:
        vdvae: the prior.
        lr_network: the LR network, for the stages that have one.
        operator: H, makes y from x; the same operator as at inference.
    """

    def __init__(
        self,
        vdvae: VDVAE,
        lr_network: LREncoder | LRConditioner | None = None,
        operator: Downsampling | None = None,
    ) -> None:
        super().__init__()
        self.vdvae = vdvae
        self.lr_network = lr_network
        self.operator = operator

    def forward(
        self, images: Tensor, seeds: Sequence[int], rate_weight: float = 1.0
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to minimise, a scalar, and figures to log, scalars.

        Args:
            images: `[B, 3, H, W]` uint8.
            seeds: one integer for each image, addresses the noise of its latents.
            rate_weight: factor of the rate in an ELBO; below 1 it lets latents come alive (Sønderby et al., 2016).
        """
        raise NotImplementedError

    def pairs(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """x and y on [-1, 1], from 8-bit images."""
        assert self.operator is not None
        return make_pairs(images, self.operator)

    def components(self) -> dict[str, VDVAE | LREncoder | LRConditioner]:
        """The networks under the names that a pipeline gives them."""
        networks: dict[str, VDVAE | LREncoder | LRConditioner] = {"vdvae": self.vdvae}
        if self.lr_network is not None:
            networks["lr_encoder"] = self.lr_network
        return networks


class ELBO(Objective):
    """Stage `vdvae`: the negative ELBO of x (VD-VAE, eq. 1), in nats per dimension."""

    def forward(
        self, images: Tensor, seeds: Sequence[int], rate_weight: float = 1.0
    ) -> tuple[Tensor, dict[str, Tensor]]:
        x = images.float() / 127.5 - 1
        return _elbo(self.vdvae(x, noise=CounterNoise(seeds)), rate_weight)


class ConditionalELBO(Objective):
    """Stage `vdvae-sr`: the negative conditional ELBO, where prior and posterior see y (thesis, eq. 4.5)."""

    def forward(
        self, images: Tensor, seeds: Sequence[int], rate_weight: float = 1.0
    ) -> tuple[Tensor, dict[str, Tensor]]:
        x, y = self.pairs(images)
        condition = self.lr_network.encode(y)  # type: ignore[union-attr]
        return _elbo(self.vdvae(x, noise=CounterNoise(seeds), condition=condition), rate_weight)


class Distillation(Objective):
    """Stage `lr-encoder`: KL(q_phi(z_<k|x) || q_psi(z_<k|y)), VD-VAE frozen (CVDVAE, eq. 13-14).

    z is drawn from q_phi. The sum runs over groups and elements and is averaged over the batch; with
    `kl_reduction="group_mean"` each group's KL is averaged over its elements instead, as in the published code.

    Args:
        kl_reduction: "sum" or "group_mean".
    """

    def __init__(self, vdvae: VDVAE, lr_network: LREncoder, operator: Downsampling, kl_reduction: str = "sum") -> None:
        super().__init__(vdvae, lr_network, operator)
        if kl_reduction not in ("sum", "group_mean"):
            raise ValueError(f"`kl_reduction` must be 'sum' or 'group_mean', got {kl_reduction!r}")
        self.kl_reduction = kl_reduction
        self.vdvae.requires_grad_(False)

    def forward(
        self, images: Tensor, seeds: Sequence[int], rate_weight: float = 1.0
    ) -> tuple[Tensor, dict[str, Tensor]]:
        x, y = self.pairs(images)
        group_kl = self.group_kl(x, y, CounterNoise(seeds))
        nats = torch.stack([kl.sum(dim=(1, 2, 3)).mean() for kl in group_kl]).sum()
        per_dimension = nats / x[0].numel()
        if self.kl_reduction == "sum":
            # Per dimension, so that the gradient's scale does not depend on the size of the crops.
            loss = per_dimension
        else:
            loss = torch.stack([kl.mean() for kl in group_kl]).sum()
        return loss, {"kl_bits_per_dim": per_dimension.detach() / NATS_PER_BIT, "kl_nats": nats.detach()}

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
        out = self.vdvae.top_down(
            x.shape[0],
            (x.shape[-2], x.shape[-1]),
            noise,
            activations=activations,
            condition=lr_encoder.encode(y),
            num_groups=len(lr_encoder.heads),
        )
        pairs = [(group.posterior, group.lr_posterior) for group in out.groups]
        return [posterior.kl(lr_posterior) for posterior, lr_posterior in pairs if posterior and lr_posterior]


def _elbo(out: VDVAEOutput, rate_weight: float) -> tuple[Tensor, dict[str, Tensor]]:
    """distortion + rate_weight * rate, and the figures of the ELBO itself in bits per dimension."""
    figures = {"bits_per_dim": out.loss, "distortion": out.distortion, "rate": out.rate}
    loss = (out.distortion + rate_weight * out.rate).mean()
    return loss, {name: value.detach().mean() / NATS_PER_BIT for name, value in figures.items()}
