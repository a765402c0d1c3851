"""Throughput of random degradations on one core: crops a second, for each bundled file or the files given.

python benchmarks/random_degradation.py [NAME|FILE ...] [--resolution 128] [--scale_factor 4] [--crops 300]

Measured in CPU time, so that other programs do not count.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="bundled names or files; default: all bundled ones")
    parser.add_argument("--resolution", type=int, default=128)
    parser.add_argument("--scale_factor", type=int, default=4)
    parser.add_argument("--crops", type=int, default=300)
    options = parser.parse_args()
    import skimage
    import torch

    from hvae_sr.data import bundled_degradations, degrade, load_degradation

    side = options.resolution
    photograph = torch.from_numpy(skimage.data.astronaut().transpose(2, 0, 1).copy())
    crop = photograph[:, 100 : 100 + side, 100 : 100 + side].contiguous()
    for name in options.names or bundled_degradations():
        degradation = load_degradation(name)
        degrade(crop, degradation, 0, 0, options.scale_factor)
        begun = time.process_time()
        for index in range(options.crops):
            degrade(crop, degradation, 0, index, options.scale_factor)
        print(f"{name}: {options.crops / (time.process_time() - begun):.0f} crops of {side}x{side} a second")


if __name__ == "__main__":
    main()
