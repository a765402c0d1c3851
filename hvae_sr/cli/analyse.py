"""Look into a model: the choice of k, the information of each group, reconstructions, samples, temperatures."""

import argparse
import json
from pathlib import Path
from typing import Any

from .common import add_model, load_pipeline

ANALYSES = {
    "distance": "U_k^s against k (appendix A of the CVDVAE paper); with --data also the expected consistency CE(k)",
    "information": "bits per dimension of each group",
    "reconstruction": "images from the first k groups; needs a model with its encoder of x",
    "samples": "a sheet of LR image, samples, mean, standard deviation and truth",
    "temperature": "a strip of one sample at rising temperatures",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "analyses:\n" + "\n".join(f"  {name:15} {text}" for name, text in ANALYSES.items())
    parser.add_argument("analysis", choices=list(ANALYSES), metavar="ANALYSIS", help=", ".join(ANALYSES))
    # The prior alone and the encoder of x are looked at, too: CVDVAE has both.
    add_model(parser, default="natural-x4-cvdvae")
    parser.add_argument("-o", "--output_dir", required=True, metavar="DIR")
    parser.add_argument(
        "--data",
        metavar="DATA",
        help="folder of high-resolution images, or a Hub id; default: two photographs that come with scikit-image",
    )
    parser.add_argument("--split", default="test", help="of a data set of the Hub (default test)")
    parser.add_argument("--image_column", default="image", help="of a data set of the Hub (default image)")
    parser.add_argument("--num_images", type=int, default=4, help="of the data, the first so many (default 4)")
    parser.add_argument("--size", type=int, help="side of the squares cut out of them (default: the model's)")
    parser.add_argument("--scales", type=int, nargs="+", default=[1, 4, 8, 16], help="distance: s (default 1 4 8 16)")
    parser.add_argument("--num_codes", type=int, default=50, help="distance: latent codes (default 50)")
    parser.add_argument("--images_per_code", type=int, default=5, help="distance: images of each code (default 5)")
    parser.add_argument("--threshold", type=float, default=0.5, help="distance: grey levels (default 0.5)")
    parser.add_argument("--sample_pixels", action="store_true", help="distance: draw x from p(x|z), not its mean")
    parser.add_argument("--num_samples", type=int, default=4, help="samples, distance: of each image (default 4)")
    parser.add_argument("--temperature", type=float, help="samples: default the model's own")
    parser.add_argument(
        "--temperatures", type=float, nargs="+", default=[0, 0.25, 0.5, 0.75, 1], help="temperature: of the strip"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--format", default="png", choices=["png", "pdf", "svg"], help="of the figures (default png)")


def run(options: argparse.Namespace) -> int:
    try:
        from ..evaluation import figures  # noqa: F401  # before anything is computed
    except ImportError as error:
        raise ValueError(str(error)) from None
    pipeline = load_pipeline(options)
    pipeline.set_progress_bar_config(disable=True)
    photos = _photos(options, pipeline) if options.data is not None or options.analysis != "distance" else []
    _RUN[options.analysis](options, pipeline, photos)
    return 0


def _photos(options: argparse.Namespace, pipeline: Any) -> list[Any]:
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
    size = options.size or pipeline.vdvae.config.image_size
    scale = pipeline.config.scale_factor
    return [Image.fromarray(prepare_thesis(image, size, scale)[0]) for image in images]


def _low_resolution(pipeline: Any, photo: Any) -> Any:
    """y of a photograph, in 8 bits, by the pipeline's own operator."""
    import numpy as np
    from PIL import Image

    from ..evaluation.metrics import to_planes, to_uint8

    y = pipeline.operator(to_planes(np.asarray(photo) / 255))
    return Image.fromarray(to_uint8(y.permute(1, 2, 0)))


def _draw(options: argparse.Namespace, name: str, figure: Any) -> None:
    from ..evaluation.figures import save_figure

    path = Path(options.output_dir) / f"{name}.{options.format}"
    save_figure(figure, path)
    print(path)


def _write(options: argparse.Namespace, name: str, content: Any) -> None:
    from ..evaluation.storage import strict
    from ..files import write_atomically

    text = content if isinstance(content, str) else json.dumps(strict(content), indent=1) + "\n"
    path = Path(options.output_dir) / name
    write_atomically(text, path)
    print(path)


def _distance(options: argparse.Namespace, pipeline: Any, photos: list[Any]) -> None:
    from ..evaluation import analyses
    from ..evaluation.figures import distance_figure

    size = (options.size, options.size) if options.size else None
    analysis = analyses.low_resolution_distance(
        pipeline.vdvae,
        options.scales,
        options.num_codes,
        options.images_per_code,
        size=size,
        kernel=pipeline.config.downsampling_kernel,
        sample_pixels=options.sample_pixels,
        seed=options.seed,
    )
    consistency = None
    if photos:
        lows = [_low_resolution(pipeline, photo) for photo in photos]
        consistency = analyses.expected_consistency(pipeline, lows, num_samples=options.num_samples, seed=options.seed)
    _write(options, "distance.json", {"model": options.model, "distance": analysis, "consistency": consistency})
    lines = [analyses.distance_table(analysis, consistency)]
    for scale in options.scales:
        k = analyses.choose_num_groups(analysis, scale, options.threshold)
        found = f"k = {k}" if k is not None else f"only k = {analysis['groups'][-1]}, all groups"
        lines.append(f"U_k^{scale} stays below {options.threshold:g} grey levels from: {found}.")
    _write(options, "distance.md", "\n".join([*lines, ""]))
    _draw(options, "distance", distance_figure(analysis, consistency, options.threshold))


def _information(options: argparse.Namespace, pipeline: Any, photos: list[Any]) -> None:
    from ..evaluation.analyses import group_information
    from ..evaluation.figures import information_figure

    analysis = group_information(pipeline, photos, seed=options.seed)
    _write(options, "information.json", {"model": options.model, **analysis})
    _draw(options, "information", information_figure(analysis))


def _reconstruction(options: argparse.Namespace, pipeline: Any, photos: list[Any]) -> None:
    from ..evaluation.analyses import reconstructions
    from ..evaluation.figures import image_grid

    groups = pipeline.vdvae.num_groups
    chosen = sorted({round(groups * i / 7) for i in range(8)})
    found = [reconstructions(pipeline, photo) for photo in photos]
    values = [{"k": k, "psnr": [psnrs[k] for _, _, psnrs in found]} for k in range(groups + 1)]
    _write(options, "reconstruction.json", {"model": options.model, "psnr": values})
    rows = [[*(images[k] for k in chosen), truth] for images, truth, _ in found]
    _draw(options, "reconstruction", image_grid(rows, [*(f"k = {k}" for k in chosen), "x"]))


def _samples(options: argparse.Namespace, pipeline: Any, photos: list[Any]) -> None:
    from ..evaluation.figures import sample_grid

    entries = []
    for photo in photos:
        low = _low_resolution(pipeline, photo)
        out = pipeline(low, num_samples=options.num_samples, temperature=options.temperature, seed=options.seed)
        entries.append({"lr": low, "samples": out.images, "mean": out.mean[0], "std": out.std[0], "truth": photo})
    _draw(options, "samples", sample_grid(entries))


def _temperature(options: argparse.Namespace, pipeline: Any, photos: list[Any]) -> None:
    from ..evaluation.figures import image_grid

    rows = []
    for photo in photos:
        low = _low_resolution(pipeline, photo)
        found = [pipeline(low, temperature=tau, seed=options.seed).images[0] for tau in options.temperatures]
        rows.append([low, *found, photo])
    headings = ["LR", *(f"$\\tau$ = {tau:g}" for tau in options.temperatures), "HR"]
    _draw(options, "temperature", image_grid(rows, headings))


_RUN = {
    "distance": _distance,
    "information": _information,
    "reconstruction": _reconstruction,
    "samples": _samples,
    "temperature": _temperature,
}
