"""How a pipeline evaluates its networks: the dtype that they compute in, and compiled graphs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from hvae_sr.models import VDVAE, LRConditioner, LREncoder
from hvae_sr.models.fast import fast_dtype, prepared_weights

from .compiled import CompiledNetworks


class FastInference:
    """The part of `SuperResolutionPipeline` that decides how its networks are evaluated; what they compute stays.

    As long as nothing is enabled, they compute in the dtype of their weights.
    """

    vdvae: VDVAE
    lr_encoder: LREncoder | LRConditioner
    _execution_device: torch.device
    _inference_dtype: torch.dtype | str | None = None
    _compiled_networks: CompiledNetworks | None = None

    def enable_fast_inference(self, dtype: torch.dtype | str = "auto") -> None:
        """Computes in `dtype` where the weights are float32; Gaussians, likelihood and projection stay in float32.

        The weights stay as they are, and so does what `save_pretrained` writes. Pipelines whose configuration says
        `fast_inference` begin like this. Samples of the bundled models differ from those of float32 by less than a grey
        level on average.

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
        return super().to(*args, **kwargs)  # type: ignore[misc]  # of the pipeline

    @classmethod
    def from_pipe(cls, pipeline: Any, **kwargs: Any) -> Any:
        """`DiffusionPipeline.from_pipe`; the new pipeline computes in what `pipeline` does, unless a dtype is given."""
        new = super().from_pipe(pipeline, **kwargs)  # type: ignore[misc]  # casts the weights, and so calls `to`
        if all(kwargs.get(name) is None for name in ("dtype", "torch_dtype")):
            own = "auto" if new.config.fast_inference else None
            inherits = isinstance(pipeline, FastInference) and "fast_inference" not in kwargs
            new._inference_dtype = pipeline._inference_dtype if inherits else own
        return new

    @property
    def inference_dtype(self) -> torch.dtype:
        """The dtype that the networks compute in."""
        dtype = self._inference_dtype
        if dtype == "auto":
            dtype = fast_dtype(self._execution_device)
        if not isinstance(dtype, torch.dtype) or self.vdvae.dtype != torch.float32:
            return self.vdvae.dtype
        return dtype

    @contextmanager
    def _fast_inference(self) -> Iterator[None]:
        """The dtype of the networks' evaluation, and weights prepared once for all of them."""
        dtype = self.inference_dtype
        enabled = dtype != self.vdvae.dtype
        with prepared_weights():
            if enabled:
                with torch.autocast(self._execution_device.type, dtype):
                    yield
            else:
                yield
