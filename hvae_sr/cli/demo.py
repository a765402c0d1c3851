"""Show the web page of the demo, from this machine and without a network."""

import argparse
import os
import socket

from ..checkpoints.names import resolve
from .common import device_named


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        nargs="+",
        default=["natural-x4", "photo-x4", "natural-x2", "natural-x8", "natural-x4-cvdvae"],
        help="bundled names, folders or Hub ids",
    )
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in (default 127.0.0.1)")
    parser.add_argument(
        "--port", type=int, help="0 takes a free one (default GRADIO_SERVER_PORT, else the first free from 7860 on)"
    )
    parser.add_argument(
        "--max-pixels", type=int, default=512 * 512, help="of an input; a quarter at x8 (default 262144)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, xpu, mps, ...")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"])
    parser.add_argument("--no-browser", action="store_true", help="only print the address")


def run(options: argparse.Namespace) -> int:
    if options.port is not None and not 0 <= options.port <= 65535:
        raise ValueError(f"`--port` must be between 0 and 65535, got {options.port}")
    for name in options.model:
        resolve(name)  # a typo should not wait for gradio and torch
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio  # noqa: F401
    except ImportError:
        raise ValueError("the demo needs gradio: pip install 'hvae-sr[demo]'") from None
    import torch

    from ..demo.interface import build, launch

    if options.max_pixels < 16:
        raise ValueError(f"`--max-pixels` must be at least 16, got {options.max_pixels}")
    blocks = build(
        options.model,
        options.max_pixels,
        str(device_named(options.device)),
        None if options.dtype == "auto" else getattr(torch, options.dtype),
    )
    port = _free_port() if options.port == 0 else options.port
    launch(blocks, server_name=options.host, server_port=port, inbrowser=not options.no_browser)
    return 0


def _free_port() -> int:
    """Gradio takes 0 as it is, and none as that of its environment variable."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
