"""The command line: `hvae-sr upscale | convert | evaluate`."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns 0, or 2 after one line on stderr if an input or option is no good."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except (ValueError, OSError) as error:
        return _fail(error)
    except RuntimeError as error:
        if "out of memory" not in str(error).lower() and "can't allocate memory" not in str(error):
            raise
        return _fail(ValueError("out of memory: try a smaller `--batch_size`, or --dtype bfloat16"))
    except KeyboardInterrupt:
        print("hvae-sr: interrupted", file=sys.stderr)
        return 130


def _fail(error: Exception) -> int:
    line = " ".join(str(error).split()) or type(error).__name__
    print(f"hvae-sr: error: {line}", file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    from . import __version__

    parser = argparse.ArgumentParser(
        prog="hvae-sr", description="Diverse super-resolution with a hierarchical VAE prior."
    )
    parser.add_argument("--version", action="version", version=f"hvae-sr {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    upscale = commands.add_parser("upscale", help="draw high-resolution samples of photographs")
    upscale.set_defaults(run=_upscale)
    upscale.add_argument("inputs", nargs="+", metavar="INPUT", help="image files, or folders of them")
    upscale.add_argument("-o", "--output_dir", required=True, metavar="DIR", help="where PNG files are written")
    _add_model(upscale)
    upscale.add_argument("--num_samples", type=int, default=5, help="samples of each image (default 5)")
    upscale.add_argument("--temperature", type=float, help="0 to about 1; default: the model's own")
    upscale.add_argument("--seed", type=int, default=0, help="sample j has the seed SEED + j (default 0)")
    upscale.add_argument("--batch_size", type=int, help="samples for each network evaluation; default: by size")
    upscale.add_argument(
        "--no_consistency", action="store_true", help="leave out the projection on the images consistent with the input"
    )
    upscale.add_argument("--recursive", action="store_true", help="search folders below INPUT too")

    convert = commands.add_parser("convert", help="published .th/.ckpt/.h5 checkpoints to save_pretrained folders")
    convert.set_defaults(run=_convert)
    convert.add_argument("checkpoint", metavar="CHECKPOINT")
    convert.add_argument("-o", "--output_dir", required=True, metavar="DIR", help="a folder that does not exist yet")
    kind = convert.add_mutually_exclusive_group(required=True)
    kind.add_argument("--preset", help="name of a published model, such as ffhq256 or cvdvae-ffhq256-x4")
    kind.add_argument("--hparams", metavar="FILE", help="JSON file with the published names of the hyper-parameters")

    evaluate = commands.add_parser("evaluate", help="score a model, or bicubic, on a folder of images")
    evaluate.set_defaults(run=_evaluate)
    evaluate.add_argument("--data", required=True, metavar="DIR", help="folder of high-resolution images")
    evaluate.add_argument("--protocol", default="thesis", help="thesis or standard")
    evaluate.add_argument("--size", type=int, default=256, help="thesis: side S of the images, 64 or 256 (default)")
    evaluate.add_argument("-o", "--output", required=True, metavar="REPORT.json")
    _add_model(evaluate, "bundled name, folder or Hub id; none: bicubic alone", default=None)
    evaluate.add_argument("--temperatures", type=float, nargs="+", default=[0.2, 0.8, 1.0])
    evaluate.add_argument("--num_samples", type=int, default=8, help="samples of each image (default 8)")
    evaluate.add_argument(
        "--coverage_samples", type=int, help="also the coverage of 90 %% intervals of so many samples"
    )
    evaluate.add_argument("--num_images", type=int, help="only the first so many images")
    evaluate.add_argument("--seed", type=int, default=0)
    evaluate.add_argument("--batch_size", type=int, help="samples for each network evaluation; default: by size")
    for command in commands.choices.values():
        _accept_dashes(command)
    return parser


def _accept_dashes(parser: argparse.ArgumentParser) -> None:
    """--num-samples besides --num_samples: people type either."""
    for action in parser._actions:
        for name in [name for name in action.option_strings if name.startswith("--") and "_" in name]:
            alias = "--" + name[2:].replace("_", "-")
            action.option_strings = [alias, *action.option_strings]
            parser._option_string_actions[alias] = action


def _add_model(
    parser: argparse.ArgumentParser, help: str = "bundled name, folder or Hub id", default: str | None = "natural-x4"
) -> None:
    parser.add_argument("--model", default=default, help=help if default is None else f"{help} (default {default})")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"])
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, xpu, mps, ...")


def _load(options: argparse.Namespace) -> Any:
    """The pipeline that --model, --dtype and --device ask for."""
    import torch
    from accelerate import PartialState
    from diffusers.utils import logging

    from . import SuperResolutionPipeline

    logging.disable_progress_bar()
    try:
        device = PartialState().device if options.device == "auto" else torch.device(options.device)
        if device.type == "meta":
            raise RuntimeError("it computes nothing")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"`--device`: cannot use {options.device!r}: {str(error).splitlines()[0]}") from None
    dtype = torch.float32 if options.dtype == "auto" else getattr(torch, options.dtype)
    pipeline = SuperResolutionPipeline.from_pretrained(options.model, dtype=dtype)
    return pipeline.to(device)


def _upscale(options: argparse.Namespace) -> int:
    from accelerate import PartialState

    paths = _inputs(options)
    folder = Path(options.output_dir)
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        raise ValueError(f"`--output_dir`: cannot write to {folder}")
    pipeline = _load(options)
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
                failed = _fail(error if named else ValueError(f"{path}: {error}"))
    return failed


def _inputs(options: argparse.Namespace) -> list[Path]:
    """The image files to upscale; what the command itself wrote into its output folder is left out.

    Raises:
        ValueError: no image, one that is named and cannot be read while it is the only one, or two of one name, whose
            results would overwrite one another.
    """
    from .images import find_images, load_image

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
    from .images import ImageError, read_metadata

    try:
        return bool(read_metadata(path))
    except ImageError:
        return False


def _upscale_one(pipeline: Any, path: Path, options: argparse.Namespace) -> None:
    """Samples, mean and uncertainty map of one image; nothing is written before everything is computed."""
    from . import __version__
    from .images import load_image, save_image, uncertainty_to_pil

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
        _say(f"{stem}_seed{seed}.png  LR-PSNR {decibels:.1f} dB")
    facts["seeds"] = out.seeds
    save_image(out.mean[0], f"{stem}_mean.png", {**facts, "what": "mean of the samples"})
    _say(f"{stem}_mean.png  mean of {len(out.images)} samples")
    save_image(uncertainty_to_pil(out.std[0]), f"{stem}_std.png", {**facts, "what": "standard deviation"})
    _say(f"{stem}_std.png  uncertainty: standard deviation from 0 (black) to 0.1 of the range and above (light)")


def _say(line: str) -> None:
    """Prints a line whose file names may hold bytes that are no text."""
    print(line.encode(errors="replace").decode())


def _convert(options: argparse.Namespace) -> int:
    from .conversion import convert

    hparams = None
    if options.hparams:
        try:
            hparams = json.loads(Path(options.hparams).read_text())
        except (OSError, json.JSONDecodeError) as error:
            raise ValueError(f"`--hparams`: cannot read {options.hparams}: {error}") from None
    convert(options.checkpoint, options.output_dir, preset=options.preset, hparams=hparams)
    print(f"wrote {options.output_dir}")
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from .evaluation import evaluate, markdown_table, write_report

    pipeline = _load(options) if options.model else None
    report = evaluate(
        pipeline,
        options.data,
        options.protocol,
        size=options.size,
        temperatures=tuple(options.temperatures),
        num_samples=options.num_samples,
        seed=options.seed,
        num_images=options.num_images,
        batch_size=options.batch_size,
        coverage_samples=options.coverage_samples,
        report_path=options.output,
    )
    write_report(report, options.output)
    print(markdown_table(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
