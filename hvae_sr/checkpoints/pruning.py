"""A network with fewer blocks that starts from a trained one."""

from collections.abc import Sequence

import torch

from ..baselines import RRDBNet
from ..models.rrdb import RESIDUAL_SCALE


@torch.no_grad()
def take_blocks(network: RRDBNet, trained: RRDBNet, blocks: Sequence[int]) -> set[str]:
    """Starts `network` from some blocks of a trained network, and from what else of it has the same shape.

    A block is h + 0.2 D_3(D_2(D_1(h))), in which each D keeps its input: most of what it gives is 1.2 h. So a block
    that is left out leaves the gain of 1.2 behind, without which those after it would count for too much. Convolutions
    and leaky ReLUs keep a positive factor, so that the gain g of all blocks left out before a block is had by biases
    divided by g, and by the kernel after the last block times g.

    Args:
        network: with as many blocks as are named, changed in place.
        trained: of the same width and growth.
        blocks: ascending numbers of blocks of `trained`, from 0.

    Returns:
        Names of the parameters of `network` that keep their own weights.

    Raises:
        ValueError: other blocks, or networks of other widths.
    """
    for name, given in (("network", network), ("trained", trained)):
        if not isinstance(given, RRDBNet):
            raise ValueError(f"`{name}` must be an RRDBNet, got {type(given).__name__}")
    count, blocks = len(trained.body), list(blocks)
    if blocks != sorted(set(blocks)) or not set(blocks) <= set(range(count)) or len(blocks) != len(network.body):
        raise ValueError(f"`blocks` must be {len(network.body)} ascending numbers below {count}, got {blocks}")
    state, taken = network.state_dict(), {}
    gains = [(1 + RESIDUAL_SCALE) ** (block - place) for place, block in enumerate(blocks)]
    for name, tensor in trained.state_dict().items():
        if name.startswith("body."):
            number, rest = name.removeprefix("body.").split(".", 1)
            if int(number) not in blocks:
                continue
            place = blocks.index(int(number))
            name = f"body.{place}.{rest}"
            tensor = tensor / gains[place] if name.endswith("bias") else tensor
        elif name == "conv_body.weight":
            tensor = tensor * (1 + RESIDUAL_SCALE) ** (count - len(blocks))
        if name in state and state[name].shape == tensor.shape:
            taken[name] = tensor
    lacking = set(state) - set(taken)
    if any(name.startswith(("body.", "conv_first.", "conv_body.")) for name in lacking):
        raise ValueError(
            f"`network` must have the width, growth and scale factor of the trained one, {dict(trained.config)}, got "
            f"{dict(network.config)}"
        )
    network.load_state_dict(taken, strict=False)
    return lacking
