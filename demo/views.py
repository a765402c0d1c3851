"""What the page shows of the samples: comparison, map, close-ups, gallery, and the controls that belong to them."""

import html
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image
from scipy import ndimage

from hvae_sr.images import save_image, uncertainty_to_pil

from . import markup
from .engine import Drawn, Round, Visit, describe
from .layout import LEFT, MAX_LEVELS, RIGHT
from .photos import Photos

LOOK = 5
"""How many things `on_look` is told beside the visit."""
NO_BOX = (0, 0, 0, 0)
SAME_VIEWS = (gr.skip(),) * 12


class Views(Photos):
    """The functions behind the views, each of the round that the visitor looks at."""

    def on_select(self, visit: Visit, event: gr.SelectData) -> Any:
        """A sample of the gallery."""
        drawn = visit.shown
        if drawn is None:
            return gr.skip()
        drawn.selected = min(int(event.index), len(drawn.samples) - 1)
        return f"<p>{summary(visit)}</p>"

    def on_round(self, visit: Visit, number: int | None) -> tuple[Any, ...]:
        """An earlier round of samples."""
        if number is None or not 0 <= int(number) < len(visit.rounds):
            return gr.skip(), gr.skip()
        visit.current = int(number)
        return f"<p>{summary(visit)}</p>", selected(visit.rounds[visit.current])

    def on_look(self, visit: Visit, left: str, right: str, across: float, down: float, side: float) -> tuple[Any, ...]:
        """All views of the round that is shown."""
        drawn = visit.shown
        if drawn is None:
            return SAME_VIEWS
        std = mean_and_std(drawn.samples)[1]
        uncertainty = markup.uncertainty(overlay(drawn.chosen.image, std), scale_end(std))
        return (
            self.on_compare(visit, left, right),
            uncertainty if len(drawn.samples) > 1 else markup.placeholder(markup.NO_MAP),
            self.on_close_up(visit, across, down, side),
            markup.region(drawn.chosen.image),
            [],
            gr.DownloadButton("PNG", value=str(drawn.chosen.path), interactive=True),
            gr.DownloadButton("ZIP of all", value=str(write_zip(drawn)), interactive=True),
            gr.Button(interactive=True),
            *NO_BOX,
        )

    def on_mark(self, event: gr.EventData) -> tuple[Any, ...]:
        """The line that was drawn around a region, points in [0, 1] x [0, 1]; no rectangle any more."""
        return markup.points(event._data), *NO_BOX

    def on_box(self, visit: Visit, *box: float) -> tuple[Any, Any]:
        """The rectangle that was set by numbers, in place of a line."""
        drawn = visit.shown
        return (gr.skip(), []) if drawn is None else (markup.region(drawn.chosen.image, box), [])

    def on_compare(self, visit: Visit, left: str, right: str) -> Any:
        """The two pictures with the line between them, and the samples to flicker through."""
        drawn = visit.shown
        if drawn is None:
            return gr.skip()
        chosen, name = drawn.chosen, describe(drawn.chosen.recipe)
        samples = [(describe(sample.recipe), sample.path) for sample in drawn.samples]
        after = chosen.path
        if right != RIGHT[0]:
            # Names of their own for what changes: browsers keep pictures by name.
            tag = f"{len(drawn.samples)}-{drawn.selected}"
            after, mean = drawn.folder / f"{right.lower()}-{tag}.png", mean_and_std(drawn.samples)[0]
            (mean if right == RIGHT[1] else difference(chosen.image, mean)).save(after)
            name = "mean" if right == RIGHT[1] else f"{name} minus mean, 4 times"
        before = drawn.folder / f"{drawn.stem}_{LEFT[left]}.png"
        if not before.exists():
            method = Image.Resampling.BICUBIC if left == "Bicubic" else Image.Resampling.NEAREST
            drawn.image.resize(chosen.image.size, method).save(before)
        return markup.comparison((left.lower(), before), (name, after), samples, chosen.image.size)

    def on_close_up(self, visit: Visit, across: float, down: float, side: float) -> Any:
        """A spot of all samples, its pixels as squares."""
        drawn = visit.shown
        if drawn is None:
            return gr.skip()
        return markup.tiles(close_ups(drawn, (across / 100, down / 100), max(int(side), 1)))

    def on_exact(self, model: str) -> gr.Checkbox:
        """Whether samples are to match the input is asked of models alone that know how."""
        return gr.Checkbox(visible=self.engine.exact(model))

    def on_point(self, event: gr.EventData) -> tuple[Any, ...]:
        """A click on the map moves the close-up, and opens it."""
        ((across, down), *_) = markup.points(event._data) or [[0.5, 0.5]]
        return round(100 * across), round(100 * down), gr.Tabs(selected="close-up")

    def on_levels(self, visit: Visit, model: str, by_level: bool, temperature: float) -> list[Any]:
        """The temperature sliders of a model, at its own temperature unless the visitor has chosen another."""
        temperature = self._temperature(visit.model or self.models[0], model, temperature)
        visit.model = model
        visit.reframe(suited="")
        names = {0: "layout", 1: "shapes"}
        levels = self.engine.levels(model)
        labels = [
            f"Level {i + 1}: {names.get(i, 'texture')}, stride {stride} ({count} groups)"
            for i, (stride, count) in enumerate(levels[:MAX_LEVELS])
        ]
        if len(levels) > MAX_LEVELS:  # the last slider is that of all further levels
            stride, count = levels[MAX_LEVELS - 1][0], sum(count for _, count in levels[MAX_LEVELS - 1 :])
            labels[-1] = f"Levels {MAX_LEVELS} to {len(levels)}: texture, stride {stride} and less ({count} groups)"
        sliders = [gr.Slider(visible=by_level, label=label, value=temperature) for label in labels]
        sliders += [gr.Slider(visible=False) for _ in range(MAX_LEVELS - len(labels))]
        return [gr.Slider(interactive=not by_level, value=temperature), *sliders]

    def _temperature(self, before: str, model: str, temperature: float) -> float:
        """What the slider says, but for the default of the model before, which becomes that of the model."""
        untouched = temperature == self.engine.default_temperature(before)
        return self.engine.default_temperature(model) if untouched else temperature


def summary(visit: Visit) -> str:
    drawn = visit.rounds[visit.current]
    count = len(drawn.samples)
    chosen = drawn.samples[min(drawn.selected, count - 1)]
    return f"{count} sample{'s' * (count > 1)}. Shown: <b>{html.escape(chosen.caption)}</b>"


def gallery(drawn: Round, pictures: list[Path]) -> list[tuple[str, str]]:
    names = [f"{number} · {sample.label}" for number, sample in enumerate(drawn.samples, 1)]
    return list(zip(map(str, pictures), names, strict=True))


def selected(drawn: Round) -> gr.Gallery:
    """A finished round."""
    label = "Where they differ most" if len(drawn.samples) > 1 else "Samples"
    return gr.Gallery(gallery(drawn, thumbnails(drawn)), selected_index=drawn.selected, label=label)


def rounds(visit: Visit) -> gr.Radio:
    choices = [(drawn.name, number) for number, drawn in enumerate(visit.rounds)]
    return gr.Radio(choices, value=visit.current if choices else None, visible=len(choices) > 1)


def mean_and_std(samples: Sequence[Drawn]) -> tuple[Image.Image, np.ndarray]:
    """The mean of the samples, and the standard deviation of every pixel, `[H, W, 3]` in units of [0, 1]."""
    stack = np.stack([np.asarray(sample.image, dtype=np.float32) for sample in samples])
    mean = Image.fromarray(np.rint(stack.mean(axis=0)).astype(np.uint8))
    mean.info = {name: samples[0].image.info[name] for name in ("icc_profile",) if name in samples[0].image.info}
    return mean, stack.std(axis=0) / 255


def thumbnails(drawn: Round) -> list[Path]:
    """A square of each sample, all from where they differ most: made small as a whole, they would look the same."""
    if len(drawn.samples) < 2:
        return [sample.path for sample in drawn.samples]
    width, height = drawn.samples[0].image.size
    side = min(max(width // 3, height // 3, 64), width, height)
    amount = ndimage.uniform_filter(mean_and_std(drawn.samples)[1].mean(axis=-1), side)
    amount = amount[side // 2 : height - (side - 1) // 2, side // 2 : width - (side - 1) // 2]  # whole squares only
    top, left = (int(found) for found in np.unravel_index(amount.argmax(), amount.shape))
    paths = []
    for number, sample in enumerate(drawn.samples):
        paths.append(drawn.folder / f"square-{left}-{top}-{number}.png")
        if not paths[-1].exists():
            sample.image.crop((left, top, left + side, top + side)).save(paths[-1])
    return paths


def difference(image: Image.Image, mean: Image.Image) -> Image.Image:
    """What a sample has and the mean has not, on grey: 128 + 4 (x - mean)."""
    change = np.asarray(image, dtype=np.float32) - np.asarray(mean, dtype=np.float32)
    return Image.fromarray(np.clip(128 + 4 * change, 0, 255).round().astype(np.uint8))


def scale_end(std: np.ndarray) -> float:
    """The end of the map's scale, in units of [0, 1]: few grey levels where samples differ little, or all is black."""
    high = 255 * float(np.quantile(np.sqrt(np.mean(np.square(std), axis=-1)), 0.99))
    return next((levels for levels in (5.0, 10.0, 15.0) if high <= levels), 25.0) / 255


def overlay(image: Image.Image, std: np.ndarray) -> Image.Image:
    """The uncertainty map over the picture in grey: the more a pixel differs between samples, the more colour."""
    heat = np.asarray(uncertainty_to_pil(std, scale_end(std)), dtype=np.float32)
    grey = np.asarray(image.convert("L"), dtype=np.float32)[..., None] * 0.35
    return Image.fromarray(np.rint(255 - (255 - grey) * (255 - heat) / 255).astype(np.uint8))


def close_ups(drawn: Round, centre: tuple[float, float], side: int) -> list[tuple[str, Image.Image]]:
    """(name, `side` x `side` pixels) of bicubic, every sample, and the mean, around a point in [0, 1] x [0, 1]."""
    width, height = drawn.samples[0].image.size
    left = min(max(round(centre[0] * width) - side // 2, 0), max(width - side, 0))
    top = min(max(round(centre[1] * height) - side // 2, 0), max(height - side, 0))
    box = (left, top, min(left + side, width), min(top + side, height))
    pictures = [("bicubic", drawn.image.resize((width, height), Image.Resampling.BICUBIC))]
    pictures += [(describe(sample.recipe), sample.image) for sample in drawn.samples]
    return [(name, picture.crop(box)) for name, picture in [*pictures, ("mean", mean_and_std(drawn.samples)[0])]]


def write_zip(drawn: Round) -> Path:
    """All samples of a round, their mean and the uncertainty map."""
    mean, std = mean_and_std(drawn.samples)
    files = [sample.path for sample in drawn.samples]
    files += [drawn.folder / f"{drawn.stem}_{name}.png" for name in ("mean", "uncertainty")]
    save_image(mean, files[-2], {"what": "mean of the samples"})
    save_image(uncertainty_to_pil(std), files[-1], {"what": "standard deviation, 0 to 0.1"})
    path = drawn.folder / f"{drawn.stem}_samples.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in files:
            archive.write(file, file.name)
    return path
