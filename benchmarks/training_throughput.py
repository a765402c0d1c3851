"""Throughput of the training loop as a share of the bare forward and backward pass, and memory.

python benchmarks/training_throughput.py PHOTOS [--config RECIPE] [--updates 12]

Each update of the loop (loading, forward, backward, clipping, AdamW, averaging) is followed by the bare forward and
backward of the same batch, so that whatever else runs on the machine slows both alike.
"""

import argparse
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos")
    parser.add_argument("--config", default=str(ROOT / "hub_configs/natural-x4-cvdvae/train_prior.yaml"))
    parser.add_argument("--updates", type=int, default=12)
    parser.add_argument("--train_batch_size", type=int, default=16)
    options = parser.parse_args()
    from hvae_sr.training import Trainer, parse_arguments
    from hvae_sr.training.cost import measure_peak, memory_estimate
    from hvae_sr.training.loop import arithmetic

    with tempfile.TemporaryDirectory() as out:
        config = parse_arguments(
            ["--config", options.config, "--train_data_dir", options.photos, "--output_dir", out, "--crops_per_image",
             "8", "--train_batch_size", str(options.train_batch_size)]
        )  # fmt: skip
        trainer = Trainer(config)
        trainer.objective.train()
        cuda = trainer.accelerator.device.type == "cuda"
        trainer.optimizer.zero_grad()
        loop: list[float] = []
        bare: list[float] = []
        clock = time.perf_counter if cuda else time.process_time  # CPU time: other programs do not count

        def now() -> float:
            if cuda:
                torch.cuda.synchronize()
            return clock()

        batches = trainer.batches.epoch(0)
        with arithmetic(config):
            for _ in range(options.updates):
                begun = now()
                batch, seeds = next(batches)
                trainer.step(batch, seeds)
                trainer.progress.step += 1
                loop.append(now() - begun)
                begun = now()
                with trainer.accelerator.autocast():
                    loss, _ = trainer.objective(batch["image"], seeds)
                loss.backward()
                bare.append(now() - begun)
                trainer.optimizer.zero_grad()
        images = len(batch["image"])
        dtype = torch.bfloat16 if config.mixed_precision == "bf16" else torch.float32
        peak = measure_peak(trainer.accelerator.device, dtype)
        both = [statistics.median(times[2:]) for times in (loop, bare)]
        print(f"{options.config}: batch {images}, {config.mixed_precision}, {torch.get_num_threads()} thread(s)")
        print(f"loop: {images / both[0]:.1f} images/s; bare forward and backward: {images / both[1]:.1f} images/s")
        print(f"share of the bare throughput: {100 * both[1] / both[0]:.1f} %")
        print(f"MFU: {100 * images / both[0] * trainer.cost.flops / peak:.1f} % of {peak / 1e9:.0f} GFLOP/s")
        estimate = memory_estimate(trainer.objective, config, trainer.cost)
        print("memory estimate: " + ", ".join(f"{name} {size / 2**20:.0f} MiB" for name, size in estimate.items()))
        used = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(f"peak memory of the process: {used / 2**20:.0f} MiB (estimate {sum(estimate.values()) / 2**20:.0f} MiB)")


if __name__ == "__main__":
    main()
