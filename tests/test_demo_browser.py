"""The demo's page in a headless Chromium: what visitors do, and what they must not be able to break.

Needs gradio, playwright and a Chromium (`CHROMIUM`, or chromium on the path); skips without them.
"""

import base64
import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hvae_sr.images import read_metadata

pytest.importorskip("gradio", reason="gradio is not installed (extra demo)")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra browser)")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("no Chromium on this machine (or set CHROMIUM)", allow_module_level=True)

PATIENCE = 120_000  # milliseconds


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


@pytest.fixture
def served(make_pipeline, tmp_path):
    """(address, page object) of the demo with a tiny model."""
    from hvae_sr.demo.engine import Engine
    from hvae_sr.demo.interface import Page, launch

    make_pipeline().save_pretrained(tmp_path / "tiny")
    page = Page(Engine([str(tmp_path / "tiny")], max_pixels=64 * 64))
    blocks = page.blocks()
    _, address, _ = launch(blocks, prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
    yield address, page
    blocks.close()


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(60, 200, (20, 24, 3), dtype=np.uint8)).save(path)
    return path


def visit(browser, address, **context):
    tab = browser.new_context(accept_downloads=True, **context).new_page()
    tab.set_default_timeout(PATIENCE)
    tab.goto(address, timeout=PATIENCE)
    tab.wait_for_selector("#draw")
    return tab


def upload(tab, path, words="samples will have"):
    tab.set_input_files("#input input[type=file]", str(path))
    status(tab, words)


def status(tab, words):
    tab.wait_for_function("words => document.querySelector('#status').innerText.includes(words)", arg=words)


def draw(tab):
    tab.click("#draw")
    status(tab, "Selected")
    tab.wait_for_selector("#png:not([disabled])")


def download(tab, button):
    with tab.expect_download() as waiting:
        tab.click(button)
    return waiting.value.path().read_bytes()


def shown(tab):
    """The sample on the right of the comparison."""
    source = tab.get_attribute("#slider .compare img >> nth=0", "src")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))))


def test_a_visit_from_upload_to_download(browser, served, photo):
    address, page = served
    pipe = page.engine.pipelines["tiny"]
    tab = visit(browser, address)
    upload(tab, photo)
    draw(tab)
    expected = np.asarray(pipe(Image.open(photo), seed=0).images[0])
    file = io.BytesIO(download(tab, "#png"))
    assert np.array_equal(np.asarray(Image.open(file)), expected) and np.array_equal(shown(tab), expected)
    (photo.parent / "down.png").write_bytes(file.getvalue())
    assert read_metadata(photo.parent / "down.png")["seed"] == 0
    assert len(tab.query_selector_all("#gallery button img")) == 4

    # The line between the pictures follows the keyboard.
    tab.focus("#slider .compare input")
    tab.keyboard.press("End")
    assert tab.evaluate("document.querySelector('.compare').style.getPropertyValue('--line')") == "100%"

    # Another sample, then versions of it.
    tab.query_selector_all("#gallery button img")[2].click()
    status(tab, "seed 2")
    tab.wait_for_timeout(500)
    tab.click("#vary")
    status(tab, "Drawing")
    status(tab, "Selected")
    assert "seed 2" in tab.inner_text("#status")


def test_files_that_are_no_pictures_or_too_large_get_a_friendly_word(browser, served, tmp_path):
    tab = visit(browser, served[0])
    Image.new("RGB", (300, 200), "teal").save(tmp_path / "large.png")
    upload(tab, tmp_path / "large.png", "takes up to 64 x 64")
    tab.click("#draw")
    tab.wait_for_selector(".toast-body")
    tab.click("#shrink")
    status(tab, "samples will have")
    draw(tab)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnonsense")
    tab = visit(browser, served[0])
    tab.set_input_files("#input input[type=file]", str(tmp_path / "broken.png"))
    status(tab, "cannot be read")


def test_two_visitors_at_once_see_their_own_samples(browser, served, tmp_path):
    address, page = served
    pipe, tabs = page.engine.pipelines["tiny"], []
    for number, colour in enumerate(["#804020", "#204080"]):
        picture = Image.effect_noise((16, 16), 40).convert("RGB")
        picture = Image.blend(picture, Image.new("RGB", (16, 16), colour), 0.5)
        picture.save(tmp_path / f"{number}.png")
        tabs.append(visit(browser, address))
        upload(tabs[-1], tmp_path / f"{number}.png")
    for tab in tabs:
        tab.click("#draw")
    for number, tab in enumerate(tabs):
        tab.wait_for_selector("#png:not([disabled])")
        expected = pipe(Image.open(tmp_path / f"{number}.png"), seed=0).images[0]
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(download(tab, "#png")))), np.asarray(expected))


def test_a_run_can_be_stopped(browser, served, photo, monkeypatch):
    import time

    address, page = served
    drawn, slow = [], page.engine.draw
    monkeypatch.setattr(page.engine, "draw", lambda *a: (time.sleep(1), drawn.append(1), slow(*a))[-1])
    tab = visit(browser, address)
    upload(tab, photo)
    tab.click("#draw")
    status(tab, "Drawing sample 2")
    tab.click("#stop")
    status(tab, "Stopped")
    tab.wait_for_timeout(4000)
    assert len(drawn) < 4
    tab.wait_for_selector("#draw:not([disabled])")


def test_a_region_is_redrawn_where_a_line_was_drawn_around_it(browser, served, photo):
    tab = visit(browser, served[0])
    upload(tab, photo)
    draw(tab)
    old = shown(tab).astype(int)
    tab.get_by_role("tab", name="Redraw a region").click()
    box = tab.wait_for_selector("#region .region").bounding_box()
    corners = [(0.1, 0.1), (0.5, 0.1), (0.5, 0.6), (0.1, 0.6)]
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in corners]
    tab.mouse.move(*places[0])
    tab.mouse.down()
    for x, y in places[1:]:
        tab.mouse.move(x, y, steps=4)
    tab.mouse.up()
    assert len(tab.get_attribute("#region polygon", "points").split()) > 8
    tab.wait_for_timeout(1000)
    tab.click("#redraw")
    status(tab, "5 samples")
    status(tab, "region")
    tab.wait_for_function("!document.querySelector('#region polygon').getAttribute('points')")
    change = np.abs(shown(tab).astype(int) - old).max(axis=2)
    height, width = change.shape
    assert change[: round(0.58 * height), : round(0.48 * width)].any()
    assert not change[round(0.62 * height) :].any() and not change[:, round(0.52 * width) :].any()

    # Without a pointer: a rectangle.
    tab.get_by_role("tab", name="Redraw a region").click()
    for name, percent in (("width", "20"), ("height", "20")):
        tab.fill(f"#box-{name} input[type=number]", percent)
        tab.press(f"#box-{name} input[type=number]", "Tab")
    tab.click("#redraw")
    status(tab, "6 samples")


def test_close_ups_show_pixels_of_every_sample_and_flicker_between_them(browser, served, photo):
    address, page = served
    tab = visit(browser, address)
    upload(tab, photo)
    draw(tab)
    tab.get_by_role("tab", name="Uncertainty").click()
    assert "grey levels" in tab.inner_text("#scale")
    box = tab.wait_for_selector("#uncertainty .spot").bounding_box()
    tab.mouse.click(box["x"] + 0.9 * box["width"], box["y"] + 0.9 * box["height"])
    tab.wait_for_selector("#pixels .tile >> visible=true")  # the click has opened the other view
    tab.wait_for_function("document.querySelector('#across input[type=number]').value == 90")
    tab.wait_for_timeout(1000)
    figures = tab.query_selector_all("#pixels figure")
    assert len(figures) == 6  # bicubic, four samples, their mean
    assert figures[0].query_selector("img").evaluate("e => getComputedStyle(e).imageRendering") == "pixelated"

    def pixels(figure):
        source = figure.query_selector("img").get_attribute("src").split(",")[1]
        return Image.open(io.BytesIO(base64.b64decode(source)))

    expected = page.engine.pipelines["tiny"](Image.open(photo), seed=2).images[0]
    corner = expected.crop((expected.width - 48, expected.height - 48, expected.width, expected.height))
    assert np.array_equal(np.asarray(pixels(figures[3])), np.asarray(corner))
    tab.get_by_label("Flicker").check()
    moving = pixels(tab.wait_for_selector("#pixels .flicker"))
    moving.seek(2)
    assert moving.n_frames == 4 and np.array_equal(np.asarray(moving.convert("RGB")), np.asarray(corner))


def test_nothing_of_an_earlier_run_is_kept(browser, served, photo):
    address, page = served
    folders = Path(page.root.name)
    tab = visit(browser, address)
    upload(tab, photo)

    def visits():
        return [folder for folder in folders.iterdir() if list(folder.glob("sample_*.png"))]

    draw(tab)
    (first,) = visits()
    for button in ("#vary", "#draw"):
        tab.wait_for_selector(f"{button}:not([disabled])")
        tab.click(button)
        status(tab, "Drawing")
        status(tab, "Selected")
        tab.wait_for_timeout(500)
        (folder,) = visits()
        assert folder != first
        first = folder


@pytest.mark.parametrize("size, scheme", [((1366, 768), "light"), ((390, 844), "dark")])
def test_the_page_fits_the_screen_and_names_its_controls(browser, served, size, scheme):
    tab = visit(browser, served[0], viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
    assert tab.evaluate("document.documentElement.scrollWidth") <= size[0]
    for name in ("Samples", "Temperature"):
        assert tab.get_by_label(name, exact=False).count()
    for name in ("Draw samples", "More like this one", "PNG"):
        assert tab.get_by_role("button", name=name).count()
    assert "not evidence" in tab.inner_text("#caption")
