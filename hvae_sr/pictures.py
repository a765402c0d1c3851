"""Pictures that show what a pipeline does, for model cards and documents."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import skimage
from PIL import Image, ImageDraw, ImageFont

from .images import load_image, save_image, uncertainty_to_pil

if TYPE_CHECKING:
    from .pipelines import SuperResolutionPipeline

PHOTOGRAPHS = {"chelsea.png": (96, 36, 288, 228), "rocket.jpg": (256, 226, 448, 418)}
"""Files of scikit-image (CC0 and public domain; none was trained on), and the square that is cut out of each."""


def photographs() -> list[Image.Image]:
    """192x192 pixels of photographs in the public domain that come with scikit-image."""
    folder = Path(skimage.__file__).parent / "data"
    return [load_image(folder / name).crop(box) for name, box in PHOTOGRAPHS.items()]


def overview(
    pipeline: "SuperResolutionPipeline", photos: list[Image.Image], num_samples: int = 8, seed: int = 0, gap: int = 8
) -> Image.Image:
    """One row for each photograph: the LR image, bicubic, two samples, the mean, and the uncertainty map.

    Args:
        pipeline: makes the samples, at its default temperature.
        photos: HR images of one size, multiples of the scale; they are made small by PIL's bicubic.
        num_samples: of which the mean and the uncertainty map are.
        seed: of the first sample.
        gap: pixels between tiles.
    """
    scale = pipeline.config.scale_factor
    width, height = photos[0].size
    text, small_text = ImageFont.load_default(14), ImageFont.load_default(11)  # there wherever Pillow is
    titles = ("input", "bicubic", "sample 1", "sample 2", f"mean of {num_samples}", "uncertainty")
    bar, heading = 30, 24
    canvas = Image.new(
        "RGB", (len(titles) * (width + gap) - gap, heading + len(photos) * (height + gap) + bar), "white"
    )
    pen = ImageDraw.Draw(canvas)
    for column, title in enumerate(titles):
        pen.text((column * (width + gap) + width / 2, heading / 2), title, "#222", text, anchor="mm")
    for row, photo in enumerate(photos):
        small = photo.resize((width // scale, height // scale), Image.Resampling.BICUBIC)
        out = pipeline(small, num_samples=num_samples, seed=seed)
        tiles = [small.resize(photo.size, kind) for kind in (Image.Resampling.NEAREST, Image.Resampling.BICUBIC)]
        tiles += [out.images[0], out.images[min(1, num_samples - 1)], out.mean[0], uncertainty_to_pil(out.std[0])]
        for column, tile in enumerate(tiles):
            canvas.paste(tile, (column * (width + gap), heading + row * (height + gap)))
    left, top = (len(titles) - 1) * (width + gap), canvas.height - bar
    colours = colour_bar(width, 10)
    canvas.paste(colours, (left, top))
    for share, anchor in ((0, "lt"), (0.5, "mt"), (1, "rt")):
        pen.text((left + share * width, top + 14), f"{25.5 * share:g}", "#222", small_text, anchor=anchor)
    pen.text((left - gap, top + 5), "standard deviation, grey levels", "#222", small_text, anchor="rm")
    return canvas


def colour_bar(width: int, height: int) -> Image.Image:
    """The colours of the uncertainty map from 0 on the left to its end, 0.1, on the right."""
    return uncertainty_to_pil(np.tile(np.linspace(0, 0.1, width), (height, 1)))


def write_pictures(folder: str | os.PathLike[str]) -> list[Path]:
    """Writes `images/` of a pipeline's folder: an input, a sample, the mean, and the overview; returns the files."""
    from .pipelines import SuperResolutionPipeline

    pipeline = SuperResolutionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    photos = photographs()
    scale = pipeline.config.scale_factor
    small = photos[0].resize((photos[0].width // scale, photos[0].height // scale), Image.Resampling.BICUBIC)
    out = pipeline(small, num_samples=8, seed=0)
    pictures = {
        "input": small,
        "sample": out.images[0],
        "mean": out.mean[0],
        "overview": overview(pipeline, photos),
    }
    target = Path(folder) / "images"
    target.mkdir(exist_ok=True)
    for name, picture in pictures.items():
        save_image(picture, target / f"{name}.png")
    return [target / f"{name}.png" for name in pictures]
