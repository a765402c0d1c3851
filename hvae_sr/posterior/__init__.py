"""Working with samples of the posterior: their recipes, new versions of a region, quantiles, intervals, densities."""

from .conformal import Calibration
from .density import Rank, log_density, rank
from .quantiles import quantiles
from .recipe import Recipe, Region, noise_of
from .redraw import composite, feather_weights, mix, read_mask, unseen_change

__all__ = [
    "Calibration",
    "Rank",
    "Recipe",
    "Region",
    "composite",
    "feather_weights",
    "log_density",
    "mix",
    "noise_of",
    "quantiles",
    "rank",
    "read_mask",
    "unseen_change",
]
