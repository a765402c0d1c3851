"""The networks: VD-VAE, the LR networks that condition it, and their distributions."""

from .distributions import DiagonalGaussian, DiscretizedLogisticMixture
from .lr_encoder import Condition, LRConditioner, LREncoder
from .vdvae import VDVAE, VDVAEOutput, VDVAESample

__all__ = [
    "VDVAE",
    "Condition",
    "DiagonalGaussian",
    "DiscretizedLogisticMixture",
    "LRConditioner",
    "LREncoder",
    "VDVAEOutput",
    "VDVAESample",
]
