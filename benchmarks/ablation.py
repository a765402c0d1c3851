"""The ablation of the VDVAE-SR thesis (table 5.1) at small scale: what should be conditioned on y, and how?

python benchmarks/ablation.py --photographs DIR [DIR ...] --benchmarks DIR --output_dir DIR [--updates 400]

Eight conditional models start from one pretrained prior (that of natural-x4-cvdvae) and are trained by stage
vdvae-sr on the same crops: the rows "trivial", "lr_encoder", "posterior" and "final" (see `LRConditioner`), each with
the decoder trained or fixed. The encoder of x is fixed, as in the thesis. Scored on BSD100 (thesis protocol, S = 64).
Prints two Markdown tables, and writes them to ablation.md. What is in the output folder already is not computed again.
"""

import argparse
import itertools
from pathlib import Path

from short_runs import (
    SOURCE,
    TEMPERATURES,
    bound,
    by_name,
    conditioner_config,
    fixed,
    line,
    options,
    publish,
    score,
    train,
    train_final,
)

ROWS = ("trivial", "lr_encoder", "posterior", "final")
DECODERS = ("fixed", "trainable")


def train_row(given: argparse.Namespace, row: str, decoder: str) -> dict[str, float]:
    """One run of the table."""
    if row == "final":
        return train_final(given, decoder)
    config = conditioner_config(conditioning=row)
    if row != "posterior":  # nothing above the top group's resolution is conditioned
        config |= {"upsampling_blocks": None, "num_conditioned_groups": 1}
    return train(given, f"{row}-{decoder}", "vdvae-sr", config, **fixed(decoder))


def save_prior(given: argparse.Namespace) -> None:
    """The prior with a new conditioner, which leaves its samples as they are: what every row starts from."""
    from hvae_sr import VDVAE, LRConditioner, SuperResolutionPipeline

    folder = Path(given.output_dir) / "prior"
    if not folder.exists():
        conditioner = LRConditioner(**conditioner_config())
        SuperResolutionPipeline(VDVAE.from_pretrained(SOURCE / "vdvae"), conditioner).save_pretrained(folder)
    bound(folder)


def tables(given: argparse.Namespace) -> str:
    """The two tables, with whatever must still be trained or scored."""
    heads = [f"{what} t={t:g}" for t in TEMPERATURES for what in ("sample", f"mean of {given.num_samples}")]
    lines = [line(["row", "decoder", "trained", "processor s", "rate", "bits/dim", *heads]), "|---|---|" + "---:|" * 10]
    spread = [line(["row", "decoder", *(f"{what} t={t:g}" for t in TEMPERATURES for what in ("LR-PSNR", "std"))])]
    spread.append("|---|---|" + "---:|" * 6)
    save_prior(given)
    for row, decoder in [("prior", ""), *itertools.product(ROWS, DECODERS)]:
        run = train_row(given, row, decoder) if decoder else {}
        rows = by_name(
            score(given, f"{row}-{decoder}" if decoder else row, "BSD100", 64, given.num_images, given.num_samples)
        )
        if len(lines) == 2:
            for name in ("bicubic", "bicubic projected"):
                value = f"{rows[name]['psnr']:.2f} / {rows[name]['ssim']:.4f}"
                lines.append(line([name, "", "", "", "", "", value, *[""] * 5]))
        found = [rows[f"{what} t={t:g}"] for t in TEMPERATURES for what in ("sample", "mean")]
        cells = [f"{values['psnr']:.2f} / {values['ssim']:.4f}" for values in found]
        numbers = [""] * 4
        if run:
            numbers = [f"{run['trained'] / 1e6:.3f} M", f"{run['processor_seconds']:.0f}"]
            numbers += [f"{run['rate']:.3f}", f"{run['bits_per_dim']:.3f}"]
        lines.append(line([row, decoder, *numbers, *cells]))
        samples = [rows[f"sample t={t:g}"] for t in TEMPERATURES]
        cells = [text for values in samples for text in (f"{values['lr_psnr']:.1f}", f"{values['std']:.4f}")]
        spread.append(line([row, decoder, *cells]))
    return "\n".join([*lines, "", *spread, ""])


def main() -> None:
    parser = options(__doc__, updates=400)
    parser.add_argument("--num_images", type=int, default=30, help="of BSD100, the first so many (default 30)")
    given = parser.parse_args()
    for row in ROWS:
        for decoder in DECODERS:
            train_row(given, row, decoder)
    publish(given, "ablation", tables(given))


if __name__ == "__main__":
    main()
