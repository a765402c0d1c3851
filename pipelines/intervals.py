"""Quantiles of every pixel, and intervals that keep a promise."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from itertools import zip_longest
from numbers import Real
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hvae_sr.images import ImageInput, Photo
from hvae_sr.posterior import Calibration, quantiles
from hvae_sr.posterior.conformal import check_coverage, missed, quantiles_of, smallest_factor, widen
from hvae_sr.posterior.quantiles import QUANTILE_VALUES
from hvae_sr.sampling import Budget, WindowSampler
from hvae_sr.sampling.memory import KEPT_FEATURES, PIXELS_PER_CHUNK

from .common import Call
from .inputs import SamplingOptions, base_seeds, check_flag, single_photo
from .sampling_pipeline import SamplingPipeline


def _paired(images: Iterable[Any], low: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    """Images and their y; a ValueError where one of them ends before the other."""
    missing = object()
    for number, pair in enumerate(zip_longest(images, low, fillvalue=missing)):
        if any(one is missing for one in pair):
            fewer, more = ("images", "low") if pair[0] is missing else ("low", "images")
            raise ValueError(f"`low` must be as many as `images`, got {number} of `{fewer}` and more of `{more}`")
        yield pair


class IntervalPipeline(SamplingPipeline):
    """`SuperResolutionPipeline`'s quantiles and calibration."""

    @torch.no_grad()
    def quantiles(
        self,
        image: ImageInput | Photo,
        q: Sequence[float] | None = None,
        num_samples: int | None = None,
        seed: int | Sequence[int] | None = 0,
        temperature: float | Sequence[float] | None = None,
        enforce_consistency: bool | None = None,
        window_size: int | None = None,
        window_margin: int | None = None,
        calibrated: bool = False,
    ) -> Tensor:
        """Quantiles of every pixel over the samples of the pipeline with the same seeds.

        Args:
            image: one image.
            q: quantiles in [0, 1], interpolated linearly; None means 0.05, 0.5 and 0.95.
            num_samples, seed, temperature, enforce_consistency: as in a call; None means 32 samples.
            window_size: side of a window in pixels of y; None lets the samples of one take 0.8 GB.
            window_margin: HR pixels around it that the networks see too; None: as in a call.
            calibrated: whether the first and the last are the ends of an interval that holds the truth as often as
                `calibrate` has promised. `q`, `num_samples`, `temperature` and `enforce_consistency` are then those of
                the calibration, which says nothing about others.

        Returns:
            `[len(q), 3, H, W]` in [0, 1], on the CPU; calibrated: lower ends, medians, upper ends.

        Raises:
            ValueError: as a call; `q` out of range; or `calibrated` without a calibration, or beside other settings
                than its own.
        """
        check_flag("calibrated", calibrated)
        calibration = self.calibration if calibrated else None
        if calibrated:
            if calibration is None:
                raise ValueError("`calibrated` must be False: this pipeline has no calibration, `calibrate` makes one")
            q = calibration.agreed("q", q)
            num_samples = calibration.agreed("num_samples", num_samples)
            temperature = calibration.agreed("temperature", temperature)
            enforce_consistency = calibration.agreed("enforce_consistency", enforce_consistency)
        q, num_samples = quantiles_of(0.9) if q is None else q, 32 if num_samples is None else num_samples
        options = SamplingOptions(window_size=window_size, window_margin=window_margin)
        call = self.check_inputs(temperature, num_samples, enforce_consistency, options=options)
        y, _ = single_photo(image)
        self._check_size(y, call, False, tiles=False)
        (base,) = base_seeds(seed, None, 1)
        sampler, seeds = self._quantile_sampler(y, call, num_samples), range(base, base + num_samples)
        with self._releasing(), self.progress_bar(total=len(sampler.windows) * num_samples) as bar:
            found = self._quantiles(sampler, call, q, seeds, bar.update)
        return found if calibration is None else widen(found, calibration.factor)

    def _quantile_sampler(self, y: Tensor, call: Call, num_samples: int) -> WindowSampler:
        """The sampler of y `[3, h, w]` in windows of which all samples are held at a time."""
        room = Budget(min(QUANTILE_VALUES // num_samples, PIXELS_PER_CHUNK), KEPT_FEATURES)
        margin = self.networks.margin if call.options.window_margin is None else call.options.window_margin
        if call.enforce_consistency:  # each window is projected by itself
            margin = max(margin, self.operator.reach)
        return WindowSampler(self.networks, y.to(self._execution_device), call.options.window_size, room, margin)

    def _quantiles(
        self,
        sampler: WindowSampler,
        call: Call,
        q: Sequence[float],
        seeds: Sequence[int],
        on_sample: Callable[[], Any] | None = None,
    ) -> Tensor:
        arguments = {"temperature": call.temperature, "return_latents": False}
        with self._computing():
            return quantiles(sampler, self.operator, seeds, q, call.enforce_consistency, on_sample, **arguments)

    @torch.no_grad()
    def calibrate(
        self,
        images: Iterable[ImageInput | Photo],
        low: Iterable[ImageInput | Photo] | None = None,
        coverage: float = 0.9,
        num_samples: int = 32,
        temperature: float = 1.0,
        enforce_consistency: bool | None = None,
        seed: int = 0,
    ) -> Calibration:
        """Finds how much pixel intervals must be widened to hold the truth, by split conformal prediction.

        For `images` and a new one that are exchangeable, such as draws from one collection, the intervals of
        `quantiles(..., calibrated=True)` hold a value of the new image, at a pixel drawn at random, with a probability
        of at least `coverage`, and of at most 2 / (n + 1) more (as a rule `coverage` / n more: take a hundred images to
        come within 1 %). That is on average over images and over pixels; it promises nothing for a single image or for
        one kind of pixel. `hvae_sr.posterior.conformal.smallest_factor` has equation, proof and sources.

        The pipeline keeps the result, which is saved with it. It holds for these weights and settings alone.

        Args:
            images: n HR images, at least 1 / (1 - coverage) - 1 (nine for 0.9), as in a call; an iterator is read once,
                image by image. They must not be among those that the model was trained on. What exceeds a multiple of
                the scale is cut off at the right and the bottom.
            low: y of each, in the same order, H of its size; None makes them by H, in 8 bits.
            coverage: share of the truth that intervals are to hold.
            num_samples: of each image; more make narrower intervals.
            temperature: of the samples; 1 is the model's own distribution.
            enforce_consistency: as in a call.
            seed: of each image's first sample.

        Raises:
            ValueError: an argument out of range, too few images, sizes that do not fit, other numbers of `images` and
                `low`; or no `low` for a model that does not know H.
        """
        for name, value in (("images", images), ("low", low)):
            if isinstance(value, (str, os.PathLike, Image.Image, Photo)) or getattr(value, "ndim", 4) < 4:
                raise ValueError(f"`{name}` must be several images, got one: {type(value).__name__}")
            listed = isinstance(value, Iterable) or hasattr(value, "__getitem__")  # as `iter` takes them
            if not listed and (name == "images" or value is not None):
                raise ValueError(f"`{name}` must be several images, got {value!r}")
        if isinstance(images, Sized) and isinstance(low, Sized) and len(images) != len(low):
            raise ValueError(f"`low` must be as many as `images`, {len(images)}, got {len(low)}")
        check_coverage(coverage, len(images) if isinstance(images, Sized) else None)
        if isinstance(temperature, bool) or not isinstance(temperature, Real):
            raise ValueError(f"`temperature` must be one number, got {temperature!r}")
        call = self.check_inputs(temperature, num_samples, enforce_consistency)
        (base,) = base_seeds(seed, None, 1)
        if low is None and self.config.consistency != "exact":
            raise ValueError("`low` must be given: this model is for images whose degradation is not known")
        q, scale, seeds = quantiles_of(coverage), self.operator.scale_factor, range(base, base + num_samples)
        pairs: Iterable[Any] = ((image, None) for image in images) if low is None else _paired(images, low)
        # Images of a lazy list are read one by one: the bar is told how many there are.
        bar = self.progress_bar(total=len(images)) if isinstance(images, Sized) else self.progress_bar(())

        def curves() -> Iterator[np.ndarray]:
            for number, (image, given) in enumerate(pairs):
                x, _ = single_photo(image)
                height, width = (side // scale * scale for side in x.shape[-2:])
                if not min(height, width):
                    raise ValueError(
                        f"`images[{number}]` must be at least {scale}x{scale} pixels, is {x.shape[-1]}x{x.shape[-2]}"
                    )
                rounded_up = tuple(-(-side // scale) for side in x.shape[-2:])
                x = x[:, :height, :width]
                if given is None:
                    y = self.operator(x).mul(255).round().clamp(0, 255).div(255)
                else:
                    y, _ = single_photo(given)
                    if tuple(y.shape[-2:]) == rounded_up:  # the last pixels saw what is cut off of x
                        y = y[:, : height // scale, : width // scale]
                if tuple(y.shape[-2:]) != (height // scale, width // scale):
                    raise ValueError(
                        f"`low[{number}]` must be {width // scale}x{height // scale} pixels for an image of "
                        f"{width}x{height}, is {y.shape[-1]}x{y.shape[-2]}"
                    )
                self._check_size(y, call, False, tiles=False)
                yield missed(self._quantiles(self._quantile_sampler(y, call, num_samples), call, q, seeds), x.cpu())
                bar.update(1)

        with self._releasing(), bar:
            factor, count = smallest_factor(curves(), coverage)
        found = Calibration(
            float(coverage), factor, count, int(num_samples), float(temperature), call.enforce_consistency
        )
        self.register_to_config(calibration=found.to_dict())
        return found
