"""Validation: the objective on held-out images, the KL of every group, and sheets of samples to look at."""

import io
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image, ImageDraw
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from ..data import ImageCrops
from ..images import save_image
from ..models import VDVAE
from ..noise import CounterNoise
from .config import TrainingConfig
from .objectives import GROUPS, Objective

logger = logging.getLogger(__name__)

_GAP = 4
_HEADER = 14
_WIDTH = 128
"""Pixels that a column of a sheet is wide at least, nearly: enough to see something."""


class Validator:
    """Measures an objective on held-out images. Every image has one fixed crop and fixed noise, so that the
    validations of one run can be compared.

    Args:
        dataset: the held-out images.
        config: the options.
        accelerator: of the run.
    """

    def __init__(self, dataset: ImageCrops, config: TrainingConfig, accelerator: Accelerator) -> None:
        self.dataset = dataset
        self.config = config
        self.accelerator = accelerator

    @torch.no_grad()
    def figures(self, objective: Objective) -> dict[str, Any]:
        """Means of the objective's figures over the held-out images, with the weights as they are.

        A collective operation: every process takes its share. The figure of every group is a list.
        """
        accelerator, size = self.accelerator, self.config.train_batch_size
        mine = range(accelerator.process_index, len(self.dataset), accelerator.num_processes)
        sums: dict[str, Tensor] = {}
        for number in range(0, max(len(mine), 1), size):
            # A process without an image still takes part in the sum, with weight 0.
            indices = list(mine[number : number + size]) or [0]
            images, low = self._batch(indices)
            with accelerator.autocast():
                _, figures = objective(images, indices, low=low)
            weight = len(indices) if len(mine) else 0
            for name, value in {**figures, "images": torch.ones((), device=accelerator.device)}.items():
                sums[name] = sums.get(name, 0) + value.float() * weight
        totals = accelerator.reduce(sums, reduction="sum")
        images_seen = float(totals.pop("images"))
        return {f"validation_{name}": (total / images_seen).tolist() for name, total in totals.items()}

    @torch.no_grad()
    def samples(self, objective: Objective) -> tuple[Image.Image, dict[str, float]]:
        """A sheet with one row for each of the first images, and what was measured on its samples.

        With an LR network: HR, LR, and a sample at each temperature, with PSNR against HR and LR-PSNR of the 8-bit
        images (dB, means over the rows). Without one: HR, its reconstruction, and samples of the prior. On one process.
        """
        count = min(self.config.validation_images, len(self.dataset))
        images, low = self._batch(list(range(count)))
        temperatures = self.config.validation_temperatures
        columns = [_pixels(images.float() / 255)]
        measured: dict[str, float] = {}
        with self.accelerator.autocast():
            if objective.lr_network is None:
                vdvae = objective.vdvae
                x, noise = images.float() / 127.5 - 1, CounterNoise(range(count))
                columns.append(_pixels((vdvae(x, noise=noise).sample + 1) / 2))
                size = (x.shape[-2], x.shape[-1])
                for temperature in temperatures:
                    drawn = vdvae.sample(count, size, noise, temperature=temperature, return_latents=False).sample
                    columns.append(_pixels((drawn + 1) / 2))
                names = ["HR", "reconstruction"]
            else:
                from ..pipelines import SuperResolutionPipeline

                _, y = objective.pairs(images, low)
                config = self.config
                pipe = SuperResolutionPipeline(
                    **objective.components(),
                    scale_factor=config.scale_factor,
                    downsampling_kernel=config.downsampling_kernel,
                )
                pipe.set_progress_bar_config(disable=True)
                columns.append(_pixels((y + 1) / 2).repeat(config.scale_factor, 1).repeat(config.scale_factor, 2))
                for temperature in temperatures:
                    out = pipe((y + 1) / 2, temperature=temperature, num_samples=1, seed=0)
                    columns.append(np.stack([np.asarray(image) for image in out.images]))
                    error = (columns[-1].astype(float) - columns[0]) ** 2
                    psnr = 10 * np.log10(255**2 / np.maximum(error.mean(axis=(1, 2, 3)), 1e-10))
                    measured[f"validation_psnr_t{temperature:g}"] = float(psnr.mean())
                    measured[f"validation_lr_psnr_t{temperature:g}"] = float(np.mean(out.lr_psnr))
                names = ["HR", "LR"]
        return _sheet(columns, names + [f"t={temperature:g}" for temperature in temperatures]), measured

    def write(
        self, objective: Objective, folder: Path, step: int, figures: dict[str, Any]
    ) -> tuple[dict[str, Image.Image], dict[str, float]]:
        """Writes the pictures of one validation to `folder`; returns them, and what was measured on the samples."""
        pictures: dict[str, Image.Image] = {}
        measured: dict[str, float] = {}
        if self.config.validation_images:
            pictures["samples"], measured = self.samples(objective)
        groups = figures.get(f"validation_{GROUPS}")
        if groups is not None:
            plot = plot_groups(groups, objective.vdvae, step)
            if plot is not None:
                pictures["groups"] = plot
        folder.mkdir(parents=True, exist_ok=True)
        for name, picture in pictures.items():
            save_image(picture, folder / f"step-{step:07d}-{name}.png")
        return pictures, measured

    def _batch(self, indices: list[int]) -> tuple[Tensor, Tensor | None]:
        batch = next(iter(DataLoader(Subset(self.dataset, indices), batch_size=len(indices))))
        low = batch.get("low")
        return batch["image"].to(self.accelerator.device), None if low is None else low.to(self.accelerator.device)


def plot_groups(groups: list[float], vdvae: VDVAE, step: int) -> Image.Image | None:
    """A bar for each group's KL, in bits per dimension of x; None where matplotlib is not installed."""
    figure = _figure()
    if figure is None:
        return None
    axes = figure.subplots()
    resolutions = vdvae.resolutions[: len(groups)]
    for rank, resolution in enumerate(sorted(set(resolutions))):
        chosen = [i for i, each in enumerate(resolutions) if each == resolution]
        axes.bar(chosen, [groups[i] for i in chosen], color=f"C{rank % 10}", label=f"{resolution} x {resolution}")
    axes.set_xlabel("group, coarse to fine")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_ylabel("KL, bits per dimension")
    axes.set_title(f"update {step}: {sum(groups):.4g} bits per dimension in {len(groups)} groups")
    axes.legend(title="latents")
    return _drawn(figure)


def plot_curve(records: list[dict[str, Any]], figure_name: str) -> Image.Image | None:
    """The loss over the updates, in training and validation, from the lines of log.jsonl; None without matplotlib."""
    figure = _figure()
    if figure is None:
        return None
    axes = figure.subplots()
    for name, label in ((figure_name, "training"), (f"validation_{figure_name}", "held-out images")):
        points = [(record["step"], record[name]) for record in records if name in record]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, marker="o" if len(points) < 20 else None, markersize=3)
    axes.set_xlabel("update")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_ylabel(figure_name.replace("_", " "))
    axes.grid(alpha=0.3)
    axes.legend()
    return _drawn(figure)


def _figure() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        logger.info("no plots: matplotlib is not installed (pip install 'hvae-sr[train]')")
        return None
    return Figure(figsize=(6.4, 3.6), dpi=100, layout="constrained")


def _drawn(figure: Any) -> Image.Image:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return Image.open(buffer).convert("RGB")


def _pixels(images: Tensor) -> np.ndarray:
    """[B, 3, H, W] on [0, 1] to uint8 [B, H, W, 3]."""
    levels: np.ndarray = (images.float().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return levels


def _sheet(columns: list[np.ndarray], names: list[str]) -> Image.Image:
    """One row for each image, one column for each entry of `columns`, [B, H, W, 3] each; names above.

    Small images are magnified by a whole number, pixel by pixel.
    """
    factor = max(1, _WIDTH // columns[0].shape[2])
    columns = [column.repeat(factor, axis=1).repeat(factor, axis=2) for column in columns]
    count, height, width = columns[0].shape[:3]
    sheet = Image.new(
        "RGB", (len(columns) * (width + _GAP) + _GAP, count * (height + _GAP) + _GAP + _HEADER), (255, 255, 255)
    )
    canvas = ImageDraw.Draw(sheet)
    for i, (column, name) in enumerate(zip(columns, names, strict=True)):
        left = _GAP + i * (width + _GAP)
        canvas.text((left, 1), name, fill=(0, 0, 0))
        for row, image in enumerate(column):
            sheet.paste(Image.fromarray(image), (left, _HEADER + _GAP + row * (height + _GAP)))
    return sheet
