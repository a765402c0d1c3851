"""The static page with onnxruntime-web in a headless Chromium: it gives the pipeline's samples.

Needs playwright, a Chromium (`CHROMIUM`, or chromium on the path), the extra `onnx`, and onnxruntime-web's files in
demo/browser/ort, or in the folder that `ONNXRUNTIME_WEB` names (demo/browser/README.md has the command).
"""

import base64
import functools
import io
import os
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hvae_sr.pipelines.onnx import Sampler, example_inputs, export_onnx

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra browser)")
pytest.importorskip("onnxscript", reason="the extra `onnx` is not installed")
PAGE = Path(__file__).resolve().parent.parent / "demo/browser"
RUNTIME = Path(os.environ.get("ONNXRUNTIME_WEB") or PAGE / "ort")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("no Chromium on this machine (or set CHROMIUM)", allow_module_level=True)
if not (RUNTIME / "ort.wasm.min.js").is_file():
    pytest.skip(f"no onnxruntime-web in {RUNTIME} (see demo/browser/README.md)", allow_module_level=True)

PATIENCE = 1000 * float(os.environ.get("HVAE_SR_PATIENCE", 300))  # milliseconds; more on a busy machine


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


_exported = {}


@pytest.fixture
def site(make_pipeline, tmp_path_factory):
    """The folder of the page with a tiny model, which is exported once for all tests."""
    if not _exported:
        folder = tmp_path_factory.mktemp("browser") / "site"
        shutil.copytree(PAGE, folder, ignore=shutil.ignore_patterns("ort", "*.onnx"))
        (folder / "ort").symlink_to(RUNTIME.resolve())
        export_onnx(make_pipeline(), folder / "model.onnx", (6, 4))
        _exported["folder"] = folder
    return _exported["folder"]


@pytest.fixture
def tab(make_pipeline, site):
    """(page in the browser, pipeline, sampler) of a tiny model."""
    pipe = make_pipeline()
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(PATIENCE)
        page.goto(f"http://127.0.0.1:{server.server_address[1]}/", timeout=PATIENCE)
        page.wait_for_function("document.getElementById('status').textContent.match(/^Ready|could not/)")
        yield page, pipe, Sampler(pipe, (6, 4))
        browser.close()
    server.shutdown()


def test_the_page_gives_the_pipeline_s_samples(tab):
    page, pipe, sampler = tab
    image, _, noise = example_inputs(sampler, 2)
    for tau in (0.0, 0.7):
        out = page.evaluate(
            """async ([image, tau, noise]) => {
                const out = await sampler.sample(
                    Float32Array.from(image), tau, noise.map((draws) => Float32Array.from(draws)), 2);
                return {...out, data: Array.from(out.data)};
            }""",
            [image.flatten().tolist(), tau, [draw.flatten().tolist() for draw in noise]],
        )
        expected = pipe(image[0], temperature=tau, num_samples=2, seed=0, output_type="pt").images
        images = torch.tensor(out["data"]).reshape(2, 3, out["height"], out["width"])
        torch.testing.assert_close(images, expected, rtol=0, atol=1e-3)


def canvases(page):
    """(caption, uint8 pixels) of every picture on the page."""
    found = page.evaluate(
        """[...document.querySelectorAll('#results figure')].map(
            f => [f.querySelector('figcaption').innerText, f.querySelector('canvas').toDataURL()])"""
    )
    pictures = [Image.open(io.BytesIO(base64.b64decode(data.split(",")[1]))).convert("RGB") for _, data in found]
    return [(caption, np.asarray(picture)) for (caption, _), picture in zip(found, pictures, strict=True)]


def choose(page, path, words):
    page.set_input_files("#file", str(path))
    page.wait_for_function("words => document.getElementById('status').innerText.includes(words)", arg=words)


def draw(page, count, seed, temperature):
    page.fill("#count", str(count))
    page.fill("#seed", str(seed))
    page.fill("#temperature", str(temperature))
    page.click("#draw")
    page.wait_for_function(r"document.getElementById('status').innerText.match(/^\d+ samples? in/)")
    return canvases(page)


def test_a_visitor_chooses_a_picture_draws_and_sees_the_pipeline_s_samples(tab, tmp_path):
    page, pipe, _ = tab
    photo = Image.fromarray(np.random.default_rng(0).integers(40, 220, (6, 4, 3), dtype=np.uint8))
    photo.save(tmp_path / "photo.png")
    assert page.is_disabled("#draw")
    choose(page, tmp_path / "photo.png", "4x6 pixels")
    pictures = draw(page, 2, 7, 0.5)
    assert [caption for caption, _ in pictures] == ["input, 4x6", "seed 7", "seed 8", "mean of 2 samples"]
    assert np.array_equal(pictures[0][1], np.asarray(photo))
    shapes = page.evaluate("sampler.noiseShapes")
    samples = []
    for seed, (_, shown) in zip((7, 8), pictures[1:3], strict=True):
        draws = page.evaluate("seed => sampler.drawNoise([seed]).map(draws => Array.from(draws))", seed)
        noise = [torch.tensor(values).reshape(1, *shape) for values, shape in zip(draws, shapes, strict=True)]
        expected = np.asarray(pipe(photo, temperature=0.5, noise=noise).images[0])
        assert np.abs(shown.astype(int) - expected).max() <= 1  # a rounding apart
        samples.append(shown.astype(float))
    assert not np.array_equal(samples[0], samples[1])
    assert np.abs(pictures[3][1] - np.mean(samples, axis=0)).max() <= 1

    # The same seed gives the same sample again; the keyboard does too.
    page.focus("#seed")
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelectorAll('#results figure').length == 4")
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(pictures, canvases(page), strict=True))


def test_large_pictures_are_made_small_or_cut(tab, tmp_path):
    page, _, _ = tab
    pixels = np.zeros((60, 80, 3), dtype=np.uint8)
    pixels[:, 40:] = 255
    Image.fromarray(pixels).save(tmp_path / "large.png")
    choose(page, tmp_path / "large.png", "80x60 pixels")
    small = draw(page, 1, 0, 0)[0][1]
    assert small[:, :2].max() < 20 and small[:, 2:].min() > 235  # the edge in the middle is still there
    page.select_option("#part", "middle")
    assert np.array_equal(draw(page, 1, 0, 0)[0][1], pixels[27:33, 38:42])


def test_files_that_will_not_do_get_a_word_and_can_be_replaced(tab, tmp_path):
    page, _, _ = tab
    (tmp_path / "broken.png").write_bytes(b"nonsense")
    choose(page, tmp_path / "broken.png", "Cannot use this file")
    assert page.is_disabled("#draw")
    Image.new("RGB", (3, 3)).save(tmp_path / "tiny.png")
    choose(page, tmp_path / "tiny.png", "at least 4x6")
    assert page.is_disabled("#draw")
    Image.new("RGB", (9, 9), "teal").save(tmp_path / "good.png")
    choose(page, tmp_path / "good.png", "9x9 pixels")
    assert len(draw(page, 1, 0, 0.8)) == 2


@pytest.mark.parametrize("width", [390, 1366])
def test_the_page_needs_no_sideways_scrolling_and_names_its_controls(tab, width):
    page, _, _ = tab
    page.set_viewport_size({"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for name in ("Image", "Of it", "Temperature", "Samples", "Seed"):
        assert page.get_by_label(name, exact=False).count(), name
    assert page.inner_text("#status[role=status]").startswith("Ready")
