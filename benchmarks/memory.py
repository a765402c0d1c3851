"""Time and peak memory of one call, for outputs of 1 to 64 megapixels; each in a process of its own.

python benchmarks/memory.py [--model MODEL] [--sides 256 512 1024 2048] [--num_samples 1] [--max_memory 2GB]
    [--dtype float32]
python benchmarks/memory.py --small

`--small` takes a network of few channels: the memory of everything around it, in a fraction of the time.

The side is that of the input. "arrays" is what the samples themselves take: the input, the sample in float32, the
8-bit image that is kept of each and, with several samples, their mean and sum of squares. "beside them" is the peak
without these and without what the process holds when the model is loaded: windows, networks' activations, strips.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from hvae_sr import VDVAE, LRConditioner, SuperResolutionPipeline
from hvae_sr.sampling.memory import parse_bytes


def resident() -> int:
    """The most memory that this process has held, bytes; Linux alone tells.

    `ru_maxrss` would begin at what the process that started this one held.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def measure(options: argparse.Namespace, side: int) -> dict[str, float]:
    if options.small:
        pipe = small()
    else:
        pipe = SuperResolutionPipeline.from_pretrained(options.model, load_encoder=False, dtype=options.dtype)
    pipe.set_progress_bar_config(disable=True)
    pipe(np.zeros((32, 32, 3), dtype=np.uint8))  # what is set up once
    rows, columns = np.indices((side, side), dtype=np.float32)
    waves = [np.sin(rows / 9 + channel) * np.cos(columns / 7 - channel) for channel in range(3)]
    photo = (127.5 + 100 * np.stack(waves, axis=-1)).astype(np.uint8)
    base, start, clock = resident(), time.process_time(), time.perf_counter()
    pipe(photo, num_samples=options.num_samples, seed=0, max_memory=options.max_memory)
    return {
        "seconds": time.process_time() - start,
        "clock": time.perf_counter() - clock,
        "base": base,
        "peak": resident(),
    }


def small() -> SuperResolutionPipeline:
    """A pipeline with random weights that does as many steps as any, with few channels."""
    shared = {"decoder_blocks": "16x1", "width": 8}
    vdvae = VDVAE(image_size=64, encoder_blocks=None, latent_channels=2, patch_size=4, num_mixtures=1, **shared)
    network = LRConditioner(image_size=16, blocks="16x1", decoder_width=8, **shared)
    return SuperResolutionPipeline(vdvae.eval(), network.eval())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="natural-x4")
    parser.add_argument("--sides", type=int, nargs="+", default=[256, 512, 1024, 2048])
    parser.add_argument("--num_samples", type=int, default=1)
    parser.add_argument("--max_memory", type=parse_bytes)
    parser.add_argument("--dtype", default="auto", help="auto (default: bfloat16 where it is fast), or float32")
    parser.add_argument("--small", action="store_true", help="a small network with random weights")
    parser.add_argument("--one", action="store_true", help="measure one side in this process")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options, options.sides[0])))
        return
    print("| output | s of processor | s a megapixel | loaded, MiB | arrays, MiB | beside them, MiB | peak, MiB |")
    print("|---|---|---|---|---|---|---|")
    for side in options.sides:
        command = [sys.executable, __file__, "--one", "--model", options.model, "--sides", str(side)]
        command += ["--num_samples", str(options.num_samples), "--dtype", options.dtype]
        command += ["--max_memory", str(options.max_memory)] if options.max_memory else []
        command += ["--small"] if options.small else []
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            raise SystemExit(result.stderr.strip().splitlines()[-1])
        found = json.loads(result.stdout.splitlines()[-1])
        pixels = (4 * side) ** 2
        each = 12 + 4 * options.num_samples + (24 if options.num_samples > 1 else 0)
        arrays = pixels * each + 12 * side**2
        print(
            f"| {4 * side}x{4 * side} | {found['seconds']:.0f} | {found['seconds'] / pixels * 2**20:.1f} | "
            f"{found['base'] / 2**20:.0f} | {arrays / 2**20:.0f} | "
            f"{(found['peak'] - found['base'] - arrays) / 2**20:.0f} | {found['peak'] / 2**20:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
