"""The pipeline: low-resolution photographs in, many plausible high-resolution ones out."""

from collections.abc import Iterator, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hvae_sr.checks import check_count
from hvae_sr.images import ImageInput, Photo, prepare_photos
from hvae_sr.posterior import Rank, Recipe, log_density, rank, read_mask
from hvae_sr.sampling import WindowSampler, budget, held_by

from .inputs import SamplingOptions, base_seeds, check_finite, single_photo
from .intervals import IntervalPipeline
from .output import Sample, SuperResolutionOutput, collate, gather
from .sampling_pipeline import rows_of


class SuperResolutionPipeline(IntervalPipeline):
    """Draws samples of p(x|y) for low-resolution images y, one network evaluation each, exactly consistent with y.

    Either system runs here: CVDVAE (an `LREncoder` gives q_psi(z_<k|y) of a frozen prior) and VDVAE-SR (an
    `LRConditioner` conditions the prior itself). At the end each sample is projected on the images that the
    degradation maps to y: x̂ = (I - H⁺H) x + H⁺ y (CVDVAE slides, eq. 14), unless the model does not know H.

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
        consistency: "exact": y is Hx, and samples are projected. "none": the model is for images whose degradation is
            not known (see `hvae_sr.data.degrade`); there is no H to project by. `lr_psnr` is then measured all the
            same, by `downsampling_kernel`: information, not a promise, as a good sample is not H's inverse of noise.
        calibration: what `calibrate` has found, as a dictionary; saved with the pipeline.
    """

    @torch.no_grad()
    def __call__(
        self,
        image: ImageInput | Photo | Sequence[ImageInput | Photo],
        temperature: float | Sequence[float] | None = None,
        num_samples: int = 1,
        enforce_consistency: bool | None = None,
        seed: int | Sequence[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        num_conditioned_groups: int | None = None,
        latents: Sequence[Tensor | None] | None = None,
        batch_size: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        options: SamplingOptions | None = None,
        **named: Any,
    ) -> SuperResolutionOutput | tuple[Any, ...]:
        """Samples of p(x|y) for each image, at exactly `scale_factor` times its size.

        Args:
            image: y: a PIL image, path, numpy array (`[h, w, 3]`, `[n, h, w, 3]`), tensor (`[3, h, w]`, `[n, 3, h, w]`;
                floats in [0, 1] or uint8), or a list of these; sizes may differ. A PIL image is turned as its EXIF
                tells, so one that you have turned must not tell it any more (`PIL.ImageOps.exif_transpose`).
            temperature: factor of the latents' standard deviations, one for all groups or one for each; 0 is
                deterministic. None means the pipeline's `default_temperature`.
            num_samples: samples of each image.
            enforce_consistency: whether samples are projected on {x : Hx = y}; None means what the model's
                configuration says: yes, unless its `consistency` is "none", where True is an error.
            seed: sample j of every image has the seed `seed + j`; a list gives one base seed for each image.
            generator: supplies a base seed for each image; or one generator for each image.
            num_conditioned_groups: lets y into the first so many groups only; None means all that the model has. A
                likelihood that is centred on y stays so, and a restorer's share (`restored_shares`) its.
            latents: values z instead of draws, for the first groups or with None for groups that are to be drawn,
                `[N, C, h, w]` or `[1, C, h, w]` each, N = images x samples (images of one size only). With a model of
                `restored_shares` the image depends on `temperature` as well: give that of the draw.
            batch_size: samples for each network evaluation (on a CPU always one); None chooses by size. Results do not
                depend on it.
            output_type: "pil", "np", "pt", or "latent" (only z).
            return_dict: a `SuperResolutionOutput`, or its tuple.
            options: the rare arguments, `SamplingOptions`.
            **named: the same by name, such as `self_ensemble=True`.

        Raises:
            ValueError: an argument that is out of range or does not fit; the message names it. Or samples with values
                that are not finite.
        """
        # 1. Check and convert the inputs.
        call = self.check_inputs(
            temperature, num_samples, enforce_consistency, num_conditioned_groups, latents, batch_size, output_type,
            options, **named,
        )  # fmt: skip
        noise, fixed = call.options.noise, call.options.num_fixed_groups
        for name, tensors in (("noise", noise), ("latents", latents)):
            if tensors is not None and not isinstance(tensors, (list, tuple)):
                raise ValueError(
                    f"`{name}` must be a list of tensors, one for each group; got {type(tensors).__name__}"
                )
        if noise is not None and (not noise or any(draw is None for draw in noise)):
            raise ValueError(f"`noise` must be a list of tensors, one for each group, without None; got {len(noise)}")
        if noise is not None and (seed is not None or generator is not None):
            raise ValueError("`noise` was given together with `seed` or `generator`, which would have no effect")
        photos = prepare_photos(image)
        given = noise is not None or latents is not None
        budgets, held = [], 0
        for y, _ in photos:
            self._check_size(y, call, given)
            budgets.append(self._budget(y, num_samples, call, held))  # before anything is made for so many samples
            if call.options.max_memory is not None:  # else the bound grows with what is used
                size = self._size_of_samples(y)
                held += held_by(self.vdvae, size, num_samples, output_type, call.options.keep_images, call.keep_latents)
        if given and len({y.shape for y, _ in photos}) > 1:
            raise ValueError("`noise` and `latents` need images of one size; `image` has several")
        rows = len(photos) * num_samples
        padded = self.networks.sizes.output((photos[0][0].shape[-2], photos[0][0].shape[-1]))
        draws = self.vdvae.check_latents("noise", noise, padded, (rows,))
        values = self.vdvae.check_latents(
            "latents", None if latents is None else list(latents)[:fixed], padded, (rows, 1)
        )
        check_finite("noise", draws)
        check_finite("latents", values)
        bases = None if noise is not None else base_seeds(seed, generator, len(photos))

        # 2. Sample, image by image, and gather.
        def drawn(i: int, y: Tensor, photo: Photo | None) -> Iterator[Sample]:
            own = slice(i * num_samples, (i + 1) * num_samples)
            recipes: list[Recipe] | None = None
            if bases is not None:
                recipes = [Recipe.of(bases[i] + j, self.vdvae.num_groups) for j in range(num_samples)]
            given = rows_of(draws, own) if noise is not None else None
            bounded = None if call.options.max_memory is None else budgets[i]
            return self._draw(y, photo, call, recipes, given, rows_of(values, own), bounded)

        seeds = bases and [base + j for base in bases for j in range(num_samples)]
        with self._releasing(), self.progress_bar(total=rows) as bar:
            photographs = ((photo, drawn(i, y, photo)) for i, (y, photo) in enumerate(photos))
            output = gather(
                photographs, num_samples, output_type, seeds, call.options.keep_images, call.keep_latents, bar.update
            )
        return output if return_dict else output.to_tuple()

    @torch.no_grad()
    def log_density(
        self,
        image: ImageInput | Photo,
        latents: Sequence[Tensor],
        max_memory: int | None = None,
    ) -> Tensor:
        """log p(z|y) of latents at temperature 1, in nats per latent; see `hvae_sr.posterior.log_density`.

        Args:
            image: one image.
            latents: one `[N, C, h, w]` for each group.
            max_memory: bytes that the process (on a GPU: the device) may take; windows are made small enough for it.

        Returns:
            `[N]`, float64 on the CPU.

        Raises:
            ValueError: not the latents of every group, or of an image of another size, or too little memory.
        """
        y, _ = single_photo(image)
        self._check_size(y, self.check_inputs(max_memory=max_memory), True, tiles=False)
        if isinstance(latents, (list, tuple)) and all(isinstance(z, Tensor) for z in latents):
            check_finite("latents", latents)
        device, room = self._execution_device, None
        if max_memory is not None:
            least = self.networks.min_pixels
            room = budget(
                self.vdvae, self._size_of_samples(y), 1, "latent", False, max_memory, device, min_pixels=least
            )
        with self._releasing(), self._computing():
            return log_density(WindowSampler(self.networks, y.to(device), budget=room), latents)

    def rank(
        self,
        image: ImageInput | Photo,
        output: SuperResolutionOutput,
        by: str = "log_density",
    ) -> list[Rank]:
        """The samples of one image, best first.

        Args:
            image: the image.
            output: of a call for this image alone, with `return_latents=True`.
            by: "log_density" (the most likely first) or "lr_psnr_unprojected" (the most faithful first).

        Raises:
            ValueError: `output` holds no latents or samples of several images, or `by` is something else.
        """
        if not isinstance(output, SuperResolutionOutput):
            raise ValueError(f"`output` must be what a call returned, got {type(output).__name__}")
        if output.mean is not None and len(output.mean) != 1:
            raise ValueError(f"`output` must be of one image, it holds samples of {len(output.mean)}")
        if output.latents is None or output.lr_psnr_unprojected is None:
            raise ValueError("`output` holds no latents, or no images: call the pipeline with `return_latents=True`")
        return rank(self.log_density(image, output.latents).tolist(), output.lr_psnr_unprojected, by)

    def redraw_region(
        self,
        image: ImageInput | Photo,
        mask: Image.Image | np.ndarray | Tensor,
        seed: int | Recipe,
        new_seed: int,
        num_samples: int = 1,
        feather: int = 8,
        output_type: str = "pil",
        **named: Any,
    ) -> SuperResolutionOutput:
        """New versions of a region of one sample; what is outside stays as it is, bit for bit.

        Args:
            image: one image.
            mask: true, or above half of its range ([0, 1]; integers beyond 1: [0, 255]), where pixels are redrawn:
                `[H, W]` of the result or `[h, w]` of y.
            seed: of the sample, or its recipe.
            new_seed: of the first new version; the j-th has `new_seed + j`.
            num_samples: versions.
            feather: HR pixels inside the mask over which the change grows to its full size.
            output_type: "pil", "np" or "pt".
            **named: others of `samples`, as they were for the sample.

        Returns:
            As a call; `mean` and `std` are None.

        Raises:
            ValueError: as `samples`; seeds that are no whole numbers; `keep_images` False; or a mask of another size,
                or empty.
        """
        if not getattr(named.get("options"), "keep_images", True) or not named.get("keep_images", True):
            raise ValueError("`keep_images` must be True: the new versions are all that is returned")
        check_count("num_samples", num_samples, 1)
        check_count("feather", feather, 1)
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"`output_type` must be 'pil', 'np' or 'pt', got {output_type!r}")
        for name, value in (("new_seed", new_seed), ("seed", 0 if isinstance(seed, Recipe) else seed)):
            if isinstance(value, bool) or not isinstance(value, Integral):
                raise ValueError(f"`{name}` must be a whole number, got {value!r}")
        old = seed if isinstance(seed, Recipe) else Recipe.of(int(seed), self.vdvae.num_groups)
        y, _ = single_photo(image)
        scale = self.operator.scale_factor
        inside = read_mask(mask, (y.shape[-2] * scale, y.shape[-1] * scale), scale).numpy()
        recipes = [old.redraw(inside, new_seed + j, feather) for j in range(num_samples)]
        found = list(self.samples(image, recipes=recipes, output_type=output_type, **named))
        return SuperResolutionOutput(
            images=collate([sample.image for sample in found], output_type),
            lr_psnr=[sample.lr_psnr for sample in found],
            lr_psnr_float=[sample.lr_psnr_float for sample in found],
            lr_psnr_unprojected=[sample.lr_psnr_unprojected for sample in found],
            seeds=[new_seed + j for j in range(num_samples)],
            latents=[torch.cat(group) for group in zip(*(s.latents for s in found), strict=True)] or None,
        )
