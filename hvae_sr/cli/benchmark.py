"""Measure the speed of a model on this machine.

Prints the time of float32 and of the fast dtype, measured alternately after one call each (median and range); images
a second by batch size; times by output size; peak memory; and counted operations against the peak of matrix products.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import check_file
from .common import add_model, load_pipeline
from .terminal import print_line

if TYPE_CHECKING:
    import torch

    from ..pipelines import SuperResolutionPipeline


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("--side", type=int, default=128, help="side of the input for the first table (default 128)")
    parser.add_argument("--num-samples", type=int, default=5, help="samples of it (default 5)")
    parser.add_argument("--batch-sizes", type=int, nargs="*", default=[1, 2, 4, 8], help="at a quarter of the side")
    parser.add_argument("--sizes", type=int, nargs="*", default=[64, 128, 256, 512, 1024, 2048], help="output sides")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--compile",
        metavar="MODE",
        help="evaluate by graphs of torch.compile of this mode, such as default or reduce-overhead (CUDA graphs)",
    )
    parser.add_argument("--json", metavar="FILE", help="also writes all figures there")


def run(options: argparse.Namespace) -> int:
    for name in ("side", "num_samples", "repeats", "batch_sizes", "sizes"):
        value = getattr(options, name)
        if min(value if isinstance(value, list) else [value], default=1) < 1:
            raise ValueError(f"`--{name}` must be at least 1, got {value}")
    if options.json:  # before minutes are spent on what could not be kept
        check_file(Path(options.json), "--json")
    pipe = load_pipeline(options, fast=True)
    import torch

    from ..evaluation.samples import vdvae_of
    from ..files import write_atomically
    from ..pipelines.computing import fast_dtype

    device, own = pipe.device, vdvae_of(pipe).dtype
    pipe.set_progress_bar_config(disable=True)
    if options.compile is not None:
        pipe.enable_compilation(mode=options.compile)
    low = fast_dtype(device) if own == torch.float32 else None
    if options.dtype not in (None, "auto"):
        own, low = getattr(torch, options.dtype), None
    dtypes = {str(dtype).removeprefix("torch."): dtype for dtype in (own, low) if dtype is not None}
    fixed, scale = pipe.networks.sizes.fixed_side, pipe.operator.scale_factor
    report: dict[str, Any] = {"model": options.model, "device": str(device), "threads": torch.get_num_threads()}

    def call(side: int, samples: int, dtype: "torch.dtype", batch_size: int | None = None) -> None:
        image = torch.rand(3, side, side, generator=torch.Generator().manual_seed(0))
        pipe.enable_fast_inference(dtype)
        pipe(image, num_samples=samples, seed=0, batch_size=batch_size, output_type="pt")
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    side = fixed or options.side
    print_line(f"{options.model} on {device}, {torch.get_num_threads()} thread(s)")
    print_line(f"{options.num_samples} samples of {side}x{side}, {side * scale}x{side * scale} each, with projection:")
    calls = {name: partial(call, side, options.num_samples, dtype) for name, dtype in dtypes.items()}
    times = _alternate(calls, options.repeats)
    first = statistics.median(next(iter(times.values())))
    report["calls"] = [
        {"dtype": name, **_row(values), "ratio": first / _row(values)["seconds"]} for name, values in times.items()
    ]
    for line in ("| dtype | seconds: median (range) | times faster |", "|---|---|---|"):
        print_line(line)
    for row in report["calls"]:
        low_end, high_end = row["range"]
        print_line(f"| {row['dtype']} | {row['seconds']:.2f} ({low_end:.2f} to {high_end:.2f}) | {row['ratio']:.2f} |")

    name, fast = list(dtypes.items())[-1]
    small = fixed or max(2, options.side // 4)
    print_line(f"Images a second by batch size, {small * scale}x{small * scale}, {name}:")
    times = _alternate({size: partial(call, small, size, fast, size) for size in options.batch_sizes}, options.repeats)
    report["batches"] = []
    for size, values in times.items():
        row = {"batch": size, **_row(values), "images_per_second": size / statistics.median(values)}
        report["batches"].append(row)
        print_line(f"  {size:4d}  {row['images_per_second']:8.2f} images/s")

    if fixed is None:
        print_line(f"One sample by output size, {name}, and peak memory of the process so far:")
        report["sizes"] = []
        for side_of_y in sorted({max(2, size // scale) for size in options.sizes}):
            size = side_of_y * scale
            values = _alternate({size: partial(call, side_of_y, 1, fast)}, options.repeats)[size]
            row = {"size": size, **_row(values), "peak_mib": _peak_memory(device)}
            report["sizes"].append(row)
            print_line(f"  {size:5d}x{size:<5d} {row['seconds']:8.3f} s  {row['peak_mib']:7.0f} MiB")

    report |= _roofline(pipe, side, options.num_samples, fast, report["calls"][-1]["seconds"])
    print_line(
        f"{report['flops'] / 1e9:.0f} GFLOP counted for {options.num_samples} samples; the peak of matrix products "
        f"is {report['gemm_peak'] / 1e9:.0f} GFLOP/s in {name}: {report['share_of_peak']:.0%} of it reached; "
        f"{report['bytes'] / 2**20:.0f} MiB of weights"
    )
    if options.json:
        write_atomically(json.dumps(report, indent=1) + "\n", Path(options.json))
    return 0


def _alternate(calls: Mapping[Any, Callable[[], object]], repeats: int) -> dict[Any, list[float]]:
    """Seconds of every call, in turns, after one of each that is not counted."""
    times: dict[Any, list[float]] = {key: [] for key in calls}
    for turn in range(repeats + 1):
        for key, function in calls.items():
            start = time.perf_counter()
            function()
            if turn:
                times[key].append(time.perf_counter() - start)
    return times


def _row(values: list[float]) -> dict[str, Any]:
    return {"seconds": statistics.median(values), "range": [min(values), max(values)]}


def _peak_memory(device: "torch.device") -> float:
    """MiB, of the process on a CPU, else of the device."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device) / 2**20
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset / 2**20
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def _roofline(
    pipe: "SuperResolutionPipeline", side: int, samples: int, dtype: "torch.dtype", seconds: float
) -> dict[str, float]:
    """Operations of the networks (two for each product), counted on the meta device, and the peak measured here."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from ..noise import CounterNoise

    with torch.device("meta"):
        vdvae = type(pipe.vdvae).from_config(dict(pipe.vdvae.config), encoder_blocks=None)
        network = type(pipe.lr_encoder).from_config(dict(pipe.lr_encoder.config))
        vdvae.requires_grad_(False), network.requires_grad_(False)
        sizes = pipe.networks.sizes
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            condition = network.encode(torch.empty(1, 3, *sizes.padded((side, side))))
            noise = CounterNoise(range(samples))
            vdvae.sample(samples, sizes.output((side, side)), noise, condition, return_latents=False)
    a = torch.randn(2048, 2048, device=pipe.device).to(dtype)
    times = _alternate({0: lambda: (a @ a)[0, 0].item()}, 5)[0]
    flops, peak = counter.get_total_flops(), 2 * 2048**3 / min(times)
    weights = sum(p.numel() for model in (vdvae, network) for p in model.parameters()) * dtype.itemsize
    return {"flops": flops, "gemm_peak": peak, "share_of_peak": flops / seconds / peak, "bytes": weights}
