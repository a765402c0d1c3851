"""The picture of docs/how_sure.md: where samples differ, and where their mean is wrong.

python docs/images/how_sure.py -o docs/images/how_sure.png
"""

import argparse
from pathlib import Path

import numpy as np
import skimage
from PIL import Image

from hvae_sr import SuperResolutionPipeline
from hvae_sr.images import load_image, save_image, uncertainty_to_pil
from hvae_sr.pictures import draw_sheet, references

CROPS = {"coffee.png": (160, 220, 288, 348), "rocket.jpg": (280, 290, 408, 418)}
"""Photographs of scikit-image (CC0 and public domain), which none of the bundled weights was trained on."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="natural-x4")
    parser.add_argument("-o", "--output", required=True)
    options = parser.parse_args()
    pipe = SuperResolutionPipeline.from_pretrained(options.model)
    rows = []
    for name, box in CROPS.items():
        photo = load_image(Path(skimage.__file__).parent / "data" / name).crop(box)
        small, nearest, _ = references(pipe, photo)
        out = pipe(small, temperature=1.0, num_samples=16, seed=0, keep_images=False)
        error = np.abs(np.asarray(out.mean[0], np.float32) - np.asarray(photo, np.float32)) / 255
        tiles = [nearest, out.mean[0], photo, uncertainty_to_pil(error), uncertainty_to_pil(out.std[0])]
        rows.append([tile.resize((192, 192), Image.Resampling.NEAREST) for tile in tiles])
    headings = ["input", "mean of 16", "photograph", "error of the mean", "uncertainty"]
    save_image(draw_sheet(rows, headings), options.output)


if __name__ == "__main__":
    main()
