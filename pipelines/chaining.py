"""Any final factor: the model applied as often as needed, and its result resampled."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from numbers import Real
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from hvae_sr.checks import check_count
from hvae_sr.images import LUMA, ImageInput, Photo, to_pil, to_tensor
from hvae_sr.operators import Downsampling, interpolate
from hvae_sr.sampling import decibels, format_bytes
from hvae_sr.sampling import lr_psnr as lr_psnr_once
from hvae_sr.sampling.memory import memory_bound

from .inputs import SamplingOptions, single_photo
from .output import Sample
from .super_resolution import SuperResolutionPipeline

MAX_ENLARGEMENT = 1.5
"""What interpolation may add to the model's factor before the model is applied once more."""


def num_passes(scale_factor: int, outscale: float) -> int:
    """How often a model of `scale_factor` is applied for a final factor of `outscale`: 1 up to 1.5 times its own."""
    if not (isinstance(outscale, Real) and 0 < outscale < math.inf) or isinstance(outscale, bool):
        raise ValueError(f"`outscale` must be a positive number, got {outscale!r}")
    if scale_factor == 1 or outscale <= scale_factor * MAX_ENLARGEMENT:
        return 1
    return math.ceil(math.log(outscale / MAX_ENLARGEMENT) / math.log(scale_factor) - 1e-9)


def samples_at(
    pipe: SuperResolutionPipeline,
    image: ImageInput | Photo,
    seeds: Sequence[int],
    outscale: float | None = None,
    **named: Any,
) -> Iterator[Sample]:
    """Samples of one image at `outscale` times its size, one after the other.

    A factor that is a power of the model's is reached by applying the model so often, each result the next input; any
    other by resampling the nearest such result with antialiased bicubic interpolation. A sample has its seed in every
    pass.

    Args:
        pipe: the pipeline.
        image: one image, as the pipeline takes it.
        seeds: of the samples.
        outscale: final factor; None means the model's.
        **named: others of `SuperResolutionPipeline.samples`.

    Returns:
        Samples whose LR-PSNR is that of the final image: of H applied as often as the model, or, of resampled ones, of
        antialiased bicubic downsampling to the size of `image`.

    Raises:
        ValueError: as the pipeline, before the first sample.
    """
    scale = pipe.operator.scale_factor
    passes = 1 if outscale is None else num_passes(scale, outscale)
    if passes == 1 and outscale in (None, scale):
        return pipe.samples(image, seeds, **named)
    assert outscale is not None
    output_type = named.get("output_type", "pil")
    if output_type not in ("pil", "pt"):
        raise ValueError(f"`output_type` must be 'pil' or 'pt' where results are resampled, got {output_type!r}")
    y, photo = single_photo(image)
    size = (max(round(y.shape[-2] * outscale), 1), max(round(y.shape[-1] * outscale), 1))
    options = SamplingOptions.gather(named.pop("options", None), {})
    if passes > 1 and named.get("return_latents", options.return_latents):
        raise ValueError(f"`return_latents`: latents are of one pass, and `outscale` {outscale:g} takes {passes}")
    given = named.get("max_memory", options.max_memory)
    named["options"] = options
    check_count("max_memory", given, 1, optional=True)
    bound = memory_bound(given, math.prod(size), pipe._execution_device)
    # What is made here is beyond what the pipeline knows of. Bytes a pixel: the sample resampled, half of it on the
    # way, 16-bit images and their floats, mean and squares.
    taken = math.prod(size) * (12 + 6 + 8 + 18 + (28 if len(seeds) > 1 else 0))
    if bound is not None and taken >= bound.bytes:
        raise ValueError(
            f"{bound.name} = {format_bytes(bound.bytes)} is too little: {len(seeds)} samples of {size[1]}x{size[0]} "
            f"take more than {format_bytes(taken)}. Fewer samples, a smaller image or a larger `max_memory`"
        )
    if bound is not None and given is not None:
        named["max_memory"] = bound.bytes - taken
    named["output_type"] = "pt"
    first = pipe.samples(y if photo is None else photo, seeds, **named)  # checks everything
    if passes > 1:  # one by one, so that nothing of the first pass takes room from the larger ones
        first = (sample for seed in seeds for sample in pipe.samples(y if photo is None else photo, [seed], **named))

    def resampled() -> Iterator[Sample]:
        for index, sample in enumerate(first):
            x, z = sample.x, sample.latents if passes == 1 else ()
            assert x is not None
            for _ in range(passes - 1):
                (last,) = pipe.samples(x, [seeds[index]], **named)
                assert last.x is not None
                x = last.x
                if photo is not None and photo.grey:
                    x = torch.einsum("c,chw->hw", x.new_tensor(LUMA), x).expand_as(x)
            if tuple(x.shape[-2:]) != size:
                x = interpolate(x[None], size)[0].clamp_(0, 1)
            picture = to_pil(x) if output_type == "pil" else x
            measured = lr_psnr(pipe.operator, picture, y)
            finished = photo.finish(picture) if photo is not None and isinstance(picture, Image.Image) else picture
            yield replace(sample, index=index, x=x, image=finished, lr_psnr=measured, lr_psnr_float=measured, latents=z)

    return resampled()


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
    if fits and times == 1:
        return lr_psnr_once(operator, image, y)
    x = to_tensor(image).cpu()
    if fits:
        for _ in range(times):
            x = operator(x)
    else:
        x = interpolate(x[None], (y.shape[-2], y.shape[-1]))[0]
    return decibels((x - y).square().mean().item())
