"""Measure the speed of a model on this machine.

Prints the time of float32 and of the fast dtype, measured alternately after one call each (median and range); images
a second by batch size; times by output size; peak memory; and counted operations against the peak of matrix products.
"""

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..files import check_writable
from .common import add_model, load_pipeline, say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("--side", type=int, default=128, help="side of the input for the first table (default 128)")
    parser.add_argument("--num_samples", type=int, default=5, help="samples of it (default 5)")
    parser.add_argument("--batch_sizes", type=int, nargs="*", default=[1, 2, 4, 8], help="at a quarter of the side")
    parser.add_argument("--sizes", type=int, nargs="*", default=[64, 128, 256, 512, 1024, 2048], help="output sides")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--compile",
        metavar="MODE",
        help="evaluate by graphs of torch.compile of this mode, such as default or reduce-overhead (CUDA graphs)",
    )
    parser.add_argument("--json", metavar="FILE", help="also writes all figures there")


def run(options: argparse.Namespace) -> int:
    import torch

    from ..files import write_atomically
    from ..models.fast import fast_dtype

    for name in ("side", "num_samples", "repeats"):
        if getattr(options, name) < 1:
            raise ValueError(f"`--{name}` must be at least 1, got {getattr(options, name)}")
    if any(value < 1 for value in (*options.batch_sizes, *options.sizes)):
        raise ValueError("`--batch_sizes` and `--sizes` must be at least 1")
    if options.json:  # before minutes are spent on what could not be kept
        if Path(options.json).is_dir():
            raise ValueError(f"`--json` must be a file, got the folder {options.json}")
        check_writable(Path(options.json).parent, "--json")
    pipe = load_pipeline(options, fast=True)
    pipe.set_progress_bar_config(disable=True)
    if options.compile is not None:
        pipe.enable_compilation(mode=options.compile)
    device = pipe.device
    low = fast_dtype(device)
    ways: dict[str, Any] = {str(pipe.vdvae.dtype).removeprefix("torch."): pipe.vdvae.dtype}
    if low is not None and pipe.vdvae.dtype == torch.float32:
        ways[str(low).removeprefix("torch.")] = low
    fixed = pipe.lr_encoder.config.image_size if pipe.vdvae.config.bias_type == "spatial" else None
    scale = pipe.config.scale_factor
    report: dict[str, Any] = {"model": options.model, "device": str(device), "threads": torch.get_num_threads()}

    def call(side: int, samples: int, dtype: Any, batch_size: int | None = None) -> None:
        image = torch.rand(3, side, side, generator=torch.Generator().manual_seed(0))
        pipe.enable_fast_inference(dtype)
        pipe(image, num_samples=samples, seed=0, batch_size=batch_size, output_type="pt")
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    side = fixed or options.side
    say(f"{options.model} on {device}, {torch.get_num_threads()} thread(s)\n")
    say(f"{options.num_samples} samples of {side}x{side}, {side * scale}x{side * scale} each, projection included:")
    times = _alternate({way: _bound(call, side, options.num_samples, dtype) for way, dtype in ways.items()}, options)
    first = statistics.median(next(iter(times.values())))
    report["calls"] = [_row({"dtype": way}, values, first) for way, values in times.items()]
    _table("dtype", report["calls"], "dtype")

    fast = list(ways.values())[-1]
    small = fixed or max(2, options.side // 4)
    say(f"\nImages a second by batch size, {small * scale}x{small * scale}, {list(ways)[-1]}:")
    times = _alternate({size: _bound(call, small, size, fast, size) for size in options.batch_sizes}, options)
    report["batches"] = [
        {**_row({"batch": size}, values), "images_per_second": size / statistics.median(values)}
        for size, values in times.items()
    ]
    for row in report["batches"]:
        say(f"  {row['batch']:4d}  {row['images_per_second']:8.2f} images/s")

    if fixed is None:
        say(f"\nOne sample by output size, {list(ways)[-1]}, and peak memory of the process so far:")
        report["sizes"] = []
        for size in sorted(options.sizes):
            values = _alternate({size: _bound(call, max(2, size // scale), 1, fast)}, options)[size]
            row = _row({"size": size}, values) | {"peak_mib": _peak_memory(device)}
            report["sizes"].append(row)
            say(f"  {size:5d}x{size:<5d} {row['seconds']:8.3f} s  {row['peak_mib']:7.0f} MiB")

    report |= _roofline(pipe, side, options.num_samples, fast, report["calls"][-1]["seconds"])
    say(
        f"\n{report['flops'] / 1e9:.0f} GFLOP counted for {options.num_samples} samples; the peak of matrix products "
        f"is {report['gemm_peak'] / 1e9:.0f} GFLOP/s in {list(ways)[-1]}: {report['share_of_peak']:.0%} of it reached; "
        f"{report['bytes'] / 2**20:.0f} MiB of weights"
    )
    if options.json:
        write_atomically(json.dumps(report, indent=1) + "\n", Path(options.json))
    return 0


def _bound(function: Callable[..., None], *arguments: Any) -> Callable[[], None]:
    return lambda: function(*arguments)


def _alternate(ways: dict[Any, Callable[[], object]], options: argparse.Namespace) -> dict[Any, list[float]]:
    """Seconds of every way, in turns, after one call of each that is not counted."""
    times: dict[Any, list[float]] = {way: [] for way in ways}
    for turn in range(options.repeats + 1):
        for way, function in ways.items():
            start = time.perf_counter()
            function()
            if turn:
                times[way].append(time.perf_counter() - start)
    return times


def _row(what: dict[str, Any], values: list[float], reference: float | None = None) -> dict[str, Any]:
    median = statistics.median(values)
    row = {**what, "seconds": median, "range": [min(values), max(values)]}
    return row if reference is None else {**row, "ratio": reference / median}


def _table(heading: str, rows: list[dict[str, Any]], key: str) -> None:
    say(f"| {heading} | seconds: median (range) | times faster |\n|---|---|---|")
    for row in rows:
        low, high = row["range"]
        say(f"| {row[key]} | {row['seconds']:.2f} ({low:.2f} to {high:.2f}) | {row['ratio']:.2f} |")


def _peak_memory(device: Any) -> float:
    """MiB, of the process on a CPU, else of the device."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device) / 2**20
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def _roofline(pipe: Any, side: int, samples: int, dtype: Any, seconds: float) -> dict[str, float]:
    """Operations of the networks (two for each product), counted on the meta device, and the peak measured here."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from ..noise import CounterNoise

    with torch.device("meta"):
        vdvae = type(pipe.vdvae).from_config(dict(pipe.vdvae.config), encoder_blocks=None)
        network = type(pipe.lr_encoder).from_config(dict(pipe.lr_encoder.config))
        vdvae.requires_grad_(False), network.requires_grad_(False)
        coarsest, scale = vdvae.size_multiple, pipe.config.scale_factor
        multiple = math.lcm(network.size_multiple, coarsest // math.gcd(coarsest, scale))
        padded = -(-side // multiple) * multiple
        size = (padded * pipe.config.scale_factor,) * 2
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            condition = network.encode(torch.empty(1, 3, padded, padded))
            vdvae.sample(samples, size, CounterNoise(range(samples)), condition, return_latents=False)
    a = torch.randn(2048, 2048, device=pipe.device).to(dtype)
    times = _alternate({0: lambda: (a @ a)[0, 0].item()}, argparse.Namespace(repeats=5))[0]
    flops, peak = counter.get_total_flops(), 2 * 2048**3 / min(times)
    weights = sum(p.numel() for model in (vdvae, network) for p in model.parameters()) * dtype.itemsize
    return {"flops": flops, "gemm_peak": peak, "share_of_peak": flops / seconds / peak, "bytes": weights}
