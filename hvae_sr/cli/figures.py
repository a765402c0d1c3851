"""Draw the figures, and write the tables by temperature and projection, of evaluation reports."""

import argparse
from pathlib import Path
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("reports", nargs="+", metavar="REPORT.json", help="what `hvae-sr evaluate` wrote")
    parser.add_argument("-o", "--output_dir", required=True, metavar="DIR")
    parser.add_argument("--format", default="png", choices=["png", "pdf", "svg"], help="of the figures (default png)")
    parser.add_argument("--perception", choices=["fid", "lpips", "brisque"], help="of the plane; default: the first of")


def run(options: argparse.Namespace) -> int:
    from ..evaluation import projection_table, read_report, temperature_table
    from ..files import write_atomically

    try:
        from ..evaluation import figures
    except ImportError as error:
        raise ValueError(str(error)) from None

    folder = Path(options.output_dir)
    reports = [read_report(path) for path in options.reports]
    names = [Path(path).stem for path in options.reports]

    def draw(name: str, figure: Any) -> None:
        path = folder / f"{name}.{options.format}"
        figures.save_figure(figure, path)
        print(path)

    def write(name: str, text: str) -> None:
        write_atomically(text, folder / f"{name}.md")
        print(folder / f"{name}.md")

    for name, report in zip(names, reports, strict=True):
        write(f"{name}_projection", projection_table(report))
        if report["temperatures"]:
            write(f"{name}_temperature", temperature_table(report))
            if len(report["temperatures"]) > 1:
                draw(f"{name}_temperature", figures.temperature_figure(report))
            if report["num_samples"] > 1:
                draw(f"{name}_samples", figures.samples_figure(report))
    calibrated = [report for report in reports if any("coverage@0.9" in row for row in report["rows"])]
    if calibrated:
        draw("calibration", figures.calibration_figure(calibrated))
    perceptual = [key for key in ("fid", "lpips", "brisque") if all(key in report["rows"][0] for report in reports)]
    if options.perception or perceptual:
        draw("plane", figures.plane_figure(reports, options.perception))
    return 0
