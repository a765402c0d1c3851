"""A model and a restoration network, made one: samples are moved towards the network's image.

Sharper samples without training: at each temperature they go a share of the way to the image of a GAN such as ESRGAN or
RealSR, and are made consistent with the input again where the model is.
"""

import argparse
from pathlib import Path

from ..files import check_writable
from .terminal import print_line

SHARES = "0:0,0.5:0.4,0.8:0.6,1:0"
"""What `docs/photographs.md` measures."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="MODEL", help="a name, folder or Hub id, for x4")
    add("--restorer", required=True, metavar="FOLDER", help="of an RRDB network that `hvae-sr convert` wrote")
    add("-o", "--output-dir", required=True, metavar="DIR", help="a folder that does not exist yet")
    add(
        "--restored-shares",
        default=SHARES,
        metavar="T:M,...",
        help=f"the share M at each temperature T (default {SHARES})",
    )
    add(
        "--restored-tolerance",
        type=float,
        metavar="LEVELS",
        help="less of it where both disagree by so many grey levels",
    )
    add("--default-temperature", type=float, metavar="T", help="of the new model (default: as before)")


def run(options: argparse.Namespace) -> int:
    check_writable(Path(options.output_dir), "--output-dir")
    if Path(options.output_dir).exists():
        raise ValueError(f"`--output-dir` must not exist yet, got {options.output_dir}")
    from diffusers.utils import logging

    from .. import LRConditioner, SuperResolutionPipeline
    from ..baselines import RRDBNet
    from ..checkpoints.growth import add_restorer
    from ..pipelines.baselines import pipeline_class

    logging.disable_progress_bar()
    if pipeline_class(options.model) is not SuperResolutionPipeline:
        raise ValueError(f"`MODEL` must be a model of this package, {options.model} is a compared system")
    restorer = pipeline_class(options.restorer).from_pretrained(options.restorer)
    trained = restorer.components.get("network")
    if not isinstance(trained, RRDBNet):
        raise ValueError(f"`--restorer` must hold an RRDBNet, got {type(trained).__name__} in {options.restorer}")
    pipe = SuperResolutionPipeline.from_pretrained(options.model)
    if not isinstance(pipe.lr_encoder, LRConditioner):
        raise ValueError(f"`MODEL` must have an LRConditioner, {options.model} has {type(pipe.lr_encoder).__name__}")
    combined = add_restorer(pipe.lr_encoder, trained, options.restored_shares, options.restored_tolerance)
    settings = {name: pipe.config[name] for name in ("scale_factor", "downsampling_kernel", "consistency")}
    settings |= {name: pipe.config[name] for name in ("input_description", "fast_inference")}
    given = options.default_temperature
    new = SuperResolutionPipeline(
        pipe.vdvae.half(),  # as the bundled ones are; the restorer's kernels have no more
        combined.half(),
        default_temperature=pipe.config.default_temperature if given is None else given,
        **settings,
    )
    new.save_pretrained(options.output_dir)
    print_line(f"wrote {options.output_dir}")
    return 0
