"""Swin2SR of transformers, a regression network, beside a model of this package: same LR images, same metrics.

python benchmarks/swin2sr.py --data BSD100 --size 256 --output_dir OUT [--swin2sr ID] [--model natural-x4]
                             [--protocol thesis] [--temperatures 0.2 0.5] [--num_images N]

ID is a folder or a Hub id of weights for the model's factor (default: classical x4). Its images are written to
OUT/swin2sr, one for each HR image; reports and one table with the gains over bicubic are in OUT. The regression gives
one image and no samples: it is compared with a sample, and with the mean of them.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoImageProcessor, Swin2SRForImageSuperResolution

from hvae_sr import SuperResolutionPipeline
from hvae_sr.evaluation import PROTOCOLS, evaluate, write_report
from hvae_sr.evaluation.sources import open_source
from hvae_sr.evaluation.tables import QUALITY, table
from hvae_sr.images import save_image, to_pil

SWIN2SR = "caidas/swin2SR-classical-sr-x4-64"


@torch.no_grad()
def predict(network: Any, processor: Any, low: Image.Image) -> Image.Image:
    """Swin2SR's image, cropped to exactly the network's factor: its processor pads every image."""
    factor = network.config.upscale
    pixels = network(**processor(low, return_tensors="pt")).reconstruction[0]
    return to_pil(pixels[:, : low.height * factor, : low.width * factor].clamp(0, 1))


def write_predictions(options: argparse.Namespace, folder: Path, scale_factor: int) -> None:
    """Swin2SR's images of the protocol's LR images.

    Raises:
        ValueError: weights for another factor, or a folder that holds other files.
    """
    images = open_source(options.data, "test", "image", options.num_images).images
    strangers = {path.name for path in folder.glob("*")} - {f"{image.stem}.png" for image in images}
    if strangers:  # an image of another run could count as one more sample
        raise ValueError(f"`output_dir`: {folder} holds other files, such as {min(strangers)}")
    network = Swin2SRForImageSuperResolution.from_pretrained(options.swin2sr).eval()
    if network.config.upscale != scale_factor:
        raise ValueError(f"`swin2sr` must be for x{scale_factor}, got weights for x{network.config.upscale}")
    processor = AutoImageProcessor.from_pretrained(options.swin2sr)
    folder.mkdir(parents=True, exist_ok=True)
    for image in images:
        _, low = PROTOCOLS[options.protocol].prepare(image.load(), options.size, scale_factor)
        save_image(predict(network, processor, Image.fromarray(low)), folder / f"{image.stem}.png")


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Writes the reports, and prints and returns the rows of the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--protocol", default="thesis", choices=sorted(PROTOCOLS))
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--swin2sr", default=SWIN2SR)
    parser.add_argument("--model", default="natural-x4")
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.2, 0.5])
    parser.add_argument("--num_samples", type=int, default=8)
    parser.add_argument("--num_images", type=int)
    options = parser.parse_args(arguments)
    pipe = SuperResolutionPipeline.from_pretrained(options.model, dtype=torch.float32, load_encoder=False)
    scale = pipe.operator.scale_factor
    write_predictions(options, options.output_dir / "swin2sr", scale)
    common = {"protocol": options.protocol, "size": options.size, "num_images": options.num_images}
    rows: list[dict[str, Any]] = []
    for name, pipeline, given in (
        ("swin2sr", None, {"predictions": options.output_dir / "swin2sr", "scale_factor": scale}),
        ("hvae-sr", pipe, {"temperatures": options.temperatures, "num_samples": options.num_samples}),
    ):
        path = options.output_dir / f"{name}.json"
        label = Path(options.model).name if pipeline is not None else None
        report = evaluate(pipeline, options.data, report_path=path, name=label, **common, **given)
        write_report(report, path)
        known = {row["name"] for row in rows}
        rows += [row for row in report["rows"] if row["name"] not in known]
    print("\n".join(table(rows, QUALITY)))
    return rows


if __name__ == "__main__":
    main()
