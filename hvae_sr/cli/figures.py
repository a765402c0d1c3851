"""Draw the figures, and write the tables by temperature and projection, of evaluation reports."""

import argparse
from pathlib import Path
from typing import Any

from .common import Output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("reports", nargs="+", metavar="REPORT.json", help="what `hvae-sr evaluate` wrote")
    Output.add_arguments(parser)
    kinds = ["fid", "lpips", "lpips_vgg", "brisque"]
    parser.add_argument(
        "--perception", choices=kinds, help="metric of the plane; default: the first of these that all reports have"
    )


def run(options: argparse.Namespace) -> int:
    output = Output(options)  # before anything is computed
    owners: dict[str, str] = {}
    for path in options.reports:
        stem = Path(path).stem
        if stem in owners:
            raise ValueError(
                f"`reports`: {owners[stem]} and {path} would give files of the same name; rename one of them"
            )
        owners[stem] = path
    from ..evaluation import plots, projection_table, read_report, temperature_table
    from ..evaluation.tables import measured_on

    reports = [read_report(path) for path in options.reports]
    for path, report in zip(options.reports if options.perception else (), reports, strict=False):
        if options.perception not in report["rows"][0]:
            raise ValueError(f"`--perception`: {path} has no {options.perception}")
    for path, report in zip(options.reports, reports, strict=True):
        name = Path(path).stem
        output.write(f"{name}_projection.md", projection_table(report))
        if report["temperatures"]:
            output.write(f"{name}_temperature.md", temperature_table(report))
            if len(report["temperatures"]) > 1:
                output.draw(f"{name}_temperature", plots.temperature_figure(report))
            if any("best_psnr@1" in row for row in report["rows"]):  # reports of 0.1.0 have no curves
                output.draw(f"{name}_samples", plots.samples_figure(report))
    calibrated = [report for report in reports if any("coverage@0.9" in row for row in report["rows"])]
    if calibrated:
        output.draw("calibration", plots.calibration_figure(calibrated))
    planes: dict[str, list[dict[str, Any]]] = {}
    for report in reports:
        planes.setdefault(measured_on(report), []).append(report)
    for number, alike in enumerate(planes.values(), 1):
        if options.perception or any(all(key in r["rows"][0] for r in alike) for key in plots.PERCEPTION):
            name = "plane" if len(planes) == 1 else f"plane-{number}"
            output.draw(name, plots.plane_figure(alike, options.perception))
    return 0
