"""Diverse super-resolution with a hierarchical VAE prior: one network evaluation for each sample of p(x|y)."""

import sys
from pathlib import Path

import diffusers
from diffusers.pipelines import pipeline_loading_utils as _loading

__version__ = "0.1.0"

_HERE = Path(__file__).resolve().parent
if not (_HERE / "pipelines").is_dir():
    # A checkout keeps pipelines/ and hub_configs/ beside this folder; an installation has them inside it.
    __path__.append(str(_HERE.parent))

# diffusers writes and finds ["hvae_sr", "VDVAE"] in model_index.json only for libraries registered with its loader.
_CLASSES = {name: ["save_pretrained", "from_pretrained"] for name in ("VDVAE", "LREncoder", "LRConditioner")}
_loading.LOADABLE_CLASSES["hvae_sr"] = _CLASSES
_loading.ALL_IMPORTABLE_CLASSES.update(_CLASSES)

from .models import VDVAE, LRConditioner, LREncoder  # noqa: E402
from .operators import Downsampling  # noqa: E402
from .pipelines import SuperResolutionOutput, SuperResolutionPipeline  # noqa: E402

# `DiffusionPipeline.from_pretrained(folder)` looks the class of model_index.json up here, and those of its components
# in `diffusers.pipelines`, before it would run a file of that name in a repository.
diffusers.SuperResolutionPipeline = SuperResolutionPipeline  # type: ignore[attr-defined]
diffusers.pipelines.hvae_sr = sys.modules[__name__]

__all__ = [
    "VDVAE",
    "Downsampling",
    "LRConditioner",
    "LREncoder",
    "SuperResolutionOutput",
    "SuperResolutionPipeline",
    "__version__",
]
