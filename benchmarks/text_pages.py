"""Images of text to train on beside photographs, in which there is little of it.

python benchmarks/text_pages.py PAGES [--count 120] [--fonts DIR ...] [--text FILE ...] [--seed 0]

writes a folder for `train_data_dir`. How often text is seen is the share of its images in all.
"""

import argparse
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).parents[1]))
from hvae_sr.images import PathLike, save_image  # noqa: E402

PAGE = (480, 320)
"""Width and height in pixels, those of a small photograph, so that a page is seen as often as one."""
FONT_SIZES = (12.0, 64.0)
"""Pixels of an em, drawn evenly on a logarithmic scale."""
SUPERSAMPLING = 3
"""Letters are drawn so many times larger and averaged, so that their edges fall between pixels as in photographs."""
_NOT_LETTERS = ("STIXNonUni", "STIXSiz", "cmex", "cmsy", "cmmi", "LastResort")
_CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"


def find_fonts(folders: Sequence[PathLike] = ()) -> list[Path]:
    """The TrueType and OpenType fonts below the folders, in order; of matplotlib's where no folder is given.

    Raises:
        ValueError: A folder does not exist, or there is no font.
    """
    if not folders:
        try:
            import matplotlib
        except ImportError as error:
            raise ValueError("`fonts` must name folders where matplotlib is not installed") from error

        folders = (Path(matplotlib.get_data_path()) / "fonts" / "ttf",)
    found: list[Path] = []
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise ValueError(f"`fonts` {str(folder)!r} is not a folder")
        found += (path for path in sorted(folder.rglob("*")) if path.suffix.lower() in (".ttf", ".otf"))
    found = [path for path in found if not path.name.startswith(_NOT_LETTERS)]
    if not found:
        raise ValueError(f"`fonts` {[str(folder) for folder in folders]} hold no .ttf or .otf file")
    return found


def read_words(files: Sequence[PathLike] = ()) -> list[str]:
    """The words of text files (UTF-8) with the marks at them, or of the manual that comes with Python.

    Raises:
        ValueError: There is no such file, or no word in them.
    """
    if files:
        for file in map(Path, files):
            if not file.is_file():
                raise ValueError(f"`text`: there is no file {str(file)!r}")
        text = "\n".join(Path(file).read_text(encoding="utf-8", errors="replace") for file in files)
    else:
        from pydoc_data.topics import topics

        text = "\n".join(topics[name] for name in sorted(topics))
    words = re.findall(r"\(?[A-Za-z0-9][\w'’.-]*[),.:;!?%]?", text)
    if not words:
        raise ValueError(f"`text` {[str(file) for file in files]} hold no words")
    return words


def draw_page(rng: np.random.Generator, words: Sequence[str], fonts: Sequence[Path]) -> Image.Image:
    """A page of one, two or four parts, each a plain or shaded colour with lines of words in another.

    Args:
        rng: Decides everything.
        words: Of which lines are made; one in five is replaced by random characters, so that letters do not have to
            follow from their neighbours.
        fonts: Files of which each part takes one.

    Returns:
        RGB, of `PAGE`'s size.
    """
    width, height = (side * SUPERSAMPLING for side in PAGE)
    page = Image.new("RGB", (width, height))
    across, down = int(rng.integers(1, 3)), int(rng.integers(1, 3))
    for row in range(down):
        for column in range(across):
            size = (width // across, height // down)
            page.paste(_draw_part(rng, size, words, fonts), (column * size[0], row * size[1]))
    return page.resize(PAGE, Image.Resampling.BOX)


def _draw_part(
    rng: np.random.Generator, size: tuple[int, int], words: Sequence[str], fonts: Sequence[Path]
) -> Image.Image:
    paper, ink = _colors(rng)
    if rng.random() < 0.3:
        shade = np.linspace(1, rng.uniform(0.6, 1), size[1])[:, None, None]
        column = Image.fromarray(np.broadcast_to(paper * shade, (size[1], size[0], 3)).round().astype(np.uint8))
    else:
        column = Image.new("RGB", size, tuple(map(int, paper)))
    em = SUPERSAMPLING * math.exp(rng.uniform(math.log(FONT_SIZES[0]), math.log(FONT_SIZES[1])))
    font = ImageFont.truetype(str(fonts[int(rng.integers(len(fonts)))]), em)
    canvas = ImageDraw.Draw(column)
    capitals, leading = rng.random() < 0.2, rng.uniform(1.0, 1.6)
    top = rng.uniform(-0.5, 0.5) * em
    while top < size[1]:
        line, left = "", rng.uniform(-0.5, 1.5) * em
        while left + canvas.textlength(line, font) < size[0]:
            line += _word(rng, words) + " "
        canvas.text((left, top), line.upper() if capitals else line, tuple(map(int, ink)), font)
        top += leading * em
    if rng.random() < 0.3:  # as on signs and screens that hang askew
        angle = rng.uniform(-20, 20)
        column = column.rotate(angle, Image.Resampling.BICUBIC, fillcolor=tuple(map(int, paper)))
    return column


def _colors(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Paper and ink [3] in [0, 255], of brightnesses that differ: half of the time black on white or nearly so."""
    if rng.random() < 0.5:
        return rng.uniform(235, 255, 3), rng.uniform(0, 40, 3)
    while True:
        paper, ink = rng.uniform(0, 255, 3), rng.uniform(0, 255, 3)
        if abs(paper.mean() - ink.mean()) > 70:
            return paper, ink


def _word(rng: np.random.Generator, words: Sequence[str]) -> str:
    if rng.random() < 0.2:
        return "".join(rng.choice(list(_CHARACTERS), int(rng.integers(1, 9))))
    return words[int(rng.integers(len(words)))]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; an option that is no good ends it with one line and status 2."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(prog="python benchmarks/text_pages.py", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a new or empty folder; page-0000.png and so on are written there")
    parser.add_argument("--count", type=int, default=120, help="number of pages (default 120)")
    parser.add_argument("--fonts", nargs="+", default=(), help="folders of Latin fonts (default: those of matplotlib)")
    parser.add_argument("--text", nargs="+", default=(), help="files of words (default: Python's manual)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    try:
        for name, lowest in (("count", 1), ("seed", 0)):
            if getattr(options, name) < lowest:
                raise ValueError(f"`{name}` must be at least {lowest}, got {getattr(options, name)}")
        fonts, words = find_fonts(options.fonts), read_words(options.text)
        options.folder.mkdir(parents=True, exist_ok=True)
        if any(options.folder.iterdir()):
            raise ValueError(f"`folder` {str(options.folder)!r} is not empty")
        for number in range(options.count):
            page = draw_page(np.random.default_rng((options.seed, number)), words, fonts)
            save_image(page, options.folder / f"page-{number:04d}.png")
    except (OSError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
