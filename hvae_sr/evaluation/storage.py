"""Results on disk: strict JSON, files that are whole or absent, and an evaluation that can be stopped and resumed."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from base64 import b64decode, b64encode
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..files import is_stream, strict, write_atomically
from ..processes import process_state

logger = logging.getLogger(__name__)

Key = tuple[str, str]
Rows = dict[str, dict[str, float]]
Features = dict[str, NDArray[np.float32]]

_RESULTS = ("num_images", "num_images_available", "rows", "images")
"""What a report holds beside the settings that it was made with."""


def write_report(report: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Write the report as JSON, whole or not at all, and remove the partial results, which it replaces."""
    write_atomically(json.dumps(strict(report), indent=1) + "\n", Path(path))
    if is_stream(Path(path)):
        return
    for partial in partial_paths(Path(path), {key: value for key, value in report.items() if key not in _RESULTS}):
        partial.unlink(missing_ok=True)


def read_report(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What `write_report` wrote.

    Raises ValueError: the file is missing, or is no such report.
    """
    try:
        report = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"`report`: cannot read {os.fspath(path)!r}: {error}") from None
    try:
        _, _, means, images = (report[key] for key in ("protocol", "dataset", "rows", "images"))
        for row in (*means, *(row for image in images for row in image["rows"].values())):
            row |= {key: float(value) for key, value in row.items() if key != "name"}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"`report`: {os.fspath(path)!r} is no report of `hvae-sr evaluate`: {error!r}") from None
    return report


def _header(settings: dict[str, Any]) -> str:
    return json.dumps(strict(settings)) + "\n"


def _partial_path(report_path: Path, settings: dict[str, Any]) -> Path:
    digest = hashlib.sha256(_header(settings).encode()).hexdigest()[:8]
    return report_path.with_name(f"{report_path.name}.partial-{digest}")


def partial_paths(report_path: Path, settings: dict[str, Any]) -> list[Path]:
    """Where the results of an evaluation are kept until its report is written: one file for each process."""
    path = _partial_path(report_path, settings)
    pattern = re.compile(re.escape(path.name) + r"(\.\d+)?")
    return sorted(p for p in path.parent.iterdir() if pattern.fullmatch(p.name)) if path.parent.is_dir() else []


class Partial:
    """Per-image results in ``REPORT.json.partial-HASH``: one line of settings, then one line per image.

    A second process writes ``REPORT.json.partial-HASH.1`` and so on; all are read, whatever the number of processes.
    The hash is of the settings: what an evaluation with others has left stays beside it, and is gone on with when they
    are given again. A mistyped option loses nothing.

    Raises ValueError if `report_path` is a folder, or nothing can be written beside it.
    """

    def __init__(self, report_path: str | os.PathLike[str] | None, settings: dict[str, Any]):
        self.path: Path | None = None
        self.done: dict[Key, tuple[Rows, Features]] = {}
        if report_path is None:
            return
        report, rank = Path(report_path), process_state().process_index
        if report.is_dir():
            raise ValueError(f"`report_path` must be a file, got the folder {os.fspath(report_path)!r}.")
        if is_stream(report):  # nothing is kept beside it
            return
        path = _partial_path(report, settings)
        self.path = path.with_name(path.name + (f".{rank}" if rank else ""))
        try:
            kept = [_header(settings)]
            for path in partial_paths(report, settings):
                lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
                whole = [line for line in lines[1:] if line.endswith("\n")]  # the last one may be cut off
                sound = [line for line in whole if self._read(line, path)]
                kept += sound if path == self.path else []
            process_state().wait_for_everyone()
            write_atomically("".join(kept), self.path)
        except OSError as error:
            raise ValueError(f"`report_path` {os.fspath(report_path)!r} cannot be written: {error}") from error

    def _read(self, line: str, path: Path) -> bool:
        """Takes the results of one image; False, with a warning, if the line is damaged: it is measured again."""
        try:
            record = json.loads(line)
            rows = {name: {k: float(v) for k, v in row.items()} for name, row in record["rows"].items()}
            texts = record.get("features", {}).items()
            features = {name: np.frombuffer(b64decode(text), np.float32) for name, text in texts}
            self.done[str(record["image"]), str(record["sha256"])] = rows, features
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            logger.warning("%s holds a damaged line, which is not used: %r", path, error)
            return False
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
