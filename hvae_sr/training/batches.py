"""What every update sees: its crops, their order, and the addresses of its latent noise.

All of it is a function of (seed, epoch, global sample index): a resumed run goes on as if it had never stopped, and n
processes see what one with n times the batch would. Streams are an exception, whose rows are dealt out by their number;
what an objective draws for a batch as a whole, each process draws for its own.
"""

import itertools
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.data_loader import SeedableRandomSampler
from torch import Tensor
from torch.utils.data import DataLoader

from ..data import (
    DEFAULT_SCALES,
    Augmentation,
    Degradation,
    ImageCrops,
    ImageFolder,
    ImageStream,
    ImageTable,
    degrade,
    load_degradation,
)  # fmt: skip
from ..data.crops import Degrader
from ..data.datasets import same_files
from .config import OPTIONS_FILE, TrainingConfig
from .signals import leave_to_the_run

logger = logging.getLogger(__name__)

_SEED_STRIDE = 0x9E3779B97F4A7C15
"""Addresses of noise have 64 bits: odd, so that no two seeds share them; far from 1, so that no two runs overlap."""
_LEFT_BY_RUNS = ("checkpoint-*", "images", "logs", "validation")
"""Folders with which a run leaves pictures beside its options."""
_VALIDATION = 1 << 63
"""Numbers of degradations from here on are those of the images held out."""


class Batches:
    """The batches of one process; accelerate deals them out, a stream has been split already.

    Raises:
        ValueError: an epoch has less than the crops of an update.
    """

    def __init__(self, dataset: ImageCrops | ImageStream, config: TrainingConfig, accelerator: Accelerator) -> None:
        self.dataset, self.config, self.accelerator = dataset, config, accelerator
        self.sampler: SeedableRandomSampler | None = None
        self.updates_per_epoch = sys.maxsize  # a stream has no end
        crops, workers, self.stream_workers = None, config.dataloader_num_workers, 0
        if isinstance(dataset, ImageStream):
            workers = min(workers, dataset.num_shards)
            self.stream_workers = max(workers, 1)
        else:
            # Kept at hand: accelerate's loaders pass the epoch on to it, but not through all their wrappers.
            self.sampler = SeedableRandomSampler(dataset, generator=torch.Generator(), data_seed=config.seed)
            crops = len(dataset)
        self.crops_per_update = crops_per_update(config, accelerator.num_processes, crops)
        self.loader: Any = DataLoader(
            dataset,
            batch_size=config.train_batch_size,
            sampler=self.sampler,
            drop_last=True,
            num_workers=workers,
            persistent_workers=workers > 0 and self.sampler is not None,
            worker_init_fn=leave_to_the_run,
            pin_memory=accelerator.device.type == "cuda",
        )
        if self.sampler is not None:
            self.loader = accelerator.prepare(self.loader)
            self.updates_per_epoch = len(self.loader) // config.gradient_accumulation_steps

    @property
    def counts(self) -> dict[str, int]:
        """What the place of a run in its images is counted in, as in `Progress`."""
        return {name: getattr(self, name) for name in ("crops_per_update", "updates_per_epoch", "stream_workers")}

    def epoch(self, step: int) -> Iterator[tuple[dict[str, Tensor], list[int]]]:
        """What is left of the epoch after `step` updates: batches, and an address of noise for each of their crops."""
        epoch, updates = divmod(step, self.updates_per_epoch)
        accumulated = self.config.gradient_accumulation_steps
        skip = updates * accumulated
        batches = self._stream(skip) if isinstance(self.dataset, ImageStream) else self._shuffled(epoch, skip)
        with _options_named("train"):
            for index, batch in enumerate(batches, skip):
                if index >= self.updates_per_epoch * accumulated:
                    return  # fewer are left over than an update takes
                yield batch, self.noise_seeds(epoch, index, len(batch["image"]))

    def noise_seeds(self, epoch: int, index: int, count: int) -> list[int]:
        """Addresses of the noise of batch `index` of this process, of `count` crops."""
        # accelerate deals out whole batches in turn: those of one index are neighbours in the order of the epoch.
        first = (index * self.accelerator.num_processes + self.accelerator.process_index) * count
        return [self.config.seed * _SEED_STRIDE + (epoch << 32) + first + i for i in range(count)]

    def _shuffled(self, epoch: int, skip: int) -> Iterator[dict[str, Tensor]]:
        loader = self.accelerator.skip_first_batches(self.loader, skip) if skip else self.loader
        loader.set_epoch(epoch)  # on the very loader that is iterated, or it would begin with epoch 0's order
        assert self.sampler is not None and isinstance(self.dataset, ImageCrops)
        self.sampler.set_epoch(epoch)
        self.dataset.set_epoch(epoch)
        yield from loader

    def _stream(self, skip: int) -> Iterator[dict[str, Tensor]]:
        """The batches of a stream after the first `skip`, which came from its workers in turn."""
        assert isinstance(self.dataset, ImageStream)
        self.dataset.start = skip
        rounds = max(1, self.loader.num_workers)
        for batch in itertools.islice(self.loader, skip % rounds, None):
            yield {name: value.to(self.accelerator.device) for name, value in batch.items()}


def crops_per_update(config: TrainingConfig, num_processes: int, crops: int | None) -> int:
    """Crops that all processes together use for an update, of `crops` in an epoch (None: a stream's are not counted).

    Raises:
        ValueError: an epoch has fewer.
    """
    update = config.train_batch_size * config.gradient_accumulation_steps * num_processes
    if crops is not None and crops < update:
        raise ValueError(
            f"`train_batch_size` {config.train_batch_size} x `gradient_accumulation_steps` "
            f"{config.gradient_accumulation_steps} x {num_processes} processes = {update} must be at most the {crops} "
            "crops of an epoch (see `crops_per_image`)"
        )
    return update


def build_training_set(config: TrainingConfig, rank: int, num_processes: int) -> ImageCrops | ImageStream:
    """The images to train on, as `config` names them.

    Raises:
        ValueError: there are none that can be used, in the words of the command line.
    """
    scales = tuple(config.scales)
    if config.train_lr_dir:
        if scales != DEFAULT_SCALES:
            logger.warning("`scales` %s are not used: pairs of train_lr_dir keep their size", config.scales)
        scales = (1.0,)
    augmentation = Augmentation(config.resolution, config.horizontal_flip, False, config.rotate, scales)
    found: ImageCrops | ImageStream
    if config.streaming:
        if config.crops_per_image != 1:
            logger.warning("`crops_per_image` %d is not used: a stream gives one crop of a row", config.crops_per_image)
        named = _dataset(config, config.dataset_split, augmentation)
        with _options_named("train"):
            found = ImageStream(**named, batch_size=config.train_batch_size, rank=rank, world_size=num_processes)
    else:
        found = _images(config, "train", config.dataset_split, augmentation, config.crops_per_image)
    found.degrade = _degrader(config)
    return found


def first_crops(
    dataset: ImageCrops | ImageStream, count: int, device: torch.device
) -> tuple[Tensor, list[int], Tensor | None]:
    """Crops spread over the images (a stream's first ones), addresses of noise, and the LR crops where they are given.

    They are the same on every process, but for streams.
    """
    if isinstance(dataset, ImageStream):
        crops = list(itertools.islice(dataset, count))
    else:
        crops = [dataset[i * len(dataset) // count] for i in range(count)]
    batch = {name: torch.stack([crop[name] for crop in crops]).to(device) for name in crops[0]}
    return batch["image"], list(range(count)), batch.get("low")


def build_validation_set(config: TrainingConfig) -> ImageCrops | None:
    """The images held out, or None: crops at full scale, neither mirrored nor turned.

    Raises:
        ValueError: as `build_training_set`.
    """
    split = config.validation_split
    if split is None and not config.validation_data_dir:
        return None
    with _options_named("validation"):
        if split is not None and same_files(config.dataset_name or "", config.dataset_split, split):
            raise ValueError(
                f"`validation_split` {split!r} names no other files of dataset_name {config.dataset_name!r} than those "
                "to train on"
            )
    both = {Path(folder).resolve() for folder in config.train_data_dir}
    both &= {Path(folder).resolve() for folder in config.validation_data_dir}
    for folder in sorted(both):
        logger.warning("validation_data_dir: its images are trained on too, train_data_dir names %s as well", folder)
    if config.train_lr_dir and config.validation_data_dir and not config.validation_lr_dir:
        logger.warning("LR images of validation_data_dir are made by %s", config.downsampling_kernel)
    found = _images(config, "validation", split, Augmentation(config.resolution, False, scales=(1.0,)), 1)
    found.degrade = _degrader(config, _VALIDATION)
    return found


def _degrader(config: TrainingConfig, first: int = 0) -> Degrader | None:
    """What makes y of crops, by their numbers from `first` on; None where H does, on the device."""
    if config.degradation is None:
        return None
    return partial(_degraded, load_degradation(config.degradation), config.seed, first, config.scale_factor)


def _degraded(degradation: Degradation, seed: int, first: int, scale_factor: int, crop: Tensor, number: int) -> Tensor:
    return degrade(crop, degradation, seed, first + number, scale_factor)


def _images(config: TrainingConfig, part: str, split: str | None, augmentation: Augmentation, crops: int) -> ImageCrops:
    """The images of "train" or "validation": of a dataset's split, or of that part's folders."""
    folders: list[str] = getattr(config, f"{part}_data_dir")
    common: dict[str, Any] = {"crops_per_image": crops, "cache_bytes": int(config.cache_gib * 2**30)}
    with _options_named(part):
        if not folders:
            return ImageTable(**_dataset(config, split or "", augmentation), **common)
        return ImageFolder(
            folders,
            **asdict(augmentation),
            seed=config.seed,
            train_lr_dir=getattr(config, f"{part}_lr_dir"),
            scale_factor=config.scale_factor,
            leave_out=_left_out(config, folders),
            **common,
        )


def _dataset(config: TrainingConfig, split: str, augmentation: Augmentation) -> dict[str, Any]:
    return {
        "dataset_name": config.dataset_name or "",
        "dataset_config_name": config.dataset_config_name,
        "split": split,
        "image_column": config.image_column,
        "seed": config.seed,
        "augmentation": augmentation,
    }


def _left_out(config: TrainingConfig, folders: Sequence[str]) -> list[Path]:
    """What below the folders of photographs is none of their images.

    That is what this run and others have left, here and among the photographs themselves, and images held out below
    those to train on, or the other way round, and LR images of either.
    """
    roots = {Path(folder).resolve() for folder in folders}
    others = {found.parent for folder in roots for found in folder.rglob(OPTIONS_FILE)}
    high, low = (*config.train_data_dir, *config.validation_data_dir), (*config.train_lr_dir, *config.validation_lr_dir)
    parts = {Path(folder).resolve() for folder in (*high, *low)}
    left = [path for root in others & roots for pattern in _LEFT_BY_RUNS for path in root.glob(pattern)]
    return [config.output_path, *left, *((others | parts) - roots)]


@contextmanager
def _options_named(part: str) -> Iterator[None]:
    """Puts errors of the data into the words of the command line; `part` is "train" or "validation"."""
    try:
        yield
    except ValueError as error:
        # Those of reading processes come with the process' whole traceback as their text.
        message = str(error).rpartition("\nValueError: ")[2].strip().replace("crop_size", "`resolution`")
        message = message.replace("train_data_dir", f"`{part}_data_dir`").replace("train_lr_dir", f"`{part}_lr_dir`")
        message = message.replace("dataset_name", "`dataset_name`").replace("image_column", "`image_column`")
        raise ValueError(message) from error
