"""DPS: diffusion posterior sampling (Chung et al., "Diffusion Posterior Sampling for General Noisy Inverse Problems",
ICLR 2023): the chain of an unconditional diffusion prior, led to y by the gradient of its residual."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor

from ..noise import NoiseSource
from .common import on_meta
from .diffusion import AncestralScheduler


@dataclass
class DPSStep:
    """One step of DPS: from x_t to x_(t-1).

    Args:
        index: of the step on the chain; 0 is the last.
        timestep: of the training chain.
        sample: x_t, `[B, 3, H, W]`.
        prediction: the network's output, `[B, 6, H, W]`.
        original: the estimate of x_0, clamped to [-1, 1].
        residual: `[B]`, |y - A x_0|.
        gradient: of the residual by x_t.
        unguided: x_(t-1) of the unconditional chain.
        previous: x_(t-1) = unguided - scale gradient; at index 0 the result.
    """

    index: int
    timestep: int
    sample: Tensor
    prediction: Tensor
    original: Tensor
    residual: Tensor
    gradient: Tensor
    unguided: Tensor
    previous: Tensor


def dps_step(
    unet: UNet2DModel,
    scheduler: AncestralScheduler,
    index: int,
    x: Tensor,
    y: Tensor,
    operator: Callable[[Tensor], Tensor],
    noise: Tensor | None,
    guidance_scale: float = 0.3,
) -> DPSStep:
    """x_(t-1) from x_t; `noise` are the step's standard normals, None at index 0, other arguments as in `dps_chain`."""
    t = scheduler.timestep(index)
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        time = torch.full((len(x),), t, device=x.device)
        # Weights that a hook takes away after each layer, or stores in fewer bits, are held for the gradient.
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor.detach(), lambda tensor: tensor):
            prediction = unet(x.to(unet.dtype), time, return_dict=False)[0].to(x.dtype)
        out = scheduler.step(prediction, index, x, noise)
        residual = torch.linalg.vector_norm((y - operator(out.pred_original_sample)).flatten(1), dim=1)
        # Each norm depends on its own image alone: the gradient of their sum is that of each.
        (gradient,) = torch.autograd.grad(residual.sum(), x)
    unguided = out.prev_sample.detach()
    parts = (x.detach(), prediction.detach(), out.pred_original_sample.detach(), residual.detach())
    return DPSStep(index, t, *parts, gradient, unguided, unguided - guidance_scale * gradient)


def dps_chain(
    unet: UNet2DModel,
    scheduler: AncestralScheduler,
    y: Tensor,
    operator: Callable[[Tensor], Tensor],
    size: Sequence[int],
    noise: NoiseSource,
    guidance_scale: float = 0.3,
) -> Iterator[DPSStep]:
    """Samples x given y (DPS, algorithm 1), one step at a time; the last `previous` is the sample, not clamped.

    x_(t-1) = x'_(t-1) - scale d|y - A x_0(x_t)| / dx_t, where x' is the unconditional chain's. The norm itself is
    differentiated, not its square: the paper's step size is scale / 2 over the norm. The gradient runs through the
    clamp of x_0, and is zero where that holds. Each image of a batch has a norm of its own; the published code's is one
    over the whole batch, and the same for a single image.

    Args:
        unet: the unconditional prior.
        scheduler: its noise schedule, with the chain chosen.
        y: `[B, 3, h, w]` on [-1, 1].
        operator: A, differentiable, from `[B, 3, H, W]` to `[B, 3, h, w]`.
        size: (H, W).
        noise: of the batch; group 0 is the first x, group 1 + t the draw of step t of the *training* chain.
        guidance_scale: 0.3 in the published configuration for super-resolution.

    Yields:
        Every step, from the noisiest.
    """
    shape = (y.shape[0], 3, int(size[0]), int(size[1]))
    x = noise(0, 1, shape, y.device).to(y.dtype)
    for index in reversed(range(scheduler.num_steps)):
        draw = None if index == 0 else noise(1 + scheduler.timestep(index), 1, shape, x.device).to(x.dtype)
        step = dps_step(unet, scheduler, index, x, y, operator, draw, guidance_scale)
        yield step
        x = step.previous


def gradient_bytes(unet: UNet2DModel, size: tuple[int, int]) -> int:
    """Bytes that autograd keeps for the gradient of one image of `size` = (H, W): about what a step takes.

    Counted on a copy without numbers, layer by layer; without the scores of attention, which the fused kernels of CPUs
    and CUDA do not keep.
    """
    model = on_meta(unet).eval().requires_grad_(False)
    if unet.is_gradient_checkpointing:
        model.enable_gradient_checkpointing()
    kept: dict[int, Tensor] = {}
    positions: list[int] = []  # of the attention that is being counted

    def keep(tensor: Tensor) -> Tensor:
        if positions and tensor.shape[-2:] == (positions[-1], positions[-1]):
            return tensor
        kept[tensor.untyped_storage()._cdata] = tensor  # a map that several layers read is kept once
        return tensor

    if unet.device.type in ("cpu", "cuda"):
        for layer in model.modules():
            if isinstance(layer, Attention):
                layer.register_forward_pre_hook(lambda _, given: positions.append(math.prod(given[0].shape[2:])))
                layer.register_forward_hook(lambda _, __, ___: positions.clear())
    x = torch.zeros(1, model.config.in_channels, *size, device="meta", dtype=unet.dtype, requires_grad=True)
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(x, torch.zeros(1, dtype=torch.long, device="meta"))
    own = {value.untyped_storage()._cdata for value in model.state_dict().values()}
    return sum(tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in own)
