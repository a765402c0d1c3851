"""DPS: diffusion posterior sampling (Chung et al., "Diffusion Posterior Sampling for General Noisy Inverse Problems", ICLR
2023): an unconditional diffusion prior, whose chain is led to y by the gradient of its residual.

The prior is guided diffusion's U-Net (Dhariwal and Nichol, "Diffusion Models Beat GANs on Image Synthesis", NeurIPS 2021).
diffusers' `UNet2DModel` is that network with the right options; `published_options` translates them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401  # diffusers looks for it in a component's module
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor

from ..models.loading import StrictLoading
from ..noise import NoiseSource
from .diffusion import AncestralScheduler

_DEFAULT_MULTIPLES = {
    512: "0.5,1,1,2,2,4,4",
    256: "1,1,2,2,4,4",
    128: "1,1,2,3,4",
    64: "1,2,3,4",
}
"""Of guided diffusion, where `channel_mult` is empty."""
_NORM_GROUPS = 32


class GuidedDiffusionUNet(StrictLoading, UNet2DModel):
    """`UNet2DModel` that is loaded strictly: no pickles, no missing and no unknown weights.

    Its configuration is that of `UNet2DModel`; `GuidedDiffusionUNet(**published_options(...))` has guided diffusion's.
    """


def published_options(
    image_size: int,
    num_channels: int,
    num_res_blocks: int,
    channel_mult: str = "",
    attention_resolutions: int | str = "16",
    num_heads: int = 1,
    num_head_channels: int = -1,
    learn_sigma: bool = True,
    use_scale_shift_norm: bool = True,
    resblock_updown: bool = True,
    dropout: float = 0.0,
    **unused: Any,
) -> dict[str, Any]:
    """The configuration of `GuidedDiffusionUNet` for hyper-parameters under their published names.

    Args:
        image_size: nominal side.
        num_channels: model channels.
        num_res_blocks: residual blocks of a level, one more on the way up.
        channel_mult: the levels' multiples of the model channels; empty for those of the image size.
        attention_resolutions: resolutions with attention; a number or "32,16,8".
        num_heads, num_head_channels: heads, or their width, which overrides it.
        learn_sigma: whether the output has three more channels, for the variance.
        use_scale_shift_norm, resblock_updown: must be True, as in the published priors.
        dropout: of the residual blocks.
        **unused: others of the published options that change nothing here; `class_cond` and
            `use_new_attention_order` must be False.

    Raises:
        ValueError: options whose network `UNet2DModel` is not.
    """
    needed = {"use_scale_shift_norm": use_scale_shift_norm, "resblock_updown": resblock_updown}
    refused = {name: unused.get(name, False) for name in ("class_cond", "use_new_attention_order")}
    for name, value in {**needed, **refused}.items():
        if bool(value) is not (name in needed):
            raise ValueError(f"`{name}` must be {name in needed}, got {value!r}")
    multiples = channel_mult or _DEFAULT_MULTIPLES.get(image_size)
    if multiples is None:
        raise ValueError(f"`channel_mult` must be given for image_size={image_size}")
    widths = [int(float(part) * num_channels) for part in multiples.split(",")]
    if any(width % _NORM_GROUPS for width in widths):
        raise ValueError(f"`num_channels` times `channel_mult` must be multiples of {_NORM_GROUPS}, got {widths}")
    if num_head_channels <= 0 and len(set(widths)) > 1:
        raise ValueError(f"`num_head_channels` must be given where widths differ, got {num_head_channels}")
    attended = {image_size // int(part) for part in str(attention_resolutions).split(",")}
    attends = [2**level in attended for level in range(len(widths))]
    return {
        "sample_size": image_size,
        "out_channels": 6 if learn_sigma else 3,
        "time_embedding_dim": 4 * num_channels,
        "block_out_channels": widths,
        "layers_per_block": num_res_blocks,
        "down_block_types": ["AttnDownBlock2D" if a else "ResnetDownsampleBlock2D" for a in attends],
        "up_block_types": ["AttnUpBlock2D" if a else "ResnetUpsampleBlock2D" for a in reversed(attends)],
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "resnet_time_scale_shift": "scale_shift",
        "attention_head_dim": num_head_channels if num_head_channels > 0 else widths[0] // num_heads,
        "norm_num_groups": _NORM_GROUPS,
        "attn_norm_num_groups": _NORM_GROUPS,
        "dropout": dropout,
    }


_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}


def published_names(config: Mapping[str, Any]) -> dict[str, str]:
    """Modules of the published network -> modules of `GuidedDiffusionUNet(**config)`, in one of that configuration.

    Those of attention end in `qkv`, `norm` and `proj_out`; `qkv` stands for three modules of ours, given by their parent.
    """
    names = {
        "time_embed.0": "time_embedding.linear_1",
        "time_embed.2": "time_embedding.linear_2",
        "input_blocks.0.0": "conv_in",
        "out.0": "conv_norm_out",
        "out.2": "conv_out",
    }

    def resnet(theirs: str, ours: str) -> None:
        names.update({f"{theirs}.{a}": f"{ours}.{b}" for a, b in _RESNET.items()})

    def attention(theirs: str, ours: str) -> None:
        names.update({f"{theirs}.norm": f"{ours}.group_norm", f"{theirs}.qkv": ours})
        names[f"{theirs}.proj_out"] = f"{ours}.to_out.0"

    number = 1
    levels = len(config["block_out_channels"])
    for level, kind in enumerate(config["down_block_types"]):
        for i in range(config["layers_per_block"]):
            resnet(f"input_blocks.{number}.0", f"down_blocks.{level}.resnets.{i}")
            if kind.startswith("Attn"):
                attention(f"input_blocks.{number}.1", f"down_blocks.{level}.attentions.{i}")
            number += 1
        if level < levels - 1:
            resnet(f"input_blocks.{number}.0", f"down_blocks.{level}.downsamplers.0")
            number += 1
    resnet("middle_block.0", "mid_block.resnets.0")
    attention("middle_block.1", "mid_block.attentions.0")
    resnet("middle_block.2", "mid_block.resnets.1")
    number = 0
    for level, kind in enumerate(config["up_block_types"]):
        for i in range(config["layers_per_block"] + 1):
            resnet(f"output_blocks.{number}.0", f"up_blocks.{level}.resnets.{i}")
            attends = kind.startswith("Attn")
            if attends:
                attention(f"output_blocks.{number}.1", f"up_blocks.{level}.attentions.{i}")
            if i == config["layers_per_block"] and level < levels - 1:
                resnet(f"output_blocks.{number}.{2 if attends else 1}", f"up_blocks.{level}.upsamplers.0")
            number += 1
    return names


def from_published(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state dict of `GuidedDiffusionUNet(**config)` from one of guided diffusion.

    Keys that belong to no module are kept under their own names, so that they are refused later.
    """
    modules = published_names(config)
    converted: dict[str, Tensor] = {}
    for key, value in state.items():
        theirs, _, kind = key.rpartition(".")
        ours = modules.get(theirs)
        if ours is None:
            converted[key] = value
        elif theirs.endswith(".qkv"):
            for name, part in zip("qkv", _split_qkv(value, config["attention_head_dim"]), strict=True):
                converted[f"{ours}.to_{name}.{kind}"] = part
        elif theirs.endswith(".proj_out") and kind == "weight":
            converted[f"{ours}.{kind}"] = value.squeeze(-1)
        elif key == "time_embed.0.weight":
            converted[f"{ours}.{kind}"] = _spread_frequencies(value, config["block_out_channels"][0])
        else:
            converted[f"{ours}.{kind}"] = value
    return converted


def _split_qkv(value: Tensor, head_width: int) -> list[Tensor]:
    """Queries, keys and values of a projection stored as [heads, 3, head width] rows; a weight loses its kernel axis."""
    value = value.squeeze(-1) if value.ndim == 3 else value
    parts = value.reshape(-1, 3, head_width, *value.shape[1:])
    return [parts[:, i].flatten(0, 1) for i in range(3)]


def _spread_frequencies(weight: Tensor, width: int) -> Tensor:
    """The first layer of the time embedding, for one of `width` numbers.

    diffusers encodes the time by as many numbers as the first level is wide, guided diffusion by as many as there are
    model channels. The latter's frequencies are every m-th of the former's; the others get the weight 0.
    """
    rows, channels = weight.shape
    if width % channels:
        return weight  # fits no network: its shape is refused later
    spread = weight.new_zeros(rows, 2, channels // 2, width // channels)
    spread[..., 0] = weight.reshape(rows, 2, channels // 2)
    return spread.reshape(rows, width)


@dataclass
class DPSStep:
    """One step of DPS: from x_t to x_(t-1).

    Args:
        index: of the step on the chain; 0 is the last.
        timestep: of the training chain.
        sample: x_t, `[B, 3, H, W]`.
        prediction: the network's output, `[B, 6, H, W]`.
        original: the estimate of x_0, clamped to [-1, 1].
        residual: `[B]`, |y - A x_0|.
        gradient: of the residual by x_t.
        unguided: x_(t-1) of the unconditional chain.
        previous: x_(t-1) = unguided - scale gradient; at index 0 the result.
    """

    index: int
    timestep: int
    sample: Tensor
    prediction: Tensor
    original: Tensor
    residual: Tensor
    gradient: Tensor
    unguided: Tensor
    previous: Tensor


def dps_chain(
    unet: UNet2DModel,
    scheduler: AncestralScheduler,
    y: Tensor,
    operator: Callable[[Tensor], Tensor],
    size: Sequence[int],
    noise: NoiseSource,
    guidance_scale: float = 0.3,
    x: Tensor | None = None,
) -> Iterator[DPSStep]:
    """Samples x given y (DPS, algorithm 1), one step at a time; the last `previous` is the sample, not clamped.

    x_(t-1) = x'_(t-1) - scale d|y - A x_0(x_t)| / dx_t, where x' is the unconditional chain's. The norm itself is
    differentiated, not its square: the paper's step size is scale / 2 over the norm. The gradient runs through the clamp
    of x_0, and is zero where that holds. Each image of a batch has a norm of its own; the published code's is one over the
    whole batch, and the same for a single image.

    Args:
        unet: the unconditional prior.
        scheduler: its noise schedule, with the chain chosen.
        y: `[B, 3, h, w]` on [-1, 1].
        operator: A, differentiable, from `[B, 3, H, W]` to `[B, 3, h, w]`.
        size: (H, W).
        noise: of the batch; group 0 is the first x, group 1 + t the draw of step t of the *training* chain.
        guidance_scale: 0.3 in the published configuration for super-resolution.
        x: the first x; None to draw it.

    Yields:
        Every step, from the noisiest.
    """
    shape = (y.shape[0], 3, int(size[0]), int(size[1]))
    if x is None:
        x = noise(0, 1, shape, y.device).to(y.dtype)
    for index in reversed(range(scheduler.num_steps)):
        t = scheduler.timestep(index)
        draw = None if index == 0 else noise(1 + t, 1, shape, x.device).to(x.dtype)
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            prediction = unet(x, torch.full((len(x),), t, device=x.device), return_dict=False)[0]
            out = scheduler.step(prediction, index, x, draw)
            residual = torch.linalg.vector_norm((y - operator(out.pred_original_sample)).flatten(1), dim=1)
            # Each norm depends on its own image alone: the gradient of their sum is that of each.
            (gradient,) = torch.autograd.grad(residual.sum(), x)
        unguided = out.prev_sample.detach()
        previous = unguided - guidance_scale * gradient
        yield DPSStep(
            index,
            t,
            x.detach(),
            prediction.detach(),
            out.pred_original_sample.detach(),
            residual.detach(),
            gradient,
            unguided,
            previous,
        )
        x = previous
