"""Published .th/.ckpt/.h5 checkpoints to save_pretrained folders."""

import argparse
from pathlib import Path
from typing import Any

from ..files import check_writable
from .terminal import print_line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT")
    parser.add_argument("-o", "--output-dir", required=True, metavar="DIR", help="a folder that does not exist yet")
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--preset", help="name of a published model, such as ffhq256, cvdvae-ffhq256-x4 or edsr-x4")
    kind.add_argument(
        "--hparams",
        metavar="FILE",
        help="JSON file of the hyper-parameters under their published names; for a compared system of `architecture`, "
        "such as EDSR, and the arguments of that class",
    )


def _check_loading(folder: Path, hparams: dict[str, Any]) -> None:
    """Removes a folder that its own options keep from loading, or that has options which mean nothing; says why."""
    import inspect
    import shutil

    from ..pipelines.baselines import pipeline_class

    kind = pipeline_class(folder)
    try:
        known = inspect.signature(kind).parameters.keys() - kind.component_classes.keys()
        unknown = [name for name in hparams.get("pipeline", {}) if name not in known]
        if unknown or ("scheduler" in hparams and "scheduler" not in inspect.signature(kind).parameters):
            raise ValueError(f"{kind.__name__} has no {', '.join(unknown) or 'scheduler'}")
        kind.from_pretrained(folder)
    except ValueError as error:
        shutil.rmtree(folder)
        raise ValueError(f"`--hparams`: {error}") from error


def run(options: argparse.Namespace) -> int:
    from ..checkpoints.compared import PRESETS as COMPARED
    from ..checkpoints.compared import convert_baseline
    from ..checkpoints.convert import PRESETS, convert
    from ..files import read_object

    check_writable(Path(options.output_dir), "--output-dir")
    hparams = read_object(Path(options.hparams), "--hparams") if options.hparams else None
    if options.preset in COMPARED or (hparams is not None and "architecture" in hparams):
        folder = convert_baseline(options.checkpoint, options.output_dir, preset=options.preset, config=hparams)
        if hparams is not None:
            _check_loading(folder, hparams)
    elif options.preset is not None and options.preset not in PRESETS:
        raise ValueError(f"`--preset` must be one of {', '.join([*PRESETS, *COMPARED])}, got {options.preset!r}")
    else:
        convert(options.checkpoint, options.output_dir, preset=options.preset, hparams=hparams)
    print_line(f"wrote {options.output_dir}")
    return 0
