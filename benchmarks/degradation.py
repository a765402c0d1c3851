"""How often `hvae_sr.images.degradation` finds fault with clean and degraded inputs, and which model is better there.

python benchmarks/degradation.py FOLDER... [--num_images 200] [--models natural-x4 photo-x4 --compared 13 --lpips DIR]

Every photograph is downsampled four times by the model's H (clean), and then degraded. With --models, of the first
`--compared` photographs the square of 256x256 in the middle is drawn by each model from its 64x64 pixels: PSNR on Y and
LPIPS (AlexNet) of one sample at the model's own temperature, in bfloat16.
"""

import argparse
import io
import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from hvae_sr import Downsampling
from hvae_sr.cli.common import load_pipeline
from hvae_sr.evaluation import load_perceptual
from hvae_sr.evaluation.metrics import psnr_y
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


def comparison(models: list[str], lpips: str | None) -> Callable[[np.ndarray, np.ndarray], list[float]]:
    """A function of y and x, 8 bits, that gives PSNR and LPIPS of a sample of each model in turn."""
    pipelines: list[Any] = []
    for name in models:
        pipelines.append(load_pipeline(argparse.Namespace(model=name, dtype="bfloat16", device="cpu"), fast=True))
        pipelines[-1].set_progress_bar_config(disable=True)
    distance = load_perceptual(["lpips"], lpips_weights=lpips).lpips if models else None

    def compare(y: np.ndarray, x: np.ndarray) -> list[float]:
        drawn = [np.asarray(pipeline(Image.fromarray(y), seed=0).images[0]) for pipeline in pipelines]
        return [value for image in drawn for value in (psnr_y(x, image), distance.distance(x, image))]  # type: ignore

    return compare


def middle(image: np.ndarray, scale: int) -> np.ndarray:
    """The middle 64 `scale` pixels a side, on the grid of y, whose sides are rounded up."""
    top, left = ((-(-side // scale) - 64) // 2 * scale for side in image.shape[:2])
    return image[top : top + 64 * scale, left : left + 64 * scale]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", metavar="FOLDER")
    parser.add_argument("--num_images", type=int, default=200)
    parser.add_argument("--models", nargs="+", default=[])
    parser.add_argument("--compared", type=int, default=13)
    parser.add_argument("--lpips", help="folder of lpips_alexnet.safetensors; default: $HVAE_SR_LPIPS")
    options = parser.parse_args()
    paths = find_images(options.folders, recursive=True)
    paths = random.Random(0).sample(paths, min(options.num_images, len(paths)))
    operator, compare = Downsampling(4), comparison(options.models, options.lpips)
    given: dict[str, list[tuple[bool, bool, bool]]] = defaultdict(list)
    measured: dict[str, list[list[float]]] = defaultdict(list)
    for seed, path in enumerate(paths):
        x = np.asarray(load_image(path))
        for name, levels in degraded(operator(to_tensor(x)), seed):
            found = inspect(to_tensor(levels))
            if found is not None:
                flags = (found.noise > MAX_NOISE, found.missing > MAX_MISSING, found.sharpness < MIN_SHARPNESS)
                given[name].append(flags)
            if options.models and len(measured[name]) < options.compared and min(x.shape[:2]) >= 256:
                measured[name].append(compare(middle(levels, 1), middle(x, 4)))
    heads = ["input", "images", "any warning", "noise", "JPEG", "blur"]
    print(" | ".join(["", *heads, *(f"{name}: PSNR / LPIPS" for name in options.models), ""]).strip())
    print("|" + "---|" * (len(heads) + len(options.models)))
    for name, rows in given.items():
        flags = np.array(rows)
        shares = [flags.any(axis=1).mean(), *flags.mean(axis=0)]
        cells = [name, str(len(rows)), *(f"{100 * share:.1f} %" for share in shares)]
        means = np.mean(measured[name], axis=0).reshape(-1, 2) if options.models else []
        print(" | ".join(["", *cells, *(f"{psnr:.2f} / {lpips:.3f}" for psnr, lpips in means), ""]).strip())


if __name__ == "__main__":
    main()
