"""How often intervals of samples hold the truth, as they are and calibrated on other photographs.

python benchmarks/calibration.py --data PHOTOGRAPHS [--model natural-x4] [--size 64] -o calibration.json
python benchmarks/calibration.py --plot calibration.json -o docs/images/calibration.png

The square in the middle of each photograph, y = Hx in 8 bits. The photographs are dealt out into two halves; the factor
of each half is tried on the other one (`hvae_sr.posterior.conformal`), at nine levels. At 90 %, n photographs are drawn
at random for calibration and the others tried, again and again, for n from the least to three quarters of all.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from hvae_sr import SuperResolutionPipeline
from hvae_sr.data.pairs import make_pairs
from hvae_sr.files import write_atomically
from hvae_sr.images import find_images, load_image
from hvae_sr.posterior.conformal import FACTORS, missed, quantiles_of, smallest_factor, widen

LEVELS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
SPLITS = 1000
"""Random draws of the photographs for calibration, for each number of them."""
QUANTILES = [quantiles_of(level)[0] for level in LEVELS] + [0.5] + [quantiles_of(level)[2] for level in LEVELS]


def intervals(quantiles: torch.Tensor, place: int) -> torch.Tensor:
    """Those of `LEVELS[place]`."""
    place %= len(LEVELS)
    return quantiles[[place, len(LEVELS), len(LEVELS) + 1 + place]]


def inside(found: torch.Tensor, x: torch.Tensor) -> float:
    return float(((found[0] <= x) & (x <= found[2])).double().mean())


def width(found: torch.Tensor) -> float:
    return 255 * float((found[2] - found[0]).double().mean())


def repeated(curves: np.ndarray, level: float) -> list[dict[str, float]]:
    """What intervals hold of the photographs that they were not calibrated on, for numbers n of those that they were.

    Args:
        curves: `[photographs, factors]`, see `missed`.
    """
    generator, total, rows = np.random.default_rng(0), len(curves), []
    for n in [9, 25, 50, 100, 180]:
        if n > 3 * total // 4:
            break
        shares = []
        for _ in range(SPLITS):
            order = generator.permutation(total)
            factor, _ = smallest_factor(curves[order[:n]], level)
            shares.append(1 - curves[order[n:], np.searchsorted(FACTORS, factor)].mean())
        row = {"n": n, "mean": float(np.mean(shares)), "promised": [level, level + 2 / (n + 1)]}
        row["nine_in_ten"] = np.quantile(shares, [0.05, 0.95]).tolist()
        rows.append(row)
        print(row)
    return rows


def measure(options: argparse.Namespace) -> dict[str, object]:
    pipe = SuperResolutionPipeline.from_pretrained(options.model, load_encoder=False)
    pipe.set_progress_bar_config(disable=True)
    truths, found = [], []
    for number, path in enumerate(find_images(options.data)):
        photo = load_image(path)
        left, top = ((side - options.size) // 2 for side in photo.size)
        square = np.array(photo.crop((left, top, left + options.size, top + options.size)))
        x, y = make_pairs(torch.from_numpy(square).movedim(-1, 0)[None], pipe.operator)
        truths.append((x[0] + 1) / 2)
        arguments = {"num_samples": options.num_samples, "temperature": options.temperature, "seed": 0}
        found.append(pipe.quantiles((y[0] + 1) / 2, QUANTILES, **arguments))
        print(f"{number + 1}: {path.name}", flush=True)
    order = np.random.default_rng(0).permutation(len(truths))
    halves = [order[: len(order) // 2], order[len(order) // 2 :]]
    rows = []
    for place, level in enumerate(LEVELS):
        own = [intervals(quantiles, place) for quantiles in found]
        row: dict[str, object] = {"level": level, "factor": [], "calibrated": {}, "width": {}}
        for calibration, held_out in (halves, halves[::-1]):
            factor, _ = smallest_factor([missed(own[i], truths[i]) for i in calibration], level)
            row["factor"].append(factor)
            for i in held_out:
                row["calibrated"][int(i)] = inside(widen(own[i], factor), truths[i])
                row["width"][int(i)] = width(widen(own[i], factor))
        row["plain"] = [inside(one, x) for one, x in zip(own, truths, strict=True)]
        row["plain_width"] = [width(one) for one in own]
        for key in ("calibrated", "width"):
            row[key] = [row[key][i] for i in range(len(truths))]
        rows.append(row)
        means = {key: float(np.mean(row[key])) for key in ("plain", "calibrated", "plain_width", "width")}
        print(level, {key: round(value, 4) for key, value in means.items()}, [round(f, 3) for f in row["factor"]])
    splits = repeated(np.stack([missed(intervals(q, -1), x) for q, x in zip(found, truths, strict=True)]), LEVELS[-1])
    settings = {name: getattr(options, name) for name in ("model", "size", "num_samples", "temperature")}
    return {**settings, "data": Path(options.data).name, "num_images": len(truths), "rows": rows, "splits": splits}


def draw(report: dict, output: str) -> None:
    from matplotlib.figure import Figure

    from hvae_sr.evaluation.plots import save_figure

    rows = report["rows"]
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    curve, histogram = figure.subplots(1, 2)
    levels = [row["level"] for row in rows]
    curve.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    for key, name, marker in (("plain", "as drawn", "o"), ("calibrated", "calibrated on others", "s")):
        curve.plot(levels, [np.mean(row[key]) for row in rows], marker=marker, label=name)
    curve.set(xlabel="what the interval claims to hold", ylabel="what it holds", xlim=(0, 1), ylim=(0, 1))
    curve.legend(frameon=False)
    bins = np.linspace(0.7, 1, 31)
    shares = np.clip(rows[-1]["calibrated"], bins[0], None)
    histogram.hist(shares, bins, color="C1")
    histogram.axvline(rows[-1]["level"], color="0.4", linewidth=1)
    histogram.set(xlabel="share inside calibrated 90 % intervals", ylabel=f"of {report['num_images']} photographs")
    save_figure(figure, output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="natural-x4")
    parser.add_argument("--data", help="folder of photographs that the model was not trained on")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--num-samples", type=int, default=20)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--plot", metavar="JSON", help="only draw what an earlier run measured")
    parser.add_argument("-o", "--output", required=True)
    options = parser.parse_args()
    if options.plot:
        draw(json.loads(Path(options.plot).read_text()), options.output)
    else:
        write_atomically(json.dumps(measure(options)) + "\n", Path(options.output))


if __name__ == "__main__":
    main()
