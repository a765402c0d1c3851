"""How far a run is and what it reports: the step, means of the figures, the log file, and signals to stop."""

import json
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from ..files import write_atomically


class Progress:
    """What a checkpoint must remember beside weights, optimiser and schedule."""

    def __init__(self) -> None:
        self.step = 0
        self.skipped = 0

    def state_dict(self) -> dict[str, int]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, int]) -> None:
        vars(self).update(state)


class Meter:
    """Means of the figures of all processes since they were last read, and images per second.

    Values that are not finite are left out of the means: their updates are counted as skipped.
    """

    def __init__(self) -> None:
        self._clear()

    def add(self, figures: dict[str, Tensor], images: int) -> None:
        """Adds the figures of one batch of so many images."""
        for name, value in figures.items():
            if value.ndim:
                continue  # figures of every group are for validation
            value = value.detach().float()
            finite = torch.isfinite(value)
            entry = torch.stack((torch.where(finite, value, 0.0), finite.float()))
            self.sums[name] = self.sums[name] + entry if name in self.sums else entry
        self.images += images

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Leaves what happens inside, such as validation, out of the images per second."""
        start = time.perf_counter()
        yield
        self.since += time.perf_counter() - start

    def read(self, accelerator: Accelerator) -> dict[str, float]:
        """The means, and begins anew. A collective operation: every process must call it."""
        names = sorted(self.sums)
        sums = [self.sums[name] for name in names]
        images = torch.full((2,), float(self.images), device=accelerator.device)
        *totals, images = accelerator.reduce(torch.stack([*sums, images]), reduction="sum").tolist()
        means = {name: total / count for name, (total, count) in zip(names, totals, strict=True) if count}
        means["images_per_second"] = images[0] / (time.perf_counter() - self.since)
        self._clear()
        return means

    def _clear(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.images = 0
        self.since = time.perf_counter()


def append_log(path: Path, record: dict[str, Any]) -> None:
    """Adds one line of JSON."""
    with open(path, "a") as log:
        log.write(json.dumps(record) + "\n")


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a log; a line that was cut off is left out."""
    if not path.is_file():
        return []
    records = []
    for line in path.read_text().splitlines():
        try:
            record = json.loads(line)
            int(record["step"])
        except (ValueError, TypeError, KeyError):
            continue
        records.append(record)
    return records


def trim_log(path: Path, step: int) -> None:
    """Drops the lines after `step`, which a resumed run writes again, and a line that was cut off."""
    if not path.is_file():
        return
    write_atomically("".join(json.dumps(each) + "\n" for each in read_log(path) if each["step"] <= step), path)


class Interrupted(Exception):
    """The run was asked to stop (SIGINT or SIGTERM) and has left a checkpoint.

    Args:
        signum: the signal.
        step: updates done.
    """

    def __init__(self, signum: int, step: int) -> None:
        super().__init__(f"stopped by signal {signum} after step {step}")
        self.signum = signum
        self.step = step


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM in the list it gives, while it lasts; the second of a kind acts as it always did."""
    received: list[int] = []
    previous: dict[int, Any] = {}

    def note(signum: int, frame: Any) -> None:
        received.append(signum)
        signal.signal(signum, previous[signum])

    if threading.current_thread() is threading.main_thread():  # elsewhere Python takes no handlers
        previous = {each: signal.getsignal(each) or signal.SIG_DFL for each in (signal.SIGINT, signal.SIGTERM)}
        for signum in previous:
            signal.signal(signum, note)
    try:
        yield received
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
