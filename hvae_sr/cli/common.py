"""What several commands share: the options that choose a model, and loading it."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import check_writable
from .terminal import print_line

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure
    from PIL.Image import Image

    from ..pipelines import SuperResolutionPipeline


def add_model(
    parser: argparse.ArgumentParser,
    help: str = "bundled name, folder or Hub id",
    default: str | None = "natural-x4",
    *short: str,
) -> None:
    parser.add_argument(
        *short, "--model", default=default, help=help if default is None else f"{help} (default {default})"
    )
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"])
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, xpu, mps, ...")


def add_data(parser: argparse.ArgumentParser, required: bool = True, more: str = "") -> None:
    """The options that choose the images of `hvae_sr.evaluation.sources.open_source`."""
    what = f"folder of high-resolution images, or a Hub id{more}"
    parser.add_argument("--data", required=required, metavar="DATA", help=what)
    parser.add_argument("--split", default="test", help="of a data set of the Hub (default test)")
    parser.add_argument("--image-column", default="image", help="of a data set of the Hub (default image)")


def add_lpips(parser: argparse.ArgumentParser) -> None:
    """The option of LPIPS' weights."""
    parser.add_argument(
        "--lpips-weights",
        metavar="PATH",
        help="folder of lpips_alexnet.safetensors and lpips_vgg16.safetensors, or one file (default: $HVAE_SR_LPIPS)",
    )


class Output:
    """The folder of --output-dir: texts, JSON, figures, and pictures (as PNG), whose files are printed.

    Raises ValueError: matplotlib is not installed, or the folder cannot be written to.
    """

    def __init__(self, options: argparse.Namespace):
        try:
            from ..evaluation import plots  # noqa: F401
        except ImportError as error:
            raise ValueError(str(error)) from None
        self.folder, self.format = Path(options.output_dir), options.format
        check_writable(self.folder, "--output-dir")

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("-o", "--output-dir", required=True, metavar="DIR")
        what = "of the figures (default png)"
        parser.add_argument("--format", default="png", choices=["png", "pdf", "svg"], help=what)

    def draw(self, name: str, figure: "Figure") -> None:
        from ..evaluation.plots import save_figure

        path = self.folder / f"{name}.{self.format}"
        save_figure(figure, path)
        print_line(str(path))

    def save(self, name: str, picture: "Image") -> None:
        from ..images import save_image

        path = self.folder / f"{name}.png"
        self.folder.mkdir(parents=True, exist_ok=True)
        save_image(picture, path)
        print_line(str(path))

    def write(self, name: str, content: str | dict[str, Any]) -> None:
        from ..files import strict, write_atomically

        text = content if isinstance(content, str) else json.dumps(strict(content), indent=1) + "\n"
        write_atomically(text, self.folder / name)
        print_line(str(self.folder / name))


def device_named(name: str) -> "torch.device":
    """What `--device` asks for; of "auto" the fastest that is there, of each process its own.

    Raises:
        ValueError: it cannot be used.
    """
    import torch

    from ..processes import process_state

    try:
        device = process_state().device if name == "auto" else torch.device(name)
        if device.type == "meta":
            raise RuntimeError("it computes nothing")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"`--device`: cannot use {name!r}: {str(error).splitlines()[0]}") from None
    return device


def load_pipeline(options: argparse.Namespace, fast: bool = False) -> "SuperResolutionPipeline":
    """The pipeline that --model, --dtype and --device ask for.

    Args:
        options: of the command.
        fast: for a command that only samples: --dtype auto is what is fast on the device, and the encoder of HR images
            stays out. Else auto is float32, so that figures are the same on every machine.
    """
    from ..checkpoints.names import resolve

    resolve(options.model)  # a typo should not wait for torch
    import torch
    from diffusers.utils import logging

    from .. import SuperResolutionPipeline
    from ..pipelines.baselines import pipeline_class

    logging.disable_progress_bar()
    device = device_named(options.device)
    dtype = getattr(torch, options.dtype, torch.float32)
    chosen = pipeline_class(options.model)
    if chosen is not SuperResolutionPipeline:  # a compared system
        return chosen.from_pretrained(options.model, dtype=dtype).to(device)
    if fast and options.dtype in ("auto", "bfloat16"):  # of float32 weights, either way: so that both give the same
        pipeline = SuperResolutionPipeline.from_pretrained(options.model, load_encoder=False).to(device)
        pipeline.enable_fast_inference(getattr(torch, options.dtype, "auto"))
        return pipeline
    return SuperResolutionPipeline.from_pretrained(options.model, dtype=dtype, load_encoder=not fast).to(device)
