"""Checkpoints that survive being killed: each is written beside its place and moved there whole."""

import json
import logging
import os
import re
import shutil
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator

from ..files import give_usual_permissions

logger = logging.getLogger(__name__)

_NAME = re.compile(r"checkpoint-(\d+)")
_PARTIAL = ".partial"
_MANIFEST = "files.json"


@dataclass
class Progress:
    """What a checkpoint must remember beside weights, optimiser, average and schedule.

    Args:
        crops_per_update: of all processes together; the place in an epoch is counted in such updates.
        updates_per_epoch: as many as the photographs are enough for.
        stream_workers: processes of each process that read a stream, of which each has a place of its own; else 0.
    """

    crops_per_update: int
    updates_per_epoch: int
    stream_workers: int = 0
    step: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    unsound_in_a_row: int = 0

    def count(self, skipped: bool, sound: bool) -> None:
        """Counts an update that was left out or not, with a finite gradient (`sound`) or not."""
        self.skipped += skipped
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if skipped else 0
        self.unsound_in_a_row = 0 if sound else self.unsound_in_a_row + 1

    def state_dict(self) -> dict[str, int]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Checkpoints of earlier versions do not tell what is per update or epoch, and was left out in a row."""
        vars(self).update(state)


def list_checkpoints(output_dir: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    if not output_dir.is_dir():
        return []
    found = [path for path in output_dir.iterdir() if path.is_dir() and _NAME.fullmatch(path.name)]
    return sorted(found, key=checkpoint_step)


def checkpoint_step(path: Path) -> int:
    """The update after which a checkpoint was written, from its name."""
    return int(path.name.split("-")[1])


def save_checkpoint(accelerator: Accelerator, output_dir: Path, step: int, total_limit: int) -> None:
    """Writes `output_dir/checkpoint-STEP` and removes the oldest beyond `total_limit`.

    A process that is killed in between leaves a folder with the suffix .partial, which is never read. Checkpoints of
    later steps are left from before the run was taken back to an earlier one, and are removed too: they would count as
    the newest.

    Raises:
        OSError: it could not be written, such as on a full disk; what was begun is removed, earlier ones are left.
    """
    target = output_dir / f"checkpoint-{step}"
    partial = output_dir / (target.name + _PARTIAL)
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    accelerator.wait_for_everyone()
    # On every rank: each writes its own random state.
    _attempt(accelerator, target, partial, lambda: accelerator.save_state(str(partial)))
    accelerator.wait_for_everyone()
    _attempt(accelerator, target, partial, lambda: _finish(partial, target) if accelerator.is_main_process else None)
    if accelerator.is_main_process:
        found = list_checkpoints(output_dir)
        kept = [path for path in found if checkpoint_step(path) <= step][-total_limit:]
        for path in found:
            if path not in kept:
                _discard(path)
    accelerator.wait_for_everyone()


def _attempt(accelerator: Accelerator, target: Path, partial: Path, work: Callable[[], object]) -> None:
    """Does one part of writing a checkpoint on every process; where one of them fails, all of them raise OSError."""
    failure = None
    try:
        work()
    except Exception as error:  # a full disk is an OSError, torch's RuntimeError, or safetensors' own type
        failure = error
    failed = accelerator.reduce(torch.tensor(float(failure is not None), device=accelerator.device), reduction="sum")
    if float(failed):
        if accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
        left = ", ".join(path.name for path in list_checkpoints(target.parent)) or "none"
        free = shutil.disk_usage(target.parent).free / 2**20
        raise OSError(
            f"{target.name} could not be written ({' '.join(str(failure or 'on another process').split())}); "
            f"{free:,.0f} MiB of {target.parent} are free; checkpoints that are left: {left}"
        ) from failure


def _finish(partial: Path, target: Path) -> None:
    """Notes sizes and checksums, has all of it on the disk, and only then gives it a checkpoint's name."""
    files = sorted(path for path in partial.rglob("*") if path.is_file())
    manifest = {str(path.relative_to(partial)): (path.stat().st_size, _checksum(path)) for path in files}
    (partial / _MANIFEST).write_text(json.dumps(manifest))
    give_usual_permissions(partial)
    for path in (*sorted(partial.rglob("*")), partial):
        _sync(path)
    if target.exists():
        _discard(target)
    os.replace(partial, target)
    _sync(target.parent)


def clean_up(output_dir: Path, step: int | None) -> None:
    """Removes what a process that was killed while it wrote or removed a checkpoint has left.

    With a `step`, to which the run is taken back, also the checkpoints after it: they would count as the newest.
    """
    for path in output_dir.glob(f"checkpoint-*{_PARTIAL}"):
        logger.warning("removing %s, which was not finished", path)
        shutil.rmtree(path, ignore_errors=True)
    later = [] if step is None else [path for path in list_checkpoints(output_dir) if checkpoint_step(path) > step]
    for path in later:
        logger.warning("removing %s: the run goes on from update %d", path, step)
        _discard(path)


def find_checkpoints(resume_from: str | None, output_dir: Path) -> list[Path]:
    """The checkpoints that `resume_from` means, the best first; none for a fresh start.

    Args:
        resume_from: None, a folder, or "latest": all complete checkpoints in `output_dir`, newest first, because the
            newest may have been damaged since.
        output_dir: the folder of the run.

    Raises:
        ValueError: the folder does not exist or is no complete checkpoint; a fresh start, or one from elsewhere,
            where a run has left checkpoints, which would be mixed up with its own.
    """
    found = list_checkpoints(output_dir)
    if resume_from is None:
        if found:
            raise ValueError(
                f"`output_dir`: {output_dir} holds {found[-1].name} of an earlier run; go on from it with "
                "`--resume_from_checkpoint latest`, or choose another folder"
            )
        return []
    if resume_from == "latest":
        if not found:
            logger.info("no checkpoint in %s: a fresh start", output_dir)
        return found[::-1]
    folder = Path(resume_from)
    if not folder.is_dir():
        raise ValueError(f"`resume_from_checkpoint`: there is no folder {folder}")
    if folder.name.endswith(_PARTIAL):
        raise ValueError(f"`resume_from_checkpoint`: {folder} was not finished")
    if found and folder.resolve().parent != output_dir.resolve():
        raise ValueError(
            f"`resume_from_checkpoint`: {folder} is not of `output_dir` {output_dir}, which holds {found[-1].name} of "
            "a run of its own; choose another folder, or go on with `--resume_from_checkpoint latest`"
        )
    return [folder]


def check_checkpoint(folder: Path) -> None:
    """Compares every file with the sizes and checksums that were written last, before anything is loaded.

    Raises:
        ValueError: a file is missing or has changed. A checkpoint without the list of checksums passes.
    """
    listed = folder / _MANIFEST
    if not listed.is_file():
        return
    for name, (size, checksum) in json.loads(listed.read_text()).items():
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{name} is missing")
        if path.stat().st_size != size or _checksum(path) != checksum:
            raise ValueError(f"{name} has changed since it was written")


def _discard(folder: Path) -> None:
    """Removes a checkpoint; half removed, it does not bear a checkpoint's name."""
    doomed = folder.with_name(f"{folder.name}.old{_PARTIAL}")
    shutil.rmtree(doomed, ignore_errors=True)
    os.replace(folder, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _checksum(path: Path) -> int:
    """CRC-32 of a file: for damage, not for malice."""
    value = 0
    with open(path, "rb") as file:
        while block := file.read(2**20):
            value = zlib.crc32(block, value)
    return value


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folders
    descriptor = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
