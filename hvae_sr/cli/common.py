"""What several commands share: the options that choose a model, and loading it."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..pipelines import SuperResolutionPipeline


def add_model(
    parser: argparse.ArgumentParser, help: str = "bundled name, folder or Hub id", default: str | None = "natural-x4"
) -> None:
    parser.add_argument("--model", default=default, help=help if default is None else f"{help} (default {default})")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"])
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, xpu, mps, ...")


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
    from ..processes import process_state

    logging.disable_progress_bar()
    try:
        device = process_state().device if options.device == "auto" else torch.device(options.device)
        if device.type == "meta":
            raise RuntimeError("it computes nothing")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"`--device`: cannot use {options.device!r}: {str(error).splitlines()[0]}") from None
    if fast and options.dtype in ("auto", "bfloat16"):  # of float32 weights, either way: so that both give the same
        pipeline = SuperResolutionPipeline.from_pretrained(options.model, load_encoder=False).to(device)
        pipeline.enable_fast_inference(getattr(torch, options.dtype, "auto"))
        return pipeline
    dtype = torch.float32 if options.dtype == "auto" else getattr(torch, options.dtype)
    return SuperResolutionPipeline.from_pretrained(options.model, dtype=dtype, load_encoder=not fast).to(device)


def check_writable(folder: Path, option: str) -> None:
    """Raises a ValueError that names `option` where a folder can neither be written to nor be made."""
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        raise ValueError(f"`{option}`: cannot write to {folder}")
