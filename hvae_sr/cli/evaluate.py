"""Score a model, bicubic, or another method's images on a data set."""

import argparse
import os
from pathlib import Path

from ..checkpoints.names import resolve
from ..files import check_writable
from .common import add_data, add_lpips, add_model, load_pipeline
from .terminal import print_line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data(parser)
    parser.add_argument("--protocol", default="thesis", help="thesis (default), paper or standard")
    parser.add_argument("--size", type=int, default=256, help="thesis, paper: side S of the images (default 256)")
    parser.add_argument("-o", "--output", required=True, metavar="REPORT.json")
    add_model(parser, "bundled name, folder or Hub id; none: bicubic alone", default=None)
    parser.add_argument(
        "--predictions",
        metavar="DIR",
        help="images that another method made of the protocol's LR images, named as the data's: NAME.png, or "
        "NAME_0.png, NAME_1.png, ... for several samples",
    )
    parser.add_argument(
        "--temperatures", type=float, nargs="+", help="of the samples (default 0.2 0.8 1; a model without any: 1)"
    )
    parser.add_argument("--num-samples", type=int, help="samples of each image (default 8; paper: 5)")
    parser.add_argument(
        "--self-ensemble", action="store_true", help="draw samples in eight orientations of the image in turn"
    )
    parser.add_argument("--coverage-samples", type=int, help="also the calibration at t = 1, of so many samples")
    parser.add_argument(
        "--metrics", nargs="*", help="brisque, lpips, lpips_vgg, fid; default: none, and those of the tables for paper"
    )
    add_lpips(parser)
    parser.add_argument(
        "--levels", action="store_true", help="also rows with one level of the latents at t = 1, the others at 0"
    )
    parser.add_argument("--num-images", type=int, help="only the first so many images")
    parser.add_argument("--every", type=int, default=1, help="only each so-many-th image, from the first on")
    parser.add_argument("--scale-factor", type=int, help="default: the model's, or 4")
    parser.add_argument(
        "--degradation",
        metavar="NAME|FILE",
        help="make the LR images by random degradations of --seed: mild-jpeg, noise, blur-noise, second-order, real, "
        "or a YAML file; default: the protocol's downsampling",
    )
    parser.add_argument("--seed", type=int, default=0, help="of samples, and of degradations")
    parser.add_argument("--batch-size", type=int, help="samples for each network evaluation; default: by size")
    parser.add_argument(
        "--write-pairs", metavar="DIR", help="only write the protocol's HR and LR images there, for another method"
    )


_OPTIONS = (
    "data", "protocol", "size", "temperatures", "num_samples", "seed", "num_images", "every", "batch_size",
    "coverage_samples", "self_ensemble", "levels", "scale_factor", "predictions", "split", "image_column",
    "degradation",
)  # fmt: skip
"""Those that `evaluate` has under the same names."""
_OF_A_MODEL = ("temperatures", "num_samples", "self_ensemble", "coverage_samples", "levels", "batch_size")
"""Those that mean something where samples are drawn."""


def run(options: argparse.Namespace) -> int:
    if options.model:
        resolve(options.model)  # a typo should not wait for torch
    from ..evaluation import evaluate, load_perceptual, markdown_table, write_report
    from ..evaluation.perceptual import NAMES
    from ..evaluation.protocols import protocol_named
    from ..processes import process_state

    if options.write_pairs:
        for name in ("model", "predictions"):
            if getattr(options, name) is not None:
                raise ValueError(
                    f"`--{name}` does not go with `--write-pairs`, which scores nothing (`--scale-factor` chooses the "
                    f"LR images); got {getattr(options, name)!r}"
                )
        return _write_pairs(options)
    for name in _OF_A_MODEL if options.model is None else ():
        if (value := getattr(options, name)) not in (None, False):
            raise ValueError(f"`--{name.replace('_', '-')}` needs `--model`, whose samples it is about; got {value!r}")
    names = protocol_named(options.protocol).perceptual if options.metrics is None else options.metrics
    if options.lpips_weights is not None and not {"lpips", "lpips_vgg"} & {*names}:
        raise ValueError(f"`--lpips-weights` needs `--metrics` lpips or lpips_vgg; got {' '.join(names) or 'none'}")
    if unknown := [name for name in names if name not in NAMES]:
        raise ValueError(f"`--metrics` must be among {', '.join(NAMES)}; got {', '.join(unknown)}")
    # In bfloat16 as `hvae-sr upscale` computes it, with float32 weights.
    pipeline = load_pipeline(options, fast=options.dtype == "bfloat16") if options.model else None
    given = {name: getattr(options, name) for name in _OPTIONS}
    device = pipeline.device if pipeline is not None else "cpu"
    perceptual = load_perceptual(names, device, options.lpips_weights)
    # What the report calls the model: a folder by its name alone.
    model = options.model and (Path(options.model).resolve().name if Path(options.model).is_dir() else options.model)
    report = evaluate(pipeline, perceptual=perceptual, name=model, report_path=options.output, **given)
    state = process_state()
    if state.is_main_process:
        write_report(report, options.output)
        for line in markdown_table(report).splitlines():
            print_line(line)
    state.destroy_process_group()
    return 0


def _write_pairs(options: argparse.Namespace) -> int:
    """The protocol's images as PNG: another method super-resolves those in LR, and is scored by `--predictions`.

    Raises:
        ValueError: a file that is there already holds other pixels, or two images would give files of one name.
    """
    import numpy as np
    from PIL import Image

    from ..data import load_degradation
    from ..evaluation.protocols import degraded, protocol_named
    from ..evaluation.sources import check_stems, open_source
    from ..images import load_image, save_image

    protocol = protocol_named(options.protocol)
    made = None if options.degradation is None else load_degradation(options.degradation)
    source = open_source(options.data, options.split, options.image_column, options.num_images, options.every)
    scale_factor = 4 if options.scale_factor is None else options.scale_factor
    check_writable(Path(options.write_pairs), "--write-pairs")
    folders = [Path(options.write_pairs) / kind for kind in ("HR", "LR")]
    check_stems(source.images)
    for image in source.images:
        own = protocol if made is None else degraded(protocol, made, options.seed, image.number)
        pair = own.prepare(image.load(), options.size, scale_factor)
        for folder, pixels in zip(folders, pair, strict=True):
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"{image.stem}.png"
            if not os.path.lexists(path):
                save_image(Image.fromarray(pixels), path)
            elif not np.array_equal(np.asarray(load_image(path)), pixels):
                raise ValueError(f"`--write-pairs`: {path} is there already and holds another image; name a new folder")
    print_line(f"wrote {len(source.images)} pairs to {options.write_pairs}")
    return 0
