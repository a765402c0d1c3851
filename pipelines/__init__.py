"""Pipelines, importable as `hvae_sr.pipelines`."""

import sys

import diffusers

import hvae_sr
from hvae_sr import baselines as _networks
from hvae_sr.loading import from_diffusers as _from_diffusers

from .baselines import PIPELINES, DPSPipeline, HCFlowPipeline, RegressionPipeline, SR3Pipeline
from .inputs import SamplingOptions
from .output import Sample, SuperResolutionOutput
from .super_resolution import SuperResolutionPipeline

# diffusers writes and finds ["hvae_sr", "VDVAE"] in model_index.json only for libraries registered with its loader.
_NAMES = ("VDVAE", "LREncoder", "LRConditioner", *_networks.__all__)
_CLASSES = {name: ["save_pretrained", "from_pretrained"] for name in _NAMES}
_from_diffusers("diffusers.pipelines.pipeline_loading_utils", "LOADABLE_CLASSES")["hvae_sr"] = _CLASSES
_from_diffusers("diffusers.pipelines.pipeline_loading_utils", "ALL_IMPORTABLE_CLASSES").update(_CLASSES)
# `DiffusionPipeline.from_pretrained(folder)` looks the class of model_index.json up here, and those of its components
# in `diffusers.pipelines`, before it would run a file of that name in a repository.
for _name, _class in PIPELINES.items():
    setattr(diffusers, _name, _class)
diffusers.pipelines.hvae_sr = sys.modules[hvae_sr.__name__]  # type: ignore[attr-defined]

__all__ = [
    "DPSPipeline",
    "HCFlowPipeline",
    "RegressionPipeline",
    "SR3Pipeline",
    "Sample",
    "SamplingOptions",
    "SuperResolutionOutput",
    "SuperResolutionPipeline",
]
