"""Time of one and five samples, of two checkouts in turns: what a change of the code costs or gains.

python benchmarks/revisions.py OLD_CHECKOUT [NEW_CHECKOUT] [--models natural-x4 natural-x4-cvdvae] [--threads 2]

A process of each checkout draws samples of a photograph of 128x128, with the checkout's own bundled weights or those of
a folder, one call at a time, the two in turns; times are processor seconds of one thread, or wall-clock seconds of
several, which need a quiet machine; without loading and warming calls. Rows are printed as they are known: the shortest
times, which other programs disturbed least, the ratio of these, and the median of the ratios of the turns. An
OLD_CHECKOUT is made by `git worktree add --detach OLD REVISION`.
"""

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

MEASURE = """
import sys, time, torch, skimage
name, dtype, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
clock = time.process_time if threads == "1" else time.perf_counter
from PIL import Image
from hvae_sr import SuperResolutionPipeline
given = {} if dtype == "auto" else {"dtype": getattr(torch, dtype)}
pipe = SuperResolutionPipeline.from_pretrained(name, load_encoder=False, **given)
pipe.set_progress_bar_config(disable=True)
photo = Image.fromarray(skimage.data.chelsea()).crop((90, 60, 218, 188))
pipe(photo, num_samples=2, seed=0)
for line in sys.stdin:
    start = clock()
    pipe(photo, num_samples=int(line), seed=0)
    print("seconds", clock() - start, flush=True)
"""


class Checkout:
    """A process that draws samples with the code and the weights of a checkout."""

    def __init__(self, folder: Path, model: str, dtype: str, threads: int) -> None:
        environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": str(threads)}
        pipe = subprocess.PIPE
        command = [sys.executable, "-c", MEASURE, model, dtype, str(threads)]
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment, cwd=folder)

    def seconds(self, samples: str) -> float:
        """Of one call."""
        assert self.process.stdin is not None and self.process.stdout is not None
        print(samples, file=self.process.stdin, flush=True)
        for line in self.process.stdout:
            if line.startswith("seconds "):
                return float(line.split()[1])
        raise SystemExit(f"{self.process.args} has ended")

    def end(self) -> None:
        self.process.communicate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, help="a checkout")
    parser.add_argument("new", type=Path, nargs="?", default=Path(__file__).resolve().parent.parent)
    parser.add_argument("--models", nargs="+", default=["natural-x4", "natural-x4-cvdvae"])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "auto"])
    parser.add_argument("--samples", nargs="+", default=["1", "5"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    print("| model | dtype | samples | old, s | new, s | new / old | of the turns |\n|---|---|---|---|---|---|---|")
    for model in options.models:
        for dtype in options.dtypes:
            folders = (options.old.resolve(), options.new.resolve())
            checkouts = [Checkout(folder, model, dtype, options.threads) for folder in folders]
            for samples in options.samples:
                turns = [[checkout.seconds(samples) for checkout in checkouts] for _ in range(options.repeats)]
                old, new = map(min, zip(*turns, strict=True))
                ratio = statistics.median(after / before for before, after in turns)
                row = (model, dtype, samples, f"{old:.2f}", f"{new:.2f}", f"{new / old:.2f}", f"{ratio:.2f}")
                print("|", " | ".join(row), "|", flush=True)
            for checkout in checkouts:
                checkout.end()


if __name__ == "__main__":
    main()
