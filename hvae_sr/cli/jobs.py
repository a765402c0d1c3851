"""What `upscale` has to do: which files, where to, and what of it is done."""

import argparse
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FORMATS = ("png", "webp", "jpg", "tiff")
_LONGEST = {".webp": 16383, ".jpg": 65500}
"""Pixels of the longest side that the encoders of a format take."""


@dataclass(frozen=True)
class Job:
    """One image, or one frame of an animation.

    Args:
        source: the file.
        frame: of an animation whose frames are all wanted; None takes the first.
        root: the output folder.
        folder: below it.
        stem: of the names of the results, without the kind.
        suffix: of the format, with its dot.
        what: the frame is, where the frames of a file are not all alike.
    """

    source: Path
    frame: int | None
    root: Path
    folder: Path
    stem: str
    suffix: str
    what: str = ""

    @property
    def name(self) -> str:
        """For people."""
        kind = f": {self.what}" if self.what else ""
        return str(self.source) if self.frame is None else f"{self.source} (frame {self.frame}{kind})"

    def path(self, kind: str, outscale: float) -> Path:
        """Of a result: "seed3", "mean" or "std"."""
        return self.root / self.folder / f"{self.stem}_x{outscale:.8g}_{kind}{self.suffix}"

    def make_folder(self) -> None:
        """Makes the folder of the results.

        Raises:
            ValueError: a link in the output folder leads out of it.
        """
        folder = self.root / self.folder
        if not _resolved(folder).is_relative_to(_resolved(self.root)):
            raise ValueError(f"{self.source}: {folder} leads out of the output folder")
        folder.mkdir(parents=True, exist_ok=True)

    def check_format(self, width: int, height: int) -> None:
        """Raises a ValueError where the format cannot hold results of this size, in pixels."""
        longest = _LONGEST.get(self.suffix)
        if longest is not None and max(width, height) > longest:
            raise ValueError(
                f"`--format` {self.suffix[1:]} holds sides of up to {longest} pixels, the results have {width}x{height}"
            )

    def source_hash(self) -> str:
        """SHA-256 of the file, hexadecimal."""
        from ..images import open_file

        digest = hashlib.sha256()
        with open_file(self.source) as file:
            while block := file.read(2**20):
                digest.update(block)
        return digest.hexdigest()


def plan(options: argparse.Namespace) -> tuple[list[Job], list[Exception]]:
    """The images to upscale, and why some of those named cannot be.

    Folders below an INPUT folder come again below the output folder. What the command itself wrote into its output
    folder is left out.

    Raises:
        ValueError: no image, one alone that cannot be read, or two whose results would have the same names.
    """
    from ..images import ImageError, find_images, load_image

    output = Path(options.output_dir)
    given = {_resolved(Path(source)) for source in options.inputs}
    found: dict[Path, Path] = {}  # file: folder of its results
    unreadable: list[Exception] = []
    for source in map(Path, options.inputs):
        try:
            paths = find_images(source, recursive=options.recursive)
        except ImageError as error:
            unreadable.append(error)
            continue
        for path in paths:
            real = _resolved(path)
            if real in given or _resolved(output) not in real.parents or not _made_here(path):
                found.setdefault(path, path.relative_to(source).parent if source.is_dir() else Path())
    if not found:
        raise unreadable[0] if unreadable else ValueError(f"`INPUT`: no images in {', '.join(options.inputs)}")
    if len(found) == 1 and not unreadable:
        (path,) = found
        width, height = load_image(path).size  # a typo should not cost the time to load a model
        if min(width, height) < 2:
            raise ValueError(f"{path}: must be at least 2x2 pixels, is {width}x{height}")
    jobs = [job for path, folder in found.items() for job in _jobs(path, folder, output, options)]
    names: dict[Path, Job] = {}
    for job in jobs:
        other = names.setdefault(job.folder / job.stem, job)
        if other is not job:
            raise ValueError(f"`INPUT`: {other.name} and {job.name} would write files of the same name")
    return jobs, unreadable


def _jobs(path: Path, folder: Path, output: Path, options: argparse.Namespace) -> list[Job]:
    from ..images import ImageError, list_frames

    suffix = f".{options.format}"
    frames = [""]
    if options.all_frames:
        try:
            frames = list_frames(path)
        except ImageError:
            pass  # reported when its turn comes
    if len(frames) == 1:
        return [Job(path, None, output, folder, path.stem, suffix)]
    alike = len(set(frames)) == 1
    return [
        Job(path, number, output, folder, f"{path.stem}_frame{number:04d}", suffix, "" if alike else what)
        for number, what in enumerate(frames)
    ]


def remove_leftovers(jobs: Sequence[Job]) -> None:
    """Removes what runs that were killed left half-written in the folders of the results."""
    from ..files import remove_abandoned

    for folder in {job.root / job.folder for job in jobs}:
        if _resolved(folder).is_relative_to(_resolved(jobs[0].root)):
            remove_abandoned(folder)


def _resolved(path: Path) -> Path:
    """Without links; unlike `Path.resolve`, also for links that lead in a circle."""
    return Path(os.path.realpath(path))


def _made_here(path: Path) -> bool:
    from ..images import ImageError, read_metadata

    try:
        return bool(read_metadata(path))
    except ImageError:
        return False


def state(job: Job, settings: dict[str, Any], seeds: Sequence[int], options: argparse.Namespace) -> str:
    """ "new", "finished", "other settings" or "unfinished".

    Raises:
        ValueError: a file that this command did not write is in the way, and may not be replaced.
    """
    from ..images import ImageError, read_metadata
    from .settings import agree

    kinds = [f"seed{seed}" for seed in seeds] + ["mean", "std"]
    paths = [job.path(kind, options.outscale) for kind in kinds]
    present = [path for path in paths if os.path.lexists(path)]
    same = True
    for path in present:
        try:
            found = read_metadata(path)
        except ImageError:
            found = {}
        if path.is_dir():
            raise ValueError(f"{job.source}: {path} is in the way, a folder")
        if not found and not options.overwrite:
            raise ValueError(f"{job.source}: {path} is in the way, and no result of this command (see --overwrite)")
        same = same and agree(found, settings) and found.get("seeds", list(seeds)) == list(seeds)
    if not present:
        return "new"
    if not same:
        return "other settings"
    return "finished" if len(present) == len(kinds) else "unfinished"
