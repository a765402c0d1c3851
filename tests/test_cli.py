"""The command line: what it writes, what it prints, and how it refuses."""

import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from hvae_sr import VDVAE, Downsampling, LRConditioner, SuperResolutionPipeline, __version__
from hvae_sr.cli import main
from hvae_sr.images import read_metadata


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    vdvae = VDVAE(image_size=16, width=8, encoder_blocks=None, decoder_blocks="4x1,8m4,16m8", latent_channels=2)
    network = LRConditioner(
        image_size=4,
        blocks="4x1",
        width=8,
        gate_init=0.3,
        likelihood_location="projection",
        decoder_blocks="4x1,8m4,16m8",
        decoder_width=8,
    )
    folder = tmp_path_factory.mktemp("model") / "tiny"
    SuperResolutionPipeline(vdvae, network, default_temperature=0.7).save_pretrained(folder)
    return folder


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(60, 190, (9, 13, 3), dtype=np.uint8)).save(path)
    return path


def upscale(*arguments):
    return main(["upscale", *map(str, arguments), "--device", "cpu"])


def test_upscale_writes_samples_mean_and_uncertainty_at_exactly_four_times_the_size(model, photo, tmp_path, capsys):
    out = tmp_path / "out"
    assert upscale(photo, "-o", out, "--model", model, "--num-samples", 3, "--seed", 7) == 0
    names = {path.name for path in out.iterdir()}
    assert names == {f"photo_x4_{what}.png" for what in ("seed7", "seed8", "seed9", "mean", "std")}
    for name in names:
        assert Image.open(out / name).size == (52, 36)
    assert capsys.readouterr().out.count("LR-PSNR") == 3


def test_a_png_tells_how_it_was_made_and_its_lr_psnr_is_that_of_the_file(model, photo, tmp_path):
    out = tmp_path / "out"
    upscale(photo, "-o", out, "--model", model, "--num_samples", 1, "--temperature", 0.5)
    facts = read_metadata(out / "photo_x4_seed0.png")
    assert (facts["seed"], facts["temperature"], facts["version"]) == (0, 0.5, __version__)
    x = torch.from_numpy(np.asarray(Image.open(out / "photo_x4_seed0.png"), dtype=np.float64)).permute(2, 0, 1) / 255
    y = torch.from_numpy(np.asarray(Image.open(photo), dtype=np.float64)).permute(2, 0, 1) / 255
    error = (Downsampling(4)(x) - y).square().mean().item()
    assert facts["lr_psnr"] == pytest.approx(-10 * np.log10(error), abs=1e-3)


def test_the_default_temperature_is_the_models_and_a_seed_gives_the_same_file_again(model, photo, tmp_path):
    for name in ("a", "b"):
        upscale(photo, "-o", tmp_path / name, "--model", model, "--num_samples", 1)
    assert read_metadata(tmp_path / "a" / "photo_x4_seed0.png")["temperature"] == 0.7
    first, second = ((tmp_path / name / "photo_x4_seed0.png").read_bytes() for name in ("a", "b"))
    assert first == second


def test_one_bad_file_does_not_stop_the_others(model, photo, tmp_path, capsys):
    (photo.parent / "z.png").write_bytes(b"not an image")
    assert upscale(photo, photo.parent / "z.png", "-o", tmp_path / "out", "--model", model, "--num_samples", 1) == 2
    assert "z.png" in capsys.readouterr().err
    assert (tmp_path / "out" / "photo_x4_seed0.png").exists()


def _bad_files(folder):
    (folder / "text.png").write_text("hello")
    (folder / "empty.png").write_bytes(b"")
    Image.new("RGB", (1, 1)).save(folder / "one.png")
    Image.new("RGB", (40, 40)).save(folder / "whole.png")
    (folder / "cut.png").write_bytes((folder / "whole.png").read_bytes()[:60])


@pytest.mark.parametrize("name", ["missing.png", "text.png", "empty.png", "one.png", "cut.png"])
def test_a_bad_file_gives_exit_2_one_line_that_names_it_and_no_output(name, model, tmp_path, capsys):
    _bad_files(tmp_path)
    assert upscale(tmp_path / name, "-o", tmp_path / "out", "--model", model) == 2
    error = capsys.readouterr().err.strip()
    assert len([line for line in error.splitlines() if "error" in line]) == 1 and "Traceback" not in error
    assert name in error
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--num_samples", "0"], "num_samples"),
        (["--temperature", "-1"], "temperature"),
        (["--temperature", "nan"], "temperature"),
        (["--batch_size", "0"], "batch_size"),
        (["--model", "no-such-model"], "no-such-model"),
        (["--device", "nonsense"], "nonsense"),
        (["--device", "meta"], "meta"),
    ],
)
def test_a_bad_option_gives_exit_2_and_one_line_that_names_it(options, named, model, photo, tmp_path, capsys):
    arguments = [photo, "-o", tmp_path / "out"]
    if "--model" not in options:
        arguments += ["--model", model]
    assert main(["upscale", *map(str, arguments), *options]) == 2
    error = capsys.readouterr().err
    assert named in error and "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_damaged_weights_are_refused_by_name(model, photo, tmp_path, capsys):
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    weights = broken / "vdvae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    assert upscale(photo, "-o", tmp_path / "out", "--model", broken) == 2
    error = capsys.readouterr().err
    assert "broken" in error and "Traceback" not in error


def test_evaluate_writes_a_report_with_the_rows_of_the_model(model, tmp_path, capsys):
    folder = tmp_path / "Toy"
    folder.mkdir()
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (70, 90, 3), dtype=np.uint8)).save(folder / "a.png")
    report = tmp_path / "report.json"
    arguments = ["--model", model, "--data", folder, "--size", 64, "-o", report, "--num_samples", 2]
    assert main(["evaluate", *map(str, arguments), "--temperatures", "0.8", "--device", "cpu"]) == 0
    names = {row["row"] if "row" in row else row["name"] for row in json.loads(report.read_text())["rows"]}
    assert {"bicubic", "sample t=0.8 projected", "mean t=0.8 projected"} <= names
    assert "bicubic" in capsys.readouterr().out


def test_evaluate_without_images_is_an_error_of_one_line(tmp_path, capsys):
    (tmp_path / "Empty").mkdir()
    assert main(["evaluate", "--data", str(tmp_path / "Empty"), "-o", str(tmp_path / "r.json")]) == 2
    assert "Empty" in capsys.readouterr().err
    assert not (tmp_path / "r.json").exists()


def test_two_inputs_of_one_name_are_refused_before_anything_is_written(model, photo, tmp_path, capsys):
    (tmp_path / "other").mkdir()
    Image.open(photo).save(tmp_path / "other" / "photo.bmp")
    assert upscale(photo, tmp_path / "other" / "photo.bmp", "-o", tmp_path / "out", "--model", model) == 2
    assert "photo.bmp" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_results_in_the_input_folder_are_not_upscaled_again(model, photo, tmp_path):
    for _ in range(2):
        assert upscale(tmp_path, "-o", tmp_path, "--model", model, "--num_samples", 1) == 0
    assert {path.name for path in tmp_path.iterdir()} == {
        "photo.png", "photo_x4_seed0.png", "photo_x4_mean.png", "photo_x4_std.png"
    }  # fmt: skip


def test_a_file_in_place_of_the_output_folder_is_refused(model, photo, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert upscale(photo, "-o", tmp_path / "file" / "sub", "--model", model) == 2
    assert "output_dir" in capsys.readouterr().err


def test_the_colour_profile_of_the_input_is_kept(model, photo, tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.open(photo).save(photo, icc_profile=profile)
    upscale(photo, "-o", tmp_path / "out", "--model", model, "--num_samples", 1)
    for name in ("seed0", "mean"):
        assert Image.open(tmp_path / "out" / f"photo_x4_{name}.png").info.get("icc_profile") == profile
