"""Make the pixel intervals of a model hold the truth as often as they say, on images of your own."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..files import read_object
from .common import add_data, add_model, load_pipeline
from .terminal import print_line, shows_progress

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL.Image import Image

    from ..evaluation.sources import SourceImage


INDEX, CARD = "model_index.json", "README.md"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_data(parser, more=", which the model was not trained on; at least nine for 90 %% intervals")
    parser.add_argument("--low", metavar="FOLDER", help="their LR images, named alike; default: made by the model's H")
    parser.add_argument("--coverage", type=float, default=0.9, help="what intervals are to hold (default 0.9)")
    parser.add_argument("--num-samples", type=int, default=32, help="of each image (default 32)")
    parser.add_argument("--temperature", type=float, default=1.0, help="of the samples (default 1)")
    what = (
        "side of the square in the middle of each image that is used, to save time, and that the promise is about "
        "(default 256; 0: whole images)"
    )
    parser.add_argument("--size", type=int, default=256, help=what)
    parser.add_argument("--num-images", type=int, help="only the first so many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "-o", "--output-dir", required=True, metavar="DIR", help="where the calibrated model is written"
    )


def run(options: argparse.Namespace) -> int:
    import json
    import shutil

    from huggingface_hub import snapshot_download

    from ..checkpoints.names import resolve
    from ..evaluation.sources import open_source
    from ..files import WEIGHTS, check_writable, replacing_in, write_atomically
    from ..images import load_image
    from ..pipelines import SuperResolutionPipeline
    from ..posterior.conformal import check_coverage
    from ..publishing.push import PUBLISHED, files_to_push

    output = Path(options.output_dir)
    check_writable(output, "output_dir")
    folder = Path(resolve(options.model))
    if folder.resolve() in output.resolve().parents:
        raise ValueError(f"`output_dir`: {output} is inside the model {folder}, and would become part of it")
    _check_place(output)
    source = open_source(options.data, options.split, options.image_column, options.num_images)
    try:
        check_coverage(options.coverage, len(source.images))
    except ValueError as error:  # of the pipeline's `images`, which are those of `--data` here
        raise ValueError(str(error).replace("`images`", "`data`: images")) from None
    if not folder.is_dir():  # also what is not loaded, such as the encoder of x
        folder = Path(snapshot_download(options.model, allow_patterns=list(PUBLISHED)))
        options.model = str(folder)
    pipeline = load_pipeline(options, fast=True)
    if not isinstance(pipeline, SuperResolutionPipeline):
        raise ValueError(f"`model`: {type(pipeline).__name__} is not calibrated: intervals are made for VD-VAE models")
    scale = pipeline.operator.scale_factor
    if options.size < 0 or options.size % scale:
        raise ValueError(f"`size` must be a multiple of {scale}, or 0, got {options.size}")
    files = _low_images(options.low, source.images) if options.low is not None else {}
    pipeline.set_progress_bar_config(disable=not shows_progress())
    images, low = [], []
    for image in source.images:
        x = image.load()
        corner = tuple(max(side // scale - options.size // scale, 0) // 2 for side in x.size)  # in pixels of y
        images.append(_cut(x, corner, options.size, scale))
        if files:
            y = load_image(files[image.name])
            if any(abs(side * scale - of_x) >= scale for side, of_x in zip(y.size, x.size, strict=True)):
                found = f"{files[image.name]} is {y.width}x{y.height}"
                raise ValueError(f"`low`: {found}, which is not {x.width}x{x.height} over {scale}")
            low.append(_cut(y, corner, options.size // scale, 1))
    found = pipeline.calibrate(
        images, low or None, options.coverage, options.num_samples, options.temperature, seed=options.seed
    )
    # Weights bit by bit, with their licence and card.
    index = json.loads((folder / INDEX).read_text("utf-8"))
    text = json.dumps({**index, "calibration": found.to_dict()}, indent=2) + "\n"
    if folder.resolve() == output.resolve():
        write_atomically(text, output / INDEX)
    else:
        with replacing_in(output, INDEX, WEIGHTS) as temporary:
            for name, file in files_to_push(folder).items():
                (temporary / name).parent.mkdir(parents=True, exist_ok=True)
                if isinstance(file, Path):
                    shutil.copyfile(file, temporary / name)
                elif name == CARD:  # that of another model may be in its place
                    (temporary / name).write_bytes(file)
            (temporary / INDEX).write_text(text, "utf-8")
    part = f"the middle {options.size}x{options.size} of further ones" if options.size else "further ones"
    print_line(
        f"intervals of {found.coverage:g} at temperature {found.temperature:g}, {found.num_samples} samples: "
        f"to be widened {found.factor:.3f} times, found on {found.num_images} images; of {part} like these they hold "
        f"{found.coverage:.1%} to {found.promised:.1%} on average; wrote {output}"
    )
    return 0


def _low_images(folder: str, images: "Sequence[SourceImage]") -> dict[str, Path]:
    """The LR image of each HR image: that of its name, or else the only one of its stem, `{name: path}`.

    Raises:
        ValueError: there is none, or it could be that of another one too.
    """
    from ..evaluation.sources import list_images

    files = list_images(folder, "low")
    found = {path.name: path for path in files}
    left = [image for image in images if image.name not in found]
    for image in left:
        own = [path for path in files if path.stem == image.stem]
        same = [other.name for other in images if other.stem == image.stem]
        if not own:
            missing = [image.name for image in left if not any(path.stem == image.stem for path in files)]
            raise ValueError(f"`low`: {folder} has no image of {', '.join(missing[:5])}")
        if len(own) > 1 or len(same) > 1:
            raise ValueError(
                f"`low`: {' and '.join(path.name for path in own)} may be of {' or '.join(same)}; name them alike"
            )
        found[image.name] = own[0]
    return found


def _check_place(output: Path) -> None:
    """Raises a ValueError for a folder of another system, or of other files, which would be mixed or replaced."""
    if (output / INDEX).is_file():
        found = read_object(output / INDEX, "output_dir").get("_class_name")
        if found != "SuperResolutionPipeline":
            raise ValueError(f"`output_dir`: {output} holds another system, {found}; name a new folder")
    elif output.is_dir() and any(output.iterdir()):
        raise ValueError(f"`output_dir`: {output} is not empty and holds no model; name a new folder")


def _cut(image: "Image", corner: tuple[int, ...], size: int, multiple: int) -> "Image":
    """The square of `size` pixels from `corner` times `multiple` on, or what of it there is; for a size of 0, all."""
    if not size:
        return image
    left, top = (place * multiple for place in corner)
    return image.crop((left, top, min(left + size, image.width), min(top + size, image.height)))
