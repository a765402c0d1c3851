"""Figures of reports and analyses. Needs matplotlib: pip install 'hvae-sr[figures]'.

Every function returns a `matplotlib.figure.Figure`, for `save_figure`. Lines differ by colour (of Okabe and Ito's
palette, which colour-blind readers can tell apart), marker and dashes, so that they survive a grey print.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

try:
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, ScalarFormatter
except ImportError as error:
    raise ImportError("figures need matplotlib: pip install 'hvae-sr[figures]'") from error

from ..files import replacing
from .metrics import as_array
from .tables import QUALITY, SPREAD, curve, method_name, sample_rows

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
_HATCHES = ("", "///", "...", "xx", "\\\\\\", "++")
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
    "figure.dpi": 150,
    "savefig.dpi": 200,
    "pdf.fonttype": 42,
}
_PERCEPTION = ("fid", "lpips", "brisque")


def _line(index: int) -> dict[str, Any]:
    """Colour, marker and dashes of the line of that number."""
    kinds = len(COLOURS)
    return {"color": COLOURS[index % kinds], "marker": _MARKERS[index % kinds], "linestyle": _DASHES[index % kinds]}


def _axes(rows: int = 1, columns: int = 1, width: float = 3.4, height: float = 2.6) -> tuple[Figure, Any]:
    figure = Figure(figsize=(columns * width, rows * height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Writes the figure, whole or not at all; the suffix says how: .png, .pdf or .svg."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as file, rc_context(_STYLE):
        figure.savefig(file, format=target.suffix[1:])


def distance_figure(
    analysis: Mapping[str, Any], consistency: Mapping[str, Any] | None = None, threshold: float = 0.5
) -> Figure:
    """U_k^s against k for every s (figure 6 of the CVDVAE paper), with CE(k) beside it.

    Args:
        analysis: of `low_resolution_distance`.
        consistency: of `expected_consistency`.
        threshold: grey levels; the paper calls U_k^4 < 0.5 negligible.
    """
    with rc_context(_STYLE):
        figure, axes = _axes(width=5.2, height=3.4)
        ax = axes[0, 0]
        for index, scale in enumerate(analysis["scales"]):
            values, errors = (np.array(analysis[key][str(scale)]) for key in ("distance", "standard_error"))
            ax.plot(analysis["groups"], values, label=f"$U_k^{{{scale}}}$", **_line(index))
            colour = COLOURS[index % len(COLOURS)]
            ax.fill_between(analysis["groups"], values - errors, values + errors, color=colour, alpha=0.15, lw=0)
        if consistency is not None:
            label = f"CE(k), s = {consistency['scale_factor']}"
            ax.plot(consistency["groups"], consistency["consistency"], label=label, **_line(len(analysis["scales"])))
        ax.axhline(threshold, color="0.45", linewidth=0.9, linestyle=(0, (4, 3)))
        ax.annotate(
            f"{threshold:g}", (1, threshold), xycoords=("axes fraction", "data"), ha="right", va="bottom", color="0.35"
        )
        strides = analysis["strides"]
        for k in range(1, len(strides)):
            if strides[k] != strides[k - 1]:
                ax.axvline(k, color="0.8", linewidth=0.8)
        starts = [k for k in range(len(strides)) if k == 0 or strides[k] != strides[k - 1]]
        for k in starts:
            ax.annotate(f" stride {strides[k]}", (k, 1), xycoords=("data", "axes fraction"), va="bottom", fontsize=7.5)
        ax.set_yscale("symlog", linthresh=0.1)
        ax.set_ylim(bottom=0)
        ax.yaxis.set_major_locator(FixedLocator([0, 0.1, 0.3, 1, 3, 10, 30, 100]))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_xlabel("k, groups that are fixed")
        ax.set_ylabel("RMSE (grey levels)")
        ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def temperature_figure(report: Mapping[str, Any], projected: bool = True) -> Figure:
    """Metrics of one sample, and of the mean of its samples, against the temperature (table 2 of the CVDVAE paper).

    Raises ValueError: the report has fewer than two temperatures.
    """
    rows = sample_rows(report, projected)
    if len(rows) < 2:
        raise ValueError(f"`report` must have at least two temperatures, got {report['temperatures']}.")
    by_name = {row["name"]: row for row in report["rows"]}
    means = [by_name[str(row["name"]).replace("sample", "mean", 1)] for row in rows]
    bicubic = by_name["bicubic projected" if projected else "bicubic"]
    wanted = ("psnr", "ssim", "lpips", "brisque", "fid", "lr_psnr", "apd_mse", "apd_lpips", "crps", "mse_ratio_true")
    keys = [key for key in wanted if key in rows[0]]
    taus = [row["temperature"] for row in rows]
    titles = {**QUALITY, **SPREAD}
    with rc_context(_STYLE):
        columns = min(4, len(keys))
        figure, axes = _axes(-(-len(keys) // columns), columns, width=2.4, height=2.1)
        for index, ax in enumerate(axes.flat):
            if index >= len(keys):
                ax.set_axis_off()
                continue
            key = keys[index]
            factor = {"apd_mse": 1e4, "apd_lpips": 1e3}.get(key, 1)
            ax.plot(taus, [row[key] * factor for row in rows], label="one sample", **_line(0))
            if key in means[0]:
                label = f"mean of {report['num_samples']}"
                ax.plot(taus, [row[key] for row in means], label=label, **_line(1))
            if key in bicubic and np.isfinite(bicubic[key]):
                ax.axhline(bicubic[key], color="0.4", linestyle=":", linewidth=1.2, label="bicubic")
            if f"{key}_expected" in rows[0]:
                expected = [row[f"{key}_expected"] for row in rows]
                ax.plot(taus, expected, color="0.4", linestyle="--", linewidth=1.2, label="calibrated")
                ax.legend(fontsize=7.5)
            ax.set_title(titles[key][0], fontsize=9)
            ax.set_xlabel(r"temperature $\tau$")
        axes.flat[0].legend(fontsize=7.5)
    return figure


def plane_figure(reports: Sequence[Mapping[str, Any]], perception: str | None = None, projected: bool = True) -> Figure:
    """The plane of distortion and perception (Blau & Michaeli 2018), marked by diversity.

    A point for each temperature and method; the area of a marker is proportional to APD-MSE, and bicubic, which has
    none, is a cross.

    Args:
        reports: of the same data, protocol and perceptual metrics.
        perception: "fid", "lpips" or "brisque"; None means the first of these that all reports have.
        projected: whether the samples are the projected ones.

    Raises ValueError: there is no such metric in all reports.
    """
    if not reports:
        raise ValueError("`reports` must hold at least one report, got none.")
    keys = [key for key in _PERCEPTION if all(key in report["rows"][0] for report in reports)]
    key = perception or next(iter(keys), None)
    if key not in keys:
        raise ValueError(f"`perception` must be among the metrics of all reports, {keys}; got {perception!r}.")
    suffix = " projected" if projected else ""
    with rc_context(_STYLE):
        figure, axes = _axes(width=5.0, height=3.6)
        ax = axes[0, 0]
        for index, report in enumerate(reports):
            if index == 0:
                bicubic = report["rows"][0]
                ax.plot(bicubic["psnr"], bicubic[key], color="black", marker="x", linestyle="none", label="bicubic")
            rows: Sequence[Mapping[str, Any]]
            if report["temperatures"]:
                rows = sample_rows(report, projected)
            else:
                rows = [row for row in report["rows"] if "bicubic" not in row["name"]]
                rows = [row for row in rows if str(row["name"]).endswith(suffix) == bool(suffix)] if suffix else rows
            label = method_name(report)
            xs, ys = [row["psnr"] for row in rows], [row[key] for row in rows]
            ax.plot(xs, ys, label=label, **{**_line(index), "markersize": 3})
            areas = [2.5e4 * row.get("apd_mse", 0) for row in rows]
            marker = _MARKERS[index % len(_MARKERS)]
            ax.scatter(xs, ys, s=areas, color=COLOURS[index % len(COLOURS)], marker=marker, alpha=0.5)
            for row in rows:
                if "temperature" in row:
                    text = f"$\\tau$={row['temperature']:g}"
                    ax.annotate(text, (row["psnr"], row[key]), (7, -10), textcoords="offset points", fontsize=7.5)
        ax.set_xlabel("PSNR (dB), more is better")
        ax.set_ylabel(f"{QUALITY[key][0]}, less is better")
        ax.margins(0.12)
        ax.set_title("area of the markers: diversity (APD-MSE)", fontsize=8)
        ax.legend(loc="best")
    return figure


def calibration_figure(reports: Sequence[Mapping[str, Any]]) -> Figure:
    """Coverage of central intervals against their nominal level, and their width.

    Raises ValueError: a report has no calibration.
    """
    with rc_context(_STYLE):
        figure, (axes,) = _axes(columns=2, width=3.2, height=3.0)
        axes[0].plot([0, 1], [0, 1], color="0.4", linestyle=":", linewidth=1.2, label="calibrated")
        for index, report in enumerate(reports):
            row = next((row for row in report["rows"] if "coverage@0.9" in row), None)
            if row is None:
                raise ValueError("`reports` must have a calibration: evaluate with `coverage_samples`.")
            size = f", S={report['size']}" if report.get("size") else ""
            label = f"{method_name(report)}, {report['dataset']}{size}"
            axes[0].plot(*curve(row, "coverage@"), label=label, **_line(index))
            levels, widths = curve(row, "width@")
            axes[1].plot(levels, [255 * width for width in widths], label=label, **_line(index))
        axes[0].set(xlim=(0, 1), ylim=(0, 1), aspect="equal", ylabel="share of pixels inside")
        axes[1].set(xlim=(0, 1), ylabel="mean width (grey levels)")
        axes[1].set_ylim(bottom=0)
        for ax in axes:
            ax.set_xlabel("nominal level of the interval")
        axes[0].legend(fontsize=7.5, loc="upper left")
    return figure


def samples_figure(report: Mapping[str, Any], projected: bool = True) -> Figure:
    """PSNR of the mean of n samples and of the best of n, against n, for each temperature."""
    suffix = " projected" if projected else ""
    by_name = {row["name"]: row for row in report["rows"]}
    rows = sample_rows(report, projected)
    if not curve(rows[0], "best_psnr@")[0]:
        raise ValueError(f"`report` must be of at least two samples, got {report['num_samples']}.")
    with rc_context(_STYLE):
        figure, (axes,) = _axes(columns=2, width=3.1, height=2.8)
        for index, row in enumerate(rows):
            label = f"$\\tau$ = {row['temperature']:g}"
            mean = by_name[f"mean t={row['temperature']:g}{suffix}"]
            axes[0].plot(*curve(mean, "psnr@"), label=label, **_line(index))
            axes[1].plot(*curve(row, "best_psnr@"), label=label, **_line(index))
        numbers = sorted({n for row in rows for n in curve(row, "best_psnr@")[0]})
        for ax, title in zip(axes, ("mean of n samples", "best of n samples"), strict=True):
            ax.axhline(report["rows"][0]["psnr"], color="0.4", linestyle=":", linewidth=1.2, label="bicubic")
            ax.set_xscale("log", base=2)
            ax.xaxis.set_major_locator(FixedLocator(numbers))
            ax.xaxis.set_major_formatter(ScalarFormatter())
            ax.set(xlabel="n", ylabel="PSNR (dB)", title=title)
        limits = [ax.get_ylim() for ax in axes]
        for ax in axes:
            ax.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
        axes[1].legend(fontsize=7.5)
    return figure


def information_figure(analysis: Mapping[str, Any]) -> Figure:
    """Bits per dimension of each group, of `group_information`; strides differ by colour and hatching."""
    parts = [(key, title) for key, title in _INFORMATION.items() if key in analysis]
    strides = list(dict.fromkeys(analysis["strides"]))
    with rc_context(_STYLE):
        figure, axes = _axes(len(parts), 1, width=5.2, height=2.3)
        for (key, title), ax in zip(parts, axes[:, 0], strict=True):
            for index, stride in enumerate(strides):
                groups = [group for group, s in enumerate(analysis["strides"]) if s == stride]
                heights = [analysis[key][group] for group in groups]
                share = sum(heights) / max(sum(analysis[key]), 1e-12)
                ax.bar(
                    groups,
                    heights,
                    color=COLOURS[index % len(COLOURS)],
                    hatch=_HATCHES[index % len(_HATCHES)],
                    edgecolor="white",
                    linewidth=0.6,
                    label=f"stride {stride}: {100 * share:.0f} %",
                )
            ax.set(xlabel="group", ylabel="bits per dimension", title=title)
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
            ax.grid(visible=False, axis="x")
            ax.legend(fontsize=7.5)
    return figure


_INFORMATION = {
    "from_x": r"from the image: KL($q(z_l | z_{<l}, x)$ || $p(z_l | z_{<l})$)",
    "from_y": r"from the low-resolution image: KL($q_\psi(z_l | z_{<l}, y)$ || $p(z_l | z_{<l})$)",
}


def image_grid(rows: Sequence[Sequence[Any]], headings: Sequence[str], captions: Sequence[str] = ()) -> Figure:
    """Rows of pictures under headings, pixel by pixel: a strip of temperatures, reconstructions, comparisons.

    Args:
        rows: 8-bit images ``[H, W, 3]`` or PIL images; None leaves a gap. Smaller ones are magnified without smoothing.
        headings: one for each column.
        captions: one for each row, or none.
    """
    if not rows or any(len(row) != len(headings) for row in rows):
        raise ValueError(
            f"`rows` must have {len(headings)} pictures each, as `headings`, got {[len(r) for r in rows]}."
        )
    with rc_context({**_STYLE, "axes.grid": False}):
        figure, axes = _axes(len(rows), len(headings), width=1.5, height=1.5)
        for i, row in enumerate(rows):
            for j, picture in enumerate(row):
                _show(axes[i, j], picture)
                if i == 0:
                    axes[i, j].set_title(headings[j], fontsize=8)
            if captions:
                axes[i, 0].set_ylabel(captions[i], fontsize=8)
        engine: Any = figure.get_layout_engine()
        engine.set(w_pad=0.01, h_pad=0.01, wspace=0.01, hspace=0.01)
    return figure


def sample_grid(entries: Sequence[Mapping[str, Any]], max_samples: int = 4) -> Figure:
    """Posterior samples as in the papers: LR, samples, mean, standard deviation, ground truth; a row for each image.

    Args:
        entries: with ``lr``, ``samples`` (a list), ``mean``, ``std`` (``[H, W, 3]``, units of [0, 1]) and, if there is
            one, ``truth``.
        max_samples: shown of each.
    """
    if not entries:
        raise ValueError("`entries` must hold at least one image, got none.")
    shown = min(max_samples, *(len(entry["samples"]) for entry in entries))
    has_truth = any(entry.get("truth") is not None for entry in entries)
    headings = ["LR", *(f"sample {j + 1}" for j in range(shown)), "mean", "std", *(["HR"] if has_truth else [])]
    pictures = [
        [e["lr"], *e["samples"][:shown], e["mean"], None, *([e.get("truth")] if has_truth else [])] for e in entries
    ]
    figure = image_grid(pictures, headings)
    column = headings.index("std")
    maps = [255 * np.asarray(as_array("std", entry["std"]), dtype=np.float64).mean(axis=-1) for entry in entries]
    top = max(float(np.quantile(np.concatenate([m.ravel() for m in maps]), 0.99)), 1e-3)
    grid = np.array(figure.axes).reshape(len(entries), len(headings))
    with rc_context({**_STYLE, "axes.grid": False}):
        for ax, values in zip(grid[:, column], maps, strict=True):
            drawn = ax.imshow(values, cmap="cividis", vmin=0, vmax=top, interpolation="nearest")
            ax.set_frame_on(True)
        bar: Any = figure.colorbar(drawn, ax=list(grid[:, -1]), fraction=0.08, pad=0.02)
        bar.set_label("std (grey levels)", fontsize=8)
        bar.outline.set_visible(False)
    return figure


def _show(ax: Any, picture: Any) -> None:
    ax.set(xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set_visible(False)
    if picture is not None:
        pixels = np.asarray(picture.convert("RGB") if isinstance(picture, Image.Image) else picture)
        ax.imshow(pixels, interpolation="nearest" if max(pixels.shape[:2]) < 256 else "antialiased")
