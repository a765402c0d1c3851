"""The training loop, the same for every stage: an objective, its trainable parameters, and accelerate."""

import itertools
import logging
import math
import pickle
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.data_loader import SeedableRandomSampler
from accelerate.utils import DataLoaderConfiguration, DistributedType, ProjectConfiguration, set_seed
from safetensors import SafetensorError
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..data import ImageStream
from .build import (
    build_objective,
    build_training_set,
    build_validation_set,
    check_objective,
    check_tracker,
    crops_per_update,
    one_line,
)
from .checkpoints import check_checkpoint, check_writable, find_checkpoints, remove_partial, save_checkpoint
from .config import OPTIONS_FILE, TrainingConfig
from .cost import measure_cost, measure_peak
from .export import LOSS_FIGURES, push, repository, write_card, write_folder
from .objectives import Objective
from .progress import Interrupted, Meter, Progress, append_log, read_log, stop_signals, trim_log
from .schedule import PlateauSchedule, make_schedule
from .sharding import Average, check_sharding, gathered, whole
from .validation import Validator

logger = logging.getLogger(__name__)

_DAMAGE = (RuntimeError, ValueError, KeyError, EOFError, OSError, pickle.UnpicklingError, SafetensorError)
"""What loading a damaged checkpoint raises."""
_SEED_STRIDE = 0x9E3779B97F4A7C15
"""Addresses of noise have 64 bits: odd, so that no two seeds share them; far from 1, so that no two runs overlap."""


class Trainer:
    """Runs `config.stage` from wherever it was left to `config.max_train_steps`.

    Everything random is a function of (seed, epoch, global sample index), so a resumed run goes on as if it had never
    stopped, and a run on n processes sees the same crops and the same latent noise as one on one process (streams
    apart, whose rows are dealt out by their number).

    Raises:
        ValueError: options, folders or files that do not fit; nothing has been written then.
    """

    def __init__(self, config: TrainingConfig) -> None:
        self.config = config
        self.output_dir = config.output_path
        if self.output_dir.exists() and not self.output_dir.is_dir():
            raise ValueError(f"`output_dir`: {self.output_dir} is not a folder")
        self.checkpoints = find_checkpoints(config.resume_from_checkpoint, self.output_dir)
        if self.checkpoints:
            config.check_resumed(self.checkpoints[0].parent / OPTIONS_FILE)
        check_tracker(config.report_to)
        self.accelerator = Accelerator(
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            mixed_precision=config.mixed_precision,
            log_with=config.report_to,
            project_config=ProjectConfiguration(
                project_dir=config.output_dir, logging_dir=str(self.output_dir / config.logging_dir)
            ),
            step_scheduler_with_optimizer=False,
            dataloader_config=DataLoaderConfiguration(use_seedable_sampler=False),  # the one below is seedable
        )
        self.sharded = self.accelerator.distributed_type == DistributedType.FSDP
        if self.sharded:
            check_sharding(self.accelerator)
        if config.push_to_hub and self.accelerator.is_main_process:
            repository(config)  # now, not after the last update
        if config.allow_tf32:
            torch.backends.cuda.matmul.allow_tf32 = True
        if self.accelerator.is_main_process:
            check_writable(self.output_dir)
        set_seed(config.seed)
        torch.set_flush_denormal(True)  # latents that have not come alive yet are full of denormal gradients
        objective = build_objective(config).to(self.accelerator.device)
        check_objective(objective, config, self.accelerator.device)
        if config.gradient_checkpointing:
            for network in objective.components().values():
                network.enable_gradient_checkpointing()
        processes = self.accelerator.num_processes
        self.cost = measure_cost(objective, config, self.accelerator.device, processes, self.accelerator.autocast())
        if not self.sharded:  # FSDP takes contiguous parameters only
            for layer in objective.modules():
                if isinstance(layer, torch.nn.Conv2d):
                    layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = torch.optim.AdamW(
            [parameter for parameter in objective.parameters() if parameter.requires_grad],
            lr=config.learning_rate,
            betas=(config.adam_beta1, config.adam_beta2),
            weight_decay=config.adam_weight_decay,
            eps=config.adam_epsilon,
            fused=self.accelerator.device.type in ("cpu", "cuda"),
        )
        self.dataset = build_training_set(config, self.accelerator.process_index, processes)
        self.validation_set = build_validation_set(config)
        self.validator = Validator(self.validation_set, config, self.accelerator) if self.validation_set else None
        self.sampler: SeedableRandomSampler | None = None
        self.updates_per_epoch = sys.maxsize  # a stream has no end
        self.loader = self._make_loader()
        self.max_steps = config.max_train_steps
        if config.num_train_epochs is not None:
            self.max_steps = config.num_train_epochs * self.updates_per_epoch
        self.scheduler = make_schedule(config, self.optimizer, self.max_steps)
        self.objective, self.optimizer = self.accelerator.prepare(objective, self.optimizer)
        self.trainable = [parameter for parameter in objective.parameters() if parameter.requires_grad]
        self.ema = Average(self.trainable, decay=config.ema_decay, foreach=True) if config.use_ema else None
        if self.ema is not None:
            self.ema.to(self.accelerator.device)
            self.accelerator.register_for_checkpointing(self.ema)
        self.progress = Progress()
        self.saved_step: int | None = None
        self.peak: float | None = None
        self.accelerator.register_for_checkpointing(self.scheduler, self.progress)

    def _make_loader(self) -> Any:
        """The loader of this process's batches; accelerate deals them out, a stream has been split already."""
        config, stream = self.config, isinstance(self.dataset, ImageStream)
        workers = config.dataloader_num_workers
        if isinstance(self.dataset, ImageStream):
            workers = min(workers, self.dataset.num_shards)
        else:
            # Kept at hand: accelerate's loaders pass the epoch on to it, but not through all their wrappers.
            self.sampler = SeedableRandomSampler(self.dataset, generator=torch.Generator(), data_seed=config.seed)
        loader = DataLoader(
            self.dataset,
            batch_size=config.train_batch_size,
            sampler=self.sampler,
            drop_last=True,
            num_workers=workers,
            persistent_workers=workers > 0 and not stream,
            pin_memory=self.accelerator.device.type == "cuda",
        )
        if isinstance(self.dataset, ImageStream):
            return loader
        crops_per_update(config, self.accelerator.num_processes, len(self.dataset))
        loader = self.accelerator.prepare(loader)
        self.updates_per_epoch = len(loader) // config.gradient_accumulation_steps
        return loader

    def train(self) -> Path:
        """Trains, checkpoints and, at the end, writes the folder; returns it.

        Raises:
            Interrupted: SIGINT or SIGTERM came; a checkpoint has been written.
        """
        config, accelerator = self.config, self.accelerator
        self._resume()
        if accelerator.is_main_process:
            dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(accelerator.mixed_precision, torch.float32)
            self.peak = measure_peak(accelerator.device, dtype)
        if config.report_to:
            logs = self.output_dir / config.logging_dir
            logs.mkdir(parents=True, exist_ok=True)
            accelerator.init_trackers(
                "hvae-sr",
                config={key: str(value) for key, value in vars(config).items()},
                init_kwargs={"wandb": {"dir": str(logs)}},  # not the folder that the command was started in
            )
        # Only where it is to be silent, or TQDM_DISABLE would not count.
        silent: dict[str, Any] = {} if accelerator.is_local_main_process else {"disable": True}
        bar = tqdm(total=self.max_steps, initial=self.progress.step, desc=config.stage, **silent)
        meter = Meter()
        self.objective.train()
        with stop_signals() as signals, bar:
            while self.progress.step < self.max_steps:
                for batch, epoch, index in self._epoch():
                    meter.add(self._step(batch, epoch, index), batch["image"].shape[0])
                    if not accelerator.sync_gradients:
                        continue
                    self.progress.step += 1
                    bar.update()
                    self._report(meter, bar)
                    if signals:
                        accelerator.set_trigger()
                    stop = accelerator.check_trigger()  # on any process: all of them save, and leave together
                    done = self.progress.step >= self.max_steps
                    if stop or done or self.progress.step % config.checkpointing_steps == 0:
                        with meter.pause():
                            self._save()
                    if stop and not done:
                        accelerator.end_training()
                        raise Interrupted(signals[0] if signals else signal.SIGTERM, self.progress.step)
                    if done:
                        break
        folder = self._export()
        accelerator.end_training()  # last: it closes the process group
        return folder

    def _epoch(self) -> Iterator[tuple[dict[str, Tensor], int, int]]:
        """The batches of the current epoch that are still to come, the epoch, and the index of each batch in it."""
        accumulated = self.config.gradient_accumulation_steps
        epoch, done = divmod(self.progress.step, self.updates_per_epoch)
        skip = done * accumulated
        if isinstance(self.dataset, ImageStream):
            yield from ((batch, 0, index) for index, batch in enumerate(self._stream(skip), start=skip))
            return
        loader = self.accelerator.skip_first_batches(self.loader, skip) if skip else self.loader
        loader.set_epoch(epoch)  # on the very loader that is iterated, or it would begin with epoch 0's order
        assert self.sampler is not None
        self.sampler.set_epoch(epoch)
        self.dataset.set_epoch(epoch)
        for index, batch in enumerate(loader, start=skip):
            if index >= self.updates_per_epoch * accumulated:
                break
            yield batch, epoch, index

    def _stream(self, skip: int) -> Iterator[dict[str, Tensor]]:
        """The batches of a stream after the first `skip`, which came from its workers in turn."""
        assert isinstance(self.dataset, ImageStream)
        self.dataset.start = skip
        rounds = max(1, self.loader.num_workers)
        for batch in itertools.islice(self.loader, skip % rounds, None):
            yield {name: value.to(self.accelerator.device) for name, value in batch.items()}

    def _step(self, batch: dict[str, Tensor], epoch: int, index: int) -> dict[str, Tensor]:
        """One batch: forward, backward and, where gradients are complete and sound, an update."""
        config, accelerator = self.config, self.accelerator
        images = batch["image"]
        # accelerate deals out whole batches in turn: those of one index are neighbours in the order of the epoch.
        first = (index * accelerator.num_processes + accelerator.process_index) * images.shape[0]
        with accelerator.accumulate(self.objective):
            seeds = self._noise_seeds(epoch, first, images.shape[0])
            with accelerator.autocast():  # FSDP leaves that to the loop
                loss, figures = self.objective(images, seeds, config.rate_weight(self.progress.step), batch.get("low"))
            accelerator.backward(loss)
            if isinstance(self.scheduler, PlateauSchedule) and self.validator is None:
                mean = float(accelerator.reduce(loss.detach().float(), reduction="mean"))
                if math.isfinite(mean):
                    self.scheduler.add(mean)
            if accelerator.sync_gradients:
                norm = whole(accelerator.clip_grad_norm_(self.trainable, config.max_grad_norm))
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
        step, last = self.progress.step, self.progress.step >= self.max_steps
        if last or step % self.config.logging_steps == 0:
            figures = meter.read(self.accelerator)
            if self.peak is not None:
                peak = self.peak * self.accelerator.num_processes
                figures["mfu"] = figures["images_per_second"] * self.cost.flops / peak
            figures.update(learning_rate=self.scheduler.get_last_lr()[0], skipped_updates=self.progress.skipped)
            bar.set_postfix({name: f"{value:.4g}" for name, value in figures.items()})
            self._log(figures)
        if last or step % self.config.validation_steps == 0:
            with meter.pause():
                self._validate()

    def _validate(self) -> None:
        """Figures and pictures of the held-out images, and a look at the loss by a schedule that follows it."""
        figures: dict[str, Any] = {}
        if self.validator is not None:
            with self._averaged() as objective:
                figures = self.validator.figures(objective)
                if self.accelerator.is_main_process:
                    folder = self.output_dir / "validation"
                    pictures, measured = self.validator.write(objective, folder, self.progress.step, figures)
                    figures.update(measured)
                    self._track_images(pictures)
            self._log(figures)
        if isinstance(self.scheduler, PlateauSchedule):
            if self.validator is None:
                self.scheduler.observe_training()
            else:
                self.scheduler.observe(figures[f"validation_{LOSS_FIGURES[self.config.stage]}"])

    def _track_images(self, pictures: dict[str, Any]) -> None:
        """Sends pictures to the trackers that show them; their files are written in any case."""
        for tracker in self.accelerator.trackers:
            for name, picture in pictures.items():
                if tracker.name == "tensorboard":
                    array = np.asarray(picture)[None]
                    tracker.log_images({f"validation/{name}": array}, step=self.progress.step, dataformats="NHWC")
                elif tracker.name == "wandb":
                    tracker.log_images({f"validation/{name}": [picture]}, step=self.progress.step)
                elif tracker.name == "trackio":
                    import trackio

                    tracker.log({f"validation/{name}": trackio.Image(picture)}, step=self.progress.step)

    def _log(self, figures: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            append_log(self.output_dir / "log.jsonl", {"step": self.progress.step, **figures})
        scalars = {name: value for name, value in figures.items() if not isinstance(value, list)}
        self.accelerator.log(scalars, step=self.progress.step)

    def _save(self) -> None:
        if self.saved_step != self.progress.step:
            limit = self.config.checkpoints_total_limit
            save_checkpoint(self.accelerator, self.output_dir, self.progress.step, limit)
            self.saved_step = self.progress.step

    def _resume(self) -> None:
        """Loads the checkpoint, if there is one, and makes the output folder what it was at that step."""
        found = self._load_newest()
        if found is not None:
            if self.ema is not None:
                self.ema.to(self.accelerator.device)  # accelerate loads it to the CPU
            if found.parent.resolve() == self.output_dir.resolve():
                self.saved_step = self.progress.step
        if self.accelerator.is_main_process:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            remove_partial(self.output_dir)
            trim_log(self.output_dir / "log.jsonl", self.progress.step)
            self.config.save(self.output_dir / OPTIONS_FILE)
        self.accelerator.wait_for_everyone()

    def _load_newest(self) -> Path | None:
        """Loads the first of `self.checkpoints` that is sound, on all processes, and returns it.

        Raises:
            ValueError: there are checkpoints, and none is sound.
        """
        reasons = []
        for folder in self.checkpoints:
            damage = None
            try:
                check_checkpoint(folder)
                self.accelerator.load_state(str(folder))
            except _DAMAGE as error:
                damage = one_line(error)
            bad = torch.tensor(float(damage is not None), device=self.accelerator.device)
            if float(self.accelerator.reduce(bad, reduction="sum")) == 0:
                logger.info("resuming from %s", folder)
                return folder
            reasons.append(f"{folder} is damaged or of another model: {damage or 'another process could not read it'}")
            if len(self.checkpoints) > 1:
                logger.warning("%s", reasons[-1])
        if reasons:
            raise ValueError(f"`resume_from_checkpoint`: {reasons[0]}")
        return None

    @contextmanager
    def _averaged(self) -> Iterator[Objective]:
        """The objective with the averaged weights, whole on every process. A collective operation."""
        objective = self.accelerator.unwrap_model(self.objective)
        if self.sharded:
            yield gathered(objective, self.ema, self.config)
            return
        if self.ema is None:
            yield objective
            return
        self.ema.store(self.trainable)
        self.ema.copy_to(self.trainable)
        try:
            yield objective
        finally:
            self.ema.restore(self.trainable)

    def _export(self) -> Path:
        """Writes the (averaged) networks and their card, and uploads them where that is asked for."""
        self.accelerator.wait_for_everyone()
        with self._averaged() as objective:
            if self.accelerator.is_main_process:
                write_folder(objective, self.config, self.output_dir)
        if self.accelerator.is_main_process:
            write_card(self.config, self.output_dir, read_log(self.output_dir / "log.jsonl"), self.progress.step)
            if self.config.push_to_hub:
                logger.info("uploaded: %s", push(self.config, self.output_dir))
        self.accelerator.wait_for_everyone()
        return self.output_dir
