"""Plots of reports and analyses. Needs matplotlib: pip install 'hvae-sr[figures]'.

Every function returns a `matplotlib.figure.Figure`, for `save_figure`. Lines differ by colour (of Okabe and Ito's
palette, which colour-blind readers can tell apart), marker and dashes, so that they survive a grey print.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

try:
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, ScalarFormatter
except ImportError as error:
    raise ImportError("figures need matplotlib: pip install 'hvae-sr[figures]'") from error

from ..files import replacing
from .tables import FACTORS, QUALITY, SPREAD, curve, has_projected, measured_on, method_name, sample_rows, size_of

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
_HATCHES = ("", "///", "...", "xx", "\\\\\\", "++")
_REFERENCE: dict[str, Any] = {"color": "0.4", "linestyle": ":", "linewidth": 1.2}
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.grid": True,
    "grid.color": "0.88",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.5,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "figure.dpi": 150,
    "savefig.dpi": 200,
    "pdf.fonttype": 42,
}
PERCEPTION = ("fid", "lpips", "lpips_vgg", "brisque")
"""Metrics for the second axis of the plane of distortion and perception, the first that is there."""

_OF_ONE = ("exchangeability_mse", "exchangeability_lpips", "detail", "detail_tail")
"""Ratios that are 1 where samples look like the truth."""


def line_style(index: int) -> dict[str, Any]:
    """Colour, marker and dashes of the line of that number."""
    kind = index % len(COLOURS)
    return {"color": COLOURS[kind], "marker": _MARKERS[kind], "linestyle": _DASHES[kind]}


def _axes(rows: int = 1, columns: int = 1, width: float = 3.4, height: float = 2.6) -> tuple[Figure, Any]:
    figure = Figure(figsize=(columns * width, rows * height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Writes the figure, whole or not at all; the suffix says how: .png, .pdf or .svg."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as file, rc_context(_STYLE):
        figure.savefig(file, format=target.suffix[1:])


@rc_context(_STYLE)
def distance_figure(
    analysis: Mapping[str, Any], consistency: Mapping[str, Any] | None = None, threshold: float = 0.5
) -> Figure:
    """U_k^s against k for every s (figure 6 of the CVDVAE paper), with CE(k) beside it.

    Args:
        analysis: of `low_resolution_distance`.
        consistency: of `expected_consistency`.
        threshold: grey levels; the paper calls U_k^4 < 0.5 negligible.
    """
    figure, ((ax,),) = _axes(width=5.2, height=3.4)
    for index, scale in enumerate(analysis["scales"]):
        values, errors = (np.array(analysis[key][str(scale)]) for key in ("distance", "standard_error"))
        style = line_style(index)
        ax.plot(analysis["groups"], values, label=f"$U_k^{{{scale}}}$", **style)
        ax.fill_between(analysis["groups"], values - errors, values + errors, color=style["color"], alpha=0.15, lw=0)
    if consistency is not None:
        label = f"CE(k), s = {consistency['scale_factor']}"
        ax.plot(consistency["groups"], consistency["consistency"], label=label, **line_style(len(analysis["scales"])))
    ax.axhline(threshold, color="0.45", linewidth=0.9, linestyle=(0, (4, 3)))
    place = {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "bottom", "color": "0.35"}
    ax.annotate(f"{threshold:g}", (1, threshold), **place)
    strides = analysis["strides"]
    for k in [k for k in range(len(strides)) if k == 0 or strides[k] != strides[k - 1]]:
        if k:
            ax.axvline(k, color="0.8", linewidth=0.8)
        ax.annotate(f" stride {strides[k]}", (k, 1), xycoords=("data", "axes fraction"), va="bottom", fontsize=7.5)
    ax.set_yscale("symlog", linthresh=0.1)
    ax.set_ylim(bottom=0)
    ax.yaxis.set_major_locator(FixedLocator([0, 0.1, 0.3, 1, 3, 10, 30, 100]))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel="k, groups that are fixed", ylabel="RMSE (grey levels)")
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9)
    return figure


@rc_context(_STYLE)
def temperature_figure(report: Mapping[str, Any]) -> Figure:
    """Metrics of one sample, and of the mean of its samples, against the temperature (table 2 of the CVDVAE paper).

    Raises ValueError: the report has fewer than two temperatures.
    """
    rows = sample_rows(report)
    if len(rows) < 2:
        raise ValueError(f"`report` must have at least two temperatures, got {report['temperatures']}.")
    by_name = {row["name"]: row for row in report["rows"]}
    means = [by_name[str(row["name"]).replace("sample", "mean", 1)] for row in rows]
    bicubic = by_name["bicubic projected" if has_projected(report) else "bicubic"]
    wanted = ["psnr", "ssim", "lpips", "lpips_vgg", "brisque", "fid", "lr_psnr", "apd_mse", "apd_lpips", "crps"]
    keys = [key for key in (*wanted, "diversity_score_lpips", "mse_ratio_true", *_OF_ONE) if key in rows[0]]
    taus = [row["temperature"] for row in rows]
    columns = min(4, len(keys))
    figure, axes = _axes(-(-len(keys) // columns), columns, width=2.4, height=2.1)
    for ax in axes.flat[len(keys) :]:
        ax.set_axis_off()
    for key, ax in zip(keys, axes.flat, strict=False):
        ax.plot(taus, [row[key] * FACTORS.get(key, 1) for row in rows], label="one sample", **line_style(0))
        if key in means[0]:
            ax.plot(taus, [row[key] for row in means], label=f"mean of {report['num_samples']}", **line_style(1))
        if key in _OF_ONE:
            ax.axhline(1, label="right", **_REFERENCE)
        elif key in bicubic and np.isfinite(bicubic[key]):
            ax.axhline(bicubic[key], label="bicubic", **_REFERENCE)
        if f"{key}_expected" in rows[0]:
            expected = [row[f"{key}_expected"] for row in rows]
            ax.plot(taus, expected, label="calibrated", **{**_REFERENCE, "linestyle": "--"})
        if key in _OF_ONE or f"{key}_expected" in rows[0]:
            ax.legend()
        ax.set_title({**QUALITY, **SPREAD}[key][0], fontsize=9)
        ax.set_xlabel(r"temperature $\tau$")
    axes.flat[0].legend()
    return figure


@rc_context(_STYLE)
def plane_figure(reports: Sequence[Mapping[str, Any]], perception: str | None = None) -> Figure:
    """The plane of distortion and perception (Blau & Michaeli 2018), marked by diversity.

    A point for each temperature; the area of a marker is proportional to APD-MSE, and bicubic, which has none, is a
    cross. Other methods' images stand as they are, with a line to their projection.

    Args:
        reports: of the same data, protocol and perceptual metrics: of pipelines, or of predictions.
        perception: one of `PERCEPTION`; None means the first of these that all reports have.

    Raises ValueError: there is no such metric in all reports, or they are not of the same data and protocol.
    """
    if not reports:
        raise ValueError("`reports` must hold at least one report, got none.")
    measured = dict.fromkeys(map(measured_on, reports))
    if len(measured) > 1:
        raise ValueError(f"`reports` must be of the same data and protocol, got {'; '.join(measured)}.")
    keys = [key for key in PERCEPTION if all(key in report["rows"][0] for report in reports)]
    key = perception or next(iter(keys), None)
    if key not in keys:
        raise ValueError(f"`perception` must be among the metrics of all reports, {keys}; got {perception!r}.")
    figure, ((ax,),) = _axes(width=5.0, height=3.6)
    bicubic = reports[0]["rows"][0]
    ax.plot(bicubic["psnr"], bicubic[key], color="black", marker="x", linestyle="none", label="bicubic")
    for index, report in enumerate(reports):
        names = {row["name"] for row in report["rows"]}
        means = {name for name in names if name.startswith("mean ") and f"sample {name[5:]}" in names}
        others = [row for row in report["rows"] if row["name"] not in {"bicubic", "bicubic projected", *means}]
        rows: Sequence[Mapping[str, Any]] = sample_rows(report) if report["temperatures"] else others
        xs, ys = [row["psnr"] for row in rows], [row[key] for row in rows]
        style = line_style(index)
        ax.plot(xs, ys, label=method_name(report), **style)
        areas = [2.5e4 * row.get("apd_mse", 0) for row in rows]
        ax.scatter(xs, ys, s=areas, color=style["color"], marker=style["marker"], alpha=0.5)
        for row in rows:
            if "temperature" in row:
                text = f"$\\tau$={row['temperature']:g}"
                ax.annotate(text, (row["psnr"], row[key]), (7, -10), textcoords="offset points", fontsize=7.5)
    ax.set(xlabel="PSNR (dB), more is better", ylabel=f"{QUALITY[key][0]}, less is better")
    ax.margins(0.12)
    ax.set_title("area of the markers: diversity (APD-MSE)", fontsize=8)
    ax.legend(loc="best", fontsize=9)
    return figure


@rc_context(_STYLE)
def calibration_figure(reports: Sequence[Mapping[str, Any]]) -> Figure:
    """Coverage of central intervals against their nominal level, and their width.

    Raises ValueError: a report has no calibration.
    """
    figure, ((left, right),) = _axes(columns=2, width=3.2, height=3.0)
    left.plot([0, 1], [0, 1], label="calibrated", **_REFERENCE)
    for index, report in enumerate(reports):
        row = next((row for row in report["rows"] if "coverage@0.9" in row), None)
        if row is None:
            raise ValueError("`reports` must have a calibration: evaluate with `coverage_samples`.")
        label = f"{method_name(report)}, {report['dataset']}{size_of(report)}"
        left.plot(*curve(row, "coverage@"), label=label, **line_style(index))
        levels, widths = curve(row, "width@")
        right.plot(levels, [255 * width for width in widths], **line_style(index))
    left.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", ylabel="share of pixels inside")
    right.set(xlim=(0, 1), ylabel="mean width (grey levels)")
    right.set_ylim(bottom=0)
    for ax in (left, right):
        ax.set_xlabel("nominal level of the interval")
    left.legend(loc="upper left")
    return figure


@rc_context(_STYLE)
def samples_figure(report: Mapping[str, Any]) -> Figure:
    """PSNR of the mean of n samples and of the best of n, against n, for each temperature."""
    by_name = {row["name"]: row for row in report["rows"]}
    rows = sample_rows(report)
    numbers = sorted({n for row in rows for n in curve(row, "best_psnr@")[0]})
    if not numbers:
        raise ValueError("`report` must have curves over the number of samples, as those of at least two samples have")
    figure, (axes,) = _axes(columns=2, width=3.1, height=2.8)
    for index, row in enumerate(rows):
        mean = by_name[str(row["name"]).replace("sample", "mean", 1)]
        for ax, points in zip(axes, (curve(mean, "psnr@"), curve(row, "best_psnr@")), strict=True):
            ax.plot(*points, label=f"$\\tau$ = {row['temperature']:g}", **line_style(index))
    for ax, title in zip(axes, ("mean of n samples", "best of n samples"), strict=True):
        ax.axhline(report["rows"][0]["psnr"], label="bicubic", **_REFERENCE)
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_locator(FixedLocator(numbers))
        ax.xaxis.set_major_formatter(ScalarFormatter())
        ax.set(xlabel="n", ylabel="PSNR (dB)", title=title)
    limits = [ax.get_ylim() for ax in axes]
    for ax in axes:
        ax.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
    axes[1].legend()
    return figure


_INFORMATION = {
    "from_x": r"from the image: KL($q(z_l | z_{<l}, x)$ || $p(z_l | z_{<l})$)",
    "from_y": r"from the low-resolution image: KL($q_\psi(z_l | z_{<l}, y)$ || $p(z_l | z_{<l})$)",
}


@rc_context(_STYLE)
def information_figure(analysis: Mapping[str, Any]) -> Figure:
    """Bits per dimension of each group, of `group_information`; strides differ by colour and hatching."""
    parts = [(key, title) for key, title in _INFORMATION.items() if key in analysis]
    figure, axes = _axes(len(parts), 1, width=5.2, height=2.3)
    for (key, title), ax in zip(parts, axes[:, 0], strict=True):
        for index, stride in enumerate(dict.fromkeys(analysis["strides"])):
            groups = [group for group, s in enumerate(analysis["strides"]) if s == stride]
            heights = [analysis[key][group] for group in groups]
            label = f"stride {stride}: {100 * sum(heights) / max(sum(analysis[key]), 1e-12):.0f} %"
            kind = {"color": COLOURS[index % len(COLOURS)], "hatch": _HATCHES[index % len(_HATCHES)]}
            ax.bar(groups, heights, edgecolor="white", linewidth=0.6, label=label, **kind)
        ax.set(xlabel="group", ylabel="bits per dimension", title=title)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.grid(visible=False, axis="x")
        ax.legend()
    return figure
