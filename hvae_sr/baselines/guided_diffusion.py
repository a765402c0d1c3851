"""Guided diffusion's U-Net (Dhariwal and Nichol, "Diffusion Models Beat GANs on Image Synthesis", NeurIPS 2021): the
unconditional prior of DPS.

diffusers' `UNet2DModel` is that network with the right options: `published_options` translates them, `published_keys`
and `adapt` the weights.
"""

from collections.abc import Sequence
from typing import Any

from diffusers.models.modeling_utils import ModelMixin  # noqa: F401  # diffusers looks for it in a component's module
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor

from ..loading import StrictLoading

_DEFAULT_MULTIPLES = {256: "1,1,2,2,4,4", 128: "1,1,2,3,4", 64: "1,2,3,4"}
"""Of guided diffusion, where `channel_mult` is empty."""
_NORM_GROUPS = 32


class GuidedDiffusionUNet(StrictLoading, UNet2DModel):
    """`UNet2DModel` that is loaded strictly: no pickles, no missing and no unknown weights.

    Its configuration is that of `UNet2DModel`; `GuidedDiffusionUNet(**published_options(...))` has guided diffusion's.
    """


_AS_PUBLISHED: dict[str, tuple[Any, ...]] = {
    "class_cond": (False,), "use_new_attention_order": (False,), "num_classes": (None,), "in_channels": (3,),
    "noise_schedule": ("linear",), "predict_xstart": (False,), "rescale_timesteps": (False,), "conv_resample": (True,),
    "dims": (2,), "use_spatial_transformer": (False,), "use_scale_shift_norm": (True,), "resblock_updown": (True,),
}  # fmt: skip
"""Options whose other values are of another network or sampler."""
_UNUSED = (
    "use_fp16", "use_checkpoint", "model_path", "use_kl", "rescale_learned_sigmas", "timestep_respacing", "steps",
    "diffusion_steps", "num_heads_upsample",
)  # fmt: skip
"""Options that change nothing in the network: of its memory, its training, or what calls say."""


def published_options(
    image_size: int,
    num_channels: int,
    num_res_blocks: int,
    channel_mult: str | Sequence[float] = "",
    attention_resolutions: int | str = "16",
    num_heads: int = 1,
    num_head_channels: int = -1,
    learn_sigma: bool = True,
    dropout: float = 0.0,
    **others: Any,
) -> dict[str, Any]:
    """The configuration of `GuidedDiffusionUNet` for hyper-parameters under their published names.

    Args:
        image_size: nominal side.
        num_channels: model channels.
        num_res_blocks: residual blocks of a level, one more on the way up.
        channel_mult: the levels' multiples of the model channels, "1,2,4" or numbers; empty: the image size decides.
        attention_resolutions: resolutions with attention; a number or "32,16,8".
        num_heads, num_head_channels: heads, or their width, which overrides it.
        learn_sigma: whether the output has three more channels, for the variance.
        dropout: of the residual blocks.
        **others: published options that change nothing here (`use_fp16`, `model_path` and the like), or must have the
            values of the published priors (`resblock_updown` True, `class_cond` False, `noise_schedule` "linear", ...).

    Raises:
        ValueError: options whose network `UNet2DModel` is not, whose sampler `AncestralScheduler` is not, or that are
            none.
    """
    wanted = dict(_AS_PUBLISHED)
    if num_head_channels <= 0:  # else it decides
        wanted["num_heads_upsample"] = (-1, num_heads)
    for name, value in others.items():
        allowed = wanted.get(name)
        if allowed is not None and value not in allowed:
            raise ValueError(f"`{name}` must be {' or '.join(map(repr, allowed))}, got {value!r}")
        if allowed is None and name not in _UNUSED:
            raise ValueError(f"`{name}` is no option of guided diffusion, got {value!r}")
    if not isinstance(channel_mult, str):
        channel_mult = ",".join(map(str, channel_mult))
    multiples = channel_mult or _DEFAULT_MULTIPLES.get(image_size)
    if multiples is None:
        raise ValueError(f"`channel_mult` must be given for image_size={image_size}")
    widths = [int(float(part) * num_channels) for part in multiples.split(",")]
    if widths[0] % num_channels:  # of which diffusers' encoding of the time has so many numbers
        raise ValueError(f"`channel_mult` must begin with a whole number, got {multiples!r}")
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


_LAYERS = {  # ours -> published, of a residual block and of an attention
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
    "group_norm": "norm",
    **dict.fromkeys(("to_q", "to_k", "to_v"), "qkv"),
    "to_out.0": "proj_out",
}


def published_keys(model: UNet2DModel) -> dict[str, str]:
    """Keys of the model -> keys of the published network; three of ours come of each projection to q, k and v."""
    config = model.config
    last = len(config.block_out_channels) - 1
    down, up = [], []  # the model's parts of each published block, in their order

    def blocks(level: str, kind: str, count: int) -> list[list[str]]:
        parts = ("resnets", "attentions") if kind.startswith("Attn") else ("resnets",)
        return [[f"{level}.{part}.{i}" for part in parts] for i in range(count)]

    for i, kind in enumerate(config.down_block_types):
        down += blocks(f"down_blocks.{i}", kind, config.layers_per_block)
        if i < last:
            down.append([f"down_blocks.{i}.downsamplers.0"])
    for i, kind in enumerate(config.up_block_types):
        up += blocks(f"up_blocks.{i}", kind, config.layers_per_block + 1)
        if i < last:
            up[-1].append(f"up_blocks.{i}.upsamplers.0")
    places = {
        ours: f"{name}.{number}.{place}"
        for name, first, listed in (("input_blocks", 1, down), ("output_blocks", 0, up))
        for number, parts in enumerate(listed, first)
        for place, ours in enumerate(parts)
    }
    middle = ("resnets.0", "attentions.0", "resnets.1")
    places |= {f"mid_block.{ours}": f"middle_block.{place}" for place, ours in enumerate(middle)}
    names = {f"{ours}.{mine}": f"{place}.{layer}" for ours, place in places.items() for mine, layer in _LAYERS.items()}
    names |= {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    modules = {key: key.rpartition(".")[::2] for key in model.state_dict()}
    others = sorted({module for module, _ in modules.values()} - names.keys())
    if others or not isinstance(config.attention_head_dim, int):
        why = f"layers {', '.join(others[:3])}" if others else f"attention_head_dim={config.attention_head_dim!r}"
        raise ValueError(f"`config` of GuidedDiffusionUNet: guided diffusion has no network with {why}")
    return {key: f"{names[module]}.{kind}" for key, (module, kind) in modules.items()}


def published_shape(key: str, shape: tuple[int, ...], config: Any) -> tuple[int, ...]:
    """The shape of the published tensor that the model's `key`, of shape `shape`, is made of."""
    if ".to_q." in key or ".to_k." in key or ".to_v." in key:
        return (3 * shape[0], *shape[1:], 1)[: 3 if len(shape) == 2 else 1]
    if key.endswith(".to_out.0.weight"):
        return (*shape, 1)
    if key == "time_embedding.linear_1.weight":
        return shape[0], config.time_embedding_dim // 4
    return shape


def adapt(key: str, value: Tensor, config: Any) -> Tensor:
    """The model's tensor `key` from the published one.

    Queries, keys and values are stored together, in rows [heads, 3, head width]; the attention's projections as
    convolutions.

    diffusers encodes the time by as many numbers as the first level is wide, guided diffusion by as many as there are
    model channels: the latter's frequencies are every m-th of the former's, and the others get the weight 0.
    """
    for i, name in enumerate((".to_q.", ".to_k.", ".to_v.")):
        if name in key:
            rows = value.reshape(-1, 3, config.attention_head_dim, *value.shape[1:2])
            return rows[:, i].flatten(0, 1)
    if key.endswith(".to_out.0.weight"):
        return value.squeeze(-1)
    if key == "time_embedding.linear_1.weight":
        (rows_, channels), width = value.shape, config.block_out_channels[0]
        spread = value.new_zeros(rows_, 2, channels // 2, width // channels)
        spread[..., 0] = value.reshape(rows_, 2, channels // 2)
        return spread.reshape(rows_, width)
    return value
