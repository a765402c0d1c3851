"""Pictures of a run: sheets of samples, the KL of every group, and the curve of the loss."""

import io
import logging
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ..models import VDVAE

logger = logging.getLogger(__name__)

_GAP = 4
_HEADER = 14
_WIDTH = 128
"""Pixels that a column of a sheet is wide at least, nearly: enough to see something."""


def plot_groups(groups: list[float], vdvae: VDVAE, step: int) -> Image.Image | None:
    """A bar for each group's KL, in bits per dimension of x; None where matplotlib is not installed."""
    axes = _axes()
    if axes is None:
        return None
    resolutions = vdvae.resolutions[: len(groups)]
    for rank, resolution in enumerate(sorted(set(resolutions))):
        chosen = [i for i, each in enumerate(resolutions) if each == resolution]
        axes.bar(chosen, [groups[i] for i in chosen], color=f"C{rank % 10}", label=f"{resolution} x {resolution}")
    axes.set_xlabel("group, coarse to fine")
    axes.set_ylabel("KL, bits per dimension")
    axes.set_title(f"update {step}: {sum(groups):.4g} bits per dimension in {len(groups)} groups")
    axes.legend(title="latents")
    return _drawn(axes)


def plot_curve(records: list[dict[str, Any]], figure_name: str) -> Image.Image | None:
    """The loss over the updates, in training and validation, from the lines of log.jsonl; None without matplotlib."""
    axes = _axes()
    if axes is None:
        return None
    for name, label in ((figure_name, "training"), (f"validation_{figure_name}", "held-out images")):
        points = [(record["step"], record[name]) for record in records if name in record]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, marker="o" if len(points) < 20 else None, markersize=3)
    axes.set_xlabel("update")
    axes.set_ylabel(figure_name.replace("_", " "))
    axes.grid(alpha=0.3)
    axes.legend()
    return _drawn(axes)


def _axes() -> Any:
    """Axes with whole numbers below; None where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        logger.info("no plots: matplotlib is not installed (pip install 'hvae-sr[train]')")
        return None
    axes: Any = Figure(figsize=(6.4, 3.6), dpi=100, layout="constrained").subplots()
    axes.xaxis.get_major_locator().set_params(integer=True)
    return axes


def _drawn(axes: Any) -> Image.Image:
    buffer = io.BytesIO()
    axes.figure.savefig(buffer, format="png")
    return Image.open(buffer).convert("RGB")


def sheet(columns: dict[str, np.ndarray]) -> Image.Image:
    """One row for each image, one column for each entry of `columns`, `[B, H, W, 3]` each; names above.

    Small images are magnified by a whole number, pixel by pixel.
    """
    factor = max(1, _WIDTH // next(iter(columns.values())).shape[2])
    large = {name: column.repeat(factor, axis=1).repeat(factor, axis=2) for name, column in columns.items()}
    count, height, width = next(iter(large.values())).shape[:3]
    size = (len(large) * (width + _GAP) + _GAP, count * (height + _GAP) + _GAP + _HEADER)
    picture = Image.new("RGB", size, (255, 255, 255))
    canvas = ImageDraw.Draw(picture)
    for i, (name, column) in enumerate(large.items()):
        left = _GAP + i * (width + _GAP)
        canvas.text((left, 1), name, fill=(0, 0, 0))
        for row, image in enumerate(column):
            picture.paste(Image.fromarray(image), (left, _HEADER + _GAP + row * (height + _GAP)))
    return picture
