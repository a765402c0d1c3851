"""Files that are whole or absent.

Files and folders have a name of their own while they are written: it tells who writes them, so that what a killed
process left behind can be told from what another one is about to finish.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import psutil

_NAME = re.compile(r"\.hvae-sr-(?:([0-9a-f]{8})-([0-9]+)-)?[0-9a-f]{16}\.tmp")
CONFIG = "config.json"
"""What diffusers loads a network by."""
WEIGHTS = re.compile(r"(diffusion_pytorch_)?model([.-][\w.-]+)?\.safetensors(\.index(\.[\w.-]+)?\.json)?")
"""Names that diffusers and transformers give to weights and to the indices of their parts, of any variant."""
_AGE_OF_STRANGERS = 24 * 3600.0
"""Seconds after which a file that a process of another machine has not written to is given up: one takes seconds."""


def strict(value: Any) -> Any:
    """JSON has no infinity: non-finite floats become strings, which `float` reads."""
    if isinstance(value, dict):
        return {key: strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def temporary_path(path: Path) -> Path:
    """Where a file or folder is written before it is renamed to `path`: hidden, beside it, and of this process."""
    return path.with_name(f".hvae-sr-{_machine()}-{os.getpid()}-{secrets.token_hex(8)}.tmp")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which replaces `path` when the block ends: whole and flushed to the disk, or not at all.

    A link of that name is replaced, not followed. What is there and no file, as a pipe or /dev/null, is written to.

    Raises:
        OSError: the file cannot be written; `path` is left as it was, as by any other error in the block.
    """
    if is_stream(path):
        with open(path, "wb") as stream:
            yield stream
        return
    temporary = temporary_path(path)
    try:
        with open(temporary, "x+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:  # of a full disk, say
            error.filename = str(path)
        raise


def is_stream(path: Path) -> bool:
    """Whether there is a pipe or a device of that name, or a link to one, as /dev/stdout is whatever it leads to."""
    if not path.exists() or path.is_dir():
        return False
    folder = path.parent.resolve()
    return not path.is_file() or folder in (Path("/dev"), Path("/dev/fd")) or Path("/proc") in (folder, *folder.parents)


def read_object(path: Path, argument: str) -> dict[str, Any]:
    """A JSON object, UTF-8.

    Raises:
        ValueError: there is none; the message names `argument` and the file.
    """
    try:
        found = json.loads(path.read_text("utf-8"))
        if not isinstance(found, dict):
            raise ValueError(f"it holds {type(found).__name__}, no object")
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"`{argument}`: {path} is no JSON object: {error}") from error
    return found


def write_atomically(text: str, path: Path) -> None:
    """Writes a file (UTF-8), whole or not at all, and its folder where there is none.

    Names of files that a C locale took for no text are written as the UTF-8 that they are.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path.parent)
    with replacing(path) as file:
        file.write(text.encode("utf-8", "surrogateescape").decode("utf-8", "replace").encode())


def give_usual_permissions(folder: Path) -> None:
    """Files of a folder that this process made may be read by whom the umask lets: safetensors shuts all others out."""
    permissions = folder.stat().st_mode & 0o666
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(permissions)


@contextlib.contextmanager
def replacing_in(folder: Path, index: str, outdated: re.Pattern[str]) -> Iterator[Path]:
    """A folder to write to, whose files take their places in `folder` when the block ends; others there stay.

    While they take them, the files that `folder` and what is in it are loaded by are absent (`index`, and each
    config.json): a process that is killed leaves what was there before, or what does not load, and never files of two
    writers that load as one.

    Args:
        folder: made where there is none.
        index: the name of the file that is written last, after the config.json of folders in it.
        outdated: names of files that do not stay in a folder that gets new ones of such a name.

    Raises:
        OSError: the folder cannot be written; it is left as it was, as by any other error in the block.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remove_abandoned(folder)
    temporary = temporary_path(folder / "whole")
    temporary.mkdir()
    try:
        yield temporary
        give_usual_permissions(temporary)
        files = [path for path in temporary.rglob("*") if path.is_file()]
        for path in files:
            with open(path, "r+b") as file:  # Windows synchronises what may be written alone
                os.fsync(file.fileno())
        files.sort(key=lambda path: (path.name in (index, CONFIG), path == temporary / index))
        for path in reversed(files):  # the index before the others
            if path.name in (index, CONFIG):
                (folder / path.relative_to(temporary)).unlink(missing_ok=True)
        new = {path.relative_to(temporary) for path in files}
        for parent in {path.parent for path in new if outdated.fullmatch(path.name)}:
            for old in (folder / parent).glob("*"):
                if outdated.fullmatch(old.name) and old.relative_to(folder) not in new:
                    old.unlink()
        for path in files:
            place = folder / path.relative_to(temporary)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, place)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def files_below(folder: Path) -> Iterator[Path]:
    """All files in a folder and in folders in it, where `Path.rglob` passes over what cannot be listed.

    Raises:
        OSError: a folder cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise error

    for root, _, names in os.walk(folder, onerror=refuse):
        yield from (Path(root, name) for name in names)


def check_writable(folder: Path, argument: str) -> None:
    """Raises a ValueError that names `argument` where a folder can neither be written to nor be made."""
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        raise ValueError(f"`{argument}`: cannot write to {folder}")


def check_file(path: Path, argument: str) -> None:
    """Raises a ValueError that names `argument` where a file can neither be written nor be made."""
    if path.is_dir():
        raise ValueError(f"`{argument}` must be a file, got the folder {path}")
    if is_stream(path):
        return
    check_writable(path.parent, argument)


def remove_abandoned(folder: Path) -> int:
    """Removes files and folders of `temporary_path` in `folder` (not below it) whose process was killed.

    Those of processes that run here stay. So do those of other machines and containers that share the folder, whose
    processes cannot be seen from here, and those whose process number lives on, until they are a day old.

    Returns:
        How many were removed.
    """
    removed = 0
    with contextlib.suppress(OSError):  # no such folder, or none that can be listed
        for entry in list(os.scandir(folder)):
            match = _NAME.fullmatch(entry.name)
            with contextlib.suppress(OSError):  # another process was faster, or may not remove it
                if match is not None and _is_abandoned(entry.stat(follow_symlinks=False), match[1], match[2]):
                    if entry.is_dir(follow_symlinks=False):
                        shutil.rmtree(entry.path)
                    else:
                        os.unlink(entry.path)
                    removed += 1
    return removed


def _is_abandoned(found: os.stat_result, machine: str | None, process: str | None) -> bool:
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
        return False
    if machine == _machine() and process is not None and not _runs(int(process)):
        return True
    return time.time() - found.st_mtime > _AGE_OF_STRANGERS


def _runs(process: int) -> bool:
    """Whether there is such a process, or one that cannot be looked at."""
    try:
        return psutil.pid_exists(process) and psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except OverflowError:  # no number of a process
        return False
    except psutil.Error:
        return psutil.pid_exists(process)


def _machine() -> str:
    """What process numbers belong to: a machine since it was started, and in it a container."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("\0".join(parts).encode(errors="replace")).hexdigest()[:8]
