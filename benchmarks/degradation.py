"""How often the warnings of `hvae_sr.images.degradation` are given, for clean and for degraded inputs.

python benchmarks/degradation.py FOLDER... [--num_images 200]

Every photograph is downsampled four times by the model's H (clean), and then degraded.
"""

import argparse
import io
import random
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from hvae_sr import Downsampling
from hvae_sr.images import find_images, load_image, to_pil, to_tensor
from hvae_sr.images.degradation import MAX_MISSING, MAX_NOISE, MIN_SHARPNESS, inspect


def jpeg(levels: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def degraded(y: torch.Tensor, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """(name, 8-bit image) of y `[3, h, w]` in [0, 1]."""
    random_numbers = np.random.default_rng(seed)
    levels = np.asarray(to_pil(y))
    yield "clean", levels
    for sigma in (2, 5, 10):
        noisy = levels + random_numbers.normal(0, sigma, levels.shape)
        yield f"noise, sigma {sigma}", np.rint(noisy).clip(0, 255).astype(np.uint8)
    for quality in (95, 90, 80, 75, 50, 30):
        yield f"JPEG, quality {quality}", jpeg(levels, quality)
    for sigma in (0.5, 0.8, 1.0, 1.5, 2.0):
        blurred = ndimage.gaussian_filter(y.numpy(), (0, sigma, sigma))
        yield f"blur, sigma {sigma}", np.asarray(to_pil(torch.from_numpy(blurred)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", metavar="FOLDER")
    parser.add_argument("--num_images", type=int, default=200)
    options = parser.parse_args()
    paths = find_images(options.folders, recursive=True)
    paths = random.Random(0).sample(paths, min(options.num_images, len(paths)))
    operator = Downsampling(4)
    given: dict[str, list[tuple[bool, bool, bool]]] = defaultdict(list)
    for seed, path in enumerate(paths):
        for name, levels in degraded(operator(to_tensor(load_image(path))), seed):
            found = inspect(to_tensor(levels))
            if found is not None:
                flags = (found.noise > MAX_NOISE, found.missing > MAX_MISSING, found.sharpness < MIN_SHARPNESS)
                given[name].append(flags)
    print("| input | images | any warning | noise | JPEG | blur |\n|---|---|---|---|---|---|")
    for name, rows in given.items():
        flags = np.array(rows)
        shares = [flags.any(axis=1).mean(), *flags.mean(axis=0)]
        print(f"| {name} | {len(rows)} | " + " | ".join(f"{100 * share:.1f} %" for share in shares) + " |")


if __name__ == "__main__":
    main()
