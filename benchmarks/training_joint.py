"""Joint training of prior and LR encoder against the two stages, with the same arithmetic spent on both.

python benchmarks/training_joint.py TRAIN_PHOTOS HELD_OUT_PHOTOS [--updates 400]

A tiny CVDVAE (x4, 32 x 32 crops, all groups conditioned) is trained in two ways: half of the updates for the prior
and as many for the LR encoder on the frozen prior; or joint updates until the same number of FLOPs is spent. Compared
on held-out images: the bound of -log p(x|y) in bits per dimension, which is the distortion plus
KL(q(z|x) || q_psi(z|y)) where all groups are conditioned, and the PSNR of single samples.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
DECODER = {"decoder_blocks": "4x2,8m4,8x2,16m8,16x2", "latent_channels": 8}
VDVAE = {
    "image_size": 32, "width": 32, "encoder_blocks": "16x1,16d2,8x2,8d2,4x1", "bottleneck_multiple": 0.5,
    "num_mixtures": 2, "patch_size": 2, "initial_log_scale": -2.0, "activation": "silu", **DECODER,
}  # fmt: skip
LR_ENCODER = {
    "image_size": 8, "blocks": "8x3,8d2,4x1", "upsampling_blocks": "16m8", "width": 32, "bottleneck_multiple": 0.5,
    "activation": "silu", "decoder_width": 32, "decoder_bottleneck_multiple": 0.5, "num_conditioned_groups": None,
    **DECODER,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train")
    parser.add_argument("held_out")
    parser.add_argument("--updates", type=int, default=400)
    parser.add_argument("--train_batch_size", type=int, default=16)
    options = parser.parse_args()
    from accelerate.state import AcceleratorState, GradientState

    from hvae_sr.training import Trainer, parse_arguments
    from hvae_sr.training.cost import plan

    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "vdvae.json").write_text(json.dumps(VDVAE))
        (root / "lr.json").write_text(json.dumps(LR_ENCODER))

        def config(stage: str, out: str, updates: int, **more: object) -> object:
            values: dict[str, object] = {
                "stage": stage, "train_data_dir": options.train, "validation_data_dir": options.held_out,
                "output_dir": root / out, "resolution": 32, "train_batch_size": options.train_batch_size,
                "crops_per_image": 8, "max_train_steps": updates, "validation_steps": 10**6, "validation_images": 32,
                "validation_temperatures": 0.5, "learning_rate": 2e-3, "lr_warmup_steps": 20, "ema_decay": 0.98,
                "checkpointing_steps": 10**6, "max_grad_norm": 20, **more,
            }  # fmt: skip
            return parse_arguments([part for key, value in values.items() for part in (f"--{key}", str(value))])

        def train(*arguments: object, **more: object) -> dict[str, float]:
            settings = config(*arguments, **more)  # type: ignore[arg-type]
            Trainer(settings).train()  # type: ignore[arg-type]
            AcceleratorState._reset_state(reset_partial_state=True)
            GradientState._reset_state()
            lines = (root / str(arguments[1]) / "log.jsonl").read_text().splitlines()
            return {key: value for line in lines for key, value in json.loads(line).items()}

        scratch = {"vdvae_config": root / "vdvae.json"}
        lr = {"lr_config": root / "lr.json"}
        half = options.updates // 2
        prior = train("vdvae", "prior", half, **scratch)
        pretrained = {"pretrained_vdvae": root / "prior", **lr}
        pair = train("lr-encoder", "pair", half, **pretrained)
        costs = [
            plan(config(stage, "x", 1, **more))[1].flops  # type: ignore[arg-type]
            for stage, more in (("vdvae", scratch), ("lr-encoder", pretrained), ("joint", {**scratch, **lr}))
        ]
        joint_updates = round(half * (costs[0] + costs[1]) / costs[2])
        joint = train("joint", "joint", joint_updates, **scratch, **lr)
        print(
            f"MFLOPs per image: prior {costs[0] / 1e6:.0f}, LR encoder {costs[1] / 1e6:.0f}, joint {costs[2] / 1e6:.0f}"
        )
        print("| | updates | distortion | KL | bound, bits/dim | PSNR of a sample, t=0.5 |\n|---|---|---|---|---|---|")
        for label, updates, first, second in (
            ("two stages", f"{half} + {half}", prior, pair),
            ("joint", str(joint_updates), joint, joint),
        ):
            distortion, kl = first["validation_distortion"], second["validation_kl_bits_per_dim"]
            print(
                f"| {label} | {updates} | {distortion:.3f} | {kl:.3f} | {distortion + kl:.3f} | "
                f"{second['validation_psnr_t0.5']:.2f} dB |"
            )


if __name__ == "__main__":
    main()
