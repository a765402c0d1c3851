"""A photograph with what is written beside its colours, and the results made from it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from . import colour
from .arrays import LUMA, level_strips, row_strips, to_8_bits, to_pil


@dataclass(frozen=True)
class WideImage:
    """A result of 16 bits a channel, which Pillow has no image for; `save_image` writes it.

    Args:
        pixels: `[H, W, C]`, uint16: 1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha.
        info: as that of a PIL image: `icc_profile`, `dpi`, `png_chunks`.
    """

    pixels: np.ndarray
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, as that of a PIL image."""
        return self.pixels.shape[1], self.pixels.shape[0]


@dataclass(frozen=True)
class Photo:
    """One image, upright, with what is written beside its colours.

    Args:
        image: mode RGB. Under transparent pixels stand the colours of the nearest visible ones.
        alpha: mode L, of the same size; None where the file has no transparency.
        grey: whether the file holds one channel of colour.
        icc_profile: the profile of the colours, for one channel of a grey photograph, else RGB; empty where there is
            none, or where the colours were converted (CMYK).
        exif: EXIF without the orientation, which is applied, as Pillow writes it; empty where there is none. Of a
            TIFF, what it shares with EXIF and not what it says of its own pixels.
        wide: colours, and alpha if any, of a file of more than 8 bits, `[H, W, 3 | 4]`, uint16; else None.
        dpi: dots per inch, horizontally and vertically; None where the file does not tell.
        png_chunks: of what says in a PNG what its colours mean: names and contents, which hold in PNG results too.
        warnings: what a reader should know of how the file was taken, one line each.
    """

    image: Image.Image
    alpha: Image.Image | None = None
    grey: bool = False
    icc_profile: bytes = b""
    exif: bytes = b""
    wide: np.ndarray | None = field(default=None, compare=False, repr=False)
    dpi: tuple[float, float] | None = None
    png_chunks: tuple[tuple[bytes, bytes], ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def bits(self) -> int:
        """Of each channel: 8, or 16 where the file has more than 8."""
        return 8 if self.wide is None else 16

    @property
    def pixels(self) -> np.ndarray:
        """Its colours with all their bits, `[H, W, 3]`, uint8 or uint16."""
        return np.asarray(self.image) if self.wide is None else self.wide[..., :3]

    def on_white(self) -> Photo:
        """Without alpha, on white ground: for a format that holds no transparency."""
        if self.alpha is None:
            return self
        alpha = np.asarray(self.alpha) if self.wide is None else self.wide[..., 3]
        pixels = on_white(self.pixels, alpha)
        wide = None if self.wide is None else pixels
        return replace(self, image=Image.fromarray(to_8_bits(pixels)), alpha=None, wide=wide)

    def crop(self, left: int, top: int, width: int, height: int) -> Photo:
        """A rectangle of it, in pixels of the upright image.

        Raises:
            ValueError: it is empty, or leaves the image.
        """
        right, bottom = left + width, top + height
        if min(left, top) < 0 or min(width, height) < 1 or right > self.image.width or bottom > self.image.height:
            raise ValueError(
                f"`crop` must lie in the image, of {self.image.width}x{self.image.height} pixels; got "
                f"{width}x{height} at ({left}, {top})"
            )
        box = (left, top, right, bottom)
        return replace(
            self,
            image=self.image.crop(box),
            alpha=self.alpha and self.alpha.crop(box),
            wide=None if self.wide is None else np.ascontiguousarray(self.wide[top:bottom, left:right]),
        )

    def finish(
        self, colours: Image.Image | torch.Tensor | np.ndarray, keep_grey: bool = False, bits: int = 8
    ) -> Image.Image | WideImage:
        """An image made from this one, with its alpha, its profile, and a resolution that prints it as large.

        Alpha is resized by bicubic interpolation, apart from the colours.

        Args:
            colours: of the result, of any size: a PIL image of mode RGB; or floats in [0, 1], a tensor `[3, H, W]` or
                an array `[H, W, 3]`.
            keep_grey: whether a grey photograph gives one channel; else RGB.
            bits: of each channel, 8 or 16.

        Returns:
            A PIL image; of 16 bits a `WideImage`.

        Raises:
            ValueError: another number of bits.
        """
        if bits not in (8, 16):
            raise ValueError(f"`bits` must be 8 or 16, got {bits!r}")
        grey = self.grey and keep_grey
        given = colours if isinstance(colours, Image.Image) else _to_tensor(colours)
        size = given.size if isinstance(given, Image.Image) else (given.shape[-1], given.shape[-2])
        info: dict[Any, Any] = {"png_chunks": self.png_chunks} if self.png_chunks else {}
        if profile := colour.matched(self.icc_profile, grey) if self.grey else self.icc_profile:
            info["icc_profile"] = profile
        if self.dpi is not None:
            info["dpi"] = tuple(d * new / old for d, new, old in zip(self.dpi, size, self.image.size, strict=True))
        if bits == 16:
            return WideImage(self._wide(_to_tensor(given), grey), info)
        finished = given if isinstance(given, Image.Image) else to_pil(given)
        finished = finished.convert("L") if grey else finished
        if self.alpha is not None:
            alpha = self.alpha.resize(size, Image.Resampling.BICUBIC)
            finished = finished.convert("LA" if grey else "RGBA")
            finished.putalpha(alpha)
        finished.info = info
        return finished

    def _wide(self, colours: torch.Tensor, grey: bool) -> np.ndarray:
        """`[3, H, W]` in [0, 1] to `[H, W, 1 to 4]`, uint16, with alpha if there is any."""
        height, width = colours.shape[-2:]
        channels = 1 if grey else 3
        finished = np.empty((height, width, channels + (self.alpha is not None)), np.uint16)
        weights = torch.tensor(LUMA, dtype=torch.float64, device="cpu")
        for rows, strip in level_strips(colours, 65535):
            levels = strip.permute(1, 2, 0).cpu()
            finished[rows, :, :channels] = (levels.double() @ weights).round()[..., None] if grey else levels
        if self.alpha is not None:
            alpha = np.asarray(self.alpha, np.float32) * 257 if self.wide is None else self.wide[..., 3]
            resized = Image.fromarray(alpha.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
            finished[..., channels] = np.rint(np.asarray(resized)).clip(0, 65535)
        return finished


def _to_tensor(colours: Image.Image | torch.Tensor | np.ndarray) -> torch.Tensor:
    """`[3, H, W]` in [0, 1]."""
    if isinstance(colours, torch.Tensor):
        return colours
    if isinstance(colours, Image.Image):
        colours = np.asarray(colours, np.float32) / 255
    return torch.from_numpy(colours).movedim(-1, 0)


def on_white(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Colours `[H, W, C]` seen on white ground through `alpha` `[H, W]`: uint8, uint16, or floats up to 1, both."""
    seen = np.empty_like(colours)
    whole = colours.dtype.kind == "u"
    white = float(np.iinfo(colours.dtype).max) if whole else 1.0
    for rows in row_strips(*alpha.shape):
        share = alpha[rows, :, None] / white
        mixed = colours[rows] * share + (white - white * share)
        seen[rows] = np.rint(mixed) if whole else mixed
    return seen
