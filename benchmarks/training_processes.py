"""Two processes train like one: the loss curves of 1 and 2 processes (gloo, CPU, float32) with the same global batch.

python benchmarks/training_processes.py [--stages vdvae lr-encoder ...] [--updates 50] [--photos FOLDER] [--fsdp]

Tiny networks, the recipes' optimiser with warm-up, cosine and clipping, epochs that end amid a run. Reported for every
stage is the largest relative difference of a logged loss; the status is 1 where it is above 1e-5. With --fsdp the two
processes share the parameters out (FSDP) instead of each holding all of them.
"""

import argparse
import json
import logging
import os
import shutil
import sys
import tempfile
from pathlib import Path

os.environ["TQDM_DISABLE"] = "1"  # read at its import
import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "training")]
from runs import FIGURES, LR_CONFIGS, STAGES, VDVAE_CONFIG, log, on_processes  # noqa: E402

from hvae_sr import VDVAE  # noqa: E402

LIMIT = 1e-5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--updates", type=int, default=50)
    parser.add_argument("--photos", help="else six made-up pictures")
    parser.add_argument("--fsdp", action="store_true")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    worst = 0.0
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        photos = Path(options.photos) if options.photos else make_photos(root / "photos")
        for kind, config in {"vdvae": VDVAE_CONFIG, **LR_CONFIGS}.items():
            (root / f"{kind}.json").write_text(json.dumps(config))
        save_prior(root / "prior")
        for stage in options.stages:
            curves = []
            for processes in (1, 2):
                out = root / f"{stage}-{processes}"
                sharded = options.fsdp and processes > 1
                on_processes(arguments(stage, photos, root, out, 8 // processes, options.updates), processes, sharded)
                curves.append([record[FIGURES[stage]] for record in log(out)])
                shutil.rmtree(out)
            one, two = map(np.asarray, curves)
            assert len(one) == len(two) == options.updates
            difference = np.abs(two / one - 1)
            worst = max(worst, difference.max())
            print(
                f"{stage}: {FIGURES[stage]} {one[0]:.5f} -> {one[-1]:.5f} (one process), {two[-1]:.5f} (two); "
                f"largest relative difference {difference.max():.1e}, at update {difference.argmax() + 1}"
            )
    return int(worst > LIMIT)


def arguments(stage: str, photos: Path, root: Path, out: Path, batch: int, updates: int) -> list[str]:
    prior = f"--vdvae_config {root}/vdvae.json" if stage in ("vdvae", "joint") else f"--pretrained_vdvae {root}/prior"
    lr = "" if stage == "vdvae" else f"--lr_config {root}/{stage}.json"
    return (
        f"--stage {stage} {prior} {lr} --train_data_dir {photos} --output_dir {out} --resolution 32 --logging_steps 1 "
        f"--train_batch_size {batch} --crops_per_image 15 --max_train_steps {updates} --lr_warmup_steps 10 "
        f"--checkpointing_steps {updates} --validation_steps {updates}"
    ).split()


def save_prior(folder: Path) -> None:
    """A prior whose posteriors differ from it, as those of a trained one do: else the KL is a matter of rounding."""
    torch.manual_seed(0)
    prior = VDVAE(**VDVAE_CONFIG)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    prior.save_pretrained(folder)


def make_photos(folder: Path) -> Path:
    """Six smooth pictures with some texture."""
    folder.mkdir()
    for i in range(6):
        rows, columns = np.mgrid[: 60 + 4 * i, : 70 - 3 * i]
        waves = np.stack([np.sin((rows * (c + 1) + columns * (i + 1)) / 15 + i) for c in range(3)], -1)
        noise = np.random.default_rng(i).normal(0, 10, waves.shape)
        Image.fromarray((127.5 + 100 * waves + noise).clip(0, 255).astype(np.uint8)).save(folder / f"{i}.png")
    return folder


if __name__ == "__main__":
    sys.exit(main())
