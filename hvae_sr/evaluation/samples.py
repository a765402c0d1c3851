"""How samples are drawn to be measured: silently, in calls of bounded size, with one level of the hierarchy open."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .metrics import Uint8

if TYPE_CHECKING:
    from ..models import VDVAE
    from ..pipelines import SuperResolutionPipeline

Float = NDArray[np.floating[Any]]


def vdvae_of(pipeline: SuperResolutionPipeline) -> VDVAE:
    """The VD-VAE of a pipeline; a ValueError for a compared system, which has none."""
    if not hasattr(pipeline, "vdvae"):
        raise ValueError(f"`pipeline`: {type(pipeline).__name__} has no VD-VAE, and this is for models that have one.")
    return pipeline.vdvae


@contextmanager
def quiet(pipeline: SuperResolutionPipeline | None) -> Iterator[None]:
    """Hides the progress bar of a pipeline, if it is one, and leaves its settings as they were."""
    before = getattr(pipeline, "_progress_bar_config", {})
    if pipeline is not None:
        pipeline.set_progress_bar_config(**{**before, "disable": True})
    try:
        yield
    finally:
        if pipeline is not None:
            pipeline.set_progress_bar_config(**before)


def draw(
    pipeline: SuperResolutionPipeline,
    lows: Sequence[Uint8],
    temperature: float | Sequence[float],
    count: int,
    seed: int,
    values_per_call: int = 2**22,
    **options: Any,
) -> list[Float]:
    """Unprojected samples of each y (8-bit ``[h, w, 3]``), ``[count, H, W, 3]`` in [0, 1]: of the seeds `seed` + j.

    The pipeline is asked for `values_per_call` pixel values at a time (21 samples of 256x256). They are copied, so that
    memory holds the samples of an image once, however many they are. `options` are of its call.
    """
    values = sum(low.size for low in lows) * pipeline.operator.scale_factor**2
    step = max(1, values_per_call // values)
    drawn: list[Float] = []
    for start in range(0, count, step):
        number = min(step, count - start)
        images = pipeline(
            [Image.fromarray(low) for low in lows],
            temperature=temperature,
            num_samples=number,
            seed=seed + start,
            enforce_consistency=False,
            output_type="np",
            **options,
        ).images
        drawn = drawn or [np.empty((count, *images[i * number].shape), np.float32) for i in range(len(lows))]
        for index, samples in enumerate(drawn):
            samples[start : start + number] = images[index * number : (index + 1) * number]
    return drawn


def level_temperatures(strides: Sequence[int], temperature: float = 1.0) -> dict[str, list[float]]:
    """One temperature for each group: `temperature` at one level and 0 elsewhere, or at all levels up to one.

    Args:
        strides: of the groups, coarse to fine; the groups of one stride are a level.

    >>> level_temperatures([4, 2, 2])
    {'stride 4': [1.0, 0.0, 0.0], 'stride 2': [0.0, 1.0, 1.0], 'all': [1.0, 1.0, 1.0]}
    """
    levels = list(dict.fromkeys(strides))
    opened = {f"stride {stride}": [stride] for stride in levels}
    opened |= {f"up to stride {levels[i]}": levels[: i + 1] for i in range(1, len(levels) - 1)}
    opened["all"] = levels
    return {name: [temperature if stride in open_ else 0.0 for stride in strides] for name, open_ in opened.items()}
