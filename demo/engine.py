"""What the page computes: samples, new versions of one, and what samples have in common."""

import io
import math
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from hvae_sr import SuperResolutionPipeline, __version__
from hvae_sr.images import load_image, save_image, uncertainty_to_pil
from hvae_sr.posterior import Recipe


class Refused(ValueError):
    """Something a visitor asked for cannot be done; the message is for the visitor."""


class TooLarge(Refused):
    """A picture over the limit, which can be shrunk."""


@dataclass
class Drawn:
    """A sample: its picture, how it was made, PSNR in dB of its 8-bit pixels made small against the input, its file."""

    image: Image.Image
    recipe: Recipe
    lr_psnr: float
    path: Path

    @property
    def caption(self) -> str:
        return f"{describe(self.recipe)} · LR-PSNR {self.lr_psnr:.1f} dB"

    @property
    def label(self) -> str:
        """The caption's short form, for a small picture: LR-PSNR in dB, and what was drawn last."""
        return f"{self.lr_psnr:.1f} · " + ("region" if self.recipe.regions else f"seed {self.recipe.group_seeds[-1]}")


@dataclass
class Settings:
    """What a visitor chose."""

    model: str
    temperature: float | list[float]
    consistent: bool = True


@dataclass
class Session:
    """One visitor's picture and samples, and the folder of their files."""

    folder: Path
    image: Image.Image
    settings: Settings
    samples: list[Drawn] = field(default_factory=list)
    selected: int = 0
    stopped: bool = False  # by the visitor: what is being drawn then is dropped


class Engine:
    """Draws for all visitors.

    Args:
        models: bundled names, folders or Hub ids; the first is shown first. Those of one name are told apart by what
            stands before it.
        device, dtype: of the models.
        max_pixels: of an input, for models of factors up to 4; beyond, of as large samples.
    """

    def __init__(
        self, models: list[str], device: str = "cpu", dtype: torch.dtype | None = None, max_pixels: int = 256 * 256
    ) -> None:
        self.max_pixels = max_pixels
        self.pipelines: dict[str, SuperResolutionPipeline] = {}
        given = list(dict.fromkeys(models))
        names = [Path(name).name for name in given]
        for name, short in zip(given, names, strict=True):
            pipeline = SuperResolutionPipeline.from_pretrained(name, **({} if dtype is None else {"dtype": dtype}))
            pipeline.set_progress_bar_config(disable=True)
            self.pipelines[short if names.count(short) == 1 else name] = pipeline.to(device)

    def levels(self, model: str) -> list[tuple[int, int]]:
        """(stride, number of groups) of each level of a model, coarse to fine."""
        vdvae = self.pipelines[model].vdvae
        strides = [vdvae.stride(group) for group in range(vdvae.num_groups)]
        return [(stride, strides.count(stride)) for stride in dict.fromkeys(strides)]

    def temperatures(self, model: str, by_level: list[float]) -> list[float]:
        """One temperature for each group, of one for each level; levels beyond those given have the last one."""
        levels = self.levels(model)
        return [by_level[min(i, len(by_level) - 1)] for i, (_, count) in enumerate(levels) for _ in range(count)]

    def scale(self, model: str) -> int:
        """Sides of a model's samples over those of its input."""
        return int(self.pipelines[model].config.scale_factor)

    def limit(self, model: str) -> int:
        """Pixels of an input that a model takes."""
        return max(self.max_pixels * 16 // max(self.scale(model), 4) ** 2, 16)

    def check(self, image: Any, model: str) -> Image.Image:
        """The visitor's picture as upright RGB.

        Raises:
            Refused: there is none, it cannot be read, or it is too small.
            TooLarge: it has more pixels than the model's `limit`.
        """
        if image is None:
            raise Refused("Choose a picture first: upload or paste one, or take an example.")
        try:
            picture = load_image(image)
        except ValueError as error:
            raise Refused(f"This file cannot be read as a picture ({str(error).split(': ')[-1]}).") from None
        if min(picture.size) < 4:
            raise Refused(f"This picture has {picture.width} x {picture.height} pixels: too few to go on.")
        if picture.width * picture.height > self.limit(model):
            side = math.isqrt(self.limit(model))
            raise TooLarge(
                f"With this model the demo takes up to {side} x {side} pixels, or as many in another shape; this "
                f"picture has {picture.width} x {picture.height}. Shrink it with the button, or cut out a part. "
                "The command hvae-sr upscale has no such limit."
            )
        return picture

    def shrink(self, image: Any, model: str) -> Image.Image:
        """The picture within the limit, its shape kept."""
        picture = load_image(image)
        factor = math.sqrt(self.limit(model) / (picture.width * picture.height))
        if factor >= 1:
            return picture
        size = (max(int(picture.width * factor), 1), max(int(picture.height * factor), 1))
        return picture.resize(size, Image.Resampling.BICUBIC)

    def recipes(self, model: str, seed: int, count: int) -> list[Recipe]:
        """`count` samples from `seed` on, as the pipeline numbers them."""
        groups = self.pipelines[model].vdvae.num_groups
        return [Recipe.of(seed + j, groups) for j in range(count)]

    def draw(self, session: Session, recipes: Sequence[Recipe]) -> Iterator[Drawn]:
        """The pipeline's samples of these recipes, one by one, each written to the session's folder."""
        settings = session.settings
        samples = self.pipelines[settings.model].samples(
            session.image,
            recipes=recipes,
            temperature=settings.temperature,
            enforce_consistency=None if settings.consistent else False,
            batch_size=1,  # so that each is shown as soon as it can be
        )
        for recipe, sample in zip(recipes, samples, strict=True):
            regions = [{"seed": region.seed, "box": _box(region.mask)} for region in recipe.regions]
            metadata = {
                "model": settings.model,
                "version": __version__,
                "temperature": settings.temperature,
                "consistent": settings.consistent,
                "lr_psnr": round(sample.lr_psnr, 4),
                "group_seeds": list(recipe.group_seeds),
                "regions": regions,
            }
            if recipe.seed is not None:
                metadata["seed"] = recipe.seed
            path = session.folder / f"sample_{len(list(session.folder.glob('sample_*.png'))) + 1:02d}.png"
            save_image(sample.image, path, metadata)
            yield Drawn(sample.image, recipe, sample.lr_psnr, path)


def describe(recipe: Recipe) -> str:
    """A few words for a caption."""
    seeds = list(dict.fromkeys(recipe.group_seeds))
    kept = recipe.group_seeds.count(recipe.group_seeds[0])
    text = f"seed {seeds[0]}" if len(seeds) == 1 else f"{kept} groups of {seeds[0]}, then {seeds[-1]}"
    return text + (f", region {recipe.regions[-1].seed}" if recipe.regions else "")


def mean_and_std(samples: list[Drawn]) -> tuple[Image.Image, np.ndarray]:
    """The mean of the samples, and the standard deviation of every pixel, `[H, W, 3]` in units of [0, 1]."""
    stack = np.stack([np.asarray(sample.image, dtype=np.float32) for sample in samples])
    return Image.fromarray(np.rint(stack.mean(axis=0)).astype(np.uint8)), stack.std(axis=0) / 255


def scale_end(std: np.ndarray) -> float:
    """The end of the map's scale, in units of [0, 1]: few grey levels where samples differ little, or all is black."""
    high = 255 * float(np.quantile(np.sqrt(np.mean(np.square(std), axis=-1)), 0.99))
    return next((levels for levels in (5.0, 10.0, 15.0) if high <= levels), 25.0) / 255


def overlay(image: Image.Image, std: np.ndarray) -> Image.Image:
    """The uncertainty map over the picture in grey: the more a pixel differs between samples, the more colour."""
    heat = np.asarray(uncertainty_to_pil(std, scale_end(std)), dtype=np.float32)
    grey = np.asarray(image.convert("L"), dtype=np.float32)[..., None] * 0.35
    return Image.fromarray(np.rint(255 - (255 - grey) * (255 - heat) / 255).astype(np.uint8))


def close_ups(session: Session, centre: tuple[float, float], side: int) -> list[tuple[str, Image.Image]]:
    """(name, `side` x `side` pixels) of bicubic, every sample, and the mean, around a point in [0, 1] x [0, 1]."""
    width, height = session.samples[0].image.size
    left = min(max(round(centre[0] * width) - side // 2, 0), max(width - side, 0))
    top = min(max(round(centre[1] * height) - side // 2, 0), max(height - side, 0))
    box = (left, top, min(left + side, width), min(top + side, height))
    pictures = [("bicubic", before(session, "bicubic"))]
    pictures += [(describe(sample.recipe), sample.image) for sample in session.samples]
    return [(name, picture.crop(box)) for name, picture in [*pictures, ("mean", mean_and_std(session.samples)[0])]]


def before(session: Session, kind: str) -> Image.Image:
    """The input at the size of the samples: "bicubic", or "input" with its pixels as squares."""
    method = Image.Resampling.BICUBIC if kind == "bicubic" else Image.Resampling.NEAREST
    return session.image.resize(session.samples[0].image.size, method)


def flicker(pictures: list[Image.Image], milliseconds: int = 400) -> bytes:
    """An animated PNG that shows pictures in turn, without loss."""
    buffer = io.BytesIO()
    pictures[0].save(buffer, "PNG", save_all=True, append_images=pictures[1:], duration=milliseconds, loop=0)
    return buffer.getvalue()


def write_zip(session: Session, name: str = "samples.zip") -> Path:
    """All samples, their mean and the uncertainty map."""
    mean, std = mean_and_std(session.samples)
    save_image(mean, session.folder / "mean.png", {"what": "mean of the samples"})
    save_image(uncertainty_to_pil(std), session.folder / "uncertainty.png", {"what": "standard deviation, 0 to 0.1"})
    path = session.folder / name
    files = [sample.path for sample in session.samples]
    with zipfile.ZipFile(path, "w") as archive:
        for file in [*files, session.folder / "mean.png", session.folder / "uncertainty.png"]:
            archive.write(file, file.name)
    return path


def _box(mask: np.ndarray) -> list[int]:
    """[left, top, right, bottom] of what is true."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]
