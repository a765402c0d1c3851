"""From options to an objective: networks are made or loaded, and tried on one image."""

import inspect
import json
import logging
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType
from diffusers.models.modeling_utils import ModelMixin

from ..models import VDVAE, LRConditioner, LREncoder
from ..operators import Downsampling
from .config import TrainingConfig
from .objectives import ELBO, ConditionalELBO, Distillation, EnergyScore, Objective

logger = logging.getLogger(__name__)

_NAMES_SHOWN = 5
_Network = TypeVar("_Network", bound=ModelMixin)


def build_objective(config: TrainingConfig) -> Objective:
    """The objective of `config.stage`, with its networks made or loaded.

    Raises:
        ValueError: a configuration or a folder that cannot be read, or does not describe the network it should.
    """
    vdvae = _network(VDVAE, config.pretrained_vdvae, "pretrained_vdvae", config.vdvae_config, "vdvae_config")
    if config.stage == "vdvae":
        return ELBO(vdvae)
    operator = Downsampling(config.scale_factor, config.downsampling_kernel)
    lr_sources = (config.pretrained_lr_encoder, "pretrained_lr_encoder", config.lr_config, "lr_config")
    if config.stage == "lr-encoder":
        return Distillation(vdvae, _network(LREncoder, *lr_sources), operator, config.kl_reduction)
    if config.stage == "energy-score":
        vdvae.remove_encoder()
        vdvae.requires_grad_(config.train_decoder)
        network = _network(_lr_class(config), *lr_sources)
        return EnergyScore(vdvae, network, operator, config.score_samples, config.score_patch_sizes)
    conditioner = _network(LRConditioner, *lr_sources)
    for name in ("scale_factor", "downsampling_kernel"):
        used = conditioner.config.likelihood_location is not None
        if used and getattr(conditioner.config, name) != getattr(config, name):
            raise ValueError(
                f"`{name}` is {getattr(config, name)!r}, the conditioner's configuration has "
                f"{getattr(conditioner.config, name)!r}; its likelihood is located with the latter"
            )
    vdvae.requires_grad_(config.train_decoder)
    return ConditionalELBO(vdvae, conditioner, operator)


def check_objective(objective: Objective, config: TrainingConfig, device: torch.device) -> None:
    """Runs one image through the objective: what does not fit shows before photographs are decoded.

    Raises:
        ValueError: the networks do not fit each other, `resolution` or `scale_factor`.
    """
    image = torch.zeros(1, 3, config.resolution, config.resolution, dtype=torch.uint8, device=device)
    try:
        with torch.no_grad():
            objective(image, [0])
    except torch.OutOfMemoryError:
        raise
    except (ValueError, RuntimeError, KeyError, IndexError) as error:
        raise ValueError(
            f"the networks do not fit each other, or `resolution` {config.resolution} and "
            f"`scale_factor` {config.scale_factor}: {one_line(error)}"
        ) from error


def check_gradients(objective: Objective, config: TrainingConfig, device: torch.device, num_processes: int) -> None:
    """Looks for trainable parameters that the loss does not depend on; leaves no gradients.

    Raises:
        ValueError: there are some and several processes, which would wait for their gradients; or all are.
    """
    named = [(name, parameter) for name, parameter in objective.named_parameters() if parameter.requires_grad]
    loss, _ = objective(torch.zeros(1, 3, config.resolution, config.resolution, dtype=torch.uint8, device=device), [0])
    if not loss.requires_grad:
        raise ValueError("there is nothing to train: the loss depends on no trainable parameter")
    gradients = torch.autograd.grad(loss, [parameter for _, parameter in named], allow_unused=True)
    idle = [name for (name, _), gradient in zip(named, gradients, strict=True) if gradient is None]
    if not idle:
        return
    more = ", ..." if len(idle) > _NAMES_SHOWN else ""
    message = f"{len(idle)} parameters get no gradient, nothing reads them: {', '.join(idle[:_NAMES_SHOWN])}{more}"
    if num_processes > 1:
        raise ValueError(f"{message}; with {num_processes} processes all must have one")
    logger.warning("%s", message)


def check_tracker(name: str | None) -> None:
    """Accelerate leaves out a tracker that is not installed, without a word.

    Raises:
        ValueError: no tracker is called `name`, or it is not installed.
    """
    if name is None:
        return
    if name not in LoggerType.list():
        raise ValueError(f"`report_to` must be one of {', '.join(LoggerType.list())}; got {name!r}")
    available = [str(tracker) for tracker in get_available_trackers()]
    if name not in available and not (name == "all" and available):
        raise ValueError(f"`report_to`: {'no tracker is' if name == 'all' else f'{name} is not'} installed")


def one_line(error: BaseException) -> str:
    """The message of an error, without its line breaks."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def _lr_class(config: TrainingConfig) -> type[LREncoder] | type[LRConditioner]:
    """The class that the LR network's configuration names: either system's sampler has an energy score."""
    path = (
        Path(config.pretrained_lr_encoder or "") / "config.json" if config.pretrained_lr_encoder else config.lr_config
    )
    try:
        name = json.loads(Path(path or "").read_text())["_class_name"]
    except (OSError, ValueError, KeyError, TypeError):
        return LRConditioner  # where it cannot be read, loading says why
    return LREncoder if name == "LREncoder" else LRConditioner


def _network(
    kind: type[_Network], folder: str | None, folder_argument: str, config: str | None, config_argument: str
) -> _Network:
    """A network of the class `kind`: loaded from `folder` where given, else made from the JSON file `config`."""
    argument, source = (folder_argument, folder) if folder is not None else (config_argument, config)
    try:
        if folder is not None:
            options = kind.load_config(folder)  # type: ignore[attr-defined]
            _check_options(kind, options)
            return kind.from_pretrained(folder)
        options = json.loads(Path(config or "").read_text())
        _check_options(kind, options)
        return kind.from_config(options)  # type: ignore[attr-defined]
    except Exception as error:  # the loaders raise nearly every type on damaged files
        raise ValueError(f"`{argument}`: no {kind.__name__} from {source!r}: {one_line(error)}") from error


def _check_options(kind: type, options: Any) -> None:
    """diffusers ignores what it does not know: a typo would leave a default in place."""
    if not isinstance(options, dict):
        raise ValueError(f"expected a mapping, got {type(options).__name__}")
    if options.get("_class_name", kind.__name__) != kind.__name__:
        raise ValueError(f"this is the configuration of a {options['_class_name']}")
    unknown = [key for key in options if key not in inspect.signature(kind).parameters and not key.startswith("_")]
    if unknown:
        raise ValueError(f"options that do not exist: {', '.join(unknown)}")
