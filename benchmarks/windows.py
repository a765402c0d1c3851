"""Windowed against whole sampling: the largest difference, for several margins; and what the kept features save.

python benchmarks/windows.py [MODEL [DTYPE]] [--times]

`--times` draws five samples of a photograph of several windows, by turns with the features of y kept from one sample to
the next and made anew, and prints the seconds of processor of both.
"""

import argparse
import time

import numpy as np
import skimage
import torch
from PIL import Image

from hvae_sr import SuperResolutionPipeline
from hvae_sr.pipelines import memory, sampling


def differences(pipe: SuperResolutionPipeline) -> None:
    photo = Image.fromarray(skimage.data.chelsea()).crop((60, 0, 220, 160))
    options = {"seed": 0, "temperature": 0.8, "output_type": "np"}
    whole = pipe(photo, window_size=photo.width, **options).images[0]
    print("margin (HR pixels)  largest difference (grey levels)")
    for margin in (16, 32, 64, 96, 128):
        sampling.MARGIN = margin
        windowed = pipe(photo, window_size=48, **options).images[0]
        print(f"{margin:18d}  {255 * np.abs(windowed - whole).max():.5f}")


def times(pipe: SuperResolutionPipeline, repeats: int = 2) -> None:
    photo = Image.fromarray(skimage.data.chelsea())
    found: dict[str, list[float]] = {"made anew": [], "kept": []}
    room = memory.KEPT_FEATURES
    for _ in range(repeats):
        for name, seconds in found.items():
            memory.KEPT_FEATURES = room if name == "kept" else 0
            start = time.process_time()
            pipe(photo, num_samples=5, seed=0)
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
