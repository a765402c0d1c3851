"""Tutorial 3: put a model, or another method's images, beside the published tables, and draw the figures.

python docs/tutorials/evaluate_a_method.py DATA [--model natural-x4] [--size 64] [--output_dir tutorial]

The other method here is Lanczos interpolation. Needs matplotlib: pip install 'hvae-sr[figures]'.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from hvae_sr import SuperResolutionPipeline
from hvae_sr.evaluation import (
    PROTOCOLS,
    evaluate,
    load_perceptual,
    markdown_table,
    prepare_thesis,
    psnr_y,
    results_document,
    write_report,
)
from hvae_sr.evaluation.plots import calibration_figure, plane_figure, save_figure
from hvae_sr.evaluation.sources import open_source


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", metavar="DATA", help="folder of high-resolution images, such as Set5")
    parser.add_argument("--model", default="natural-x4")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--num_samples", type=int, default=8)
    parser.add_argument("--num_images", type=int)
    parser.add_argument("--output_dir", default="tutorial")
    options = parser.parse_args(arguments)
    folder = Path(options.output_dir)

    # 1. Metrics are functions: arrays in, numbers out.
    source = open_source(options.data, num_images=options.num_images)
    hr, lr = prepare_thesis(source.images[0].load(), options.size)
    print(f"bicubic, first image: {psnr_y(hr, PROTOCOLS['thesis'].upsample(lr, 4)):.2f} dB")

    # 2. A protocol on a model: what `hvae-sr evaluate` runs. It can be stopped and resumed.
    pipe = SuperResolutionPipeline.from_pretrained(options.model)
    common = {"size": options.size, "num_images": options.num_images, "perceptual": load_perceptual(["brisque"])}
    path = folder / "model.json"
    ours = evaluate(
        pipe,
        options.data,
        temperatures=(0.5, 1.0),
        num_samples=options.num_samples,
        coverage_samples=19,
        name=Path(options.model).name,
        report_path=path,
        **common,
    )
    write_report(ours, path)
    print(markdown_table(ours))

    # 3. Another method: it is given the protocol's LR images, and what it makes is named as the data are.
    made = folder / "Lanczos"
    made.mkdir(parents=True, exist_ok=True)
    for image in source.images:
        _, lr = prepare_thesis(image.load(), options.size)
        large = Image.fromarray(lr).resize((options.size, options.size), Image.Resampling.LANCZOS)
        large.save(made / f"{image.stem}.png")
    theirs = evaluate(None, options.data, predictions=made, **common)
    write_report(theirs, folder / "lanczos.json")

    # 4. Both in one figure, and in one document.
    save_figure(plane_figure([ours, theirs]), folder / "plane.png")
    save_figure(calibration_figure([ours]), folder / "calibration.png")
    (folder / "results.md").write_text(results_document([ours, theirs], ["model.json", "lanczos.json"]))
    print(f"wrote {folder / 'results.md'} and figures")


if __name__ == "__main__":
    main()
