"""Checks of what callers pass to `SuperResolutionPipeline`; every error names the argument and its value."""

import difflib
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hvae_sr.checks import check_count
from hvae_sr.hooks import uncompiled
from hvae_sr.images import ImageInput, Photo, prepare_photos

_ELSEWHERE = {
    "num_images_per_prompt": "`num_samples`",
    "num_images": "`num_samples`",
    "callback": "`pipe.samples(...)`, which yields samples as they are drawn",
    "callback_on_step_end": "`pipe.samples(...)`, which yields samples as they are drawn",
    "callback_on_sample_end": "`pipe.samples(...)`, which yields samples as they are drawn",
    "num_inference_steps": "nothing in its place: a sample is one network evaluation",
    "guidance_scale": "`temperature`",
    "prompt": "`image` alone",
}
"""Arguments of other pipelines, and what stands for them here."""


CONSISTENCIES = ("exact", "none")
"""Whether a model knows H: samples are projected on {x : Hx = y}; or it does not, and they never are."""


@dataclass(frozen=True)
class SamplingOptions:
    """The rare arguments of `SuperResolutionPipeline`; a call takes them by name too.

    Args:
        lr_posterior_temperature: the temperature of the groups drawn from q_psi (CVDVAE), if it is to differ; the
            published CVDVAE code leaves it at 1.
        noise: standard normal draws instead of seeds, one `[N, C, h, w]` tensor for each group, N = images x samples
            (images of one size only).
        num_fixed_groups: keeps the first so many groups of `latents` and draws the others anew.
        sample_pixels: draws pixels from p(x|z) instead of returning E[x|z]; adds white noise.
        self_ensemble: draws the sample of seed s from y in orientation s mod 8 (mirrored, turned) and turns it back: a
            sampler that does not depend on how y is turned, and a more accurate mean of several samples
            (`SelfEnsemble`), best of a multiple of eight. y is encoded again whenever the orientation changes.
        window_size: side, in pixels of y, of the windows that larger images are sampled in, margins left out; None
            chooses windows of a million HR pixels, or as many as `max_memory` allows. A window sees the noise of the
            whole, and the projection is that of the whole.
        window_margin: HR pixels around a window that the networks see and that are not kept; None: 96, with which
            windows and whole of the bundled models differ by less than 0.001 grey levels in the mean in float32, single
            pixels by some tenths; 128 for a model that reads y through a restorer of up to eight blocks, 256 for one of
            more (0.01 in the mean, single pixels more than 1).
        max_memory: bytes that the process (on a GPU: the device) may take, for which windows and chunks are made small
            enough; None means half of what is available beyond what is used already.
        tile: lets a model of one image size work on images of any other, in blended tiles of its size.
        return_latents: also returns z.
        keep_images: whether samples are returned; if not, `images` is empty and memory does not grow with their number:
            where mean and standard deviation are all that is wanted.
    """

    lr_posterior_temperature: float | Sequence[float] | None = None
    noise: Sequence[Tensor] | None = None
    num_fixed_groups: int | None = None
    sample_pixels: bool = False
    self_ensemble: bool = False
    window_size: int | None = None
    window_margin: int | None = None
    max_memory: int | None = None
    tile: bool = False
    return_latents: bool = False
    keep_images: bool = True

    @classmethod
    def gather(cls, options: "SamplingOptions | None", named: Mapping[str, Any]) -> "SamplingOptions":
        """Options, with those that were given by name put in.

        Raises:
            ValueError: an argument that does not exist; the message says what there is instead.
        """
        if options is not None and not isinstance(options, cls):
            raise ValueError(f"`options` must be SamplingOptions, got {options!r}")
        known = [field.name for field in fields(cls)]
        for name in named:
            if name in _ELSEWHERE:
                raise ValueError(f"`{name}` is no argument of this pipeline, which has {_ELSEWHERE[name]}")
            if name not in known:
                near = difflib.get_close_matches(name, [*known, "temperature", "num_samples", "seed", "batch_size"], 1)
                raise ValueError(f"`{name}` is no argument" + (f"; did you mean `{near[0]}`?" if near else ""))
        return replace(options or cls(), **named)

    def check(self) -> None:
        """Raises a ValueError that names the argument and its value."""
        for name in ("sample_pixels", "self_ensemble", "tile", "return_latents", "keep_images"):
            check_flag(name, getattr(self, name))
        for name in ("window_size", "max_memory"):
            check_count(name, getattr(self, name), 1, optional=True)
        check_count("window_margin", self.window_margin, 0, optional=True)


def check_flag(name: str, value: Any) -> None:
    """Raises a ValueError unless `value` is True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"`{name}` must be True or False, got {value!r}")


def check_network(name: str, network: Any, *classes: type) -> None:
    """Raises a ValueError unless `network`, also one of `torch.compile`, is of one of the classes."""
    if not isinstance(uncompiled(network), classes):
        allowed = " or ".join(one.__name__ for one in classes)
        raise ValueError(f"`{name}` must be of the class {allowed}, got {type(network).__name__}")


def check_consistency(consistency: Any) -> None:
    """Raises a ValueError unless `consistency` is one of `CONSISTENCIES`."""
    if consistency not in CONSISTENCIES:
        raise ValueError(f"`consistency` must be one of {', '.join(map(repr, CONSISTENCIES))}; got {consistency!r}")


def chosen_consistency(enforce_consistency: bool | None, consistency: str) -> bool:
    """Whether samples are projected: what a caller asks for, or, for None, what the model's `consistency` says.

    Raises:
        ValueError: neither None nor a flag, or a projection that the model has no H for.
    """
    if enforce_consistency is None:
        return consistency == "exact"
    check_flag("enforce_consistency", enforce_consistency)
    if enforce_consistency and consistency == "none":
        raise ValueError(
            "`enforce_consistency` must be None or False for this model, got True: it was made for images whose "
            "degradation is not known, so there is no H to project by, and a projection on a blurred, noisy or "
            "compressed image would bring its noise and blocks back (the model's configuration says "
            "`consistency`: 'none')"
        )
    return bool(enforce_consistency)


def check_finite(name: str, values: Sequence[Tensor | None]) -> None:
    """Raises a ValueError for NaN or infinite values."""
    for group, value in enumerate(values):
        if value is not None and not value.isfinite().all():
            raise ValueError(f"`{name}[{group}]` holds NaN or infinite values")


def base_seeds(
    seed: int | Sequence[int] | None,
    generator: torch.Generator | Sequence[torch.Generator] | None,
    num_images: int,
) -> list[int]:
    """The base seed of every image: `seed` (one for all, or a list), or drawn from `generator` (or each of a list).

    Without either they are drawn from torch's global generator.

    Raises:
        ValueError: both; seeds that are not whole numbers, generators that are none, or a wrong number of either.
    """
    if seed is not None and generator is not None:
        raise ValueError("`seed` and `generator` were both given; a generator only supplies seeds")
    if seed is not None:
        one_or_more: Any = seed
        given = list(one_or_more) if is_list(seed) else [one_or_more] * num_images
        try:
            if any(isinstance(base, bool) for base in given):
                raise TypeError
            bases = [operator.index(base) for base in given]
        except TypeError:
            raise ValueError(f"`seed` must be a whole number or a list of them, got {seed!r}") from None
        _check_length("seed", bases, num_images)
        return bases
    generators: list[Any] = list(generator) if isinstance(generator, (list, tuple)) else [generator] * num_images
    if generator is not None and not all(isinstance(one, torch.Generator) for one in generators):
        raise ValueError(f"`generator` must be a torch.Generator or a list of them, got {generator!r}")
    _check_length("generator", generators, num_images)
    return [_draw_seed(one) for one in generators]


def is_list(value: Any) -> bool:
    """Whether a value stands for several."""
    return isinstance(value, (list, tuple, range)) or (isinstance(value, np.ndarray) and value.ndim > 0)


def _check_length(name: str, values: Sequence[Any], num_images: int) -> None:
    if len(values) != num_images:
        raise ValueError(f"`{name}` has {len(values)} entries for {num_images} images")


def _draw_seed(generator: torch.Generator | None) -> int:
    device = generator.device if generator is not None else "cpu"
    return int(torch.randint(0, 2**63 - 1, (), generator=generator, device=device, dtype=torch.int64).item())


def seeds_of_samples(seeds: Sequence[int] | None) -> list[int]:
    """The seeds of the samples of one photograph; raises a ValueError unless they are a list that is not empty."""
    if seeds is None or not is_list(seeds) or not len(seeds):
        raise ValueError(f"`seeds` must be a list that is not empty, got {seeds!r}")
    return base_seeds(list(seeds), None, len(seeds))


def single_photo(image: ImageInput | Photo) -> tuple[Tensor, Photo | None]:
    """`prepare_photos` of one image; raises a ValueError for several."""
    photos = prepare_photos(image)
    if len(photos) != 1:
        raise ValueError(f"`image` must be one image, got {len(photos)}")
    return photos[0]


def check_components(index: Mapping[str, Any], classes: Mapping[str, tuple[str, ...]]) -> None:
    """Raises a ValueError if what a model_index.json calls components are others than `classes` allows, by name."""
    for name, value in index.items():
        is_pair = isinstance(value, (list, tuple)) and len(value) == 2
        # Two numbers are none: a kernel of two taps.
        is_component = is_pair and not name.startswith("_") and not all(isinstance(one, Real) for one in value)
        allowed = classes.get(name, ())
        if (is_component or name in classes) and not (is_component and ".".join(map(str, value)) in allowed):
            raise ValueError(f"model_index.json: {name!r} must be {' or '.join(allowed) or 'left out'}, is {value!r}")
    if isinstance(index.get("_class_name"), (list, tuple)):
        raise ValueError(f"model_index.json names a pipeline of its own, {index['_class_name']!r}, which is not loaded")
