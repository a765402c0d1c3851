"""The results of one image: samples, their mean and their uncertainty map, each written when it is finished."""

import argparse
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .jobs import Job, state
from .terminal import print_line, progress, warn

if TYPE_CHECKING:
    from torch import Tensor

    from ..images import Photo
    from ..pipelines import SuperResolutionPipeline

_MAP_PIXELS = 2**20
"""Pixels of an uncertainty map that its scale is chosen by."""


def finished(job: Job, settings: dict[str, Any], options: argparse.Namespace, sources: Collection[Path]) -> bool:
    """Whether the results are there, made with these settings; says so, or why they are made again."""
    seeds = range(options.seed, options.seed + options.num_samples)
    found = state(job, settings, seeds, options, sources)
    if found == "finished" and not options.overwrite:
        print_line(f"{job.name}: finished before")
        if options.rank:
            _print_ranks_of_files(job, seeds, options)
        return True
    if found == "other settings":
        print_line(f"{job.name}: redone, its results were made with other settings")
    return False


def write_results(
    pipeline: "SuperResolutionPipeline",
    job: Job,
    photo: "Photo",
    about: Sequence[str],
    settings: dict[str, Any],
    options: argparse.Namespace,
) -> None:
    """Draws the samples of one image and writes what there is to write of them; a single one has neither mean nor map.

    `about` is what to warn of, beside what `photo` and the format bring; `settings` are written into the results.
    """
    from ..images import LOSSY_SUFFIXES, load_image, save_image, to_tensor, uncertainty_to_pil
    from ..pipelines.chaining import lr_psnr, samples_at
    from ..pipelines.output import RunningMoments

    seeds = [options.seed + j for j in range(options.num_samples)]
    photo, bits = _prepared(job, photo, about, options)
    y = to_tensor(photo)
    job.make_folder()
    exif = photo.exif if options.keep_exif else b""
    samples = samples_at(
        pipeline, photo, seeds, options.outscale, output_type="pil" if bits == 8 else "pt", **options.sampling
    )
    ranked: dict[int, float] = {}
    moments = RunningMoments()
    with progress(len(seeds), job.source.name) as bar:
        for seed, sample in zip(seeds, samples, strict=True):
            path = job.path(f"seed{seed}", options.outscale)
            picture = photo.finish(sample.x, keep_grey=True, bits=bits)
            decibels = sample.lr_psnr
            if bits == 16:  # of the levels as they are written
                decibels = lr_psnr(pipeline.operator, (sample.x * 65535).round_().div_(65535), y)
            own = {**settings, "seed": seed, "lr_psnr": round(decibels, 4)}
            own["lr_psnr_unprojected"] = round(sample.lr_psnr_unprojected, 4)
            save_image(picture, path, own, exif)
            note = f"LR-PSNR {decibels:.1f} dB"
            if job.suffix in LOSSY_SUFFIXES:
                own["lr_psnr"] = round(lr_psnr(pipeline.operator, load_image(path, limited=False), y), 4)
                lossy = f"({job.suffix[1:]} is lossy: {sample.lr_psnr:.1f} dB before)"
                note = f"LR-PSNR {own['lr_psnr']:.1f} dB as written {lossy}"
                save_image(picture, path, own, exif)
            print_line(f"{path}  {note}")
            ranked[seed] = sample.lr_psnr_unprojected
            if options.rank == "log_density":
                ranked[seed] = pipeline.log_density(photo, sample.latents, options.max_memory)[0].item()
            if len(seeds) > 1:
                moments.add(sample.x)
            del sample, picture  # before the memory of the next is taken
            bar.update(1)
    if len(seeds) > 1:
        settings = {**settings, "seeds": seeds}
        mean_path, std_path = (job.path(kind, options.outscale) for kind in ("mean", "std"))
        mean = photo.finish(moments.mean, keep_grey=True, bits=bits)
        save_image(mean, mean_path, {**settings, "what": "mean of the samples"}, exif)
        print_line(f"{mean_path}  mean of {len(seeds)} samples")
        # Last: where it stands, with these settings, everything does.
        std = moments.std_()
        most = _scale_of_map(std)
        what = {"what": "standard deviation", "grey_levels_of_the_lightest": most}
        save_image(uncertainty_to_pil(std, most / 255), std_path, {**settings, **what})
        colours = f"0 (black) to {most:g} grey levels of 255 and above (light)"
        print_line(f"{std_path}  uncertainty: standard deviation from {colours}")
    if options.rank:
        _print_ranks(ranked, options)


def _prepared(job: Job, photo: "Photo", about: Sequence[str], options: argparse.Namespace) -> tuple["Photo", int]:
    """The photograph as the format of its results can hold it, and their bits; warns of that, and `about` others."""
    from ..images import LOSSY_SUFFIXES, WIDE_SUFFIXES

    if job.what:
        print_line(job.name)
    warnings = list(photo.warnings)
    if photo.alpha is not None and job.suffix in LOSSY_SUFFIXES:
        warnings.append(f"{options.format} holds no transparency, what is transparent is white")
        photo = photo.on_white()
    bits = options.bits or (photo.bits if job.suffix in WIDE_SUFFIXES else 8)
    if bits < photo.bits:
        warnings.append("has 16 bits a channel, its results 8")
    job.check_format(*(round(side * options.outscale) for side in photo.image.size))
    for line in [*warnings, *about]:
        warn(f"{job.name}: {line}", options)
    return photo, bits


def _scale_of_map(std: "Tensor") -> float:
    """Grey levels of the lightest colour of a map: what 0.1 % of its pixels exceed, in two digits, and at least 1."""
    step = max(int((std.shape[-2] * std.shape[-1] / _MAP_PIXELS) ** 0.5), 1)
    pooled = std[:, ::step, ::step].double().square().mean(dim=0).sqrt().flatten()
    highest = pooled.kthvalue(max(round(0.999 * pooled.numel()), 1)).values.item() * 255
    return max(float(f"{highest:.2g}"), 1.0)


def _print_ranks_of_files(job: Job, seeds: range, options: argparse.Namespace) -> None:
    """Ranks by what the files of finished samples tell; else one line on how to get the ranks."""
    from ..images import read_metadata

    told = {seed: read_metadata(job.path(f"seed{seed}", options.outscale)).get("lr_psnr_unprojected") for seed in seeds}
    faithful = {seed: float(value) for seed, value in told.items() if isinstance(value, (int, float)) or value == "inf"}
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
