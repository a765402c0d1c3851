"""Datasets on disk and streams give the crops that folders give; ready-made LR images go with their HR images."""

import itertools
import logging
import shutil
import tarfile
import time

import numpy as np
import pytest
import torch
from PIL import Image
from stand_ins import noise, write_table
from torch.utils.data import DataLoader, get_worker_info

from hvae_sr.data import Augmentation, ImageFolder, ImageStream, ImageTable, open_dataset
from hvae_sr.data.datasets import same_files
from hvae_sr.images import WideImage, save_image

datasets = pytest.importorskip("datasets")

PLAIN = Augmentation(16, horizontal_flip=False, scales=(1.0,))


def picture(i):
    return noise(40 + 5 * i, 70 - 3 * i, i)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """Nothing is kept in the user's home, no network is asked, and no stream waits for its threads at the end."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.05, raising=False)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Twelve rows, of which number 2 is damaged and number 7 too small, in three parquet files and three tar files."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "plain").mkdir()
    (folder / "tar").mkdir()
    files = [folder / "plain" / f"{i:02d}.png" for i in range(12)]
    for i, file in enumerate(files):
        Image.fromarray(noise(8, 90) if i == 7 else picture(i)).save(file)
    files[2].write_bytes(files[2].read_bytes()[:200])
    (folder / "label").write_bytes(b"3")
    for shard in range(3):
        rows = range(4 * shard, 4 * shard + 4)
        table = [(files[i].name, files[i].read_bytes()) for i in rows]
        write_table(folder / f"train-{shard}.parquet", table, label=list(rows))
        with tarfile.open(folder / "tar" / f"shard-{shard}.tar", "w") as tar:
            for i in rows:
                tar.add(files[i], files[i].name)
                tar.add(folder / "label", f"{i:02d}.cls")
    return folder


@pytest.mark.parametrize("cache_bytes", [0, 2**30])
@pytest.mark.parametrize("kind", ["train-*.parquet", "tar"])
def test_a_table_gives_the_crops_of_a_folder(kind, cache_bytes, photos, caplog):
    folder = ImageFolder(photos / "plain", 16, rotate=True, crops_per_image=2, cache_bytes=cache_bytes)
    caplog.clear()
    augmentation = Augmentation(16, rotate=True)
    table = ImageTable(str(photos / kind), augmentation, crops_per_image=2, cache_bytes=cache_bytes)
    assert len(table) == len(folder) and table.num_images == folder.num_images
    crops = torch.stack([table[i]["image"] for i in range(len(table))])
    assert torch.equal(crops, torch.stack([folder[i]["image"] for i in range(len(folder))]))
    batches = [batch["image"] for batch in DataLoader(table, batch_size=5, num_workers=2)]
    assert torch.equal(torch.cat(batches), crops)
    text = caplog.text
    assert "row 7" in text and "90x8 is smaller" in text and "row 2" in text


def test_rows_are_read_as_files_are_and_start_no_program(tmp_path, caplog):
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n%%EOF\n"
    save_image(WideImage(np.full((20, 24, 2), 65535, np.uint16)), tmp_path / "deep.tif")
    write_table(tmp_path / "train.parquet", [("0.png", (tmp_path / "deep.tif").read_bytes()), ("1.png", eps)])
    table = ImageTable(str(tmp_path), PLAIN)
    assert table.skipped == {"row 1 (1.png)": "not an image, or of an unknown format"}
    assert len(table) == 1 and table[0]["image"].min() == 255
    assert next(iter(ImageStream(str(tmp_path), PLAIN)))["image"].min() == 255


def source_of(crop):
    """Which picture the crop is a part of."""
    for i in range(12):
        whole = torch.from_numpy(picture(i)).permute(2, 0, 1)
        if (whole.unfold(1, 16, 1).unfold(2, 16, 1).permute(1, 2, 0, 3, 4) == crop).all(-1).all(-1).all(-1).any():
            return i
    raise AssertionError("a crop of no picture")


def first(stream, count):
    return [crop["image"] for crop in itertools.islice(stream, count)]


@pytest.mark.parametrize("kind", ["train-*.parquet", "tar"])
def test_a_stream_shows_every_usable_image_in_each_pass_in_another_order(kind, photos, caplog):
    stream = ImageStream(str(photos / kind), PLAIN)
    orders = [source_of(crop) for crop in first(stream, 24)]
    assert set(orders[:12]) == set(orders[12:]) == set(range(12)) - {2, 7}  # the next good one in their places
    assert orders[:12] != orders[12:]
    assert "is skipped" in caplog.text and "90x8 is smaller" in caplog.text
    with pytest.raises(ValueError, match="holds no usable image"):
        next(iter(ImageStream(str(photos / kind), Augmentation(512))))


def test_a_stream_goes_on_where_it_was(photos):
    """Also in the second pass, and beside images that cannot be used."""
    whole = first(ImageStream(str(photos / "train-*.parquet"), PLAIN, batch_size=2), 20)
    for start in (1, 7):
        stream = ImageStream(str(photos / "train-*.parquet"), PLAIN, batch_size=2)
        stream.start = start
        assert torch.equal(torch.stack(whole[2 * start :][:6]), torch.stack(first(stream, 6)))


def test_processes_and_workers_share_a_stream_out(photos):
    found = []
    for rank in range(3):
        stream = ImageStream(str(photos / "train-*.parquet"), PLAIN, rank=rank, world_size=3)
        found.append([source_of(crop) for crop in first(stream, 3)])  # a pass of four rows, one perhaps not usable
    assert all(set(a).isdisjoint(b) for a in found for b in found if a is not b)
    stream = ImageStream(str(photos / "train-*.parquet"), PLAIN, batch_size=2)
    assert stream.num_shards == 3
    whole = first(DataLoader(stream, 2, num_workers=2), 9)
    stream.start = 4
    again = first(DataLoader(stream, 2, num_workers=2), 5)
    assert all(torch.equal(a, b) for a, b in zip(whole[4:], again, strict=True))


def test_a_stream_does_not_depend_on_which_worker_is_ahead(photos, monkeypatch):
    """Workers of unequal shares are in different passes at a time: none may change the order of another's."""
    epoch = datasets.IterableDataset.epoch.fget

    def batches(slow):
        def slowly(rows):
            info = get_worker_info()
            time.sleep(0.2 if info is not None and info.id == slow else 0)
            return epoch(rows)

        monkeypatch.setattr(datasets.IterableDataset, "epoch", property(slowly))
        return first(DataLoader(ImageStream(str(photos / "train-*.parquet"), PLAIN), 2, num_workers=2), 16)

    assert all(torch.equal(a, b) for a, b in zip(batches(slow=0), batches(slow=1), strict=True))


@pytest.mark.parametrize(
    "name, column, named",
    [
        ("none/*.parquet", "image", "no such files"),
        ("no-such-owner/no-such-set", "image", "cannot be read"),
        (".", "image", "holds no .parquet files"),
        ("PARQUET", "label", "image_column 'label' of .* holds no images"),
    ],
)
def test_what_cannot_be_opened_is_named(name, column, named, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=named):
        open_dataset(str(photos / "train-*.parquet") if name == "PARQUET" else name, image_column=column)


def test_a_split_of_a_local_folder_is_what_its_files_are_called(photos, tmp_path):
    shutil.copy(photos / "train-0.parquet", tmp_path / "train-0.parquet")
    shutil.copy(photos / "train-1.parquet", tmp_path / "validation-0.parquet")
    names = {}
    for split in ("train", "validation"):
        rows, column = open_dataset(str(tmp_path), split=split)
        names[split] = [row[column]["path"] for row in rows]
    assert names == {"train": [f"{i:02d}.png" for i in range(4)], "validation": [f"{i:02d}.png" for i in range(4, 8)]}
    with pytest.raises(ValueError, match="has no split 'test'; its files are called train, validation"):
        open_dataset(str(tmp_path), split="test")
    assert open_dataset(str(tmp_path), image_column="picture")[1] == "image"  # the only one with images
    assert open_dataset(str(photos / "tar"), streaming=True)[1] == "png"
    with pytest.raises(ValueError, match="dataset_config_name 'faces' is of datasets on the Hub"):
        open_dataset(str(tmp_path), "faces")
    assert not same_files(str(tmp_path), "train", "validation")
    assert same_files("owner/name", "train", "train") and not same_files("owner/name", "train", "test")
    (tmp_path / "one").mkdir()
    shutil.copy(photos / "train-0.parquet", tmp_path / "one" / "a.parquet")
    assert len(open_dataset(str(tmp_path / "one"), split="test")[0]) == 4  # one set, which says nothing of splits
    assert same_files(str(tmp_path / "one"), "train", "test")
    assert same_files(str(photos), "train", "train") and same_files(str(photos / "tar"), "train", "validation")


# Ready-made LR images


@pytest.fixture
def pairs(tmp_path):
    """HR images whose red and green are row and column, and LR images made of every fourth."""
    for i, (height, width) in enumerate(((40, 60), (50, 47), (33, 64))):
        rows, columns = np.mgrid[:height, :width]
        image = np.stack([rows, columns, np.full_like(rows, i)], -1).astype(np.uint8)
        for folder, array, name in (("hr", image, f"{i}.png"), ("lr", image[::4, ::4], f"{i}{'x4' if i else ''}.png")):
            path = tmp_path / folder / "set" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)
    return tmp_path


@pytest.mark.parametrize("cache_bytes", [0, 2**30])
def test_lr_crops_are_those_of_the_hr_crops(pairs, cache_bytes):
    options = {"crops_per_image": 40, "cache_bytes": cache_bytes, "train_lr_dir": pairs / "lr"}
    dataset = ImageFolder(pairs / "hr", 16, rotate=True, **options)
    assert dataset.num_images == 3
    turned = 0
    for i in range(len(dataset)):
        image, low = dataset[i]["image"], dataset[i]["low"]
        assert image.shape == (3, 16, 16) and low.shape == (3, 4, 4)
        assert (low[2] == i % 3).all()
        # Each LR pixel is one of its block's corners: which one depends on the turn.
        blocks = image.unfold(1, 4, 4).unfold(2, 4, 4)
        assert ((blocks == low[..., None, None]).all(0).flatten(2).any(-1)).all()
        turned += int(image[0, 0, 0] == image[0, 0, 1] and image[0, 0, 0] != image[0, 1, 0])
    assert 10 < turned < 110


def test_lr_images_of_other_sizes_or_none_are_skipped_by_name(pairs, caplog):
    Image.fromarray(noise(10, 10)).save(pairs / "lr" / "set" / "0.png")
    (pairs / "lr" / "set" / "2x4.png").unlink()
    with caplog.at_level(logging.WARNING, logger="hvae_sr.data"):
        dataset = ImageFolder(pairs / "hr", 16, train_lr_dir=[pairs / "lr"])
    assert [path.name for path in dataset.paths] == ["1.png"]
    assert "2 of 3 image files are skipped" in caplog.text
    assert "its LR image is 10x10, not 15x10" in caplog.text and "no LR image belongs to it" in caplog.text
    (pairs / "lr" / "set" / "1x4.png").unlink()
    with pytest.raises(ValueError, match="no usable image.*LR image"):
        ImageFolder(pairs / "hr", 16, train_lr_dir=pairs / "lr")


def test_lr_images_are_paired_by_their_whole_names_and_never_guessed(tmp_path):
    def write(folder, *names):
        for name in names:
            path = tmp_path / folder / name
            path.parent.mkdir(exist_ok=True)
            Image.new("RGB", (32, 32) if folder == "hr" else (8, 8)).save(path)

    write("hr", "a.png", "a.webp", "b.png", "b.webp", "c.png", "d.webp", "e.png")
    write("lr", "a.png", "a.webp", "b.png", "c.webp", "c.tif", "dx4.png")
    dataset = ImageFolder(tmp_path / "hr", 16, train_lr_dir=tmp_path / "lr")
    found = {path.name: dataset.low_source(dataset._files.index(path)).name for path in dataset.paths}
    assert found == {"a.png": "a.png", "a.webp": "a.webp", "b.png": "b.png", "d.webp": "dx4.png"}
    assert {path.name: reason for path, reason in dataset.skipped.items()} == {
        "b.webp": "b.png may be of another b; name them alike",
        "c.png": "c.tif and c.webp may be of another c; name them alike",
        "e.png": "no LR image belongs to it",
    }


@pytest.mark.parametrize("wrong", [{"train_lr_dir": "none"}, {"train_lr_dir": ["lr", "lr"]}, {"crop_size": 18}])
def test_wrong_lr_folders_are_named(pairs, wrong, monkeypatch):
    monkeypatch.chdir(pairs)
    options = {"crop_size": 16, "train_lr_dir": "lr", **wrong}
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ImageFolder("hr", **options)
