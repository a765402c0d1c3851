"""Tables of evaluation reports, with the published figures beside them."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from .metrics import ratio
from .posterior import expected_mse_ratio, mse_ratio_of_parts

#: Title and format of the metrics of images, of what describes sets of samples, and of curves over n or a level.
QUALITY = {
    "psnr": ("PSNR", ".2f"),
    "ssim": ("SSIM", ".4f"),
    "psnr_gain": ("PSNR gain", "+.2f"),
    "ssim_gain": ("SSIM gain", "+.4f"),
    "lpips": ("LPIPS", ".3f"),
    "lpips_vgg": ("LPIPS-VGG", ".3f"),
    "brisque": ("BRISQUE", ".2f"),
    "fid": ("FID", ".2f"),
    "lr_psnr": ("LR-PSNR", ".1f"),
    "lr_psnr_float": ("LR-PSNR float", ".1f"),
    "detail": ("detail", ".2f"),
    "detail_tail": ("detail, p99.9", ".2f"),
}
SPREAD = {
    "std": ("std", ".4f"),
    "apd_mse": ("APD-MSE x1e4", ".2f"),
    "apd_lpips": ("APD-LPIPS x1e3", ".1f"),
    "crps": ("CRPS", ".4f"),
    "diversity_score": ("NTIRE score", ".2f"),
    "diversity_score_lpips": ("NTIRE score, LPIPS", ".2f"),
    "exchangeability_mse": ("exchangeability, MSE", ".2f"),
    "exchangeability_lpips": ("exchangeability, LPIPS", ".2f"),
    "mse_ratio": ("MSE ratio", ".3f"),
    "mse_ratio_expected": ("expected", ".3f"),
    "mse_ratio_true": ("MSE ratio, true mean", ".3f"),
    "mse_ratio_true_expected": ("expected", ".3f"),
    "coverage": ("coverage of 90 %", ".3f"),
    "interval_width": ("width", ".4f"),
}
CURVES = {
    "psnr@": ("PSNR of the mean of n", "n", ".2f"),
    "best_psnr@": ("PSNR of the best of n", "n", ".2f"),
    "coverage@": ("Coverage of intervals", "level", ".3f"),
    "width@": ("Width of intervals", "level", ".4f"),
    "spread_of_fifth@": ("Standard deviation by fifths of the uncertainty map", "fifth", ".4f"),
    "error_of_fifth@": ("Error of the mean by fifths of the uncertainty map", "fifth", ".4f"),
    "exchangeability_lpips@": ("Exchangeability by LPIPS' taps", "tap", ".2f"),
}
FACTORS = {"apd_mse": 1e4, "apd_lpips": 1e3}

SAME_BICUBIC = {"psnr": 0.15, "lr_psnr": 0.5}
"""dB between our bicubic row and the published one, of a set that is the published one; in PSNR 0.10, of BSD100, is the
most. The faces of the paper have no published PSNR of bicubic."""


_INFINITE: tuple[tuple[str, ...], ...] = (("psnr", "best_psnr@"), ("lr_psnr_float",), ("lr_psnr",), ("detail",))
"""What the names of metrics begin with that may be infinite, as for images without detail; by kind."""


def infinite(rows: Mapping[str, Mapping[str, float]]) -> set[tuple[str, ...]]:
    """The kinds of metrics that are infinite in a row of an image: of these it is left out of the means of all rows."""
    return {_kind(key) for row in rows.values() for key, value in row.items() if math.isinf(value)} - {()}


def _kind(key: str) -> tuple[str, ...]:
    return next((kind for kind in _INFINITE if key.startswith(kind)), ())


def mean_rows(images: Sequence[Mapping[str, Mapping[str, float]]], num_samples: int = 1) -> list[dict[str, Any]]:
    """Means over images of rows of metrics, their gains in PSNR and SSIM over the first row, and ratios of MSEs.

    Of an image without detail, as of plain sky, PSNR and what is related to detail may be infinite. It is left out of
    the means of these in all rows, so that they can be compared, unless all images are.

    The ratios are of the means over images: a mean of ratios is not what a calibrated sampler has an expectation of.
    `exchangeability_` d is E d(x_1, x_2) / E d(x_1, x), for samples x_1, x_2 and the truth x: 1 if they follow p(x|y).

    >>> bicubic = {"psnr": 20.0, "ssim": 0.5}
    >>> images = [{"bicubic": bicubic, "ours": {"psnr": p, "ssim": 0.75}} for p in (21, 22)]
    >>> mean_rows(images)[1]
    {'name': 'ours', 'psnr': 21.5, 'ssim': 0.75, 'psnr_gain': 1.5, 'ssim_gain': 0.25}
    """
    rows: list[dict[str, Any]] = []
    of_images = [infinite(image) for image in images]
    kept: dict[tuple[str, ...], list[int]] = {
        kind: [i for i, found in enumerate(of_images) if kind not in found] for kind in (*_INFINITE, ())
    }

    def mean(key: str, values: Sequence[float]) -> float:
        finite = [value for value in values if math.isfinite(value)]  # where no image is so in all rows
        return float(np.mean([values[i] for i in kept[_kind(key)]] or finite or values))

    for name, first in images[0].items():
        row: dict[str, Any] = {"name": name}
        row |= {key: mean(key, [image[name][key] for image in images]) for key in first}
        base = rows[0]["name"] if rows else name
        for key in ("psnr", "ssim"):
            pairs = [(image[name][key], image[base][key]) for image in images]  # two infinite ones do not differ
            row[f"{key}_gain"] = mean(key, [0.0 if own == other else own - other for own, other in pairs])
        for distance in [key.removeprefix("apd_") for key in row if key.startswith("apd_")]:
            row[f"exchangeability_{distance}"] = ratio(row[f"apd_{distance}"], row[distance])
        if "mse" in row:
            parts = {key: row[key] for key in ("mse", "mse_of_mean", "variance")}
            row["mse_ratio"], row["mse_ratio_true"] = mse_ratio_of_parts(**parts, num_samples=num_samples)
            if "temperature" in first:
                row["temperature"] = first["temperature"]
                row["mse_ratio_expected"] = expected_mse_ratio(row["temperature"], num_samples)
                row["mse_ratio_true_expected"] = expected_mse_ratio(row["temperature"])
        rows.append(row)
    return rows


def curve(row: Mapping[str, Any], prefix: str) -> tuple[list[float], list[float]]:
    """The values of a row over n or the level, in order: `prefix` is one of `CURVES`.

    >>> curve({"name": "mean", "psnr": 21.0, "psnr@2": 20.5, "psnr@1": 20.0}, "psnr@")
    ([1.0, 2.0], [20.0, 20.5])
    """
    points = sorted((float(key[len(prefix) :]), float(row[key])) for key in row if key.startswith(prefix))
    return [x for x, _ in points], [y for _, y in points]


def published_rows(report: Mapping[str, Any]) -> tuple[str, list[dict[str, Any]]]:
    """(source, rows) of the published figures for the report's protocol, data set and size, if there are.

    A data set is the published one whose name is part of its own, but for case, - and _, if all its images were taken
    and its bicubic row is the published one to within `SAME_BICUBIC`: a folder can be called anything.
    """
    if report.get("degradation") or report["num_images"] < report["num_images_available"]:
        return "", []
    text = resources.files(__package__).joinpath("published.json").read_text(encoding="utf-8")
    entry = json.loads(text)[report["protocol"]]
    tables = entry["tables"].get(f"{report['size'] or 'full'} x{report['scale_factor']}", {})
    name = report["dataset"].casefold().replace("-", "").replace("_", "")
    figures: dict[str, list[float | None]] = next(
        (table for dataset, table in tables.items() if dataset.casefold() in name), {}
    )
    rows: list[dict[str, Any]] = []
    for method, values in figures.items():
        row = {key: value for key, value in zip(entry["columns"], values, strict=False) if value is not None}
        base = rows[0] if rows else row
        row |= {f"{key}_gain": row[key] - base[key] for key in ("psnr", "ssim") if key in row and key in base}
        rows.append({"name": f"{method} (published)", **row})
    own = next((row for row in report["rows"] if row["name"] == "bicubic"), None)
    if not rows or own is None:
        return "", []
    common = [key for key in SAME_BICUBIC if key in own and key in rows[0]]
    same = all(abs(float(own[key]) - rows[0][key]) <= SAME_BICUBIC[key] for key in common)
    return (entry["source"], rows) if common and same else ("", [])


def markdown_lines(heads: Sequence[str], rows: Sequence[Sequence[str]], rule: str = "") -> list[str]:
    """Lines of a Markdown table; the first column is to the left, the others to the right, unless `rule` says else."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (heads, *rows)]
    return [lines[0], "|" + (rule or "---|" + "---:|" * (len(heads) - 1)), *lines[1:]]


def table(
    rows: Sequence[Mapping[str, Any]], columns: Mapping[str, tuple[str, str]], title: str = "Method"
) -> list[str]:
    """Lines of a Markdown table: a line for each row, a column for each metric that a row has."""
    used = {key: column for key, column in columns.items() if any(key in row for row in rows)}

    def cell(row: Mapping[str, Any], key: str, spec: str) -> str:
        return format(float(row[key]) * FACTORS.get(key, 1), spec) if key in row else ""

    cells = [[str(row["name"]), *(cell(row, key, spec) for key, (_, spec) in used.items())] for row in rows]
    return markdown_lines([title, *(head for head, _ in used.values())], cells)


def markdown_table(report: Mapping[str, Any]) -> str:
    """The report as Markdown: its rows below the published ones, then what describes sets of samples.

    Gains are over the bicubic row of the same source.
    """
    source, published = published_rows(report)
    size = f", {report['size']}x{report['size']}" if report["size"] else ""
    title = f"**{report['dataset']}**, {report['protocol']} protocol{size}, x{report['scale_factor']}, "
    if made := report.get("degradation"):
        title += f"LR degraded by {made['name']} of seed {made['seed']}, "
    title += (
        f"{'the first ' if _is_first(report) else ''}{report['num_images']} of {report['num_images_available']} images"
    )
    if any("std" in row for row in report["rows"]):
        title += f", {report['num_samples']} samples of each"
    title += ", in eight orientations" if report.get("self_ensemble") else ""
    lines = [f"{title}.", "", *table([*published, *report["rows"]], QUALITY)]
    sets = [row for row in report["rows"] if "std" in row or "coverage" in row]
    if sets:
        lines += ["", *table(sets, SPREAD)]
    for prefix, (head, unit, spec) in CURVES.items():
        rows = [row for row in report["rows"] if curve(row, prefix)[0]]
        if rows:
            points = sorted({x for row in rows for x in curve(row, prefix)[0]})
            columns = {f"{prefix}{x:g}": (f"{unit} = {x:g}", spec) for x in points}
            lines += ["", f"{head}:", "", *table(rows, columns)]
    for name, reason in report.get("absent", {}).items():
        lines += ["", f"{name} is absent: {reason}."]
    if source:
        lines += ["", f"Published figures: {source}."]
    return "\n".join([*lines, ""])


def temperature_table(report: Mapping[str, Any]) -> str:
    """Effect of the sampling temperature (table 2 of the CVDVAE paper) as Markdown: metrics of one sample by tau."""
    rows = [dict(row, name=f"tau = {row['temperature']:g}") for row in sample_rows(report)]
    return "\n".join([*table(rows, {**QUALITY, **SPREAD}), ""])


def projection_table(report: Mapping[str, Any]) -> str:
    """Effect of the projection (CVDVAE slides) as Markdown: each row without it and with it."""
    by_name = {row["name"]: row for row in report["rows"]}
    pairs = [(row, by_name.get(f"{name} projected")) for name, row in by_name.items()]
    kept = ("psnr", "ssim", "lpips", "brisque", "fid", "lr_psnr", "lr_psnr_float", "apd_mse", "apd_lpips")
    columns = {key: column for key, column in {**QUALITY, **SPREAD}.items() if key in kept}
    return "\n".join([*table([row for pair in pairs if pair[1] for row in pair if row], columns), ""])


def sample_rows(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The rows of samples of a report, by ascending temperature; of the projected ones, where users get these.

    Raises ValueError: the report is not of a pipeline.
    """
    suffix = " projected" if has_projected(report) else ""
    by_name = {row["name"]: row for row in report["rows"]}
    names = [f"sample t={temperature:g}{suffix}" for temperature in sorted(report["temperatures"])]
    rows = [by_name[name] for name in names if name in by_name]
    if not rows:
        raise ValueError("`report` has no rows of samples: it must be of a pipeline, with at least one temperature.")
    return rows


def has_projected(report: Mapping[str, Any]) -> bool:
    """Whether a report's rows of projections are what users get.

    Without a known H there are none; images of other methods, and of compared systems, are measured with them too.
    """
    config = (report.get("pipeline") or {}).get("config", {})
    own = report.get("predictions") is None and config.get("enforce_consistency") != "False"
    return own and any(str(row["name"]).endswith(" projected") for row in report["rows"])


def command_line(report: Mapping[str, Any], output: str = "report.json") -> str:
    """The `hvae-sr evaluate` command that makes such a report; folders by their names."""
    pipeline, predictions = report.get("pipeline"), report.get("predictions")
    dtype = _dtype_of(report)
    options: dict[str, Any] = {
        "model": (report.get("name") or "MODEL") if pipeline else None,
        "predictions": predictions["name"] if predictions else None,
        "data": report["dataset"],
        **report.get("source", {}),
        "protocol": report["protocol"],
        "degradation": (report.get("degradation") or {}).get("name"),
        "size": report["size"],
        "temperatures": [f"{tau:g}" for tau in report["temperatures"]] if pipeline else None,
        "num_samples": report["num_samples"] if pipeline else None,
        "coverage_samples": report["coverage_samples"] if pipeline else None,
        "self_ensemble": [] if pipeline and report.get("self_ensemble") else None,
        "levels": [] if pipeline and report.get("levels") else None,
        "seed": (report["seed"] or None) if pipeline or report.get("degradation") else None,
        "dtype": dtype if dtype != "float32" else None,
        "scale_factor": report["scale_factor"] if report["scale_factor"] != 4 and not pipeline else None,
        "num_images": report["num_images"] if _is_first(report) else None,
        "every": report.get("every"),
        "metrics": [*report.get("metrics", []), *report.get("absent", {})] or None,
    }
    words = ["hvae-sr", "evaluate"]
    for name, value in options.items():
        if value is not None:
            words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return shlex.join([*words, "-o", output])


def part_of(report: Mapping[str, Any]) -> str:
    """ ", first 20 images", ", every 8th image" or both, or nothing where all images were taken."""
    every = f", every {report['every']}th image" if "every" in report else ""
    return every + (f", first {report['num_images']} images" if _is_first(report) else "")


def _is_first(report: Mapping[str, Any]) -> bool:
    """Whether a report leaves out the last of the images that its `every` would take."""
    available = report.get("num_images_available", report["num_images"])
    return bool(report["num_images"] < -(-available // report.get("every", 1)))


def size_of(report: Mapping[str, Any]) -> str:
    """ ", S=256", or nothing where whole images were taken."""
    return f", S={report['size']}" if report.get("size") else ""


def method_name(report: Mapping[str, Any]) -> str:
    """What a report is of: "natural-x4", "natural-x4 with self-ensemble", "bicubic"."""
    if report.get("predictions"):
        return str(report["predictions"]["name"])
    name = report.get("name") or ("pipeline" if report.get("pipeline") else "bicubic")
    return f"{name} with self-ensemble" if report.get("self_ensemble") else str(name)


def _dtype_of(report: Mapping[str, Any]) -> str:
    """What the networks computed in."""
    return str((report.get("pipeline") or {}).get("dtype", "float32"))


def kept_rows(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of what users get: the projected ones, under the plain name, where `has_projected`; bicubic as it is."""
    rows = [dict(row, name=str(row["name"])) for row in report["rows"]]
    if not has_projected(report):
        return rows
    names = {row["name"] for row in rows}
    chosen = [row for row in rows if row["name"] == "bicubic" or f"{row['name']} projected" not in names]
    return [
        row if "bicubic" in row["name"] else dict(row, name=row["name"].removesuffix(" projected")) for row in chosen
    ]


def results_document(reports: Sequence[Mapping[str, Any]], names: Sequence[str] | None = None) -> str:
    """The results document: for each protocol one table of images and one of sets of samples, and the commands.

    Of two reports of one method on one data set that in float32, else the first, has its rows in the tables; the other
    adds its own. Reports whose names are the same and whose images, networks, seeds or numbers of samples are not have
    the names of their files beside them.

    Args:
        reports: of `evaluate`.
        names: of their files; "report-1.json" and so on where None.

    Raises:
        ValueError: no reports.
    """
    if not reports:
        raise ValueError("`reports` must hold at least one report, got none.")
    files = list(names) if names is not None else [f"report-{i + 1}.json" for i in range(len(reports))]
    lines = ["# Results", "", "Made by `hvae-sr results` of the reports of the commands at the end.", *_HOW_TO_READ]
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for report in _told_apart(reports, files):
        groups.setdefault(_title_of(report), []).append(report)
    for title, group in sorted(groups.items(), key=lambda item: -len(item[1])):  # what was measured most first
        lines += ["", f"## {title}", "", *_images_table(group)]
        sets: dict[str, dict[str, Any]] = {}
        for report, row in _in_order(group):
            if "std" in row or "coverage" in row:
                name = f"{_data_of(report)}: {_name_of(report, row)}"
                levels = {"name": name} | ({"std": 255 * float(row["std"])} if "std" in row else {})
                sets[name] = {**row, **levels, **sets.get(name, {})}
        lines += ["", *table(list(sets.values()), _SETS, "Samples")] if sets else []
        sources = dict.fromkeys(source for source, _ in map(published_rows, group) if source)
        lines += ["", *(f"Published figures: {source}." for source in sources)] if sources else []
    lines += ["", "## Commands", "", "```"]
    for report, file in zip(reports, files, strict=True):
        version = (report.get("versions") or {}).get("hvae-sr")
        lines.append(command_line(report, file) + (f"  # version {version}" if version else ""))
    lines.append("```")
    return "\n".join([*lines, ""])


def _title_of(report: Mapping[str, Any]) -> str:
    """Protocol, size, factor and degradation."""
    made = f", LR degraded by {report['degradation']['name']}" if report.get("degradation") else ""
    return f"{str(report['protocol']).capitalize()} protocol{size_of(report)}, x{report['scale_factor']}{made}"


_ROUNDED = 0.006
"""dB: half of the last digit of reports that were rounded."""


def _told_apart(reports: Sequence[Mapping[str, Any]], files: Sequence[str]) -> list[Mapping[str, Any]]:
    """Reports that would take others' places in a table under names that tell them apart.

    Data sets of one name are others where bicubic interpolation has another PSNR on them.
    """
    bicubic: dict[tuple[str, str], float] = {}
    identities: dict[tuple[str, str, str], str] = {}
    told: list[Mapping[str, Any]] = []
    for given, file in zip(reports, files, strict=True):
        report, stem = given, Path(file).stem
        psnr = float(report["rows"][0].get("psnr") or 0.0)  # None where every image has an infinite one
        if abs(bicubic.setdefault((_title_of(report), _data_of(report)), psnr) - psnr) > _ROUNDED:
            report = {**report, "dataset": f"{report['dataset']} ({stem})"}
        method = method_name(report)
        identity = json.dumps([_made_by(report), report.get("seed"), report.get("num_samples")], sort_keys=True)
        if identities.setdefault((_title_of(report), _data_of(report), method), identity) != identity:
            if report.get("predictions"):
                name = f"{method} ({stem})"
                rows = [row | ({"name": name} if row["name"] == method else {}) for row in report["rows"]]
                report = {**report, "predictions": {**report["predictions"], "name": name}, "rows": rows}
            elif report.get("pipeline"):
                report = {**report, "name": f"{report.get('name') or 'pipeline'} ({stem})"}
        told.append(report)
    return told


def _made_by(report: Mapping[str, Any]) -> Any:
    """What tells the images of a report from those of another method of its name."""
    if report.get("predictions"):
        return report["predictions"].get("sha256")
    return {name: value for name, value in (report.get("pipeline") or {}).items() if name not in ("dtype", "device")}


_HOW_TO_READ = [
    "`docs/evaluation.md` says what the figures are. A cell is PSNR in dB (gain over bicubic of the same source) /",
    "SSIM / LPIPS, where it was measured; samples are as a call returns them, projected where the model does that. MSE",
    "ratio: the squared error of a sample over that of the posterior's mean, and what a calibrated sampler has;",
    "coverage: of central 90 % intervals. What two reports have is that of the one in float32 (no `--dtype`).",
]
_SETS = {
    "std": ("std, grey levels", ".1f"),
    **{key: SPREAD[key] for key in ("crps", "apd_lpips", "exchangeability_mse", "exchangeability_lpips")},
    **{key: SPREAD[key] for key in ("mse_ratio_true", "mse_ratio_true_expected", "coverage")},
    "lr_psnr": QUALITY["lr_psnr"],
}


def _name_of(report: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """A row's name beside those of other methods; bicubic is the same in all reports."""
    method, name = method_name(report), str(row["name"])
    return name if "bicubic" in name or name == method else f"{method}, {name}"


def _data_of(report: Mapping[str, Any]) -> str:
    return f"{report['dataset']}{part_of(report)}"


def measured_on(report: Mapping[str, Any]) -> str:
    """What the figures of two reports must be of to be compared: data, protocol, size, factor and degradation."""
    return f"{_data_of(report)}, {_title_of(report)}"


def _in_order(reports: Sequence[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], dict[str, Any]]]:
    """(report, row) of all reports: bicubic first, then method by method, by temperature, sample before mean.

    Of equal rows those of float32 come first, which are the same on every machine.
    """
    methods = list(dict.fromkeys(map(method_name, reports)))
    found = [(report, row) for report in reports for row in kept_rows(report)]
    return sorted(
        found,
        key=lambda pair: (
            "bicubic" not in pair[1]["name"],
            methods.index(method_name(pair[0])),
            pair[1].get("temperature", 0.0),
            pair[1]["name"].startswith("mean"),
            _dtype_of(pair[0]) != "float32",
        ),
    )


def _images_table(reports: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each method, published or measured, a column for each data set."""
    cells: dict[str, dict[str, str]] = {}
    for report in reports:
        for row in published_rows(report)[1]:
            cells.setdefault(row["name"], {}).setdefault(_data_of(report), image_cell(row))
    for report, row in _in_order(reports):
        name = _name_of(report, row)
        cells.setdefault(name, {}).setdefault(_data_of(report), image_cell(row))
    data = list(dict.fromkeys(map(_data_of, reports)))
    rows = [[name, *(row.get(one, "") for one in data)] for name, row in cells.items() if any(row.values())]
    return markdown_lines(["Method", *data], rows)


def image_cell(row: Mapping[str, Any], with_lpips: bool = True) -> str:
    """ "25.70 (+0.67) / 0.7100 / 0.250": PSNR and its gain, SSIM, and LPIPS if there is one; nothing without a PSNR."""
    if "psnr" not in row:
        return ""
    gain = f" ({float(row['psnr_gain']):+.2f})" if row.get("psnr_gain") else ""
    lpips = f" / {float(row['lpips']):.3f}" if with_lpips and "lpips" in row else ""
    return f"{float(row['psnr']):.2f}{gain} / {float(row['ssim']):.4f}{lpips}"
