"""The networks: VD-VAE, the LR networks that condition it, and their distributions."""

from .condition import Condition
from .distributions import DiagonalGaussian, DiscretizedLogisticMixture
from .lr_conditioner import LRConditioner
from .lr_encoder import LREncoder
from .outputs import VDVAEOutput, VDVAESample
from .vdvae import VDVAE

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
