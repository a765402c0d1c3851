"""From two networks and an operator to samples of one image of any size."""

from .consistency import Consistency, decibels, lr_psnr
from .memory import Budget, budget, format_bytes, held_by, parse_bytes
from .orientations import SelfEnsemble
from .sampler import Networks, WindowSampler
from .sizes import SizeRequirements
from .windows import Window

__all__ = [
    "Budget",
    "Consistency",
    "Networks",
    "SelfEnsemble",
    "SizeRequirements",
    "Window",
    "WindowSampler",
    "budget",
    "decibels",
    "format_bytes",
    "held_by",
    "lr_psnr",
    "parse_bytes",
]
