"""What comes with the colours of a photograph: alpha, profile, EXIF, frames; and what its header promises."""

import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms
from stand_ins import noise

from hvae_sr.images import (
    ImageError,
    Photo,
    WideImage,
    find_images,
    image_size,
    list_frames,
    load_image,
    prepare_photos,
    read_photo,
    reading,
    save_image,
)

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def cmyk_profile() -> bytes:
    """A press that prints cyan as a mid grey, to see that a profile is used: CMYK to Lab, a 2x2x2x2 table."""

    def lab(cyan: int, magenta: int, yellow: int, black: int) -> bytes:
        lightness = 255 * (1 - 0.5 * cyan) * (1 - 0.8 * max(magenta, yellow)) * (1 - black)
        return bytes([round(lightness), 128, 128])

    nodes = [(c, m, y, k) for c in (0, 1) for m in (0, 1) for y in (0, 1) for k in (0, 1)]
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0])
    table += b"".join(struct.pack(">i", 65536 if i % 4 == 0 else 0) for i in range(9))
    table += bytes(range(256)) * 4 + b"".join(lab(*node) for node in nodes) + bytes(range(256)) * 3
    text = b"text" + bytes(4) + b"none\0"
    description = b"desc" + bytes(4) + struct.pack(">I", 5) + b"test\0" + bytes(78)
    white = b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061)
    tags = {b"desc": description, b"cprt": text, b"wtpt": white, b"A2B0": table}
    offset, entries, body = 128 + 4 + 12 * len(tags), b"", b""
    for name, data in tags.items():
        data += bytes(-len(data) % 4)
        entries += name + struct.pack(">II", offset + len(body), len(data))
        body += data
    header = struct.pack(">I4sI4s4s4s", offset + len(body), b"none", 0x02400000, b"prtr", b"CMYK", b"Lab ")
    header += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28)
    header += struct.pack(">3i", 63190, 65536, 54061) + bytes(48)
    return header + struct.pack(">I", len(tags)) + entries + body


def test_a_cmyk_photograph_is_converted_by_its_profile(tmp_path):
    path = tmp_path / "press.jpg"
    Image.new("CMYK", (16, 16), (255, 0, 0, 0)).save(path, quality=100, subsampling=0, icc_profile=cmyk_profile())
    levels = np.asarray(read_photo(path).image).astype(int)
    assert np.abs(levels - 119).max() <= 3  # L* = 50 in sRGB; Pillow's own formula gives (0, 255, 255)
    assert read_photo(path).icc_profile == b""


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGBa"])
def test_alpha_is_kept_apart_and_hidden_colours_are_those_of_the_nearest_visible_pixel(mode, tmp_path):
    levels = np.zeros((8, 12, 4), dtype=np.uint8)
    levels[:, 4:8] = (200, 60, 60, 255)
    levels[:, 8:] = (0, 255, 0, 0)
    image = Image.fromarray(levels).convert(mode)
    path = tmp_path / "a.png"
    if mode == "RGBa":
        photo = read_photo(image)
    else:
        image.save(path)
        photo = read_photo(path)
    assert np.array_equal(np.asarray(photo.alpha), levels[..., 3])
    colours = np.asarray(photo.image)
    assert (colours == colours[0, 5]).all() and photo.grey == (mode == "LA")
    assert np.array_equal(np.asarray(load_image(image))[:, 4:8], colours[:, 4:8])


def test_alpha_turns_with_the_image_and_leaves_colours_alone_where_all_or_nothing_is_seen(tmp_path):
    levels = np.zeros((2, 3, 4), dtype=np.uint8)
    levels[0, 0] = 255
    Image.fromarray(levels).save(tmp_path / "a.png", exif=camera_exif())
    photo = read_photo(tmp_path / "a.png")
    assert photo.image.size == (2, 3) and np.asarray(photo.alpha)[0].tolist() == [0, 255]
    for alpha in (0, 255):
        levels = np.dstack([noise(5, 6), np.full((5, 6), alpha, np.uint8)])
        assert np.array_equal(np.asarray(read_photo(Image.fromarray(levels)).image), levels[..., :3])
    image = Image.new("RGB", (2, 2))
    image.info["transparency"] = 3  # of the palette it was made from
    assert read_photo(image).alpha is None


def test_integers_beyond_16_bits_are_refused_not_garbled(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.linspace(0, 2**32 - 1, 64).reshape(8, 8).astype(np.uint32))
    with pytest.raises(ImageError, match="32-bit integers beyond"):
        read_photo(tmp_path / "a.tif")


def test_finish_gives_alpha_and_profile_back_and_leaves_the_colours_as_they_are():
    colours = Image.new("RGB", (16, 12), (9, 9, 9))
    finished = Photo(Image.new("RGB", (4, 3)), Image.new("L", (4, 3), 77), False, SRGB).finish(colours)
    assert finished.mode == "RGBA" and finished.getpixel((3, 3)) == (9, 9, 9, 77)
    assert finished.info["icc_profile"] == SRGB and colours.mode == "RGB"


def test_a_profile_is_fitted_to_the_channels_that_are_written(tmp_path):
    curve = ImageCms.ImageCmsProfile(io.BytesIO(SRGB))
    Image.new("L", (4, 4)).save(tmp_path / "c.png", icc_profile=SRGB)
    photo = read_photo(tmp_path / "c.png")
    for keep_grey, space in ((True, b"GRAY"), (False, b"RGB ")):
        finished = photo.finish(Image.new("RGB", (8, 8), (90, 90, 90)), keep_grey)
        profile = finished.info["icc_profile"]
        assert profile[16:20] == space
        seen = ImageCms.profileToProfile(finished, io.BytesIO(profile), curve, outputMode="RGB")
        assert np.abs(np.asarray(seen).astype(int) - 90).max() <= 1


def test_a_profile_of_other_channels_is_left_out_with_a_warning(tmp_path):
    for mode, space in (("L", b"Lab "), ("RGB", b"GRAY")):
        Image.new(mode, (4, 4)).save(tmp_path / "a.png", icc_profile=SRGB[:16] + space + SRGB[20:])
        photo = read_photo(tmp_path / "a.png")
        assert photo.icc_profile == b"" and "profile" in photo.warnings[0]


def camera_exif() -> Image.Exif:
    """Turned to the right; with maker, date and latitude."""
    exif, place = Image.Exif(), {1: "N", 2: (52.0, 30.0, 0.0)}
    exif.update({0x0112: 6, 0x010F: "Maker", 0x8769: {0x9003: "2026:01:02 03:04:05"}, 0x8825: place})
    return exif


def kept_tags(photo: Photo) -> Image.Exif:
    tags = Image.Exif()
    tags.load(photo.exif)
    return tags


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
@pytest.mark.parametrize("source", ["jpg", "png", "webp", "tif"])
def test_exif_is_passed_on_without_the_orientation_that_was_applied(tmp_path, source, suffix):
    Image.new("RGB", (4, 6)).save(tmp_path / f"a.{source}", exif=camera_exif().tobytes())
    photo = read_photo(tmp_path / f"a.{source}")
    assert photo.image.size == (6, 4)
    save_image(photo.image, tmp_path / f"b.{suffix}", {"seed": 1}, photo.exif)
    again = Image.open(tmp_path / f"b.{suffix}")
    tags = again.getexif()
    assert tags[0x010F] == "Maker" and 0x0112 not in tags and again.size == (6, 4)
    assert tags.get_ifd(0x8769)[0x9003] == "2026:01:02 03:04:05" and tags.get_ifd(0x8825)[2] == (52, 30, 0)
    assert reading.read_metadata(tmp_path / f"b.{suffix}") == {"seed": 1}


def test_what_a_tiff_says_of_its_own_pixels_is_not_passed_on(tmp_path):
    levels = np.zeros((64, 64), dtype=np.float32)
    private = [(270, "s", 0, "caption", True), (700, "B", 3, b"xmp", True), (65000, "H", 1, 7, True)]
    for big in (False, True):
        tifffile.imwrite(tmp_path / "a.tif", levels, tile=(32, 32), metadata=None, extratags=private, bigtiff=big)
        tags = kept_tags(read_photo(tmp_path / "a.tif"))
        assert {270} <= set(tags) <= {270, 282, 283, 296, 305} and tags[270] == "caption"


def test_the_exif_of_a_given_image_is_left_as_it_is(tmp_path):
    Image.new("RGB", (4, 6)).save(tmp_path / "a.jpg", exif=camera_exif().tobytes())
    image = Image.open(tmp_path / "a.jpg")
    assert read_photo(image).exif and image.getexif()[0x0112] == 6 and image.size == (4, 6)


def test_orientation_profile_and_exif_of_a_float_tiff_are_kept(tmp_path):
    levels = np.zeros((4, 6, 3), dtype=np.float32)
    levels[0, 0] = 1
    tags = [(274, "H", 1, 6, True), (271, "s", 0, "Maker", True)]
    options = {"photometric": "rgb", "iccprofile": SRGB, "metadata": None, "extratags": tags}
    for big in (False, True):
        tifffile.imwrite(tmp_path / "a.tif", levels, **options, bigtiff=big)
        photo = read_photo(tmp_path / "a.tif")
        assert photo.image.size == (4, 6) and photo.image.getpixel((3, 0)) == (255, 255, 255)
        assert load_image(tmp_path / "a.tif").size == (4, 6) and photo.icc_profile == SRGB
        assert kept_tags(photo)[271] == "Maker" and 274 not in kept_tags(photo)


def test_frames_of_an_animation_are_counted_and_read_one_by_one(tmp_path):
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    frames = [Image.new("RGB", (8, 6), colour) for colour in colours]
    for suffix, options in (("gif", {}), ("png", {}), ("webp", {"lossless": True})):
        path = tmp_path / f"a.{suffix}"
        frames[0].save(path, save_all=True, append_images=frames[1:], **options)
        assert len(list_frames(path)) == 3 and load_image(path).getpixel((3, 3)) == colours[0]
        for number, colour in enumerate(colours):
            assert read_photo(path, number).image.getpixel((3, 3)) == colour
        with pytest.raises(ImageError, match="a\\."):
            read_photo(path, 3)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "bmp", "avif", "gif"])
def test_every_format_is_read_also_of_images_that_compress_well(tmp_path, suffix):
    smooth = Image.fromarray(np.linspace(0, 255, 24 * 32).reshape(24, 32).astype(np.uint8)).convert("RGB")
    for image in (smooth, Image.new("RGB", (1500, 1000), (200, 30, 30)), Image.new("1", (3000, 2000))):
        image.save(tmp_path / f"a.{suffix}")
        levels = np.asarray(load_image(tmp_path / f"a.{suffix}")).astype(int)
        assert np.abs(levels - np.asarray(image.convert("RGB"))).mean() < 3


@pytest.mark.parametrize("name", ["turned.jpg", "turned.tif", "float.tif", "grey and alpha.tif", "plain.png", "a.webp"])
def test_the_size_is_that_of_the_upright_image_of_a_file_or_its_bytes(tmp_path, name):
    path = tmp_path / name
    exif = Image.Exif()
    exif[274] = 6  # a quarter turn
    if name == "float.tif":
        tifffile.imwrite(path, np.zeros((7, 11, 3), np.float32), photometric="rgb", extratags=[(274, 3, 1, 6, True)])
    elif name == "grey and alpha.tif":
        save_image(WideImage(np.full((7, 11, 2), 300, np.uint16)), path)
    else:
        Image.new("RGB", (11, 7), (9, 8, 7)).save(path, **({"exif": exif} if name.startswith("turned") else {}))
    read = load_image(path)
    assert image_size(path) == image_size(io.BytesIO(path.read_bytes())) == read.size
    assert np.array_equal(load_image(io.BytesIO(path.read_bytes())), read)
    if name not in ("float.tif", "grey and alpha.tif"):  # which Pillow does not open
        with Image.open(path) as opened:
            assert image_size(opened) == read.size


@pytest.mark.parametrize("read", [load_image, image_size])
def test_what_would_start_a_program_or_is_empty_is_no_image(tmp_path, read):
    for data, message in ((b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"), (b"", "empty")):
        (tmp_path / "a.png").write_bytes(data)
        for source in (tmp_path / "a.png", io.BytesIO(data)):
            with pytest.raises(ImageError, match=message):
                read(source)


def test_more_pixels_than_are_read_or_than_the_file_can_hold_are_refused_by_the_header(tmp_path, monkeypatch):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    data = bytearray((tmp_path / "a.png").read_bytes())
    data[16:24] = struct.pack(">II", 9000, 9000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(ImageError, match="9000x9000 pixels cannot be in"):
        load_image(tmp_path / "a.png")
    Image.new("RGB", (100, 50)).save(tmp_path / "a.bmp")
    monkeypatch.setattr(reading, "MAX_PIXELS", 4999)
    with pytest.raises(ImageError, match="100x50 pixels are more"):
        load_image(tmp_path / "a.bmp")


def test_photos_are_prepared_beside_tensors():
    rgba = Image.new("RGBA", (5, 4), (1, 2, 3, 128))
    (first, photo), (second, none) = prepare_photos([rgba, np.zeros((3, 2, 3), dtype=np.uint8)])
    assert first.shape == (3, 4, 5) and photo is not None and photo.alpha is not None and none is None
    assert second.shape == (3, 3, 2)


def test_a_tag_that_cannot_be_written_does_not_take_the_others_with_it(tmp_path):
    photo = Image.new("RGB", (8, 8))
    photo.getexif().update({271: "A camera", 296: "2"})
    assert dict(kept_tags(read_photo(photo))) == {271: "A camera"}


def test_xmp_as_text_and_pictures_near_the_limit_are_read_without_a_word(tmp_path, recwarn):
    photo = Image.new("RGB", (8, 8))
    photo.info["xmp"] = "<x:xmpmeta/>"
    assert read_photo(photo).warnings == ()
    Image.new("1", (10000, 9500)).save(tmp_path / "large.png")
    assert image_size(tmp_path / "large.png") == (10000, 9500)
    assert list(recwarn) == []


def test_folders_hold_every_kind_that_is_read(tmp_path):
    for name in ("a.mpo", "b.J2K", "c.apng"):
        (tmp_path / name).touch()
    assert len(find_images(tmp_path)) == 3
