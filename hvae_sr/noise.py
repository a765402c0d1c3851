"""Standard normal noise that is addressed, not drawn: a function of (seed, group, channel, absolute position).

A window of a large image, a chunk of a batch or another process sees the same noise as the whole, because no state
is carried from one draw to the next. The generator is counter-based: SplitMix64's finaliser over the address
(Steele et al., 2014; the idea is that of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011), then
Box and Muller's transform, which turns one 64-bit word into the normals of two neighbouring channels.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

NoiseSource = Callable[[int, int, tuple[int, int, int, int], torch.device], Tensor]
"""`(group, stride, (B, C, h, w), device) -> [B, C, h, w]` fp32 standard normals; `stride` in pixels of the HR image."""

_MASK64 = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_UNIFORM_GROUP = 1 << 20
"""Group numbers from here on address the uniform draws of the likelihood."""


def _signed(word: int) -> int:
    word &= _MASK64
    return word - (1 << 64) if word >> 63 else word


def _finalise(word: int) -> int:
    """SplitMix64's finaliser on a Python integer."""
    word = ((word ^ (word >> 30)) * _MULTIPLIERS[0]) & _MASK64
    word = ((word ^ (word >> 27)) * _MULTIPLIERS[1]) & _MASK64
    return word ^ (word >> 31)


def _key(*parts: int) -> int:
    """A 64-bit key of several integers."""
    key = 0
    for part in parts:
        key = _finalise((key ^ (part & _MASK64)) + _GOLDEN)
    return key


def _shift_right(words: Tensor, bits: int) -> Tensor:
    """Logical shift of int64 words (torch's is arithmetic)."""
    return (words >> bits) & ((1 << (64 - bits)) - 1)


def _words(keys: Tensor, offset: tuple[int, int], height: int, width: int) -> Tensor:
    """64 random bits for each key and position: `[..., 1, 1]` int64 keys -> `[..., height, width]` int64."""
    device = keys.device
    rows = torch.arange(offset[0], offset[0] + height, device=device, dtype=torch.int64)[:, None]
    columns = torch.arange(offset[1], offset[1] + width, device=device, dtype=torch.int64)[None, :]
    counter = (rows << 32) + columns
    words = (counter + 1) * _signed(_GOLDEN) + keys
    # Two rounds: the position is mixed before and after the key, or neighbouring seeds would share increments.
    for _ in range(2):
        words = (words ^ _shift_right(words, 30)).mul_(_signed(_MULTIPLIERS[0]))
        words = (words ^ _shift_right(words, 27)).mul_(_signed(_MULTIPLIERS[1]))
        words = (words ^ _shift_right(words, 31)).add_(keys)
    return words


def _uniforms(words: Tensor) -> tuple[Tensor, Tensor]:
    """Two independent uniforms in (0, 1) from every word: of 23 bits each, or fp32 would round the highest to 1."""
    scale = 2.0**-23
    first = (_shift_right(words, 41).to(torch.float32) + 0.5) * scale
    second = ((_shift_right(words, 8) & 0x7FFFFF).to(torch.float32) + 0.5) * scale
    return first, second


class CounterNoise:
    """Noise of a batch whose row b is addressed by `seeds[b]`; a `NoiseSource`.

    Args:
        seeds: one integer for each row of the batch; any Python integer.
        origin: (row, column) of the window's corner in pixels of the HR image; a multiple of every group's stride.
    """

    def __init__(self, seeds: Sequence[int], origin: tuple[int, int] = (0, 0)) -> None:
        self.seeds = [int(seed) for seed in seeds]
        self.origin = origin

    def __call__(self, group: int, stride: int, shape: tuple[int, int, int, int], device: torch.device) -> Tensor:
        """Standard normals `[B, C, h, w]`, fp32.

        Args:
            group: index of the latent group.
            stride: pixels of the HR image for each element of the group.
            shape: `(B, C, h, w)`; B must be the number of seeds.
            device: where the tensor is made.
        """
        u1, u2 = self._draw(group, stride, shape, device)
        radius = torch.sqrt(-2 * torch.log(u1))
        angle = u2 * (2 * math.pi)
        normals = torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=2)
        return normals.flatten(1, 2)[:, : shape[1]]

    def uniform(self, number: int, shape: tuple[int, int, int, int], device: torch.device) -> Tensor:
        """Uniforms in (0, 1) for pixels `[B, C, H, W]`; `number` tells apart the draws of one image."""
        u1, u2 = self._draw(_UNIFORM_GROUP + number, 1, shape, device)
        return torch.stack((u1, u2), dim=2).flatten(1, 2)[:, : shape[1]]

    def _draw(
        self, group: int, stride: int, shape: tuple[int, int, int, int], device: torch.device
    ) -> tuple[Tensor, Tensor]:
        batch, channels, height, width = shape
        if batch != len(self.seeds):
            raise ValueError(f"`seeds` has {len(self.seeds)} entries for a batch of {batch}")
        pairs = (channels + 1) // 2
        keys = torch.tensor(
            [[_signed(_key(seed, group, pair)) for pair in range(pairs)] for seed in self.seeds],
            dtype=torch.int64,
            device=device,
        )[:, :, None, None]
        offset = (self.origin[0] // stride, self.origin[1] // stride)
        return _uniforms(_words(keys, offset, height, width))


class TensorNoise:
    """Given standard normal draws, one `[B, C, h, w]` tensor for each group; a `NoiseSource`."""

    def __init__(self, draws: Sequence[Tensor]) -> None:
        self.draws = list(draws)

    def __call__(self, group: int, stride: int, shape: tuple[int, int, int, int], device: torch.device) -> Tensor:
        if group >= len(self.draws):
            raise ValueError(f"`noise` has {len(self.draws)} tensors; group {group} needs one of shape {shape}")
        draw = self.draws[group]
        if tuple(draw.shape) != tuple(shape):
            raise ValueError(f"`noise[{group}]` must have shape {tuple(shape)}, got {tuple(draw.shape)}")
        return draw.to(device=device, dtype=torch.float32)


class GeneratorNoise:
    """Draws from a `torch.Generator`, or from torch's global one; a `NoiseSource`."""

    def __init__(self, generator: torch.Generator | None = None) -> None:
        self.generator = generator

    def __call__(self, group: int, stride: int, shape: tuple[int, int, int, int], device: torch.device) -> Tensor:
        made_on = self.generator.device if self.generator is not None else device
        return torch.randn(shape, generator=self.generator, device=made_on, dtype=torch.float32).to(device)

    def uniform(self, number: int, shape: tuple[int, int, int, int], device: torch.device) -> Tensor:
        """Uniforms in (0, 1) for pixels `[B, C, H, W]`."""
        made_on = self.generator.device if self.generator is not None else device
        draws = torch.rand(shape, generator=self.generator, device=made_on, dtype=torch.float32)
        return draws.clamp(1e-5, 1 - 1e-5).to(device)


def as_noise_source(
    noise: NoiseSource | Sequence[Tensor] | None, generator: torch.Generator | None = None
) -> NoiseSource:
    """Given tensors, a noise source, or None for draws from `generator`.

    Raises:
        ValueError: both `noise` and `generator` are given.
    """
    if noise is None:
        return GeneratorNoise(generator)
    if generator is not None:
        raise ValueError("`noise` and `generator` were both given; the generator would not be used")
    return noise if callable(noise) else TensorNoise(noise)
