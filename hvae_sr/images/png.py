"""PNG: what Pillow leaves out of it. Channels of 16 bits, and the chunks that say what its colours mean."""

from __future__ import annotations

import io
import struct
import zlib
from functools import partial
from typing import IO, Any

import numpy as np
from PIL import Image, PngImagePlugin
from PIL.PngImagePlugin import PngImageFile, PngInfo

from .arrays import row_strips

# How Pillow is to unpack the channels of 16 bits that it cuts to 8: to their first bytes and to their second ones; grey
# and alpha are four bytes as they are.
_UNPACKED = {
    "RGB;16B": ("RGB;16B", "RGB;16L"),
    "RGBA;16B": ("RGBA;16B", "RGBA;16L"),
    "LA;16B": ("RGBA",),
}

MAX_PROFILE = 2**24
"""Bytes of a profile that are read."""


def read_16_bits(image: PngImageFile) -> tuple[np.ndarray, PngImageFile] | None:
    """Channels of a PNG that is not yet decoded, `[H, W, C]`, uint16, and its decoded image of 8 bits.

    None where they do not have 16 bits, or Pillow itself has a mode for them.
    """
    raw = image.tile[0][3] if image.tile else None
    if raw not in _UNPACKED or getattr(image, "n_frames", 1) > 1 or image.fp is None:
        return None
    position = image.fp.tell()
    image.fp.seek(0)
    data = image.fp.read()
    image.fp.seek(position)
    parts = []
    for unpacked in _UNPACKED[str(raw)]:
        copy = PngImageFile(io.BytesIO(data))
        copy.tile = [copy.tile[0]._replace(args=unpacked)]
        copy.load()
        parts.append(np.asarray(copy))
    high, low = parts if len(parts) == 2 else (parts[0][..., ::2], parts[0][..., 1::2])
    return high.astype(np.uint16) << 8 | low, copy


def transparent(image: Image.Image, pixels: np.ndarray, raw: Any) -> np.ndarray | None:
    """Where the one colour is that a PNG without alpha calls transparent; None where it has none.

    `pixels` `[H, W, 1 | 3]` are all its bits, packed as `raw` says in Pillow's words.
    """
    key = image.info.get("transparency")
    if not isinstance(key, (int, tuple)) or len(np.atleast_1d(key)) != pixels.shape[2]:
        return None
    bits = {"1": 1, "L;2": 2, "L;4": 4}.get(raw, 8 * pixels.itemsize)
    scale = (2 ** (8 * pixels.itemsize) - 1) // (2**bits - 1)  # Pillow scales the levels, and not this one
    return (pixels == (np.atleast_1d(key) & (2**bits - 1)) * scale).all(axis=-1)


def colour_chunks(image: PngImageFile) -> dict[bytes, bytes]:
    """The chunks cICP, sRGB, gAMA and cHRM, as far as there are any."""
    found = {}
    if image.fp is not None:  # else it is decoded, and Pillow does not know cICP
        position = image.fp.tell()
        image.fp.seek(8)
        while (head := image.fp.read(8))[4:] not in (b"IDAT", b"IEND", b""):
            (length,) = struct.unpack(">I", head[:4])
            if head[4:] == b"cICP" and length == 4:
                found[b"cICP"] = image.fp.read(4)
                length -= 4
            image.fp.seek(length + 4, io.SEEK_CUR)
        image.fp.seek(position)
    if "srgb" in image.info:
        found[b"sRGB"] = bytes([image.info["srgb"]])
    if "gamma" in image.info:
        found[b"gAMA"] = struct.pack(">I", round(image.info["gamma"] * 1e5))
    if len(image.info.get("chromaticity", ())) == 8:
        found[b"cHRM"] = struct.pack(">8I", *(round(value * 1e5) for value in image.info["chromaticity"]))
    return found


def without_long_chunks(file: IO[bytes]) -> tuple[IO[bytes], bytes]:
    """The file without its profile and its packed texts, of which Pillow reads a mebibyte; and the profile.

    Profiles of printers and scanners are tables that can be larger. One of more than `MAX_PROFILE` is left out.
    """
    file.seek(0)
    data = file.read()
    kept, profile, place = [data[:8]], b"", 8
    while place + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, place)
        chunk = data[place : place + length + 12]
        if name not in (b"iCCP", b"zTXt", b"iTXt"):
            kept.append(chunk)
        elif name == b"iCCP":
            packed = chunk[8:-4].partition(b"\0")[2][1:]
            unpacked = zlib.decompressobj()
            profile = unpacked.decompress(packed, MAX_PROFILE)
            profile = profile if unpacked.eof else b""
        place += length + 12
    return io.BytesIO(b"".join(kept)), profile


def write_16_bits(
    file: IO[bytes], pixels: np.ndarray, info: PngInfo, profile: bytes, dpi: tuple[float, float] | None, exif: bytes
) -> None:
    """A PNG of 16 bits a channel: `pixels` as of a `WideImage`, `info` texts and further chunks."""
    height, width, channels = pixels.shape
    file.write(b"\x89PNG\r\n\x1a\n")
    chunk = partial(PngImagePlugin.putchunk, file)
    chunk(b"IHDR", struct.pack(">2I5B", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0))
    if profile:
        chunk(b"iCCP", b"ICC Profile\0\0" + zlib.compress(profile))
    for name, data, *_ in info.chunks:
        chunk(name, data)
    if dpi is not None:
        chunk(b"pHYs", struct.pack(">2IB", *(round(value / 0.0254) for value in dpi), 1))
    if exif:
        chunk(b"eXIf", exif.removeprefix(b"Exif\0\0"))
    compressor = zlib.compressobj(6)
    above = np.zeros((1, width * channels * 2), np.int16)
    for rows in row_strips(height, width):
        strip = pixels[rows].astype(">u2").view(np.uint8).reshape(rows.stop - rows.start, -1).astype(np.int16)
        packed = compressor.compress(_filtered(strip, np.concatenate([above, strip[:-1]]), channels * 2))
        above = strip[-1:]
        if packed:
            chunk(b"IDAT", packed)
    chunk(b"IDAT", compressor.flush())
    chunk(b"IEND")


def _filtered(strip: np.ndarray, above: np.ndarray, pixel: int) -> bytes:
    """Rows of bytes as differences to Paeth's predictor (filter type 4 of the format)."""
    left, corner = np.zeros_like(strip), np.zeros_like(strip)
    left[:, pixel:], corner[:, pixel:] = strip[:, :-pixel], above[:, :-pixel]
    guess = left + above - corner
    to_left, to_above, to_corner = (np.abs(guess - other) for other in (left, above, corner))
    nearest = np.where(to_above <= to_corner, above, corner)
    nearest = np.where((to_left <= to_above) & (to_left <= to_corner), left, nearest)
    rows = np.empty((len(strip), strip.shape[1] + 1), np.uint8)
    rows[:, 0] = 4
    rows[:, 1:] = strip - nearest
    return rows.tobytes()
