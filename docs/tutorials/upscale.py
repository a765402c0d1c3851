"""Tutorial 1: many plausible versions of one photograph, where they differ, and what can be steered.

python docs/tutorials/upscale.py [--model natural-x4] [--photo PHOTO] [--output_dir tutorial]
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import skimage
from PIL import Image

from hvae_sr import SuperResolutionPipeline
from hvae_sr.images import load_image, save_image, uncertainty_to_pil


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="natural-x4")
    parser.add_argument("--photo", help="default: a cat, in the public domain, that comes with scikit-image")
    parser.add_argument("--output_dir", default="tutorial")
    options = parser.parse_args(arguments)
    folder = Path(options.output_dir)
    folder.mkdir(parents=True, exist_ok=True)

    # 1. A model by its bundled name, a folder, or an id on the Hub; and a photograph of any size.
    pipe = SuperResolutionPipeline.from_pretrained(options.model)
    pipe.set_progress_bar_config(disable=True)
    if options.photo:
        photo = load_image(options.photo)
    else:
        photo = load_image(Path(skimage.__file__).parent / "data" / "chelsea.png").crop((130, 80, 210, 140))

    # 2. Five samples of p(x|y). Each is exactly consistent with the photograph: made small again, it is the photograph.
    out = pipe(photo, num_samples=5, seed=0)
    for seed, sample, decibels in zip(out.seeds, out.images, out.lr_psnr, strict=True):
        save_image(sample, folder / f"sample{seed}.png", {"seed": seed})
        print(f"sample of seed {seed}: {sample.width}x{sample.height}, LR-PSNR {decibels:.1f} dB")

    # 3. Their mean is the closest guess, the standard deviation says where to doubt it.
    save_image(out.mean[0], folder / "mean.png")
    save_image(uncertainty_to_pil(out.std[0]), folder / "std.png")
    print(f"standard deviation: {255 * out.std[0].mean():.1f} grey levels on average")

    # 4. A seed is an address: sample 3 alone is the sample 3 of the five, up to the rounding of floats.
    alone = pipe(photo, seed=3).images[0]
    difference = np.abs(np.asarray(alone, dtype=int) - np.asarray(out.images[3])).max()
    print(f"sample 3 alone and among five differ by at most {difference} grey levels")

    # 5. The temperature: 0 is smooth and deterministic, 1 is the model's own distribution.
    for tau in (0.0, 0.5, 1.0):
        save_image(pipe(photo, temperature=tau, seed=0).images[0], folder / f"temperature{tau:g}.png")

    # 6. Keep the coarse structure of a sample and redraw its texture: give half of its latents, and draw the rest.
    kept = pipe(photo, seed=0, return_latents=True).latents
    half = len(kept) // 2
    for seed in (1, 2):
        redrawn: Image.Image = pipe(photo, seed=seed, latents=kept[:half]).images[0]
        save_image(redrawn, folder / f"redrawn{seed}.png")
    print(f"wrote {len(list(folder.glob('*.png')))} pictures to {folder}")


if __name__ == "__main__":
    main()
