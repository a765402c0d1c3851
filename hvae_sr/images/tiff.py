"""TIFF: pages of any depth, sample format and layout, as Pillow reads those of 8 bits; and files of 8 and 16 bits."""

from __future__ import annotations

import io
import itertools
import os
import struct
import zlib
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2, TiffImageFile

from .arrays import to_8_bits

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
POINTERS = (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)
"""Tags whose values are directories of further tags."""

DEFLATE = 8
RATIOS = {1: 1, 5: 2731, DEFLATE: 1032, 32946: 1032, 32773: 64}
"""Compression: bytes that a byte of the file can stand for. None, LZW, deflate (two numbers), PackBits."""
_MOST_BYTES = 2**31
_REVERSED = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))


def page_offsets(file: IO[bytes]) -> list[int]:
    """Where the pages' directories begin."""
    end = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(16)
    order = "<" if head[:2] == b"II" else ">"
    big = b"+" in head[2:4]
    number, entry, pointer = (order + "Q", 20, order + "Q") if big else (order + "H", 12, order + "I")
    found: dict[int, None] = {}
    next_one = head[8:16] if big else head[4:8]
    while len(next_one) == struct.calcsize(pointer):
        (offset,) = struct.unpack(pointer, next_one)
        if offset == 0 or offset in found or offset > end:
            break
        found[offset] = None
        file.seek(offset)
        count = file.read(struct.calcsize(number)).ljust(8, b"\0")
        file.seek(struct.unpack_from(number, count)[0] * entry, os.SEEK_CUR)
        next_one = file.read(struct.calcsize(pointer))
    return list(found)


def read_tags(file: IO[bytes], offset: int) -> ImageFileDirectory_v2:
    """The tags of the page whose directory begins at `offset`."""
    file.seek(0)
    head = file.read(8)
    tags = ImageFileDirectory_v2(head + (file.read(8) if b"+" in head[2:4] else b""))
    file.seek(offset)
    tags.load(file)
    return tags


def size_of(tags: ImageFileDirectory_v2) -> tuple[int, int]:
    """Width and height of a page; a ValueError where they are not there, or no whole numbers."""
    width, height = tags.get(256), tags.get(257)
    if not (isinstance(width, int) and isinstance(height, int)):
        raise ValueError(f"damaged: a page of {width}x{height} pixels")
    return width, height


def from_page(file: IO[bytes], offset: int) -> IO[bytes]:
    """The file as if the page at `offset` were its first: Pillow would mix a later page's profile with the first's."""
    file.seek(0)
    data = bytearray(file.read())
    order, big = "<" if data[:2] == b"II" else ">", b"+" in data[2:4]
    struct.pack_into(order + ("Q" if big else "I"), data, 8 if big else 4, offset)
    return io.BytesIO(bytes(data))


def is_wide(tags: ImageFileDirectory_v2) -> bool:
    """Whether samples have more than 8 bits: Pillow reads these in part, some wrongly, and to 8 bits."""
    return max(tags.get(258, (1,))) > 8


def read_page(file: IO[bytes], tags: ImageFileDirectory_v2, warnings: list[str]) -> np.ndarray | Image.Image:
    """The picture of a page, `[H, W, C]`, uint8 or uint16, not premultiplied; or a Pillow image of mode CMYK.

    C is 1 of grey, 2 of grey and alpha, 3 of RGB, 4 of RGB and alpha. `warnings` is added to. Raises a ValueError for
    a layout that is not read, or a damaged file.
    """
    photometric, samples = tags.get(262, 0), tags.get(277, 1)
    bits, kind = (set(tags.get(tag, (1,))) for tag in (258, 339))
    colours = {0: 1, 1: 1, 2: 3, 5: 4}.get(photometric, 0)
    known = len(bits) == len(kind) == 1 and 0 < colours <= samples
    depth, letter = (max(bits), {1: "u", 2: "i", 3: "f"}.get(max(kind), "")) if known else (0, "")
    if depth not in {"u": (*range(1, 17), 32, 64), "i": (8, 16, 32, 64), "f": (16, 32, 64)}.get(letter, ()):
        raise ValueError(
            f"a TIFF of {samples} samples of {', '.join(map(str, sorted(bits)))} bits, photometric {photometric} and "
            f"sample format {', '.join(map(str, sorted(kind)))} is not read"
        )
    extra = tags.get(338)
    has_alpha = samples > colours and photometric != 5 and (extra is None or extra[0] in (1, 2))
    kept = colours + has_alpha
    width, height = size_of(tags)
    values = np.empty((height, width, kept), np.dtype(f"{letter}{max(2 if depth > 8 else 1, depth // 8)}"))
    for rows, columns, plane, block in _segments(file, tags, depth, values.dtype):
        if plane is None:
            values[rows, columns] = block[..., :kept]
        elif plane < kept:
            values[rows, columns, plane] = block[..., 0]
    levels = _to_levels(values, depth, photometric == 2, warnings)
    if photometric == 0:
        np.subtract(np.iinfo(levels.dtype).max, levels[..., :1], out=levels[..., :1])
    if has_alpha and extra is not None and extra[0] == 1:
        most, alpha = np.iinfo(levels.dtype).max, np.maximum(levels[..., -1:], 1)
        for row in range(len(levels)):
            levels[row, :, :-1] = np.minimum(np.rint(levels[row, :, :-1] * np.float64(most) / alpha[row]), most)
    if photometric == 5:
        return Image.frombytes("CMYK", (width, height), to_8_bits(levels).tobytes())
    return levels


def _segments(
    file: IO[bytes], tags: ImageFileDirectory_v2, depth: int, dtype: np.dtype
) -> Iterator[tuple[slice, slice, int | None, np.ndarray]]:
    """Strips and tiles: rows, columns, the plane of a planar file, and their samples `[rows, columns, samples]`."""
    width, height = size_of(tags)
    samples = tags.get(277, 1)
    planar, tiled = tags.get(284, 1) == 2 and samples > 1, 322 in tags
    across, down = (tags[322], tags[323]) if tiled else (width, min(tags.get(278, height), height))
    columns, rows = -(-width // across), -(-height // down)
    each = 1 if planar else samples
    row_bytes = (across * each * depth + 7) // 8
    offsets, counts = (tags.get(tag, ()) for tag in ((324, 325) if tiled else (273, 279)))
    number = columns * rows * (samples if planar else 1)
    size = file.seek(0, os.SEEK_END)
    compression, predictor = tags.get(259, 1), tags.get(317, 1)
    if compression not in RATIOS or predictor not in (1, 2, 3) or (predictor == 2 and depth % 8):
        raise ValueError(
            f"a TIFF of {depth} bits with compression {compression} and predictor {predictor} is not read; use "
            f"compression {', '.join(map(str, RATIOS))}"
        )
    if len(offsets) < number or (len(counts) < number and compression != 1):
        raise ValueError(f"truncated or damaged: {len(offsets)} of {number} strips or tiles")
    if row_bytes * down > min(_MOST_BYTES, max(size * RATIOS[compression], 2**20)):
        raise ValueError(f"truncated or damaged: {across}x{down} pixels cannot be in {size} bytes")
    for index in range(number):
        plane, place = divmod(index, rows * columns)
        top, left = place // columns * down, place % columns * across
        here = down if tiled else min(down, height - top)
        file.seek(offsets[index])
        data = file.read(min(counts[index] if index < len(counts) else row_bytes * here, size))
        if tags.get(266) == 2:
            data = data.translate(_REVERSED)
        data = _decompressed(data, compression, row_bytes, here)
        if len(data) < row_bytes * here:
            raise ValueError(f"truncated or damaged: strip or tile {index} has {len(data)} bytes of {row_bytes * here}")
        block = _samples(data, depth, dtype, tags.prefix, predictor, (here, across, each))
        yield (
            slice(top, top + here),
            slice(left, left + across),
            plane if planar else None,
            block[: height - top, : width - left],
        )


def _decompressed(data: bytes, compression: int, row_bytes: int, rows: int) -> bytes:
    size = row_bytes * rows
    if compression == 1:
        return data
    if size > max(len(data) * RATIOS[compression], 2**16):
        raise ValueError(f"truncated or damaged: {size} bytes cannot be in a strip or tile of {len(data)}")
    if compression in (DEFLATE, 32946):
        return zlib.decompressobj().decompress(data, size)
    # libtiff decodes the bytes of a strip of any depth where they are said to be grey levels.
    entries = {256: row_bytes, 257: rows, 258: 8, 259: compression, 262: 1, 273: 122, 277: 1, 278: rows, 279: len(data)}
    head = b"II*\0" + struct.pack("<IH", 8, len(entries))
    head += b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries.items()) + bytes(4)
    with TiffImageFile(io.BytesIO(head + data)) as image:
        return image.tobytes()


def _samples(
    data: bytes, depth: int, dtype: np.dtype, prefix: bytes, predictor: int, shape: tuple[int, int, int]
) -> np.ndarray:
    """Bytes of a strip or tile to samples `[rows, columns, samples]`, the predictor undone."""
    rows, columns, each = shape
    order = "<" if prefix == b"II" else ">"
    if depth % 8:  # packed, each row from a whole byte on
        row_bytes = (columns * each * depth + 7) // 8
        values = np.empty(shape, dtype)
        for row in range(rows):
            packed = np.frombuffer(data, np.uint8, row_bytes, row * row_bytes)
            ones = np.unpackbits(packed)[: columns * each * depth].reshape(columns, each, depth)
            values[row] = ones @ (1 << np.arange(depth - 1, -1, -1))
        return values
    size = depth // 8
    count = rows * columns * each
    if predictor == 3:  # the first bytes of all samples of a row, then the second ones, ...; and their differences
        planes = np.frombuffer(data, np.uint8, count * size).reshape(rows, columns * size, each)
        planes = planes.cumsum(axis=1, dtype=np.uint8).reshape(rows, size, columns * each)
        values = np.ascontiguousarray(planes.transpose(0, 2, 1)).view(f">{dtype.kind}{size}").reshape(shape)
        return values.astype(dtype)
    values = np.frombuffer(data, f"{order}{dtype.kind}{size}", count).reshape(shape).astype(dtype)
    if predictor == 2:
        whole = values.view(f"u{size}")
        return np.cumsum(whole, axis=1, dtype=whole.dtype).view(dtype)
    return values


def _to_levels(values: np.ndarray, depth: int, coloured: bool, warnings: list[str]) -> np.ndarray:
    """Samples as stored to uint8, of up to 8 bits, or uint16."""
    if values.dtype.kind == "f":
        return float_levels(values, warnings)
    if values.dtype.kind == "i" or depth > 16:
        return integer_levels(values, coloured)
    if depth in (8, 16):
        return values
    table = np.rint(np.arange(2**depth) * ((255 if depth < 8 else 65535) / (2**depth - 1)))
    return table.astype(values.dtype)[values]


def float_levels(values: np.ndarray, warnings: list[str]) -> np.ndarray:
    """Floats to uint16: from 0 to 1 where none exceeds 2, else from 0 to 255; others are clipped, with a warning."""
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError("the image holds NaN or infinite values")
    most = 1.0 if high <= 2 else 255.0
    if low < 0 or high > 1:
        warnings.append(f"its floats, from {low:.4g} to {high:.4g}, are taken as levels from 0 to {most:g}")
    levels = np.empty(values.shape, np.uint16)
    for row in range(len(values)):
        levels[row] = np.rint((values[row].astype(np.float64) * (65535 / most)).clip(0, 65535))
    return levels


def integer_levels(values: np.ndarray, coloured: bool = False) -> np.ndarray:
    """Signed or long integers to uint8 where none exceeds 255, else to uint16, clipped.

    Raises:
        ValueError: grey levels beyond 17 bits: nothing tells their range. Colours are taken as of all of it.
    """
    low, high = int(values.min()), int(values.max())
    if max(high, -low) >= 2**17:  # unsigned ones of Pillow beyond 2^31 have become negative
        if not coloured or values.dtype.kind != "u":
            raise ValueError("32-bit integers beyond the range of 16 bits are not read")
        return (values >> (values.dtype.itemsize * 8 - 16)).astype(np.uint16)
    most = 255 if high <= 255 else 65535
    return values.clip(0, most).astype(np.uint8 if high <= 255 else np.uint16)


def write(
    file: IO[bytes], pixels: np.ndarray, tags: Image.Exif, profile: bytes, dpi: tuple[float, float] | None
) -> None:
    """A TIFF of one page, deflated, in an empty file: `pixels` as `read_page` returns them, EXIF among its tags.

    Raises a ValueError where they are more than a TIFF of 4 GB holds.
    """
    height, width, channels = pixels.shape
    rows = max(2**18 // (width * channels * pixels.itemsize), 1)
    strips = []
    for top in range(0, height, rows):
        strip = pixels[top : top + rows].astype(pixels.dtype.newbyteorder("<"))
        strip[:, 1:] -= strip[:, :-1].copy()
        strips.append(zlib.compress(strip.tobytes(), 6))
    sizes = [len(strip) for strip in strips]
    if sum(sizes) > 2**32 - 2**24:
        raise ValueError(f"a TIFF holds 4 GB, {width}x{height} pixels take {sum(sizes)} bytes")
    directory = ImageFileDirectory_v2(b"II*\0\x08\0\0\0")
    for tag in tags:
        directory[tag] = tags.get_ifd(tag) if tag in POINTERS else tags[tag]
    own: dict[int, Any] = {
        256: width, 257: height, 258: (8 * pixels.itemsize,) * channels, 259: DEFLATE, 262: 1 if channels < 3 else 2,
        273: tuple(itertools.accumulate(sizes[:-1], initial=0)), 277: channels, 278: rows, 279: tuple(sizes),
        284: 1, 317: 2,
    }  # fmt: skip
    if channels in (2, 4):
        own[338] = (2,)
    if profile:
        own[34675] = profile
    if dpi is not None:
        own |= {282: dpi[0], 283: dpi[1], 296: 2}
    for tag, value in own.items():
        directory[tag] = value
    directory.tagtype[273] = directory.tagtype[279] = 4  # what is added to the offsets may not fit into 16 bits
    directory.save(file)
    file.writelines(strips)
