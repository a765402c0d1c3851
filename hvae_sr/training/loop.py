"""The training loop, the same for every stage: an objective, its trainable parameters, and accelerate."""

import json
import logging
import math
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, ProjectConfiguration, set_seed
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..data import ImageFolder
from ..models import VDVAE, LRConditioner, LREncoder
from ..operators import Downsampling
from .checkpoints import find_checkpoint, save_checkpoint
from .config import TrainingConfig
from .objectives import ELBO, ConditionalELBO, Distillation, Objective

logger = logging.getLogger(__name__)


def build_objective(config: TrainingConfig) -> Objective:
    """The objective of `config.stage`, with its networks made or loaded.

    Raises:
        ValueError: a configuration that cannot be read.
    """
    if config.pretrained_vdvae is not None:
        vdvae = VDVAE.from_pretrained(config.pretrained_vdvae)
    else:
        vdvae = VDVAE.from_config(_read_config(config.vdvae_config, "vdvae_config"))
    assert isinstance(vdvae, VDVAE)
    if config.stage == "vdvae":
        return ELBO(vdvae)
    kind = LREncoder if config.stage == "lr-encoder" else LRConditioner
    if config.pretrained_lr_encoder is not None:
        network = kind.from_pretrained(config.pretrained_lr_encoder)
    else:
        network = kind.from_config(_read_config(config.lr_config, "lr_config"))
    operator = Downsampling(config.scale_factor, config.downsampling_kernel)
    if isinstance(network, LREncoder):
        return Distillation(vdvae, network, operator, config.kl_reduction)
    vdvae.requires_grad_(config.train_decoder)
    return ConditionalELBO(vdvae, network, operator)


def _read_config(path: str | None, argument: str) -> dict[str, Any]:
    try:
        return json.loads(Path(path or "").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"`{argument}`: cannot read {path!r} as JSON: {error}") from error


class Trainer:
    """Runs `config.stage` from wherever it was left to `config.max_train_steps`.

    Everything random is a function of (seed, epoch, global sample index), so a resumed run goes on as if it had never
    stopped, and a run on n processes sees the same crops and the same latent noise as one on one process.
    """

    def __init__(self, config: TrainingConfig) -> None:
        self.config = config
        self.output_dir = Path(config.output_dir)
        self.accelerator = Accelerator(
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            mixed_precision=config.mixed_precision,
            log_with=config.report_to,
            project_config=ProjectConfiguration(project_dir=config.output_dir),
            step_scheduler_with_optimizer=False,
            dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=config.seed),
        )
        set_seed(config.seed)
        torch.set_flush_denormal(True)  # latents that have not come alive yet are full of denormal gradients
        self.dataset = ImageFolder(
            config.train_data_dir,
            crop_size=config.resolution,
            seed=config.seed,
            rotate=config.rotate,
            crops_per_image=config.crops_per_image,
        )
        objective = build_objective(config)
        if config.gradient_checkpointing:
            for network in objective.components().values():
                network.enable_gradient_checkpointing()
        objective = objective.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.trainable = [parameter for parameter in objective.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.trainable,
            lr=config.learning_rate,
            betas=(config.adam_beta1, config.adam_beta2),
            weight_decay=config.adam_weight_decay,
            eps=config.adam_epsilon,
        )
        self.scheduler = get_scheduler(
            config.lr_scheduler,
            self.optimizer,
            num_warmup_steps=config.lr_warmup_steps,
            num_training_steps=config.max_train_steps,
        )
        loader = DataLoader(
            self.dataset,
            batch_size=config.train_batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=config.dataloader_num_workers,
            persistent_workers=config.dataloader_num_workers > 0,
            generator=torch.Generator().manual_seed(config.seed),
        )
        if not len(loader):
            raise ValueError(
                f"`train_batch_size` must be at most the {len(self.dataset)} crops of an epoch (see `crops_per_image`), "
                f"got {config.train_batch_size}"
            )
        self.objective, self.optimizer, self.loader = self.accelerator.prepare(objective, self.optimizer, loader)
        self.ema = EMAModel(self.trainable, decay=config.ema_decay, foreach=True) if config.use_ema else None
        if self.ema is not None:
            self.ema.to(self.accelerator.device)
            self.accelerator.register_for_checkpointing(self.ema)
        self.progress = Progress()
        self.accelerator.register_for_checkpointing(self.scheduler, self.progress)

    def train(self) -> Path:
        """Trains, checkpoints and, at the end, writes the folder; returns it."""
        config, accelerator = self.config, self.accelerator
        self.output_dir.mkdir(parents=True, exist_ok=True)
        if accelerator.is_main_process:
            config.save(self.output_dir / "training_config.json")
        if config.report_to:
            accelerator.init_trackers("hvae-sr", config={key: str(value) for key, value in vars(config).items()})
        self._resume()
        bar = tqdm(
            total=config.max_train_steps,
            initial=self.progress.step,
            disable=not accelerator.is_local_main_process,
            desc=config.stage,
        )
        per_epoch = len(self.loader) // config.gradient_accumulation_steps
        if not per_epoch:
            raise ValueError("`gradient_accumulation_steps` needs more batches than an epoch has; raise `crops_per_image`")
        meter = Meter()
        self.objective.train()
        while self.progress.step < config.max_train_steps:
            epoch, done = divmod(self.progress.step, per_epoch)
            self.dataset.set_epoch(epoch)
            skip = done * config.gradient_accumulation_steps
            loader = accelerator.skip_first_batches(self.loader, skip) if skip else self.loader
            loader.set_epoch(epoch)  # on the very loader that is iterated, or it would begin with epoch 0's order
            for index, batch in enumerate(loader, start=skip):
                if index >= per_epoch * config.gradient_accumulation_steps:
                    break
                figures = self._step(batch["image"], epoch, index)
                if not accelerator.sync_gradients:
                    continue
                meter.add(figures, batch["image"].shape[0] * accelerator.num_processes)
                self.progress.step += 1
                bar.update()
                self._log(meter, bar)
                if self.progress.step % config.checkpointing_steps == 0:
                    save_checkpoint(accelerator, self.output_dir, self.progress.step, config.checkpoints_total_limit)
                if self.progress.step >= config.max_train_steps:
                    break
        bar.close()
        accelerator.end_training()
        return self._export()

    def _step(self, images: Tensor, epoch: int, index: int) -> dict[str, Tensor]:
        """One batch: forward, backward and, where gradients are complete and sound, an update."""
        config, accelerator = self.config, self.accelerator
        first = (index * accelerator.num_processes + accelerator.process_index) * images.shape[0]
        seeds = [(config.seed << 64) + (epoch << 32) + first + i for i in range(images.shape[0])]
        with accelerator.accumulate(self.objective):
            loss, figures = self.objective(images, seeds)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                norm = accelerator.clip_grad_norm_(self.trainable, config.max_grad_norm)
                figures["grad_norm"] = norm.detach()
                # As VD-VAE's code: a rare outlier batch must not undo the work of days.
                if math.isfinite(norm) and norm < config.skip_threshold:
                    self.optimizer.step()
                    if self.ema is not None:
                        self.ema.step(self.trainable)
                else:
                    self.progress.skipped += 1
                self.scheduler.step()
            self.optimizer.zero_grad()
        return figures

    def _log(self, meter: "Meter", bar: Any) -> None:
        step = self.progress.step
        if step % self.config.logging_steps and step < self.config.max_train_steps:
            return
        figures = meter.read()
        figures.update(learning_rate=self.scheduler.get_last_lr()[0], skipped_updates=self.progress.skipped)
        if self.accelerator.is_main_process:
            with open(self.output_dir / "log.jsonl", "a") as log:
                log.write(json.dumps({"step": step, **figures}) + "\n")
            bar.set_postfix({name: f"{value:.4g}" for name, value in figures.items()})
        self.accelerator.log(figures, step=step)

    def _resume(self) -> None:
        folder = find_checkpoint(self.config.resume_from_checkpoint, self.output_dir)
        if folder is not None:
            logger.info("resuming from %s", folder)
            self.accelerator.load_state(str(folder))

    def _export(self) -> Path:
        """Writes the (averaged) networks: a VDVAE folder, or a pipeline folder with both networks."""
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            if self.ema is not None:
                self.ema.store(self.trainable)
                self.ema.copy_to(self.trainable)
            objective = self.accelerator.unwrap_model(self.objective)
            components = objective.components()
            if self.config.stage == "vdvae":
                components["vdvae"].save_pretrained(self.output_dir)
            else:
                from ..pipelines import SuperResolutionPipeline

                SuperResolutionPipeline(
                    **components,
                    scale_factor=self.config.scale_factor,
                    downsampling_kernel=self.config.downsampling_kernel,
                    default_temperature=self.config.default_temperature,
                ).save_pretrained(self.output_dir)
            if self.ema is not None:
                self.ema.restore(self.trainable)
        self.accelerator.wait_for_everyone()
        return self.output_dir


class Progress:
    """What a checkpoint must remember beside weights, optimiser and schedule."""

    def __init__(self) -> None:
        self.step = 0
        self.skipped = 0

    def state_dict(self) -> dict[str, int]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, int]) -> None:
        vars(self).update(state)


class Meter:
    """Means of the figures since they were last read, and images per second."""

    def __init__(self) -> None:
        self.read()

    def add(self, figures: dict[str, Tensor], images: int) -> None:
        for name, value in figures.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value)
        self.count += 1
        self.images += images

    def read(self) -> dict[str, float]:
        means: dict[str, float] = {}
        if getattr(self, "count", 0):
            means = {name: total / self.count for name, total in self.sums.items()}
            means["images_per_second"] = self.images / (time.perf_counter() - self.since)
        self.sums: dict[str, float] = {}
        self.count = self.images = 0
        self.since = time.perf_counter()
        return means
