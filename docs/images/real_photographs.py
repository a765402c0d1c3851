"""The sheet of docs/real_photographs.md: small pictures as people bring them, and what each system makes of them.

python docs/images/real_photographs.py INPUTS [--models natural-x4 photo-x4 DIR] [--num_samples 4] [--make] -o SHEET

INPUTS is a folder of small pictures; `--make` puts there those of the document, made of photographs of scikit-image in
the public domain and of a page that is drawn here. Of each result the middle `--shown` pixels a side are shown, of
photo-x4 also the mean of its samples and where they differ.
"""

import argparse
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter, ImageFont

from hvae_sr.cli.common import load_pipeline
from hvae_sr.images import find_images, load_image, save_image, uncertainty_to_pil
from hvae_sr.pictures import draw_sheet


def make_inputs(folder: Path) -> None:
    """Small JPEGs of three photographs, a page of text, and the page as a poor scan has it."""
    import matplotlib
    import numpy as np
    import skimage.data

    folder.mkdir(parents=True, exist_ok=True)
    photographs = {
        "1_face": (skimage.data.astronaut()[:256, 96:352], 80, 60),
        "2_cat": (skimage.data.chelsea()[40:240, 80:280], 100, 40),
        "3_rocket": (skimage.data.rocket()[60:380, 150:470], 100, 80),
    }
    for name, (pixels, side, quality) in photographs.items():
        small = Image.fromarray(pixels).resize((side, side), Image.Resampling.LANCZOS)
        small.save(folder / f"{name}.jpg", quality=quality)
    page = Image.new("RGB", (112, 80), "white")
    font = ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans-Oblique.ttf", 13)
    ImageDraw.Draw(page).multiline_text((6, 8), "The cat often\nreceives guests\nat this time.", "black", font)
    page.save(folder / "4_page.png")
    large = Image.new("RGB", (448, 320), (247, 240, 222))
    font = ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSerif.ttf", 34)
    ImageDraw.Draw(large).multiline_text((24, 50), "lamps, one of them\non the 3rd of May", (40, 36, 30), font)
    turned = large.rotate(1.5, Image.Resampling.BICUBIC, fillcolor=(247, 240, 222)).filter(ImageFilter.GaussianBlur(4))
    scan = np.asarray(turned.resize((112, 80), Image.Resampling.BOX), float)
    scan += np.random.default_rng(0).normal(0, 4, scan.shape)
    Image.fromarray(scan.round().clip(0, 255).astype(np.uint8)).save(folder / "5_scan.jpg", quality=50)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", metavar="INPUTS")
    parser.add_argument("--models", nargs="+", default=["natural-x4", "photo-x4"])
    parser.add_argument("--num_samples", type=int, default=4)
    parser.add_argument("--shown", type=int, default=224)
    parser.add_argument("--rows", type=int, nargs=2, metavar=("FIRST", "END"), help="some of the inputs")
    parser.add_argument("-o", "--output", required=True)
    parser.add_argument("--make", action="store_true", help="first puts the document's pictures into INPUTS")
    options = parser.parse_args()
    if options.make:
        make_inputs(Path(options.inputs))
    inputs = [load_image(path) for path in find_images([options.inputs])][slice(*(options.rows or [None]))]
    sizes = [(image.width * 4, image.height * 4) for image in inputs]
    columns = {
        "input": [image.resize(size, Image.Resampling.NEAREST) for image, size in zip(inputs, sizes, strict=True)]
    }
    columns["bicubic"] = [y.resize(size, Image.Resampling.BICUBIC) for y, size in zip(inputs, sizes, strict=True)]
    for model in options.models:
        pipe = load_pipeline(argparse.Namespace(model=model, dtype="bfloat16", device="cpu"), fast=True)
        pipe.set_progress_bar_config(disable=True)
        several = pipe.config.get("consistency") == "none"
        outs = [pipe(image, num_samples=options.num_samples if several else 1, seed=0) for image in inputs]
        columns[Path(model).name] = [out.images[0] for out in outs]
        if several:
            columns["another"] = [out.images[1] for out in outs]
            columns["mean"] = [out.mean[0] for out in outs]
            columns["where they differ"] = [uncertainty_to_pil(out.std[0]) for out in outs]
    rows = [[middle(tile, options.shown) for tile in tiles] for tiles in zip(*columns.values(), strict=True)]
    save_image(draw_sheet(rows, list(columns), scale=False), options.output)


def middle(image: Image.Image, side: int) -> Image.Image:
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


if __name__ == "__main__":
    main()
