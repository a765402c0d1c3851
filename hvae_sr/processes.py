"""The processes that share a command's work, as `accelerate launch` and `torchrun` start them."""

from datetime import timedelta
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env


def process_state() -> PartialState:
    """accelerate's state of this process, which knows the others on the CPU too.

    `PartialState()` alone does not read ACCELERATE_USE_CPU, as `Accelerator` does, and takes processes of a machine
    without an accelerator for strangers: each would do all the work.

    A process that is done waits for the others, which may have hours of work left: the usual limits of half an hour and
    less are for processes that work in step.
    """
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    return PartialState(cpu=cpu, timeout=timedelta(days=7))


def bar_options(shown: bool) -> dict[str, Any]:
    """What tqdm is told of a bar: nothing of one that is shown, or TQDM_DISABLE would be overruled."""
    return {} if shown else {"disable": True}
