"""Quantiles of every pixel over many samples, in the memory of one window."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..noise import CounterNoise
from ..operators import Downsampling
from ..sampling import Consistency, WindowSampler

QUANTILE_VALUES = 2**26
"""Pixels x samples that are held at once: 0.8 GB."""


def quantiles(
    sampler: WindowSampler,
    operator: Downsampling,
    seeds: Sequence[int],
    q: Sequence[float],
    enforce_consistency: bool = True,
    on_sample: Callable[[], Any] | None = None,
    **arguments: Any,
) -> Tensor:
    """Quantiles of every pixel over the samples of some seeds.

    All samples of one window are held at a time, not those of the image. The projection is that of the window with its
    margin, which differs from that of the whole by less than rounding where the margin is `Downsampling.reach`: H⁺
    decays exponentially.

    Args:
        sampler: of the image.
        operator: H.
        seeds: of the samples.
        q: in [0, 1], interpolated linearly.
        enforce_consistency: whether samples are projected.
        on_sample: called after each sample of each window.
        **arguments: of `WindowSampler.sample_window`.

    Returns:
        `[len(q), 3, H, W]` in [0, 1], on the CPU.

    Raises:
        ValueError: `q` out of range.
    """
    try:
        values = [float(value) for value in q]
    except (TypeError, ValueError):
        values = []
    if not values or not all(0 <= value <= 1 for value in values):
        raise ValueError(f"`q` must be numbers in [0, 1], got {q!r}")
    y, scale = sampler.y, sampler.scale
    shape = len(values), 3, y.shape[-2] * scale, y.shape[-1] * scale
    found = torch.empty(shape, dtype=torch.float32, device="cpu")  # whatever the defaults of the process
    grey = bool((y == y[:1]).all())
    for window in sampler.windows:
        top, left, bottom, right = (min(a, b) for a, b in zip(window.outer, y.shape[-2:] * 2, strict=True))
        consistency = Consistency(operator, y[:, top:bottom, left:right], enforce_consistency, grey)
        low_row, low_column, high_row, high_column = (
            min(a, b) * scale for a, b in zip(window.inner, y.shape[-2:] * 2, strict=True)
        )
        rows, columns = slice(low_row, high_row), slice(low_column, high_column)
        kept = y.new_empty(len(seeds), 3, max(high_row - low_row, 0), max(high_column - low_column, 0))
        for place, seed in enumerate(seeds):
            drawn = sampler.sample_window(window, 1, partial(CounterNoise, [seed]), **arguments).sample[0]
            image = consistency.image(drawn)[..., low_row - top * scale :, low_column - left * scale :]
            kept[place] = image[..., : kept.shape[-2], : kept.shape[-1]]
            if on_sample is not None:
                on_sample()
        if kept.numel():
            found[..., rows, columns] = _quantiles(kept, values).cpu()
        sampler.forget()
    return found


def _quantiles(samples: Tensor, q: list[float]) -> Tensor:
    """`[N, 3, H, W]` -> `[Q, 3, H, W]`; by rows, as torch.quantile takes 2^24 numbers at the most."""
    wanted = torch.tensor(q, dtype=samples.dtype, device=samples.device)
    step = max(2**23 // (samples[:, :, 0].numel()), 1)
    parts = [torch.quantile(samples[:, :, low : low + step], wanted, dim=0) for low in range(0, samples.shape[2], step)]
    return torch.cat(parts, dim=2)
