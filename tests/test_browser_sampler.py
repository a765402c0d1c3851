"""The static page with onnxruntime-web in a headless Chromium: it gives the pipeline's samples.

Needs playwright, a Chromium (`CHROMIUM`, or chromium on the path), the extra `onnx`, and onnxruntime-web's files in
demo/browser/ort, or in the folder that `ONNXRUNTIME_WEB` names (demo/browser/README.md has the command).
"""

import functools
import os
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from hvae_sr.export import Sampler, example_inputs, export_onnx

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra browser)")
pytest.importorskip("onnxscript", reason="the extra `onnx` is not installed")
PAGE = Path(__file__).resolve().parent.parent / "demo/browser"
RUNTIME = Path(os.environ.get("ONNXRUNTIME_WEB") or PAGE / "ort")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("no Chromium on this machine (or set CHROMIUM)", allow_module_level=True)
if not (RUNTIME / "ort.wasm.min.js").is_file():
    pytest.skip(f"no onnxruntime-web in {RUNTIME} (see demo/browser/README.md)", allow_module_level=True)

PATIENCE = 120_000  # milliseconds


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def tab(make_pipeline, tmp_path):
    """(page in the browser, pipeline, sampler) of a tiny model."""
    pipe = make_pipeline()
    folder = tmp_path / "site"
    shutil.copytree(PAGE, folder, ignore=shutil.ignore_patterns("ort", "*.onnx"))
    (folder / "ort").symlink_to(RUNTIME.resolve())
    export_onnx(pipe, folder / "model.onnx", (6, 4))
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
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
