"""Photographs to the networks' input and their output to images, as the image processors of transformers do it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from torch import Tensor
from transformers import BatchFeature, ImageProcessingMixin

from hvae_sr.checks import check_count
from hvae_sr.images import ImageError, ImageInput, Photo, prepare_photos
from hvae_sr.operators import cached_downsampling
from hvae_sr.sampling import Consistency, SizeRequirements
from hvae_sr.sampling.sizes import pad_to

from .inputs import check_consistency, chosen_consistency
from .output import OUTPUT_TYPES, Sample

if TYPE_CHECKING:
    from .super_resolution import SuperResolutionPipeline


class _Settings(TypedDict, total=False):
    scale_factor: int
    downsampling_kernel: str
    size_multiple: int


class SuperResolutionImageProcessor(ImageProcessingMixin):
    """What stands around the networks in `SuperResolutionPipeline`, for those who run them by themselves.

        processor = SuperResolutionImageProcessor.from_pipeline(pipe)
        inputs = processor(photo)
        with torch.no_grad():
            condition = pipe.lr_encoder.encode(inputs.pixel_values)
            out = pipe.vdvae.sample(5, inputs.output_size, CounterNoise(range(5)), condition=condition, temperature=0.5)
            x = condition.finish(out.sample, 0.5)
        samples = processor.post_process(x, photo)

    `save_pretrained` writes its configuration as preprocessor_config.json, which `from_pretrained` reads.

    Args:
        scale_factor: sides of x over sides of y.
        downsampling_kernel: H, a kernel of `Downsampling`.
        size_multiple: what the sides of y must be multiples of for the networks; its last rows and columns are repeated
            until they are.
        consistency: "exact" or "none", see `SuperResolutionPipeline`.

    Raises:
        ValueError: a factor, kernel or multiple that does not exist; the message names it.
    """

    model_input_names = ["pixel_values"]
    valid_kwargs = _Settings  # what `from_pretrained` may be given besides

    def __init__(
        self,
        scale_factor: int = 4,
        downsampling_kernel: str | Sequence[float] = "bicubic",
        size_multiple: int = 1,
        consistency: str = "exact",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_count("size_multiple", size_multiple, 1)
        check_consistency(consistency)
        operator = cached_downsampling(scale_factor, downsampling_kernel)
        self.scale_factor, self.downsampling_kernel = operator.scale_factor, operator.kernel  # as JSON can hold them
        self.size_multiple = int(size_multiple)
        self.consistency = consistency

    @classmethod
    def from_pipeline(cls, pipe: "SuperResolutionPipeline") -> "SuperResolutionImageProcessor":
        """The image processor that fits the networks of a `SuperResolutionPipeline`."""
        sizes = pipe.networks.sizes
        return cls(pipe.operator.scale_factor, pipe.operator.kernel, sizes.multiple, pipe.config.consistency)

    def __call__(self, images: ImageInput | Photo | Sequence[ImageInput | Photo], **kwargs: Any) -> BatchFeature:
        """See `preprocess`."""
        return self.preprocess(images, **kwargs)

    def preprocess(
        self, images: ImageInput | Photo | Sequence[ImageInput | Photo], return_tensors: str | None = "pt"
    ) -> BatchFeature:
        """Photographs as the networks read them.

        Args:
            images: as the pipeline takes them, all of one size.
            return_tensors: "pt" or None, either gives torch tensors.

        Returns:
            `pixel_values`, `[N, 3, h', w']` on [-1, 1], h' and w' multiples of `size_multiple`; and `output_size`, the
            (H, W) = scale_factor * (h', w') of what is to be sampled.

        Raises:
            ValueError: images that cannot be read, or of several sizes.
        """
        if return_tensors not in (None, "pt"):
            raise ValueError(f"`return_tensors` must be 'pt' or None, got {return_tensors!r}")
        found = [y for y, _ in prepare_photos(images)]
        if len({y.shape for y in found}) > 1:
            sizes = sorted({f"{y.shape[-1]}x{y.shape[-2]}" for y in found})
            raise ImageError(f"images must be of one size, got {', '.join(sizes)}")
        size = (found[0].shape[-2], found[0].shape[-1])
        y = pad_to(torch.stack(found) * 2 - 1, self._sizes.padded(size))
        return BatchFeature({"pixel_values": y, "output_size": self._sizes.output(size)})

    @torch.no_grad()
    def post_process(
        self,
        samples: Tensor,
        images: ImageInput | Photo | Sequence[ImageInput | Photo],
        enforce_consistency: bool | None = None,
        output_type: str = "pil",
    ) -> list[Sample]:
        """Samples of the networks as the pipeline returns them: cropped, projected on {x : Hx = y}, and measured.

        Args:
            samples: `[N * n, 3, H, W]` on [-1, 1], the n samples of each of N images in a row.
            images: the N images, as given to `preprocess`.
            enforce_consistency: whether samples are projected; None means what `consistency` says.
            output_type: "pil", "np" or "pt".

        Returns:
            A `Sample` for each, with its image and LR-PSNR.

        Raises:
            ValueError: samples of another size, or of a number that is no multiple of that of the images.
        """
        if output_type not in OUTPUT_TYPES or output_type == "latent":
            raise ValueError(f"`output_type` must be 'pil', 'np' or 'pt', got {output_type!r}")
        photos = prepare_photos(images)
        shape = tuple(samples.shape) if isinstance(samples, Tensor) else type(samples).__name__
        if not isinstance(samples, Tensor) or samples.ndim != 4 or shape[1] != 3 or not shape[0]:
            raise ValueError(f"`samples` must be a tensor [N, 3, H, W], got {shape}")
        if len(samples) % len(photos):
            raise ValueError(f"`samples` must be as many for each of {len(photos)} images, got {shape}")
        enforced = chosen_consistency(enforce_consistency, self.consistency)
        operator = cached_downsampling(self.scale_factor, self.downsampling_kernel)
        each = len(samples) // len(photos)
        finished = []
        for i, (y, photo) in enumerate(photos):
            expected = self._sizes.output((y.shape[-2], y.shape[-1]))
            if tuple(samples.shape[-2:]) != expected:
                raise ValueError(f"`samples` must have sides {expected} for `images[{i}]`, got {tuple(samples.shape)}")
            y = y.to(samples.device)
            consistency = Consistency(operator, y, enforced)
            for index in range(i * each, (i + 1) * each):
                made = consistency(samples[index].clone())
                finished.append(Sample.of(index, made, consistency, photo, output_type))
        return finished

    @property
    def _sizes(self) -> SizeRequirements:
        return SizeRequirements(self.scale_factor, self.size_multiple)
