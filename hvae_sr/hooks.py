"""How the networks meet accelerate's and diffusers' hooks, and tools that walk nested outputs."""

import functools
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .loading import from_diffusers

_Method = TypeVar("_Method", bound=Callable[..., Any])
outside_graphs: Callable[[_Method], _Method] = torch.compiler.disable  # itself without annotations
"""For methods that the compiler is to leave alone."""
_apply_forward_hook = from_diffusers("diffusers.utils.accelerate_utils", "apply_forward_hook")
_GROUP_OFFLOADING = from_diffusers("diffusers.hooks.group_offloading", "_GROUP_OFFLOADING")
_REGISTRY = "_diffusers_hook"
"""Where diffusers keeps the hooks of a module."""
_probe = nn.Module()
from_diffusers("diffusers.hooks.hooks", "HookRegistry").check_if_exists_or_initialize(_probe)
from_diffusers(_probe, _REGISTRY)


def uncompiled(module: Any) -> Any:
    """The module that `torch.compile` has wrapped, or the module itself: who asks for its class wants this one."""
    return getattr(module, "_orig_mod", module)


def entry_point(method: _Method) -> _Method:
    """Lets a method of a model bring the model's weights to the device, as its `forward` does, when they are offloaded.

    accelerate's hooks (`enable_model_cpu_offload`, `enable_sequential_cpu_offload`) and diffusers' group offloading
    wrap `forward` alone; whoever calls another method first would find weights on the CPU.
    """
    hooked = _apply_forward_hook(method)

    @functools.wraps(method)
    def wrapper(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        registry = getattr(self, _REGISTRY, None)
        hook = registry.get_hook(_GROUP_OFFLOADING) if registry is not None else None
        if hook is None:
            return hooked(self, *args, **kwargs)
        args, kwargs = hook.pre_forward(self, *args, **kwargs)
        return hook.post_forward(self, hooked(self, *args, **kwargs))

    return cast(_Method, wrapper)


def run_layer(model: Any, layer: Any, *inputs: Any, **options: Any) -> Any:
    """What a layer of a model gives; computed once more for the gradient, where the model is checkpointed."""
    if model.gradient_checkpointing and torch.is_grad_enabled():
        return checkpoint(layer, *inputs, use_reentrant=False, **options)  # which the compiler knows, as it is
    return layer(*inputs, **options)


def execution_device(model: Any) -> torch.device:
    """The device that a model computes on: that of its weights, or where accelerate's hooks bring them for a call."""
    if model.device.type == "meta":
        for module in model.modules():
            device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
            if device is not None:
                return torch.device(device)
    return torch.device(model.device)


class PerGroup(tuple[Tensor, ...]):
    """One tensor for each group or resolution; has a dictionary's `values` for code that walks nested outputs."""

    __slots__ = ()

    def values(self) -> "PerGroup":
        """The tensors."""
        return self


UNSET: Any = None
"""Default of fields that are always set: accelerate's hooks rebuild outputs from dictionaries, which needs one."""


def per_group(tensors: Iterable[Tensor]) -> PerGroup:
    """A `PerGroup`; inside `torch.compile`, which takes no subclass of tuple, a plain one."""
    values = tuple(tensors)
    return cast(PerGroup, values) if torch.compiler.is_compiling() else PerGroup(values)
