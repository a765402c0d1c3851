"""Checkpoints that survive being killed: each is written beside its place and moved there whole."""

import logging
import os
import re
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from accelerate import Accelerator

logger = logging.getLogger(__name__)

_NAME = re.compile(r"checkpoint-(\d+)")
_PARTIAL = ".partial"


def check_writable(output_dir: Path) -> None:
    """Makes the folder, writes to it, and leaves everything as it was.

    Raises:
        ValueError: the folder cannot be made or written to.
    """
    missing: list[Path] = []
    try:
        missing = [path for path in (output_dir, *output_dir.parents) if not path.exists()]
        output_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output_dir):
            pass
    except OSError as error:
        raise ValueError(f"`output_dir`: {output_dir} cannot be written: {error}") from error
    finally:
        for path in missing:  # the innermost first
            with suppress(OSError):
                path.rmdir()


def list_checkpoints(output_dir: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    if not output_dir.is_dir():
        return []
    found = [path for path in output_dir.iterdir() if path.is_dir() and _NAME.fullmatch(path.name)]
    return sorted(found, key=checkpoint_step)


def checkpoint_step(path: Path) -> int:
    """The update after which a checkpoint was written, from its name."""
    return int(path.name.split("-")[1])


def save_checkpoint(accelerator: Accelerator, output_dir: Path, step: int, total_limit: int) -> Path:
    """Writes `output_dir/checkpoint-STEP` and removes the oldest beyond `total_limit`.

    A process that is killed in between leaves a folder with the suffix .partial, which is never read. Checkpoints of
    later steps are left from before the run was taken back to an earlier one, and are removed too: they would count as
    the newest.
    """
    target = output_dir / f"checkpoint-{step}"
    partial = output_dir / (target.name + _PARTIAL)
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial))  # on every rank: each writes its own random state
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        _sync_folder(partial)
        if target.exists():
            _discard(target)
        os.replace(partial, target)
        _sync(output_dir)
        found = list_checkpoints(output_dir)
        kept = [path for path in found if checkpoint_step(path) <= step][-total_limit:]
        for path in found:
            if path not in kept:
                _discard(path)
    accelerator.wait_for_everyone()
    return target


def remove_partial(output_dir: Path) -> None:
    """Removes what a process that was killed while it wrote or removed a checkpoint has left."""
    for path in output_dir.glob(f"checkpoint-*{_PARTIAL}"):
        logger.warning("removing %s, which was not finished", path)
        shutil.rmtree(path, ignore_errors=True)


def find_checkpoint(resume_from: str | None, output_dir: Path) -> Path | None:
    """The checkpoint that `resume_from` means, or None for a fresh start.

    Args:
        resume_from: None, a folder, or "latest": the newest complete checkpoint in `output_dir`, if there is one.
        output_dir: the folder of the run.

    Raises:
        ValueError: the folder does not exist or is no complete checkpoint; a fresh start where a run has left
            checkpoints, which would be mixed up with its own.
    """
    found = list_checkpoints(output_dir)
    if resume_from is None:
        if found:
            raise ValueError(
                f"`output_dir`: {output_dir} holds {found[-1].name} of an earlier run; go on from it with "
                "`--resume_from_checkpoint latest`, or choose another folder"
            )
        return None
    if resume_from == "latest":
        if not found:
            logger.info("no checkpoint in %s: a fresh start", output_dir)
        return found[-1] if found else None
    folder = Path(resume_from)
    if not folder.is_dir():
        raise ValueError(f"`resume_from_checkpoint`: there is no folder {folder}")
    if folder.name.endswith(_PARTIAL):
        raise ValueError(f"`resume_from_checkpoint`: {folder} was not finished")
    return folder


def _discard(folder: Path) -> None:
    """Removes a checkpoint; half removed, it does not bear a checkpoint's name."""
    doomed = folder.with_name(f"{folder.name}.old{_PARTIAL}")
    shutil.rmtree(doomed, ignore_errors=True)
    os.replace(folder, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        _sync(path)
    _sync(folder)
