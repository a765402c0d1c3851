"""What makes inference fast: the dtype a device computes best in, and convolutions fused with what surrounds them.

Nothing here changes a model. Weights are cast, cut and laid out for the processor when a pass needs them, and let go
at its end, so that a model is saved as it was loaded, trains as before, and cannot be sampled with stale weights.
"""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Span = tuple[int, int | None] | None
"""Channels `start:stop` of a convolution; None means all."""
Weights = tuple[Tensor, Tensor | None]
"""Of a convolution: `[C', C, k, k]`, and `[C']` or None."""

LARGE = 2**25
"""Bytes of a map from which on a CPU's allocator asks the system for new pages each time, filled with zeros."""
STRIP = 2**21
"""Bytes of the strips that larger maps are worked on in: a second-level cache holds them."""

_prepared: ContextVar[dict[Hashable, Weights] | None] = ContextVar("prepared", default=None)
_block_dtype: ContextVar[torch.dtype | None] = ContextVar("block_dtype", default=None)  # within `exact_sums`
_traced = SimpleNamespace(block_dtype=None)  # the same for the compiler, which sees no context variables, one at a time
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


@contextmanager
def exact_sums(kind: str) -> Iterator[None]:
    """Inside, autocast's dtype is left to the residual blocks (`inside_block`); streams and heads are in float32.

    The rounding of a coarse group is amplified by the finer ones, most of all by their heads. In bfloat16 throughout, a
    window, which sees a little less than the whole, would differ from it by more than a grey level in single pixels.

    Args:
        kind: of the device.
    """
    if torch.is_grad_enabled() or kind == "meta" or not torch.is_autocast_enabled(kind):
        yield
        return
    dtype, traced = torch.get_autocast_dtype(kind), torch.compiler.is_compiling()
    if traced:
        before, _traced.block_dtype = _traced.block_dtype, dtype
    else:
        token = _block_dtype.set(dtype)
    try:
        with torch.autocast(kind, enabled=False):
            yield
    finally:
        if traced:
            _traced.block_dtype = before
        else:
            _block_dtype.reset(token)


@contextmanager
def inside_block(kind: str) -> Iterator[None]:
    """Autocast, for the inner convolutions of a residual block within `exact_sums`."""
    dtype = _traced.block_dtype if torch.compiler.is_compiling() else _block_dtype.get()
    if dtype is None:
        yield
    else:
        with torch.autocast(kind, dtype):
            yield


def activate(name: str, x: Tensor) -> Tensor:
    """The activation "gelu" or "silu" of x `[B, C, H, W]`."""
    if _fusible(x, x.dtype) and x.is_contiguous(memory_format=torch.channels_last):
        # oneDNN's GELU, twice as fast as torch's own, is for tensors in the order of their dimensions only.
        return ACTIVATIONS[name](x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return ACTIVATIONS[name](x)


def strips(x: Tensor) -> list[Tensor] | None:
    """A single large map `[1, C, H, W]` in strips of rows, where that is faster; else None."""
    if not _fusible(x, x.dtype):
        return None
    size = x.numel() * x.element_size()
    if len(x) != 1 or size <= LARGE:
        return None
    return list(x.split(max(1, STRIP * x.shape[2] // size), dim=2))


class Convolution(nn.Conv2d):
    """A convolution that also does what surrounds it, and may use only some of its channels: see `convolve`."""

    def forward(  # type: ignore[override]  # more optional arguments
        self,
        x: Tensor,
        then: str | None = None,
        plus: Tensor | None = None,
        rows: Span = None,
        columns: Span = None,
        bias: bool = True,
        overwrite: bool = False,
    ) -> Tensor:
        return convolve(self, x, then, plus, rows, columns, bias, overwrite)


def apply(
    layer: nn.Module, x: Tensor, then: str | None = None, plus: Tensor | None = None, overwrite: bool = False
) -> Tensor:
    """then(layer(x)) + plus, also where another layer has taken a `Convolution`'s place, such as LoRA's."""
    if isinstance(layer, Convolution):
        return layer(x, then=then, plus=plus, overwrite=overwrite)
    h = layer(x)
    h = h if then is None else ACTIVATIONS[then](h)
    return h if plus is None else plus + h


def convolve(
    layer: nn.Conv2d,
    x: Tensor,
    then: str | None = None,
    plus: Tensor | None = None,
    rows: Span = None,
    columns: Span = None,
    bias: bool = True,
    overwrite: bool = False,
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
        overwrite: whether the result may be written over `plus`.
    """
    dtype = stream_dtype(x)
    if not _fusible(x, dtype):
        weight, offset = _cut(layer, rows, columns, bias)
        casts = x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)
        if weight.dtype != dtype and not casts:  # within `exact_sums`
            weight, offset = weight.to(dtype), None if offset is None else offset.to(dtype)
        h = F.conv2d(x, weight, offset, padding=layer.padding)  # type: ignore[arg-type]
        h = h if then is None else ACTIVATIONS[then](h)
        return h if plus is None else plus + h
    key = (layer, dtype, rows, columns, bias)
    weights = _prepare((layer,), key, x, dtype, lambda: _cut(layer, rows, columns, bias))
    return _convolve(layer, weights, x, then, plus, overwrite)


def convolve_both(
    first: Convolution,
    x: Tensor,
    second: nn.Module,
    z: Tensor,
    plus: Tensor,
    rows: Span,
    overwrite: bool = False,
) -> Tensor:
    """first(x) + second(z) + plus, with the output channels `rows` of the first layer.

    On a CPU, without gradients, a single convolution of both inputs, which reads and writes the sum once.

    Args:
        first, second: 1x1 convolutions; the first one `bare`.
        x, z: `[B or 1, C, H, W]`, `[B or 1, C', H, W]`.
        plus: `[B or 1, C'', H, W]`.
        overwrite: whether the result may be written over `plus`.
    """
    dtype = stream_dtype(x)
    if not (_fusible(x, dtype) and bare(second)):
        return apply(second, z.to(plus.dtype), plus=first(x, rows=rows, plus=plus))
    assert isinstance(second, Convolution)

    def both() -> Weights:
        (a, b), (c, d) = _cut(first, rows, None, True), _cut(second, None, None, True)
        return torch.cat((a, c), dim=1), b if d is None else d if b is None else b + d

    batch = max(len(x), len(z))
    joined = torch.cat((x.to(dtype).expand(batch, -1, -1, -1), z.to(dtype).expand(batch, -1, -1, -1)), dim=1)
    weights = _prepare((first, second), (first, second, dtype, rows), joined, dtype, both)
    return _convolve(first, weights, joined, None, plus, overwrite)


def add_gated(x: Tensor, features: Tensor, gate: Tensor) -> Tensor:
    """x + features * gate in the dtype of x, without a map of the products where gradients are not needed.

    Args:
        x: `[B, C, H, W]`.
        features: `[B or 1, C, H, W]`, of another dtype too.
        gate: `[1, C, 1, 1]`.
    """
    gate = gate.to(x.dtype)
    if x.shape != features.shape or len(x) > 1 or features.dtype == x.dtype or not _fusible(x, x.dtype):
        return torch.addcmul(x, features.to(x), gate)
    # Strip by strip, as a copy of the features in the other dtype stays in the cache then.
    total = torch.empty_like(x)
    rows = max(1, STRIP // (x[0, :, 0].numel() * x.element_size()))
    for start in range(0, x.shape[2], rows):
        part = (slice(None), slice(None), slice(start, start + rows))
        torch.addcmul(x[part], features[part].to(x.dtype), gate, out=total[part])
    return total


class Affine(nn.Module):
    """x * gain + bias for each channel, before the likelihood's convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain.to(x.dtype) + self.bias.to(x.dtype)


def convolve_scaled(layer: nn.Module, x: Tensor, scaling: nn.Module) -> Tensor:
    """conv(scaling(x)), one plane for each channel where the device makes that fast.

    On a CPU and without gradients, gain and shift are in the convolution's weights, and the convolution is a product
    of matrices, which gives the planes that a convolution with its channels last would have to be copied into.

    Args:
        layer: a 1x1 convolution.
        x: `[B, C, H, W]`.
        scaling: an `Affine`.
    """
    dtype = stream_dtype(x)
    if not (_fusible(x, dtype) and bare(layer) and bare(scaling)):
        return layer(scaling(x))
    assert isinstance(layer, Convolution) and isinstance(scaling, Affine)
    weight, offset = _cut(layer, None, None, True)
    moved = (weight * scaling.bias).sum(dim=(1, 2, 3))
    merged = (weight * scaling.gain).to(dtype).flatten(1)
    bias = (moved if offset is None else offset + moved).to(dtype)[:, None]
    # Row by row, or the rounding of a sample might depend on the batch that it is in.
    planes = [torch.addmm(bias, merged, row.to(dtype).flatten(1)) for row in x]
    return (planes[0][None] if len(planes) == 1 else torch.stack(planes)).unflatten(2, x.shape[2:])


def _convolve(
    layer: nn.Conv2d,
    weights: Weights,
    x: Tensor,
    then: str | None = None,
    plus: Tensor | None = None,
    overwrite: bool = False,
) -> Tensor:
    """`convolve` by oneDNN, with weights from `_prepare`."""
    weight, offset = weights
    dtype = stream_dtype(x)
    x = x.to(dtype).contiguous(memory_format=torch.channels_last)
    place = (layer.padding, layer.stride, layer.dilation, layer.groups)
    name, algorithm = _FUSED[then] if then is not None else ("none", "")
    if plus is None or then is not None:
        h = torch.ops.mkldnn._convolution_pointwise(x, weight, offset, *place, name, [], algorithm)
        return h if plus is None else plus.to(dtype) + h
    # One way for any number of rows, or the rounding of a sample would depend on the batch that it is in.
    batch = max(len(x), len(plus))
    x = x.expand(batch, -1, -1, -1).contiguous(memory_format=torch.channels_last)
    total = plus.to(dtype).expand(batch, weight.shape[0], *x.shape[2:]).contiguous(memory_format=torch.channels_last)
    if not overwrite and total.data_ptr() == plus.data_ptr():
        total = total.clone()
    add_to = torch.ops.mkldnn._convolution_pointwise_.binary
    return add_to(total, x, weight, offset, *place, "add", 1.0, None, [], None)


def _fusible(x: Tensor, dtype: torch.dtype) -> bool:
    """Whether oneDNN's fused operations can be called: not where others must see through them."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch.is_grad_enabled():
        return False
    if x.device.type != "cpu" or type(x) is not Tensor or not x.numel() or not torch.backends.mkldnn.is_available():
        return False
    native = dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return bool((dtype == torch.float32 or native) and torch.backends.mkldnn.enabled)  # type: ignore[attr-defined]


def bare(module: nn.Module) -> bool:
    """Whether a call of the module does what its class does and no more, so that its weights tell all of it.

    Not where a hook waits for the call: a user's, or one that moves the weights in and out; nor where another layer
    has taken its place, such as LoRA's.
    """
    own = type(module) in (Convolution, Affine) and "forward" not in vars(module)
    return own and not observed(module) and not _is_moved(module)


def observed(module: nn.Module) -> bool:
    """Whether a hook, the module's own or one of all modules, sees what enters and leaves it, and may keep that."""
    hooks = torch.nn.modules.module
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or hooks._global_forward_hooks
        or hooks._global_forward_pre_hooks
    )


def _is_moved(module: nn.Module) -> bool:
    """Whether a hook of accelerate or diffusers moves or casts the module's weights for each call."""
    return hasattr(module, "_hf_hook") or hasattr(module, "_diffusers_hook")


def _cut(layer: nn.Conv2d, rows: Span, columns: Span, bias: bool) -> Weights:
    weight, offset = layer.weight, layer.bias if bias else None
    if rows is not None:
        weight = weight[slice(*rows)]
        offset = None if offset is None else offset[slice(*rows)]
    return weight if columns is None else weight[:, slice(*columns)], offset


def _prepare(
    modules: tuple[nn.Module, ...], key: Hashable, x: Tensor, dtype: torch.dtype, make: Callable[[], Weights]
) -> Weights:
    """What `make` gives of the modules' weights, in the dtype of the pass and in oneDNN's order for inputs like x."""
    cache = _prepared.get()
    # To keep a copy of weights that are moved in and out for a call would defeat that.
    if cache is None or any(_is_moved(module) for module in modules):
        cache = {}
    if key not in cache:
        weight, offset = make()
        weight = weight.detach().to(dtype).contiguous(memory_format=torch.channels_last)
        layer = modules[0]
        assert isinstance(layer, nn.Conv2d)
        packed = torch.ops.mkldnn._reorder_convolution_weight(
            weight, layer.padding, layer.stride, layer.dilation, layer.groups, list(x.shape)
        )
        cache[key] = (packed, None if offset is None else offset.detach().to(dtype).contiguous())
    return cache[key]
