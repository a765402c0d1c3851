"""How a pipeline evaluates its networks: the dtype that they convolve in, and compiled graphs."""

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from hvae_sr.hooks import PerGroup
from hvae_sr.loading import given_dtype
from hvae_sr.models import VDVAE, Condition, LRConditioner, LREncoder, VDVAESample
from hvae_sr.models.distributions import group_temperatures
from hvae_sr.noise import NoiseSource, as_noise_source

from .common import PhotoPipeline

logger = logging.getLogger(__name__)

_STATIC_OUTPUTS = ("reduce-overhead", "max-autotune")
"""Modes of `torch.compile` with CUDA graphs, whose outputs the next call overwrites."""


class CompiledNetworks:
    """`encode` and `sample` of the networks through `torch.compile`.

    A graph is made for each size of y and each number of samples, at the first call of its kind: seconds to minutes.
    Noise is drawn outside and scaled by the temperatures, tau (mu + sigma eps) being drawn as mu + sigma (tau eps), so
    that seeds and temperatures make no new graphs.

    Args:
        vdvae: the prior.
        lr_encoder: the LR network.
        options: of `torch.compile`, such as `{"mode": "reduce-overhead"}`.

    Raises:
        ValueError: options that `torch.compile` does not have, or that ask for CUDA graphs otherwise than by `mode`.
    """

    def __init__(self, vdvae: VDVAE, lr_encoder: LREncoder | LRConditioner, options: dict[str, Any]) -> None:
        self.vdvae, self.lr_encoder, self.options = vdvae, lr_encoder, options
        if options.get("backend") == "cudagraphs" or "triton.cudagraphs" in (options.get("options") or {}):
            raise ValueError(f"CUDA graphs are asked for by `mode` = 'reduce-overhead', got {options}")
        self._static = options.get("mode") in _STATIC_OUTPUTS
        # The features of y are kept for all samples: they must not lie in memory that a CUDA graph writes again.
        plain = {**options, "mode": None} if self._static else options
        try:
            self.encode = torch.compile(lr_encoder.encode, **plain)
            self._draw = torch.compile(self._plain_draw, **options)
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"options of torch.compile: {options}: {' '.join(str(error).split())}") from error

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy, or one from a pickle, makes graphs of its own: functions that are copied stay those of the first."""
        return type(self), (self.vdvae, self.lr_encoder, self.options)

    def sample(
        self,
        batch_size: int,
        size: tuple[int, int],
        noise: NoiseSource | Sequence[Tensor],
        condition: Condition,
        latents: Sequence[Tensor | None] = (),
        temperature: float | Sequence[float] = 1.0,
        lr_posterior_temperature: float | Sequence[float] | None = None,
        num_conditioned_groups: int | None = None,
        sample_pixels: bool = False,
        return_latents: bool = True,
    ) -> VDVAESample:
        """`VDVAE.sample`, with its arguments, by the graph; by the networks themselves where pixels are drawn too.

        Raises:
            RuntimeError: the graph gives values that are not finite.
        """
        groups = self.vdvae.num_groups
        if sample_pixels:
            return self.vdvae.sample(
                batch_size, size, noise, condition, True, None, return_latents, latents, temperature,
                lr_posterior_temperature, num_conditioned_groups,
            )  # fmt: skip
        scales = group_temperatures(temperature, groups)
        lr_temperature = temperature if lr_posterior_temperature is None else lr_posterior_temperature
        lr_scales = group_temperatures(lr_temperature, groups, "lr_posterior_temperature")
        conditioned = groups if num_conditioned_groups is None else num_conditioned_groups
        source = as_noise_source(noise)
        draws: list[Tensor | None] = []
        for group in range(groups):
            if group < len(latents) and latents[group] is not None:
                draws.append(None)
                continue
            shape = self.vdvae.latent_shape(group, batch_size, size)
            from_posterior = group < conditioned and condition.network.has_posterior(group)
            scale = (lr_scales if from_posterior else scales)[group]
            draws.append(source(group, self.vdvae.stride(group), shape, self.vdvae.device) * scale)
        if self._static:
            torch.compiler.cudagraph_mark_step_begin()
        sample, *drawn = self._draw(
            batch_size, size, draws, condition, list(latents), num_conditioned_groups, return_latents
        )
        if self._static:
            sample, drawn = sample.clone(), [z.clone() for z in drawn]
        if not torch.isfinite(sample).all():  # seen on a CPU, where the networks themselves gave finite samples
            raise RuntimeError(
                f"the graphs of torch.compile with {self.options or 'its defaults'} gave values that are not finite; "
                "`disable_compilation()` evaluates the networks themselves"
            )
        return VDVAESample(sample=sample, latents=PerGroup(drawn))

    def _plain_draw(
        self,
        batch_size: int,
        size: tuple[int, int],
        noise: list[Tensor | None],
        condition: Condition,
        latents: list[Tensor | None],
        num_conditioned_groups: int | None,
        return_latents: bool,
    ) -> tuple[Tensor, ...]:
        options: dict[str, Any] = {"noise": noise, "latents": latents, "return_latents": return_latents}
        out = self.vdvae.sample(
            batch_size, size, condition=condition, num_conditioned_groups=num_conditioned_groups, **options
        )
        return (out.sample, *out.latents)


def fast_dtype(device: torch.device) -> torch.dtype | None:
    """The dtype in which the device convolves much faster than in float32, or None if there is none to rely on.

    bfloat16 on processors with AMX or AVX512-BF16 and on GPUs that have it in hardware. Never float16, whose range
    the stream of a deep decoder may leave.
    """
    if device.type == "cpu":
        names = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
        native = any(getattr(torch.cpu, name, bool)() for name in names) and torch.backends.mkldnn.is_available()
    elif device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        native = device.type == "xpu"
    return torch.bfloat16 if native else None


class Computing(PhotoPipeline):
    """The part of `SuperResolutionPipeline` that decides how its networks are evaluated; what they compute stays.

    As long as nothing is enabled, they compute in the dtype of their weights.
    """

    vdvae: VDVAE
    lr_encoder: LREncoder | LRConditioner
    _inference_dtype: torch.dtype | str | None = None
    _compiled_networks: CompiledNetworks | None = None

    def enable_fast_inference(self, dtype: torch.dtype | str = "auto") -> None:
        """Residual blocks convolve in `dtype` where the weights are float32; all else stays in float32.

        Streams, heads, Gaussians, likelihood and projection stay in float32, the weights as they are, and so does what
        `save_pretrained` writes. Pipelines whose configuration says `fast_inference` begin like this. Samples of the
        bundled models differ from those of float32 by less than a grey level on average.

        Args:
            dtype: "auto" is bfloat16 on processors with AMX or AVX512-BF16 and on GPUs that have it, and float32
                elsewhere; or `torch.bfloat16`, `torch.float16` or `torch.float32`.

        Raises:
            ValueError: another `dtype`.
        """
        if dtype not in ("auto", torch.bfloat16, torch.float16, torch.float32):
            raise ValueError(f"`dtype` must be 'auto', torch.bfloat16, torch.float16 or torch.float32; got {dtype!r}")
        self._inference_dtype = dtype

    def disable_fast_inference(self) -> None:
        """Computes in the dtype of the weights."""
        self._inference_dtype = None

    def enable_compilation(self, **options: Any) -> None:
        """Evaluates the networks by graphs of `torch.compile`, one for each size of image and number of samples.

        The first call of its kind takes minutes. On a GPU, `mode="reduce-overhead"` launches a sample's hundreds of
        small kernels at once (CUDA graphs).

        Args:
            **options: of `torch.compile`, such as `mode` or `backend`.

        Raises:
            ValueError: options that `torch.compile` does not have.
        """
        self._compiled_networks = CompiledNetworks(self.vdvae, self.lr_encoder, options)

    def disable_compilation(self) -> None:
        """Evaluates the networks themselves."""
        self._compiled_networks = None

    @property
    def compiled_networks(self) -> CompiledNetworks | None:
        """The compiled networks, made anew where the pipeline has got other networks; None if not enabled."""
        compiled = self._compiled_networks
        if compiled is not None and (compiled.vdvae is not self.vdvae or compiled.lr_encoder is not self.lr_encoder):
            self.enable_compilation(**compiled.options)
        return self._compiled_networks

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """`DiffusionPipeline.to`; a dtype among the arguments is also what is computed in."""
        if any(isinstance(value, torch.dtype) for value in (*args, *kwargs.values())):
            self.disable_fast_inference()
        return super().to(*args, **kwargs)

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> Any:
        """`DiffusionPipeline.from_pipe`; the new pipeline computes in what `pipeline` does, unless a dtype is given."""
        dtype = given_dtype(kwargs)
        new = super().from_pipe(pipeline, **kwargs)  # with a dtype, by `to`
        if dtype is None:
            own = "auto" if new.config.fast_inference else None
            inherits = isinstance(pipeline, Computing) and "fast_inference" not in kwargs
            new._inference_dtype = pipeline._inference_dtype if inherits else own
        new._forget_calibration({name: value for name, value in kwargs.items() if not _is_of(pipeline, name, value)})
        return new

    def _forget_calibration(self, given: Mapping[str, Any]) -> None:
        """Of a pipeline made from another one or of other parts: a calibration is of its networks and of its H alone.

        Args:
            given: what was put in the place of the other's components and settings.
        """
        named = sorted(given.keys() & {"vdvae", "lr_encoder", "scale_factor", "downsampling_kernel", "consistency"})
        if named and "calibration" not in given and self.config.calibration is not None:
            logger.warning("the calibration is left out: it was made with another `%s`", "`, `".join(named))
            self.register_to_config(calibration=None)

    @property
    def inference_dtype(self) -> torch.dtype:
        """The dtype that residual blocks convolve in."""
        own, dtype = self.vdvae.dtype, self._inference_dtype
        if dtype == "auto":
            dtype = fast_dtype(self._execution_device)
        return dtype if isinstance(dtype, torch.dtype) and own == torch.float32 else own

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """The networks' `compute_dtype` for evaluations of this pipeline; theirs comes back after the last of them.

        Evaluations of several threads may overlap; those of pipelines that share networks with another dtype wait.
        """
        networks = (self.vdvae, self.lr_encoder)
        dtype = None if self.inference_dtype == self.vdvae.dtype else self.inference_dtype
        counted: list[tuple[Any, list[Any]]] = []
        try:
            with _free:
                _free.wait_for(lambda: all(_running.get(id(each), (0, 0, dtype))[2] == dtype for each in networks))
                for network in networks:
                    entry = _running.get(id(network)) or [0, network.compute_dtype, dtype]
                    counted.append((network, entry))  # first, as Ctrl-C may come between any two lines
                    entry[0] += 1
                    _running[id(network)] = entry
                    if network.compute_dtype != dtype:
                        network.set_compute_dtype(dtype)
            yield
        finally:
            with _free:
                for network, entry in counted:
                    entry[0] -= 1
                    if entry[0] <= 0:
                        _running.pop(id(network), None)
                        network.set_compute_dtype(entry[1])
                _free.notify_all()


_free = threading.Condition()
_running: dict[int, list[Any]] = {}
"""Of each network that is evaluated: by how many calls, the `compute_dtype` to put back, and that of the calls."""


def _is_of(pipeline: DiffusionPipeline, name: str, value: Any) -> bool:
    """Whether a pipeline has this very component, or this setting."""
    if name in pipeline.components:
        return pipeline.components[name] is value
    return name in pipeline.config and pipeline.config[name] == value
