"""What makes inference fast: the dtype a device computes best in, and convolutions fused with what surrounds them.

Nothing here changes a model. Weights are cast, cut and laid out for the processor when a pass needs them, and let go
at its end, so that a model is saved as it was loaded, trains as before, and cannot be sampled with stale weights.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Span = tuple[int, int | None] | None
"""Channels `start:stop` of a convolution; None means all."""

_prepared: ContextVar[dict[Any, tuple[Tensor, Tensor | None]] | None] = ContextVar("prepared", default=None)
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "silu": F.silu}
_FUSED = {"gelu": ("gelu", "none"), "silu": ("swish", "none")}
"""oneDNN's names of our activations: (operation, approximation)."""


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


def stream_dtype(x: Tensor) -> torch.dtype:
    """The dtype that convolutions of x give: autocast's where it is on, else x's own."""
    kind = x.device.type
    if kind != "meta" and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return x.dtype


@contextmanager
def prepared_weights() -> Iterator[None]:
    """Inside, weights are prepared once for all passes; they are let go at the end of the outermost context."""
    if _prepared.get() is not None:
        yield
        return
    token = _prepared.set({})
    try:
        yield
    finally:
        _prepared.reset(token)


def convolve(
    layer: nn.Conv2d,
    x: Tensor,
    then: str | None = None,
    plus: Tensor | None = None,
    rows: Span = None,
    columns: Span = None,
    bias: bool = True,
) -> Tensor:
    """then(conv(x)) + plus, with some of the layer's output channels (`rows`) and input channels (`columns`).

    On a CPU, without gradients, activation and sum are done by oneDNN while the result is in the cache.

    Args:
        layer: stride 1, no groups.
        x: `[B, C, H, W]`.
        then: "gelu", "silu" or None.
        plus: `[B, C', H, W]`, or a shape that broadcasts to it.
        rows, columns: channels of the layer to use.
        bias: whether the layer's bias is added.
    """
    dtype = stream_dtype(x)
    if not _fusible(x, dtype):
        weight, offset = _cut(layer, rows, columns, bias)
        h = F.conv2d(x, weight, offset, padding=layer.padding)  # type: ignore[arg-type]
        h = h if then is None else ACTIVATIONS[then](h)
        return h if plus is None else plus + h
    weight, offset = _prepare(layer, dtype, rows, columns, bias)
    x = x.to(dtype).contiguous(memory_format=torch.channels_last)
    place = (layer.padding, layer.stride, layer.dilation, layer.groups)
    name, algorithm = _FUSED[then] if then is not None else ("none", "")
    if plus is None or then is not None:
        h = torch.ops.mkldnn._convolution_pointwise(x, weight, offset, *place, name, [], algorithm)
        return h if plus is None else plus.to(dtype) + h
    # One way for any number of rows, or the rounding of a sample would depend on the batch that it is in.
    batch = max(len(x), len(plus))
    x = x.expand(batch, -1, -1, -1).contiguous(memory_format=torch.channels_last)
    plus = plus.to(dtype).expand(batch, len(weight), *x.shape[2:]).contiguous(memory_format=torch.channels_last)
    return torch.ops.mkldnn._convolution_pointwise.binary(x, plus, weight, offset, *place, "add", 1.0, None, [], None)


def _fusible(x: Tensor, dtype: torch.dtype) -> bool:
    """Whether oneDNN's fused operations can be called: not where others must see through them."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch.is_grad_enabled():
        return False
    if x.device.type != "cpu" or type(x) is not Tensor or not x.numel() or not torch.backends.mkldnn.is_available():
        return False
    native = dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return bool((dtype == torch.float32 or native) and torch.backends.mkldnn.enabled)  # type: ignore[attr-defined]


def _cut(layer: nn.Conv2d, rows: Span, columns: Span, bias: bool) -> tuple[Tensor, Tensor | None]:
    weight, offset = layer.weight, layer.bias if bias else None
    if rows is not None:
        weight = weight[slice(*rows)]
        offset = None if offset is None else offset[slice(*rows)]
    return weight if columns is None else weight[:, slice(*columns)], offset


def _prepare(
    layer: nn.Conv2d, dtype: torch.dtype, rows: Span, columns: Span, bias: bool
) -> tuple[Tensor, Tensor | None]:
    """The weights of `_cut` in the dtype of the pass and in oneDNN's order of dimensions."""
    cache = _prepared.get()
    # Hooks of accelerate and diffusers move or cast weights for one call: to keep a copy would defeat them.
    if cache is None or hasattr(layer, "_hf_hook") or hasattr(layer, "_diffusers_hook"):
        cache = {}
    key = (layer, dtype, rows, columns, bias)
    if key not in cache:
        weight, offset = _cut(layer, rows, columns, bias)
        cache[key] = (
            weight.detach().to(dtype).contiguous(memory_format=torch.channels_last),
            None if offset is None else offset.detach().to(dtype).contiguous(),
        )
    return cache[key]
