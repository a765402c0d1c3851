"""The evaluations of the two networks as compiled graphs: on GPUs, many tiny kernels in one launch."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hvae_sr.models import VDVAE, Condition, LRConditioner, LREncoder, VDVAESample
from hvae_sr.models.loading import PerGroup
from hvae_sr.models.top_down import group_temperatures
from hvae_sr.noise import NoiseSource, as_noise_source

_STATIC_OUTPUTS = ("reduce-overhead", "max-autotune")
"""Modes of `torch.compile` with CUDA graphs, whose outputs the next call overwrites."""


class CompiledNetworks:
    """`encode` and `sample` of the networks through `torch.compile`.

    A graph is made for each size of y and each number of samples, at the first call of its kind: seconds to minutes.
    Noise is drawn outside and scaled by the temperatures, tau (mu + sigma eps) being drawn as mu + sigma (tau eps), so
    that seeds and temperatures make no new graphs.

    Args:
        vdvae: the prior.
        lr_encoder: the LR network.
        options: of `torch.compile`, such as `{"mode": "reduce-overhead"}`.

    Raises:
        ValueError: options that `torch.compile` does not have, or that ask for CUDA graphs otherwise than by `mode`.
    """

    def __init__(self, vdvae: VDVAE, lr_encoder: LREncoder | LRConditioner, options: dict[str, Any]) -> None:
        self.vdvae, self.lr_encoder, self.options = vdvae, lr_encoder, options
        if options.get("backend") == "cudagraphs" or "triton.cudagraphs" in (options.get("options") or {}):
            raise ValueError(f"CUDA graphs are asked for by `mode` = 'reduce-overhead', got {options}")
        self._static = options.get("mode") in _STATIC_OUTPUTS
        # The features of y are kept for all samples: they must not lie in memory that a CUDA graph writes again.
        plain = {**options, "mode": None} if self._static else options
        try:
            self.encode = torch.compile(lr_encoder.encode, **plain)
            self._draw = torch.compile(self._plain_draw, **options)
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"options of torch.compile: {options}: {' '.join(str(error).split())}") from error

    def sample(
        self,
        batch_size: int,
        size: tuple[int, int],
        noise: NoiseSource | Sequence[Tensor],
        condition: Condition,
        latents: Sequence[Tensor | None] = (),
        temperature: float | Sequence[float] = 1.0,
        lr_posterior_temperature: float | Sequence[float] | None = None,
        num_conditioned_groups: int | None = None,
        sample_pixels: bool = False,
        return_latents: bool = True,
    ) -> VDVAESample:
        """`VDVAE.sample`, by the graph; by the networks themselves where pixels are drawn too.

        Args:
            batch_size: B.
            size: (H, W) of the images.
            noise: `[B, C, h_l, w_l]` for each group, or a function of (group, stride, shape, device).
            condition: of one observation, or of B.
            latents, temperature, lr_posterior_temperature, num_conditioned_groups: as in `VDVAE.top_down`.
            sample_pixels, return_latents: as in `VDVAE.sample`.

        Returns:
            Images `[B, 3, H, W]`, nominally on [-1, 1], and latents.

        Raises:
            RuntimeError: the graph gives values that are not finite.
        """
        groups = self.vdvae.num_groups
        if sample_pixels:
            return self.vdvae.sample(
                batch_size,
                size,
                noise=noise,
                condition=condition,
                sample_pixels=True,
                return_latents=return_latents,
                latents=latents,
                temperature=temperature,
                lr_posterior_temperature=lr_posterior_temperature,
                num_conditioned_groups=num_conditioned_groups,
            )
        scales = group_temperatures(temperature, groups, "temperature")
        lr_scales = scales
        if lr_posterior_temperature is not None:
            lr_scales = group_temperatures(lr_posterior_temperature, groups, "lr_posterior_temperature")
        conditioned = groups if num_conditioned_groups is None else num_conditioned_groups
        source = as_noise_source(noise)
        draws: list[Tensor | None] = []
        for group in range(groups):
            if group < len(latents) and latents[group] is not None:
                draws.append(None)
                continue
            shape = self.vdvae.latent_shape(group, batch_size, size)
            from_posterior = group < conditioned and condition.has_posterior(group)
            scale = (lr_scales if from_posterior else scales)[group]
            draws.append(source(group, self.vdvae.stride(group), shape, self.vdvae.device) * scale)
        if self._static:
            torch.compiler.cudagraph_mark_step_begin()
        # What heads keep of the features for other samples is inside the graph: each call has a condition of its own.
        own = replace(condition, shares={})
        sample, *drawn = self._draw(batch_size, size, draws, own, list(latents), num_conditioned_groups, return_latents)
        if self._static:
            sample, drawn = sample.clone(), [z.clone() for z in drawn]
        if not torch.isfinite(sample).all():  # seen on a CPU, where the networks themselves gave finite samples
            raise RuntimeError(
                f"the graphs of torch.compile with {self.options or 'its defaults'} gave values that are not finite; "
                "`disable_compilation()` evaluates the networks themselves"
            )
        return VDVAESample(sample=sample, latents=PerGroup(drawn))

    def _plain_draw(
        self,
        batch_size: int,
        size: tuple[int, int],
        noise: list[Tensor | None],
        condition: Condition,
        latents: list[Tensor | None],
        num_conditioned_groups: int | None,
        return_latents: bool,
    ) -> tuple[Tensor, ...]:
        out = self.vdvae.sample(
            batch_size,
            size,
            noise=noise,  # type: ignore[arg-type]  # None where a latent is given
            condition=condition,
            latents=latents,
            num_conditioned_groups=num_conditioned_groups,
            return_latents=return_latents,
        )
        return (out.sample, *out.latents)
