"""How long the work will take, measured by a small part of it before it begins."""

import argparse
import contextlib
import math
import time
import warnings
from typing import TYPE_CHECKING

from .jobs import Job
from .terminal import note

if TYPE_CHECKING:
    from ..pipelines import SuperResolutionPipeline

WORTH_TELLING = 60.0
"""Seconds."""
_PROBE = 64
"""Pixels a side of the input that is timed, unless the model is of one size."""
_PROBES = 16
"""Work of fewer such inputs is not timed before."""


def announce(
    pipeline: "SuperResolutionPipeline",
    jobs: list[Job],
    options: argparse.Namespace,
    worth_telling: float = WORTH_TELLING,
    probes: int = _PROBES,
) -> None:
    """Tells about how long the samples of all images take, if that is more than `worth_telling` seconds.

    Less work than that of `probes` small inputs is not timed.
    """
    sizes = [size for job in jobs if (size := _size(job, options)) is not None]
    pixels = options.num_samples * sum(evaluated_pixels(pipeline, size, options) for size in sizes)
    side = (pipeline.networks.sizes.fixed_side if hasattr(pipeline, "networks") else None) or _PROBE
    if pixels <= probes * (side * pipeline.operator.scale_factor) ** 2:
        return
    seconds = pixels * seconds_per_pixel(pipeline, side, options)
    if seconds < worth_telling:
        return
    count = options.num_samples * len(sizes)
    what = f"{count} sample{'s' * (count > 1)}"
    width, height = max(sizes, key=math.prod)
    largest = f"{round(width * options.outscale)}x{round(height * options.outscale)}"
    hint = "`--crop X,Y,W,H` takes a detail alone, a smaller `--outscale` or `--num-samples` is faster"
    note(f"{what} of {'up to ' * (len(sizes) > 1)}{largest} pixels will take about {duration(seconds)}; {hint}")


def evaluated_pixels(pipeline: "SuperResolutionPipeline", size: tuple[int, int], options: argparse.Namespace) -> int:
    """HR pixels that the networks see for one sample of an image of (width, height): of all passes, with margins.

    0 for an image that memory does not suffice for.
    """
    import torch

    from ..pipelines.chaining import num_passes
    from ..sampling import WindowSampler, budget

    scale, (width, height), pixels = pipeline.operator.scale_factor, size, 0
    if not hasattr(pipeline, "networks"):  # a compared system: of one pass, and of windows of its own
        return width * height * scale**2
    for _ in range(num_passes(scale, options.outscale)):
        output = (height * scale, width * scale)
        try:
            room = budget(
                pipeline.vdvae, output, options.num_samples, "pil", False, options.max_memory, pipeline.device,
                min_pixels=pipeline.networks.min_pixels,
            )  # fmt: skip
        except ValueError:  # too little memory: it is refused when its turn comes, and takes no time
            return 0
        windows = WindowSampler(pipeline.networks, torch.empty(3, height, width, device="meta"), None, room).windows
        for top, left, bottom, right in (window.outer for window in windows):
            pixels += (bottom - top) * (right - left) * scale**2
        height, width = output
    return pixels


def seconds_per_pixel(pipeline: "SuperResolutionPipeline", side: int, options: argparse.Namespace) -> float:
    """Of one sample of an image of `side` x `side`, after one that is not counted."""
    import torch

    sampling = {**options.sampling, "return_latents": False, "max_memory": None, "batch_size": None}
    y = torch.rand(3, side, side, generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        start = time.perf_counter()
        list(pipeline.samples(y, [0], output_type="pt", **sampling))
    return (time.perf_counter() - start) / (side * pipeline.operator.scale_factor) ** 2


def duration(seconds: float) -> str:
    """For people."""
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}s"
    return f"{seconds:.0f} seconds"


def _size(job: Job, options: argparse.Namespace) -> tuple[int, int] | None:
    """Width and height of what is upscaled, as the file's head tells; None where it does not."""
    from PIL import Image

    from ..images import image_size

    if options.crop:
        return options.crop[2], options.crop[3]
    with warnings.catch_warnings(), contextlib.suppress(Exception):  # what is wrong is said when its turn comes
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return image_size(job.source)
    return None
