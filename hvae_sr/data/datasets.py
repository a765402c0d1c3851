"""Images of Hugging Face datasets: by name, from local parquet files or webdataset shards, whole or streamed."""

from __future__ import annotations

import glob
import io
import itertools
import logging
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import IterableDataset, get_worker_info

from ..files import files_below
from ..images import load_image
from .augmentation import Augmentation, draw, resize
from .crops import NAMES_LOGGED, Degrader, ImageCrops, one_line

logger = logging.getLogger("hvae_sr.data")

_BUILDERS = {".parquet": "parquet", ".tar": "webdataset"}
_SHUFFLE_BUFFER = 1000


def open_dataset(
    name: str,
    config_name: str | None = None,
    split: str = "train",
    image_column: str = "image",
    streaming: bool = False,
) -> tuple[Any, str]:
    """A Hugging Face dataset whose images are left undecoded, and the name of its image column.

    Args:
        name: Of a dataset on the Hub, such as "owner/photos"; or a local folder, file or pattern of .parquet or .tar
            (webdataset) files, such as "shards/train-*.tar".
        config_name: The configuration of a dataset on the Hub.
        split: Of a dataset on the Hub. Of a local folder, the files with the split in their names, such as
            "train-00000.parquet" or "train/0.tar"; where no name has it, and of patterns, all files.
        image_column: The column that holds the images; where there is none of that name, the only one with images.
        streaming: Read while training instead of downloading first.

    Raises:
        ValueError: The library is not installed, or the dataset, the split or the column does not exist.
    """
    try:
        import datasets
    except ImportError as error:
        raise ValueError("dataset_name needs the datasets library: pip install 'hvae-sr[data]'") from error
    builder, files = _local_files(name, split)
    if builder is not None and config_name is not None:
        raise ValueError(
            f"dataset_config_name {config_name!r} is of datasets on the Hub; dataset_name {name!r} is a place here: "
            "name the folder of the configuration"
        )
    try:
        place: dict[str, Any] = {"name": config_name} if builder is None else {"data_files": {split: files}}
        found = datasets.load_dataset(builder or name, **place, split=split, streaming=streaming)
    except Exception as error:  # the library raises its own types, those of pyarrow, and of the network
        raise ValueError(f"dataset_name {name!r} cannot be read: {' '.join(str(error).split())}") from error
    features = found.features or {}
    images = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    if image_column not in features and len(images) == 1:
        image_column = images[0]
    if image_column not in features:
        raise ValueError(f"image_column {image_column!r} is not in dataset_name {name!r}: it has {sorted(features)}")
    try:
        return found.select_columns(image_column).cast_column(image_column, datasets.Image(decode=False)), image_column
    except Exception as error:  # pyarrow's types
        raise ValueError(f"image_column {image_column!r} of dataset_name {name!r} holds no images") from error


_SPLITS = ("train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval")
"""What files of splits are called."""


def same_files(name: str, split: str, other: str) -> bool:
    """Whether two splits of a dataset are the same, or, of a local one, have files in common.

    Raises:
        ValueError: The files do not exist, or are not of one kind.
    """
    return split == other or not set(_local_files(name, split)[1]).isdisjoint(_local_files(name, other)[1])


def _local_files(name: str, split: str) -> tuple[str | None, list[str]]:
    """The library's name of the kind of local files that `name` means, and those of the split; None for the Hub's."""
    path = Path(name)
    if path.is_dir():
        every = sorted(str(file) for file in files_below(path) if file.name.endswith(tuple(_BUILDERS)))

        def called(word: str) -> list[str]:
            pattern = re.compile(rf"(?<![a-z0-9]){re.escape(word)}(?![a-z0-9])", re.IGNORECASE)
            return [file for file in every if pattern.search(os.path.relpath(file, path))]

        found = called(split)
        if not found:
            splits = [word for word in _SPLITS if called(word)]
            if splits:
                raise ValueError(
                    f"dataset_name {name!r} has no split {split!r}; its files are called {', '.join(splits)}"
                )
            found = every  # one set, whose files say nothing of splits
    else:
        found = sorted(glob.glob(name, recursive=True))
    kinds = {_BUILDERS.get(Path(file).suffix.lower()) for file in found}
    if len(kinds) == 1 and None not in kinds:
        return kinds.pop(), found
    if path.exists() or found:
        raise ValueError(f"dataset_name {name!r} holds no .parquet files or no .tar files, or both kinds")
    if any(mark in name for mark in "*?[") or name.startswith((".", os.sep)):
        raise ValueError(f"dataset_name {name!r}: no such files")
    return None, []


def _row_source(value: Any) -> Any:
    """What `load_image` takes, from a row of an undecoded image column."""
    if isinstance(value, Image.Image):
        return value
    if not isinstance(value, dict) or (value.get("bytes") is None and not value.get("path")):
        raise ValueError(f"no image but {type(value).__name__}")
    return io.BytesIO(value["bytes"]) if value.get("bytes") is not None else value["path"]


class ImageTable(ImageCrops):
    """Random crops of the rows of a dataset that lies on disk; see `ImageCrops`.

    Args:
        dataset_name, dataset_config_name, split, image_column: See `open_dataset`.
        augmentation, seed, crops_per_image, cache_bytes: See `ImageCrops`.
    """

    def __init__(
        self,
        dataset_name: str,
        augmentation: Augmentation,
        *,
        dataset_config_name: str | None = None,
        split: str = "train",
        image_column: str = "image",
        seed: int = 0,
        crops_per_image: int = 1,
        cache_bytes: int = 2 * 2**30,
    ) -> None:
        self._rows, self._column = open_dataset(dataset_name, dataset_config_name, split, image_column)
        where = f"dataset_name {dataset_name!r}"
        super().__init__(len(self._rows), where, augmentation, seed, crops_per_image, cache_bytes)

    def source(self, number: int) -> Any:
        return _row_source(self._rows[number][self._column])

    def name(self, number: int) -> str:
        path = (self._rows[number][self._column] or {}).get("path")
        return f"row {number}" + (f" ({path})" if path else "")


class ImageStream(IterableDataset[dict[str, torch.Tensor]]):
    """Random crops of a dataset that is read while training, over and over, without end.

    Each pass is in another order: shards are shuffled, and rows within a buffer of 1000. Processes and workers get
    different shards (or rows, where there are fewer shards than processes), by the library's own
    `split_dataset_by_node`. The crop of row i of a worker's stream is a function of (seed, process, worker, i) alone;
    a row that cannot be used is logged (the first 20 by name, then a count) and the next good one is shown in its
    place, so a run that starts at a later row sees what an uninterrupted one would have seen. Such a start reads the
    rows before it without decoding them.

    Args:
        dataset_name, dataset_config_name, split, image_column: See `open_dataset`.
        augmentation: Size, scales, mirrors and turns of the crops.
        seed: Seed of the order and the augmentation, not negative.
        batch_size: Rows of a batch, for `start`.
        rank, world_size: This process, and how many there are.
    """

    def __init__(
        self,
        dataset_name: str,
        augmentation: Augmentation,
        *,
        dataset_config_name: str | None = None,
        split: str = "train",
        image_column: str = "image",
        seed: int = 0,
        batch_size: int = 1,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._rows, self._column = open_dataset(dataset_name, dataset_config_name, split, image_column, streaming=True)
        self.num_shards = max(1, self._rows.num_shards // world_size)  # what a process can divide among its workers
        self.where = f"dataset_name {dataset_name!r}"
        self.augmentation = augmentation
        self.seed = seed
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.degrade: Degrader | None = None  # as in `ImageCrops`
        self.start = 0
        self.skipped = 0

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        """Crops as `ImageCrops` gives them, from batch `start` of the loader on, its first rows in whole rounds.

        Raises:
            ValueError: A whole pass has no usable image.
        """
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info is not None else (0, 1)
        skip = self.start // workers * self.batch_size
        number, waiting = 0, []
        for epoch in itertools.count():
            first, found = number, False
            for row in self._pass(epoch):
                number += 1
                if number <= skip:
                    found = True
                    continue
                waiting.append(number)
                image = self._decode(row, number)
                if image is None:
                    continue
                found = True
                for each in waiting:
                    draws = draw(self.seed, self.rank, worker, each)
                    levels = self.augmentation.levels(image.size)
                    level = resize(image, levels[int(draws[0] * len(levels))])
                    crop = self.augmentation.crop(np.asarray(level), draws)
                    if self.degrade is not None:
                        crop["low"] = self.degrade(crop["image"], (self.rank << 52) + (worker << 40) + each)
                    yield crop
                waiting.clear()
            if number == first and info is not None:
                return  # more workers than shards
            if not found:
                raise ValueError(f"{self.where} holds no usable image: {number - first} rows were read")

    def _pass(self, epoch: int) -> Iterable[dict[str, Any]]:
        """The rows of this process in the order of a pass.

        Not by `set_epoch` of one shuffled dataset: its workers share that number, and are not in the same pass.
        """
        from datasets.distributed import split_dataset_by_node

        seed = int(np.random.default_rng([self.seed, epoch]).integers(2**63))
        return split_dataset_by_node(
            self._rows.shuffle(seed=seed, buffer_size=_SHUFFLE_BUFFER), self.rank, self.world_size
        )

    def _decode(self, row: dict[str, Any], number: int) -> Image.Image | None:
        try:
            image = load_image(_row_source(row[self._column]))
            if self.augmentation.levels(image.size):
                return image
            reason = f"{image.size[0]}x{image.size[1]} is smaller than crop_size={self.augmentation.crop_size}"
        except Exception as error:  # Pillow's readers raise nearly every type on damaged files
            reason = one_line(error)
        self.skipped += 1
        if self.skipped <= NAMES_LOGGED or self.skipped % 1000 == 0:
            path = row[self._column].get("path") if isinstance(row[self._column], dict) else None
            logger.warning("row %d%s is skipped, the %d. of this process: %s", number, f" ({path})" if path else "",
                           self.skipped, reason)  # fmt: skip
        return None
