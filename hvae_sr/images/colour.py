"""What colours mean: ICC profiles, made, matched to the channels and applied."""

from __future__ import annotations

import io
import struct

import numpy as np
from PIL import Image, ImageCms

Chromaticities = tuple[float, ...]
"""x and y of white, red, green and blue."""

_D65 = (0.3127, 0.329)
_SRGB: Chromaticities = (*_D65, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)
# Of ITU-T H.273, which the chunk cICP refers to: primaries, and transfer as exponent or as in sRGB and BT.709.
_PRIMARIES: dict[int, Chromaticities] = {
    1: _SRGB,
    5: (*_D65, 0.64, 0.33, 0.29, 0.6, 0.15, 0.06),
    6: (*_D65, 0.63, 0.34, 0.31, 0.595, 0.155, 0.07),
    9: (*_D65, 0.708, 0.292, 0.17, 0.797, 0.131, 0.046),
    11: (0.314, 0.351, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06),
    12: (*_D65, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06),
}
_PRIMARIES[7] = _PRIMARIES[6]
_BT709 = (1 / 0.45, 1 / 1.099, 0.099 / 1.099, 1 / 4.5, 0.081)
_SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
_TRANSFERS = {1: _BT709, 4: (2.2,), 5: (2.8,), 6: _BT709, 8: (1.0,), 13: _SRGB_CURVE, 14: _BT709, 15: _BT709}
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
_D50 = np.array([0.9642, 1.0, 0.8249])


def space(profile: bytes) -> str:
    """The colours that a profile speaks of: "RGB", "GRAY", "CMYK", ...; empty of no profile."""
    return profile[16:20].decode("latin-1").strip()


def of_chunks(chunks: dict[bytes, bytes], grey: bool) -> bytes:
    """The profile that says what a PNG's cICP, sRGB, gAMA and cHRM do; empty where that is sRGB, or cannot be said.

    Of several, the first one holds, as the format has it.
    """
    curve: tuple[float, ...]
    if b"cICP" in chunks:
        primaries, transfer, matrix, full_range = chunks[b"cICP"]
        if primaries not in _PRIMARIES or transfer not in _TRANSFERS or matrix or not full_range:
            return b""
        white_and_primaries, curve = _PRIMARIES[primaries], _TRANSFERS[transfer]
    elif b"sRGB" in chunks:
        return b""
    else:
        numbers = struct.unpack(">8I", chunks.get(b"cHRM", bytes(32)))
        white_and_primaries = tuple(value / 1e5 for value in numbers) if all(numbers) else _SRGB
        (gamma,) = struct.unpack(">I", chunks.get(b"gAMA", bytes(4)))
        # 1 / 2.2 is how files without a chunk for it say sRGB.
        curve = (1e5 / gamma,) if gamma and abs(gamma - 45455) > 100 else _SRGB_CURVE
    if curve == _SRGB_CURVE and (grey or np.allclose(white_and_primaries, _SRGB, atol=1e-3)):
        return b""
    parameters = struct.pack(f">HH{len(curve)}i", 0 if len(curve) == 1 else 3, 0, *(round(v * 65536) for v in curve))
    try:
        return _profile(b"para" + bytes(4) + parameters, None if grey else white_and_primaries)
    except np.linalg.LinAlgError:  # primaries on one line
        return b""


def matched(profile: bytes, grey: bool) -> bytes:
    """The profile for one grey channel or three equal ones, by the curve of the given one; empty if it has none."""
    if space(profile) == ("GRAY" if grey else "RGB") or not profile:
        return profile
    wanted = b"gTRC" if grey else b"kTRC"
    for place in range(132, min(132 + 12 * int.from_bytes(profile[128:132], "big"), len(profile)), 12):
        if profile[place : place + 4] == wanted:
            start, size = struct.unpack_from(">II", profile, place + 4)
            return _profile(profile[start : start + size], None if grey else _SRGB)
    return b""


def to_srgb(image: Image.Image, profile: bytes) -> Image.Image | None:
    """The image in sRGB, mode RGB; None where the profile cannot be used, or Pillow was built without LittleCMS."""
    if image.mode == "L" and (of_three := matched(profile, False)):
        image, profile = image.convert("RGB"), of_three  # LittleCMS takes one channel through a coarse table
    try:
        source, target = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, source, target, outputMode="RGB")
    except Exception:  # what ImageCms and LittleCMS raise is of several types
        return None


def _profile(curve: bytes, primaries: Chromaticities | None) -> bytes:
    """An ICC profile of version 4, of a tag of type `para` or `curv`, and of the primaries of RGB or None for grey.

    Raises a LinAlgError for primaries on one line.
    """

    def text(words: str) -> bytes:
        return b"mluc" + struct.pack(">6I", 0, 1, 12, 0x656E5553, 2 * len(words), 28) + words.encode("utf-16-be")

    def point(xyz: np.ndarray) -> bytes:
        return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(float(value) * 65536) for value in xyz))

    tags = {b"desc": text("Colours of the input"), b"cprt": text("CC0"), b"wtpt": point(_D50)}
    if primaries is None:
        tags[b"kTRC"] = curve
    else:
        x, y = np.array(primaries).reshape(4, 2).T
        points = np.stack([x, y, 1 - x - y]) / y  # of white, red, green, blue: a column each
        colours = points[:, 1:] * np.linalg.solve(points[:, 1:], points[:, 0])
        adapted = np.linalg.inv(_BRADFORD) @ np.diag(_BRADFORD @ _D50 / (_BRADFORD @ points[:, 0])) @ _BRADFORD
        for letter, column in zip((b"r", b"g", b"b"), (adapted @ colours).T, strict=True):
            tags[letter + b"XYZ"], tags[letter + b"TRC"] = point(column), curve
    place, entries, body = 128 + 4 + 12 * len(tags), b"", b""
    for name, data in tags.items():
        entries += name + struct.pack(">II", place + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    kind = b"GRAY" if primaries is None else b"RGB "
    head = struct.pack(">I4sI4s4s4s", place + len(body), b"", 0x04200000, b"mntr", kind, b"XYZ ")
    head += struct.pack(">6H", 2000, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + point(_D50)[8:] + bytes(48)
    return head + struct.pack(">I", len(tags)) + entries + body
