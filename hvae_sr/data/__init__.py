"""Training data: random crops of photographs from folders, tables and streams, and the LR images that belong."""

from .augmentation import DEFAULT_SCALES, Augmentation
from .crops import ImageCrops, ImageFolder
from .datasets import ImageStream, ImageTable, open_dataset
from .pairs import convert_pairs, make_pairs
from .random_degradation import Degradation, bundled_degradations, degrade, load_degradation

__all__ = [
    "DEFAULT_SCALES",
    "Augmentation",
    "Degradation",
    "ImageCrops",
    "ImageFolder",
    "ImageStream",
    "ImageTable",
    "bundled_degradations",
    "degrade",
    "load_degradation",
    "make_pairs",
    "open_dataset",
    "convert_pairs",
]
