"""The Space. On your own machine: `hvae-sr demo`."""

try:
    import spaces  # noqa: F401  # on ZeroGPU it has to come before torch
except ImportError:
    pass

import os

from hvae_sr.demo.interface import build, launch

names = os.environ.get("HVAE_SR_MODELS", "natural-x4,photo-x4,natural-x2,natural-x8,natural-x4-cvdvae")
demo = build(
    [name.strip() for name in names.split(",") if name.strip()],
    max_pixels=int(os.environ.get("HVAE_SR_MAX_PIXELS", 256 * 256)),
)

if __name__ == "__main__":
    launch(demo)
