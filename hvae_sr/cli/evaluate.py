"""Score a model, or bicubic, on a folder of images."""

import argparse

from .common import add_model, load_pipeline


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, metavar="DIR", help="folder of high-resolution images")
    parser.add_argument("--protocol", default="thesis", help="thesis or standard")
    parser.add_argument("--size", type=int, default=256, help="thesis: side S of the images, 64 or 256 (default)")
    parser.add_argument("-o", "--output", required=True, metavar="REPORT.json")
    add_model(parser, "bundled name, folder or Hub id; none: bicubic alone", default=None)
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.2, 0.8, 1.0])
    parser.add_argument("--num_samples", type=int, default=8, help="samples of each image (default 8)")
    parser.add_argument("--coverage_samples", type=int, help="also the coverage of 90 %% intervals of so many samples")
    parser.add_argument("--num_images", type=int, help="only the first so many images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch_size", type=int, help="samples for each network evaluation; default: by size")


def run(options: argparse.Namespace) -> int:
    from ..evaluation import evaluate, markdown_table, write_report

    pipeline = load_pipeline(options) if options.model else None
    report = evaluate(
        pipeline,
        options.data,
        options.protocol,
        size=options.size,
        temperatures=tuple(options.temperatures),
        num_samples=options.num_samples,
        seed=options.seed,
        num_images=options.num_images,
        batch_size=options.batch_size,
        coverage_samples=options.coverage_samples,
        report_path=options.output,
    )
    write_report(report, options.output)
    print(markdown_table(report))
    return 0
