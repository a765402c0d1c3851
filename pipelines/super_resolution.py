"""The pipeline: low-resolution photographs in, many plausible high-resolution ones out."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from pickle import UnpicklingError
from typing import Any

import torch
from diffusers import DiffusionPipeline
from safetensors import SafetensorError
from torch import Tensor

from hvae_sr.checkpoints.names import resolve
from hvae_sr.images import ImageInput, Photo, prepare_photos
from hvae_sr.models import VDVAE, LRConditioner, LREncoder
from hvae_sr.models.loading import without_warning
from hvae_sr.models.top_down import group_temperatures
from hvae_sr.operators import Downsampling

from .fast_inference import FastInference
from .finishing import Finisher
from .inputs import check_components, check_count, check_groups, check_temperature, sample_seeds
from .memory import budget
from .orientations import SelfEnsemble
from .output import OUTPUT_TYPES, Sample, SuperResolutionOutput, collate
from .sampling import WindowSampler

_LOADING_ERRORS = (
    OSError,
    ValueError,
    ArithmeticError,
    MemoryError,
    RuntimeError,
    AttributeError,
    LookupError,
    TypeError,
    SafetensorError,
    UnpicklingError,
)
"""What diffusers raises on folders that are damaged or hold something else."""


class SuperResolutionPipeline(FastInference, DiffusionPipeline):
    """Draws samples of p(x|y) for low-resolution images y, one network evaluation each, exactly consistent with y.

    Either system runs here: CVDVAE (an `LREncoder` gives q_psi(z_<k|y) of a frozen prior) and VDVAE-SR (an
    `LRConditioner` conditions the prior itself). At the end each sample is projected on the images that the
    degradation maps to y: x̂ = (I - H⁺H) x + H⁺ y (CVDVAE slides, eq. 14).

    Args:
        vdvae: the prior.
        lr_encoder: `LREncoder` or `LRConditioner`.
        scale_factor: sides of x over sides of y.
        downsampling_kernel: H, a kernel of `Downsampling`.
        default_temperature: what `temperature=None` means.
        input_description: what the model expects of its input beyond its size, such as how faces are aligned; for
            people.
        fast_inference: whether the pipeline starts as `enable_fast_inference` leaves it. Saved with the pipeline: it
            belongs to weights on which the fast dtype was found to be accurate, as it was on the bundled ones.
    """

    model_cpu_offload_seq = "lr_encoder->vdvae"

    def __init__(
        self,
        vdvae: VDVAE,
        lr_encoder: LREncoder | LRConditioner,
        scale_factor: int = 4,
        downsampling_kernel: str = "bicubic",
        default_temperature: float = 0.8,
        input_description: str | None = None,
        fast_inference: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(fast_inference, bool):
            raise ValueError(f"`fast_inference` must be True or False, got {fast_inference!r}")
        group_temperatures(default_temperature, vdvae.num_groups, "default_temperature")
        self.operator = Downsampling(scale_factor, downsampling_kernel)
        self.register_modules(vdvae=vdvae, lr_encoder=lr_encoder)
        self.register_to_config(
            scale_factor=scale_factor,
            downsampling_kernel=self.operator.kernel,
            default_temperature=default_temperature,
            input_description=input_description,
            fast_inference=fast_inference,
        )
        if fast_inference:
            self.enable_fast_inference()
        lr_encoder.check_fit(vdvae.config, self.operator)

    @classmethod
    def load_config(cls, *args: Any, **kwargs: Any) -> Any:
        """`DiffusionPipeline.load_config`, for an index that names classes of this package alone.

        diffusers would import the module of any other class, before a pipeline could refuse it.
        """
        config = super().load_config(*args, **kwargs)
        check_components(config[0] if isinstance(config, tuple) else config)
        return config

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
            ValueError: an unknown name, or weights that cannot be read.
        """
        folder = resolve(pretrained_model_name_or_path)
        load_encoder = kwargs.pop("load_encoder", True)
        dtypes = [kwargs.pop(name, None) for name in ("dtype", "torch_dtype")]
        dtype = next((given for given in dtypes if given not in (None, "auto")), None)
        if dtype is not None:
            kwargs["dtype"] = dtype
        try:
            if not load_encoder and "vdvae" not in kwargs:
                names = ("cache_dir", "force_download", "local_files_only", "token", "revision", "variant", "proxies")
                options = {name: kwargs[name] for name in names if name in kwargs}
                own = dtype.get("vdvae", dtype.get("default")) if isinstance(dtype, dict) else dtype
                options |= {"dtype": own} if own is not None else {}
                kwargs["vdvae"] = VDVAE.from_pretrained(folder, subfolder="vdvae", encoder_blocks=None, **options)
            with without_warning("You have passed a non-standard module"):  # ours, and checked by `check_fit`
                loaded = super().from_pretrained(folder, **kwargs)
        except _LOADING_ERRORS as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            reason = reason if len(reason) <= 1000 else f"{reason[:1000]}..."
            raise ValueError(f"cannot load {os.fspath(pretrained_model_name_or_path)!r}: {reason}") from error
        if dtype is not None:
            (loaded[0] if isinstance(loaded, tuple) else loaded).disable_fast_inference()
        return loaded

    def check_inputs(
        self,
        temperature: float | Sequence[float],
        num_samples: int,
        batch_size: int | None = None,
        lr_posterior_temperature: float | Sequence[float] | None = None,
        window_size: int | None = None,
        output_type: str = "pil",
        seed: int | Sequence[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        noise: Sequence[Tensor] | None = None,
        num_conditioned_groups: int | None = None,
        sample_pixels: bool = False,
        self_ensemble: bool = False,
    ) -> None:
        """Raises a ValueError that names the argument and its value."""
        check_count("num_samples", num_samples, 1)
        check_count("batch_size", batch_size, 1, optional=True)
        check_count("window_size", window_size, 1, optional=True)
        groups = self.vdvae.num_groups
        check_count("num_conditioned_groups", num_conditioned_groups, 0, groups, optional=True)
        check_temperature("temperature", temperature, groups)
        check_temperature("lr_posterior_temperature", lr_posterior_temperature, groups)
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"`output_type` must be one of {', '.join(OUTPUT_TYPES)}; got {output_type!r}")
        if seed is not None and generator is not None:
            raise ValueError("`seed` and `generator` were both given; a generator only supplies seeds")
        if noise is not None and (seed is not None or generator is not None):
            raise ValueError("`noise` was given together with `seed` or `generator`, which would have no effect")
        if noise is not None and sample_pixels:
            raise ValueError("`noise` holds no draws of pixels: `sample_pixels=True` needs `seed` or `generator`")
        if lr_posterior_temperature is not None and not isinstance(self.lr_encoder, LREncoder):
            raise ValueError("`lr_posterior_temperature` has no effect on this model: it has no q_psi(z|y)")
        if self_ensemble and self.vdvae.config.bias_type == "spatial":
            raise ValueError("`self_ensemble` must be False for this model: it knows images of one orientation only")

    @torch.no_grad()
    def __call__(
        self,
        image: ImageInput | Photo | Sequence[ImageInput | Photo],
        temperature: float | Sequence[float] | None = None,
        num_samples: int = 1,
        enforce_consistency: bool = True,
        seed: int | Sequence[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        num_conditioned_groups: int | None = None,
        lr_posterior_temperature: float | Sequence[float] | None = None,
        noise: Sequence[Tensor] | None = None,
        latents: Sequence[Tensor | None] | None = None,
        num_fixed_groups: int | None = None,
        sample_pixels: bool = False,
        self_ensemble: bool = False,
        batch_size: int | None = None,
        window_size: int | None = None,
        max_memory: int | None = None,
        tile: bool = False,
        output_type: str = "pil",
        return_latents: bool = False,
        callback_on_sample_end: Callable[["SuperResolutionPipeline", Sample], None] | None = None,
        keep_images: bool = True,
        return_dict: bool = True,
    ) -> SuperResolutionOutput | tuple[Any, ...]:
        """Samples of p(x|y) for each image, at exactly `scale_factor` times its size.

        Args:
            image: y: a PIL image, path, numpy array (`[h, w, 3]`, `[n, h, w, 3]`), tensor (`[3, h, w]`, `[n, 3, h, w]`;
                floats in [0, 1] or uint8), or a list of these; sizes may differ.
            temperature: factor of the latents' standard deviations, one for all groups or one for each; 0 is
                deterministic. None means the pipeline's `default_temperature`.
            num_samples: samples of each image.
            enforce_consistency: whether samples are projected on {x : Hx = y}.
            seed: sample j of every image has the seed `seed + j`; a list gives one base seed for each image.
            generator: supplies a base seed for each image; or one generator for each image.
            num_conditioned_groups: lets y into the first so many groups only; None means all that the model has. A
                likelihood that is centred on y stays so.
            lr_posterior_temperature: the temperature of the groups drawn from q_psi (CVDVAE), if it is to differ; the
                published CVDVAE code leaves it at 1.
            noise: standard normal draws instead of seeds, one `[N, C, h, w]` tensor for each group, N = images x
                samples (images of one size only).
            latents: values z instead of draws, for the first groups or with None for groups that are to be drawn,
                `[N, C, h, w]` or `[1, C, h, w]` each (images of one size only).
            num_fixed_groups: keeps the first so many groups of `latents` and draws the others anew.
            sample_pixels: draws pixels from p(x|z) instead of returning E[x|z]; adds white noise.
            self_ensemble: draws the sample of seed s from y in orientation s mod 8 (mirrored, turned) and turns it
                back: a sampler that does not depend on how y is turned, and a more accurate mean of several samples
                (`SelfEnsemble`), best of a multiple of eight. y is encoded again whenever the orientation changes.
            batch_size: samples for each network evaluation; None chooses by size. Results do not depend on it.
            window_size: side, in pixels of y, of the windows that larger images are sampled in, margins left out;
                None chooses windows of a million HR pixels, or as many as `max_memory` allows. A window sees the noise
                of the whole, and the projection is that of the whole.
            max_memory: bytes that the process (on a GPU: the device) may take, for which windows and chunks are made
                small enough; None means half of what is available beyond what is used already.
            tile: lets a model of one image size work on images of any other, in blended tiles of its size.
            output_type: "pil", "np", "pt", or "latent" (only z).
            return_latents: also returns z.
            callback_on_sample_end: called with the pipeline and each finished `Sample`, in order.
            keep_images: whether samples are returned; if not, `images` is empty and memory does not grow with their
                number: for a callback that writes them, or where mean and standard deviation are all.
            return_dict: a `SuperResolutionOutput`, or its tuple.

        Raises:
            ValueError: an argument that is out of range or does not fit; the message names it. Or samples with values
                that are not finite.
        """
        # 1. Check and convert the inputs.
        temperature = self.config.default_temperature if temperature is None else temperature
        self.check_inputs(
            temperature=temperature,
            num_samples=num_samples,
            batch_size=batch_size,
            lr_posterior_temperature=lr_posterior_temperature,
            window_size=window_size,
            output_type=output_type,
            seed=seed,
            generator=generator,
            noise=noise,
            num_conditioned_groups=num_conditioned_groups,
            sample_pixels=sample_pixels,
            self_ensemble=self_ensemble,
        )
        check_count("num_fixed_groups", num_fixed_groups, 0, self.vdvae.num_groups, optional=True)
        check_count("max_memory", max_memory, 1, optional=True)
        if num_fixed_groups is not None:
            if not isinstance(latents, (list, tuple)):
                raise ValueError(f"`num_fixed_groups` needs a list of `latents`, got {type(latents).__name__}")
            latents = list(latents)[:num_fixed_groups]
        if callback_on_sample_end is not None and (output_type == "latent" or not callable(callback_on_sample_end)):
            raise ValueError(
                "`callback_on_sample_end` must be a function, and is given images, not latents; got "
                f"{callback_on_sample_end!r} with `output_type` {output_type!r}"
            )
        photos = prepare_photos(image)
        images = [y for y, _ in photos]  # [3, h, w] in [0, 1] each
        for y in images:
            self._check_image_size(y, tile)
        if (noise is not None or latents is not None) and len({y.shape for y in images}) > 1:
            raise ValueError("`noise` and `latents` need images of one size; `image` has several")
        rows = len(images) * num_samples
        padded_size = WindowSampler(self, images[0]).size if noise is not None or latents is not None else (0, 0)
        check_groups("noise", noise, self.vdvae, padded_size, (rows,), optional=False)
        check_groups("latents", latents, self.vdvae, padded_size, (1, rows), optional=True)
        seeds = None if noise is not None else sample_seeds(seed, generator, len(images), num_samples)
        keep_latents = return_latents or output_type == "latent"
        if self_ensemble and (keep_latents or noise is not None or latents is not None):
            given = "latents" if latents is not None else "noise" if noise is not None else "return_latents"
            raise ValueError(
                f"`self_ensemble` = {self_ensemble!r} goes with seeds alone, not with `{given}`: its samples have no "
                "common grid of latents"
            )
        if keep_latents or noise is not None or latents is not None:
            self._check_one_tile(images)
        arguments = {
            "temperature": temperature,
            "lr_posterior_temperature": lr_posterior_temperature,
            "num_conditioned_groups": num_conditioned_groups,
            "sample_pixels": sample_pixels,
            "return_latents": keep_latents,
        }

        # 2. Sample, image by image, a chunk of samples at a time.
        gathered: dict[str, list[Any]] = {name: [] for name in ("images", "mean", "std", "latents")}
        consistency: list[tuple[float, float, float]] = []
        device = self._execution_device
        with self.progress_bar(total=rows) as bar, self._fast_inference():
            for i, (y, photo) in enumerate(photos):
                y = y.to(device)
                size = (y.shape[-2] * self.operator.scale_factor, y.shape[-1] * self.operator.scale_factor)
                room = budget(
                    self.vdvae,
                    size,
                    num_samples,
                    output_type,
                    keep_images,
                    max_memory,
                    device,
                    self_ensemble,
                    batch_size,
                    keep_latents,
                )
                make = partial(WindowSampler, self, window_size=window_size, room=room)
                sampler = SelfEnsemble(make, y) if self_ensemble else make(y)
                finisher = Finisher(self.operator, y, photo, output_type, num_samples, enforce_consistency)
                chunks = []
                chunk = batch_size or sampler.samples_at_once
                for start in range(0, num_samples, chunk):
                    stop = min(start + chunk, num_samples)
                    chosen = slice(i * num_samples + start, i * num_samples + stop)
                    out = sampler.sample(
                        stop - start,
                        seeds and seeds[chosen],
                        _rows(noise, chosen),
                        _rows(latents, chosen),
                        arguments,
                    )
                    chunks.append(out.latents)
                    if output_type != "latent":
                        for index, sample in enumerate(out.sample, chosen.start):
                            finished = finisher.add(sample, index, None if seeds is None else seeds[index])
                            consistency.append((finished.lr_psnr, finished.lr_psnr_float, finished.lr_psnr_unprojected))
                            if keep_images:
                                gathered["images"].append(finished.image)
                            if callback_on_sample_end is not None:
                                callback_on_sample_end(self, finished)
                            del finished, sample  # which hold the memory of the whole chunk
                    del out
                    bar.update(stop - start)
                del sampler  # its features would count as used when there is a next image
                gathered["latents"].append([torch.cat(group) for group in zip(*chunks, strict=True)])
                if output_type != "latent":
                    gathered["mean"].append(finisher.mean())
                    gathered["std"].append(finisher.std())

        # 3. Gather.
        self.maybe_free_model_hooks()
        all_latents = _join_latents(gathered["latents"]) if keep_latents else None
        if output_type == "latent":
            output = SuperResolutionOutput(images=all_latents, seeds=seeds, latents=all_latents)
        else:
            lr_psnr, lr_psnr_float, lr_psnr_unprojected = (list(values) for values in zip(*consistency, strict=True))
            output = SuperResolutionOutput(
                images=collate(gathered["images"], output_type) if keep_images else [],
                mean=collate(gathered["mean"], output_type),
                std=collate(gathered["std"], "pt" if output_type == "pt" else "np"),
                lr_psnr=lr_psnr,
                lr_psnr_float=lr_psnr_float,
                lr_psnr_unprojected=lr_psnr_unprojected,
                seeds=seeds,
                latents=all_latents,
            )
        return output if return_dict else output.to_tuple()

    def _check_image_size(self, y: Tensor, tile: bool) -> None:
        height, width = y.shape[-2:]
        if min(height, width) < 2:
            raise ValueError(f"`image` must be at least 2x2 pixels, got {width}x{height} (width x height)")
        side = self.lr_encoder.config.image_size
        if self.vdvae.config.bias_type == "spatial" and (height, width) != (side, side) and not tile:
            expects = f" of {self.config.input_description}" if self.config.input_description else ""
            raise ValueError(
                f"`image` must be {side}x{side} pixels{expects}: this model works at one size only; got "
                f"{width}x{height}. `tile=True` blends tiles of that size"
            )

    def _check_one_tile(self, images: Sequence[Tensor]) -> None:
        """Raises a ValueError where latents or noise of an image in tiles are asked for, as they cannot be joined."""
        if self.vdvae.config.bias_type == "spatial" and any(len(WindowSampler(self, y).windows) > 1 for y in images):
            raise ValueError("`latents` and `noise` cannot be given or returned for an image in several tiles")


def _join_latents(images: list[list[Tensor]]) -> Any:
    """Latents of each image, one `[n, C, h, w]` for each group -> those of all, or the list where sizes differ."""
    groups = list(zip(*images, strict=True))
    if any(len({z.shape for z in group}) > 1 for group in groups):
        return images
    return [torch.cat(group) for group in groups]


def _rows(values: Sequence[Tensor | None] | None, chosen: slice) -> list[Tensor | None] | None:
    """Rows of given noise or latents; a single row serves all."""
    if values is None:
        return None
    return [z if z is None or z.shape[0] == 1 else z[chosen] for z in values]
