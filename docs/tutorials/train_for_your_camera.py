"""Tutorial 5: a model for one's own camera, microscope or archive, whose degradation is written down in a file.

python docs/tutorials/train_for_your_camera.py [--photos DIR] [--degradation FILE] [--output_dir tutorial/camera]
    [--steps 60]

What is known of the device (how it blurs, its noise, how its files are compressed) becomes a YAML file of random
degradations. The bundled model is trained on for some minutes on pairs that the file makes of sharp photographs, and
both are measured on a photograph that training did not see.
"""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

import skimage
from PIL import Image

from hvae_sr import SuperResolutionPipeline
from hvae_sr.checkpoints.names import resolve
from hvae_sr.data import degrade
from hvae_sr.evaluation import evaluate
from hvae_sr.training import Trainer, parse_arguments

MICROSCOPE = """\
# A grey microscope: out of focus by three to five pixels, photon noise, stored without loss.
steps:
  - {step: blur, kinds: {isotropic: 1}, sigma: [3, 5]}
  - {step: downsample, kinds: {area: 1}}
  - {step: noise, kinds: {poisson: 1}, scale: [1, 2], grey: 1}
"""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--photos", help="folder of sharp photographs; default: three that come with scikit-image (CC0)"
    )
    parser.add_argument(
        "--degradation", help="what the device does, as `docs/degradations.md` says; default: a microscope"
    )
    parser.add_argument("--model", default="photo-x4", help="to start from: one that does not know H")
    parser.add_argument("--output_dir", default="tutorial/camera")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--resolution", type=int, default=96, help="side of the training crops")
    parser.add_argument("--size", type=int, default=256, help="side of the photograph that is measured")
    parser.add_argument("--resume_from_checkpoint", choices=["latest"], help="goes on with a run that was stopped")
    options = parser.parse_args(arguments)
    folder = Path(options.output_dir)
    held_out = folder / "held_out"
    held_out.mkdir(parents=True, exist_ok=True)
    Image.fromarray(skimage.data.chelsea()).save(held_out / "cat.png")
    photos = Path(options.photos) if options.photos else folder / "photos"
    if not options.photos:
        photos.mkdir(exist_ok=True)
        for name in ("astronaut", "coffee", "rocket"):
            Image.fromarray(getattr(skimage.data, name)()).save(photos / f"{name}.png")

    # 1. The file. A wrong step, option or range is refused with its place. Its pairs are a function of seed and index.
    file = folder / "microscope.yaml"
    if options.degradation:
        file = Path(options.degradation)
    elif not file.exists():
        file.write_text(MICROSCOPE)
    for index in range(3):
        y = degrade(Image.fromarray(skimage.data.chelsea()), file, seed=0, index=index)
        y.save(folder / f"what_it_makes_{index}.png")

    # 2. Some updates of the energy score on such pairs, from the weights of the model. Its samples are not projected.
    start = Path(resolve(options.model))
    command = ["--stage", "energy-score", "--degradation", str(file), "--train_data_dir", str(photos)]
    command += ["--pretrained_vdvae", str(start / "vdvae"), "--pretrained_lr_encoder", str(start / "lr_encoder")]
    command += ["--max_train_steps", str(options.steps), "--resolution", str(options.resolution)]
    command += ["--train_batch_size", "2", "--crops_per_image", "4", "--learning_rate", "2e-4", "--score_samples", "2"]
    command += ["--score_point_weight", "0.5", "--lr_warmup_steps", "5", "--ema_decay", "0.9"]
    command += ["--output_dir", str(folder / "model")]
    if options.resume_from_checkpoint:
        command += ["--resume_from_checkpoint", "latest"]
    print("train.py", shlex.join(command))
    try:
        Trainer(parse_arguments(command)).train()
    except ValueError as error:
        parser.error(str(error))

    # 3. Before and after, on one photograph: of the estimate at temperature 0, and whether intervals hold the truth.
    for label, model in (("before", start), ("after", folder / "model")):
        pipe = SuperResolutionPipeline.from_pretrained(model)
        report = evaluate(
            pipe, held_out, size=options.size, temperatures=[0.0, 1.0], num_samples=4,
            coverage_samples=19, degradation=file, progress_bar=False,
        )  # fmt: skip
        rows = {row["name"]: row for row in report["rows"]}
        estimate, drawn = rows["mean t=0"], rows["sample t=1"]
        print(f"{label}: PSNR of the estimate {estimate['psnr']:.2f} dB ", end="")
        print(f"(bicubic {rows['bicubic']['psnr']:.2f}), ", end="")
        print(f"90 % intervals hold {100 * drawn['coverage']:.0f} % of the pixels")
    print(f"try: hvae-sr upscale PHOTO --model {folder / 'model'} -o upscaled")


if __name__ == "__main__":
    main()
