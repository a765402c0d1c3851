"""Windowed against whole sampling: the largest difference, for several margins; and what the kept features save.

python benchmarks/windows.py [MODEL [DTYPE]] [--times]

`--times` draws five samples of a photograph of several windows, by turns with the features of y kept from one sample to
the next and made anew, and prints the seconds of processor of both.
"""

import argparse
import time
from functools import partial

import numpy as np
import skimage
import torch
from PIL import Image

from hvae_sr import SuperResolutionPipeline
from hvae_sr.images import to_tensor
from hvae_sr.noise import CounterNoise
from hvae_sr.sampling import Budget, WindowSampler
from hvae_sr.sampling.memory import KEPT_FEATURES, PIXELS_PER_CHUNK


def differences(pipe: SuperResolutionPipeline) -> None:
    # A restorer sees further: a strip that holds several windows with the widest margin.
    box = (60, 0, 220, 160) if pipe.networks.margin <= 96 else (0, 100, 448, 156)
    photo = Image.fromarray(skimage.data.chelsea()).crop(box)
    options = {"seed": 0, "temperature": 0.8, "output_type": "np"}
    whole = pipe(photo, window_size=photo.width, **options).images[0]
    print("margin (HR pixels)  largest difference (grey levels)  mean")
    for margin in (16, 32, 64, 96, 128, 192, 256):
        windowed = pipe(photo, window_size=48, window_margin=margin, **options).images[0]
        apart = 255 * np.abs(windowed - whole)
        print(f"{margin:18d}  {apart.max():32.5f}  {apart.mean():.5f}")


def times(pipe: SuperResolutionPipeline, repeats: int = 2) -> None:
    photo = Image.fromarray(skimage.data.chelsea())
    y = to_tensor(photo)
    found: dict[str, list[float]] = {"made anew": [], "kept": []}
    for _ in range(repeats):
        for name, seconds in found.items():
            sampler = WindowSampler(
                pipe.networks, y, budget=Budget(PIXELS_PER_CHUNK, KEPT_FEATURES if name == "kept" else 0)
            )
            start = time.process_time()
            with torch.no_grad():
                for seed in range(5):
                    sampler.sample(1, partial(CounterNoise, [seed]), temperature=0.8, return_latents=False)
            seconds.append(time.process_time() - start)
    for name, seconds in found.items():
        shown = f"{np.median(seconds):.1f} ({min(seconds):.1f} to {max(seconds):.1f})"
        print(f"five samples of {photo.width}x{photo.height}, features {name}: {shown} s")
    print(f"{np.median(np.divide(*found.values())):.2f} times faster")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="natural-x4")
    parser.add_argument("dtype", nargs="?", default="auto")
    parser.add_argument("--times", action="store_true")
    options = parser.parse_args()
    dtype = options.dtype if options.dtype == "auto" else getattr(torch, options.dtype)
    pipe = SuperResolutionPipeline.from_pretrained(options.model, dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    (times if options.times else differences)(pipe)


if __name__ == "__main__":
    main()
