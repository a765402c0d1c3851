"""Lines for the terminal: results on stdout, warnings and errors on stderr, whatever its encoding holds."""

import argparse
import os
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from typing import Any


@contextmanager
def any_characters() -> Iterator[None]:
    """What the terminal's encoding does not hold, or is no text at all, is printed as "?" instead of failing.

    Without a terminal, as of a program without a window, what is printed goes nowhere.
    """
    with ExitStack() as stack:
        if None in (sys.stdout, sys.stderr):
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(redirect_stdout(sys.stdout or nowhere))
            stack.enter_context(redirect_stderr(sys.stderr or nowhere))
        streams: list[Any] = [sys.stdout, sys.stderr]
        for stream in streams:
            if hasattr(stream, "reconfigure"):
                stack.callback(stream.reconfigure, errors=stream.errors)
                stream.reconfigure(errors="replace")
        yield


def print_line(line: str) -> None:
    """Prints a result on stdout."""
    _write(line, sys.stdout)


def note(line: str) -> None:
    """Prints on stderr what is no result."""
    _write(f"hvae-sr: {line}", sys.stderr)


def warn(line: str, options: argparse.Namespace | None = None) -> None:
    """Prints a warning on stderr, the arguments it names as options."""
    _write(f"hvae-sr: warning: {_with_options(line, options)}", sys.stderr)


def progress(total: int, name: str) -> Any:
    """A bar of samples on stderr, where that is a terminal and TQDM_DISABLE does not say otherwise."""
    from tqdm import tqdm

    return tqdm(total=total, desc=name, unit="sample", leave=False, disable=not shows_progress())


def shows_progress() -> bool:
    """Whether bars are shown: where stderr is a terminal, and TQDM_DISABLE does not say otherwise."""
    disabled = os.environ.get("TQDM_DISABLE", "").lower() not in ("", "0", "false")
    return not disabled and sys.stderr is not None and sys.stderr.isatty()


def fail(error: Exception, options: argparse.Namespace | None = None) -> int:
    """Prints the error as one line on stderr, the arguments it names as options; returns the exit status 2."""
    line = " ".join(str(error).split()) or type(error).__name__
    _write(f"hvae-sr: error: {_with_options(line, options)}", sys.stderr)
    return 2


def _with_options(line: str, options: argparse.Namespace | None) -> str:
    """`max_memory` and `tile=True`, as the library calls its arguments, as `--max-memory` and `--tile`."""
    named = getattr(options, "named", ())
    return re.sub(
        r"`(\w+)(?:=True)?`",
        lambda found: f"`--{found[1].replace('_', '-')}`" if found[1] in named else found[0],
        line,
    )


def _write(line: str, stream: Any) -> None:
    """A line on a stream. Where nobody reads on (`| head -1`), the work goes on without words."""
    from tqdm import tqdm

    try:
        with tqdm.external_write_mode(file=stream):  # progress bars make way
            # Names of files may hold what breaks a line, or commands to the terminal.
            print(re.sub(r"[\x00-\x1f\x7f-\x9f]", "?", line), file=stream, flush=True)
    except BrokenPipeError:
        # What is still in the buffer would be written, and fail, once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
