"""Images are read from any mode and format, checked with clear messages, and written whole or not at all."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, ImageOps
from stand_ins import noise

from hvae_sr import files
from hvae_sr.images import (
    ImageError,
    find_images,
    load_image,
    prepare_images,
    read_metadata,
    read_photo,
    save_image,
    to_pil,
    to_tensor,
    uncertainty_to_pil,
)


@pytest.fixture
def rgb():
    return noise(12, 17)


def pixels(source):
    image = load_image(source)
    assert image.mode == "RGB"
    return np.asarray(image)


def grey(levels):
    return np.repeat(np.asarray(levels)[..., None], 3, axis=-1)


def exif_of(tag, value):
    exif = Image.Exif()
    exif[tag] = value
    return exif


# Reading


def test_colours_grey_and_bits_are_read_as_they_are_into_a_new_image(tmp_path, rgb):
    bits = rgb[..., 0] > 127
    for stored, expected in ((rgb, rgb), (rgb[..., 0], grey(rgb[..., 0])), (bits, grey(bits * np.uint8(255)))):
        image = Image.fromarray(stored)
        image.save(tmp_path / "a.png")
        for source in (tmp_path / "a.png", str(tmp_path / "a.png"), image):
            assert np.array_equal(pixels(source), expected)
        load_image(image).putpixel((0, 0), (1, 2, 3))
        assert np.array_equal(np.asarray(image), stored)


@pytest.mark.parametrize("alpha", [0, 255, 51])
def test_what_is_transparent_is_seen_on_white(tmp_path, rgb, alpha):
    channel = np.full_like(rgb[..., :1], alpha)
    Image.fromarray(np.concatenate([rgb, channel], -1)).save(tmp_path / "rgba.png")
    Image.fromarray(np.concatenate([rgb[..., :1], channel], -1)).save(tmp_path / "la.png")
    seen = np.rint(rgb * (alpha / 255) + 255 - alpha).astype(np.uint8)
    assert np.array_equal(pixels(tmp_path / "rgba.png"), seen)
    assert np.array_equal(pixels(tmp_path / "la.png"), grey(seen[..., 0]))
    for kind in (tmp_path / "rgba.png", np.concatenate([rgb, channel], -1)):
        assert torch.equal(to_tensor(kind), to_tensor(seen))


@pytest.mark.parametrize("mode", ["RGBa", "La"])
def test_premultiplied_colours_are_divided_by_alpha(mode):
    straight = Image.new("RGBA" if mode == "RGBa" else "LA", (2, 2), (200, 100, 50, 128)[-len(mode) :])
    premultiplied = straight.convert(mode)
    assert np.abs(pixels(premultiplied).astype(int) - pixels(straight)).max() <= 1


@pytest.mark.parametrize("transparency", [None, 3, bytes([0, 255, 128, 7])])
def test_palette_images_become_their_colours_with_or_without_transparency(tmp_path, transparency):
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 8, 7]], dtype=np.uint8)
    indices = np.arange(12, dtype=np.uint8).reshape(3, 4) % 4
    image = Image.fromarray(indices)
    image.putpalette(colours.tobytes())
    image.save(tmp_path / "a.png", **({} if transparency is None else {"transparency": transparency}))
    alpha = {None: bytes([255] * 4), 3: bytes([255, 255, 255, 0])}.get(transparency, transparency)
    share = np.frombuffer(alpha, np.uint8)[:, None] / 255
    assert np.array_equal(pixels(tmp_path / "a.png"), np.rint(colours * share + 255 * (1 - share))[indices])


def test_transparency_in_the_palette_itself_is_seen():
    image = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4) % 2)
    image.putpalette([255, 0, 0, 255, 0, 0, 255, 0], "RGBA")
    assert image.mode == "P" and pixels(image)[0, :2].tolist() == [[255, 0, 0], [255, 255, 255]]
    assert np.asarray(read_photo(image).alpha)[0, :2].tolist() == [255, 0]


@pytest.mark.parametrize("options", [{}, {"icc_profile": b"x" * 16 + b"CMYK" + b"x" * 99}])
def test_cmyk_becomes_rgb_and_an_unusable_profile_is_ignored_and_not_kept(tmp_path, options):
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100, **options)
    assert np.abs(pixels(tmp_path / "a.jpg").astype(int) - (255, 0, 0)).max() <= 3
    assert load_image(tmp_path / "a.jpg").info == {}


def test_32_bit_integers_are_read_as_8_or_16_bit_by_their_largest_value():
    assert np.array_equal(pixels(Image.fromarray(np.array([[-5, 7, 255]], dtype=np.int32)))[0, :, 0], [0, 7, 255])
    wide = Image.fromarray(np.array([[-5, 257, 65535, 99999]], dtype=np.int32))
    assert np.array_equal(pixels(wide)[0, :, 0], [0, 1, 255, 255])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_exif_orientation_is_applied_once(tmp_path, rgb, orientation, suffix):
    turns = "FLIP_LEFT_RIGHT ROTATE_180 FLIP_TOP_BOTTOM TRANSPOSE ROTATE_90 TRANSVERSE ROTATE_270".split()
    stored = Image.fromarray(rgb)
    if orientation > 1:
        stored = stored.transpose(Image.Transpose[turns[orientation - 2]])
    path = tmp_path / f"a.{suffix}"
    stored.save(path, exif=exif_of(0x0112, orientation), **({"lossless": True} if suffix == "webp" else {}))
    image = load_image(path)
    assert np.array_equal(np.asarray(image), rgb)
    assert np.array_equal(pixels(image), rgb)  # a second pass does not turn it again
    with Image.open(path) as opened:
        assert np.array_equal(pixels(opened), rgb)


def test_a_copy_that_is_turned_is_said_to_be(tmp_path, rgb):
    Image.fromarray(rgb).save(tmp_path / "a.png", exif=exif_of(0x0112, 6))
    with Image.open(tmp_path / "a.png") as opened:
        assert not read_photo(opened).warnings
        turned = opened.transpose(Image.Transpose.ROTATE_270)  # which leaves the EXIF as it is
        photo = read_photo(turned)
        assert photo.image.size == turned.size[::-1] and "exif_transpose" in photo.warnings[0]
        assert not read_photo(ImageOps.exif_transpose(opened)).warnings


def test_broken_exif_does_not_prevent_reading(tmp_path, rgb):
    Image.fromarray(rgb).save(tmp_path / "a.png", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\x7fgarbage")
    assert np.array_equal(pixels(tmp_path / "a.png"), rgb)


def test_an_rgb_colour_profile_is_kept_and_written_and_a_grey_one_is_not(tmp_path, rgb):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(rgb).save(tmp_path / "a.png", icc_profile=profile)
    for suffix in ("png", "jpg", "webp", "tif"):
        save_image(load_image(tmp_path / "a.png"), tmp_path / f"b.{suffix}", {"seed": 1})
        assert load_image(tmp_path / f"b.{suffix}").info["icc_profile"] == profile
    Image.fromarray(rgb[..., 0]).save(tmp_path / "g.png", icc_profile=profile[:16] + b"GRAY" + profile[20:])
    assert load_image(tmp_path / "g.png").info == {}


# Files that cannot be read


def truncated(path):
    Image.fromarray(noise(64, 64)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def garbled(path):
    Image.fromarray(noise(64, 64)).save(path)
    data = path.read_bytes()
    path.write_bytes(data[:60] + bytes(1940) + data[2000:])


DAMAGES = {
    "missing.png": (lambda path: None, "No such file"),
    "folder.png": (Path.mkdir, "directory"),
    "empty.png": (Path.touch, "empty"),
    "pipe.png": (os.mkfifo, "not a regular file"),  # which could be waited for
    "text.png": (lambda path: path.write_text("this is not an image\n" * 20), "not an image"),
    "garbled.png": (garbled, ""),
    "bomb.png": (Image.new("1", (1000, 1000)).save, ""),
    **{f"truncated.{suffix}": (truncated, "") for suffix in ("png", "jpg", "webp", "tif", "bmp", "gif")},
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", DAMAGES)
def test_an_unreadable_file_is_one_error_of_one_line_that_names_it(tmp_path, monkeypatch, name):
    damage, reason = DAMAGES[name]
    damage(tmp_path / name)
    if name == "bomb.png":
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ImageError) as caught:
        load_image(tmp_path / name)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / name}: ") and "\n" not in message and reason in message


def test_what_is_no_file_or_without_pixels_is_refused():
    of_no_path = "image must be a path or a PIL image, got int"
    for source, message in (("a\0b.png", "null"), (3, of_no_path), (Image.new("L", (0, 5)), "no pixels")):
        with pytest.raises(ImageError, match=message):
            load_image(source)


# Tensors


def test_all_kinds_of_the_same_image_give_the_same_tensor(tmp_path, rgb):
    Image.fromarray(rgb).save(tmp_path / "a.png")
    expected = torch.from_numpy(rgb).permute(2, 0, 1).float() / 255
    given = expected.clone()
    kinds = [
        tmp_path / "a.png",
        Image.fromarray(rgb),
        rgb,
        np.concatenate([rgb, np.full_like(rgb[..., :1], 255)], -1),
        rgb / 255,
        (rgb / 255).astype(np.float32),
        torch.from_numpy(rgb).permute(2, 0, 1),
        given,
        given.double(),
    ]
    for kind in kinds:
        tensor = to_tensor(kind)
        assert tensor.dtype == torch.float32 and tensor.is_contiguous()
        assert torch.equal(tensor, expected)
        tensor.zero_()
    assert torch.equal(given, expected)  # it shares no memory with the result


def test_grey_and_flipped_and_read_only_arrays_are_taken_and_small_excesses_clamped(rgb):
    levels = rgb[..., 0]
    expected = (torch.from_numpy(levels.copy()).float() / 255).expand(3, -1, -1)
    for kind in (levels, levels[..., None], torch.from_numpy(levels.copy())[None]):
        assert torch.equal(to_tensor(kind), expected)
    rgb.flags.writeable = False
    assert torch.equal(to_tensor(rgb[::-1, ::-1]), to_tensor(rgb).flip(1, 2))
    assert to_tensor(np.array([[-0.0009, 0.5, 1.0009]]))[0].tolist() == [[0, 0.5, 1]]


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        (np.full((4, 4, 3), np.nan), "NaN"),
        (torch.full((3, 4, 4), float("inf")), "infinite"),
        (np.full((4, 4, 3), 200.0), "200"),
        (torch.full((3, 4, 4), -1.0), "-1"),
        (np.zeros((4, 4, 2)), "(4, 4, 2)"),
        (np.zeros((3, 4, 5)), "(3, 4, 5)"),
        (np.zeros(4), "(4,)"),
        (torch.zeros(4, 4), "(4, 4)"),
        (torch.zeros(4, 4, 3), "(4, 4, 3)"),
        (torch.zeros(2, 3, 4, 4), "(2, 3, 4, 4)"),
        (np.zeros((0, 4, 3)), "(0, 4, 3)"),
        (torch.zeros(3, 4, 0), "(3, 4, 0)"),
        (np.zeros((4, 4), dtype=np.int64), "int64"),
        (torch.zeros(3, 4, 4, dtype=torch.int32), "int32"),
        (None, "NoneType"),
        (3.5, "float"),
    ],
)
def test_a_wrong_array_is_refused_with_the_value_or_shape(bad, named):
    with pytest.raises(ValueError) as caught:
        to_tensor(bad)
    assert str(caught.value).startswith("image") and named in str(caught.value)


def test_prepare_images_takes_single_images_batches_and_mixed_lists(tmp_path, rgb):
    Image.fromarray(rgb).save(tmp_path / "a.png")
    one = to_tensor(rgb)
    assert [t.shape for t in prepare_images(rgb)] == [one.shape]
    assert [t.shape for t in prepare_images(str(tmp_path / "a.png"))] == [one.shape]
    assert all(torch.equal(t, one) for t in prepare_images(np.stack([rgb] * 3)))
    assert all(torch.equal(t, one) for t in prepare_images(torch.stack([one] * 2)))
    mixed = [tmp_path / "a.png", Image.new("L", (5, 4)), torch.zeros(2, 3, 6, 7), rgb]
    shapes = [tuple(t.shape) for t in prepare_images(mixed)]
    assert shapes == [(3, 12, 17), (3, 4, 5), (3, 6, 7), (3, 6, 7), (3, 12, 17)]


def test_an_empty_list_or_batch_is_refused_and_the_bad_element_of_one_named(tmp_path):
    for empty in ([], (), np.zeros((0, 4, 4, 3)), torch.zeros(0, 3, 4, 4)):
        with pytest.raises(ValueError, match="image is empty"):
            prepare_images(empty)
    with pytest.raises(ValueError, match=r"image\[1\] holds NaN"):
        prepare_images([torch.zeros(3, 2, 2), torch.full((3, 2, 2), float("nan"))])
    truncated(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as opened, pytest.raises(ImageError, match=r"image\[1\]"):
        prepare_images([Image.new("RGB", (2, 2)), opened])


def test_to_pil_clamps_and_rounds_to_the_nearest_level():
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for dtype in (torch.float32, torch.float64):
        assert np.array_equal(np.asarray(to_pil(to_tensor(levels).to(dtype))), grey(levels))
    values = torch.tensor([-3.0, 0.49 / 255, 0.51 / 255, 254.6 / 255, 7.0]).expand(3, 1, 5)
    assert np.asarray(to_pil(values))[0, :, 0].tolist() == [0, 0, 1, 255, 255]


def test_what_is_no_picture_is_named(tmp_path):
    for bad in (torch.zeros(1, 4, 4), torch.zeros(4, 4), torch.zeros(3, 4, 4).byte(), torch.full((3, 2, 2), torch.nan)):
        with pytest.raises(ImageError, match="tensor"):
            to_pil(bad)
    for wrong in (None, np.zeros((4, 4, 3), np.float32), [1]):
        with pytest.raises(ImageError, match=f"`image` must be .* got {type(wrong).__name__}"):
            save_image(wrong, tmp_path / "a.png")
        with pytest.raises(ImageError, match=f"must be a float tensor .* got {type(wrong).__name__}"):
            to_pil(wrong)


# Writing

METADATA = {"seed": 3, "temperature": [0.8, 0.5], "name": "überschärfe ☃", "lr_psnr": float("inf"), "model": None}


@pytest.mark.parametrize("suffix", ["png", "PNG", "webp", "tif", "tiff", "jpg", "jpeg"])
def test_saved_images_and_metadata_are_read_back(tmp_path, rgb, suffix):
    smooth = np.asarray(Image.fromarray(rgb).resize((64, 48), Image.Resampling.BICUBIC))
    path = tmp_path / f"a.{suffix}"
    save_image(Image.fromarray(smooth), path, METADATA)
    assert read_metadata(path) == {**METADATA, "lr_psnr": "inf"}  # JSON has no infinity; float() reads it
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    error = np.abs(pixels(path).astype(int) - smooth)
    assert error.max() == 0 if "j" not in suffix else error.mean() < 3


def test_metadata_may_hold_arrays_numbers_and_paths(tmp_path):
    metadata = {"a": np.float32(0.5), "b": torch.arange(3), "c": tmp_path, "d": torch.bfloat16}
    save_image(torch.zeros(3, 4, 4), tmp_path / "a.png", metadata)
    expected = {"a": 0.5, "b": [0, 1, 2], "c": str(tmp_path), "d": "torch.bfloat16"}
    assert read_metadata(tmp_path / "a.png") == expected
    save_image(torch.zeros(3, 4, 4), tmp_path / "a.png", {"lr_psnr": float("inf"), "std": np.array([0.5, np.nan])})
    text = Image.open(tmp_path / "a.png").text["hvae-sr"]  # strict JSON
    assert json.loads(text, parse_constant=pytest.fail) == {"lr_psnr": "inf", "std": [0.5, "nan"]}


def test_images_without_our_metadata_give_an_empty_dict(tmp_path, rgb):
    for name in ("a.png", "a.jpg", "a.tif", "a.gif"):
        Image.fromarray(rgb).save(tmp_path / name, exif=exif_of(0x010E, "holiday"))
        assert read_metadata(tmp_path / name) == {}
    with pytest.raises(ImageError, match="No such file"):
        read_metadata(tmp_path / "none.png")


def test_an_image_with_alpha_can_be_saved_in_every_format(tmp_path):
    for suffix in ("png", "jpg", "webp", "tif"):
        save_image(Image.new("RGBA", (4, 4), (9, 200, 30, 0)), tmp_path / f"a.{suffix}")
        assert (pixels(tmp_path / f"a.{suffix}")[0, 0] >= 254).all()
        with Image.open(tmp_path / f"a.{suffix}") as opened:
            assert suffix == "jpg" or np.array_equal(opened.getpixel((0, 0)), (9, 200, 30, 0))


def test_an_unknown_suffix_is_refused_before_anything_is_written(tmp_path):
    for name in ("a.xyz", "a", "a.gif"):
        with pytest.raises(ImageError, match="unknown suffix"):
            save_image(torch.zeros(3, 4, 4), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize(("where", "step"), [(Image.Image, "save"), (files.os, "replace")])
def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, where, step, error):
    path = tmp_path / "a.png"
    save_image(torch.ones(3, 4, 4), path)
    before = path.read_bytes()

    def fail(source, target, *args, **options):
        if step == "save":
            target.write(b"half an image")
        raise error

    monkeypatch.setattr(where, step, fail)
    with pytest.raises(error):
        save_image(torch.zeros(3, 4, 4), path)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    assert path.read_bytes() == before


def test_files_have_the_usual_permissions_and_a_missing_folder_is_an_os_error(tmp_path):
    save_image(torch.zeros(3, 4, 4), tmp_path / "a.png")
    (tmp_path / "b").touch()
    assert (tmp_path / "a.png").stat().st_mode == (tmp_path / "b").stat().st_mode
    with pytest.raises(OSError):
        save_image(torch.zeros(3, 4, 4), tmp_path / "none" / "a.png")


# Finding


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_folders_are_listed_in_natural_order_without_other_files(tmp_path):
    touch(tmp_path, "img10.png", "img2.PNG", "Img1.jpg", "notes.txt", ".hidden.png", "sub/x.png", ".git/y.png")
    assert [p.name for p in find_images(tmp_path)] == ["Img1.jpg", "img2.PNG", "img10.png"]
    names = [p.relative_to(tmp_path).as_posix() for p in find_images([tmp_path], recursive=True)]
    assert names == ["Img1.jpg", "img2.PNG", "img10.png", "sub/x.png"]
    touch(tmp_path / "mixed", "b.png", "7.png", "a.png", "07.png", "10/1.png", "9/2.png", "²3.png")
    names = [p.relative_to(tmp_path / "mixed").as_posix() for p in find_images(tmp_path / "mixed", recursive=True)]
    assert names.index("9/2.png") < names.index("10/1.png") and names.index("a.png") < names.index("b.png")
    assert len(names) == 7


def test_files_keep_their_order_and_are_listed_once_and_a_missing_one_is_refused(tmp_path):
    touch(tmp_path, "b.png", "a.png", "odd.dat")
    given = [tmp_path / "odd.dat", tmp_path / "b.png", tmp_path, str(tmp_path / "a.png")]
    assert [p.name for p in find_images(given)] == ["odd.dat", "b.png", "a.png"]
    for name, reason in (("none", "none: no such file or folder"), ("a" * 300 + ".jpg", "too long")):
        with pytest.raises(ImageError, match=reason):
            find_images([tmp_path / name])


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir()
    list_folder = os.scandir

    def refusing(path):  # as of a user, or of a share that is gone; root may list every folder
        if Path(path).name == "closed":
            raise PermissionError(errno.EACCES, "Permission denied", os.fspath(path))
        return list_folder(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert find_images(tmp_path) == []
    with pytest.raises(ImageError, match=r"closed: the folder cannot be listed: Permission denied"):
        find_images(tmp_path, recursive=True)
    assert find_images(tmp_path, True, leave_out=[tmp_path / "closed"], errors=(errors := [])) == [] == errors
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    assert find_images(tmp_path, True, errors=errors) == [tmp_path / "a.png"] and len(errors) == 1
    with pytest.raises(PermissionError):
        list(files.files_below(tmp_path))


def test_linked_folders_are_followed_and_loops_end(tmp_path):
    touch(tmp_path, "data/a.png", "elsewhere/b.png")
    os.symlink(tmp_path / "elsewhere", tmp_path / "data" / "link")
    os.symlink(tmp_path / "data", tmp_path / "data" / "loop")
    assert [p.name for p in find_images(tmp_path / "data", recursive=True)] == ["a.png", "b.png"]


# Uncertainty maps


def test_the_heat_map_runs_from_black_to_the_top_colour_in_even_steps_and_saturates():
    image = np.asarray(uncertainty_to_pil(torch.tensor([[0.0, 0.05, 0.1, 0.7]])))
    assert image.shape == (1, 4, 3)
    assert image[0, 0].tolist() == [0, 0, 3] and image[0, 2].tolist() == [251, 252, 191]
    assert np.array_equal(image[0, 2], image[0, 3])
    assert np.array_equal(np.asarray(uncertainty_to_pil(torch.tensor([[0.05]]), 0.05))[0, 0], image[0, 2])
    color = pytest.importorskip("skimage.color")
    ramp = np.asarray(uncertainty_to_pil(np.linspace(0, 0.1, 33)[None]))
    steps = np.diff(color.rgb2lab(ramp)[0, :, 0])
    assert steps.min() > 1 and steps.max() < 6


def test_three_channels_are_pooled_by_root_mean_square():
    std = torch.rand(3, 5, 6) * 0.1
    pooled = np.asarray(uncertainty_to_pil(std.square().mean(0).sqrt()))
    close = np.abs(np.asarray(uncertainty_to_pil(std)).astype(int) - pooled)
    assert close.max() <= 1
    for one in (std, std[:, :3], std[:, :2]):  # 3 rows: an array is still [H, W, 3]
        drawn = uncertainty_to_pil(one.permute(1, 2, 0).numpy())
        assert drawn.size == (6, one.shape[1]) and drawn.tobytes() == uncertainty_to_pil(one).tobytes()


@pytest.mark.parametrize(
    ("std", "max_std", "message"),
    [
        (torch.zeros(4), 0.1, "shape"),
        (torch.zeros(2, 4, 4), 0.1, "shape"),
        (torch.zeros(0, 4), 0.1, "shape"),
        (torch.full((2, 2), torch.nan), 0.1, "finite"),
        (torch.full((2, 2), -1.0), 0.1, "negative"),
        (torch.zeros(2, 2), 0.0, "max_std"),
        (torch.zeros(2, 2), float("nan"), "max_std"),
        (None, 0.1, "std must be a tensor or an array"),
        ([1], 0.1, "std must be a tensor or an array"),
    ],
)
def test_wrong_uncertainties_are_refused(std, max_std, message):
    with pytest.raises(ValueError, match=message):
        uncertainty_to_pil(std, max_std)
