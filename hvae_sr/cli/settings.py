"""The settings that `upscale` writes into its results, and reads back for `--like`."""

import argparse
import hashlib
from typing import Any

from .jobs import Job


def weights_fingerprint(pipeline: Any) -> str:
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


def facts_about(pipeline: Any, job: Job, options: argparse.Namespace) -> dict[str, Any]:
    """What is written into every result of one image."""
    from .. import __version__

    return {
        "model": options.model,
        "weights": options.weights,
        "version": __version__,
        "temperature": options.temperature,
        "scale_factor": pipeline.config.scale_factor,
        "outscale": options.outscale,
        "consistent": not options.no_consistency,
        "tile": options.tile,
        "self_ensemble": options.self_ensemble,
        "dtype": options.dtype,
        "device": pipeline.device.type,
        "source": job.source.name,
        "source_sha256": job.source_hash(),
        "frame": job.frame,
    }


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

    Returns:
        Warnings.

    Raises:
        ValueError: the file was not written by this command, or names a model that is not bundled while none is given:
            no file decides what is downloaded or loaded.
    """
    from .. import __version__
    from ..checkpoints.names import bundled_checkpoints
    from ..images import read_metadata

    options.expected_weights = None
    warnings = []
    if options.like:
        made = read_metadata(options.like)
        seeds: Any = made.get("seeds", [made["seed"]] if "seed" in made else None)
        if not _plausible(made, seeds):
            raise ValueError(f"`--like`: {options.like} does not hold the settings of this command")
        options.seed = seeds[0] if options.seed is None else options.seed
        options.num_samples = len(seeds) if options.num_samples is None else options.num_samples
        options.temperature = made["temperature"] if options.temperature is None else options.temperature
        options.outscale = made.get("outscale") if options.outscale is None else options.outscale
        if options.no_consistency is None:
            options.no_consistency = not made.get("consistent", True)
        options.tile = options.tile or made.get("tile", False) is True
        options.self_ensemble = options.self_ensemble or made.get("self_ensemble", False) is True
        if options.dtype == "auto" and made.get("dtype") in ("float32", "bfloat16", "float16"):
            options.dtype = made["dtype"]  # "auto" is another one on another machine
        if options.model is None:
            if made["model"] not in bundled_checkpoints():
                raise ValueError(f"`--like`: {options.like} was made with {made['model']!r}: name it with `--model`")
            options.model = made["model"]
        options.expected_weights = made.get("weights")
        if options.expected_weights is None:
            warnings.append(f"{options.like} does not tell its weights: the samples may be others")
        if made.get("version") != __version__:
            warnings.append(
                f"{options.like} is of version {made.get('version')}, this is {__version__}: samples may differ"
            )
    options.model = options.model or default_model(options.outscale)
    return warnings


def _plausible(made: dict[str, Any], seeds: Any) -> bool:
    """Whether settings read from a file are of the types this command writes; their values are checked as options."""
    temperature = made.get("temperature")
    temperatures = temperature if isinstance(temperature, list) else [temperature]
    return (
        isinstance(seeds, list)
        and 0 < len(seeds) <= 1000
        and all(isinstance(seed, int) and not isinstance(seed, bool) for seed in seeds)
        and seeds == list(range(seeds[0], seeds[0] + len(seeds)))
        and all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in temperatures)
        and isinstance(made.get("model"), str)
        and isinstance(made.get("outscale", 1.0), (int, float))
        and isinstance(made.get("weights", ""), str)
    )
