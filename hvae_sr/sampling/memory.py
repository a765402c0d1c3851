"""How much is computed at once, so that a call stays within a bound of memory."""

import contextlib
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch

from ..models import VDVAE

PIXELS_PER_CHUNK = 2**20
"""HR pixels that one network evaluation works on at the most: about 1 GiB in fp32 for the bundled models."""

MIN_PIXELS = 256**2
"""HR pixels of the smallest evaluation that a bound may lead to, margins included."""

ASIDE = 2**26
"""Bytes of what does not grow with the image: strips of rows, the matrices of H, further samples of a small image that
are drawn with the first."""

KEPT_FEATURES = 2**29
"""Bytes of features of y at the most that are kept for further samples."""

_UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def parse_bytes(text: str | int) -> int:
    """Bytes from a number of them, or from "800MB", "2.5 GiB" and the like (powers of 1024 either way).

    Raises:
        ValueError: neither, or not positive.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\s*", str(text), re.IGNORECASE)
    number = float(match[1]) * 1024 ** _UNITS[match[2].upper()] if match else 0.0
    value = int(number) if math.isfinite(number) else 0
    if value <= 0 or isinstance(text, bool):
        raise ValueError(f"`max_memory` must be a number of bytes such as 2000000000, '800MB' or '2GB', got {text!r}")
    return value


def format_bytes(value: float) -> str:
    """As "1.5 GB" (of 2^30 bytes)."""
    if value < 2**20:
        return f"{value:.0f} bytes"
    return f"{value / 2**30:.1f} GB" if value >= 2**29 else f"{value / 2**20:.0f} MB"


def used_and_available(device: torch.device) -> tuple[int, int] | None:
    """Bytes that this process holds, and that it could still get; None for devices that do not tell."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.memory_allocated(device), free + reserved
    if device.type != "cpu":
        return None
    available = psutil.virtual_memory().available
    with contextlib.suppress(OSError, ValueError):  # a container's limit ("max": none), which psutil does not see
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        with contextlib.suppress(OSError):  # what is kept of files that were read, often the most, can be dropped
            cached = re.search(r"^inactive_file (\d+)$", (group / "memory.stat").read_text(), re.MULTILINE)
            used -= int(cached[1]) if cached else 0
        available = min(available, limit - used)
    return psutil.Process().memory_info().rss, max(available, 0)


def bytes_per_pixel(vdvae: VDVAE) -> int:
    """Estimate of what one network evaluation takes for each HR pixel.

    Six times the finest stream and the likelihood's parameters, which is what the bundled models were measured to take
    (`python benchmarks/memory.py`), and somewhat more than that of others.
    """
    config = vdvae.config
    last: Any = vdvae.blocks[-1]
    per_pixel = last.width / config.patch_size**2 + 10 * config.num_mixtures
    return round(6 * per_pixel * 4)


class Bound(NamedTuple):
    """What a process (on a GPU: the device) may take: bytes, and what they are called in errors."""

    bytes: int
    name: str
    used: int


def memory_bound(max_memory: int | None, pixels: int, device: torch.device) -> Bound | None:
    """`max_memory` in bytes, or else what is used and half of what is available beside it, for so many HR pixels.

    None where there is no bound: of a small image without `max_memory`, or of a device that does not tell.
    """
    memory = None if max_memory is None and pixels <= PIXELS_PER_CHUNK else used_and_available(device)
    if memory is None:
        return None
    used, available = memory
    if max_memory is not None:
        return Bound(max_memory, "`max_memory`", used)
    return Bound(used + available // 2, "half of the memory that is available, added to what is used,", used)


class Budget(NamedTuple):
    """What the samples of an image may take beside their arrays.

    Args:
        pixels: HR pixels of one network evaluation.
        features: bytes of features of y that are kept from one sample to the next.
    """

    pixels: int
    features: int


def budget(
    vdvae: VDVAE,
    size: tuple[int, int],
    num_samples: int,
    output_type: str,
    keep_images: bool,
    max_memory: int | None,
    device: torch.device,
    self_ensemble: bool = False,
    batch_size: int | None = None,
    keep_latents: bool = False,
    min_pixels: int = 0,
    held: int = 0,
) -> Budget:
    """What network evaluations, and features that are kept for further samples, may take.

    Args:
        vdvae: the model.
        size: (H, W) of the HR image.
        num_samples, output_type: of its samples.
        keep_images: whether they are all kept.
        max_memory: bound of the process (CPU) or of the device's memory, bytes; None: half of what is available, for
            images that are large enough, or of so many samples, that it matters.
        device: where the networks run.
        self_ensemble: whether samples are turned back, which copies them.
        batch_size: samples that are drawn at once, where that is given; else, and on a CPU, they are drawn one by one.
        keep_latents: whether the latents of all samples are kept.
        min_pixels: of the smallest evaluation, where the networks need more than `MIN_PIXELS`.
        held: bytes that will be in use by then, beside those that are: `held_by` of the photographs before.

    Raises:
        ValueError: the bound leaves no room beside the arrays of the output; the message says how much would do.
    """
    at_once = min(batch_size or 1, num_samples) if device.type != "cpu" else 1
    # Of no use to a single evaluation; and with a self-ensemble every sample sees y in another orientation.
    features = KEPT_FEATURES if num_samples > at_once and not self_ensemble else 0
    kept = num_samples if keep_images else 1
    found = memory_bound(max_memory, math.prod(size) * kept, device)
    if found is None:
        return Budget(PIXELS_PER_CHUNK, features)
    bound, name, used = found
    used += held
    # Bytes a pixel: the samples that are drawn, and turned back; mean and squares of all.
    arrays = 12 * at_once * (2 if self_ensemble else 1) + (24 if num_samples > 1 else 0)
    at_the_end = 0
    if output_type == "pil":
        arrays += 4 * kept + 5 + (4 if num_samples > 1 else 0)  # 8-bit images, one more while it gets its alpha, mean
    else:
        arrays += 12 * kept
        # All samples, joined to one array, mean and deviation; or one, its mean and squares, as levels of 16 bits and
        # as the floats that these stand for.
        at_the_end = max(24 * kept + 24, 12 + 24 + 6 + 18)
    taken = math.prod(size) * arrays + ASIDE
    if keep_latents:
        taken += num_samples * _latent_bytes(vdvae, size)
    cost = bytes_per_pixel(vdvae)
    last = math.prod(size) * at_the_end + ASIDE + (0 if output_type == "pil" else held)  # joined with those before
    pixels = min((bound - used - taken) // cost, PIXELS_PER_CHUNK)
    needed = used + max(taken + max(min_pixels, MIN_PIXELS) * cost, last)
    if needed > bound:
        raise ValueError(
            f"{name} = {format_bytes(bound)} is too little for {num_samples} samples of {size[1]}x{size[0]}, which "
            f"take about {format_bytes(needed)}: fewer samples, a smaller image or a larger `max_memory`"
        )
    return Budget(pixels, min(bound - used - max(taken + pixels * cost, last), features))


def held_by(
    vdvae: VDVAE, size: tuple[int, int], num_samples: int, output_type: str, keep_images: bool, keep_latents: bool
) -> int:
    """Bytes of what is returned of a photograph: samples, mean, deviation and latents. Arguments as of `budget`."""
    images = 0 if output_type == "latent" else (num_samples if keep_images else 0) + 1
    pixels = math.prod(size) * (images * (4 if output_type == "pil" else 12) + (12 if images else 0))
    return pixels + (num_samples * _latent_bytes(vdvae, size) if keep_latents else 0)


def _latent_bytes(vdvae: VDVAE, size: tuple[int, int]) -> int:
    """Of one sample."""
    return 4 * sum(math.prod(vdvae.latent_shape(group, 1, size)) for group in range(vdvae.num_groups))
