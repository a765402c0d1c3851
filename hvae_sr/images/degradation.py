"""Does y look like a clean photograph x downsampled by H, as the models whose `consistency` is "exact" expect?

Those are trained on y = Hx, and the projection makes Hx̂ = y hold whatever y is. So noise, JPEG blocks and blur in y are
kept and enlarged, and should be removed first, or left to a model that does not take y for Hx. Three statistics of y
tell them, with thresholds calibrated on photographs (`python benchmarks/degradation.py`):

- noise: the residual (I - H⁺H) y of y taken for a high-resolution image, at factor 2, holds its finest detail. In
  photographs that detail is common to the three channels; what of one does not follow from the other two is the noise
  of a sensor.
- JPEG: on the grid of 8x8 blocks, and on no other, coefficients of the cosine transform are missing between 0 and the
  first step of the quantiser.
- blur: the power of the highest frequencies over that of the middle ones, which natural images share at every scale.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy import fft
from torch import Tensor

from ..operators import Downsampling
from .arrays import LUMA

MAX_NOISE = 2.5
"""Grey levels of a channel that do not follow from the others; white noise of standard deviation s gives 0.7 s."""
MAX_MISSING = 0.65
"""Share of small coefficients that are missing on the grid of blocks; 0.65 is about JPEG quality 85."""
MIN_SHARPNESS = -2.3
"""log10 of the power at 0.35 to 0.5 cycles a pixel over that at 0.1 to 0.2."""
MIN_SIDE = 32
"""Pixels; smaller images say too little."""

_CROP = 512  # pixels a side that are looked at
_BLOCKS = 32  # a side of that crop in which JPEG is looked for
_MOST_CUT = 0.25  # of a block's pixels, whose noise is cut off
_FEWEST = 8  # blocks
_FLAT = 4.0  # grey levels between the extremes of a row of one colour, after JPEG
_HALVING = Downsampling(2)


@dataclass(frozen=True)
class InputStatistics:
    """What `inspect` measures, in the units of the thresholds of this module.

    Args:
        noise: level of noise, in grey levels.
        missing: share of small coefficients that JPEG has taken away.
        sharpness: power of the highest frequencies over that of the middle ones, log10.
    """

    noise: float
    missing: float
    sharpness: float

    def reasons(self) -> list[str]:
        """In what the image differs from a clean one, each as what follows "it"; empty where it looks clean."""
        return [reason for reason, _ in self._found()]

    def warnings(self) -> list[str]:
        """One line for each way in which the image differs from what a model of clean ones expects, and what to do."""
        return [f"the image {reason}{advice}" for reason, advice in self._found()]

    def _found(self) -> list[tuple[str, str]]:
        noisy = ", and noise is enlarged with it: denoise it first, or halve it (which averages noise) and raise"
        blocky = ", which are taken for detail: use a better copy, or halve it and raise"
        blurred = ": the model expects sharp pixels; shrink it until it looks sharp and raise"
        cases = [
            (self.noise > MAX_NOISE, "looks noisy", noisy),
            (self.missing > MAX_MISSING, "shows the 8x8 blocks of strong JPEG compression", blocky),
            (self.sharpness < MIN_SHARPNESS, "is blurred, or was enlarged before", blurred),
        ]
        return [(reason, f"{advice} `--outscale`") for seen, reason, advice in cases if seen]


def inspect(y: Tensor, alpha: Tensor | None = None) -> InputStatistics | None:
    """The statistics of y, `[3, h, w]` in [0, 1]; None for an image too small or too flat to tell.

    Of a large image the middle is looked at.

    Args:
        y: the image.
        alpha: `[h, w]`; where it is 0, what stands in y is not of the photograph.
    """
    height, width = y.shape[-2:]
    if min(height, width) < MIN_SIDE:
        return None
    top, left = (max(side - _CROP, 0) // 2 for side in (height, width))
    levels = y[:, top : top + _CROP, left : left + _CROP].detach().cpu().double() * 255
    luma = torch.einsum("c,chw->hw", torch.tensor(LUMA, dtype=torch.float64, device="cpu"), levels).numpy()
    if luma.std() < 1:
        return None
    cut = (levels <= 0) | (levels >= 255)
    part = (slice(None), slice(None))
    if alpha is not None and bool((hidden := alpha[top : top + _CROP, left : left + _CROP].cpu() == 0).any()):
        cut |= hidden
        part = _largest_rectangle(~hidden.numpy())
    luma = _unframed(luma[part])
    told = min(luma.shape) >= MIN_SIDE  # what is left of a picture full of holes tells noise alone
    return InputStatistics(_noise(levels, cut), _missing(luma) if told else 0.0, _sharpness(luma) if told else 0.0)


def _largest_rectangle(visible: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of the largest rectangle that is True throughout, of `[h, w]`."""
    best, found = 0, (slice(0, 0), slice(0, 0))
    heights = np.zeros(visible.shape[1], int)  # of the columns of True that end in a row
    for row, line in enumerate(visible):
        heights = np.where(line, heights + 1, 0)
        open_ones: list[tuple[int, int]] = []  # rectangles that may still grow to the right: left side, height
        for column, height in enumerate([*heights.tolist(), 0]):
            left = column
            while open_ones and open_ones[-1][1] >= height:
                left, tall = open_ones.pop()
                if tall * (column - left) > best:
                    best, found = tall * (column - left), (slice(row + 1 - tall, row + 1), slice(left, column))
            open_ones.append((left, height))
    return found


def _unframed(luma: np.ndarray) -> np.ndarray:
    """Without rows and columns of one colour at the borders, as of bars, frames and pages around a photograph.

    The step at their edge is as sharp as it was drawn, and would hide that what is inside is not.
    """
    for axis in (1, 0):
        (varied,) = np.nonzero(np.ptp(luma, axis=axis) > _FLAT) if luma.size else (np.empty(0, int),)
        if len(varied):
            kept = slice(varied[0], varied[-1] + 1)
            luma = luma[kept] if axis == 1 else luma[:, kept]
    return luma


def _noise(levels: Tensor, cut: Tensor) -> float:
    """RMS of what a linear fit of one channel's residual to the others' leaves in blocks of 8x8, in the quiet ones.

    The fifth percentile over the blocks that can show noise, of the channel for which it is the least; 0 if they are
    too few. Those of one colour cannot, as of bars, frames and drawings; those with many pixels `cut` can in part, and
    are left out where there are others.
    """
    size = (levels.shape[-2], levels.shape[-1])
    residual = levels - _HALVING.pseudo_inverse(_HALVING(levels), size)
    of_levels = _blocks(levels)
    varied = (of_levels.amax(2) > of_levels.amin(2)).any(0)
    whole = varied & (_blocks(cut.double()).mean(2) < _MOST_CUT).all(0)
    shown = whole if whole.sum() >= _FEWEST else varied
    if shown.sum() < _FEWEST:
        return 0.0
    blocks = _blocks(residual)[:, shown]
    moments = torch.einsum("ibk,jbk->bij", blocks, blocks)
    moments += 1e-3 * torch.eye(3, device="cpu")  # for grey images, whose channels follow from each other in many ways
    # The square of what remains of channel i is 1 / (M⁻¹)_ii.
    left = 1 / torch.linalg.inv(moments).diagonal(dim1=1, dim2=2)
    return float(torch.quantile((left / (64 - 2)).sqrt(), 0.05, dim=0).min())


def _blocks(planes: Tensor) -> Tensor:
    """Planes `[3, h, w]` as blocks of 8x8, `[3, blocks, 64]`."""
    return torch.nn.functional.unfold(planes[:, None], 8, stride=8).transpose(1, 2)


def _missing(luma: np.ndarray) -> float:
    """1 - (coefficients of middle frequency and size 2.5 to 10 on the best grid of blocks) / (those on the others).

    Of larger images, blocks are taken from all over each grid.
    """
    order = np.add.outer(np.arange(8), np.arange(8))
    middle = (order >= 3) & (order <= 8)
    counts = []
    for top in range(8):
        for left in range(8):
            part = luma[top:, left:]
            height, width = (side // 8 for side in part.shape)
            blocks = part[: 8 * height, : 8 * width].reshape(height, 8, width, 8).transpose(0, 2, 1, 3)
            blocks = blocks[np.ix_(_spread(height), _spread(width))]
            size = np.abs(fft.dctn(blocks, axes=(2, 3), norm="ortho"))[:, :, middle]
            counts.append(((size > 2.5) & (size < 10)).mean())
    typical = float(np.median(counts))
    return 1 - min(counts) / typical if typical > 0.005 else 0.0


def _spread(count: int) -> np.ndarray:
    """Numbers of `_BLOCKS` of `count` blocks, at even distances; of all, where they are fewer."""
    return np.linspace(0, count - 1, min(count, _BLOCKS)).round().astype(int)


def _sharpness(luma: np.ndarray) -> float:
    height, width = luma.shape
    window = np.outer(np.hanning(height), np.hanning(width))
    power = np.abs(np.fft.rfft2((luma - luma.mean()) * window)) ** 2 / (window**2).sum()
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    rounding = 1 / 12

    def band(low: float, high: float) -> float:
        return max(float(power[(frequency >= low) & (frequency < high)].mean()) - rounding, 1e-3)

    return float(np.log10(band(0.35, 0.5) / band(0.1, 0.2)))
