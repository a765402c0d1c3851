"""Systems for inputs of any degradation, side by side: a report of `evaluate` for each, and tables of them.

python benchmarks/photographs.py REPORTS --data DIR [DIR ...] --models NAME|DIR [...] [--every 8] [--num_samples 8]
    [--degradations clean mild-jpeg ... benchmarks/degradations/jpeg-75.yaml ...] [--temperatures 0.5 1]
    [--coverage_samples 64] [--lpips DIR]

Pairs of the thesis' protocol at S=256, y made by `--degradation`; "clean" is the protocol's own. Models compute in
bfloat16. What REPORTS holds already is not measured again: the same command goes on, and one with more models or sets
measures these alone; other options need another folder. Tables have the systems in lines and, at each degradation,
means over the images of all sets.
"""

import argparse
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hvae_sr.cli.common import load_pipeline
from hvae_sr.evaluation import evaluate, load_perceptual, read_report, write_report
from hvae_sr.evaluation.tables import has_projected, markdown_lines, mean_rows

BANDS = ("mild-jpeg", "noise", "blur-noise", "second-order")
OPTIONS = ("every", "num_images", "num_samples", "temperatures", "coverage_samples", "seed")
"""Those that change what is measured of a model and a set."""
COLUMNS = {
    "psnr": ("PSNR", ".2f"),
    "ssim": ("SSIM", ".3f"),
    "lpips": ("LPIPS", ".3f"),
    "brisque": ("BRISQUE", ".1f"),
    "coverage": ("coverage", ".3f"),
    "exchangeability_lpips": ("exch. LPIPS", ".2f"),
    "exchangeability_mse": ("exch. MSE", ".2f"),
}


def seconds(pipeline: Any) -> float:
    """Processor seconds of one 256x256 sample, the second one of a process."""
    y = Image.effect_noise((64, 64), 40).convert("RGB")
    for _ in range(2):
        begun = time.process_time()
        pipeline(y, num_samples=1, seed=0)
    return time.process_time() - begun


def measure(given: argparse.Namespace) -> None:
    """Makes the reports that are not there."""
    perceptual = load_perceptual(["brisque", "lpips"], lpips_weights=given.lpips)
    for model in given.models:
        todo = [(data, name) for data in given.data for name in given.degradations]
        todo = [each for each in todo if not is_measured(given, model, *each)]
        if not todo:
            continue
        pipeline = load_pipeline(argparse.Namespace(model=model, dtype="bfloat16", device="cpu"), fast=True)
        pipeline.set_progress_bar_config(disable=True)
        samples = getattr(pipeline, "is_deterministic", False) is False
        temperatures = given.temperatures or sorted({pipeline.config.default_temperature, 1.0})
        took = seconds(pipeline)
        for data, name in todo:
            path = report_path(given, model, data, name)
            report = evaluate(
                pipeline,
                data,
                size=256,
                temperatures=temperatures if samples else [1.0],
                num_samples=given.num_samples if samples else 1,
                coverage_samples=given.coverage_samples if samples else None,
                every=given.every,
                num_images=given.num_images,
                perceptual=perceptual,
                degradation=None if name == "clean" else name,
                seed=given.seed,
                name=Path(model).name,
                report_path=path,
            )
            write_report(report, path)  # which ends what was kept of unfinished runs
            measured = {"seconds": took, "options": options(given), "of": of(model, data, name)}
            write_report({**report, **measured}, path)


def options(given: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(given, name) for name in OPTIONS}


def of(model: str, data: str, degradation: str) -> list[str]:
    """What is measured, for reports that are kept by names: of paths, where they lead."""
    return [str(Path(name).resolve()) if Path(name).exists() else name for name in (model, data, degradation)]


def is_measured(given: argparse.Namespace, model: str, data: str, degradation: str) -> bool:
    """Whether there is a report.

    Raises:
        ValueError: It was made with other options, or of another model, set or degradation of that name.
    """
    path = report_path(given, model, data, degradation)
    if not path.is_file():
        return False
    report = read_report(path)
    kept, wanted = [report.get("options"), report.get("of")], [options(given), of(model, data, degradation)]
    if kept != wanted:
        raise ValueError(f"`REPORTS`: {path} was measured with {kept}, not {wanted}: name another folder")
    return True


def report_path(given: argparse.Namespace, model: str, data: str, degradation: str) -> Path:
    return Path(given.reports) / f"{Path(model).name}_{Path(data).name}_{Path(degradation).stem}.json"


def rows(reports: list[Mapping[str, Any]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(label, means over all images of the reports) of what users get: projected where the system does that."""
    images = [image["rows"] for report in reports for image in report["images"]]
    found = {row["name"]: row for row in mean_rows(images, reports[0]["num_samples"])}
    ours = has_projected(reports[0]) or reports[0]["pipeline"]["class"] == "SuperResolutionPipeline"
    for name, row in found.items():
        if name.startswith("bicubic") or name.endswith(" projected") and not ours:
            continue
        if f"{name} projected" in found and ours:
            continue
        if not ours and name.startswith("sample"):
            continue  # of one image: the same as its mean
        label = name.removesuffix(" projected") if ours else ""
        yield f"{reports[0]['name']} {label}".strip(), row
    yield "bicubic", found["bicubic"]


def tables(given: argparse.Namespace) -> str:
    lines: list[str] = []
    took: dict[str, float] = {}
    for degradation in given.degradations:
        shown: dict[str, Mapping[str, Any]] = {}
        for model in given.models:
            reports = [read_report(report_path(given, model, data, degradation)) for data in given.data]
            shown = {**dict(rows(reports)), **shown}
            took[Path(model).name] = reports[0]["seconds"]
        used = {key: column for key, column in COLUMNS.items() if any(key in row for row in shown.values())}
        cells = [
            [label, *(format(float(row[key]), spec) if key in row else "" for key, (_, spec) in used.items())]
            for label, row in sorted(shown.items(), key=lambda pair: pair[0] != "bicubic")
        ]
        number = sum(report["num_images"] for report in reports)
        lines += ["", f"{Path(degradation).stem}, {number} images:", ""]
        lines += markdown_lines(["", *(title for title, _ in used.values())], cells)
    lines += ["", "Processor seconds of one 256x256 image: " + ", ".join(f"{n} {s:.2f}" for n, s in took.items()) + "."]
    return "\n".join(lines[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reports", metavar="REPORTS", help="folder")
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--models", nargs="+", required=True)
    parser.add_argument("--degradations", nargs="+", default=["clean", *BANDS])
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--num_images", type=int)
    parser.add_argument("--num_samples", type=int, default=8)
    parser.add_argument("--temperatures", type=float, nargs="+", help="default: the model's own, and 1")
    parser.add_argument("--coverage_samples", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lpips", help="folder of lpips_alexnet.safetensors; default: $HVAE_SR_LPIPS")
    given = parser.parse_args()
    for name in ("data", "models", "degradations"):
        named = [Path(value).stem if name == "degradations" else Path(value).name for value in getattr(given, name)]
        if len(set(named)) < len(named):
            parser.error(f"`--{name}`: reports are kept by names, which must differ, got {', '.join(named)}")
    Path(given.reports).mkdir(parents=True, exist_ok=True)
    np.seterr(divide="ignore")
    try:
        measure(given)
    except ValueError as error:
        parser.error(str(error))
    print(tables(given))


if __name__ == "__main__":
    main()
