"""SR3 (Saharia et al., "Image Super-Resolution via Iterative Refinement", 2021): a diffusion model of p(x|y), in the
form of its widely used open implementation.

That one (Janspiry/Image-Super-Resolution-via-Iterative-Refinement) differs from the paper: residual blocks of DDPM,
attention at one resolution, the noise level added to the features and not scaling them.
"""

import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from ..hooks import run_layer
from ..loading import StrictLoading
from ..noise import NoiseSource
from .common import ImageOutput, check_images, check_whole, on_meta
from .diffusion import AncestralScheduler


class SR3UNet(StrictLoading, ModelMixin, ConfigMixin):
    """A U-Net that predicts the noise in x_t from x_t, from y enlarged to its size, and from the noise level.

    The noise level is sqrt(abar) itself, on [0, 1], neither an index nor scaled, so that chains of any length can be
    sampled. The weights' names are those of the published code, without `denoise_fn.`.

    Args:
        image_size: nominal side, from which on the levels' resolutions are counted: with another one the attention
            moves. Images of any size whose sides are multiples of 2^(levels - 1) may be passed.
        width: channels of the first level.
        width_multiples: of every level.
        attention_resolutions: nominal resolutions whose blocks have attention; the middle always has it.
        num_res_blocks: residual blocks a level on the way down; one more on the way up.
        norm_groups: of the group normalisations.
        dropout: in the second half of each residual block.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        image_size: int = 128,
        width: int = 64,
        width_multiples: Sequence[int] = (1, 2, 4, 8, 8),
        attention_resolutions: Sequence[int] = (16,),
        num_res_blocks: int = 2,
        norm_groups: int = 32,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_whole(image_size=image_size, width=width, num_res_blocks=num_res_blocks, norm_groups=norm_groups)
        if width % norm_groups:
            raise ValueError(f"`norm_groups` must divide `width` {width}, got {norm_groups}")
        self.multiple = 2 ** (len(width_multiples) - 1)
        self.noise_level_mlp = NoiseEmbedding(
            NoiseLevelEncoding(width), nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width)
        )
        self.gradient_checkpointing = False

        def block(width_in: int, width_out: int, attention: bool) -> AttentionBlock:
            return AttentionBlock(width_in, width_out, width, norm_groups, dropout, attention)

        channels, resolution = width, image_size
        widths = [channels]
        downs: list[nn.Module] = [nn.Conv2d(6, width, 3, padding=1)]
        for level, multiple in enumerate(width_multiples):
            for _ in range(num_res_blocks):
                downs.append(block(channels, multiple * width, resolution in attention_resolutions))
                channels = multiple * width
                widths.append(channels)
            if level < len(width_multiples) - 1:
                downs.append(nn.Sequential(OrderedDict(conv=nn.Conv2d(channels, channels, 3, stride=2, padding=1))))
                widths.append(channels)
                resolution //= 2
        self.downs = nn.ModuleList(downs)
        self.mid = nn.ModuleList([block(channels, channels, True), block(channels, channels, False)])
        ups: list[nn.Module] = []
        for level, multiple in reversed(list(enumerate(width_multiples))):
            for _ in range(num_res_blocks + 1):
                attention = resolution in attention_resolutions
                ups.append(block(channels + widths.pop(), multiple * width, attention))
                channels = multiple * width
            if level > 0:
                conv = nn.Conv2d(channels, channels, 3, padding=1)
                ups.append(nn.Sequential(OrderedDict(nearest=nn.Upsample(scale_factor=2), conv=conv)))
                resolution *= 2
        self.ups = nn.ModuleList(ups)
        self.final_conv = NormedConv(channels, 3, norm_groups, 0.0)

    def forward(
        self, sample: Tensor, condition: Tensor, noise_level: Tensor, return_dict: bool = True
    ) -> ImageOutput | tuple[Tensor]:
        """The noise in x_t.

        Args:
            sample: x_t, `[B, 3, H, W]`, sides multiples of 2^(levels - 1).
            condition: y enlarged, `[B, 3, H, W]` on [-1, 1].
            noise_level: sqrt(abar_t), `[B]` or `[B, 1]`, on [0, 1].
            return_dict: False for a tuple.

        Raises:
            ValueError: tensors of another type or shape.
        """
        check_images("sample", sample, multiple=self.multiple)
        check_images("condition", condition)
        if condition.shape != sample.shape:
            raise ValueError(f"`condition` must have the shape of `sample`, got {tuple(condition.shape)}")
        if noise_level.numel() != len(sample):
            raise ValueError(f"`noise_level` must be [{len(sample)}], got {tuple(noise_level.shape)}")
        embedding = self.noise_level_mlp(noise_level.reshape(-1, 1), self.dtype)
        x = torch.cat((condition, sample), 1).to(self.dtype)
        skips: list[Tensor] = []
        for layer in self.downs:
            x = run_layer(self, layer, x, embedding) if isinstance(layer, AttentionBlock) else layer(x)
            skips.append(x)
        for layer in self.mid:
            x = run_layer(self, layer, x, embedding)
        for layer in self.ups:
            if isinstance(layer, AttentionBlock):
                x = run_layer(self, layer, torch.cat((x, skips.pop()), 1), embedding)
            else:
                x = layer(x)
        x = self.final_conv(x)
        return ImageOutput(x) if return_dict else (x,)


class NoiseEmbedding(nn.Sequential):
    """An encoding, in fp32, then two layers in `dtype`: `[B, 1]` to `[B, 1, width]`."""

    def forward(self, noise_level: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """The embedding; weights may be stored in another dtype than they compute in (`enable_layerwise_casting`)."""
        encoding, first, activation, last = self
        return last(activation(first(encoding(noise_level.float()).to(dtype))))


class NoiseLevelEncoding(nn.Module):
    """[sin(l f_k), cos(l f_k)] with f_k = 10000^(-k / (channels / 2)): `[B, 1]` to `[B, 1, channels]`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.frequencies = channels // 2

    def forward(self, noise_level: Tensor) -> Tensor:
        k = torch.arange(self.frequencies, device=noise_level.device, dtype=noise_level.dtype) / self.frequencies
        angles = noise_level[:, None] * torch.exp(-math.log(1e4) * k)
        return torch.cat((angles.sin(), angles.cos()), -1)


class NormedConv(nn.Sequential):
    """GroupNorm, SiLU, dropout, 3x3 convolution: `[B, width_in, h, w]` to `[B, width_out, h, w]`."""

    def __init__(self, width_in: int, width_out: int, groups: int, dropout: float) -> None:
        conv = nn.Conv2d(width_in, width_out, 3, padding=1)
        block = nn.Sequential(nn.GroupNorm(groups, width_in), nn.SiLU(), nn.Dropout(dropout), conv)
        super().__init__(OrderedDict(block=block))


class ResidualBlock(nn.Module):
    """Two normed convolutions with the noise level between them, and a residual connection."""

    def __init__(self, width_in: int, width_out: int, embedding_width: int, groups: int, dropout: float) -> None:
        super().__init__()
        self.noise_func = nn.Sequential(OrderedDict(noise_func=nn.Sequential(nn.Linear(embedding_width, width_out))))
        self.block1 = NormedConv(width_in, width_out, groups, 0.0)
        self.block2 = NormedConv(width_out, width_out, groups, dropout)
        self.res_conv = nn.Conv2d(width_in, width_out, 1) if width_in != width_out else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """`[B, width_in, h, w]` to `[B, width_out, h, w]`."""
        noise_level = self.noise_func(embedding).reshape(len(x), -1, 1, 1)
        return self.block2(self.block1(x) + noise_level) + self.res_conv(x)


class SelfAttention(nn.Module):
    """One head over all positions, scaled by 1 / sqrt(channels), with a residual connection; queries have no bias."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, width)
        self.qkv = nn.Conv2d(width, 3 * width, 1, bias=False)
        self.out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, width, h, w]` to the same."""
        # [B, 1, h w, width]: without the axis of the heads, torch would hold the scores of all pairs of positions.
        q, k, v = (part.flatten(2).mT.contiguous()[:, None] for part in self.qkv(self.norm(x)).chunk(3, 1))
        return x + self.out(F.scaled_dot_product_attention(q, k, v)[:, 0].mT.reshape(x.shape))


class AttentionBlock(nn.Module):
    """A residual block, and attention where asked for."""

    def __init__(
        self, width_in: int, width_out: int, embedding_width: int, groups: int, dropout: float, attention: bool
    ) -> None:
        super().__init__()
        self.res_block = ResidualBlock(width_in, width_out, embedding_width, groups, dropout)
        self.attn = SelfAttention(width_out, groups) if attention else None

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """`[B, width_in, h, w]` to `[B, width_out, h, w]`."""
        x = self.res_block(x, embedding)
        return x if self.attn is None else self.attn(x)


@dataclass
class SR3Step:
    """One step of SR3's chain: from x_t to x_(t-1).

    Args:
        index: of the step on the chain; 0 is the last.
        noise_level: sqrt(abar_t).
        sample: x_t, `[B, 3, H, W]`.
        prediction: the network's output.
        original: the estimate of x_0, clamped to [-1, 1].
        previous: x_(t-1); at index 0 the result.
    """

    index: int
    noise_level: float
    sample: Tensor
    prediction: Tensor
    original: Tensor
    previous: Tensor


def sr3_step(
    unet: SR3UNet, scheduler: AncestralScheduler, index: int, x: Tensor, condition: Tensor, noise: Tensor | None
) -> SR3Step:
    """x_(t-1) from x_t; `noise` are the step's standard normals, None at index 0, other arguments as in `sr3_chain`."""
    level = scheduler.noise_level(index)
    prediction = unet(x, condition, x.new_full((len(x),), level), return_dict=False)[0].to(x.dtype)
    out = scheduler.step(prediction, index, x, noise)
    return SR3Step(index, level, x, prediction, out.pred_original_sample, out.prev_sample)


def sr3_chain(unet: SR3UNet, scheduler: AncestralScheduler, condition: Tensor, noise: NoiseSource) -> Iterator[SR3Step]:
    """Samples x given y (SR3, algorithm 2), one step at a time; the last `previous` is the sample.

    Args:
        unet: the network.
        scheduler: its noise schedule, with the chain chosen.
        condition: y enlarged, `[B, 3, H, W]` on [-1, 1].
        noise: of the batch. Group 0 is the first x, group 1 + t the draw of step t of the *training* chain, so that a
            sample depends on its seed and its steps alone.

    Yields:
        Every step, from the noisiest.
    """
    shape = (condition.shape[0], 3, condition.shape[2], condition.shape[3])
    x = noise(0, 1, shape, condition.device).to(condition.dtype)
    for index in reversed(range(scheduler.num_steps)):
        draw = None if index == 0 else noise(1 + scheduler.timestep(index), 1, shape, x.device).to(x.dtype)
        step = sr3_step(unet, scheduler, index, x, condition, draw)
        yield step
        x = step.previous


def activation_bytes(unet: SR3UNet, size: tuple[int, int]) -> int:
    """Bytes that one evaluation of an image of `size` = (H, W) takes beside the weights, about.

    What the way down keeps for the way up, and four times the largest map, or eight of an attention's: its input, their
    normalisation, q, k and v, as they are computed and as they are read. Counted without computing.
    """
    model = on_meta(unet)
    kept: list[int] = []
    maps: list[int] = []
    for layer in model.downs:
        layer.register_forward_hook(lambda _, __, out: kept.append(out.nbytes))
    for layer in model.modules():
        if isinstance(layer, (AttentionBlock, NormedConv)):
            layer.register_forward_hook(lambda _, __, out: maps.append(out.nbytes))
        elif isinstance(layer, SelfAttention):
            layer.register_forward_hook(lambda _, __, out: maps.append(2 * out.nbytes))
    x = torch.zeros(1, 3, *size, device="meta", dtype=unet.dtype)
    with torch.no_grad():
        model(x, x, torch.zeros(1, device="meta"))
    return sum(kept) + 4 * max(maps)


def sr3_loss(prediction: Tensor, noise: Tensor, kind: str = "l1") -> Tensor:
    """The mean of |prediction - noise| ("l1", as published) or of its square ("l2"), over everything."""
    difference = prediction - noise
    return difference.abs().mean() if kind == "l1" else difference.square().mean()
