"""Counted operations of one 256x256 sample, x4, by kinds of methods.

python benchmarks/methods.py [--measure]

SR3 and DPS are rows of costs.py, networks of this package; LDM-SR and Swin2SR are of diffusers' and transformers' own
classes. All are built on the meta device: nothing is computed and nothing downloaded. Two operations for each product.
--measure also times one evaluation of LDM-SR's and Swin2SR's networks on this machine, with random weights.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from costs import costs_of_preset
from diffusers import UNet2DModel, VQModel
from speed import flops
from torch.utils.flop_counter import FlopCounterMode
from transformers import Swin2SRConfig, Swin2SRForImageSuperResolution


def ldm() -> tuple[Any, Callable[[Any], Any]]:
    """The denoiser of LDM-SR as diffusers publishes it (CompVis/ldm-super-resolution-4x-openimages), at 64x64."""
    net = UNet2DModel(
        sample_size=64,
        in_channels=6,
        out_channels=3,
        layers_per_block=2,
        block_out_channels=(160, 320, 320, 640),
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        attention_head_dim=32,
    )
    return net, lambda net: net(torch.empty(1, 6, 64, 64), 1)


def ldm_decoder() -> tuple[Any, Callable[[Any], Any]]:
    """LDM-SR's first stage, once for each sample: VQ-f4, 128 channels, multipliers 1 2 4."""
    net = VQModel(
        in_channels=3,
        out_channels=3,
        latent_channels=3,
        layers_per_block=2,
        block_out_channels=(128, 256, 512),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        num_vq_embeddings=8192,
    )
    return net, lambda net: net.decoder(net.post_quant_conv(torch.empty(1, 3, 64, 64)))


def swin2sr() -> tuple[Any, Callable[[Any], Any]]:
    """Swin2SR classical x4 (180 channels, six stages of six blocks): a regression, no samples."""
    config = Swin2SRConfig(
        image_size=64, embed_dim=180, depths=[6] * 6, num_heads=[6] * 6, upscale=4, upsampler="pixelshuffle"
    )
    return Swin2SRForImageSuperResolution(config), lambda net: net(torch.empty(1, 3, 64, 64))


# (name, preset of costs.py, start of the note that its row has there)
PRESETS = [
    ("SR3 (`sr3-64-256`)", "sr3-64-256", "256 x 256"),
    ("DPS (`dps-ffhq256`), a pass with its gradient by x", "dps-ffhq256", "guided"),
]
# (name, network, evaluations for one sample)
METHODS = [
    ("LDM-SR", ldm, 100),
    ("LDM-SR's decoder", ldm_decoder, 1),
    ("Swin2SR (one image, no samples)", swin2sr, 1),
]


def count(build: Callable[[], tuple[Any, Callable[[Any], Any]]]) -> tuple[float, int]:
    """(FLOP of one forward pass, parameters)."""
    with torch.device("meta"), torch.no_grad():
        net, call = build()
        net.requires_grad_(False)
        with FlopCounterMode(display=False) as counter:
            call(net.eval())
    return counter.get_total_flops(), sum(p.numel() for p in net.parameters())


def seconds(build: Callable[[], tuple[Any, Callable[[Any], Any]]]) -> float:
    """Processor seconds of one forward pass on one thread."""
    net, call = build()
    with torch.no_grad():
        start = time.process_time()
        call(net.eval())
        return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| method | parameters | GFLOP a pass | passes a sample | TFLOP a sample | of CVDVAE's |")
    print("|---|---|---|---|---|---|")
    ours = (flops("cvdvae-ffhq256-x4", 5) - flops("cvdvae-ffhq256-x4", 1)) / 4  # one more sample of one image
    print(f"| CVDVAE FFHQ-256 x4, one more sample | | {ours / 1e9:.0f} | 1 | {ours / 1e12:.2f} | 1 |")
    rows = []
    for name, preset, note in PRESETS:
        cost = next(cost for cost in costs_of_preset(preset) if cost.note.startswith(note))
        rows.append((name, cost.parameters, 1e9 * cost.gflop, cost.nfe))
    for name, build, passes in METHODS:
        forward, parameters = count(build)
        measured = f" ({seconds(build):.1f} s a pass)" if options.measure else ""
        rows.append((name + measured, parameters, forward, passes))
    for name, parameters, flop, passes in rows:
        total = flop * passes
        print(
            f"| {name} | {parameters / 1e6:.1f} M | {flop / 1e9:.0f} | {passes} | {total / 1e12:.2f} | "
            f"{total / ours:.2f} |"
        )


if __name__ == "__main__":
    main()
