"""Large batches of samples in parts of a few rows, which a processor's caches and allocator take better."""

import math
from typing import TYPE_CHECKING, Any

import torch

from ..noise import CounterNoise, WholeNoise
from .fast import LARGE, stream_dtype
from .loading import per_group
from .lr_encoder import Condition
from .outputs import VDVAESample
from .top_down import check_latent

if TYPE_CHECKING:
    from .vdvae import VDVAE


def rows_at_once(vdvae: "VDVAE", batch_size: int, size: tuple[int, int]) -> int:
    """How many images `sample` computes at a time: on a CPU so few that a map of all of them is not `LARGE`.

    Args:
        batch_size: of the call.
        size: (H, W).
    """
    weight = vdvae.out_conv.weight
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or weight.device.type != "cpu":
        return batch_size
    blocks: Any = vdvae.blocks
    values = [block.width * math.prod(vdvae.latent_shape(i, 1, size)[2:]) for i, block in enumerate(blocks)]
    likelihood = 10 * vdvae.config.num_mixtures * math.prod(size) * 4
    largest = max(likelihood, max(values) * stream_dtype(weight).itemsize)  # bytes
    return min(batch_size, max(1, LARGE // largest))


def sample_in_parts(
    vdvae: "VDVAE",
    batch_size: int,
    size: tuple[int, int],
    rows: int,
    noise: CounterNoise | WholeNoise,
    condition: Condition | None,
    options: dict[str, Any],
) -> VDVAESample:
    """`VDVAE.sample`, `rows` images at a time; the arguments are its own, `options` those that it takes by name.

    Raises:
        ValueError: a condition or latents that do not fit the whole batch.
    """
    if condition is not None:
        condition.check_batch_size(batch_size)
    shapes = [vdvae.latent_shape(group, batch_size, size) for group in range(vdvae.num_groups)]
    latents = [
        z if z is None else check_latent(z, group, shape)
        for group, (z, shape) in enumerate(zip(options.pop("latents", None) or (), shapes, strict=False))
    ]
    parts = []
    for start in range(0, batch_size, rows):
        stop = min(start + rows, batch_size)
        own = condition
        if condition is not None and condition.batch_size > 1:
            own = condition.select(torch.arange(start, stop, device=vdvae.device))
        given = [z if z is None or len(z) == 1 else z[start:stop] for z in latents]
        parts.append(vdvae.sample(stop - start, size, noise.rows(start, stop), own, latents=given, **options))
    return VDVAESample(
        sample=torch.cat([part.sample for part in parts]),
        latents=per_group(torch.cat(group) for group in zip(*(part.latents for part in parts), strict=True)),
    )
