"""The end of a run: a folder that loads, with a card that says how it was made."""

import json
import logging
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from diffusers.configuration_utils import FrozenDict
from huggingface_hub import ModelCard, ModelCardData

from .. import hub
from ..models import VDVAE, LRConditioner, LREncoder
from .config import TrainingConfig
from .objectives import Objective
from .validation import plot_curve

logger = logging.getLogger(__name__)

LOSS_FIGURES = {
    "vdvae": "bits_per_dim",
    "lr-encoder": "kl_bits_per_dim",
    "joint": "bits_per_dim",
    "vdvae-sr": "bits_per_dim",
    "energy-score": "score",
}
"""The figure in the log that a stage is judged by."""

_CURVE = "curve.png"
_METHODS = {
    "vdvae": "VD-VAE prior (negative ELBO)",
    "lr-encoder": "CVDVAE: LR encoder distilled from a frozen VD-VAE prior",
    "joint": "CVDVAE: VD-VAE prior and LR encoder trained together",
    "vdvae-sr": "VDVAE-SR: conditioned VD-VAE (conditional ELBO)",
    "energy-score": "conditioned VD-VAE decoder trained with the energy score",
}


def write_folder(objective: Objective, config: TrainingConfig, folder: Path) -> None:
    """Writes the networks with the weights they have: a VDVAE folder, or a pipeline folder with both networks.

    Raises:
        OSError: the folder cannot be written, such as on a full disk.
    """
    components = objective.components()
    for network in components.values():
        _forget_origin(network)
    if config.stage == "vdvae":
        components["vdvae"].save_pretrained(folder)
    else:
        from ..pipelines import SuperResolutionPipeline

        SuperResolutionPipeline(
            **components,
            scale_factor=config.scale_factor,
            downsampling_kernel=config.downsampling_kernel,
            default_temperature=config.default_temperature,
        ).save_pretrained(folder)


def write_card(config: TrainingConfig, folder: Path, records: list[dict[str, Any]], updates: int) -> None:
    """Writes README.md, the model card, and the curve of the loss beside it.

    A README.md that is no card of this training code is left alone.
    """
    path = folder / "README.md"
    if path.exists() and _SIGNATURE not in path.read_text(errors="replace"):
        logger.info("%s exists and is left as it is", path)
        return
    curve = plot_curve(records, LOSS_FIGURES[config.stage])
    if curve is not None:
        _replace(folder / _CURVE, lambda partial: curve.save(partial, format="PNG"))
    card = ModelCard(
        f"---\n{_metadata(config).to_yaml()}\n---\n\n{_text(config, folder, records, updates, curve is not None)}"
    )
    _replace(path, lambda partial: partial.write_text(str(card)))


def push(config: TrainingConfig, folder: Path) -> str:
    """Uploads the folder to the Hub; returns the address of the commit.

    Raises:
        ValueError: no name for the repository, no access, or the Hub cannot be reached.
    """
    return hub.push(folder, repository(config), private=config.hub_private_repo or None, message="Training finished")


def repository(config: TrainingConfig) -> str:
    """`hub_model_id`, or the user's repository with the name of `output_dir`.

    Raises:
        ValueError: nobody is logged in, so that there is no owner to name.
    """
    name = config.hub_model_id or config.output_path.resolve().name
    if "/" in name:
        return name
    from huggingface_hub import HfApi

    try:
        return f"{HfApi().whoami()['name']}/{name}"
    except Exception as error:  # not logged in, no network, or a server's answer
        reason = " ".join(str(error).split())
        raise ValueError(f"`hub_model_id` {name!r} has no owner, and the Hub does not name you: {reason}") from error


_SIGNATURE = "Made by `train.py` of hvae-sr."


def _metadata(config: TrainingConfig) -> ModelCardData:
    bases = [path for path in (config.pretrained_vdvae, config.pretrained_lr_encoder) if path and _is_hub_id(path)]
    dataset = config.dataset_name if config.dataset_name and _is_hub_id(config.dataset_name) else None
    return ModelCardData(
        library_name="hvae-sr",
        pipeline_tag="unconditional-image-generation" if config.stage == "vdvae" else "image-to-image",
        tags=["super-resolution", "hierarchical-vae", "diffusers", config.stage],
        base_model=bases or None,
        datasets=[dataset] if dataset else None,
    )


def _text(config: TrainingConfig, folder: Path, records: list[dict[str, Any]], updates: int, has_curve: bool) -> str:
    name = folder.resolve().name
    figure = LOSS_FIGURES[config.stage]
    kind, use = (
        ("VDVAE", "images = model.sample(4).sample  # [4, 3, H, W] on [-1, 1]")
        if config.stage == "vdvae"
        else ("SuperResolutionPipeline", 'images = model("photo.png", num_samples=5, seed=0).images')
    )
    load = f'from hvae_sr import {kind}\n\nmodel = {kind}.from_pretrained("{name}")\n{use}'
    last = {key: value for record in records for key, value in record.items() if isinstance(value, float)}
    shown = {key: last[key] for key in (figure, f"validation_{figure}") if key in last}
    shown |= {key: value for key, value in last.items() if "psnr" in key}
    rows = "".join(f"| {key.replace('_', ' ')} | {value:.4g} |\n" for key, value in shown.items())
    options = json.loads((folder / "training_config.json").read_text())
    parts = [
        f"# {name}\n\n{_METHODS[config.stage]}, {'' if config.stage == 'vdvae' else f'x{config.scale_factor}, '}"
        f"after {updates} updates of {config.train_batch_size * config.gradient_accumulation_steps} crops of "
        f"{config.resolution} x {config.resolution} pixels in each process. {_SIGNATURE}",
        f"```python\n{load}\n```",
        f"## Figures at the end\n\n| | |\n|---|---|\n{rows}" if rows else "",
        f"![{figure.replace('_', ' ')}]({_CURVE})" if has_curve else "",
        f"## Training\n\n```\n{_command()}\n```\n\nThe resolved options are in `training_config.json`, every figure in "
        f"`log.jsonl`. Seed {options['seed']}, precision {options['mixed_precision']}.",
        "## Limits\n\nSamples are plausible images, not evidence of what was there. Say here which images the weights "
        "were trained on, and under which licence.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _command() -> str:
    """The command line, with paths inside the home folder shortened: cards are published."""
    home = str(Path.home())
    return shlex.join([Path(sys.argv[0]).name, *(part.replace(home, "~") for part in sys.argv[1:])])


def _is_hub_id(text: str) -> bool:
    return text.count("/") == 1 and not text.startswith((".", "/", "~")) and not Path(text).exists()


def _forget_origin(network: VDVAE | LREncoder | LRConditioner) -> None:
    """diffusers would write the folder that a network was loaded from into the configuration of the new one."""
    network._internal_dict = FrozenDict({k: v for k, v in network.config.items() if k != "_name_or_path"})


def _replace(path: Path, write: Any) -> None:
    partial = path.with_name(path.name + ".partial")
    write(partial)
    os.replace(partial, path)
