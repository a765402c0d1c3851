"""Look into a model: the choice of k, the information and the spread of its groups, samples, temperatures."""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING, NamedTuple

from ..checkpoints.names import resolve
from .common import Output, add_data, add_lpips, add_model, load_pipeline
from .terminal import note

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..pipelines import SuperResolutionPipeline


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "analyses:\n" + "\n".join(f"  {name:15} {run.__doc__}" for name, run in ANALYSES.items())
    parser.add_argument("analysis", choices=list(ANALYSES), metavar="ANALYSIS", help=", ".join(ANALYSES))
    # The prior alone and the encoder of x are looked at, too: CVDVAE has both.
    add_model(parser, default="natural-x4-cvdvae")
    add_data(parser, required=False, more="; default: two photographs that come with scikit-image (distance: none)")
    Output.add_arguments(parser)
    parser.add_argument("--num-images", type=int, default=4, help="of the data, the first so many (default 4)")
    parser.add_argument("--size", type=int, help="side of the squares cut out of them (default: the model's)")
    parser.add_argument("--scales", type=int, nargs="+", default=[1, 4, 8, 16], help="distance: s (default 1 4 8 16)")
    parser.add_argument("--num-codes", type=int, default=50, help="distance: latent codes (default 50)")
    parser.add_argument("--images-per-code", type=int, default=5, help="distance: images of each code (default 5)")
    parser.add_argument("--threshold", type=float, default=0.5, help="distance: grey levels (default 0.5)")
    parser.add_argument("--sample-pixels", action="store_true", help="distance: draw x from p(x|z), not its mean")
    what = "samples, levels, distance: of each image (default 4)"
    parser.add_argument("--num-samples", type=int, default=4, help=what)
    parser.add_argument("--temperature", type=float, help="samples: default the model's own; levels: default 1")
    add_lpips(parser)
    strip = [0, 0.25, 0.5, 0.75, 1]
    what = f"temperature: of the strip (default {' '.join(map(str, strip))})"
    parser.add_argument("--temperatures", type=float, nargs="+", default=strip, help=what)
    parser.add_argument("--seed", type=int, default=0)


def run(options: argparse.Namespace) -> int:
    for name, least in {"num_images": 1, "num_codes": 1, "images_per_code": 2}.items():
        if getattr(options, name) < least:
            raise ValueError(f"`{name}` must be at least {least}, got {getattr(options, name)}")
    if options.size is not None and options.size < 1:
        raise ValueError(f"`--size` must be at least 1, got {options.size}")
    if min(options.scales) < 1:
        raise ValueError(f"`--scales` must be factors of at least 1, got {' '.join(map(str, options.scales))}")
    if not all(0 <= t < math.inf for t in options.temperatures):
        raise ValueError(
            f"`--temperatures` must be finite and at least 0, got {' '.join(map(str, options.temperatures))}"
        )
    if not options.threshold >= 0:
        raise ValueError(f"`--threshold` must be a number of grey levels, got {options.threshold}")
    resolve(options.model)  # a typo should not wait for torch
    output = Output(options)  # before anything is computed
    from ..evaluation.samples import vdvae_of

    pipeline = load_pipeline(options)
    if options.analysis not in ("samples", "temperature"):  # which any system has
        vdvae_of(pipeline)
    pipeline.set_progress_bar_config(disable=True)
    photos = _photos(options, pipeline) if options.data is not None or options.analysis != "distance" else []
    ANALYSES[options.analysis](Job(options, pipeline, photos, output))
    return 0


class Job(NamedTuple):
    """What an analysis is made with: options, pipeline, HR images, and where it goes."""

    options: argparse.Namespace
    pipeline: SuperResolutionPipeline
    photos: list[Image]
    output: Output


def _photos(options: argparse.Namespace, pipeline: SuperResolutionPipeline) -> list[Image]:
    """The first images of the data, as squares of the size asked for."""
    from PIL import Image

    from ..evaluation import prepare_thesis
    from ..evaluation.sources import open_source
    from ..pictures import photographs

    if options.data is None:
        images = photographs()[: options.num_images]
    else:
        source = open_source(options.data, options.split, options.image_column, options.num_images)
        images = [image.load() for image in source.images]
    if options.size is None and not hasattr(pipeline, "vdvae"):
        raise ValueError(f"`size` must be given: {type(pipeline).__name__} has none of its own")
    size = options.size or pipeline.vdvae.config.image_size
    return [Image.fromarray(prepare_thesis(image, size, pipeline.config.scale_factor)[0]) for image in images]


def _distance(job: Job) -> None:
    """U_k^s against k (appendix A of the CVDVAE paper); with --data also the expected consistency CE(k)"""
    from ..evaluation import analyses, plots
    from ..pictures import references

    options, pipeline = job.options, job.pipeline
    kernel = pipeline.config.downsampling_kernel
    if not isinstance(kernel, str):  # taps are of one factor
        note("images are made small by bicubic interpolation: the model's own kernel is of its factor alone")
        kernel = "bicubic"
    analysis = analyses.low_resolution_distance(
        pipeline.vdvae,
        options.scales,
        options.num_codes,
        options.images_per_code,
        size=(options.size, options.size) if options.size else None,
        kernel=kernel,
        sample_pixels=options.sample_pixels,
        seed=options.seed,
    )
    consistency = None
    if job.photos:
        lows = [references(pipeline, photo)[0] for photo in job.photos]
        consistency = analyses.expected_consistency(pipeline, lows, num_samples=options.num_samples, seed=options.seed)
    job.output.write("distance.json", {"model": options.model, "distance": analysis, "consistency": consistency})
    lines = [analyses.distance_table(analysis, consistency)]
    for scale in options.scales:
        k = analyses.choose_num_groups(analysis, scale, options.threshold)
        found = f"k = {k}" if k is not None else f"only k = {analysis['groups'][-1]}, all groups"
        lines.append(f"U_k^{scale} stays below {options.threshold:g} grey levels from: {found}.")
    job.output.write("distance.md", "\n".join([*lines, ""]))
    job.output.draw("distance", plots.distance_figure(analysis, consistency, options.threshold))


def _information(job: Job) -> None:
    """bits per dimension of each group"""
    from ..evaluation import analyses, plots

    options, pipeline = job.options, job.pipeline
    analysis = analyses.group_information(pipeline, job.photos, seed=options.seed)
    job.output.write("information.json", {"model": options.model, **analysis})
    job.output.draw("information", plots.information_figure(analysis))


def _levels(job: Job) -> None:
    """std and LPIPS between samples with one level of the latents open, and with all up to one"""
    from ..evaluation import analyses
    from ..evaluation.perceptual import LPIPS, find_lpips
    from ..pictures import references

    options, pipeline = job.options, job.pipeline
    weights = find_lpips("alexnet", options.lpips_weights)
    if options.lpips_weights is not None and weights is None:
        raise ValueError(f"`--lpips-weights`: {options.lpips_weights} is no lpips_alexnet*.safetensors, nor holds one")
    analysis = analyses.level_spread(
        pipeline,
        [references(pipeline, photo)[0] for photo in job.photos],
        options.num_samples,
        1.0 if options.temperature is None else options.temperature,
        options.seed,
        LPIPS.from_file(weights, pipeline.device) if weights else None,
    )
    job.output.write("levels.json", {"model": options.model, **analysis})
    job.output.write("levels.md", analyses.level_table(analysis))


def _reconstruction(job: Job) -> None:
    """images from the first k groups; needs a model with its encoder of x"""
    from PIL.Image import fromarray

    from ..evaluation import analyses
    from ..pictures import draw_sheet

    options, pipeline = job.options, job.pipeline
    groups = pipeline.vdvae.num_groups
    chosen = sorted({round(groups * i / 7) for i in range(8)})
    found = [analyses.reconstructions(pipeline, photo) for photo in job.photos]
    values = [{"k": k, "psnr": [psnrs[k] for _, _, psnrs in found]} for k in range(groups + 1)]
    job.output.write("reconstruction.json", {"model": options.model, "psnr": values})
    rows = [[fromarray(image) for image in (*(images[k] for k in chosen), truth)] for images, truth, _ in found]
    job.output.save("reconstruction", draw_sheet(rows, [*(f"k = {k}" for k in chosen), "x"], scale=False))


def _samples(job: Job) -> None:
    """a sheet of LR image, bicubic, samples, mean, standard deviation and truth"""
    from ..pictures import contact_sheet

    options, pipeline = job.options, job.pipeline
    tau = pipeline.config.default_temperature if options.temperature is None else options.temperature
    sheet = contact_sheet(pipeline, job.photos, [tau], options.num_samples, options.seed, across=1)
    job.output.save("samples", sheet)


def _temperature(job: Job) -> None:
    """a strip of one sample at rising temperatures"""
    from ..pictures import draw_sheet, references

    options, pipeline = job.options, job.pipeline
    rows = []
    for photo in job.photos:
        small, tile, _ = references(pipeline, photo)
        samples = [pipeline(small, temperature=tau, seed=options.seed).images[0] for tau in options.temperatures]
        rows.append([tile, *samples, photo])
    headings = ["LR", *(f"t = {tau:g}" for tau in options.temperatures), "HR"]
    job.output.save("temperature", draw_sheet(rows, headings, scale=False))


ANALYSES = {
    "distance": _distance,
    "information": _information,
    "levels": _levels,
    "reconstruction": _reconstruction,
    "samples": _samples,
    "temperature": _temperature,
}
