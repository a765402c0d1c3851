"""The step of one latent group: prior, posterior, z, and the blocks after it (VD-VAE, figure 3)."""

from functools import partial

import torch
from torch import Tensor, nn

from .blocks import ACTIVATIONS, MAX_WIDTH, BlockSpec, Bottleneck, Convolution, add_in_place, residual_block
from .condition import Condition, GroupConditioning
from .distributions import DiagonalGaussian
from .outputs import GroupStatistics

_UNCONDITIONED = GroupConditioning()


class TopDownBlock(nn.Module):
    """One latent group: prior and posterior heads, the projection of z, and a residual block (VD-VAE, figure 3).

    Further residual blocks may follow, where what the latents say is worked into structure.

    Args:
        spec: resolution, the coarser resolution whose stream is mixed in, and the number of further residual blocks.
        width: channels of the stream.
        latent_channels, bottleneck_multiple, activation, max_log_sigma, residual_multiple: see `VDVAE`.
        num_blocks: blocks of the whole decoder; scales the initial weights.
        with_posterior: whether the head q(z_l | z_<l, x) is built.
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
        residual_multiple: float | None = None,
    ) -> None:
        super().__init__()
        self.resolution, self.mixin, self.width = spec.resolution, spec.mixin, width
        self.latent_channels, self.max_log_sigma = latent_channels, max_log_sigma
        self.activation = ACTIVATIONS[activation]
        middle, parameters = int(width * bottleneck_multiple), 2 * latent_channels
        head = partial(Bottleneck, middle_channels=middle, resolution=spec.resolution, activation=activation)
        self.posterior_head = head(2 * width, out_channels=parameters) if with_posterior else None
        self.prior_head = head(width, out_channels=parameters + width, zero_last=True)
        self.z_projection = Convolution(latent_channels, width)
        self.resnet = residual_block(width, bottleneck_multiple, spec.resolution, activation, num_blocks)
        inner = bottleneck_multiple if residual_multiple is None else residual_multiple
        if residual_multiple is not None and not 1 <= width * residual_multiple <= MAX_WIDTH:
            raise ValueError(f"`residual_multiple` = {residual_multiple!r} leaves no width between 1 and {MAX_WIDTH}")
        self.residual_blocks = nn.ModuleList(
            residual_block(width, inner, spec.resolution, activation, num_blocks) for _ in range(spec.residual_blocks)
        )
        with torch.no_grad():
            self.z_projection.weight.mul_((1 / num_blocks) ** 0.5)

    def prior(self, h: Tensor) -> tuple[DiagonalGaussian, Tensor]:
        """p(z_l | z_<l) from the activated stream `[B, width, h, w]`, and the residual that is added to the stream."""
        parameters, residual = self.prior_head(h, activated=True).split((2 * self.latent_channels, self.width), dim=1)
        return DiagonalGaussian.from_parameters(parameters), residual

    def posterior(self, h: Tensor, activation: Tensor) -> DiagonalGaussian:
        """q(z_l | z_<l, x) from the activated stream and the HR activation, `[B, width, h, w]` each."""
        if self.posterior_head is None:
            raise ValueError("this VDVAE was made without an encoder (`encoder_blocks=None`): it has no q(z|x)")
        parameters = self.posterior_head(h, self.activation(activation.to(h.dtype)), activated=True)
        return DiagonalGaussian.from_parameters(parameters)

    def forward(
        self,
        x: Tensor,
        group: int,
        condition: Condition | None = None,
        activation: Tensor | None = None,
        z: Tensor | None = None,
        noise: Tensor | None = None,
        temperature: float = 1.0,
        lr_temperature: float = 1.0,
    ) -> tuple[Tensor, GroupStatistics]:
        """The whole step of the group, in one call so that hooks, sharding and checkpointing can treat it as a unit.

        Where z_l comes from is said at `VDVAE.top_down`.

        Args:
            x: the stream, `[B, width, h, w]`, or `[1, width, h, w]` where all rows share it so far.
            group: l, for the condition.
            activation: HR activation, `[B, width, h, w]`.
            z: the value `[B, C, h, w]`, where it is given.
            noise: standard normals `[B, C, h, w]`; None takes the mean. Made outside, as checkpointing runs the block
                twice.
            temperature, lr_temperature: factors of the standard deviations of prior and q_psi.

        Returns:
            The stream after the group, and the group's statistics.
        """
        network, features = (condition.network, condition.features) if condition else (_UNCONDITIONED, {})
        x = network.add_to_stream(features, group, x)
        h = self.activation(x)  # once for all heads
        prior, residual = self.prior(h)
        prior = network.prior(features, group, prior).clamp(self.max_log_sigma)
        posterior = None
        if activation is not None:
            posterior = self.posterior(h, network.add_to_activation(features, group, activation))
        lr_posterior = network.posterior(features, group, h, prior)

        if z is None and posterior is not None:
            z = posterior.sample(noise)
        elif z is None and lr_posterior is not None:
            z = lr_posterior.sample(noise, lr_temperature)
        elif z is None:
            z = prior.sample(noise, temperature)
        z = z.to(x.device)
        x = add_in_place(add_in_place(self.z_projection(z.to(residual.dtype)), x), residual)
        for block in (self.resnet, *self.residual_blocks):
            x = block(x)
        return x, GroupStatistics(z, prior, posterior, lr_posterior)
