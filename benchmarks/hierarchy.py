"""What the levels of a sampler say, and how its samples look: figures at several temperatures and by level.

python benchmarks/hierarchy.py FOLDER --images DIR [--every 8] --lpips FILE [--pictures DIR] [--size 256]

FOLDER has the subfolders `vdvae` and `lr_encoder`. Pairs are those of the thesis' protocol. For one sample at each
temperature: PSNR on Y and LPIPS (AlexNet) against the truth, and the mean and the 99.9th percentile of |Laplacian of
luma| over those of the truth. At t = 1: E d(x1, x2) / E d(x1, x) for d = LPIPS and MSE. For the groups of each level
alone, and for all from the coarsest on: standard deviation (grey levels) of, and LPIPS between, two samples.
"""

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from hvae_sr import VDVAE, Downsampling, LRConditioner
from hvae_sr.evaluation.metrics import luma, psnr_y
from hvae_sr.evaluation.perceptual import LPIPS
from hvae_sr.evaluation.protocols import prepare_thesis
from hvae_sr.models import Condition
from hvae_sr.noise import CounterNoise


def as_tensor(image: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1


def detail(image: np.ndarray) -> np.ndarray:
    y = torch.from_numpy(luma(image))[None, None]
    kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]], dtype=y.dtype)[None, None]
    return F.conv2d(y, kernel).abs().flatten().numpy()


def sample(
    vdvae: VDVAE,
    operator: Downsampling,
    condition: Condition,
    y: Tensor,
    temperature: float | Sequence[float],
    seed: int,
) -> np.ndarray:
    """A projected sample, `[H, W, 3]` uint8, for y `[1, 3, h, w]`."""
    size = (y.shape[-2] * operator.scale_factor, y.shape[-1] * operator.scale_factor)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        out = vdvae.sample(1, size, CounterNoise([seed]), condition=condition, temperature=temperature)
    x = operator.project(condition.finish(out.sample.float(), temperature), y)[0].permute(1, 2, 0)
    return ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--images", required=True)
    parser.add_argument("--every", type=int, default=8)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--lpips", required=True)
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.0, 0.5, 0.8, 1.0])
    parser.add_argument("--pictures", help="folder for PNGs of the first images")
    parser.add_argument("--output", help="JSON")
    given = parser.parse_args()
    vdvae = VDVAE.from_pretrained(Path(given.folder) / "vdvae").eval()
    network = LRConditioner.from_pretrained(Path(given.folder) / "lr_encoder").eval()
    operator, lpips = Downsampling(4), LPIPS.from_file(given.lpips).distance
    levels = sorted(set(vdvae.resolutions))
    rows: dict[str, list[Any]] = {}

    def add(name: str, value: float) -> None:
        rows.setdefault(name, []).append(value)

    paths = sorted(p for p in Path(given.images).iterdir() if p.suffix in (".png", ".jpg"))[:: given.every]
    for number, path in enumerate(paths):
        hr, lr = prepare_thesis(Image.open(path), given.size)
        y = as_tensor(lr)
        truth = detail(hr)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            condition = network.encode(y)
        draw = partial(sample, vdvae, operator, condition, y)
        pictures = {"truth": hr, "lr": np.asarray(Image.fromarray(lr).resize(hr.shape[:2], Image.Resampling.NEAREST))}
        for t in given.temperatures:
            image = draw(t, 1)
            pictures[f"t{t:g}"] = image
            add(f"t={t:g} PSNR", psnr_y(image, hr))
            add(f"t={t:g} LPIPS", lpips(image, hr))
            found = detail(image)
            add(f"t={t:g} detail", found.mean() / truth.mean())
            add(f"t={t:g} p99.9", np.percentile(found, 99.9) / np.percentile(truth, 99.9))
        one, other = (draw(1.0, seed) for seed in (1, 2))
        add("LPIPS x1 x2", lpips(one, other))
        add("LPIPS x1 x", (lpips(one, hr) + lpips(other, hr)) / 2)
        add("MSE x1 x2", ((one.astype(float) - other) ** 2).mean())
        add("MSE x1 x", (((one.astype(float) - hr) ** 2).mean() + ((other.astype(float) - hr) ** 2).mean()) / 2)
        for level in levels:
            for name, chosen in (("alone", {level}), ("up to", {r for r in levels if r <= level})):
                t = [float(r in chosen) for r in vdvae.resolutions]
                one, other = (draw(t, seed) for seed in (1, 2))
                add(f"{level} {name} std", (((one.astype(float) - other) ** 2).mean() / 2) ** 0.5)
                add(f"{level} {name} LPIPS", lpips(one, other))
                if name == "up to" and level == levels[-2]:
                    pictures["coarse"] = one
        if given.pictures and number < 6:
            Path(given.pictures).mkdir(parents=True, exist_ok=True)
            pictures["t1b"] = draw(1.0, 2)
            for name, image in pictures.items():
                Image.fromarray(image).save(Path(given.pictures) / f"{path.stem}_{name}.png")
    mean = {name: float(np.mean(values)) for name, values in rows.items()}
    for t in given.temperatures:
        print(f"t={t:g}: " + " / ".join(f"{mean[f't={t:g} {n}']:.4g}" for n in ("PSNR", "LPIPS", "detail", "p99.9")))
    ratios = (mean[f"{name} x1 x2"] / mean[f"{name} x1 x"] for name in ("LPIPS", "MSE"))
    print("exchangeability LPIPS {:.3f} MSE {:.3f}".format(*ratios))
    for level in levels:
        shown = (f"{n} {mean[f'{level} {n} std']:.2f} / {mean[f'{level} {n} LPIPS']:.3f}" for n in ("alone", "up to"))
        print(f"resolution {level}: " + ", ".join(shown))
    if given.output:
        Path(given.output).write_text(json.dumps(mean, indent=2))


if __name__ == "__main__":
    main()
