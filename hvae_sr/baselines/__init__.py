"""The systems that the papers compare with: EDSR, ESRGAN and Real-ESRGAN, HCFlow, SR3 and DPS; and SPAN.

They share the output class, the noise and the evaluation with ours, and nothing else.
"""

from .diffusion import AncestralScheduler
from .edsr import EDSR
from .guided_diffusion import GuidedDiffusionUNet
from .hcflow import HCFlow
from .rrdb import RRDBNet
from .span import SPAN
from .sr3 import SR3UNet
from .srvgg import SRVGGNetCompact

__all__ = [
    "EDSR",
    "SPAN",
    "AncestralScheduler",
    "GuidedDiffusionUNet",
    "HCFlow",
    "RRDBNet",
    "SR3UNet",
    "SRVGGNetCompact",
]
