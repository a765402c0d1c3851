"""Published checkpoints (`.th`, `.ckpt`, `.h5`, `.safetensors`) to folders that `from_pretrained` reads.

Three kinds are known by their keys: VD-VAE (openai/vdvae), CVDVAE (`encoder_y`, `enc_y`) and VDVAE-SR
(`vae`, `vae_sr` and gates). Names and shapes are compared first; no code in a file is ever run.
"""

import importlib.resources
import json
import logging
import math
import os
import pickle
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.models.modeling_utils import ModelMixin
from safetensors.torch import load_file
from torch import Tensor

from ..files import remove_abandoned, temporary_path
from ..models import VDVAE, LRConditioner, LREncoder
from ..models.blocks import parse_blocks
from ..operators import Downsampling
from .detect import READABLE, RECOGNISED, identify

StrPath = str | os.PathLike[str]
logger = logging.getLogger(__name__)

_PIPELINES = ("cvdvae-ffhq256-x4", "cvdvae-ffhq256-x8", "cvdvae-ffhq256-x16", "vdvae-sr-64", "vdvae-sr-256")
_PRIORS = ("ffhq256", "ffhq1024", "imagenet64", "imagenet32", "cifar10")
# Preset names and their folders in `hub_configs`.
PRESETS = {name: f"vdvae-{name}" for name in _PRIORS} | {name: name for name in _PIPELINES}
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Of weights in a checkpoint."""
_STATES_OF_LAYERS = ("inited", "num_batches_tracked", "n_averaged")
"""Last parts of names of what layers and averages count or note, and no network here reads."""
_MOST_WRAPPERS = 5  # one in the other
LISTED_KEYS = 20  # of each sort, in errors
GATED_BELOW = 32  # VDVAE-SR's code gates the groups of resolutions below 32 only, whatever the image's size
_PUBLISHED_DEFAULTS = {"bottleneck_multiple": 0.25, "no_bias_above": 64, "num_mixtures": 10}
_KINDS = {None: "VD-VAE", "LREncoder": "CVDVAE", "LRConditioner": "VDVAE-SR"}
_LR_CLASSES: dict[str, type[ModelMixin]] = {"LREncoder": LREncoder, "LRConditioner": LRConditioner}
_PREFIXES = {None: ("", ""), "LREncoder": ("", "encoder_y."), "LRConditioner": ("vae.", "vae_sr.encoder.")}
_UNUSED = {  # what the published code stores and never uses
    "LREncoder": r"(shift|scale)$",
    "LRConditioner": r"vae_sr\.decoder\.|vae\.decoder\.dec_blocks\.\d+\.gate_param$",
}
_RENAMING = (  # ours -> published
    (r"^encoder\.blocks\.", "encoder.enc_blocks."),
    (r"^blocks\.", "decoder.dec_blocks."),
    (r"\.posterior_head\.", ".enc."),
    (r"\.prior_head\.", ".prior."),
    (r"\.z_projection\.", ".z_proj."),
    (r"^affine\.", "decoder."),
    (r"^out_conv\.", "decoder.out_net.out_conv."),
    (r"^heads\.(\d+)\.", r"decoder.dec_blocks.\1.enc_y."),
    (r"^gates\.(\d+)\.gate$", r"decoder.dec_blocks.\1.gate_param"),
    (r"^network\.bottom_up\.blocks\.", "network.bottom_up.enc_blocks."),
)


class ConversionError(ValueError):
    """A checkpoint that cannot be read, or that does not have the keys and shapes of its configuration."""


@dataclass
class _Recipe:
    """What to build: configurations, and the scalars of the pipeline where there is an LR network."""

    vdvae: dict[str, Any]
    lr_class: str | None = None
    lr_network: dict[str, Any] = field(default_factory=dict)
    pipeline: dict[str, Any] = field(default_factory=dict)


def load_checkpoint(path: StrPath) -> dict[str, Tensor]:
    """The tensors of a published checkpoint, under their published names.

    Wrappers are taken off: Lightning's `state_dict` and `cvae.`, BasicSR's `params_ema` and `params`, any other name of
    the only mapping of tensors in a file, or of the only averages (`ema`) among several, DataParallel's `module.`;
    flags and counters of layers are left out. The averages of VDVAE-SR (`ema_vae.`, `ema_vae_sr.`), which its sampler
    uses, are returned as `vae.` and `vae_sr.`.

    Raises:
        ConversionError: no file, a damaged one, a pickle of more than tensors and plain values, or tensors that are no
            weights: not dense, not of real floating-point numbers, not finite.
    """
    path = Path(path)
    where = f"`checkpoint`: {path}"
    if not path.is_file():
        raise ConversionError(f"{where} is not a file")
    try:
        pickled = path.suffix != ".safetensors"
        content: Any = torch.load(path, "cpu", weights_only=True) if pickled else load_file(path)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"it refers to {found[1]}" if found else "it is no file of tensors that torch.save wrote"
        raise ConversionError(f"{where} was refused and nothing in it was run: {reason}") from error
    except Exception as error:  # damage surfaces as OSError, RuntimeError, EOFError, KeyError and others
        raise ConversionError(f"{where} is damaged or of an unknown format ({str(error)[:200]!r})") from error

    for _ in range(_MOST_WRAPPERS):  # a file may hold a wrapper of itself
        if isinstance(content, Mapping) and (inside := _inside(content, where)) is not None:
            content = inside
    if not isinstance(content, Mapping) or not content:
        raise ConversionError(f"{where} holds no tensors by name")
    state: dict[str, Tensor] = {}
    for key, value in content.items():
        name = re.sub(r"(^|\.)module\.", r"\1", str(key)).removeprefix("cvae.")
        if not isinstance(value, Tensor):
            raise ConversionError(f"{where}: {key!r} is of type {type(value).__name__}, not a tensor")
        if name.rpartition(".")[2] in _STATES_OF_LAYERS:
            continue
        if name in state:
            raise ConversionError(f"{where} has {name!r} twice, with and without a wrapper's prefix")
        if value.layout != torch.strided or value.dtype not in _DTYPES:
            held = identify({str(k): v for k, v in content.items() if isinstance(v, Tensor)})
            if held.architecture in RECOGNISED:  # whose buffers of indices are no fault of the file
                raise ConversionError(f"{where} holds {held.name}, which is not read")
            raise ConversionError(f"{where}: {key!r} holds no weights: {value.layout}, {value.dtype}")
        state[name] = value
    parts = [part for part in ("vae.", "vae_sr.") if any(key.startswith(f"ema_{part}") for key in state)]
    if len(parts) == 1:
        logger.warning("%s has averages of %r alone; the other network's last weights are taken", path, parts[0])
    for part in parts:
        averaged = {key.removeprefix("ema_"): state[key] for key in state if key.startswith(f"ema_{part}")}
        state = {k: v for k, v in state.items() if not k.startswith((part, f"ema_{part}"))} | averaged
    # A view that shows one number many times takes little of a file and, once looked at, any amount of memory.
    views = [key for key, v in state.items() if v.numel() * v.element_size() > v.untyped_storage().nbytes()]
    if views:
        raise ConversionError(f"{where} has tensors larger than what they hold: {', '.join(views[:LISTED_KEYS])}")
    check_finite(state, where)
    return state


def check_finite(state: Mapping[str, Tensor], where: str) -> None:
    """Raises a ConversionError that begins with `where` and names the tensors that hold NaN or infinite values."""
    # In float32, which they are converted to: a float64 may be beyond its range.
    broken = [key for key, value in state.items() if not torch.isfinite(value.float()).all()]
    if broken:
        raise ConversionError(f"{where} has values that are not finite in {', '.join(broken[:LISTED_KEYS])}")


def _inside(content: Mapping[Any, Any], where: str) -> Mapping[Any, Any] | None:
    """What a wrapper holds, which may be a wrapper again; None of weights.

    Raises:
        ConversionError: several sets of weights.
    """
    for wrapper in ("state_dict", "params_ema", "params"):  # Lightning's, and BasicSR's: averages before the last
        if isinstance(content.get(wrapper), Mapping) and content[wrapper]:
            return content[wrapper]
    if any(isinstance(value, Tensor) and value.ndim for value in content.values()):
        return None
    inner = {str(name): value for name, value in content.items() if _is_state(value)}
    averages = [name for name in inner if "ema" in name.lower()]
    if len(inner) > 1 and len(averages) != 1:
        raise ConversionError(f"{where} holds several sets of weights, {', '.join(inner)}: save the one that is meant")
    if inner:
        return inner[(averages or [*inner])[0]]
    wrapped = [value for value in content.values() if isinstance(value, Mapping) and _holds_state(value)]
    return wrapped[0] if len(wrapped) == 1 else None


def _holds_state(value: Mapping[Any, Any]) -> bool:
    """Whether there are weights in it at any depth; what holds itself is looked at once."""
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        inner = [entry for entry in waiting.pop().values() if isinstance(entry, Mapping) and id(entry) not in seen]
        if any(map(_is_state, inner)):
            return True
        seen.update(map(id, inner))
        waiting += inner
    return False


def _is_state(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(entry, Tensor) for entry in value.values())


def config_from_hparams(hparams: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of `VDVAE` for hyper-parameters under their published names.

    Args:
        hparams: `width`, `image_size`, `enc_blocks`, `dec_blocks`; optionally `zdim`, `custom_width_str`,
            `bottleneck_multiple`, `no_bias_above`, `num_mixtures`, `dataset`, `shift`, `scale`; others are
            ignored. Or a mapping with these under "hparams" and, beside it, `low_bit`, `input_normalisation`,
            `input_shift`, `input_scale`. Shift and scale may be meant for images on 0..1; by default they are
            those of the model published for `dataset`. `low_bit` is true by default for "ffhq_256" (or "ffhq256").

    Raises:
        ConversionError: keys that are missing (all are named), images that are not RGB, or values that are none.
    """
    h = _flatten(hparams)
    _require(h, "width", "image_size", "enc_blocks", "dec_blocks")
    if h.get("image_channels", 3) != 3:
        raise ConversionError(f"`hparams`: image_channels must be 3, got {h['image_channels']!r}")
    dataset = str(h.get("dataset", "")).replace("_", "")
    low_bit = dataset == "ffhq256" if h.get("low_bit") is None else h["low_bit"]
    if low_bit not in (True, False):
        raise ConversionError(f"`hparams`: low_bit must be true or false, got {low_bit!r}")
    if h.get("shift") is None or h.get("scale") is None:
        if dataset not in _PRIORS:
            raise ConversionError(
                f"`hparams` lacks shift and scale; none is known for dataset {h.get('dataset', '')!r}"
            )
        known = _read_json(PRESETS[dataset], "config.json")
        h |= {"shift": known["input_shift"], "scale": known["input_scale"]}
    for key in ("shift", "scale"):
        if not isinstance(h[key], Real) or not math.isfinite(h[key]) or (key == "scale" and not h[key]):
            raise ConversionError(f"`hparams`: {key} must be a finite number, scale not 0; got {h[key]!r}")
    shift, scale = _on_255(float(h["shift"]), float(h["scale"]))
    return {
        "image_size": h["image_size"],
        "width": h["width"],
        "custom_widths": h.get("custom_width_str") or None,
        "encoder_blocks": h["enc_blocks"],
        "decoder_blocks": h["dec_blocks"],
        "latent_channels": h.get("zdim", 16),
        "bias_type": "spatial",
        **{key: h.get(key, default) for key, default in _PUBLISHED_DEFAULTS.items()},
        "input_shift": shift,
        "input_scale": scale,
        "output_bits": 5 if low_bit else 8,
    }


def _flatten(hparams: Mapping[str, Any]) -> dict[str, Any]:
    renamed = {"low_bit": "low_bit", "input_shift": "shift", "input_scale": "scale"}
    beside = {key: hparams[name] for name, key in renamed.items() if name in hparams}
    return {**hparams.get("hparams", hparams), **hparams.get("input_normalisation", {}), **beside}


def _require(values: Mapping[str, Any], *keys: str, argument: str = "hparams") -> None:
    missing = [key for key in keys if values.get(key) is None]
    if missing:
        raise ConversionError(f"`{argument}` lacks {', '.join(missing)}")


def _on_255(shift: float, scale: float) -> tuple[float, float]:
    """For images on 0..255; a scale above 1 can only be the inverse deviation of images on 0..1."""
    return (shift * 255, scale / 255) if scale > 1 else (shift, scale)


def _recipe_from_hparams(hparams: Mapping[str, Any], lr_class: str | None) -> _Recipe:
    """VDVAE-SR's code normalises by ImageNet-64's figures whatever the data, and never floors its targets."""
    h = _flatten(hparams)
    if lr_class == "LRConditioner":
        _require(hparams, "hparams_lr_encoder")
        imagenet = _read_json(PRESETS["imagenet64"], "config.json")
        overrides = {key: hparams.get(key, imagenet[key]) for key in ("input_shift", "input_scale")}
        config = config_from_hparams({"hparams": h, "low_bit": hparams.get("low_bit", False), **overrides})
        lr = hparams["hparams_lr_encoder"]
        _require(lr, "enc_blocks", "image_size", "width", argument="hparams_lr_encoder")
        k = sum(spec.resolution < GATED_BELOW for spec in parse_blocks(config["decoder_blocks"]))
    else:
        config = config_from_hparams(hparams)
        if lr_class is None:
            return _Recipe(config)
        _require(h, "enc_blocks_y", "ky", "image_size_y")
        lr = {key: h.get(f"{key}_y") for key in ("enc_blocks", "image_size", "width", "custom_width_str")}
        k = h["ky"]
    scale_factor, rest = divmod(config["image_size"], lr["image_size"])
    if rest:
        raise ConversionError(f"`hparams`: {config['image_size']} is no multiple of y's {lr['image_size']}")
    lr_network = {
        "image_size": lr["image_size"],
        "blocks": lr["enc_blocks"],
        "width": lr["width"] or config["width"],
        "custom_widths": lr.get("custom_width_str") or None,
        "bottleneck_multiple": lr.get("bottleneck_multiple", config["bottleneck_multiple"]),
        "num_conditioned_groups": k,
        "decoder_width": config["width"],
        "decoder_custom_widths": config["custom_widths"],
    } | {key: config[key] for key in ("decoder_blocks", "input_shift", "input_scale")}
    if lr_class == "LREncoder":
        lr_network["latent_channels"] = config["latent_channels"]
        lr_network["decoder_bottleneck_multiple"] = config["bottleneck_multiple"]
    else:
        lr_network["scale_factor"] = scale_factor
    scalars = {"scale_factor": scale_factor, "downsampling_kernel": "bicubic", "default_temperature": 0.8}
    return _Recipe(config, lr_class, lr_network, scalars)


def _recipe_from_preset(preset: str) -> _Recipe:
    if preset not in PRESETS:
        raise ValueError(f"`preset` must be one of {', '.join(sorted(PRESETS))}, got {preset!r}")
    folder = PRESETS[preset]
    if folder != preset:
        return _Recipe(_read_json(folder, "config.json"))
    scalars = _read_json(folder, "model_index.json")
    lr_class = scalars.pop("lr_encoder")[1]
    vdvae, lr_network = (_read_json(folder, part, "config.json") for part in ("vdvae", "lr_encoder"))
    return _Recipe(vdvae, lr_class, lr_network, {key: scalars[key] for key in scalars if key != "vdvae"})


def _read_json(*path: str) -> dict[str, Any]:
    """A file of `hub_configs`, without the keys that diffusers adds."""
    text = importlib.resources.files("hvae_sr.hub_configs").joinpath(*path).read_text("utf-8")
    return {key: value for key, value in json.loads(text).items() if not key.startswith("_")}


def _published_names(model: ModelMixin, vdvae: str = "", bottom_up: str = "") -> dict[str, str]:
    """Our name of each parameter -> its published name; `vdvae` and `bottom_up` are the published prefixes."""
    keys = model.state_dict()
    biases = sorted(int(key.split(".")[1]) for key in keys if key.startswith("biases."))
    rules = [*_RENAMING, *((rf"^biases\.{side}\.bias$", f"decoder.bias_xs.{i}") for i, side in enumerate(biases))]
    names = rename(keys, rules)
    names = {key: name if name.startswith("network.") else vdvae + name for key, name in names.items()}
    return {key: name.replace("network.bottom_up.", bottom_up) for key, name in names.items()}


def rename(keys: Iterable[str], rules: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Keys -> what becomes of them when the rules, a pattern and its replacement each, are applied in turn."""
    names = {key: key for key in keys}
    for pattern, replacement in rules:
        names = {key: re.sub(pattern, replacement, name) for key, name in names.items()}
    return names


def check_keys(state: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises a ConversionError unless a checkpoint has exactly these keys, in their shapes."""
    found = {key: tuple(value.shape) for key, value in state.items()}
    wrong = [key for key in shapes if found.get(key, shapes[key]) != shapes[key]]
    problems = {
        "missing": [key for key in shapes if key not in found],
        "unexpected": [key for key in found if key not in shapes],
        "misshapen": [f"{key} {list(found[key])} (should be {list(shapes[key])})" for key in wrong],
    }
    message = "`checkpoint` does not fit the configuration"
    for problem, keys in problems.items():
        if keys:
            more = ", ..." if len(keys) > LISTED_KEYS else ""
            message += f"\n{len(keys)} {problem}: {', '.join(keys[:LISTED_KEYS])}{more}"
    if any(problems.values()):
        raise ConversionError(message)


def _published_shapes(parts: list[tuple[ModelMixin, dict[str, str]]]) -> dict[str, tuple[int, ...]]:
    return {names[key]: tuple(value.shape) for model, names in parts for key, value in model.state_dict().items()}


def convert(
    checkpoint: StrPath, output_dir: StrPath, preset: str | None = None, hparams: Mapping[str, Any] | None = None
) -> Path:
    """Writes a published checkpoint as a folder of `VDVAE` or, with an LR network, `SuperResolutionPipeline`.

    Args:
        checkpoint: a file that `load_checkpoint` reads.
        output_dir: a folder that does not exist or is empty; it appears when it is complete or not at all.
        preset: a name of `PRESETS`; exactly one of `preset` and `hparams` must be given.
        hparams: hyper-parameters under their published names (see `config_from_hparams`); for CVDVAE with
            `enc_blocks_y`, `ky`, `image_size_y`; for VDVAE-SR with `hparams_lr_encoder` beside "hparams".

    Raises:
        ValueError: a checkpoint that cannot be read or does not fit (`ConversionError`), both or neither of `preset`
            and `hparams`, an unknown preset, an output that exists.
    """
    if (preset is None) == (hparams is None):
        raise ValueError(f"give either `preset` or `hparams`, got preset={preset!r}, hparams={hparams!r}")
    if not isinstance(hparams or {}, Mapping):
        raise ValueError(f"`hparams` must be a mapping of names to values, got {type(hparams).__name__}")
    output = new_folder(output_dir)
    recipe = _recipe_from_preset(preset) if preset is not None else None  # before a large file is read
    state = load_checkpoint(checkpoint)
    finding = identify(state)
    if finding.architecture in READABLE:
        raise ConversionError(
            f"`checkpoint`: {checkpoint} holds {finding}, which has presets of its own; or give its `architecture` in "
            "the hyper-parameters, and the arguments of that class"
        )
    lr_class = {kind: name for name, kind in _KINDS.items()}.get(finding.architecture or "")
    if recipe is not None and recipe.lr_class != lr_class:
        expected, found = _KINDS[recipe.lr_class], _KINDS[lr_class]
        raise ConversionError(f"`preset` {preset!r} is for a {expected}, the checkpoint holds a {found}")
    try:
        recipe = recipe or _recipe_from_hparams(hparams or {}, lr_class)
        models = _meta_models(recipe)
    except ConversionError:
        raise
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, RuntimeError) as error:
        # Values of a wrong type or size surface wherever they are first used, as nearly every type of error.
        message = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ConversionError(f"`{'preset' if hparams is None else 'hparams'}`: {message}") from error
    parts = [(model, _published_names(model, *_PREFIXES[lr_class])) for model in models]
    used = {name for _, names in parts for name in names.values()}
    unused = re.compile(_UNUSED.get(lr_class or "", "(?!)"))
    read = {key: value for key, value in state.items() if key in used or not unused.match(key)}
    check_keys(read, _published_shapes(parts))
    for model, names in parts:
        # In fp32, and each with a memory of its own: safetensors asks for it.
        weights = {ours: state[name].to(torch.float32, copy=True).contiguous() for ours, name in names.items()}
        model.eval().load_state_dict(weights, assign=True)
        if lr_class == "LREncoder" and {"shift", "scale"} <= state.keys():
            _adopt_normalisation(model, *_on_255(float(state["shift"]), float(state["scale"])))
    if lr_class is None:
        return write_folder({"": models[0]}, output)
    networks = dict(zip(("vdvae", "lr_encoder"), models, strict=True))
    return write_folder(networks, output, "SuperResolutionPipeline", recipe.pipeline)


def _meta_models(recipe: _Recipe) -> list[ModelMixin]:
    """The VDVAE and, where there is one, the LR network: names and shapes without memory."""
    with torch.device("meta"):
        vdvae = VDVAE(**recipe.vdvae)
        lr_network: Any = recipe.lr_class and _LR_CLASSES[recipe.lr_class](**recipe.lr_network)
    if lr_network is None:
        return [vdvae]
    operator = Downsampling(recipe.pipeline["scale_factor"], recipe.pipeline["downsampling_kernel"])
    lr_network.check_fit(vdvae.config, operator)
    return [vdvae, lr_network]


def _adopt_normalisation(model: Any, shift: float, scale: float) -> None:
    """Shift and scale in CVDVAE's checkpoints, which are fp32, win where the configuration differs."""
    for key, value in (("input_shift", shift), ("input_scale", scale)):
        if abs(value - model.config[key]) > 1e-6 * abs(value):
            logger.warning("%s: %r in the checkpoint replaces %r", key, value, model.config[key])
            model.register_to_config(**{key: value})


def new_folder(output_dir: StrPath) -> Path:
    """The folder that is to be made, a link's target; a ValueError unless it does not exist or is empty."""
    output = Path(output_dir).resolve()  # and a name for "."
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"`output_dir`: {output} exists and is not an empty folder")
    return output


def write_folder(
    parts: Mapping[str, Any], output: Path, pipeline: str | None = None, scalars: Mapping[str, Any] | None = None
) -> Path:
    """The folder of a pipeline or of one network: into a temporary one beside `output`, then one rename.

    Args:
        parts: components of the pipeline by their names; or the network alone, whose name is "".
        output: the folder.
        pipeline: its class.
        scalars: of its configuration.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(output.parent)
    temporary = temporary_path(output)
    try:
        for name, part in parts.items():
            part.save_pretrained(temporary / name)
        if pipeline is not None:
            index: dict[str, Any] = {"_class_name": pipeline, "_diffusers_version": diffusers.__version__}
            index |= {**(scalars or {}), **{name: ["hvae_sr", type(part).__name__] for name, part in parts.items()}}
            text = json.dumps(index, indent=2, sort_keys=True) + "\n"
            (temporary / "model_index.json").write_text(text, encoding="utf-8")
        os.replace(temporary, output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return output
