"""The visitor's picture on the page: taken in, framed or made small where it is over a model's limit."""

import contextlib
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from hvae_sr.checkpoints.names import DEFAULT, PHOTO

from . import markup
from .engine import MIN_SIDE, Box, Engine, Framed, Refused, Visit, warnings
from .layout import examples

PREVIEW = 1600
"""Pixels of a photograph's longer side on the page."""
PREVIEW_NAME = "preview-"
"""What the names of previews begin with."""


@contextlib.contextmanager
def friendly() -> Iterator[None]:
    """Shows a visitor what is wrong in place of a traceback."""
    try:
        yield
    except ValueError as error:
        raise gr.Error(str(error), duration=8, print_exception=False) from None


class Photos:
    """The functions behind the picture, its examples and its frame."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.models = list(engine.pipelines)
        self.root = tempfile.TemporaryDirectory(prefix="hvae-sr-demo-")  # removed when the process ends
        self.examples = examples(Path(self.root.name))

    def read(self, image: Any, model: str) -> Framed:
        """The visitor's picture; of one over the limit the middle is framed.

        Raises:
            Refused: it is none, or the page's own preview: of a visit that was forgotten, the photograph is gone.
        """
        path = Path(str(image))
        if path.name.startswith(PREVIEW_NAME) and path.is_relative_to(self.root.name):
            raise Refused("This page has been idle for too long: choose the picture again.")
        return self._framed(self.engine.read(image), path.stem[:60] or "photo", model)

    def _framed(self, photo: Image.Image, stem: str, model: str, shrunk: tuple[int, int] | None = None) -> Framed:
        suited = self._suited(photo, model)
        return Framed(photo, stem, self._box(photo.size, model), suited if suited != model else "", shrunk)

    def _box(self, size: tuple[int, int], model: str, kept: Box | None = None) -> Box | None:
        """The part of a photograph of (width, height) that is framed for a model: `kept` if it is within the limit."""
        if self.engine.fits(size, model):
            return None
        if kept is not None and self.engine.fits((kept[2] - kept[0], kept[3] - kept[1]), model):
            return kept
        return self.engine.detail(size, model)

    def on_image(self, visit: Visit, image: Any, model: str) -> tuple[Any, ...]:
        """A new picture: its preview, what there is to say of it, and a frame on it if it is over the limit.

        The visit comes last: gradio forgets what no event has returned for a while.
        """
        if image is not None and visit.framed is not None and Path(str(image)).stem == visit.preview:
            return *(gr.skip(),) * 6, visit  # another event of the same picture
        visit.take(None)
        try:
            framed = None if image is None else self.read(image, model)
        except Refused as refusal:  # no preview: the browser would show a broken one
            return None, markup.note(str(refusal)), *self._framing(None, model), visit
        if framed is None:  # the picture is gone already, or another one is about to come
            return gr.skip(), "", *self._framing(None, model), visit
        return self._taken(visit, framed, model)

    def _taken(self, visit: Visit, framed: Framed, model: str) -> tuple[Any, ...]:
        visit.take(framed)
        visit.preview = f"{PREVIEW_NAME}{uuid.uuid4()}"
        path = visit.new_folder(self.root.name) / f"{visit.preview}.png"
        small = framed.photo.copy()
        small.thumbnail((PREVIEW, PREVIEW))
        small.save(path, icc_profile=framed.photo.info.get("icc_profile"))
        return str(path), self._about(framed, model), *self._framing(framed, model, path), visit

    def opening_photo(self) -> tuple[Visit, str | None, str]:
        """What visits and the page begin with: the first example, its preview and what there is to say of it."""
        visit = Visit(folder=Path(tempfile.mkdtemp(dir=self.root.name)))
        preview, about, *_ = self.on_image(visit, self.examples[0][1], self.models[0])
        visit.folder = None  # the preview is everyone's
        return (visit, preview, about) if visit.framed and not visit.framed.box else (Visit(), None, "")

    def on_example(self, visit: Visit, model: str, event: gr.EventData) -> tuple[Any, ...]:
        """One of the examples is taken."""
        index = event._data.get("index") if isinstance(event._data, dict) else None
        if not isinstance(index, int) or not 0 <= index < len(self.examples):
            return *(gr.skip(),) * 6, visit
        return self.on_image(visit, self.examples[index][1], model)

    def on_model(self, visit: Visit, model: str) -> tuple[Any, ...]:
        """Another model has another limit and another factor."""
        if visit.framed is None:
            return (gr.skip(),) * 5
        visit.framed = framed = visit.framed._replace(box=self._box(visit.framed.photo.size, model, visit.framed.box))
        previews = list(Path(self.root.name).glob(f"*/*/{visit.preview}.png"))
        return self._about(framed, model), *self._framing(framed, model, *previews)

    def on_look_of_photo(self, visit: Visit, model: str) -> Any:
        """The model that suits a new picture; the visitor may take another one."""
        suited = model if visit.framed is None else self._suited(visit.framed.photo, model)
        return gr.Dropdown(self.models, value=suited) if suited != model else gr.skip()

    def _suited(self, picture: Image.Image, model: str) -> str:
        """The model for how a picture looks, where the one that is chosen is one of the two for that."""
        return (self.engine.suited(picture)[0] if model in (DEFAULT, PHOTO) else "") or model

    def _about(self, framed: Framed, model: str) -> str:
        (width, height), scale = framed.photo.size, self.engine.scale(model)
        if framed.box is None:
            lines = [f"{width} x {height} pixels; samples will have {width * scale} x {height * scale}."]
        else:
            side = int(self.engine.limit(model) ** 0.5)
            lines = [f"{width} x {height} pixels: frame a detail, up to {side} x {side} or as many in another shape."]
        suited, why = self.engine.suited(framed.photo)
        lines += [why] if model == suited else []
        about = warnings(framed.photo) if self.engine.exact(model) else []
        return markup.note(*lines) + markup.note(*about, kind="warning")

    def _framing(self, framed: Framed | None, model: str, preview: Path | None = None) -> tuple[Any, ...]:
        """The button that shrinks, the frame's tab, and which tab is open."""
        if framed is None or framed.box is None or preview is None:
            return gr.Button(visible=False), gr.skip(), gr.Tab(visible=False), gr.Tabs(selected="compare")
        small = self.engine.shrunk_size(framed.photo.size, model)
        label = f"Shrink it to {small[0]} x {small[1]}" if small else ""
        frame = markup.frame(preview, framed.photo.size, framed.box, self.engine.limit(model))
        return gr.Button(label, visible=small is not None), frame, gr.Tab(visible=True), gr.Tabs(selected="photo")

    def on_frame(self, visit: Visit, event: gr.EventData) -> None:
        """The visitor has moved the frame."""
        points = markup.points(event._data)
        if visit.framed is not None and len(points) == 2:
            (left, top), (right, bottom) = points
            width, height = visit.framed.photo.size
            box = (round(left * width), round(top * height), round(right * width), round(bottom * height))
            if min(box[2] - box[0], box[3] - box[1]) >= MIN_SIDE:
                visit.reframe(box=box)

    def on_shrink(self, visit: Visit, model: str) -> tuple[Any, ...]:
        """The whole photograph within the limit, where its samples are no smaller than it is."""
        with friendly():
            size = self.engine.shrunk_size(visit.framed.photo.size, model) if visit.framed else None
            if visit.framed is None or size is None:
                raise Refused("Shrunk to the limit, its samples would be smaller than the photo: frame a detail.")
            small = visit.framed.photo.resize(size, Image.Resampling.BICUBIC)
            return self._taken(visit, self._framed(small, visit.framed.stem, model, size), model)
