"""Published weights of the compared systems to folders that `from_pretrained` reads.

A file is read as tensors only, its architecture is named by its keys (`detect.py`), and every key and shape is compared
before anything is written.
"""

import importlib.resources
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from ..baselines import (
    EDSR,
    SPAN,
    AncestralScheduler,
    GuidedDiffusionUNet,
    HCFlow,
    RRDBNet,
    SR3UNet,
    SRVGGNetCompact,
    guided_diffusion,
)
from ..operators import cached_downsampling
from .convert import ConversionError, check_keys, load_checkpoint, new_folder, rename, write_folder
from .detect import READABLE, Finding, identify
from .ncnn import load_ncnn
from .span import merge_convolutions

PRESETS: dict[str, dict[str, Any]] = json.loads(
    importlib.resources.files(__package__).joinpath("compared.json").read_text("utf-8")
)
"""Published configurations by name: `architecture`, `config` or `published_options`, and `scheduler` of diffusion."""
ARCHITECTURES: dict[str, type[ModelMixin]] = {
    cls.__name__: cls for cls in (EDSR, RRDBNet, SRVGGNetCompact, SPAN, HCFlow, SR3UNet, GuidedDiffusionUNet)
}
_PIPELINES = {
    **dict.fromkeys(("EDSR", "RRDBNet", "SRVGGNetCompact", "SPAN"), ("RegressionPipeline", "network")),
    "HCFlow": ("HCFlowPipeline", "flow"),
    "SR3UNet": ("SR3Pipeline", "unet"),
    "GuidedDiffusionUNet": ("DPSPipeline", "unet"),
}
"""Architecture -> the pipeline's class and the name of the network in it."""
_SCHEDULE = (
    "betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_variance",
    "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2",
)  # fmt: skip
"""Buffers that SR3's published files hold beside the network."""


@dataclass
class Recipe:
    """What to build.

    Args:
        architecture: a name of `ARCHITECTURES`.
        config: of the class of that name.
        scheduler: of `AncestralScheduler`, for diffusion models.
        pipeline: scalars of the pipeline; its class has defaults for all.
    """

    architecture: str
    config: dict[str, Any]
    scheduler: dict[str, Any] = field(default_factory=dict)
    pipeline: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of_preset(cls, preset: str) -> "Recipe":
        """The recipe of a preset.

        Raises:
            ValueError: an unknown name.
        """
        if preset not in PRESETS:
            raise ValueError(f"`preset` must be one of {', '.join(PRESETS)}, got {preset!r}")
        entry = dict(PRESETS[preset])
        return cls.of_config(entry.pop("config", {}) | entry)

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> "Recipe":
        """The recipe of a mapping with `architecture` and the class's own arguments; `scheduler` and `pipeline` may be.

        Those of guided diffusion may be given as `published_options`, under the names of its scripts.

        Raises:
            ConversionError: an architecture that is not known, or published options that are none.
        """
        rest = dict(config)
        architecture = rest.pop("architecture", None)
        parts = {name: rest.pop(name, {}) for name in ("scheduler", "pipeline")}
        for name, part in parts.items():
            if not isinstance(part, Mapping):
                raise ConversionError(f"`config`: {name} must be a mapping of options, got {part!r}")
        if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
            raise ConversionError(f"`config`: architecture must be one of {', '.join(READABLE)}, got {architecture!r}")
        if architecture == "GuidedDiffusionUNet" and "published_options" in rest:
            try:
                rest = guided_diffusion.published_options(**rest.pop("published_options")) | rest
            except (TypeError, ValueError) as error:
                raise ConversionError(f"`config`: published_options: {error}") from error
        return cls(architecture, rest, *map(dict, parts.values()))

    def build(self, device: str = "cpu") -> ModelMixin:
        """The network, with random weights; on "meta" without memory.

        Raises:
            ConversionError: a configuration that its class does not take.
        """
        try:
            with torch.device(device):
                return ARCHITECTURES[self.architecture](**self.config)
        except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
            raise ConversionError(f"`config` of {self.architecture}: {' '.join(str(error).split())[:300]}") from error


def convert_baseline(
    checkpoint: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    preset: str | None = None,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """Writes published weights as a folder of the pipeline that they belong to.

    Args:
        checkpoint: a file of tensors: `.pt`, `.pth` or `.safetensors`, with or without the wrappers `params_ema`,
            `params` and `state_dict`; or ncnn's `.bin` with its `.param` beside it.
        output_dir: a folder that does not exist or is empty; it appears when it is complete or not at all.
        preset: a name of `PRESETS`; exactly one of `preset` and `config` must be given.
        config: `architecture` (a name of `ARCHITECTURES`) and the arguments of that class; `scheduler` may hold those
            of `AncestralScheduler`, `pipeline` those of the pipeline, and `published_options` those of the scripts of
            guided diffusion.

    Raises:
        ValueError: a file that cannot be read, holds another architecture or does not fit (`ConversionError`), an
            unknown preset, an output that exists.
    """
    if (preset is None) == (config is None):
        raise ValueError(f"give either `preset` or `config`, got preset={preset!r}, config={config!r}")
    output = new_folder(output_dir)
    recipe = Recipe.of_preset(preset) if preset is not None else Recipe.of_config(config or {})
    path = Path(checkpoint)
    of_ncnn = path.suffix == ".bin" and path.with_suffix(".param").is_file()
    model, scheduler = convert_state_dict(load_ncnn(path) if of_ncnn else load_checkpoint(path), recipe, preset)
    _check_pipeline(recipe, model.config.get("scale_factor") or getattr(model, "scale_factor", None))
    name, component = _PIPELINES[recipe.architecture]
    parts = {component: model} if scheduler is None else {component: model, "scheduler": scheduler}
    return write_folder(parts, output, name, recipe.pipeline)


def convert_state_dict(
    state: Mapping[str, Tensor], recipe: Recipe, preset: str | None = None
) -> tuple[ModelMixin, AncestralScheduler | None]:
    """The network with the weights of a published state dict, and the scheduler of a diffusion model.

    Args:
        state: tensors under published names (see `hvae_sr.checkpoints.convert.load_checkpoint`).
        recipe: what they are weights of.
        preset: the recipe's name, for errors.

    Raises:
        ConversionError: weights of another architecture, of another scale or size, or of another range of values; keys
            that are missing, unexpected or of another shape.
    """
    asked = f"`preset` {preset!r}" if preset is not None else "`config`"
    finding, state, schedule = _identified(merge_convolutions(state))
    model = recipe.build("meta")
    _check_finding(finding, recipe, model.config, asked)
    if recipe.architecture == "EDSR":
        state = _with_mean_colour(state, finding, recipe)
    names = published_keys(model, finding.variant)
    check_keys(state, published_shapes(model, names))
    weights = {key: state[name].to(torch.float32) for key, name in names.items()}
    if isinstance(model, GuidedDiffusionUNet):
        weights = {key: guided_diffusion.adapt(key, value, model.config) for key, value in weights.items()}
    model.eval().load_state_dict({key: value.clone().contiguous() for key, value in weights.items()}, assign=True)
    if recipe.architecture == "EDSR":
        # `assign` brings in parameters that could be trained: the colours are not.
        for layer in (model.sub_mean, model.add_mean):
            layer.requires_grad_(False)
    return model, _scheduler(recipe, schedule, model.config.get("out_channels", 3))


def published_keys(model: ModelMixin, variant: str = "") -> dict[str, str]:
    """Keys of our network -> keys of the published one, in one of the names in use for it."""
    if isinstance(model, GuidedDiffusionUNet):
        return guided_diffusion.published_keys(model)
    rules = list(_RULES.get((type(model).__name__, variant), ()))
    if isinstance(model, HCFlow):
        per_level = len(model.levels[0]) + 2  # a squeeze before the steps and a split after them have no weights
        rules += [
            (rf"^levels\.{level}\.{step}\.", f"flow.layers.{level * per_level + step + 1}.")
            for level, steps in enumerate(model.levels)
            for step in range(len(steps))
        ]
    last = str(model.config.get("num_blocks"))
    return rename(model.state_dict(), [(pattern, theirs.replace("{last}", last)) for pattern, theirs in rules])


_RULES: dict[tuple[str, str], tuple[tuple[str, str], ...]] = {  # ours -> published
    ("HCFlow", ""): (
        (r"^conditionals\.(\d+)\.", r"flow.level\1_condFlow."),
        (r"_condFlow\.steps\.", "_condFlow.additional_flow_steps."),
        (r"_condFlow\.trunk([01])\.", r"_condFlow.RRDB_trunk\1."),
        (r"_condFlow\.trunk_conv\.", "_condFlow.trunk_conv1."),
        (r"_condFlow\.gaussian\.", "_condFlow.f."),
        (r"\.rdb(\d)\.", r".RDB\1."),
    ),
    ("EDSR", "BasicSR"): (
        (r"^head\.0\.", "conv_first."),
        (r"^body\.(\d+)\.body\.0\.", r"body.\1.conv1."),
        (r"^body\.(\d+)\.body\.2\.", r"body.\1.conv2."),
        (r"^body\.\d+\.(weight|bias)$", r"conv_after_body.\1"),
        (r"^tail\.0\.", "upsample."),
        (r"^tail\.1\.", "conv_last."),
    ),
    ("RRDBNet", "ESRGAN"): (
        (r"^body\.(\d+)\.rdb(\d)\.", r"RRDB_trunk.\1.RDB\2."),
        (r"^conv_body\.", "trunk_conv."),
        (r"^conv_up(\d)\.", r"upconv\1."),
        (r"^conv_hr\.", "HRconv."),
    ),
    ("RRDBNet", "old ESRGAN"): (
        (r"^body\.(\d+)\.rdb(\d)\.conv(\d)\.", r"model.1.sub.\1.RDB\2.conv\3.0."),
        (r"^conv_first\.", "model.0."),
        (r"^conv_body\.", "model.1.sub.{last}."),
        (r"^conv_up1\.", "model.3."),
        (r"^conv_up2\.", "model.6."),
        (r"^conv_hr\.", "model.8."),
        (r"^conv_last\.", "model.10."),
    ),
}


def published_shapes(model: ModelMixin, names: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    """Keys of the published network -> their shapes, from those of ours and `published_keys`."""
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    if isinstance(model, GuidedDiffusionUNet):
        shapes = {key: guided_diffusion.published_shape(key, shape, model.config) for key, shape in shapes.items()}
    return {names[key]: shape for key, shape in shapes.items()}


_Network = tuple[Finding, Mapping[str, Tensor], Tensor | None]
"""What weights are of, they themselves and, of an SR3 file, the schedule's betas that are beside them."""


def _network(state: Mapping[str, Tensor]) -> _Network:
    if not any(key.startswith("denoise_fn.") for key in state):
        return identify(state), state, None
    network = {key.removeprefix("denoise_fn."): value for key, value in state.items() if key not in _SCHEDULE}
    return identify(network), network, state.get("betas")


def _identified(state: Mapping[str, Tensor]) -> _Network:
    """What the file holds, its tensors and an SR3's schedule, without names that all keys begin with.

    Raises:
        ConversionError: no network that is known, or one of a kind that is not read.
    """
    stripped = [state]
    while all("." in key for key in state) and len({key.partition(".")[0] for key in state}) == 1:
        state = {key.partition(".")[2]: value for key, value in state.items()}
        stripped.append(state)
    found = [*map(_network, stripped)]
    known = [one for one in found if one[0].architecture is not None]
    if not known:  # one of several networks of a program, such as a generator beside its losses
        parts: dict[str, dict[str, Tensor]] = {}
        for key, value in state.items():
            first, _, rest = key.partition(".")
            parts.setdefault(first, {})[rest] = value
        known = [one for one in map(_network, parts.values()) if one[0].architecture is not None]
        known = known if len(known) == 1 else []
    finding, network, schedule = (known or found)[0]
    if finding.architecture == "SPAN" and "no_norm" in network:
        raise ConversionError(
            "`checkpoint` holds a SPAN that reads y as it is (`no_norm`), not less the mean colour; only the published "
            "kind is read"
        )
    if finding.architecture is not None:
        return finding, network, schedule
    if {"body.0.weight", "body.2.weight"} <= {*network} and "body.1.weight" not in network:
        raise ConversionError(
            "`checkpoint` may hold an SRVGGNetCompact with act_type 'relu' or 'leakyrelu', which weights do not tell "
            "apart; only 'prelu', that of the published weights, is read"
        )
    raise ConversionError(f"`checkpoint` holds weights of no known architecture, such as {', '.join([*network][:3])}")


def _check_pipeline(recipe: Recipe, own_factor: int | None) -> None:
    """Raises a ConversionError for scalars of the pipeline with which it could not be loaded."""
    factor = recipe.pipeline.get("scale_factor")
    if own_factor is not None and factor not in (None, own_factor):
        raise ConversionError(
            f"`config`: scale_factor of the pipeline must be the network's {own_factor}, got {factor!r}"
        )
    try:
        cached_downsampling(own_factor or factor or 4, recipe.pipeline.get("downsampling_kernel", "bicubic"))
    except (ValueError, TypeError) as error:
        raise ConversionError(f"`config`: pipeline: {error}") from error


def _check_finding(finding: Finding, recipe: Recipe, config: Mapping[str, Any], asked: str) -> None:
    if finding.architecture != recipe.architecture:
        raise ConversionError(f"{asked} is for a network {recipe.architecture}; the file holds {finding}")
    differing = {
        name: (value, config[name])
        for name, value in finding.options.items()
        if name in config and list(np.atleast_1d(config[name])) != list(np.atleast_1d(value))
    }
    if differing:
        listed = ", ".join(f"{name}={value} (not {wanted})" for name, (value, wanted) in differing.items())
        raise ConversionError(f"{asked} does not fit: the file holds {finding.name} with {listed}")


def _with_mean_colour(state: Mapping[str, Tensor], finding: Finding, recipe: Recipe) -> Mapping[str, Tensor]:
    """The state of an EDSR with its mean colour, which BasicSR's files lack.

    Raises:
        ConversionError: a mean colour that belongs to images on another range of values.
    """
    if finding.variant == "BasicSR":
        return {**state, **{key: value for key, value in recipe.build().state_dict().items() if "_mean." in key}}
    mean = state.get("add_mean.bias")
    value_range = recipe.config.get("value_range", 255.0)
    expected = any(recipe.config.get("mean", (1,)))  # some networks are built with black for their mean
    if mean is not None and mean.numel() and expected and not 0.1 < float(mean.float().mean()) / value_range < 1:
        raise ConversionError(
            f"`checkpoint`: the mean colour is {[round(float(c), 4) for c in mean.flatten()[:3]]}, which belongs to "
            f"images on another range than the configuration's 0..{value_range:g}"
        )
    return state


def _scheduler(recipe: Recipe, betas: Tensor | None, out_channels: int) -> AncestralScheduler | None:
    """The scheduler of a diffusion model: that of the file where it holds one, else the recipe's, or the published one.

    Raises:
        ConversionError: a schedule that is not linear, or options that the scheduler does not take.
    """
    if recipe.architecture == "SR3UNet":
        config = {**PRESETS["sr3-16-128"]["scheduler"], **recipe.scheduler}
    elif recipe.architecture == "GuidedDiffusionUNet":
        learned = out_channels == 6
        published = PRESETS["dps-ffhq256"]["scheduler"] if learned else {"variance_type": "fixed_large"}
        config = {**published, **recipe.scheduler}
    else:
        return None
    try:
        scheduler = AncestralScheduler(**config)
    except (TypeError, ValueError) as error:
        raise ConversionError(f"`config`: scheduler: {error}") from error
    if betas is None:
        return scheduler
    if not betas.is_floating_point() or not betas.numel():
        raise ConversionError(f"`checkpoint`: its schedule of noise is {tuple(betas.shape)} of {betas.dtype}")
    found = betas.double().flatten().numpy()
    precision = torch.finfo(betas.dtype)
    smallest = max(precision.tiny * precision.eps, torch.finfo(torch.float32).eps * found.max())

    def agrees(start: float, end: float, count: int, tolerance: float) -> bool:
        line = np.linspace(start, end, count)
        tolerance = max(tolerance, 2 * precision.eps)
        return count == len(found) and np.allclose(found, line, rtol=tolerance, atol=smallest)

    # The configuration's own digits are kept where they agree: buffers are rounded.
    own = scheduler.config
    if agrees(own.beta_start, own.beta_end, own.num_train_timesteps, 1e-6):
        return scheduler
    if not agrees(found[0], found[-1], len(found), 1e-4):
        raise ConversionError("`checkpoint`: its schedule of noise is not linear, the only kind that is read")
    stored = {"num_train_timesteps": len(found), "beta_start": float(found[0]), "beta_end": float(found[-1])}
    return AncestralScheduler(**{**config, **stored})
