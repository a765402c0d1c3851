"""Pipelines, importable as `hvae_sr.pipelines`."""

import sys

import diffusers
from diffusers.pipelines import pipeline_loading_utils as _loading

import hvae_sr

from .inputs import SamplingOptions
from .output import Sample, SuperResolutionOutput
from .super_resolution import SuperResolutionPipeline

# diffusers writes and finds ["hvae_sr", "VDVAE"] in model_index.json only for libraries registered with its loader.
_CLASSES = {name: ["save_pretrained", "from_pretrained"] for name in ("VDVAE", "LREncoder", "LRConditioner")}
_loading.LOADABLE_CLASSES["hvae_sr"] = _CLASSES
_loading.ALL_IMPORTABLE_CLASSES.update(_CLASSES)
# `DiffusionPipeline.from_pretrained(folder)` looks the class of model_index.json up here, and those of its components
# in `diffusers.pipelines`, before it would run a file of that name in a repository.
diffusers.SuperResolutionPipeline = SuperResolutionPipeline  # type: ignore[attr-defined]
diffusers.pipelines.hvae_sr = sys.modules[hvae_sr.__name__]  # type: ignore[attr-defined]

__all__ = ["Sample", "SamplingOptions", "SuperResolutionOutput", "SuperResolutionPipeline"]
