"""Pieces of HTML that the page shows: close-ups, the comparison with its line, the scale of the map."""

import base64
import html
import io

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


def placeholder() -> str:
    """What stands in place of the comparison before there is one."""
    return "<p class='empty'>The input and a sample come here, with a line between them to drag.</p>"


def scale() -> str:
    """The colours of the map with their meaning."""
    source = base64.b64encode(png(colour_bar(200, 8))).decode()
    return (
        f"<div id='scale'><span>0</span><img alt='' src='data:image/png;base64,{source}'><span>25 grey levels and more"
        "</span><span>standard deviation of the samples</span></div>"
    )
