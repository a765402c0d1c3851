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


def red_marginal(table: Tensor) -> Tensor:
    """p(red level), written with torch's logistic function alone; the end bins are open. `[256]`, float64."""
    k = table.shape[1] // 10
    logits, means, log_scales = table[0, : 3 * k, 0, 0].double().split(k)
    x = LEVELS.double()[:, None]
    upper = torch.sigmoid((x + 1 / 255 - means) / log_scales.exp())
    lower = torch.sigmoid((x - 1 / 255 - means) / log_scales.exp())
    upper[-1], lower[0] = 1.0, 0.0
    return ((upper - lower) * torch.softmax(logits, dim=0)).sum(dim=1)


def test_gaussians_are_those_of_torch_distributions_in_fp32() -> None:
    p, q, z = gaussian(0), gaussian(1), torch.randn(2, 3, 4, 5)
    expected = torch.distributions.kl_divergence(as_torch(p), as_torch(q))
    torch.testing.assert_close(p.kl(q), expected, rtol=1e-4, atol=1e-4)
    assert p.kl(p).abs().max() < 1e-6
    torch.testing.assert_close(p.log_prob(z), as_torch(p).log_prob(z), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(p.sample(z, 0.5) - p.mean, 0.5 * (p.sample(z) - p.mean), rtol=1e-4, atol=1e-6)
    assert torch.equal(p.sample(z, 0.0), p.mean)
    half = DiagonalGaussian.from_parameters(torch.randn(1, 4, 2, 2, dtype=torch.bfloat16))
    assert half.mean.dtype == half.log_sigma.dtype == torch.float32


ONE_MIXTURE = [
    parameters([0.0], [[0.1], [-0.2], [0.3]], [[log_scale]] * 3, [[0.4], [-0.3], [0.2]])
    for log_scale in (-6.0, -3.0, 0.0)
]


@pytest.mark.parametrize("table", [TWO_MIXTURES, *ONE_MIXTURE])
def test_summing_over_green_and_blue_leaves_the_red_marginal_which_sums_to_one(table: Tensor) -> None:
    expected = red_marginal(table)
    mixture = DiscretizedLogisticMixture(table.expand(1, -1, 256, 256), table.shape[1] // 10)
    for red in (0, 90, 140, 255):
        x = (LEVELS[red].expand(256, 256), LEVELS[:, None].expand(-1, 256), LEVELS[None].expand(256, -1))
        total = mixture.log_prob(torch.stack(x)[None]).double().exp().sum().item()
        assert total == pytest.approx(expected[red].item(), rel=2e-3, abs=1e-9)
    assert expected.sum().item() == pytest.approx(1.0, abs=1e-6)


def drawn(table: Tensor, count: int, seed: int) -> tuple[DiscretizedLogisticMixture, Tensor]:
    """A mixture of two, and draws from it `[1, 3, 1, count]`."""
    mixture = DiscretizedLogisticMixture(table.expand(1, -1, 1, count), 2)
    generator = torch.Generator().manual_seed(seed)
    u, v = (torch.rand(1, k, 1, count, generator=generator).clamp(1e-6, 1 - 1e-6) for k in (2, 3))
    return mixture, mixture.sample(u, v)


def test_mean_is_that_of_many_draws_where_scales_are_narrow() -> None:
    count, table = 40_000, TWO_MIXTURES.clone()
    for colour in range(3):
        table[:, 2 + 6 * colour + 2 : 2 + 6 * colour + 4] = -5.0
    mixture, draws = drawn(table, count, seed=0)
    standard_error = draws.std(dim=(2, 3), keepdim=True) / math.sqrt(count)
    assert ((draws.mean(dim=(2, 3), keepdim=True) - mixture.mean()[..., :1]).abs() < 5 * standard_error).all()


def test_draws_follow_the_mixture_and_the_logistic() -> None:
    count = 20_000
    # Components far apart, so that the draw tells which was chosen.
    table = parameters([0.4, -0.4], [[-0.5, 0.5], [0.0, 0.0], [0.0, 0.0]], [[-4.0, -4.0]] * 3, [[0.0, 0.0]] * 3)
    red, green, _ = drawn(table, count, seed=1)[1][0, :, 0]
    share = (red < 0).float().mean().item()
    pi = torch.softmax(torch.tensor([0.4, -0.4]), dim=0)[0].item()
    assert abs(share - pi) < 4 * math.sqrt(pi * (1 - pi) / count)
    scale = math.exp(-4)
    assert stats.kstest(red[red < 0].numpy(), stats.logistic(-0.5, scale).cdf).pvalue > 1e-3
    assert stats.kstest(green.numpy(), stats.logistic(0.0, scale).cdf).pvalue > 1e-3


def test_draws_are_a_function_of_the_uniforms() -> None:
    mixture = DiscretizedLogisticMixture(TWO_MIXTURES.expand(1, -1, 3, 4), 2)
    u, v = torch.rand(1, 2, 3, 4) * 0.98 + 0.01, torch.rand(1, 3, 3, 4) * 0.98 + 0.01
    draw = mixture.sample(u, v)
    assert torch.equal(draw, mixture.sample(u, v))
    assert not torch.equal(draw, mixture.sample(u, 1 - v))
    assert draw.abs().max() <= 1


def test_location_shifts_the_distribution() -> None:
    location = torch.round(torch.rand(1, 3, 4, 4) * 40) / 127.5 - 0.2
    x = quantise(torch.rand(1, 3, 4, 4) - 0.5, 8)
    plain, moved = (DiscretizedLogisticMixture(TWO_MIXTURES.expand(1, -1, 4, 4), 2, 8, at) for at in (None, location))
    torch.testing.assert_close(moved.log_prob(x), plain.log_prob(x - location), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(moved.mean(), plain.mean() + location)


def test_log_scales_have_a_floor_and_channels_are_counted() -> None:
    table = TWO_MIXTURES.clone()
    table[:, 4:6] = -20.0
    assert DiscretizedLogisticMixture(table, 2).log_scales[0, 0].unique().item() == LOG_SCALE_FLOOR
    with pytest.raises(ValueError, match="`parameters` must have 10"):
        DiscretizedLogisticMixture(torch.zeros(1, 19, 2, 2), 2)


@pytest.mark.parametrize("output_bits", [5, 8])
def test_gradients_are_finite_at_extreme_values(output_bits: int) -> None:
    generator = torch.Generator().manual_seed(0)
    table = (torch.randn(2, 30, 8, 8, generator=generator) * 30).requires_grad_()
    x = torch.where(torch.rand(2, 3, 8, 8, generator=generator) > 0.5, 1.0, -1.0)
    log_prob = DiscretizedLogisticMixture(table, 3, output_bits).log_prob(x)
    log_prob.sum().backward()
    assert torch.isfinite(log_prob).all() and torch.isfinite(table.grad).all()


def test_five_bit_levels_are_floored_in_bins_of_their_own_width() -> None:
    assert torch.equal(torch.round((quantise(LEVELS, 5) + 1) * 127.5), torch.arange(256) // 8 * 8.0)
    assert torch.equal(torch.round((quantise(LEVELS, 8) + 1) * 127.5), torch.arange(256.0))
    assert [DiscretizedLogisticMixture(TWO_MIXTURES, 2, bits).half_bin for bits in (5, 8)] == [1 / 31, 1 / 255]
    lost = (LEVELS - quantise(LEVELS, 5)).mean().item()
    assert half_bin_shift(5) == pytest.approx(lost, abs=1e-6)
    assert half_bin_shift(8) == 0
