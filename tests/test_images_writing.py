"""Results as files: 16 bits, resolution, EXIF of the result's own size, profiles, in every format."""

import itertools

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageCms, PngImagePlugin
from stand_ins import noise

from hvae_sr.images import (
    WIDE_SUFFIXES,
    ImageError,
    Photo,
    WideImage,
    load_image,
    read_metadata,
    read_photo,
    reading,
    save_image,
    to_tensor,
)

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
SUFFIXES = ["png", "jpg", "webp", "tiff"]
KINDS = [*((suffix, 8) for suffix in SUFFIXES), ("png", 16), ("tiff", 16)]
"""Of results: format and bits."""


def deep(channels, size=(21, 30)):
    """Smooth, of 16 bits, with the extremes."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    planes = [np.sin(rows / (5 + c) + c) * np.cos(columns / 7) * 0.5 + 0.5 for c in range(channels)]
    levels = np.rint(np.stack(planes, axis=-1) * 65535).astype(np.uint16)
    levels[0, :2] = [[0], [65535]]
    return levels


@pytest.mark.parametrize(("channels", "size"), [(1, (21, 30)), (2, (21, 30)), (3, (700, 900)), (4, (21, 30))])
@pytest.mark.parametrize("suffix", WIDE_SUFFIXES)
def test_16_bits_are_written_and_read_back_exactly_with_everything_beside_them(tmp_path, channels, size, suffix):
    """Also in the several strips in which a large image is written."""
    pixels = deep(channels, size)
    profile = SRGB if channels > 2 else b""
    path = tmp_path / f"a{suffix}"
    exif = exif_of({0x010F: "Maker", 0x8769: {0x9003: "2026:01:02 03:04:05"}}).tobytes()
    save_image(WideImage(pixels, {"icc_profile": profile, "dpi": (300, 200)}), path, {"seed": 3}, exif)
    photo = read_photo(path)
    expected = pixels[..., : 1 if channels < 3 else 3]
    assert photo.bits == 16 and photo.grey == (channels < 3) and photo.icc_profile == profile
    if channels in (2, 4):
        assert np.array_equal(photo.wide[..., 3], pixels[..., -1])
        visible = pixels[..., -1] > 0
        assert np.array_equal(photo.pixels[visible], np.broadcast_to(expected, (*size, 3))[visible])
    else:
        assert np.array_equal(photo.pixels, np.broadcast_to(expected, (*size, 3)))
    assert read_metadata(path) == {"seed": 3} and photo.dpi == pytest.approx((300, 200), rel=1e-3)
    tags = Image.Exif()
    tags.load(photo.exif)
    assert tags[0x010F] == "Maker" and tags.get_ifd(0x8769)[0x9003].startswith("2026")
    if channels != 2 or suffix == ".png":  # which Pillow does not know
        with Image.open(path) as opened:  # other readers take the file too
            assert opened.size == size[::-1]
            opened.load()
            assert suffix != ".png" or channels < 3 or np.array_equal(np.asarray(opened), pixels >> 8)
    if suffix != ".png":
        assert np.array_equal(tifffile.imread(path), pixels[..., 0] if channels == 1 else pixels)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P", "1"])
def test_tiffs_of_8_bits_are_read_back_exactly(tmp_path, mode):
    image = Image.fromarray((deep(4) >> 8).astype(np.uint8)).convert(mode)
    save_image(image, tmp_path / "a.tif")
    with Image.open(tmp_path / "a.tif") as opened:
        assert np.array_equal(np.asarray(opened.convert("RGBA")), np.asarray(image.convert("RGBA")))


@pytest.mark.parametrize("kind", ["tensor", "array", "image"])
@pytest.mark.parametrize(("grey", "alpha"), itertools.product((False, True), (False, True)))
def test_finish_gives_16_bits_of_floats_with_alpha_and_grey(kind, grey, alpha):
    wide = deep(4 if alpha else 3, (4, 6))
    wide[0, :2] = wide[1, :2]  # 8 bits clip between the two directions of resizing
    photo = Photo(
        Image.fromarray((wide[..., :3] >> 8).astype(np.uint8)),
        Image.fromarray((wide[..., 3] >> 8).astype(np.uint8)) if alpha else None,
        grey,
        wide=wide,
    )
    values = deep(3, (8, 12))
    values = np.repeat(values[..., :1], 3, axis=-1) if grey else values
    x = torch.from_numpy(values / 65535).permute(2, 0, 1)
    given = {"tensor": x.float(), "array": x.permute(1, 2, 0).numpy()}.get(kind)
    if given is None:
        values = values // 257 * 257
        given = Image.fromarray((values // 257).astype(np.uint8))
    finished = photo.finish(given, keep_grey=True, bits=16)
    assert isinstance(finished, WideImage) and finished.size == (12, 8)
    assert finished.pixels.shape[2] == (1 if grey else 3) + alpha
    assert np.abs(finished.pixels[..., : 1 if grey else 3].astype(int) - values[..., : 1 if grey else 3]).max() <= 1
    narrow = photo.finish(given, keep_grey=True)
    assert narrow.mode == ("L" if grey else "RGB") + "A" * alpha
    levels = np.asarray(narrow).reshape(8, 12, -1)
    assert np.abs(levels - finished.pixels / 257).max() <= 2


def test_another_number_of_bits_is_refused(tmp_path):
    for bits in (7, 12, None, "16"):
        with pytest.raises(ValueError, match="`bits` must be 8 or 16, got"):
            Photo(Image.new("RGB", (2, 2))).finish(Image.new("RGB", (4, 4)), bits=bits)
    for suffix in (".jpg", ".webp"):
        with pytest.raises(ImageError, match=r"holds 8 bits, not 16; use one of \.png"):
            save_image(WideImage(deep(3)), tmp_path / f"a{suffix}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bits", [8, 16])
def test_a_black_photograph_is_seen_on_white_where_it_is_transparent(bits):
    wide = deep(4)
    wide[..., :3] = 0
    alpha = Image.fromarray((wide[..., 3] >> 8).astype(np.uint8))
    given = Photo(Image.new("RGB", (30, 21)), alpha, False, SRGB, wide=wide if bits == 16 else None)
    photo = given.on_white()
    assert photo.alpha is None and photo.icc_profile == SRGB and photo.bits == bits
    expected = 65535 - wide[..., 3] if bits == 16 else 255 - np.asarray(alpha)
    assert np.abs(photo.pixels.astype(int) - expected[..., None]).max() <= 1
    assert np.abs(np.asarray(photo.image) * 257.0 - photo.pixels * (257.0 if bits == 8 else 1.0)).max() <= 129


def exif_of(tags):
    exif = Image.Exif()
    exif.update(tags)
    return exif


def with_dpi(path, dpi, **options):
    Image.new("RGB", (20, 10), (50, 100, 150)).save(path, dpi=dpi, **options)
    return path


@pytest.mark.parametrize("source", ["jpg", "png", "tif", "bmp"])
@pytest.mark.parametrize(("suffix", "bits"), KINDS)
def test_the_resolution_grows_with_the_image_so_that_it_prints_as_large(tmp_path, source, suffix, bits):
    photo = read_photo(with_dpi(tmp_path / f"a.{source}", (300, 150)))
    finished = photo.finish(torch.zeros(3, 40, 80), bits=bits)
    for exif in (b"", photo.exif):
        save_image(finished, tmp_path / f"b.{suffix}", {"seed": 1}, exif)
        assert read_photo(tmp_path / f"b.{suffix}").dpi == pytest.approx((1200, 600), rel=1e-3)


def test_a_resolution_that_a_jpeg_has_no_room_for_is_left_out(tmp_path):
    photo = read_photo(with_dpi(tmp_path / "a.png", (30000, 30000)))
    save_image(photo.finish(torch.zeros(3, 40, 80)), tmp_path / "b.jpg")
    assert Image.open(tmp_path / "b.jpg").info.get("dpi", (1, 1)) in ((1, 1), (72, 72))


@pytest.mark.parametrize(
    ("suffix", "tags", "expected"),
    [
        ("webp", {282: 300.0, 283: 300.0, 296: 2}, (300, 300)),
        ("webp", {282: 300.0, 283: 300.0, 296: 3}, (762, 762)),  # a centimetre
        ("webp", {282: 300.0, 283: 300.0, 296: 1}, None),  # no unit
        ("jpg", {271: "Maker"}, None),  # of which Pillow says 72
    ],
)
def test_a_resolution_in_exif_alone_is_found_and_one_without_a_unit_is_none(tmp_path, suffix, tags, expected):
    Image.new("RGB", (8, 8)).save(tmp_path / f"a.{suffix}", exif=exif_of(tags))
    assert read_photo(tmp_path / f"a.{suffix}").dpi == expected


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_the_resolution_is_that_of_the_upright_image(suffix, tmp_path):
    photo = read_photo(with_dpi(tmp_path / f"a.{suffix}", (300, 150), exif=exif_of({0x0112: 6})))
    assert photo.image.size == (10, 20) and photo.dpi == (150, 300)


@pytest.mark.parametrize(("suffix", "bits"), KINDS)
def test_exif_of_a_result_tells_its_own_size_and_resolution(tmp_path, suffix, bits):
    exposure = {0xA002: 20, 0xA003: 10, 0x9003: "2026:01:02 03:04:05"}
    tags = {0x0112: 6, 0x010F: "Maker", 282: 72.0, 283: 72.0, 296: 2, 256: 20, 257: 10, 0x8769: exposure}
    photo = read_photo(with_dpi(tmp_path / "a.jpg", (72, 72), exif=exif_of(tags)))
    save_image(photo.finish(torch.zeros(3, 80, 40), bits=bits), tmp_path / f"b.{suffix}", {"seed": 1}, photo.exif)
    with Image.open(tmp_path / f"b.{suffix}") as opened:
        tags = opened.getexif()
        exposure = tags.get_ifd(0x8769)
        assert (exposure[0xA002], exposure[0xA003]) == opened.size == (40, 80)
        assert tags[282] == tags[283] == 288 and 0x0112 not in tags
        assert suffix == "tiff" or (256 not in tags and 257 not in tags)


def test_a_grey_profile_is_applied_in_webp_which_has_no_grey(tmp_path):
    ramp = np.tile(np.arange(256, dtype=np.uint8), (4, 1))
    curve = b"curv" + bytes(7) + b"\0"  # none: linear light
    from hvae_sr.images.colour import _profile

    expected = 255 * np.where(ramp < 0.8, ramp / 255 * 12.92, 1.055 * (ramp / 255) ** (1 / 2.4) - 0.055)
    for alpha in (None, Image.new("L", (256, 4), 100)):
        photo = Photo(Image.fromarray(ramp).convert("RGB"), alpha, True, _profile(curve, None))
        save_image(photo.finish(photo.image, keep_grey=True), tmp_path / "a.webp")
        with Image.open(tmp_path / "a.webp") as opened:
            assert "icc_profile" not in opened.info and opened.mode == ("RGB" if alpha is None else "RGBA")
            assert np.abs(np.asarray(opened)[..., :3] - expected[..., None]).max() <= 2


def test_chunks_of_colour_go_into_pngs_and_are_missed_elsewhere(tmp_path, caplog):
    chunks = ((b"cICP", bytes([9, 16, 0, 1])), (b"gAMA", (45455).to_bytes(4, "big")))
    photo = Photo(Image.new("RGB", (4, 4)), png_chunks=chunks)
    for bits in (8, 16):
        save_image(photo.finish(torch.zeros(3, 8, 8), bits=bits), tmp_path / "a.png", {"seed": 1})
        assert read_photo(tmp_path / "a.png").png_chunks == chunks and read_metadata(tmp_path / "a.png") == {"seed": 1}
    assert not caplog.messages
    save_image(photo.finish(torch.zeros(3, 8, 8)), tmp_path / "a.webp")
    assert "cICP" in caplog.messages[0]


_RAMP = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
_PALETTE = Image.new("P", (8, 8), 1)
_PALETTE.putpalette([255, 0, 0, 255, 60, 90, 200, 128], "RGBA")
OTHER_MODES = {
    "P": _PALETTE,
    "I;16": Image.fromarray(_RAMP),
    "I": Image.fromarray(_RAMP.astype(np.int32)),
    "F": Image.fromarray((_RAMP / 65535).astype(np.float32)),
    **{mode: Image.new(mode, (8, 8), (10, 90, 30, 20)) for mode in ("CMYK", "RGBa")},
    **{mode: Image.new(mode, (8, 8), (100, 20, 30)) for mode in ("LAB", "HSV", "YCbCr", "RGBX")},
    "PA": Image.new("PA", (8, 8), (3, 128)),
    "1": Image.new("1", (8, 8), 1),
}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("mode", OTHER_MODES)
def test_a_picture_of_any_mode_is_written_as_it_is_read(tmp_path, mode, suffix):
    image = OTHER_MODES[mode]
    save_image(image, tmp_path / f"a.{suffix}")
    written = np.asarray(load_image(tmp_path / f"a.{suffix}")).astype(int)
    assert np.abs(written - np.asarray(load_image(image))).max() <= 1 and image.mode == mode


@pytest.mark.parametrize("suffix", ["png", "tiff"])
@pytest.mark.parametrize(
    ("levels", "bits"),
    [(_RAMP, 16), (_RAMP.astype("i4"), 16), ((_RAMP >> 8).astype("i4"), 8), ((_RAMP >> 8).astype("u2"), 16)],
)
def test_wide_integers_are_written_in_the_bits_that_they_are_read_in(tmp_path, suffix, levels, bits):
    image = Image.fromarray(levels)
    image.info |= {"dpi": (300, 300), "transparency": int(levels[0, 3])}
    save_image(image, tmp_path / f"a.{suffix}")
    written, read = read_photo(tmp_path / f"a.{suffix}"), read_photo(image)
    assert (written.wide is not None) == (bits == 16) and np.array_equal(written.pixels, read.pixels)
    assert written.alpha is not None and np.array_equal(np.asarray(written.alpha), np.asarray(read.alpha))
    assert written.dpi == pytest.approx((300, 300), abs=0.1)
    with pytest.raises(ImageError, match="32-bit integers"):
        save_image(Image.fromarray(np.full((8, 8), 2**20, np.int32)), tmp_path / f"b.{suffix}")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_caption_and_text_that_is_not_ascii_stay_as_they_are(tmp_path, suffix):
    """Also of a result that is upscaled again, whose own settings go."""
    given = exif_of({0x10E: "a caption", 0x13B: "Jose M."}).tobytes().replace(b"Jose M.", "José M".encode())
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", exif=given)
    source = tmp_path / "a.jpg"
    for seed in (1, 2):
        photo = read_photo(source)
        source = tmp_path / f"{seed}.{suffix}"
        save_image(photo.finish(photo.image), source, {"seed": seed}, photo.exif)
        tags = Image.open(source).getexif()
        assert read_metadata(source) == {"seed": seed} and tags[0x10E].splitlines()[0] == "a caption"
        assert tags[0x13B].encode("latin-1") == "José M".encode() and len(tags[0x10E].splitlines()) <= 2


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_results_larger_than_what_is_read_tell_their_settings(tmp_path, monkeypatch, suffix):
    save_image(Image.new("L", (80, 80)), tmp_path / f"a.{suffix}", {"seed": 3})
    monkeypatch.setattr(reading, "MAX_PIXELS", 5000)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert read_metadata(tmp_path / f"a.{suffix}") == {"seed": 3}
    if suffix != "tiff":
        assert load_image(tmp_path / f"a.{suffix}", limited=False).size == (80, 80)
        with pytest.raises(ImageError):
            load_image(tmp_path / f"a.{suffix}")


def test_a_foreign_png_larger_than_what_is_read_is_not_decoded_for_settings(tmp_path, monkeypatch):
    Image.new("L", (80, 80)).save(tmp_path / "a.png")
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", None)
    assert read_metadata(tmp_path / "a.png") == {}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_profile_of_other_colours_and_what_info_says_of_a_turn_are_left_out(tmp_path, suffix):
    profile = SRGB[:16] + b"CMYK" + SRGB[20:]
    for mode, info in (("CMYK", {"icc_profile": profile}), ("RGBA", {"exif": exif_of({0x0112: 6}).tobytes()})):
        image = Image.new(mode, (16, 12), (10, 90, 30, 20))
        image.info |= info
        save_image(image, tmp_path / f"a.{suffix}")
        with Image.open(tmp_path / f"a.{suffix}") as written:
            assert "icc_profile" not in written.info and written.size == (16, 12)


@pytest.mark.parametrize("tags", [{322: 512, 323: 512}, {338: 0, 339: 3}])
@pytest.mark.parametrize("bits", [8, 16])
def test_a_tiff_is_not_described_by_the_exif_of_another_format(tmp_path, tags, bits):
    Image.fromarray(noise(40, 30)).save(tmp_path / "a.jpg", exif=exif_of(tags | {271: "A camera"}))
    photo = read_photo(tmp_path / "a.jpg")
    result = photo.finish(to_tensor(photo.image), bits=bits)
    save_image(result, tmp_path / "a.tif", exif=photo.exif)
    assert np.array_equal(np.asarray(load_image(tmp_path / "a.tif")), np.asarray(photo.image))
    with Image.open(tmp_path / "a.tif") as written:
        assert written.getexif()[271] == "A camera"


def test_a_profile_that_is_too_long_for_many_readers_of_a_png_is_read_and_applied(tmp_path):
    long = SRGB + np.random.default_rng(0).bytes(3 * 2**19)
    long = len(long).to_bytes(4, "big") + long[4:]
    Image.new("RGBA", (20, 10), (200, 30, 60, 128)).save(tmp_path / "in.png", icc_profile=long)
    photo = read_photo(tmp_path / "in.png")
    assert photo.icc_profile == long and read_metadata(tmp_path / "in.png") == {}
    save_image(photo.finish(to_tensor(photo.image)), tmp_path / "out.png", {"seed": 3})
    assert read_metadata(tmp_path / "out.png") == {"seed": 3}
    with Image.open(tmp_path / "out.png") as written:
        assert len(written.info["icc_profile"]) < 2**20 and written.getpixel((3, 3)) == (200, 30, 60, 128)
    with pytest.raises(ImageError, match=r"use \.tif"):
        save_image(photo.finish(to_tensor(photo.image), bits=16), tmp_path / "deep.png")
    save_image(photo.finish(to_tensor(photo.image), bits=16), tmp_path / "deep.tif")
    assert read_photo(tmp_path / "deep.tif").icc_profile == long
