"""Pixel intervals that hold the truth as often as they say: split conformal prediction.

Quantiles of a model's samples are what the model believes. On n images whose truth is known one finds by which factor λ
its intervals must be widened to be right; on further images λ keeps its promise, whatever the model is worth.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import Tensor

FACTORS = np.geomspace(2**-10, 2**10, 2**14)
"""Factors that are tried, in steps of 0.1 %: from next to nothing to what takes half a level beyond the whole range."""
_TOLERANCE = 1e-12
"""Of shares of missed values, for the rounding of sums."""
HALF_LEVEL = 0.5 / 255
"""What is added to both halves of an interval: the truth is rounded to 8 bits, and where samples agree, no factor would
widen an interval that is empty."""


@dataclass(frozen=True)
class Calibration:
    """The factor for intervals, and what it was found for: it says nothing about any other setting.

    Args:
        coverage: share of the truth that intervals are to hold, 1 - α.
        factor: λ.
        num_images: n, that it was found on.
        num_samples, temperature, enforce_consistency: of the samples; the last: whether they were projected.
    """

    coverage: float
    factor: float
    num_images: int
    num_samples: int
    temperature: float
    enforce_consistency: bool

    @property
    def q(self) -> tuple[float, float, float]:
        """The quantiles of the samples that are widened: α/2, 1/2, 1 - α/2."""
        return quantiles_of(self.coverage)

    @property
    def promised(self) -> float:
        """What intervals hold at the most, on average over further images: coverage + 2 / (n + 1), or all.

        All, where the least factor that is tried was enough: more values than `coverage` needed no interval at all,
        such as those of white paper.
        """
        if self.factor <= FACTORS[0]:
            return 1.0
        return min(self.coverage + 2 / (self.num_images + 1), 1.0)

    def agreed(self, name: str, given: Any) -> Any:
        """The calibration's own value of `q` or of a field; raises a ValueError where another one was given."""
        own = getattr(self, name)
        if given is not None and not np.array_equal(given, own):
            raise ValueError(f"`{name}` must be None or {own}, what the intervals were calibrated for; got {given!r}")
        return own

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Calibration":
        """What `to_dict` gave; raises a ValueError for anything else."""
        try:
            found = cls(**values)
            check_coverage(found.coverage)
            if not (found.factor > 0 and found.num_samples >= 1 and found.temperature >= 0):
                raise ValueError("out of range")
        except (TypeError, ValueError) as error:
            raise ValueError(f"`calibration` is none of `calibrate`: {values!r} ({error})") from error
        return found

    def to_dict(self) -> dict[str, Any]:
        """As it stands in model_index.json."""
        return asdict(self)


def quantiles_of(coverage: float) -> tuple[float, float, float]:
    """The ends and the middle of the central interval of a level."""
    return round((1 - coverage) / 2, 12), 0.5, round((1 + coverage) / 2, 12)


def check_coverage(coverage: float, num_images: int | None = None) -> None:
    """Raises a ValueError unless `coverage` lies in (0, 1), and n images are enough for it: n >= 1/α - 1."""
    if isinstance(coverage, bool) or not isinstance(coverage, (int, float)) or not 0 < coverage < 1:
        raise ValueError(f"`coverage` must lie between 0 and 1, got {coverage!r}")
    # As in `smallest_factor`: without a miss, 1 / (n + 1) is to be 1 - coverage or less.
    needed = int(np.ceil(1 / (1 - coverage + _TOLERANCE) - 1))
    if num_images is not None and num_images < needed:
        raise ValueError(f"`images` must be at least {needed} for a coverage of {coverage:g}, got {num_images}")


def widen(intervals: Tensor, factor: float) -> Tensor:
    """Intervals whose halves, below and above the median, are `factor` times as long; ends stay in [0, 1].

    Args:
        intervals: lower ends, medians, upper ends, `[3, ...]` in [0, 1].
        factor: λ. The ends become m - λ (m - l + h) and m + λ (u - m + h) with h = `HALF_LEVEL`.

    Returns:
        The same shape.
    """
    low, middle, high = intervals
    found = intervals.clone()
    found[0] = (middle - factor * (middle - low + HALF_LEVEL)).clamp(0, 1)
    found[2] = (middle + factor * (high - middle + HALF_LEVEL)).clamp(0, 1)
    return found


def missed(intervals: Tensor, truth: Tensor) -> np.ndarray:
    """Share of an image's values outside its intervals, for each of `FACTORS`.

    Args:
        intervals: `[3, ...]` in [0, 1], see `widen`.
        truth: `[...]` in [0, 1].
    """
    low, middle, high = intervals.double()
    below = (middle - truth) / (middle - low + HALF_LEVEL)
    above = (truth - middle) / (high - middle + HALF_LEVEL)
    needed = np.sort(below.maximum(above).numpy().ravel())
    return 1 - np.searchsorted(needed, FACTORS, side="right") / needed.size


def smallest_factor(curves: Iterable[np.ndarray], coverage: float) -> tuple[float, int]:
    """The least λ that n images with known truth allow, and n.

    λ = min{λ : (Σ_i miss_i(λ) + 1) / (n + 1) <= α}, where miss_i is the share of image i's values outside. The 1 stands
    for the image that is to come, of which nothing is known. If it and the n images are exchangeable (drawn from one
    source, in any order), then on average over such draws

        1 - α  <=  P(x in interval)  <=  1 - α + 2 / (n + 1) (+ one step of the factors),

    for a value x at a pixel drawn at random from the new image: marginally over images and pixels, for any model,
    however wrong. It promises nothing for one image, for skies or hair alone, or for images of another kind. The upper
    bound needs a λ above the least that is tried: where more values than 1 - α equal the median, as on white paper, no
    λ is so small that they would be missed.

    Split conformal prediction: Vovk, Gammerman, Shafer, Algorithmic Learning in a Random World, 2005; Lei et al.,
    JASA 2018. Quantiles, widened: Romano, Patterson, Candès, Conformalized Quantile Regression, 2019, who add a number
    where this multiplies. Several values an image, which depend on each other: the share is the loss of Angelopoulos et
    al., Conformal Risk Control, 2022, theorems 1 and 2; with one value an image it is Lei's quantile.

    Args:
        curves: what `missed` gives for each image.
        coverage: 1 - α.

    Raises:
        ValueError: `coverage` out of range, or too few images.
    """
    check_coverage(coverage)
    total, count = np.zeros(len(FACTORS)), 0
    for curve in curves:
        total, count = total + curve, count + 1
    check_coverage(coverage, count)
    right = (total + 1) / (count + 1) <= 1 - coverage + _TOLERANCE
    return float(FACTORS[np.argmax(right)]), count
