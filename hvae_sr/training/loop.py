"""The training loop, the same for every stage: an objective, its trainable parameters, and accelerate."""

import logging
import math
import pickle
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.data_loader import SeedableRandomSampler
from accelerate.utils import DataLoaderConfiguration, DistributedType, ProjectConfiguration, set_seed
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from tqdm.auto import tqdm

from ..data import ImageFolder
from .build import build_objective, check_gradients, check_objective, check_tracker, one_line
from .checkpoints import check_writable, find_checkpoint, remove_partial, save_checkpoint
from .config import TrainingConfig
from .progress import Interrupted, Meter, Progress, append_log, stop_signals, trim_log

logger = logging.getLogger(__name__)

_SEED_STRIDE = 0x9E3779B97F4A7C15
"""Addresses of noise have 64 bits: odd, so that no two seeds share them; far from 1, so that no two runs overlap."""


class Trainer:
    """Runs `config.stage` from wherever it was left to `config.max_train_steps`.

    Everything random is a function of (seed, epoch, global sample index), so a resumed run goes on as if it had never
    stopped, and a run on n processes sees the same crops and the same latent noise as one on one process.

    Raises:
        ValueError: options, folders or files that do not fit; nothing has been written then.
    """

    def __init__(self, config: TrainingConfig) -> None:
        self.config = config
        self.output_dir = Path(config.output_dir)
        if self.output_dir.exists() and not self.output_dir.is_dir():
            raise ValueError(f"`output_dir`: {self.output_dir} is not a folder")
        self.checkpoint = find_checkpoint(config.resume_from_checkpoint, self.output_dir)
        check_tracker(config.report_to)
        self.accelerator = Accelerator(
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            mixed_precision=config.mixed_precision,
            log_with=config.report_to,
            project_config=ProjectConfiguration(project_dir=config.output_dir),
            step_scheduler_with_optimizer=False,
            dataloader_config=DataLoaderConfiguration(use_seedable_sampler=False),  # the one below is seedable
        )
        if self.accelerator.distributed_type == DistributedType.FSDP:
            raise ValueError("FSDP is not supported until the averaging of the weights works on sharded parameters")
        if self.accelerator.is_main_process:
            check_writable(self.output_dir)
        set_seed(config.seed)
        torch.set_flush_denormal(True)  # latents that have not come alive yet are full of denormal gradients
        objective = build_objective(config).to(self.accelerator.device)
        check_objective(objective, config, self.accelerator.device)
        if config.gradient_checkpointing:
            for network in objective.components().values():
                network.enable_gradient_checkpointing()
        check_gradients(objective, config, self.accelerator.device, self.accelerator.num_processes)
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
        self.dataset = self._images(
            "train_data_dir", config.train_data_dir, rotate=config.rotate, crops_per_image=config.crops_per_image
        )
        self.validation_set = (
            self._images("validation_data_dir", config.validation_data_dir, horizontal_flip=False, scales=(1.0,))
            if config.validation_data_dir
            else None
        )
        # Kept at hand: accelerate's loaders pass the epoch on to it, but not through all their wrappers.
        self.sampler = SeedableRandomSampler(self.dataset, generator=torch.Generator(), data_seed=config.seed)
        loader = DataLoader(
            self.dataset,
            batch_size=config.train_batch_size,
            sampler=self.sampler,
            drop_last=True,
            num_workers=config.dataloader_num_workers,
            persistent_workers=config.dataloader_num_workers > 0,
        )
        update = config.train_batch_size * config.gradient_accumulation_steps * self.accelerator.num_processes
        if len(self.dataset) < update:
            raise ValueError(
                f"`train_batch_size` {config.train_batch_size} x `gradient_accumulation_steps` "
                f"{config.gradient_accumulation_steps} x {self.accelerator.num_processes} processes = {update} must be "
                f"at most the {len(self.dataset)} crops of an epoch (see `crops_per_image`)"
            )
        self.objective, self.optimizer, self.loader = self.accelerator.prepare(objective, self.optimizer, loader)
        self.updates_per_epoch = len(self.loader) // config.gradient_accumulation_steps
        self.ema = EMAModel(self.trainable, decay=config.ema_decay, foreach=True) if config.use_ema else None
        if self.ema is not None:
            self.ema.to(self.accelerator.device)
            self.accelerator.register_for_checkpointing(self.ema)
        self.progress = Progress()
        self.saved_step: int | None = None
        self.accelerator.register_for_checkpointing(self.scheduler, self.progress)

    def _images(self, argument: str, folders: list[str], **options: Any) -> ImageFolder:
        try:
            return ImageFolder(folders, crop_size=self.config.resolution, seed=self.config.seed, **options)
        except ValueError as error:  # in the words of the command line
            message = str(error).replace("train_data_dir", f"`{argument}`").replace("crop_size", "`resolution`")
            raise ValueError(message) from error

    def train(self) -> Path:
        """Trains, checkpoints and, at the end, writes the folder; returns it.

        Raises:
            Interrupted: SIGINT or SIGTERM came; a checkpoint has been written.
        """
        config, accelerator = self.config, self.accelerator
        self._resume()
        if config.report_to:
            accelerator.init_trackers("hvae-sr", config={key: str(value) for key, value in vars(config).items()})
        bar = tqdm(
            total=config.max_train_steps,
            initial=self.progress.step,
            disable=not accelerator.is_local_main_process,
            desc=config.stage,
        )
        meter = Meter()
        self.objective.train()
        with stop_signals() as signals, bar:
            while self.progress.step < config.max_train_steps:
                for images, epoch, index in self._epoch():
                    meter.add(self._step(images, epoch, index), images.shape[0])
                    if not accelerator.sync_gradients:
                        continue
                    self.progress.step += 1
                    bar.update()
                    self._report(meter, bar)
                    if signals:
                        accelerator.set_trigger()
                    stop = accelerator.check_trigger()  # on any process: all of them save, and leave together
                    done = self.progress.step >= config.max_train_steps
                    if stop or done or self.progress.step % config.checkpointing_steps == 0:
                        self._save()
                    if stop and not done:
                        accelerator.end_training()
                        raise Interrupted(signals[0] if signals else signal.SIGTERM, self.progress.step)
                    if done:
                        break
        folder = self._export()
        accelerator.end_training()  # last: it closes the process group
        return folder

    def _epoch(self) -> Iterator[tuple[Tensor, int, int]]:
        """The batches of the current epoch that are still to come: images, epoch, index of the batch."""
        accumulated = self.config.gradient_accumulation_steps
        epoch, done = divmod(self.progress.step, self.updates_per_epoch)
        skip = done * accumulated
        loader = self.accelerator.skip_first_batches(self.loader, skip) if skip else self.loader
        loader.set_epoch(epoch)  # on the very loader that is iterated, or it would begin with epoch 0's order
        self.sampler.set_epoch(epoch)
        self.dataset.set_epoch(epoch)
        for index, batch in enumerate(loader, start=skip):
            if index >= self.updates_per_epoch * accumulated:
                break
            yield batch["image"], epoch, index

    def _step(self, images: Tensor, epoch: int, index: int) -> dict[str, Tensor]:
        """One batch: forward, backward and, where gradients are complete and sound, an update."""
        config, accelerator = self.config, self.accelerator
        # accelerate deals out whole batches in turn: those of one index are neighbours in the order of the epoch.
        first = (index * accelerator.num_processes + accelerator.process_index) * images.shape[0]
        with accelerator.accumulate(self.objective):
            seeds = self._noise_seeds(epoch, first, images.shape[0])
            loss, figures = self.objective(images, seeds, config.rate_weight(self.progress.step))
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
                    if accelerator.scaler is not None:
                        accelerator.scaler.update()  # fp16: or the scale that overflowed would stay
                self.scheduler.step()
            self.optimizer.zero_grad()
        return figures

    def _noise_seeds(self, epoch: int, first: int, count: int) -> list[int]:
        return [self.config.seed * _SEED_STRIDE + (epoch << 32) + first + i for i in range(count)]

    def _report(self, meter: Meter, bar: Any) -> None:
        step, last = self.progress.step, self.progress.step >= self.config.max_train_steps
        if last or step % self.config.logging_steps == 0:
            figures = meter.read(self.accelerator)
            figures.update(learning_rate=self.scheduler.get_last_lr()[0], skipped_updates=self.progress.skipped)
            bar.set_postfix({name: f"{value:.4g}" for name, value in figures.items()})
            self._log(figures)
        if self.validation_set is not None and (last or step % self.config.validation_steps == 0):
            self._log(self.validate())

    def _log(self, figures: dict[str, float]) -> None:
        if self.accelerator.is_main_process:
            append_log(self.output_dir / "log.jsonl", {"step": self.progress.step, **figures})
        self.accelerator.log(figures, step=self.progress.step)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Means of the objective's figures over the held-out images, with the weights that would be saved.

        Every image has one fixed crop and fixed noise, so validations of one run can be compared.
        """
        assert self.validation_set is not None
        accelerator = self.accelerator
        mine = range(accelerator.process_index, len(self.validation_set), accelerator.num_processes)
        objective = accelerator.unwrap_model(self.objective)
        sums: dict[str, Tensor] = {}
        with self._averaged_weights():
            for number in range(0, max(len(mine), 1), self.config.train_batch_size):
                # A process without an image still takes part in the sum, with weight 0.
                indices = list(mine[number : number + self.config.train_batch_size]) or [0]
                batch = next(iter(DataLoader(Subset(self.validation_set, indices), batch_size=len(indices))))["image"]
                with accelerator.autocast():
                    _, figures = objective(batch.to(accelerator.device), indices)
                weight = len(indices) if len(mine) else 0
                for name, value in {**figures, "images": torch.ones((), device=accelerator.device)}.items():
                    sums[name] = sums.get(name, 0) + value.float() * weight
        totals = accelerator.reduce(sums, reduction="sum")
        images = float(totals.pop("images"))
        return {f"validation_{name}": float(total) / images for name, total in totals.items()}

    def _save(self) -> None:
        if self.saved_step != self.progress.step:
            limit = self.config.checkpoints_total_limit
            save_checkpoint(self.accelerator, self.output_dir, self.progress.step, limit)
            self.saved_step = self.progress.step

    def _resume(self) -> None:
        """Loads the checkpoint, if there is one, and makes the output folder what it was at that step."""
        if self.checkpoint is not None:
            logger.info("resuming from %s", self.checkpoint)
            try:
                self.accelerator.load_state(str(self.checkpoint))
            except (RuntimeError, ValueError, KeyError, EOFError, OSError, pickle.UnpicklingError) as error:
                raise ValueError(
                    f"`resume_from_checkpoint`: {self.checkpoint} is damaged or of another model: {one_line(error)}"
                ) from error
            if self.ema is not None:
                self.ema.to(self.accelerator.device)  # accelerate loads it to the CPU
            if self.checkpoint.parent.resolve() == self.output_dir.resolve():
                self.saved_step = self.progress.step
        if self.accelerator.is_main_process:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            remove_partial(self.output_dir)
            trim_log(self.output_dir / "log.jsonl", self.progress.step)
            self.config.save(self.output_dir / "training_config.json")
        self.accelerator.wait_for_everyone()

    @contextmanager
    def _averaged_weights(self) -> Iterator[None]:
        if self.ema is None:
            yield
            return
        self.ema.store(self.trainable)
        self.ema.copy_to(self.trainable)
        try:
            yield
        finally:
            self.ema.restore(self.trainable)

    def _export(self) -> Path:
        """Writes the (averaged) networks: a VDVAE folder, or a pipeline folder with both networks."""
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            components = self.accelerator.unwrap_model(self.objective).components()
            with self._averaged_weights():
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
        self.accelerator.wait_for_everyone()
        return self.output_dir
