"""The picture of the README: three samples that differ, beside interpolation and the photograph itself.

python docs/images/first_picture.py -o docs/images/first_picture.png
"""

import argparse
from pathlib import Path

import skimage
from PIL import Image

from hvae_sr import SuperResolutionPipeline
from hvae_sr.images import load_image, save_image, uncertainty_to_pil
from hvae_sr.pictures import draw_sheet, references

CROPS = {"chelsea.png": (140, 40, 252, 152), "coffee.png": (190, 250, 302, 362)}
"""Photographs of scikit-image (CC0), which none of the bundled weights was trained on, and the square that is shown."""
MAGNIFIED = 2


def magnified(image: Image.Image) -> Image.Image:
    return image.resize((image.width * MAGNIFIED, image.height * MAGNIFIED), Image.Resampling.NEAREST)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="natural-x4")
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("-o", "--output", required=True)
    options = parser.parse_args()
    pipe = SuperResolutionPipeline.from_pretrained(options.model)
    rows = []
    for name, (left, top, right, bottom) in CROPS.items():
        photo = load_image(Path(skimage.__file__).parent / "data" / name)
        photo = photo.crop((0, 0, photo.width // 4 * 4, photo.height // 4 * 4))
        around = photo.crop((left - 32, top - 32, right + 32, bottom + 32))
        small, nearest, bicubic = references(pipe, around)
        out = pipe(small, temperature=options.temperature, num_samples=8, seed=0)
        tiles = [nearest, bicubic, *out.images[:3], out.mean[0], uncertainty_to_pil(out.std[0]), around]
        rows.append([magnified(tile.crop((32, 32, tile.width - 32, tile.height - 32))) for tile in tiles])
    headings = ["input", "bicubic", "sample 1", "sample 2", "sample 3", "mean of 8", "uncertainty", "photograph"]
    save_image(draw_sheet(rows, headings, scale=False), options.output)


if __name__ == "__main__":
    main()
