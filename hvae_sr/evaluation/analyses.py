"""Where the information of an image lies in the latent groups, and how many groups k to condition.

Appendix A of the CVDVAE paper (U_k^s), expected consistency (slides, eq. 12-13), the KL of each group, what samples owe
to each level, and reconstructions from the first k groups. Every analysis returns a dictionary of plain numbers, ready
for JSON.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from ..models import VDVAE, Condition, LRConditioner
from ..noise import CounterNoise
from ..operators import Downsampling
from .metrics import psnr, ratio, to_planes, to_uint8
from .perceptual import LPIPS
from .samples import level_temperatures, quiet, vdvae_of
from .tables import markdown_lines, table

if TYPE_CHECKING:
    from typing import TypeAlias

    from ..pipelines import SuperResolutionPipeline

    Model: TypeAlias = VDVAE | SuperResolutionPipeline


PIXELS_PER_BATCH = 2**19
"""Of the images of `low_resolution_distance` that are computed at a time."""


def code_seed(base: int, code: int, image: int = 0) -> int:
    """Addresses the noise of one latent code, or of one image that goes on from it.

    Noise knows 64 bits of a seed; the odd factor, far from 1, keeps the codes of neighbouring seeds apart.
    """
    return base * 0x9E3779B97F4A7C15 + (code << 20) + image


@torch.no_grad()
def low_resolution_distance(
    vdvae: VDVAE,
    scales: Sequence[int] = (1, 4, 8, 16),
    num_codes: int = 50,
    num_images: int = 5,
    size: tuple[int, int] | None = None,
    kernel: str = "bicubic",
    sample_pixels: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """U_k^s, how far apart images with the same first k groups are at 1/s of the resolution (paper, eq. 15-18).

    U_k^s = E_{p(z_<k)} E_{p(x|z_<k)} E_{p(x'|z_<k)} |H_s x - H_s x'| / sqrt(m), in grey levels of 0..255: the mean over
    latent codes and over the pairs of the images of each. (The printed eq. 18 leaves out the division by their number.)

    Args:
        vdvae: any VD-VAE; no encoder is needed.
        scales: s; H_1 is the identity.
        num_codes, num_images: latent codes, and images of each for every k; 50 and 5 in the paper.
        size: (H, W) of the images; None means the model's nominal size.
        kernel: of H_s, see `Downsampling`.
        sample_pixels: draws x from p(x|z) instead of taking E[x|z]; then U_L^1 is that of the pixels' white noise.
        seed: of the codes; the same images' noise serves every k.

    Returns:
        ``groups`` (k = 0..L), ``scales``, ``distance`` (U_k^s by str(s)), its ``standard_error`` over the codes, and
        the settings.

    Raises ValueError: fewer than one code or two images, or a size or scale that does not fit.
    """
    if num_codes < 1:
        raise ValueError(f"`num_codes` must be at least 1, got {num_codes}.")
    if num_images < 2:
        raise ValueError(f"`num_images` must be at least 2, for a distance, got {num_images}.")
    if not scales or len(set(scales)) != len(scales) or min(scales) < 1:
        raise ValueError(f"`scales` must be different factors of at least 1, got {tuple(scales)}.")
    size = size or (vdvae.config.image_size, vdvae.config.image_size)
    vdvae.check_size(size, "size")
    if max(scales) > min(size):
        raise ValueError(f"`scales` must not exceed the images' sides {size}, got {max(scales)}.")
    operators = {scale: Downsampling(scale, kernel=kernel) if scale > 1 else None for scale in scales}
    groups = list(range(vdvae.num_groups + 1))
    found = {scale: np.zeros((len(groups), num_codes)) for scale in scales}
    step = max(1, PIXELS_PER_BATCH // (size[0] * size[1] * num_images))
    pairs = list(combinations(range(num_images), 2))
    for start in tqdm(range(0, num_codes, step), desc="latent codes"):
        codes = range(start, min(start + step, num_codes))
        fixed = vdvae.sample(len(codes), size, CounterNoise([code_seed(seed, code) for code in codes])).latents
        noise = CounterNoise([code_seed(seed, code, 1 + j) for code in codes for j in range(num_images)])
        for k in groups:
            latents = [z.repeat_interleave(num_images, dim=0) for z in fixed[:k]]
            options: dict[str, Any] = {"latents": latents, "sample_pixels": sample_pixels, "return_latents": False}
            out = vdvae.sample(len(codes) * num_images, size, noise, **options)
            images = (out.sample.float().clamp(-1, 1) + 1) * 127.5
            for scale, operator in operators.items():
                low = (images if operator is None else operator(images)).double().unflatten(0, (len(codes), num_images))
                errors = [(low[:, i] - low[:, j]).square().mean(dim=(1, 2, 3)).sqrt() for i, j in pairs]
                found[scale][k, start : codes.stop] = torch.stack(errors).mean(dim=0).cpu().numpy()
    root, ddof = math.sqrt(num_codes), min(1, num_codes - 1)
    return {
        "analysis": "low-resolution distance",
        "groups": groups,
        "scales": list(scales),
        "distance": {str(scale): values.mean(axis=1).tolist() for scale, values in found.items()},
        "standard_error": {str(s): (values.std(axis=1, ddof=ddof) / root).tolist() for s, values in found.items()},
        "strides": [vdvae.stride(group) for group in range(vdvae.num_groups)],
        "num_codes": num_codes,
        "num_images": num_images,
        "size": list(size),
        "kernel": kernel,
        "sample_pixels": sample_pixels,
        "seed": seed,
    }


def choose_num_groups(analysis: Mapping[str, Any], scale: int, threshold: float = 0.5) -> int | None:
    """The smallest k from which on U_k^s stays below `threshold` grey levels, or None if there is none below L.

    The paper's criterion: U_60^4 < 0.5 for the published VD-VAE of faces, so that k = 60 groups determine the LR image.
    k = L always does (all is fixed), and says nothing.

    >>> analysis = {"groups": [0, 1, 2, 3], "distance": {"4": [9.0, 0.4, 0.3, 0.0]}}
    >>> choose_num_groups(analysis, 4), choose_num_groups(analysis, 4, threshold=0.1)
    (1, None)
    """
    if str(scale) not in analysis["distance"]:
        raise ValueError(f"`scale` must be one of {', '.join(analysis['distance'])}; got {scale}.")
    values = analysis["distance"][str(scale)]
    above = [k for k, value in zip(analysis["groups"], values, strict=True) if value >= threshold]
    k = max(above, default=-1) + 1
    return k if k < analysis["groups"][-1] else None


def expected_consistency(
    pipeline: SuperResolutionPipeline,
    images: Iterable[Any],
    num_samples: int = 5,
    seed: int = 0,
) -> dict[str, Any]:
    """CE(k) = E |H x - y| / sqrt(m), x from p_SR(x|y) with k conditioned groups, unprojected (slides, eq. 12).

    In grey levels of 0..255. With everything trained to optimality CE(k) = U_k^s (eq. 13); what it lies above that is
    what the LR encoder leaves to the projection.

    Args:
        pipeline: a `SuperResolutionPipeline`.
        images: LR images y, as the pipeline takes them.
        num_samples: of each image, at temperature 1.
        seed: of the samples.

    Raises ValueError: no images, or a pipeline without a VD-VAE.
    """
    vdvae, inputs = vdvae_of(pipeline), list(images)
    if not inputs:
        raise ValueError("`images` must hold at least one image, got none.")
    groups = list(range(vdvae.num_groups + 1))
    options: dict[str, Any] = {"temperature": 1.0, "num_samples": num_samples, "seed": seed}
    options |= {"enforce_consistency": False, "output_type": "np"}
    values = []
    with quiet(pipeline):
        for k in tqdm(groups, desc="conditioned groups"):
            outs = [pipeline(image, num_conditioned_groups=k, **options) for image in inputs]
            decibels = np.concatenate([out.lr_psnr_unprojected for out in outs])
            values.append(float(np.mean(255 * 10 ** (-decibels / 20))))
    return {
        "analysis": "expected consistency",
        "groups": groups,
        "consistency": values,
        "scale_factor": pipeline.config.scale_factor,
        "num_images": len(inputs),
        "num_samples": num_samples,
        "temperature": 1.0,
        "seed": seed,
    }


def _prepare(model: Model, image: Image.Image) -> tuple[VDVAE, Tensor, Condition | None, Condition | None]:
    """The VD-VAE of a model or pipeline, x ``[1, 3, H, W]`` on [-1, 1] from the image's centre, and y as a condition.

    VDVAE-SR's comes first, whose posterior sees y; then CVDVAE's.
    """
    vdvae = model if isinstance(model, VDVAE) else vdvae_of(model)
    multiple = vdvae.size_multiple
    if not isinstance(model, VDVAE):
        multiple = math.lcm(multiple, model.lr_encoder.size_multiple * model.operator.scale_factor)
    fixed = vdvae.config.image_size if vdvae.config.bias_type == "spatial" else None
    width, height = (fixed or side // multiple * multiple for side in image.size)
    if not (0 < width <= image.width and 0 < height <= image.height):
        raise ValueError(f"`images` must be at least as large as the model's {multiple} pixels, got {image.size}.")
    left, top = (image.width - width) // 2, (image.height - height) // 2
    pixels = np.asarray(image.convert("RGB").crop((left, top, left + width, top + height)))
    x = to_planes(pixels[None] / 127.5 - 1).to(vdvae.device)
    if isinstance(model, VDVAE):
        return vdvae, x, None, None
    condition = model.lr_encoder.encode((model.operator((x + 1) * 127.5).clamp(0, 255).round() / 127.5) - 1)
    sees_y = isinstance(model.lr_encoder, LRConditioner)
    return vdvae, x, condition if sees_y else None, None if sees_y else condition


@torch.no_grad()
def group_information(model: Model, images: Iterable[Image.Image], seed: int = 0) -> dict[str, Any]:
    """Bits per dimension of x that each group carries: KL(q(z_l|z_<l, x) || p(z_l|z_<l)), mean over images.

    For a pipeline of VDVAE-SR, posterior and prior see y, so it is what y does not say. For a pipeline of CVDVAE also
    ``from_y``: KL(q_psi(z_l|z_<l, y) || p(z_l|z_<l)), z drawn from q_psi, what the LR encoder writes into each group;
    that part needs no encoder of x.

    Args:
        model: a VD-VAE, or a `SuperResolutionPipeline`.
        images: HR images; the centre that the networks can work on is used.
        seed: of the draws of z.

    Returns:
        ``strides`` of the groups and, in bits per dimension by group, ``from_x`` (absent without an encoder of x, if
        there is ``from_y``) and ``from_y``.

    Raises ValueError: no images, or a model that has no VD-VAE, or neither an encoder of x nor q_psi.
    """
    found: dict[str, list[list[float]]] = {"from_x": [], "from_y": []}
    inputs = list(images)
    if not inputs:
        raise ValueError("`images` must hold at least one image, got none.")
    for number, image in enumerate(inputs):
        vdvae, x, seen, condition = _prepare(model, image)
        size, noise = (x.shape[-2], x.shape[-1]), CounterNoise([code_seed(seed, number)])
        bit = x.numel() * math.log(2)  # per dimension, in nats
        if vdvae.encoder is not None or condition is None:
            group_kl = vdvae(x, noise=noise, condition=seen).group_kl
            found["from_x"].append([float(kl.sum()) / bit for kl in group_kl])
        if condition is not None:
            groups = vdvae.top_down(1, size, noise, condition=condition).groups
            kls = [group.lr_posterior.kl(group.prior).sum() if group.lr_posterior else 0 for group in groups]
            found["from_y"].append([float(kl) / bit for kl in kls])
    return {
        "analysis": "group information",
        "strides": [vdvae.stride(group) for group in range(vdvae.num_groups)],
        **{name: np.mean(values, axis=0).tolist() for name, values in found.items() if values},
        "num_images": len(inputs),
        "seed": seed,
    }


@torch.no_grad()
def reconstructions(model: Model, image: Image.Image) -> tuple[list[NDArray[np.uint8]], NDArray[np.uint8], list[float]]:
    """E[x|z] with the first k groups at the mean of q(z_l|z_<l, x) and the others at the prior's mean, for k = 0..L.

    Args:
        model: a VD-VAE with its encoder, or a pipeline with such a VD-VAE (VDVAE-SR: all groups see y).
        image: x; the centre that the networks can work on is used.

    Returns:
        8-bit images ``[H, W, 3]`` for each k, x itself, and the PSNRs in dB (RGB).

    Raises ValueError: the model has no VD-VAE, or was made without an encoder.
    """
    vdvae, x, condition, _ = _prepare(model, image)
    size = (x.shape[-2], x.shape[-1])
    activations = vdvae.encode(x)
    means = vdvae.top_down(1, size, _no_noise, activations=activations, condition=condition).groups
    images = []
    for k in range(vdvae.num_groups + 1):
        latents = [group.z for group in means[:k]]
        drawn = vdvae.sample(1, size, _no_noise, condition=condition, latents=latents, temperature=0.0).sample.float()
        drawn = drawn if condition is None else condition.finish(drawn, 0.0)
        images.append(to_uint8((drawn[0].permute(1, 2, 0).cpu() + 1) / 2))
    truth = to_uint8((x[0].permute(1, 2, 0).cpu() + 1) / 2)
    return images, truth, [psnr(found, truth, 255) for found in images]


def _no_noise(group: int, stride: int, shape: tuple[int, int, int, int], device: torch.device) -> Tensor:
    return torch.zeros(shape, device=device)


def level_spread(
    pipeline: SuperResolutionPipeline,
    images: Iterable[Any],
    num_samples: int = 4,
    temperature: float = 1.0,
    seed: int = 0,
    lpips: LPIPS | None = None,
) -> dict[str, Any]:
    """How far samples differ when one level of the hierarchy is open, and when all up to one are.

    A sampler whose coarse levels say nothing draws noise, not alternatives. Samples are the pipeline's own, projected
    and in 8 bits. A few images and samples do for a validation.

    Args:
        pipeline: draws them; its groups of one stride are a level.
        images: LR images y, as the pipeline takes them.
        num_samples: of each image and opening; at least 2.
        temperature: of the open groups; the others have 0.
        seed: of the first sample.
        lpips: measures the distance of samples, too.

    Returns:
        ``levels`` (names, of `level_temperatures`), for each of them ``std`` (grey levels, unbiased, mean over pixels
        and images), ``share`` of the std of all and, with `lpips`, ``lpips`` (mean over the pairs), and the settings.

    Raises ValueError: no images, fewer than two samples, or a pipeline without a VD-VAE.
    """
    vdvae, inputs = vdvae_of(pipeline), list(images)
    if not inputs:
        raise ValueError("`images` must hold at least one image, got none.")
    if num_samples < 2:
        raise ValueError(f"`num_samples` must be at least 2, for a distance, got {num_samples}.")
    opened = level_temperatures([vdvae.stride(group) for group in range(vdvae.num_groups)], temperature)
    std, distance = [], []
    with quiet(pipeline):
        for temperatures in tqdm(opened.values(), desc="levels"):
            stds: list[float] = []
            distances: list[float] = []
            for image in inputs:
                out = pipeline(image, temperature=temperatures, num_samples=num_samples, seed=seed)
                samples = [np.asarray(sample) for sample in out.images]
                stds.append(float(np.std(samples, axis=0, ddof=1, dtype=np.float64).mean()))
                if lpips is not None:
                    seen = [lpips.look(sample) for sample in samples]
                    distances += [sum(lpips.taps(lpips.maps(a, b))) for a, b in combinations(seen, 2)]
            std.append(float(np.mean(stds)))
            distance.append(float(np.mean(distances)) if distances else math.nan)
    return {
        "analysis": "levels",
        "levels": list(opened),
        "std": std,
        "share": [ratio(value, std[-1]) for value in std],
        **({"lpips": distance} if lpips is not None else {}),
        "num_images": len(inputs),
        "num_samples": num_samples,
        "temperature": temperature,
        "seed": seed,
    }


def level_table(analysis: Mapping[str, Any]) -> str:
    """`level_spread` as Markdown."""
    columns = {"std": ("std, grey levels", ".2f"), "share": ("of all", ".2f"), "lpips": ("LPIPS", ".3f")}
    given = [key for key in columns if key in analysis]
    rows = [{"name": name, **{key: analysis[key][i] for key in given}} for i, name in enumerate(analysis["levels"])]
    return "\n".join([*table(rows, columns, f"open at t = {analysis['temperature']:g}"), ""])


def distance_table(analysis: Mapping[str, Any], consistency: Mapping[str, Any] | None = None) -> str:
    """U_k^s by k and s as Markdown, with CE(k) beside it."""
    scales = [str(scale) for scale in analysis["scales"]]
    heads = ["k", "stride of group k - 1", *(f"U_k^{scale}" for scale in scales)]
    rows = [
        [str(k), str(analysis["strides"][k - 1]) if k else "", *(f"{analysis['distance'][s][i]:.2f}" for s in scales)]
        for i, k in enumerate(analysis["groups"])
    ]
    if consistency is not None:
        heads.append(f"CE(k), s = {consistency['scale_factor']}")
        ce = dict(zip(consistency["groups"], consistency["consistency"], strict=True))
        rows = [[*row, f"{ce[k]:.2f}" if k in ce else ""] for k, row in zip(analysis["groups"], rows, strict=True)]
    return "\n".join([*markdown_lines(heads, rows, "---:|" * len(heads)), "", "Grey levels of 0..255.", ""])
