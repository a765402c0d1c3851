"""Files that readers get wrong: depth, planes, white as zero, transparent colours, frames, profiles, HEIC."""

import io
import itertools
import struct
import sys
import zlib
from functools import partial

import numpy as np
import pytest
from PIL import Image, ImageCms
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from hvae_sr.images import ImageError, find_images, list_frames, load_image, read_photo, to_tensor

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
RNG = np.random.default_rng(0)


def lzw(data, row_bytes):
    """A strip as libtiff packs it."""
    buffer = io.BytesIO()
    Image.frombytes("L", (row_bytes, len(data) // row_bytes), data).save(buffer, "TIFF", compression="tiff_lzw")
    with Image.open(buffer) as image:
        ((start,), (size,)) = image.tag_v2[273], image.tag_v2[279]
    return buffer.getvalue()[start : start + size]


def tiff(*pages):
    """A TIFF of pages, each what `page` returns; all of one byte order."""
    out = (b"II*\0" if pages[0][0] == "<" else b"MM\0*") + bytes(4)
    pointer = 4  # where the place of the next directory is told
    for order, tags, strips in pages:
        directory, tiled = ImageFileDirectory_v2(out[:8]), 322 in tags
        directory.tagtype[324] = 4
        counts = [len(strip) for strip in strips]
        starts = list(itertools.accumulate(counts[:-1], initial=0))
        for tag, value in (tags | {324 if tiled else 273: starts, 325 if tiled else 279: counts}).items():
            directory[tag] = value
        if tiled:  # of strips, Pillow adds where they begin
            directory[324] = [start + len(out) + len(directory.tobytes(len(out))) for start in starts]
        out = out[:pointer] + struct.pack(f"{order}I", len(out)) + out[pointer + 4 :]
        pointer = len(out) + 2 + 12 * len(directory)
        out += directory.tobytes(len(out)) + b"".join(strips)
        out += bytes(len(out) % 2)
    return out


def page(values, order="<", photometric=1, planar=False, compression=1, predictor=1, tile=None, bits=None, **tags):
    """`values` `[H, W, C]` in the numbers that are to be stored; several strips, or tiles of `tile`, of each plane."""
    height, width, channels = values.shape
    size = values.dtype.itemsize
    planes = [values[..., c : c + 1] for c in range(channels)] if planar else [values]
    strips = []
    for plane in planes:
        down, across = tile or (max(height // 3, 1), width)
        for top, left in itertools.product(range(0, height, down), range(0, width, across)):
            block = plane[top : top + down, left : left + across]
            if tile:
                block = np.pad(block, ((0, down - block.shape[0]), (0, across - block.shape[1]), (0, 0)), mode="edge")
            rows = block.shape[0]
            if predictor == 2:
                block = block.copy().view(f"u{size}")
                block[:, 1:] -= block[:, :-1].copy()
            if predictor == 3:
                shuffled = block.astype(f">f{size}").view(np.uint8).reshape(rows, -1, size).transpose(0, 2, 1)
                shuffled = np.ascontiguousarray(shuffled).reshape(rows, -1, block.shape[2])
                shuffled[:, 1:] -= shuffled[:, :-1].copy()
                data = shuffled.tobytes()
            elif bits:
                ones = (block[..., None].astype(np.uint32) >> np.arange(bits - 1, -1, -1)) & 1
                data = np.packbits(ones.reshape(rows, -1).astype(np.uint8), axis=1).tobytes()
            else:
                data = block.astype(block.dtype.newbyteorder(order)).tobytes()
            strips.append({1: bytes, 5: partial(lzw, row_bytes=len(data) // rows), 8: zlib.compress}[compression](data))
    own = {256: width, 257: height, 258: (bits or 8 * size,) * channels, 259: compression, 262: photometric}
    own |= {277: channels, 278: down, 284: 2 if planar else 1, 317: predictor}
    own |= {339: ({"u": 1, "i": 2, "f": 3}[values.dtype.kind],) * channels}
    own |= {322: tile[1], 323: tile[0]} if tile else {}
    return order, own | {int(tag.removeprefix("t")): value for tag, value in tags.items()}, strips


def written(tmp_path, data, name="a.tif"):
    (tmp_path / name).write_bytes(data)
    return tmp_path / name


def levels(channels, kind="u2", size=(13, 20)):
    wide = RNG.integers(0, 65536, (*size, channels))
    return (wide / 65535).astype(kind) if "f" in kind else (wide >> (16 - 8 * np.dtype(kind).itemsize)).astype(kind)


# TIFF of more than 8 bits


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", [1, 5, 8])
@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize(("kind", "predictor"), [("u2", 1), ("u2", 2), ("f4", 1), ("f4", 3), ("f2", 1), ("f8", 1)])
@pytest.mark.parametrize("tile", [None, (16, 16)])
def test_deep_colours_are_read_in_every_layout(tmp_path, order, compression, planar, kind, predictor, tile):
    values = levels(3, kind)
    path = written(tmp_path, tiff(page(values, order, 2, planar, compression, predictor, tile)))
    photo = read_photo(path)
    expected = values if kind == "u2" else np.rint(values.astype(np.float64) * 65535)
    assert photo.bits == 16 and not photo.grey and np.array_equal(photo.pixels, expected)
    assert np.abs(np.asarray(photo.image) - expected / 257).max() <= 0.51
    assert np.array_equal(np.asarray(load_image(path)), np.asarray(photo.image))
    if kind == "u2":
        with Image.open(path) as opened:
            assert np.array_equal(read_photo(opened).pixels, expected)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", ["u1", "u2", "f4", "f8"])
@pytest.mark.parametrize("compression", [1, 8])
def test_where_white_is_zero_no_negative_is_read(tmp_path, order, kind, compression):
    most = {"u1": 255, "u2": 65535}.get(kind, 1)
    ramp = np.tile(np.linspace(0, most, 32).astype(kind)[:, None], (8, 1, 1))
    photo = read_photo(written(tmp_path, tiff(page(ramp, order, 0, compression=compression))))
    seen = np.asarray(photo.image)[0, :, 0].astype(float)
    assert photo.grey and np.abs(seen - np.linspace(255, 0, 32)).max() <= 1


@pytest.mark.parametrize("bits", [10, 12, 14])
@pytest.mark.parametrize("photometric", [0, 1])
def test_levels_between_8_and_16_bits_span_the_range(tmp_path, bits, photometric):
    values = RNG.integers(0, 2**bits, (7, 9, 1)).astype("u2")
    values[0, :2, 0] = 0, 2**bits - 1
    photo = read_photo(written(tmp_path, tiff(page(values, ">", photometric, bits=bits))))
    expected = values / (2**bits - 1) * 65535
    assert np.abs(photo.pixels - (65535 - expected if photometric == 0 else expected)).max() <= 0.51


@pytest.mark.parametrize("kind", ["u2", "f4"])
@pytest.mark.parametrize("channels", [2, 4])
@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("extra", [0, 1, 2])
def test_alpha_of_deep_tiffs_is_told_from_other_samples_and_divided_out_where_it_is_in_the_colours(
    tmp_path, kind, channels, planar, extra
):
    straight = levels(channels, "f8") * 0.5 + 0.25
    stored = straight.copy()
    if extra == 1:
        stored[..., :-1] *= stored[..., -1:]
    stored = np.rint(stored * 65535).astype("u2") if kind == "u2" else stored.astype(kind)
    photo = read_photo(written(tmp_path, tiff(page(stored, "<", channels // 2, planar, t338=extra))))
    assert np.abs(photo.pixels / 65535 - straight[..., :-1]).max() < 1e-4
    assert photo.grey == (channels == 2) and (photo.alpha is None) == (extra == 0)
    if extra:
        assert np.abs(photo.wide[..., 3] / 65535 - straight[..., -1]).max() < 1e-4


@pytest.mark.parametrize("planar", [False, True])
def test_deep_cmyk_is_converted(tmp_path, planar):
    values = np.zeros((5, 6, 4), "u2")
    values[..., 1:3] = 65535
    photo = read_photo(written(tmp_path, tiff(page(values, "<", 5, planar))))
    assert photo.bits == 8 and photo.image.getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("order", ["<", ">"])
def test_pages_of_any_kind_stand_beside_each_other_each_with_its_own_profile(tmp_path, order):
    values = [levels(3, "f4"), levels(3, "u1"), levels(1, "u1"), levels(3), levels(3, "f4", (5, 7))]
    tags = [{}, {"t34675": SRGB}, {}, {"t34675": SRGB, "t254": 1}, {}]
    pages = [page(v, order, 2 if v.shape[2] == 3 else 1, **t) for v, t in zip(values, tags, strict=True)]
    path = written(tmp_path, tiff(*pages))
    photos = [read_photo(path, number) for number in range(5)]
    assert [photo.bits for photo in photos] == [16, 8, 8, 16, 16]
    assert [bool(photo.icc_profile) for photo in photos] == [False, True, False, True, False]
    assert list_frames(path) == ["20x13", "20x13", "20x13", "20x13, a preview", "7x5"]
    for photo, stored in zip(photos, values, strict=True):
        expected = np.rint(stored.astype(np.float64) * 65535) if stored.dtype.kind == "f" else stored
        assert np.array_equal(photo.pixels, np.broadcast_to(expected, photo.pixels.shape))
    with pytest.raises(ImageError, match=r"a\.tif: there is no page 5, it has 5"):
        read_photo(path, 5)


def test_floats_beyond_their_range_are_clipped_with_a_warning_and_slight_excesses_do_not_change_the_scale(tmp_path):
    for most, expected in ((1.0, 65535), (1.25, 65535), (255.0, 65535), (1000.0, 65535)):
        values = np.full((4, 4, 1), most, "f4")
        values[0, 0] = -0.1 if most == 1.25 else 0
        values[0, 1] = 0.2 if most < 2 else 51
        photo = read_photo(written(tmp_path, tiff(page(values))))
        assert photo.pixels[1, 1, 0] == expected and photo.pixels[0, :2, 0].tolist() == [0, 13107]
        assert bool(photo.warnings) == (most != 1.0)


@pytest.mark.parametrize(
    ("values", "tags", "message"),
    [
        (levels(3), {"t259": 34712}, "compression 34712"),
        (levels(3), {"photometric": 8}, "photometric 8"),
        (levels(3), {"t278": 1}, "truncated or damaged: 4 of 13 strips"),
        (levels(3), {"t256": 2000, "t257": 4000, "t278": 4000, "t273": 8}, "2000x4000 pixels cannot be in"),
        (levels(1, "f4") * np.float32(np.nan), {}, "NaN"),
    ],
)
def test_what_is_not_read_of_deep_tiffs_is_refused_with_the_reason(tmp_path, values, tags, message):
    tags = {"photometric": 2 if values.shape[2] == 3 else 1} | tags
    path = written(tmp_path, tiff(page(values, **tags)))
    with pytest.raises(ImageError, match=message):
        read_photo(path)


# PNG: depth, transparent colours, chunks of colour


def png(values, depth, colour_type, *chunks, interlaced=False):
    """`values` `[H, W, C]` as a PNG of that depth, with chunks (name, data) before the pixels."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    rows = b""
    for left, top, across, down in passes if interlaced else [(0, 0, 1, 1)]:
        part = values[top::down, left::across]
        for row in part if part.size else ():
            if depth < 8:
                ones = (row.reshape(-1, 1) >> np.arange(depth - 1, -1, -1)) & 1
                rows += b"\0" + np.packbits(ones.astype(np.uint8)).tobytes()
            else:
                rows += b"\0" + row.astype(f">u{depth // 8}").tobytes()
    head = struct.pack(">2I5B", values.shape[1], values.shape[0], depth, colour_type, 0, 0, interlaced)
    parts = [(b"IHDR", head), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(("channels", "colour_type"), [(1, 0), (2, 4), (3, 2), (4, 6)])
def test_pngs_of_16_bits_are_read_with_all_of_them(tmp_path, channels, colour_type, interlaced):
    values = levels(channels, size=(11, 9))
    path = written(tmp_path, png(values, 16, colour_type, interlaced=interlaced), "a.png")
    for source in (path, Image.open(path)):
        photo = read_photo(source)
        colours = values[..., : channels - (channels % 2 == 0)]
        assert photo.bits == 16 and photo.grey == (channels < 3)
        assert np.array_equal(photo.pixels, np.broadcast_to(colours, photo.pixels.shape))
        if channels in (2, 4):
            assert np.array_equal(photo.wide[..., 3], values[..., -1])
            assert np.abs(np.asarray(photo.alpha) - values[..., -1] / 257).max() <= 1
        assert np.array_equal(to_tensor(photo).numpy(), np.moveaxis(photo.pixels, -1, 0) / np.float32(65535))
    if channels == 3:
        assert np.array_equal(to_tensor(path), to_tensor(photo))


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("key", [0, 1, -1])
def test_one_transparent_level_of_grey_is_alpha_in_every_depth(tmp_path, depth, key):
    values = RNG.integers(0, 2**depth, (9, 10, 1))
    key %= 2**depth
    values[0, :2, 0] = key, key ^ 1  # the nearest level is not transparent
    stored = key | 0x5000 if depth < 8 else key  # bits beyond the depth do not count
    path = written(tmp_path, png(values, depth, 0, (b"tRNS", struct.pack(">H", stored if depth > 1 else key))), "a.png")
    photo = read_photo(path)
    assert photo.grey and np.array_equal(np.asarray(photo.alpha), np.where(values[..., 0] == key, 0, 255))


@pytest.mark.parametrize(("depth", "key"), [(8, (9, 8, 7)), (8, (0, 0, 0)), (16, (10, 20, 200)), (16, (0, 0, 0))])
@pytest.mark.parametrize("scale", [1, 257])
def test_one_transparent_colour_is_alpha_where_all_its_bits_agree(tmp_path, depth, key, scale):
    key = tuple(value * (scale if depth == 16 else 1) for value in key)
    values = np.full((3, 4, 3), 77)
    values[0, 0] = key
    for channel in range(3):  # each one apart in one bit
        values[1, channel] = key
        values[1, channel, channel] ^= 1
    path = written(tmp_path, png(values, depth, 2, (b"tRNS", struct.pack(">3H", *key))), "a.png")
    for source in (path, Image.open(path)):
        photo = read_photo(source)
        alpha = np.asarray(photo.alpha)
        assert alpha[0, 0] == 0 and (np.delete(alpha.ravel(), 0) == 255).all() and not photo.grey


CHUNKS = {
    "linear": (b"gAMA", struct.pack(">I", 100000)),
    "steep": (b"gAMA", struct.pack(">I", 55556)),  # 1 / 1.8
    "wide": (b"cHRM", struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)),
    "display-p3": (b"cICP", bytes([12, 13, 0, 1])),
}


def seen(image):
    """In sRGB, by the profile that it carries."""
    profiles = (io.BytesIO(profile) for profile in (image.info["icc_profile"], SRGB))
    return np.asarray(ImageCms.profileToProfile(image, *profiles, outputMode="RGB")).astype(int)


def srgb(linear):
    linear = np.asarray(linear)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 1e-9) ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("colour_type", [0, 2])
@pytest.mark.parametrize(("kind", "exponent"), [("linear", 1.0), ("steep", 1.8)])
def test_gamma_of_a_png_becomes_a_profile_that_shows_the_same(tmp_path, kind, exponent, colour_type):
    ramp = np.tile(np.arange(0, 256, 5)[:, None], (2, 1, 3 if colour_type else 1))
    photo = read_photo(written(tmp_path, png(ramp, 8, colour_type, CHUNKS[kind]), "a.png"))
    expected = srgb((ramp[0, :, 0] / 255) ** exponent)
    for keep_grey in (False, True):
        finished = photo.finish(photo.image, keep_grey)
        assert finished.mode == ("L" if keep_grey and not colour_type else "RGB")
        # LittleCMS takes one channel through a coarse table.
        assert np.abs(seen(finished)[0, :, 1] - expected).max() <= (2 if finished.mode == "RGB" else 8)
        assert finished.info["png_chunks"] == (CHUNKS[kind],)


def test_primaries_of_a_png_become_a_profile(tmp_path):
    red = np.full((2, 2, 3), (255, 0, 0))
    for kind in ("wide", "display-p3"):
        photo = read_photo(written(tmp_path, png(red, 8, 2, CHUNKS[kind]), "a.png"))
        lab = ImageCms.profileToProfile(
            photo.finish(photo.image), io.BytesIO(photo.icc_profile), ImageCms.createProfile("LAB"), outputMode="LAB"
        )
        # Red in CIE Lab (D50), as Pillow stores it: a = 94 and 128 of Display P3, a = 81 of sRGB.
        assert abs(lab.getpixel((0, 0))[1] - 128 - 94) < 2


def test_what_says_srgb_needs_no_profile_and_high_dynamic_range_is_warned_of(tmp_path):
    ramp = np.tile(np.arange(0, 256, 5)[:, None], (2, 1, 3))
    plain = (b"gAMA", struct.pack(">I", 45455))
    high = (b"cICP", bytes([9, 16, 0, 1]))
    for chunks in ([(b"sRGB", b"\0"), plain], [plain], [(b"cICP", bytes([1, 13, 0, 1]))], [high]):
        photo = read_photo(written(tmp_path, png(ramp, 8, 2, *chunks), "a.png"))
        assert photo.icc_profile == b"" and dict(photo.png_chunks) == dict(chunks)
        assert bool(photo.warnings) == (chunks == [high])


# Others


@pytest.mark.parametrize("most", [200, 65535])
def test_a_dark_grey_map_of_16_bits_stays_dark(tmp_path, most):
    values = np.linspace(0, most, 12).astype(">u2").reshape(3, 4)
    photo = read_photo(written(tmp_path, b"P5 4 3 65535\n" + values.tobytes(), "a.pgm"))
    assert photo.grey and np.array_equal(photo.pixels[..., 0], values)


def test_frames_of_an_animated_webp_without_the_flag_of_alpha_stand_on_a_transparent_ground(tmp_path):
    small = io.BytesIO()
    Image.new("RGB", (4, 4), (200, 30, 40)).save(small, "WEBP", lossless=True)
    bitstream = small.getvalue()[12:]

    def chunk(name, data):
        return name + struct.pack("<I", len(data)) + data + bytes(len(data) % 2)

    def number(value):
        return struct.pack("<I", value)[:3]

    for size, covered in ((8, False), (4, True)):
        canvas = bytes([0x02, 0, 0, 0]) + number(size - 1) * 2  # an animation, no alpha
        frame = number(0) * 2 + number(3) * 2 + number(100) + b"\0" + bitstream
        body = b"WEBP" + chunk(b"VP8X", canvas) + chunk(b"ANIM", bytes(6)) + chunk(b"ANMF", frame) * 2
        path = written(tmp_path, b"RIFF" + struct.pack("<I", len(body)) + body, "a.webp")
        for number_of_frame in range(2):
            photo = read_photo(path, number_of_frame)
            assert photo.image.getpixel((1, 1)) == (200, 30, 40)
            assert (photo.alpha is None) == covered
            assert covered or np.asarray(photo.alpha)[[0, 7], [0, 7]].tolist() == [255, 0]


def bmp(alpha, header):
    """2x2 pixels of 32 bits in a bitmap with a header of 40 bytes, or of 108 that declares alpha."""
    pixels = bytes([50, 100, 200, alpha]) * 4
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) + b"BGRs" + bytes(48) if header == 108 else b""
    head = struct.pack("<IiiHHIIiiII", header, 2, 2, 1, 32, 3 if masks else 0, 16, 0, 0, 0, 0) + masks
    return b"BM" + struct.pack("<IHHI", 14 + len(head) + 16, 0, 0, 14 + len(head)) + head + pixels


@pytest.mark.parametrize(("header", "alpha", "expected"), [(40, 0, None), (108, 0, None), (108, 128, 128)])
def test_a_bitmap_without_a_visible_pixel_is_opaque(tmp_path, header, alpha, expected):
    photo = read_photo(written(tmp_path, bmp(alpha, header), "a.bmp"))
    assert photo.image.getpixel((0, 0)) == (200, 100, 50)
    assert (photo.alpha and photo.alpha.getpixel((1, 1))) == expected


def test_pictures_of_a_phone_are_told_apart_and_the_second_has_its_own_profile(tmp_path):
    first = Image.new("RGB", (48, 32), (90, 20, 10))
    first.info["icc_profile"] = SRGB
    second = Image.new("RGB", (12, 8), (10, 20, 90))
    path = tmp_path / "a.jpg"
    first.save(path, "MPO", save_all=True, append_images=[second], icc_profile=SRGB)
    data = path.read_bytes()
    place = data.index(b"\xff\xd8", 100)  # Pillow gives both the same profile; the second one is written anew
    plain = io.BytesIO()
    second.save(plain, "JPEG")
    path.write_bytes(data[:place] + plain.getvalue().ljust(len(data) - place, b"\0"))
    frames = list_frames(path)
    assert len(frames) == 2 and frames[0].startswith("48x32") and frames[1].startswith("12x8")
    assert "small" in frames[1]
    assert read_photo(path, 0).icc_profile == SRGB and read_photo(path, 1).icc_profile == b""
    assert read_photo(path, 1).image.size == (12, 8)


def test_a_gain_map_is_told_of(tmp_path):
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description hdrgm:Version="1.0"/></x:xmpmeta>'
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", xmp=xmp)
    assert "gain map" in read_photo(tmp_path / "a.jpg").warnings[0]


HEIC = struct.pack(">I", 24) + b"ftypheic" + bytes(4) + b"mif1heic"


def test_heic_without_its_reader_is_found_and_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    for suffix in ("heic", "HEIF", "hif"):
        written(tmp_path, HEIC, f"a.{suffix}")
    assert len(find_images(tmp_path)) == 3
    with pytest.raises(ImageError, match=r"a\.heic: HEIC is read where pillow-heif is installed: pip install"):
        read_photo(tmp_path / "a.heic")
    with pytest.raises(ImageError, match="pillow-heif"):
        list_frames(tmp_path / "a.heic")


@pytest.fixture
def pillow_heif():
    return pytest.importorskip("pillow_heif", reason="HEIC needs pillow-heif")


@pytest.mark.parametrize("orientation", [1, 6])
def test_heic_is_read_upright_with_its_exif(tmp_path, pillow_heif, orientation):
    ramp = np.zeros((32, 48, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(48) * 5, np.arange(32)[:, None] * 8
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = orientation, "Maker"
    stored = pillow_heif.from_pillow(Image.fromarray(ramp))
    stored.save(tmp_path / "a.heic", quality=95, exif=exif.tobytes())
    photo = read_photo(tmp_path / "a.heic")
    upright = np.rot90(ramp, -1) if orientation == 6 else ramp
    assert photo.pixels.shape == upright.shape and np.abs(photo.pixels - upright.astype(int)).mean() < 4
    found = Image.Exif()
    found.load(photo.exif)
    assert found[0x010F] == "Maker" and 0x0112 not in found and photo.bits == 8


def test_deep_heic_keeps_its_depth_and_spans_the_range(tmp_path, pillow_heif):
    deep = np.full((32, 48, 3), 65535, np.uint16)
    deep[:, :24] = 20000
    pillow_heif.from_bytes("RGB;16", (48, 32), deep.tobytes()).save(tmp_path / "a.heic", quality=-1)
    photo = read_photo(tmp_path / "a.heic")
    assert photo.bits == 16 and np.abs(photo.pixels.astype(int) - deep).max() < 200 and photo.pixels.max() == 65535


def test_heic_whose_head_tells_another_size_than_its_picture_has_is_refused(tmp_path, pillow_heif):
    pillow_heif.from_pillow(Image.effect_noise((36, 24), 60).convert("RGB")).save(tmp_path / "a.heic")
    data = bytearray((tmp_path / "a.heic").read_bytes())
    struct.pack_into(">i", data, data.index(b"clap") + 4 + 6 * 4, -2000)  # how far down the part lies that is shown
    with pytest.raises(ImageError, match=r"damaged: 36x64 pixels, of which its head says 36x24"):
        read_photo(written(tmp_path, bytes(data), "a.heic"))
