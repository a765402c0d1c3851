"""Sampling as the published code does it, with this package's modules: what every ratio of speed refers to.

The published sampler evaluates the whole network once for each sample, the LR encoder too; in fp32, eagerly, on
contiguous NCHW tensors; and computes all parameters of the prior of every group, also where z is drawn from q_psi.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from hvae_sr import VDVAE, LRConditioner, LREncoder
from hvae_sr.models.distributions import half_bin_shift


def published_style(
    vdvae: VDVAE, network: LREncoder | LRConditioner, y: Tensor, noise: Sequence[Tensor], temperature: float
) -> Tensor:
    """E[x|z] of one sample of p(x|y) for every row of `noise`.

    Args:
        vdvae, network: in fp32, contiguous, without gradients of their parameters.
        y: `[1, 3, h, w]` on [-1, 1].
        noise: the draws of every group, `[n, C, h_l, w_l]` each.
        temperature: of all groups.

    Returns:
        `[n, 3, H, W]` on [-1, 1], not projected.
    """
    scale = vdvae.config.image_size // network.config.image_size
    size = (y.shape[-2] * scale, y.shape[-1] * scale)
    for model in (vdvae, network):
        model.set_compute_dtype(None)
    images = []
    with torch.no_grad(), _contiguous_maps(vdvae, network):
        for row in range(len(noise[0])):
            condition = network.encode(y)
            draws = [draw[row : row + 1].contiguous() for draw in noise]
            out = vdvae.top_down(1, size, draws, condition=condition, temperature=temperature)
            images.append(vdvae.likelihood(out.stream, condition).mean())
    return torch.cat(images) + half_bin_shift(vdvae.config.output_bits)


@contextmanager
def _contiguous_maps(vdvae: VDVAE, network: LREncoder | LRConditioner) -> Iterator[None]:
    """Maps in NCHW order instead of channels last: every map takes the order of the one that it is made from."""
    start = vdvae._start
    vdvae._start = lambda *given: start(*given).contiguous()  # type: ignore[method-assign]
    hook = network.network.bottom_up.in_conv.register_forward_hook(lambda _, __, out: out.contiguous())
    try:
        yield
    finally:
        hook.remove()
        del vdvae._start  # the instance's, that hid the method of the class
