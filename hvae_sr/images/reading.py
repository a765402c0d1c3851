"""Image files of any kind to upright colours, and what comes with them: alpha, profile, resolution, EXIF."""

from __future__ import annotations

import contextlib
import io
import json
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import IO, Any

import numpy as np
import torch
from PIL import Image, ImageFile, UnidentifiedImageError
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from scipy import ndimage

from . import colour, metadata, png, tiff
from .arrays import to_8_bits
from .errors import ImageError, PathLike, image_errors
from .photo import Photo, on_white

ImageInput = PathLike | Image.Image | np.ndarray | torch.Tensor

MAX_PIXELS = 2**27
"""Pixels that are read of one image: 134 megapixels. Four times the sides of more would not be held anywhere."""

# Formats that are decoded by code of their own. Pillow knows others: EPS, for one, runs a program on the file.
_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "DIB", "AVIF", "GIF", "PPM", "JPEG2000")
# Pixels that a byte of the file can hold at the most: LZW codes of 4096 pixels, Huffman codes of one bit for 64.
_PIXELS_PER_BYTE = {"GIF": 2731, "JPEG": 512, "MPO": 512}
_BITS = {"RGB": 24, "RGBA": 32, "CMYK": 32, "F": 32, "LA": 16, "I;16": 12, "I": 16}  # a pixel; others: 1 or more
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


@dataclass
class _Decoded:
    """An image as it is stored: `pixels` `[H, W, 1 to 4]`, uint8 or uint16, whose last of 2 or 4 channels is alpha."""

    pixels: np.ndarray
    info: dict[Any, Any]
    exif: Image.Exif
    from_tiff: bool = False
    chunks: dict[bytes, bytes] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Turns it upright."""
        turn = metadata.orientation(self.exif)
        self.dpi = metadata.resolution(self.info, self.exif)
        if turn >= 5:
            self.pixels = self.pixels.swapaxes(0, 1)
            self.dpi = self.dpi and self.dpi[::-1]
        if turn in (3, 4, 7, 8):
            self.pixels = self.pixels[::-1]
        if turn in (2, 3, 6, 7):
            self.pixels = self.pixels[:, ::-1]
        self.pixels = np.ascontiguousarray(self.pixels)
        self.grey = self.pixels.shape[2] < 3
        profile = self.info.get("icc_profile") or b""
        kind = colour.space(profile)
        fits = kind == "RGB" or (kind == "GRAY" and self.grey)
        self.profile = colour.matched(profile, self.grey) if fits else b""
        if profile and not self.profile and kind != "CMYK":
            self.warnings.append(f"its colour profile, of {kind}, does not fit its channels and is left out")
        self.profile = self.profile or colour.of_chunks(self.chunks, self.grey)

    @property
    def colours(self) -> np.ndarray:
        """`[H, W, 3]`."""
        return np.broadcast_to(self.pixels[..., :1], (*self.pixels.shape[:2], 3)) if self.grey else self.pixels[..., :3]

    @property
    def alpha(self) -> np.ndarray | None:
        """`[H, W]`."""
        return None if self.pixels.shape[2] % 2 else self.pixels[..., -1]

    @property
    def seen(self) -> np.ndarray:
        """`[H, W, 3]`, transparent ones on white ground."""
        return self.colours if self.alpha is None else on_white(self.colours, self.alpha)


def load_image(source: PathLike | io.BytesIO | Image.Image, limited: bool = True) -> Image.Image:
    """Read an image as 8-bit RGB, upright.

    The EXIF orientation is applied, and only the first frame of an animation is read. Modes are converted so:

    - grey, palette, 1 bit: the RGB colours they stand for;
    - alpha (LA, RGBA, palette with transparency, one transparent colour): seen on white ground; premultiplied colours
      are first divided by alpha;
    - CMYK: through the embedded ICC profile where there is one, else by Pillow's formula;
    - 16 bits: round(v / 257);
    - 32-bit integers: as 8 bit where no value exceeds 255, else as 16 bit, clipped; values that need more than
      17 bits are refused;
    - float: from 0 to 1 where no value exceeds 2, else from 0 to 255; clipped and rounded.

    Args:
        source: A path, the bytes of a file, or a PIL image (left as it is; a new image is returned).
        limited: Whether images of more than `MAX_PIXELS` are refused; not those that one has written oneself.

    Returns:
        A PIL image of mode RGB. An ICC profile is kept in `info["icc_profile"]`, as `save_image` expects; that of a
        grey file as one of RGB.

    Raises:
        ImageError: The file is missing, empty, damaged, truncated, no image, or too large (`MAX_PIXELS`, and
            Pillow's limit against decompression bombs).
    """
    decoded = _decoded(source, None, limited)
    image = Image.fromarray(to_8_bits(decoded.seen))
    profile = colour.matched(decoded.profile, False)
    image.info = {"icc_profile": profile} if profile else {}
    return image


def load_pixels(source: PathLike | Image.Image) -> np.ndarray:
    """As `load_image`, but with all the bits of the file: `[H, W, 3]`, uint8, or uint16 of more than 8."""
    return _decoded(source).seen


def read_photo(source: PathLike | Image.Image, frame: int | None = None) -> Photo:
    """Read an image with its alpha, profile and EXIF, and with all its bits; else as `load_image` does.

    Args:
        source: A path, or a PIL image (left as it is).
        frame: Of an animation or a file of several pages, counted from 0; None takes the first, or the one a PIL image
            stands at.

    Raises:
        ImageError: As `load_image`; or there is no such frame.
    """
    decoded = _decoded(source, frame)
    colours, alpha = decoded.colours, decoded.alpha
    if alpha is not None:
        colours = _fill_transparent(colours, alpha)
    wide = None
    if colours.dtype == np.uint16:
        wide = colours if alpha is None else np.concatenate([colours, alpha[..., None]], axis=-1)
    return Photo(
        Image.fromarray(to_8_bits(colours)),
        None if alpha is None else Image.fromarray(to_8_bits(alpha)),
        decoded.grey,
        decoded.profile,
        metadata.kept_exif(decoded.exif, decoded.from_tiff),
        wide,
        decoded.dpi,
        tuple(decoded.chunks.items()),
        tuple(decoded.warnings),
    )


def image_size(source: PathLike | io.BytesIO | Image.Image) -> tuple[int, int]:
    """Width and height of what `load_image` gives, as the head of the file tells: no pixel is decoded.

    An orientation that a PNG tells behind its pixels is not seen.

    Raises:
        ImageError: As `load_image`, but for what is damaged behind the head.
    """
    if isinstance(source, Image.Image):
        with image_errors("image"):
            return _upright_size(source)
    with _opened(source) as (file, kind):
        if kind == "TIFF":
            tags = _page(file, 0)[1]
            size = metadata.upright(tiff.size_of(tags), tags.get(metadata.ORIENTATION, 1))
        elif kind == "HEIF":
            pictures = _heif(file)
            size = pictures[pictures.primary_index].size
        else:
            with _pillow(file) as image:
                size = _upright_size(image)
        _check_size(size)
        return size


def _upright_size(image: Image.Image) -> tuple[int, int]:
    turn = 1  # also of a TIFF, which Pillow gives upright
    if not isinstance(image, TiffImageFile) and _exif_is_at_hand(image):
        with contextlib.suppress(Exception):  # unreadable EXIF turns nothing
            turn = metadata.orientation(image.getexif())
    return metadata.upright(image.size, turn)


def _exif_is_at_hand(image: Image.Image) -> bool:
    """Else Pillow looks for it behind the pixels."""
    return image.format != "PNG" or "exif" in image.info


def list_frames(source: PathLike) -> list[str]:
    """Size and kind of each frame of an animation, page of a TIFF, or picture of an MPO or HEIC.

    Raises:
        ImageError: As `load_image`.
    """
    with _opened(source) as (file, kind):
        if kind == "TIFF":
            pages = [tiff.read_tags(file, offset) for offset in tiff.page_offsets(file)]
            return [
                "{}x{}".format(*tiff.size_of(tags)) + ", a preview" * (tags.get(254) in (1, 3, 5, 7)) for tags in pages
            ]
        if kind == "HEIF":
            return [f"{width}x{height}" for width, height in (picture.size for picture in _heif(file))]
        with _pillow(file) as image:
            sizes = ["{}x{}".format(*image.size)] * getattr(image, "n_frames", 1)
            if image.format == "MPO":
                pixels = image.width * image.height
                for number, entry in enumerate(image.mpinfo[0xB002]):  # type: ignore[attr-defined]
                    image.seek(number)
                    kind = "small, " * (image.width * image.height * 4 <= pixels) + entry["Attribute"]["MPType"]
                    sizes[number] = f"{image.width}x{image.height}, {kind}"
            return sizes


def read_metadata(path: PathLike) -> dict[str, Any]:
    """Return what `save_image` wrote as metadata, or {} where there is none.

    Raises:
        ImageError: The file is missing or no image, or the metadata is damaged.
    """
    with _opened(path) as (file, kind):
        text, description = None, ""
        if kind == "TIFF":
            description = str(_page(file, 0)[1].get(metadata.EXIF_DESCRIPTION))
        elif kind != "HEIF":
            with _pillow(file, limited=False) as image:  # of any size: nothing is decoded
                text = image.info.get(metadata.METADATA_KEY)
                if text is None and _exif_is_at_hand(image):
                    description = str(image.getexif().get(metadata.EXIF_DESCRIPTION))
        if text is None:
            caption, prefix, text = description.partition(metadata.EXIF_PREFIX)
            if not prefix or not (not caption or caption.endswith("\n")):
                return {}
        if len(text) > metadata.MAX_METADATA:
            raise ValueError(f"the settings take {len(text)} characters")
        found = json.loads(text)
        if not isinstance(found, dict):
            raise ValueError("the settings are not a JSON object")
        return found


def open_file(path: PathLike) -> io.BufferedReader:
    """A file opened for reading.

    Raises:
        ImageError: it cannot be opened, or is a pipe or a device, which could be waited for or read for ever.
    """
    with image_errors(path):
        if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
            raise ValueError("not a regular file")
        return open(path, "rb")


@contextlib.contextmanager
def _opened(source: PathLike | io.BytesIO) -> Iterator[tuple[IO[bytes], str]]:
    """The file, and "TIFF", "HEIF" or "" for others; every failure until the end of the block is an ImageError."""
    if not isinstance(source, (str, os.PathLike, io.BytesIO)):
        raise ImageError(f"image must be a path or a PIL image, got {type(source).__name__}")
    opened: contextlib.AbstractContextManager[IO[bytes]]
    name: PathLike
    if isinstance(source, io.BytesIO):
        opened, name = contextlib.nullcontext(source), "image"
    else:
        opened, name = open_file(source), source
    with opened as file, image_errors(name):
        file.seek(0)
        head = file.read(64)
        file.seek(0)
        if not head:
            raise ValueError("the file is empty")
        kind = "TIFF" if head[:4] in tiff.MAGIC else ""
        if head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS and b"avif" not in head:
            kind = "HEIF"
        yield file, kind


def _decoded(source: PathLike | io.BytesIO | Image.Image, frame: int | None = None, limited: bool = True) -> _Decoded:
    if isinstance(source, Image.Image):
        with image_errors("image"):
            return _from_pillow(source, frame, limited)
    with _opened(source) as (file, kind):
        if kind == "TIFF":
            return _from_tiff(file, frame or 0)
        if kind == "HEIF":
            return _from_heif(file, frame)
        with _pillow(file, limited) as image:
            return _from_pillow(image, frame, limited)


@cache
def _known_formats() -> list[str]:
    """Those of `_FORMATS` that this Pillow has: AVIF came with 11.3."""
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


def _pillow(file: IO[bytes], limited: bool = True) -> Image.Image:
    """The image, checked by what its header says, unless it may be of any size."""
    head = file.read(21)
    file.seek(0)
    data = file
    if head[12:16] == b"VP8X" and head[20] & 0x12 == 0x02:
        # An animation without the flag of alpha: where its frames leave the canvas uncovered, it is transparent still.
        flagged = bytearray(file.read())
        flagged[20] |= 0x10
        data = io.BytesIO(bytes(flagged))
    try:
        image = _open_unwarned(data)
    except ValueError as error:
        if "MAX_TEXT_CHUNK" not in str(error):
            raise
        data, profile = png.without_long_chunks(data)
        image = _open_unwarned(data)
        image.info["icc_profile"] = profile
    if limited:
        _check_size(image.size)
        _check_plausible(image, file.seek(0, io.SEEK_END))
    return image


def _open_unwarned(file: IO[bytes]) -> Image.Image:
    """`Image.open` without a look at the size, of which it warns below the limit of this module."""
    head = file.read(16)
    for name in _known_formats():
        opens, accepts = Image.OPEN[name]
        file.seek(0)
        if accepts is None or accepts(head) is True:
            with contextlib.suppress(SyntaxError, IndexError, TypeError, KeyError, EOFError, struct.error):
                return opens(file, "")
    raise UnidentifiedImageError("cannot identify image file")


def _from_pillow(image: Image.Image, frame: int | None = None, limited: bool = True) -> _Decoded:
    if frame is not None:
        if image.format == "MPO" and frame != image.tell():
            image.info.clear()  # or what the frame does not say would be what another one says
        image.seek(frame)
    _check_size(image.size, limited)
    if isinstance(image, TiffImageFile) and image.tile and image.fp is not None and tiff.is_wide(image.tag_v2):
        return _from_page(image.fp, image.tag_v2, image.getexif())
    warnings: list[str] = []
    chunks: dict[bytes, bytes] = {}
    raw, wide = None, None
    if isinstance(image, PngImageFile):
        raw, wide = image.tile[0][3] if image.tile else None, png.read_16_bits(image)
        chunks = png.colour_chunks(image)
    if wide is not None:
        pixels, image = wide
    else:
        image.load()
        pixels = _channels(image, image.info.get("icc_profile") or b"", warnings)
    hidden = png.transparent(image, pixels, raw)
    if hidden is not None:
        most = np.iinfo(pixels.dtype).max
        pixels = np.concatenate([pixels, np.where(hidden, 0, most).astype(pixels.dtype)[..., None]], axis=-1)
    if pixels.shape[2] == 4 and (
        # Of BMP, where files that know no alpha leave 0 in its place; of animated WebP, where frames cover all.
        (image.format in ("BMP", "DIB") and not pixels[..., 3].any())
        or (image.format == "WEBP" and getattr(image, "n_frames", 1) > 1 and pixels[..., 3].all())
    ):
        pixels = pixels[..., :3]
    xmp = image.info.get("xmp")
    if isinstance(xmp, bytes) and b"hdrgm:" in xmp:
        warnings.append("of an Ultra HDR photograph, the picture of standard range is taken, without its gain map")
    if chunks.get(b"cICP", b"")[1:2] in (b"\x10", b"\x12"):
        warnings.append("its colours are of high dynamic range (cICP); they are taken as they are stored")
    exif = Image.Exif()
    with contextlib.suppress(Exception):  # unreadable EXIF says nothing about the pixels
        exif = image.getexif()
    # Of a copy nobody can tell whether its pixels were turned since the file was opened.
    if not isinstance(image, ImageFile.ImageFile) and metadata.orientation(exif) > 1:
        warnings.append(
            "it is turned as its EXIF tells; if you have turned it already, let Pillow do it, which clears that: "
            "PIL.ImageOps.exif_transpose"
        )
    return _Decoded(pixels, image.info, exif, image.format == "TIFF", chunks, warnings)


def _page(file: IO[bytes], number: int) -> tuple[int, tiff.ImageFileDirectory_v2]:
    """Where a page begins, and its tags."""
    offsets = tiff.page_offsets(file)
    if not 0 <= number < len(offsets):
        raise ValueError(f"there is no page {number}, it has {len(offsets)}")
    return offsets[number], tiff.read_tags(file, offsets[number])


def _from_tiff(file: IO[bytes], number: int) -> _Decoded:
    offset, tags = _page(file, number)
    if not tiff.is_wide(tags):
        with contextlib.suppress(UnidentifiedImageError):
            file.seek(0)
            with _pillow(file if number == 0 else tiff.from_page(file, offset)) as image:
                found = _from_pillow(image)
                if metadata.orientation(tags) >= 5 and metadata.orientation(found.exif) == 1:
                    found.dpi = found.dpi and found.dpi[::-1]  # Pillow has turned the pixels alone
                return found
    exif = Image.Exif()
    with contextlib.suppress(Exception):  # unreadable EXIF says nothing about the pixels
        file.seek(2)
        exif.bigtiff, exif.endian = b"+" in file.read(2), "<" if tags.prefix == b"II" else ">"
        exif.load_from_fp(file, offset)
        for tag in tiff.POINTERS:
            exif.get_ifd(tag)  # while the file is open
    return _from_page(file, tags, exif)


def _from_page(file: IO[bytes], tags: tiff.ImageFileDirectory_v2, exif: Image.Exif) -> _Decoded:
    _check_size(tiff.size_of(tags))
    warnings: list[str] = []
    info = {"icc_profile": tags.get(34675) or b""}
    found = tiff.read_page(file, tags, warnings)
    pixels = _channels(found, info["icc_profile"], warnings) if isinstance(found, Image.Image) else found
    return _Decoded(pixels, info, exif, True, warnings=warnings)


def _heif(file: IO[bytes]) -> Any:
    """The pictures of a HEIC file."""
    try:
        import pillow_heif
    except ImportError:
        raise ValueError("HEIC is read where pillow-heif is installed: pip install 'hvae-sr[heif]'") from None
    file.seek(0)
    return pillow_heif.open_heif(file, convert_hdr_to_8bit=False)


def _from_heif(file: IO[bytes], frame: int | None) -> _Decoded:
    pictures = _heif(file)
    picture = pictures[pictures.primary_index if frame is None else frame]
    size = picture.size
    _check_size(size)
    pixels = np.asarray(picture)
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    if pixels.shape[1::-1] != size:
        raise ValueError("damaged: {}x{} pixels, of which its head says {}x{}".format(*pixels.shape[1::-1], *size))
    if pixels.dtype == np.uint16:  # levels of 10 or 12 bits stand in the upper ones
        pixels = pixels | pixels >> picture.info["bit_depth"]
    exif = Image.Exif()
    with contextlib.suppress(Exception):  # unreadable EXIF says nothing about the pixels
        exif.load(picture.info.get("exif") or b"")
        exif.pop(metadata.ORIENTATION, None)  # it is applied
    return _Decoded(pixels, picture.info, exif)


def _channels(image: Image.Image, profile: bytes, warnings: list[str]) -> np.ndarray:
    """`[H, W, 1 to 4]`, uint8 or uint16, of a decoded image of any mode."""
    mode = image.mode
    if mode.startswith("I;16") or (mode == "I" and image.format == "PPM"):  # which Pillow has scaled to 16 bits
        return np.asarray(image).astype(np.uint16)[..., None]
    if mode == "I":
        return tiff.integer_levels(np.asarray(image))[..., None]
    if mode == "F":
        return tiff.float_levels(np.asarray(image), warnings)[..., None]
    if mode == "CMYK" and profile:
        converted = colour.to_srgb(image, profile)
        if converted is None:
            warnings.append("its CMYK profile cannot be used; the colours are converted by formula")
        image = converted or image
    elif mode in ("P", "PA", "RGBa"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    elif mode in ("1", "La"):
        image = image.convert("L" if mode == "1" else "LA")
    if image.mode not in ("L", "LA", "RGB", "RGBA"):
        image = image.convert("RGB")
    pixels = np.asarray(image)
    return pixels.reshape(*pixels.shape[:2], -1)


def _check_size(size: tuple[int, int], limited: bool = True) -> None:
    width, height = size
    if min(size) < 1:
        raise ValueError(f"the image has no pixels: size {size}")
    # Twice Pillow's own limit is where it refuses an image: larger than this module's, unless a program has lowered it.
    limit = min(MAX_PIXELS, 2 * (Image.MAX_IMAGE_PIXELS or MAX_PIXELS))
    if limited and width * height > limit:
        raise ValueError(f"{width}x{height} pixels are more than the {limit / 1e6:.3g} megapixels that are read")


def _check_plausible(image: Image.Image, size: int) -> None:
    """Raises a ValueError where a header promises more pixels than the file can hold, before memory is taken."""
    pixels = image.width * image.height
    most = _PIXELS_PER_BYTE.get(image.format or "", 0) * size
    if isinstance(image, (PngImageFile, TiffImageFile)):
        compression = image.tag_v2.get(259, 1) if isinstance(image, TiffImageFile) else tiff.DEFLATE
        most = size * tiff.RATIOS.get(compression, 0) * 8 // _BITS.get(image.mode, 1)
    if most and pixels > max(most, 2**16):
        raise ValueError(f"truncated or damaged: {image.width}x{image.height} pixels cannot be in {size} bytes")


def _fill_transparent(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Puts the colour of the nearest visible pixel wherever nothing is seen of the own.

    What is stored there is often black or white, and would bleed across the edge when the colours are upscaled.
    """
    hidden = alpha == 0
    if not hidden.any() or hidden.all():
        return colours
    rows, columns = ndimage.distance_transform_edt(hidden, return_distances=False, return_indices=True)
    return colours[rows, columns]
