"""The demo's page in a headless Chromium: what visitors do, and what they must not be able to break.

Needs gradio, playwright and a Chromium (`CHROMIUM`, or chromium on the path); skips without them. `HVAE_SR_PATIENCE`:
seconds to wait for each step, 300 if not set.
"""

import base64
import io
import os
import re
import shutil
import threading
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

PATIENCE = 1000 * float(os.environ.get("HVAE_SR_PATIENCE", 300))  # milliseconds; more on a busy machine


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
    before = tab.wait_for_selector("#input img").get_attribute("src")  # of the example that the page opens with
    tab.set_input_files("#input input[type=file]", str(path))
    tab.wait_for_function(
        """([words, before]) => document.querySelector('#about').innerText.includes(words)
           && document.querySelector('#input img')?.getAttribute('src') !== before""",
        arg=[words, before],
    )


def status(tab, words):
    tab.wait_for_function("words => document.querySelector('#status').innerText.includes(words)", arg=words)


def draw(tab, count=4, button="#draw"):
    tab.wait_for_selector(f"{button}:not([disabled])")
    tab.click(button)
    tab.wait_for_selector("#draw[disabled]")
    tab.wait_for_selector("#draw:not([disabled])")
    status(tab, f"{count} sample{'s' * (count > 1)}. Shown")


def download(tab, button):
    with tab.expect_download() as waiting:
        tab.click(button)
    return waiting.value.suggested_filename, waiting.value.path().read_bytes()


def fetch(tab, source):
    """The pixels behind an address on the page."""
    if source.startswith("data:"):
        data = base64.b64decode(source.split(",")[1])
    else:
        data = tab.request.get(source if "://" in source else tab.url + source).body()
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def shown(tab):
    """The picture on the right of the comparison."""
    return fetch(tab, tab.get_attribute("#slider .after img", "src"))


def variable(tab, name):
    return tab.evaluate("name => document.querySelector('.compare').style.getPropertyValue('--' + name)", name)


def test_a_visit_from_the_finished_example_to_the_download(browser, served, photo):
    address, page = served
    pipe = page.engine.pipelines["tiny"]
    tab = visit(browser, address)
    status(tab, "An example. 2 samples")
    assert tab.locator("#input img").count() == 1 and shown(tab).shape[2] == 3
    upload(tab, photo)
    draw(tab)
    expected = np.asarray(pipe(Image.open(photo), seed=0).images[0])
    name, data = download(tab, "#png")
    assert name == "photo_sample_01.png"
    (photo.parent / "down.png").write_bytes(data)
    assert np.array_equal(np.asarray(Image.open(photo.parent / "down.png")), expected)
    assert read_metadata(photo.parent / "down.png")["seed"] == 0 and np.array_equal(shown(tab), expected)
    labels = [f"{seed + 1} · seed {seed}" for seed in range(4)]
    assert [image.get_attribute("alt") for image in tab.query_selector_all("#gallery button img")] == labels
    name, data = download(tab, "#zip")
    assert name == "photo_samples.zip" and len(zipfile.ZipFile(io.BytesIO(data)).namelist()) == 6


def test_line_and_zoom_stay_when_another_sample_is_shown_and_flicker_names_each(browser, served, photo):
    tab = visit(browser, served[0])
    upload(tab, photo)
    draw(tab)
    tab.focus("#slider .compare input")
    tab.keyboard.press("Home")
    assert variable(tab, "line") == "0%"
    tab.keyboard.press("ArrowRight")
    tab.click("#slider [data-tool=in]")
    box = tab.locator("#slider .compare").bounding_box()
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tab.mouse.move(*middle)
    tab.mouse.down()
    tab.mouse.move(middle[0] + 20, middle[1] + 10, steps=3)  # pans
    tab.mouse.up()
    before = [variable(tab, name) for name in ("line", "zoom", "x", "y")]
    assert before[:2] == ["1%", "1.5"] and before[2] != before[3]
    tab.query_selector_all("#gallery button img")[2].click()
    tab.wait_for_function("document.querySelector('.compare .right').innerText == 'seed 2'")
    assert [variable(tab, name) for name in ("line", "zoom", "x", "y")] == before

    tab.click("#slider [data-tool=full-size]")
    rate = "document.querySelector('.compare').clientWidth * devicePixelRatio / 96"  # the samples are 96 wide
    assert abs(float(variable(tab, "zoom")) * tab.evaluate(rate) - 1) < 0.01
    tab.click("#slider [data-tool=flicker]")
    for seed in range(4):
        tab.wait_for_function(f"document.querySelector('.compare .right').innerText == 'seed {seed}'")
    tab.click("#slider [data-tool=flicker]")
    assert tab.inner_text(".compare .right") == "seed 2"
    tab.click("#slider [data-tool=screen]")
    tab.wait_for_function("document.fullscreenElement || document.querySelector('.full')")
    tab.click("#slider [data-tool=screen]")
    tab.get_by_label("Difference").check()
    tab.wait_for_function("document.querySelector('.compare .right').innerText.includes('minus mean')")
    assert abs(shown(tab).mean() - 128) < 20


def test_of_a_large_photo_a_detail_is_framed_and_drawn(browser, served, tmp_path, monkeypatch):
    address, page = served
    read, taken = page.read, []
    monkeypatch.setattr(page, "read", lambda *given: taken.append(given[0]) or read(*given))
    pixels = np.random.default_rng(1).integers(0, 255, (300, 400, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "large.png")
    tab = visit(browser, address)
    upload(tab, tmp_path / "large.png", "frame a detail, up to 64 x 64")
    assert not tab.is_visible("#shrink")  # samples of 256 pixels would be smaller than the photo
    frame = tab.wait_for_selector("#frame .box").bounding_box()
    photo = tab.locator("#frame .framing").bounding_box()
    scale = photo["width"] / 400
    tab.mouse.move(frame["x"] + 10, frame["y"] + 10)
    tab.mouse.down()
    tab.mouse.move(photo["x"], photo["y"], steps=5)  # into the corner
    tab.mouse.up()
    tab.mouse.move(photo["x"] + 64 * scale, photo["y"] + 64 * scale)
    tab.mouse.down()
    tab.mouse.move(photo["x"] + 40 * scale, photo["y"] + 30 * scale, steps=5)  # and smaller
    tab.mouse.up()
    width, height = (int(side) for side in tab.inner_text("#frame .hint span").split(" pixels")[0].split(" x "))
    assert abs(width - 40) <= 2 and abs(height - 30) <= 2
    draw(tab)
    expected = page.engine.pipelines["tiny"](Image.fromarray(pixels[:height, :width]), seed=0).images[0]
    assert np.array_equal(shown(tab), np.asarray(expected))
    assert len(taken) == 1  # another time would reset the frame
    Image.fromarray(pixels[:100, :100]).save(tmp_path / "medium.png")
    upload(tab, tmp_path / "medium.png", "100 x 100")
    tab.click("#shrink")
    tab.wait_for_function("document.querySelector('#about').innerText.includes('64 x 64 pixels; samples')")


def test_bad_files_get_a_friendly_word_and_leave_no_broken_picture(browser, served, tmp_path):
    tab = visit(browser, served[0])
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnonsense")
    upload(tab, tmp_path / "broken.png", "cannot be read")
    tab.wait_for_selector("#input img", state="detached")
    tab.click("#draw")
    tab.wait_for_selector(".toast-body")
    tab.wait_for_selector("#draw:not([disabled])")  # and one can go on


def test_files_are_read_as_they_are_after_the_picture_was_removed(browser, served, tmp_path):
    address, page = served
    tab = visit(browser, address)
    tab.wait_for_selector("#input img")
    tab.click("#input button[aria-label='Remove Image']")
    tab.wait_for_selector("#input img", state="detached")
    levels = np.random.default_rng(0).integers(0, 65535, (16, 20), dtype=np.uint16)
    Image.fromarray(levels).save(tmp_path / "grey16.png")
    tab.set_input_files("#input input[type=file]", str(tmp_path / "grey16.png"))
    tab.wait_for_function("document.querySelector('#about').innerText.includes('20 x 16 pixels')")
    draw(tab)
    expected = page.engine.pipelines["tiny"](str(tmp_path / "grey16.png"), seed=0).images[0]  # of 16 bits, here of 8
    assert np.abs(shown(tab).astype(float) - np.asarray(expected)).mean() < 3
    tab.click("#input button[aria-label='Remove Image']")
    tab.wait_for_selector("#input img", state="detached")
    (tmp_path / "broken.png").write_bytes(b"nonsense")
    tab.set_input_files("#input input[type=file]", str(tmp_path / "broken.png"))
    tab.wait_for_function("document.querySelector('#about').innerText.includes('cannot be read')")
    tab.click("#draw")
    tab.wait_for_selector(".toast-body")
    tab.wait_for_selector("#draw:not([disabled])")


def test_warnings_of_the_command_line_and_drawings_on_white(browser, served, tmp_path):
    from hvae_sr.pictures import photographs

    tab = visit(browser, served[0])
    photographs()[0].resize((48, 48)).resize((64, 64)).save(tmp_path / "blocks.jpg", quality=10)
    upload(tab, tmp_path / "blocks.jpg", "JPEG")
    drawing = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    drawing.paste((0, 0, 0, 255), (4, 4, 12, 12))
    drawing.save(tmp_path / "logo.png")
    upload(tab, tmp_path / "logo.png", "16 x 16")
    draw(tab)
    sample = shown(tab)
    assert sample[:8].mean() > 200 and sample[24:40, 24:40].mean() < 100


def test_two_visitors_at_once_see_their_place_and_their_own_samples(browser, served, tmp_path, monkeypatch):
    address, page = served
    pipe, tabs, turn, fast = page.engine.pipelines["tiny"], [], threading.Event(), page._draw

    def draw_slowly(*arguments):
        turn.wait(PATIENCE / 1000)
        yield from fast(*arguments)

    for number, colour in enumerate(["#804020", "#204080"]):
        picture = Image.effect_noise((16, 16), 40).convert("RGB")
        picture = Image.blend(picture, Image.new("RGB", (16, 16), colour), 0.5)
        picture.save(tmp_path / f"{number}.png")
        tabs.append(visit(browser, address))
        upload(tabs[-1], tmp_path / f"{number}.png")
    monkeypatch.setattr(page, "_draw", draw_slowly)
    tabs[0].click("#draw")
    status(tabs[0], "Drawing sample 1 of 4")
    assert "Drawing sample 1" in tabs[0].inner_text("#slider .empty")  # in the picture's place, with a bar
    tabs[1].click("#draw")
    status(tabs[1], "queue: 1/1")
    assert "Waiting for its turn" in tabs[1].inner_text("#slider .empty")
    turn.set()
    for number, tab in enumerate(tabs):
        status(tab, "4 samples. Shown")
        expected = pipe(Image.open(tmp_path / f"{number}.png"), seed=0).images[0]
        assert np.array_equal(shown(tab), np.asarray(expected))


def test_after_stop_samples_can_be_drawn_saved_and_varied_at_once(browser, served, photo, monkeypatch):
    address, page = served
    fast = page._draw

    def draw_slowly(image, settings, recipes):
        for number, sample in enumerate(fast(image, settings, recipes), 1):
            yield sample
            while len(recipes) > 4 and number >= 2 and not page.engine.stopped():
                time.sleep(0.05)  # as the networks do, which ask at each block

    tab = visit(browser, address)
    upload(tab, photo)
    monkeypatch.setattr(page, "_draw", draw_slowly)
    tab.fill("#count input[type=number]", "12")
    tab.press("#count input[type=number]", "Tab")
    tab.click("#draw")
    status(tab, "Drawing sample 3 of 12")
    tab.click("#stop")
    status(tab, "Stopped. 2 samples")
    tab.wait_for_selector("#draw:not([disabled])")
    name, _ = download(tab, "#png")
    assert name == "photo_sample_01.png"
    tab.fill("#count input[type=number]", "3")
    tab.press("#count input[type=number]", "Tab")
    draw(tab, 3, "#vary")
    tab.click("#rounds label >> nth=0")
    status(tab, "2 samples. Shown")
    with tab.expect_request(lambda request: request.url.split("?")[0].endswith("/queue/join")):
        draw(tab, 3)  # the button sends its request


def test_a_version_starts_from_the_picture_as_it_is_shown_and_earlier_samples_stay(browser, served, photo):
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
    with tab.expect_response(lambda response: response.url.split("?")[0].endswith("/queue/join")):
        tab.mouse.up()
    tab.wait_for_timeout(1000)
    draw(tab, 5, "#redraw")
    status(tab, "a part redrawn")
    redrawn = shown(tab)
    change = np.abs(redrawn.astype(int) - old).max(axis=2)
    height, width = change.shape
    assert change[: round(0.58 * height), : round(0.48 * width)].any()
    assert not change[round(0.62 * height) :].any() and not change[:, round(0.52 * width) :].any()

    draw(tab, 4, "#vary")
    assert np.array_equal(shown(tab), redrawn)
    assert "Like seed 0, a part redrawn" in tab.inner_text("#rounds")
    tab.click("#rounds label >> nth=0")
    status(tab, "5 samples. Shown: seed 0, a part redrawn")

    # Without a pointer: a rectangle, which is shown, and gone with the next line or sample.
    tab.get_by_role("tab", name="Region").click()
    tab.click("#rectangle button")
    for name in ("width", "height"):
        tab.fill(f"#box-{name} input[type=number]", "20")
        tab.press(f"#box-{name} input[type=number]", "Tab")
    tab.wait_for_selector("#region polygon[points='0,0 0.2,0 0.2,0.2 0,0.2']", state="attached")
    draw(tab, 6, "#redraw")
    tab.wait_for_selector("#region polygon[points='']", state="attached")
    assert tab.input_value("#box-width input[type=number]") == "0"


def test_a_click_on_the_map_opens_pixels_of_every_sample(browser, served, photo):
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
    expected = page.engine.pipelines["tiny"](Image.open(photo), seed=2).images[0]
    corner = np.asarray(expected.crop((expected.width - 48, expected.height - 48, expected.width, expected.height)))
    images, found = "[...document.querySelectorAll('#pixels figure img')]", False
    deadline = time.monotonic() + PATIENCE / 1000
    while not found and time.monotonic() < deadline:  # the tiles follow the place some time after it is set
        tab.wait_for_timeout(100)
        sources = tab.evaluate(f"{images}.map(e => e.src)")
        found = len(sources) == 6 and np.array_equal(fetch(tab, sources[3]), corner)  # bicubic, four samples, mean
    assert found
    assert tab.evaluate(f"getComputedStyle({images}[0]).imageRendering") == "pixelated"


def test_nothing_of_an_earlier_picture_is_kept(browser, served, photo):
    address, page = served
    tab = visit(browser, address)
    upload(tab, photo)
    draw(tab)
    first = set(Path(page.root.name).glob("*/*/photo_sample_01.png"))
    draw(tab)
    assert len(first) == 1 and not first & set(Path(page.root.name).glob("*/*/photo_sample_01.png"))


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
    tab.wait_for_function("document.querySelector('#about').innerText.includes('24 x 20 pixels')")
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
    tab.get_by_label("A variety for each level").check()
    tab.wait_for_selector("#level-2")
    fits("Advanced")
    picture = tab.wait_for_selector("#slider .compare").bounding_box()
    assert picture["height"] > 0.6 * (height if laptop else width)

    # What screen readers read.
    for name in ("Samples", "Variety", "Keep, %", "Model", "Seed"):
        assert tab.get_by_label(name, exact=False).count(), name
    for name in ("Draw samples", "More like this one", "PNG", "ZIP of all", "Cat"):
        assert tab.get_by_role("button", name=name).count(), name
    for name in ("Left picture", "Right picture"):
        assert tab.get_by_role("group", name=name).count(), name
    assert "Shown" in tab.locator("#status[role=status]").inner_text()
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
