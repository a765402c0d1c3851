"""Addressed noise: its statistics, and that a value depends on its address alone."""

from __future__ import annotations

import math

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


@pytest.mark.parametrize("other", [1, 2, -1, 2**32, 2**63, -(2**63)])
def test_seeds_are_uncorrelated(other: int) -> None:
    for base in (0, 41):
        assert abs(correlation(draw(base), draw(base + other))) < BOUND


def test_neighbouring_seeds_are_uncorrelated_at_shifted_positions_too() -> None:
    a = draw(7)
    for step in range(1, 5):
        b = draw(7 + step)
        for shift in ((0, 1), (1, 0), (0, -1), (3, 2)):
            assert abs(correlation(a, torch.roll(b, shift, (-2, -1)))) < BOUND


def test_groups_are_uncorrelated() -> None:
    values = [draw(group=group) for group in range(6)]
    for i in range(6):
        for j in range(i):
            assert abs(correlation(values[i], values[j])) < BOUND


def test_channels_are_uncorrelated_in_values_and_magnitudes() -> None:
    # Two channels come from one word: their magnitudes are where a faulty transform would show.
    values = draw(channels=5)
    for i in range(5):
        for j in range(i):
            assert abs(correlation(values[i], values[j])) < BOUND
            assert abs(correlation(values[i].square(), values[j].square())) < BOUND


def test_positions_are_uncorrelated() -> None:
    values = draw()[0]
    for rows, columns in ((0, 1), (1, 0), (1, 1), (0, 2), (5, 3), (64, 0)):
        a, b = values[rows:, columns:], values[: SIDE - rows, : SIDE - columns]
        assert abs(correlation(a, b)) < 1.5 * BOUND


def test_no_value_is_drawn_twice() -> None:
    values = torch.cat([draw(seed, group).flatten() for seed in range(2) for group in range(2)])
    assert values.unique().numel() > 0.99 * values.numel()


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


def test_normals_are_fp32_on_the_device_asked_for() -> None:
    values = CounterNoise([0])(0, 1, (1, 2, 4, 4), torch.device("meta"))
    assert values.device.type == "meta" and values.shape == (1, 2, 4, 4)
    assert GeneratorNoise()(0, 1, (1, 2, 4, 4), CPU).dtype == torch.float32


@pytest.mark.parametrize("source", [CounterNoise([0, 1]), GeneratorNoise(torch.Generator().manual_seed(0))])
def test_uniforms_are_uniform_and_inside_the_open_interval(source: CounterNoise | GeneratorNoise) -> None:
    for number in range(2):
        values = source.uniform(number, (2, 3, 64, 64), CPU)
        assert 0 < values.min() and values.max() < 1
        assert stats.kstest(values.flatten().numpy(), "uniform").pvalue > 1e-4
        assert torch.isfinite(torch.log(values)).all() and torch.isfinite(torch.log1p(-values)).all()


def test_the_extreme_words_lie_inside_the_open_interval_too() -> None:
    for values in _uniforms(torch.tensor([-1, 0])):
        assert values.dtype == torch.float32
        assert values.tolist() == [1 - 2**-24, 2**-24]


def test_the_two_uniforms_of_a_word_share_no_bit() -> None:
    zeros = _uniforms(torch.tensor([0]))
    for bit in range(64):
        word = torch.tensor([1 << bit if bit < 63 else -(1 << 63)])
        changed = [not torch.equal(a, b) for a, b in zip(zeros, _uniforms(word), strict=True)]
        assert changed == [bit >= 41, 8 <= bit < 31]


def test_uniforms_and_normals_are_unrelated() -> None:
    uniforms = CounterNoise([0]).uniform(0, (1, 1, SIDE, SIDE), CPU)
    assert abs(correlation(uniforms, draw(0))) < BOUND


def test_seed_count_must_match_the_batch() -> None:
    with pytest.raises(ValueError, match="`seeds` has 1 entries for a batch of 2"):
        CounterNoise([0])(0, 1, (2, 1, 2, 2), CPU)


def test_given_tensors_are_passed_on_in_fp32() -> None:
    given = torch.randn(1, 2, 3, 3, dtype=torch.float64)
    value = TensorNoise([given])(0, 1, (1, 2, 3, 3), CPU)
    assert value.dtype == torch.float32 and torch.equal(value, given.float())


def test_given_tensors_of_wrong_number_or_shape_are_refused() -> None:
    source = TensorNoise([torch.zeros(1, 2, 3, 3)])
    with pytest.raises(ValueError, match="`noise` has 1 tensors; group 1"):
        source(1, 1, (1, 2, 3, 3), CPU)
    with pytest.raises(ValueError, match=r"`noise\[0\]` must be a tensor of shape \(1, 2, 4, 4\), got \(1, 2, 3, 3\)"):
        source(0, 1, (1, 2, 4, 4), CPU)


def test_noise_and_generator_together_are_refused() -> None:
    with pytest.raises(ValueError, match="`noise` and `generator` were both given"):
        as_noise_source([torch.zeros(1)], torch.Generator())


def test_a_generator_repeats_its_draws() -> None:
    a, b = (GeneratorNoise(torch.Generator().manual_seed(4))(0, 1, (1, 2, 3, 3), CPU) for _ in range(2))
    assert torch.equal(a, b)


def test_every_integer_is_a_seed_of_its_own() -> None:
    seeds = [1, 2**63 + 1, 2**64 + 1, 2**128 + 1, -1, 2**64 - 1, -(2**64) - 1]
    draws = CounterNoise(seeds)(0, 1, (len(seeds), 2, 4, 4), torch.device("cpu"))
    assert len({tuple(draw.flatten().tolist()) for draw in draws}) == len(seeds)


def test_seeds_noise_and_generators_are_what_they_should_be() -> None:
    with pytest.raises(TypeError):
        CounterNoise([1.7])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"`noise\[0\]` must be a tensor of shape .* got NoneType"):
        TensorNoise([None])(0, 1, (1, 2, 4, 4), CPU)  # type: ignore[list-item]
    with pytest.raises(ValueError, match="`noise` must be a function or a list of tensors, got int"):
        as_noise_source(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`generator` must be one torch.Generator, got list"):
        as_noise_source(None, [torch.Generator()])  # type: ignore[arg-type]
