"""The page: what a visitor sees and does. Computation is in `engine`."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import torch
from PIL import Image

from hvae_sr.pictures import photographs

from . import engine as eng
from . import markup
from .engine import Engine, Recipe, Refused, Session, Settings

MAX_SAMPLES = 12
MAX_LEVELS = 6
QUEUE_SIZE = 16
FORGET_AFTER = 3600
"""Seconds after which nothing of a visit is kept."""

CAPTION = (
    "Samples are plausible images, not evidence: detail that the input does not hold is invented. Do not use them to "
    "identify people. Pictures stay on this machine and are deleted within the hour."
)
EXAMPLES = ("cat", "rocket")
LEFT, RIGHT = {"Bicubic": "bicubic", "Input": "input"}, ("Selected sample", "Mean of all samples")


def build(models: list[str], max_pixels: int = 256 * 256, device: str | None = None, dtype: Any = None) -> gr.Blocks:
    """The page with the given models loaded.

    Args:
        models: bundled names, folders or Hub ids.
        max_pixels: of a visitor's picture.
        device: None means a GPU where there is one (on ZeroGPU too), else the CPU.
        dtype: of the models; None leaves it to `from_pretrained`.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    page = Page(Engine(models, device, dtype, max_pixels))
    return page.blocks()


def launch(blocks: gr.Blocks, **options: Any) -> Any:
    """Serves the page: a short queue, files of bounded size, and nothing from other hosts."""
    blocks.queue(max_size=QUEUE_SIZE, default_concurrency_limit=4)
    return blocks.launch(
        theme=_theme(),
        css_paths=Path(__file__).parent / "style.css",
        max_file_size="20mb",
        ssr_mode=False,
        footer_links=["api"],
        show_error=True,
        **options,
    )


def _theme() -> gr.themes.Base:
    return gr.themes.Soft(
        primary_hue="indigo",
        neutral_hue="slate",
        spacing_size="sm",
        text_size="md",
        font=["system-ui", "sans-serif"],  # plain names: nothing is fetched
        font_mono=["ui-monospace", "monospace"],
    ).set(
        block_title_background_fill="transparent",
        block_title_text_color="*neutral_600",
        block_title_text_color_dark="*neutral_300",
        block_title_text_weight="500",
        block_title_padding="0",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        block_label_text_color="*neutral_600",
        block_label_text_color_dark="*neutral_300",
        block_label_text_weight="500",
        block_shadow="none",
    )


def _gpu(function: Callable[..., Any]) -> Callable[..., Any]:
    """On ZeroGPU the function borrows the GPU, for a time by the number of its samples."""
    try:
        import spaces
    except ImportError:
        return function
    return spaces.GPU(duration=lambda *_: 60)(function)


class _Upload(gr.Image):
    """An image whose file comes as it is: the engine reads profiles and odd modes right, and says what is wrong."""

    is_template = True  # drawn as gr.Image

    def preprocess(self, payload: Any) -> Any:
        if payload is None or payload.path is None or (payload.url or "").startswith("data:"):
            return super().preprocess(payload)
        return payload.path


class Page:
    """Components and what happens between them."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.models = list(engine.pipelines)
        self.root = tempfile.TemporaryDirectory(prefix="hvae-sr-demo-")  # removed when the process ends

    def blocks(self) -> gr.Blocks:
        """Lays the page out and wires it."""
        with gr.Blocks(
            title="hvae-sr", analytics_enabled=False, delete_cache=(FORGET_AFTER // 4, FORGET_AFTER), fill_width=True
        ) as blocks:
            self.session = gr.State(None, time_to_live=FORGET_AFTER, delete_callback=_forget)
            gr.HTML(
                "<h1>hvae-sr</h1><p>One low-resolution photograph, many plausible high-resolution ones.</p>",
                elem_id="title",
            )
            with gr.Row(elem_id="main"):
                with gr.Column(scale=1, min_width=280, elem_id="controls"):
                    self._controls()
                with gr.Column(scale=3, min_width=320, elem_id="results"):
                    self._results()
            gr.HTML(f"<p role='note'>{CAPTION}</p>", elem_id="caption")
            self._wire()
        return blocks

    # What there is to see.

    def _controls(self) -> None:
        folder = self._folder()
        files = []
        for name, photo in zip(EXAMPLES, photographs(), strict=True):
            photo.resize((photo.width // 3, photo.height // 3), Image.Resampling.BICUBIC).save(folder / f"{name}.png")
            files.append([str(folder / f"{name}.png")])
        self.image = _Upload(
            label="Low-resolution photograph",
            type="filepath",
            format="png",
            sources=["upload", "clipboard"],
            height=170,
            buttons=[],
            elem_id="input",
        )
        gr.Examples(files, self.image, label="Examples", elem_id="examples", api_visibility="private")
        self.shrink = gr.Button("Shrink it to the limit", visible=False, elem_id="shrink")
        with gr.Row():
            self.count = gr.Slider(1, MAX_SAMPLES, 4, step=1, label="Samples", elem_id="count")
            first = self.engine.pipelines[self.models[0]]
            self.temperature = gr.Slider(
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
                gr.Slider(0, 1.2, 0.5, step=0.05, visible=False, elem_id=f"level-{i}") for i in range(MAX_LEVELS)
            ]

    def _results(self) -> None:
        self.status = gr.Markdown("Choose a picture and draw samples.", elem_id="status")
        with gr.Tabs(elem_id="views"):
            with gr.Tab("Compare"):
                with gr.Row(elem_classes="choices"):
                    self.left = gr.Radio(list(LEFT), value="Bicubic", label="Left", elem_id="left")
                    self.right = gr.Radio(list(RIGHT), value=RIGHT[0], label="Right", elem_id="right")
                self.slider = gr.HTML(markup.placeholder(), elem_id="slider")
            with gr.Tab("Uncertainty"):
                self.std = gr.Image(
                    label="Where the samples differ (click for a close-up)",
                    format="png",
                    type="pil",
                    interactive=False,
                    height="calc(100vh - 400px)",
                    buttons=["fullscreen"],
                    elem_id="uncertainty",
                    alt_text="Map of the standard deviation of the samples over the picture",
                )
                gr.HTML(markup.scale())
            with gr.Tab("Close-up"):
                with gr.Row(elem_classes="choices"):
                    self.across = gr.Slider(0, 100, 50, step=1, label="Across, %", elem_id="across")
                    self.down = gr.Slider(0, 100, 50, step=1, label="Down, %", elem_id="down")
                    self.side = gr.Slider(16, 128, 48, step=8, label="Pixels", elem_id="side")
                    self.way = gr.Radio(["Tiles", "Flicker"], value="Tiles", label="Show", elem_id="way")
                self.pixels = gr.HTML(elem_id="pixels")
            with gr.Tab("Redraw a region") as self.region:
                with gr.Row():
                    with gr.Column(scale=3, min_width=280):
                        self.editor = gr.ImageEditor(
                            label="Paint over what is to be drawn again",
                            type="numpy",
                            format="png",
                            height=330,
                            sources=[],
                            transforms=[],
                            layers=False,
                            brush=gr.Brush(default_size=24, colors=["#ffffff"], color_mode="fixed"),
                            buttons=[],
                            elem_id="editor",
                        )
                    with gr.Column(scale=1, min_width=180):
                        gr.Markdown("or a rectangle, in %")
                        self.box = [
                            gr.Slider(0, 100, value, step=1, label=label, elem_id=f"box-{label.lower()}")
                            for label, value in (("From left", 0), ("From top", 0), ("Width", 0), ("Height", 0))
                        ]
                        self.redraw = gr.Button("Redraw the region", elem_id="redraw")
        self.gallery = gr.Gallery(
            label="Samples",
            format="png",
            columns=MAX_SAMPLES,
            height=134,
            allow_preview=False,
            object_fit="cover",
            buttons=[],
            elem_id="gallery",
        )
        with gr.Row(elem_id="actions"):
            self.kept = gr.Slider(
                0, 100, 60, step=5, label="Keep of this one, %", elem_id="kept", scale=2, min_width=230
            )
            self.vary = gr.Button("More like this one", elem_id="vary", interactive=False, min_width=130)
            self.png = gr.DownloadButton("PNG", elem_id="png", interactive=False, min_width=60)
            self.zip = gr.DownloadButton("ZIP of all", elem_id="zip", interactive=False, min_width=60)

    # What happens.

    def _wire(self) -> None:
        levels = self.levels
        settings = [self.model, self.temperature, self.by_level, *levels, self.consistent, self.seed, self.count]
        views = [self.slider, self.std, self.pixels, self.editor, self.png, self.zip, self.vary]
        progress = [self.session, self.status, self.gallery, self.slider, self.draw, self.stop]
        look = [self.session, self.left, self.right, self.across, self.down, self.side, self.way]
        once = {"api_visibility": "private", "concurrency_id": "model", "concurrency_limit": 1}
        quick = {"api_visibility": "private", "show_progress": "hidden"}

        runs = []
        for button, function, inputs in (
            (self.draw, self.on_draw, [self.session, self.image, *settings]),
            (self.vary, self.on_vary, [self.session, self.kept, self.seed, self.count]),
            (self.redraw, self.on_redraw, [self.session, self.editor, *self.box, self.seed]),
        ):
            run = button.click(
                _gpu(function), inputs, progress, show_progress="minimal", show_progress_on=self.status, **once
            )
            runs.append(run)
            run.then(self.on_look, look, views, **quick).then(self.on_idle, None, [self.draw, self.stop], **quick)
        self.stop.click(self.on_stop, None, [self.status, self.draw, self.stop], cancels=runs, queue=False, **quick)
        self.image.change(self.on_image, self.image, [self.status, self.shrink], **quick)
        self.shrink.click(self.on_shrink, self.image, self.image, **quick)
        self.gallery.select(self.on_select, self.session, [self.session, self.status], **quick).then(
            self.on_look, look, views, **quick
        )
        for one in (self.left, self.right):
            one.change(self.on_compare, look[:3], self.slider, **quick)
        for one in look[3:]:
            one.change(self.on_close_up, [self.session, *look[3:]], self.pixels, **quick)
        self.region.select(self.on_region, self.session, self.editor, **quick)  # a canvas that is hidden stays blank
        self.std.select(self.on_point, self.session, [self.across, self.down], **quick)
        for one in (self.model, self.by_level):
            one.change(
                self.on_levels, [self.model, self.by_level, self.temperature], [self.temperature, *levels], **quick
            )
        files, facts = gr.Gallery(visible=False, format="png"), gr.JSON(visible=False)
        gr.Button(visible=False).click(
            _gpu(self.upscale),
            [self.image, self.model, self.temperature, self.count, self.seed, self.consistent],
            [files, facts],
            api_name="upscale",
            concurrency_id="model",
            concurrency_limit=1,
        )

    def _folder(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self.root.name))

    def _settings(
        self, model: str, temperature: float, by_level: bool, levels: list[float], consistent: bool
    ) -> Settings:
        chosen: Any = self.engine.temperatures(model, levels) if by_level else float(temperature)
        return Settings(model, chosen, bool(consistent))

    def _run(self, session: Session, recipes: list[Recipe]) -> Iterator[tuple[Any, ...]]:
        """Draws, and shows each sample when it is there."""
        session.samples, session.selected = [], 0
        total = len(recipes)
        busy, idle = gr.Button(interactive=False), gr.Button(interactive=True)
        yield session, f"Drawing sample 1 of {total} ...", [], None, busy, idle
        for number, recipe in enumerate(recipes, start=1):
            session.samples.append(self.engine.draw(session, recipe))
            text = f"Drawing sample {number + 1} of {total} ..." if number < total else _summary(session)
            shown = self.on_compare(session, "Bicubic", RIGHT[0]) if number == 1 else gr.skip()
            yield session, text, _gallery(session), shown, busy, idle

    def on_draw(
        self, old: Session | None, image: Any, model: str, temperature: float, by_level: bool, *others: Any
    ) -> Iterator[tuple[Any, ...]]:
        """Samples of a picture."""
        *levels, consistent, seed, count = others
        with _friendly():
            picture = self.engine.check(image)
            settings = self._settings(model, temperature, by_level, levels, consistent)
            _forget(old)
            session = Session(self._folder(), picture, settings)
            yield from self._run(session, self.engine.recipes(model, _seed(seed), int(count)))

    def on_vary(self, session: Session | None, kept: float, seed: Any, count: float) -> Iterator[tuple[Any, ...]]:
        """The selected sample, and others that share its coarse groups."""
        with _friendly():
            chosen = _chosen(session)
            groups = len(chosen.recipe.group_seeds)
            fixed = round(groups * kept / 100)
            first = max(_seed(seed), *chosen.recipe.group_seeds) + 1000
            recipes = [chosen.recipe, *(chosen.recipe.vary(fixed, first + j) for j in range(max(int(count) - 1, 1)))]
            fresh = Session(self._folder(), session.image, session.settings)  # type: ignore[union-attr]
            yield from self._run(fresh, recipes)

    def on_redraw(
        self, session: Session | None, drawing: Any, left: float, top: float, width: float, height: float, seed: Any
    ) -> tuple[Any, ...]:
        """One more sample: the selected one with a region drawn again."""
        with _friendly():
            chosen = _chosen(session)
            assert session is not None
            mask = _mask(drawing, (left, top, width, height), chosen.image.size)
            number = sum(bool(sample.recipe.regions) for sample in session.samples)
            session.samples.append(self.engine.redraw(session, mask, _seed(seed) + 5000 + number))
            session.selected = len(session.samples) - 1
            return session, _summary(session), _gallery(session), gr.skip(), gr.skip(), gr.skip()

    def on_idle(self) -> tuple[Any, ...]:
        """The buttons as they are between runs."""
        return gr.Button(interactive=True), gr.Button(interactive=False)

    def on_stop(self) -> tuple[Any, ...]:
        """After a run was cancelled."""
        return "Stopped. What was drawn stays.", *self.on_idle()

    def on_image(self, image: Any) -> tuple[Any, ...]:
        """What is wrong with a picture, as soon as it is there."""
        if image is None:
            return "Choose a picture and draw samples.", gr.Button(visible=False)
        try:
            picture = self.engine.check(image)
        except Refused as refusal:
            return f"**{refusal}**", gr.Button(visible="takes up to" in str(refusal))
        scale = self.engine.pipelines[self.models[0]].config.scale_factor
        size = f"{picture.width} x {picture.height}"
        return f"{size} pixels; samples will have {picture.width * scale} x {picture.height * scale}.", gr.Button(
            visible=False
        )

    def on_shrink(self, image: Any) -> Image.Image:
        """The picture within the limit."""
        with _friendly():
            return self.engine.shrink(image)

    def on_select(self, session: Session | None, event: gr.SelectData) -> tuple[Any, ...]:
        """A sample of the gallery."""
        if session is None or not session.samples:
            return session, gr.skip()
        session.selected = min(int(event.index), len(session.samples) - 1)
        return session, _summary(session)

    def on_look(
        self, session: Session | None, left: str, right: str, across: float, down: float, side: float, way: str
    ) -> tuple[Any, ...]:
        """All views of the session."""
        if session is None or not session.samples:
            return (gr.skip(),) * 7
        chosen = session.samples[session.selected]
        std = eng.mean_and_std(session.samples)[1]
        return (
            self.on_compare(session, left, right),
            eng.overlay(chosen.image, std),
            self.on_close_up(session, across, down, side, way),
            self.on_region(session),
            gr.DownloadButton("PNG", value=str(chosen.path), interactive=True),
            gr.DownloadButton("ZIP of all", value=str(eng.write_zip(session)), interactive=True),
            gr.Button(interactive=True),
        )

    def on_region(self, session: Session | None) -> Any:
        """The selected sample, to paint on."""
        if session is None or not session.samples:
            return gr.skip()
        picture = np.asarray(session.samples[session.selected].image)
        return {"background": picture, "layers": [], "composite": picture}

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
        return "".join(markup.figure(name, markup.png(part)) for name, part in parts)

    def on_point(self, session: Session | None, event: gr.SelectData) -> tuple[Any, ...]:
        """A click on the map moves the close-up."""
        if session is None or not session.samples:
            return gr.skip(), gr.skip()
        width, height = session.samples[0].image.size
        return round(100 * event.index[0] / width), round(100 * event.index[1] / height)

    def on_levels(self, model: str, by_level: bool, temperature: float) -> list[Any]:
        """The temperature sliders of a model."""
        names = {0: "layout", 1: "shapes"}
        levels = self.engine.levels(model)[:MAX_LEVELS]
        sliders = [
            gr.Slider(
                visible=by_level,
                label=f"Level {i + 1}: {names.get(i, 'texture')}, stride {stride} ({count} groups)",
                value=temperature,
            )
            for i, (stride, count) in enumerate(levels)
        ]
        sliders += [gr.Slider(visible=False) for _ in range(MAX_LEVELS - len(levels))]
        return [gr.Slider(interactive=not by_level), *sliders]

    def upscale(
        self, image: Any, model: str, temperature: float, num_samples: float, seed: float, consistent: bool
    ) -> tuple[list[str], dict[str, Any]]:
        """Samples of a picture, for programs: their PNG files, and the seed and LR-PSNR of each."""
        with _friendly():
            count = int(num_samples)
            picture = self.engine.check(image)
            settings = self._settings(model, temperature, False, [], consistent)
            session = Session(self._folder(), picture, settings)
            try:
                session.samples = [
                    self.engine.draw(session, one) for one in self.engine.recipes(model, _seed(seed), count)
                ]
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


def _forget(session: Session | None) -> None:
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
    return [(str(sample.path), sample.caption) for sample in session.samples]


def _mask(drawing: Any, box: tuple[float, float, float, float], size: tuple[int, int]) -> np.ndarray:
    """What was painted, and the rectangle, `[H, W]`."""
    width, height = size
    mask = np.zeros((height, width), dtype=bool)
    for layer in (drawing or {}).get("layers") or []:
        if layer.ndim == 3 and layer.shape[2] == 4 and layer[..., 3].any():
            painted = Image.fromarray(layer[..., 3]).resize(size, Image.Resampling.NEAREST)
            mask |= np.asarray(painted) > 0
    left, top = round(box[0] * width / 100), round(box[1] * height / 100)
    mask[top : top + round(box[3] * height / 100), left : left + round(box[2] * width / 100)] = True
    return mask
