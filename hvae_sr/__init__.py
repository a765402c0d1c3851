"""Diverse super-resolution with a hierarchical VAE prior: one network evaluation for each sample of p(x|y).

Public names are imported when they are first used, so that a command that needs none of them answers at once.
"""

import importlib
import importlib.util
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

_PUBLIC = {
    **dict.fromkeys(("VDVAE", "LREncoder", "LRConditioner"), "models"),
    **dict.fromkeys(("EDSR", "RRDBNet", "SRVGGNetCompact", "SPAN", "HCFlow", "SR3UNet"), "baselines"),
    **dict.fromkeys(("GuidedDiffusionUNet", "AncestralScheduler"), "baselines"),
    "Downsampling": "operators",
    **dict.fromkeys(("SuperResolutionPipeline", "SuperResolutionOutput", "RegressionPipeline"), "pipelines"),
    **dict.fromkeys(("HCFlowPipeline", "SR3Pipeline", "DPSPipeline"), "pipelines"),
}
_HERE = Path(__file__).resolve().parent


class _Checkout(MetaPathFinder):
    """Finds the packages that a checkout keeps beside this folder, by their names and no others.

    An installation has them inside it.
    """

    names = ("pipelines", "hub_configs", "demo")

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        package, _, name = fullname.rpartition(".")
        folder = _HERE.parent / name
        if package != __name__ or name not in self.names or not (folder / "__init__.py").is_file():
            return None
        return importlib.util.spec_from_file_location(
            fullname, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )


if not (_HERE / "pipelines").is_dir():
    sys.meta_path.insert(0, _Checkout())

if TYPE_CHECKING:
    from .models import VDVAE, LRConditioner, LREncoder
    from .operators import Downsampling
    from .pipelines import (  # noqa: F401
        DPSPipeline,
        HCFlowPipeline,
        RegressionPipeline,
        SR3Pipeline,
        SuperResolutionOutput,
        SuperResolutionPipeline,
    )


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_PUBLIC[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})


if "diffusers" in sys.modules:  # or else as soon as a pipeline is asked for
    importlib.import_module(".pipelines", __name__)

__all__ = [
    "VDVAE",
    "Downsampling",
    "LRConditioner",
    "LREncoder",
    "SuperResolutionOutput",
    "SuperResolutionPipeline",
    "__version__",
]
