"""The steps of which random degradations consist: blur, resize, noise, compression; each with its distribution.

A step works on an image as planes `[c, h, w]`, float32 in grey levels 0..255. c is 1 for a grey image, and stays so
until a step brings colour: what every step does to one plane, it does to all. All draws are of the generator given,
uniform in the ranges of the step unless it says else.

The set of steps is that of X. Wang et al., "Real-ESRGAN: Training real-world blind super-resolution with pure synthetic
data" (2021), section 3; ranges that are not given here are those of its published training options.
"""

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import fft, special

from ..images import LUMA

Planes = NDArray[np.float32]
Range = tuple[float, float]
"""Lowest and highest value."""
Size = tuple[int, int]
"""Height and width."""

MAX_RADIUS = 10
"""Pixels of a blur's kernel to each side of its centre: 21 x 21, as in Real-ESRGAN.

Wider are only those of a deviation above `WIDEST`, of which too much would be cut off.
"""
WIDEST = 4.0
"""Pixels."""


def limits(default: Range, low: float, high: float) -> Any:
    """A field that is a range, and must lie in [low, high]."""
    return field(default=default, metadata={"limits": (low, high)})


def shares(**weights: float) -> Any:
    """A field of the kinds of a step and their weights."""
    return field(default_factory=lambda: dict(weights), metadata={"kinds": tuple(weights)})


@dataclass(frozen=True)
class Step:
    """One step of a degradation, which is taken at all with `probability`."""

    name: ClassVar[str]
    probability: float = 1.0

    def __call__(self, planes: Planes, random: np.random.Generator, size: Size) -> Planes:
        """The image after the step, or as it is; all draws are of `random`, `size` is that of the whole's result."""
        return self.apply(planes, random, size) if random.random() < self.probability else planes

    def apply(self, planes: Planes, random: np.random.Generator, size: Size) -> Planes:
        """The image after the step."""
        raise NotImplementedError


@dataclass(frozen=True)
class Blur(Step):
    """Convolution with a random kernel k(u), u in pixels of the image as it is at that step, sum 1, mirrored borders.

    With r² = uᵀ Σ⁻¹ u, and Σ of the standard deviations `sigma` along two axes turned by an angle in [0, pi):

    - isotropic: exp(-r²/2), both deviations equal;
    - anisotropic: exp(-r²/2) (Real-ESRGAN, eq. 2-4);
    - generalised: exp(-(r²)^β / 2), whose tails are heavy for β < 1 and which is flat for β > 1 (Y.-Q. Liu et al.,
      "Estimating generalized Gaussian blur kernels for out-of-focus image deblurring", 2020; Real-ESRGAN, section 3.2);
    - sinc: ω J₁(ω |u|) / (2 pi |u|), the circular low pass that makes ringing and overshoot (Real-ESRGAN, eq. 6).

    Args:
        kinds: weights of the four.
        sigma: standard deviations in pixels.
        beta: β; uniform in its logarithm, so that heavy and flat are as likely.
        cutoff: ω, radians a pixel; pi leaves nearly everything.
    """

    name = "blur"
    kinds: Mapping[str, float] = shares(isotropic=0.5, anisotropic=0.3, generalised=0.1, sinc=0.1)
    sigma: Range = limits((0.2, 3.0), 0.01, 20.0)
    beta: Range = limits((0.5, 4.0), 0.1, 10.0)
    cutoff: Range = limits((math.pi / 3, math.pi), 0.1, math.pi)

    def apply(self, planes: Planes, random: np.random.Generator, size: Size) -> Planes:
        return convolve(planes, self.kernel(random))

    def kernel(self, random: np.random.Generator) -> NDArray[np.float64]:
        """A random kernel, an odd number of pixels a side."""
        kind = choose(self.kinds, random)
        first, second, turn, shape = random.random(4)
        if kind == "sinc":
            radius, cutoff = MAX_RADIUS, _between(self.cutoff, first)
            row, column = _grid(radius)
            distance = np.hypot(row, column)
            centre = np.full_like(distance, cutoff**2 / (4 * math.pi))  # the limit at u = 0
            inner = np.where(distance > 0, distance, 1)
            kernel = np.where(distance > 0, cutoff * special.j1(cutoff * inner) / (2 * math.pi * inner), centre)
        else:
            along = _between(self.sigma, first)
            across = along if kind == "isotropic" else _between(self.sigma, second)
            beta = math.exp(_between((math.log(self.beta[0]), math.log(self.beta[1])), shape))
            beta = beta if kind == "generalised" else 1.0
            # Beyond three deviations there is nothing; heavy tails get all the room there is.
            widest = max(along, across)
            radius = math.ceil(3 * widest)
            if widest <= WIDEST:
                radius = MAX_RADIUS if beta < 1 else min(MAX_RADIUS, radius)
            row, column = _grid(radius)
            cosine, sine = math.cos(math.pi * turn), math.sin(math.pi * turn)
            u, v = (column * cosine + row * sine) / along, (row * cosine - column * sine) / across
            kernel = np.exp(-((u**2 + v**2) ** beta) / 2)
        found: NDArray[np.float64] = kernel / kernel.sum()
        return found


@dataclass(frozen=True)
class Resize(Step):
    """Resizing by a random factor, both sides alike.

    - bicubic: antialiased, a = -0.5, as Pillow and most image programs;
    - bilinear: the four nearest pixels, not antialiased, as OpenCV and many browsers and cameras;
    - area: means over the area of each new pixel;
    - nearest: one old pixel for each new one, at a place that is `jitter` new pixels from the middle, one draw for each
      axis: decimation with a phase that nobody knows.

    Args:
        kinds: weights of the four.
        factor: sides after the step over the sides of the *result* of the degradation: at a scale of 4, 4 is the size
            of the photograph and 1 that of y. Uniform in its logarithm: smaller and larger by a factor are as likely.
        jitter: of nearest, in new pixels, [-0.5, 0.5].
    """

    name = "resize"
    kinds: Mapping[str, float] = shares(bicubic=0.4, bilinear=0.3, area=0.25, nearest=0.05)
    factor: Range = limits((0.6, 6.0), 0.05, 16.0)
    jitter: Range = limits((-0.25, 0.25), -0.5, 0.5)

    def apply(self, planes: Planes, random: np.random.Generator, size: Size) -> Planes:
        kind = choose(self.kinds, random)
        factor = math.exp(random.uniform(math.log(self.factor[0]), math.log(self.factor[1])))
        height, width = (max(1, round(side * factor)) for side in size)
        return resize(planes, (height, width), kind, random, self.jitter)


@dataclass(frozen=True)
class Downsample(Step):
    """Resizing to the size of the result, as `Resize`; other steps may follow.

    A degradation that does not end at this size is resized to it at its end by antialiased bicubic.

    Args:
        kinds: weights, see `Resize`.
        jitter: see `Resize`.
    """

    name = "downsample"
    kinds: Mapping[str, float] = shares(bicubic=1.0, bilinear=0.0, area=0.0, nearest=0.0)
    jitter: Range = limits((-0.25, 0.25), -0.5, 0.5)

    def apply(self, planes: Planes, random: np.random.Generator, size: Size) -> Planes:
        return resize(planes, size, choose(self.kinds, random), random, self.jitter)


@dataclass(frozen=True)
class Noise(Step):
    """Noise that is independent from pixel to pixel; values are then clipped to 0..255.

    - gaussian: x + σ n, n standard normal: the electronics of a sensor, and scans of film;
    - poisson: x + a (P(x) - x), P(x) of the Poisson distribution with mean x: standard deviation a √x, the photons of a
      sensor (Real-ESRGAN, section 3.1, which has x of 256 levels too).

    Colour noise is independent in the three channels. Grey noise is equal in them, for Poisson noise that of the
    luminance.

    Args:
        kinds: weights of the two.
        sigma: σ in grey levels.
        scale: a.
        grey: share of grey noise.
    """

    name = "noise"
    kinds: Mapping[str, float] = shares(gaussian=0.5, poisson=0.5)
    sigma: Range = limits((1.0, 30.0), 0.0, 128.0)
    scale: Range = limits((0.05, 3.0), 0.0, 16.0)
    grey: float = 0.4

    def apply(self, planes: Planes, random: np.random.Generator, size: Size) -> Planes:
        kind, grey = choose(self.kinds, random), random.random() < self.grey
        strength = _between(self.sigma if kind == "gaussian" else self.scale, random.random())
        channels = 1 if grey else 3
        if kind == "gaussian":
            noise = random.standard_normal((channels, *planes.shape[1:]), dtype=np.float32)
        else:
            mean = luminance(planes) if grey else np.broadcast_to(planes, (3, *planes.shape[1:]))
            noise = (random.poisson(np.maximum(mean, 0)) - mean).astype(np.float32)
        return np.clip(planes + np.float32(strength) * noise, 0, 255)


_LONGEST_JPEG, _LONGEST_WEBP = 65_500, 16_383
"""Pixels of a side, as Pillow's codecs have them."""


@dataclass(frozen=True)
class Compress(Step):
    """JPEG or WebP and back, 8 bits; JPEG too where a side is longer than a WebP's may be.

    Grey images are stored as such. The blocks begin `phase` pixels above and to the left of the image, one draw for
    each axis: people crop what was compressed before.

    Args:
        kinds: weights of the two.
        quality: of the codec, a whole number.
        phase: whole numbers of pixels, 0..7.
        subsampled: share of JPEGs with colours at half the size (4:2:0); WebP always has them so.
    """

    name = "compress"
    kinds: Mapping[str, float] = shares(jpeg=0.85, webp=0.15)
    quality: Range = limits((30, 95), 1, 100)
    phase: Range = limits((0, 7), 0, 7)
    subsampled: float = 0.8

    def apply(self, planes: Planes, random: np.random.Generator, size: Size) -> Planes:
        kind = choose(self.kinds, random)
        quality = int(random.integers(int(self.quality[0]), int(self.quality[1]), endpoint=True))
        top, left = random.integers(int(self.phase[0]), int(self.phase[1]), size=2, endpoint=True)
        subsampling = 2 if random.random() < self.subsampled else 0
        levels = np.pad(to_levels(planes), ((0, 0), (top, 0), (left, 0)), "symmetric")
        picture = Image.fromarray(levels[0] if len(levels) == 1 else levels.transpose(1, 2, 0))
        longest = max(picture.size)
        if longest > _LONGEST_JPEG:
            raise ValueError(f"`compress`: a side must be at most {_LONGEST_JPEG} pixels, got {longest}")
        file = io.BytesIO()
        if kind == "jpeg" or longest > _LONGEST_WEBP:
            picture.save(file, "JPEG", quality=quality, subsampling=subsampling if len(levels) > 1 else -1)
        else:
            picture.convert("RGB").save(file, "WEBP", quality=quality, method=2)
        decoded = np.asarray(Image.open(file).convert(picture.mode), dtype=np.float32)[top:, left:]
        return decoded[None] if decoded.ndim == 2 else np.ascontiguousarray(decoded.transpose(2, 0, 1))


STEPS: dict[str, type[Step]] = {step.name: step for step in (Blur, Resize, Downsample, Noise, Compress)}


def choose(weights: Mapping[str, float], random: np.random.Generator) -> str:
    """One of the names, with probabilities in proportion to their weights."""
    draw, names = random.random() * sum(weights.values()), [name for name, weight in weights.items() if weight]
    for name in names:
        draw -= weights[name]
        if draw < 0:
            return name
    return names[-1]


def to_levels(planes: Planes) -> NDArray[np.uint8]:
    """Rounded to 8 bits."""
    return np.clip(np.rint(planes), 0, 255).astype(np.uint8)


def luminance(planes: Planes) -> Planes:
    """`[1, h, w]`, of Rec. 601."""
    if len(planes) == 1:
        return planes
    return np.tensordot(np.array([LUMA], np.float32), planes, 1).astype(np.float32)


def convolve(planes: Planes, kernel: NDArray[np.float64]) -> Planes:
    """Convolution by the FFT, at equal sizes, with borders mirrored."""
    radius = kernel.shape[0] // 2
    padded = np.pad(planes, ((0, 0), (radius, radius), (radius, radius)), "symmetric")
    size = [fft.next_fast_len(side, real=True) for side in padded.shape[1:]]
    spectrum = fft.rfft2(padded, size) * fft.rfft2(kernel.astype(np.float32), size)
    found: Planes = fft.irfft2(spectrum, size)[:, 2 * radius :, 2 * radius :]
    return np.ascontiguousarray(found[:, : planes.shape[1], : planes.shape[2]], dtype=np.float32)


def resize(planes: Planes, size: Size, kind: str, random: np.random.Generator, jitter: Range = (0.0, 0.0)) -> Planes:
    """The image at (height, width) = `size`, by one of the kinds of `Resize`."""
    if planes.shape[1:] == size:
        return planes
    if kind == "nearest":
        rows, columns = (
            _nearest(old, new, _between(jitter, random.random()))
            for old, new in zip(planes.shape[1:], size, strict=True)
        )
        return planes[:, rows[:, None], columns]
    if kind == "bilinear":
        for axis in (1, 2):
            low, high, weight = _neighbours(planes.shape[axis], size[axis - 1])
            weight = weight[:, None] if axis == 1 else weight
            planes = planes.take(low, axis) * (1 - weight) + planes.take(high, axis) * weight
        return planes
    method = Image.Resampling.BICUBIC if kind == "bicubic" else Image.Resampling.BOX
    return np.stack([np.asarray(Image.fromarray(plane).resize(size[::-1], method)) for plane in planes])


def _nearest(old: int, new: int, jitter: float) -> NDArray[np.int64]:
    """The old pixel of every new one."""
    return np.clip(np.floor((np.arange(new) + 0.5 + jitter) * (old / new)), 0, old - 1).astype(np.int64)


def _neighbours(old: int, new: int) -> tuple[NDArray[np.int64], NDArray[np.int64], Planes]:
    """The two old pixels of every new one, and the weight of the second."""
    place = np.clip((np.arange(new) + 0.5) * (old / new) - 0.5, 0, old - 1)
    low = np.floor(place).astype(np.int64)
    return low, np.minimum(low + 1, old - 1), (place - low).astype(np.float32)


def _between(bounds: Range, share: float) -> float:
    return bounds[0] + (bounds[1] - bounds[0]) * float(share)


def _grid(radius: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Rows and columns of the pixels of a kernel, from its centre."""
    places = np.arange(-radius, radius + 1, dtype=np.float64)
    return places[:, None], places[None, :]
