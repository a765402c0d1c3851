"""How the command line is read: one spelling of options, no abbreviations, the habits of related programs."""

import argparse
import difflib
import os
import re
from collections.abc import Sequence
from typing import NoReturn

_ELSEWHERE = {
    "--num-images-per-prompt": "--num-samples",
    "--pretrained-model-name-or-path": "--model",
    "--guidance-scale": "--temperature",
    "--model-name": "--model",
    "--model-path": "--model",
    "-m": "--model",
    "-f": "--format",
    "-g": "--device",
    "-t": "--max-memory",
    "--tile-size": "--max-memory",
    "-x": "--self-ensemble",
    "--tta": "--self-ensemble",
    "--upscale": "--outscale",
    "--output": "--output-dir",
}
"""Options of realesrgan-ncnn-vulkan, upscayl and diffusers' scripts, and what stands for them here."""


class UsageError(ValueError):
    """What was typed is no command; `usage` tells what is."""

    def __init__(self, message: str, usage: str) -> None:
        super().__init__(message)
        self.usage = usage


class Parser(argparse.ArgumentParser):
    """Takes options as they are spelled in the help, and raises what it would have left the program for."""

    def __init__(self, **named: object) -> None:
        super().__init__(allow_abbrev=False, **named)  # type: ignore[arg-type]  # of argparse

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, self.format_usage().rstrip())

    def check_options(self, arguments: Sequence[str]) -> None:
        """Raises a UsageError for an option that there is not, with the one that may have been meant.

        Before anything else is checked: what argparse misses is often what was misspelled.
        """
        own = [option for action in self._actions for option in action.option_strings]
        for argument in arguments:
            name = argument.partition("=")[0]
            if name == "--":
                return
            if not re.match("--?[a-zA-Z]", name) or name in own or not name.startswith("--") and name[:2] in own:
                continue
            near = [_ELSEWHERE[name]] if _ELSEWHERE.get(name) in own else difflib.get_close_matches(name, own, 1)
            self.error(f"no option {name}" + (f"; did you mean {near[0]}?" if near else ""))


def as_typed(arguments: Sequence[str], commands: Sequence[str]) -> list[str]:
    """Arguments as the parser knows them: --num_samples is --num-samples, and a file alone is to be upscaled.

    Raises:
        UsageError: the first one is neither a command nor a file nor an option.
    """
    given = list(arguments)
    end = given.index("--") if "--" in given else len(given)
    for index, argument in enumerate(given[:end]):
        if argument.startswith("--"):
            name, equals, value = argument.partition("=")
            given[index] = name.replace("_", "-") + equals + value
    first = given[0] if given else "--help"
    if first in ("-h", "--help", "--version"):
        return given or [first]
    if first not in commands:
        near = difflib.get_close_matches(first, ("--help", "--version"), 1, 0.75)
        if near and len(given) == 1 and first.startswith("-"):
            raise UsageError(f"no option {first}; did you mean {near[0]}?", f"commands: {', '.join(commands)}")
        if not (first.startswith("-") or os.path.exists(first) or os.path.splitext(first)[1] or os.sep in first):
            near = difflib.get_close_matches(first, commands, 1)
            hint = f"; did you mean `hvae-sr {near[0]}`?" if near else ""
            raise UsageError(f"no command, and no file, {first!r}{hint}", f"commands: {', '.join(commands)}")
        given.insert(0, "upscale")
    return _inputs_first(given) if given[0] == "upscale" else given


def _inputs_first(given: list[str]) -> list[str]:
    """`upscale -o out -i photo.jpg` as `upscale photo.jpg -o out`."""
    for index, argument in enumerate(given):
        if argument == "--":
            break
        name, equals, value = argument.partition("=")
        if name in ("-i", "--input", "--inputs") and equals:
            return [given[0], value, *given[1:index], *given[index + 1 :]]
        if argument in ("-i", "--input", "--inputs"):
            stop = next((i for i in range(index + 1, len(given)) if given[i].startswith("-")), len(given))
            return [given[0], *given[index + 1 : stop], *given[1:index], *given[stop:]]
    return given
