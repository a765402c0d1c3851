"""Options of `train.py`: one dataclass, filled from a recipe file and the command line."""

import argparse
import json
import math
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

import numpy as np
import yaml
from transformers import HfArgumentParser

from ..checkpoints.compared import PRESETS as BASELINES
from ..data import bundled_degradations, load_degradation
from ..features import NUM_TAPS
from ..files import write_atomically
from ..operators import KERNELS

OPTIONS_FILE = "training_config.json"
"""In `output_dir`: the resolved options."""
BASELINE_STAGES = ("regression", "hcflow", "sr3", "ddpm")
"""Those of the compared systems."""
STAGES = ("vdvae", "lr-encoder", "joint", "vdvae-sr", "energy-score", *BASELINE_STAGES)
_SCHEDULES = "constant constant_with_warmup linear cosine cosine_with_restarts piecewise_constant plateau"
_CHOICES = {
    "stage": STAGES,
    "kl_reduction": ("sum", "group_mean"),
    "lr_scheduler": tuple(_SCHEDULES.split()),
    "mixed_precision": ("no", "bf16", "fp16"),
    "saved_dtype": ("float32", "float16", "float8"),
    "consistency": (None, "exact", "none"),
    "downsampling_kernel": KERNELS,
}
_RESUMED = (
    "learning_rate", "adam_beta1", "adam_beta2", "adam_weight_decay", "adam_epsilon", "use_ema", "ema_decay",
    "plateau_patience", "plateau_factor", "seed",
)  # fmt: skip
"""Options that a checkpoint holds, and the seed of its crops and noise: a run that goes on from it has the same."""
_RELATIVE = ("vdvae_config", "lr_config", "degradation", "baseline")
"""Files that a recipe names relative to its own folder."""
_FOLDERS = ("train_data_dir", "validation_data_dir", "train_lr_dir", "validation_lr_dir")
_PATHS = (*_RELATIVE, "output_dir", "dataset_name", "pretrained_vdvae", "pretrained_lr_encoder", "pretrained_network",
          "pretrained_restorer", "pretrained_regression", "pretrained_teacher", "lr_from_vdvae", "lpips_weights",
          "resume_from_checkpoint")  # fmt: skip
"""Options that may begin with `~`."""
_FREEZE = {"train_decoder": ("vdvae-sr", "energy-score"), "train_encoder": ("vdvae-sr",)}
"""Options that freeze weights where they are false, and the stages that read them."""
_RANGES: tuple[tuple[str, Callable[[float], bool], str], ...] = (
    (
        "regression_pixel_weight regression_perceptual_weight regression_critic_weight flow_pixel_weight vlb_weight "
        "score_point_weight score_band_weight score_perceptual_weight score_distance_fade seed lr_warmup_steps "
        "dataloader_num_workers learning_rate adam_weight_decay adam_epsilon default_temperature plateau_patience "
        "cache_gib validation_images",
        lambda value: 0 <= value < math.inf,
        "must be at least 0 and finite, got",
    ),
    (
        "score_samples score_perceptual_taps resolution crops_per_image train_batch_size gradient_accumulation_steps "
        "max_train_steps num_train_epochs scale_factor checkpointing_steps checkpoints_total_limit logging_steps "
        "validation_steps lr_num_cycles",
        lambda value: 1 <= value < math.inf,
        "must be at least 1 and finite, got",
    ),
    ("max_grad_norm", lambda norm: 0 < norm < math.inf, "must be above 0 and finite (a large one clips nothing), got"),
    (
        "skip_threshold",
        lambda norm: 0 < norm < math.inf,
        "must be above 0 and finite (a large one leaves out nothing that is finite), got",
    ),
    ("adam_beta1 adam_beta2 ema_decay", lambda value: 0 <= value < 1, "must lie in [0, 1), got"),
    ("plateau_factor", lambda factor: 0 < factor < 1, "must lie between 0 and 1, got"),
    ("seed", lambda seed: seed < 2**32, "must be below 2**32, got"),
    ("score_level_dropout score_low_temperatures", lambda share: 0 <= share <= 1, "must lie in [0, 1], got"),
    ("scales", lambda scale: 0 < scale < math.inf, "must be finite factors above 0, at least one, got"),
    ("validation_temperatures", lambda value: 0 <= value < math.inf, "must be finite and >= 0, got"),
)
"""Options, what must hold of their values, and the words of the error."""


def option(default: Any, help: str) -> Any:
    """A field with its help text."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


@dataclass
class TrainingConfig:
    """Options of `train.py`. Names are those of diffusers' training scripts where they mean the same."""

    stage: str = option(
        "vdvae",
        "vdvae (ELBO), lr-encoder (distillation), joint (both), vdvae-sr or energy-score; of the compared systems "
        "regression, hcflow, sr3 or ddpm (the prior of DPS).",
    )
    train_data_dir: list[str] = option([], "Folders of photographs, searched recursively.")
    validation_data_dir: list[str] = option([], "Folders of photographs held out, to measure the loss on.")
    train_lr_dir: list[str] = option([], "Folders of ready-made LR images, one for each of train_data_dir.")
    validation_lr_dir: list[str] = option([], "The same for validation_data_dir.")
    dataset_name: str | None = option(None, "Instead of folders: a dataset on the Hub, or .parquet or .tar files.")
    dataset_config_name: str | None = option(None, "Configuration of the dataset.")
    dataset_split: str = option("train", "Split of the dataset to train on.")
    validation_split: str | None = option(None, "Split of the dataset held out, instead of validation_data_dir.")
    image_column: str = option("image", "Column of the dataset that holds the images.")
    streaming: bool = option(False, "Read the dataset while training, instead of downloading it first.")
    cache_gib: float = option(2.0, "Images are kept decoded in memory if they take no more, in GiB and process.")
    validation_steps: int = option(500, "Updates between validations.")
    validation_images: int = option(4, "Held-out images in the sheets of samples in output_dir/validation; 0: none.")
    validation_temperatures: list[float] = option([0.2, 0.8, 1.0], "Temperatures of those samples.")
    output_dir: str = option("", "Where checkpoints and, at the end, the trained folder are written.")
    vdvae_config: str | None = option(None, "JSON configuration of a new VDVAE.")
    pretrained_vdvae: str | None = option(None, "A trained VDVAE; with vdvae_config, the new one starts from it.")
    lr_config: str | None = option(None, "JSON configuration of the LREncoder or LRConditioner.")
    pretrained_lr_encoder: str | None = option(
        None, "A trained LR network; with lr_config, it grows to that, or for another decoder gives it what fits."
    )
    pretrained_restorer: str | None = option(None, "Folder of a trained RRDBNet for a new LR network's restorer.")
    pretrained_regression: str | None = option(None, "Folder of a trained SPAN for a new LR network's regression.")
    baseline: str | None = option(
        None, "Compared system: a preset of `hvae-sr convert`, or JSON: architecture, options, scheduler, pipeline."
    )
    pretrained_network: str | None = option(None, "A trained network of that system to start from: its folder.")
    pretrained_blocks: list[int] = option(
        [], "regression: those blocks of the RRDBNet in pretrained_network that a new one of as many starts with."
    )
    pretrained_teacher: str | None = option(
        None, "regression: a trained network whose image of y is imitated instead of the photograph: its folder."
    )
    regression_pixel_weight: float = option(1.0, "regression: weight of the L1 error.")
    regression_perceptual_weight: float = option(0.0, "regression: weight of the distance of features of VGG16.")
    regression_critic_weight: float = option(0.0, "regression: weight of the adversarial loss of a critic of these.")
    flow_pixel_weight: float = option(0.0, "hcflow: weight of the L1 error of the sample at temperature 0.")
    vlb_weight: float = option(0.001, "ddpm: weight of the variational bound, which trains the variances.")
    scale_factor: int = option(4, "Sides of x over sides of y.")
    downsampling_kernel: str = option("bicubic", "Kernel that makes y from x (see Downsampling).")
    degradation: str | None = option(
        None, "Random degradation to make y instead: mild-jpeg, noise, blur-noise, second-order, real or a YAML file."
    )
    consistency: str | None = option(
        None, "exact (samples are projected on Hx = y) or none; default: none with `degradation`, else exact."
    )
    saved_dtype: str = option(
        "float32", "Of the saved weights: float32, float16, or float8 for kernels and float16 for all else."
    )
    default_temperature: float | None = option(
        None, "The saved pipeline's; if not given, that of the pipeline of pretrained_lr_encoder, or 0.8."
    )
    kl_reduction: str = option("sum", "lr-encoder: sum (the paper's eq. 14) or group_mean (the published code).")
    rate_weights: list[str] = option(
        [], "Weight of the rate in an ELBO at updates, linear between them, such as 0:0.1 1000:1; none: 1 throughout."
    )
    lr_from_vdvae: str | None = option(None, "A VDVAE whose encoder the LR network's bottom-up part starts from.")
    train_encoder: bool = option(True, "vdvae-sr: whether the VDVAE's encoder of x is trained; the thesis froze it.")
    train_decoder: bool = option(True, "vdvae-sr, energy-score: whether the VDVAE is trained with the LR network.")
    score_samples: int = option(2, "energy-score: samples of each crop; 1 is the regression of a point estimate.")
    score_patch_sizes: list[int] = option([1, 4], "energy-score: sides of the patches that are compared, in pixels.")
    score_point_weight: float = option(0.0, "energy-score: weight of the error of the sample at temperature 0.")
    score_band_weight: float = option(0.0, "energy-score: weight of the score of local energies of bands.")
    score_band_windows: list[int] = option([8, 16, 32], "energy-score: sides of the windows of these, in pixels.")
    score_perceptual_weight: float = option(0.0, "energy-score: weight of the score of features of VGG16.")
    score_perceptual_taps: int = option(3, "energy-score: how many of LPIPS' five taps are scored, from the finest.")
    score_level_dropout: list[float] = option(
        [], "energy-score: shares of the updates with only the coarsest level, the two coarsest, ... at temperature 1."
    )
    score_level_pools: list[int] = option(
        [], "energy-score: pixels of the squares to average over in each of these; none: half the finest one's stride."
    )
    score_low_temperatures: float = option(
        0.0, "energy-score: share of the updates at a temperature drawn from [0, 1), whose spread counts less."
    )
    score_distance_fade: float = option(
        0.0, "energy-score: power of that temperature which the scores of bands and features are multiplied by."
    )
    lpips_weights: str | None = option(
        None, "safetensors file of VGG16's convolutions (torchvision's names) and LPIPS' heads, for that score."
    )

    resolution: int = option(64, "Side of the training crops.")
    scales: list[float] = option([1.0, 0.75, 0.5, 0.33, 0.25], "Factors that images are resized by before cropping.")
    horizontal_flip: bool = option(True, "Mirror images as augmentation.")
    rotate: bool = option(True, "Quarter turns as augmentation.")
    crops_per_image: int = option(1, "Crops of each image in an epoch.")
    seed: int = option(0, "Seed of initialisation, augmentation, order and latent noise.")
    train_batch_size: int = option(32, "Crops per step and process.")
    gradient_accumulation_steps: int = option(1, "Batches added up before an update.")
    max_train_steps: int = option(1000, "Updates in all.")
    num_train_epochs: int | None = option(None, "Passes over the images in all, instead of max_train_steps.")
    learning_rate: float = option(1e-3, "Peak learning rate.")
    lr_scheduler: str = option(
        "cosine", "constant, constant_with_warmup, linear, cosine, cosine_with_restarts, piecewise_constant or plateau."
    )
    lr_warmup_steps: int = option(100, "Updates of linear warm-up, but with lr_scheduler constant.")
    lr_num_cycles: int = option(1, "cosine_with_restarts: cycles.")
    lr_step_rules: str | None = option(
        None, "piecewise_constant: factors and the updates until which they hold, as 1:200000,0.5."
    )
    plateau_patience: int = option(10, "plateau: validations in a row without a better loss that are borne.")
    plateau_factor: float = option(0.5, "plateau: what the rate is multiplied by.")
    adam_beta1: float = option(0.9, "AdamW.")
    adam_beta2: float = option(0.95, "AdamW.")
    adam_weight_decay: float = option(0.01, "AdamW.")
    adam_epsilon: float = option(1e-8, "AdamW.")
    max_grad_norm: float = option(20.0, "Gradients are clipped to this norm.")
    skip_threshold: float = option(1000.0, "Updates with a larger or non-finite gradient norm are left out.")
    use_ema: bool = option(True, "Averages the weights; the average is what is saved at the end.")
    ema_decay: float = option(0.999, "Decay of the average.")
    mixed_precision: str = option("no", "no, bf16 or fp16.")
    gradient_checkpointing: bool = option(False, "Less memory, about a third more time.")
    allow_tf32: bool = option(False, "TF32 in matrix products and convolutions, on Ampere GPUs and later.")
    dataloader_num_workers: int = option(0, "Processes that read images.")
    checkpointing_steps: int = option(500, "Updates between checkpoints.")
    checkpoints_total_limit: int = option(2, "Checkpoints kept.")
    resume_from_checkpoint: str | None = option(None, "A checkpoint, or latest: the newest in output_dir, if any.")
    logging_steps: int = option(50, "Updates between lines in output_dir/log.jsonl.")
    report_to: str | None = option(None, "Trackers of accelerate: tensorboard, wandb, trackio.")
    logging_dir: str = option("logs", "Folder of the trackers, below output_dir.")
    push_to_hub: bool = option(False, "Uploads the finished folder to the Hub.")
    hub_model_id: str | None = option(None, "Repository to upload to, owner/name; else the name of output_dir.")
    hub_private_repo: bool = option(False, "Makes that repository private, if it is made.")
    dry_run: bool = option(False, "Prints model, cost, memory, images and options, then stops; nothing is written.")

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():  # HfArgumentParser changes the types of the fields
            value = getattr(self, name)
            if name in _FOLDERS and isinstance(value, list):
                setattr(self, name, [_expanded(folder) for folder in value])
            elif name in _PATHS:
                setattr(self, name, _expanded(value))
            must = f"must be {kind.__name__ if isinstance(kind, type) else kind}, got"
            self._check(_fits(getattr(self, name), kind), name, must)
        for name, allowed in _CHOICES.items():
            must = f"must be one of {', '.join(filter(None, allowed))}; got"
            self._check(getattr(self, name) in allowed, name, must)
        self._check_data()
        self._check(self.output_dir, "output_dir", "must be given")
        for names, holds, must in _RANGES:
            for name in names.split():
                values = getattr(self, name)
                values = values if isinstance(values, list) else [values]
                self._check(all(value is None or holds(value) for value in values), name, must)
        self._check(self.scales, "scales", "must be finite factors above 0, at least one, got")
        updates = [_parse_point(entry)[0] for entry in self.rate_weights]
        self._check(updates == sorted(updates), "rate_weights", "must name ascending updates, got")
        self._check_stage()
        self._check_degradation()

    def _check(self, sound: Any, name: str, must: str) -> None:
        """Raises a ValueError about the option `name` unless it is sound, with its value where `must` ends openly."""
        if not sound:
            value = f" {getattr(self, name)!r}" if must.endswith((" got", ":")) else ""
            raise ValueError(f"`{name}` {must}{value}")

    def _check_stage(self) -> None:
        stage, side = self.stage, self.resolution
        multiple = stage == "vdvae" or side % self.scale_factor == 0
        self._check(multiple, "resolution", f"must be a multiple of scale_factor {self.scale_factor}:")
        if stage == "energy-score":
            sound = bool(self.score_patch_sizes) and all(p >= 1 and side % p == 0 for p in self.score_patch_sizes)
            self._check(sound, "score_patch_sizes", f"must divide resolution {side}:")
            sound = not self.score_band_weight or min(self.score_band_windows, default=0) > 1
            self._check(sound, "score_band_windows", "must be integers above 1, got")
            sound = not self.score_perceptual_weight or self.lpips_weights is not None
            self._check(sound, "lpips_weights", "must be given for a score_perceptual_weight above 0")
            sound = self.score_perceptual_taps <= NUM_TAPS
            self._check(sound, "score_perceptual_taps", f"must be at most {NUM_TAPS}, got")
        if self.lr_scheduler == "piecewise_constant":
            must = "must be factors and ascending updates, such as 1:200000,0.5; got"
            self._check(_are_rules(self.lr_step_rules), "lr_step_rules", must)
        if stage in BASELINE_STAGES:
            self._check(self.baseline, "baseline", f"must be given for stage {stage}")
            seen = self.regression_perceptual_weight or self.regression_critic_weight
            sound = not seen or self.lpips_weights is not None
            self._check(sound, "lpips_weights", "must be given for a perceptual or critic weight above 0")
            sound = not self.pretrained_blocks or self.pretrained_network is not None
            self._check(sound, "pretrained_blocks", "needs `pretrained_network`, got")
            # The flow's Jacobian and its inverse are no better than the precision of every layer.
            sound = stage != "hcflow" or self.mixed_precision == "no"
            self._check(sound, "mixed_precision", "must be no for stage hcflow, got")
            return
        pretrained = self.pretrained_vdvae is not None
        self._check(pretrained or self.vdvae_config, "vdvae_config", "or `pretrained_vdvae` must be given")
        for name, stages in _FREEZE.items():
            sound = pretrained or stage not in stages or getattr(self, name)
            self._check(sound, name, "false needs `pretrained_vdvae`: random weights would be frozen")
        sound = pretrained or stage != "lr-encoder"
        self._check(sound, "pretrained_vdvae", "must be given for stage lr-encoder: the prior stays frozen")
        sound = stage == "vdvae" or bool(self.lr_config or self.pretrained_lr_encoder)
        self._check(sound, "lr_config", f"or `pretrained_lr_encoder` must be given for stage {stage}")

    def _check_data(self) -> None:
        """Raises a ValueError unless exactly one source of images is named, with options that it has."""
        if bool(self.train_data_dir) == bool(self.dataset_name):
            raise ValueError(
                "`train_data_dir` must name at least one folder of photographs, or else `dataset_name` a dataset; "
                f"got {'both' if self.train_data_dir else 'neither'}"
            )
        wrong = {
            "train_lr_dir": self.train_lr_dir and self.dataset_name,
            "validation_lr_dir": self.validation_lr_dir and not self.validation_data_dir,
            "streaming": self.streaming and not self.dataset_name,
            "validation_split": self.validation_split and (self.validation_data_dir or not self.dataset_name),
            "num_train_epochs": self.streaming and self.num_train_epochs is not None,
        }
        for name, is_wrong in wrong.items():
            self._check(not is_wrong, name, "does not go with the other sources of images given; got")
        for name in _FOLDERS:
            sound = self.output_path.resolve() not in [Path(folder).resolve() for folder in getattr(self, name)]
            self._check(sound, "output_dir", f"is `{name}` too, its pictures would become images of the run:")
        for name in ("train_lr_dir", "validation_lr_dir"):
            sound = not getattr(self, name) or self.scale_factor > 1
            self._check(sound, name, "needs a `scale_factor` above 1; got")

    def _check_degradation(self) -> None:
        if self.degradation is None:
            return
        load_degradation(self.degradation)
        wrong = {"stage": self.stage in ("vdvae", "ddpm"), "consistency": self.consistency == "exact"}
        wrong |= {name: bool(getattr(self, name)) for name in ("train_lr_dir", "validation_lr_dir")}
        for name, is_wrong in wrong.items():
            self._check(not is_wrong, name, "does not go with `degradation`, which makes a y that is not Hx; got")

    @property
    def exact(self) -> bool:
        """Whether y is Hx, so that samples are projected on {x : Hx = y}."""
        chosen = self.consistency or ("exact" if self.degradation is None else "none")
        return chosen == "exact"

    @property
    def output_path(self) -> Path:
        """`output_dir` as a path."""
        return Path(self.output_dir)

    def rate_weight(self, step: int) -> float:
        """The rate's weight in the loss of update `step`, interpolated in `rate_weights`."""
        if not self.rate_weights:
            return 1.0
        updates, weights = zip(*map(_parse_point, self.rate_weights), strict=True)
        return float(np.interp(step, updates, weights))

    def check_resumed(self, path: Path) -> None:
        """Compares the options that come with a checkpoint with those that its run was given.

        Args:
            path: what `save` of that run has written; without such a file nothing is compared.

        Raises:
            ValueError: they differ; the message names the first and both values.
        """
        try:
            before = json.loads(path.read_text())
            found = {name: before[name] for name in (*_RESUMED, "lr_scheduler")}
        except (OSError, ValueError, KeyError, TypeError):
            return
        precision = before.get("mixed_precision")
        if self.mixed_precision == "fp16" and precision not in ("fp16", None):
            raise ValueError(
                f"`mixed_precision` 'fp16' cannot go on from a checkpoint of {precision!r}, without a scale"
            )
        plateau = self.lr_scheduler == "plateau"
        scheduler = found.pop("lr_scheduler")
        if (scheduler == "plateau") != plateau:
            raise ValueError(f"`lr_scheduler` {self.lr_scheduler!r} cannot go on from a checkpoint of {scheduler!r}")
        unused = (() if self.use_ema else ("ema_decay",)) + (() if plateau else ("plateau_patience", "plateau_factor"))
        for name, value in found.items():
            if name not in unused and value != getattr(self, name):
                raise ValueError(
                    f"`{name}` is {getattr(self, name)!r}, but the checkpoint to go on from holds {value!r}; for "
                    "another, begin a new run with `pretrained_vdvae` and `pretrained_lr_encoder`"
                )

    @property
    def arguments(self) -> list[str]:
        """A command line that gives the options: the stage, and those that are not at their defaults."""
        changed = {name: value for name, value in asdict(self).items() if value != _DEFAULTS[name]}
        return _as_arguments({"stage": self.stage, **changed})

    def save(self, path: Path) -> None:
        """Writes the resolved options as JSON, a recipe for another run."""
        options = asdict(self)
        for name in _RELATIVE:
            if _is_file(name, options[name]):
                options[name] = os.path.abspath(options[name])
        write_atomically(json.dumps(options, indent=2) + "\n", path)


_DEFAULTS = {
    entry.name: entry.default_factory() if callable(entry.default_factory) else entry.default
    for entry in fields(TrainingConfig)
}


def _expanded(value: Any) -> Any:
    """A path as text, without a leading `~`; what is none as it is."""
    return os.path.expanduser(value) if isinstance(value, (str, Path)) else value


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of the type that its option is annotated with; a whole number is a float too."""
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_fits(each, *get_args(kind)) for each in value)
    allowed = get_args(kind) or ((int, float) if kind is float else kind)
    return isinstance(value, allowed) and isinstance(value, bool) == (kind is bool)


def _is_file(name: str, value: Any) -> bool:
    """Whether the value of an option of `_RELATIVE` is a path; some may be names."""
    names = bundled_degradations() if name == "degradation" else BASELINES if name == "baseline" else ()
    return isinstance(value, str) and value not in names


def _are_rules(rules: str | None) -> bool:
    """Whether diffusers can read them: "factor:update,...,factor"."""
    try:
        *steps, last = (rules or "").split(",")
        pairs = [(float(factor), int(update)) for factor, update in (step.split(":") for step in steps)]
        updates, factors = [update for _, update in pairs], [float(last), *(factor for factor, _ in pairs)]
    except ValueError:
        return False
    return updates == sorted(updates) and all(0 <= factor < math.inf for factor in factors)


def _parse_point(entry: str) -> tuple[int, float]:
    """(update, weight) of "update:weight"."""
    try:
        update, weight = entry.split(":")
        point = int(update), float(weight)
    except (AttributeError, ValueError):
        raise ValueError(
            f"`rate_weights`: {entry!r} is not 'update:weight', such as '1000:0.5' (in YAML, quote it)"
        ) from None
    if point[0] < 0 or not 0 <= point[1] < math.inf:
        raise ValueError(f"`rate_weights`: {entry!r} must have an update >= 0 and a finite weight >= 0")
    return point


def parse_arguments(arguments: list[str] | None = None) -> TrainingConfig:
    """Options from `--config FILE` (YAML or JSON), overridden by the command line.

    Paths of configurations inside a recipe are relative to the recipe's folder.

    Raises:
        ValueError: an option that does not exist, or a value that does not fit.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    finder = _Parser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config")
    recipe, remaining = finder.parse_known_args(arguments)
    parser = _OptionParser(
        TrainingConfig,  # type: ignore[arg-type]
        description="Trains the networks of hvae-sr.",
        allow_abbrev=False,  # `--conf` would be taken here, after the recipe has been looked for
    )
    parser.prog = "train.py"
    parser.add_argument("--config", help="Recipe: a YAML or JSON file with any of the options above.")
    options = read_recipe(Path(recipe.config)) if recipe.config is not None else {}
    # The recipe goes through the parser in front of the command line: same checks of types, and the later one wins.
    named = {argument.partition("=")[0] for argument in remaining}
    if "--max_train_steps" in named and "--num_train_epochs" not in named:
        options.pop("num_train_epochs", None)  # which would count more than the command line
    namespace = vars(parser.parse_args(_as_arguments(options) + remaining))
    namespace.pop("config")
    return TrainingConfig(**namespace)


class _Parser(argparse.ArgumentParser):
    """argparse prints its usage, here some hundred lines, and exits; an error of one line serves better."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


class _OptionParser(_Parser, HfArgumentParser):
    def add_argument(self, *names: str, **options: Any) -> argparse.Action:
        """`--no_X`, which HfArgumentParser adds, says what it does; from there it has the help text of X."""
        if names and names[0].startswith("--no_"):
            options["help"] = f"Turns --{options['dest']} off."
        return super().add_argument(*names, **options)


def _as_arguments(options: dict[str, Any]) -> list[str]:
    arguments = []
    for name, value in options.items():
        if isinstance(value, list):
            if value or _DEFAULTS[name]:  # an option without values is an error
                arguments += [f"--{name}", *map(str, value)]
        elif value is not None:
            arguments.append(f"--{name}={value}")
    return arguments


def read_recipe(path: Path) -> dict[str, Any]:
    """The options in a recipe file.

    Raises:
        ValueError: no such file, not a mapping, or an option that does not exist.
    """
    if not path.is_file():
        raise ValueError(f"`config`: there is no file {path}")
    try:
        options = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"`config`: cannot read {path} as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(options, dict):
        raise ValueError(f"`config`: {path} must hold a mapping of options, got {type(options).__name__}")
    unknown = {str(name) for name in options} - {entry.name for entry in fields(TrainingConfig)}
    if unknown:
        raise ValueError(f"`config`: {path} names options that do not exist: {', '.join(sorted(unknown))}")
    if options.get("mixed_precision") is False:  # what YAML 1.1 reads where `no` stands without quotes
        options["mixed_precision"] = "no"
    for name in _RELATIVE:
        if _is_file(name, options.get(name)):
            options[name] = str(path.parent / os.path.expanduser(options[name]))  # of an absolute path, that alone
    return options
