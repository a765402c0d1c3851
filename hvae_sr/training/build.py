"""From options to an objective: networks are made or loaded, and tried on one image."""

import inspect
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType
from diffusers.models.modeling_utils import ModelMixin

from ..data import DEFAULT_SCALES, Augmentation, ImageCrops, ImageFolder, ImageStream, ImageTable
from ..data.datasets import same_files
from ..models import VDVAE, LRConditioner, LREncoder
from ..operators import Downsampling
from .config import OPTIONS_FILE, TrainingConfig
from .growth import grow, transfer
from .objectives import ELBO, ConditionalELBO, Distillation, EnergyScore, Joint, Objective

logger = logging.getLogger(__name__)

_NAMES_SHOWN = 5
_CONDITIONED = ("vdvae-sr", "energy-score")
_Network = TypeVar("_Network", bound=ModelMixin)


def build_objective(config: TrainingConfig, load_weights: bool = True) -> Objective:
    """The objective of `config.stage`, with its networks made or loaded.

    Args:
        config: the options.
        load_weights: False makes pretrained networks from their configurations alone, for `plan`.

    Raises:
        ValueError: a configuration or a folder that cannot be read, or does not describe the network it should.
    """
    source = (config.pretrained_vdvae, "pretrained_vdvae", config.vdvae_config, "vdvae_config")
    vdvae = _network(VDVAE, *source, load_weights)
    if config.pretrained_vdvae is not None and config.vdvae_config is not None:
        vdvae = _other_vdvae(vdvae, config, load_weights)
    if config.stage == "vdvae":
        return ELBO(vdvae)
    operator = Downsampling(config.scale_factor, config.downsampling_kernel)
    lr_sources = (config.pretrained_lr_encoder, "pretrained_lr_encoder", config.lr_config, "lr_config")
    if config.stage in ("lr-encoder", "joint"):
        lr_encoder = _lr_network(LREncoder, lr_sources, config, load_weights)
        if config.stage == "joint":
            return Joint(vdvae, lr_encoder, operator)
        return Distillation(vdvae, lr_encoder, operator, config.kl_reduction)
    if config.stage == "energy-score":
        vdvae.remove_encoder()
        vdvae.requires_grad_(config.train_decoder)
        network = _lr_network(_lr_class(config), lr_sources, config, load_weights)
        return EnergyScore(
            vdvae, network, operator, config.score_samples, config.score_patch_sizes, config.score_point_weight
        )
    conditioner = _lr_network(LRConditioner, lr_sources, config, load_weights)
    for name in ("scale_factor", "downsampling_kernel"):
        used = conditioner.config.likelihood_location is not None
        if used and getattr(conditioner.config, name) != getattr(config, name):
            raise ValueError(
                f"`{name}` is {getattr(config, name)!r}, the conditioner's configuration has "
                f"{getattr(conditioner.config, name)!r}; its likelihood is located with the latter"
            )
    vdvae.requires_grad_(config.train_decoder)
    if vdvae.encoder is not None and not config.train_encoder:
        vdvae.encoder.requires_grad_(False)
    return ConditionalELBO(vdvae, conditioner, operator)


def build_training_set(config: TrainingConfig, rank: int, num_processes: int) -> ImageCrops | ImageStream:
    """The images to train on, as `config` names them.

    Raises:
        ValueError: there are none that can be used, in the words of the command line.
    """
    lr_pairs = bool(config.train_lr_dir)
    if lr_pairs and tuple(config.scales) != DEFAULT_SCALES:
        logger.warning("`scales` %s are not used: pairs of train_lr_dir keep their size", config.scales)
    augmentation = Augmentation(
        config.resolution, config.horizontal_flip, False, config.rotate, (1.0,) if lr_pairs else tuple(config.scales)
    )
    with _options_named():
        if config.streaming:
            return ImageStream(
                config.dataset_name or "",
                augmentation,
                dataset_config_name=config.dataset_config_name,
                split=config.dataset_split,
                image_column=config.image_column,
                seed=config.seed,
                batch_size=config.train_batch_size,
                rank=rank,
                world_size=num_processes,
            )
        if config.dataset_name is not None:
            return _table(config, config.dataset_split, augmentation, config.crops_per_image)
        return ImageFolder(
            config.train_data_dir,
            config.resolution,
            seed=config.seed,
            horizontal_flip=config.horizontal_flip,
            rotate=config.rotate,
            scales=config.scales,
            crops_per_image=config.crops_per_image,
            cache_bytes=int(config.cache_gib * 2**30),
            train_lr_dir=config.train_lr_dir,
            scale_factor=config.scale_factor,
            leave_out=_outputs(config, config.train_data_dir),
        )


def _outputs(config: TrainingConfig, folders: Sequence[str]) -> list[Path]:
    """What this run and others have left below the folders of photographs: their pictures are none of the images."""
    roots = {Path(folder).resolve() for folder in folders}
    others = {found.parent for folder in roots for found in folder.rglob(OPTIONS_FILE)}
    return [config.output_path, *(others - roots)]


def crops_per_update(config: TrainingConfig, num_processes: int, crops: int | None) -> int:
    """Crops that all processes together use for an update, of `crops` in an epoch (None: a stream's are not counted).

    Raises:
        ValueError: an epoch has fewer.
    """
    update = config.train_batch_size * config.gradient_accumulation_steps * num_processes
    if crops is not None and crops < update:
        raise ValueError(
            f"`train_batch_size` {config.train_batch_size} x `gradient_accumulation_steps` "
            f"{config.gradient_accumulation_steps} x {num_processes} processes = {update} must be at most the {crops} "
            "crops of an epoch (see `crops_per_image`)"
        )
    return update


def build_validation_set(config: TrainingConfig) -> ImageCrops | None:
    """The images held out, or None: crops at full scale, neither mirrored nor turned.

    Raises:
        ValueError: as `build_training_set`.
    """
    plain = Augmentation(config.resolution, horizontal_flip=False, scales=(1.0,))
    with _options_named("validation"):
        if config.validation_split is not None:
            if same_files(config.dataset_name or "", config.dataset_split, config.validation_split):
                raise ValueError(
                    f"`validation_split` {config.validation_split!r} names no other files of dataset_name "
                    f"{config.dataset_name!r} than those to train on"
                )
            return _table(config, config.validation_split, plain, 1)
        if config.validation_data_dir:
            folders, side = config.validation_data_dir, config.resolution
            if config.train_lr_dir and not config.validation_lr_dir:
                logger.warning("LR images of validation_data_dir are made by %s", config.downsampling_kernel)
            return ImageFolder(
                folders,
                side,
                seed=config.seed,
                horizontal_flip=False,
                scales=(1.0,),
                cache_bytes=int(config.cache_gib * 2**30),
                train_lr_dir=config.validation_lr_dir,
                scale_factor=config.scale_factor,
                leave_out=_outputs(config, folders),
            )
    return None


def _table(config: TrainingConfig, split: str, augmentation: Augmentation, crops_per_image: int) -> ImageTable:
    return ImageTable(
        config.dataset_name or "",
        augmentation,
        dataset_config_name=config.dataset_config_name,
        split=split,
        image_column=config.image_column,
        seed=config.seed,
        crops_per_image=crops_per_image,
        cache_bytes=int(config.cache_gib * 2**30),
    )


@contextmanager
def _options_named(part: str = "train") -> Iterator[None]:
    """Puts errors of the data into the words of the command line; `part` is "train" or "validation"."""
    try:
        yield
    except ValueError as error:
        message = str(error).replace("crop_size", "`resolution`")
        for name in ("data_dir", "lr_dir"):
            message = message.replace(f"train_{name}", f"`{part}_{name}`")
        for name in ("dataset_name", "image_column"):
            message = message.replace(name, f"`{name}`")
        raise ValueError(message) from error


def check_objective(objective: Objective, config: TrainingConfig, device: torch.device) -> None:
    """Runs one image through the objective: what does not fit shows before photographs are decoded.

    Raises:
        ValueError: the networks do not fit each other, `resolution` or `scale_factor`.
    """
    image = torch.zeros(1, 3, config.resolution, config.resolution, dtype=torch.uint8, device=device)
    try:
        if objective.lr_network is not None and objective.operator is not None:
            objective.lr_network.check_fit(objective.vdvae.config, objective.operator)
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


def _lr_network(
    kind: type[_Network],
    sources: tuple[str | None, str, str | None, str],
    config: TrainingConfig,
    load_weights: bool,
) -> _Network:
    """An LR network; started from another, or its bottom-up part from a VDVAE's encoder, where that is asked for."""
    network: Any = _network(kind, *sources, load_weights)
    if config.pretrained_lr_encoder is not None and config.lr_config is not None:
        other: Any = _network(kind, None, "", config.lr_config, "lr_config", load_weights)
        try:
            (grow if network.config.decoder_blocks == other.config.decoder_blocks else transfer)(network, other)
        except ValueError as error:
            raise ValueError(f"`lr_config`: {error}") from error
        network = other
    if config.lr_from_vdvae is None:
        return network
    source = _network(VDVAE, config.lr_from_vdvae, "lr_from_vdvae", None, "", load_weights)
    if source.encoder is None:
        raise ValueError(f"`lr_from_vdvae`: {config.lr_from_vdvae} has no encoder")
    if network.config.get("conditioning") == "trivial":
        raise ValueError(f"`lr_from_vdvae` must be None for conditioning 'trivial', got {config.lr_from_vdvae!r}")
    try:
        network.network.bottom_up.load_state_dict(source.encoder.state_dict())
    except RuntimeError as error:
        raise ValueError(
            f"`lr_from_vdvae`: the encoder of {config.lr_from_vdvae} does not fit: {one_line(error)}"
        ) from error
    return network


def _other_vdvae(trained: VDVAE, config: TrainingConfig, load_weights: bool) -> VDVAE:
    """The VDVAE of `vdvae_config` with what fits of a trained one: all of its weights, where they are not trained."""
    vdvae = _network(VDVAE, None, "", config.vdvae_config, "vdvae_config", load_weights)
    try:
        random = transfer(trained, vdvae)
    except ValueError as error:
        raise ValueError(f"`vdvae_config`: {error}") from error
    prior = config.stage == "lr-encoder"
    decoder = prior or (config.stage in _CONDITIONED and not config.train_decoder)
    encoder = prior or (config.stage == "vdvae-sr" and not (config.train_decoder and config.train_encoder))
    if any(encoder if name.startswith("encoder.") else decoder for name in random):  # these would be frozen
        raise ValueError(
            f"`vdvae_config` = {config.vdvae_config!r} has weights that the pretrained VDVAE lacks, and that would "
            f"stay random: they are not trained in this run of stage {config.stage}"
        )
    return vdvae


def _network(
    kind: type[_Network],
    folder: str | None,
    folder_argument: str,
    config: str | None,
    config_argument: str,
    load_weights: bool,
) -> _Network:
    """A network of the class `kind`: loaded from `folder` where given, else made from the JSON file `config`."""
    argument, source = (folder_argument, folder) if folder is not None else (config_argument, config)
    try:
        if folder is not None:
            options = kind.load_config(folder)  # type: ignore[attr-defined]
            _check_options(kind, options)
            if load_weights:
                return kind.from_pretrained(folder)
            return kind.from_config(options)  # type: ignore[attr-defined]
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
