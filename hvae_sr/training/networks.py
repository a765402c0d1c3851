"""From options to an objective: networks are made or loaded, and tried on one image."""

import inspect
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from diffusers.models.modeling_utils import ModelMixin

from ..baselines import SPAN, AncestralScheduler, RRDBNet
from ..checkpoints.compared import ARCHITECTURES, PRESETS, Recipe
from ..checkpoints.growth import grow, transfer
from ..checkpoints.pruning import take_blocks
from ..data.crops import one_line
from ..loading import DAMAGED
from ..models import VDVAE, LRConditioner, LREncoder
from ..operators import Downsampling
from .baselines import BaselineObjective, DiffusionPrior, Flow, Refinement, Regression
from .config import BASELINE_STAGES, TrainingConfig
from .energy_score import EnergyScore
from .objectives import ELBO, ConditionalELBO, ConditionalObjective, Distillation, Joint, Objective
from .scores import BandDistance, Distance, PerceptualDistance

logger = logging.getLogger(__name__)

STAGES: dict[str, type[Objective]] = {
    "vdvae": ELBO, "lr-encoder": Distillation, "joint": Joint, "vdvae-sr": ConditionalELBO, "energy-score": EnergyScore,
    "regression": Regression, "hcflow": Flow, "sr3": Refinement, "ddpm": DiffusionPrior,
}  # fmt: skip
"""A stage is an objective and its trainable parameters."""
_NAMES_SHOWN = 5
_GROWN = ("decoder_blocks", "restorer_blocks", "restorer_upsampling", "regression_width")
"""Options of an LR network that its larger one shares; of another one it starts from what fits."""
_CONDITIONED = ("vdvae-sr", "energy-score")
_Network = TypeVar("_Network", bound=ModelMixin)
_FROZEN: dict[str, tuple[type[ModelMixin], str]] = {
    "restorer": (RRDBNet, "`restorer_blocks`"),
    "regression": (SPAN, "likelihood_location 'regression' or 'gated'"),
}
"""Parts of an LRConditioner that no stage trains: what their weights are of, and which conditioners have them."""
UNREADABLE = (*DAMAGED, RuntimeError, EOFError)
"""What damaged folders and configurations with wrong values raise."""


def build_objective(config: TrainingConfig, load_weights: bool = True) -> Objective:
    """The objective of `config.stage`, with its networks made or loaded.

    Args:
        config: the options.
        load_weights: False makes pretrained networks from their configurations alone, for `plan`.

    Raises:
        ValueError: a configuration or a folder that cannot be read, or does not describe the network it should.
    """
    if config.stage in BASELINE_STAGES:
        return _baseline(config, load_weights)
    vdvae = _started(VDVAE, "pretrained_vdvae", "vdvae_config", config, load_weights)
    if config.stage == "vdvae":
        return ELBO(vdvae)
    operator = Downsampling(config.scale_factor, config.downsampling_kernel)
    if config.stage in ("lr-encoder", "joint"):
        lr_encoder = _lr_network(LREncoder, config, load_weights)
        if config.stage == "joint":
            return Joint(vdvae, lr_encoder, operator)
        return Distillation(vdvae, lr_encoder, operator, config.kl_reduction)
    vdvae.requires_grad_(config.train_decoder)
    if config.stage == "energy-score":
        vdvae.remove_encoder()
        network = _lr_network(_lr_class(config), config, load_weights)
        score = (config.score_samples, config.score_patch_sizes, config.score_point_weight, _distances(config))
        levels = (config.score_level_dropout, config.score_level_pools or None, config.score_low_temperatures)
        return EnergyScore(
            vdvae, network, operator, *score, *levels, distance_fade=config.score_distance_fade, exact=config.exact
        )
    if vdvae.encoder is not None and not config.train_encoder:
        vdvae.encoder.requires_grad_(False)
    conditioner = _lr_network(LRConditioner, config, load_weights)
    for name in ("scale_factor", "downsampling_kernel"):
        used = conditioner.config.likelihood_location is not None
        if used and getattr(conditioner.config, name) != getattr(config, name):
            raise ValueError(
                f"`{name}` is {getattr(config, name)!r}, the conditioner's configuration has "
                f"{getattr(conditioner.config, name)!r}; its likelihood is located with the latter"
            )
    return ConditionalELBO(vdvae, conditioner, operator)


def baseline_recipe(config: TrainingConfig) -> Recipe:
    """The compared system that `config.baseline` names: a preset of `hvae-sr convert`, or a JSON file.

    Raises:
        ValueError: neither, or a file that cannot be read.
    """
    name = config.baseline or ""
    if name in PRESETS:
        return Recipe.of_preset(name)
    with _in_words(f"`baseline`: {name!r} is no readable JSON configuration, and none of {', '.join(PRESETS)}"):
        options = json.loads(Path(name).read_text(encoding="utf-8"))
        if not isinstance(options, dict):
            raise ValueError(f"expected a mapping, got {type(options).__name__}")
        return Recipe.of_config(options)


def _baseline(config: TrainingConfig, load_weights: bool) -> BaselineObjective:
    recipe, folder = baseline_recipe(config), config.pretrained_network
    kind = STAGES[config.stage]
    operator = Downsampling(config.scale_factor, config.downsampling_kernel)
    with _in_words(f"`pretrained_network` {folder!r}" if folder is not None else f"`baseline` {config.baseline!r}"):
        network = recipe.build()
        scheduler = AncestralScheduler(**recipe.scheduler) if recipe.scheduler else None
        if folder is not None and load_weights:
            trained = cast(Any, ARCHITECTURES[recipe.architecture]).from_pretrained(folder)
            if config.pretrained_blocks:
                take_blocks(network, trained, config.pretrained_blocks)
            else:
                _start_baseline(network, trained)
    own: dict[type[Objective], tuple[Any, ...]] = {
        Regression: _regression(config, load_weights) if kind is Regression else (),
        Flow: (config.flow_pixel_weight,), Refinement: (scheduler,), DiffusionPrior: (scheduler, config.vlb_weight)
    }  # fmt: skip
    try:
        return cast(Any, kind)(network, operator, *own.get(kind, ()))
    except ValueError as error:
        raise ValueError(f"`baseline` {config.baseline!r} does not go with stage {config.stage}: {error}") from error


_ENLARGING = ("tail.", "upsampler.", "conv_up", "conv_hr.", "conv_last.")
"""Where the names of what enlarges begin, of an EDSR, a SPAN and an RRDBNet; an SRVGGNetCompact's has another shape."""


def _start_baseline(network: Any, trained: Any) -> None:
    """All weights of a trained network; of one for another scale factor all but those that enlarge (EDSR, section 3.2).

    What computes something else, by an option that may leave no trace in the weights, is a ValueError.
    """
    state, own = trained.state_dict(), network.state_dict()
    options, before = (json.loads(model.to_json_string()) for model in (network, trained))  # lists, as saved
    differing = {name for name, value in options.items() if before.get(name) != value and name[0] != "_"} - {"dropout"}
    if others := sorted(differing - {"scale_factor"}):
        said = ", ".join(f"{name} {before.get(name)!r}, not {options[name]!r}" for name in others)
        raise ValueError(f"the trained network has {said}")
    stem = "conv_first.weight"
    if differing == {"scale_factor"} and (stem not in own or own[stem].shape == state[stem].shape):
        state = {
            name: x
            for name, x in state.items()
            if name in own and own[name].shape == x.shape and not name.startswith(_ENLARGING)
        }
        logger.info("%d of %d weights from the network for another scale factor", len(state), len(own))
        state = own | state
    network.load_state_dict(state)


def _regression(config: TrainingConfig, load_weights: bool) -> tuple[Any, ...]:
    """What `Regression` takes after its network and H."""
    weights = config.regression_pixel_weight, config.regression_perceptual_weight, config.regression_critic_weight
    distance = PerceptualDistance(config.lpips_weights or "") if any(weights[1:]) else None
    teacher, folder = None, config.pretrained_teacher
    if folder is not None:
        kinds = {each.__name__: each for each in Regression.architectures}
        with _in_words(f"`pretrained_teacher` {folder!r} is no folder of {', '.join(kinds)}"):
            kind = kinds[json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))["_class_name"]]
        teacher = _loaded(kind, "pretrained_teacher", config, load_weights)
    return *weights, distance, teacher, config.consistency == "exact"


def _distances(config: TrainingConfig) -> dict[str, tuple[Distance, float]]:
    """Further distances of the energy score, and the weights of their scores."""
    distances: dict[str, tuple[Distance, float]] = {}
    if config.score_band_weight:
        distances["band"] = BandDistance(config.score_band_windows), config.score_band_weight
    if config.score_perceptual_weight:
        distance = PerceptualDistance(config.lpips_weights or "", config.score_perceptual_taps)
        distances["perceptual"] = distance, config.score_perceptual_weight
    return distances


def checkpoint_gradients(objective: Objective) -> None:
    """Has the networks compute their activations again in the backward pass, which takes less memory.

    Raises:
        ValueError: one cannot.
    """
    for network in objective.components().values():
        if not network._supports_gradient_checkpointing:
            raise ValueError(f"`gradient_checkpointing` must be false: {type(network).__name__} has none")
        network.enable_gradient_checkpointing()


def check_objective(objective: Objective, config: TrainingConfig, device: torch.device, num_processes: int = 1) -> None:
    """Runs one image forward and backward: what does not fit shows before photographs are decoded.

    Leaves no gradients. Parameters that the loss does not depend on are named in the log.

    Raises:
        ValueError: the networks do not fit each other, `resolution` or `scale_factor`; no parameter gets a gradient; or
            one gets none and there are several processes, which would wait for it.
    """
    named = {name: parameter for name, parameter in objective.named_parameters() if parameter.requires_grad}
    image = torch.zeros(1, 3, config.resolution, config.resolution, dtype=torch.uint8, device=device)
    with _in_words(
        f"the networks do not fit each other, or `resolution` {config.resolution} and `scale_factor` "
        f"{config.scale_factor}"
    ):
        if isinstance(objective, ConditionalObjective):
            objective.lr_network.check_fit(objective.vdvae.config, objective.operator)
        if isinstance(objective, EnergyScore):
            objective.check_resolution(config.resolution)
        loss, _ = objective(image, [0])
    if not loss.requires_grad:
        raise ValueError("there is nothing to train: the loss depends on no trainable parameter")
    gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    idle = [name for name, gradient in zip(named, gradients, strict=True) if gradient is None]
    if not idle:
        return
    more = ", ..." if len(idle) > _NAMES_SHOWN else ""
    message = f"{len(idle)} parameters get no gradient, nothing reads them: {', '.join(idle[:_NAMES_SHOWN])}{more}"
    if num_processes > 1:
        raise ValueError(f"{message}; with {num_processes} processes all must have one")
    logger.warning("%s", message)


def _lr_class(config: TrainingConfig) -> type[LREncoder] | type[LRConditioner]:
    """The class that the LR network's configuration names: either system's sampler has an energy score."""
    folder = config.pretrained_lr_encoder
    path = Path(folder) / "config.json" if folder else Path(config.lr_config or "")
    try:
        name = json.loads(path.read_text())["_class_name"]
    except (OSError, ValueError, KeyError, TypeError):
        name = None  # where it cannot be read, loading says why
    return LREncoder if name == "LREncoder" else LRConditioner


def _lr_network(kind: type[_Network], config: TrainingConfig, load_weights: bool) -> _Network:
    """An LR network, its bottom-up part started from a VDVAE's encoder where that is asked for."""
    network: Any = _started(kind, "pretrained_lr_encoder", "lr_config", config, load_weights)
    for part in _FROZEN:
        if getattr(config, f"pretrained_{part}") is not None:
            _take_part(network, part, config, load_weights)
    if config.lr_from_vdvae is None:
        return network
    source = _loaded(VDVAE, "lr_from_vdvae", config, load_weights)
    if source.encoder is None:
        raise ValueError(f"`lr_from_vdvae`: {config.lr_from_vdvae} has no encoder")
    if network.config.get("conditioning") == "trivial":
        raise ValueError(f"`lr_from_vdvae` must be None for conditioning 'trivial', got {config.lr_from_vdvae!r}")
    with _in_words(f"`lr_from_vdvae`: the encoder of {config.lr_from_vdvae} does not fit"):
        network.network.bottom_up.load_state_dict(source.encoder.state_dict())
    return network


def _take_part(network: Any, part: str, config: TrainingConfig, load_weights: bool) -> None:
    """Gives a part of an LR network the weights of a trained network."""
    option, (kind, needed) = f"pretrained_{part}", _FROZEN[part]
    trained, own = _loaded(kind, option, config, load_weights), getattr(network, part, None)
    if own is None:
        raise ValueError(f"`{option}` needs an LRConditioner with {needed}")
    with _in_words(f"`{option}` {getattr(config, option)!r}"):
        if part == "restorer":
            own.take(trained)
        else:
            own.load_state_dict(trained.state_dict())


def _started(kind: type[_Network], folder: str, file: str, config: TrainingConfig, load_weights: bool) -> _Network:
    """A network: trained, if only the option `folder` is given; new, if only `file` is; or new and started from it."""
    if getattr(config, file) is None:
        return _loaded(kind, folder, config, load_weights)
    network: Any = _new(kind, file, config)
    if getattr(config, folder) is None:
        _check_frozen(set(network.state_dict()), config)
        return network
    trained: Any = _loaded(kind, folder, config, load_weights)
    try:
        if kind is VDVAE:
            _check_random(transfer(trained, network), config)
        elif all(trained.config.get(name) == network.config.get(name) for name in _GROWN):
            grow(trained, network)
        else:
            _check_frozen(transfer(trained, network), config)
    except ValueError as error:
        raise ValueError(f"`{file}` = {getattr(config, file)!r}: {error}") from error
    return network


def _check_random(random: set[str], config: TrainingConfig) -> None:
    prior = config.stage == "lr-encoder"
    decoder = prior or (config.stage in _CONDITIONED and not config.train_decoder)
    encoder = prior or (config.stage == "vdvae-sr" and not (config.train_decoder and config.train_encoder))
    if any(encoder if name.startswith("encoder.") else decoder for name in random):
        raise ValueError(
            "it has weights that the pretrained VDVAE lacks, and that would stay random: they are not trained in this "
            f"run of stage {config.stage}"
        )


def _check_frozen(random: set[str], config: TrainingConfig) -> None:
    """Raises a ValueError if a restorer or a regression, which no stage trains, would stay random."""
    for part in _FROZEN:
        if getattr(config, f"pretrained_{part}") is None and any(name.startswith(f"{part}.") for name in random):
            raise ValueError(f"`pretrained_{part}` must be given: the {part} would stay random, as it is not trained")


def _loaded(kind: type[_Network], option: str, config: TrainingConfig, load_weights: bool) -> _Network:
    """The network in the folder that an option names; without its weights where they are not to be loaded."""
    folder, network = getattr(config, option), cast(Any, kind)
    with _in_words(f"`{option}`: no {kind.__name__} from {folder!r}"):
        options = network.load_config(folder)
        _check_options(kind, options)
        return network.from_pretrained(folder) if load_weights else network.from_config(options)


def _new(kind: type[_Network], option: str, config: TrainingConfig) -> _Network:
    """A network with random weights, of the JSON file that an option names."""
    file, network = getattr(config, option), cast(Any, kind)
    with _in_words(f"`{option}`: no {kind.__name__} from {file!r}"):
        options = json.loads(Path(file).read_text())
        _check_options(kind, options)
        return network.from_config(options)


@contextmanager
def _in_words(words: str) -> Iterator[None]:
    """Puts what damaged folders and wrong configurations raise into the words of the command line."""
    try:
        yield
    except torch.OutOfMemoryError:  # a RuntimeError, but no damage
        raise
    except UNREADABLE as error:
        raise ValueError(f"{words}: {one_line(error)}") from error


def _check_options(kind: type, options: Any) -> None:
    """diffusers ignores what it does not know: a typo would leave a default in place."""
    if not isinstance(options, dict):
        raise ValueError(f"expected a mapping, got {type(options).__name__}")
    if options.get("_class_name", kind.__name__) != kind.__name__:
        raise ValueError(f"this is the configuration of a {options['_class_name']}")
    unknown = [key for key in options if key not in inspect.signature(kind).parameters and not key.startswith("_")]
    if unknown:
        raise ValueError(f"options that do not exist: {', '.join(unknown)}")
