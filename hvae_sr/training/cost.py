"""What training costs: arithmetic, memory, the arithmetic that the machine can do; and `--dry_run`, which tells."""

import functools
import json
import time
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from typing import NamedTuple

import torch
from accelerate import PartialState
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from ..data import ImageStream
from .batches import build_training_set, build_validation_set, crops_per_update
from .config import TrainingConfig
from .networks import build_objective, check_objective, checkpoint_gradients
from .objectives import Objective, PairedObjective
from .surroundings import check_surroundings

DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""What `mixed_precision` computes convolutions in."""
_SINGLE_PRECISION = 4  # bytes: parameters, gradients and the optimiser are fp32 also under autocast


class Cost(NamedTuple):
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
        ValueError: see `check_objective`.
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
            check_objective(objective, config, device, num_processes)
    return Cost(counter.get_total_flops(), sum(size for size, _ in kept.values()))


@functools.cache
def measure_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of a square matrix product in `dtype`, the best of a few."""
    side = 8192 if device.type == "cuda" else 512
    a, b = torch.ones(2, side, side, device=device, dtype=dtype)

    seconds = []
    for _ in range(6):  # the first warms up
        start = time.perf_counter()
        torch.mm(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 / min(seconds[1:])


def memory_estimate(objective: Objective, config: TrainingConfig, cost: Cost, num_processes: int = 1) -> dict[str, int]:
    """Bytes of each process, by purpose; activations are those of a whole batch.

    With gradient checkpointing the activations of the block being recomputed are not counted.
    """
    trained = _count(objective, trained=True)
    found = {
        "parameters": _count(objective),
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
    device, dtype = torch.device("cpu"), DTYPES[config.mixed_precision]
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        objective = build_objective(config, load_weights=False)
    if isinstance(objective, PairedObjective):
        image = torch.zeros(1, 3, config.resolution, config.resolution)
        conditioner = getattr(objective, "lr_network", None)
        for operator in (objective.operator, getattr(conditioner, "operator", None)):
            if operator is not None:  # H's matrices are cut by their values: no fake ones
                operator.project(image, operator(image))
    with mode:
        if config.gradient_checkpointing:
            checkpoint_gradients(objective)
        autocast = torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32)
        return objective, measure_cost(objective, config, device, num_processes, autocast)


def describe(config: TrainingConfig) -> str:
    """Networks, parameters, cost, memory, images and options of a run; reads the images, computes and writes nothing.

    Raises:
        ValueError: what would also end the run itself before its first update.
    """
    check_surroundings(config)
    sizes_only = replace(config, cache_gib=0.0)  # no image is decoded
    state = PartialState()
    objective, cost = plan(config, state.num_processes)
    lines = [f"stage: {config.stage}"]
    for name, network in objective.components().items():
        total, trained = _count(network), _count(network, trained=True)
        lines.append(f"{name}: {type(network).__name__}, {total:,} parameters, {trained:,} of them trained")
    lines.append(f"computation: {cost.flops / 1e9:.2f} GFLOPs per image, forward and backward")
    memory = memory_estimate(objective, config, cost, state.num_processes)
    parts = ", ".join(f"{name} {size / 2**20:,.0f} MiB" for name, size in memory.items() if size)
    lines.append(f"memory (estimate, each process): {sum(memory.values()) / 2**20:,.0f} MiB: {parts}")
    dataset = build_training_set(sizes_only, 0, 1)
    if isinstance(dataset, ImageStream):
        update = crops_per_update(config, state.num_processes, None)
        lines.append("images: streamed, not counted")
    else:
        crops = len(dataset)
        update = crops_per_update(config, state.num_processes, crops)
        lines.append(f"images: {dataset.num_images}, {crops} crops in an epoch, {crops // update} updates")
        lines.append(f"images skipped: {len(dataset.skipped)}")
    validation = build_validation_set(sizes_only)
    if validation is not None:
        lines.append(f"held-out images: {validation.num_images}")
    epochs = config.num_train_epochs
    length = f"{config.max_train_steps} updates" if epochs is None else f"{epochs} epochs"
    lines.append(f"run: {length} of {update} crops, {state.num_processes} process(es) on {state.device.type}")
    lines.append(f"options: {json.dumps(asdict(config), indent=2)}")
    return "\n".join(lines)


def _count(network: torch.nn.Module, trained: bool = False) -> int:
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad or not trained)
