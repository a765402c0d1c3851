"""Pieces of HTML and JavaScript: the comparison with its line, the map with its scale, close-ups, the lasso."""

import base64
import html
import io
import math

from PIL import Image

from hvae_sr.pictures import colour_bar


def png(picture: Image.Image) -> bytes:
    """The bytes of a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def figure(name: str, data: bytes, kind: str = "tile") -> str:
    """A picture with its name below; `data` are the bytes of a PNG file."""
    source = base64.b64encode(data).decode()
    text = html.escape(name)
    return (
        f"<figure class='{kind}'><img alt='Close-up: {text}' src='data:image/png;base64,{source}'>"
        f"<figcaption>{text}</figcaption></figure>"
    )


def comparison(before: Image.Image, after: Image.Image, left: str, right: str) -> str:
    """Two pictures and a line between them that the pointer or the arrow keys move."""
    sources = [base64.b64encode(png(picture)).decode() for picture in (after, before)]
    width, height = after.size
    return (
        f"<div class='compare' style='--line:50%; --shape:{width / height:.4f}'>"
        f"<img alt='{right}' src='data:image/png;base64,{sources[0]}'>"
        f"<img alt='{left}' class='before' src='data:image/png;base64,{sources[1]}'>"
        f"<span class='name left'>{left}</span><span class='name right'>{right}</span><i></i>"
        f"<input type='range' min='0' max='100' value='50' aria-label='Per cent that show {left}, from the left' "
        'oninput=\'this.parentNode.style.setProperty("--line", this.value + "%")\'></div>'
    )


def placeholder(text: str = "The input and a sample come here, with a line between them to drag.") -> str:
    """What stands in place of a view before there is one."""
    return f"<p class='empty'>{html.escape(text)}</p>"


def tiles(parts: list[tuple[str, Image.Image]]) -> str:
    """Close-ups side by side, as large as the view allows."""
    columns = math.ceil(math.sqrt(1.5 * len(parts)))
    rows = math.ceil(len(parts) / columns)
    inner = "".join(figure(name, png(part)) for name, part in parts)
    return f"<div class='tiles' style='--columns:{columns}; --rows:{rows}'>{inner}</div>"


def uncertainty(picture: Image.Image, end: float) -> str:
    """The map with its scale, from 0 to `end` in units of [0, 1]."""
    source = base64.b64encode(png(picture)).decode()
    colours = base64.b64encode(png(colour_bar(200, 8))).decode()
    return (
        f"<div class='map' style='--shape:{picture.width / picture.height:.4f}'><img class='spot' "
        "alt='Map of the standard deviation of the samples over the picture; a click opens a close-up' "
        f"src='data:image/png;base64,{source}'></div><div id='scale'><span>0</span>"
        f"<img alt='' src='data:image/png;base64,{colours}'><span>{255 * end:.0f} grey levels and more</span>"
        "<span class='note'>Standard deviation of the samples. Click for a close-up.</span></div>"
    )


def region(picture: Image.Image) -> str:
    """A picture to draw a line on."""
    source = base64.b64encode(png(picture)).decode()
    return (
        f"<div class='map region' style='--shape:{picture.width / picture.height:.4f}'>"
        f"<img draggable='false' alt='The selected sample' src='data:image/png;base64,{source}'>"
        "<svg viewBox='0 0 1 1' preserveAspectRatio='none'><polygon points=''></polygon></svg></div>"
    )


_PLACE = """
const place = (event, area) => {
  const box = area.getBoundingClientRect(), within = value => Math.min(Math.max(value, 0), 1);
  return [within((event.clientX - box.left) / box.width), within((event.clientY - box.top) / box.height)];
};
"""

POINT = (
    _PLACE
    + """
element.addEventListener('click', event => {
  if (event.target.matches('.spot')) trigger('point', {points: [place(event, event.target)]});
});
"""
)
"""Of the map: a click is the event `point`, with its place in [0, 1] x [0, 1]."""

LASSO = (
    _PLACE
    + """
let area = null, points = [];
element.addEventListener('pointerdown', event => {
  area = event.target.closest('.region');
  if (!area) return;
  event.preventDefault();
  area.setPointerCapture(event.pointerId);
  points = [place(event, area)];
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
)
"""Of the picture: the line that a pointer draws is the event `mark`, with its points in [0, 1] x [0, 1]."""

SHOW_RESULTS = "() => { if (innerWidth <= 900) document.querySelector('#results').scrollIntoView(); }"
"""On a phone the results lie below the controls: who draws wants to see them."""

NAMES = """
() => {
  const all = selector => document.querySelectorAll(selector);
  const groups = {left: 'Left picture', right: 'Right picture', way: 'Show close-ups as'};
  const name = () => {
    for (const status of all('#status')) status.setAttribute('role', 'status');
    for (const group of all('.choices fieldset')) group.setAttribute('aria-label', groups[group.id]);
    for (const image of all('#examples img'))
      image.alt = 'Example: ' + image.src.split('/').pop().replace('.png', '');
  };
  name();
  new MutationObserver(name).observe(document.body, {childList: true, subtree: true});
}
"""
"""Names for screen readers where gradio gives none, on whatever appears: tabs make their content when they open."""
