"""What a run needs beside its options, looked at before anything is read or computed."""

import os
from pathlib import Path

from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType

from ..files import check_writable
from .checkpoints import find_checkpoints
from .config import OPTIONS_FILE, TrainingConfig


def check_surroundings(config: TrainingConfig) -> list[Path]:
    """What must hold beside the options; gives the checkpoints to go on from, the best first.

    Raises:
        ValueError: the output folder cannot be written to, the tracker is not there, variables of the environment say
            something else than the options, and would go before them or have no effect; or there is nothing to go on
            from with these options, see `find_checkpoints` and `TrainingConfig.check_resumed`.
    """
    check_writable(config.output_path, "output_dir")
    _check_tracker(config.report_to)
    asked = config.gradient_accumulation_steps
    given = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", str(asked))
    if given != str(asked):  # which goes before the argument
        raise ValueError(
            f"`gradient_accumulation_steps` is {asked}, but the environment says {given} "
            "(ACCELERATE_GRADIENT_ACCUMULATION_STEPS), and batches would be added up that do not belong together"
        )
    given = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if given not in ("no", config.mixed_precision):  # which the argument goes before
        raise ValueError(
            f"`mixed_precision` is {config.mixed_precision!r}, but the environment says {given!r} "
            "(ACCELERATE_MIXED_PRECISION, as by `accelerate launch --mixed_precision`), which would have no effect"
        )
    checkpoints = find_checkpoints(config.resume_from_checkpoint, config.output_path)
    if checkpoints:
        config.check_resumed(checkpoints[0].parent / OPTIONS_FILE)
    return checkpoints


def _check_tracker(name: str | None) -> None:
    """Accelerate leaves out a tracker that is not installed, without a word; here that is a ValueError."""
    if name is None:
        return
    if name not in LoggerType.list():
        raise ValueError(f"`report_to` must be one of {', '.join(LoggerType.list())}; got {name!r}")
    available = [str(tracker) for tracker in get_available_trackers()]
    if name not in available and not (name == "all" and available):
        raise ValueError(f"`report_to`: {'no tracker is' if name == 'all' else f'{name} is not'} installed")
