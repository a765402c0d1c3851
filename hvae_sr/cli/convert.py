"""Published .th/.ckpt/.h5 checkpoints to save_pretrained folders."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT")
    parser.add_argument("-o", "--output-dir", required=True, metavar="DIR", help="a folder that does not exist yet")
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--preset", help="name of a published model, such as ffhq256, cvdvae-ffhq256-x4 or edsr-x4")
    kind.add_argument("--hparams", metavar="FILE", help="JSON file with the published names of the hyper-parameters")


def run(options: argparse.Namespace) -> int:
    from ..checkpoints.compared import PRESETS as COMPARED
    from ..checkpoints.compared import convert_baseline
    from ..checkpoints.convert import PRESETS, convert
    from ..files import read_object

    hparams = read_object(Path(options.hparams), "--hparams") if options.hparams else None
    if options.preset in COMPARED or (hparams is not None and "architecture" in hparams):
        convert_baseline(options.checkpoint, options.output_dir, preset=options.preset, config=hparams)
    elif options.preset is not None and options.preset not in PRESETS:
        raise ValueError(f"`--preset` must be one of {', '.join([*PRESETS, *COMPARED])}, got {options.preset!r}")
    else:
        convert(options.checkpoint, options.output_dir, preset=options.preset, hparams=hparams)
    print(f"wrote {options.output_dir}")
    return 0
