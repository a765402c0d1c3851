"""Draw high-resolution samples of photographs."""

import argparse
from pathlib import Path
from typing import Any

from .common import add_model, check_writable, fail, load_pipeline, say, warn
from .jobs import FORMATS, Job, plan, remove_leftovers, state
from .settings import facts_about, like, weights_fingerprint


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="image files, or folders of them")
    parser.add_argument("-o", "--output_dir", required=True, metavar="DIR", help="where results are written")
    add_model(
        parser,
        "bundled name, folder or Hub id (default natural-x4; with --outscale, natural-x2, -x4 or -x8)",
        default=None,
    )
    parser.add_argument("--num_samples", type=int, help="samples of each image (default 5)")
    parser.add_argument(
        "--temperature", type=float, nargs="+", help="0 to about 1, or one for each group; default: the model's own"
    )
    parser.add_argument("--seed", type=int, help="sample j has the seed SEED + j (default 0)")
    parser.add_argument("--outscale", type=float, metavar="F", help="final factor, any number; default: the model's")
    parser.add_argument(
        "--no_consistency",
        action="store_true",
        default=None,
        help="leave out the projection on the images consistent with the input",
    )
    parser.add_argument(
        "--self_ensemble",
        action="store_true",
        help="draw the samples in eight orientations of the input in turn, for a more accurate mean of 8, 16, ...",
    )
    parser.add_argument(
        "--rank",
        choices=["log_density", "lr_psnr_unprojected"],
        help="also list the samples of each image, best first: by log p(z|y), the most typical, or by the LR-PSNR of "
        "the network's own output, the most faithful before the projection",
    )
    parser.add_argument("--like", metavar="FILE", help="the settings of a file that this command wrote")
    parser.add_argument(
        "--format", default="png", choices=FORMATS, help="png, webp and tiff are lossless; jpg is not (default png)"
    )
    parser.add_argument(
        "--bits",
        type=int,
        choices=[8, 16],
        help="of each channel; png and tiff hold 16 (default: those of the input)",
    )
    parser.add_argument("--keep_exif", action="store_true", help="copy EXIF (camera, date, place) into the results")
    parser.add_argument("--all_frames", action="store_true", help="every frame of an animation, not the first alone")
    parser.add_argument("--recursive", action="store_true", help="search folders below INPUT too, and keep them apart")
    parser.add_argument("--overwrite", action="store_true", help="redo what is finished, replace what is in the way")
    parser.add_argument("--batch_size", type=int, help="samples for each network evaluation; default: by size")
    parser.add_argument(
        "--max_memory", metavar="SIZE", help="bound of memory such as 2GB; default: half of what is available"
    )
    parser.add_argument(
        "--tile", action="store_true", help="models of one image size: blend tiles of that size instead of refusing"
    )


def run(options: argparse.Namespace) -> int:
    """Every image by itself: one that fails is reported and does not stop the others.

    Returns:
        0, or 1 if any image failed; one line tells how many at the end.
    """
    from accelerate.utils import gather_object

    from ..pipelines.memory import parse_bytes
    from ..processes import process_state

    warnings = like(options)
    if options.max_memory is not None:
        options.max_memory = parse_bytes(options.max_memory)
    folder = Path(options.output_dir)
    check_writable(folder, "--output_dir")
    jobs, unreadable = plan(options)
    pipeline = load_pipeline(options, fast=True)
    _complete(options, pipeline)
    for line in warnings:
        warn(line)
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(jobs)
    done, skipped, failed = 0, 0, []
    state_of_process = process_state()
    for error in unreadable if state_of_process.is_main_process else []:
        fail(error)
        failed.append(str(error))
    # In turns, so that what an interrupted run has finished is not all one process's share.
    for job in jobs[state_of_process.process_index :: state_of_process.num_processes]:
        try:
            if _upscale_one(pipeline, job, options):
                done += 1
            else:
                skipped += 1
        except (ValueError, OSError, MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "memory" not in str(error):
                raise
            fail(error if str(job.source) in str(error) else ValueError(f"{job.source}: {error}"))
            failed.append(job.name)
    counts = gather_object([(done, skipped, len(failed))])
    done, skipped, failures = (sum(values) for values in zip(*counts, strict=True))
    if state_of_process.is_main_process and (len(jobs) > 1 or failures or skipped):
        say(f"{done + skipped + failures} images: {done} upscaled, {skipped} finished before, {failures} failed")
    state_of_process.wait_for_everyone()  # a launcher stops the others when one of them has failed
    state_of_process.destroy_process_group()
    return 1 if failures else 0


def _complete(options: argparse.Namespace, pipeline: Any) -> None:
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
    options.no_consistency = bool(options.no_consistency)
    if options.bits == 16 and f".{options.format}" not in WIDE_SUFFIXES:
        raise ValueError(f"`--bits` 16 goes with `--format` png or tiff; {options.format} holds 8")
    if options.outscale is None:
        options.outscale = float(pipeline.config.scale_factor)
    passes = num_passes(pipeline.config.scale_factor, options.outscale)
    if options.rank and passes > 1:
        raise ValueError(f"`--rank` compares samples of one pass, and `--outscale` {options.outscale:g} takes {passes}")
    if options.rank == "log_density" and options.self_ensemble:
        raise ValueError("`--rank` log_density needs latents, and `--self_ensemble` leaves none that can be compared")
    pipeline.check_inputs(
        temperature=options.temperature,
        num_samples=options.num_samples,
        batch_size=options.batch_size,
        self_ensemble=options.self_ensemble,
    )
    options.weights = weights_fingerprint(pipeline)
    if options.expected_weights not in (None, options.weights):
        raise ValueError(
            f"`--like`: {options.like} was made with other weights ({options.expected_weights}) than those of "
            f"{options.model} ({options.weights}); its samples cannot be repeated"
        )


def _upscale_one(pipeline: Any, job: Job, options: argparse.Namespace) -> bool:
    """Samples, mean and uncertainty map of one image, each written when it is finished; False if they are there."""
    from ..images import (
        LOSSY_SUFFIXES,
        WIDE_SUFFIXES,
        load_image,
        read_photo,
        save_image,
        to_tensor,
        uncertainty_to_pil,
    )
    from ..pipelines.chaining import lr_psnr, upscale
    from ..pipelines.degradation import inspect

    facts = facts_about(pipeline, job, options)
    seeds = [options.seed + j for j in range(options.num_samples)]
    found = state(job, facts, seeds, options)
    if found == "finished" and not options.overwrite:
        say(f"{job.name}: finished before")
        if options.rank:
            _say_ranks_of_files(job, seeds, options)
        return False
    if found == "other settings":
        say(f"{job.name}: redone, its results were made with other settings")
    if job.what:
        say(job.name)
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
    _check_results(pipeline, job, photo.image.size, options)
    statistics = inspect(y)
    for line in statistics.warnings() if statistics is not None else []:
        warn(f"{job.name}: {line}")
    job.make_folder()
    exif = photo.exif if options.keep_exif else b""

    def finished(image: Any) -> Any:
        if bits == 16:  # a float tensor; of 8 bits a PIL image, finished but for its single channel
            return photo.finish(image, keep_grey=True, bits=16)
        return photo.finish(image.convert("RGB"), keep_grey=True) if photo.grey else image

    def write(sample: Any) -> None:
        path = job.path(f"seed{sample.seed}", options.outscale)
        picture = finished(sample.image)
        decibels, note = sample.lr_psnr, ""
        if bits == 16:
            decibels = lr_psnr(pipeline.operator, (sample.image * 65535).round() / 65535, y)
        faithful[sample.seed] = sample.lr_psnr_unprojected
        own = {**facts, "seed": sample.seed, "lr_psnr": round(decibels, 4)}
        own["lr_psnr_unprojected"] = round(sample.lr_psnr_unprojected, 4)
        save_image(picture, path, own, exif)
        if job.suffix in LOSSY_SUFFIXES:
            decibels = lr_psnr(pipeline.operator, load_image(path), y)
            note = f" as written ({job.suffix[1:]} is lossy: {sample.lr_psnr:.1f} dB before)"
            save_image(picture, path, {**own, "lr_psnr": round(decibels, 4)}, exif)
        say(f"{path}  LR-PSNR {decibels:.1f} dB{note}")

    faithful: dict[int, float] = {}
    pipeline.set_progress_bar_config(desc=job.source.name, leave=False)
    summary = upscale(
        pipeline,
        photo,
        write,
        outscale=options.outscale,
        num_samples=options.num_samples,
        seed=options.seed,
        temperature=options.temperature,
        enforce_consistency=not options.no_consistency,
        batch_size=options.batch_size,
        max_memory=options.max_memory,
        tile=options.tile,
        self_ensemble=options.self_ensemble,
        output_type="pt" if bits == 16 else "pil",
    )
    facts["seeds"] = seeds
    mean_path, std_path = (job.path(kind, options.outscale) for kind in ("mean", "std"))
    save_image(finished(summary.mean), mean_path, {**facts, "what": "mean of the samples"}, exif)
    say(f"{mean_path}  mean of {len(seeds)} samples")
    # Last: where it stands, with these settings, everything does.
    picture = uncertainty_to_pil(summary.std)
    save_image(picture, std_path, {**facts, "what": "standard deviation"})
    say(f"{std_path}  uncertainty: standard deviation from 0 (black) to 0.1 of the range and above (light)")
    if options.rank:
        _say_ranks(pipeline, photo, faithful, options)
    return True


def _check_results(pipeline: Any, job: Job, size: tuple[int, int], options: argparse.Namespace) -> None:
    """Raises a ValueError where an image of `size` (width, height) leads to what cannot be written or ranked."""
    width, height = size
    job.check_format(round(width * options.outscale), round(height * options.outscale))
    tiled = options.tile and pipeline.vdvae.config.bias_type == "spatial"
    if options.rank == "log_density" and tiled and max(size) > pipeline.lr_encoder.config.image_size:
        raise ValueError(
            f"`--rank` log_density needs latents, and an image of {width}x{height} in several tiles has none as a whole"
        )


def _say_ranks_of_files(job: Job, seeds: list[int], options: argparse.Namespace) -> None:
    """Ranks by what the files of finished samples tell; else one line on how to get the ranks."""
    from ..images import read_metadata

    told = {seed: read_metadata(job.path(f"seed{seed}", options.outscale)).get("lr_psnr_unprojected") for seed in seeds}
    faithful = {seed: value for seed, value in told.items() if isinstance(value, (int, float))}
    if options.rank == "lr_psnr_unprojected" and len(faithful) == len(told):
        _say_sorted(faithful, options)
    else:
        say(f"{job.name}: not ranked, its files do not tell {options.rank}; --overwrite draws and ranks again")


def _say_ranks(pipeline: Any, photo: Any, faithful: dict[int, float], options: argparse.Namespace) -> None:
    """One line for each sample, best first.

    Args:
        pipeline, photo: what was sampled, and from what.
        faithful: seed: LR-PSNR of the network's own output.
        options: of the command.
    """
    from ..pipelines.explore import log_density

    values = faithful
    if options.rank == "log_density":  # the latents of one sample at a time: those of all take more than the images
        settings = {
            "temperature": options.temperature,
            "tile": options.tile,
            "max_memory": options.max_memory,
            "output_type": "latent",
        }
        latents = ((seed, pipeline(photo, seed=seed, **settings).latents) for seed in faithful)
        values = {seed: log_density(pipeline, photo, z, options.max_memory)[0].item() for seed, z in latents}
    _say_sorted(values, options)


def _say_sorted(values: dict[int, float], options: argparse.Namespace) -> None:
    what = {
        "log_density": "log p(z|y) {:.4f} nats per latent",
        "lr_psnr_unprojected": "LR-PSNR of the network's own output {:.2f} dB",
    }[options.rank]
    for rank, seed in enumerate(sorted(values, key=lambda seed: -values[seed]), 1):
        say(f"rank {rank}: seed {seed}, " + what.format(values[seed]))
