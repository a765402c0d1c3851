"""Pieces of HTML and JavaScript: comparison, frame, map with its scale, close-ups, lasso, examples, progress."""

import base64
import html
import io
import json
import math
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image

from hvae_sr.pictures import colour_bar


def embedded(picture: Image.Image) -> str:
    """An address that holds the picture itself, as PNG."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def address(path: Path) -> str:
    """Where the browser finds a file of the folder that the page serves."""
    return f"gradio_api/file={quote(str(path))}"


def script(name: str) -> str:
    """A file of JavaScript that stands beside this one."""
    return (Path(__file__).parent / f"{name}.js").read_text(encoding="utf-8")


def note(*lines: str, kind: str = "") -> str:
    """A paragraph for each line."""
    return "".join(f"<p class='{kind}'>{html.escape(line)}</p>" for line in lines)


def progress(text: str, done: int, total: int) -> str:
    """What is being done, and a bar: how much of it is done."""
    kind, share = ("some", 100 * done / total) if done else ("none", 30)  # without any it moves to and fro
    return (
        f"<p>{html.escape(text)} ...</p><div class='bar {kind}' role='progressbar' aria-label='Samples drawn' "
        f"aria-valuemin='0' aria-valuenow='{done}' aria-valuemax='{total}'><b style='width:{share:.0f}%'></b></div>"
    )


def waiting(text: str) -> str:
    """A bar in the place of the picture that is to come."""
    return f"<div class='empty'><div>{progress(text, 0, 1)}</div></div>"


def examples(files: list[tuple[str, Path]]) -> str:
    """Pictures to choose from, each with its name."""
    buttons = [
        f"<button type='button' data-index='{index}'><img alt='' src='{address(path)}'>"
        f"<span>{html.escape(label)}</span></button>"
        for index, (label, path) in enumerate(files)
    ]
    return f"<div role='group' aria-label='Examples'>{''.join(buttons)}</div>"


def frame(preview: Path, size: tuple[int, int], box: tuple[int, int, int, int], limit: int) -> str:
    """A photograph and the part of it that is drawn: `box` (left, top, right, bottom) of at most `limit` pixels."""
    key = str(uuid.uuid4())  # else the page would leave a frame where the visitor has dragged it
    data = html.escape(json.dumps({"size": size, "box": box, "limit": limit, "key": key}), quote=True)
    return (
        f"<div class='map framing' style='--shape:{size[0] / size[1]:.4f}' data-frame='{data}'>"
        f"<img draggable='false' alt='The photo' src='{address(preview)}'>"
        "<div class='box' tabindex='0' role='application' aria-label='Frame: arrow keys move it, plus and minus change "
        "its size'><b></b></div></div><p class='hint'>Drag the frame, or its corner. <span></span></p>"
    )


def comparison(
    before: tuple[str, Path], after: tuple[str, Path], samples: list[tuple[str, Path]], size: tuple[int, int]
) -> str:
    """Two pictures of (width, height) and a line between them, each with its name; `samples` are for the flicker."""
    width, height = size
    listed = [{"name": name, "source": address(path)} for name, path in samples]
    data = html.escape(json.dumps({"size": size, "samples": listed}), quote=True)
    pictures = "".join(
        f"<div class='pane {side}'><img draggable='false' alt='{html.escape(name)}' src='{address(path)}'></div>"
        f"<span class='name {place}'>{html.escape(name)}</span>"
        for side, place, (name, path) in (("after", "right", after), ("before", "left", before))
    )
    tools = "".join(
        f"<button type='button' data-tool='{tool}' title='{title}' aria-label='{title}'>{sign}</button>"
        for tool, sign, title in (
            ("out", "−", "Smaller"),
            ("in", "+", "Larger"),
            ("full-size", "100 %", "One pixel of the picture for each of the screen"),
            ("fit", "Fit", "All of the picture"),
            ("flicker", "Flicker", "All samples in turn"),
            ("screen", "Full screen", "Full screen"),
        )
    )
    return (
        f"<div class='compare' style='--shape:{width / height:.4f}' data-compare='{data}'>{pictures}<i></i>"
        f"<input type='range' min='0' max='100' aria-label='Per cent that show {html.escape(before[0])}, from the "
        f"left'></div><div class='tools' role='toolbar' aria-label='View'>{tools}</div>"
    )


NO_SAMPLE = "The input and a sample come here, with a line between them to drag."
NO_MAP = "Where the samples differ: the map comes here, of two samples or more."


def placeholder(text: str = NO_SAMPLE) -> str:
    """What stands in place of a view before there is one."""
    return f"<p class='empty'>{html.escape(text)}</p>"


def tiles(parts: list[tuple[str, Image.Image]]) -> str:
    """Close-ups side by side, each with its name below, as large as the view allows."""
    columns = math.ceil(math.sqrt(1.5 * len(parts)))
    rows = math.ceil(len(parts) / columns)
    named = [(html.escape(name), embedded(part)) for name, part in parts]
    inner = "".join(
        f"<figure class='tile'><img alt='Close-up: {name}' src='{source}'><figcaption>{name}</figcaption></figure>"
        for name, source in named
    )
    return f"<div class='tiles' style='--columns:{columns}; --rows:{rows}'>{inner}</div>"


def uncertainty(picture: Image.Image, end: float) -> str:
    """The map with its scale, from 0 to `end` in units of [0, 1]."""
    return (
        f"<div class='map' style='--shape:{picture.width / picture.height:.4f}'><img class='spot' "
        "alt='Map of the standard deviation of the samples over the picture; a click opens a close-up' "
        f"src='{embedded(picture)}'></div><div id='scale'><span>0</span>"
        f"<img alt='' src='{embedded(colour_bar(200, 8))}'><span>{255 * end:.0f} grey levels and more</span>"
        "<span class='note'>Standard deviation of the samples. Click for a close-up.</span></div>"
    )


def region(picture: Image.Image, box: Sequence[float] = (0, 0, 0, 0)) -> str:
    """A picture to draw a line on, and a rectangle: its left, top, width and height in per cent.

    No two are alike: else the page would leave a line that the visitor has drawn.
    """
    left, top, width, height = (value / 100 for value in box)
    corners = (left, top), (left + width, top), (left + width, top + height), (left, top + height)
    outline = " ".join(f"{min(x, 1):g},{min(y, 1):g}" for x, y in corners) if width and height else ""
    return (
        f"<div class='map region' data-key='{uuid.uuid4()}' style='--shape:{picture.width / picture.height:.4f}'>"
        f"<img draggable='false' alt='The selected sample' src='{embedded(picture)}'>"
        f"<svg viewBox='0 0 1 1' preserveAspectRatio='none'><polygon points='{outline}'></polygon></svg></div>"
    )


def points(data: Any) -> list[list[float]]:
    """What a visitor's browser sends as points: pairs in [0, 1], a thousand at most; nothing else."""
    given = data.get("points") if isinstance(data, dict) else None
    if not isinstance(given, list):
        return []
    pairs = [one for one in given[:1000] if isinstance(one, list) and len(one) == 2]
    pairs = [one for one in pairs if all(isinstance(value, (int, float)) and 0 <= value <= 1 for value in one)]
    return [[float(x), float(y)] for x, y in pairs]


PLACE = """
const place = (event, area) => {
  const box = area.getBoundingClientRect(), within = value => Math.min(Math.max(value, 0), 1);
  return [within((event.clientX - box.left) / box.width), within((event.clientY - box.top) / box.height)];
};
"""
"""Goes before `POINT` and `LASSO`."""

EXAMPLE = """
element.addEventListener('click', event => {
  const button = event.target.closest('[data-index]');
  if (button) trigger('take', {index: Number(button.dataset.index)});
});
"""
"""Of the examples: a click is the event `take`, with the example's number."""

POINT = """
element.addEventListener('click', event => {
  if (event.target.matches('.spot')) trigger('point', {points: [place(event, event.target)]});
});
"""
"""Of the map: a click is the event `point`, with its place in [0, 1] x [0, 1]."""

LASSO = """
let area = null, points = [];
element.addEventListener('pointerdown', event => {
  area = event.target.closest('.region');
  if (!area) return;
  event.preventDefault();
  area.setPointerCapture(event.pointerId);
  points = [place(event, area)];
  area.querySelector('polygon').setAttribute('points', '');
});
element.addEventListener('pointermove', event => {
  if (!area || points.length >= 1000) return;
  points.push(place(event, area));
  area.querySelector('polygon').setAttribute('points', points.map(point => point.join(',')).join(' '));
});
for (const name of ['pointerup', 'pointercancel']) element.addEventListener(name, () => {
  if (area) trigger('mark', {points: points});
  area = null;
});
"""
"""Of the picture: the line that a pointer draws is the event `mark`, with its points in [0, 1] x [0, 1]."""

SHOW_RESULTS = "() => { if (innerWidth <= 900) document.querySelector('#results').scrollIntoView(); }"
"""On a phone the results lie below the controls: who draws wants to see them."""

NAMES = """
() => {
  const all = selector => document.querySelectorAll(selector);
  const groups = {left: 'Left picture', right: 'Right picture'};
  const name = () => {
    for (const status of all('#status')) status.setAttribute('role', 'status');
    for (const group of all('.choices fieldset')) group.setAttribute('aria-label', groups[group.id]);
  };
  name();
  new MutationObserver(name).observe(document.body, {childList: true, subtree: true});
}
"""
"""Names for screen readers where gradio gives none, on whatever appears: tabs make their content when they open."""
