"""The page as a whole: `layout` shows, `handlers` act, `engine` computes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
import torch

from . import markup
from .engine import Engine
from .handlers import Handlers, forget
from .layout import Layout

QUEUE_SIZE = 16
FORGET_AFTER = 2700
CLEAN_EVERY = 900
"""Seconds: files of a visit go when they are 45 minutes old, looked for every 15, so nothing is kept for more than an
hour."""


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
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_400",
        border_color_primary="*neutral_200",
        border_color_primary_dark="*neutral_700",
        block_background_fill="white",
        block_background_fill_dark="*neutral_900",
        block_border_width="1px",
        block_radius="10px",
        block_shadow="none",
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
        button_primary_background_fill_hover_dark="*primary_500",
        button_primary_shadow="none",
        button_primary_shadow_hover="none",
        button_secondary_border_color="*neutral_300",
        button_secondary_border_color_dark="*neutral_600",
        button_secondary_background_fill_dark="*neutral_800",
        button_secondary_background_fill_hover_dark="*neutral_700",
        button_secondary_shadow="none",
        button_secondary_shadow_hover="none",
        checkbox_border_color="*neutral_400",
        checkbox_label_background_fill_selected="*primary_600",
        checkbox_label_shadow="none",
    )


def _gpu(function: Callable[..., Any]) -> Callable[..., Any]:
    """On ZeroGPU the function borrows the GPU, for a time by the number of its samples."""
    try:
        import spaces
    except ImportError:
        return function
    return spaces.GPU(duration=lambda *_: 60)(function)


class Page(Handlers):
    """Components and what happens between them."""

    def blocks(self) -> gr.Blocks:
        """Lays the page out and wires it."""
        with gr.Blocks(
            title="hvae-sr", analytics_enabled=False, delete_cache=(CLEAN_EVERY, FORGET_AFTER), fill_width=True
        ) as blocks:
            session = gr.State(None, time_to_live=FORGET_AFTER, delete_callback=forget)
            self._wire(Layout(self.engine, self.folder()), session)
            blocks.load(None, js=markup.NAMES, api_visibility="private")
        return blocks

    def _wire(self, page: Layout, session: gr.State) -> None:
        """Connects components with what happens."""
        levels = page.levels
        settings = [page.model, page.temperature, page.by_level, *levels, page.consistent, page.seed, page.count]
        views = [page.slider, page.std, page.pixels, page.region, page.outline, page.png, page.zip, page.vary]
        progress = [session, page.status, page.gallery, page.slider, page.draw, page.stop]
        look = [session, page.left, page.right, page.across, page.down, page.side, page.way]
        once = {"api_visibility": "private", "concurrency_id": "model", "concurrency_limit": 1}
        quick = {"api_visibility": "private", "show_progress": "hidden"}

        runs = []
        for button, function, inputs in (
            (page.draw, self.on_draw, [session, page.image, *settings]),
            (page.vary, self.on_vary, [session, page.kept, page.seed, page.count]),
            (page.redraw, self.on_redraw, [session, page.outline, *page.box, page.seed]),
        ):
            run = button.click(
                _gpu(function), inputs, progress, show_progress="minimal", show_progress_on=page.status, **once
            )
            runs.append(run)
            run.then(self.on_look, look, views, **quick).then(self.on_idle, None, [page.draw, page.stop], **quick)
        page.draw.click(None, js=markup.SHOW_RESULTS, **quick)
        page.stop.click(self.on_stop, session, [page.status, page.draw, page.stop], cancels=runs, queue=False, **quick)
        for one in (page.image, page.model):
            one.change(self.on_image, [page.image, page.model], [page.status, page.shrink], **quick)
        page.shrink.click(self.on_shrink, [page.image, page.model], page.image, **quick)
        page.gallery.select(self.on_select, session, page.status, **quick).then(self.on_look, look, views, **quick)
        for one in (page.left, page.right):
            one.change(self.on_compare, look[:3], page.slider, **quick)
        for one in look[3:]:
            one.change(self.on_close_up, [session, *look[3:]], page.pixels, **quick)
        page.region.mark(self.on_mark, None, page.outline, **quick)
        page.std.point(self.on_point, None, [page.across, page.down, page.tabs], **quick)
        for one in (page.model, page.by_level):
            one.change(
                self.on_levels, [page.model, page.by_level, page.temperature], [page.temperature, *levels], **quick
            )
        files, facts = gr.Gallery(visible=False, format="png"), gr.JSON(visible=False)
        gr.Button(visible=False).click(
            _gpu(self.upscale),
            [page.image, page.model, page.temperature, page.count, page.seed, page.consistent],
            [files, facts],
            api_name="upscale",
            concurrency_id="model",
            concurrency_limit=1,
        )
