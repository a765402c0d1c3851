"""What samples gain and lose when they are moved towards a restoration network's image: to choose `restored_shares`.

python benchmarks/restored_shares.py MODEL --data DIR [--every 17] [--temperatures 0 0.35 1] [--shares 0 0.25 0.5 0.75]
    [--tolerances none 20] [--degradations clean mild-jpeg ...] [--lpips DIR]

MODEL is the name or folder of one that has a restorer, whose image it is.
Pairs of the thesis' protocol at S=256. Two samples at each temperature are drawn once, not moved by the model's own
shares, then moved by each share (`hvae_sr.models.restorer.move_towards`), and projected again where the model
projects. For each: PSNR on Y and LPIPS (AlexNet) of the first in 8 bits, and the exchangeability ratios of both, for
LPIPS and the squared error.
"""

import argparse
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image

from hvae_sr.cli.common import load_pipeline
from hvae_sr.data import degrade, load_degradation
from hvae_sr.evaluation import load_perceptual
from hvae_sr.evaluation.metrics import psnr_y, to_uint8
from hvae_sr.evaluation.protocols import prepare_thesis
from hvae_sr.images import find_images, to_tensor
from hvae_sr.models.restorer import move_towards

Distance = Callable[[np.ndarray, np.ndarray], float]


def load(name: str) -> Any:
    pipeline = load_pipeline(argparse.Namespace(model=name, dtype="auto", device="cpu"), fast=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def images(pipeline: Any, y: Image.Image, **options: Any) -> torch.Tensor:
    """Of a pipeline, `[n, 3, H, W]` on [-1, 1]."""
    found = np.asarray(pipeline(y, seed=0, output_type="np", **options).images, dtype=np.float32)
    return torch.from_numpy(found.reshape(-1, *found.shape[-3:])).permute(0, 3, 1, 2) * 2 - 1


@torch.no_grad()
def estimate(pipeline: Any, y: Image.Image) -> torch.Tensor:
    """G(y), `[1, 3, H, W]` on [-1, 1]."""
    x = to_tensor(y)[None] * 2 - 1
    with torch.autocast("cpu", torch.bfloat16):
        return pipeline.lr_encoder.restorer(x).image


def tolerance_of(text: str) -> float | None:
    return None if text == "none" else float(text)


def figures(samples: torch.Tensor, truth: np.ndarray, lpips: Distance) -> list[float]:
    """PSNR and LPIPS of the first sample; of two also E d(x_1, x_2) and E d(x_1, x) for LPIPS and the squared error.

    Args:
        samples: `[n, 3, H, W]` on [-1, 1].
        truth: `[H, W, 3]` uint8.
        lpips: of two images.
    """
    one, *others = (to_uint8(((x + 1) / 2).clamp(0, 1).permute(1, 2, 0).numpy()) for x in samples)
    row = [psnr_y(one, truth), lpips(one, truth)]
    for other in others:
        for distance in (lpips, lambda a, b: float(np.square(a.astype(float) - b).mean())):
            row += [distance(one, other), (distance(one, truth) + distance(other, truth)) / 2]
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--data", required=True)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.0, 0.35, 1.0])
    parser.add_argument("--shares", type=float, nargs="+", default=[0.0, 0.25, 0.5, 0.75])
    add = parser.add_argument
    add("--tolerances", nargs="+", type=tolerance_of, default=[None, 20.0], help="in grey levels, or none")
    parser.add_argument("--degradations", nargs="+", default=["mild-jpeg", "noise", "blur-noise", "second-order"])
    parser.add_argument("--lpips", help="folder of lpips_alexnet.safetensors; default: $HVAE_SR_LPIPS")
    given = parser.parse_args()
    pipeline = load(given.model)
    if getattr(pipeline.lr_encoder, "restorer", None) is None:
        parser.error(f"`MODEL` must have a restorer, {given.model} has none")
    pipeline.lr_encoder.shares = []
    choices = [(m, tau) for m in given.shares for tau in (given.tolerances if m else [None])]
    operator = pipeline.operator
    metric = load_perceptual(["lpips"], lpips_weights=given.lpips).lpips
    paths = find_images([given.data])[:: given.every]
    if metric is None or not paths:
        parser.error("`--lpips` must name AlexNet's weights, or HVAE_SR_LPIPS" if paths else "`--data` holds no images")
    lpips = metric.distance
    for degradation in given.degradations:
        rows: dict[str, list[list[float]]] = defaultdict(list)
        for index, path in enumerate(paths):
            truth, clean = map(np.asarray, prepare_thesis(Image.open(path).convert("RGB"), 256))
            kind = None if degradation == "clean" else load_degradation(degradation)
            y = Image.fromarray(clean if kind is None else degrade(truth, kind, 0, index, operator.scale_factor))
            observed = to_tensor(y)[None] * 2 - 1
            towards = estimate(pipeline, y)
            for t in given.temperatures:
                drawn = images(pipeline, y, temperature=t, num_samples=2 if t else 1)
                for share, tolerance in choices:
                    x = move_towards(drawn, towards, share, tolerance, operator.scale_factor)
                    x = operator.project(x, observed) if pipeline.config.consistency == "exact" else x
                    name = f"t={t:g}, share {share:g}" + ("" if tolerance is None else f", tolerance {tolerance:g}")
                    rows[name].append(figures(x, truth, lpips))
            rows["the restorer's image"].append(figures(towards, truth, lpips))
        print(f"{degradation}, {len(rows[name])} images: PSNR / LPIPS, ratios of LPIPS and the squared error")
        for name, found in rows.items():
            psnr, lpips_of_one, *apart = np.mean(found, axis=0)
            ratios = f", {apart[0] / apart[1]:.2f}, {apart[2] / apart[3]:.2f}" if apart else ""
            print(f"  {name}: {psnr:.2f} / {lpips_of_one:.3f}{ratios}", flush=True)


if __name__ == "__main__":
    main()
