"""Time of one and five samples, of two checkouts in turns in one run: what a change of the code costs or gains.

python benchmarks/revisions.py OLD_CHECKOUT [NEW_CHECKOUT] [--models natural-x4 natural-x4-cvdvae] [--repeats 3]

Each process draws samples of a photograph of 128x128 with the checkout's own bundled weights; times are processor
seconds of one thread, without loading and the first, warming call. Rows are printed as they are known: the medians, and
new over old. An OLD_CHECKOUT is made by `git worktree add --detach OLD REVISION`.
"""

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

MEASURE = """
import sys, time, torch, skimage
torch.set_num_threads(1)
from PIL import Image
from hvae_sr import SuperResolutionPipeline
name, dtype, *counts = sys.argv[1:]
given = {} if dtype == "auto" else {"dtype": getattr(torch, dtype)}
pipe = SuperResolutionPipeline.from_pretrained(name, load_encoder=False, **given)
pipe.set_progress_bar_config(disable=True)
photo = Image.fromarray(skimage.data.chelsea()).crop((90, 60, 218, 188))
pipe(photo, seed=0)
for count in map(int, counts):
    start = time.process_time()
    pipe(photo, num_samples=count, seed=0)
    print("seconds", time.process_time() - start)
"""


def seconds(checkout: Path, *arguments: str) -> list[float]:
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", MEASURE, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=checkout)
    return [float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("seconds ")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, help="a checkout")
    parser.add_argument("new", type=Path, nargs="?", default=Path(__file__).resolve().parent.parent)
    parser.add_argument("--models", nargs="+", default=["natural-x4", "natural-x4-cvdvae"])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "auto"])
    parser.add_argument("--samples", nargs="+", default=["1", "5"])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    print("| model | dtype | samples | old, s | new, s | new / old |\n|---|---|---|---|---|---|")
    for model in options.models:
        for dtype in options.dtypes:
            runs = [
                [seconds(checkout.resolve(), model, dtype, *options.samples) for checkout in (options.old, options.new)]
                for _ in range(options.repeats)
            ]
            for row, samples in enumerate(options.samples):
                pairs = [(old[row], new[row]) for old, new in runs]
                old, new = (statistics.median(times) for times in zip(*pairs, strict=True))
                ratio = statistics.median(new / old for old, new in pairs)
                print(f"| {model} | {dtype} | {samples} | {old:.2f} | {new:.2f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
