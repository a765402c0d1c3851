"""The training loop, the same for every stage: an objective, its trainable parameters, and accelerate."""

import logging
import math
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, DistributedType, ProjectConfiguration, set_seed
from torch import Tensor
from tqdm.auto import tqdm

from ..data.crops import one_line
from ..processes import bar_options
from ..publishing.push import push
from .baselines import Flow
from .batches import Batches, build_training_set, build_validation_set, first_crops
from .checkpoints import Progress, check_checkpoint, clean_up, list_checkpoints, save_checkpoint
from .config import OPTIONS_FILE, TrainingConfig
from .cost import DTYPES, measure_cost, measure_peak
from .log import Log, Meter, read_log
from .networks import STAGES, UNREADABLE, build_objective, checkpoint_gradients
from .publish import repository, write_card, write_folder
from .schedule import PlateauSchedule, make_schedule
from .sharding import Average, averaged, check_sharding, whole
from .signals import Interrupted, stop_signals
from .surroundings import check_surroundings
from .validation import Validator

logger = logging.getLogger(__name__)

UNSOUND_IN_A_ROW = 100
"""Updates in a row without a finite gradient that end a run: more than fp16's scale takes to come down."""


class Trainer:
    """Runs `config.stage` from wherever it was left to `config.max_train_steps`.

    Everything random is a function of (seed, epoch, global sample index), see `batches`.

    Raises:
        ValueError: options, folders or files that do not fit; nothing has been written then.
    """

    def __init__(self, config: TrainingConfig) -> None:
        self.config, self.output_dir = config, config.output_path
        self.checkpoints = check_surroundings(config)
        self.accelerator = Accelerator(
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            mixed_precision=config.mixed_precision,
            log_with=config.report_to,
            project_config=ProjectConfiguration(
                project_dir=config.output_dir, logging_dir=str(self.output_dir / config.logging_dir)
            ),
            step_scheduler_with_optimizer=False,
            dataloader_config=DataLoaderConfiguration(use_seedable_sampler=False),  # that of `Batches` is seedable
        )
        device, processes = self.accelerator.device, self.accelerator.num_processes
        sharded = self.accelerator.distributed_type == DistributedType.FSDP
        if sharded:
            check_sharding(self.accelerator)
        if config.push_to_hub and self.accelerator.is_main_process:
            repository(config)  # now, not after the last update
        set_seed(config.seed)
        objective = build_objective(config).to(device)
        if config.gradient_checkpointing:
            checkpoint_gradients(objective)
        self.cost = measure_cost(objective, config, device, processes, self.accelerator.autocast())
        if not sharded:  # FSDP takes contiguous parameters only
            for layer in objective.modules():
                if isinstance(layer, torch.nn.Conv2d):
                    layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        dataset = build_training_set(config, self.accelerator.process_index, processes)
        if isinstance(objective, Flow) and not self.checkpoints and config.pretrained_network is None:
            objective.initialise(*first_crops(dataset, config.train_batch_size, device))
        self.optimizer = torch.optim.AdamW(
            [parameter for parameter in objective.parameters() if parameter.requires_grad],
            lr=config.learning_rate,
            betas=(config.adam_beta1, config.adam_beta2),
            weight_decay=config.adam_weight_decay,
            eps=config.adam_epsilon,
            fused=device.type in ("cpu", "cuda"),
        )
        held_out = build_validation_set(config)
        self.validator = Validator(held_out, config, self.accelerator) if held_out else None
        self.batches = Batches(dataset, config, self.accelerator)
        self.max_steps = config.max_train_steps
        if config.num_train_epochs is not None:
            self.max_steps = config.num_train_epochs * self.batches.updates_per_epoch
        self.scheduler = make_schedule(config, self.optimizer, self.max_steps)
        self.objective, self.optimizer = self.accelerator.prepare(objective, self.optimizer)
        self.trainable = [parameter for parameter in objective.parameters() if parameter.requires_grad]  # now sharded
        self.average = Average(self.trainable, decay=config.ema_decay, foreach=True) if config.use_ema else None
        if self.average is not None:
            self.average.to(device)
            self.accelerator.register_for_checkpointing(self.average)
        self.progress = Progress(**self.batches.counts)
        self.accelerator.register_for_checkpointing(self.scheduler, self.progress)
        self.log = Log(config, self.accelerator)
        self.saved_step: int | None = None
        self.peak: float | None = None

    def train(self) -> Path:
        """Trains, checkpoints and, at the end, writes the folder; returns it.

        Raises:
            Interrupted: SIGINT or SIGTERM came; a checkpoint has been written.
            ValueError: the checkpoint to go on from is damaged, or of another model or batch size; or the run has
                diverged, and then nothing is written.
        """
        config, accelerator = self.config, self.accelerator
        self._resume()
        if self.progress.step > self.max_steps:
            logger.warning(
                "`max_train_steps` %d: the checkpoint is of update %d, and its weights are what is written",
                self.max_steps, self.progress.step,
            )  # fmt: skip
        if accelerator.is_main_process:
            self.peak = measure_peak(accelerator.device, DTYPES[accelerator.mixed_precision])
        self.log.begin(self.progress.step)
        shown = bar_options(accelerator.is_local_main_process)
        bar = tqdm(total=self.max_steps, initial=self.progress.step, desc=config.stage, **shown)
        meter = Meter()
        self.objective.train()
        with stop_signals() as signals, arithmetic(config), bar:
            while self.progress.step < self.max_steps:
                for batch, seeds in self.batches.epoch(self.progress.step):
                    meter.add(self.step(batch, seeds), len(seeds))
                    if not accelerator.sync_gradients:
                        continue
                    self.progress.step += 1
                    bar.update()
                    self._check_skipped()
                    self._report(meter, bar)
                    if signals:
                        accelerator.set_trigger()
                    stop = accelerator.check_trigger()  # on any process: all of them save, and leave together
                    done = self.progress.step >= self.max_steps
                    # Of weights that may have diverged none, or they would displace the sound ones.
                    due = self.progress.step % config.checkpointing_steps == 0 and self.progress.unsound_in_a_row < 2
                    if stop or done or due:
                        with meter.pause():
                            self._save()
                    if stop and not done:
                        self._end()
                        raise Interrupted(signals[0] if signals else signal.SIGTERM, self.progress.step)
                    if done:
                        break
        if 2 * self.progress.skipped > self.progress.step and accelerator.is_main_process:
            logger.warning(
                "%d of %d updates were left out, because their gradients were not finite or above `skip_threshold` %g",
                self.progress.skipped, self.progress.step, config.skip_threshold,
            )  # fmt: skip
        folder = self._finish()
        self._end()
        return folder

    def step(self, batch: dict[str, Tensor], seeds: list[int]) -> dict[str, Tensor]:
        """One batch: forward, backward and, where gradients are complete and sound, an update."""
        config, accelerator = self.config, self.accelerator
        with accelerator.accumulate(self.objective):
            with accelerator.autocast():  # FSDP leaves that to the loop
                weight = config.rate_weight(self.progress.step)
                loss, figures = self.objective(batch["image"], seeds, weight, batch.get("low"))
            accelerator.backward(loss)
            if isinstance(self.scheduler, PlateauSchedule) and self.validator is None:
                mean = float(accelerator.reduce(loss.detach().float(), reduction="mean"))
                if math.isfinite(mean):
                    self.scheduler.add(mean)
            if accelerator.sync_gradients:
                norm = whole(accelerator.clip_grad_norm_(self.trainable, config.max_grad_norm))
                figures["grad_norm"] = norm.detach()
                # As VD-VAE's code: a rare outlier batch must not undo the work of days.
                sound = math.isfinite(norm)
                skipped = not (sound and float(norm) < config.skip_threshold)
                self.progress.count(skipped, sound)
                if not skipped:
                    self.optimizer.step()
                    if self.average is not None:
                        self.average.step(self.trainable)
                elif accelerator.scaler is not None:
                    accelerator.scaler.update()  # fp16: or the scale that overflowed would stay
                self.scheduler.step()
            self.optimizer.zero_grad()
        return figures

    def _check_skipped(self) -> None:
        """Says when many updates in a row are left out; a ValueError if none of them had a finite gradient."""
        progress = self.progress
        row, unsound = progress.skipped_in_a_row, progress.unsound_in_a_row
        limit = UNSOUND_IN_A_ROW
        if self.accelerator.scaler is None:  # of fp16, which begins with a scale that may be too large
            limit = min(limit, self.max_steps)
        if unsound >= limit:
            left = ", ".join(path.name for path in list_checkpoints(self.output_dir)) or "none"
            self._end()
            raise ValueError(
                f"update {progress.step}: the last {unsound} updates were left out, because their loss or gradient was "
                f"not finite; checkpoints that are left: {left}. A lower `learning_rate` or `skip_threshold` may keep "
                "the weights from diverging"
            )
        if self.accelerator.is_main_process and row >= 10 and 10 ** (len(str(row)) - 1) == row:
            logger.warning(
                "update %d: the last %d updates were left out, because their gradients were not finite or above "
                "`skip_threshold` %g", progress.step, row, self.config.skip_threshold,
            )  # fmt: skip

    def _report(self, meter: Meter, bar: Any) -> None:
        step, last = self.progress.step, self.progress.step >= self.max_steps
        if last or step % self.config.logging_steps == 0:
            figures = meter.read(self.accelerator)
            if self.peak is not None:
                peak = self.peak * self.accelerator.num_processes
                figures["mfu"] = figures["images_per_second"] * self.cost.flops / peak
            figures.update(learning_rate=float(self.scheduler.get_last_lr()[0]), skipped_updates=self.progress.skipped)
            bar.set_postfix({name: f"{value:.4g}" for name, value in figures.items()})
            self.log.write(step, figures)
        if last or step % self.config.validation_steps == 0:
            with meter.pause():
                self._validate(step)

    def _validate(self, step: int) -> None:
        """Figures and pictures of the held-out images, and a look at the loss by a schedule that follows it."""
        figures: dict[str, Any] = {}
        if self.validator is not None:
            self.objective.eval()  # networks of compared systems may have dropout
            with averaged(self._unwrapped(), self.average, self.config) as objective:
                figures = self.validator.figures(objective)
                if self.accelerator.is_main_process:
                    pictures, measured = self.validator.pictures(objective, step, figures)
                    figures.update(measured)
                    self.log.show(step, pictures)
            self.objective.train()
            self.log.write(step, figures)
        if isinstance(self.scheduler, PlateauSchedule):
            if self.validator is None:
                self.scheduler.observe_training()
            else:
                self.scheduler.observe(figures[f"validation_{STAGES[self.config.stage].figure}"])

    def _save(self) -> None:
        if self.saved_step != self.progress.step:
            limit = self.config.checkpoints_total_limit
            save_checkpoint(self.accelerator, self.output_dir, self.progress.step, limit)
            self.saved_step = self.progress.step

    def _resume(self) -> None:
        """Loads the checkpoint, if there is one, and makes the output folder what it was at that step."""
        found = self._load_newest()
        progress, given = self.progress, self.batches.counts
        if progress.crops_per_update != given["crops_per_update"]:
            raise ValueError(
                f"`train_batch_size` {self.config.train_batch_size} x `gradient_accumulation_steps` "
                f"{self.config.gradient_accumulation_steps} x {self.accelerator.num_processes} processes = "
                f"{given['crops_per_update']} must be the {progress.crops_per_update} crops an update of {found}: its "
                "place in the epoch is counted in these"
            )
        if progress.stream_workers != given["stream_workers"] and self.accelerator.is_main_process:
            logger.warning(
                "`dataloader_num_workers` gives %d processes that read, up to %s there were %d: the stream goes on at "
                "another place, and rows of before may come again",
                given["stream_workers"], found, progress.stream_workers,
            )  # fmt: skip
        if progress.updates_per_epoch != given["updates_per_epoch"] and self.accelerator.is_main_process:
            logger.warning(
                "an epoch is of another length than up to %s: with other photographs or `crops_per_image` the run goes "
                "on at another place of it, and crops of before may come again", found,
            )  # fmt: skip
        vars(progress).update(given)
        if found is not None and found.parent.resolve() == self.output_dir.resolve():
            self.saved_step = self.progress.step
        if self.accelerator.is_main_process:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            back = self.saved_step is not None and self.config.resume_from_checkpoint != "latest"
            clean_up(self.output_dir, progress.step if back else None)
            self.config.save(self.output_dir / OPTIONS_FILE)
        self.accelerator.wait_for_everyone()

    def _load_newest(self) -> Path | None:
        """Loads the first of `self.checkpoints` that is sound, on all processes; a ValueError if none of them is."""
        reasons = []
        for folder in self.checkpoints:
            damage = None
            try:
                check_checkpoint(folder)
                self.accelerator.load_state(str(folder))
                self.accelerator.step = 0  # of batches since an update, which may be others now
            except UNREADABLE as error:
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

    def _unwrapped(self) -> Any:
        """The objective without the wrappers of accelerate; one of `torch.compile` would hide its class."""
        return self.accelerator.unwrap_model(self.objective, keep_torch_compile=False)

    def _finish(self) -> Path:
        """Writes the (averaged) networks and their card, and uploads them where that is asked for."""
        self.accelerator.wait_for_everyone()
        with averaged(self._unwrapped(), self.average, self.config) as objective:
            if self.accelerator.is_main_process:
                write_folder(objective, self.config, self.output_dir)
        if self.accelerator.is_main_process:
            write_card(self.config, self.output_dir, read_log(self.log.path), self.progress)
            if self.config.push_to_hub:
                private = self.config.hub_private_repo or None
                url = push(self.output_dir, repository(self.config), private=private, message="Training finished")
                logger.info("uploaded: %s", url)
        self.accelerator.wait_for_everyone()
        return self.output_dir

    def _end(self) -> None:
        """Closes trackers and, last, the process group.

        DDP's wrapper goes before it: else it is the last to hold the group, and ends it while Python's lock is held,
        which a thread of gloo may wait for, to let go of the last message. Both then wait forever.
        """
        self.objective = self._unwrapped()
        self.accelerator.free_memory()
        self.accelerator.end_training()


@contextmanager
def arithmetic(config: TrainingConfig) -> Iterator[None]:
    """The modes of this process that training computes in; afterwards they are what they were."""
    tf32, of_convolutions = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    flushed = float(torch.full((), 1e-39) * 1) == 0
    torch.backends.cuda.matmul.allow_tf32 = tf32 or config.allow_tf32
    torch.backends.cudnn.allow_tf32 = config.allow_tf32  # True by torch's default: float32 would not be meant
    torch.set_flush_denormal(True)  # latents that have not come alive yet are full of denormal gradients
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = tf32, of_convolutions
        torch.set_flush_denormal(flushed)
