"""What a sample costs with each compared system: parameters, network evaluations and GFLOP, counted from the classes.

python benchmarks/costs.py [--size 256] [--json FILE] [--models NAME ...]

GFLOP are 1e9 floating-point operations of convolutions and matrix products, as torch.utils.flop_counter counts them (a
multiply-add is two), for one image of SIZE x SIZE pixels. The compared systems are counted on the meta device: no
weights are needed, and no arithmetic is done. `--models` adds pipelines of this package, which are loaded and run once.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from hvae_sr.baselines import HCFlow
from hvae_sr.checkpoints.compared import PRESETS, Recipe


@dataclass
class Cost:
    """One row.

    Args:
        system: name of the preset or pipeline.
        scale_factor: of LR to HR, None for a prior that is guided for any.
        parameters: of all networks.
        nfe: network evaluations for a sample.
        gflop: of one evaluation.
        note: what is counted.
    """

    system: str
    scale_factor: int | None
    parameters: int
    nfe: int
    gflop: float
    note: str = ""

    @property
    def gflop_per_sample(self) -> float:
        """`nfe` evaluations."""
        return self.nfe * self.gflop


def count(call: Callable[[], Any]) -> float:
    """GFLOP of a call."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() / 1e9


def parameters(model: torch.nn.Module) -> int:
    """Numbers in all parameters, fixed ones included."""
    return sum(parameter.numel() for parameter in model.parameters())


def _image(side: int, scale_factor: int = 1) -> Tensor:
    return torch.zeros(1, 3, side // scale_factor, side // scale_factor, device="meta")


@torch.no_grad()
def _regression(preset: str, model: Any, size: int) -> Iterator[Cost]:
    s = model.config.scale_factor
    if size % s == 0:
        yield Cost(preset, s, parameters(model), 1, count(lambda: model(_image(size, s))))


@torch.no_grad()
def _hcflow(preset: str, model: HCFlow, size: int) -> Iterator[Cost]:
    s = model.scale_factor
    noise = [torch.zeros(model.latent_shape(i, 1, (size, size)), device="meta") for i in range(model.num_groups)]
    cost = count(lambda: model.sample(_image(size, s), noise))
    yield Cost(preset, s, parameters(model), 1, cost, "sampling")
    cost = count(lambda: model.encode(_image(size), _image(size, s), _image(size)))
    yield Cost(preset, s, parameters(model), 1, cost, "density, without its gradient")


@torch.no_grad()
def _sr3(preset: str, model: Any, size: int) -> Iterator[Cost]:
    steps = PRESETS[preset]["scheduler"]["num_train_timesteps"]
    own = model.config.image_size
    for side in dict.fromkeys((own, size)):
        cost = count(lambda side=side: model(_image(side), _image(side), torch.zeros(1, device="meta")))
        note = f"{side} x {side}" + (", the size it is built for" if side == own else "")
        yield Cost(preset, None, parameters(model), steps, cost, note)


def _guided_diffusion(preset: str, model: Any, size: int) -> Iterator[Cost]:
    steps = PRESETS[preset]["scheduler"]["num_train_timesteps"]
    time = torch.zeros(1, dtype=torch.long, device="meta")
    with torch.no_grad():
        cost = count(lambda: model(_image(size), time))
    yield Cost(preset, None, parameters(model), steps, cost, "the prior alone")
    model.requires_grad_(False)
    x = _image(size).requires_grad_()
    # The counter cannot follow a leaf that is a module's input.
    cost = count(lambda: torch.autograd.grad(model(x * 1, time).sample.sum(), x))
    yield Cost(preset, None, parameters(model), steps, cost, "guided: with the gradient by x")


_COUNTERS: dict[str, Callable[[str, Any, int], Iterator[Cost]]] = {
    "EDSR": _regression,
    "RRDBNet": _regression,
    "SRVGGNetCompact": _regression,
    "SPAN": _regression,
    "HCFlow": _hcflow,
    "SR3UNet": _sr3,
    "GuidedDiffusionUNet": _guided_diffusion,
}


def costs_of_preset(preset: str, size: int = 256) -> list[Cost]:
    """The rows of a preset of `hvae_sr.checkpoints.compared` for images of `size` x `size`."""
    recipe = Recipe.of_preset(preset)
    model = recipe.build("meta").eval()
    return list(_COUNTERS[recipe.architecture](preset, model, size))


def costs_of_pipeline(name: str, size: int = 256) -> Cost:
    """The row of a pipeline of this package, which is loaded and draws one sample."""
    from hvae_sr import SuperResolutionPipeline

    pipe = SuperResolutionPipeline.from_pretrained(name, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    s = pipe.config.scale_factor
    y = torch.rand(3, size // s, size // s, generator=torch.Generator().manual_seed(0))
    networks = [module for module in pipe.components.values() if isinstance(module, torch.nn.Module)]
    for network in networks:
        network.requires_grad_(False)  # the counter trips over modules that return a parameter
    cost = count(lambda: pipe(y, num_samples=1, seed=0, output_type="pt"))
    return Cost(name, s, sum(map(parameters, networks)), 1, cost, "with the projection")


def table(costs: list[Cost]) -> str:
    """A Markdown table."""
    lines = [
        "| system | factor | parameters | evaluations | GFLOP each | GFLOP a sample | |",
        "|---|---|---|---|---|---|---|",
    ]
    for c in costs:
        factor = f"x{c.scale_factor}" if c.scale_factor else ""
        numbers = f"{c.parameters:,} | {c.nfe:,} | {c.gflop:,.2f} | {c.gflop_per_sample:,.1f}"
        lines.append(f"| {c.system} | {factor} | {numbers} | {c.note} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> list[Cost]:
    """Prints and returns the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256, help="side of the HR image; a multiple of 32")
    parser.add_argument("--json", help="file to write the rows to")
    parser.add_argument("--models", nargs="*", default=[], help="pipelines of this package, by name or folder")
    options = parser.parse_args(arguments)
    if options.size < 32 or options.size % 32:
        raise ValueError(f"`--size` must be a multiple of 32, got {options.size}")
    costs = [cost for preset in PRESETS for cost in costs_of_preset(preset, options.size)]
    costs += [costs_of_pipeline(name, options.size) for name in options.models]
    print(table(costs))
    if options.json:
        rows = [asdict(cost) | {"gflop_per_sample": cost.gflop_per_sample} for cost in costs]
        with open(options.json, "w") as file:
            json.dump(rows, file, indent=1)
    return costs


if __name__ == "__main__":
    main()
