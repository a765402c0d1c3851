"""The parts of VD-VAE's decoder: the start of each stream, and the block of one latent group."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from .distributions import DiagonalGaussian
from .fast import apply, bare, convolve_both
from .layers import BlockSpec, Bottleneck, Stream, convolution, kernel_size_at


class GroupInputs(NamedTuple):
    """What enters a group besides its stream. All of it is made outside the block, which has no randomness.

    Args:
        activation: HR activation `[B, width, h, w]`, or None where there is no x.
        lr_posterior: gives q_psi(z_l | z_<l, y) from the stream and the prior, or None where group l has none.
        needs_prior: whether `lr_posterior` must be given the prior.
        lr_prior: gives p(z_l | z_<l, y) from p(z_l | z_<l), or None where y reaches the prior through the stream or
            not at all.
        z: the value `[B, C, h, w]`, where it is given.
        noise: standard normals `[B, C, h, w]`, or None for the mean.
        temperature: factor of the prior's standard deviation.
        lr_temperature: factor of q_psi's standard deviation.
        record: whether every distribution is computed, or only the one that z is drawn from.
        overwrite: whether the stream's memory may be written over.
        observed: whether hooks may keep what passes between the block's modules.
    """

    activation: Tensor | None = None
    lr_posterior: Callable[[Stream, DiagonalGaussian | None], DiagonalGaussian] | None = None
    needs_prior: bool = False
    lr_prior: Callable[[DiagonalGaussian], DiagonalGaussian] | None = None
    z: Tensor | None = None
    noise: Tensor | None = None
    temperature: float = 1.0
    lr_temperature: float = 1.0
    record: bool = True
    overwrite: bool = False
    observed: bool = True


class GroupStatistics(NamedTuple):
    """One latent group of one top-down pass; a distribution is None where it does not exist or was not asked for.

    Args:
        z: `[B, C, h, w]`, the value that was passed on.
        prior: p(z_l | z_<l), given y too if y conditions the prior.
        posterior: q(z_l | z_<l, x), given y too if y conditions the stream or the posterior.
        lr_posterior: q_psi(z_l | z_<l, y).
    """

    z: Tensor
    prior: DiagonalGaussian = None  # type: ignore[assignment]  # None only where distributions are not recorded
    posterior: DiagonalGaussian | None = None
    lr_posterior: DiagonalGaussian | None = None

    def expand(self, rows: int) -> "GroupStatistics":
        """The same for every row of the batch, where the rows shared it (a view)."""

        def expand(x: Tensor) -> Tensor:
            return x.expand(rows, -1, -1, -1)

        distributions = (
            p if p is None else DiagonalGaussian(expand(p.mean), expand(p.log_sigma))
            for p in (self.prior, self.posterior, self.lr_posterior)
        )
        return GroupStatistics(expand(self.z), *distributions)  # type: ignore[arg-type]


@dataclass
class TopDownOutput:
    """The end of a top-down pass: the stream at the finest resolution, and what happened in each group."""

    stream: Tensor
    groups: list[GroupStatistics] = field(default_factory=list)


class Bias(nn.Module):
    """The learned start of the stream of one resolution: `[1, C, h, w]` of a fixed size, or `[1, C, 1, 1]`."""

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1, channels, side, side))

    def forward(self, batch_size: int, height: int, width: int) -> Tensor:
        return self.bias.expand(batch_size, -1, height, width)


class PriorHead(Bottleneck):
    """The head of p(z_l | z_<l): mean, log_sigma and a deterministic residual of the stream, from one block.

    The parts of the last convolution are computed when they are asked for; all at once with gradients, or where the
    layer is not `bare`: another one in its place, or a hook on it, is to see one call with one result.
    """

    @property
    def at_once(self) -> bool:
        """Whether the last convolution is called once for all that it gives."""
        return torch.is_grad_enabled() or not bare(self.c4)

    def forward(self, stream: Stream, distribution: bool = True) -> tuple[DiagonalGaussian | None, Tensor]:  # type: ignore[override]
        """The prior, if `distribution` asks for it, and what `add_residual` takes."""
        width = stream.x.shape[1]
        c = (self.out_channels - width) // 2
        h = self.hidden(stream)
        if self.at_once:
            parameters, residual = self.c4(h).split((2 * c, width), dim=1)  # one `cat` backwards, slices are two sums
            return DiagonalGaussian.from_parameters(parameters), residual
        prior = (
            DiagonalGaussian(self.c4(h, rows=(0, c)).float(), self.c4(h, rows=(c, 2 * c)).float())
            if distribution
            else None
        )
        return prior, h

    def add_residual(
        self, x: Tensor, features: Tensor, z_projection: nn.Module, z: Tensor, overwrite: bool = False
    ) -> Tensor:
        """The stream plus the head's residual plus the projected z, `[B, width, h, w]`.

        Args:
            x: the stream, `[B or 1, width, h, w]`.
            features: what `forward` returned.
            z_projection: from z to the stream.
            z: `[B or 1, C, h, w]`.
            overwrite: whether the result may be written over x.
        """
        if self.at_once:
            x = x + features
            return apply(z_projection, z.to(x.dtype), plus=x)
        rows = (self.out_channels - x.shape[1], None)
        return convolve_both(self.c4, features, z_projection, z, x, rows, overwrite)


class TopDownBlock(nn.Module):
    """One latent group: prior and posterior heads, the projection of z, and a residual block (VD-VAE, figure 3).

    Args:
        spec: resolution, and the coarser resolution whose stream is mixed in.
        width: channels of the stream.
        latent_channels: channels of z.
        bottleneck_multiple: inner width of the blocks as a share of `width`.
        num_blocks: blocks of the whole decoder; scales the initial weights.
        with_posterior: whether the head q(z_l | z_<l, x) is built.
        activation: "gelu" or "silu".
        max_log_sigma: bound of the prior's log_sigma, or None.
    """

    def __init__(
        self,
        spec: BlockSpec,
        width: int,
        latent_channels: int,
        bottleneck_multiple: float,
        num_blocks: int,
        with_posterior: bool,
        activation: str,
        max_log_sigma: float | None = None,
    ) -> None:
        super().__init__()
        self.max_log_sigma = max_log_sigma
        self.resolution = spec.resolution
        self.mixin = spec.mixin
        self.width = width
        self.latent_channels = latent_channels
        middle = int(width * bottleneck_multiple)
        kernel_size = kernel_size_at(spec.resolution)
        self.posterior_head = (
            Bottleneck(2 * width, middle, 2 * latent_channels, kernel_size, activation=activation)
            if with_posterior
            else None
        )
        self.prior_head = PriorHead(
            width, middle, 2 * latent_channels + width, kernel_size, zero_last=True, activation=activation
        )
        self.z_projection = convolution(latent_channels, width)
        self.resnet = Bottleneck(width, middle, width, kernel_size, residual=True, activation=activation)
        with torch.no_grad():
            self.z_projection.weight.mul_((1 / num_blocks) ** 0.5)
            self.resnet.c4.weight.mul_((1 / num_blocks) ** 0.5)

    def prior(
        self,
        stream: Stream,
        distribution: bool = True,
        lr_prior: Callable[[DiagonalGaussian], DiagonalGaussian] | None = None,
    ) -> tuple[DiagonalGaussian | None, Tensor]:
        """p(z_l | z_<l), or what `lr_prior` makes of it, if `distribution` asks for it; and the features of the
        deterministic residual."""
        prior, features = self.prior_head(stream, distribution)
        if prior is not None and lr_prior is not None:
            prior = lr_prior(prior)
        if prior is not None and self.max_log_sigma is not None:
            prior = prior._replace(log_sigma=prior.log_sigma.clamp(max=self.max_log_sigma))
        return prior, features

    def posterior(self, x: Tensor, activation: Tensor) -> DiagonalGaussian:
        """q(z_l | z_<l, x) from the stream and the HR activation, `[B, width, h, w]` each."""
        if self.posterior_head is None:
            raise ValueError("this VDVAE was made without an encoder (`encoder_blocks=None`): it has no q(z|x)")
        return DiagonalGaussian.from_parameters(self.posterior_head(torch.cat((x, activation), dim=1)))

    def merge(self, x: Tensor, features: Tensor, z: Tensor, inputs: GroupInputs) -> Tensor:
        """The stream after the group: the prior head's residual and the projected z are added, then a block."""
        x = self.prior_head.add_residual(x, features, self.z_projection, z, inputs.overwrite)
        return self.resnet(x, overwrite=not inputs.observed)

    def forward(self, x: Tensor, inputs: GroupInputs) -> tuple[Tensor, GroupStatistics]:
        """The whole group, in one call so that hooks, sharding and checkpointing can treat it as a unit.

        Args:
            x: the stream, `[B, width, h, w]`, or `[1, width, h, w]` where all rows share it so far.
            inputs: see `GroupInputs`.

        Returns:
            The stream after the group, and the group's statistics.
        """
        stream = Stream(x)
        draws = inputs.record or inputs.z is None
        posterior = self.posterior(x, inputs.activation) if draws and inputs.activation is not None else None
        uses_lr = draws and inputs.lr_posterior is not None and (inputs.record or posterior is None)
        given = posterior is not None or (uses_lr and not inputs.needs_prior)
        prior, features = self.prior(stream, inputs.record or (draws and not given), inputs.lr_prior)
        lr_posterior = inputs.lr_posterior(stream, prior) if uses_lr and inputs.lr_posterior is not None else None
        if inputs.z is not None:
            z = inputs.z.to(x.device)
        elif posterior is not None:
            z = _draw(posterior, inputs.noise, 1.0)
        elif lr_posterior is not None:
            z = _draw(lr_posterior, inputs.noise, inputs.lr_temperature)
        else:
            assert prior is not None
            z = _draw(prior, inputs.noise, inputs.temperature)
        return self.merge(x, features, z, inputs), GroupStatistics(z, prior, posterior, lr_posterior)  # type: ignore[arg-type]


def _draw(distribution: DiagonalGaussian, noise: Tensor | None, temperature: float) -> Tensor:
    if noise is None or temperature == 0:
        return distribution.mean
    return distribution.sample(noise.to(distribution.mean.device), temperature)


def group_temperatures(temperature: float | Sequence[float], num_groups: int, argument: str) -> list[float]:
    """The temperature of each group, from one for all or one for each.

    Raises:
        ValueError: not one number or `num_groups` of them, finite and >= 0; the message names `argument`.
    """
    several = isinstance(temperature, Sequence) or (isinstance(temperature, np.ndarray) and temperature.ndim > 0)
    values: list[Any] = list(temperature) if several else [temperature] * num_groups  # type: ignore[arg-type]
    if len(values) != num_groups:
        raise ValueError(f"`{argument}` must be a number or one for each of {num_groups} groups, got {values}")
    for value in values:
        if not (isinstance(value, Real) and 0 <= float(value) < float("inf")):
            raise ValueError(f"`{argument}` must be a finite number >= 0, got {value!r}")
    return [float(value) for value in values]


def check_latent(z: Tensor | None, group: int, shape: tuple[int, int, int, int]) -> Tensor:
    """A given z in fp32, if it is `[B, C, h, w]` = `shape`, or one row for all.

    Raises:
        ValueError: another shape.
    """
    if not isinstance(z, Tensor) or tuple(z.shape) not in (shape, (1, *shape[1:])):
        found = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
        raise ValueError(f"`latents[{group}]` must have shape {shape}, got {found}")
    return z.float()
