"""Time and peak memory of one call: 5 samples of a 128x128 image, 512x512 each.

python benchmarks/memory.py [--model MODEL] [--side 128] [--num_samples 5] [--dtype float32]
"""

import argparse
import resource
import time

import numpy as np
import torch

from hvae_sr import SuperResolutionPipeline


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="natural-x4")
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--num_samples", type=int, default=5)
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    pipe = SuperResolutionPipeline.from_pretrained(options.model, dtype=getattr(torch, options.dtype))
    pipe.set_progress_bar_config(disable=True)
    photo = np.random.default_rng(0).random((options.side, options.side, 3), dtype=np.float32)
    start = time.perf_counter()
    pipe(photo, num_samples=options.num_samples, seed=0)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # KiB on Linux
    print(f"{options.num_samples} samples, {4 * options.side}x{4 * options.side}: {seconds:.1f} s, peak {peak:.0f} MiB")


if __name__ == "__main__":
    main()
