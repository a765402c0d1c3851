"""Training: objectives, the loop, checkpoints and options."""

from .config import TrainingConfig, parse_arguments
from .loop import Trainer
from .objectives import ELBO, ConditionalELBO, Distillation, Objective

__all__ = [
    "ELBO",
    "ConditionalELBO",
    "Distillation",
    "Objective",
    "Trainer",
    "TrainingConfig",
    "parse_arguments",
]
