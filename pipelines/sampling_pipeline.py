"""Samples of one photograph, one after the other: what `SuperResolutionPipeline` and its further methods build on."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hvae_sr.checks import check_count
from hvae_sr.hooks import uncompiled
from hvae_sr.images import ImageInput, Photo
from hvae_sr.loading import given_dtype
from hvae_sr.models import VDVAE, LRConditioner, LREncoder
from hvae_sr.models.distributions import group_temperatures
from hvae_sr.operators import cached_downsampling
from hvae_sr.posterior import Calibration, Recipe, composite, noise_of
from hvae_sr.sampling import Budget, Consistency, Networks, SelfEnsemble, WindowSampler, budget

from .common import Call
from .computing import Computing
from .inputs import (
    SamplingOptions,
    check_consistency,
    check_flag,
    check_network,
    chosen_consistency,
    is_list,
    seeds_of_samples,
    single_photo,
)
from .output import OUTPUT_TYPES, Sample


class SamplingPipeline(Computing):
    """Two networks, an operator, and the iterator over samples; `SuperResolutionPipeline` has the arguments."""

    model_cpu_offload_seq = "lr_encoder->vdvae"
    component_classes = {"vdvae": ("hvae_sr.VDVAE",), "lr_encoder": ("hvae_sr.LREncoder", "hvae_sr.LRConditioner")}

    def __init__(
        self,
        vdvae: VDVAE,
        lr_encoder: LREncoder | LRConditioner,
        scale_factor: int = 4,
        downsampling_kernel: str | Sequence[float] = "bicubic",
        default_temperature: float = 0.8,
        input_description: str | None = None,
        fast_inference: bool = False,
        consistency: str = "exact",
        calibration: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_network("vdvae", vdvae, VDVAE)
        check_network("lr_encoder", lr_encoder, LREncoder, LRConditioner)
        check_flag("fast_inference", fast_inference)
        check_consistency(consistency)
        if not isinstance(default_temperature, Real):
            raise ValueError(f"`default_temperature` must be a number, got {default_temperature!r}")
        group_temperatures(default_temperature, vdvae.num_groups, "default_temperature")
        operator = cached_downsampling(scale_factor, downsampling_kernel)
        self.register_modules(vdvae=vdvae, lr_encoder=lr_encoder)
        self.register_to_config(
            scale_factor=operator.scale_factor,
            downsampling_kernel=operator.kernel,
            default_temperature=float(default_temperature),
            input_description=input_description,
            fast_inference=fast_inference,
            consistency=consistency,
            calibration=None if calibration is None else Calibration.from_dict(calibration).to_dict(),
        )
        if fast_inference:
            self.enable_fast_inference()
        lr_encoder.check_fit(vdvae.config, operator)

    def __setattr__(self, name: str, value: Any) -> None:
        """A network in the place of another one ends the calibration, which was of that one."""
        before = self.__dict__.get(name)
        super().__setattr__(name, value)
        if name in ("vdvae", "lr_encoder") and before is not None:
            if uncompiled(value) is not uncompiled(before):  # else the same network as a graph
                self._forget_calibration({name: value})

    @property
    def calibration(self) -> Calibration | None:
        """What `calibrate` has found, if anything."""
        found = self.config.calibration
        return None if found is None else Calibration.from_dict(found)

    @property
    def networks(self) -> Networks:
        """The two networks and how they are evaluated."""
        return Networks(self.vdvae, self.lr_encoder, self.config.scale_factor, self.compiled_networks)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Any:
        """Loads a pipeline from a bundled name such as "natural-x4", a folder, or the Hub.

        Args:
            pretrained_model_name_or_path: name, folder or Hub id.
            dtype: of the weights, as everywhere in diffusers. With None or "auto" the pipeline computes as its
                configuration says, the bundled ones fast (see `enable_fast_inference`); `torch.float32` also computes
                in float32. `torch.bfloat16` halves the memory of the weights, and leaves streams and heads in
                bfloat16 too, which is less exact than the default.
            load_encoder: whether the VDVAE's encoder of HR images is loaded, which sampling has no use for (about 40%
                of the weights).
            **kwargs: others of `DiffusionPipeline.from_pretrained`.

        Raises:
            ValueError: an unknown name, or a folder that is damaged or holds something else.
            OSError: what the Hub answers.
        """
        dtype = given_dtype(kwargs)
        loaded = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        pipe = loaded[0] if isinstance(loaded, tuple) else loaded
        if dtype is not None:
            pipe.disable_fast_inference()
        pipe._forget_calibration(kwargs)
        return loaded

    @classmethod
    def _loading_options(cls, folder: str, options: dict[str, Any]) -> dict[str, Any]:
        """With the VDVAE, where its encoder is left out."""
        if options.pop("load_encoder", True) or "vdvae" in options:
            return options
        device_map = options.get("device_map")
        names = ("cache_dir", "force_download", "local_files_only", "token", "revision", "variant", "proxies")
        own = {name: options[name] for name in names if name in options}
        if not os.path.isdir(folder):  # from the Hub as a whole, which says better than for a part what is wrong
            folder, own = cls.download(folder, **own), {name: own[name] for name in ("variant",) if name in own}
            options.pop("force_download", None)
        if "variant" in own and not any((Path(folder) / "vdvae").glob(f"*.{own['variant']}.*")):
            del own["variant"]  # as diffusers does for each component
        if isinstance(device_map, str) and device_map != "balanced":  # diffusers does not place what it is given
            own["device_map"] = device_map
        dtype = options.get("dtype")
        dtype = dtype.get("vdvae", dtype.get("default")) if isinstance(dtype, dict) else dtype
        own |= {"dtype": dtype} if dtype is not None else {}
        return {**options, "vdvae": VDVAE.from_pretrained(folder, subfolder="vdvae", encoder_blocks=None, **own)}

    def check_inputs(
        self,
        temperature: float | Sequence[float] | None = None,
        num_samples: int = 1,
        enforce_consistency: bool | None = None,
        num_conditioned_groups: int | None = None,
        latents: Sequence[Tensor | None] | None = None,
        batch_size: int | None = None,
        output_type: str = "pil",
        options: SamplingOptions | None = None,
        **named: Any,
    ) -> Call:
        """What all photographs of a call share; raises a ValueError that names the argument and its value."""
        options = SamplingOptions.gather(options, named)
        options.check()
        groups = self.vdvae.num_groups
        if self.vdvae.device.type == "meta" and not hasattr(self.vdvae, "_hf_hook"):
            raise ValueError("the pipeline's weights are on the device 'meta': load them with `from_pretrained`")
        self.lr_encoder.check_fit(self.vdvae.config, self.operator)  # each may have been put in by itself
        temperature = self.config.default_temperature if temperature is None else temperature
        group_temperatures(temperature, groups)
        check_count("num_samples", num_samples, 1)
        enforced = chosen_consistency(enforce_consistency, self.config.consistency)
        check_count("batch_size", batch_size, 1, optional=True)
        check_count("num_conditioned_groups", num_conditioned_groups, 0, groups, optional=True)
        check_count("num_fixed_groups", options.num_fixed_groups, 0, groups, optional=True)
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"`output_type` must be one of {', '.join(OUTPUT_TYPES)}; got {output_type!r}")
        if options.lr_posterior_temperature is not None:
            group_temperatures(options.lr_posterior_temperature, groups, "lr_posterior_temperature")
            if not isinstance(self.lr_encoder, LREncoder):
                raise ValueError("`lr_posterior_temperature` has no effect on this model: it has no q_psi(z|y)")
        if options.num_fixed_groups is not None and not isinstance(latents, (list, tuple)):
            raise ValueError(f"`num_fixed_groups` needs a list of `latents`, got {type(latents).__name__}")
        if options.noise is not None and options.sample_pixels:
            raise ValueError("`noise` holds no draws of pixels: `sample_pixels=True` needs `seed` or `generator`")
        spatial = self.vdvae.config.bias_type == "spatial"
        for name in ("window_size", "window_margin") if spatial else ():
            if getattr(options, name) is not None:
                raise ValueError(f"`{name}` has no effect on this model: it works at one size only")
        if options.tile and not spatial:
            raise ValueError("`tile=True` has no effect on this model: it works on images of any size")
        if options.self_ensemble and spatial:
            raise ValueError("`self_ensemble` must be False for this model: it knows images of one orientation only")
        given = {"latents": latents is not None or output_type == "latent", "noise": options.noise is not None}
        given["return_latents"] = options.return_latents
        for name in [name for name, value in given.items() if value] if options.self_ensemble else []:
            raise ValueError(
                f"`self_ensemble` = {options.self_ensemble!r} goes with seeds alone, not with `{name}`: its samples "
                "have no common grid of latents"
            )
        return Call(temperature, enforced, batch_size, output_type, options, num_conditioned_groups)

    def samples(
        self,
        image: ImageInput | Photo,
        seeds: Sequence[int] | None = None,
        temperature: float | Sequence[float] | None = None,
        enforce_consistency: bool | None = None,
        num_conditioned_groups: int | None = None,
        batch_size: int | None = None,
        output_type: str = "pil",
        recipes: Sequence[Recipe] | None = None,
        options: SamplingOptions | None = None,
        **named: Any,
    ) -> Iterator[Sample]:
        """The samples of one photograph, one after the other; memory does not grow with their number.

        Args:
            image: y, one image: see `__call__`.
            seeds: of the samples; each gives the same sample alone, in any batch, and in a call with that seed.
            temperature, enforce_consistency, num_conditioned_groups, batch_size, output_type, options: see `__call__`.
            recipes: instead of seeds, where the noise of a sample is that of several (`hvae_sr.posterior.Recipe`).
            **named: `SamplingOptions` by name, but for `noise`.

        Raises:
            ValueError: as a call, before the first sample; or neither or both of `seeds` and `recipes`.
        """
        if (seeds is None) == (recipes is None):
            raise ValueError("either `seeds` or `recipes` must be given, a list with an entry for each sample")
        if recipes is not None and (not is_list(recipes) or not len(recipes)):
            raise ValueError(f"`recipes` must be a list that is not empty, got {recipes!r}")
        for name in ("latents", "num_samples", "num_fixed_groups", "noise", "seed", "generator"):
            if named.pop(name, None) is not None:
                raise ValueError(f"`{name}` is an argument of a call; samples are named by `seeds` or `recipes`")
        groups = self.vdvae.num_groups
        given = list(recipes) if recipes is not None else [Recipe.of(seed, groups) for seed in seeds_of_samples(seeds)]
        call = self.check_inputs(
            temperature, 1, enforce_consistency, num_conditioned_groups, None, batch_size, output_type, options, **named
        )
        if call.options.noise is not None:
            raise ValueError("`noise` was given together with `seeds` or `recipes`, which would have no effect")
        # Whoever reads the samples keeps their images, or not.
        call = replace(call, options=replace(call.options, keep_images=False))
        y, photo = single_photo(image)
        self._check_size(y, call, recipes is not None)
        size = self._size_of_samples(y)
        for recipe in recipes or ():
            if not isinstance(recipe, Recipe):
                raise ValueError(f"`recipes` must be a list of Recipe, got {recipe!r}")
            recipe.check(groups, size)
            if recipe.seed is None and call.options.self_ensemble:
                raise ValueError("`self_ensemble` must be False for recipes of several seeds or regions")
        return self._released(self._draw(y, photo, call, given, None, None))

    def _released(self, samples: Iterator[Sample]) -> Iterator[Sample]:
        """The same, and offloaded networks leave the device at the end, also of an iterator that is given up."""
        with self._releasing():
            yield from samples

    def _check_size(self, y: Tensor, call: Call, whole: bool, tiles: bool = True) -> None:
        """Raises a ValueError for a size that the networks do not take, or for latents of an image in several tiles.

        `tiles` says whether the method has an argument `tile`.
        """
        size, sizes = (y.shape[-2], y.shape[-1]), self.networks.sizes
        sizes.check(size, call.options.tile if tiles else None, self.config.input_description)
        whole = whole or call.keep_latents
        if whole and sizes.fixed_side is not None and sizes.padded(size) != (sizes.fixed_side,) * 2:
            raise ValueError("`latents` and `noise` cannot be given or returned for an image in several tiles")

    @torch.no_grad()
    def _draw(
        self,
        y: Tensor,
        photo: Photo | None,
        call: Call,
        recipes: list[Recipe] | None,
        noise: list[Tensor | None] | None,
        latents: list[Tensor | None] | None,
        bounded: Budget | None = None,
    ) -> Iterator[Sample]:
        """The samples of one photograph, a chunk of them at a time: of recipes, or of given noise.

        `noise` and `latents` have one row for each sample, or latents one for all. `bounded` None stands for what
        `_budget` says when they are drawn.
        """
        options, device = call.options, self._execution_device
        y = y.to(device)
        sources: Any = recipes if recipes is not None else (noise or [None])[0]
        count = len(sources)
        consistency = Consistency(self.operator, y, call.enforce_consistency)
        known = self.config.consistency == "exact"  # whether y is H of anything
        room = bounded or self._budget(y, count, call)
        make = partial(
            WindowSampler, self.networks, window_size=options.window_size, budget=room, margin=options.window_margin
        )
        arguments = {
            "temperature": call.temperature,
            "lr_posterior_temperature": options.lr_posterior_temperature,
            "num_conditioned_groups": call.num_conditioned_groups,
            "sample_pixels": options.sample_pixels,
            "return_latents": call.keep_latents,
        }
        sampler = make(y)
        ensemble = SelfEnsemble(make, y) if options.self_ensemble else None

        drawn: dict[Recipe, Tensor] = {}  # what versions of one sample share, and the version itself

        def plain(recipe: Recipe) -> Tensor:
            if recipe not in drawn:
                with self._computing():
                    out = sampler.sample(1, noise_of([recipe]), None, **arguments)
                drawn[recipe] = consistency.image(out.sample[0], clamp=False)
            return drawn[recipe]

        chunk = sampler.samples_at_once
        if call.batch_size is not None and device.type != "cpu":
            chunk = call.batch_size
        for start in range(0, count, chunk):
            rows = range(start, min(start + chunk, count))
            own = recipes and [recipes[row] for row in rows]
            given = rows_of(latents, slice(rows.start, rows.stop))
            with self._computing():
                if ensemble is not None:
                    assert own is not None
                    out = ensemble.sample([recipe.group_seeds[0] for recipe in own], **arguments)
                else:
                    draws = noise_of(own) if own else rows_of(noise, slice(rows.start, rows.stop)) or []
                    out = sampler.sample(len(rows), draws, given, **arguments)
            for position, row in enumerate(rows):
                z = tuple(group[position : position + 1] for group in out.latents)
                seed = own[position].seed if own else None
                if call.output_type == "latent":
                    yield Sample(row, None, None, seed, float("nan"), float("nan"), float("nan"), z)
                    continue
                is_version = bool(own and own[position].regions)
                made = consistency(out.sample[position], clamp=not is_version)
                if own and is_version:
                    for recipe in [recipe for recipe in drawn if recipe.regions]:
                        del drawn[recipe]
                    drawn[own[position]] = made[0]
                    x = composite(plain, self.operator if known else None, own[position])
                    made = (x.clamp(0, 1), consistency.lr_psnr(x), made[2])
                    del x
                yield Sample.of(row, made, consistency, photo, call.output_type, seed, z)
                del made
            del out

    def _budget(self, y: Tensor, count: int, call: Call, held: int = 0) -> Budget:
        """What the samples of a photograph may take of memory, beside `held` bytes that will be in use by then.

        Raises:
            ValueError: there is too little, or too little for the `window_size`.
        """
        options = call.options
        found = budget(
            self.vdvae, self._size_of_samples(y), count, call.output_type, options.keep_images, options.max_memory,
            self._execution_device, options.self_ensemble, call.batch_size, call.keep_latents,
            self.networks.min_pixels, held,
        )  # fmt: skip
        sampler = WindowSampler(self.networks, y, options.window_size, found, options.window_margin)
        sampler.check_windows(options.max_memory)
        return found

    def _size_of_samples(self, y: Tensor) -> tuple[int, int]:
        return y.shape[-2] * self.operator.scale_factor, y.shape[-1] * self.operator.scale_factor


def rows_of(values: Sequence[Tensor | None] | None, chosen: slice) -> list[Tensor | None] | None:
    """Rows of given noise or latents; a single row serves all."""
    if values is None:
        return None
    return [z if z is None or z.shape[0] == 1 else z[chosen] for z in values]
