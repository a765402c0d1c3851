"""What training costs: arithmetic, memory, and the arithmetic that the machine can do."""

import functools
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from ..operators import Downsampling
from .build import build_objective, check_gradients, check_objective
from .config import TrainingConfig
from .objectives import Objective

_SINGLE_PRECISION = 4  # bytes: parameters, gradients and the optimiser are fp32 also under autocast


@dataclass
class Cost:
    """Of one image, forward and backward.

    Args:
        flops: floating-point operations of matrix products and convolutions, as executed (with gradient
            checkpointing the second forward pass is among them).
        activation_bytes: what autograd keeps between forward and backward.
    """

    flops: int
    activation_bytes: int


def measure_cost(
    objective: Objective, config: TrainingConfig, device: torch.device, num_processes: int,
    autocast: AbstractContextManager[None],
) -> Cost:  # fmt: skip
    """Runs one image forward and backward; checks that the networks fit and that every parameter gets a gradient.

    Raises:
        ValueError: see `check_objective` and `check_gradients`.
    """
    parameters = {parameter.untyped_storage()._cdata for parameter in objective.parameters()}
    kept: dict[int, tuple[int, Tensor]] = {}  # the tensors too, or an address could be used twice

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:
            kept[storage._cdata] = (storage.nbytes(), tensor)
        return tensor

    with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        with autocast:
            check_gradients(objective, config, device, num_processes)
    return Cost(counter.get_total_flops(), sum(size for size, _ in kept.values()))


@functools.cache
def measure_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of a square matrix product in `dtype`, the best of a few."""
    side = 8192 if device.type == "cuda" else 512
    a, b = torch.ones(2, side, side, device=device, dtype=dtype)

    def run() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        torch.mm(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    run()
    return 2 * side**3 / min(run() for _ in range(5))


def memory_estimate(objective: Objective, config: TrainingConfig, cost: Cost, num_processes: int = 1) -> dict[str, int]:
    """Bytes of each process, by purpose; activations are those of a whole batch.

    With gradient checkpointing the activations of the block being recomputed are not counted.
    """
    everything = sum(parameter.numel() for parameter in objective.parameters())
    trained = sum(parameter.numel() for parameter in objective.parameters() if parameter.requires_grad)
    found = {
        "parameters": everything,
        "gradients": trained * (2 if num_processes > 1 else 1),  # several processes: and the buckets they meet in
        "Adam's moments": 2 * trained,
        "averaged weights": trained if config.use_ema else 0,
    }
    found = {name: _SINGLE_PRECISION * count for name, count in found.items()}
    return {**found, "activations": cost.activation_bytes * config.train_batch_size}


def plan(config: TrainingConfig, num_processes: int = 1) -> tuple[Objective, Cost]:
    """The objective and its cost, without computing anything or reading weights: any size fits on any machine.

    Raises:
        ValueError: networks that do not fit each other or the options.
    """
    device = torch.device("cpu")
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.mixed_precision)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        objective = build_objective(config, load_weights=False)
    image = torch.zeros(1, 3, config.resolution, config.resolution)
    for holder in (objective, objective.lr_network):  # the matrices of H are cut by their values: these must be real
        operator = getattr(holder, "operator", None)
        if isinstance(operator, Downsampling):
            operator.project(image, operator(image))
    with mode:
        check_objective(objective, config, device)
        if config.gradient_checkpointing:
            for network in objective.components().values():
                network.enable_gradient_checkpointing()
        autocast = torch.autocast("cpu", dtype=dtype, enabled=dtype is not None)
        return objective, measure_cost(objective, config, device, num_processes, autocast)
