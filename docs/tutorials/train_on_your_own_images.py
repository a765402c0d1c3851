"""Tutorial 2: a model of your own photographs: a prior, then an encoder of low-resolution images (CVDVAE).

python docs/tutorials/train_on_your_own_images.py PHOTOS... [--output_dir tutorial/own_images] [--steps 1000]

The same as two runs of `train.py`, in one process. With its defaults, a small model that learns something in the order
of an hour on a processor core; for many GPUs run `accelerate launch train.py` with the options that this prints.
"""

import argparse
import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from hvae_sr import SuperResolutionPipeline
from hvae_sr.training import Trainer, parse_arguments


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", nargs="+", metavar="PHOTOS", help="folders of photographs, searched recursively")
    parser.add_argument("--output_dir", default="tutorial/own_images")
    parser.add_argument("--steps", type=int, default=1000, help="updates of each stage")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--resolution", type=int, default=64, help="side of the training crops")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--resume_from_checkpoint", choices=["latest"], help="goes on with a run that was stopped")
    options = parser.parse_args(arguments)
    folder = Path(options.output_dir)
    folder.mkdir(parents=True, exist_ok=True)

    # 1. The networks, in VD-VAE's own notation. Resolutions are those at the nominal image size: "16x2" at 64 is two
    #    groups at stride 4. With channel biases (the default) the model takes images of any size.
    side, width = options.resolution, options.width
    eighth, quarter, half = side // 8, side // 4, side // 2
    decoder = f"{eighth}x2,{quarter}m{eighth},{quarter}x3,{half}m{quarter},{half}x2"
    prior = {
        "image_size": side,
        "width": width,
        "encoder_blocks": f"{half}x2,{half}d2,{quarter}x2,{quarter}d2,{eighth}x2",
        "decoder_blocks": decoder,
        "bottleneck_multiple": 0.5,
        "patch_size": 2,
        "num_mixtures": 3,
        "initial_log_scale": -2.0,
        "activation": "silu",
    }
    # The first six groups are conditioned on y, those up to its own resolution; heads of finer ones would read what
    # "upsampling_blocks" make.
    encoder = {
        "image_size": quarter,
        "blocks": f"{quarter}x6,{quarter}d2,{eighth}x2",
        "width": width,
        "decoder_blocks": decoder,
        "decoder_width": width,
        "latent_channels": 16,
        "bottleneck_multiple": 0.5,
        "long_skip": True,
        "activation": "silu",
    }
    for name, config in (("prior", prior), ("encoder", encoder)):
        (folder / f"{name}.json").write_text(json.dumps(config, indent=1) + "\n")

    # 2. The two stages. Each writes checkpoints; a stopped run goes on with --resume_from_checkpoint latest.
    common = ["--train_data_dir", *options.photos, "--resolution", str(side), "--max_train_steps", str(options.steps)]
    if options.resume_from_checkpoint:
        common += ["--resume_from_checkpoint", "latest"]
    common += ["--train_batch_size", str(options.batch_size), "--lr_warmup_steps", str(min(100, options.steps // 4))]
    stages = {
        "vdvae": ["--vdvae_config", str(folder / "prior.json"), "--output_dir", str(folder / "vdvae")],
        "lr-encoder": [
            *("--pretrained_vdvae", str(folder / "vdvae"), "--lr_config", str(folder / "encoder.json")),
            *("--max_grad_norm", "0.3", "--output_dir", str(folder / "model")),
        ],
    }
    for stage, own in stages.items():
        command = ["--stage", stage, *own, *common]
        print("train.py", shlex.join(command))
        try:
            Trainer(parse_arguments(command)).train()
        except ValueError as error:
            parser.error(str(error))

    # 3. The output of the last stage is a folder for `from_pretrained`, for `hvae-sr upscale` and for `hvae-sr push`.
    pipe = SuperResolutionPipeline.from_pretrained(folder / "model")
    print(f"{pipe.vdvae.num_groups} groups; try: hvae-sr upscale PHOTO --model {folder / 'model'} -o upscaled")


if __name__ == "__main__":
    main()
