"""Linear degradations H: downsampling, its adjoint, its pseudo-inverse, and the projection onto Hx = y."""

from .downsampling import Downsampling, cached_downsampling
from .resizers import KERNELS, interpolate

__all__ = ["KERNELS", "Downsampling", "cached_downsampling", "interpolate"]
