"""The command line, `hvae-sr COMMAND`: one module for each command, with `add_arguments(parser)` and `run(options)`.

The first line of a module's docstring is the command's help. Modules import torch when they run, not before: the help
and the checks of options should not wait for it.
"""

import argparse
import sys
from collections.abc import Sequence

from . import analyse, benchmark, card, convert, demo, evaluate, export, figures, push, results, upscale
from .terminal import any_characters, fail

_MODULES = (upscale, convert, evaluate, push, card, demo, analyse, figures, results, benchmark, export)
COMMANDS = {module.__name__.rpartition(".")[2]: module for module in _MODULES}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns 0, or 2 after one line on stderr if an input or option is no good."""
    try:
        with any_characters():
            options = build_parser().parse_args(arguments)
            return options.run(options)
    except (ValueError, OSError) as error:
        return fail(error)
    except RuntimeError as error:
        if "out of memory" not in str(error).lower() and "can't allocate memory" not in str(error):
            raise
        return fail(ValueError("out of memory: try a smaller `--batch_size`, or --dtype bfloat16"))
    except KeyboardInterrupt:
        print("hvae-sr: interrupted", file=sys.stderr)
        return 130


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    from .. import __version__

    parser = argparse.ArgumentParser(
        prog="hvae-sr", description="Diverse super-resolution with a hierarchical VAE prior."
    )
    parser.add_argument("--version", action="version", version=f"hvae-sr {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        summary = (module.__doc__ or name).splitlines()[0].rstrip(".")
        command = commands.add_parser(name, help=summary[0].lower() + summary[1:], description=module.__doc__)
        command.set_defaults(run=module.run)
        module.add_arguments(command)
        _accept_dashes(command)
    return parser


def _accept_dashes(parser: argparse.ArgumentParser) -> None:
    """--num-samples besides --num_samples: people type either."""
    for action in parser._actions:
        for name in [name for name in action.option_strings if name.startswith("--") and "_" in name]:
            alias = "--" + name[2:].replace("_", "-")
            action.option_strings = [alias, *action.option_strings]
            parser._option_string_actions[alias] = action
