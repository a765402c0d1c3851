"""Larger LR networks from trained ones: deeper and wider inside, the same function at the start."""

from typing import TypeVar

import torch
from torch import Tensor, nn

from ..models import LRConditioner, LREncoder
from ..models.layers import BlockSpec, Bottleneck, BottomUp, parse_blocks
from ..models.lr_features import LinearFeatures

_LRNetwork = TypeVar("_LRNetwork", LREncoder, LRConditioner)

_MAY_DIFFER = ("blocks", "bottleneck_multiple", "gate_init")


def grow(trained: _LRNetwork, larger: _LRNetwork) -> None:
    """Gives `larger` the weights of `trained`, so that both compute the same (Net2Net; Chen et al., 2016).

    `larger` may have more blocks at a resolution of `blocks`, and a larger `bottleneck_multiple`. A new block's last
    convolution is zero, so that the residual stream passes it unchanged; new middle channels keep their random weights,
    but what was there before reads them with zeros. New blocks lie evenly between the old ones.

    Args:
        trained: the network whose weights are taken.
        larger: a new network, changed in place.

    Raises:
        ValueError: configurations that differ in anything else, or a `larger` that is smaller.
    """
    for name, value in trained.config.items():
        if not name.startswith("_") and name not in _MAY_DIFFER and larger.config[name] != value:
            raise ValueError(
                f"`{name}` is {value!r} in the pretrained network, which cannot grow to {larger.config[name]!r}"
            )
    if isinstance(trained.network, LinearFeatures):  # conditioning "trivial", which has no blocks
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
    body = larger.network.bottom_up
    assert isinstance(body, BottomUp)
    for index, block in enumerate(body.blocks):
        if index not in places:
            assert isinstance(block, Bottleneck)
            nn.init.zeros_(block.c4.weight)
            nn.init.zeros_(block.c4.bias)  # type: ignore[arg-type]


def _places(blocks: str, larger: str) -> list[int]:
    """Where each block of a network lies in a larger one."""
    old, new = _runs(blocks), _runs(larger)
    kinds = [spec for spec, _ in old]
    if kinds != [spec for spec, _ in new] or any(few > many for (_, few), (_, many) in zip(old, new, strict=True)):
        raise ValueError(f"`blocks` = {blocks!r} of the pretrained network cannot grow to {larger!r}")
    places: list[int] = []
    start = 0
    for (spec, few), (_, many) in zip(old, new, strict=True):
        if spec.down_rate is not None and few != many:
            raise ValueError(f"`blocks` = {blocks!r} of the pretrained network cannot grow to {larger!r}")
        places += [start + i * many // few for i in range(few)]
        start += many
    return places


def _runs(blocks: str) -> list[tuple[BlockSpec, int]]:
    """Equal blocks in a row, and how many they are."""
    runs: list[tuple[BlockSpec, int]] = []
    for spec in parse_blocks(blocks):
        count = runs.pop()[1] if runs and runs[-1][0] == spec else 0
        runs.append((spec, count + 1))
    return runs


@torch.no_grad()
def _copy(tensor: Tensor, into: Tensor, name: str) -> None:
    """Writes a parameter into a larger one: old outputs read nothing from new inputs."""
    if any(few > many for few, many in zip(tensor.shape, into.shape, strict=True)):
        raise ValueError(f"`bottleneck_multiple`: {name} has {tuple(tensor.shape)}, more than {tuple(into.shape)}")
    rows = slice(0, tensor.shape[0])
    if tensor.ndim > 1:
        into[rows, tensor.shape[1] :] = 0
        into[rows, : tensor.shape[1]] = tensor
    else:
        into[rows] = tensor
