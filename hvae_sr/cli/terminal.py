"""Lines for the terminal: results on stdout, warnings and errors on stderr, whatever its encoding holds."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def any_characters() -> Iterator[None]:
    """What the terminal's encoding does not hold, or is no text at all, is printed as "?" instead of failing."""
    streams: list[Any] = [stream for stream in (sys.stdout, sys.stderr) if hasattr(stream, "reconfigure")]
    before = [stream.errors for stream in streams]
    for stream in streams:
        stream.reconfigure(errors="replace")
    try:
        yield
    finally:
        for stream, errors in zip(streams, before, strict=True):
            stream.reconfigure(errors=errors)


def print_line(line: str) -> None:
    """Prints a result on stdout. Where nobody reads on (`| head -1`), the work goes on without words."""
    try:
        _write(line, sys.stdout)
    except BrokenPipeError:
        # What is still in the buffer would be written, and fail, once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def warn(line: str) -> None:
    """Prints a warning on stderr."""
    _write(f"hvae-sr: warning: {line}", sys.stderr)


def fail(error: Exception) -> int:
    """Prints the error as one line on stderr; returns the exit status 2."""
    _write(f"hvae-sr: error: {' '.join(str(error).split()) or type(error).__name__}", sys.stderr)
    return 2


def _write(line: str, stream: Any) -> None:
    from tqdm import tqdm

    with tqdm.external_write_mode(file=stream):  # progress bars make way
        print(line, file=stream, flush=True)
