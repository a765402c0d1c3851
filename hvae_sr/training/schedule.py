"""Learning rates: diffusers' schedules of the step, and one that follows the loss."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from diffusers.optimization import get_scheduler
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from .config import TrainingConfig


class PlateauSchedule:
    """torch's `ReduceLROnPlateau`, with a linear warm-up before it, during which no loss is observed.

    Args:
        optimizer: the optimiser, at its peak rate.
        warmup_steps: updates of linear warm-up.
        factor, patience: as torch's.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, warmup_steps: int, factor: float, patience: int) -> None:
        self.optimizer, self.warmup_steps, self.steps = optimizer, warmup_steps, 0
        self.loss_sum, self.losses = 0.0, 0  # of the training losses since the last observation, and their number
        self.peaks = [float(group["lr"]) for group in optimizer.param_groups]
        # Torch's own threshold, a share of the loss, takes a negative loss that stays for one that becomes better.
        self.plateau = ReduceLROnPlateau(
            optimizer, factor=factor, patience=patience, threshold=0.0, threshold_mode="abs", eps=0.0
        )
        self._warm_up()

    def step(self) -> None:
        """After every update."""
        self.steps += 1
        if self.steps <= self.warmup_steps:
            self._warm_up()

    def _warm_up(self) -> None:
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * min(1.0, self.steps / self.warmup_steps) if self.warmup_steps else peak

    def add(self, loss: float) -> None:
        """The training loss of an update, for `observe_training`."""
        self.loss_sum += loss
        self.losses += 1

    def observe(self, loss: float) -> None:
        """A loss of which less is better, measured in the same way each time."""
        if self.steps > self.warmup_steps:
            self.plateau.step(loss)

    def observe_training(self) -> None:
        """The mean of the losses added since the last call."""
        if self.losses:
            self.observe(self.loss_sum / self.losses)
        self.loss_sum, self.losses = 0.0, 0

    def get_last_lr(self) -> list[float]:
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in ("steps", "loss_sum", "losses")}
        return {**own, "plateau": self.plateau.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The rate itself is in the optimiser's state."""
        state = dict(state)
        self.plateau.load_state_dict(state.pop("plateau"))
        vars(self).update(state)


class StepSchedule(LambdaLR):
    """A schedule of the step alone, whose state is the step: a resumed run may have another length or shape."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to the step of `state`. The rate there is this schedule's: that of a finished run may have been 0."""
        super().load_state_dict(state)
        self._last_lr = [
            base * factor(self.last_epoch) for base, factor in zip(self.base_lrs, self.lr_lambdas, strict=True)
        ]
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = rate


def make_schedule(
    config: TrainingConfig, optimizer: torch.optim.Optimizer, max_steps: int
) -> PlateauSchedule | StepSchedule:
    """The schedule that `config.lr_scheduler` names, for a run of so many updates."""
    if config.lr_scheduler == "plateau":
        return PlateauSchedule(optimizer, config.lr_warmup_steps, config.plateau_factor, config.plateau_patience)
    named = get_scheduler(
        config.lr_scheduler, optimizer, step_rules=config.lr_step_rules, num_warmup_steps=config.lr_warmup_steps,
        num_training_steps=max_steps, num_cycles=config.lr_num_cycles,
    )  # fmt: skip
    factors = named.lr_lambdas
    if config.lr_scheduler == "piecewise_constant" and config.lr_warmup_steps:  # where diffusers has no warm-up
        factors = [partial(_warmed, factor, config.lr_warmup_steps) for factor in factors]
    return StepSchedule(optimizer, factors)


def _warmed(factor: Callable[[int], float], warmup_steps: int, step: int) -> float:
    return factor(step) * min(1.0, step / warmup_steps)
