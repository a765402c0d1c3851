"""Training crops depend on (seed, epoch, index) alone, cover the images, and survive bad files."""

import logging
import os

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from stand_ins import noise
from torch.utils.data import DataLoader

from hvae_sr.data import ImageFolder, make_pairs
from hvae_sr.images import WideImage, save_image


def write(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


@pytest.fixture
def folder(tmp_path):
    for i in range(6):
        write(tmp_path / "photos" / f"set{i % 2}" / f"{i}.png", noise(40 + 5 * i, 70 - 3 * i, i))
    return tmp_path / "photos"


def items(dataset):
    return torch.stack([dataset[i]["image"] for i in range(len(dataset))])


def windows(pixels, side=16):
    """All crops [rows, columns, 3, side, side] of an image [H, W, 3]."""
    whole = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)
    return whole.unfold(1, side, 1).unfold(2, side, 1).permute(1, 2, 0, 3, 4)


def test_items_are_uint8_crops_of_the_images(folder):
    dataset = ImageFolder(folder, 16, scales=(1.0,), horizontal_flip=False)
    assert len(dataset) == 6
    for i in range(6):
        crop = dataset[i]["image"]
        assert crop.dtype == torch.uint8 and crop.shape == (3, 16, 16) and crop.is_contiguous()
        assert (windows(Image.open(dataset.paths[i])) == crop).flatten(2).all(2).any()
    many = ImageFolder(folder, 16, crops_per_image=7)
    assert len(many) == 42 == len(list(many))  # iteration ends
    for index in (42, -1):
        with pytest.raises(IndexError):
            many[index]


def test_folders_are_joined_and_images_of_those_left_out_not_used(folder):
    photographs = ImageFolder(folder, 16).paths
    assert ImageFolder([folder / "set0", folder / "set1"], 16).paths == photographs
    write(folder / "out" / "images" / "sample.png", noise(32, 32))
    (folder / "a link").symlink_to(folder / "out", target_is_directory=True)
    assert len(ImageFolder(folder, 16).paths) == len(photographs) + 1
    assert ImageFolder(folder, 16, leave_out=[folder / "out"]).paths == photographs


@pytest.mark.parametrize("cache_bytes", [0, 2**30])
def test_items_do_not_depend_on_workers_order_cache_or_instance(folder, cache_bytes):
    options = {"crops_per_image": 4, "vertical_flip": True, "rotate": True}
    dataset = ImageFolder(folder, 16, **options, cache_bytes=cache_bytes)
    expected = items(dataset)
    for workers in (0, 2):
        batches = [batch["image"] for batch in DataLoader(dataset, batch_size=5, num_workers=workers)]
        assert torch.equal(torch.cat(batches), expected)
    again = ImageFolder(folder, 16, **options, cache_bytes=2**30 - cache_bytes)
    backwards = torch.stack([again[i]["image"] for i in reversed(range(len(again)))])
    assert torch.equal(backwards.flip(0), expected)


def test_the_cache_limit_counts_the_bytes_of_all_scales(tmp_path, caplog):
    write(tmp_path / "a.png", noise(32, 48))
    need = 3 * (32 * 48 + 16 * 24)
    with caplog.at_level(logging.INFO, logger="hvae_sr.data"):
        ImageFolder(tmp_path, 16, scales=(1.0, 0.5, 0.25), cache_bytes=need)
        assert not caplog.records
        ImageFolder(tmp_path, 16, scales=(1.0, 0.5, 0.25), cache_bytes=need - 1)
    assert str(need) in caplog.text


def test_seed_epoch_and_index_each_change_the_crop(folder):
    dataset = ImageFolder(folder, 16, crops_per_image=2)
    first = items(dataset)
    assert not torch.equal(first[0], first[6])  # the same image, another crop
    dataset.set_epoch(1)
    second = items(dataset)
    assert not torch.equal(first, second)
    assert not torch.equal(first, items(ImageFolder(folder, 16, seed=1, crops_per_image=2)))
    loader = DataLoader(dataset, batch_size=12, num_workers=2, persistent_workers=True)
    for epoch, expected in ((1, second), (0, first)):  # persistent workers follow
        dataset.set_epoch(epoch)
        (batch,) = loader
        assert torch.equal(batch["image"], expected)
    with pytest.raises(ValueError, match="epoch"):
        dataset.set_epoch(-1)


def test_crops_cover_the_whole_image_evenly(tmp_path):
    rows, columns = np.mgrid[:20, :28].astype(np.uint8)
    write(tmp_path / "a.png", np.stack([rows, columns, rows], -1))
    dataset = ImageFolder(tmp_path, 8, scales=(1.0,), horizontal_flip=False, crops_per_image=2730)
    corners = items(dataset)[:, :2, 0, 0].numpy()
    counts = np.zeros((13, 21))
    np.add.at(counts, (corners[:, 0], corners[:, 1]), 1)
    assert counts.min() >= 1  # every position, corners included; 10 are expected
    assert counts.max() < 30
    assert np.abs(counts.sum(0) / 130 - 1).max() < 0.4 and np.abs(counts.sum(1) / 210 - 1).max() < 0.4


def test_flips_and_turns_give_the_eight_symmetries_equally_often(tmp_path):
    square = noise(8, 8)
    write(tmp_path / "a.png", square)
    options = {"scales": (1.0,), "vertical_flip": True, "rotate": True, "crops_per_image": 400}
    found = {crop.numpy().tobytes() for crop in items(ImageFolder(tmp_path, 8, **options))}
    assert len(found) == 8
    plain = items(ImageFolder(tmp_path, 8, scales=(1.0,), crops_per_image=400))
    original = torch.from_numpy(square).permute(2, 0, 1)
    same, mirrored = ((plain == each).flatten(1).all(1) for each in (original, original.flip(2)))
    assert bool((same | mirrored).all()) and 150 < int(mirrored.sum()) < 250


def test_scales_are_those_that_hold_a_crop_and_equally_likely(tmp_path):
    # The number of grey bars in a crop tells the scale.
    bars = np.tile(np.repeat(np.array([0, 255], dtype=np.uint8), 8), (64, 8))
    write(tmp_path / "a.png", np.repeat(bars[..., None], 3, -1))
    dataset = ImageFolder(tmp_path, 32, scales=(1.0, 0.5, 0.25), horizontal_flip=False, crops_per_image=300)
    edges = (items(dataset)[:, 0, 0].float() > 127).diff().ne(0).sum(1)
    assert int(edges.max()) <= 8  # 0.25 leaves 16 rows, too few
    assert min((edges <= 4).sum(), (edges > 4).sum()) > 110


def test_downsizing_is_antialiased_and_upsizing_bilinear_which_lets_small_images_in(tmp_path):
    checks = np.indices((64, 64)).sum(0) % 2 * 255
    write(tmp_path / "checks" / "a.png", np.repeat(checks[..., None], 3, -1).astype(np.uint8))
    crops = items(ImageFolder(tmp_path / "checks", 16, scales=(0.25,), crops_per_image=20)).int()
    assert crops.min() > 100 and crops.max() < 155
    (tmp_path / "checks" / "a.png").unlink()
    pixels = noise(12, 20)
    write(tmp_path / "a.png", pixels)
    large = np.asarray(Image.fromarray(pixels).resize((40, 24), Image.Resampling.BILINEAR))
    for cache_bytes in (0, 2**20):
        options = {"scales": (1.0, 2.0), "horizontal_flip": False, "cache_bytes": cache_bytes}
        crop = ImageFolder(tmp_path, 24, **options)[0]["image"]
        assert (windows(large, 24) == crop).flatten(2).all(2).sum() == 1
    with pytest.raises(ValueError, match="20x12 is smaller"):
        ImageFolder(tmp_path, 24, scales=(1.0,))


def test_every_kind_of_file_becomes_three_channels_and_pipes_and_links_in_a_circle_are_skipped(tmp_path):
    frames = [Image.new(mode, (24, 20), "white") for mode in ("P", "L")]
    frames[0].putpalette([255, 255, 255] * 256)
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    Image.new("CMYK", (24, 20)).save(tmp_path / "cmyk.jpg")
    save_image(WideImage(np.full((20, 24, 2), 65535, np.uint16)), tmp_path / "grey.tif")
    tifffile.imwrite(tmp_path / "float.tif", np.ones((20, 24, 3), np.float32), photometric="rgb")
    tifffile.imwrite(tmp_path / "long.tif", np.full((20, 24, 3), 255, np.uint32), photometric="rgb")
    write(tmp_path / "sixteen.png", np.full((20, 24), 65535, np.uint16))
    write(tmp_path / "transparent.png", np.zeros((20, 24, 4), np.uint8))
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "circle.png").symlink_to("circle.png")
    dataset = ImageFolder([tmp_path, tmp_path], 16)
    assert {path.stem for path in dataset.paths} == set("moving cmyk grey float long sixteen transparent".split())
    assert items(dataset).shape == (7, 3, 16, 16) and items(dataset).min() == 255
    reasons = {path.name: reason for path, reason in dataset.skipped.items()}
    assert reasons.keys() == {"circle.png", "pipe.png"} and reasons["pipe.png"] == "not a regular file"


@pytest.mark.parametrize("cache_bytes", [0, 2**30])
def test_photographs_that_lie_on_their_side_are_turned_upright(tmp_path, cache_bytes):
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = noise(40, 16)
    Image.fromarray(upright).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "a.png", exif=exif)
    dataset = ImageFolder(tmp_path, 16, scales=(1.0,), horizontal_flip=False, cache_bytes=cache_bytes)
    assert (windows(upright) == dataset[0]["image"]).flatten(2).all(2).any()


def test_bad_and_small_files_are_skipped_with_a_count_and_names(folder, caplog):
    (folder / "broken.png").write_bytes(b"no image")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "notes.txt").write_text("not looked at")
    write(folder / "small.png", noise(15, 90))
    with caplog.at_level(logging.WARNING, logger="hvae_sr.data"):
        dataset = ImageFolder(folder, 16)
    assert len(dataset) == 6
    assert sorted(path.name for path in dataset.skipped) == ["broken.png", "empty.jpg", "small.png"]
    assert len(caplog.records) == 1
    message = caplog.records[0].getMessage()
    assert message.startswith("3 of 9 image files are skipped")
    assert all(name in message for name in ("broken.png", "empty.jpg", "small.png", "90x15"))


@pytest.mark.parametrize("cache_bytes", [0, 2**30])
def test_a_truncated_body_is_logged_once_and_replaced_by_the_next_image(folder, caplog, cache_bytes):
    bad = folder / "set0" / "2.png"
    bad.write_bytes(bad.read_bytes()[:3000])
    with caplog.at_level(logging.WARNING, logger="hvae_sr.data"):
        dataset = ImageFolder(folder, 16, crops_per_image=3, cache_bytes=cache_bytes)
        first, second = items(dataset), items(dataset)
    assert torch.equal(first, second)
    assert len(dataset) == 18
    assert [record.getMessage().count("2.png") for record in caplog.records] == [1]
    other = ImageFolder(folder, 16, crops_per_image=3, cache_bytes=2**30 - cache_bytes)
    assert torch.equal(items(other), first)


@pytest.mark.parametrize("cache_bytes", [0, 2**30])
def test_a_folder_without_usable_images_is_refused(tmp_path, cache_bytes):
    for options in ({}, {"crop_size": 64}):
        with pytest.raises(ValueError, match="train_data_dir.*no usable image"):
            ImageFolder(tmp_path, **options)
        write(tmp_path / "small.png", noise(32, 32))
    with pytest.raises(ValueError, match="train_data_dir.*not a folder"):
        ImageFolder(tmp_path / "none")
    (tmp_path / "small.png").write_bytes((tmp_path / "small.png").read_bytes()[:500])
    with pytest.raises(ValueError, match="train_data_dir.*can be decoded"):
        ImageFolder(tmp_path, 16, cache_bytes=cache_bytes)[0]


WRONG = {
    "crop_size": [0, 2.5],
    "crops_per_image": [0, 2.5],
    "seed": [-1, 2.5],
    "scale_factor": ["x"],
    "cache_bytes": [float("nan"), "2 GB"],
    "scales": [(), (4.5,), (0.0,), (float("nan"),)],
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_named(folder, name):
    for value in WRONG[name]:
        with pytest.raises(ValueError, match=name):
            ImageFolder(folder, **{name: value})


def mean_of_blocks(x):
    return torch.nn.functional.avg_pool2d(x, 4)


def test_pairs_are_eight_bit_levels_in_minus_one_to_one():
    images = torch.randint(0, 256, (2, 3, 16, 12), dtype=torch.uint8)
    x, y = make_pairs(images, mean_of_blocks)
    assert x.dtype == y.dtype == torch.float32
    assert x.shape == (2, 3, 16, 12) and y.shape == (2, 3, 4, 3)
    assert torch.equal(((x + 1) * 127.5).round(), images.float())
    levels = (y.double() + 1) * 127.5
    assert (levels - levels.round()).abs().max() < 1e-4
    assert (levels - mean_of_blocks(images.double())).abs().max() < 0.5 + 1e-4
    assert make_pairs(images, lambda x: 2 * x + 255)[1].min() == 1.0  # an operator that overshoots is clipped
    extremes = make_pairs(torch.tensor([0, 255]).byte().view(2, 1, 1, 1).expand(2, 3, 4, 4), mean_of_blocks)
    assert all(t.unique().tolist() == [-1.0, 1.0] for t in extremes)
    for bad in (torch.zeros(2, 3, 4, 4), torch.zeros(3, 4, 4).byte(), torch.zeros(2, 1, 4, 4).byte()):
        with pytest.raises(ValueError, match="images must be uint8"):
            make_pairs(bad, mean_of_blocks)


def test_pairs_are_computed_in_full_precision_without_gradients():
    matrix = torch.nn.Parameter(torch.rand(4, 4) / 4)
    images = torch.randint(0, 256, (1, 3, 4, 4), dtype=torch.uint8)
    expected = make_pairs(images, lambda x: x @ matrix)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x, y = make_pairs(images, lambda x: x @ matrix)
    assert torch.equal(y, expected[1]) and not y.requires_grad
