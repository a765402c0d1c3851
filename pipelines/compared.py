"""What the pipelines of the compared systems share: call, checks and output, as of `SuperResolutionPipeline`."""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from hvae_sr.checkpoints.names import resolve
from hvae_sr.images import ImageInput, Photo, prepare_photos
from hvae_sr.loading import DAMAGED, without_warning
from hvae_sr.operators import Downsampling, cached_downsampling
from hvae_sr.sampling import Consistency
from hvae_sr.sampling.memory import PIXELS_PER_CHUNK, format_bytes, used_and_available
from hvae_sr.sampling.sizes import SizeRequirements, pad_to
from hvae_sr.sampling.windows import Window, split

from .inputs import SamplingOptions, base_seeds, check_count, check_flag, is_list
from .output import RunningMoments, Sample, SuperResolutionOutput, collate, convert

OUTPUT_TYPES = ("pil", "np", "pt")
CPU_PIXELS = 2**18
"""HR pixels that the samples of one evaluation have on a CPU, whose caches hold no more."""


@dataclass(frozen=True)
class Call:
    """What holds for all photographs of a call, checked.

    Args:
        temperature, enforce_consistency, batch_size, output_type, options: as in `ComparedPipeline.__call__`.
        own: the system's own arguments.
    """

    temperature: float
    enforce_consistency: bool
    batch_size: int | None
    output_type: str
    options: SamplingOptions
    own: dict[str, Any] = field(default_factory=dict)


class ComparedPipeline(DiffusionPipeline):
    """Base of the compared systems: called as `SuperResolutionPipeline` is, with the same seeds and the same output.

    Sample j of every image has the seed `seed + j`, from which all its noise follows by its address, whatever the
    batch. Whether samples are projected on {x : Hx = y} is the configuration's `enforce_consistency` unless the call
    says it: False where the published system does not.
    """

    component_classes: ClassVar[dict[str, tuple[str, ...]]] = {}
    """Names of components and of the classes that they may have."""
    has_temperature: ClassVar[bool] = False
    is_deterministic: ClassVar[bool] = False
    """Whether all samples of an image are the same."""
    has_windows: ClassVar[bool] = False
    """Whether large images are worked on in windows."""

    def _configure(
        self,
        scale_factor: int,
        downsampling_kernel: Any,
        default_temperature: float,
        enforce_consistency: bool,
        **own: Any,
    ) -> None:
        """Checks and registers the scalars of the configuration."""
        check_flag("enforce_consistency", enforce_consistency)
        operator = cached_downsampling(scale_factor, downsampling_kernel)
        self.register_to_config(
            scale_factor=scale_factor,
            downsampling_kernel=operator.kernel,
            default_temperature=default_temperature,
            enforce_consistency=enforce_consistency,
            **own,
        )

    @property
    def operator(self) -> Downsampling:
        """H, as the configuration says."""
        return cached_downsampling(self.config.scale_factor, self.config.downsampling_kernel)

    @property
    def inference_dtype(self) -> torch.dtype:
        """The dtype that the network computes in: that of its weights."""
        return next(p.dtype for m in self.components.values() if isinstance(m, nn.Module) for p in m.parameters())

    @property
    def sizes(self) -> SizeRequirements:
        """What the network asks of the size of y."""
        return SizeRequirements(self.config.scale_factor, 1)

    def _sample(self, y: Tensor, seeds: list[int], call: Call, advance: Callable[[int], None]) -> Tensor:
        """Samples of one y, `[3, h, w]` in [0, 1], fp32: `[n, 3, H', W']` on [-1, 1], of x's size or padded, fp32.

        `advance` is told of every network evaluation: of how many samples.
        """
        raise NotImplementedError

    def _evaluations(self, call: Call) -> int:
        """Network evaluations of a sample."""
        return 1

    def _own_arguments(self, named: dict[str, Any]) -> dict[str, Any]:
        """Takes the system's own arguments out of `named`, and checks them."""
        return {}

    @classmethod
    def load_config(cls, *args: Any, **kwargs: Any) -> Any:
        """`DiffusionPipeline.load_config`, for an index that names the classes of this pipeline alone."""
        found = super().load_config(*args, **kwargs)
        index = found[0] if isinstance(found, tuple) else found
        for name, value in index.items():
            is_pair = isinstance(value, (list, tuple)) and len(value) == 2 and all(isinstance(v, str) for v in value)
            if name.startswith("_") or not (is_pair or name in cls.component_classes):
                continue
            allowed = cls.component_classes.get(name, ())
            if not is_pair or ".".join(value) not in allowed:
                raise ValueError(
                    f"model_index.json: {name!r} must be {' or '.join(allowed) or 'left out'}, is {value!r}"
                )
        return found

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Any:
        """Loads a folder that `hvae-sr convert` or `save_pretrained` wrote, or a Hub id.

        Raises:
            ValueError: a folder that is damaged or holds something else.
            OSError: what the Hub answers.
        """
        folder = resolve(pretrained_model_name_or_path)
        kwargs.pop("load_encoder", None)  # of our own systems
        if kwargs.get("dtype", "") in (None, "auto"):
            del kwargs["dtype"]
        kwargs.setdefault("use_safetensors", True)
        try:
            with without_warning("You have passed a non-standard module"):
                return super().from_pretrained(folder, **kwargs)
        except DAMAGED as error:
            if isinstance(error, OSError) and not os.path.isdir(folder):
                raise
            reason = " ".join(str(error).split())[:1000] or type(error).__name__
            raise ValueError(f"cannot load {os.fspath(pretrained_model_name_or_path)!r}: {reason}") from error

    def check_inputs(
        self,
        temperature: float | None = None,
        num_samples: int = 1,
        enforce_consistency: bool | None = None,
        batch_size: int | None = None,
        output_type: str = "pil",
        options: SamplingOptions | None = None,
        **named: Any,
    ) -> Call:
        """What all photographs of a call share; raises a ValueError that names the argument and its value."""
        own = self._own_arguments(named)
        for name in ("num_conditioned_groups", "latents"):
            if named.pop(name, None) is not None:
                raise ValueError(f"`{name}` has no effect on {type(self).__name__}")
        options = SamplingOptions.gather(options, named)
        options.check()
        effective = {"max_memory", "keep_images"} | ({"window_size"} if self.has_windows else set())
        for option in fields(SamplingOptions):
            value = getattr(options, option.name)
            if option.name not in effective and value is not option.default:
                raise ValueError(f"`{option.name}` has no effect on {type(self).__name__}, got {value!r}")
        enforce = self.config.enforce_consistency if enforce_consistency is None else enforce_consistency
        check_flag("enforce_consistency", enforce)
        check_count("num_samples", num_samples, 1)
        check_count("batch_size", batch_size, 1, optional=True)
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"`output_type` must be one of {', '.join(OUTPUT_TYPES)}; got {output_type!r}")
        return Call(self._checked_temperature(temperature), enforce, batch_size, output_type, options, own)

    def _checked_temperature(self, temperature: Any) -> float:
        value = self.config.default_temperature if temperature is None else temperature
        if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not 0 <= value < float("inf"):
            raise ValueError(f"`temperature` must be a finite number >= 0, got {value!r}")
        if not self.has_temperature and value != 1:
            raise ValueError(
                f"`temperature` must be None or 1 for {type(self).__name__}, which has none; got {value!r}"
            )
        return float(value)

    def samples(
        self,
        image: ImageInput | Photo,
        seeds: Sequence[int],
        temperature: float | None = None,
        enforce_consistency: bool | None = None,
        batch_size: int | None = None,
        output_type: str = "pil",
        options: SamplingOptions | None = None,
        **named: Any,
    ) -> Iterator[Sample]:
        """The samples of one photograph, one after the other; memory does not grow with their number.

        Args:
            image: y, one image: see `__call__`.
            seeds: of the samples; each gives the same sample alone, in any batch, and in a call with that seed.
            temperature, enforce_consistency, batch_size, output_type, options: see `__call__`.
            **named: the system's own arguments, and `SamplingOptions` by name.

        Raises:
            ValueError: as a call, before the first sample.
        """
        if not is_list(seeds) or not len(seeds):
            raise ValueError(f"`seeds` must be a list that is not empty, got {seeds!r}")
        chosen = base_seeds(list(seeds), None, len(seeds))
        call = self.check_inputs(temperature, 1, enforce_consistency, batch_size, output_type, options, **named)
        photos = prepare_photos(image)
        if len(photos) != 1:
            raise ValueError(f"`image` must be one image, got {len(photos)}")
        y, photo = photos[0]
        self.sizes.check((y.shape[-2], y.shape[-1]))
        return self._draw(y, photo, chosen, call, lambda count: None)

    @torch.no_grad()
    def __call__(
        self,
        image: ImageInput | Photo | Sequence[ImageInput | Photo],
        temperature: float | None = None,
        num_samples: int = 1,
        enforce_consistency: bool | None = None,
        seed: int | Sequence[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        batch_size: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        options: SamplingOptions | None = None,
        **named: Any,
    ) -> SuperResolutionOutput | tuple[Any, ...]:
        """Samples of p(x|y) for each image, at exactly `scale_factor` times its size.

        Args:
            image: y: a PIL image, path, numpy array, tensor, or a list of these, as `SuperResolutionPipeline` takes it.
            temperature: factor of the latents' standard deviations, where the system has it; None means the
                configuration's.
            num_samples: samples of each image.
            enforce_consistency: whether samples are projected on {x : Hx = y}; None means what the configuration says.
            seed: sample j of every image has the seed `seed + j`; a list gives one base seed for each image.
            generator: supplies a base seed for each image; or one generator for each image.
            batch_size: samples for each network evaluation; None chooses by size.
            output_type: "pil", "np" or "pt".
            return_dict: a `SuperResolutionOutput`, or its tuple.
            options: `SamplingOptions`; those that have no effect here must be left alone.
            **named: the system's own arguments, and `SamplingOptions` by name.

        Raises:
            ValueError: an argument that is out of range, does not fit or has no effect; the message names it. Or
                samples with values that are not finite.
        """
        # 1. Check and convert the inputs.
        call = self.check_inputs(
            temperature, num_samples, enforce_consistency, batch_size, output_type, options, **named
        )
        photos = prepare_photos(image)
        for y, _ in photos:
            self.sizes.check((y.shape[-2], y.shape[-1]))
        bases = base_seeds(seed, generator, len(photos))
        seeds = [base + j for base in bases for j in range(num_samples)]

        # 2. Sample, image by image.
        gathered: dict[str, list[Any]] = {"images": [], "mean": [], "std": []}
        measured: list[tuple[float, float, float]] = []
        evaluations = 1 if self.is_deterministic else num_samples * self._evaluations(call)
        with self.progress_bar(total=len(photos) * evaluations) as bar:
            for i, (y, photo) in enumerate(photos):
                moments = RunningMoments()
                own = seeds[i * num_samples : (i + 1) * num_samples]
                for sample in self._draw(y, photo, own, call, bar.update):
                    assert sample.x is not None
                    moments.add(sample.x)
                    measured.append((sample.lr_psnr, sample.lr_psnr_float, sample.lr_psnr_unprojected))
                    single = sample.image
                    if call.options.keep_images:
                        gathered["images"].append(sample.image)
                mean = single if num_samples == 1 else _finish(moments.mean, photo, output_type)
                gathered["mean"].append(mean)
                std = moments.std_()
                gathered["std"].append(std if output_type == "pt" else std.permute(1, 2, 0).cpu().numpy())

        # 3. Gather.
        lr_psnr, lr_psnr_float, lr_psnr_unprojected = (list(values) for values in zip(*measured, strict=True))
        output = SuperResolutionOutput(
            images=collate(gathered["images"], output_type) if call.options.keep_images else [],
            mean=collate(gathered["mean"], output_type),
            std=collate(gathered["std"], "pt" if output_type == "pt" else "np"),
            lr_psnr=lr_psnr,
            lr_psnr_float=lr_psnr_float,
            lr_psnr_unprojected=lr_psnr_unprojected,
            seeds=seeds,
        )
        return output if return_dict else output.to_tuple()

    @torch.no_grad()
    def _draw(
        self, y: Tensor, photo: Photo | None, seeds: list[int], call: Call, advance: Callable[[int], None]
    ) -> Iterator[Sample]:
        """The samples of one photograph, a chunk of them at a time."""
        y = y.to(self._execution_device)
        consistency = Consistency(self.operator, y, call.enforce_consistency)
        chunk = len(seeds) if self.is_deterministic else call.batch_size or self._samples_at_once(y)
        for start in range(0, len(seeds), chunk):
            own = seeds[start : start + chunk]
            out = self._sample(y, own[:1] if self.is_deterministic else own, call, advance)
            for position, seed in enumerate(own):
                # What is made consistent is overwritten, and serves all samples of a deterministic system.
                drawn = out[0].clone() if self.is_deterministic else out[position]
                x, exact, unprojected = consistency(drawn)
                picture = convert(x, call.output_type)
                returned = consistency.lr_psnr(picture if call.output_type == "pil" else x)
                if photo is not None and call.output_type == "pil":
                    picture = photo.finish(picture)
                yield Sample(start + position, x, picture, seed, returned, exact, unprojected)
        self.maybe_free_model_hooks()

    def _in_windows(self, y: Tensor, call: Call, batch: int, evaluate: Callable[[Tensor, Window], Tensor]) -> Tensor:
        """`[batch, 3, s h, s w]`, fp32, put together from `evaluate(y in a window, window)`, `[1, 3, h, w]` the former.

        Of y, `window_margin` pixels around a window are seen and not kept.
        """
        height, width = self.sizes.padded((y.shape[-2], y.shape[-1]))
        y = pad_to(y[None], (height, width))
        scale, multiple = self.config.scale_factor, self.sizes.multiple
        margin = math.ceil(self.config.window_margin / multiple) * multiple
        side = call.options.window_size or math.isqrt(PIXELS_PER_CHUNK) // scale - 2 * margin
        whole = y.new_empty(batch, 3, height * scale, width * scale)
        for window in split(height, width, max(side // multiple, 1) * multiple, margin):
            window.paste(evaluate(y[window.crop], window), whole, scale)
        return whole

    def _check_memory(self, batch: int, each: int, what: str, device: torch.device, max_memory: int | None) -> None:
        """Raises a ValueError if `batch` times `each` bytes are more than there is; `what` ends the message."""
        found = used_and_available(device)
        if found is None:
            return
        used, available = found
        available = available if max_memory is None else min(available, max(max_memory - used, 0))
        if batch * each > available:
            raise ValueError(
                f"`image`: {batch} sample(s) take about {format_bytes(batch * each)}, {format_bytes(available)} are "
                f"left; {what}"
            )

    def _samples_at_once(self, y: Tensor) -> int:
        pixels = y.shape[-1] * y.shape[-2] * self.config.scale_factor**2
        return max(1, (CPU_PIXELS if y.device.type == "cpu" else PIXELS_PER_CHUNK) // pixels)


def _finish(x: Tensor, photo: Photo | None, output_type: str) -> Any:
    image = convert(x, output_type)
    return photo.finish(image) if photo is not None and output_type == "pil" else image
