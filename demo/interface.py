"""The page as a whole: `layout` shows, `handlers` act, `engine` computes."""

import threading
import time
from pathlib import Path
from typing import Any

import gradio as gr
import torch

from . import markup
from .engine import Engine, Visit, sweep
from .handlers import Handlers
from .layout import Layout

QUEUE_SIZE = 16
FORGET_AFTER = 2700
CLEAN_EVERY = 900
"""Seconds: files of a visit go when it has been idle for 45 minutes, looked for every 15, so nothing is kept for more
than an hour after its last use."""


def build(models: list[str], max_pixels: int = 256 * 256, device: str | None = None, dtype: Any = None) -> gr.Blocks:
    """The page with the given models loaded.

    Args:
        models: bundled names, folders or Hub ids.
        max_pixels: of a visitor's picture, see `Engine`.
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
        max_file_size="50mb",
        ssr_mode=False,
        footer_links=["api"],
        show_error=True,
        **options,
    )


def _keep_swept(root: str) -> None:
    while Path(root).is_dir():
        sweep(root, FORGET_AFTER)
        time.sleep(CLEAN_EVERY)


def _theme() -> gr.themes.Base:
    return gr.themes.Soft(
        primary_hue="indigo",
        neutral_hue="slate",
        spacing_size="sm",
        text_size="md",
        font=["system-ui", "sans-serif"],  # plain names: nothing is fetched
        font_mono=["ui-monospace", "monospace"],
    ).set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        body_text_color_subdued="*neutral_600",
        block_background_fill_dark="*neutral_900",
        block_border_width="1px",
        block_radius="10px",
        block_title_background_fill="transparent",
        block_title_text_color="*neutral_700",
        block_title_text_color_dark="*neutral_300",
        block_title_text_weight="500",
        block_title_padding="0",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        block_label_text_color="*neutral_700",
        block_label_text_color_dark="*neutral_300",
        block_label_text_weight="500",
        input_border_width="1px",
        input_border_color="*neutral_300",
        input_border_color_dark="*neutral_600",
        input_shadow="none",
        input_shadow_focus="none",
        button_large_radius="8px",
        button_large_text_size="*text_md",
        button_large_text_weight="550",
        button_border_width="1px",
        button_border_width_dark="1px",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_shadow="none",
        button_primary_shadow_hover="none",
        button_secondary_border_color="*neutral_300",
        button_secondary_background_fill_dark="*neutral_800",
        button_secondary_background_fill_hover_dark="*neutral_700",
        button_secondary_shadow="none",
        button_secondary_shadow_hover="none",
        checkbox_border_color="*neutral_400",
        checkbox_label_background_fill_selected="*primary_600",
        checkbox_label_shadow="none",
    )


class Page(Handlers):
    """Components and what happens between them."""

    def blocks(self) -> gr.Blocks:
        """Lays the page out and wires it."""
        threading.Thread(target=_keep_swept, args=(self.root.name,), daemon=True).start()
        gr.set_static_paths([self.root.name])  # names of folders in it cannot be guessed
        first, preview, about = self.opening_photo()  # outside: what an event returns would be added to the page
        with gr.Blocks(
            title="hvae-sr", analytics_enabled=False, delete_cache=(CLEAN_EVERY, FORGET_AFTER), fill_width=True
        ) as blocks:
            visit = gr.State(first, time_to_live=FORGET_AFTER, delete_callback=Visit.forget)
            self._wire(Layout(self.engine, self.examples, preview, about), visit, blocks)
        return blocks

    def _wire(self, page: Layout, visit: gr.State, blocks: gr.Blocks) -> None:
        """Connects components with what happens."""
        levels = page.levels
        settings = [page.model, page.temperature, page.by_level, *levels, page.consistent, page.seed, page.count]
        views = [page.slider, page.std, page.pixels, page.region, page.outline, page.png, page.zip, page.vary]
        views += page.box
        buttons = [page.draw, page.stop]
        progress = [visit, page.status, page.gallery, page.rounds, *views]
        look = [visit, page.left, page.right, page.across, page.down, page.side]
        # Always the last: by itself gradio leaves out what happens while an event of the same kind is answered, so that
        # a picture pasted early or a quick second choice would be lost.
        quick = {"api_visibility": "private", "show_progress": "hidden", "trigger_mode": "always_last"}
        # Gradio's own way to cancel waits until the generator comes to its next sample; until then it swallows clicks.
        # So a run ends by itself when its number was stopped, and any number of runs may be under way.
        once = {
            "api_visibility": "private",
            "concurrency_id": "model",
            "concurrency_limit": 1,
            "trigger_mode": "multiple",
            "show_progress": "minimal",  # the place in the queue
            "show_progress_on": page.status,
        }
        now = {**quick, "queue": False, "trigger_mode": "multiple"}

        for button, function, inputs, start in (
            (page.draw, self.on_draw, [page.image, *settings], [visit, page.count, page.image]),
            (page.vary, self.on_vary, [page.kept, page.seed, page.count], [visit, page.count]),
            (page.redraw, self.on_redraw, [page.outline, *page.box, page.seed], [visit]),
        ):
            begin = button.click(self.on_start, start, [page.ticket, page.status, page.slider, *buttons], **now)
            run = begin.then(function, [visit, page.ticket, *inputs, *look[1:]], progress, **once)
            run.then(self.on_look, look, views, **quick).then(self.on_end, visit, buttons, **now)
        page.draw.click(lambda: gr.Tabs(selected="compare"), None, page.tabs, **now)
        page.draw.click(None, js=markup.SHOW_RESULTS, **quick)
        page.stop.click(self.on_stop, look[:3], [page.status, page.slider, *buttons], **now)

        framing = [page.shrink, page.frame, page.framing, page.tabs]
        photo = [page.image, page.about, *framing]
        # Of an upload too, whose own event would read the photo once more, and reset the frame on it.
        for taken in (
            page.image.input(self.on_image, [visit, page.image, page.model], [*photo, visit], **quick),
            page.examples.take(self.on_example, [visit, page.model], [*photo, visit], **quick),
            page.shrink.click(self.on_shrink, [visit, page.model], [*photo, visit], **quick),
        ):
            taken.then(self.on_look_of_photo, [visit, page.model], page.model, **quick)
        page.frame.frame(self.on_frame, visit, None, **now)
        page.model.change(self.on_model, [visit, page.model], photo[1:], **quick)

        page.gallery.select(self.on_select, visit, page.status, **quick).then(self.on_look, look, views, **quick)
        page.rounds.input(self.on_round, [visit, page.rounds], [page.status, page.gallery], **quick).then(
            self.on_look, look, views, **quick
        )
        for one in (page.left, page.right):
            one.change(self.on_compare, look[:3], page.slider, **quick)
        for one in look[3:]:
            one.change(self.on_close_up, [visit, *look[3:]], page.pixels, **quick)
        page.region.mark(self.on_mark, None, [page.outline, *page.box], **quick)
        for one in page.box:
            one.input(self.on_box, [visit, *page.box], [page.region, page.outline], **quick)
        page.std.point(self.on_point, None, [page.across, page.down, page.tabs], **quick)
        page.model.change(self.on_exact, page.model, page.consistent, **quick)
        for one in (page.model, page.by_level):
            given = [visit, page.model, page.by_level, page.temperature]
            one.change(self.on_levels, given, [page.temperature, *levels], **quick)
        blocks.unload(self.on_leave)
        blocks.load(None, js=markup.NAMES, api_visibility="private")
        blocks.load(self.on_open, [visit, page.ticket], progress, **once).then(self.on_look, look, views, **quick)
        seed = gr.Number(0, precision=0, label="Seed", visible=False)
        files, found = gr.Gallery(visible=False, format="png"), gr.JSON(visible=False)
        gr.Button(visible=False).click(
            self.upscale,
            [page.image, page.model, page.temperature, page.count, seed, page.consistent],
            [files, found],
            api_name="upscale",
            concurrency_id="model",
            concurrency_limit=1,
        )
