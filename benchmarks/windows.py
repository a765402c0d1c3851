"""Windowed against whole sampling: the largest difference, for several margins.

python benchmarks/windows.py [MODEL [DTYPE]]
"""

import sys

import numpy as np
import skimage
import torch
from PIL import Image

from hvae_sr import SuperResolutionPipeline
from hvae_sr.pipelines import sampling


def main(model: str = "natural-x4", dtype: str = "auto") -> None:
    pipe = SuperResolutionPipeline.from_pretrained(model, dtype=dtype if dtype == "auto" else getattr(torch, dtype))
    pipe.set_progress_bar_config(disable=True)
    photo = Image.fromarray(skimage.data.chelsea()).crop((60, 0, 220, 160))
    options = {"seed": 0, "temperature": 0.8, "output_type": "np"}
    whole = pipe(photo, window_size=photo.width, **options).images[0]
    print("margin (HR pixels)  largest difference (grey levels)")
    for margin in (16, 32, 64, 96, 128):
        sampling.MARGIN = margin
        windowed = pipe(photo, window_size=48, **options).images[0]
        print(f"{margin:18d}  {255 * np.abs(windowed - whole).max():.5f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
