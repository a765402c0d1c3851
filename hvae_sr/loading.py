"""Strict loading: safetensors alone, and every key in its place."""

import importlib
import logging
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import isfinite
from numbers import Integral, Real
from pathlib import Path
from pickle import UnpicklingError
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import torch
from safetensors import SafetensorError, safe_open

from .files import WEIGHTS, replacing_in

logger = logging.getLogger(__name__)

PICKLED = frozenset(("bin", "ckpt", "h5", "pickle", "pkl", "pt", "pth", "th"))
"""Suffixes of weights that run code when they are read, or may, and of the indices of their shards."""


DAMAGED = (
    OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError, SafetensorError,
    UnpicklingError,
)  # fmt: skip
"""What diffusers raises on folders that are damaged, incomplete or hold something else."""


_loading = threading.RLock()


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """For one thread after the other: while diffusers makes a model, all of the process are made as it is.

    That is without weights, and with its dtype, which diffusers leaves changed where the model cannot be made.
    """
    with _loading:
        dtype = torch.get_default_dtype()
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)


class StrictLoading:
    """`from_pretrained` that reads safetensors only, and refuses weights with missing or unknown keys.

    diffusers would fall back on pickled weights, which run what is written in them, and only warn of keys.
    """

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str] | None, **kwargs: Any) -> Any:
        """`ModelMixin.from_pretrained`.

        Raises:
            ValueError: pickled weights; weights that lack parameters of the model, hold others, or have values that are
                no numbers (the message names them); a configuration or an argument that is none.
            OSError: no weights, or none that can be read.
        """
        given_dtype(kwargs)
        if kwargs.get("use_safetensors") is False:
            raise ValueError("`use_safetensors=False`: pickled weights are not read, they could run any code")
        _refuse_pickles(pretrained_model_name_or_path, kwargs.get("subfolder"))
        kwargs["use_safetensors"] = True
        wants_info = kwargs.pop("output_loading_info", False)
        try:
            # Unknown keys are an error here, or left out on purpose.
            with without_warning("Some weights of the model checkpoint"), _one_at_a_time():
                loaded = super().from_pretrained(  # type: ignore[misc]
                    pretrained_model_name_or_path, output_loading_info=True, **kwargs
                )
        except DAMAGED as error:
            if isinstance(error, (OSError, ValueError)):
                raise
            reason = " ".join(str(error).split())[:1000] or type(error).__name__
            raise ValueError(f"cannot load {cls.__name__} from {pretrained_model_name_or_path!r}: {reason}") from error
        if not isinstance(loaded, tuple):
            return loaded
        model, info = loaded
        info["unexpected_keys"] = [key for key in info["unexpected_keys"] if not model.leaves_out(key)]
        for kind, keys in (("lack", info["missing_keys"]), ("hold unknown", info["unexpected_keys"])):
            if keys:
                where = f"the weights in {pretrained_model_name_or_path}"
                raise ValueError(f"{where} {kind} keys of {cls.__name__}: {_some(keys)}")
        mismatched = [key for key, *_ in info["mismatched_keys"]]  # on request; diffusers leaves what memory held
        own, new = model.state_dict(), cls.from_config(model.config).state_dict() if mismatched else {}  # type: ignore
        for key in mismatched:
            own[key].copy_(new[key])
        _check_values(model, pretrained_model_name_or_path, kwargs.get("subfolder"))
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
        """`ModelMixin.save_pretrained`, whole or not at all, and always safetensors: pickled ones are not read again.

        Weights of the same variant that were in the folder do not stay, nor does the index of their shards.

        Args:
            safe_serialization: False is taken for True, with a warning.
            save_directory, is_main_process, save_function, variant, max_shard_size, **kwargs: as in diffusers.

        Raises:
            ValueError: `save_directory` is a file, `variant` is no part of a file's name, or the weights are on a disk
                or on `meta`.
            OSError: it cannot be written to; what was there is left as it was.
        """
        _check_in_memory(self)
        # The arguments are listed because `DiffusionPipeline.save_pretrained` looks for their names.
        if not safe_serialization:
            logger.warning("`safe_serialization=False`: safetensors are written all the same")
        with saving(save_directory, "config.json", variant, kwargs) as temporary:
            try:
                super().save_pretrained(  # type: ignore[misc]
                    temporary,
                    is_main_process=is_main_process,
                    save_function=save_function,
                    variant=variant,
                    max_shard_size=max_shard_size,
                    **kwargs,
                )
            except SafetensorError as error:  # of a full disk, among others
                raise OSError(f"{save_directory}: weights cannot be written: {error}") from error

    def register_to_config(self, **kwargs: Any) -> None:
        """`ConfigMixin.register_to_config`, which is called before a model is made.

        Raises:
            ValueError: a value of another type than the model's arguments have, or a number that is not finite.
        """
        own = type(self).__init__
        hints = get_type_hints(own) if own.__module__.startswith("hvae_sr.") else {}
        for name in kwargs.keys() & hints.keys():
            if not _fits(kwargs[name], hints[name]):
                raise ValueError(f"`{name}` must be {_in_words(hints[name])}, got {kwargs[name]!r}")
        super().register_to_config(**kwargs)  # type: ignore[misc]

    def leaves_out(self, key: str) -> bool:
        """Whether a parameter of this name belongs to a part that the configuration leaves out on purpose."""
        return False


@contextmanager
def saving(
    save_directory: str | os.PathLike[str], index: str, variant: str | None, kwargs: dict[str, Any]
) -> Iterator[Path]:
    """A folder for diffusers to save to, see `replacing_in`; `kwargs` of the call get the name of a Hub repository."""
    folder = Path(save_directory)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"`save_directory` must be a folder, {folder} is none")
    if variant is not None and not (isinstance(variant, str) and re.fullmatch(r"[\w-]+", variant)):
        raise ValueError(f"`variant` must be None or a word of letters, digits, - and _, got {variant!r}")
    if kwargs.get("push_to_hub"):
        kwargs.setdefault("repo_id", folder.absolute().name)  # which diffusers would take from the folder that it sees
    middle = rf"\.{re.escape(variant)}" if variant else ""
    names = rf"(diffusion_pytorch_)?model({middle}(-\d+-of-\d+)?\.safetensors|\.safetensors\.index{middle}\.json)"
    with replacing_in(folder, index, re.compile(names)) as temporary:
        yield temporary


def given_dtype(kwargs: dict[str, Any]) -> Any:
    """`dtype`, or `torch_dtype`, of arguments, which keep it as the `dtype` that diffusers knows, unless it is None.

    Returns:
        None, where the arguments leave it open, a dtype, or a dictionary of dtypes for the components of a pipeline.

    Raises:
        ValueError: anything but a floating-point dtype; diffusers would take it for float32.
    """
    given = [kwargs.pop(name, None) for name in ("dtype", "torch_dtype")]
    value = next((one for one in given if one not in (None, "auto")), None)
    found = {name: _dtype(one) for name, one in value.items()} if isinstance(value, dict) else _dtype(value)
    if found is not None:
        kwargs["dtype"] = found
    return found


def _dtype(value: Any) -> torch.dtype | None:
    found = getattr(torch, value.removeprefix("torch."), None) if isinstance(value, str) else value
    known = isinstance(found, torch.dtype) and found.is_floating_point and found.itemsize > 1
    if value is not None and not known:  # nothing computes in float8: `enable_layerwise_casting` keeps weights in it
        raise ValueError(f"`dtype` must be a floating-point dtype such as torch.float16, or its name; got {value!r}")
    return found


_WORDS = {int: "a whole number", float: "a finite number", str: "text", bool: "True or False", NoneType: "None"}


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type as arguments are annotated; what is not simple passes."""
    parts = get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if get_origin(hint) is Sequence:
        return isinstance(value, Sequence) and not isinstance(value, str) and all(_fits(v, parts[0]) for v in value)
    if hint is int:
        return isinstance(value, Integral) and not isinstance(value, bool)
    if hint is float:
        return isinstance(value, Real) and not isinstance(value, bool) and isfinite(value)
    return isinstance(value, hint) if isinstance(hint, type) else True


def _in_words(hint: Any) -> str:
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(_in_words(part) for part in get_args(hint))
    if get_origin(hint) is Sequence:
        return f"a list, each of it {_in_words(get_args(hint)[0])}"
    return _WORDS.get(hint, getattr(hint, "__name__", str(hint)))


def _some(names: Sequence[str]) -> str:
    return ", ".join(sorted(names)[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


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
    """Whether a name is that of pickled weights or of the index of their shards (`x.bin`, `x.bin.index.fp16.json`)."""
    parts = name.lower().split(".")
    return parts[-1] in PICKLED or (parts[-1] == "json" and "index" in parts and not PICKLED.isdisjoint(parts))


def _check_in_memory(model: Any) -> None:
    """Raises a ValueError for weights that group offloading has put on a disk, or that are on the device `meta`.

    In the place of what is on a disk stands memory that holds anything, and diffusers would save it.
    """
    for module in model.modules():
        for hook in getattr(getattr(module, "_diffusers_hook", None), "hooks", {}).values():
            if getattr(getattr(hook, "group", None), "offload_to_disk_path", None):
                raise ValueError(
                    f"the weights of this {type(model).__name__} are on a disk (`offload_to_disk_path`): save before "
                    "they are offloaded"
                )
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError(f"the weights of this {type(model).__name__} are on the device 'meta': load them first")


def _check_values(model: torch.nn.Module, source: str | os.PathLike[str] | None, subfolder: str | None) -> None:
    """Raises a ValueError for weights that are NaN or infinite, or were stored, in a folder on disk, as integers."""
    own = {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    bad = [name for name, tensor in own.items() if tensor.device.type != "meta" and not tensor.isfinite().all()]
    if bad:
        raise ValueError(f"the weights in {source} have NaN or infinite values: {_some(bad)}")
    for path in (Path(source or "") / (subfolder or "")).glob("*.safetensors") if source is not None else ():
        if not WEIGHTS.fullmatch(path.name):  # a file of somebody's, which nothing was loaded from
            continue
        with safe_open(path, "pt") as file:
            stored = {key: file.get_slice(key).get_dtype() for key in own.keys() & set(file.keys())}
        bad = [key for key, kind in stored.items() if not kind.startswith(("F", "BF"))]  # such as BOOL, I8
        if bad:
            raise ValueError(f"{path} holds integers where {type(model).__name__} has weights: {_some(bad)}")


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
