"""Results on disk: strict JSON, files that are whole or absent, and an evaluation that can be stopped and resumed."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
from base64 import b64decode, b64encode
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..files import write_atomically
from ..processes import process_state

logger = logging.getLogger(__name__)

Key = tuple[str, str]
Rows = dict[str, dict[str, float]]
Features = dict[str, NDArray[np.float32]]


def strict(value: Any) -> Any:
    """JSON has no infinity: non-finite floats become strings, which `float` reads."""
    if isinstance(value, dict):
        return {key: strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def write_report(report: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Write the report as JSON, whole or not at all, and remove the partial results, which it replaces."""
    write_atomically(json.dumps(strict(report), indent=1) + "\n", Path(path))
    for partial in partial_paths(Path(path)):
        partial.unlink(missing_ok=True)


def read_report(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What `write_report` wrote.

    Raises ValueError: the file is missing, or is no such report.
    """
    try:
        report = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"`report`: cannot read {os.fspath(path)!r}: {error}") from None
    if not isinstance(report, dict) or not {"protocol", "dataset", "rows", "images"} <= report.keys():
        raise ValueError(f"`report`: {os.fspath(path)!r} is no report of `hvae-sr evaluate`.")
    try:
        for rows in (report["rows"], *(image["rows"].values() for image in report["images"])):
            for row in rows:
                row |= {key: float(value) for key, value in row.items() if key != "name"}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"`report`: {os.fspath(path)!r} is no report of `hvae-sr evaluate`: {error!r}") from None
    return report


def partial_paths(report_path: Path) -> list[Path]:
    """Where the results of an evaluation are kept until its report is written: one file for each process."""
    return _matching(report_path, r"\.partial(\.\d+)?")


def _matching(report_path: Path, suffix: str) -> list[Path]:
    folder, pattern = report_path.parent, re.compile(re.escape(report_path.name) + suffix)
    return sorted(path for path in folder.iterdir() if pattern.fullmatch(path.name)) if folder.is_dir() else []


class Partial:
    """Per-image results in ``REPORT.json.partial``: one line of settings, then one line per image.

    A second process writes ``REPORT.json.partial.1`` and so on; all are read, whatever the number of processes. What an
    evaluation with other settings has left is kept aside as ``REPORT.json.partial-`` and a hash of them, where it goes
    on with those settings: a mistyped option loses nothing.

    Raises ValueError if `report_path` is a folder, or nothing can be written beside it.
    """

    def __init__(self, report_path: str | os.PathLike[str] | None, settings: dict[str, Any]):
        self.path: Path | None = None
        self.done: dict[Key, tuple[Rows, Features]] = {}
        if report_path is None:
            return
        report = Path(report_path)
        if report.is_dir():
            raise ValueError(f"`report_path` must be a file, got the folder {os.fspath(report_path)!r}.")
        rank = process_state().process_index
        self.path = report.with_name(f"{report.name}.partial" + (f".{rank}" if rank else ""))
        try:
            self._resume(report, json.dumps(strict(settings)) + "\n")
        except OSError as error:
            raise ValueError(f"`report_path` {os.fspath(report_path)!r} cannot be written: {error}") from error

    def _resume(self, report: Path, header: str) -> None:
        assert self.path is not None
        process = self.path.name.removeprefix(f"{report.name}.partial")
        aside = self._aside(report, header, process)
        kept, other = [header], None
        for path in [*partial_paths(report), *_matching(report, r"\.partial-[0-9a-f]{8}(\.\d+)?")]:
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
            if lines[:1] != [header]:
                if path == self.path and len(lines) > 1:
                    other = self._aside(report, lines[0], process)
                    logger.warning("%s holds results of other settings: they are kept as %s.", path, other.name)
                continue
            whole = [line for line in lines if line.endswith("\n")]  # the last one may be cut off
            sound = [line for line in whole[1:] if self._read(line, path)]
            if path in (self.path, aside):
                kept += sound
        process_state().wait_for_everyone()
        if other is not None:
            os.replace(self.path, other)
        write_atomically("".join(kept), self.path)
        aside.unlink(missing_ok=True)

    def _aside(self, report: Path, header: str, process: str) -> Path:
        """Where results of the settings of `header` wait for their evaluation to go on."""
        return report.with_name(f"{report.name}.partial-{hashlib.sha256(header.encode()).hexdigest()[:8]}{process}")

    def _read(self, line: str, path: Path) -> bool:
        """Takes the results of one image; False, with a warning, if the line is damaged: it is measured again."""
        try:
            record = json.loads(line)
            rows = {name: {k: float(v) for k, v in row.items()} for name, row in record["rows"].items()}
            features = {
                name: np.frombuffer(b64decode(text), np.float32) for name, text in record.get("features", {}).items()
            }
            key = str(record["image"]), str(record["sha256"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            logger.warning("%s holds a damaged line, which is not used: %r", path, error)
            return False
        self.done[key] = rows, features
        return True

    def add(self, key: Key, rows: Rows, features: Features) -> None:
        """Keep the results of one image."""
        self.done[key] = rows, features
        if self.path is not None:
            record: dict[str, Any] = {"image": key[0], "sha256": key[1], "rows": rows}
            if features:
                record["features"] = {name: b64encode(values.tobytes()).decode() for name, values in features.items()}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(strict(record)) + "\n")
