"""Working with the samples of a pipeline: keep, mix, redraw, rank, and look at their quantiles.

Every function takes a `SuperResolutionPipeline` and does its work through it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import ndimage
from torch import Tensor

from hvae_sr.images import ImageInput, Photo, prepare_photos
from hvae_sr.noise import CounterNoise
from hvae_sr.operators import Downsampling

from .finishing import Finisher
from .inputs import check_count, check_groups, sample_seeds
from .memory import KEPT_FEATURES, Budget, budget
from .output import SuperResolutionOutput, collate, convert
from .sampling import WindowSampler
from .windows import Window

QUANTILE_VALUES = 2**26
"""Pixels x samples that `quantiles` holds at once: 0.8 GB."""


def mix(coarse: Sequence[Tensor], fine: Sequence[Tensor], num_fixed_groups: int) -> list[Tensor]:
    """Latents with the first groups of one sample and the others of another: layout from one, texture from the other.

    Args:
        coarse, fine: latents of samples of one image, `[N, C, h, w]` for each group (`return_latents=True`).
        num_fixed_groups: how many groups come from `coarse`.

    Returns:
        What the pipeline takes as `latents`.
    """
    if len(coarse) != len(fine):
        raise ValueError(f"`coarse` has {len(coarse)} groups and `fine` {len(fine)}")
    check_count("num_fixed_groups", num_fixed_groups, 0, len(coarse))
    return [*coarse[:num_fixed_groups], *fine[num_fixed_groups:]]


# Redraw a region


def redraw_region(
    pipe: Any,
    image: ImageInput | Photo,
    mask: Image.Image | np.ndarray | Tensor,
    seed: int,
    new_seed: int,
    num_samples: int = 1,
    feather: int = 8,
    output_type: str = "pil",
    **options: Any,
) -> SuperResolutionOutput:
    """New versions of a region of one sample; what is outside stays as it is, bit for bit.

    Inside the mask the latents get the noise of another seed, so that the region still fits its surroundings. The
    change d = x_new - x_old, with weights w that fall to 0 at the edge of the mask, is then projected on the changes
    that H does not see and that stay inside,

        d̂ = w d - W Hᵀ (H W Hᵀ)⁺ H w d,    W = diag(w)

    (by conjugate gradients), so that H(x_old + d̂) = H x_old.

    Args:
        pipe: the pipeline.
        image: one image.
        mask: true, or above half of its range ([0, 1]; integers beyond 1: [0, 255]), where pixels are redrawn: `[H, W]`
            of the result or `[h, w]` of y.
        seed: of the sample.
        new_seed: of the first new version; the j-th has `new_seed + j`.
        num_samples: versions.
        feather: HR pixels inside the mask over which the change grows to its full size.
        output_type: "pil", "np" or "pt".
        **options: others of the pipeline's, as they were for the sample.

    Returns:
        As the pipeline; `mean` and `std` are None.

    Raises:
        ValueError: as the pipeline; seeds that are no whole numbers; or a mask of another size, or empty.
    """
    check_count("num_samples", num_samples, 1)
    check_count("feather", feather, 1)
    if options.get("self_ensemble"):
        raise ValueError("`self_ensemble` must be False: a region is redrawn on the grid of the sample's latents")
    if output_type not in ("pil", "np", "pt"):
        raise ValueError(f"`output_type` must be 'pil', 'np' or 'pt', got {output_type!r}")
    for name, given in (("seed", seed), ("new_seed", new_seed)):
        if isinstance(given, bool) or not isinstance(given, Integral):
            raise ValueError(f"`{name}` must be a whole number, got {given!r}")
    y, photo = _single(image)
    scale = pipe.config.scale_factor
    height, width = y.shape[-2] * scale, y.shape[-1] * scale
    inside = _mask(mask, (height, width), scale)
    old = pipe(y, seed=seed, output_type="pt", **options).images[0]
    padded = WindowSampler(pipe, y).size
    region = F.pad(inside[None, None].float(), (0, padded[1] - width, 0, padded[0] - height))
    vdvae, device = pipe.vdvae, torch.device("cpu")
    noise = []
    for group in range(vdvae.num_groups):
        stride = vdvae.stride(group)
        shape = vdvae.latent_shape(group, 1, padded)
        before = CounterNoise([seed])(group, stride, shape, device)
        chosen = F.max_pool2d(region, stride) > 0
        after = [CounterNoise([new_seed + j])(group, stride, shape, device) for j in range(num_samples)]
        noise.append(torch.cat([torch.where(chosen, new, before) for new in after]))
    fresh = pipe(y, num_samples=num_samples, noise=noise, output_type="pt", **options)
    weights = feather_weights(inside, feather).to(old.device)
    images: list[Any] = []
    decibels: list[float] = []
    finisher = Finisher(pipe.operator, y.to(old.device), None, "pt", 1, enforce_consistency=False)
    for new in fresh.images:
        x = (old + unseen_change(pipe.operator, new - old, weights)).clamp(0, 1)
        picture = convert(x, output_type)
        images.append(photo.finish(picture) if photo is not None and output_type == "pil" else picture)
        decibels.append(finisher.lr_psnr_of(torch.round(x * 255) / 255 if output_type == "pil" else x))
    return SuperResolutionOutput(
        images=collate(images, output_type),
        lr_psnr=decibels,
        seeds=[new_seed + j for j in range(num_samples)],
    )


def unseen_change(operator: Downsampling, change: Tensor, weights: Tensor, tolerance: float = 1e-9) -> Tensor:
    """The change `[3, H, W]` as H does not see it, and as it is 0 where `weights` `[H, W]` are; see `redraw_region`."""
    scale = operator.scale_factor
    rows, columns = (torch.nonzero(weights.amax(dim=dim)).flatten() for dim in (1, 0))
    if not len(rows):
        return torch.zeros_like(change)
    # Beyond a few pixels of y, neither the change nor what H makes of it reaches.
    box = [
        slice(max(int(found[0]) // scale - 6, 0) * scale, min((int(found[-1]) // scale + 7) * scale, length))
        for found, length in zip((rows, columns), weights.shape, strict=True)
    ]
    wide = torch.float32 if change.device.type == "mps" else torch.float64
    w = weights[box[0], box[1]].to(wide)
    d = w * change[:, box[0], box[1]].to(wide)
    size = (d.shape[-2], d.shape[-1])

    residual = operator(d)
    solution = torch.zeros_like(residual)
    scaling = 1 / operator(w[None]).abs().clamp_min(1e-4)  # about the diagonal: pixels of y of which w shows little
    scaled = scaling * residual
    direction, power = scaled.clone(), (residual * scaled).sum()
    enough = power * tolerance**2
    for _ in range(1000):
        if power <= enough or power == 0:
            break
        image = operator(w * operator.adjoint(direction, size))
        step = power / (direction * image).sum()
        solution += step * direction
        residual -= step * image
        scaled = scaling * residual
        power, previous = (residual * scaled).sum(), power
        direction = scaled + power / previous * direction
    found = torch.zeros_like(change)
    found[:, box[0], box[1]] = (d - w * operator.adjoint(solution, size)).to(change.dtype)
    return found


def _mask(mask: Image.Image | np.ndarray | Tensor, size: tuple[int, int], scale: int) -> Tensor:
    """Booleans `[H, W]`, on the CPU."""
    values = torch.as_tensor(np.array(mask.convert("L")) if isinstance(mask, Image.Image) else mask).cpu()
    if values.dtype != torch.bool:
        # Integers of 0 and 1 are how most arrays spell booleans.
        values = values > (0.5 if values.is_floating_point() or not (values > 1).any() else 127)
    if tuple(values.shape) == (size[0] // scale, size[1] // scale):
        values = values.repeat_interleave(scale, 0).repeat_interleave(scale, 1)
    if tuple(values.shape) != size:
        raise ValueError(f"`mask` must be {size[0]}x{size[1]} (height x width) or the size of the image, got "
                         f"{tuple(values.shape)}")  # fmt: skip
    if not values.any():
        raise ValueError("`mask` is empty: nothing is to be redrawn")
    return values


def feather_weights(inside: Tensor, feather: int) -> Tensor:
    """How much of a change goes through: 1 inside a mask, falling to 0 at its edge.

    Args:
        inside: booleans `[H, W]`, on the CPU.
        feather: pixels inside the mask, >= 1, over which the weights grow from 0 to 1.

    Returns:
        `[H, W]` in [0, 1], float64; 1 everywhere for a mask without an edge.
    """
    if inside.all():  # without an edge there is nothing to measure distances to
        return torch.ones(inside.shape, dtype=torch.float64)
    return torch.from_numpy(ndimage.distance_transform_edt(inside.numpy()) / feather).clamp(0, 1)


def _single(image: ImageInput | Photo) -> tuple[Tensor, Photo | None]:
    prepared = prepare_photos(image)
    if len(prepared) != 1:
        raise ValueError(f"`image` must be one image, got {len(prepared)}")
    return prepared[0]


# Quantiles


@torch.no_grad()
def quantiles(
    pipe: Any,
    image: ImageInput | Photo,
    q: Sequence[float] = (0.05, 0.5, 0.95),
    num_samples: int = 32,
    seed: int | Sequence[int] | None = 0,
    temperature: float | Sequence[float] | None = None,
    enforce_consistency: bool = True,
    window_size: int | None = None,
) -> Tensor:
    """Quantiles of every pixel over the samples of the pipeline with the same seeds.

    All samples of one window are held at a time, not those of the image. The projection is that of the window with its
    margin, which differs from that of the whole by less than rounding: H⁺ decays exponentially.

    Args:
        pipe: the pipeline.
        image: one image.
        q: quantiles in [0, 1], interpolated linearly.
        num_samples, seed, temperature, enforce_consistency: as for the pipeline.
        window_size: side of a window in pixels of y; None lets the samples of one take 0.8 GB.

    Returns:
        `[len(q), 3, H, W]` in [0, 1], on the CPU.

    Raises:
        ValueError: as the pipeline; or `q` out of range.
    """
    values = [float(value) for value in q]
    if not values or not all(0 <= value <= 1 for value in values):
        raise ValueError(f"`q` must be numbers in [0, 1], got {q!r}")
    temperature = pipe.config.default_temperature if temperature is None else temperature
    pipe.check_inputs(temperature=temperature, num_samples=num_samples, window_size=window_size, seed=seed)
    y, _ = _single(image)
    pipe._check_image_size(y, False)
    seeds = sample_seeds(seed, None, 1, num_samples)
    scale = pipe.config.scale_factor
    found = torch.empty(len(values), 3, y.shape[-2] * scale, y.shape[-1] * scale)
    grey = bool((y == y[:1]).all())
    room = Budget(QUANTILE_VALUES // num_samples, KEPT_FEATURES)
    sampler = WindowSampler(pipe, y.to(pipe._execution_device), window_size, room)
    arguments = {"temperature": temperature, "return_latents": False}
    with pipe._fast_inference(), pipe.progress_bar(total=len(sampler.windows) * num_samples) as bar:
        for window in sampler.windows:
            top, left, bottom, right = (min(a, b) for a, b in zip(window.outer, y.shape[-2:] * 2, strict=True))
            part = y[:, top:bottom, left:right].to(sampler.y.device)
            finisher = Finisher(pipe.operator, part, None, "pt", 1, enforce_consistency, grey)
            samples = []
            for one in seeds:
                drawn = sampler.sample_window(window, 1, [one], arguments=arguments).sample[0]
                samples.append(finisher.unit(drawn))
                bar.update(1)
            low_row, low_column, high_row, high_column = (
                min(a, b) * scale for a, b in zip(window.inner, y.shape[-2:] * 2, strict=True)
            )
            rows, columns = slice(low_row, high_row), slice(low_column, high_column)
            kept = torch.stack(samples)[..., _shift(rows, -top * scale), _shift(columns, -left * scale)]
            if kept.numel():
                found[..., rows, columns] = _quantiles(kept, values).cpu()
            sampler.forget()
    pipe.maybe_free_model_hooks()
    return found


def _shift(span: slice, by: int) -> slice:
    return slice(span.start + by, span.stop + by)


def _quantiles(samples: Tensor, q: list[float]) -> Tensor:
    """`[N, 3, H, W]` -> `[Q, 3, H, W]`; by rows, as torch.quantile takes 2^24 numbers at the most."""
    wanted = torch.tensor(q, dtype=samples.dtype, device=samples.device)
    step = max(2**23 // (samples[:, :, 0].numel()), 1)
    parts = [torch.quantile(samples[:, :, low : low + step], wanted, dim=0) for low in range(0, samples.shape[2], step)]
    return torch.cat(parts, dim=2)


# Ranking


@dataclass(frozen=True)
class Rank:
    """How a sample compares with the others of its image.

    Args:
        index: of the sample.
        log_density: log p(z|y) of its latents at temperature 1, nats per latent.
        lr_psnr_unprojected: in dB, of the network's own output.
    """

    index: int
    log_density: float
    lr_psnr_unprojected: float


def rank(pipe: Any, image: ImageInput | Photo, output: SuperResolutionOutput, by: str = "log_density") -> list[Rank]:
    """The samples of one image, best first.

    Args:
        pipe: the pipeline.
        image: the image.
        output: of the pipeline, with `return_latents=True`.
        by: "log_density" (the most typical first) or "lr_psnr_unprojected" (the most faithful first).

    Raises:
        ValueError: `output` holds no latents, or `by` is something else.
    """
    if by not in ("log_density", "lr_psnr_unprojected"):
        raise ValueError(f"`by` must be 'log_density' or 'lr_psnr_unprojected', got {by!r}")
    if output.latents is None or output.lr_psnr_unprojected is None:
        raise ValueError("`output` holds no latents, or no images: call the pipeline with `return_latents=True`")
    densities = log_density(pipe, image, output.latents)
    ranks = [
        Rank(index, density, decibels)
        for index, (density, decibels) in enumerate(zip(densities.tolist(), output.lr_psnr_unprojected, strict=True))
    ]
    return sorted(ranks, key=lambda one: -getattr(one, by))


@torch.no_grad()
def log_density(
    pipe: Any, image: ImageInput | Photo, latents: Sequence[Tensor], max_memory: int | None = None
) -> Tensor:
    """log p(z|y) of latents at temperature 1, in nats per latent: sum_l log p(z_l | z_<l, y) over their number.

    p(z_l | z_<l, y) is q_psi where the model has one, else the (conditioned) prior.

    Args:
        pipe: the pipeline.
        image: one image.
        latents: one `[N, C, h, w]` for each group.
        max_memory: bytes that the process (on a GPU: the device) may take; windows are made small enough for it.

    Returns:
        `[N]`, float64 on the CPU.

    Raises:
        ValueError: not the latents of every group, or of an image of another size, or too little memory.
    """
    y, _ = _single(image)
    room, device = None, pipe._execution_device
    if max_memory is not None:
        size = (y.shape[-2] * pipe.operator.scale_factor, y.shape[-1] * pipe.operator.scale_factor)
        room = budget(pipe.vdvae, size, 1, "latent", False, max_memory, device)
    sampler = WindowSampler(pipe, y.to(device), room=room)
    groups = pipe.vdvae.num_groups
    if not isinstance(latents, (list, tuple)) or len(latents) != groups:
        given = len(latents) if isinstance(latents, (list, tuple)) else type(latents).__name__
        raise ValueError(f"`latents` must be a list of {groups} tensors, one for each group; got {given}")
    count = len(latents[0]) if isinstance(latents[0], Tensor) and latents[0].ndim else 1
    check_groups("latents", latents, pipe.vdvae, sampler.size, (count,), optional=False)
    total = torch.zeros(count, dtype=torch.float64)
    with pipe._fast_inference():
        for window in sampler.windows:
            for row in range(len(total)):
                for group, statistics in enumerate(sampler.statistics(window, [z[row : row + 1] for z in latents])):
                    distribution = statistics.lr_posterior or statistics.prior
                    terms = _kept(distribution.log_prob(statistics.z), window, pipe, group)
                    total[row] += terms.double().sum().cpu()
            sampler.forget()
    pipe.maybe_free_model_hooks()
    return total / sum(z[0].numel() for z in latents)


def _kept(values: Tensor, window: Window, pipe: Any, group: int) -> Tensor:
    """What a window keeps of a map of its group."""
    numerator, denominator = pipe.config.scale_factor, pipe.vdvae.stride(group)
    top, left, bottom, right = (
        (side - start) * numerator // denominator
        for side, start in zip(window.inner, window.outer[:2] * 2, strict=True)
    )
    return values[..., top:bottom, left:right]
