"""The processes that share a command's work, as `accelerate launch` and `torchrun` start them."""

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env


def process_state() -> PartialState:
    """accelerate's state of this process, which knows the others on the CPU too.

    `PartialState()` alone does not read ACCELERATE_USE_CPU, as `Accelerator` does, and takes processes of a machine
    without an accelerator for strangers: each would do all the work.
    """
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available())
