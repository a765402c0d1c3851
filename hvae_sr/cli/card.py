"""Write the model card of a checkpoint's folder, with results and pictures."""

import argparse
from pathlib import Path

from .terminal import print_line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", help="of a pipeline or a VDVAE; README.md is written there")
    parser.add_argument("--reports", nargs="+", default=[], metavar="R.json", help="reports of hvae-sr evaluate")
    parser.add_argument("--notes", metavar="FILE", help="what only people know (default: FOLDER/card_notes.md)")
    parser.add_argument("--training-command", metavar="COMMAND", help="how the weights were made")
    parser.add_argument("--curve", metavar="PICTURE", help="of the training curves")
    parser.add_argument("--pictures", action="store_true", help="draw FOLDER/images with the folder's weights")
    parser.add_argument(
        "--benchmarks", metavar="DIR", help="of Set5, Set14 and BSD100: --pictures also draws a contact sheet of them"
    )
    parser.add_argument(
        "--temperatures", type=float, nargs="+", default=[0.2, 0.5, 0.8], help="of the contact sheet (0.2 0.5 0.8)"
    )


def run(options: argparse.Namespace) -> int:
    from ..publishing.card import write_model_card

    if options.benchmarks and not options.pictures:
        raise ValueError(f"`--benchmarks` goes with `--pictures`, which was not given, got {options.benchmarks!r}.")
    if options.pictures:
        from ..pictures import write_pictures

        for path in write_pictures(Path(options.folder), options.benchmarks, options.temperatures):
            print_line(str(path))
    path = write_model_card(
        options.folder,
        training_command=options.training_command,
        reports=options.reports,
        notes=options.notes,
        curve=options.curve,
    )
    print_line(str(path))
    return 0
