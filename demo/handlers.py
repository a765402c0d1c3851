"""What happens on the page: runs and views, each visitor's action from what the components hold to what they show."""

import html
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image, ImageDraw

from hvae_sr.posterior import Recipe

from . import engine as eng
from . import markup
from .engine import Engine, Refused, Round, Settings, Stopped, Visit, describe
from .layout import LEFT, MAX_LEVELS, RIGHT
from .photos import Photos, friendly

MAX_ROUNDS = 8
MAX_IN_ROUND = 24
logger = logging.getLogger(__name__)


def _tell(run: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """Of a run that fails, tells the visitor why and ends it like any other: after an error what follows is left out,
    and with it the buttons."""

    @wraps(run)
    def told(self: "Handlers", visit: Visit, ticket: float, *given: Any) -> Iterator[Any]:
        try:
            yield from run(self, visit, ticket, *given)
        except Exception as error:
            if not isinstance(error, ValueError):
                logger.exception("a run failed")
            text = str(error) if isinstance(error, ValueError) else f"This did not work ({type(error).__name__})."
            gr.Warning(text, duration=8)
            stage = self.on_compare(visit, "Bicubic", RIGHT[0]) if visit.rounds else markup.placeholder()
            yield visit, markup.note(text), gr.skip(), stage, _rounds(visit)
        finally:
            visit.ended = max(visit.ended, int(ticket))

    return told


class Handlers(Photos):
    """The functions behind the components; `interface` connects them."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.opening: Round | None = None
        self._draw: Callable[..., Iterator[tuple[Image.Image, float]]] = _gpu(engine.draw)

    def _settings(
        self, model: str, temperature: float, by_level: bool, levels: list[float], consistent: bool
    ) -> Settings:
        chosen: Any = self.engine.temperatures(model, levels) if by_level else float(temperature)
        return Settings(model, chosen, bool(consistent))

    # Runs

    def on_start(self, visit: Visit, count: float = 1, fresh: bool = False) -> tuple[Any, ...]:
        """As soon as a button is pressed, however long the queue is: the number of the run, and that it waits."""
        visit.ticket += 1
        waiting = "Waiting for its turn"
        stage = markup.waiting(waiting) if fresh else gr.skip()
        stop = gr.Button(interactive=True)
        return visit.ticket, markup.progress(waiting, 0, int(count)), stage, gr.Button(interactive=False), stop

    def on_stop(self, visit: Visit, left: str, right: str) -> tuple[Any, ...]:
        """Ends all runs so far, running or waiting; what they have drawn stays."""
        visit.stopped = visit.ticket
        stage = self.on_compare(visit, left, right) if visit.rounds else markup.placeholder()
        return f"<p>{_stopped(visit)}</p>", stage, *self.on_idle()

    def on_idle(self) -> tuple[Any, ...]:
        """The buttons as they are between runs."""
        return gr.Button(interactive=True), gr.Button(interactive=False)

    def on_end(self, visit: Visit) -> tuple[Any, ...]:
        """After a run, also one that failed: the buttons, unless the next one waits or draws already."""
        return self.on_idle() if max(visit.ended, visit.stopped) >= visit.ticket else (gr.skip(), gr.skip())

    def _run(
        self,
        visit: Visit,
        ticket: float,
        drawn: Round,
        recipes: Sequence[Recipe],
        fresh: bool = False,
        select: bool = False,
    ) -> Iterator[Any]:
        """Draws, and shows each sample when it is there.

        Args:
            visit: the visitor's.
            ticket: number of the run.
            drawn: gets the samples; what it holds already is shown first.
            recipes: of the samples.
            fresh: whether the samples before are forgotten, as soon as there is a new one.
            select: whether a new sample becomes the selected one.
        """
        number, total, first = int(ticket), len(recipes), not drawn.samples
        if number <= visit.stopped:
            return

        def progress(done: int) -> str:
            return markup.progress(f"Drawing sample {done + 1} of {total}", done, total)

        stage = markup.waiting(f"Drawing sample 1 of {total}") if fresh else gr.skip()  # until there is a picture
        yield visit, progress(0), gr.skip(), stage, gr.skip()
        self.engine.stopped = lambda: number <= visit.stopped
        try:
            for done, (recipe, (image, lr_psnr)) in enumerate(
                zip(recipes, self._draw(drawn.image, drawn.settings, recipes), strict=True), start=1
            ):
                if number <= visit.stopped:
                    break
                drawn.keep(image, recipe, lr_psnr)
                drawn.selected = len(drawn.samples) - 1 if select else drawn.selected
                if drawn not in visit.rounds:
                    self._show(visit, drawn, fresh)
                text = progress(done) if done < total else f"<p>{_summary(visit)}</p>"
                shown = self.on_compare(visit, "Bicubic", RIGHT[0]) if done == 1 and first else gr.skip()
                whole = [sample.path for sample in drawn.samples]
                gallery: Any = _gallery(drawn, whole) if done < total else _selected(drawn)
                if drawn is not visit.shown:  # the visitor looks at another round meanwhile
                    gallery = gr.skip()
                yield visit, text, gallery, shown, _rounds(visit)
        except Stopped:
            pass
        finally:
            self.engine.stopped = lambda: False
        if number <= visit.stopped:
            gallery = _selected(visit.shown) if visit.shown else []
            yield (
                visit,
                f"<p>{_stopped(visit)}</p>" if number == visit.ticket else gr.skip(),
                gallery,
                gr.skip(),
                _rounds(visit),
            )

    def _show(self, visit: Visit, drawn: Round, fresh: bool) -> None:
        gone = visit.rounds if fresh else visit.rounds[1 : len(visit.rounds) + 2 - MAX_ROUNDS]
        for old in gone:
            shutil.rmtree(old.folder, ignore_errors=True)
        visit.rounds = [*(one for one in visit.rounds if one not in gone), drawn]
        visit.current = len(visit.rounds) - 1

    @_tell
    def on_open(self, visit: Visit, ticket: float) -> Iterator[tuple[Any, ...]]:
        """A finished example, drawn for the first visitor of all."""
        path = self.examples[0][1]
        image = Image.open(path)
        if self.opening is None and self.engine.fits(image.size, self.models[0]):
            default = self.engine.pipelines[self.models[0]].config.default_temperature
            folder = Path(tempfile.mkdtemp(dir=self.root.name))
            drawn = Round("Drawn", image, Settings(self.models[0], default), folder, path.stem)
            yield visit, markup.progress("Drawing an example", 0, 2), gr.skip(), gr.skip(), gr.skip()
            recipes = self.engine.recipes(self.models[0], 0, 2)
            for recipe, (picture, lr_psnr) in zip(recipes, self._draw(image, drawn.settings, recipes), strict=True):
                drawn.keep(picture, recipe, lr_psnr)
            self.opening = drawn
        if self.opening is None or visit.rounds or visit.ticket > int(ticket):  # the visitor was faster
            return
        shared = self.opening
        own = Round(shared.name, shared.image, shared.settings, visit.new_folder(self.root.name), shared.stem)
        for sample in shared.samples:
            own.keep(sample.image, sample.recipe, sample.lr_psnr)
        visit.rounds, visit.current = [own], 0
        text = f"<p>An example. {_summary(visit)}</p>"
        stage = self.on_compare(visit, "Bicubic", RIGHT[0])
        yield visit, text, _selected(visit.rounds[0]), stage, _rounds(visit)

    @_tell
    def on_draw(
        self, visit: Visit, ticket: float, image: Any, model: str, temperature: float, by_level: bool, *others: Any
    ) -> Iterator[tuple[Any, ...]]:
        """Samples of the picture, or of the part of it that is framed."""
        *levels, consistent, seed, count = others
        if image is None or Path(image).stem != visit.preview:
            self.read(visit, image, model)
        assert visit.photo is not None
        part = visit.photo.crop(visit.box) if visit.box else visit.photo
        self.engine.check(part, model)
        settings = self._settings(model, temperature, by_level, levels, consistent)
        drawn = Round("Drawn", part, settings, visit.new_folder(self.root.name), visit.stem)
        recipes = self.engine.recipes(model, _seed(seed), int(count))
        yield from self._run(visit, ticket, drawn, recipes, fresh=True)

    @_tell
    def on_vary(self, visit: Visit, ticket: float, kept: float, seed: Any, count: float) -> Iterator[tuple[Any, ...]]:
        """A round of the selected sample as it is, and of others that share its coarse groups."""
        old = _shown(visit)
        chosen, groups = old.chosen, len(old.chosen.recipe.group_seeds)
        fixed = round(groups * kept / 100)
        first = max(_seed(seed), *(max(sample.recipe.group_seeds) for sample in _all(visit))) + 100
        drawn = Round(
            f"Like {describe(chosen.recipe)}", old.image, old.settings, visit.new_folder(self.root.name), old.stem
        )
        drawn.keep(chosen.image, chosen.recipe, chosen.lr_psnr)
        recipes = [chosen.recipe.vary(fixed, first + j) for j in range(max(int(count) - 1, 1))]
        yield from self._run(visit, ticket, drawn, recipes)

    @_tell
    def on_redraw(
        self, visit: Visit, ticket: float, outline: Any, left: float, top: float, width: float, height: float, seed: Any
    ) -> Iterator[tuple[Any, ...]]:
        """One more sample: the selected one with a region drawn again."""
        drawn = _shown(visit)
        mask = _mask(outline, (left, top, width, height), drawn.chosen.image.size)
        if not mask.any():
            raise Refused("Mark a part of the picture first.")
        if len(drawn.samples) >= MAX_IN_ROUND:
            raise Refused(f"This round has {MAX_IN_ROUND} samples, the most: go on from one by “More like this one”.")
        number = sum(len(sample.recipe.regions) for sample in _all(visit))
        recipe = drawn.chosen.recipe.redraw(mask, _seed(seed) + 5000 + number)
        yield from self._run(visit, ticket, drawn, [recipe], select=True)

    # Views

    def on_select(self, visit: Visit, event: gr.SelectData) -> Any:
        """A sample of the gallery."""
        drawn = visit.shown
        if drawn is None:
            return gr.skip()
        drawn.selected = min(int(event.index), len(drawn.samples) - 1)
        return f"<p>{_summary(visit)}</p>"

    def on_round(self, visit: Visit, number: int | None) -> tuple[Any, ...]:
        """An earlier round of samples."""
        if number is None or not 0 <= int(number) < len(visit.rounds):
            return gr.skip(), gr.skip()
        visit.current = int(number)
        return f"<p>{_summary(visit)}</p>", _selected(visit.rounds[visit.current])

    def on_look(self, visit: Visit, left: str, right: str, across: float, down: float, side: float) -> tuple[Any, ...]:
        """All views of the round that is shown."""
        drawn = visit.shown
        if drawn is None:
            return (gr.skip(),) * 8
        std = eng.mean_and_std(drawn.samples)[1]
        return (
            self.on_compare(visit, left, right),
            markup.uncertainty(eng.overlay(drawn.chosen.image, std), eng.scale_end(std)),
            self.on_close_up(visit, across, down, side),
            markup.region(drawn.chosen.image),
            [],
            gr.DownloadButton("PNG", value=str(drawn.chosen.path), interactive=True),
            gr.DownloadButton("ZIP of all", value=str(eng.write_zip(drawn)), interactive=True),
            gr.Button(interactive=True),
        )

    def on_mark(self, event: gr.EventData) -> list[list[float]]:
        """The line that was drawn around a region: points in [0, 1] x [0, 1]."""
        return markup.points(event._data)

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
            after, mean = drawn.folder / f"{right.lower()}-{tag}.png", eng.mean_and_std(drawn.samples)[0]
            (mean if right == RIGHT[1] else eng.difference(chosen.image, mean)).save(after)
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
        return markup.tiles(eng.close_ups(drawn, (across / 100, down / 100), max(int(side), 1)))

    def on_point(self, event: gr.EventData) -> tuple[Any, ...]:
        """A click on the map moves the close-up, and opens it."""
        ((across, down), *_) = markup.points(event._data) or [[0.5, 0.5]]
        return round(100 * across), round(100 * down), gr.Tabs(selected="close-up")

    def on_levels(self, model: str, by_level: bool, temperature: float) -> list[Any]:
        """The temperature sliders of a model."""
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
        return [gr.Slider(interactive=not by_level), *sliders]

    def upscale(
        self, image: Any, model: str, temperature: float, num_samples: float, seed: float, consistent: bool
    ) -> tuple[list[Image.Image], dict[str, Any]]:
        """Samples of a picture, for programs: their PNG files, and the seed and LR-PSNR of each."""
        with friendly():
            picture = self.engine.read(image)
            if model not in self.engine.pipelines:
                raise Refused(f"There is no model {model!r} here, but {', '.join(self.models)}.")
            self.engine.check(picture, model)
            for name, value in {"temperature": temperature, "number of samples": num_samples}.items():
                if isinstance(value, bool) or not isinstance(value, (int, float)):
                    raise Refused(f"The {name} must be a number, not {value!r}.")
            settings = self._settings(model, temperature, False, [], consistent)
            recipes = self.engine.recipes(model, _seed(seed), int(num_samples))
            drawn = list(self._draw(picture, settings, recipes))
            found = {
                "seeds": [recipe.seed for recipe in recipes],
                "lr_psnr": [round(lr_psnr, 4) for _, lr_psnr in drawn],
            }
            return [sample for sample, _ in drawn], found


def _gpu(function: Callable[..., Any]) -> Callable[..., Any]:
    """On ZeroGPU the function borrows the GPU; elsewhere it stays as it is."""
    try:
        import spaces
    except ImportError:
        return function
    return spaces.GPU(duration=lambda *_: 60)(function)


def _seed(seed: Any) -> int:
    try:
        found = int(seed or 0)
    except (TypeError, ValueError, OverflowError):
        raise Refused(f"The seed must be a whole number, not {seed!r}.") from None
    if abs(found) >= 2**63:
        raise Refused("The seed must have at most 18 digits.")
    return found


def _shown(visit: Visit) -> Round:
    if visit.shown is None:
        raise Refused("Draw samples first.")
    return visit.shown


def _all(visit: Visit) -> list[eng.Drawn]:
    return [sample for drawn in visit.rounds for sample in drawn.samples]


def _summary(visit: Visit) -> str:
    drawn = _shown(visit)
    count = len(drawn.samples)
    chosen = drawn.samples[min(drawn.selected, count - 1)]
    return f"{count} sample{'s' * (count > 1)}. Shown: <b>{html.escape(chosen.caption)}</b>"


def _stopped(visit: Visit) -> str:
    return f"Stopped. {_summary(visit) if visit.rounds else 'Nothing was drawn.'}"


def _gallery(drawn: Round, pictures: list[Path]) -> list[tuple[str, str]]:
    names = [f"{number} · {sample.label}" for number, sample in enumerate(drawn.samples, 1)]
    return list(zip(map(str, pictures), names, strict=True))


def _selected(drawn: Round) -> gr.Gallery:
    """A finished round."""
    label = "Samples" + " where they differ most" * (len(drawn.samples) > 1)
    return gr.Gallery(_gallery(drawn, eng.thumbnails(drawn)), selected_index=drawn.selected, label=label)


def _rounds(visit: Visit) -> gr.Radio:
    choices = [(drawn.name, number) for number, drawn in enumerate(visit.rounds)]
    return gr.Radio(choices, value=visit.current if choices else None, visible=len(choices) > 1)


def _mask(outline: Any, box: tuple[float, float, float, float], size: tuple[int, int]) -> np.ndarray:
    """What lies within the line that was drawn, and the rectangle, `[H, W]`."""
    width, height = size
    picture = Image.new("1", size)
    if len(outline or []) > 2:
        ImageDraw.Draw(picture).polygon([(x * width, y * height) for x, y in outline], fill=1)
    mask = np.array(picture, dtype=bool)
    left, top = round(box[0] * width / 100), round(box[1] * height / 100)
    right, bottom = left + round(box[2] * width / 100), top + round(box[3] * height / 100)
    mask[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = True
    return mask
