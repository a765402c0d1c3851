"""Every tutorial runs, here on tiny models and pictures."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hvae_sr import SuperResolutionPipeline

TUTORIALS = Path(__file__).parents[1] / "docs" / "tutorials"


def run(name, *arguments):
    spec = importlib.util.spec_from_file_location(name, TUTORIALS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main([str(argument) for argument in arguments])


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(2):
        small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        small.resize((40, 40), Image.Resampling.BICUBIC).save(folder / f"{index}.png")
    return folder


@pytest.fixture
def model(make_pipeline, tmp_path):
    make_pipeline("cvdvae").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_every_tutorial_is_tested_here():
    text = Path(__file__).read_text()
    names = [file.stem for file in TUTORIALS.glob("*.py")]
    assert len(names) == 5 and all(f'run("{name}"' in text for name in names)
    for name in names:  # what it printed stands on its page, below the command
        assert (TUTORIALS / f"{name}.txt").read_text().startswith(f"$ python docs/tutorials/{name}.py")


def test_upscale(photos, model, tmp_path, capsys):
    run("upscale", "--model", model, "--photo", photos / "0.png", "--output_dir", tmp_path / "out")
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {
        "mean.png", "std.png", *(f"sample{j}.png" for j in range(5)), "redrawn1.png", "redrawn2.png",
        "temperature0.png", "temperature0.5.png", "temperature1.png",
    }  # fmt: skip
    assert Image.open(tmp_path / "out" / "mean.png").size == (160, 160)
    text = capsys.readouterr().out
    assert "LR-PSNR" in text
    assert int(text.split("differ by at most ")[1].split()[0]) <= 4  # random weights magnify rounding


def test_train_on_your_own_images(photos, tmp_path, capsys):
    arguments = ["--steps", 2, "--width", 8, "--resolution", 32, "--batch_size", 2]
    run("train_on_your_own_images", photos, "--output_dir", tmp_path / "out", *arguments)
    pipe = SuperResolutionPipeline.from_pretrained(tmp_path / "out" / "model")
    assert pipe(Image.new("RGB", (8, 8)), seed=0).images[0].size == (32, 32)
    assert "9 groups" in capsys.readouterr().out


def test_evaluate_a_method(photos, model, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra `figures`)")
    run("evaluate_a_method", photos, "--model", model, "--size", 32, "--num_samples", 2, "--output_dir", tmp_path / "o")
    names = {file.name for file in (tmp_path / "o").iterdir()}
    assert names == {"model.json", "lanczos.json", "Lanczos", "plane.png", "calibration.png", "results.md"}
    assert "| Lanczos |" in (tmp_path / "o" / "results.md").read_text()
    assert "bicubic, first image" in capsys.readouterr().out


def test_choose_k_and_tau(photos, model, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra `figures`)")
    arguments = ["--num_codes", 1, "--num_images", 1, "--num_samples", 2, "--temperatures", 0.5, 1]
    run("choose_k_and_tau", photos, "--model", model, "--size", 32, "--output_dir", tmp_path / "out", *arguments)
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"distance.png", "temperature.png"}
    text = capsys.readouterr().out
    assert "| k | stride of group k - 1 |" in text and "least CRPS" in text and "\nk = " in text


def test_train_for_your_camera(photos, make_pipeline, tmp_path, capsys):
    pipe = make_pipeline("vdvae-sr")
    SuperResolutionPipeline(pipe.vdvae, pipe.lr_encoder, consistency="none").save_pretrained(tmp_path / "model")
    arguments = ["--steps", 1, "--resolution", 32, "--size", 64, "--model", tmp_path / "model"]
    file = tmp_path / "mine.yaml"
    file.write_text("steps: [{step: downsample}, {step: noise, sigma: 4}]")
    run(
        "train_for_your_camera", "--photos", photos, "--degradation", file, "--output_dir", tmp_path / "own", *arguments
    )
    assert not (tmp_path / "own" / "microscope.yaml").exists() and f"--degradation {file}" in capsys.readouterr().out
    run("train_for_your_camera", "--photos", photos, "--output_dir", tmp_path / "out", *arguments)
    text = capsys.readouterr().out
    assert "before: PSNR of the estimate" in text and "after: PSNR of the estimate" in text
    assert SuperResolutionPipeline.from_pretrained(tmp_path / "out" / "model").config.consistency == "none"
