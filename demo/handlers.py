"""What happens on the page: each visitor's action, from what the components hold to what they show."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image, ImageDraw

from hvae_sr.posterior import Recipe

from . import engine as eng
from . import markup
from .engine import Engine, Refused, Session, Settings
from .layout import LEFT, MAX_LEVELS, RIGHT


class Handlers:
    """The functions behind the components; `interface` connects them."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.models = list(engine.pipelines)
        self.root = tempfile.TemporaryDirectory(prefix="hvae-sr-demo-")  # removed when the process ends

    def folder(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self.root.name))

    def _settings(
        self, model: str, temperature: float, by_level: bool, levels: list[float], consistent: bool
    ) -> Settings:
        chosen: Any = self.engine.temperatures(model, levels) if by_level else float(temperature)
        return Settings(model, chosen, bool(consistent))

    def _run(self, old: Session | None, session: Session, recipes: list[Recipe]) -> Iterator[tuple[Any, ...]]:
        """Draws, and shows each sample when it is there; the files of the session before are deleted."""
        session.samples, session.selected, session.stopped = [], 0, False
        total = len(recipes)
        busy, idle = gr.Button(interactive=False), gr.Button(interactive=True)
        yield session, f"Drawing sample 1 of {total} ...", [], None, busy, idle
        forget(old)  # only now: until then the visitor has the old session, also if the run is stopped
        for number, sample in enumerate(self.engine.draw(session, recipes), start=1):
            if session.stopped:
                return
            session.samples.append(sample)
            text = f"Drawing sample {number + 1} of {total} ..." if number < total else _summary(session)
            shown = self.on_compare(session, "Bicubic", RIGHT[0]) if number == 1 else gr.skip()
            gallery = _gallery(session) if number < total else _selected(session)
            yield session, text, gallery, shown, busy, idle

    def on_draw(
        self, old: Session | None, image: Any, model: str, temperature: float, by_level: bool, *others: Any
    ) -> Iterator[tuple[Any, ...]]:
        """Samples of a picture."""
        *levels, consistent, seed, count = others
        with _friendly():
            picture = self.engine.check(image, model)
            settings = self._settings(model, temperature, by_level, levels, consistent)
            session = Session(self.folder(), picture, settings)
            yield from self._run(old, session, self.engine.recipes(model, _seed(seed), int(count)))

    def on_vary(self, session: Session | None, kept: float, seed: Any, count: float) -> Iterator[tuple[Any, ...]]:
        """The selected sample, and others that share its coarse groups."""
        with _friendly():
            chosen = _chosen(session)
            groups = len(chosen.recipe.group_seeds)
            fixed = round(groups * kept / 100)
            first = max(_seed(seed), *chosen.recipe.group_seeds) + 100
            recipes = [chosen.recipe, *(chosen.recipe.vary(fixed, first + j) for j in range(max(int(count) - 1, 1)))]
            fresh = Session(self.folder(), session.image, session.settings)  # type: ignore[union-attr]
            yield from self._run(session, fresh, recipes)

    def on_redraw(
        self, session: Session | None, outline: Any, left: float, top: float, width: float, height: float, seed: Any
    ) -> tuple[Any, ...]:
        """One more sample: the selected one with a region drawn again."""
        with _friendly():
            chosen = _chosen(session)
            assert session is not None
            mask = _mask(outline, (left, top, width, height), chosen.image.size)
            number = sum(bool(sample.recipe.regions) for sample in session.samples)
            session.stopped = False
            if not mask.any():
                raise Refused("Mark a part of the picture first.")
            (sample,) = self.engine.draw(session, [chosen.recipe.redraw(mask, _seed(seed) + 5000 + number)])
            if session.stopped:
                return session, *[gr.skip()] * 5
            session.samples.append(sample)
            session.selected = len(session.samples) - 1
            return session, _summary(session), _selected(session), gr.skip(), gr.skip(), gr.skip()

    def on_idle(self) -> tuple[Any, ...]:
        """The buttons as they are between runs."""
        return gr.Button(interactive=True), gr.Button(interactive=False)

    def on_stop(self, session: Session | None) -> tuple[Any, ...]:
        """After a run was cancelled: the sample that is being drawn is not kept."""
        if session is not None:
            session.stopped = True
        return "Stopped. What was drawn stays.", *self.on_idle()

    def on_image(self, image: Any, model: str) -> tuple[Any, ...]:
        """What is wrong with a picture for the chosen model, as soon as both are there."""
        if image is None:
            return "Choose a picture and draw samples.", gr.Button(visible=False)
        try:
            picture = self.engine.check(image, model)
        except Refused as refusal:
            return str(refusal), gr.Button(visible=isinstance(refusal, eng.TooLarge))
        scale = self.engine.scale(model)
        size = f"{picture.width} x {picture.height}"
        return f"{size} pixels; samples will have {picture.width * scale} x {picture.height * scale}.", gr.Button(
            visible=False
        )

    def on_shrink(self, image: Any, model: str) -> Image.Image:
        """The picture within the limit."""
        with _friendly():
            return self.engine.shrink(image, model)

    def on_select(self, session: Session | None, event: gr.SelectData) -> Any:
        """A sample of the gallery. The session is changed in place: returned, it might replace one that is newer."""
        if session is None or not session.samples:
            return gr.skip()
        session.selected = min(int(event.index), len(session.samples) - 1)
        return _summary(session)

    def on_look(
        self, session: Session | None, left: str, right: str, across: float, down: float, side: float, way: str
    ) -> tuple[Any, ...]:
        """All views of the session, unless a newer one has taken its place."""
        if session is None or not session.samples or not session.folder.is_dir():
            return (gr.skip(),) * 8
        chosen = session.samples[session.selected]
        std = eng.mean_and_std(session.samples)[1]
        return (
            self.on_compare(session, left, right),
            markup.uncertainty(eng.overlay(chosen.image, std), eng.scale_end(std)),
            self.on_close_up(session, across, down, side, way),
            markup.region(chosen.image),
            [],
            gr.DownloadButton("PNG", value=str(chosen.path), interactive=True),
            gr.DownloadButton("ZIP of all", value=str(eng.write_zip(session)), interactive=True),
            gr.Button(interactive=True),
        )

    def on_mark(self, event: gr.EventData) -> list[list[float]]:
        """The line that was drawn around a region: points in [0, 1] x [0, 1]."""
        return _points(event._data)

    def on_compare(self, session: Session | None, left: str, right: str) -> Any:
        """The two pictures of the slider."""
        if session is None or not session.samples:
            return gr.skip()
        after = session.samples[session.selected].image if right == RIGHT[0] else eng.mean_and_std(session.samples)[0]
        return markup.comparison(eng.before(session, LEFT[left]), after, left, right)

    def on_close_up(self, session: Session | None, across: float, down: float, side: float, way: str) -> Any:
        """A spot of all samples, its pixels as squares."""
        if session is None or not session.samples:
            return gr.skip()
        parts = eng.close_ups(session, (across / 100, down / 100), int(side))
        if way == "Flicker":
            return markup.figure("all samples in turn", eng.flicker([part for _, part in parts[1:-1]]), "flicker")
        return markup.tiles(parts)

    def on_point(self, event: gr.EventData) -> tuple[Any, ...]:
        """A click on the map moves the close-up, and opens it."""
        ((across, down), *_) = _points(event._data) or [[0.5, 0.5]]
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
    ) -> tuple[list[str], dict[str, Any]]:
        """Samples of a picture, for programs: their PNG files, and the seed and LR-PSNR of each."""
        with _friendly():
            count = int(num_samples)
            picture = self.engine.check(image, model)
            settings = self._settings(model, temperature, False, [], consistent)
            session = Session(self.folder(), picture, settings)
            try:
                session.samples = list(self.engine.draw(session, self.engine.recipes(model, _seed(seed), count)))
                files = [Image.open(sample.path) for sample in session.samples]
                for file in files:
                    file.load()
            finally:
                shutil.rmtree(session.folder, ignore_errors=True)
            facts = {
                "seeds": [sample.recipe.seed for sample in session.samples],
                "lr_psnr": [round(sample.lr_psnr, 4) for sample in session.samples],
            }
            return files, facts  # type: ignore[return-value]


class _friendly:
    """Shows a visitor what is wrong in place of a traceback."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        if isinstance(error, ValueError):
            raise gr.Error(str(error), duration=8, print_exception=False) from None


def forget(session: Session | None) -> None:
    """Deletes a visitor's files."""
    if session is not None:
        shutil.rmtree(session.folder, ignore_errors=True)


def _seed(seed: Any) -> int:
    return int(seed or 0)


def _chosen(session: Session | None) -> eng.Drawn:
    if session is None or not session.samples:
        raise Refused("Draw samples first.")
    return session.samples[session.selected]


def _summary(session: Session) -> str:
    chosen = session.samples[session.selected]
    count = len(session.samples)
    return f"{count} sample{'s' * (count > 1)}. Selected: **{chosen.caption}**"


def _gallery(session: Session) -> list[tuple[str, str]]:
    return [(str(sample.path), sample.label) for sample in session.samples]


def _selected(session: Session) -> gr.Gallery:
    return gr.Gallery(_gallery(session), selected_index=session.selected)


def _points(data: Any) -> list[list[float]]:
    """What a visitor's browser sends as points: pairs in [0, 1], a thousand at most; nothing else."""
    given = data.get("points") if isinstance(data, dict) else None
    if not isinstance(given, list):
        return []
    pairs = [one for one in given[:1000] if isinstance(one, list) and len(one) == 2]
    pairs = [one for one in pairs if all(isinstance(value, (int, float)) and 0 <= value <= 1 for value in one)]
    return [[float(x), float(y)] for x, y in pairs]


def _mask(outline: Any, box: tuple[float, float, float, float], size: tuple[int, int]) -> np.ndarray:
    """What lies within the line that was drawn, and the rectangle, `[H, W]`."""
    width, height = size
    picture = Image.new("1", size)
    if len(outline or []) > 2:
        ImageDraw.Draw(picture).polygon([(x * width, y * height) for x, y in outline], fill=1)
    mask = np.array(picture, dtype=bool)
    left, top = round(box[0] * width / 100), round(box[1] * height / 100)
    mask[top : top + round(box[3] * height / 100), left : left + round(box[2] * width / 100)] = True
    return mask
