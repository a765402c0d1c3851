"""What a run reports: means of its figures, the log file, trackers, and pictures."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor

from ..files import write_atomically
from .config import TrainingConfig


class Meter:
    """Means of the figures of all processes since they were last read, and images per second.

    Values that are not finite are left out of the means: their updates are counted as skipped.
    """

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.images = 0
        self.since = time.perf_counter()

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
        images = torch.full((2,), float(self.images), device=accelerator.device)
        sums = torch.stack([*(self.sums[name] for name in names), images])
        *totals, images = accelerator.reduce(sums, reduction="sum").tolist()
        means = {name: total / count for name, (total, count) in zip(names, totals, strict=True) if count}
        means["images_per_second"] = images[0] / (time.perf_counter() - self.since)
        self._clear()
        return means


class Log:
    """`log.jsonl` in the folder of the run, and the tracker that `report_to` names, in its folder `logging_dir`."""

    def __init__(self, config: TrainingConfig, accelerator: Accelerator) -> None:
        self.config, self.accelerator = config, accelerator
        self.path = config.output_path / "log.jsonl"

    def begin(self, step: int) -> None:
        """Takes the log back to update `step`, after which the run goes on, and opens the trackers."""
        config = self.config
        if self.accelerator.is_main_process and self.path.is_file():  # later lines come again; one may be cut off
            records = [json.dumps(record) + "\n" for record in read_log(self.path) if record["step"] <= step]
            write_atomically("".join(records), self.path)
        if config.report_to:
            folder = config.output_path / config.logging_dir
            folder.mkdir(parents=True, exist_ok=True)
            self.accelerator.init_trackers(
                "hvae-sr",
                config={key: str(value) for key, value in vars(config).items()},
                init_kwargs={
                    "tensorboard": {"purge_step": step + 1},  # hides what earlier runs wrote of later updates
                    "wandb": {"dir": str(folder)},  # not the folder that the command was started in
                },
            )

    def write(self, step: int, figures: dict[str, Any]) -> None:
        """One line of the log; trackers do not get the figures of every group. What is not finite, JSON cannot say."""
        figures = {name: value for name, value in figures.items() if np.isfinite(value).all()}
        if self.accelerator.is_main_process:
            with open(self.path, "a") as log:
                log.write(json.dumps({"step": step, **figures}) + "\n")
        scalars = {name: value for name, value in figures.items() if not isinstance(value, list)}
        self.accelerator.log(scalars, step=step)

    def show(self, step: int, pictures: dict[str, Image.Image]) -> None:
        """Sends pictures to the trackers that show them; their files are written in any case."""
        for tracker in self.accelerator.trackers:
            for name, picture in pictures.items():
                name = f"validation/{name}"
                if tracker.name == "tensorboard":
                    tracker.log_images({name: np.asarray(picture)[None]}, step=step, dataformats="NHWC")
                elif tracker.name == "wandb":
                    tracker.log_images({name: [picture]}, step=step)
                elif tracker.name == "trackio":
                    import trackio

                    tracker.log({name: trackio.Image(picture)}, step=step)


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a log, none where there is no file; a line that was cut off is left out."""
    records = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            record = json.loads(line)
            int(record["step"])
        except (ValueError, TypeError, KeyError):
            continue
        records.append(record)
    return records
