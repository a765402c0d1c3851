"""A run killed by SIGKILL again and again, also while it saves, ends with the weights of one that never stopped.

python benchmarks/training_kill.py [--kills 10] [--seed 0]
"""

import argparse
import json
import logging
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[1]))
from hvae_sr.training.log import read_log  # noqa: E402

PROCESSES = multiprocessing.get_context("forkserver")  # one import of torch for all runs
PROCESSES.set_forkserver_preload(["train", "hvae_sr.pipelines"])
VDVAE = {
    "image_size": 32, "width": 16, "encoder_blocks": "16x1,16d2,8x1", "decoder_blocks": "8x1,16m8,16x1",
    "latent_channels": 4, "num_mixtures": 2, "patch_size": 2,
}  # fmt: skip


def run(arguments: list[str]) -> None:
    os.environ["ACCELERATE_USE_CPU"] = "true"
    torch.set_num_threads(1)
    logging.disable(logging.INFO)
    sys.stderr = open(os.devnull, "w")
    import train

    raise SystemExit(train.main(arguments))


def start(arguments: list[str]) -> multiprocessing.Process:
    process = PROCESSES.Process(target=run, args=(arguments,))
    process.start()
    return process


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "photos").mkdir()
        for i in range(6):
            pixels = np.random.default_rng(i).integers(0, 256, (48, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "photos" / f"{i}.png")
        (root / "vdvae.json").write_text(json.dumps(VDVAE))

        def arguments(out: str) -> list[str]:
            return (
                f"--stage vdvae --vdvae_config {root}/vdvae.json --train_data_dir {root}/photos "
                f"--output_dir {root}/{out} --resolution 32 --train_batch_size 2 --max_train_steps {options.steps} "
                "--checkpointing_steps 2 --logging_steps 1 --lr_warmup_steps 5 --ema_decay 0.9 "
                "--resume_from_checkpoint latest"
            ).split()

        begun = time.perf_counter()
        whole = start(arguments("whole"))
        whole.join()
        print(f"uninterrupted: {options.steps} updates, {time.perf_counter() - begun:.1f} s, status {whole.exitcode}")
        out = root / "killed"
        kills = saving = 0
        while True:
            process = start(arguments("killed"))
            done = len(list_steps(out))
            # Half of the kills wait for a save to be under way, the others for a random number of updates.
            if kills < options.kills:
                while_saving = kills % 2 == 0
                target = done + chance.randint(1, max(2, options.steps // options.kills))
                while process.is_alive():
                    if while_saving and len(list_steps(out)) >= target - 1 and any(out.glob("checkpoint-*.partial")):
                        break
                    if not while_saving and len(list_steps(out)) >= target:
                        time.sleep(chance.random() * 0.05)
                        break
                    time.sleep(0.0005)
                if process.is_alive():
                    os.kill(process.pid, signal.SIGKILL)
                    process.join()
                    kills += 1
                    partial = [path.name for path in out.glob("*.partial")]
                    saving += bool(partial)
                    print(
                        f"kill {kills} after update {len(list_steps(out))}; unfinished: {', '.join(partial) or 'none'}"
                    )
                    continue
            process.join()
            break
        print(f"the killed run: status {process.exitcode}, {kills} kills, {saving} of them during a save")
        a, b = (load_file(root / each / "diffusion_pytorch_model.safetensors") for each in ("whole", "killed"))
        equal = a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
        print(f"exported weights: {len(a)} tensors, bitwise equal: {equal}")
        last = f"checkpoint-{options.steps}"
        a, b = (load_file(root / each / last / "model.safetensors") for each in ("whole", "killed"))
        same = all(torch.equal(a[key], b[key]) for key in a)
        print(f"weights before averaging: bitwise equal: {same}")
        logs = [list_steps(root / each) for each in ("whole", "killed")]
        print(f"log: {len(logs[1])} lines, the same losses: {logs[0] == logs[1]}")
        return 0 if equal and same and logs[0] == logs[1] and kills >= options.kills else 1


def list_steps(out: Path) -> list[tuple[int, float]]:
    """(step, loss) of the log so far."""
    return [(record["step"], record["bits_per_dim"]) for record in read_log(out / "log.jsonl")]


if __name__ == "__main__":
    sys.exit(main())
