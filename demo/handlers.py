"""What happens on the page: runs and views, each visitor's action from what the components hold to what they show."""

import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import gradio as gr
import numpy as np
from PIL import Image, ImageDraw

from hvae_sr.posterior import Recipe

from . import markup
from .engine import Drawn, Engine, Refused, Round, Settings, Stopped, Visit, describe
from .layout import RIGHT
from .photos import friendly
from .views import LOOK, SAME_VIEWS, Views, gallery, rounds, selected, summary

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
            yield visit, markup.note(text), gr.skip(), rounds(visit), stage, *SAME_VIEWS[1:]
        finally:
            visit.meant.pop(int(ticket), None)
            visit.ended = max(visit.ended, int(ticket))

    return told


class Handlers(Views):
    """The functions behind the components; `interface` connects them."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.opening: Round | None = None
        # Of the pages that have drawn something, and no longer than gradio keeps them.
        self.visits: WeakValueDictionary[str, Visit] = WeakValueDictionary()
        self._draw: Callable[..., Iterator[tuple[Image.Image, float]]] = _gpu(engine.draw)

    def _settings(
        self, model: str, temperature: float, by_level: bool, levels: list[float], consistent: bool
    ) -> Settings:
        chosen: Any = self.engine.temperatures(model, levels) if by_level else float(temperature)
        return Settings(model, chosen, bool(consistent) and self.engine.exact(model))

    # Runs

    def on_start(
        self, visit: Visit, count: float = 1, image: Any = None, request: gr.Request | None = None
    ) -> tuple[Any, ...]:
        """As soon as a button is pressed, however long the queue is: the number of the run, and that it waits.

        Of a picture that was not read yet, `on_draw` knows what to make.
        """
        visit.ticket += 1
        fresh = image is not None
        if not fresh and visit.shown is not None:
            visit.meant[visit.ticket] = visit.shown, visit.shown.chosen
        if fresh and visit.framed is not None and Path(image).stem == visit.preview:
            visit.asked[visit.ticket] = visit.framed
        if request is not None and request.session_hash:
            self.visits[request.session_hash] = visit
        waiting = "Waiting for its turn"
        stage = markup.waiting(waiting) if fresh else gr.skip()
        stop = gr.Button(interactive=True)
        return visit.ticket, markup.progress(waiting, 0, int(count)), stage, gr.Button(interactive=False), stop

    def on_leave(self, request: gr.Request) -> None:
        """A page is closed or loaded again: what it has asked for is drawn for nobody."""
        visit = self.visits.pop(request.session_hash or "", None)
        if visit is not None:
            visit.stopped = visit.ticket

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
        look: Sequence[Any],
        fresh: bool = False,
        redraw: bool = False,
    ) -> Iterator[Any]:
        """Draws samples into `drawn`, and shows each when it is there; the views show what `look` says.

        Of a `fresh` round all rounds before are forgotten as soon as there is a sample; one that is a `redraw` of
        another but for a part becomes the selected one.
        """
        number, total, first = int(ticket), len(recipes), not drawn.samples
        if number <= visit.stopped:
            return

        def progress(done: int) -> str:
            return markup.progress(f"Drawing sample {done + 1} of {total}", done, total)

        stage = markup.waiting(f"Drawing sample 1 of {total}") if fresh else gr.skip()  # until there is a picture
        yield visit, progress(0), gr.skip(), gr.skip(), stage, *SAME_VIEWS[1:]
        self.engine.stopped = stopped = lambda: number <= visit.stopped
        try:
            for done, (recipe, (image, lr_psnr)) in enumerate(
                zip(recipes, self._draw(drawn.image, drawn.settings, recipes), strict=True), start=1
            ):
                if number <= visit.stopped:
                    break
                drawn.keep(image, recipe, lr_psnr, redraw)
                drawn.selected = len(drawn.samples) - 1 if redraw else drawn.selected
                if drawn not in visit.rounds:
                    self._show(visit, drawn, fresh)
                text = progress(done) if done < total else f"<p>{summary(visit)}</p>"
                # Of the first one all views, and its file: those of the picture before are gone.
                views = self.on_look(visit, *look) if done == 1 and first else SAME_VIEWS
                whole = [sample.path for sample in drawn.samples]
                pictures: Any = gallery(drawn, whole) if done < total else selected(drawn)
                if drawn is not visit.shown:  # the visitor looks at another round meanwhile
                    pictures = gr.skip()
                yield visit, text, pictures, rounds(visit), *views
        except Stopped:
            pass
        finally:
            if self.engine.stopped is stopped:  # a page that is closed is told late, when another run may be drawn
                self.engine.stopped = lambda: False
        if number <= visit.stopped:
            pictures = selected(visit.shown) if visit.shown else []
            text = f"<p>{_stopped(visit)}</p>" if number == visit.ticket else gr.skip()
            yield visit, text, pictures, rounds(visit), *SAME_VIEWS

    def _show(self, visit: Visit, drawn: Round, fresh: bool) -> None:
        gone = visit.rounds if fresh else visit.rounds[1 : max(len(visit.rounds) + 2 - MAX_ROUNDS, 1)]
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
            model = self.models[0]
            settings = self._settings(model, self.engine.default_temperature(model), False, [], True)
            folder = Path(tempfile.mkdtemp(dir=self.root.name))
            drawn = Round("Drawn", image, settings, folder, path.stem, self.engine.told(model))
            yield visit, markup.progress("Drawing an example", 0, 2), gr.skip(), gr.skip(), *SAME_VIEWS
            recipes = self.engine.recipes(model, 0, 2)
            for recipe, (picture, lr_psnr) in zip(recipes, self._draw(image, drawn.settings, recipes), strict=True):
                drawn.keep(picture, recipe, lr_psnr)
            self.opening = drawn
        if self.opening is None or visit.rounds or visit.ticket > int(ticket):  # the visitor was faster
            return
        shared = self.opening
        own = replace(shared, folder=visit.new_folder(self.root.name), samples=[])
        for sample in shared.samples:
            own.keep(sample.image, sample.recipe, sample.lr_psnr)
        visit.rounds, visit.current = [own], 0
        text = f"<p>An example. {summary(visit)}</p>"
        stage = self.on_compare(visit, "Bicubic", RIGHT[0])
        yield visit, text, selected(visit.rounds[0]), rounds(visit), stage, *SAME_VIEWS[1:]

    @_tell
    def on_draw(
        self, visit: Visit, ticket: float, image: Any, model: str, temperature: float, by_level: bool, *others: Any
    ) -> Iterator[tuple[Any, ...]]:
        """Samples of the picture, or of the part of it that is framed."""
        *levels, consistent, seed, count = others[:-LOOK]
        framed = visit.asked.pop(int(ticket), None) or self.read(image, model)
        if framed.suited:  # as the page will say in a moment
            temperature, *levels = (self._temperature(model, framed.suited, t) for t in (temperature, *levels))
            model = framed.suited
        self.engine.check(framed.part, model)
        settings = self._settings(model, temperature, by_level, levels, consistent)
        folder, told = visit.new_folder(self.root.name), self.engine.told(model) | framed.told
        drawn = Round("Drawn", framed.part, settings, folder, framed.stem, told)
        recipes = self.engine.recipes(model, _seed(seed), int(count))
        yield from self._run(visit, ticket, drawn, recipes, others[-LOOK:], fresh=True)

    @_tell
    def on_vary(
        self, visit: Visit, ticket: float, kept: float, seed: Any, count: float, *look: Any
    ) -> Iterator[tuple[Any, ...]]:
        """A round of the selected sample as it is, and of others that share its coarse groups."""
        old, chosen = _meant(visit, ticket)
        groups = len(chosen.recipe.group_seeds)
        fixed = min(round(groups * kept / 100), groups - 1)  # else all would be copies
        first = max(_seed(seed), *(max(sample.recipe.group_seeds) for sample in _all(visit))) + 100
        name, folder = f"Like {describe(chosen.recipe)}", visit.new_folder(self.root.name)
        drawn = replace(old, name=name, folder=folder, samples=[], selected=0)
        drawn.keep(chosen.image, chosen.recipe, chosen.lr_psnr, chosen.redrawn)
        recipes = [chosen.recipe.vary(fixed, first + j) for j in range(max(int(count) - 1, 1))]
        yield from self._run(visit, ticket, drawn, recipes, look)

    @_tell
    def on_redraw(
        self,
        visit: Visit,
        ticket: float,
        outline: Any,
        left: float,
        top: float,
        width: float,
        height: float,
        seed: Any,
        *look: Any,
    ) -> Iterator[tuple[Any, ...]]:
        """One more sample: the selected one with a region drawn again, within the outline or a rectangle."""
        drawn, chosen = _meant(visit, ticket)
        mask = _mask(outline, (left, top, width, height), chosen.image.size)
        if not mask.any():
            raise Refused("Mark a part of the picture first.")
        if len(drawn.samples) >= MAX_IN_ROUND:
            raise Refused(f"This round has {MAX_IN_ROUND} samples, the most: go on from one by “More like this one”.")
        number = sum(len(sample.recipe.regions) for sample in _all(visit))
        recipe = chosen.recipe.redraw(mask, _seed(seed) + 5000 + number)
        yield from self._run(visit, ticket, drawn, [recipe], look, redraw=True)

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
            if num_samples < 1 or num_samples != num_samples // 1:
                raise Refused(f"The number of samples must be a whole number >= 1, not {num_samples!r}.")
            settings = self._settings(model, temperature, False, [], consistent)
            recipes = self.engine.recipes(model, _seed(seed, 2**63), int(num_samples))
            drawn = list(self._draw(picture, settings, recipes))
            found = {"lr_psnr": [round(lr_psnr, 4) for _, lr_psnr in drawn]}
            return [sample for sample, _ in drawn], {"seeds": [recipe.seed for recipe in recipes], **found}


def _gpu(function: Callable[..., Any]) -> Callable[..., Any]:
    """On ZeroGPU the function borrows the GPU; elsewhere it stays as it is."""
    try:
        import spaces
    except ImportError:
        return function
    return spaces.GPU(duration=lambda *_: 60)(function)


def _seed(seed: Any, end: int = 2**53) -> int:
    """A seed below `end`, by default those that a browser's numbers hold exactly."""
    try:
        found = int(seed or 0)
    except (TypeError, ValueError, OverflowError):
        found = None
    if found is None or isinstance(seed, float) and found != seed:
        raise Refused(f"The seed must be a whole number, not {seed!r}.")
    if abs(found) >= end:
        raise Refused(f"The seed must have at most {len(str(end)) - 1} digits.")
    return found


def _meant(visit: Visit, ticket: float) -> tuple[Round, Drawn]:
    """The round and the sample that a version was asked of, whatever is shown by now."""
    found = visit.meant.get(int(ticket))
    if found is None:
        raise Refused("Draw samples first.")
    if found[0] not in visit.rounds:
        raise Refused("The picture that this was asked for is gone.")
    return found


def _all(visit: Visit) -> list[Drawn]:
    return [sample for drawn in visit.rounds for sample in drawn.samples]


def _stopped(visit: Visit) -> str:
    return f"Stopped. {summary(visit) if visit.rounds else 'Nothing was drawn.'}"


def _mask(outline: Any, box: Sequence[float], size: tuple[int, int]) -> np.ndarray:
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
