"""SPAN's published weights: each of its convolutions is trained as a row of three beside one of a single pixel."""

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, einsum

_BRANCHES = ("sk.", "conv.0.", "conv.1.", "conv.2.")
_MERGED = "eval_conv."


def merge_convolutions(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state with every such row as the one 3x3 convolution that it amounts to; another network's as it is.

    With 1x1 kernels A and C, a 3x3 kernel B and the shortcut S: W = C B A, and S added at its centre. A row's own
    merged kernel (`eval_conv`), which the published code computes anew before it is used, counts only where the row is
    missing.
    """
    merged = dict(state)
    for name in [key.removesuffix("sk.weight") for key in state if key.endswith(".sk.weight")]:
        keys = [f"{name}{branch}{kind}" for branch in _BRANCHES for kind in ("weight", "bias")]
        if not set(keys) <= set(state):
            continue  # the file is damaged, and the comparison of keys says so
        shortcut, of_shortcut, a, of_a, b, of_b, c, of_c = (merged.pop(key).double() for key in keys)
        weight = einsum("on,nmhw,mi->oihw", c[..., 0, 0], b, a[..., 0, 0]) + F.pad(shortcut, (1, 1, 1, 1))
        bias = c[..., 0, 0] @ (b.sum((2, 3)) @ of_a + of_b) + of_c + of_shortcut
        merged[f"{name}weight"], merged[f"{name}bias"] = weight.float(), bias.float()
        for kind in ("weight", "bias"):
            merged.pop(f"{name}{_MERGED}{kind}", None)
    return {key.replace(f".{_MERGED}", "."): value for key, value in merged.items()}
