"""The sampler as one graph: `torch.export`, ONNX, and the command."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from hvae_sr.cli import main
from hvae_sr.files import temporary_path
from hvae_sr.pipelines.onnx import Sampler, example_inputs, export_onnx, export_program

over_kinds = pytest.mark.parametrize("kind", ["cvdvae", "vdvae-sr"])


@over_kinds
@torch.no_grad()
def test_the_graph_gives_the_pipeline_s_samples_for_any_number_of_them(make_pipeline: Any, kind: str) -> None:
    pipe = make_pipeline(kind, lr={"likelihood_location": "projection"} if kind == "vdvae-sr" else {})
    sampler = Sampler(pipe, (6, 4))
    program = export_program(sampler).module()
    for count in (1, 3):
        image, temperature, noise = example_inputs(sampler, count)
        expected = pipe(image[0], temperature=0.8, num_samples=count, seed=0, output_type="pt").images
        for images in (sampler(image, temperature, noise), program(image, temperature, noise)):
            torch.testing.assert_close(images, expected, rtol=0, atol=1e-5)
    grey = image[:, :1].expand_as(image)
    expected = pipe(grey[0], temperature=0.8, num_samples=3, seed=0, output_type="pt").images
    assert (expected.std(dim=1).max(), program(grey, temperature, noise).std(dim=1).max()) <= (1e-6, 1e-6)
    torch.testing.assert_close(program(grey, temperature, noise), expected, rtol=0, atol=1e-5)
    cold = program(image, torch.tensor(0.0), noise)
    expected = pipe(image[0], temperature=0.0, num_samples=3, seed=0, output_type="pt").images
    torch.testing.assert_close(cold, expected, rtol=0, atol=1e-5)


def test_sizes_and_dtypes_that_do_not_fit_are_refused(make_pipeline: Any, tmp_path: Path) -> None:
    pipe = make_pipeline(lr={"image_size": 4, "blocks": "4x1,4d2,2x1", "upsampling_blocks": "8m4"})
    with pytest.raises(ValueError, match="`size` must be multiples of 2"):
        Sampler(pipe, (5, 4))
    with pytest.raises(ValueError, match="`size` must be at least 2x2"):
        Sampler(pipe, (0, 4))
    fixed = make_pipeline(bias_type="spatial")
    with pytest.raises(ValueError, match="`size` must be 16x16"):
        Sampler(fixed, (8, 8))
    with pytest.raises(ValueError, match="`dtype` must be float32"):
        export_onnx(pipe.to(dtype=torch.bfloat16), tmp_path / "a.onnx", (4, 4))


def test_onnxruntime_gives_the_pipeline_s_samples(
    make_pipeline: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
    pytest.importorskip("onnxscript", reason="the extra `onnx` is not installed")
    pipe = make_pipeline()
    pipe.save_pretrained(tmp_path / "model")
    path = tmp_path / "sampler.onnx"
    left = temporary_path(path)  # by a process that was killed long ago
    left.write_bytes(b"half of it")
    os.utime(left, (0, 0))
    umask = os.umask(0o027)
    request.addfinalizer(lambda: os.umask(umask))
    assert main(["export", str(path), "--model", str(tmp_path / "model"), "--size", "6", "4"]) == 0
    assert [item.name for item in tmp_path.iterdir() if item.is_file()] == ["sampler.onnx"]
    assert path.stat().st_mode & 0o777 == 0o640
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts["scale_factor"]) == 4 and json.loads(facts["size"]) == [6, 4]
    sampler = Sampler(pipe, (6, 4))
    assert json.loads(facts["noise_shapes"]) == [list(shape[1:]) for shape in sampler.noise_shapes(1)]
    for count in (1, 3):
        image, _, noise = example_inputs(sampler, count)
        for tau in (0.0, 0.7):
            feeds = {"image": image.numpy(), "temperature": torch.tensor(tau).numpy()}
            feeds |= {f"noise_{group}": draw.numpy() for group, draw in enumerate(noise)}
            (images,) = session.run(["images"], feeds)
            expected = pipe(image[0], temperature=tau, num_samples=count, seed=0, output_type="pt").images
            torch.testing.assert_close(torch.from_numpy(images), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.pt"], "must end in .onnx"),
        (["a.onnx", "--size", "1", "2", "3"], "--size"),
        (["a.onnx", "--dtype", "float16"], "float32"),
    ],
)
def test_the_command_refuses_what_it_cannot_write(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", *arguments]) == 2
    assert message in capsys.readouterr().err
