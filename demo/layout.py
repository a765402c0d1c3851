"""What there is to see on the page: controls on the left, views in the middle, samples on the right."""

import os
from abc import ABCMeta
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
import skimage
from PIL import Image

from hvae_sr.images import load_image

from . import markup
from .engine import Engine

MAX_SAMPLES = 12
MAX_LEVELS = 6

CAPTION = (
    "Samples are plausible, not evidence: detail that the input lacks is invented. Do not identify people by them. "
    "Pictures {stay} and are deleted within an hour of their last use."
)
EXAMPLES = {
    "Cat": ("chelsea.png", (96, 36, 288, 228)),
    "Text": ("text.png", (0, 0, 448, 172)),
    "Bricks": ("brick.png", (128, 128, 384, 384)),
    "Grass": ("grass.png", (128, 128, 384, 384)),
    "Cup": ("coffee.png", (90, 40, 410, 360)),
    "Rocket": ("rocket.jpg", (256, 226, 448, 418)),
}
"""Files of scikit-image, CC0 or in the public domain, and the part that is taken; made small, they are the inputs."""
LEFT, RIGHT = {"Bicubic": "bicubic", "Input": "input"}, ("Sample", "Mean", "Difference")


def examples(folder: Path) -> list[tuple[str, Path]]:
    """(label, file) of each example, written to a folder."""
    found = []
    for label, (name, box) in EXAMPLES.items():
        photo = load_image(Path(skimage.__file__).parent / "data" / name).crop(box)
        found.append((label, folder / f"{label.lower()}.png"))
        photo.resize((photo.width // 3, photo.height // 3), Image.Resampling.BICUBIC).save(found[-1][1])
    return found


def caption() -> str:
    """What becomes of pictures, where the page runs."""
    on_space, here = "go to the server of this Space, nowhere else,", "stay on the computer that runs this page"
    return CAPTION.format(stay=on_space if os.environ.get("SPACE_ID") else here)


class Layout:
    """Makes the components, inside `gr.Blocks`, for the models of `engine`; `files` are (label, file) of the examples.

    `preview` is the file of the picture that the page opens with, `about` what there is to say of it.
    """

    def __init__(self, engine: Engine, files: list[tuple[str, Path]], preview: str | None, about: str) -> None:
        self.engine, self.files, self.preview, self.about_preview = engine, files, preview, about
        self.models = list(engine.pipelines)
        gr.HTML(
            "<h1>hvae-sr</h1><p>One low-resolution photograph, many plausible high-resolution ones.</p>",
            elem_id="title",
        )
        with gr.Row(elem_id="main"):
            with gr.Column(scale=2, min_width=270, elem_id="controls"):
                self._controls()
            with gr.Column(scale=6, min_width=320, elem_id="results"):
                self._views()
            with gr.Column(scale=2, min_width=230, elem_id="samples"):
                self._samples()
        gr.HTML(f"<p role='note'>{caption()}</p>", elem_id="caption")

    def _controls(self) -> None:
        self.image = _Photo(
            self.preview,
            label="Low-resolution photograph",
            type="filepath",
            format="png",
            sources=["upload", "clipboard"],
            height=190,
            buttons=[],
            elem_id="input",
        )
        self.about = gr.HTML(self.about_preview, elem_id="about")
        self.shrink = gr.Button("Shrink it", visible=False, elem_id="shrink")
        with gr.Row():
            self.count = _slider(1, MAX_SAMPLES, 4, step=1, label="Samples", elem_id="count")
            own, info = self.engine.default_temperature(self.models[0]), "0 is one smooth picture."
            self.temperature = _slider(0, 1.2, own, step=0.05, label="Variety", info=info, elem_id="temperature")
        with gr.Row():
            self.draw = gr.Button("Draw samples", variant="primary", elem_id="draw")
            self.stop = gr.Button("Stop", variant="stop", elem_id="stop", interactive=False, min_width=70, scale=0)
        self.examples = gr.HTML(markup.examples(self.files), js_on_load=markup.EXAMPLE, elem_id="examples")
        with gr.Accordion("Advanced", open=False, elem_id="advanced"):
            self.model = gr.Dropdown(self.models, value=self.models[0], label="Model", elem_id="model")
            self.seed = gr.Number(0, label="Seed", elem_id="seed", info="Sample j has the seed plus j.")
            self.consistent = gr.Checkbox(
                True,
                label="Matches the input exactly",
                info="Made small again, a sample gives the input.",
                visible=self.engine.exact(self.models[0]),
                elem_id="consistent",
            )
            self.by_level = gr.Checkbox(False, label="A variety for each level", elem_id="by-level")
            self.levels = [
                _slider(0, 1.2, 0.5, step=0.05, visible=False, elem_id=f"level-{i}") for i in range(MAX_LEVELS)
            ]

    def _views(self) -> None:
        self.ticket = gr.Number(0, visible=False)
        self.status = gr.HTML("<p>Choose a picture and draw samples.</p>", elem_id="status")
        with gr.Tabs(elem_id="views", selected="compare") as self.tabs:
            with gr.Tab("Photo", id="photo", visible=False) as self.framing:
                text = "A large photo comes here, to frame a detail of it."
                self.frame = _stage("frame", text, js_on_load=markup.script("frame"))
            with gr.Tab("Compare", id="compare"):
                with gr.Row(elem_classes="choices"):
                    self.left = gr.Radio(list(LEFT), value="Bicubic", label="Left", elem_id="left", min_width=120)
                    self.right = gr.Radio(list(RIGHT), value=RIGHT[0], label="Right", elem_id="right", min_width=120)
                self.slider = _stage("slider", markup.NO_SAMPLE, js_on_load=markup.script("compare"))
            with gr.Tab("Uncertainty", id="uncertainty"):
                self.std = _stage("uncertainty", markup.NO_MAP, js_on_load=markup.PLACE + markup.POINT)
            with gr.Tab("Close-up", id="close-up"):
                with gr.Row(elem_classes="choices"):
                    self.across = _slider(0, 100, 50, step=1, label="Across", elem_id="across", min_width=110)
                    self.down = _slider(0, 100, 50, step=1, label="Down", elem_id="down", min_width=110)
                    self.side = _slider(16, 128, 48, step=8, label="Pixels", elem_id="side", min_width=110)
                self.pixels = _stage("pixels", "A spot of every sample, pixel by pixel, comes here.")
            with gr.Tab("Region", id="region"):
                with gr.Row():
                    with gr.Column(scale=4, min_width=280):
                        self.outline = gr.State([])
                        text = "The selected sample comes here, to draw around a part of it."
                        self.region = _stage("region", text, js_on_load=markup.PLACE + markup.LASSO)
                    with gr.Column(scale=1, min_width=170):
                        gr.Markdown("Draw around a part of the picture, then redraw it: the rest stays as it is.")
                        self.redraw = gr.Button("Redraw this part", elem_id="redraw")
                        with gr.Accordion("By numbers, %", open=False, elem_id="rectangle"):
                            self.box = [
                                _slider(0, 100, 0, step=1, label=label, elem_id=f"box-{label.lower()}")
                                for label in ("Left", "Top", "Width", "Height")
                            ]

    def _samples(self) -> None:
        self.rounds = gr.Radio([], label="Rounds", visible=False, elem_id="rounds")
        self.gallery = gr.Gallery(
            label="Samples",
            format="png",
            columns=2,
            height="auto",
            rows=1,
            allow_preview=False,
            object_fit="cover",
            buttons=[],
            elem_id="gallery",
        )
        info = "The layout first, the texture last; the rest is drawn anew."
        self.kept = _slider(0, 95, 60, step=5, label="Keep, %", info=info, elem_id="kept")
        self.vary = gr.Button("More like this one", elem_id="vary", interactive=False)
        with gr.Row():
            self.png = gr.DownloadButton("PNG", elem_id="png", interactive=False, min_width=60)
            self.zip = gr.DownloadButton("ZIP of all", elem_id="zip", interactive=False, min_width=60)


_slider = partial(gr.Slider, buttons=[])  # no "reset" beside each number


def _stage(name: str, text: str, **options: Any) -> gr.HTML:
    """A view, and what it says before there is something to see."""
    return gr.HTML(markup.placeholder(text), elem_id=name, elem_classes="stage", **options)


def _as_it_is(image: gr.Image, payload: Any) -> Any:
    """The visitor's file as it came: the engine reads profiles and odd modes right, and says what is wrong."""
    if payload is None or payload.path is None or (payload.url or "").startswith("data:"):
        return gr.Image.preprocess(image, payload)
    return payload.path


# A class, as gradio makes the component anew from its class at any update; and not by its own metaclass, which would
# write a stub file beside this module.
_Photo: Any = ABCMeta.__new__(
    type(gr.Image), "Image", (gr.Image,), {"preprocess": _as_it_is, "__module__": gr.Image.__module__}
)
