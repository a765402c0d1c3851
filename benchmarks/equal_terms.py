"""CVDVAE against VDVAE-SR on equal terms: one prior, the same crops, as many updates and parameters.

python benchmarks/equal_terms.py --photographs DIR [DIR ...] --benchmarks DIR --output_dir DIR [--updates 400]

From one pretrained prior (that of natural-x4-cvdvae) are trained, on the same crops:

- cvdvae: the LR encoder (stage lr-encoder), the prior frozen;
- vdvae-sr: conditioner and decoder (stage vdvae-sr), and vdvae-sr frozen: the conditioner alone;
- cvdvae and vdvae-sr once more, on from there, by stage energy-score; in CVDVAE the prior is trained too then.

Scored on Set5, Set14, BSD100 and T91 (thesis protocol, S = 64 and 256) at t = 0.2, 0.8, 1, samples and their mean,
projected and not. Prints Markdown tables, and writes them to equal_terms.md. What is in the output folder already is
not computed again; with the folder of `ablation.py`, and as many updates, vdvae-sr is taken from there.
"""

import argparse
import json
from pathlib import Path

from short_runs import (
    SOURCE,
    TEMPERATURES,
    by_name,
    line,
    options,
    publish,
    sampler_parameters,
    score,
    train,
    train_final,
)

SYSTEMS = {"cvdvae": "CVDVAE", "final-trainable": "VDVAE-SR", "final-fixed": "VDVAE-SR, decoder frozen"}
TRAINED_ON = ("cvdvae", "final-trainable")
"""Which go on with the energy score: with the decoder frozen, it drove samples of one image to NaN."""
SETS = ("Set5", "Set14", "BSD100", "T91")


def train_first(given: argparse.Namespace, name: str) -> dict[str, float]:
    """A system by its own stage."""
    if name == "cvdvae":
        config = json.loads((SOURCE / "lr_encoder" / "config.json").read_text())
        return train(given, name, "lr-encoder", config, max_grad_norm=0.3)
    return train_final(given, name.removeprefix("final-"))


def train_energy(given: argparse.Namespace, name: str) -> dict[str, float]:
    """The same networks, on from there, by the energy score."""
    train_first(given, name)
    folder = Path(given.output_dir) / name
    return train(
        given, f"{name}-energy", "energy-score", pretrained_vdvae=folder / "vdvae",
        pretrained_lr_encoder=folder / "lr_encoder", train_decoder=True, score_point_weight=1.0, max_grad_norm=1.0,
    )  # fmt: skip


def models(given: argparse.Namespace) -> dict[str, tuple[str, dict[str, float]]]:
    """Label and training figures of every model by the name of its folder."""
    first = {name: (label, train_first(given, name)) for name, label in SYSTEMS.items()}
    second = {f"{name}-energy": (f"{SYSTEMS[name]} + energy", train_energy(given, name)) for name in TRAINED_ON}
    return first | second


def quality_table(given: argparse.Namespace, data: str, size: int) -> list[str]:
    """PSNR / SSIM of one data set: a line for each model and projection."""
    number, samples = given.num_images if size == 64 else given.num_large_images, given.num_samples
    heads = [f"{what} t={t:g}" for t in TEMPERATURES for what in ("sample", f"mean of {samples}")]
    lines = [f"**{data}, S={size}**, the first {number} images at most; PSNR / SSIM.", ""]
    lines += [line(["model", "projected", *heads]), "|---|---|" + "---:|" * len(heads)]
    for name, (label, _) in models(given).items():
        rows = by_name(score(given, name, data, size, number, samples))
        for suffix, word in (("", "no"), (" projected", "yes")):
            if name == next(iter(SYSTEMS)):
                base = rows[f"bicubic{suffix}"]
                lines.append(line(["bicubic", word, f"{base['psnr']:.2f} / {base['ssim']:.4f}", *[""] * 5]))
        for suffix, word in (("", "no"), (" projected", "yes")):
            found = [rows[f"{what} t={t:g}{suffix}"] for t in TEMPERATURES for what in ("sample", "mean")]
            lines.append(line([label, word, *(f"{row['psnr']:.2f} / {row['ssim']:.4f}" for row in found)]))
    return lines


def spread_table(given: argparse.Namespace, data: str, size: int) -> list[str]:
    """Diversity, calibration and consistency of one data set.

    The MSE ratio is that against the true mean: that against the mean of N samples has another expectation for each N.
    """
    from hvae_sr.evaluation import expected_mse_ratio

    number, samples = given.num_images if size == 64 else given.num_large_images, given.num_samples
    what = {"std": ".4f", "apd_mse": ".5f", "mse_ratio_true": ".3f", "lr_psnr": ".1f"}
    titles = {"std": "std", "apd_mse": "APD-MSE", "mse_ratio_true": "MSE ratio", "lr_psnr": "LR-PSNR"}
    heads = [f"{titles[key]} t={t:g}" for t in TEMPERATURES for key in what]
    calibrated = ", ".join(f"{expected_mse_ratio(t):.2f} at t={t:g}" for t in TEMPERATURES)
    lines = [f"**{data}, S={size}**, single samples; MSE ratio of a calibrated sampler: {calibrated}.", ""]
    lines += [line(["model", "projected", *heads]), "|---|---|" + "---:|" * len(heads)]
    for name, (label, _) in models(given).items():
        rows = by_name(score(given, name, data, size, number, samples))
        for suffix, word in (("", "no"), (" projected", "yes")):
            found = [(rows[f"sample t={t:g}{suffix}"], key, spec) for t in TEMPERATURES for key, spec in what.items()]
            lines.append(line([label, word, *(format(row[key], spec) for row, key, spec in found)]))
    return lines


def cost_table(given: argparse.Namespace) -> list[str]:
    """What every model was trained with; the figures of "+ energy" are those of that part alone."""
    lines = [line(["model", "trained", "of the sampler", "crops", "processor s"]), "|---|" + "---:|" * 4]
    for name, (label, run) in models(given).items():
        millions = (run["trained"] / 1e6, sampler_parameters(given, name) / 1e6)
        numbers = [*(f"{n:.2f} M" for n in millions), f"{run['crops']:.0f}", f"{run['processor_seconds']:.0f}"]
        lines.append(line([label, *numbers]))
    return lines


def main() -> None:
    parser = options(__doc__, updates=400)
    parser.add_argument("--num_images", type=int, default=14, help="of each set, the first so many at S=64")
    parser.add_argument("--num_large_images", type=int, default=2, help="of each set, the first so many at S=256")
    given = parser.parse_args()
    parts = [cost_table(given)]
    for size in (64, 256):
        parts += [table(given, data, size) for data in SETS for table in (quality_table, spread_table)]
    text = "\n\n".join("\n".join(part) for part in parts) + "\n"
    publish(given, "equal_terms", text)


if __name__ == "__main__":
    main()
