"""What `SuperResolutionPipeline` returns, and how it is gathered sample by sample."""

import base64
import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import torch
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor

from hvae_sr.images import Photo, row_strips, to_pil
from hvae_sr.sampling import Consistency

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
_SHOWN = 8
"""Entries of a list that are shown."""


@dataclass(repr=False)
class SuperResolutionOutput(BaseOutput):
    """Samples of p(x|y) for each image, image-major: sample j of image i is `images[i * num_samples + j]`.

    Args:
        images: the samples in the output type: a list of PIL images; `[N, H, W, 3]` or `[N, 3, H, W]` floats in
            [0, 1] ("np", "pt"; a list where sizes differ); for "latent" the same as `latents`.
        mean: the mean of each image's samples, in the output type; of one sample that sample itself. As `std`, it is
            indexed by image, also where there is only one: `mean[0]`, `std[0]`.
        std: the standard deviation of each image's samples (population), `[H, W, 3]` array or, for "pt", `[3, H, W]`
            tensor, in units of the range [0, 1]: the uncertainty map.
        lr_psnr: PSNR in dB between H x and y for every sample, x as returned, in its output type.
        lr_psnr_float: the same for the sample before clamping and rounding.
        lr_psnr_unprojected: the same for the network's own output, before the projection: ranks samples.
        seeds: the seed of every sample; None where `noise` was given.
        latents: the values z of every group, `[N, C, h, w]` each (a list over images where sizes differ); None unless
            asked for.
    """

    images: Any
    mean: Any = None
    std: Any = None
    lr_psnr: list[float] | None = None
    lr_psnr_float: list[float] | None = None
    lr_psnr_unprojected: list[float] | None = None
    seeds: list[int] | None = None
    latents: Any = None

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={_brief(value)}" for name, value in self.items())
        return f"{type(self).__name__}({fields})"

    def _repr_html_(self) -> str:
        """The samples as pictures, for notebooks; those of large images made smaller."""
        listed = self.images if isinstance(self.images, list) else []
        pictures = [image for image in listed if isinstance(image, Image.Image)]
        cells = [_figure(picture, index, self) for index, picture in enumerate(pictures[:_SHOWN])]
        return "".join(cells) or f"<pre>{escape(repr(self))}</pre>"


def _brief(value: Any) -> str:
    """A value for people: shapes instead of arrays, sizes instead of pictures."""
    if isinstance(value, (Tensor, np.ndarray)):
        return f"{type(value).__name__}{tuple(value.shape)}"
    if isinstance(value, Image.Image):
        return f"{value.mode} {value.width}x{value.height}"
    if isinstance(value, float):
        return f"{value:.1f}"
    if isinstance(value, (list, tuple)):
        shown = ", ".join(_brief(one) for one in value[:_SHOWN])
        return f"[{shown}{f', ... {len(value)} in all' if len(value) > _SHOWN else ''}]"
    return repr(value)


def _figure(picture: Image.Image, index: int, output: SuperResolutionOutput) -> str:
    small = picture.copy()
    small.thumbnail((384, 384))
    buffer = io.BytesIO()
    small.save(buffer, "PNG")
    caption = f"seed {output.seeds[index]}" if output.seeds else f"sample {index}"
    if output.lr_psnr:
        caption += f", LR-PSNR {output.lr_psnr[index]:.1f} dB"
    source = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return (
        '<figure style="display:inline-block;margin:4px">'
        f'<img src="{source}"/><figcaption>{caption}</figcaption></figure>'
    )


def convert(image: Tensor, output_type: str, photo: Photo | None = None) -> Any:
    """`[3, H, W]` in [0, 1] -> the output type, on the CPU but for "pt"; PIL images with the photograph's alpha."""
    if output_type == "pil":
        return to_pil(image) if photo is None else photo.finish(to_pil(image))
    if output_type == "np":
        return image.permute(1, 2, 0).cpu().numpy()
    return image


def collate(items: list[Any], output_type: str) -> Any:
    """One array or tensor where all sizes agree, else the list; PIL images stay a list.

    One item keeps its memory. Several are taken out of the list one by one, so that they are not all held twice.
    """
    if not items or output_type == "pil" or len({item.shape for item in items}) > 1:
        return items
    first = items[0]
    if len(items) == 1:
        return first[None]
    shape = (len(items), *first.shape)
    whole = np.empty(shape, first.dtype) if isinstance(first, np.ndarray) else first.new_empty(shape)
    del first
    for index in range(len(whole)):
        whole[index] = items.pop(0)
    return whole


@dataclass(frozen=True)
class Sample:
    """One finished sample.

    Args:
        index: of the sample among those of its photograph.
        x: `[3, H, W]` in [0, 1], float, on the device of the networks; None for `output_type="latent"`.
        image: x in the output type: of "pil" 8 bit, with the photograph's alpha and profile.
        seed: None where `noise` was given, or a recipe of several seeds.
        lr_psnr, lr_psnr_float, lr_psnr_unprojected: as in `SuperResolutionOutput`.
        latents: the values z of every group, `[1, C, h, w]` each; empty unless asked for.
    """

    index: int
    x: Tensor | None
    image: Any
    seed: int | None
    lr_psnr: float
    lr_psnr_float: float
    lr_psnr_unprojected: float
    latents: tuple[Tensor, ...] = ()

    @classmethod
    def of(
        cls,
        index: int,
        made: tuple[Tensor, float, float],
        consistency: Consistency,
        photo: Photo | None,
        output_type: str,
        seed: int | None = None,
        latents: tuple[Tensor, ...] = (),
    ) -> "Sample":
        """The sample of what `consistency` made: x, and its LR-PSNR before the clamp and before the projection."""
        x, exact, unprojected = made
        image = convert(x, output_type)
        returned = consistency.lr_psnr(image if output_type == "pil" else x)
        if photo is not None and output_type == "pil":
            image = photo.finish(image)
        return cls(index, x, image, seed, returned, exact, unprojected, latents)


class RunningMoments:
    """Mean and standard deviation of images that are seen once each, in constant memory (Welford, 1962)."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, image: Tensor) -> None:
        """Takes in one `[3, H, W]` image."""
        self.count += 1
        if self.count == 1:
            self.mean = image.clone()
            self.squares = torch.zeros_like(image)
            return
        for rows in row_strips(image.shape[-2], image.shape[-1]):
            difference = image[..., rows, :] - self.mean[..., rows, :]
            self.mean[..., rows, :] += difference / self.count
            self.squares[..., rows, :] += difference * (image[..., rows, :] - self.mean[..., rows, :])

    def std_(self) -> Tensor:
        """Population standard deviation, in the memory of the sum of squares: nothing can be added any more."""
        return self.squares.div_(self.count).sqrt_()


def gather(
    photographs: Iterable[tuple[Photo | None, Iterator[Sample]]],
    num_samples: int,
    output_type: str,
    seeds: list[int] | None,
    keep_images: bool = True,
    keep_latents: bool = False,
    advance: Callable[[int], Any] = lambda count: None,
) -> SuperResolutionOutput:
    """All samples of several photographs, which are taken one by one: nothing is held that is not returned.

    Args:
        photographs: of each, where its alpha and profile are, and its samples, `num_samples` of them.
        seeds: of all samples.
        advance: called after each sample.
    """
    images: list[Any] = []
    means: list[Any] = []
    deviations: list[Any] = []
    latents: list[list[Tensor]] = []
    measured: list[tuple[float, float, float]] = []
    for photo, samples in photographs:
        moments, drawn = RunningMoments(), []
        for sample in samples:
            if sample.x is not None:
                x, single = sample.x, sample.image
                if num_samples > 1:
                    moments.add(x)
                measured.append((sample.lr_psnr, sample.lr_psnr_float, sample.lr_psnr_unprojected))
                images += [single] if keep_images else []
                shape, device = x.shape, x.device
                del x
            drawn += [sample.latents] if keep_latents else []
            del sample  # which may hold the memory of a whole chunk
            advance(1)
        if keep_latents:
            latents.append([torch.cat(group) for group in zip(*drawn, strict=True)])
        if output_type != "latent":
            means.append(single if num_samples == 1 else convert(moments.mean, output_type, photo))
            # numpy's zeros take no memory until they are touched
            std = moments.std_() if num_samples > 1 else torch.from_numpy(np.zeros(shape, np.float32)).to(device)
            deviations.append(std if output_type == "pt" else std.permute(1, 2, 0).cpu().numpy())
    joined = _join_latents(latents) if keep_latents else None
    if output_type == "latent":
        return SuperResolutionOutput(images=joined, seeds=seeds, latents=joined)
    lr_psnr, lr_psnr_float, lr_psnr_unprojected = (list(values) for values in zip(*measured, strict=True))
    return SuperResolutionOutput(
        images=collate(images, output_type),
        mean=collate(means, output_type),
        std=collate(deviations, "pt" if output_type == "pt" else "np"),
        lr_psnr=lr_psnr,
        lr_psnr_float=lr_psnr_float,
        lr_psnr_unprojected=lr_psnr_unprojected,
        seeds=seeds,
        latents=joined,
    )


def _join_latents(images: list[list[Tensor]]) -> Any:
    """Latents of each image, one `[n, C, h, w]` for each group -> those of all, or the list where sizes differ."""
    groups = list(zip(*images, strict=True))
    if any(len({z.shape for z in group}) > 1 for group in groups):
        return images
    return [torch.cat(group) for group in groups]
