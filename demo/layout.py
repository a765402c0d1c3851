"""What there is to see on the page: controls on the left, views in the middle, samples on the right."""

from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from hvae_sr.pictures import photographs

from . import markup
from .engine import Engine

MAX_SAMPLES = 12
MAX_LEVELS = 6

CAPTION = (
    "Samples are plausible images, not evidence: detail that the input does not hold is invented. Do not use them to "
    "identify people. Pictures stay on this machine and are deleted within the hour."
)
EXAMPLES = ("cat", "rocket")
LEFT, RIGHT = {"Bicubic": "bicubic", "Input": "input"}, ("Sample", "Mean")


class Layout:
    """Makes the components, inside `gr.Blocks`.

    Args:
        engine: tells the models and their settings.
        folder: where the examples are written.
    """

    def __init__(self, engine: Engine, folder: Path) -> None:
        self.engine, self.folder = engine, folder
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
        gr.HTML(f"<p role='note'>{CAPTION}</p>", elem_id="caption")

    def _controls(self) -> None:
        files = []
        for name, photo in zip(EXAMPLES, photographs(), strict=True):
            path = self.folder / f"{name}.png"
            photo.resize((photo.width // 3, photo.height // 3), Image.Resampling.BICUBIC).save(path)
            files.append([str(path)])
        self.image = gr.Image(
            label="Low-resolution photograph",
            type="filepath",
            format="png",
            sources=["upload", "clipboard"],
            height=190,
            buttons=[],
            elem_id="input",
        )
        # On the instance: of a subclass gradio would write a stub file beside this module.
        self.image.preprocess = partial(_as_it_is, self.image.preprocess)  # type: ignore[method-assign]
        gr.Examples(files, self.image, label="Examples", elem_id="examples", api_visibility="private")
        self.shrink = gr.Button("Shrink it to the limit", visible=False, elem_id="shrink")
        with gr.Row():
            self.count = _slider(1, MAX_SAMPLES, 4, step=1, label="Samples", elem_id="count")
            first = self.engine.pipelines[self.models[0]]
            self.temperature = _slider(
                0, 1.2, first.config.default_temperature, step=0.05, label="Temperature", elem_id="temperature"
            )
        with gr.Row():
            self.draw = gr.Button("Draw samples", variant="primary", elem_id="draw")
            self.stop = gr.Button("Stop", variant="stop", elem_id="stop", interactive=False, min_width=70, scale=0)
        with gr.Accordion("Advanced", open=False, elem_id="advanced"):
            self.model = gr.Dropdown(self.models, value=self.models[0], label="Model", elem_id="model")
            self.seed = gr.Number(0, label="Seed", precision=0, elem_id="seed", info="Sample j has the seed plus j.")
            self.consistent = gr.Checkbox(
                True,
                label="Exactly consistent with the input",
                info="Made small again, a sample gives the input.",
                elem_id="consistent",
            )
            self.by_level = gr.Checkbox(False, label="A temperature for each level", elem_id="by-level")
            self.levels = [
                _slider(0, 1.2, 0.5, step=0.05, visible=False, elem_id=f"level-{i}") for i in range(MAX_LEVELS)
            ]

    def _views(self) -> None:
        self.status = gr.Markdown("Choose a picture and draw samples.", elem_id="status")
        with gr.Tabs(elem_id="views", selected="compare") as self.tabs:
            with gr.Tab("Compare", id="compare"):
                with gr.Row(elem_classes="choices"):
                    self.left = gr.Radio(list(LEFT), value="Bicubic", label="Left", elem_id="left", min_width=120)
                    self.right = gr.Radio(list(RIGHT), value=RIGHT[0], label="Right", elem_id="right", min_width=120)
                self.slider = gr.HTML(markup.placeholder(), elem_id="slider", elem_classes="stage")
            with gr.Tab("Uncertainty", id="uncertainty"):
                self.std = gr.HTML(
                    markup.placeholder("Where the samples differ: the map comes here."),
                    js_on_load=markup.POINT,
                    elem_id="uncertainty",
                    elem_classes="stage",
                )
            with gr.Tab("Close-up", id="close-up"):
                with gr.Row(elem_classes="choices"):
                    self.across = _slider(0, 100, 50, step=1, label="Across", elem_id="across", min_width=110)
                    self.down = _slider(0, 100, 50, step=1, label="Down", elem_id="down", min_width=110)
                    self.side = _slider(16, 128, 48, step=8, label="Pixels", elem_id="side", min_width=110)
                    self.way = gr.Radio(
                        ["Tiles", "Flicker"],
                        value="Tiles",
                        label="Show",
                        show_label=False,
                        elem_id="way",
                        min_width=170,
                    )
                self.pixels = gr.HTML(
                    markup.placeholder("A spot of every sample, pixel by pixel, comes here."),
                    elem_id="pixels",
                    elem_classes="stage",
                )
            with gr.Tab("Region", id="region"):
                with gr.Row():
                    with gr.Column(scale=4, min_width=280):
                        self.outline = gr.State([])
                        self.region = gr.HTML(
                            markup.placeholder("The selected sample comes here, to draw around a part of it."),
                            js_on_load=markup.LASSO,
                            elem_id="region",
                            elem_classes="stage",
                        )
                    with gr.Column(scale=1, min_width=170):
                        gr.Markdown("Draw around a part of the picture, then redraw it: the rest stays as it is.")
                        self.redraw = gr.Button("Redraw this part", elem_id="redraw")
                        with gr.Accordion("By numbers, %", open=False, elem_id="rectangle"):
                            self.box = [
                                _slider(0, 100, 0, step=1, label=label, elem_id=f"box-{label.lower()}")
                                for label in ("Left", "Top", "Width", "Height")
                            ]

    def _samples(self) -> None:
        self.gallery = gr.Gallery(
            label="Samples · LR-PSNR in dB",
            format="png",
            columns=2,
            height="auto",
            rows=1,
            allow_preview=False,
            object_fit="cover",
            buttons=[],
            elem_id="gallery",
        )
        self.kept = _slider(0, 100, 60, step=5, label="Keep its layout, %", elem_id="kept")
        self.vary = gr.Button("More like this one", elem_id="vary", interactive=False)
        with gr.Row():
            self.png = gr.DownloadButton("PNG", elem_id="png", interactive=False, min_width=60)
            self.zip = gr.DownloadButton("ZIP of all", elem_id="zip", interactive=False, min_width=60)


_slider = partial(gr.Slider, buttons=[])  # no "reset" beside each number


def _as_it_is(preprocess: Any, payload: Any) -> Any:
    """The visitor's file as it came: the engine reads profiles and odd modes right, and says what is wrong."""
    if payload is None or payload.path is None or (payload.url or "").startswith("data:"):
        return preprocess(payload)
    return payload.path
