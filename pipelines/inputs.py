"""Checks of what callers pass to `SuperResolutionPipeline`; every error names the argument and its value."""

import math
import operator
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hvae_sr.models import VDVAE

_COMPONENTS = {"vdvae": ("VDVAE",), "lr_encoder": ("LREncoder", "LRConditioner")}


def check_count(name: str, value: Any, minimum: int, maximum: float = math.inf, optional: bool = False) -> None:
    """Raises a ValueError unless `value` is a whole number in [minimum, maximum], or None if `optional`."""
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, Integral) or not minimum <= int(value) <= maximum:
        allowed = f">= {minimum}" if maximum == math.inf else f"between {minimum} and {maximum}"
        raise ValueError(f"`{name}` must be a whole number {allowed}, got {value!r}")


def check_temperature(name: str, value: Any, num_groups: int) -> None:
    """Raises a ValueError unless `value` is None, a finite number >= 0, or one for each group."""
    values = list(value) if _is_list(value) else [0.0 if value is None else value]
    for tau in values:
        if isinstance(tau, bool) or not isinstance(tau, Real) or not 0 <= float(tau) < math.inf:
            raise ValueError(f"`{name}` must be a finite number >= 0, got {tau!r}")
    if _is_list(value) and len(values) != num_groups:
        raise ValueError(f"`{name}` must be a number or one for each of {num_groups} groups, got {len(values)}")


def check_groups(
    name: str, values: Any, vdvae: VDVAE, size: tuple[int, int], rows: tuple[int, ...], optional: bool
) -> None:
    """Raises a ValueError unless `values` is None or a list of `[N, C, h, w]` tensors, one for each group.

    Args:
        name: of the argument.
        values: what was given.
        vdvae: the model whose groups they are.
        size: (H, W) of the padded HR image.
        rows: what N may be.
        optional: whether entries may be None.
    """
    if values is None:
        return
    groups = vdvae.num_groups
    if not isinstance(values, (list, tuple)) or len(values) > groups:
        given = len(values) if isinstance(values, (list, tuple)) else type(values).__name__
        raise ValueError(f"`{name}` must be a list of at most {groups} tensors, one for each group; got {given}")
    for group, value in enumerate(values):
        if value is None and optional:
            continue
        found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        if found not in [vdvae.latent_shape(group, count, size) for count in rows]:
            count = " or ".join(str(number) for number in dict.fromkeys(rows))
            shape = ", ".join(str(side) for side in vdvae.latent_shape(group, 1, size)[1:])
            raise ValueError(f"`{name}[{group}]` must be [N, {shape}] with N = {count}, got {found}")
        if not value.isfinite().all():
            raise ValueError(f"`{name}[{group}]` holds NaN or infinite values")


def sample_seeds(
    seed: int | Sequence[int] | None,
    generator: torch.Generator | Sequence[torch.Generator] | None,
    num_images: int,
    num_samples: int,
) -> list[int]:
    """The seed of every sample, image-major: sample j of an image has the image's base seed + j.

    Base seeds are `seed` (one for all images, or a list), or are drawn from `generator` (or from each of a list), or
    from torch's global generator.

    Raises:
        ValueError: seeds that are not whole numbers, generators that are none, or a wrong number of either.
    """
    if seed is not None:
        given: list[Any] = list(seed) if _is_list(seed) else [seed] * num_images  # type: ignore[arg-type]
        try:
            if any(isinstance(base, bool) for base in given):
                raise TypeError
            bases = [operator.index(base) for base in given]
        except TypeError:
            raise ValueError(f"`seed` must be a whole number or a list of them, got {seed!r}") from None
        _check_length("seed", bases, num_images)
    else:
        generators = list(generator) if isinstance(generator, (list, tuple)) else [generator] * num_images
        if generator is not None and not all(isinstance(one, torch.Generator) for one in generators):
            raise ValueError(f"`generator` must be a torch.Generator or a list of them, got {generator!r}")
        _check_length("generator", generators, num_images)
        bases = [_draw_seed(one) for one in generators]  # type: ignore[arg-type]
    return [base + j for base in bases for j in range(num_samples)]


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple, range)) or (isinstance(value, np.ndarray) and value.ndim > 0)


def _check_length(name: str, values: Sequence[Any], num_images: int) -> None:
    if len(values) != num_images:
        raise ValueError(f"`{name}` has {len(values)} entries for {num_images} images")


def _draw_seed(generator: torch.Generator | None) -> int:
    device = generator.device if generator is not None else "cpu"
    return int(torch.randint(0, 2**63 - 1, (), generator=generator, device=device, dtype=torch.int64).item())


def check_components(index: Mapping[str, Any]) -> None:
    """Raises a ValueError if what a model_index.json calls components are not models of this package."""
    for name, value in index.items():
        is_pair = isinstance(value, (list, tuple)) and len(value) == 2
        # Two numbers are none: a kernel of two taps.
        is_component = is_pair and not name.startswith("_") and not all(isinstance(one, Real) for one in value)
        if name in _COMPONENTS and not (is_component and value[0] == "hvae_sr"):
            raise ValueError(f"model_index.json: {name!r} must be a class of hvae_sr, is {value!r}")
        if is_component and (name not in _COMPONENTS or value[1] not in _COMPONENTS[name]):
            raise ValueError(f"model_index.json names {value!r} for {name!r}, which is not loaded")
    if isinstance(index.get("_class_name"), (list, tuple)):
        raise ValueError(f"model_index.json names a pipeline of its own, {index['_class_name']!r}, which is not loaded")
