"""The demo's page in a headless Chromium: what visitors do, and what they must not be able to break.

Needs gradio, playwright and a Chromium (`CHROMIUM`, or chromium on the path); skips without them. `HVAE_SR_PATIENCE`:
seconds to wait for each step, 120 if not set.
"""

import base64
import io
import os
import re
import shutil
import time
import zipfile
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

PATIENCE = 1000 * float(os.environ.get("HVAE_SR_PATIENCE", 120))  # milliseconds; more on a busy machine


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


@pytest.fixture(autouse=True)
def pages_are_closed(browser):
    yield
    for context in browser.contexts:
        context.close()


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
    labels = [f"{pipe(Image.open(photo), seed=seed).lr_psnr[0]:.1f} · seed {seed}" for seed in range(4)]
    assert [image.get_attribute("alt") for image in tab.query_selector_all("#gallery button img")] == labels
    assert tab.get_attribute("#gallery button.selected", "aria-label") == "Thumbnail 1 of 4"

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
    import threading
    import time

    address, page = served
    drawn, slow, cancelled = [], page.engine.draw, threading.Event()

    def draw_slowly(*arguments):
        drawn.append(1)
        if len(drawn) > 2:
            cancelled.wait(PATIENCE / 1000)
            time.sleep(1)
        return slow(*arguments)

    monkeypatch.setattr(page.engine, "draw", draw_slowly)
    tab = visit(browser, address)
    upload(tab, photo)
    tab.fill("#count input[type=number]", "12")
    tab.press("#count input[type=number]", "Tab")
    tab.click("#draw")
    status(tab, "Drawing sample 3 of 12")
    with tab.expect_request(lambda request: request.url.endswith("/cancel")):
        tab.click("#stop")
    tab.wait_for_timeout(2000)
    cancelled.set()
    status(tab, "Stopped")
    tab.wait_for_timeout(3000)
    count = len(drawn)
    assert count < 12
    tab.wait_for_timeout(3000)
    assert len(drawn) == count
    assert len(tab.query_selector_all("#gallery button img")) >= 2  # what was drawn stays
    tab.wait_for_selector("#draw:not([disabled])")


def test_a_region_is_redrawn_where_a_line_was_drawn_around_it(browser, served, photo):
    tab = visit(browser, served[0])
    upload(tab, photo)
    draw(tab)
    old = shown(tab).astype(int)
    tab.get_by_role("tab", name="Region").click()
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
    tab.get_by_role("tab", name="Region").click()
    tab.click("#rectangle button")
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

    def pixels(source):
        return Image.open(io.BytesIO(base64.b64decode(source.split(",")[1])))

    expected = page.engine.pipelines["tiny"](Image.open(photo), seed=2).images[0]
    corner = np.asarray(expected.crop((expected.width - 48, expected.height - 48, expected.width, expected.height)))
    images, shown = "[...document.querySelectorAll('#pixels figure img')]", False
    deadline = time.monotonic() + PATIENCE / 1000
    while not shown and time.monotonic() < deadline:  # the tiles follow the place some time after it is set
        tab.wait_for_timeout(100)
        sources = tab.evaluate(f"{images}.map(e => e.src)")
        # bicubic, four samples, their mean
        shown = len(sources) == 6 and np.array_equal(np.asarray(pixels(sources[3]).convert("RGB")), corner)
    assert shown
    assert tab.evaluate(f"getComputedStyle({images}[0]).imageRendering") == "pixelated"
    tab.get_by_label("Flicker").check()
    moving = pixels(tab.wait_for_selector("#pixels .flicker img").get_attribute("src"))
    moving.seek(2)
    assert moving.n_frames == 4 and np.array_equal(np.asarray(moving.convert("RGB")), corner)


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


def test_the_zip_holds_the_exact_samples_their_mean_and_their_standard_deviation(browser, served, photo, tmp_path):
    from hvae_sr.images import uncertainty_to_pil

    address, page = served
    tab = visit(browser, address)
    upload(tab, photo)
    draw(tab)
    with zipfile.ZipFile(io.BytesIO(download(tab, "#zip"))) as archive:
        archive.extractall(tmp_path / "zip")
        names = archive.namelist()
    assert names == [f"sample_{j:02d}.png" for j in range(1, 5)] + ["mean.png", "uncertainty.png"]
    stack = []
    for seed, name in enumerate(names[:4]):
        expected = page.engine.pipelines["tiny"](Image.open(photo), seed=seed).images[0]
        stack.append(np.asarray(expected, dtype=np.float32))
        assert np.array_equal(np.asarray(Image.open(tmp_path / "zip" / name)), np.asarray(expected))
        facts = read_metadata(tmp_path / "zip" / name)
        assert facts["seed"] == seed and facts["model"] == "tiny" and facts["consistent"] is True
    assert np.array_equal(np.asarray(Image.open(tmp_path / "zip/mean.png")), np.rint(np.mean(stack, axis=0)))
    spread = uncertainty_to_pil(np.std(stack, axis=0) / 255)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "zip/uncertainty.png")), np.asarray(spread))


def test_a_picture_is_pasted_from_the_clipboard(browser, served, photo):
    tab = visit(browser, served[0])
    tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
    tab.evaluate(
        """async data => {
            const blob = await (await fetch('data:image/png;base64,' + data)).blob();
            await navigator.clipboard.write([new ClipboardItem({'image/png': blob})]);
        }""",
        base64.b64encode(photo.read_bytes()).decode(),
    )
    tab.locator("#input").get_by_label("Paste from clipboard").click()
    status(tab, "24 x 20 pixels")
    draw(tab)


@pytest.mark.parametrize("width, height, scheme", [(1366, 768, "light"), (1440, 900, "dark"), (390, 844, "dark")])
def test_every_view_fits_the_screen_and_names_its_controls(browser, served, photo, width, height, scheme):
    laptop = width > 900
    phone = {} if laptop else {"is_mobile": True, "has_touch": True}
    tab = visit(browser, served[0], viewport={"width": width, "height": height}, color_scheme=scheme, **phone)
    upload(tab, photo)
    draw(tab)

    def fits(view):
        wide, high = tab.evaluate("[document.documentElement.scrollWidth, document.documentElement.scrollHeight]")
        assert wide <= width and (high <= height or not laptop), (view, wide, high)

    for view in ("Uncertainty", "Close-up", "Region", "Compare"):
        tab.get_by_role("tab", name=view).click()  # on a phone too all are in sight, none in a menu
        tab.wait_for_timeout(200)
        fits(view)
    tab.click("#advanced button")
    tab.get_by_label("A temperature for each level").check()
    tab.wait_for_selector("#level-2")
    fits("Advanced")
    picture = tab.wait_for_selector("#slider .compare").bounding_box()
    assert picture["height"] > 0.6 * (height if laptop else width)

    # What screen readers read.
    for name in ("Samples", "Temperature", "Keep its layout", "Model", "Seed"):
        assert tab.get_by_label(name, exact=False).count(), name
    for name in ("Draw samples", "More like this one", "PNG", "ZIP of all", "Example: cat"):
        assert tab.get_by_role("button", name=name).count(), name
    for name in ("Left picture", "Right picture"):
        assert tab.get_by_role("group", name=name).count(), name
    assert "Selected" in tab.locator("#status[role=status]").inner_text()
    assert "not evidence" in tab.inner_text("#caption")

    # Text and background differ enough, in either scheme (WCAG's ratio for small text).
    colours = """[document.body, ...document.querySelectorAll('#caption p, #title p, #status p, [role=tab]')]
        .map((e, i) => getComputedStyle(e)[i ? 'color' : 'backgroundColor'])"""
    light = [luminance(colour) for colour in tab.evaluate(colours)]
    background, texts = light[0], light[1:]
    assert (background < 0.1) == (scheme == "dark") and len(texts) >= 6
    for text in texts:
        assert (max(text, background) + 0.05) / (min(text, background) + 0.05) >= 4.5


def luminance(colour):
    """WCAG's relative luminance of `rgb(r, g, b)`."""
    levels = np.array([float(value) for value in re.findall(r"[\d.]+", colour)[:3]]) / 255
    return np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]
