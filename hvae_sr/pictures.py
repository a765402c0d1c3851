"""Pictures that show what a pipeline does, for model cards and documents."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import skimage
from PIL import Image, ImageDraw, ImageFont

from .evaluation.protocols import downsample
from .images import load_image, save_image, uncertainty_to_pil

if TYPE_CHECKING:
    from .pipelines import SuperResolutionPipeline

PHOTOGRAPHS = {"chelsea.png": (96, 36, 288, 228), "rocket.jpg": (256, 226, 448, 418)}
"""Files of scikit-image (CC0 and public domain; none was trained on), and the square that is cut out of each."""


CONTACT_SHEET = "contact_sheet.webp"

BENCHMARK_CROPS = {
    "Set14/img_001.png": (40, 300),  # fur
    "Set5/img_001.png": (100, 110),  # an eye, wool
    "Set5/img_005.png": (50, 60),  # a face
    "BSD100/img_035.png": (100, 190),  # a face
    "Set5/img_003.png": (70, 40),  # a wing
    "Set14/img_013.png": (24, 232),  # text
    "Set14/img_014.png": (190, 60),  # stripes
    "BSD100/img_086.png": (20, 40),  # foliage
    "BSD100/img_047.png": (300, 10),  # bricks
    "BSD100/img_003.png": (110, 180),  # a facade
    "BSD100/img_067.png": (120, 100),  # sky
    "BSD100/img_095.png": (150, 180),  # glass and petals
}
"""Images of the benchmark sets by folder and name, and the left and top of the square of the contact sheet."""


def benchmark_crops(folder: str | os.PathLike[str], side: int = 128) -> list[Image.Image]:
    """Squares of `side` pixels of twelve images of Set5, Set14 and BSD100, folders in `folder`, as they are.

    Raises ValueError: a file is missing.
    """
    missing = [name for name in BENCHMARK_CROPS if not (Path(folder) / name).is_file()]
    if missing:
        raise ValueError(f"`benchmarks` must hold {', '.join(missing)}; got {os.fspath(folder)!r}.")
    return [
        load_image(Path(folder) / name).crop((left, top, left + side, top + side))
        for name, (left, top) in BENCHMARK_CROPS.items()
    ]


def photographs() -> list[Image.Image]:
    """192x192 pixels of photographs in the public domain that come with scikit-image."""
    folder = Path(skimage.__file__).parent / "data"
    return [load_image(folder / name).crop(box) for name, box in PHOTOGRAPHS.items()]


def draw_sheet(
    rows: Sequence[Sequence[Image.Image | None]],
    headings: Sequence[str],
    captions: Sequence[str] = (),
    gap: int = 8,
    block: int = 1,
    scale: bool = True,
) -> Image.Image:
    """Rows of tiles, pixel by pixel, under headings.

    Args:
        rows: of tiles of one size; None leaves a place empty.
        headings: one for each column.
        captions: one for each row, written upwards on its left.
        gap: pixels between tiles.
        block: rows that belong together; between blocks there is more room.
        scale: draw the colours of an uncertainty map below the last column.
    """
    width, height = next(tile.size for row in rows for tile in row if tile is not None)
    size = 14 if width >= 160 else 11
    text, small_text = ImageFont.load_default(size), ImageFont.load_default(11)  # there wherever Pillow is
    heading, margin, bar = 24, 20 if captions else 0, 30 if scale else 0
    tops = [heading + index * (height + gap) + (index // block) * 2 * gap * (block > 1) for index in range(len(rows))]
    lefts = [margin + column * (width + gap) for column in range(len(headings))]
    canvas = Image.new("RGB", (lefts[-1] + width, tops[-1] + height + gap + bar), "white")
    pen = ImageDraw.Draw(canvas)
    for left, title in zip(lefts, headings, strict=True):
        pen.text((left + width / 2, heading / 2), title, "#222", text, anchor="mm")
    for index, (top, row) in enumerate(zip(tops, rows, strict=True)):
        for left, tile in zip(lefts, row, strict=True):
            if tile is not None:
                canvas.paste(tile, (left, top))
        if captions:
            label = Image.new("RGB", (height, margin), "white")
            ImageDraw.Draw(label).text((height / 2, margin / 2), captions[index], "#222", text, anchor="mm")
            canvas.paste(label.rotate(90, expand=True), (0, top))
    if not scale:
        return canvas
    left, top = lefts[-1], canvas.height - bar
    canvas.paste(colour_bar(width, 10), (left, top))
    for share, anchor in ((0, "lt"), (0.5, "mt"), (1, "rt")):
        pen.text((left + share * width, top + 14), f"{25.5 * share:g}", "#222", small_text, anchor=anchor)
    pen.text((left - gap, top + 5), "standard deviation, grey levels", "#222", small_text, anchor="rm")
    return canvas


def references(pipeline: "SuperResolutionPipeline", photo: Image.Image) -> tuple[Image.Image, Image.Image, Image.Image]:
    """y of a photograph by the pipeline's own kernel, in 8 bits; it magnified pixel by pixel, and by PIL's bicubic."""
    config = pipeline.config
    small = Image.fromarray(downsample(config.downsampling_kernel, np.asarray(photo), config.scale_factor))
    nearest, bicubic = (small.resize(photo.size, k) for k in (Image.Resampling.NEAREST, Image.Resampling.BICUBIC))
    return small, nearest, bicubic


def contact_sheet(
    pipeline: "SuperResolutionPipeline",
    photos: Sequence[Image.Image],
    temperatures: Sequence[float] = (0.2, 0.5, 0.8),
    num_samples: int = 8,
    seed: int = 0,
    across: int = 2,
) -> Image.Image:
    """Each photograph at several temperatures, below each other: LR, bicubic, up to three samples, mean, std, itself.

    LR image, interpolation and photograph stand once, in the row of the first temperature.

    Args:
        pipeline: makes the samples.
        photos: HR images of one size, multiples of the scale.
        temperatures: one row each.
        num_samples: of which the mean and the uncertainty map are.
        seed: of the first sample.
        across: columns of photographs.
    """
    if not photos or not temperatures or len({photo.size for photo in photos}) > 1:
        raise ValueError("`photos` must be images of one size, at least one, and `temperatures` at least one number.")
    shown = min(3, num_samples)
    headings = ["LR", "bicubic", *(f"sample {j + 1}" for j in range(shown)), f"mean of {num_samples}", "std", "HR"]
    rows: list[list[Image.Image | None]] = []
    for photo in photos:
        small, *tiles = references(pipeline, photo)
        for row, temperature in enumerate(temperatures):
            out = pipeline(small, temperature=temperature, num_samples=num_samples, seed=seed)
            made = [*out.images[:shown], out.mean[0], uncertainty_to_pil(out.std[0])]
            rows.append([None, None, *made, None] if row else [*tiles, *made, photo])
    captions = [f"temperature {temperature:g}" for temperature in temperatures] * len(photos)
    height = -(-len(photos) // across) * len(temperatures)
    parts = [
        draw_sheet(rows[start : start + height], headings, captions[start : start + height], 4, len(temperatures))
        for start in range(0, len(rows), height)
    ]
    space = 24
    sheet = Image.new("RGB", (len(parts) * (parts[0].width + space) - space, parts[0].height), "white")
    for column, part in enumerate(parts):
        sheet.paste(part, (column * (part.width + space), 0))
    return sheet


def colour_bar(width: int, height: int) -> Image.Image:
    """The colours of the uncertainty map from 0 on the left to its end, 0.1, on the right."""
    return uncertainty_to_pil(np.tile(np.linspace(0, 0.1, width), (height, 1)))


def write_pictures(
    folder: str | os.PathLike[str],
    benchmarks: str | os.PathLike[str] | None = None,
    temperatures: Sequence[float] = (0.2, 0.5, 0.8),
) -> list[Path]:
    """Writes `images/` of a pipeline's folder: an input, a sample, the mean, and the overview; returns the files.

    With `benchmarks`, a folder that holds Set5, Set14 and BSD100, also a contact sheet of twelve of their images at
    `temperatures`. Raises ValueError: the folder holds no `SuperResolutionPipeline`.
    """
    from .pipelines import SuperResolutionPipeline
    from .pipelines.baselines import pipeline_class

    if (found := pipeline_class(folder)) is not SuperResolutionPipeline:
        raise ValueError(
            f"`folder` must hold a SuperResolutionPipeline for pictures, {os.fspath(folder)!r} holds a {found.__name__}"
        )
    crops = benchmark_crops(benchmarks) if benchmarks is not None else []
    pipeline = SuperResolutionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    photos = photographs()
    small, *_ = references(pipeline, photos[0])
    out = pipeline(small, num_samples=8, seed=0)
    pictures = {
        "input.png": small,
        "sample.png": out.images[0],
        "mean.png": out.mean[0],
        "overview.png": contact_sheet(pipeline, photos, [pipeline.config.default_temperature], across=1),
    }
    if crops:
        pictures[CONTACT_SHEET] = contact_sheet(pipeline, crops, temperatures)
    target = Path(folder) / "images"
    target.mkdir(exist_ok=True)
    for name, picture in pictures.items():  # the sheet is kept in the repository
        save_image(picture, target / name, quality=70 if name == CONTACT_SHEET else None)
    return [target / name for name in pictures]
