"""Write the results document of evaluation reports."""

import argparse
from pathlib import Path

from ..files import check_file
from .terminal import print_line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("reports", nargs="+", metavar="REPORT.json", help="what `hvae-sr evaluate` wrote")
    parser.add_argument("-o", "--output", required=True, metavar="RESULTS.md")


def run(options: argparse.Namespace) -> int:
    from ..evaluation import read_report, results_document
    from ..files import write_atomically

    check_file(Path(options.output), "--output")
    reports = [read_report(path) for path in options.reports]
    output = Path(options.output)
    if output.suffix.lower() == ".json" or any(output.exists() and output.samefile(path) for path in options.reports):
        raise ValueError(f"`--output` must be a new document such as RESULTS.md, got {output}, as reports are called")
    write_atomically(results_document(reports, [Path(path).name for path in options.reports]), output)
    print_line(f"wrote {options.output}")
    return 0
