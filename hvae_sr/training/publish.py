"""The end of a run: a folder that loads, with a card that says how it was made."""

import copy
import logging
import os
import re
import shlex
import tempfile
import textwrap
from pathlib import Path
from typing import Any

import torch
import yaml
from diffusers.configuration_utils import FrozenDict
from huggingface_hub import HfApi, ModelCard, ModelCardData, get_token
from torch import nn

from ..checkpoints.names import is_hub_id
from ..files import read_object, write_atomically
from ..images import save_image
from ..pipelines import SuperResolutionPipeline
from ..publishing.card import IMAGES_FOLDER, NOTES_FILE, write_model_card
from ..publishing.push import check_repo_id
from .baselines import BaselineObjective
from .checkpoints import Progress
from .config import BASELINE_STAGES, TrainingConfig
from .networks import STAGES, baseline_recipe
from .objectives import Objective
from .plots import plot_curve

logger = logging.getLogger(__name__)

_SMALL = 2048
"""Numbers of the smallest kernel that is worth the rounding."""
_SIGNATURE = "Made by `train.py` of hvae-sr:"


def default_temperature(config: TrainingConfig) -> float:
    """What is asked for; else that of the pipeline whose LR network the run started from, or 0.8."""
    if config.default_temperature is not None:
        return config.default_temperature
    index = Path(config.pretrained_lr_encoder or "").parent / "model_index.json"
    found = read_object(index, "pretrained_lr_encoder") if config.pretrained_lr_encoder and index.is_file() else {}
    return float(found.get("default_temperature", 0.8))


def build_pipeline(objective: Objective, config: TrainingConfig, components: dict[str, Any] | None = None) -> Any:
    """The pipeline of the objective's networks, or of other ones in their places."""
    networks = objective.components() if components is None else components
    shared = {"scale_factor": config.scale_factor, "downsampling_kernel": config.downsampling_kernel}
    if not isinstance(objective, BaselineObjective):
        consistency, temperature = "exact" if config.exact else "none", default_temperature(config)
        return SuperResolutionPipeline(**networks, **shared, consistency=consistency, default_temperature=temperature)
    own: dict[str, Any] = {**baseline_recipe(config).pipeline, **shared}
    if objective.pipeline.has_temperature:
        own.setdefault("default_temperature", default_temperature(config))
    if not config.exact or config.consistency is not None:  # else as the published system does
        own["enforce_consistency"] = config.exact
    if objective.scheduler is not None:
        own["scheduler"] = objective.scheduler
    return objective.pipeline(**networks, **own)


def write_folder(objective: Objective, config: TrainingConfig, folder: Path) -> None:
    """Writes the networks with the weights they have: a VDVAE folder, or a pipeline folder with both networks.

    Raises:
        OSError: the folder cannot be written, such as on a full disk.
    """
    components: dict[str, Any] = dict(objective.components())
    for network in components.values():  # or diffusers would write the folder that each was loaded from
        network._internal_dict = FrozenDict({k: v for k, v in network.config.items() if k != "_name_or_path"})
    if config.saved_dtype != "float32":  # of copies: the run's own weights stay as exact as they are
        eighth = config.saved_dtype == "float8"
        components = {name: _smaller(network, eighth) for name, network in components.items()}
    if config.stage == "vdvae":
        result = components["vdvae"]
    else:
        result = build_pipeline(objective, config, components)
        if isinstance(result, SuperResolutionPipeline):
            result.register_to_config(fast_inference=config.mixed_precision == "bf16")  # what was trained in
    result.save_pretrained(folder)


def _smaller(network: Any, kernels_in_float8: bool) -> Any:
    """A copy in float16, its kernels in float8 (e4m3) on demand: loading turns both into what is asked for.

    Kernels that were not trained stay in float16 where float8 does not have their numbers.
    """
    smaller = copy.deepcopy(network).half()
    for name, module in network.named_modules():
        if kernels_in_float8 and isinstance(module, nn.Conv2d) and module.weight.numel() >= _SMALL:
            weight = module.weight.data
            rounded = weight.to(torch.float8_e4m3fn)
            if module.weight.requires_grad or torch.equal(rounded.to(weight.dtype), weight):
                smaller.get_submodule(name).weight.data = rounded
    return smaller


def write_card(config: TrainingConfig, folder: Path, records: list[dict[str, Any]], progress: Progress) -> None:
    """Writes README.md, the model card, and the curve of the loss in `images`.

    A README.md that this function has not written is left alone.
    """
    path = folder / "README.md"
    if path.exists() and _SIGNATURE not in path.read_text(errors="replace"):
        logger.info("%s exists and is left as it is", path)
        return
    curve, picture = plot_curve(records, STAGES[config.stage].figure), None
    if curve is not None:
        picture = folder / IMAGES_FOLDER / "curve.png"
        picture.parent.mkdir(exist_ok=True)
        save_image(curve, picture)
    summary, own = _summary(config, records, progress), folder / NOTES_FILE
    if config.stage in BASELINE_STAGES:
        _write_baseline_card(config, folder, summary, picture)
        return
    text = own.read_text(encoding="utf-8-sig") if own.is_file() else f"---\n{yaml.safe_dump(_metadata(config))}---\n"
    if not re.search(r"^## +Training *$", text, re.MULTILINE):  # what people wrote about it stands instead
        text += f"\n## Training\n\n{summary}\n"
    else:
        text += f"\n<!-- {_SIGNATURE} written again at the end of each run -->\n"
    with tempfile.TemporaryDirectory() as temporary:
        notes = Path(temporary) / NOTES_FILE
        notes.write_text(text, encoding="utf-8")
        write_model_card(folder, training_command=_command(config), notes=notes, curve=picture)


def _write_baseline_card(config: TrainingConfig, folder: Path, summary: str, curve: Path | None) -> None:
    data = ModelCardData(
        license="other", library_name="hvae-sr", pipeline_tag="image-to-image", tags=["super-resolution"],
        **_metadata(config),
    )  # fmt: skip
    picture = f"\n\n![Training curves]({IMAGES_FOLDER}/{curve.name})" if curve is not None else ""
    name, system = folder.resolve().name, Path(config.baseline or "").stem
    card = ModelCard(
        f"---\n{data.to_yaml()}\n---\n\n"
        f"# {name}\n\nA system that `hvae-sr` compares with: {system}, x{config.scale_factor}.\n\n"
        f"```\nhvae-sr upscale INPUT -o OUT --model {name}\n```\n\n"
        f"## Training\n\n{summary}\n\n```\n{_command(config)}\n```{picture}\n"
    )
    write_atomically(str(card), folder / "README.md")


def repository(config: TrainingConfig) -> str:
    """`hub_model_id`, or the user's repository with the name of `output_dir`.

    Raises:
        ValueError: the Hub would not take the name, or nobody is logged in.
    """
    name = config.hub_model_id or config.output_path.resolve().name
    if "/" in name and get_token() is None:
        raise ValueError(f"`hub_model_id` {name!r}: nobody is logged in (hf auth login, or HF_TOKEN)")
    try:
        name = name if "/" in name else f"{HfApi().whoami()['name']}/{name}"
    except Exception as error:  # not logged in, no network, or a server's answer
        reason = " ".join(str(error).split())
        raise ValueError(f"`hub_model_id` {name!r} has no owner, and the Hub does not name you: {reason}") from error
    try:
        check_repo_id(name)
    except ValueError as error:
        raise ValueError(str(error).replace("`repo_id`", "`hub_model_id`")) from None
    return name


def _metadata(config: TrainingConfig) -> dict[str, Any]:
    """What of the options is on the Hub, for the card."""
    given = [config.pretrained_vdvae, config.pretrained_lr_encoder, config.pretrained_network, config.dataset_name]
    *bases, dataset = (name if name and is_hub_id(name) and not Path(name).exists() else None for name in given)
    found = {"base_model": [name for name in bases if name], "datasets": [dataset] if dataset else []}
    return {name: values for name, values in found.items() if values}


def _summary(config: TrainingConfig, records: list[dict[str, Any]], progress: Progress) -> str:
    figure = STAGES[config.stage].figure
    last = {key: value for record in records for key, value in record.items() if isinstance(value, float)}
    shown = {key: last[key] for key in (figure, f"validation_{figure}") if key in last}
    shown |= {key: value for key, value in last.items() if "psnr" in key}
    rows = "".join(f"| {key.replace('_', ' ')} | {value:.4g} |\n" for key, value in shown.items())
    crops = config.train_batch_size * config.gradient_accumulation_steps
    left_out = f" ({progress.skipped} of them left out for their gradients)" if progress.skipped else ""
    text = (
        f"{_SIGNATURE} {STAGES[config.stage].method}; {progress.step} updates{left_out} of {crops} crops of "
        f"{config.resolution} x {config.resolution} pixels in each process, seed {config.seed}, "
        f"precision {config.mixed_precision}."
    )
    return f"{textwrap.fill(text, 118)}\n\n| at the end | |\n|---|---|\n{rows}" if rows else textwrap.fill(text, 118)


def _command(config: TrainingConfig) -> str:
    """The run's options as a command line, with the last part of paths only: cards are published."""
    parts = ("train.py", *config.arguments)
    split = [part.partition("=") if part.startswith("--") else ("", "", part) for part in parts]
    return shlex.join([head + sign + (Path(last).name if os.path.isabs(last) else last) for head, sign, last in split])
