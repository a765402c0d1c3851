"""Draw high-resolution samples of photographs."""

import argparse
import os
from pathlib import Path
from typing import Any

from .common import add_model, fail, load_pipeline, say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="image files, or folders of them")
    parser.add_argument("-o", "--output_dir", required=True, metavar="DIR", help="where PNG files are written")
    add_model(parser)
    parser.add_argument("--num_samples", type=int, default=5, help="samples of each image (default 5)")
    parser.add_argument("--temperature", type=float, help="0 to about 1; default: the model's own")
    parser.add_argument("--seed", type=int, default=0, help="sample j has the seed SEED + j (default 0)")
    parser.add_argument("--batch_size", type=int, help="samples for each network evaluation; default: by size")
    parser.add_argument(
        "--no_consistency", action="store_true", help="leave out the projection on the images consistent with the input"
    )
    parser.add_argument("--recursive", action="store_true", help="search folders below INPUT too")


def run(options: argparse.Namespace) -> int:
    from accelerate import PartialState

    paths = _inputs(options)
    folder = Path(options.output_dir)
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        raise ValueError(f"`--output_dir`: cannot write to {folder}")
    pipeline = load_pipeline(options)
    if options.temperature is None:
        options.temperature = pipeline.config.default_temperature
    pipeline.check_inputs(
        temperature=options.temperature, num_samples=options.num_samples, batch_size=options.batch_size
    )
    folder.mkdir(parents=True, exist_ok=True)
    failed = 0
    with PartialState().split_between_processes(paths) as share:  # all of them, unless under `accelerate launch`
        for path in share:
            try:
                _upscale_one(pipeline, path, options)
            except (ValueError, OSError) as error:
                named = str(path) in str(error)
                failed = fail(error if named else ValueError(f"{path}: {error}"))
    return failed


def _inputs(options: argparse.Namespace) -> list[Path]:
    """The image files to upscale; what the command itself wrote into its output folder is left out.

    Raises:
        ValueError: no image, one that is named and cannot be read while it is the only one, or two of one name, whose
            results would overwrite one another.
    """
    from ..images import find_images, load_image

    output = Path(options.output_dir).resolve()
    given = {Path(source).resolve() for source in options.inputs}
    paths = [
        path
        for path in find_images(options.inputs, recursive=options.recursive)
        if path.resolve() in given or output not in path.resolve().parents or not _made_here(path)
    ]
    if not paths:
        raise ValueError(f"`INPUT`: no images in {', '.join(options.inputs)}")
    stems: dict[str, Path] = {}
    for path in paths:
        if path.stem in stems:
            raise ValueError(f"`INPUT`: {stems[path.stem]} and {path} would write files of the same name")
        stems[path.stem] = path
    if len(paths) == 1:
        load_image(paths[0])  # a typo should not cost the time to load a model
    return paths


def _made_here(path: Path) -> bool:
    from ..images import ImageError, read_metadata

    try:
        return bool(read_metadata(path))
    except ImageError:
        return False


def _upscale_one(pipeline: Any, path: Path, options: argparse.Namespace) -> None:
    """Samples, mean and uncertainty map of one image; nothing is written before everything is computed."""
    from .. import __version__
    from ..images import load_image, save_image, uncertainty_to_pil

    image = load_image(path)
    pipeline.set_progress_bar_config(desc=path.name, leave=False)
    out = pipeline(
        image,
        temperature=options.temperature,
        num_samples=options.num_samples,
        seed=options.seed,
        enforce_consistency=not options.no_consistency,
        batch_size=options.batch_size,
        output_type="pil",
    )
    scale = pipeline.config.scale_factor
    stem = Path(options.output_dir) / f"{path.stem}_x{scale}"
    facts = {
        "model": options.model,
        "version": __version__,
        "temperature": options.temperature,
        "scale_factor": scale,
        "consistent": not options.no_consistency,
        "dtype": str(pipeline.vdvae.dtype).removeprefix("torch."),
        "device": pipeline.device.type,
        "source": path.name,
    }
    for picture in (*out.images, *out.mean):  # the numbers mean the input's colours, whatever its profile
        picture.info["icc_profile"] = image.info.get("icc_profile")
    for picture, seed, decibels in zip(out.images, out.seeds, out.lr_psnr, strict=True):
        save_image(picture, f"{stem}_seed{seed}.png", {**facts, "seed": seed, "lr_psnr": round(decibels, 4)})
        say(f"{stem}_seed{seed}.png  LR-PSNR {decibels:.1f} dB")
    facts["seeds"] = out.seeds
    save_image(out.mean[0], f"{stem}_mean.png", {**facts, "what": "mean of the samples"})
    say(f"{stem}_mean.png  mean of {len(out.images)} samples")
    save_image(uncertainty_to_pil(out.std[0]), f"{stem}_std.png", {**facts, "what": "standard deviation"})
    say(f"{stem}_std.png  uncertainty: standard deviation from 0 (black) to 0.1 of the range and above (light)")
