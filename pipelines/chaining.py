"""Any final factor: the model applied as often as needed, and its result resampled."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hvae_sr.images import ImageInput, Photo, prepare_photos, to_pil
from hvae_sr.operators import Downsampling

from .finishing import psnr
from .output import RunningMoments, Sample

MAX_ENLARGEMENT = 1.5
"""What interpolation may add to the model's factor before the model is applied once more."""


@dataclass(frozen=True)
class Summary:
    """What is known of all samples of one image, when they have been handed on.

    Args:
        mean: PIL image, their mean.
        std: `[H, W, 3]` array or `[3, H, W]` tensor, their standard deviation in units of [0, 1].
    """

    mean: Any
    std: Any


def num_passes(scale_factor: int, outscale: float) -> int:
    """How often a model of `scale_factor` is applied for a final factor of `outscale`: 1 up to 1.5 times its own."""
    if not (isinstance(outscale, (int, float)) and 0 < outscale < math.inf) or isinstance(outscale, bool):
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
        on_sample: called with each finished `Sample`, whose image is a PIL image. Its LR-PSNR is that of the final
            image: of H applied as often as the model, or, of resampled ones, of antialiased bicubic downsampling to the
            size of `image`.
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
    prepared = prepare_photos(image)
    if len(prepared) != 1:
        raise ValueError(f"`image` must be one image, got {len(prepared)}")
    y, photo = prepared[0]
    size = (max(round(y.shape[-2] * outscale), 1), max(round(y.shape[-1] * outscale), 1))
    moments = RunningMoments()

    def finish(x: Tensor, sample: Sample) -> None:
        if tuple(x.shape[-2:]) != size:
            x = F.interpolate(x[None], size, mode="bicubic", antialias=True)[0].clamp_(0, 1)
        moments.add(x)
        picture = to_pil(x)
        decibels = lr_psnr(pipe.operator, torch.round(x * 255) / 255, y.to(x.device))
        finished = photo.finish(picture) if photo is not None else picture
        on_sample(Sample(sample.index, finished, sample.seed, decibels, decibels, sample.lr_psnr_unprojected))

    def again(_: Any, sample: Sample) -> None:
        x = sample.image
        for _number in range(passes - 1):
            x = pipe(x, seed=sample.seed, output_type="pt", **options).images[0]
        finish(x, sample)

    pipe(
        y,
        num_samples=num_samples,
        seed=seed,
        output_type="pt",
        callback_on_sample_end=again,
        keep_images=False,
        **options,
    )
    mean = to_pil(moments.mean)
    return Summary(photo.finish(mean) if photo is not None else mean, moments.std_().permute(1, 2, 0).cpu().numpy())


def lr_psnr(operator: Downsampling, x: Tensor, y: Tensor) -> float:
    """PSNR in dB between y and x brought to its size: by H, as often as it fits, or else by bicubic downsampling.

    Args:
        operator: H.
        x: `[3, H, W]` in [0, 1].
        y: `[3, h, w]` in [0, 1].
    """
    factor, times = operator.scale_factor, 0
    while factor > 1 and y.shape[-1] * factor ** (times + 1) <= x.shape[-1]:
        times += 1
    if times == 0 or tuple(x.shape[-2:]) != (y.shape[-2] * factor**times, y.shape[-1] * factor**times):
        return psnr(F.interpolate(x[None], y.shape[-2:], mode="bicubic", antialias=True)[0], y)
    for _ in range(times):
        x = operator(x)
    return psnr(x, y)
