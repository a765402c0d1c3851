"""Gaussian latents and the discretized mixture of logistics, the two distributions of VD-VAE."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import checked_number


class DiagonalGaussian(NamedTuple):
    """N(mean, exp(log_sigma)^2), elementwise.

    Args:
        mean: `[B, C, H, W]`, fp32.
        log_sigma: `[B, C, H, W]`, fp32: the logarithm of the standard deviation.
    """

    mean: Tensor
    log_sigma: Tensor

    @classmethod
    def from_parameters(cls, parameters: Tensor) -> "DiagonalGaussian":
        """Splits `[B, 2C, H, W]` into mean and log_sigma, in fp32 whatever the network's dtype."""
        mean, log_sigma = parameters.float().chunk(2, dim=1)
        return cls(mean, log_sigma)

    def clamp(self, max_log_sigma: float | None) -> "DiagonalGaussian":
        """The same with log_sigma bounded above, if there is a bound."""
        return self if max_log_sigma is None else self._replace(log_sigma=self.log_sigma.clamp(max=max_log_sigma))

    def sample(self, noise: Tensor | None, temperature: float = 1.0) -> Tensor:
        """z = mean + temperature * exp(log_sigma) * noise: the temperature scales the standard deviation.

        The mean where there is no noise, or no temperature.
        """
        if noise is None or temperature == 0.0:
            return self.mean
        # Copied first: elements of a part of a map lie apart in memory, where exp takes many times as long.
        sigma = self.log_sigma.clone().exp_()
        return torch.addcmul(self.mean, sigma, noise.to(self.mean.device), value=temperature)

    def kl(self, other: "DiagonalGaussian") -> Tensor:
        """KL(self || other) of every element in nats, `[B, C, H, W]`."""
        difference = self.mean - other.mean
        ratio = torch.exp(2 * (self.log_sigma - other.log_sigma))
        scaled = difference * torch.exp(-other.log_sigma)
        return other.log_sigma - self.log_sigma - 0.5 + 0.5 * (ratio + scaled * scaled)

    def log_prob(self, z: Tensor) -> Tensor:
        """log N(z; mean, exp(log_sigma)^2) of every element in nats, `[B, C, H, W]`."""
        scaled = (z - self.mean) * torch.exp(-self.log_sigma)
        return -0.5 * scaled * scaled - self.log_sigma - 0.9189385332046727


LOG_SCALE_FLOOR = -7.0
"""Smallest log-scale of a logistic, as in PixelCNN++ and VD-VAE."""


@dataclass
class DiscretizedLogisticMixture:
    """Mixture of discretized logistics over RGB pixels, with linear coupling of the colours.

    p(x|z) = sum_k pi_k prod_c [F((x_c + h - m_kc) / s_kc) - F((x_c - h - m_kc) / s_kc)], F the logistic function,
    with m_k = (mu_r, mu_g + a x_r, mu_b + b x_r + c x_g), the bins of 0 and 255 open, h half a bin (PixelCNN++, eq.
    2-3; VD-VAE's code; of 5 bits the highest level is 248, whose bin is closed). Where a bin's mass is below 1e-5, it
    is the density at its centre times the bin width.

    Args:
        parameters: `[B, 10 * num_mixtures * s^2, H / s, W / s]`; VD-VAE's order: the logits of pi, then for each of
            R, G, B the means, log-scales and coupling coefficients (before tanh) of all mixtures; each for the s x s
            pixels of a patch.
        num_mixtures: K.
        output_bits: 8 (levels 2/255 apart on [-1, 1]) or 5 (VD-VAE's "low_bit": half-bins of 1/31).
        location: `[B, 3, H, W]` on [-1, 1] or None. With a location, the mixture models x - location: means are
            offsets from it and the colours are coupled by what each adds to it.
        patch_size: s.
    """

    parameters: Tensor
    num_mixtures: int
    output_bits: int = 8
    location: Tensor | None = None
    patch_size: int = 1
    _pixels: Tensor | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        channels, needed = self.parameters.shape[1], 10 * self.num_mixtures * self.patch_size**2
        if channels != needed:
            raise ValueError(f"`parameters` must have 10 * num_mixtures = {needed} channels, got {channels}")

    @property
    def _at_pixels(self) -> Tensor:
        """`[B, 10 K, H, W]`, fp32, one plane for each parameter; made once."""
        if self._pixels is None:  # no cached_property: the compiler cannot trace its lock
            self._pixels = F.pixel_shuffle(self.parameters.float(), self.patch_size)
        return self._pixels

    @property
    def logits(self) -> Tensor:
        """`[B, K, H, W]`."""
        return self._at_pixels[:, : self.num_mixtures]

    def _of_colours(self, kind: int) -> Tensor:
        """Means (0), log-scales (1) or couplings before tanh (2), `[B, 3, K, H, W]`."""
        x = self._at_pixels[:, self.num_mixtures :]
        return x.reshape(x.shape[0], 3, 3, self.num_mixtures, *x.shape[2:])[:, :, kind]

    @property
    def means(self) -> Tensor:
        """`[B, 3, K, H, W]`."""
        return self._of_colours(0)

    @property
    def log_scales(self) -> Tensor:
        """`[B, 3, K, H, W]`, bounded below."""
        return self._of_colours(1).clamp(min=LOG_SCALE_FLOOR)

    @property
    def coefficients(self) -> Tensor:
        """Of the coupling, `[B, 3, K, H, W]` in (-1, 1)."""
        return torch.tanh(self._of_colours(2))

    @property
    def half_bin(self) -> float:
        return 1 / 255 if self.output_bits == 8 else 1 / 31

    def _residual(self, x: Tensor) -> Tensor:
        return x.float() if self.location is None else x.float() - self.location.float()

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x|z) in nats, `[B, H, W]`, summed over the colours.

        Args:
            x: `[B, 3, H, W]` on [-1, 1], at the centres of the bins.
        """
        r = self._residual(x)
        red, green = r[:, 0:1], r[:, 1:2]  # [B, 1, H, W], broadcast over the mixtures
        a, b, c = self.coefficients.unbind(1)  # [B, K, H, W] each
        centred = r[:, :, None] - self.means
        uncoupled = centred[:, 0], centred[:, 1] - a * red, centred[:, 2] - b * red - c * green
        centred = torch.stack(uncoupled, dim=1)  # [B, 3, K, H, W]
        log_scales = self.log_scales
        inverse_scale = torch.exp(-log_scales)
        plus = inverse_scale * (centred + self.half_bin)
        minus = inverse_scale * (centred - self.half_bin)
        mass = torch.sigmoid(plus) - torch.sigmoid(minus)
        middle = inverse_scale * centred
        log_width = -math.log(15.5 if self.output_bits == 5 else 127.5)
        log_density = middle - log_scales - 2 * F.softplus(middle) + log_width
        log_mass = torch.where(mass > 1e-5, torch.log(mass.clamp(min=1e-12)), log_density)
        ends = x.float()[:, :, None]
        log_mass = torch.where(ends < -0.999, F.logsigmoid(plus), log_mass)
        log_mass = torch.where(ends > 0.999, -F.softplus(minus), log_mass)
        return torch.logsumexp(log_mass.sum(dim=1) + torch.log_softmax(self.logits, dim=1), dim=1)

    def mean(self) -> Tensor:
        """E[x|z] = sum_k pi_k m_k of the mixture (before clipping to [-1, 1]), `[B, 3, H, W]`, fp32."""
        k, s = self.num_mixtures, self.patch_size
        x = self.parameters.to(torch.float32, memory_format=torch.contiguous_format)
        # The pixels of a patch stay apart until there is one number for each colour: [B, 10 K, s^2 H / s, W / s].
        rows = x.shape[0]
        x = x.reshape(rows, 10 * k, s * s * x.shape[2], x.shape[3])
        logits, *per_colour = x.split(k, dim=1)  # one `cat` backwards, slices are sums of maps that are mostly zero
        pi = torch.softmax(logits, dim=1)
        red, green, blue = per_colour[::3]
        a, b, c = (torch.tanh(coefficient) for coefficient in per_colour[2::3])
        green = green + a * red
        blue = blue + b * red + c * green
        mean = torch.stack([(pi * colour).sum(dim=1) for colour in (red, green, blue)], dim=1)
        mean = F.pixel_shuffle(mean.reshape(rows, 3 * s * s, -1, x.shape[3]), s)
        return mean if self.location is None else mean + self.location.float()

    def sample(self, uniform_mixture: Tensor, uniform_logistic: Tensor) -> Tensor:
        """A draw of pixels from p(x|z), clipped to [-1, 1], `[B, 3, H, W]`.

        Args:
            uniform_mixture: `[B, K, H, W]` in (0, 1), chooses the mixture by Gumbel's trick.
            uniform_logistic: `[B, 3, H, W]` in (0, 1), drives the logistics.
        """
        gumbel = -torch.log(-torch.log(uniform_mixture))
        chosen = torch.argmax(self.logits + gumbel, dim=1, keepdim=True)  # [B, 1, H, W]
        index = chosen[:, None].expand(-1, 3, -1, -1, -1)
        mean, log_scale, coefficient = (
            of_all.gather(2, index)[:, :, 0] for of_all in (self.means, self.log_scales, self.coefficients)
        )  # [B, 3, H, W]
        draw = mean + torch.exp(log_scale) * (torch.log(uniform_logistic) - torch.log1p(-uniform_logistic))
        location = torch.zeros_like(draw) if self.location is None else self.location.float()
        red = (draw[:, 0] + location[:, 0]).clamp(-1, 1)
        green = (draw[:, 1] + location[:, 1] + coefficient[:, 0] * (red - location[:, 0])).clamp(-1, 1)
        blue = draw[:, 2] + location[:, 2] + coefficient[:, 1] * (red - location[:, 0])
        blue = (blue + coefficient[:, 2] * (green - location[:, 1])).clamp(-1, 1)
        return torch.stack((red, green, blue), dim=1)


def quantise(x: Tensor, output_bits: int) -> Tensor:
    """The likelihood's target: x on [-1, 1] at its 8-bit levels, or, for 5 bits, floor(level / 8) * 8 of them.

    Levels are rounded to integers before the floor: a float32 round trip through [-1, 1] would break it.
    """
    levels = torch.round((x.float() + 1) * 127.5).clamp(0, 255)
    if output_bits == 5:
        levels = torch.floor(levels / 8) * 8
    return levels / 127.5 - 1


def half_bin_shift(output_bits: int) -> float:
    """What to add on [-1, 1] to an image of `output_bits` levels that were floored: the mean of the levels lost.

    For 5 bits, floor(level / 8) * 8 loses 3.5 grey levels on average; for 8 bits nothing is lost.
    """
    return 3.5 / 127.5 if output_bits == 5 else 0.0


def group_temperatures(
    temperature: float | Sequence[float], num_groups: int, argument: str = "temperature"
) -> list[float]:
    """The temperature of each group, from one for all or one for each.

    Raises:
        ValueError: not one number or `num_groups` of them, finite and >= 0; the message names `argument`.
    """
    given: Any = temperature
    several = given.ndim > 0 if isinstance(given, np.ndarray) else isinstance(given, Sequence)
    values = list(given) if several and not isinstance(given, str) else [given] * num_groups
    if len(values) != num_groups:
        raise ValueError(f"`{argument}` must be a number or one for each of {num_groups} groups, got {len(values)}")
    return [checked_number(argument, value) for value in values]
