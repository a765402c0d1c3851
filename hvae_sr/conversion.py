"""Published checkpoints (`.th`, `.ckpt`, `.h5`, `.safetensors`) to folders that `from_pretrained` reads.

Three kinds are known by their keys: VD-VAE (openai/vdvae), CVDVAE (a VD-VAE with `encoder_y` and `enc_y` heads) and
VDVAE-SR (`vae`, `vae_sr` and gates). Names and shapes are compared on the meta device before anything is built or
written; no code in a checkpoint is ever run.
"""

import importlib.resources
import json
import logging
import os
import pickle
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from .models import VDVAE, LRConditioner, LREncoder
from .models.layers import parse_blocks

logger = logging.getLogger(__name__)

PRESETS: dict[str, str] = {
    **{name: f"vdvae-{name}" for name in ("ffhq256", "ffhq1024", "imagenet64", "imagenet32", "cifar10")},
    **{name: name for name in ("cvdvae-ffhq256-x4", "cvdvae-ffhq256-x8", "cvdvae-ffhq256-x16")},
    **{name: name for name in ("vdvae-sr-64", "vdvae-sr-256")},
}
"""Preset names and their folders in `hub_configs`."""

LISTED_KEYS = 20  # of each sort, in errors
GATED_BELOW = 32  # VDVAE-SR's code conditions the groups of resolutions below 32 only, whatever the image's size
_KINDS = {None: "VD-VAE", "LREncoder": "CVDVAE", "LRConditioner": "VDVAE-SR"}
_LR_CLASSES: dict[str, type[ModelMixin]] = {"LREncoder": LREncoder, "LRConditioner": LRConditioner}
_RENAMING: dict[type[ModelMixin], tuple[tuple[str, str], ...]] = {
    VDVAE: (
        (r"^encoder\.blocks\.", "encoder.enc_blocks."),
        (r"^blocks\.", "decoder.dec_blocks."),
        (r"\.posterior_head\.", ".enc."),
        (r"\.prior_head\.", ".prior."),
        (r"\.z_projection\.", ".z_proj."),
        (r"^affine\.", "decoder."),
        (r"^out_conv\.", "decoder.out_net.out_conv."),
    ),
    LREncoder: (
        (r"^network\.bottom_up\.blocks\.", "encoder_y.enc_blocks."),
        (r"^network\.bottom_up\.", "encoder_y."),
        (r"^heads\.(\d+)\.", r"decoder.dec_blocks.\1.enc_y."),
    ),
    LRConditioner: (
        (r"^network\.bottom_up\.blocks\.", "vae_sr.encoder.enc_blocks."),
        (r"^network\.bottom_up\.", "vae_sr.encoder."),
        (r"^gates\.(\d+)\.gate$", r"vae.decoder.dec_blocks.\1.gate_param"),
    ),
}


class ConversionError(ValueError):
    """A checkpoint that cannot be read, or that does not have the keys and shapes of its configuration."""


@dataclass
class _Recipe:
    """What to build: configurations, and the scalars of the pipeline where there is an LR network."""

    vdvae: dict[str, Any]
    lr_class: str | None = None
    lr_network: dict[str, Any] = field(default_factory=dict)
    pipeline: dict[str, Any] = field(default_factory=dict)


def load_checkpoint(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a published checkpoint, under their published names.

    Wrappers are taken off: Lightning's `state_dict` and `cvae.`, DataParallel's `module.`. Of a VDVAE-SR file with
    averaged weights (`ema_vae.`, `ema_vae_sr.`), which its published sampler uses, those are returned as `vae.` and
    `vae_sr.`. Pickles are read with `weights_only=True`.

    Raises:
        ConversionError: no such file, unreadable or truncated, a pickle that holds more than tensors and plain
            containers, or no tensors in it.
    """
    path = Path(path)
    if not path.is_file():
        raise ConversionError(f"`checkpoint`: there is no file {path}")
    try:
        if path.suffix == ".safetensors":
            content: Any = safetensors.torch.load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"(?:GLOBAL|global:?) ([\w.]+)", str(error))
        what = f"it refers to {found[1]}" if found else "it is no file of tensors that torch.save wrote"
        raise ConversionError(f"`checkpoint`: {path} was refused, nothing in it was run: {what}") from error
    except Exception as error:  # a damaged file surfaces as OSError, RuntimeError, EOFError, KeyError and others
        reason = str(error).split("\n")[0] or type(error).__name__
        raise ConversionError(f"`checkpoint`: {path} is damaged or of an unknown format ({reason})") from error

    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not any(isinstance(value, Tensor) for value in content.values()):
        raise ConversionError(f"`checkpoint`: {path} holds no tensors by name")
    stripped: dict[str, Tensor] = {}
    for key, value in content.items():
        name = re.sub(r"(^|\.)module\.", r"\1", re.sub(r"^cvae\.", "", re.sub(r"^module\.", "", str(key))))
        if not isinstance(value, Tensor):
            raise ConversionError(f"`checkpoint`: {key!r} in {path} is of type {type(value).__name__}, not a tensor")
        if name in stripped:
            raise ConversionError(f"`checkpoint`: {path} has {name!r} twice, with and without a wrapper's prefix")
        stripped[name] = value
    return _averaged(stripped)


def _averaged(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Puts `ema_vae.` and `ema_vae_sr.` in the place of `vae.` and `vae_sr.`, each where it exists."""
    for part in ("vae.", "vae_sr."):
        averaged = {key.removeprefix("ema_"): value for key, value in state.items() if key.startswith("ema_" + part)}
        if averaged:
            others = {key: v for key, v in state.items() if not key.startswith((part, "ema_" + part))}
            state = {**others, **averaged}
    return state


def _lr_class(state: Mapping[str, Tensor]) -> str | None:
    """The class of the LR network that belongs to a checkpoint's keys; None for a VD-VAE alone."""
    if any(key.startswith("encoder_y.") or ".enc_y." in key for key in state):
        return "LREncoder"
    if any(key.startswith(("vae.", "vae_sr.")) for key in state):
        return "LRConditioner"
    return None


def config_from_hparams(hparams: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of `VDVAE` for hyper-parameters under their published names.

    Args:
        hparams: `width`, `image_size`, `enc_blocks`, `dec_blocks`, and optionally `zdim`, `custom_width_str`,
            `bottleneck_multiple`, `no_bias_above`, `num_mixtures`, `dataset`, `shift` and `scale`, `low_bit`; other
            keys are ignored. Or a mapping that holds these under "hparams", with `low_bit`, `input_normalisation`
            (`shift`, `scale`), `input_shift` or `input_scale` beside it. A shift and scale meant for images on 0..1
            (a scale above 1) are brought to 0..255. Without them, those of the published model of the `dataset` are
            taken; without `low_bit`, the dataset "ffhq_256" has it.

    Raises:
        ConversionError: keys that are missing (all are named), or images that are not RGB.
    """
    h = _flatten(hparams)
    _require(h, ("width", "image_size", "enc_blocks", "dec_blocks"), "hparams")
    if h.get("image_channels", 3) != 3:
        raise ConversionError(f"`hparams`: image_channels must be 3, got {h['image_channels']!r}")
    dataset = str(h.get("dataset", ""))
    if h.get("shift") is None or h.get("scale") is None:
        published = dataset.replace("_", "")
        if published not in PRESETS:
            raise ConversionError(f"`hparams` lacks shift and scale, and no model is published for {dataset!r}")
        known = _read_json(PRESETS[published], "config.json")
        shift, scale = known["input_shift"], known["input_scale"]
    else:
        shift, scale = _on_255(float(h["shift"]), float(h["scale"]))
    return {
        "image_size": h["image_size"],
        "width": h["width"],
        "custom_widths": h.get("custom_width_str") or None,
        "encoder_blocks": h["enc_blocks"],
        "decoder_blocks": h["dec_blocks"],
        "bottleneck_multiple": h.get("bottleneck_multiple", 0.25),
        "latent_channels": h.get("zdim", 16),
        "num_mixtures": h.get("num_mixtures", 10),
        "bias_type": "spatial",
        "no_bias_above": h.get("no_bias_above", 64),
        "input_shift": shift,
        "input_scale": scale,
        "output_bits": 5 if h.get("low_bit", dataset == "ffhq_256") else 8,
        "patch_size": 1,
        "activation": "gelu",
    }


def _flatten(hparams: Mapping[str, Any]) -> dict[str, Any]:
    inner = hparams.get("hparams", hparams)
    if not isinstance(inner, Mapping):
        raise ConversionError(f"`hparams` must be an object of names and values, got {type(inner).__name__}")
    flat = {**inner, **(hparams.get("input_normalisation") or {})}
    renamed = (("low_bit", "low_bit"), ("input_shift", "shift"), ("input_scale", "scale"))
    return flat | {key: hparams[name] for name, key in renamed if name in hparams}


def _require(values: Mapping[str, Any], keys: tuple[str, ...], argument: str = "hparams") -> None:
    missing = [key for key in keys if values.get(key) is None]
    if missing:
        raise ConversionError(f"`{argument}` lacks {', '.join(missing)}")


def _on_255(shift: float, scale: float) -> tuple[float, float]:
    """Shift and scale for images on 0..255; a scale above 1 can only be the inverse deviation of images on 0..1."""
    return (shift * 255, scale / 255) if scale > 1 else (shift, scale)


def _recipe_from_hparams(hparams: Mapping[str, Any], lr_class: str | None) -> _Recipe:
    """The recipe of a checkpoint whose keys ask for `lr_class`.

    VDVAE-SR's code normalises by ImageNet-64's figures whatever the data, and does not floor its targets to 5 bits.
    """
    h = _flatten(hparams)
    if lr_class == "LRConditioner":
        _require(hparams, ("hparams_lr_encoder",))
        imagenet = _read_json(PRESETS["imagenet64"], "config.json")
        normalisation = {key: hparams.get(key, imagenet[key]) for key in ("input_shift", "input_scale")}
        config = config_from_hparams({"hparams": h, "low_bit": hparams.get("low_bit", False)} | normalisation)
        lr = hparams["hparams_lr_encoder"]
        _require(lr, ("enc_blocks", "image_size", "width"), "hparams_lr_encoder")
        width, custom_widths = lr["width"], lr.get("custom_width_str")
        blocks, size, multiple = lr["enc_blocks"], lr["image_size"], lr.get("bottleneck_multiple", 0.25)
        k = sum(spec.resolution < GATED_BELOW for spec in parse_blocks(config["decoder_blocks"]))
    else:
        config = config_from_hparams(h)
        if lr_class is None:
            return _Recipe(config)
        _require(h, ("enc_blocks_y", "ky", "image_size_y"))
        width, custom_widths = h.get("width_y") or config["width"], h.get("custom_width_str_y")
        blocks, size, multiple = h["enc_blocks_y"], h["image_size_y"], config["bottleneck_multiple"]
        k = h["ky"]
    scale_factor, rest = divmod(config["image_size"], size)
    if rest:
        raise ConversionError(f"`hparams`: image_size {config['image_size']} is no multiple of y's, {size}")
    lr_network = {
        "image_size": size,
        "blocks": blocks,
        "width": width,
        "custom_widths": custom_widths or None,
        "bottleneck_multiple": multiple,
        "num_conditioned_groups": k,
        "decoder_blocks": config["decoder_blocks"],
        "decoder_width": config["width"],
        "decoder_custom_widths": config["custom_widths"],
    } | {key: config[key] for key in ("input_shift", "input_scale")}
    if lr_class == "LREncoder":
        lr_network["decoder_bottleneck_multiple"] = config["bottleneck_multiple"]
        lr_network["latent_channels"] = config["latent_channels"]
    else:
        lr_network["scale_factor"] = scale_factor
    scalars = {"scale_factor": scale_factor, "downsampling_kernel": "bicubic", "default_temperature": 0.8}
    return _Recipe(config, lr_class, lr_network, scalars)


def _recipe_from_preset(preset: str) -> _Recipe:
    if preset not in PRESETS:
        raise ValueError(f"`preset` must be one of {', '.join(sorted(PRESETS))}, got {preset!r}")
    folder = PRESETS[preset]
    if not preset.startswith(("cvdvae", "vdvae-sr")):
        return _Recipe(_read_json(folder, "config.json"))
    index = _read_json(folder, "model_index.json")
    return _Recipe(
        _read_json(folder, "vdvae/config.json"),
        index["lr_encoder"][1],
        _read_json(folder, "lr_encoder/config.json"),
        {key: index[key] for key in ("scale_factor", "downsampling_kernel", "default_temperature")},
    )


def _read_json(folder: str, file: str) -> dict[str, Any]:
    """A configuration of `hub_configs`, without the keys that diffusers adds."""
    text = importlib.resources.files("hvae_sr.hub_configs").joinpath(folder, *file.split("/")).read_text("utf-8")
    return {key: value for key, value in json.loads(text).items() if not key.startswith("_")}


def _published_names(model: ModelMixin, prefix: str = "") -> dict[str, str]:
    """Our name of each parameter -> its published name; VDVAE-SR's prior has the `prefix` "vae."."""
    keys = list(model.state_dict())
    biases = sorted(int(key.split(".")[1]) for key in keys if key.startswith("biases."))
    names = {}
    for key in keys:
        name = key
        if key.startswith("biases."):
            name = f"decoder.bias_xs.{biases.index(int(key.split('.')[1]))}"
        for pattern, replacement in _RENAMING[type(model)]:
            name = re.sub(pattern, replacement, name)
        names[key] = prefix + name
    return names


def _build(model_class: type[ModelMixin], config: Mapping[str, Any]) -> ModelMixin:
    """The model on the meta device: names and shapes without memory."""
    with torch.device("meta"):
        return model_class(**config)


def _match(state: Mapping[str, Tensor], parts: list[tuple[ModelMixin, dict[str, str]]]) -> None:
    """Raises a ConversionError unless the checkpoint has exactly the keys of all parts, in their shapes."""
    shapes = {
        names[key]: tuple(value.shape) for model, names in parts for key, value in model.state_dict().items()
    }
    problems = {
        "missing": [key for key in shapes if key not in state],
        "unexpected": [key for key in state if key not in shapes],
        "misshapen": [
            f"{key} {tuple(state[key].shape)} instead of {shape}"
            for key, shape in shapes.items()
            if key in state and tuple(state[key].shape) != shape
        ],
    }
    lines = [
        f"{len(found)} {problem}: {', '.join(found[:LISTED_KEYS])}{', ...' if len(found) > LISTED_KEYS else ''}"
        for problem, found in problems.items()
        if found
    ]
    if lines:
        raise ConversionError("the checkpoint does not fit the configuration\n" + "\n".join(lines))


def _converted(state: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """The tensors under our names, fp32, each with a memory of its own (which safetensors asks for)."""
    return {ours: state[published].to(torch.float32, copy=True).contiguous() for ours, published in names.items()}


def convert_vdvae_state_dict(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state dict of `VDVAE(**config)` from one of openai/vdvae.

    Args:
        state: published names, as `load_checkpoint` gives them.
        config: configuration of `VDVAE`, as `config_from_hparams` gives it.

    Raises:
        ConversionError: keys that are missing, unexpected or of another shape, by their published names.
    """
    model = _build(VDVAE, config)
    names = _published_names(model)
    _match(state, [(model, names)])
    return _converted(state, names)


def _adopt_normalisation(state: Mapping[str, Tensor], recipe: _Recipe) -> None:
    """CVDVAE's checkpoints carry their shift and scale: these hold, whatever the configuration says."""
    if not {"shift", "scale"} <= state.keys():
        return
    values = _on_255(float(state["shift"]), float(state["scale"]))
    for config in (recipe.vdvae, recipe.lr_network):
        for key, value in zip(("input_shift", "input_scale"), values, strict=True):
            # The buffers are fp32: the configuration's double stays where they agree to rounding.
            if abs(value - config[key]) > 1e-6 * abs(value):
                logger.warning("%s: took %r from the checkpoint instead of %r", key, value, config[key])
                config[key] = value


def _drop_unused(state: Mapping[str, Tensor], lr_class: str | None, used: set[str]) -> dict[str, Tensor]:
    """Leaves out what the published code stores but never uses, and CVDVAE's normalisation."""
    unused = {
        "LREncoder": r"(shift|scale)$",
        "LRConditioner": r"vae_sr\.decoder\.|vae\.decoder\.dec_blocks\.\d+\.gate_param$",
    }.get(lr_class or "")
    return {key: v for key, v in state.items() if key in used or unused is None or not re.match(unused, key)}


def convert(
    checkpoint: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    preset: str | None = None,
    hparams: Mapping[str, Any] | None = None,
) -> Path:
    """Writes a published checkpoint as a folder for `from_pretrained`.

    A VD-VAE becomes a folder of `VDVAE`; a CVDVAE or VDVAE-SR one of `SuperResolutionPipeline`. The folder appears
    when it is complete or not at all.

    Args:
        checkpoint: a file that `load_checkpoint` reads.
        output_dir: a folder that does not exist or is empty.
        preset: a name of `PRESETS`.
        hparams: hyper-parameters under their published names (see `config_from_hparams`); for CVDVAE with
            `enc_blocks_y`, `ky`, `image_size_y`; for VDVAE-SR with `hparams_lr_encoder` beside `hparams`. Exactly
            one of `preset` and `hparams` must be given.

    Returns:
        `output_dir`.

    Raises:
        ConversionError: a checkpoint that cannot be read, or does not fit.
        ValueError: both or neither of `preset` and `hparams`, an unknown preset, an output that exists.
    """
    if (preset is None) == (hparams is None):
        raise ValueError(f"give either `preset` or `hparams`, got preset={preset!r} and hparams={hparams!r}")
    output = Path(output_dir)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"`output_dir`: {output} exists and is not an empty folder")
    recipe = _recipe_from_preset(preset) if preset is not None else None
    state = load_checkpoint(checkpoint)
    lr_class = _lr_class(state)
    if recipe is None:
        recipe = _recipe_from_hparams(hparams or {}, lr_class)
    if recipe.lr_class != lr_class:
        raise ConversionError(
            f"`preset` {preset!r} is a {_KINDS[recipe.lr_class]}, the checkpoint holds a {_KINDS[lr_class]}"
        )
    _adopt_normalisation(state, recipe)
    vdvae = _build(VDVAE, recipe.vdvae)
    parts = [(vdvae, _published_names(vdvae, "vae." if lr_class == "LRConditioner" else ""))]
    if lr_class is not None:
        lr_network = _build(_LR_CLASSES[lr_class], recipe.lr_network)
        parts.append((lr_network, _published_names(lr_network)))
    state = _drop_unused(state, lr_class, {name for _, names in parts for name in names.values()})
    _match(state, parts)
    for model, names in parts:
        model.load_state_dict(_converted(state, names), assign=True)
        model.eval()
    to_save: Any = vdvae
    if lr_class is not None:
        from .pipelines import SuperResolutionPipeline

        to_save = SuperResolutionPipeline(vdvae=vdvae, lr_encoder=lr_network, **recipe.pipeline)
    _write(to_save, output)
    return output


def _write(to_save: Any, output: Path) -> None:
    """`save_pretrained` into a temporary folder beside `output`, then one rename."""
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}-"))
    try:
        # mkdtemp's folder is private; what it holds is to have the rights of any other folder.
        written = temporary / "folder"
        written.mkdir()
        to_save.save_pretrained(written)
        os.replace(written, output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
