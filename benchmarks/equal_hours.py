"""A sampler of ours and regressions of EDSR's and RRDB's size, trained on the same photographs for the same hours.

python benchmarks/equal_hours.py --photographs DIR [DIR ...] --output_dir OUT [--hours 1] [--only NAME ...]

Each is trained from random weights for `--hours` hours of one processor, and goes on from its checkpoints when the
command is called again, with more hours too. OUT/<name> is then a pipeline's folder, which `peers.py --table` measures
with `--models`. Regressions have the published losses, rates and moments of their authors (hub_configs/compared), the
sampler those of natural-x4 with the energy score and a point estimate; crops, precision, factor and averages are
common. All see 16 crops an update: EDSR's published number, and RRDB's.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from hours import train

CONFIGS = Path(__file__).resolve().parents[1] / "hub_configs"
COMMON: dict[str, Any] = {
    "scale_factor": 4, "downsampling_kernel": "bicubic", "resolution": 96, "scales": [1.0, 0.75, 0.5],
    "crops_per_image": 4, "train_batch_size": 16, "lr_scheduler": "constant_with_warmup", "lr_warmup_steps": 50,
    "ema_decay": 0.998, "adam_weight_decay": 0.0, "max_grad_norm": 1.0, "mixed_precision": "bf16",
    "logging_steps": 25, "checkpointing_steps": 100, "max_train_steps": 10**7,
}  # fmt: skip


def systems() -> dict[str, dict[str, Any]]:
    """Options of `train.py` by name."""
    ours = {
        "vdvae_config": json.loads((CONFIGS / "natural-x4" / "vdvae" / "config.json").read_text()),
        "lr_config": json.loads((CONFIGS / "natural-x4" / "lr_encoder" / "config.json").read_text()),
    }
    score = {"stage": "energy-score", "score_point_weight": 1.0, "learning_rate": 1e-3}
    return {
        "edsr-baseline": {**COMMON, "stage": "regression", "baseline": "edsr-baseline-x4", "learning_rate": 1e-4,
                          "adam_beta2": 0.999},
        "rrdb": {**COMMON, "stage": "regression", "baseline": "esrgan-x4", "learning_rate": 2e-4, "adam_beta2": 0.99},
        "sampler": {**COMMON, **score, **ours},
    }  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    names = list(systems())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", nargs="+", type=Path, required=True, help="folders of photographs")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--hours", type=float, default=1.0, help="processor hours of each, in all")
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="train these")
    given = parser.parse_args(arguments)
    if not given.hours > 0:
        raise ValueError(f"`--hours` must be above 0, got {given.hours}")
    print("| system | processor hours | updates | crops |\n|---|---|---|---|")
    for name in given.only:
        run = train(given.output_dir / name, systems()[name], given.photographs, given.hours)
        print(f"| {name} | {run['hours']:.2f} | {run['updates']:.0f} | {run['images']:.0f} |", flush=True)


if __name__ == "__main__":
    main()
