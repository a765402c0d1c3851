"""The command line, `hvae-sr COMMAND`: one module for each command, with `add_arguments(parser)` and `run(options)`.

The first line of a module's docstring is the command's help. Modules import torch when they run, not before: the help
and the checks of options should not wait for it.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from .parsing import Parser, UsageError, as_typed
from .terminal import any_characters, fail, note

_NAMES = "upscale calibrate convert evaluate push card demo analyse figures results benchmark export"
COMMANDS = {name: import_module(f".{name}", __name__) for name in _NAMES.split()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns 0, or 2 after one line on stderr if an input or option is no good."""
    options = argparse.Namespace()
    with any_characters():
        try:
            options = parse(sys.argv[1:] if arguments is None else arguments)
            return options.run(options)
        except UsageError as error:
            print(error.usage, file=sys.stderr)
            return fail(error)
        except (ValueError, OSError) as error:
            return fail(error, options)
        except (RuntimeError, MemoryError) as error:
            said = str(error).lower()
            if isinstance(error, RuntimeError) and "out of memory" not in said and "can't allocate memory" not in said:
                raise
            return fail(ValueError("out of memory: try a smaller `--batch-size`, or `--dtype` bfloat16"))
        except KeyboardInterrupt:
            note("interrupted")
            return 130


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of a command, and `run`; a photograph without a command is upscaled.

    Raises:
        UsageError: options or commands that there are not.
    """
    from .. import __version__

    parser = Parser(prog="hvae-sr", description="Diverse super-resolution with a hierarchical VAE prior.")
    parser.add_argument("--version", action="version", version=f"hvae-sr {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", help="upscale may be left out")
    for name, module in COMMANDS.items():
        summary = (module.__doc__ or name).splitlines()[0].rstrip(".")
        command = commands.add_parser(name, help=summary[0].lower() + summary[1:], description=module.__doc__)
        command.set_defaults(run=module.run)
        module.add_arguments(command)
    typed = as_typed(arguments, list(COMMANDS))
    if typed[0] not in COMMANDS:
        return parser.parse_args(typed)
    command = commands.choices[typed[0]]
    command.check_options(typed[1:])
    options, unknown = parser.parse_known_args(typed)
    if unknown:
        command.error(f"{unknown[0]!r} has no place here: inputs stand together, before the options or after `-i`")
    for action in command._actions:
        if action.option_strings and getattr(options, action.dest, None) == "":  # as of a variable that is not set
            command.error(f"`--{action.dest.replace('_', '-')}` is empty")
    options.named = {action.dest for action in command._actions if action.option_strings}  # not what has no dashes
    return options
