"""Tutorial 4: how many groups k to condition, and which temperature tau to sample at.

python docs/tutorials/choose_k_and_tau.py DATA [--model natural-x4-cvdvae] [--size 64] [--output_dir tutorial]

DATA is a validation set: what is chosen on the test set is no test. Needs matplotlib: pip install 'hvae-sr[figures]'.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from hvae_sr import SuperResolutionPipeline
from hvae_sr.evaluation import evaluate, prepare_thesis, temperature_table
from hvae_sr.evaluation.analyses import (
    choose_num_groups,
    distance_table,
    expected_consistency,
    group_information,
    low_resolution_distance,
)
from hvae_sr.evaluation.plots import distance_figure, save_figure, temperature_figure
from hvae_sr.evaluation.sources import open_source
from hvae_sr.evaluation.tables import sample_rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", metavar="DATA", help="folder of high-resolution images")
    parser.add_argument("--model", default="natural-x4-cvdvae")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--num_codes", type=int, default=20)
    parser.add_argument("--num_images", type=int, default=4)
    parser.add_argument("--num_samples", type=int, default=8)
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.25, 0.5, 0.75, 1.0])
    parser.add_argument("--output_dir", default="tutorial")
    options = parser.parse_args(arguments)
    folder = Path(options.output_dir)
    pipe = SuperResolutionPipeline.from_pretrained(options.model)
    scale = pipe.config.scale_factor

    # 1. How far apart are images of the prior that share their first k groups, seen at 1/s of the resolution? Where
    #    U_k^s falls below half a grey level, k groups determine y: this is the k of the paper. Beside it, CE(k): how
    #    far samples of the trained model are from y before the projection.
    analysis = low_resolution_distance(pipe.vdvae, (1, scale), num_codes=options.num_codes)
    images = [image.load() for image in open_source(options.data, num_images=options.num_images).images]
    lows = [prepare_thesis(image, options.size, scale)[1] for image in images]
    consistency = expected_consistency(pipe, lows, num_samples=2)
    print(distance_table(analysis, consistency))
    save_figure(distance_figure(analysis, consistency), folder / "distance.png")
    k = choose_num_groups(analysis, scale)

    # 2. A small prior of patches may never get there before its last group. Then look at where the information lies:
    #    the groups up to the last that carries much must be conditioned, and if that is the finest, all of them.
    information = group_information(pipe, images)
    bits = information.get("from_x") or information["from_y"]
    last = max(group for group, value in enumerate(bits) if value > 0.05 * sum(bits))
    print(
        f"k = {k if k is not None else last + 1}: " + ("by U_k^s" if k is not None else "by the information of groups")
    )

    # 3. The temperature: PSNR falls and diversity rises with it. CRPS weighs both, as a proper score; the ratio of MSEs
    #    says whether the spread is that of a calibrated sampler.
    report = evaluate(
        pipe,
        options.data,
        size=options.size,
        temperatures=options.temperatures,
        num_samples=options.num_samples,
        num_images=options.num_images,
    )
    print(temperature_table(report))
    save_figure(temperature_figure(report), folder / "temperature.png")
    best = min(sample_rows(report), key=lambda row: row["crps"])
    print(f"tau = {best['temperature']:g}: least CRPS, {best['crps']:.4f}")


if __name__ == "__main__":
    main()
