"""Weights in ncnn's format, a `.bin` beside a `.param`, as packages ship them for ESRGAN's networks and SPAN.

The `.param` lists the layers, the `.bin` has their numbers in the same order: of a convolution its weight, after a tag
that says whether it is stored in half precision, then its bias; of a PReLU its slopes.
"""

from dataclasses import dataclass, field
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


@dataclass
class _Layer:
    kind: str
    options: dict[int, str] = field(default_factory=dict)

    def whole(self, key: int, default: int | None = None) -> int:
        """An option; raises a ValueError (or KeyError) where it is none."""
        if default is not None and key not in self.options:
            return default
        return int(self.options[key])


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
    kinds = [layer.kind for layer in layers if layer.kind not in (*_WEIGHTLESS, "MemoryData")]
    if any(layer.kind == "MemoryData" for layer in layers):
        names = _span_names()
        if kinds != ["Convolution"] * len(names) or not _has_colour_mean(path):
            raise ConversionError(f"{where} has a constant, but is no SPAN with the mean colour of the published ones")
    elif kinds.count("Convolution") == len(kinds) and len(kinds) > 6 and (len(kinds) - 6) % 15 == 0:
        names = _rrdb_names((len(kinds) - 6) // 15)
    elif len(kinds) > 3 and kinds == ["Convolution", "PReLU"] * (len(kinds) // 2) + ["Convolution"]:
        if [layer.kind for layer in layers if layer.kind in ("Interp", "BinaryOp")] != ["Interp", "BinaryOp"]:
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


def _read_layers(path: Path) -> list[_Layer]:
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
        layers.append(_Layer(words[0], {int(key): value for key, value in (w.split("=", 1) for w in words[first:])}))
    return layers


def _read_tensors(layers: list[_Layer], data: np.ndarray) -> list[dict[str, Tensor]]:
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
    for layer in layers:
        if layer.kind == "Convolution":
            width, size, count = layer.whole(0), layer.whole(1), layer.whole(6)
            tag = int(take(1, "<u4")[0])
            if tag not in (_HALF, _SINGLE):
                raise ValueError(f"weights are stored in an unknown way, tag {tag:#x}")
            weight = tensor(take(count, "<f2" if tag == _HALF else "<f4"), (width, -1, size, size))
            if not layer.whole(5, 0):
                raise ValueError("a convolution has no bias")
            tensors.append({"weight": weight, "bias": tensor(take(width, "<f4"), (width,))})
        elif layer.kind == "PReLU":
            tensors.append({"weight": tensor(take(layer.whole(0), "<f4"), (-1,))})
        elif layer.kind == "MemoryData":
            take(layer.whole(0) * layer.whole(1, 1) * layer.whole(2, 1), "<f4")
        elif layer.kind not in _WEIGHTLESS:
            raise ValueError(f"a layer of kind {layer.kind} is not read")
    if position != len(data):
        raise ValueError(f"{len(data) - position} bytes are left")
    return tensors


def _has_colour_mean(path: Path) -> bool:
    """Whether the `.bin` of a SPAN begins with the mean colour of the published ones, which ours has in its code."""
    found = np.fromfile(path, "<f4", len(COLOUR_MEAN))
    return found.shape == (len(COLOUR_MEAN),) and bool(np.allclose(found, COLOUR_MEAN, atol=1e-6))


def _span_names() -> list[str]:
    """The convolutions of a SPAN in the order of their use."""
    blocks = [f"block_{i}.c{j}_r" for i in range(1, NUM_BLOCKS + 1) for j in range(1, 4)]
    return ["conv_1", *blocks, "conv_2", "conv_cat", "upsampler.0"]


def _rrdb_names(num_blocks: int) -> list[str]:
    """The convolutions of an RRDBNet in the order of their use."""
    dense = [f"body.{i}.rdb{j}.conv{k}" for i in range(num_blocks) for j in range(1, 4) for k in range(1, 6)]
    return ["conv_first", *dense, "conv_body", "conv_up1", "conv_up2", "conv_hr", "conv_last"]
