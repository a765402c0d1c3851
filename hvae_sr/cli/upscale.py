"""Draw high-resolution samples of photographs."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints.names import resolve
from ..files import check_writable
from .choice import Models, read
from .common import add_model
from .jobs import FILE_SUFFIXES, FORMATS, plan, remove_leftovers
from .samples import finished, write_results
from .settings import like, settings_of, weights_fingerprint
from .terminal import fail, print_line, warn
from .timing import announce

if TYPE_CHECKING:
    from ..pipelines import SuperResolutionPipeline


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("inputs", nargs="+", metavar="INPUT", help="image files, or folders of them; also after -i")
    add("-o", "--output-dir", metavar="DIR", help="where results are written (default: beside the input)")
    help = "bundled name, folder or Hub id (default: natural-x4, -x2 or -x8 by --outscale; photo-x4 if not clean)"
    add_model(parser, help, None, "-n")
    add("--num-samples", type=int, help="samples of each image (default 5)")
    add("--temperature", type=float, nargs="+", help="0 to about 1, or one for each group; default: the model's own")
    add("--seed", type=int, help="sample j has the seed SEED + j (default 0)")
    add("--crop", type=_crop, metavar="X,Y,W,H", help="a detail: its left upper corner and size in pixels of the input")
    add("-s", "--outscale", "--scale", type=float, metavar="F", help="final factor, any number; default: the model's")
    flag: dict[str, Any] = {"action": "store_true"}
    add("--no-consistency", **flag, default=None, help="leave out the projection on {x : Hx = y}")
    add("--self-ensemble", **flag, help="draw in eight orientations in turn: a more accurate mean of 8, 16, ...")
    what = (
        "list samples, best first: by log p(z|y), the most likely, or LR-PSNR before the projection, the most faithful"
    )
    add("--rank", choices=["log_density", "lr_psnr_unprojected"], help=what)
    add("--like", metavar="FILE", help="the settings of a file that this command wrote")
    add("--format", default="png", choices=FORMATS, help="all but jpg are lossless (default png)")
    add("--bits", type=int, choices=[8, 16], help="of each channel; png and tiff hold 16 (default: as the input)")
    add("--keep-exif", **flag, help="copy EXIF (camera, date, place) into the results")
    add("--all-frames", **flag, help="every frame of an animation, not the first alone")
    add("--recursive", **flag, help="search folders below INPUT too, and keep them apart")
    add("--overwrite", **flag, help="redo what is finished, replace what is in the way")
    add("--batch-size", type=int, help="samples for each network evaluation; default: by size")
    add("--max-memory", metavar="SIZE", help="bound of memory such as 2GB; default: half of what is available")
    add("--tile", **flag, help="models of one image size: blend tiles of that size instead of refusing")


def _crop(text: str) -> list[int]:
    """X,Y,W,H."""
    values = [int(part) for part in text.split(",") if part.strip().isdecimal()]
    if len(values) != 4 or text.count(",") != 3 or min(values[2:]) < 1:
        raise argparse.ArgumentTypeError(f"X,Y,W,H must be four whole numbers such as 100,50,256,256, got {text!r}")
    return values


def run(options: argparse.Namespace) -> int:
    """Every image by itself: one that fails is reported and does not stop the others.

    Returns:
        0, or 1 if any image failed; one line tells how many at the end.
    """
    # What can be seen without torch comes first: a typo should not wait.
    if "" in options.inputs:
        raise ValueError("`INPUT` is empty")
    if not any(os.path.exists(source) for source in options.inputs):  # where a path is too long `Path.exists` raises
        raise ValueError(f"`INPUT`: no such file or folder: {', '.join(options.inputs)}")
    if options.model and options.model.isdecimal():
        raise ValueError(f"`-n` names a model, got {options.model}; `--num-samples {options.model}` draws so many")
    if options.model:
        resolve(options.model)
    output = Path(options.output_dir) if options.output_dir else None
    if output is not None and not output.is_dir() and output.suffix.lower() in FILE_SUFFIXES:
        raise ValueError(f"`--output-dir` must be a folder, got {output}; `--format` chooses the kind of results")
    if output is not None:
        check_writable(output, "--output-dir")
    from accelerate.utils import gather_object

    from ..processes import process_state
    from ..sampling import parse_bytes

    # A list of temperatures is of one model's groups.
    by_look = options.model is None and options.like is None and len(options.temperature or [0.0]) == 1
    warnings = like(options)
    if options.max_memory is not None:
        options.max_memory = parse_bytes(options.max_memory)
    planned = plan(options)
    (jobs, errors, about_names), sources = planned, planned.sources
    for root in {job.root for job in jobs}:
        check_writable(root, "--output-dir")
    models = Models(options, by_look, _complete)
    process = process_state()
    for line in warnings + about_names if process.is_main_process else []:
        warn(line, options)
    for root in {job.root for job in jobs}:
        root.mkdir(parents=True, exist_ok=True)
    remove_leftovers(jobs)
    done, skipped, failed = 0, 0, 0
    for error in errors if process.is_main_process else []:
        failed += bool(fail(error, options))
    # In turns, so that what an interrupted run has finished is not all one process's share.
    own = jobs[process.process_index :: process.num_processes]
    announced = not process.is_main_process
    for index, job in enumerate(own):
        try:
            chosen, why, found = options.model, "", None
            if by_look:  # else what is finished needs no look
                found = read(job, options)
                chosen, why = models.choose(found[1])
            pipeline, completed = models.of(chosen)
            settings = settings_of(pipeline, completed) | job.origin()
            if finished(job, settings, completed, sources):
                skipped += 1
                continue
            if not announced:
                announced = True
                announce(pipeline, own[index:], completed)
            photo, statistics = found or read(job, options)
            if why:
                print_line(f"{job.name}: {why}")
            about = statistics.warnings() if statistics is not None and pipeline.projects else []
            write_results(pipeline, job, photo, about, settings, completed)
            done += 1
        except (ValueError, OSError, MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "memory" not in str(error):
                raise
            fail(error if str(job.source) in str(error) else ValueError(f"{job.source}: {error}"), options)
            failed += 1
    counts = gather_object([(done, skipped, failed)])
    done, skipped, failed = (sum(values) for values in zip(*counts, strict=True))
    if process.is_main_process and (len(jobs) > 1 or failed or skipped):
        print_line(f"{done + skipped + failed} images: {done} upscaled, {skipped} finished before, {failed} failed")
    process.wait_for_everyone()  # a launcher stops the others when one of them has failed
    process.destroy_process_group()
    return 1 if failed else 0


def _complete(options: argparse.Namespace, pipeline: "SuperResolutionPipeline") -> None:
    """Fills in what was not given, and checks it."""
    from ..images import WIDE_SUFFIXES
    from ..pipelines.chaining import num_passes

    if options.temperature is None:
        options.temperature = pipeline.config.default_temperature
    elif isinstance(options.temperature, list) and len(options.temperature) == 1:
        options.temperature = options.temperature[0]
    options.dtype = str(pipeline.inference_dtype).removeprefix("torch.")
    options.num_samples = 5 if options.num_samples is None else options.num_samples
    options.seed = options.seed or 0
    if options.no_consistency is None:
        options.no_consistency = not pipeline.projects
    if options.bits == 16 and f".{options.format}" not in WIDE_SUFFIXES:
        raise ValueError(
            f"`--bits` 16, as given or as `--like` has it, goes with `--format` png or tiff; {options.format} holds 8"
        )
    if options.outscale is None:
        options.outscale = float(pipeline.operator.scale_factor)
    passes = num_passes(pipeline.operator.scale_factor, options.outscale)
    if options.rank and passes > 1:
        raise ValueError(f"`--rank` compares samples of one pass, and `--outscale` {options.outscale:g} takes {passes}")
    options.sampling = {
        "temperature": options.temperature,
        "enforce_consistency": not options.no_consistency,
        "batch_size": options.batch_size,
        "max_memory": options.max_memory,
        "tile": options.tile,
        "self_ensemble": options.self_ensemble,
        "return_latents": options.rank == "log_density",
        "keep_images": False,
    }
    pipeline.check_inputs(num_samples=options.num_samples, **options.sampling)
    options.weights = weights_fingerprint(pipeline)
    if options.expected_weights not in (None, options.weights):
        raise ValueError(
            f"`--like`: {options.like} was made with other weights ({options.expected_weights}) than those of "
            f"{options.model} ({options.weights}); its samples cannot be repeated"
        )
