"""Any final factor: the model applied as often as needed, and its result resampled."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from hvae_sr.images import ImageInput, Photo, prepare_photos, to_pil, to_tensor
from hvae_sr.operators import Downsampling
from hvae_sr.resizers import interpolate

from .finishing import lr_psnr_of_image, psnr
from .inputs import check_count, sample_seeds
from .memory import Bound, format_bytes, memory_bound
from .output import RunningMoments, Sample

MAX_ENLARGEMENT = 1.5
"""What interpolation may add to the model's factor before the model is applied once more."""


@dataclass(frozen=True)
class Summary:
    """What is known of all samples of one image, when they have been handed on.

    Args:
        mean: their mean, as the samples' images.
        std: `[H, W, 3]` array or `[3, H, W]` tensor, their standard deviation in units of [0, 1].
    """

    mean: Any
    std: Any


def num_passes(scale_factor: int, outscale: float) -> int:
    """How often a model of `scale_factor` is applied for a final factor of `outscale`: 1 up to 1.5 times its own."""
    if not (isinstance(outscale, Real) and 0 < outscale < math.inf) or isinstance(outscale, bool):
        raise ValueError(f"`outscale` must be a positive number, got {outscale!r}")
    if scale_factor == 1 or outscale <= scale_factor * MAX_ENLARGEMENT:
        return 1
    return math.ceil(math.log(outscale / MAX_ENLARGEMENT) / math.log(scale_factor) - 1e-9)


def upscale(
    pipe: Any,
    image: ImageInput | Photo,
    on_sample: Callable[[Sample], None],
    outscale: float | None = None,
    num_samples: int = 1,
    seed: int = 0,
    **options: Any,
) -> Summary:
    """Samples of one image at `outscale` times its size, handed to `on_sample` one after the other, none of them kept.

    A factor that is a power of the model's is reached by applying the model so often, each result the next input; any
    other by resampling the nearest such result with antialiased bicubic interpolation. Sample j has the seed
    `seed + j` in every pass.

    Args:
        pipe: the pipeline.
        image: one image, as the pipeline takes it.
        on_sample: called with each finished `Sample`, whose image is a PIL image, or a tensor with `output_type` "pt".
            Its LR-PSNR is that of the final image: of H applied as often as the model, or, of resampled ones, of
            antialiased bicubic downsampling to the size of `image`.
        outscale: final factor; None means the model's.
        num_samples, seed: as for the pipeline.
        **options: others of the pipeline's.

    Raises:
        ValueError: as the pipeline.
    """
    scale = pipe.config.scale_factor
    passes = 1 if outscale is None else num_passes(scale, outscale)
    if passes == 1 and outscale in (None, scale):
        out = pipe(
            image,
            num_samples=num_samples,
            seed=seed,
            callback_on_sample_end=lambda _, sample: on_sample(sample),
            keep_images=False,
            **options,
        )
        return Summary(out.mean[0], out.std[0])

    assert outscale is not None
    output_type = options.pop("output_type", "pil")
    if output_type not in ("pil", "pt"):
        raise ValueError(f"`output_type` must be 'pil' or 'pt' where results are resampled, got {output_type!r}")
    prepared = prepare_photos(image)
    if len(prepared) != 1:
        raise ValueError(f"`image` must be one image, got {len(prepared)}")
    check_count("num_samples", num_samples, 1)
    seeds = sample_seeds(seed, None, 1, num_samples)
    y, photo = prepared[0]
    size = (max(round(y.shape[-2] * outscale), 1), max(round(y.shape[-1] * outscale), 1))
    bound = memory_bound(options.get("max_memory"), math.prod(size), pipe._execution_device)
    if bound is not None:  # what is made here is beyond what the pipeline knows of
        left = _left_for_samples(bound, size, num_samples)
        if options.get("max_memory") is not None:
            options["max_memory"] = left
    moments = RunningMoments()
    single: list[Any] = []
    index = itertools.count()

    def finish(x: Tensor, sample: Sample) -> None:
        if tuple(x.shape[-2:]) != size:
            x = interpolate(x[None], size)[0].clamp_(0, 1)
        picture = to_pil(x) if output_type == "pil" else x
        finished = photo.finish(picture) if photo is not None and output_type == "pil" else picture
        if num_samples > 1:
            moments.add(x)
        else:
            single.append(finished)
        del x
        decibels = lr_psnr(pipe.operator, picture, y)
        on_sample(Sample(next(index), finished, sample.seed, decibels, decibels, sample.lr_psnr_unprojected))

    def again(_: Any, sample: Sample) -> None:
        x = sample.image
        for _number in range(passes - 1):
            x = pipe(x, seed=sample.seed, output_type="pt", **options).images[0]
        finish(x, sample)

    # One by one where there are several passes, so that nothing of the first one takes room from the larger ones.
    calls = [(seeds[0], num_samples)] if passes == 1 else [(one, 1) for one in seeds]
    for first, count in calls:
        pipe(
            y,
            num_samples=count,
            seed=first,
            output_type="pt",
            callback_on_sample_end=again,
            keep_images=False,
            **options,
        )
    if num_samples == 1:
        return Summary(single[0], np.zeros((*size, 3), np.float32))  # which takes no memory until it is written to
    mean: Any = moments.mean
    if output_type == "pil":
        mean = to_pil(mean)
        mean = photo.finish(mean) if photo is not None else mean
    return Summary(mean, moments.std_().permute(1, 2, 0).cpu().numpy())


def _left_for_samples(bound: Bound, size: tuple[int, int], num_samples: int) -> int:
    """Bytes of the bound beside what is made of a sample of `size`.

    Raises:
        ValueError: there are none.
    """
    # Bytes a pixel: the sample resampled, half of it on the way there, 8-bit images and their floats, mean and squares.
    taken = math.prod(size) * (12 + 6 + 8 + 15 + (28 if num_samples > 1 else 0))
    if taken >= bound.bytes:
        raise ValueError(
            f"{bound.name} = {format_bytes(bound.bytes)} is too little: {num_samples} samples of {size[1]}x{size[0]} "
            f"take more than {format_bytes(taken)}. Fewer samples, a smaller image or a larger `max_memory`"
        )
    return bound.bytes - taken


def lr_psnr(operator: Downsampling, image: Image.Image | Tensor, y: Tensor) -> float:
    """PSNR in dB between y and an image brought to its size: by H, as often as it fits, or else bicubic downsampling.

    Args:
        operator: H.
        image: RGB, or `[3, H, W]` in [0, 1].
        y: `[3, h, w]` in [0, 1].
    """
    y = y.cpu()
    factor, times = operator.scale_factor, 0
    size = image.size if isinstance(image, Image.Image) else (image.shape[-1], image.shape[-2])
    while factor > 1 and y.shape[-1] * factor ** (times + 1) <= size[0]:
        times += 1
    fits = times > 0 and size == (y.shape[-1] * factor**times, y.shape[-2] * factor**times)
    if fits and times == 1 and isinstance(image, Image.Image):
        return lr_psnr_of_image(operator, image, y)
    x = to_tensor(image).cpu()
    if not fits:
        return psnr(interpolate(x[None], (y.shape[-2], y.shape[-1]))[0], y)
    for _ in range(times):
        x = operator(x)
    return psnr(x, y)
