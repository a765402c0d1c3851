"""What a pipeline offers beyond samples: quantiles, densities and ranks, new versions of a region."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hvae_sr.images import ImageInput, Photo, prepare_photos
from hvae_sr.posterior import Rank, Recipe, log_density, quantiles, rank, read_mask
from hvae_sr.posterior.quantiles import QUANTILE_VALUES
from hvae_sr.sampling import Budget, WindowSampler, budget
from hvae_sr.sampling.memory import KEPT_FEATURES

from .inputs import base_seeds, check_count
from .output import SuperResolutionOutput, collate

if TYPE_CHECKING:
    from .super_resolution import SuperResolutionPipeline


class Exploring:
    """The part of `SuperResolutionPipeline` that works with several samples of one image."""

    @torch.no_grad()
    def quantiles(
        self: "SuperResolutionPipeline",
        image: ImageInput | Photo,
        q: Sequence[float] = (0.05, 0.5, 0.95),
        num_samples: int = 32,
        seed: int = 0,
        temperature: float | Sequence[float] | None = None,
        enforce_consistency: bool = True,
        window_size: int | None = None,
    ) -> Tensor:
        """Quantiles of every pixel over the samples of the pipeline with the same seeds.

        Args:
            image: one image.
            q: quantiles in [0, 1], interpolated linearly.
            num_samples, seed, temperature, enforce_consistency: as in a call.
            window_size: side of a window in pixels of y; None lets the samples of one take 0.8 GB.

        Returns:
            `[len(q), 3, H, W]` in [0, 1], on the CPU.

        Raises:
            ValueError: as a call; or `q` out of range.
        """
        call = self.check_inputs(temperature, num_samples, enforce_consistency, window_size=window_size)
        y, _ = _single(image)
        self._check_size(y, call, False)
        (base,) = base_seeds(seed, None, 1)
        room = Budget(QUANTILE_VALUES // num_samples, KEPT_FEATURES)
        sampler = WindowSampler(self.networks, y.to(self._execution_device), window_size, room)
        with self._computing(), self.progress_bar(total=len(sampler.windows) * num_samples) as bar:
            found = quantiles(
                sampler,
                self.operator,
                range(base, base + num_samples),
                q,
                enforce_consistency,
                on_sample=lambda: bar.update(1),
                temperature=call.temperature,
                return_latents=False,
            )
        self.maybe_free_model_hooks()
        return found

    @torch.no_grad()
    def log_density(
        self: "SuperResolutionPipeline",
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
        y, _ = _single(image)
        check_count("max_memory", max_memory, 1, optional=True)
        device, room = self._execution_device, None
        if max_memory is not None:
            size = (y.shape[-2] * self.operator.scale_factor, y.shape[-1] * self.operator.scale_factor)
            room = budget(self.vdvae, size, 1, "latent", False, max_memory, device)
        with self._computing():
            found = log_density(WindowSampler(self.networks, y.to(device), budget=room), latents)
        self.maybe_free_model_hooks()
        return found

    def rank(
        self: "SuperResolutionPipeline",
        image: ImageInput | Photo,
        output: SuperResolutionOutput,
        by: str = "log_density",
    ) -> list[Rank]:
        """The samples of one image, best first.

        Args:
            image: the image.
            output: of a call with `return_latents=True`.
            by: "log_density" (the most typical first) or "lr_psnr_unprojected" (the most faithful first).

        Raises:
            ValueError: `output` holds no latents, or `by` is something else.
        """
        if output.latents is None or output.lr_psnr_unprojected is None:
            raise ValueError("`output` holds no latents, or no images: call the pipeline with `return_latents=True`")
        return rank(self.log_density(image, output.latents).tolist(), output.lr_psnr_unprojected, by)

    def redraw_region(
        self: "SuperResolutionPipeline",
        image: ImageInput | Photo,
        mask: Image.Image | np.ndarray | Tensor,
        seed: int | Recipe,
        new_seed: int,
        num_samples: int = 1,
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
            output_type: "pil", "np" or "pt".
            **named: others of `samples`, as they were for the sample.

        Returns:
            As a call; `mean` and `std` are None.

        Raises:
            ValueError: as `samples`; seeds that are no whole numbers; or a mask of another size, or empty.
        """
        check_count("num_samples", num_samples, 1)
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"`output_type` must be 'pil', 'np' or 'pt', got {output_type!r}")
        base_seeds(new_seed, None, 1)
        old = seed
        if not isinstance(old, Recipe):
            old = Recipe.of(*base_seeds(seed, None, 1), self.vdvae.num_groups)  # type: ignore[arg-type]
        y, _ = _single(image)
        scale = self.operator.scale_factor
        inside = read_mask(mask, (y.shape[-2] * scale, y.shape[-1] * scale), scale).numpy()
        recipes = [old.redraw(inside, new_seed + j) for j in range(num_samples)]
        found = list(self.samples(image, recipes=recipes, output_type=output_type, **named))
        return SuperResolutionOutput(
            images=collate([sample.image for sample in found], output_type),
            lr_psnr=[sample.lr_psnr for sample in found],
            lr_psnr_float=[sample.lr_psnr_float for sample in found],
            seeds=[new_seed + j for j in range(num_samples)],
        )


def _single(image: ImageInput | Photo) -> tuple[Tensor, Photo | None]:
    prepared = prepare_photos(image)
    if len(prepared) != 1:
        raise ValueError(f"`image` must be one image, got {len(prepared)}")
    return prepared[0]
