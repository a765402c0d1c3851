"""The demo's page in a headless Chromium: what visitors do, and what they must not be able to break.

Needs gradio, playwright and a Chromium (`CHROMIUM`, or chromium on the path); skips without them.
"""

import base64
import io
import os
import shutil

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


@pytest.mark.parametrize("size, scheme", [((1366, 768), "light"), ((390, 844), "dark")])
def test_the_page_fits_the_screen_and_names_its_controls(browser, served, size, scheme):
    tab = visit(browser, served[0], viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
    assert tab.evaluate("document.documentElement.scrollWidth") <= size[0]
    for name in ("Samples", "Temperature"):
        assert tab.get_by_label(name, exact=False).count()
    for name in ("Draw samples", "More like this one", "PNG"):
        assert tab.get_by_role("button", name=name).count()
    assert "not evidence" in tab.inner_text("#caption")
