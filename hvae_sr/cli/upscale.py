"""Draw high-resolution samples of photographs."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import check_writable
from .common import add_model, load_pipeline
from .jobs import FORMATS, Job, plan, remove_leftovers, state
from .settings import like, settings_of, weights_fingerprint
from .terminal import fail, print_line, warn

if TYPE_CHECKING:
    from ..pipelines import SuperResolutionPipeline


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("inputs", nargs="+", metavar="INPUT", help="image files, or folders of them")
    add("-o", "--output_dir", required=True, metavar="DIR", help="where results are written")
    add_model(parser, "bundled name, folder or Hub id (default: natural-x4, or -x2, -x4, -x8 by --outscale)", None)
    add("--num_samples", type=int, help="samples of each image (default 5)")
    add("--temperature", type=float, nargs="+", help="0 to about 1, or one for each group; default: the model's own")
    add("--seed", type=int, help="sample j has the seed SEED + j (default 0)")
    add("--outscale", type=float, metavar="F", help="final factor, any number; default: the model's")
    flag: dict[str, Any] = {"action": "store_true"}
    add("--no_consistency", **flag, default=None, help="leave out the projection on {x : Hx = y}")
    add("--self_ensemble", **flag, help="draw in eight orientations in turn: a more accurate mean of 8, 16, ...")
    what = (
        "list samples, best first: by log p(z|y), the most typical, or LR-PSNR before the projection, the most faithful"
    )
    add("--rank", choices=["log_density", "lr_psnr_unprojected"], help=what)
    add("--like", metavar="FILE", help="the settings of a file that this command wrote")
    add("--format", default="png", choices=FORMATS, help="all but jpg are lossless (default png)")
    add("--bits", type=int, choices=[8, 16], help="of each channel; png and tiff hold 16 (default: as the input)")
    add("--keep_exif", **flag, help="copy EXIF (camera, date, place) into the results")
    add("--all_frames", **flag, help="every frame of an animation, not the first alone")
    add("--recursive", **flag, help="search folders below INPUT too, and keep them apart")
    add("--overwrite", **flag, help="redo what is finished, replace what is in the way")
    add("--batch_size", type=int, help="samples for each network evaluation; default: by size")
    add("--max_memory", metavar="SIZE", help="bound of memory such as 2GB; default: half of what is available")
    add("--tile", **flag, help="models of one image size: blend tiles of that size instead of refusing")


def run(options: argparse.Namespace) -> int:
    """Every image by itself: one that fails is reported and does not stop the others.

    Returns:
        0, or 1 if any image failed; one line tells how many at the end.
    """
    if not any(Path(source).exists() for source in options.inputs):  # a typo should not wait for torch
        raise ValueError(f"`INPUT`: no such file or folder: {', '.join(options.inputs)}")
    folder = Path(options.output_dir)
    check_writable(folder, "--output_dir")
    from accelerate.utils import gather_object

    from ..processes import process_state
    from ..sampling import parse_bytes

    warnings = like(options)
    if options.max_memory is not None:
        options.max_memory = parse_bytes(options.max_memory)
    jobs, unreadable = plan(options)
    pipeline = load_pipeline(options, fast=True)
    _complete(options, pipeline)
    for line in warnings:
        warn(line)
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(jobs)
    done, skipped, failed = 0, 0, 0
    process = process_state()
    for error in unreadable if process.is_main_process else []:
        failed += bool(fail(error))
    # In turns, so that what an interrupted run has finished is not all one process's share.
    for job in jobs[process.process_index :: process.num_processes]:
        try:
            if _upscale_one(pipeline, job, options):
                done += 1
            else:
                skipped += 1
        except (ValueError, OSError, MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "memory" not in str(error):
                raise
            fail(error if str(job.source) in str(error) else ValueError(f"{job.source}: {error}"))
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
    options.no_consistency = bool(options.no_consistency) or pipeline.config.consistency == "none"
    if options.bits == 16 and f".{options.format}" not in WIDE_SUFFIXES:
        raise ValueError(f"`--bits` 16 goes with `--format` png or tiff; {options.format} holds 8")
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


def _upscale_one(pipeline: "SuperResolutionPipeline", job: Job, options: argparse.Namespace) -> bool:
    """Samples, mean and uncertainty map of one image, each written when it is finished; False if they are there."""
    from tqdm import tqdm

    from ..images import (
        LOSSY_SUFFIXES,
        WIDE_SUFFIXES,
        load_image,
        read_photo,
        save_image,
        to_tensor,
        uncertainty_to_pil,
    )
    from ..images.degradation import inspect
    from ..pipelines.chaining import lr_psnr, samples_at
    from ..pipelines.output import RunningMoments

    settings = settings_of(pipeline, job, options)
    seeds = [options.seed + j for j in range(options.num_samples)]
    found = state(job, settings, seeds, options)
    if found == "finished" and not options.overwrite:
        print_line(f"{job.name}: finished before")
        if options.rank:
            _print_ranks_of_files(job, seeds, options)
        return False
    if found == "other settings":
        print_line(f"{job.name}: redone, its results were made with other settings")
    if job.what:
        print_line(job.name)
    photo = read_photo(job.source, job.frame)
    for line in photo.warnings:
        warn(f"{job.name}: {line}")
    if photo.alpha is not None and job.suffix in LOSSY_SUFFIXES:
        warn(f"{job.name}: {options.format} holds no transparency, what is transparent is white")
        photo = photo.on_white()
    y = to_tensor(photo)
    bits = options.bits or (photo.bits if job.suffix in WIDE_SUFFIXES else 8)
    if bits < photo.bits:
        warn(f"{job.name}: has 16 bits a channel, its results 8")
    job.check_format(*(round(side * options.outscale) for side in photo.image.size))
    statistics = inspect(y)
    for line in statistics.warnings() if statistics is not None else []:
        warn(f"{job.name}: {line}")
    job.make_folder()
    exif = photo.exif if options.keep_exif else b""
    samples = samples_at(
        pipeline, photo, seeds, options.outscale, output_type="pil" if bits == 8 else "pt", **options.sampling
    )
    ranked: dict[int, float] = {}
    moments = RunningMoments()
    with tqdm(total=len(seeds), desc=job.source.name, unit="sample", leave=False, disable=None) as bar:
        for seed, sample in zip(seeds, samples, strict=True):
            path = job.path(f"seed{seed}", options.outscale)
            picture = photo.finish(sample.x, keep_grey=True, bits=bits)
            own = {**settings, "seed": seed, "lr_psnr": round(sample.lr_psnr, 4)}
            own["lr_psnr_unprojected"] = round(sample.lr_psnr_unprojected, 4)
            save_image(picture, path, own, exif)
            note = f"LR-PSNR {sample.lr_psnr:.1f} dB"
            if job.suffix in LOSSY_SUFFIXES:
                own["lr_psnr"] = round(lr_psnr(pipeline.operator, load_image(path), y), 4)
                lossy = f"({job.suffix[1:]} is lossy: {sample.lr_psnr:.1f} dB before)"
                note = f"LR-PSNR {own['lr_psnr']:.1f} dB as written {lossy}"
                save_image(picture, path, own, exif)
            print_line(f"{path}  {note}")
            ranked[seed] = sample.lr_psnr_unprojected
            if options.rank == "log_density":
                ranked[seed] = pipeline.log_density(photo, sample.latents, options.max_memory)[0].item()
            moments.add(sample.x)
            del sample, picture  # before the memory of the next is taken
            bar.update(1)
    settings["seeds"] = seeds
    mean_path, std_path = (job.path(kind, options.outscale) for kind in ("mean", "std"))
    mean = photo.finish(moments.mean, keep_grey=True, bits=bits)
    save_image(mean, mean_path, {**settings, "what": "mean of the samples"}, exif)
    print_line(f"{mean_path}  mean of {len(seeds)} samples")
    # Last: where it stands, with these settings, everything does.
    picture = uncertainty_to_pil(moments.std_())
    save_image(picture, std_path, {**settings, "what": "standard deviation"})
    print_line(f"{std_path}  uncertainty: standard deviation from 0 (black) to 0.1 of the range and above (light)")
    if options.rank:
        _print_ranks(ranked, options)
    return True


def _print_ranks_of_files(job: Job, seeds: list[int], options: argparse.Namespace) -> None:
    """Ranks by what the files of finished samples tell; else one line on how to get the ranks."""
    from ..images import read_metadata

    told = {seed: read_metadata(job.path(f"seed{seed}", options.outscale)).get("lr_psnr_unprojected") for seed in seeds}
    faithful = {seed: value for seed, value in told.items() if isinstance(value, (int, float))}
    if options.rank == "lr_psnr_unprojected" and len(faithful) == len(told):
        _print_ranks(faithful, options)
    else:
        print_line(f"{job.name}: not ranked, its files do not tell {options.rank}; --overwrite draws and ranks again")


def _print_ranks(values: dict[int, float], options: argparse.Namespace) -> None:
    """One line for each sample, best first; of its seed and value."""
    what = {
        "log_density": "log p(z|y) {:.4f} nats per latent",
        "lr_psnr_unprojected": "LR-PSNR of the network's own output {:.2f} dB",
    }[options.rank]
    for rank, seed in enumerate(sorted(values, key=lambda seed: -values[seed]), 1):
        print_line(f"rank {rank}: seed {seed}, {what.format(values[seed])}")
