"""Gaussian latents and the discretized mixture of logistics, against closed forms and Monte Carlo."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from hvae_sr.models.distributions import (
    LOG_SCALE_FLOOR,
    DiagonalGaussian,
    DiscretizedLogisticMixture,
    half_bin_shift,
    quantise,
)

LEVELS = torch.arange(256) / 127.5 - 1


def gaussian(seed: int) -> DiagonalGaussian:
    generator = torch.Generator().manual_seed(seed)
    return DiagonalGaussian.from_parameters(torch.randn(2, 6, 4, 5, generator=generator))


def as_torch(distribution: DiagonalGaussian) -> torch.distributions.Normal:
    return torch.distributions.Normal(distribution.mean, distribution.log_sigma.exp())


def parameters(
    logits: list[float], means: list[list[float]], log_scales: list[list[float]], coefficients: list[list[float]]
) -> Tensor:
    """`[1, 10 K, 1, 1]` from lists over the mixtures (logits) and over colours, then mixtures (the others)."""
    colours = [
        torch.tensor([means[c], log_scales[c], torch.tensor(coefficients[c]).atanh().tolist()]) for c in range(3)
    ]
    return torch.cat([torch.tensor(logits), torch.stack(colours).flatten()])[None, :, None, None]


TWO_MIXTURES = parameters(
    logits=[0.3, -0.5],
    means=[[-0.2, 0.6], [0.1, -0.4], [0.3, 0.0]],
    log_scales=[[-2.0, -3.0], [-2.5, -1.5], [-2.2, -3.0]],
    coefficients=[[0.5, -0.3], [0.2, 0.1], [-0.4, 0.6]],
)


def at_pixels(table: Tensor, height: int, width: int) -> Tensor:
    return table.expand(1, -1, height, width)


def red_marginal(table: Tensor) -> Tensor:
    """p(red level), written with torch's logistic function alone; the end bins are open. `[256]`, float64."""
    logits, means, log_scales = (table[0, i : i + 2, 0, 0].double() for i in (0, 2, 4))
    x = LEVELS.double()[:, None]
    upper = torch.sigmoid((x + 1 / 255 - means) / log_scales.exp())
    lower = torch.sigmoid((x - 1 / 255 - means) / log_scales.exp())
    upper[-1], lower[0] = 1.0, 0.0
    return ((upper - lower) * torch.softmax(logits, dim=0)).sum(dim=1)


def test_kl_is_that_of_torch_distributions() -> None:
    p, q = gaussian(0), gaussian(1)
    expected = torch.distributions.kl_divergence(as_torch(p), as_torch(q))
    torch.testing.assert_close(p.kl(q), expected, rtol=1e-4, atol=1e-4)
    assert p.kl(p).abs().max() < 1e-6


def test_gaussian_log_prob_is_that_of_torch_distributions() -> None:
    p = gaussian(0)
    z = torch.randn(p.mean.shape)
    torch.testing.assert_close(p.log_prob(z), as_torch(p).log_prob(z), rtol=1e-4, atol=1e-4)


def test_temperature_scales_the_standard_deviation() -> None:
    p, noise = gaussian(0), torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(p.sample(noise, 0.5) - p.mean, 0.5 * (p.sample(noise) - p.mean), rtol=1e-4, atol=1e-6)
    assert torch.equal(p.sample(noise, 0.0), p.mean)


def test_gaussian_parameters_are_computed_in_fp32() -> None:
    p = DiagonalGaussian.from_parameters(torch.randn(1, 4, 2, 2, dtype=torch.bfloat16))
    assert p.mean.dtype == p.log_sigma.dtype == torch.float32


@pytest.mark.parametrize("red", [0, 90, 255])
def test_summing_over_green_and_blue_leaves_the_red_marginal(red: int) -> None:
    mixture = DiscretizedLogisticMixture(at_pixels(TWO_MIXTURES, 256, 256), 2)
    x = torch.stack((LEVELS[red].expand(256, 256), LEVELS[:, None].expand(-1, 256), LEVELS[None].expand(256, -1)))[None]
    total = mixture.log_prob(x).double().exp().sum().item()
    assert total == pytest.approx(red_marginal(TWO_MIXTURES)[red].item(), rel=2e-3)


def test_the_red_marginal_sums_to_one() -> None:
    assert red_marginal(TWO_MIXTURES).sum().item() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("colour", [0, 1, 2])
@pytest.mark.parametrize("log_scale", [-6.0, -3.0, 0.0])
def test_one_colour_given_the_others_before_it_sums_to_one(colour: int, log_scale: float) -> None:
    # With one mixture log p is a sum over the colours; those of the other two colours are taken off.
    table = parameters([0.0], [[0.1], [-0.2], [0.3]], [[log_scale]] * 3, [[0.4], [-0.3], [0.2]])
    mixture = DiscretizedLogisticMixture(at_pixels(table, 1, 256), 1)
    x = quantise(torch.tensor([0.1, -0.2, 0.3]), 8)[None, :, None, None].repeat(1, 1, 1, 256)
    x[0, colour, 0] = LEVELS
    log_terms = mixture.log_prob(x)[0, 0]
    for other in {0, 1, 2} - {colour}:
        log_terms = log_terms - single_colour_log_prob(mixture, x, other)
    assert log_terms.double().exp().sum().item() == pytest.approx(1.0, abs=2e-3)


def single_colour_log_prob(mixture: DiscretizedLogisticMixture, x: Tensor, colour: int) -> Tensor:
    """log p(x_colour | colours before it) of a one-component mixture in float64, `[256]`."""
    a, b, c = (mixture.coefficients[0, i, 0, 0].double() for i in range(3))
    r, g, v = (x[0, i, 0].double() for i in range(3))
    mean = mixture.means[0, colour, 0, 0].double() + [0 * r, a * r, b * r + c * g][colour]
    scale = mixture.log_scales[0, colour, 0, 0].double().exp()
    value = (r, g, v)[colour]
    upper = torch.sigmoid((value + 1 / 255 - mean) / scale)
    lower = torch.sigmoid((value - 1 / 255 - mean) / scale)
    upper = torch.where(value > 0.999, torch.ones_like(upper), upper)
    lower = torch.where(value < -0.999, torch.zeros_like(lower), lower)
    density = torch.sigmoid((value - mean) / scale) * torch.sigmoid((mean - value) / scale) / scale / 127.5
    ends = value.abs() > 0.999
    tails = torch.where(
        value > 0.999,
        torch.nn.functional.logsigmoid((mean - value + 1 / 255) / scale),
        torch.nn.functional.logsigmoid((value + 1 / 255 - mean) / scale),
    )
    inside = torch.where(upper - lower > 1e-5, (upper - lower).log(), density.clamp(min=1e-300).log())
    return torch.where(ends, tails, inside)


def test_mean_is_that_of_many_draws_where_scales_are_narrow() -> None:
    count = 40_000
    table = TWO_MIXTURES.clone().view(1, -1)
    for colour in range(3):
        table[:, 2 + 6 * colour + 2 : 2 + 6 * colour + 4] = -5.0
    table = table.view(1, -1, 1, 1)
    mixture = DiscretizedLogisticMixture(at_pixels(table, 1, count), 2)
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.rand(1, k, 1, count, generator=generator).clamp(1e-6, 1 - 1e-6) for k in (2, 3))
    draws = mixture.sample(u, v)
    standard_error = draws.std(dim=(2, 3), keepdim=True) / math.sqrt(count)
    assert ((draws.mean(dim=(2, 3), keepdim=True) - mixture.mean()[..., :1]).abs() < 5 * standard_error).all()


def test_draws_follow_the_mixture_and_the_logistic() -> None:
    count = 20_000
    # Components far apart, so that the draw tells which was chosen.
    table = parameters([0.4, -0.4], [[-0.5, 0.5], [0.0, 0.0], [0.0, 0.0]], [[-4.0, -4.0]] * 3, [[0.0, 0.0]] * 3)
    mixture = DiscretizedLogisticMixture(at_pixels(table, 1, count), 2)
    generator = torch.Generator().manual_seed(1)
    u, v = (torch.rand(1, k, 1, count, generator=generator).clamp(1e-6, 1 - 1e-6) for k in (2, 3))
    red, green, _ = mixture.sample(u, v)[0, :, 0]
    share = (red < 0).float().mean().item()
    pi = torch.softmax(torch.tensor([0.4, -0.4]), dim=0)[0].item()
    assert abs(share - pi) < 4 * math.sqrt(pi * (1 - pi) / count)
    scale = math.exp(-4)
    assert stats.kstest(red[red < 0].numpy(), stats.logistic(-0.5, scale).cdf).pvalue > 1e-3
    assert stats.kstest(green.numpy(), stats.logistic(0.0, scale).cdf).pvalue > 1e-3


def test_draws_are_a_function_of_the_uniforms() -> None:
    mixture = DiscretizedLogisticMixture(at_pixels(TWO_MIXTURES, 3, 4), 2)
    u, v = torch.rand(1, 2, 3, 4) * 0.98 + 0.01, torch.rand(1, 3, 3, 4) * 0.98 + 0.01
    draw = mixture.sample(u, v)
    assert torch.equal(draw, mixture.sample(u, v))
    assert not torch.equal(draw, mixture.sample(u, 1 - v))
    assert draw.abs().max() <= 1


def test_location_shifts_the_distribution() -> None:
    table = at_pixels(TWO_MIXTURES, 4, 4)
    location = torch.round(torch.rand(1, 3, 4, 4) * 40) / 127.5 - 0.2
    x = quantise(torch.rand(1, 3, 4, 4) - 0.5, 8)
    plain = DiscretizedLogisticMixture(table, 2)
    moved = DiscretizedLogisticMixture(table, 2, location=location)
    torch.testing.assert_close(moved.log_prob(x), plain.log_prob(x - location), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(moved.mean(), plain.mean() + location)


def test_log_scales_have_a_floor() -> None:
    table = TWO_MIXTURES.clone()
    table[:, 4:6] = -20.0
    mixture = DiscretizedLogisticMixture(table, 2)
    assert mixture.log_scales[0, 0].unique().item() == LOG_SCALE_FLOOR


@pytest.mark.parametrize("output_bits", [5, 8])
def test_gradients_are_finite_at_extreme_values(output_bits: int) -> None:
    generator = torch.Generator().manual_seed(0)
    table = (torch.randn(2, 30, 8, 8, generator=generator) * 30).requires_grad_()
    x = torch.where(torch.rand(2, 3, 8, 8, generator=generator) > 0.5, 1.0, -1.0)
    log_prob = DiscretizedLogisticMixture(table, 3, output_bits).log_prob(x)
    log_prob.sum().backward()
    assert torch.isfinite(log_prob).all() and torch.isfinite(table.grad).all()


def test_wrong_channel_count_is_refused() -> None:
    with pytest.raises(ValueError, match="`parameters` must have 10"):
        DiscretizedLogisticMixture(torch.zeros(1, 19, 2, 2), 2)


def test_five_bit_target_is_the_floor_of_every_level() -> None:
    x = LEVELS.float()
    assert torch.equal(torch.round((quantise(x, 5) + 1) * 127.5), torch.arange(256) // 8 * 8.0)
    assert torch.equal(torch.round((quantise(x, 8) + 1) * 127.5), torch.arange(256.0))


def test_five_bit_likelihood_has_bins_of_its_own_width() -> None:
    mixture = DiscretizedLogisticMixture(TWO_MIXTURES, 2, output_bits=5)
    assert mixture.half_bin == 1 / 31
    assert DiscretizedLogisticMixture(TWO_MIXTURES, 2).half_bin == 1 / 255


def test_half_bin_is_what_the_floor_loses_on_average() -> None:
    lost = (LEVELS - quantise(LEVELS, 5)).mean().item()
    assert half_bin_shift(5) == pytest.approx(lost, abs=1e-6)
    assert half_bin_shift(8) == 0
