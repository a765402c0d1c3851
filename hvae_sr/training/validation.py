"""Validation: the objective on held-out images, the KL of every group, and sheets of samples to look at."""

from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from ..data import ImageCrops
from ..images import save_image
from ..noise import CounterNoise
from .config import TrainingConfig
from .objectives import ELBO, GROUPS, ConditionalObjective, Objective, PairedObjective
from .plots import plot_groups, sheet
from .publish import build_pipeline


class Validator:
    """Measures an objective on held-out images. Every image has one fixed crop and fixed noise, so that the
    validations of one run can be compared.
    """

    def __init__(self, dataset: ImageCrops, config: TrainingConfig, accelerator: Accelerator) -> None:
        self.dataset, self.config, self.accelerator = dataset, config, accelerator

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

        With a system that has y: HR, LR, and a sample at each temperature, with PSNR against HR and LR-PSNR of the
        8-bit images (dB, means over the rows). Of a prior: HR, its reconstruction, and samples. On one process.
        """
        count = min(self.config.validation_images, len(self.dataset))
        images, low = self._batch(list(range(count)))
        columns = {"HR": _pixels(images.float() / 255)}
        measured: dict[str, float] = {}
        with self.accelerator.autocast():
            if isinstance(objective, PairedObjective):
                _, y = objective.pairs(images, low)
                scale = self.config.scale_factor
                columns["LR"] = _pixels((y + 1) / 2).repeat(scale, 1).repeat(scale, 2)
                pipe = build_pipeline(objective, self.config)
                pipe.set_progress_bar_config(disable=True)
                without = not getattr(pipe, "has_temperature", True)
                for name, temperature in [("t=1", 1.0)] if without else self._temperatures():
                    out = pipe((y + 1) / 2, temperature=temperature, num_samples=1, seed=0)
                    columns[name] = np.stack([np.asarray(image) for image in out.images])
                    error = ((columns[name].astype(float) - columns["HR"]) ** 2).mean(axis=(1, 2, 3))
                    psnr = 10 * np.log10(255**2 / np.maximum(error, 1e-10))
                    measured[f"validation_psnr_t{temperature:g}"] = float(psnr.mean())
                    lr_psnr = np.minimum(out.lr_psnr, 150)  # that of a black image is infinite
                    measured[f"validation_lr_psnr_t{temperature:g}"] = float(lr_psnr.mean())
            elif isinstance(objective, ELBO):
                x, noise = images.float() / 127.5 - 1, CounterNoise(range(count))
                columns["reconstruction"] = _pixels((objective.vdvae(x, noise=noise).sample + 1) / 2)
                size = (x.shape[-2], x.shape[-1])
                for name, temperature in self._temperatures():
                    drawn = objective.vdvae.sample(count, size, noise, temperature=temperature).sample
                    columns[name] = _pixels((drawn + 1) / 2)
        return sheet(columns), measured

    def pictures(
        self, objective: Objective, step: int, figures: dict[str, Any]
    ) -> tuple[dict[str, Image.Image], dict[str, float]]:
        """The pictures of one validation, also written to `validation/`, and what was measured on the samples."""
        pictures: dict[str, Image.Image] = {}
        measured: dict[str, float] = {}
        if self.config.validation_images:
            pictures["samples"], measured = self.samples(objective)
        groups = figures.get(f"validation_{GROUPS}")
        prior = objective.vdvae if isinstance(objective, (ELBO, ConditionalObjective)) else None
        if groups is not None and prior is not None and (plot := plot_groups(groups, prior, step)) is not None:
            pictures["groups"] = plot
        folder = self.config.output_path / "validation"
        folder.mkdir(parents=True, exist_ok=True)
        for name, picture in pictures.items():
            save_image(picture, folder / f"step-{step:07d}-{name}.png")
        return pictures, measured

    def _temperatures(self) -> list[tuple[str, float]]:
        """The temperatures of the samples, each under the name of its column."""
        return [(f"t={temperature:g}", temperature) for temperature in self.config.validation_temperatures]

    def _batch(self, indices: list[int]) -> tuple[Tensor, Tensor | None]:
        batch = next(iter(DataLoader(Subset(self.dataset, indices), batch_size=len(indices))))
        low = batch.get("low")
        return batch["image"].to(self.accelerator.device), None if low is None else low.to(self.accelerator.device)


def _pixels(images: Tensor) -> np.ndarray:
    """[B, 3, H, W] on [0, 1] to uint8 [B, H, W, 3]."""
    levels: np.ndarray = (images.float().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return levels
