"""Write the whole sampler as one ONNX file.

Inputs: the image, the temperature and the noise of every group; output: the samples. Needs `hvae-sr[onnx]`.
"""

import argparse
import os
from pathlib import Path

from ..checkpoints.names import resolve
from ..files import check_file
from .common import add_model
from .terminal import print_line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", metavar="FILE.onnx", help="the file to write")
    add_model(parser)
    parser.add_argument(
        "--size", nargs="+", type=int, default=[64], metavar="N", help="height and width of the input (default 64 64)"
    )


def run(options: argparse.Namespace) -> int:
    if len(options.size) > 2:
        raise ValueError(f"`--size` must be one number or two, got {len(options.size)}")
    if options.dtype not in ("auto", "float32"):
        raise ValueError(f"`--dtype`: ONNX files are float32, got {options.dtype!r}")
    path = Path(options.output)
    if path.suffix != ".onnx":
        raise ValueError(f"`FILE.onnx` must end in .onnx, got {options.output!r}")
    if options.device not in ("auto", "cpu"):
        raise ValueError(f"`--device` must be cpu, where ONNX files are made, got {options.device!r}")
    check_file(path, "FILE.onnx")
    resolve(options.model)  # a typo should not wait for torch
    from diffusers.utils import logging

    from .. import SuperResolutionPipeline
    from ..pipelines.baselines import pipeline_class
    from ..pipelines.onnx import export_onnx

    logging.disable_progress_bar()
    kind = pipeline_class(options.model)
    if kind is not SuperResolutionPipeline:
        raise ValueError(
            f"`--model`: {options.model} is a system of {kind.__name__}, which has no VD-VAE to make a file of"
        )
    import torch

    pipe = SuperResolutionPipeline.from_pretrained(options.model, dtype=torch.float32, load_encoder=False)
    height, width = options.size[0], options.size[-1]
    export_onnx(pipe, path, (height, width))
    print_line(
        f"{path}  {height}x{width} -> {height * pipe.config.scale_factor}x{width * pipe.config.scale_factor}, "
        f"{os.path.getsize(path) / 2**20:.1f} MiB"
    )
    return 0
