"""Checkpoints that survive being killed: each is written beside its place and moved there whole."""

import logging
import os
import re
import shutil
from pathlib import Path

from accelerate import Accelerator

logger = logging.getLogger(__name__)

_NAME = re.compile(r"checkpoint-(\d+)")


def list_checkpoints(output_dir: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    if not output_dir.is_dir():
        return []
    found = [path for path in output_dir.iterdir() if path.is_dir() and _NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name.split("-")[1]))


def save_checkpoint(accelerator: Accelerator, output_dir: Path, step: int, total_limit: int) -> Path:
    """Writes `output_dir/checkpoint-STEP` and removes the oldest beyond `total_limit`.

    A process that is killed in between leaves a folder with the suffix .partial, which is never read.
    """
    target = output_dir / f"checkpoint-{step}"
    partial = output_dir / f"checkpoint-{step}.partial"
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial))  # on every rank: each writes its own random state
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        _sync_folder(partial)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(partial, target)
        _sync(output_dir)
        for old in list_checkpoints(output_dir)[:-total_limit]:
            shutil.rmtree(old, ignore_errors=True)
    accelerator.wait_for_everyone()
    return target


def find_checkpoint(resume_from: str | None, output_dir: Path) -> Path | None:
    """The checkpoint that `resume_from` means, or None for a fresh start.

    Args:
        resume_from: None, a folder, or "latest": the newest complete checkpoint in `output_dir`, if there is one.

    Raises:
        ValueError: the folder does not exist.
    """
    if resume_from is None:
        return None
    if resume_from == "latest":
        found = list_checkpoints(output_dir)
        if not found:
            logger.info("no checkpoint in %s: a fresh start", output_dir)
        return found[-1] if found else None
    folder = Path(resume_from)
    if not folder.is_dir():
        raise ValueError(f"`resume_from_checkpoint`: there is no folder {folder}")
    return folder


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
