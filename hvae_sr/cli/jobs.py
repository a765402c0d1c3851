"""What `upscale` has to do: which files, where to, and what of it is done."""

import argparse
import contextlib
import functools
import hashlib
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from .settings import agree

FORMATS = ("png", "webp", "jpg", "tiff")
FILE_SUFFIXES = (".png", ".webp", ".jpg", ".jpeg", ".tif", ".tiff")
_LONGEST = {".webp": 16383, ".jpg": 65500}
"""Pixels of the longest side that the encoders of a format take."""


@dataclass(frozen=True)
class Job:
    """One image, or one frame of an animation whose frames are all wanted; `frame` None takes the first.

    Results are in `folder` below the output folder `root`. Their names begin with `base`, that of the file, without its
    suffix unless another one has the same, and `part`, which frame and which crop; `suffix` has its dot. `what` the
    frame is tells where the frames of a file are not all alike.
    """

    source: Path
    frame: int | None
    root: Path
    folder: Path
    base: str
    part: str
    suffix: str
    what: str = ""

    @property
    def name(self) -> str:
        """For people."""
        kind = f": {self.what}" if self.what else ""
        return str(self.source) if self.frame is None else f"{self.source} (frame {self.frame}{kind})"

    def path(self, kind: str, outscale: float) -> Path:
        """Of a result: "seed3", "mean" or "std"."""
        return self.root / self.folder / f"{self.base}{self.part}_x{outscale:.8g}_{kind}{self.suffix}"

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

    def origin(self) -> dict[str, Any]:
        """What is written into every result: name and SHA-256, hexadecimal, of the file, and the frame."""
        return {"source": self.source.name, "source_sha256": _sha256(self.source), "frame": self.frame}


class Plan(NamedTuple):
    """The images to upscale, why some of those named cannot be, and what to know of the names of results."""

    jobs: list[Job]
    errors: list[Exception]
    warnings: list[str]

    @property
    def sources(self) -> set[Path]:
        """The files that are read, without links."""
        return {_resolved(job.source) for job in self.jobs}


def plan(options: argparse.Namespace) -> Plan:
    """What the command is to do.

    Results go to `--output-dir`, folders below an INPUT folder again below it; or else beside the inputs. What the
    command itself wrote there is left out, and what it made anywhere of another input.

    Raises:
        ValueError: no image, or one alone that cannot be read.
    """
    from ..images import ImageError, find_images, load_image

    given = {_resolved(Path(source)) for source in options.inputs}
    own = 0
    found: dict[str, tuple[Path, Path, Path]] = {}  # its place: as given, output folder, folder below it
    errors: list[Exception] = []
    for source in map(Path, options.inputs):
        try:
            paths = find_images(source, recursive=options.recursive, errors=errors)
        except ImageError as error:
            errors.append(error)
            continue
        top = source if source.is_dir() else source.parent
        output = Path(options.output_dir) if options.output_dir else top
        for path in paths:
            real = _resolved(path)
            if real in given or _resolved(output) not in real.parents or not _settings_of(path):
                below = path.relative_to(source).parent if source.is_dir() else Path()
                found.setdefault(str(_resolved(path.parent) / path.name), (path, output, below))
            else:
                own += 1
    # The same command again, of *.png: the results of the first time are among the inputs.
    sources: dict[str, list[Path]] = {}
    for path, *_ in found.values():
        sources.setdefault(path.name, []).append(path)
    hashed = functools.cache(_sha256_if_read)
    results = [place for place, (path, *_) in found.items() if _is_made_of(path, sources, hashed)]
    for place in results:
        del found[place]
    if not found:
        but = f" but {own} results of this command: name them one by one, or another `--output-dir`" if own else ""
        raise errors[0] if errors else ValueError(f"`INPUT`: no images in {', '.join(options.inputs)}{but}")
    if len(found) == 1 and not errors:
        ((path, _, _),) = found.values()
        width, height = load_image(path).size  # a typo should not cost the time to load a model
        if min(width, height) < 2:
            raise ValueError(f"{path}: must be at least 2x2 pixels, is {width}x{height}")
    jobs = [job for where in found.values() for job in _jobs(*where, options, errors)]
    planned = _apart(jobs, errors)
    if results:
        planned.warnings.append(f"{len(results)} of the inputs are results of others of them, and left out")
    return planned


def _jobs(path: Path, root: Path, folder: Path, options: argparse.Namespace, errors: list[Exception]) -> list[Job]:
    """The frames of a file; what keeps the later ones from being read goes to `errors`, and the first is taken."""
    from ..images import ImageError, list_frames, load_image

    suffix, crop = f".{options.format}", "_crop{}-{}-{}-{}".format(*options.crop) if options.crop else ""
    frames = [""]
    if options.all_frames:
        try:
            frames = list_frames(path)
        except ImageError as error:
            with contextlib.suppress(ImageError):  # which is reported when its turn comes
                load_image(path)
                errors.append(error)
    if len(frames) == 1:
        return [Job(path, None, root, folder, path.stem, crop, suffix)]
    alike = len(set(frames)) == 1
    return [
        Job(path, number, root, folder, path.stem, f"_frame{number:04d}{crop}", suffix, "" if alike else what)
        for number, what in enumerate(frames)
    ]


def _apart(jobs: list[Job], errors: list[Exception]) -> Plan:
    """Names those by their whole name whose results would have one name, and refuses what would have it even so."""
    warnings = []
    for same in _by_name(jobs):
        drawn = [job for job in same if _is_begun(job)]  # of an earlier run, whose other inputs came later
        if len({job.source for job in drawn}) != 1:
            drawn = []
        for job in same if len({job.source.name for job in same}) > 1 else ():
            if job in drawn:
                continue
            jobs[jobs.index(job)] = replace(job, base=job.source.name)
            begin = f"begin with {job.source.name!r}, as another input is called {job.base!r} too"
            warnings.append(f"{job.name}: the names of its results {begin}")
    refused = []
    for first, *others in _by_name(jobs, functools.cache(_tells_cases_apart)):
        for job in others:
            refused.append(job)
            errors.append(ValueError(f"{job.name}: its results would replace those of {first.name}, of the same name"))
    return Plan([job for job in jobs if job not in refused], errors, warnings)


def _is_begun(job: Job) -> bool:
    """Whether results of the very file are there under the job's names."""
    folder, own = job.root / job.folder, f"{job.base}{job.part}_x"
    if not folder.is_dir():
        return False
    results = [path for path in folder.iterdir() if path.name.startswith(own) and path.suffix == job.suffix]
    made_of = {_settings_of(path).get("source_sha256") for path in results} - {None}
    return bool(made_of) and _sha256_if_read(job.source) in made_of


def _by_name(jobs: Sequence[Job], cased: Callable[[Path], bool] = lambda root: False) -> list[list[Job]]:
    """Jobs whose results would have the same names together, also names that differ in case, but where `cased`."""
    found: dict[str, list[Job]] = {}
    for job in jobs:
        name = str(_resolved(job.root) / job.folder / f"{job.base}{job.part}")
        found.setdefault(name if cased(_resolved(job.root)) else name.casefold(), []).append(job)
    return list(found.values())


def _tells_cases_apart(folder: Path) -> bool:
    """Whether names of files may differ in case alone: that of the folder, or of one above it, is there in no other."""
    while not folder.exists():
        folder = folder.parent
    while folder.name.swapcase() == folder.name and folder.parent != folder:
        folder = folder.parent
    other = folder.with_name(folder.name.swapcase()) if folder.name else folder
    return not other.exists() or not other.samefile(folder)


def remove_leftovers(jobs: Sequence[Job]) -> None:
    """Removes what runs that were killed left half-written in the folders of the results."""
    from ..files import remove_abandoned

    for root, folder in {(job.root, job.root / job.folder) for job in jobs}:
        if _resolved(folder).is_relative_to(_resolved(root)):
            remove_abandoned(folder)


def _resolved(path: Path) -> Path:
    """Without links; unlike `Path.resolve`, also for links that lead in a circle."""
    return Path(os.path.realpath(path))


def _settings_of(path: Path) -> dict[str, Any]:
    """What this command wrote into a file; nothing if it did not make it."""
    from ..images import ImageError, read_metadata

    try:
        return read_metadata(path)
    except ImageError:
        return {}


def _is_made_of(path: Path, sources: Mapping[str, Sequence[Path]], hashed: Callable[[Path], str | None]) -> bool:
    """Whether a file is a result of another of `sources`, files of each name, whose SHA-256 `hashed` gives."""
    settings = _settings_of(path)
    named, wanted = sources.get(str(settings.get("source")), []), settings.get("source_sha256")
    return wanted is not None and any(source != path and hashed(source) == wanted for source in named)


def _sha256_if_read(path: Path) -> str | None:
    """`_sha256`, or None for a file that cannot be read, as it is said when its turn comes."""
    from ..images import ImageError

    try:
        return _sha256(path)
    except (ImageError, OSError):
        return None


def _sha256(path: Path) -> str:
    """Of a file, hexadecimal."""
    from ..images import open_file

    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def state(
    job: Job, settings: dict[str, Any], seeds: Sequence[int], options: argparse.Namespace, sources: Collection[Path]
) -> str:
    """ "new", "finished", "other settings" or "unfinished".

    Raises:
        ValueError: a name that is too long; a file that is in the way and may not be replaced, as this command did not
            write it, made it of another image, or reads it too (`sources`).
    """
    kinds = [f"seed{seed}" for seed in seeds] + (["mean", "std"] if len(seeds) > 1 else [])
    paths = [job.path(kind, options.outscale) for kind in kinds]
    longest = max((path.name for path in paths), key=lambda name: len(os.fsencode(name)))
    if len(os.fsencode(longest)) > _longest_name(job.root):
        raise ValueError(
            f"{job.source}: its results would have names of {len(os.fsencode(longest))} bytes, and the output folder "
            f"holds names of up to {_longest_name(job.root)}"
        )
    present = [path for path in paths if os.path.lexists(path)]
    same = True
    for path in present:
        found = _settings_of(path)
        if path.is_dir():
            raise ValueError(f"{job.source}: {path} is in the way, a folder")
        if not options.overwrite:
            if not found:
                raise ValueError(f"{job.source}: {path} is in the way, and no result of this command (see --overwrite)")
            if found.get("source_sha256", settings["source_sha256"]) != settings["source_sha256"]:
                raise ValueError(
                    f"{job.source}: {path} is in the way, made of another image ({found.get('source')}): name another "
                    "`--output-dir`, or --overwrite"
                )
        same = same and agree(found, settings) and found.get("seeds", list(seeds)) == list(seeds)
    if not present:
        return "new"
    for path in present if options.overwrite or not same else ():  # else it is replaced by itself
        if _resolved(path) in sources:
            raise ValueError(f"{job.source}: {path} is in the way, another input: name another `--output-dir`")
    if not same:
        return "other settings"
    return "finished" if len(present) == len(kinds) else "unfinished"


def _longest_name(folder: Path) -> int:
    """Bytes of a name in a folder, or in the one that it will be made in."""
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    with contextlib.suppress(AttributeError, OSError, ValueError):  # on Windows, and file systems that do not tell
        return os.pathconf(there, "PC_NAME_MAX")
    return 255
