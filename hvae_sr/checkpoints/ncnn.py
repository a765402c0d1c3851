"""Weights in ncnn's format, a `.bin` beside a `.param`, as packages ship them for ESRGAN's networks and SPAN.

The `.param` lists the layers, the `.bin` has their numbers in the same order: of a convolution its weight, after a tag
that says whether it is stored in half precision, then its bias; of a PReLU its slopes.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..models.span import COLOUR_MEAN, NUM_BLOCKS
from .convert import ConversionError, check_finite

_MAGIC = "7767517"
_HALF = 0x01306B47
_SINGLE = 0
_WEIGHTLESS = ("Input", "Split", "Concat", "Eltwise", "BinaryOp", "Interp", "PixelShuffle", "Swish", "Sigmoid")
_Layers = list[tuple[str, dict[int, str]]]
"""The kind of each layer and its options, mostly whole numbers."""


def load_ncnn(path: str | Path) -> dict[str, Tensor]:
    """The weights of an RRDBNet, SRVGGNetCompact or SPAN, fp32, under their published names.

    Args:
        path: the `.bin`; the `.param` of the same name must be beside it.

    Raises:
        ConversionError: no such file, a damaged one, or layers that are not those of one of these networks.
    """
    path = Path(path)
    where = f"`checkpoint`: {path}"
    try:
        layers = _read_layers(path.with_suffix(".param"))
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise ConversionError(f"{where} cannot be read: {error}") from error
    except (ValueError, IndexError, UnicodeDecodeError) as error:
        raise ConversionError(f"{where}: its .param is no list of ncnn's layers ({error})") from error
    try:
        tensors = _read_tensors(layers, data)
    except (KeyError, ValueError) as error:
        raise ConversionError(f"{where} does not have what its .param lists: {error}") from error
    all_kinds = [kind for kind, _ in layers]
    kinds = [kind for kind in all_kinds if kind not in (*_WEIGHTLESS, "MemoryData")]
    if "MemoryData" in all_kinds:
        blocks = [f"block_{i}.c{j}_r" for i in range(1, NUM_BLOCKS + 1) for j in range(1, 4)]
        names = ["conv_1", *blocks, "conv_2", "conv_cat", "upsampler.0"]
        # The `.bin` begins with the mean colour, which our network has in its code.
        mean = np.fromfile(path, "<f4", len(COLOUR_MEAN))
        if kinds != ["Convolution"] * len(names) or not np.allclose(mean, COLOUR_MEAN, atol=1e-6):
            raise ConversionError(f"{where} has a constant, but is no SPAN with the mean colour of the published ones")
    elif kinds.count("Convolution") == len(kinds) and len(kinds) > 6 and (len(kinds) - 6) % 15 == 0:
        blocks = [f"body.{i}.rdb{j}" for i in range((len(kinds) - 6) // 15) for j in range(1, 4)]
        dense = [f"{block}.conv{k}" for block in blocks for k in range(1, 6)]
        names = ["conv_first", *dense, "conv_body", "conv_up1", "conv_up2", "conv_hr", "conv_last"]
    elif len(kinds) > 3 and kinds == ["Convolution", "PReLU"] * (len(kinds) // 2) + ["Convolution"]:
        if [kind for kind in all_kinds if kind in ("Interp", "BinaryOp")] != ["Interp", "BinaryOp"]:
            raise ConversionError(f"{where} resizes what its network returns, which SRVGGNetCompact does not")
        names = [f"body.{i}" for i in range(len(kinds))]
    else:
        found = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
        raise ConversionError(
            f"{where} holds neither an RRDBNet nor an SRVGGNetCompact nor a SPAN: its layers are {found}"
        )
    weights = {
        f"{name}.{kind}": value for name, parts in zip(names, tensors, strict=True) for kind, value in parts.items()
    }
    check_finite(weights, where)
    return weights


def _read_layers(path: Path) -> _Layers:
    """Layers in order. A line is: kind, name, numbers of inputs and outputs, their names, options `key=value`."""
    lines = path.read_text().splitlines()
    if not lines or lines[0].strip() != _MAGIC:
        raise ValueError(f"the first line is not {_MAGIC}")
    layers = []
    for line in lines[2:]:
        words = line.split()
        if not words:
            continue
        first = 4 + int(words[2]) + int(words[3])
        layers.append((words[0], {int(key): value for key, value in (w.split("=", 1) for w in words[first:])}))
    return layers


def _read_tensors(layers: _Layers, data: np.ndarray) -> list[dict[str, Tensor]]:
    """Weights of every layer that has some; the whole of `data` must be used."""
    position = 0

    def take(count: int, dtype: str) -> np.ndarray:
        nonlocal position
        size = count * np.dtype(dtype).itemsize
        if position + size > len(data):
            raise ValueError(f"the file ends after {len(data)} bytes, {position + size} are needed")
        values = data[position : position + size].view(dtype)
        position += -(-size // 4) * 4  # parts start at multiples of four bytes
        return values

    def tensor(values: np.ndarray, shape: tuple[int, ...]) -> Tensor:
        return torch.from_numpy(values.astype(np.float32).reshape(shape))

    tensors = []
    for kind, options in layers:
        if kind == "Convolution":
            width, size, count = (int(options[key]) for key in (0, 1, 6))
            tag = int(take(1, "<u4")[0])
            if tag not in (_HALF, _SINGLE):
                raise ValueError(f"weights are stored in an unknown way, tag {tag:#x}")
            weight = tensor(take(count, "<f2" if tag == _HALF else "<f4"), (width, -1, size, size))
            if not int(options.get(5, 0)):
                raise ValueError("a convolution has no bias")
            tensors.append({"weight": weight, "bias": tensor(take(width, "<f4"), (width,))})
        elif kind == "PReLU":
            tensors.append({"weight": tensor(take(int(options[0]), "<f4"), (-1,))})
        elif kind == "MemoryData":
            take(int(options[0]) * int(options.get(1, 1)) * int(options.get(2, 1)), "<f4")
        elif kind not in _WEIGHTLESS:
            raise ValueError(f"a layer of kind {kind} is not read")
    if position != len(data):
        raise ValueError(f"{len(data) - position} bytes are left")
    return tensors
