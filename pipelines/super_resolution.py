"""The pipeline: low-resolution photographs in, many plausible high-resolution ones out."""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pickle import UnpicklingError
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from safetensors import SafetensorError
from torch import Tensor

from hvae_sr.hub import resolve
from hvae_sr.images import ImageInput, prepare_images
from hvae_sr.models import VDVAE, Condition, LRConditioner, LREncoder, VDVAESample
from hvae_sr.models.fast import fast_dtype, prepared_weights
from hvae_sr.models.loading import PerGroup, without_warning
from hvae_sr.noise import CounterNoise, NoiseSource, TensorNoise
from hvae_sr.operators import Downsampling

from .inputs import check_count, check_groups, check_temperature, sample_seeds
from .output import OUTPUT_TYPES, RunningMoments, SuperResolutionOutput, collate, convert
from .windows import Window, split

PIXELS_PER_CHUNK = 2**20
"""HR pixels that one network evaluation works on by default: about 1 GiB in fp32 for the bundled models."""

MARGIN = 96
"""HR pixels around a window that the networks see and that are not kept: on the bundled models windows and whole then
differ by less than 0.01 grey levels (`python benchmarks/windows.py`)."""

_LOADING_ERRORS = (
    OSError,
    ValueError,
    RuntimeError,
    AttributeError,
    KeyError,
    TypeError,
    SafetensorError,
    UnpicklingError,
)
"""What diffusers raises on folders that are damaged or hold something else."""


class SuperResolutionPipeline(DiffusionPipeline):
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
    """

    model_cpu_offload_seq = "lr_encoder->vdvae"

    def __init__(
        self,
        vdvae: VDVAE,
        lr_encoder: LREncoder | LRConditioner,
        scale_factor: int = 4,
        downsampling_kernel: str = "bicubic",
        default_temperature: float = 0.8,
    ) -> None:
        super().__init__()
        self.register_modules(vdvae=vdvae, lr_encoder=lr_encoder)
        self.register_to_config(
            scale_factor=scale_factor,
            downsampling_kernel=downsampling_kernel,
            default_temperature=default_temperature,
        )
        self.operator = Downsampling(scale_factor, downsampling_kernel)
        self._inference_dtype: torch.dtype | str | None = None
        self._check_fit()

    def _check_fit(self) -> None:
        """Raises a ValueError unless the LR network was made for this decoder, scale and kernel."""
        vdvae, network, own = self.vdvae.config, self.lr_encoder.config, self.config
        if vdvae.image_size != network.image_size * own.scale_factor:
            raise ValueError(
                f"`scale_factor` = {own.scale_factor} does not fit: the VDVAE works at {vdvae.image_size}, the LR "
                f"network at {network.image_size}"
            )
        expected = {
            "decoder_blocks": vdvae.decoder_blocks,
            "decoder_width": vdvae.width,
            "decoder_custom_widths": vdvae.custom_widths,
            "latent_channels": vdvae.latent_channels,
        }
        if network.get("likelihood_location") is not None:
            expected |= {"scale_factor": own.scale_factor, "downsampling_kernel": own.downsampling_kernel}
        for name, value in expected.items():
            if (network.get(name, value) or None) != (value or None):
                raise ValueError(f"`lr_encoder` was made for {name} {network[name]!r}, the pipeline has {value!r}")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Any:
        """Loads a pipeline from a bundled name such as "natural-x4", a folder, or the Hub.

        Args:
            pretrained_model_name_or_path: name, folder or Hub id.
            dtype: of the weights, as everywhere in diffusers. None or "auto" keeps float32 weights and computes in
                what is fast on the device (see `enable_fast_inference`); `torch.float32` also computes in float32.
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
            with without_warning("You have passed a non-standard module"):  # ours, and checked by `_check_fit`
                loaded = super().from_pretrained(folder, **kwargs)
        except _LOADING_ERRORS as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            reason = reason if len(reason) <= 1000 else f"{reason[:1000]}..."
            raise ValueError(f"cannot load {os.fspath(pretrained_model_name_or_path)!r}: {reason}") from error
        if dtype is None:
            (loaded[0] if isinstance(loaded, tuple) else loaded).enable_fast_inference()
        return loaded

    def enable_fast_inference(self, dtype: torch.dtype | str = "auto") -> None:
        """Computes in `dtype` where the weights are float32; Gaussians, likelihood and projection stay in float32.

        What `from_pretrained` does unless it is given a dtype. The weights stay as they are, and so does what
        `save_pretrained` writes. Samples differ from those of float32 by less than a grey level on average.

        Args:
            dtype: "auto" is bfloat16 on processors with AMX or AVX512-BF16 and on GPUs that have it, and float32
                elsewhere; or a dtype.
        """
        if dtype != "auto" and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise ValueError(f"`dtype` must be 'auto' or a floating-point torch.dtype, got {dtype!r}")
        self._inference_dtype = dtype

    def disable_fast_inference(self) -> None:
        """Computes in the dtype of the weights."""
        self._inference_dtype = None

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """`DiffusionPipeline.to`; a dtype among the arguments is also what is computed in."""
        if any(isinstance(value, torch.dtype) for value in (*args, *kwargs.values())):
            self.disable_fast_inference()
        return super().to(*args, **kwargs)

    @contextmanager
    def _fast_inference(self) -> Iterator[None]:
        """The dtype of the networks' evaluation, and weights prepared once for all of them."""
        device, dtype = self._execution_device, self._inference_dtype
        if dtype == "auto":
            dtype = fast_dtype(device)
        enabled = dtype not in (None, torch.float32) and self.vdvae.dtype == torch.float32
        with prepared_weights():
            if enabled:
                with torch.autocast(device.type, dtype):  # type: ignore[arg-type]
                    yield
            else:
                yield

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
    ) -> None:
        """Raises a ValueError that names the argument and its value."""
        check_count("num_samples", num_samples, 1)
        check_count("batch_size", batch_size, 1)
        check_count("window_size", window_size, 1)
        groups = self.vdvae.num_groups
        check_count("num_conditioned_groups", num_conditioned_groups, 0, groups)
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

    @torch.no_grad()
    def __call__(
        self,
        image: ImageInput | Sequence[ImageInput],
        temperature: float | Sequence[float] | None = None,
        num_samples: int = 1,
        enforce_consistency: bool = True,
        seed: int | Sequence[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        num_conditioned_groups: int | None = None,
        lr_posterior_temperature: float | Sequence[float] | None = None,
        noise: Sequence[Tensor] | None = None,
        latents: Sequence[Tensor | None] | None = None,
        sample_pixels: bool = False,
        batch_size: int | None = None,
        window_size: int | None = None,
        output_type: str = "pil",
        return_latents: bool = False,
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
            sample_pixels: draws pixels from p(x|z) instead of returning E[x|z]; adds white noise.
            batch_size: samples for each network evaluation; None chooses by size. Results do not depend on it.
            window_size: side, in pixels of y, of the windows that larger images are sampled in, margins left out;
                None chooses windows of a million HR pixels. Memory does not grow beyond what a window, the input and
                the samples take; a window sees the noise of the whole, and the projection is that of the whole.
            output_type: "pil", "np", "pt", or "latent" (only z).
            return_latents: also returns z.
            return_dict: a `SuperResolutionOutput`, or its tuple.

        Raises:
            ValueError: an argument that is out of range or does not fit; the message names it.
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
        )
        images = prepare_images(image)  # [3, h, w] in [0, 1] each
        for y in images:
            self._check_image_size(y)
        if (noise is not None or latents is not None) and len({y.shape for y in images}) > 1:
            raise ValueError("`noise` and `latents` need images of one size; `image` has several")
        rows = len(images) * num_samples
        padded_size = self._hr_size(self._pad(images[0]))
        check_groups("noise", noise, self.vdvae, padded_size, (rows,), optional=False)
        check_groups("latents", latents, self.vdvae, padded_size, (1, rows), optional=True)
        seeds = None if noise is not None else sample_seeds(seed, generator, len(images), num_samples)
        keep_latents = return_latents or output_type == "latent"
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
            for i, y in enumerate(images):
                y = y.to(device)
                padded = self._pad(y)  # [1, 3, h', w'] on [-1, 1]
                windows = self._windows(padded, window_size)
                shared = self.lr_encoder.encode(padded) if len(windows) == 1 else None
                moments, chunks = RunningMoments(), []
                pixels = max(math.prod(self._hr_size(padded[window.crop])) for window in windows)
                chunk = batch_size or max(1, PIXELS_PER_CHUNK // pixels)
                for start in range(0, num_samples, chunk):
                    stop = min(start + chunk, num_samples)
                    chosen = slice(i * num_samples + start, i * num_samples + stop)
                    out = self._sample(
                        stop - start,
                        padded,
                        windows,
                        shared,
                        seeds and seeds[chosen],
                        _rows(noise, chosen),
                        _rows(latents, chosen),
                        arguments,
                    )
                    chunks.append(out.latents)
                    if output_type != "latent":
                        samples = self._finish(out.sample, y, enforce_consistency, output_type, consistency)
                        for sample in samples:
                            moments.add(sample)
                            gathered["images"].append(convert(sample, output_type))
                    bar.update(stop - start)
                gathered["latents"].append([torch.cat(group) for group in zip(*chunks, strict=True)])
                if output_type != "latent":
                    gathered["mean"].append(convert(moments.mean, output_type))
                    std = moments.std()
                    gathered["std"].append(std if output_type == "pt" else std.permute(1, 2, 0).cpu().numpy())

        # 3. Gather.
        self.maybe_free_model_hooks()
        all_latents = _join_latents(gathered["latents"]) if keep_latents else None
        if output_type == "latent":
            output = SuperResolutionOutput(images=all_latents, seeds=seeds, latents=all_latents)
        else:
            lr_psnr, lr_psnr_float, lr_psnr_unprojected = (list(values) for values in zip(*consistency, strict=True))
            output = SuperResolutionOutput(
                images=collate(gathered["images"], output_type),
                mean=collate(gathered["mean"], output_type),
                std=collate(gathered["std"], "pt" if output_type == "pt" else "np"),
                lr_psnr=lr_psnr,
                lr_psnr_float=lr_psnr_float,
                lr_psnr_unprojected=lr_psnr_unprojected,
                seeds=seeds,
                latents=all_latents,
            )
        return output if return_dict else output.to_tuple()

    def _check_image_size(self, y: Tensor) -> None:
        height, width = y.shape[-2:]
        if min(height, width) < 2:
            raise ValueError(f"`image` must be at least 2x2 pixels, got {width}x{height} (width x height)")
        side = self.lr_encoder.config.image_size
        if self.vdvae.config.bias_type == "spatial" and (height, width) != (side, side):
            raise ValueError(
                f"`image` must be {side}x{side} pixels: this model works at one size only; got {width}x{height}"
            )

    def _hr_size(self, y: Tensor) -> tuple[int, int]:
        """(H, W) of the HR image of y `[..., h, w]`."""
        return y.shape[-2] * self.operator.scale_factor, y.shape[-1] * self.operator.scale_factor

    @property
    def _multiple(self) -> int:
        """What the sides of y must be multiples of, for both networks."""
        multiple = self.vdvae.size_multiple
        return math.lcm(self.lr_encoder.size_multiple, multiple // math.gcd(multiple, self.operator.scale_factor))

    def _pad(self, y: Tensor) -> Tensor:
        """y `[3, h, w]` in [0, 1] -> `[1, 3, h', w']` on [-1, 1], its edges repeated up to what the networks need."""
        bottom, right = (-side % self._multiple for side in y.shape[-2:])
        return F.pad(y[None] * 2 - 1, (0, right, 0, bottom), mode="replicate")

    def _windows(self, padded: Tensor, window_size: int | None) -> list[Window]:
        """The windows of y `[1, 3, h, w]` that are sampled one after the other; one if that is small enough."""
        height, width = padded.shape[-2:]
        if self.vdvae.config.bias_type == "spatial":
            return split(height, width, max(height, width), 0)
        multiple, scale = self._multiple, self.operator.scale_factor
        margin = math.ceil(MARGIN / scale / multiple) * multiple
        if window_size is None:
            window_size = int(PIXELS_PER_CHUNK**0.5) // scale - 2 * margin
        return split(height, width, max(window_size // multiple, 1) * multiple, margin)

    def _sample(
        self,
        count: int,
        padded: Tensor,
        windows: list[Window],
        shared: Condition | None,
        seeds: list[int] | None,
        noise: Sequence[Tensor | None] | None,
        latents: Sequence[Tensor | None] | None,
        arguments: dict[str, Any],
    ) -> VDVAESample:
        """Samples of one padded image, window by window.

        Args:
            count: n.
            padded: y, `[1, 3, h, w]` on [-1, 1].
            windows: of y.
            shared: features of y, if there is one window: they serve every chunk of samples.
            seeds, noise: of the n samples; one of them.
            latents: given values, n rows or one.
            arguments: others of `VDVAE.sample`.

        Returns:
            Images `[n, 3, H, W]` on [-1, 1] and latents `[n, C, h_l, w_l]`, of the whole.
        """
        scale = self.operator.scale_factor
        whole: VDVAESample | None = None
        for window in windows:
            view = padded[window.crop]
            source: NoiseSource = (
                CounterNoise(seeds, origin=(window.outer[0] * scale, window.outer[1] * scale))
                if seeds is not None
                else TensorNoise(self._crop(noise, window))  # type: ignore[arg-type]  # none of them is None
            )
            condition = shared if shared is not None else self.lr_encoder.encode(view)
            out = self.vdvae.sample(
                count,
                self._hr_size(view),
                noise=source,
                condition=condition,
                latents=self._crop(latents, window),
                **arguments,
            )
            if len(windows) == 1:
                return out
            if whole is None:
                whole = VDVAESample(
                    sample=out.sample.new_empty(count, 3, *self._hr_size(padded)),
                    latents=PerGroup(
                        z.new_empty(self.vdvae.latent_shape(group, count, self._hr_size(padded)))
                        for group, z in enumerate(out.latents)
                    ),
                )
            window.paste(out.sample, whole.sample, scale)
            for group, z in enumerate(out.latents):
                window.paste(z, whole.latents[group], scale, self.vdvae.stride(group))
        assert whole is not None
        return whole

    def _crop(self, values: Sequence[Tensor | None] | None, window: Window) -> list[Tensor | None]:
        """What a window sees of given noise or latents `[N, C, h_l, w_l]`."""
        scale = self.operator.scale_factor
        return [
            z if z is None else z[window.view(scale, self.vdvae.stride(group))] for group, z in enumerate(values or ())
        ]

    def _finish(
        self,
        sample: Tensor,
        y: Tensor,
        enforce_consistency: bool,
        output_type: str,
        consistency: list[tuple[float, float, float]],
    ) -> Tensor:
        """Crops, projects and clamps `[n, 3, H', W']` on [-1, 1]; appends three LR-PSNR for each sample.

        Returns:
            `[n, 3, H, W]` in [0, 1], not rounded.
        """
        scale = self.operator.scale_factor
        x = (sample[..., : y.shape[-2] * scale, : y.shape[-1] * scale].float() + 1) / 2
        unprojected = self._lr_psnr(x, y)
        if enforce_consistency:
            x = self.operator.project(x, y)
        exact = self._lr_psnr(x, y)
        x = x.clamp(0, 1)
        returned = torch.round(x * 255) / 255 if output_type == "pil" else x
        consistency.extend(zip(self._lr_psnr(returned, y), exact, unprojected, strict=True))
        return x

    def _lr_psnr(self, x: Tensor, y: Tensor) -> list[float]:
        """PSNR(Hx, y) in dB of every row, peak 1; computed in float64 where the device has it."""
        wide = torch.float32 if x.device.type == "mps" else torch.float64
        errors = [(self.operator(row.to(wide)) - y.to(wide)).square().mean().item() for row in x]
        return [math.inf if error == 0 else -10 * math.log10(error) for error in errors]


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
