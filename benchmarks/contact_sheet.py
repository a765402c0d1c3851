"""A contact sheet of photographs: LR, bicubic, samples, mean, uncertainty, truth.

python benchmarks/contact_sheet.py [--model MODEL] [--temperature 0.8] [--images FILE ...] -o SHEET.png

Without --images, crops of public-domain photographs that come with scikit-image, none of which was trained on.
"""

import argparse
from pathlib import Path

import skimage
from PIL import Image, ImageDraw

from hvae_sr import SuperResolutionPipeline
from hvae_sr.evaluation.protocols import prepare_thesis
from hvae_sr.images import load_image, uncertainty_to_pil

DATA = Path(skimage.__file__).parent / "data"
CROPS = {"chelsea.png": (90, 60, 282, 252), "astronaut.png": (130, 20, 322, 212), "rocket.jpg": (250, 150, 442, 342)}
HEADINGS = ("input", "bicubic", "sample", "sample", "sample", "mean of 8", "uncertainty", "truth")


def rows(pipe: SuperResolutionPipeline, photos: list[Image.Image], temperature: float) -> list[list[Image.Image]]:
    """One row of pictures, all of one size, for each photograph."""
    sheet = []
    for photo in photos:
        side = min(photo.size) // 4 * 4
        hr, lr = (Image.fromarray(array) for array in prepare_thesis(photo, side))
        out = pipe(lr, num_samples=8, temperature=temperature, seed=0)
        nearest, bicubic = (lr.resize(hr.size, kind) for kind in (Image.Resampling.NEAREST, Image.Resampling.BICUBIC))
        sheet.append([nearest, bicubic, *out.images[:3], out.mean[0], uncertainty_to_pil(out.std[0]), hr])
    return sheet


def draw(sheet: list[list[Image.Image]], gap: int = 4, heading: int = 16) -> Image.Image:
    """Rows of pictures under their headings."""
    side = max(picture.width for row in sheet for picture in row)
    canvas = Image.new("RGB", (len(HEADINGS) * (side + gap), heading + len(sheet) * (side + gap)), "white")
    pen = ImageDraw.Draw(canvas)
    for column, text in enumerate(HEADINGS):
        pen.text((column * (side + gap) + 2, 2), text, fill="black")
        for number, row in enumerate(sheet):
            canvas.paste(row[column], (column * (side + gap), heading + number * (side + gap)))
    return canvas


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="natural-x4")
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--images", nargs="*", default=[])
    parser.add_argument("-o", "--output", required=True)
    options = parser.parse_args()
    photos = [load_image(path) for path in options.images] or [
        load_image(DATA / name).crop(box) for name, box in CROPS.items()
    ]
    pipe = SuperResolutionPipeline.from_pretrained(options.model)
    pipe.set_progress_bar_config(disable=True)
    draw(rows(pipe, photos, options.temperature)).save(options.output)


if __name__ == "__main__":
    main()
