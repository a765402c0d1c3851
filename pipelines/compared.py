"""What the pipelines of the compared systems share: call, checks and output, as of `SuperResolutionPipeline`."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hvae_sr.checks import check_count, checked_number
from hvae_sr.images import ImageInput, Photo, prepare_photos
from hvae_sr.operators import cached_downsampling
from hvae_sr.sampling import Consistency
from hvae_sr.sampling.memory import PIXELS_PER_CHUNK, format_bytes, used_and_available
from hvae_sr.sampling.sizes import SizeRequirements, pad_to
from hvae_sr.sampling.windows import Window, split

from .common import Call, PhotoPipeline
from .inputs import SamplingOptions, base_seeds, check_flag, seeds_of_samples, single_photo
from .output import OUTPUT_TYPES, Sample, SuperResolutionOutput, gather

CPU_PIXELS = 2**18
"""HR pixels that the samples of one evaluation have on a CPU, whose caches hold no more."""


class ComparedPipeline(PhotoPipeline):
    """Base of the compared systems: called as `SuperResolutionPipeline` is, with the same seeds and the same output.

    Sample j of every image has the seed `seed + j`, from which all its noise follows by its address, whatever the
    batch. Whether samples are projected on {x : Hx = y} is the configuration's `enforce_consistency` unless the call
    says it: False where the published system does not. Samples of a grey y that are projected are grey; others are of
    the colours that the network gives them, but for a file of one channel.
    """

    has_temperature: ClassVar[bool] = False
    pads_by_reflection: ClassVar[bool] = False
    """Whether y is mirrored where it is padded; else its last row and column are repeated."""
    is_deterministic: ClassVar[bool] = False
    """Whether all samples of an image are the same."""
    has_windows: ClassVar[bool] = False
    """Whether large images are worked on in windows; else the memory of a whole image is looked at before."""

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
        self._checked_temperature(default_temperature, "default_temperature")
        operator = cached_downsampling(scale_factor, downsampling_kernel)
        self.register_to_config(
            scale_factor=operator.scale_factor,
            downsampling_kernel=operator.kernel,
            default_temperature=float(default_temperature),
            enforce_consistency=enforce_consistency,
            **own,
        )
        self._own_arguments({})  # their defaults, as a call would find them

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
    def _loading_options(cls, folder: str, options: dict[str, Any]) -> dict[str, Any]:
        kept = {name: value for name, value in options.items() if name != "load_encoder"}  # of our own systems
        return {"use_safetensors": True, **kept}

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
        effective = {"keep_images", "window_size" if self.has_windows else "max_memory"}
        for option in fields(SamplingOptions):
            value = getattr(options, option.name)
            if option.name not in effective and value is not option.default:
                raise ValueError(f"`{option.name}` has no effect on {type(self).__name__}, got {value!r}")
        enforce = self.projects if enforce_consistency is None else enforce_consistency
        check_flag("enforce_consistency", enforce)
        check_count("num_samples", num_samples, 1)
        check_count("batch_size", batch_size, 1, optional=True)
        if output_type not in OUTPUT_TYPES or output_type == "latent":
            raise ValueError(f"`output_type` must be one of {', '.join(OUTPUT_TYPES[:-1])}; got {output_type!r}")
        return Call(self._checked_temperature(temperature), enforce, batch_size, output_type, options, own=own)

    def _checked_temperature(self, temperature: Any, name: str = "temperature") -> float:
        value = self.config.default_temperature if temperature is None else temperature
        number = checked_number(name, value)
        if not self.has_temperature and value != 1:
            raise ValueError(f"`{name}` must be None or 1 for {type(self).__name__}, which has none; got {value!r}")
        return number

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
        chosen = seeds_of_samples(seeds)
        call = self.check_inputs(temperature, 1, enforce_consistency, batch_size, output_type, options, **named)
        y, photo = single_photo(image)
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
            image, num_samples, seed, generator, batch_size, return_dict: as of `SuperResolutionPipeline.__call__`.
            temperature: factor of the latents' standard deviations, where the system has it; None means the
                configuration's.
            enforce_consistency: whether samples are projected on {x : Hx = y}; None means what the configuration says.
            output_type: "pil", "np" or "pt".
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

        # 2. Sample, image by image, and gather.
        evaluations = 1 if self.is_deterministic else num_samples * self._evaluations(call)
        with self.progress_bar(total=len(photos) * evaluations) as bar:
            drawn = (
                (photo, self._draw(y, photo, seeds[i * num_samples : (i + 1) * num_samples], call, bar.update))
                for i, (y, photo) in enumerate(photos)
            )
            output = gather(drawn, num_samples, output_type, seeds, call.options.keep_images)
        return output if return_dict else output.to_tuple()

    @torch.no_grad()
    def _draw(
        self, y: Tensor, photo: Photo | None, seeds: list[int], call: Call, advance: Callable[[int], None]
    ) -> Iterator[Sample]:
        """The samples of one photograph, a chunk of them at a time."""
        y = y.to(self._execution_device)
        # What is projected has the colours of y; else those of the network are left, as the published code does.
        grey = None if call.enforce_consistency else photo is not None and photo.grey
        consistency = Consistency(self.operator, y, call.enforce_consistency, grey)
        chunk = len(seeds) if self.is_deterministic else call.batch_size or self._samples_at_once(y)
        with self._releasing():
            for start in range(0, len(seeds), chunk):
                own = seeds[start : start + chunk]
                out = self._sample(y, own[:1] if self.is_deterministic else own, call, advance)
                for position, seed in enumerate(own):
                    # What is made consistent is overwritten, and serves all samples of a deterministic system.
                    drawn = out[0].clone() if self.is_deterministic else out[position]
                    yield Sample.of(start + position, consistency(drawn), consistency, photo, call.output_type, seed)

    def _in_windows(self, y: Tensor, call: Call, batch: int, evaluate: Callable[[Tensor, Window], Tensor]) -> Tensor:
        """`[batch, 3, s h, s w]`, fp32, put together from `evaluate(y in a window, window)`, `[1, 3, h, w]` the former.

        Of y, `window_margin` pixels around a window are seen and not kept.
        """
        height, width = self.sizes.padded((y.shape[-2], y.shape[-1]))
        y = pad_to(y[None], (height, width), self.pads_by_reflection)
        scale, multiple = self.config.scale_factor, self.sizes.multiple
        margin = math.ceil(self.config.window_margin / multiple) * multiple
        side = call.options.window_size or max(math.isqrt(PIXELS_PER_CHUNK) // scale - 2 * margin, margin)
        whole = y.new_empty(batch, 3, height * scale, width * scale)
        for window in split(height, width, max(side // multiple, 1) * multiple, margin):
            window.paste(evaluate(y[window.view()], window), whole, scale)
        return whole

    @contextmanager
    def _fixed(self, network: nn.Module) -> Iterator[None]:
        """The network without dropout and without gradients of its parameters; afterwards it is what it was."""
        trained, training = [p for p in network.parameters() if p.requires_grad], network.training
        try:
            network.requires_grad_(False).eval()
            yield
        finally:
            network.train(training)
            for parameter in trained:
                parameter.requires_grad_()

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
