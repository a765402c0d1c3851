"""Training: objectives, the loop, checkpoints and options."""

from .config import TrainingConfig, parse_arguments
from .loop import Trainer
from .objectives import ELBO, ConditionalELBO, Distillation, EnergyScore, Objective
from .progress import Interrupted

__all__ = [
    "ELBO",
    "ConditionalELBO",
    "Distillation",
    "EnergyScore",
    "Interrupted",
    "Objective",
    "Trainer",
    "TrainingConfig",
    "parse_arguments",
]
