"""Speed against sampling in the published style: same weights and noise, measured alternately in one run.

python benchmarks/speed.py [--configurations natural-x4 natural-x4-cvdvae cvdvae-ffhq256-x8 cvdvae-ffhq256-x4]
                           [--samples 1 5] [--repeats 3] [--device cpu] [--compile MODE] [--onnx]
                           [--json FILE]

Configurations without bundled weights get random ones. On a CPU the times are processor seconds of one thread, so
that other work on the machine does not count; on a GPU they are seconds. `--compile` also measures graphs of
`torch.compile`, of that mode ("default", "reduce-overhead": CUDA graphs), after the call that makes them; `--onnx` the
exported sampler in onnxruntime, whose graph ends with the projection and is compared with the projected reference.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import skimage
import torch
from published_style import published_style
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from hvae_sr import VDVAE, LRConditioner, LREncoder, SuperResolutionPipeline
from hvae_sr.noise import CounterNoise
from hvae_sr.operators import Downsampling
from hvae_sr.pipelines.computing import CompiledNetworks, fast_dtype
from hvae_sr.pipelines.onnx import export_onnx

ROOT = Path(__file__).resolve().parent.parent
TEMPERATURE = 0.8


def networks(name: str) -> tuple[VDVAE, Any]:
    """Prior and LR network of a bundled checkpoint, or of a configuration with random weights; no gradients."""
    folder = ROOT / "hub_configs" / name
    if any((folder / "vdvae").glob("*.safetensors")):
        pipe = SuperResolutionPipeline.from_pretrained(name, dtype=torch.float32, load_encoder=False)
        models: tuple[VDVAE, Any] = (pipe.vdvae, pipe.lr_encoder)
    else:
        torch.manual_seed(0)
        vdvae = VDVAE.from_config(VDVAE.load_config(folder / "vdvae"), encoder_blocks=None)
        models = (vdvae, LREncoder.from_config(LREncoder.load_config(folder / "lr_encoder")))
        for model in models:
            randomise(model)
    for model in models:
        model.eval().requires_grad_(False)
    return models


def randomise(model: nn.Module) -> None:
    """Weights that start at zero become small random ones, so that the branches they close do not stay silent."""
    for name, parameter in model.named_parameters():
        if not parameter.any() and name.endswith("weight"):
            nn.init.normal_(parameter, std=0.02)


def photograph(side: int) -> Tensor:
    """A crop of a public-domain photograph, `[1, 3, side, side]` on [-1, 1]."""
    crop = skimage.data.chelsea()[60 : 60 + side, 90 : 90 + side]
    return torch.from_numpy(crop.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1


def fast(
    vdvae: VDVAE,
    network: Any,
    y: Tensor,
    samples: int,
    dtype: torch.dtype | None,
    graphs: CompiledNetworks | None = None,
) -> Tensor:
    """What the pipeline does between reading y and the projection; with `graphs` as after `enable_compilation`."""
    scale = vdvae.config.image_size // network.config.image_size
    size = (y.shape[-2] * scale, y.shape[-1] * scale)
    for model in (vdvae, network):
        model.set_compute_dtype(dtype)
    encode, sample = (network.encode, vdvae.sample) if graphs is None else (graphs.encode, graphs.sample)
    at_once = 1 if y.device.type == "cpu" else samples  # as `WindowSampler` does
    with torch.no_grad():
        condition = encode(y)
        return torch.cat(
            [
                sample(
                    at_once,
                    size,
                    noise=CounterNoise(range(first, first + at_once)),
                    condition=condition,
                    temperature=TEMPERATURE,
                    return_latents=False,
                ).sample
                for first in range(0, samples, at_once)
            ]
        )


def onnx_sampler(vdvae: VDVAE, network: Any, y: Tensor, noise: list[Tensor]) -> Callable[[], Tensor]:
    """The exported sampler in onnxruntime, on one thread; its images on [-1, 1]."""
    import onnxruntime

    pipe = SuperResolutionPipeline(vdvae, network, scale_factor=vdvae.config.image_size // network.config.image_size)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sampler.onnx"
        export_onnx(pipe, path, tuple(y.shape[-2:]))
        session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    given = {"image": ((y + 1) / 2).numpy(), "temperature": np.array(TEMPERATURE, np.float32)}
    given |= {f"noise_{group}": draws.numpy() for group, draws in enumerate(noise)}
    return lambda: torch.from_numpy(session.run(None, given)[0]) * 2 - 1


def seconds(function: Callable[[], Any], device: torch.device) -> float:
    """Of one call: processor time on a CPU, wall time of finished work elsewhere."""
    if device.type == "cpu":
        start = time.process_time()
        function()
        return time.process_time() - start
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    function()
    torch.cuda.synchronize(device)
    return time.perf_counter() - start


def convolution_share(function: Callable[[], Any]) -> float:
    """Time in convolutions, what is fused into them included, as a share of all time on the CPU."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        function()
    events = profiler.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    return sum(event.self_cpu_time_total for event in events if "conv" in event.key) / total


def gemm_peak(device: torch.device, dtype: torch.dtype, side: int = 2048) -> float:
    """FLOP/s of the best of several square matrix products."""
    a, b = torch.randn(2, side, side, device=device, dtype=dtype).unbind()
    return 2 * side**3 / min(seconds(lambda: a @ b, device) for _ in range(5))


def flops(name: str, samples: int) -> int:
    """Counted floating-point operations (two for each product) of `samples` samples of one y, on the meta device."""
    from torch.utils.flop_counter import FlopCounterMode

    folder = ROOT / "hub_configs" / name
    kind = LRConditioner if "gate_init" in LREncoder.load_config(folder / "lr_encoder") else LREncoder
    with torch.device("meta"):
        vdvae = VDVAE.from_config(VDVAE.load_config(folder / "vdvae"), encoder_blocks=None)
        network = kind.from_config(kind.load_config(folder / "lr_encoder"))
        vdvae.requires_grad_(False), network.requires_grad_(False)
        side = 128 if vdvae.config.bias_type == "channel" else network.config.image_size
        with FlopCounterMode(display=False) as counter:
            fast(vdvae, network, torch.empty(1, 3, side, side), samples, None)
    return counter.get_total_flops()


def measure(
    name: str,
    samples: int,
    repeats: int,
    device: torch.device,
    lines: Callable[[str], None],
    mode: str | None = None,
    onnx: bool = False,
) -> dict[str, Any]:
    """One row of the table: medians and ranges, ratios to the published style, differences of the images."""
    vdvae, network = networks(name)
    vdvae.to(device), network.to(device)
    y = photograph(128 if vdvae.config.bias_type == "channel" else network.config.image_size).to(device)
    scale = vdvae.config.image_size // network.config.image_size
    size = (y.shape[-2] * scale, y.shape[-1] * scale)
    source = CounterNoise(range(samples))
    noise = [
        source(group, vdvae.stride(group), vdvae.latent_shape(group, samples, size), device).contiguous()
        for group in range(vdvae.num_groups)
    ]
    ways: dict[str, Callable[[], Tensor]] = {
        "published style": lambda: published_style(vdvae, network, y, noise, TEMPERATURE),
        "float32": lambda: fast(vdvae, network, y, samples, None),
    }
    low = fast_dtype(device)
    if low is not None:
        ways[str(low).removeprefix("torch.")] = lambda: fast(vdvae, network, y, samples, low)
    if mode is not None:
        graphs = CompiledNetworks(vdvae, network, {"mode": mode})
        for way, dtype in {"float32": None, **({} if low is None else {str(low).removeprefix("torch."): low})}.items():
            ways[f"{way}, compiled"] = lambda dtype=dtype: fast(vdvae, network, y, samples, dtype, graphs)  # type: ignore[misc]
            ways[f"{way}, compiled"]()
    if onnx:
        ways["onnxruntime"] = onnx_sampler(vdvae, network, y, noise)
    times: dict[str, list[float]] = {way: [] for way in ways}
    images: dict[str, Tensor] = {}

    def run(way: str) -> None:
        images[way] = ways[way]()

    for _ in range(repeats):
        for way in ways:
            times[way].append(seconds(lambda way=way: run(way), device))  # type: ignore[misc]
    reference = images["published style"]
    row: dict[str, Any] = {"configuration": name, "samples": samples, "size": list(size), "ways": {}}
    low_image = (y + 1) / 2
    projected = Downsampling(scale, "bicubic").project((reference + 1) / 2, low_image).clamp(0, 1) * 2 - 1
    for way in ways:
        expected = projected if way == "onnxruntime" else reference
        error = (images[way] - expected).abs().max().item()
        noise_power = (images[way].clamp(-1, 1) - expected.clamp(-1, 1)).div(2).square().mean().item()
        row["ways"][way] = {
            "seconds": statistics.median(times[way]),
            "range": [min(times[way]), max(times[way])],
            "ratio": statistics.median(times["published style"]) / statistics.median(times[way]),
            "largest_difference": error / expected.abs().max().item(),
            "psnr": -10 * torch.log10(torch.tensor(max(noise_power, 1e-20))).item(),
        }
        if way == "float32" and not row["ways"][way]["largest_difference"] <= 1e-4:
            raise RuntimeError(f"{name}: the fast path differs by {row['ways'][way]['largest_difference']:.1e}")
        lines(
            f"| {name} | {samples} | {way} | {row['ways'][way]['seconds']:.2f} "
            f"({min(times[way]):.2f} to {max(times[way]):.2f}) | {row['ways'][way]['ratio']:.1f} | "
            f"{row['ways'][way]['psnr']:.0f} |"
        )
    if device.type == "cpu":
        last = str(low or torch.float32).removeprefix("torch.")
        row["convolution_share"] = convolution_share(ways[last])
        row["flops"] = flops(name, samples)
        row["gemm_peak"] = gemm_peak(device, low or torch.float32)
        row["share_of_peak"] = row["flops"] / row["ways"][last]["seconds"] / row["gemm_peak"]
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--configurations",
        nargs="+",
        default=["natural-x4", "natural-x4-cvdvae", "cvdvae-ffhq256-x8", "cvdvae-ffhq256-x4"],
    )
    parser.add_argument("--samples", nargs="+", type=int, default=[1, 5])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", metavar="MODE", help="of torch.compile")
    parser.add_argument("--onnx", action="store_true", help="also in onnxruntime")
    parser.add_argument("--json")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cpu":
        torch.set_num_threads(1)

    def lines(text: str) -> None:
        print(text, flush=True)

    lines("| configuration | samples | way | seconds: median (range) | times faster | PSNR, dB |")
    lines("|---|---|---|---|---|---|")
    rows = [
        measure(name, samples, options.repeats, device, lines, options.compile, options.onnx)
        for name in options.configurations
        for samples in options.samples
    ]
    for row in rows:
        if "flops" in row:
            lines(
                f"{row['configuration']}, {row['samples']} samples: {row['flops'] / 1e9:.0f} GFLOP counted, "
                f"{row['share_of_peak']:.0%} of the GEMM peak of {row['gemm_peak'] / 1e9:.0f} GFLOP/s, "
                f"{row['convolution_share']:.0%} of the time in convolutions"
            )
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    sys.exit(main())
