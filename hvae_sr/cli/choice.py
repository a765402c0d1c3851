"""Which model draws an image: the one that was named, or one that the image's own look decides on."""

import argparse
from collections.abc import Callable
from copy import copy
from typing import TYPE_CHECKING

from .common import load_pipeline
from .jobs import Job

if TYPE_CHECKING:
    from ..images import Photo
    from ..images.degradation import InputStatistics
    from ..pipelines import SuperResolutionPipeline


def read(job: Job, options: argparse.Namespace) -> tuple["Photo", "InputStatistics | None"]:
    """The photograph, or the part of it that `--crop` takes, and how it looks."""
    from ..images import read_photo, to_tensor
    from ..images.degradation import inspect

    photo = read_photo(job.source, job.frame)
    if options.crop:
        photo = photo.crop(*options.crop)
    alpha = None if photo.alpha is None else to_tensor(photo.alpha)[0]
    return photo, inspect(to_tensor(photo), alpha)


class Models:
    """The model of `--model`; without one, that of clean inputs, and `names.PHOTO` for the others.

    Each is loaded when an image first needs it, the one of clean inputs at once, so that a wrong option shows before
    anything is drawn.

    Args:
        options: of the command, `model` among them.
        by_look: whether the input decides; else `model` draws everything.
        complete: fills in what a model says of the options, and checks them.
    """

    def __init__(
        self,
        options: argparse.Namespace,
        by_look: bool,
        complete: Callable[[argparse.Namespace, "SuperResolutionPipeline"], None],
    ) -> None:
        self.options, self.by_look, self.complete = options, by_look, complete
        self.loaded: dict[str, tuple[SuperResolutionPipeline, argparse.Namespace]] = {}
        self.of(options.model)

    def of(self, name: str) -> tuple["SuperResolutionPipeline", argparse.Namespace]:
        """A model, and the options as it completes them."""
        if name not in self.loaded:
            own = copy(self.options)
            own.model = name
            pipeline = load_pipeline(own, fast=True)
            self.complete(own, pipeline)
            self.loaded[name] = pipeline, own
        return self.loaded[name]

    def choose(self, statistics: "InputStatistics | None") -> tuple[str, str]:
        """The name of the model for an image that looks so, and a line that says which and why; "" of a named one."""
        from ..checkpoints.names import PHOTO, PHOTO_SCALE
        from ..pipelines.chaining import num_passes

        if not self.by_look:
            return self.options.model, ""
        reasons = statistics.reasons() if statistics is not None else []
        clean = self.loaded[self.options.model][1]
        if reasons and self.options.rank and num_passes(PHOTO_SCALE, clean.outscale) > 1:
            why = f"`--rank` compares samples of one pass, and {PHOTO} takes more"
            return self.options.model, f"by {self.options.model}, though it {' and '.join(reasons)}: {why}"
        if reasons:
            return (
                PHOTO,
                f"by {PHOTO}, as it {' and '.join(reasons)} (`--model {self.options.model}` is for clean ones)",
            )
        look = "looks clean" if statistics is not None else "is too small or too flat to tell how it was made"
        return self.options.model, f"by {self.options.model}, as it {look}"
