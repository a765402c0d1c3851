"""Gaussian diffusion in discrete time: the noise schedule, its shortened chains, and one ancestral step.

    q(x_t | x_0) = N(sqrt(abar_t) x_0, (1 - abar_t) I),    abar_t = prod_(s <= t) (1 - beta_s)
    q(x_(t-1) | x_t, x_0) = N(c1_t x_0 + c2_t x_t, v_t I),  v_t = (1 - abar_(t-1)) / (1 - abar_t) beta_t

(Ho et al., "Denoising Diffusion Probabilistic Models", NeurIPS 2020, eq. 4-7; shortened chains and learned variances:
Nichol and Dhariwal, "Improved Denoising Diffusion Probabilistic Models", ICML 2021). The noise of a step is an
argument: diffusers' `DDPMScheduler` would draw it itself, so that a sample could not be addressed by its seed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput
from torch import Tensor

from ..hooks import UNSET
from ..models.blocks import check_choice
from ..models.distributions import DiagonalGaussian
from .common import check_whole

VARIANCE_TYPES = ("fixed_small", "fixed_large", "learned_range")
_SMALLEST_VARIANCE = 1e-20


@dataclass
class AncestralStep(BaseOutput):
    """What `AncestralScheduler.step` returns; all `[B, 3, H, W]`.

    Args:
        prev_sample: x_(t-1).
        pred_original_sample: the estimate of x_0, clamped to [-1, 1].
    """

    prev_sample: Tensor
    pred_original_sample: Tensor = UNSET


class AncestralScheduler(SchedulerMixin, ConfigMixin):
    """A linear noise schedule, and the ancestral sampler of a network that predicts the noise.

    Steps are counted on the chain that `set_timesteps` chooses: index 0 is the last one of sampling.

    Args:
        num_train_timesteps: T of the training chain.
        beta_start, beta_end: of the linear schedule; 1e-6 and 1e-2 over 2000 steps in SR3, 1e-4 and 2e-2 over 1000 in
            guided diffusion.
        variance_type: of a step. "fixed_small" is v_t. "fixed_large" is beta_t (guided diffusion where no variance is
            learned). With "learned_range" the network's second half of channels, in [-1, 1], interpolates between
            log v_t and log beta_t.
    """

    order = 1

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 2e-2,
        variance_type: str = "fixed_small",
    ) -> None:
        check_whole(num_train_timesteps=num_train_timesteps)
        check_choice("variance_type", variance_type, VARIANCE_TYPES)
        if not 0 < beta_start <= beta_end < 1:
            raise ValueError(f"`beta_start` and `beta_end` must be 0 < start <= end < 1, got {beta_start}, {beta_end}")
        self.train_alphas_cumprod = np.cumprod(1 - np.linspace(beta_start, beta_end, num_train_timesteps))
        self.set_timesteps()

    def set_timesteps(self, timesteps: int | str | Sequence[int] | None = None, argument: str = "timesteps") -> None:
        """Chooses the chain that is sampled.

        Args:
            timesteps: how many, spread evenly over the training chain (`space_timesteps`), or such a function's
                description, or None for all. The betas of the chain are those that leave abar at its steps unchanged.
            argument: what errors call `timesteps`.

        Raises:
            ValueError: no steps, more steps than there are, or a description that says nothing.
        """
        total = self.config.num_train_timesteps
        kept = range(total) if timesteps is None else space_timesteps(total, timesteps, argument)
        self.timestep_map = np.array(list(kept))
        self.alphas_cumprod = self.train_alphas_cumprod[self.timestep_map]
        before = np.append(1.0, self.alphas_cumprod[:-1])
        self.betas = 1 - self.alphas_cumprod / before
        self.posterior_mean_coef1 = self.betas * np.sqrt(before) / (1 - self.alphas_cumprod)
        self.posterior_mean_coef2 = (1 - before) * np.sqrt(1 - self.betas) / (1 - self.alphas_cumprod)
        variance = self.betas * (1 - before) / (1 - self.alphas_cumprod)
        if self.config.variance_type == "learned_range" and len(variance) > 1:
            variance[0] = variance[1]  # v_0 is 0, and its logarithm is interpolated with
        if self.config.variance_type == "fixed_large" and len(variance) > 1:
            variance = np.append(variance[1], self.betas[1:])
        self.posterior_log_variance_clipped = np.log(np.maximum(variance, _SMALLEST_VARIANCE))

    @property
    def num_steps(self) -> int:
        """Steps of the chain."""
        return len(self.timestep_map)

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the first x, as diffusers' schedulers have it."""
        return 1.0

    def timestep(self, index: int) -> int:
        """The step of the training chain that step `index` stands for: what the network is told."""
        return int(self.timestep_map[index])

    def noise_level(self, index: int) -> float:
        """sqrt(abar) of step `index`: what SR3's network is told."""
        return float(np.sqrt(self.alphas_cumprod[index]))

    def level_within(self, index: Tensor, uniform: Tensor) -> Tensor:
        """A noise level between those of step `index` - 1 and step `index`: what SR3 is trained at (its algorithm 1).

        Args:
            index: `[B]`, whole numbers; before step 0 the level is 1.
            uniform: `[B]`, on [0, 1): how far from the level of the step itself.
        """
        levels = torch.from_numpy(np.sqrt(np.append(1.0, self.alphas_cumprod))).to(uniform)
        here, before = levels[index + 1], levels[index]
        return here + uniform * (before - here)

    def add_noise(self, sample: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """level x_0 + sqrt(1 - level^2) noise, with `level` = sqrt(abar), `[B]` or `[B, 1]`."""
        level = level.reshape(-1, 1, 1, 1)
        return level * sample + torch.sqrt(1 - level**2) * noise

    def predict_original(self, noise: Tensor, index: int, sample: Tensor) -> Tensor:
        """x_0 from x_t and the predicted noise, clamped: clamp(sqrt(1 / abar_t) x_t - sqrt(1 / abar_t - 1) noise)."""
        abar = self.alphas_cumprod[index]
        return (float(np.sqrt(1 / abar)) * sample - float(np.sqrt(1 / abar - 1)) * noise).clamp(-1, 1)

    def step(self, model_output: Tensor, index: int, sample: Tensor, noise: Tensor | None = None) -> AncestralStep:
        """One step of sampling: x_(t-1) from x_t.

        Args:
            model_output: the predicted noise, `[B, 3, H, W]`; with a learned variance `[B, 6, H, W]`.
            index: of the step, from `num_steps` - 1 down to 0.
            sample: x_t, `[B, 3, H, W]`.
            noise: standard normals, not read at index 0, which adds none.

        Raises:
            ValueError: an index beyond the chain, channels that do not fit the variance type, or no noise where it is
                needed.
        """
        if not 0 <= index < self.num_steps:
            raise ValueError(f"`index` must be between 0 and {self.num_steps - 1}, got {index}")
        learned = self.config.variance_type == "learned_range"
        channels = sample.shape[1] * (2 if learned else 1)
        if model_output.shape[1] != channels:
            raise ValueError(
                f"`model_output` must have {channels} channels for variance_type={self.config.variance_type!r}, "
                f"got {model_output.shape[1]}"
            )
        predicted: Tensor = model_output
        log_variance: Any = float(self.posterior_log_variance_clipped[index])
        if learned:
            predicted, fraction = model_output.chunk(2, dim=1)
            fraction = (fraction + 1) / 2
            log_variance = fraction * float(np.log(self.betas[index])) + (1 - fraction) * log_variance
        x0 = self.predict_original(predicted, index, sample)
        mean = float(self.posterior_mean_coef1[index]) * x0 + float(self.posterior_mean_coef2[index]) * sample
        if index == 0:
            return AncestralStep(mean, x0)
        if noise is None:
            raise ValueError(f"`noise` is needed at every step but the last, got None at index {index}")
        sigma = torch.exp(0.5 * log_variance) if learned else float(np.exp(0.5 * log_variance))
        return AncestralStep(mean + sigma * noise, x0)


def variational_bound(
    scheduler: AncestralScheduler, predicted: Tensor, variance: Tensor, index: Tensor, sample: Tensor, original: Tensor
) -> Tensor:
    """T L_t of the variational bound in bits per dimension, `[B]`, whose mean over random steps t estimates L_vlb.

        L_t = KL(q(x_(t-1) | x_t, x_0) || p(x_(t-1) | x_t)),    L_0 = -log p(x_0 | x_1) of 8-bit levels

    (Nichol and Dhariwal, eq. 4-7). The prior's term, which has no parameters, is left out.

    Args:
        scheduler: of variance_type "learned_range".
        predicted: the noise, `[B, 3, H, W]`.
        variance: between log v_t (-1) and log beta_t (1), `[B, 3, H, W]`.
        index: of the steps, `[B]`.
        sample, original: x_t and x_0, `[B, 3, H, W]` on [-1, 1].
    """

    def at(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(sample)[index].reshape(-1, 1, 1, 1)

    abar, low, high = at(scheduler.alphas_cumprod), at(scheduler.posterior_log_variance_clipped), at(scheduler.betas)
    c1, c2 = at(scheduler.posterior_mean_coef1), at(scheduler.posterior_mean_coef2)
    fraction = (variance + 1) / 2
    log_sigma = 0.5 * (fraction * torch.log(high) + (1 - fraction) * low)
    x0 = (sample - torch.sqrt(1 - abar) * predicted) / torch.sqrt(abar)  # not clamped, as published
    mean, truth = c1 * x0 + c2 * sample, c1 * original + c2 * sample
    kl = DiagonalGaussian(truth, 0.5 * low.expand_as(truth)).kl(DiagonalGaussian(mean, log_sigma))
    scale = torch.exp(-log_sigma)
    above = torch.where(original > 0.999, 1.0, torch.special.ndtr((original - mean + 1 / 255) * scale))
    below = torch.where(original < -0.999, 0.0, torch.special.ndtr((original - mean - 1 / 255) * scale))
    reconstruction = -torch.log((above - below).clamp(min=1e-12))
    nats = torch.where((index == 0).reshape(-1, 1, 1, 1), reconstruction, kl)
    return scheduler.num_steps * nats.mean((1, 2, 3)) / math.log(2)


def space_timesteps(total: int, chosen: int | str | Sequence[int], argument: str = "chosen") -> list[int]:
    """Steps of a chain of `total` that a shorter one keeps, in increasing order.

    Args:
        total: steps of the chain.
        chosen: a number n: n steps from the first to the last, evenly spread and rounded to even. Several, as a list
            or "10,5": the chain is cut in so many parts of equal length, and each keeps so many steps, spread over it
            in the same way. "ddimN": every k-th step from 0, for the k that gives N.
        argument: what errors call `chosen`.

    Raises:
        ValueError: no steps, a part shorter than what is to be kept of it, or no k that gives N.

    Example:
        >>> space_timesteps(100, "3,2")
        [0, 24, 49, 50, 99]
    """
    if isinstance(chosen, str) and chosen.startswith("ddim"):
        count = _whole(chosen.removeprefix("ddim"), chosen, argument)
        for stride in range(1, total + 1):
            if len(range(0, total, stride)) == count:
                return list(range(0, total, stride))
        raise ValueError(f"`{argument}`: no whole stride keeps {count} of {total} steps, got {chosen!r}")
    parts: list[Any] = chosen.split(",") if isinstance(chosen, str) else list(np.atleast_1d(chosen))
    counts = [_whole(part, chosen, argument) for part in parts]
    if sum(counts) < 1:
        raise ValueError(f"`{argument}` must keep at least one step, got {chosen!r}")
    steps: set[int] = set()
    start = 0
    for i, count in enumerate(counts):
        size = total // len(counts) + (1 if i < total % len(counts) else 0)
        if count > size:
            raise ValueError(f"`{argument}`: {count} steps cannot be kept of {size}, got {chosen!r} of {total}")
        gap = (size - 1) / (count - 1) if count > 1 else 1.0
        position = 0.0  # added up, as published: multiplying would round a few steps to their neighbours
        for _ in range(count):
            steps.add(start + round(position))
            position += gap
        start += size
    return sorted(steps)


def _whole(value: Any, given: object, argument: str) -> int:
    sound = isinstance(value, Integral) and not isinstance(value, bool)
    sound = sound or (isinstance(value, str) and value.strip().isdecimal())
    count = int(value) if sound else -1
    if count < 0:
        raise ValueError(f"`{argument}` must be whole numbers >= 0, or 'ddimN', got {given!r}")
    return count
