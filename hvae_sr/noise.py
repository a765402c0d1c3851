"""Standard normal noise that is addressed, not drawn: a function of (seed, group, channel, absolute position).

A window of a large image, a chunk of a batch or another process sees the same noise as the whole, because no state
is carried from one draw to the next. The generator is counter-based: SplitMix64's finaliser over the address
(Steele et al., 2014; the idea is that of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011), then
Box and Muller's transform, which turns one 64-bit word into the normals of two neighbouring channels.
"""

import math
import operator
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .hooks import outside_graphs

NoiseSource = Callable[[int, int, tuple[int, int, int, int], torch.device], Tensor]
"""`(group, stride, (B, C, h, w), device) -> [B, C, h, w]` fp32 standard normals; `stride` in pixels of the HR image."""
UniformSource = Callable[[int, tuple[int, int, int, int], torch.device], Tensor]
"""`(number, (B, C, H, W), device) -> [B, C, H, W]` fp32 uniforms in (0, 1)."""

_MASK64 = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_UNIFORM_GROUP = 1 << 20
"""Group numbers from here on address the uniform draws of the likelihood."""
_WORDS_AT_ONCE = 2**15
"""Words of 8 bytes that are drawn at a time on a CPU: a quarter MiB, of which a second-level cache holds several."""


def _signed(word: int) -> int:
    word &= _MASK64
    return word - (1 << 64) if word >> 63 else word


def _finalise(word: int) -> int:
    """SplitMix64's finaliser on a Python integer."""
    word = ((word ^ (word >> 30)) * _MULTIPLIERS[0]) & _MASK64
    word = ((word ^ (word >> 27)) * _MULTIPLIERS[1]) & _MASK64
    return word ^ (word >> 31)


def _key(*parts: int) -> int:
    """A 64-bit key of several integers of any size and sign."""
    key = 0
    for part in parts:
        rest = part >> 64  # 0 for most, so that it adds no word; -1 for small negative ones
        while rest not in (0, -1):
            key = _finalise((key ^ (rest & _MASK64)) + _GOLDEN)
            rest >>= 64
        key = _finalise((key ^ (part & _MASK64)) + _GOLDEN ^ (_MASK64 if part < 0 else 0))
    return key


def _words(counter: Tensor, keys: Tensor) -> Tensor:
    """64 random bits, int64, for each address; the arguments have one shape."""
    words = (counter + 1).mul_(_signed(_GOLDEN)).add_(keys)
    shifted = torch.empty_like(words)
    # Two rounds: the position is mixed before and after the key, or neighbouring seeds would share increments.
    for _ in range(2):
        words.bitwise_xor_(_shift_right(words, 30, out=shifted)).mul_(_signed(_MULTIPLIERS[0]))
        words.bitwise_xor_(_shift_right(words, 27, out=shifted)).mul_(_signed(_MULTIPLIERS[1]))
        words.bitwise_xor_(_shift_right(words, 31, out=shifted)).add_(keys)
    return words


def _shift_right(words: Tensor, bits: int, out: Tensor | None = None) -> Tensor:
    """Logical shift of int64 words (torch's is arithmetic)."""
    return torch.bitwise_right_shift(words, bits, out=out).bitwise_and_((1 << (64 - bits)) - 1)


def _uniforms(words: Tensor) -> tuple[Tensor, Tensor]:
    """Two independent uniforms in (0, 1) from every word: of 23 bits each, or fp32 would round the highest to 1."""
    scale = 2.0**-23
    first = _shift_right(words, 41).to(torch.float32).add_(0.5).mul_(scale)
    second = _shift_right(words, 8).bitwise_and_(0x7FFFFF).to(torch.float32).add_(0.5).mul_(scale)
    return first, second


def _normals(words: Tensor) -> tuple[Tensor, Tensor]:
    """Two independent standard normals from every word (Box and Muller)."""
    u1, u2 = _uniforms(words)
    radius = u1.log_().mul_(-2).sqrt_()
    angle = u2.mul_(2 * math.pi)
    return torch.cos(angle).mul_(radius), torch.sin(angle).mul_(radius)


class CounterNoise:
    """Noise of a batch whose row b is addressed by `seeds[b]`; a `NoiseSource`.

    Args:
        seeds: one integer for each row of the batch; any integer, of Python, NumPy or torch.
        origin: (row, column) of the window's corner in pixels of the HR image; a multiple of every group's stride.
    """

    def __init__(self, seeds: Sequence[int], origin: tuple[int, int] = (0, 0)) -> None:
        self.seeds = [operator.index(seed) for seed in seeds]
        self.origin = origin

    def __call__(self, group: int, stride: int, shape: tuple[int, int, int, int], device: torch.device) -> Tensor:
        """Standard normals, one row for each seed, see `NoiseSource`; channels last in memory, as in the networks."""
        return self._draw(_normals, group, stride, shape, device)

    def uniform(self, number: int, shape: tuple[int, int, int, int], device: torch.device) -> Tensor:
        """Uniforms in (0, 1) for pixels `[B, C, H, W]`; `number` tells apart the draws of one image."""
        return self._draw(_uniforms, _UNIFORM_GROUP + number, 1, shape, device)

    @outside_graphs
    def _draw(
        self,
        transform: Callable[[Tensor], tuple[Tensor, Tensor]],
        group: int,
        stride: int,
        shape: tuple[int, int, int, int],
        device: torch.device,
    ) -> Tensor:
        batch, channels, height, width = shape
        if batch != len(self.seeds):
            raise ValueError(f"`seeds` has {len(self.seeds)} entries for a batch of {batch}")
        pairs = (channels + 1) // 2
        keys = torch.tensor(
            [[_signed(_key(seed, group, pair)) for pair in range(pairs)] for seed in self.seeds],
            dtype=torch.int64,
            device=device,
        )[:, None, None]  # [B, 1, 1, pairs]
        top, left = self.origin[0] // stride, self.origin[1] // stride
        rows = torch.arange(top, top + height, device=device, dtype=torch.int64)[:, None, None]
        columns = torch.arange(left, left + width, device=device, dtype=torch.int64)[:, None]
        counter = (rows << 32) + columns  # [h, w, 1]
        draws = torch.empty(batch, height, width, pairs, 2, device=device, dtype=torch.float32)
        # On a CPU in parts that stay in its cache through the forty operations on each.
        step = height if device.type != "cpu" else max(1, _WORDS_AT_ONCE // (width * pairs))
        together = batch if device.type != "cpu" else max(1, _WORDS_AT_ONCE // (height * width * pairs))
        for first in range(0, batch, together):
            for start in range(0, height, step):
                part = draws[first : first + together, start : start + step]
                addresses = counter[start : start + step].expand(part.shape[:-1])
                words = _words(addresses, keys[first : first + together].expand(part.shape[:-1]).contiguous())
                part[..., 0], part[..., 1] = transform(words)
        return draws.flatten(3)[..., :channels].permute(0, 3, 1, 2)


class TensorNoise:
    """Given standard normal draws, one `[B, C, h, w]` tensor for each group; a `NoiseSource`."""

    def __init__(self, draws: Sequence[Tensor]) -> None:
        self.draws = list(draws)

    def __call__(self, group: int, stride: int, shape: tuple[int, int, int, int], device: torch.device) -> Tensor:
        if group >= len(self.draws):
            raise ValueError(f"`noise` has {len(self.draws)} tensors; group {group} needs one of shape {shape}")
        draw = self.draws[group]
        if not isinstance(draw, Tensor) or tuple(draw.shape) != tuple(shape):
            found = tuple(draw.shape) if isinstance(draw, Tensor) else type(draw).__name__
            raise ValueError(f"`noise[{group}]` must be a tensor of shape {tuple(shape)}, got {found}")
        return draw.to(device=device, dtype=torch.float32)


class GeneratorNoise:
    """Draws from a `torch.Generator`, or from torch's global one; a `NoiseSource`."""

    def __init__(self, generator: torch.Generator | None = None) -> None:
        self.generator = generator

    def __call__(self, group: int, stride: int, shape: tuple[int, int, int, int], device: torch.device) -> Tensor:
        return self._draw(torch.randn, shape, device)

    def uniform(self, number: int, shape: tuple[int, int, int, int], device: torch.device) -> Tensor:
        """Uniforms in (0, 1) for pixels `[B, C, H, W]`."""
        return self._draw(torch.rand, shape, device).clamp(1e-5, 1 - 1e-5)

    def _draw(self, function: Callable[..., Tensor], shape: tuple[int, ...], device: torch.device) -> Tensor:
        made_on = self.generator.device if self.generator is not None else device
        return function(shape, generator=self.generator, device=made_on, dtype=torch.float32).to(device)


def uniform_source(source: NoiseSource, generator: torch.Generator | None = None) -> UniformSource:
    """Where the likelihood's uniforms come from: the source of the latents' noise if it has some."""
    return getattr(source, "uniform", None) or GeneratorNoise(generator).uniform


def as_noise_source(
    noise: NoiseSource | Sequence[Tensor] | None,
    generator: torch.Generator | None = None,
    num_groups: int | None = None,
) -> NoiseSource:
    """Given tensors, a noise source, or None for draws from `generator`.

    Raises:
        ValueError: both `noise` and `generator` are given, more tensors than `num_groups`, or what is neither.
    """
    if generator is not None and not isinstance(generator, torch.Generator):
        raise ValueError(f"`generator` must be one torch.Generator, got {type(generator).__name__}")
    if noise is None:
        return GeneratorNoise(generator)
    if generator is not None:
        raise ValueError("`noise` and `generator` were both given; the generator would not be used")
    if callable(noise):
        return noise
    if not isinstance(noise, Sequence):
        raise ValueError(f"`noise` must be a function or a list of tensors, got {type(noise).__name__}")
    if num_groups is not None and len(noise) > num_groups:
        raise ValueError(f"`noise` has {len(noise)} tensors; the model has {num_groups} groups")
    return TensorNoise(noise)
