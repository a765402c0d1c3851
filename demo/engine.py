"""What the page computes: samples that are addressed by seeds, new versions of one, and what they have in common.

A sample is a recipe: the seed of the noise of every latent group, and regions whose noise was drawn again. Groups run
from coarse to fine, so a version that keeps the first k groups' seeds keeps the layout and gets new texture.
"""

import io
import math
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from hvae_sr import SuperResolutionPipeline, __version__
from hvae_sr.images import load_image, save_image, to_tensor, uncertainty_to_pil
from hvae_sr.noise import CounterNoise

FEATHER = 8
"""Pixels inside a redrawn region over which the change grows to its full size."""


class Refused(ValueError):
    """Something a visitor asked for cannot be done; the message is for the visitor."""


class TooLarge(Refused):
    """A picture over the limit, which can be shrunk."""


@dataclass(frozen=True)
class Region:
    """Pixels `[H, W]` whose noise has another seed."""

    mask: np.ndarray
    seed: int


@dataclass(frozen=True)
class Recipe:
    """Where the noise of a sample comes from: a seed for each group, then regions, later ones over earlier ones."""

    group_seeds: tuple[int, ...]
    regions: tuple[Region, ...] = ()

    @property
    def seed(self) -> int | None:
        """The pipeline's `seed` that gives this sample, if one does."""
        return self.group_seeds[0] if len(set(self.group_seeds)) == 1 and not self.regions else None

    def vary(self, kept: int, seed: int) -> "Recipe":
        """The first `kept` groups as they are, the others with the noise of `seed`."""
        return Recipe((*self.group_seeds[:kept], *(seed for _ in self.group_seeds[kept:])), self.regions)

    def describe(self) -> str:
        """A few words for a caption."""
        seeds = list(dict.fromkeys(self.group_seeds))
        kept = self.group_seeds.count(self.group_seeds[0])
        text = f"seed {seeds[0]}" if len(seeds) == 1 else f"{kept} groups of {seeds[0]}, then {seeds[-1]}"
        return text + (f", region {self.regions[-1].seed}" if self.regions else "")


@dataclass
class Drawn:
    """A sample: its picture, how it was made, PSNR in dB of its 8-bit pixels made small against the input, its file."""

    image: Image.Image
    recipe: Recipe
    lr_psnr: float
    path: Path

    @property
    def caption(self) -> str:
        return f"{self.recipe.describe()} · LR-PSNR {self.lr_psnr:.1f} dB"

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
        self.pipelines: dict[str, Any] = {}
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
        return [Recipe((seed + j,) * groups) for j in range(count)]

    def draw(self, session: Session, recipe: Recipe) -> Drawn:
        """One sample, exactly as the pipeline gives it, written to the session's folder."""
        pipeline, settings = self.pipelines[session.settings.model], session.settings
        source = {"seed": recipe.seed} if recipe.seed is not None else {"noise": self._noise(session, recipe)}
        out = pipeline(
            session.image,
            temperature=settings.temperature,
            enforce_consistency=settings.consistent,
            output_type="pil",
            **source,
        )
        return self._keep(session, out.images[0], recipe, out.lr_psnr[0])

    def redraw(self, session: Session, mask: np.ndarray, seed: int) -> Drawn:
        """A new version of a region of the selected sample; all else stays as it is.

        Args:
            session: the visitor's.
            mask: true where pixels are drawn again, `[H, W]`.
            seed: of the region's noise.

        Raises:
            Refused: nothing is marked.
        """
        from hvae_sr.pipelines.explore import feather_weights, unseen_change

        if not mask.any():
            raise Refused("Mark a part of the picture first.")
        pipeline, old = self.pipelines[session.settings.model], session.samples[session.selected]
        recipe = Recipe(old.recipe.group_seeds, (*old.recipe.regions, Region(mask, seed)))
        out = pipeline(
            session.image,
            temperature=session.settings.temperature,
            enforce_consistency=session.settings.consistent,
            noise=self._noise(session, recipe),
            output_type="pt",
        )
        before = to_tensor(old.image).to(out.images.device)
        weights = feather_weights(torch.from_numpy(mask), FEATHER).to(before.device)
        change = unseen_change(pipeline.operator, out.images[0].float() - before, weights).float()
        levels = ((before + change).clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
        return self._keep(session, Image.fromarray(levels), recipe, self._lr_psnr(pipeline, levels, session.image))

    def _lr_psnr(self, pipeline: Any, levels: np.ndarray, small: Image.Image) -> float:
        x, y = to_tensor(levels).double(), to_tensor(small).double()
        error = (pipeline.operator(x) - y).square().mean().item()
        return -10 * math.log10(error) if error else math.inf

    def _keep(self, session: Session, image: Image.Image, recipe: Recipe, lr_psnr: float) -> Drawn:
        settings = session.settings
        facts = {
            "model": settings.model,
            "version": __version__,
            "temperature": settings.temperature,
            "consistent": settings.consistent,
            "lr_psnr": round(lr_psnr, 4),
            "group_seeds": list(recipe.group_seeds),
            "regions": [{"seed": region.seed, "box": _box(region.mask)} for region in recipe.regions],
        }
        if recipe.seed is not None:
            facts["seed"] = recipe.seed
        path = session.folder / f"sample_{len(list(session.folder.glob('sample_*.png'))) + 1:02d}.png"
        save_image(image, path, facts)
        return Drawn(image, recipe, lr_psnr, path)

    def _noise(self, session: Session, recipe: Recipe) -> list[torch.Tensor]:
        """Standard normals `[1, C, h, w]` of every group."""
        pipeline = self.pipelines[session.settings.model]
        vdvae, scale = pipeline.vdvae, pipeline.config.scale_factor
        multiple = math.lcm(vdvae.size_multiple, pipeline.lr_encoder.size_multiple * scale)
        width, height = (math.ceil(side * scale / multiple) * multiple for side in session.image.size)
        noise = []
        for group, seed in enumerate(recipe.group_seeds):
            stride, shape = vdvae.stride(group), vdvae.latent_shape(group, 1, (height, width))
            values = CounterNoise([seed])(group, stride, shape, torch.device("cpu"))
            for region in recipe.regions:
                padded = np.zeros((height, width), dtype=bool)
                padded[: region.mask.shape[0], : region.mask.shape[1]] = region.mask
                blocks = padded.reshape(height // stride, stride, width // stride, stride).any(axis=(1, 3))
                fresh = CounterNoise([region.seed])(group, stride, shape, torch.device("cpu"))
                values = torch.where(torch.from_numpy(blocks), fresh, values)
            noise.append(values)
        return noise


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
    pictures += [(sample.recipe.describe(), sample.image) for sample in session.samples]
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
