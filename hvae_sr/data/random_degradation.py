"""Random degradations y = D(x) of photographs x, for models that do not know H: what they are, and their files.

A degradation is one of several chains, drawn by weight; a chain is a list of steps, one after the other (see
`degradation_steps` for their equations). Its result has 1/scale of the photograph's size, rounded up, and 8 bits.

D is a pure function of (seed, index): all draws are of numpy's Philox generator (Salmon et al., "Parallel random
numbers: as easy as 1, 2, 3", 2011), whose key is (seed, index), and whose counter begins at 2**192 times the number of
the step. No state goes from one image to the next, so that workers, processes, batches and resumed runs
see the same; and a step that draws more or less does not change the draws of the others.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image

from ..checks import check_count
from ..images import load_image
from .degradation_steps import STEPS, Planes, Step, choose, resize, to_levels

_FOLDER = "degradations"
_MAX_SCALE_FACTOR = 2**16
_SUFFIXES = (".yaml", ".yml", ".json")
_Picture = TypeVar("_Picture", Image.Image, NDArray[np.uint8], torch.Tensor)


@dataclass(frozen=True)
class Chain:
    """Steps, one after the other.

    Args:
        name: for people.
        weight: share of the images that it is taken for, in proportion to the weights of the others.
        steps: in order.
    """

    name: str
    weight: float
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Degradation:
    """A distribution of degradations.

    Args:
        name: the bundled name, or that of one's own file.
        chains: one of them is drawn for each image.
    """

    name: str
    chains: tuple[Chain, ...]

    def __call__(self, planes: Planes, seed: int, index: int, scale_factor: int) -> NDArray[np.uint8]:
        """y of the photograph x.

        Args:
            planes: x, `[c, H, W]`, c = 1 or 3, in grey levels.
            seed, index: which of the degradations, both in 0..2**64 - 1.
            scale_factor: sides of x over those of y.

        Returns:
            `[c, ceil(H / scale_factor), ceil(W / scale_factor)]`, uint8; c = 3 where colour was brought.
        """
        weights = {str(number): chain.weight for number, chain in enumerate(self.chains)}
        chain = self.chains[int(choose(weights, _generator(seed, index, 0)))]
        height, width = planes.shape[1:]
        size = (-(-height // scale_factor), -(-width // scale_factor))
        # Or pixels of y would have other places and sizes than those of whole blocks of x.
        edge = ((0, 0), (0, size[0] * scale_factor - height), (0, size[1] * scale_factor - width))
        planes = np.pad(planes, edge, "symmetric") if edge[1][1] or edge[2][1] else planes
        for number, step in enumerate(chain.steps, 1):
            planes = step(planes, _generator(seed, index, number), size)
        return to_levels(resize(planes, size, "bicubic", _generator(seed, index, len(chain.steps) + 1)))

    def as_dict(self) -> dict[str, Any]:
        """What a file holds, with every default."""
        chains = [
            asdict(chain) | {"steps": [{"step": step.name, **asdict(step)} for step in chain.steps]}
            for chain in self.chains
        ]
        plain: dict[str, Any] = json.loads(json.dumps({"chains": chains}))
        return plain


def degrade(
    image: _Picture, degradation: Degradation | str | os.PathLike[str], seed: int, index: int, scale_factor: int = 4
) -> _Picture:
    """A low-resolution image of a photograph: member `index` of the degradations with one seed.

    Args:
        image: x: a PIL image, `[H, W, 3]` or `[H, W]` uint8, or a tensor `[3, H, W]` uint8.
        degradation: what `load_degradation` gives, or what it takes: a bundled name or a file.
        seed, index: two whole numbers in 0..2**64 - 1.
        scale_factor: sides of x over those of y.

    Returns:
        y, as x was given: a PIL image in RGB, an array `[h, w, 3]`, or a tensor `[3, h, w]`; sides are rounded up.

    Raises:
        ValueError: an argument is out of range, or an image that is none of these.

    >>> degrade(Image.new("RGB", (50, 41), "teal"), "real", seed=0, index=7).size
    (13, 11)
    """
    chosen = degradation if isinstance(degradation, Degradation) else load_degradation(degradation)
    check_count("seed", seed, 0, 2**64 - 1)
    check_count("index", index, 0, 2**64 - 1)
    check_count("scale_factor", scale_factor, 1, _MAX_SCALE_FACTOR)
    if isinstance(image, Image.Image):
        levels = np.asarray(load_image(image))
    elif isinstance(image, torch.Tensor):
        byte = image.detach().cpu() if image.dtype == torch.uint8 else torch.empty(0)  # of others numpy may have none
        levels = np.asarray(byte.movedim(0, -1) if byte.ndim == 3 else byte)
    else:
        levels = np.asarray(image)
    levels = np.repeat(levels[..., None], 3, axis=2) if levels.ndim == 2 else levels
    if levels.dtype != np.uint8 or levels.ndim != 3 or levels.shape[2] != 3 or not levels.size:
        kind, shape = getattr(image, "dtype", type(image).__name__), tuple(getattr(image, "shape", levels.shape))
        raise ValueError(
            f"`image` must be a PIL image, a uint8 array [H, W, 3] or a uint8 tensor [3, H, W], got {kind} of {shape}"
        )
    grey = bool((levels == levels[..., :1]).all())
    planes = (levels[..., :1] if grey else levels).transpose(2, 0, 1).astype(np.float32)
    y = chosen(planes, seed, index, scale_factor)
    y = np.repeat(y, 3, axis=0) if len(y) == 1 else y
    if isinstance(image, torch.Tensor):
        return torch.from_numpy(y).to(image.device)
    y = np.ascontiguousarray(y.transpose(1, 2, 0))
    return Image.fromarray(y) if isinstance(image, Image.Image) else y  # type: ignore[return-value]


def bundled_degradations() -> dict[str, Path]:
    """The files that come with the package, by name."""
    folder = Path(str(files("hvae_sr.hub_configs"))) / _FOLDER
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_degradation(name: str | os.PathLike[str]) -> Degradation:
    """The degradation of a bundled name, or of a YAML or JSON file.

    Raises:
        ValueError: no such name or file; or one that holds an unknown step or option, or a value out of range: the
            message names file, step, option and value.
    """
    if not isinstance(name, (str, os.PathLike)):
        raise ValueError(f"`degradation` must be a name or a file, got {name!r}")
    text, bundled = os.fspath(name), bundled_degradations()
    path = bundled.get(text, Path(text))
    if text not in bundled and path.suffix.lower() not in _SUFFIXES:
        raise ValueError(
            f"`degradation` must be a file ({', '.join(_SUFFIXES)}) or one of {', '.join(bundled)}; got {text!r}"
        )
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"`degradation`: cannot read {text!r}: {' '.join(str(error).split())}") from error
    return parse_degradation(content, text if text in bundled else path.name, text)


def parse_degradation(content: Any, name: str, where: str = "content") -> Degradation:
    """The degradation that a file's content describes: `chains` of `name`, `weight` and `steps`, or `steps` alone.

    Messages call the file `where`; for errors see `load_degradation`.
    """
    where = f"`degradation` {where}"
    content = _mapping(content, where, {"chains", "steps"})
    if len(content) != 1:
        raise ValueError(f"{where}: must hold `chains` or else `steps`, got {sorted(content) or 'nothing'}")
    given = content.get("chains", [content])
    if not isinstance(given, list) or not given:
        raise ValueError(f"{where}: `chains` must be a list of chains, got {given!r}")
    chains = []
    for number, entry in enumerate(given):
        here = f"{where}: chains[{number}]" if "chains" in content else where
        entry = _mapping(entry, here, {"name", "weight", "steps"})
        label = str(entry.get("name", name))
        here += f" {label!r}" if "name" in entry else ""
        weight = _number(entry.get("weight", 1.0), here, "weight", 0, np.inf)
        steps = entry.get("steps")
        if not isinstance(steps, list):
            raise ValueError(f"{here}: `steps` must be a list of steps, got {steps!r}")
        chains.append(Chain(label, weight, tuple(_step(step, f"{here}: steps[{i}]") for i, step in enumerate(steps))))
    if not any(chain.weight for chain in chains):
        raise ValueError(f"{where}: `weight` must be above 0 for one of the chains at least")
    return Degradation(name, tuple(chains))


def _step(content: Any, where: str) -> Step:
    """A step, of its content in a file."""
    content = dict(_mapping(content, where))
    name = content.pop("step", None)
    if not isinstance(name, str) or name not in STEPS:
        raise ValueError(f"{where}: `step` must be one of {', '.join(STEPS)}; got {name!r}")
    where, kind = f"{where} {name!r}", STEPS[name]
    allowed = {entry.name: entry.metadata for entry in fields(kind)}
    values: dict[str, Any] = {}
    for key, value in _mapping(content, where, set(allowed)).items():
        if limits := allowed[key].get("limits"):
            values[key] = _range(value, where, key, *limits)
        elif names := allowed[key].get("kinds"):
            weights = _mapping(value, f"{where}: `{key}`", set(names))
            values[key] = {each: _number(weights.get(each, 0), where, f"{key}.{each}", 0, np.inf) for each in names}
            if not any(values[key].values()):
                named = ", ".join(names)
                raise ValueError(f"{where}: `{key}` must give one of {named} a weight above 0, got {value!r}")
        else:
            values[key] = _number(value, where, key, 0, 1)
    return kind(**values)


def _mapping(value: Any, where: str, allowed: set[str] | None = None) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} must be a mapping, got {value!r}")
    unknown = [str(key) for key in value if allowed is not None and key not in allowed]
    if unknown:
        raise ValueError(f"{where}: unknown option {unknown[0]!r}; allowed are {', '.join(sorted(allowed or ()))}")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _number(value: Any, where: str, key: str, low: float, high: float) -> float:
    if not _is_number(value) or not low <= value <= high or not np.isfinite(value):
        limit = f"a number in [{low:g}, {high:g}]" if np.isfinite(high) else f"a finite number >= {low:g}"
        raise ValueError(f"{where}: `{key}` must be {limit}, got {value!r}")
    return float(value)


def _range(value: Any, where: str, key: str, low: float, high: float) -> tuple[float, float]:
    pair = value if isinstance(value, list) else [value, value]  # one number is a range of that number alone
    if len(pair) != 2 or not all(map(_is_number, pair)) or not low <= pair[0] <= pair[1] <= high:
        raise ValueError(
            f"{where}: `{key}` must be [lowest, highest] with {low:g} <= lowest <= highest <= {high:g}, got {value!r}"
        )
    return float(pair[0]), float(pair[1])


def _generator(seed: int, index: int, number: int) -> np.random.Generator:
    """The draws of step `number`: those of one key do not overlap, as none takes 2**192."""
    return np.random.Generator(
        np.random.Philox(key=np.array([seed, index], np.uint64), counter=np.array([0, 0, 0, number], np.uint64))
    )
