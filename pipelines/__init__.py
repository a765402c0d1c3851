"""Pipelines, importable as `hvae_sr.pipelines`."""

from .output import SuperResolutionOutput
from .super_resolution import SuperResolutionPipeline

__all__ = ["SuperResolutionOutput", "SuperResolutionPipeline"]
