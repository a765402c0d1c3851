"""Networks that start from trained ones: larger ones that compute the same, and those of another decoder."""

import logging
from collections.abc import Iterator
from itertools import groupby, zip_longest
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..models import VDVAE, LRConditioner, LREncoder
from ..models.blocks import Upsampler, parse_blocks
from ..models.group import TopDownBlock

logger = logging.getLogger(__name__)

_LRNetwork = TypeVar("_LRNetwork", LREncoder, LRConditioner)

_MAY_DIFFER = ("blocks", "bottleneck_multiple", "gate_init", "restored_shares", "restored_tolerance")
_CENTRES = ("bicubic", "projection")
"""Values of `likelihood_location` that go over into each other: both are y enlarged, without parameters."""


def grow(trained: _LRNetwork, larger: _LRNetwork) -> None:
    """Gives `larger` the weights of `trained`, so that both compute the same (Net2Net; Chen et al., 2016).

    `larger` may have more blocks at a resolution of `blocks`, and a larger `bottleneck_multiple`. A new block's last
    convolution is zero, so that the residual stream passes it unchanged; new middle channels keep their random weights,
    but what was there before reads them with zeros. New blocks lie evenly between the old ones.

    The centre of the likelihood may be another enlargement of y ("projection" to "bicubic", for a model that is not to
    know H): what differs from the trained function then is the difference of the two, which a log line tells.
    `restored_shares` and `restored_tolerance` may differ too: they come after all networks.

    Args:
        trained: the network whose weights are taken.
        larger: a new network, changed in place.

    Raises:
        ValueError: configurations that differ in anything else, or a `larger` that is smaller.
    """
    for name, value in trained.config.items():
        if name.startswith("_") or name in _MAY_DIFFER or larger.config[name] == value:
            continue
        if name == "likelihood_location" and {value, larger.config[name]} == set(_CENTRES):
            logger.info(
                "the likelihood is centred on %r, that of the pretrained network on %r", larger.config[name], value
            )
        else:
            raise ValueError(
                f"`{name}` is {value!r} in the pretrained network, which cannot grow to {larger.config[name]!r}"
            )
    if trained.config.get("conditioning") == "trivial":  # which has no blocks
        larger.load_state_dict(trained.state_dict())
        return
    places = _places(trained.config.blocks, larger.config.blocks)
    state = larger.state_dict()
    prefix = "network.bottom_up.blocks."
    for name, tensor in trained.state_dict().items():
        if name.startswith(prefix):
            index, rest = name.removeprefix(prefix).split(".", 1)
            name = f"{prefix}{places[int(index)]}.{rest}"
        _copy(tensor, state[name], name)
    larger.load_state_dict(state)
    body: Any = larger.network
    for index, block in enumerate(body.bottom_up.blocks):
        if index not in places:
            nn.init.zeros_(block.c4.weight)
            nn.init.zeros_(block.c4.bias)


_NUMBERED = {
    "blocks.": "decoder_blocks",
    "encoder.blocks.": "encoder_blocks",
    "network.bottom_up.blocks.": "blocks",
    "network.up_blocks.": "upsampling_blocks",
    "gates.": "decoder_blocks",
    "heads.": "decoder_blocks",
    "upsamplers.": "decoder_blocks",
}
"""Names of parameters that a block's number follows, and the option that says what the blocks are."""
_STEM = "network.bottom_up.in_conv.weight"
"""The one convolution that may read more channels in a network that starts from a trained one: what a restorer
or a regression adds."""
_SAME_MEANING = ("activation", "bias_type", "conditioning", "input_shift", "input_scale", "patch_size")
"""Options that weights of the same shape depend on."""


def transfer(trained: VDVAE | LREncoder | LRConditioner, network: VDVAE | LREncoder | LRConditioner) -> set[str]:
    """Starts `network` from what of `trained` has a place in it, such as for another scale factor; the rest stays.

    A block's place is that of its number among the blocks of the same nominal resolution; a parameter of another shape
    has none. With nominal sizes such that y has the same in both, blocks keep their distance from y's resolution.
    Residual blocks without latents that `network` has more than `trained` add nothing at first, and convolutions that
    are new before a pixel shuffle start as the nearest neighbour's upsampling, so that a decoder that differs in these
    alone starts as the same function. A group with other latent channels starts as the same function at temperature 0.
    What a restorer or a regression adds to y's own channels is read with zeros at first.

    Args:
        trained: the network whose weights are taken.
        network: a new network of the same class, changed in place.

    Returns:
        Names of the parameters of `network` that keep their random weights.

    Raises:
        ValueError: nothing of `trained` has a place in `network`, or what has would mean something else there.
    """
    for name in _SAME_MEANING:
        old, new = trained.config.get(name), network.config.get(name)
        if old != new:
            raise ValueError(f"`{name}` is {old!r} in the pretrained network, whose weights do not fit {new!r}")
    places = {
        prefix: dict(_same_resolution(trained.config.get(option), network.config.get(option)))
        for prefix, option in _NUMBERED.items()
    }
    state, taken = network.state_dict(), {}
    for name, tensor in trained.state_dict().items():
        prefix = next((prefix for prefix in _NUMBERED if name.startswith(prefix)), None)
        if prefix is not None:
            number, rest = name.removeprefix(prefix).split(".", 1)
            name = f"{prefix}{places[prefix].get(int(number))}.{rest}"
        if name == _STEM and not isinstance(trained, VDVAE) and not isinstance(network, VDVAE):
            if state[name].shape[0] == tensor.shape[0]:
                taken[name] = _stem(tensor, trained.read_channels, network.read_channels)
        elif name in state and state[name].shape == tensor.shape:
            taken[name] = tensor
    count, total = (sum(x.numel() for x in tensors.values()) for tensors in (taken, state))
    if not count:
        raise ValueError(f"no weights of the pretrained {type(trained).__name__} have a place in the new one")
    network.load_state_dict(taken, strict=False)
    if isinstance(trained, VDVAE) and isinstance(network, VDVAE):
        _keep_function(trained, network, places["blocks."], set(state) - set(taken))
    logger.info("%s: %d of %d parameters from the pretrained network", type(network).__name__, count, total)
    return set(state) - set(taken)


def _stem(weight: Tensor, old: dict[str, int], new: dict[str, int]) -> Tensor:
    """A stem's kernel for what it reads in `new`: that of the parts of `old`, and zeros for others."""
    parts = dict(zip(old, weight.split(list(old.values()), dim=1), strict=True))
    zeros = {name: weight.new_zeros(weight.shape[0], width, *weight.shape[2:]) for name, width in new.items()}
    kept = [parts[name] if old.get(name) == width else zeros[name] for name, width in new.items()]
    return torch.cat(kept, dim=1)


@torch.no_grad()
def _keep_function(trained: VDVAE, network: VDVAE, places: dict[int, int], new: set[str]) -> None:
    """Lets parameters that are `new` in a decoder change little: see `transfer`; groups have these `places` in it."""
    for group, place in places.items():
        before, after = trained.blocks[group], network.blocks[place]
        assert isinstance(before, TopDownBlock) and isinstance(after, TopDownBlock)
        if before.latent_channels != after.latent_channels:
            _keep_residual(before, after)
    for name in new:
        if ".residual_blocks." in name and ".c4." in name:
            nn.init.zeros_(network.get_parameter(name))
    for group_name, upsampler in network.upsamplers.items():
        if f"upsamplers.{group_name}.conv.weight" in new:
            assert isinstance(upsampler, Upsampler)
            for parameter in upsampler.parameters():
                nn.init.zeros_(parameter)
            places_of_channel = upsampler.conv.weight.unflatten(0, (-1, upsampler.factor**2))  # pixel_shuffle's order
            for channel in range(min(places_of_channel.shape[0], places_of_channel.shape[2])):
                places_of_channel[channel, :, channel, 1, 1] = 1


def _keep_residual(before: TopDownBlock, after: TopDownBlock) -> None:
    """The prior head's residual from a group with other latent channels, whose means are part of it then."""
    old, new, c = before.prior_head.c4, after.prior_head.c4, before.latent_channels
    if before.width != after.width or old.in_channels != new.in_channels:
        return
    assert old.bias is not None and new.bias is not None
    matrix = before.z_projection.weight.flatten(1)
    weight, bias = (matrix @ part[:c].flatten(1) for part in (old.weight, old.bias[:, None]))
    new.weight[-after.width :] = old.weight[2 * c :] + weight[..., None, None]
    new.bias[-after.width :] = old.bias[2 * c :] + bias[:, 0]


def _same_resolution(blocks: str | None, others: str | None) -> Iterator[tuple[int, int]]:
    """Numbers of the blocks of one string, and of those that have their places in another."""
    free: dict[tuple[int, bool], list[int]] = {}
    for number, spec in enumerate(parse_blocks(others) if others else []):
        free.setdefault((spec.resolution, spec.down_rate is not None), []).append(number)
    for number, spec in enumerate(parse_blocks(blocks) if blocks else []):
        left = free.get((spec.resolution, spec.down_rate is not None))
        if left:
            yield number, left.pop(0)


def _places(blocks: str, larger: str) -> list[int]:
    """Where each block of a network lies in a larger one."""
    old, new = ([(spec, len([*run])) for spec, run in groupby(parse_blocks(text))] for text in (blocks, larger))
    places: list[int] = []
    start = 0
    for (spec, few), (other, many) in zip_longest(old, new, fillvalue=(None, 0)):
        if spec is None or spec != other or few > many or (spec.down_rate is not None and few != many):
            raise ValueError(f"`blocks` = {blocks!r} of the pretrained network cannot grow to {larger!r}")
        places += [start + i * many // few for i in range(few)]
        start += many
    return places


@torch.no_grad()
def _copy(tensor: Tensor, into: Tensor, name: str) -> None:
    """Writes a parameter into a larger one: old outputs read nothing from new inputs."""
    if any(few > many for few, many in zip(tensor.shape, into.shape, strict=True)):
        raise ValueError(f"`bottleneck_multiple`: {name} has {tuple(tensor.shape)}, more than {tuple(into.shape)}")
    if tensor.ndim > 1:
        into[: tensor.shape[0], tensor.shape[1] :] = 0
    into[tuple(slice(size) for size in tensor.shape[:2])] = tensor
