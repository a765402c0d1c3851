"""The compared systems as pipelines: called as `SuperResolutionPipeline` is, with its output and its seeds."""

import copy
import json
import math
import os
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hvae_sr.baselines import (
    EDSR,
    SPAN,
    AncestralScheduler,
    GuidedDiffusionUNet,
    HCFlow,
    RRDBNet,
    SR3UNet,
    SRVGGNetCompact,
)
from hvae_sr.baselines.common import RegressionNetwork
from hvae_sr.baselines.dps import dps_chain, gradient_bytes
from hvae_sr.baselines.sr3 import activation_bytes, sr3_chain
from hvae_sr.checkpoints.names import resolve
from hvae_sr.checks import check_count, checked_number
from hvae_sr.hooks import uncompiled
from hvae_sr.images import to_pil
from hvae_sr.noise import CounterNoise
from hvae_sr.sampling.sizes import SizeRequirements, pad_to
from hvae_sr.sampling.windows import Window

from .compared import Call, ComparedPipeline
from .inputs import check_network
from .super_resolution import SuperResolutionPipeline


class RegressionPipeline(ComparedPipeline):
    """One image, no samples: EDSR, RRDBNet (ESRGAN, Real-ESRGAN), SRVGGNetCompact, SPAN, or Swin2SR of transformers.

    All samples of a call are the same image. Images of more than a million HR pixels are worked on in windows, whose
    results differ from the whole's as far as the networks see beyond `window_margin`.

    Args:
        network: the regression.
        downsampling_kernel: H, a kernel of `Downsampling`, for the projection and LR-PSNR.
        enforce_consistency: whether images are projected unless the call says it; the published systems do not.
        default_temperature: always 1; a regression has none.
        window_margin: pixels of y around a window that the network sees and that are not kept.
        scale_factor: the network's, which None stands for.
    """

    model_cpu_offload_seq = "network"
    is_deterministic = True
    has_windows = True
    pads_by_reflection = True  # as Real-ESRGAN's code, and that of Swin2SR
    component_classes = {
        "network": (
            "hvae_sr.EDSR",
            "hvae_sr.RRDBNet",
            "hvae_sr.SRVGGNetCompact",
            "hvae_sr.SPAN",
            "transformers.Swin2SRForImageSuperResolution",
        )
    }

    def __init__(
        self,
        network: EDSR | RRDBNet | SRVGGNetCompact | SPAN | Any,
        downsampling_kernel: str = "bicubic",
        enforce_consistency: bool = False,
        default_temperature: float = 1.0,
        window_margin: int = 32,
        scale_factor: int | None = None,
    ) -> None:
        super().__init__()
        config = network.config
        own = _own_factor(scale_factor, config.upscale if hasattr(config, "upscale") else config.scale_factor)
        check_count("window_margin", window_margin, 0)
        self.register_modules(network=network)
        self._configure(own, downsampling_kernel, default_temperature, enforce_consistency, window_margin=window_margin)

    @property
    def sizes(self) -> SizeRequirements:
        """RRDBNet of a factor below 4 unshuffles y first; Swin2SR works in windows of its own."""
        multiple = getattr(self.network, "unshuffle", getattr(self.network.config, "window_size", 1))
        return SizeRequirements(self.config.scale_factor, multiple)

    def _sample(self, y: Tensor, seeds: list[int], call: Call, advance: Callable[[int], None]) -> Tensor:
        whole = self._in_windows(y, call, 1, lambda part, window: self._evaluate(part))
        advance(1)
        return whole

    def _evaluate(self, y: Tensor) -> Tensor:
        """`[1, 3, h, w]` in [0, 1] -> `[1, 3, s h, s w]` on [-1, 1]."""
        network = uncompiled(self.network)
        high = network.config.value_range if isinstance(network, EDSR) else 1.0
        given = (y * high).to(self.network.dtype)
        if isinstance(network, RegressionNetwork):
            x = self.network(given, return_dict=False)[0]
        else:
            x = self.network(given).reconstruction
        return x.float() * (2 / high) - 1


class HCFlowPipeline(ComparedPipeline):
    """Samples of HCFlow: the flow backwards, from Gaussian latents of every level.

    Images of more than a million HR pixels are worked on in windows, with the whole's noise; results differ from the
    whole's as far as the flow sees beyond `window_margin`.

    Args:
        flow: the network.
        downsampling_kernel: H.
        default_temperature: of the latents; 0.9 (x4) and 0.8 (faces) in the published results.
        enforce_consistency: whether samples are projected unless the call says it; the published system does not.
        scale_factor: the flow's, which None stands for.
        window_margin: pixels of y around a window that the flow sees and that are not kept.
    """

    model_cpu_offload_seq = "flow"
    has_temperature = True
    has_windows = True
    component_classes = {"flow": ("hvae_sr.HCFlow",)}

    def __init__(
        self,
        flow: HCFlow,
        downsampling_kernel: str = "matlab-bicubic",
        default_temperature: float = 0.9,
        enforce_consistency: bool = False,
        scale_factor: int | None = None,
        window_margin: int = 32,
    ) -> None:
        super().__init__()
        check_count("window_margin", window_margin, 0)
        check_network("flow", flow, HCFlow)
        self.register_modules(flow=flow)
        own = _own_factor(scale_factor, flow.scale_factor)
        self._configure(own, downsampling_kernel, default_temperature, enforce_consistency, window_margin=window_margin)

    def _sample(self, y: Tensor, seeds: list[int], call: Call, advance: Callable[[int], None]) -> Tensor:
        scale = self.config.scale_factor

        def evaluate(part: Tensor, window: Window) -> Tensor:
            origin = window.outer[0] * scale, window.outer[1] * scale
            given = part.to(self.flow.dtype).expand(len(seeds), -1, -1, -1)
            return self.flow.sample(given, CounterNoise(seeds, origin), call.temperature).sample.float() * 2 - 1

        x = self._in_windows(y, call, len(seeds), evaluate)
        advance(len(seeds))
        return x


class _ChainPipeline(ComparedPipeline):
    """A diffusion model's chain: how many steps."""

    model_cpu_offload_seq = "unet"
    unet: Any
    scheduler: AncestralScheduler
    levels: ClassVar[str]
    """What the U-Net's configuration calls its levels, each half as fine as the one before."""

    def _own_arguments(self, named: dict[str, Any]) -> dict[str, Any]:
        steps = named.pop("num_inference_steps", None)
        steps = self.config.num_inference_steps if steps is None else steps
        scheduler = copy.deepcopy(self.scheduler)
        scheduler.set_timesteps(steps, "num_inference_steps")
        return {"scheduler": scheduler}

    def _evaluations(self, call: Call) -> int:
        return call.own["scheduler"].num_steps

    @property
    def sizes(self) -> SizeRequirements:
        """y is padded until x is large enough for every level of the U-Net."""
        multiple, scale = 2 ** (len(self.unet.config[self.levels]) - 1), self.config.scale_factor
        return SizeRequirements(scale, multiple // math.gcd(multiple, scale))


def _check_scheduler(scheduler: AncestralScheduler, *variance_types: str) -> None:
    """Raises a ValueError unless the scheduler is of the class, with a variance that the network's output has."""
    check_network("scheduler", scheduler, AncestralScheduler)
    found = scheduler.config.variance_type
    if found not in variance_types:
        allowed = " or ".join(map(repr, variance_types))
        raise ValueError(f"`scheduler` must have the variance_type {allowed} for this network, has {found!r}")


class SR3Pipeline(_ChainPipeline):
    """Samples of SR3: a chain of a diffusion model of p(x|y), which sees y enlarged.

    y is rounded to 8 bits and enlarged by PIL's bicubic, as the published data preparation does. Calls take
    `num_inference_steps`: a number of steps, evenly spread over those of training, or a description that
    `space_timesteps` takes; None means the configuration's.

    Args:
        unet: the network.
        scheduler: its noise schedule.
        scale_factor: sides of x over sides of y.
        downsampling_kernel: H.
        enforce_consistency: whether samples are projected unless the call says it; the CVDVAE paper projects them.
        default_temperature: always 1; a chain has none.
        num_inference_steps: of a sample; None for all of training, as published.
    """

    component_classes = {"unet": ("hvae_sr.SR3UNet",), "scheduler": ("hvae_sr.AncestralScheduler",)}
    levels = "width_multiples"

    def __init__(
        self,
        unet: SR3UNet,
        scheduler: AncestralScheduler,
        scale_factor: int = 8,
        downsampling_kernel: str = "bicubic",
        enforce_consistency: bool = True,
        default_temperature: float = 1.0,
        num_inference_steps: int | str | None = None,
    ) -> None:
        super().__init__()
        check_network("unet", unet, SR3UNet)
        _check_scheduler(scheduler, "fixed_small")
        self.register_modules(unet=unet, scheduler=scheduler)
        own = {"num_inference_steps": num_inference_steps}
        self._configure(scale_factor, downsampling_kernel, default_temperature, enforce_consistency, **own)

    def _sample(self, y: Tensor, seeds: list[int], call: Call, advance: Callable[[int], None]) -> Tensor:
        condition = pad_to(enlarge(y, self.config.scale_factor)[None], self.sizes.output((y.shape[-2], y.shape[-1])))
        condition = condition.expand(len(seeds), *condition.shape[1:])
        size = (condition.shape[2], condition.shape[3])
        what = "attention and normalisation see the whole image, so that it is not cut into windows: take a smaller one"
        needed = activation_bytes(self.unet, size)
        self._check_memory(len(seeds), needed, what, y.device, call.options.max_memory)
        x = condition
        with self._fixed(self.unet):
            for step in sr3_chain(self.unet, call.own["scheduler"], condition, CounterNoise(seeds)):
                x = step.previous
                advance(len(seeds))
        return x


class DPSPipeline(_ChainPipeline):
    """Samples of DPS: an unconditional diffusion model, led to y by the gradient of |y - A x_0|.

    Any factor and any kernel of `Downsampling` will do: the prior knows none. Calls take `num_inference_steps`, as
    `SR3Pipeline`, and `guidance_scale`. A gradient is computed at every step: it takes the memory of training, and
    `unet.enable_gradient_checkpointing()` trades some for time.

    Args:
        unet: the prior.
        scheduler: its noise schedule.
        scale_factor: sides of x over sides of y.
        downsampling_kernel: A, and H of the projection; "matlab-bicubic" is the published operator.
        guidance_scale: 0.3 in the published configuration for super-resolution.
        enforce_consistency: whether samples are projected unless the call says it; the published system does not.
        default_temperature: always 1; a chain has none.
        num_inference_steps: of a sample; None for all of training, as published.
    """

    component_classes = {"unet": ("hvae_sr.GuidedDiffusionUNet",), "scheduler": ("hvae_sr.AncestralScheduler",)}
    levels = "block_out_channels"

    def __init__(
        self,
        unet: GuidedDiffusionUNet,
        scheduler: AncestralScheduler,
        scale_factor: int = 4,
        downsampling_kernel: str = "matlab-bicubic",
        guidance_scale: float = 0.3,
        enforce_consistency: bool = False,
        default_temperature: float = 1.0,
        num_inference_steps: int | str | None = None,
    ) -> None:
        super().__init__()
        check_network("unet", unet, GuidedDiffusionUNet)
        learned = unet.config.out_channels == 6
        _check_scheduler(scheduler, *(("learned_range",) if learned else ("fixed_large", "fixed_small")))
        self.register_modules(unet=unet, scheduler=scheduler)
        self._bytes: dict[tuple[Any, ...], int] = {}
        own = {"guidance_scale": guidance_scale, "num_inference_steps": num_inference_steps}
        self._configure(scale_factor, downsampling_kernel, default_temperature, enforce_consistency, **own)

    def _own_arguments(self, named: dict[str, Any]) -> dict[str, Any]:
        scale = named.pop("guidance_scale", None)
        scale = self.config.guidance_scale if scale is None else scale
        return {**super()._own_arguments(named), "guidance_scale": checked_number("guidance_scale", scale)}

    def _samples_at_once(self, y: Tensor) -> int:
        return 1

    def _sample(self, y: Tensor, seeds: list[int], call: Call, advance: Callable[[int], None]) -> Tensor:
        size = (y.shape[-2], y.shape[-1])
        given = pad_to(y[None] * 2 - 1, self.sizes.padded(size)).expand(len(seeds), -1, -1, -1)
        # The gradient is asked for by x alone; tensors of inference mode, which a caller may be in, would have none.
        with self._fixed(self.unet), torch.inference_mode(False), torch.no_grad():
            x = given = given.clone()
            own, output = call.own, self.sizes.output(size)
            key = (output, self.unet.dtype, self.unet.is_gradient_checkpointing)
            if key not in self._bytes:
                self._bytes[key] = gradient_bytes(self.unet, output)
            what = (
                f"the gradient of {output[1]}x{output[0]} is of the whole image: a smaller `batch_size` or image, or "
                "`pipe.unet.enable_gradient_checkpointing()`, takes less"
            )
            self._check_memory(len(seeds), self._bytes[key], what, y.device, call.options.max_memory)
            for step in dps_chain(
                self.unet, own["scheduler"], given, self.operator, output, CounterNoise(seeds), own["guidance_scale"]
            ):
                x = step.previous
                advance(len(seeds))
        return x


PIPELINES = {
    cls.__name__: cls for cls in (SuperResolutionPipeline, RegressionPipeline, HCFlowPipeline, SR3Pipeline, DPSPipeline)
}
"""Every pipeline of this package by name."""


def pipeline_class(model: str | os.PathLike[str]) -> Any:
    """The class of the pipeline in a folder, or of a bundled name; `SuperResolutionPipeline` for the Hub's.

    Raises:
        ValueError: a folder whose index names no pipeline of this package.
    """
    index = os.path.join(resolve(model), "model_index.json")
    if not os.path.isfile(index):
        return SuperResolutionPipeline
    try:
        with open(index, encoding="utf-8") as file:
            name = json.load(file)["_class_name"]
        return PIPELINES[name]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{index} must name one of {', '.join(PIPELINES)}: {type(error).__name__}: {error}") from error


def _own_factor(given: int | None, own: int) -> int:
    if given not in (None, own):
        raise ValueError(f"`scale_factor` must be the network's {own}, got {given!r}")
    return own


def enlarge(y: Tensor, scale_factor: int) -> Tensor:
    """y `[3, h, w]` in [0, 1], rounded to 8 bits and enlarged by PIL's bicubic, on [-1, 1]."""
    low = to_pil(y)
    high = low.resize((low.width * scale_factor, low.height * scale_factor), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(high)).permute(2, 0, 1).to(y) / 127.5 - 1
