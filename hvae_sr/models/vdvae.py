"""VD-VAE (Child, "Very deep VAEs generalize autoregressive models", ICLR 2021): the hierarchical image prior."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from ..hooks import entry_point, execution_device, per_group, run_layer
from ..loading import StrictLoading
from ..noise import NoiseSource, as_noise_source, uniform_source
from .blocks import (
    MAX_WIDTH,
    Affine,
    Bias,
    BottomUp,
    Convolution,
    Upsampler,
    check_choice,
    is_count,
    network_input,
    parse_blocks,
    parse_widths,
    set_channels,
    set_compute_dtype,
)
from .condition import Condition
from .distributions import DiscretizedLogisticMixture, group_temperatures, half_bin_shift, quantise
from .group import TopDownBlock
from .outputs import TopDownOutput, VDVAEOutput, VDVAESample

STRIP = 2**15
"""Positions of the stream that the likelihood's mean is computed of at a time: its parameters take many times that."""


class VDVAE(StrictLoading, ModelMixin, ConfigMixin):
    """Hierarchical VAE with groups z_0..z_{L-1}, coarse to fine, in one top-down pass (VD-VAE).

    The configuration speaks VD-VAE's own language. With `bias_type="channel"` nothing depends on the image's size:
    the resolutions of the block strings are those at the nominal `image_size`, so at image_size=64 the block "16x2"
    works at stride 4, and any image whose sides are multiples of the coarsest stride will do.

    Args:
        image_size: side of the image, or nominal side for `bias_type="channel"`.
        width, custom_widths: channels of each resolution: `width` but where the other, such as `"32:64,16:96"`, says.
        encoder_blocks: bottom-up network, such as `"32x2,32d2,16x2,16d2,8x2"`; None builds no encoder and no
            posterior heads (for inference; `from_pretrained(..., encoder_blocks=None)` leaves their weights out).
        decoder_blocks: top-down groups, such as `"8x2,16m8,16x2,32m16,32x2"`; "16r3" adds three residual blocks without
            latents to the group before it.
        bottleneck_multiple, residual_multiple: inner width of a block as a share of its width; the other is that of
            blocks without latents, None means the same.
        latent_channels, custom_latent_channels: channels of the z_l of each resolution, as for `width`.
        num_mixtures: logistics of the likelihood.
        bias_type: "spatial" (as published) or "channel".
        no_bias_above: finest resolution that starts from a learned bias; finer ones start from zero.
        input_shift, input_scale: the encoder reads (image + input_shift) * input_scale, image on 0..255.
        output_bits: 8, or 5 for VD-VAE's "low_bit" likelihood.
        patch_size: space-to-depth at the stem and its inverse at the head; 1 as published.
        activation: "gelu" (published) or "silu".
        initial_log_scale: log-scale of the logistics (on [-1, 1]) that the output layer's bias starts at.
        max_log_sigma: bound of the priors' log_sigma, so that a conditioned stream unlike any in training, such as that
            of noise, cannot send draws to infinity; None (as published) leaves it free.
        mixin_upsampling: how a coarser stream comes to the resolution that it is mixed into: "nearest" (as published),
            or "pixel_shuffle" of a 3x3 convolution, with which it can say different things to neighbouring places.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["TopDownBlock", "Bottleneck"]
    _repeated_blocks = ["Bottleneck"]
    _skip_layerwise_casting_patterns = ["out_conv", "affine", "biases"]
    compute_dtype: torch.dtype | None = None

    @register_to_config
    def __init__(
        self,
        image_size: int = 32,
        width: int = 32,
        custom_widths: str | None = None,
        encoder_blocks: str | None = "32x2,32d2,16x2,16d2,8x2,8d2,4x2",
        decoder_blocks: str = "4x2,8m4,8x2,16m8,16x2,32m16,32x2",
        bottleneck_multiple: float = 0.25,
        latent_channels: int = 16,
        num_mixtures: int = 10,
        bias_type: str = "channel",
        no_bias_above: int = 64,
        input_shift: float = -127.5,
        input_scale: float = 1 / 127.5,
        output_bits: int = 8,
        patch_size: int = 1,
        activation: str = "gelu",
        initial_log_scale: float = 0.0,
        max_log_sigma: float | None = None,
        residual_multiple: float | None = None,
        custom_latent_channels: str | None = None,
        mixin_upsampling: str = "nearest",
    ) -> None:
        super().__init__()
        check_choice("bias_type", bias_type, ("spatial", "channel"))
        check_choice("output_bits", output_bits, (5, 8))
        check_choice("mixin_upsampling", mixin_upsampling, ("nearest", "pixel_shuffle"))
        for name in ("image_size", "latent_channels", "num_mixtures", "patch_size"):
            if self.config[name] < 1:
                raise ValueError(f"`{name}` must be at least 1, got {self.config[name]!r}")
        if 10 * num_mixtures * patch_size**2 > MAX_WIDTH:
            raise ValueError(
                f"`num_mixtures` = {num_mixtures} and `patch_size` = {patch_size} make more than {MAX_WIDTH} channels"
            )
        if residual_multiple is not None and not residual_multiple > 0:
            raise ValueError(f"`residual_multiple` must be None or above 0, got {residual_multiple!r}")
        widths = parse_widths(width, custom_widths)
        channels = parse_widths(latent_channels, custom_latent_channels, "latent_channels")
        specs = parse_blocks(decoder_blocks, "decoder_blocks", "xmr")
        finest = specs[-1].resolution
        if finest * patch_size != image_size:
            raise ValueError(
                f"`decoder_blocks` must end at image_size / patch_size = {image_size // patch_size}, ends at {finest}"
            )
        met: set[int] = set()
        for spec in specs:
            if finest % spec.resolution or spec.resolution % (spec.mixin or 1):
                raise ValueError(
                    f"`decoder_blocks`: {spec.resolution} must divide {finest}, and be a multiple of what is mixed in"
                )
            if spec.mixin is not None and spec.mixin not in met:
                raise ValueError(f"`decoder_blocks`: resolution {spec.mixin} is mixed in before it has a block")
            met.add(spec.resolution)
        self.encoder: BottomUp | None = None
        if encoder_blocks:
            self.encoder = BottomUp(encoder_blocks, widths, bottleneck_multiple, patch_size, activation=activation)
            if self.encoder.resolution != finest or met - self.encoder.widths.keys():
                raise ValueError(
                    f"`encoder_blocks` must begin at {finest} and reach every resolution of decoder_blocks, got "
                    f"{encoder_blocks!r}"
                )
        num_blocks = len(specs) + sum(spec.residual_blocks for spec in specs)
        self.blocks = nn.ModuleList(
            TopDownBlock(
                spec,
                widths[spec.resolution],
                channels[spec.resolution],
                bottleneck_multiple,
                num_blocks,
                encoder_blocks is not None,
                activation,
                max_log_sigma,
                residual_multiple,
            )  # fmt: skip
            for spec in specs
        )
        self.upsamplers, self.biases = nn.ModuleDict(), nn.ModuleDict()
        for group, spec in enumerate(specs):
            if mixin_upsampling == "pixel_shuffle" and spec.mixin is not None:
                factor = spec.resolution // spec.mixin
                self.upsamplers[str(group)] = Upsampler(widths[spec.mixin], widths[spec.resolution], factor)
        for resolution in sorted(met):
            if resolution <= no_bias_above:
                side = resolution if bias_type == "spatial" else 1
                self.biases[str(resolution)] = Bias(widths[resolution], side)
        self.affine = Affine(widths[finest])
        self.out_conv = Convolution(widths[finest], 10 * num_mixtures * patch_size**2)
        with torch.no_grad():
            # Rows of the bias: the logits, then mean, log-scale and coupling of each colour.
            assert self.out_conv.bias is not None
            self.out_conv.bias.view(10, -1)[[2, 5, 8]] = initial_log_scale
        self.resolutions = [spec.resolution for spec in specs]
        self.latent_channels = [channels[resolution] for resolution in self.resolutions]
        self.num_groups = len(specs)
        self.gradient_checkpointing = False

    set_compute_dtype = set_compute_dtype

    def remove_encoder(self) -> None:
        """Drops the bottom-up network and the posterior heads, which only training and reconstruction need."""
        self.encoder = None
        for block in self.blocks:
            assert isinstance(block, TopDownBlock)
            block.posterior_head = None
        self.register_to_config(encoder_blocks=None)

    def leaves_out(self, key: str) -> bool:
        """Whether the parameter belongs to the encoder or a posterior head, of a model loaded without them."""
        return self.encoder is None and (key.startswith("encoder.") or ".posterior_head." in key)

    @property
    def size_multiple(self) -> int:
        """The coarsest stride: what the sides of an image must be multiples of."""
        return self.config.image_size // min(self.resolutions)

    def stride(self, group: int) -> int:
        """Pixels of the image for each element of the group."""
        return self.config.image_size // self.resolutions[group]

    def latent_shape(self, group: int, batch_size: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """`(B, C, h, w)` of z_group for an image of `size` = (H, W)."""
        s = self.stride(group)
        return batch_size, self.latent_channels[group], size[0] // s, size[1] // s

    def check_size(self, size: tuple[int, int], argument: str = "sample") -> None:
        """Raises a ValueError that names `argument` if the model cannot work at `size` = (H, W)."""
        if not (isinstance(size, (tuple, list)) and len(size) == 2 and all(map(is_count, size))):
            raise ValueError(f"`{argument}` must be (height, width), two whole numbers >= 1, got {size!r}")
        if self.config.bias_type == "spatial" and tuple(size) != (self.config.image_size,) * 2:
            raise ValueError(
                f"`{argument}` must be {self.config.image_size}x{self.config.image_size} (height x width): this model "
                f"has biases of a fixed size; got {size[0]}x{size[1]}"
            )
        multiple = self.size_multiple
        if size[0] % multiple or size[1] % multiple:
            raise ValueError(f"`{argument}` must have sides that are multiples of {multiple}, got {size[0]}x{size[1]}")

    @entry_point
    def encode(self, sample: Tensor) -> dict[int, Tensor]:
        """Bottom-up activations `{nominal resolution: [B, width, h, w]}` of x, `[B, 3, H, W]` on [-1, 1].

        Raises:
            ValueError: a wrong shape or dtype, sides that do not fit, or the model was made without an encoder.
        """
        if self.encoder is None:
            raise ValueError("this VDVAE was made without an encoder (`encoder_blocks=None`)")
        x = network_input(sample, self.config, self.dtype)
        self.check_size((sample.shape[-2], sample.shape[-1]))
        return self.encoder(x)

    @entry_point
    def top_down(
        self,
        batch_size: int,
        size: tuple[int, int],
        noise: NoiseSource | Sequence[Tensor] | None = None,
        activations: dict[int, Tensor] | None = None,
        condition: Condition | None = None,
        latents: Sequence[Tensor | None] | None = None,
        temperature: float | Sequence[float] = 1.0,
        lr_posterior_temperature: float | Sequence[float] | None = None,
        num_conditioned_groups: int | None = None,
        num_groups: int | None = None,
        record: str = "distributions",
    ) -> TopDownOutput:
        """The one top-down pass, whatever it is for: ELBO, distillation, sampling from the prior, super-resolution.

        z_l is, in this order: `latents[l]` where given; a draw from q(z_l | z_<l, x) where `activations` are given; a
        draw from q_psi(z_l | z_<l, y) where the `condition` has one for group l (CVDVAE, eq. 10-12); else a draw from
        the prior, which may be conditioned on y too.

        The stream has one row until the rows of the batch begin to differ: at the first noise, or the first of the
        `condition`'s features or `latents` that have more than one.

        Args:
            batch_size: B.
            size: (H, W) of the image.
            noise: standard normal draws, one tensor for each group or a function (`hvae_sr.noise`); None draws from
                torch's global generator.
            activations: what `encode` returned.
            condition: what an LR network's `encode` returned, of B observations, or of one that all rows share.
            latents: values z_l with B rows or one that all share, at most one for each group, None where it is to be
                drawn.
            temperature: factor of the standard deviations, one for all groups or one for each; q(z|x) is not scaled.
            lr_posterior_temperature: the same for the groups drawn from q_psi; None means `temperature`.
            num_conditioned_groups: lets the condition into the first so many groups only; None means all.
            num_groups: stops after so many groups.
            record: what is kept of each group: "distributions", "latents", or "nothing", which saves memory.

        Raises:
            ValueError: sizes, latents, noise or temperatures that do not fit the model.
        """
        self.check_size(size, "size")
        if not is_count(batch_size):
            raise ValueError(f"`batch_size` must be a whole number >= 1, got {batch_size!r}")
        if record not in ("distributions", "latents", "nothing"):
            raise ValueError(f"`record` must be 'distributions', 'latents' or 'nothing', got {record!r}")
        stop = self._count("num_groups", num_groups, 1)
        conditioned_groups = self._count("num_conditioned_groups", num_conditioned_groups, 0)
        if condition is not None and condition.batch_size not in (1, batch_size):
            raise ValueError(f"`condition` is of {condition.batch_size} observations, for a batch of {batch_size}")
        sizes = {r: self.latent_shape(group, 1, size)[2:] for group, r in enumerate(self.resolutions)}
        if condition is not None:
            _check_maps("condition", condition.features, sizes)
        if activations is not None:
            _check_maps("activations", activations, sizes, batch_size)
        source = as_noise_source(noise, num_groups=self.num_groups)
        given = self.check_latents("latents", latents, size, (batch_size, 1))
        tau = lr_tau = group_temperatures(temperature, self.num_groups)
        if lr_posterior_temperature is not None:
            lr_tau = group_temperatures(lr_posterior_temperature, self.num_groups, "lr_posterior_temperature")

        streams: dict[int, Tensor] = {}
        out = TopDownOutput(torch.empty(0))
        for group, block in enumerate(self.blocks[:stop]):
            assert isinstance(block, TopDownBlock)
            x = self._start(group, streams, 1 if activations is None else batch_size, size)
            draws = None
            if given[group] is None and (activations is not None or tau[group] or lr_tau[group]):
                draws = source(group, self.stride(group), self.latent_shape(group, batch_size, size), x.device)
            x, statistics = run_layer(
                self, block, x, group,
                condition=condition if group < conditioned_groups else None,
                activation=None if activations is None else activations[block.resolution],
                z=given[group], noise=draws, temperature=tau[group], lr_temperature=lr_tau[group],
            )  # fmt: skip
            streams[block.resolution] = x
            if record != "nothing":
                out.latents.append(statistics.z.expand(batch_size, -1, -1, -1))
            if record == "distributions":
                out.groups.append(statistics)
        out.stream = x
        return out

    def _start(self, group: int, streams: dict[int, Tensor], rows: int, size: tuple[int, int]) -> Tensor:
        """The stream of the group's resolution, started from its bias or zero, with the coarser stream mixed in."""
        block, (height, width) = self.blocks[group], self.latent_shape(group, 1, size)[2:]
        assert isinstance(block, TopDownBlock)
        x = streams.get(block.resolution)
        if x is None and str(block.resolution) in self.biases:
            x = self.biases[str(block.resolution)](rows, height, width)
            x = x.to(_stream_dtype(x))
        if block.mixin is not None:
            coarse = streams[block.mixin]
            if str(group) in self.upsamplers:
                coarse = self.upsamplers[str(group)](coarse)
            else:
                coarse = F.interpolate(set_channels(coarse, block.width), scale_factor=block.resolution // block.mixin)
            x = coarse if x is None else x.to(coarse.device) + coarse
        if x is None:
            x = torch.zeros(rows, block.width, height, width, dtype=self.dtype, device=execution_device(self))
        return x.contiguous(memory_format=torch.channels_last)

    def _count(self, name: str, value: int | None, least: int) -> int:
        """A number of groups, all of them for None, if it is between `least` and all."""
        if value is not None and not least <= value <= self.num_groups:
            raise ValueError(f"`{name}` must lie between {least} and {self.num_groups}, got {value}")
        return self.num_groups if value is None else value

    def check_latents(
        self, name: str, values: Sequence[Tensor | None] | None, size: tuple[int, int], rows: tuple[int, ...]
    ) -> list[Tensor | None]:
        """Given tensors of the groups, latents or noise: one entry for each group, in fp32, None where none is given.

        Args:
            name: of the argument, for errors.
            values: at most one `[N, C, h, w]` for each group of an image of `size` = (H, W), or None.
            rows: what N may be.

        Raises:
            ValueError: too many, or another shape; the message names the argument and the group.
        """
        given: list[Tensor | None] = list(values) if isinstance(values, (list, tuple)) else []
        most = self.num_groups
        if len(given) > most or not isinstance(values, (list, tuple, type(None))):
            found = len(given) or type(values).__name__
            raise ValueError(f"`{name}` must be a list of at most {most} tensors, one for each group; got {found}")
        for group, z in enumerate(given):
            if z is None:
                continue
            shape = self.latent_shape(group, 1, size)[1:]
            if not isinstance(z, Tensor) or z.ndim != 4 or tuple(z.shape[1:]) != shape or len(z) not in rows:
                counts = " or ".join(str(count) for count in dict.fromkeys(rows))
                got = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
                wanted = f"[N, {', '.join(map(str, shape))}] with N = {counts}"
                raise ValueError(f"`{name}[{group}]` must have shape {wanted}, got {got}")
            given[group] = z.float()
        return [*given, *[None] * (self.num_groups - len(given))]

    @entry_point
    def likelihood(self, stream: Tensor, condition: Condition | None = None) -> DiscretizedLogisticMixture:
        """p(x|z) from the end of the top-down pass, `[B, width, h, w]`; centred on the condition's location, if any."""
        location, c = condition.location if condition is not None else None, self.config
        parameters = self.out_conv(self.affine(stream))
        return DiscretizedLogisticMixture(parameters, c.num_mixtures, c.output_bits, location, c.patch_size)

    @entry_point
    def sample(
        self,
        batch_size: int = 1,
        size: tuple[int, int] | None = None,
        noise: NoiseSource | Sequence[Tensor] | None = None,
        condition: Condition | None = None,
        sample_pixels: bool = False,
        generator: torch.Generator | None = None,
        return_latents: bool = True,
        latents: Sequence[Tensor | None] | None = None,
        temperature: float | Sequence[float] = 1.0,
        lr_posterior_temperature: float | Sequence[float] | None = None,
        num_conditioned_groups: int | None = None,
    ) -> VDVAESample:
        """Images from p(x|z), z from the prior, or given y (`condition`), or given, or in part each.

        Args:
            batch_size: B.
            size: (H, W); None means the nominal size.
            noise, generator: the draws of z (see `top_down`); at most one of them.
            condition: what an LR network's `encode` returned; of B observations, or of one that all images share.
            sample_pixels: draws x from p(x|z), as VD-VAE's code does, instead of returning E[x|z].
            return_latents: whether the values z are kept.
            latents, temperature, lr_posterior_temperature, num_conditioned_groups: see `top_down`.

        Returns:
            Images nominally on [-1, 1], not clamped. Those of a 5-bit model have the mean of the lost levels added
            back (`half_bin_shift`).

        Raises:
            ValueError: as `top_down`.
        """
        size = (self.config.image_size,) * 2 if size is None else size
        self.check_size(size, "size")
        source = as_noise_source(noise, generator, self.num_groups)
        record = "latents" if return_latents else "nothing"
        out = self.top_down(
            batch_size, size, source, None, condition, latents, temperature, lr_posterior_temperature,
            num_conditioned_groups, record=record,
        )  # fmt: skip
        # Rows that were shared until the end get memory of their own: callers change samples in place.
        if sample_pixels:
            draw = uniform_source(source, generator)
            shapes = [(batch_size, channels, *size) for channels in (self.config.num_mixtures, 3)]
            uniforms = [draw(number, shape, out.stream.device) for number, shape in enumerate(shapes)]
            x = self.likelihood(out.stream.expand(batch_size, -1, -1, -1), condition).sample(*uniforms)
        else:
            rows = max(STRIP // out.stream.shape[-1], 1)
            x = torch.cat([self.likelihood(part).mean() for part in out.stream.split(rows, dim=2)], dim=2)
            x = x if condition is None or condition.location is None else x + condition.location.float()
            x = x.expand(batch_size, -1, -1, -1).contiguous()
        return VDVAESample(sample=x + half_bin_shift(self.config.output_bits), latents=per_group(out.latents))

    def forward(
        self,
        sample: Tensor,
        noise: NoiseSource | Sequence[Tensor] | None = None,
        generator: torch.Generator | None = None,
        condition: Condition | None = None,
        return_dict: bool = True,
    ) -> VDVAEOutput | tuple[Any, ...]:
        """The negative ELBO of images: distortion + rate (VD-VAE, eq. 1; given y, the thesis' eq. 4.5 or 5.1).

        Args:
            sample: `[B, 3, H, W]` on [-1, 1], 8-bit levels.
            noise, generator: the draws of z ~ q(z|x) (see `top_down`); at most one of them.
            condition: what an LR network's `encode` returned; see `LRConditioner` for what it conditions.

        Raises:
            ValueError: sides that do not fit, or a wrong number of channels.
        """
        activations, size = self.encode(sample), (sample.shape[-2], sample.shape[-1])
        source = as_noise_source(noise, generator, self.num_groups)
        out = self.top_down(len(sample), size, source, activations, condition)
        output = self.elbo(sample, out, condition)
        return output if return_dict else output.to_tuple()

    def elbo(self, sample: Tensor, out: TopDownOutput, condition: Condition | None = None) -> VDVAEOutput:
        """`forward`, from what `top_down` returned for the activations of `sample` and the same `condition`."""
        likelihood = self.likelihood(out.stream, condition)
        dimensions, bits = sample[0].numel(), self.config.output_bits
        distortion = -likelihood.log_prob(quantise(sample, bits)).sum(dim=(1, 2)) / dimensions
        group_kl = per_group(
            group.posterior.kl(group.prior).sum(dim=(1, 2, 3)) for group in out.groups if group.posterior is not None
        )
        rate = torch.stack(group_kl).sum(dim=0) / dimensions
        return VDVAEOutput(likelihood.mean() + half_bin_shift(bits), distortion + rate, distortion, rate, group_kl)


def _check_maps(
    argument: str, maps: dict[int, Tensor], sizes: dict[int, tuple[int, int]], batch_size: int | None = None
) -> None:
    """Raises a ValueError unless maps of the decoder's resolutions are as large as its own, and of B rows, if given."""
    for resolution in maps.keys() & sizes.keys():
        (rows, _, *found), (height, width) = maps[resolution].shape, sizes[resolution]
        if tuple(found) != (height, width) or batch_size not in (None, rows):
            wanted = f"{'B' if batch_size is None else batch_size}, width, {height}, {width}"
            raise ValueError(
                f"`{argument}` at resolution {resolution} must have shape [{wanted}] to fit `size` and `batch_size`, "
                f"got {tuple(maps[resolution].shape)}"
            )


def _stream_dtype(x: Tensor) -> torch.dtype:
    """The dtype of a stream that starts at x: its own, or autocast's, where an fp32 start would promote every sum."""
    kind = x.device.type
    enabled = kind != "meta" and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if enabled else x.dtype
