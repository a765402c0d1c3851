"""What the page computes, and what it keeps for each visitor: samples, and new versions of one."""

import base64
import io
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image

from hvae_sr import SuperResolutionPipeline, __version__
from hvae_sr.checkpoints.names import DEFAULT, PHOTO
from hvae_sr.cli.settings import weights_fingerprint
from hvae_sr.images import colour, read_photo, save_image, to_tensor
from hvae_sr.images.degradation import InputStatistics, inspect
from hvae_sr.models.group import TopDownBlock
from hvae_sr.posterior import Recipe, Region

MATCHING = 45.0
"""dB of LR-PSNR from which a sample is said to match the input: its rounding to 8 bits alone gives 50 to 75."""


MIN_SIDE = 4
"""Pixels of a picture's shorter side, at least."""


VISIT = "visit-"
"""What the names of visitors' folders begin with."""


class Refused(ValueError):
    """Something a visitor asked for cannot be done; the message is for the visitor."""


class Stopped(Exception):
    """The visitor has pressed Stop while a sample was being drawn."""


@dataclass(eq=False)
class Drawn:
    """A sample: its picture, how it was made, PSNR in dB of its 8-bit pixels made small against the input, its file."""

    image: Image.Image
    recipe: Recipe
    lr_psnr: float
    path: Path
    redrawn: bool = False

    @property
    def label(self) -> str:
        """What was drawn last, for a small picture: a part of it (`redrawn`), or some groups or all."""
        seeds = self.recipe.group_seeds
        if self.redrawn:
            return "part redrawn"
        return f"seed {seeds[0]}" if len(set(seeds)) == 1 else f"texture {seeds[-1]}"

    @property
    def caption(self) -> str:
        match = "matches the input" if self.lr_psnr >= MATCHING else "made small, it differs from the input"
        return f"{describe(self.recipe)}, {match} ({self.lr_psnr:.0f} dB)"


@dataclass
class Settings:
    """What a visitor chose."""

    model: str
    temperature: float | list[float]
    consistent: bool = True


@dataclass(eq=False)
class Round:
    """Samples of one picture, the input y, that were drawn together, and the folder of their files.

    `stem`, the photograph's name, begins the names of the files; `told` is what they tell beside settings and recipe,
    see `Engine.told` and `Framed.told`.
    """

    name: str
    image: Image.Image
    settings: Settings
    folder: Path
    stem: str = "photo"
    told: dict[str, Any] = field(default_factory=dict)
    samples: list[Drawn] = field(default_factory=list)
    selected: int = 0

    @property
    def chosen(self) -> Drawn:
        return self.samples[self.selected]

    def keep(self, image: Image.Image, recipe: Recipe, lr_psnr: float, redrawn: bool = False) -> Drawn:
        """Writes a sample to the folder, with all that it takes to draw it again, and appends it."""
        metadata = {
            "model": self.settings.model,
            "version": __version__,
            "temperature": self.settings.temperature,
            "consistent": self.settings.consistent,
            **self.told,
            "lr_psnr": round(lr_psnr, 4),
            "group_seeds": list(recipe.group_seeds),
            "regions": [_told(region) for region in recipe.regions],
        }
        if recipe.seed is not None:
            metadata["seed"] = recipe.seed
        path = self.folder / f"{self.stem}_sample_{len(self.samples) + 1:02d}.png"
        save_image(image, path, metadata)
        self.samples.append(Drawn(image, recipe, lr_psnr, path, redrawn))
        return self.samples[-1]


Box = tuple[int, int, int, int]
"""(left, top, right, bottom)."""


class Framed(NamedTuple):
    """A photograph to draw.

    Args:
        photo: all of it, upright RGB.
        stem: its name.
        box: the part to draw, in its pixels; None takes all.
        suited: the model for how it looks, where the page is about to say so; else "".
        shrunk: (width, height) that it was made small to; None where it is as it came.
    """

    photo: Image.Image
    stem: str
    box: Box | None
    suited: str = ""
    shrunk: tuple[int, int] | None = None

    @property
    def part(self) -> Image.Image:
        return self.photo.crop(self.box) if self.box else self.photo

    @property
    def told(self) -> dict[str, Any]:
        """What files tell of it: `crop`, (left, top, width, height) of the part, `shrunk`, the `ground` of what was
        transparent, and the `input_bits` that were read of each channel, where it had more."""
        box = self.box
        crop = None if box is None else (*box[:2], box[2] - box[0], box[3] - box[1])
        found = {"crop": crop, "shrunk": self.shrunk}
        found |= {name: self.photo.info.get(name) for name in ("ground", "input_bits")}
        return {name: value for name, value in found.items() if value is not None}


@dataclass
class Visit:
    """One visitor: the photograph, and what was drawn of it.

    Args:
        framed: the photograph, as it would be drawn now.
        preview: name of the file that the page shows of it.
        rounds: the first from "Draw samples", each further one from "More like this one".
        current: index of the round that is shown.
        ticket: number of the last run that was asked for.
        stopped: number of the last run that was stopped, with all before it; one that waits in the queue too.
        ended: number of the last run that has come to its end.
        asked: of each run that waits, the photograph as it was when it was asked for.
        meant: of each run that waits for a version, the round and the sample that were shown when it was asked for.
        model: whose default temperature the page shows; "" is the first of the page.
    """

    framed: Framed | None = None
    preview: str = ""
    rounds: list[Round] = field(default_factory=list)
    current: int = 0
    ticket: int = 0
    stopped: int = 0
    ended: int = 0
    folder: Path | None = None
    asked: dict[int, Framed] = field(default_factory=dict)
    meant: dict[int, tuple[Round, Drawn]] = field(default_factory=dict)
    model: str = ""

    @property
    def shown(self) -> Round | None:
        return self.rounds[self.current] if self.rounds else None

    def new_folder(self, root: str) -> Path:
        """One more, inside the visitor's own."""
        if self.folder is None or not self.folder.is_dir():  # swept, while a run waited
            self.folder = Path(tempfile.mkdtemp(prefix=VISIT, dir=root))
        return Path(tempfile.mkdtemp(dir=self.folder))

    def take(self, framed: Framed | None) -> None:
        """Another photograph, or none; the preview of the one before is deleted."""
        if self.folder is not None:  # else it is everyone's
            for path in self.folder.glob(f"*/{self.preview}.png"):
                shutil.rmtree(path.parent, ignore_errors=True)
        self.framed = framed

    def reframe(self, **changes: Any) -> None:
        """Other fields of the photograph, if there is one; what was asked for before keeps those that it had."""
        if self.framed is not None:
            self.framed = self.framed._replace(**changes)

    def forget(self) -> None:
        """Deletes the visitor's files."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def sweep(root: str, age: float) -> None:
    """Deletes the folders of visits in which nothing was written for `age` seconds.

    Of pages that were closed, gradio keeps the state, and so their files, for longer than they are promised to stay.
    """
    for folder in Path(root).glob(f"{VISIT}*"):
        try:
            written = max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
        except FileNotFoundError:  # forgotten meanwhile
            continue
        if time.time() - written > age:
            shutil.rmtree(folder, ignore_errors=True)


class Engine:
    """Draws for all visitors, one run at a time.

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
        self.stopped: Callable[[], bool] = lambda: False  # of the run that is being drawn
        self.pipelines: dict[str, SuperResolutionPipeline] = {}
        self._weights: dict[str, str] = {}
        given = list(dict.fromkeys(models))
        names = [Path(name).name for name in given]
        fast = dtype is torch.bfloat16  # of float32 weights, as `hvae-sr upscale`, so that both give the same
        for name, short in zip(given, names, strict=True):
            pipeline = SuperResolutionPipeline.from_pretrained(name, dtype=None if fast else dtype)
            if fast:
                pipeline.enable_fast_inference(dtype)
            pipeline.set_progress_bar_config(disable=True)
            self.pipelines[short if names.count(short) == 1 else name] = pipeline.to(device)
            for block in pipeline.vdvae.modules():
                if isinstance(block, TopDownBlock):  # a sample takes long on a processor: stop within it
                    block.register_forward_pre_hook(self._check_stopped)

    def _check_stopped(self, *_: Any) -> None:
        if self.stopped():
            raise Stopped

    def levels(self, model: str) -> list[tuple[int, int]]:
        """(stride, number of groups) of each level of a model, coarse to fine."""
        vdvae = self.pipelines[model].vdvae
        strides = [vdvae.stride(group) for group in range(vdvae.num_groups)]
        return [(stride, strides.count(stride)) for stride in dict.fromkeys(strides)]

    def temperatures(self, model: str, by_level: list[float]) -> list[float]:
        """One temperature for each group, of one for each level; levels beyond those given have the last one."""
        levels = self.levels(model)
        return [by_level[min(i, len(by_level) - 1)] for i, (_, count) in enumerate(levels) for _ in range(count)]

    def default_temperature(self, model: str) -> float:
        """The model's own."""
        return float(self.pipelines[model].config.default_temperature)

    def exact(self, model: str) -> bool:
        """Whether a model knows H: its samples can be made to match the input."""
        return self.pipelines[model].config.get("consistency") != "none"

    def told(self, model: str) -> dict[str, Any]:
        """What files tell of a model beside its name, as those of `hvae-sr upscale` do."""
        pipeline, scale = self.pipelines[model], self.scale(model)
        if model not in self._weights:
            self._weights[model] = weights_fingerprint(pipeline)
        return {
            "weights": self._weights[model],
            "scale_factor": scale,
            "outscale": float(scale),
            "bits": 8,
            "dtype": str(pipeline.inference_dtype).removeprefix("torch."),
            "device": pipeline.device.type,
        }

    def scale(self, model: str) -> int:
        """Sides of a model's samples over those of its input."""
        return int(self.pipelines[model].config.scale_factor)

    def suited(self, picture: Image.Image) -> tuple[str, str]:
        """The model for how a picture looks, and a sentence that says why; "" twice if it is not offered, or too small.

        It is between the model of clean pictures and that of all others; models of other factors are the visitor's.
        """
        statistics = inspected(picture)
        if statistics is None or not {DEFAULT, PHOTO} <= set(self.pipelines):
            return "", ""
        reasons = statistics.reasons()
        name, look = (PHOTO, " and ".join(reasons)) if reasons else (DEFAULT, "looks clean")
        return name, f"Model {name}, as the picture {look}."

    def limit(self, model: str) -> int:
        """Pixels of an input that a model takes."""
        return max(self.max_pixels * 16 // max(self.scale(model), 4) ** 2, 16)

    def read(self, image: Any) -> Image.Image:
        """The visitor's picture as upright RGB, on white where it is transparent.

        Raises:
            Refused: there is none, it cannot be read, or it is too small.
        """
        if image is None:
            raise Refused("Choose a picture first: upload or paste one, or take an example.")
        try:
            photo = read_photo(image)
        except ValueError as error:
            raise Refused(f"This file cannot be read as a picture ({str(error).split(': ')[-1]}).") from None
        if min(photo.image.size) < MIN_SIDE:
            raise Refused(f"This picture has {photo.image.width} x {photo.image.height} pixels: too few to go on.")
        picture = photo.on_white().image
        if profile := colour.matched(photo.icc_profile, False):
            picture.info["icc_profile"] = profile
        if photo.alpha is not None:
            picture.info |= {"ground": "white", "alpha": photo.alpha}
        if photo.bits > 8:
            picture.info["input_bits"] = 8
        return picture

    def fits(self, size: tuple[int, int], model: str) -> bool:
        """Whether a model takes a picture of (width, height)."""
        return size[0] * size[1] <= self.limit(model)

    def check(self, picture: Image.Image, model: str) -> None:
        """Raises `Refused` for a picture with more pixels than the model's `limit`."""
        if not self.fits(picture.size, model):
            side = math.isqrt(self.limit(model))
            raise Refused(
                f"With this model the demo takes up to {side} x {side} pixels, or as many in another shape; this "
                f"picture has {picture.width} x {picture.height}. The command hvae-sr upscale has no such limit."
            )

    def detail(self, size: tuple[int, int], model: str) -> tuple[int, int, int, int]:
        """The largest part that a model takes from the middle of a photograph of (width, height)."""
        sides = [min(side, math.isqrt(self.limit(model))) for side in size]
        for i in (0, 1):  # a narrow photograph gives a longer part
            sides[i] = min(size[i], self.limit(model) // sides[1 - i])
        left, top = ((whole - part) // 2 for whole, part in zip(size, sides, strict=True))
        return left, top, left + sides[0], top + sides[1]

    def shrunk_size(self, size: tuple[int, int], model: str) -> tuple[int, int] | None:
        """(width, height) within the limit, shape kept; None where samples would be smaller than the photograph, or it
        would be too small to be read."""
        factor = min(math.sqrt(self.limit(model) / (size[0] * size[1])), 1)
        small = int(size[0] * factor), int(size[1] * factor)
        scale = self.scale(model)
        return small if min(small) >= MIN_SIDE and small[0] * scale >= size[0] and small[1] * scale >= size[1] else None

    def recipes(self, model: str, seed: int, count: int) -> list[Recipe]:
        """`count` samples from `seed` on, as the pipeline numbers them."""
        groups = self.pipelines[model].vdvae.num_groups
        return [Recipe.of(seed + j, groups) for j in range(count)]

    def draw(
        self, image: Image.Image, settings: Settings, recipes: Sequence[Recipe]
    ) -> Iterator[tuple[Image.Image, float]]:
        """The pipeline's samples of these recipes, one by one, each with its LR-PSNR.

        Raises `Stopped` as soon as `stopped` says so.
        """
        for sample in self.pipelines[settings.model].samples(
            image,
            recipes=recipes,
            temperature=settings.temperature,
            enforce_consistency=None if settings.consistent else False,
            batch_size=1,  # so that each is shown as soon as it can be
        ):
            yield sample.image, sample.lr_psnr


def describe(recipe: Recipe) -> str:
    """A few words for a caption."""
    seeds, parts = list(dict.fromkeys(recipe.group_seeds)), len(recipe.regions)
    text = f"seed {seeds[0]}" + (f" with texture {seeds[-1]}" if len(seeds) > 1 else "")
    return text + (f", {parts if parts > 1 else 'a'} part{'s' * (parts > 1)} redrawn" if parts else "")


def inspected(picture: Image.Image) -> InputStatistics | None:
    """How a picture looks where it is not transparent."""
    alpha = picture.info.get("alpha")
    if alpha is None or alpha.size != picture.size:  # of a part, or shrunk
        return inspect(to_tensor(picture))
    return inspect(to_tensor(picture), to_tensor(alpha)[0])


def warnings(image: Image.Image) -> list[str]:
    """How a picture differs from what models of clean ones expect, a sentence each."""
    statistics = inspected(image)
    found = statistics.warnings() if statistics is not None else []
    # What to do about it is said there for the command line.
    reasons = [line.partition(":")[0] for line in found]
    return [f"{line[0].upper()}{line[1:]}. A better copy, or a smaller one, gives better samples." for line in reasons]


def _told(region: Region) -> dict[str, Any]:
    """A region as files tell it: its mask as a PNG of two colours, in base64; without `groups` it is of all groups."""
    mask, file = Image.fromarray(region.mask), io.BytesIO()
    mask.save(file, "PNG", optimize=True)
    told = {"seed": region.seed, "box": mask.getbbox(), "mask": base64.b64encode(file.getvalue()).decode()}
    return told if region.groups is None else {**told, "groups": region.groups}
