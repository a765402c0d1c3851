"""`train.py --dry_run`: what a run would be."""

import json
from dataclasses import asdict, replace

from accelerate import PartialState

from ..data import ImageStream
from .build import build_training_set, build_validation_set, check_tracker, crops_per_update
from .checkpoints import find_checkpoints
from .config import OPTIONS_FILE, TrainingConfig
from .cost import memory_estimate, plan


def describe(config: TrainingConfig) -> str:
    """Networks, parameters, cost, memory, images and options of a run; reads the images, computes and writes nothing.

    Raises:
        ValueError: what would also end the run itself before its first update.
    """
    check_tracker(config.report_to)
    checkpoints = find_checkpoints(config.resume_from_checkpoint, config.output_path)
    if checkpoints:
        config.check_resumed(checkpoints[0].parent / OPTIONS_FILE)
    sizes_only = replace(config, cache_gib=0.0)  # no image is decoded
    state = PartialState()
    objective, cost = plan(config, state.num_processes)
    lines = [f"stage: {config.stage}"]
    for name, network in objective.components().items():
        total = sum(parameter.numel() for parameter in network.parameters())
        trained = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
        lines.append(f"{name}: {type(network).__name__}, {total:,} parameters, {trained:,} of them trained")
    lines.append(f"computation: {cost.flops / 1e9:.2f} GFLOPs per image, forward and backward")
    memory = memory_estimate(objective, config, cost, state.num_processes)
    parts = ", ".join(f"{name} {_mib(size)}" for name, size in memory.items() if size)
    lines.append(f"memory (estimate, each process): {_mib(sum(memory.values()))}: {parts}")
    dataset = build_training_set(sizes_only, 0, 1)
    update = crops_per_update(config, state.num_processes, None if isinstance(dataset, ImageStream) else len(dataset))
    if isinstance(dataset, ImageStream):
        lines.append("images: streamed, not counted")
    else:
        crops = len(dataset)
        lines.append(f"images: {dataset.num_images}, {crops} crops in an epoch, {crops // update} updates")
        lines.append(f"images skipped: {len(dataset.skipped)}")
    validation = build_validation_set(sizes_only)
    if validation is not None:
        lines.append(f"held-out images: {validation.num_images}")
    length = (
        f"{config.max_train_steps} updates" if config.num_train_epochs is None else f"{config.num_train_epochs} epochs"
    )
    lines.append(f"run: {length} of {update} crops, {state.num_processes} process(es) on {state.device.type}")
    lines.append(f"options: {json.dumps(asdict(config), indent=2)}")
    return "\n".join(lines)


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
