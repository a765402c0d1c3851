"""Training: objectives, the loop, checkpoints and options."""

from .config import TrainingConfig, parse_arguments
from .cost import describe
from .energy_score import EnergyScore
from .loop import Trainer
from .objectives import ELBO, ConditionalELBO, Distillation, Joint, Objective
from .signals import Interrupted

__all__ = [
    "ELBO",
    "ConditionalELBO",
    "Distillation",
    "EnergyScore",
    "Interrupted",
    "Joint",
    "Objective",
    "Trainer",
    "TrainingConfig",
    "describe",
    "parse_arguments",
]
