"""Results on disk: strict JSON, files that are whole or absent, and an evaluation that can be stopped and resumed."""

from __future__ import annotations

import json
import logging
import math
import os
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

Rows = dict[str, dict[str, float]]


def strict(value: Any) -> Any:
    """JSON has no infinity: non-finite floats become strings, which `float` reads."""
    if isinstance(value, dict):
        return {key: strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def write_atomically(text: str, path: Path) -> None:
    """Write a file, whole or not at all, and its folder where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def partial_path(report_path: Path) -> Path:
    """Where the results of an evaluation are kept until its report is written."""
    return report_path.with_name(f"{report_path.name}.partial")


class Partial:
    """Per-image results in ``REPORT.json.partial``: one line of settings, then one line per image.

    Raises ValueError if `report_path` is a folder, or nothing can be written beside it.
    """

    def __init__(self, report_path: str | os.PathLike[str] | None, settings: dict[str, Any]):
        self.path: Path | None = None
        self.done: dict[tuple[str, str], Rows] = {}
        if report_path is None:
            return
        report = Path(report_path)
        if report.is_dir():
            raise ValueError(f"`report_path` must be a file, got the folder {os.fspath(report_path)!r}.")
        self.path = partial_path(report)
        try:
            self._resume(self.path, json.dumps(strict(settings)) + "\n")
        except OSError as error:
            raise ValueError(f"`report_path` {os.fspath(report_path)!r} cannot be written: {error}") from error

    def _resume(self, path: Path, header: str) -> None:
        kept = [header]
        if path.exists():
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            if lines[:1] == [header]:
                kept = [line for line in lines if line.endswith("\n")]  # the last one may be cut off
            else:
                logger.warning("%s holds results of other settings: starting afresh.", path)
        for line in kept[1:]:
            record = json.loads(line)
            rows = {name: {k: float(v) for k, v in row.items()} for name, row in record["rows"].items()}
            self.done[record["image"], record["sha256"]] = rows
        write_atomically("".join(kept), path)

    def add(self, image: str, sha256: str, rows: Rows) -> None:
        """Keep the rows of one image."""
        self.done[image, sha256] = rows
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(strict({"image": image, "sha256": sha256, "rows": rows})) + "\n")
