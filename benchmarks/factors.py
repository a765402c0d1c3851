"""One factor by several models: applied as often as needed and resampled, as by `hvae-sr upscale --outscale`.

python benchmarks/factors.py DATA --factor 2 [--models natural-x4 natural-x2] [--size 256] [--temperature 0]

Pairs are those of the thesis protocol at the factor. Printed are the mean PSNR on Y of one sample, its gain over PIL's
bicubic, the LR-PSNR in 8 bit, and seconds of processor for an image.
"""

import argparse
import time

import numpy as np
from PIL import Image

from hvae_sr import SuperResolutionPipeline
from hvae_sr.evaluation.metrics import psnr_y
from hvae_sr.evaluation.protocols import prepare_thesis, upsample_pil
from hvae_sr.evaluation.sources import list_images
from hvae_sr.pipelines.chaining import samples_at


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a folder of photographs")
    parser.add_argument("--factor", type=int, default=2)
    parser.add_argument("--models", nargs="+", default=["natural-x4", "natural-x2"])
    parser.add_argument("--size", type=int, default=256, help="side of the HR images")
    parser.add_argument("--temperature", type=float, default=0.0)
    options = parser.parse_args()
    pairs = [
        prepare_thesis(Image.open(path).convert("RGB"), options.size, options.factor)
        for path in list_images(options.data)
    ]
    print("| model | PSNR | gain over bicubic | LR-PSNR | s an image |\n|---|---|---|---|---|")
    base = float(np.mean([psnr_y(hr, upsample_pil(lr, options.factor)) for hr, lr in pairs]))
    print(f"| bicubic | {base:.2f} | | | |")
    for model in options.models:
        pipe = SuperResolutionPipeline.from_pretrained(model, load_encoder=False)
        pipe.set_progress_bar_config(disable=True)
        psnr, lr_psnr, start = [], [], time.process_time()
        for hr, lr in pairs:
            (sample,) = samples_at(pipe, lr, [0], options.factor, temperature=options.temperature)
            psnr.append(psnr_y(hr, np.asarray(sample.image)))
            lr_psnr.append(sample.lr_psnr)
        seconds = (time.process_time() - start) / len(pairs)
        mean = float(np.mean(psnr))
        print(f"| {model} | {mean:.2f} | {mean - base:+.2f} | {np.mean(lr_psnr):.1f} | {seconds:.2f} |", flush=True)


if __name__ == "__main__":
    main()
