"""Addressed noise: its statistics, and that a value depends on its address alone."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
from scipy import stats

from hvae_sr.noise import CounterNoise, GeneratorNoise, TensorNoise, _uniforms, as_noise_source

CPU = torch.device("cpu")
SIDE = 128
BOUND = 5 / SIDE  # five standard errors of a correlation of SIDE^2 values


def draw(seed: int = 0, group: int = 0, channels: int = 1, size: tuple[int, int] = (SIDE, SIDE)) -> torch.Tensor:
    return CounterNoise([seed])(group, 1, (1, channels, *size), CPU)[0]


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return torch.corrcoef(torch.stack((a.flatten(), b.flatten())))[0, 1].item()


@pytest.mark.parametrize("seed", [0, 1, -7, 12345, 2**40])
def test_noise_is_standard_normal(seed: int) -> None:
    values = draw(seed, channels=4).flatten().double()
    n = values.numel()
    assert abs(values.mean().item()) < 5 / math.sqrt(n)
    assert abs(values.var().item() - 1) < 5 * math.sqrt(2 / n)
    assert abs((values**4).mean().item() - 3) < 5 * math.sqrt(96 / n)
    assert stats.kstest(values.numpy(), "norm").pvalue > 1e-4


def test_seeds_groups_and_channels_are_uncorrelated() -> None:
    for base in (0, 41):
        for other in (1, 2, -1, 2**32, 2**63, -(2**63)):
            assert abs(correlation(draw(base), draw(base + other))) < BOUND
    for a, b in combinations([draw(group=group) for group in range(6)], 2):
        assert abs(correlation(a, b)) < BOUND
    # Two channels come from one word: their magnitudes are where a faulty transform would show.
    for a, b in combinations(draw(channels=5), 2):
        assert abs(correlation(a, b)) < BOUND and abs(correlation(a.square(), b.square())) < BOUND
    uniforms = CounterNoise([0]).uniform(0, (1, 1, SIDE, SIDE), CPU)
    assert abs(correlation(uniforms, draw(0))) < BOUND


def test_positions_are_uncorrelated_in_one_seed_and_between_neighbouring_ones() -> None:
    a = draw(7)
    for step in range(1, 5):
        b = draw(7 + step)
        for shift in ((0, 1), (1, 0), (0, -1), (3, 2)):
            assert abs(correlation(a, torch.roll(b, shift, (-2, -1)))) < BOUND
    values = draw()[0]
    for rows, columns in ((0, 1), (1, 0), (1, 1), (0, 2), (5, 3), (64, 0)):
        a, b = values[rows:, columns:], values[: SIDE - rows, : SIDE - columns]
        assert abs(correlation(a, b)) < 1.5 * BOUND
    values = torch.cat([draw(seed, group).flatten() for seed in range(2) for group in range(2)])
    assert values.unique().numel() > 0.99 * values.numel()  # none is drawn twice


@pytest.mark.parametrize("stride", [1, 2, 4, 16])
@pytest.mark.parametrize("origin", [(0, 0), (32, 16), (16, 48)])
def test_a_window_sees_the_noise_of_the_whole(stride: int, origin: tuple[int, int]) -> None:
    whole = CounterNoise([5, 9])(2, stride, (2, 3, 96 // stride, 96 // stride), CPU)
    size = (32 // stride, 48 // stride)
    window = CounterNoise([5, 9], origin)(2, stride, (2, 3, *size), CPU)
    row, column = origin[0] // stride, origin[1] // stride
    assert torch.equal(window, whole[..., row : row + size[0], column : column + size[1]])


def test_noise_does_not_depend_on_the_batch_or_the_channel_count() -> None:
    batch = CounterNoise([3, 8, 3])(1, 1, (3, 5, 8, 8), CPU)
    alone = CounterNoise([8])(1, 1, (1, 5, 8, 8), CPU)
    assert torch.equal(batch[1:2], alone)
    assert torch.equal(batch[0], batch[2])
    assert torch.equal(CounterNoise([8])(1, 1, (1, 2, 8, 8), CPU), alone[:, :2])


@pytest.mark.parametrize("source", [CounterNoise([0, 1]), GeneratorNoise(torch.Generator().manual_seed(0))])
def test_uniforms_are_uniform_and_inside_the_open_interval(source: CounterNoise | GeneratorNoise) -> None:
    for number in range(2):
        values = source.uniform(number, (2, 3, 64, 64), CPU)
        assert 0 < values.min() and values.max() < 1
        assert stats.kstest(values.flatten().numpy(), "uniform").pvalue > 1e-4
        assert torch.isfinite(torch.log(values)).all() and torch.isfinite(torch.log1p(-values)).all()


def test_the_two_uniforms_of_a_word_share_no_bit_and_lie_inside_the_open_interval() -> None:
    for values in _uniforms(torch.tensor([-1, 0])):
        assert values.dtype == torch.float32 and values.tolist() == [1 - 2**-24, 2**-24]
    zeros = _uniforms(torch.tensor([0]))
    for bit in range(64):
        word = torch.tensor([1 << bit if bit < 63 else -(1 << 63)])
        changed = [not torch.equal(a, b) for a, b in zip(zeros, _uniforms(word), strict=True)]
        assert changed == [bit >= 41, 8 <= bit < 31]


def test_noise_is_fp32_on_the_device_asked_for_whatever_it_is_from() -> None:
    values = CounterNoise([0])(0, 1, (1, 2, 4, 4), torch.device("meta"))
    assert values.device.type == "meta" and values.shape == (1, 2, 4, 4)
    a, b = (GeneratorNoise(torch.Generator().manual_seed(4))(0, 1, (1, 2, 3, 3), CPU) for _ in range(2))
    assert torch.equal(a, b) and GeneratorNoise()(0, 1, (1, 2, 4, 4), CPU).dtype == torch.float32
    given = torch.randn(1, 2, 3, 3, dtype=torch.float64)
    value = TensorNoise([given])(0, 1, (1, 2, 3, 3), CPU)
    assert value.dtype == torch.float32 and torch.equal(value, given.float())


def test_every_integer_is_a_seed_of_its_own_and_nothing_else() -> None:
    seeds = [1, 2**63 + 1, 2**64 + 1, 2**128 + 1, -1, 2**64 - 1, -(2**64) - 1]
    draws = CounterNoise(seeds)(0, 1, (len(seeds), 2, 4, 4), CPU)
    assert len({tuple(draw.flatten().tolist()) for draw in draws}) == len(seeds)
    with pytest.raises(TypeError):
        CounterNoise([1.7])  # type: ignore[list-item]


ONE = TensorNoise([torch.zeros(1, 2, 3, 3)])
REFUSED = {
    "`seeds` has 1 entries for a batch of 2": lambda: CounterNoise([0])(0, 1, (2, 1, 2, 2), CPU),
    "`noise` has 1 tensors; group 1": lambda: ONE(1, 1, (1, 2, 3, 3), CPU),
    r"`noise\[0\]` must be a tensor of shape \(1, 2, 4, 4\), got \(1, 2, 3, 3\)": lambda: ONE(0, 1, (1, 2, 4, 4), CPU),
    r"`noise\[0\]` must be a tensor of shape .* got NoneType": lambda: TensorNoise([None])(0, 1, (1, 2, 4, 4), CPU),
    "`noise` and `generator` were both given": lambda: as_noise_source([torch.zeros(1)], torch.Generator()),
    "`noise` must be a function or a list of tensors, got int": lambda: as_noise_source(3),
    "`noise` has 2 tensors; the model has 1 groups": lambda: as_noise_source([torch.zeros(1)] * 2, num_groups=1),
    "`generator` must be one torch.Generator, got list": lambda: as_noise_source(None, [torch.Generator()]),
}


@pytest.mark.parametrize("message", REFUSED)
def test_seeds_noise_and_generators_are_what_they_should_be(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        REFUSED[message]()
