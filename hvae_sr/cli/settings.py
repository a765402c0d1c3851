"""The settings of a result: written into it, compared with those of an earlier run, and taken from it by `--like`."""

import argparse
import hashlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..pipelines import SuperResolutionPipeline

_FOR_PEOPLE = ("model", "version", "scale_factor", "device", "source")
"""Settings that change nothing that is meant to be."""
_DEFAULTS = {"self_ensemble": False, "keep_exif": False}
"""Of settings that results of earlier versions do not tell."""


def weights_fingerprint(pipeline: "SuperResolutionPipeline") -> str:
    """Sixteen hexadecimal digits of the SHA-256 of the weights that sampling uses."""
    import torch

    digest = hashlib.sha256()
    networks = {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}
    for name, network in networks.items():
        for key, value in sorted(network.state_dict().items()):
            if not key.startswith("encoder.") and "posterior_head" not in key or name != "vdvae":
                digest.update(f"{name}.{key} {tuple(value.shape)} {value.dtype}".encode())
                digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def settings_of(pipeline: "SuperResolutionPipeline", options: argparse.Namespace) -> dict[str, Any]:
    """What is written into every result, beside `Job.origin`."""
    from .. import __version__

    return {
        "model": options.model,
        "weights": options.weights,
        "version": __version__,
        "temperature": options.temperature,
        "scale_factor": pipeline.operator.scale_factor,
        "outscale": options.outscale,
        "consistent": not options.no_consistency,
        "tile": options.tile,
        "self_ensemble": options.self_ensemble,
        "bits": options.bits,
        "keep_exif": options.keep_exif,
        "crop": options.crop,
        "dtype": options.dtype,
        "device": pipeline.device.type,
    }


def agree(found: dict[str, Any], settings: dict[str, Any]) -> bool:
    """Whether the settings read from a result give what `settings` do."""
    wanted = {name: value for name, value in settings.items() if name not in _FOR_PEOPLE}
    return all(found.get(name, _DEFAULTS.get(name)) == value for name, value in wanted.items())


def default_model(outscale: float | None = None) -> str:
    """The bundled model of the least factor that reaches `outscale`; `checkpoints.names.DEFAULT` where none is given.

    That one too beyond `pipelines.chaining.MAX_ENLARGEMENT` times 8, where natural-x8 would be applied twice.
    """
    from ..checkpoints.names import DEFAULT
    from ..pipelines.chaining import MAX_ENLARGEMENT

    if outscale is None or not outscale <= 8 * MAX_ENLARGEMENT:
        return DEFAULT
    return next((f"natural-x{factor}" for factor in (2, 4) if outscale <= factor), "natural-x8")


def like(options: argparse.Namespace) -> list[str]:
    """Takes what was not given on the command line from the file that `--like` names; and the model, if it is bundled.

    But EXIF: whose place and camera go on is decided anew each time.

    Returns:
        Warnings.

    Raises:
        ValueError: the file was not written by this command or the demo, is of a picture that the demo has shrunk, or
            names a model that is not bundled while none is given: no file decides what is downloaded or loaded.
    """
    from .. import __version__

    options.expected_weights, warnings = None, []
    if options.like:
        found = _settings_in(options.like)
        if found.get("shrunk") is not None:
            raise ValueError(
                f"`--like`: {options.like} was drawn of a picture that the demo had shrunk to {found['shrunk']} (width "
                f"and height), which this command does not do; its samples cannot be repeated"
            )
        seeds = found["seeds"]
        taken = {
            "seed": seeds[0],
            "num_samples": len(seeds),
            "temperature": found["temperature"],
            "outscale": found.get("outscale"),
            "no_consistency": not found.get("consistent", True),
            "crop": found.get("crop"),
            "bits": found.get("bits"),
        }
        for name, value in taken.items():
            if getattr(options, name) is None:
                setattr(options, name, value)
        for name in ("tile", "self_ensemble"):
            setattr(options, name, getattr(options, name) or found.get(name) is True)
        if options.dtype == "auto" and found.get("dtype") in ("float32", "bfloat16", "float16"):
            options.dtype = found["dtype"]  # "auto" is another one on another machine
        if options.model is None:
            from ..checkpoints.names import bundled_checkpoints

            if found["model"] not in bundled_checkpoints():
                raise ValueError(f"`--like`: {options.like} was made with {found['model']!r}: name it with `--model`")
            options.model = found["model"]
        options.expected_weights = found.get("weights")
        if options.expected_weights is None:
            warnings.append(f"{options.like} does not tell its weights: the samples may be others")
        if found.get("ground") is not None:
            warnings.append(f"{options.like} was drawn on {found['ground']} ground, and here transparency stays")
        if found.get("input_bits") is not None:
            warnings.append(f"{options.like} was drawn of {found['input_bits']} bits, and here all bits are read")
        if found.get("version") != __version__:
            warnings.append(
                f"{options.like} is of version {found.get('version')}, this is {__version__}: samples may differ"
            )
    options.model = options.model or default_model(options.outscale)
    return warnings


def _settings_in(path: str) -> dict[str, Any]:
    """Settings read from a file, checked to be of the types this command writes; their values are, as options."""
    from ..images import read_metadata

    found = read_metadata(path)
    seeds: Any = found.setdefault("seeds", [found["seed"]] if "seed" in found else None)
    temperature, crop = found.get("temperature"), found.get("crop")
    temperatures = temperature if isinstance(temperature, list) else [temperature]
    if not (
        _whole(seeds)
        and seeds
        and seeds == list(range(seeds[0], seeds[0] + len(seeds)))
        and all(type(value) in (int, float) for value in temperatures)
        and isinstance(found.get("model"), str)
        and isinstance(found.get("outscale", 1.0), (int, float))
        and isinstance(found.get("weights", ""), str)
        and (crop is None or _whole(crop) and len(crop) == 4 and min(crop[:2]) >= 0 and min(crop[2:]) > 0)
        and found.get("bits") in (None, 8, 16)
    ):
        raise ValueError(f"`--like`: {path} does not hold the settings of this command")
    return found


def _whole(numbers: Any) -> bool:
    """Whether they are a list of whole numbers, none of them True or False."""
    return isinstance(numbers, list) and all(type(number) is int for number in numbers)
