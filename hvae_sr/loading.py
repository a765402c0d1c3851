"""Strict loading: safetensors alone, and every key in its place."""

import importlib
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from safetensors import SafetensorError

logger = logging.getLogger(__name__)

PICKLED = frozenset(("bin", "ckpt", "h5", "pickle", "pkl", "pt", "pth", "th"))
"""Suffixes of weights that run code when they are read, or may, and of the indices of their shards."""


DAMAGED = (
    OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, SafetensorError, UnpicklingError
)  # fmt: skip
"""What diffusers raises on folders that are damaged, incomplete or hold something else."""


class StrictLoading:
    """`from_pretrained` that reads safetensors only, and refuses weights with missing or unknown keys.

    diffusers would fall back on pickled weights, which run what is written in them, and only warn of keys.
    """

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str] | None, **kwargs: Any) -> Any:
        """`ModelMixin.from_pretrained`.

        Raises:
            ValueError: pickled weights; or weights that lack parameters of the model, or hold others; the message names
                them.
            OSError: no weights, or none that can be read.
        """
        if kwargs.get("use_safetensors") is False:
            raise ValueError("`use_safetensors=False`: pickled weights are not read, they could run any code")
        _refuse_pickles(pretrained_model_name_or_path, kwargs.get("subfolder"))
        kwargs["use_safetensors"] = True
        wants_info = kwargs.pop("output_loading_info", False)
        with without_warning("Some weights of the model checkpoint"):  # an error here, or left out on purpose
            loaded = super().from_pretrained(  # type: ignore[misc]
                pretrained_model_name_or_path, output_loading_info=True, **kwargs
            )
        if not isinstance(loaded, tuple):
            return loaded
        model, info = loaded
        info["unexpected_keys"] = [key for key in info["unexpected_keys"] if not model.leaves_out(key)]
        for kind, keys in (("lack", info["missing_keys"]), ("hold unknown", info["unexpected_keys"])):
            if keys:
                names = ", ".join(sorted(keys)[:4]) + (f" and {len(keys) - 4} more" if len(keys) > 4 else "")
                where = f"the weights in {pretrained_model_name_or_path}"
                raise ValueError(f"{where} {kind} keys of {cls.__name__}: {names}")
        return (model, info) if wants_info else model

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        save_function: Callable[..., Any] | None = None,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str = "10GB",
        **kwargs: Any,
    ) -> None:
        """`ModelMixin.save_pretrained`, which always writes safetensors: pickled weights would not be read again.

        Args:
            safe_serialization: False is taken for True, with a warning.
            save_directory, is_main_process, save_function, variant, max_shard_size, **kwargs: as in diffusers.
        """
        # The arguments are listed because `DiffusionPipeline.save_pretrained` looks for their names.
        if not safe_serialization:
            logger.warning("`safe_serialization=False`: safetensors are written all the same")
        super().save_pretrained(  # type: ignore[misc]
            save_directory,
            is_main_process=is_main_process,
            save_function=save_function,
            variant=variant,
            max_shard_size=max_shard_size,
            **kwargs,
        )

    def leaves_out(self, key: str) -> bool:
        """Whether a parameter of this name belongs to a part that the configuration leaves out on purpose."""
        return False


def from_diffusers(place: str | object, name: str) -> Any:
    """A name of diffusers that its public interface does not promise, such as the tables of its loader.

    Args:
        place: the name of a module, or an object of diffusers' making.
        name: of its attribute.

    Raises:
        ImportError: an installed diffusers without it; the message says which versions have it.
    """
    try:
        return getattr(importlib.import_module(place) if isinstance(place, str) else place, name)
    except (ImportError, AttributeError) as error:
        version = importlib.import_module("diffusers").__version__
        what = place if isinstance(place, str) else type(place).__name__
        raise ImportError(
            f"diffusers {version} has no `{what}.{name}`, which hvae-sr needs: install 'diffusers>=0.40,<0.43'"
        ) from error


@contextmanager
def without_warning(beginning: str) -> Iterator[None]:
    """Keeps diffusers from logging messages that begin so."""
    names = ("diffusers.models.modeling_utils", "diffusers.pipelines.pipeline_loading_utils")
    loggers = [logging.getLogger(name) for name in names]

    def other(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(beginning)

    for logger in loggers:
        logger.addFilter(other)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(other)


def _is_pickled(name: str) -> bool:
    """Whether a file is called like pickled weights or the index of their shards (`x.bin`, `x.bin.index.fp16.json`)."""
    parts = name.lower().split(".")
    return parts[-1] in PICKLED or (parts[-1] == "json" and "index" in parts and not PICKLED.isdisjoint(parts))


def _refuse_pickles(source: str | os.PathLike[str] | None, subfolder: str | None) -> None:
    """Raises a ValueError for a folder on disk that holds pickled weights, also beside others."""
    folder = Path(source or "") / (subfolder or "")
    if source is None or not folder.is_dir():
        return
    pickled = sorted(path.name for path in folder.iterdir() if _is_pickled(path.name) and not path.is_dir())
    if pickled:
        raise ValueError(
            f"{folder} holds pickled weights ({', '.join(pickled[:4])}), which could run any code: convert them to "
            "safetensors, and remove them"
        )
