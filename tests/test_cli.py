"""The command line: what it writes, what it prints, and how it refuses."""

import argparse
import functools
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import skimage
import tifffile
import torch
from PIL import Image, ImageCms
from processes import output, run

from hvae_sr import VDVAE, Downsampling, LRConditioner, SuperResolutionPipeline, __version__
from hvae_sr.cli import main, parse
from hvae_sr.cli.jobs import plan
from hvae_sr.cli.settings import _settings_in
from hvae_sr.cli.terminal import print_line, progress, warn
from hvae_sr.cli.timing import announce, duration, evaluated_pixels
from hvae_sr.files import write_atomically
from hvae_sr.images import WideImage, read_metadata, read_photo, save_image, to_tensor


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


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["upscale", "--help"],
        ["upscael"],
        ["upscale", "a.png", "--nope"],
        ["upscale", "a.png"],
        ["upscale", __file__, "-n", "no-such-model"],
        ["evaluate", "--data", ".", "-o", "report.json", "--model", "no-such-model"],
    ],
)
def test_help_and_typing_errors_wait_for_nothing_that_computes(arguments, tmp_path):
    program = f"""
import sys
from hvae_sr.cli import main
try:
    main({[*arguments, *(["-o", str(tmp_path)] if "a.png" in arguments else [])]})
except SystemExit:
    pass
sys.exit(f"{{sys.modules.keys() & {{'torch', 'diffusers', 'PIL', 'numpy'}}}}")
"""
    done = run([sys.executable, "-c", program])
    assert done.stderr.splitlines()[-1] == "set()" and len(done.stdout + done.stderr) > 50


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
    settings = read_metadata(out / "photo_x4_seed0.png")
    assert (settings["seed"], settings["temperature"], settings["version"]) == (0, 0.5, __version__)
    x = torch.from_numpy(np.asarray(Image.open(out / "photo_x4_seed0.png"), dtype=np.float64)).permute(2, 0, 1) / 255
    y = torch.from_numpy(np.asarray(Image.open(photo), dtype=np.float64)).permute(2, 0, 1) / 255
    error = (Downsampling(4)(x) - y).square().mean().item()
    assert settings["lr_psnr"] == pytest.approx(-10 * np.log10(error), abs=1e-3)


def test_the_default_temperature_is_the_models_and_a_seed_gives_the_same_file_again(model, photo, tmp_path):
    for name in ("a", "b"):
        upscale(photo, "-o", tmp_path / name, "--model", model, "--num_samples", 1)
    assert read_metadata(tmp_path / "a" / "photo_x4_seed0.png")["temperature"] == 0.7
    first, second = ((tmp_path / name / "photo_x4_seed0.png").read_bytes() for name in ("a", "b"))
    assert first == second


def test_one_bad_file_does_not_stop_the_others(model, photo, tmp_path, capsys):
    (photo.parent / "z.png").write_bytes(b"not an image")
    assert upscale(photo, photo.parent / "z.png", "-o", tmp_path / "out", "--model", model, "--num_samples", 1) == 1
    output = capsys.readouterr()
    assert "z.png" in output.err and "2 images: 1 upscaled, 0 finished before, 1 failed" in output.out
    assert (tmp_path / "out" / "photo_x4_seed0.png").exists()


def _bad_files(folder):
    (folder / "text.png").write_text("hello")
    (folder / "empty.png").write_bytes(b"")
    Image.new("RGB", (1, 1)).save(folder / "one.png")
    Image.new("RGB", (40, 40)).save(folder / "whole.png")
    (folder / "cut.png").write_bytes((folder / "whole.png").read_bytes()[:60])


@pytest.mark.parametrize(("name", "side"), [("webp", 4100), ("jpg", 16400)])
def test_sides_that_a_format_cannot_hold_are_refused_before_sampling(name, side, model, tmp_path, capsys):
    Image.new("RGB", (side, 2), "teal").save(tmp_path / "wide.png")
    arguments = [tmp_path / "wide.png", "-o", tmp_path / "out", "--model", model, "--num_samples", 1]
    assert upscale(*arguments, "--format", name) == 1
    assert f"`--format` {name}" in (error := capsys.readouterr().err) and f"{4 * side}x8" in error
    assert list((tmp_path / "out").iterdir()) == []


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
        (["--num_samples", "0"], "`--num-samples`"),
        (["--temperature", "-1"], "temperature"),
        (["--temperature", "nan"], "temperature"),
        (["--batch_size", "0"], "`--batch-size`"),
        (["--model", "no-such-model"], "no model 'no-such-model': not a folder, not a Hub id (owner/name), and the"),
        (["--model", "no-such-model"], ", natural-x4, "),
        (["--outscale", "0"], "outscale"),
        (["--outscale", "nan"], "outscale"),
        (["--max_memory", "much"], "`--max-memory`"),
        (["--crop", "1,2,3"], "X,Y,W,H"),
        (["-n", "5"], "`--num-samples 5`"),
        (["--device", "nonsense"], "nonsense"),
        (["--device", "meta"], "meta"),
        (["-o", "result.png"], "`--output-dir` must be a folder"),
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


@pytest.mark.parametrize("given", ["photo.png", "."])
def test_results_are_beside_the_input_and_not_upscaled_again_and_one_sample_has_no_mean(given, model, photo, tmp_path):
    for _ in range(2):
        assert upscale(tmp_path / given, "--model", model, "--num_samples", 1) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"photo.png", "photo_x4_seed0.png"}


def test_a_file_in_place_of_the_output_folder_is_refused(model, photo, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert upscale(photo, "-o", tmp_path / "file" / "sub", "--model", model) == 2
    assert "`--output-dir`" in capsys.readouterr().err


def test_the_colour_profile_of_the_input_is_kept(model, photo, tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.open(photo).save(photo, icc_profile=profile)
    upscale(photo, "-o", tmp_path / "out", "--model", model, "--num_samples", 2)
    for name in ("seed0", "mean"):
        assert Image.open(tmp_path / "out" / f"photo_x4_{name}.png").info.get("icc_profile") == profile


# Photographs of other kinds


def test_alpha_is_upscaled_apart_and_grey_stays_grey(model, photo, tmp_path):
    rgba = Image.open(photo).convert("RGBA")
    rgba.putalpha(Image.linear_gradient("L").resize(rgba.size))
    rgba.save(tmp_path / "alpha.png")
    Image.open(photo).convert("L").save(tmp_path / "grey.png")
    inputs = [tmp_path / "alpha.png", tmp_path / "grey.png"]
    assert upscale(*inputs, "-o", tmp_path / "out", "--model", model, "--num_samples", 1) == 0
    result = Image.open(tmp_path / "out" / "alpha_x4_seed0.png")
    expected = rgba.getchannel("A").resize(result.size, Image.Resampling.BICUBIC)
    assert result.mode == "RGBA" and result.getchannel("A").tobytes() == expected.tobytes()
    assert Image.open(tmp_path / "out" / "grey_x4_seed0.png").mode == "L"


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_16_bits_give_16_bits_that_are_consistent_with_all_of_the_input(suffix, model, photo, tmp_path, capsys):
    fine = np.asarray(Image.open(photo).convert("RGB"), np.uint16) * 100 + 20000 + np.arange(3, dtype=np.uint16)
    save_image(WideImage(fine), tmp_path / "deep.png")
    save_image(WideImage(fine[..., :1]), tmp_path / "grey.tif")
    inputs = [tmp_path / "deep.png", tmp_path / "grey.tif"]
    out = tmp_path / "out"
    assert upscale(*inputs, "-o", out, "--model", model, "--num_samples", 2, "--format", suffix) == 0
    for name, grey in (("deep", False), ("grey", True)):
        for kind in ("seed0", "mean"):
            result = read_photo(out / f"{name}_x4_{kind}.{suffix}")
            assert result.bits == 16 and result.grey == grey
            error = (Downsampling(4)(to_tensor(result).double()) - to_tensor(fine[..., :1] if grey else fine)).abs()
            assert error.max() < 1e-4  # a level of 8 bits is 4e-3
    capsys.readouterr()
    assert upscale(*inputs, "-o", out, "--model", model, "--num_samples", 2, "--format", suffix) == 0
    assert "2 finished before" in capsys.readouterr().out
    assert upscale(*inputs, "-o", out, "--model", model, "--num_samples", 2, "--format", suffix, "--bits", 8) == 0
    assert "redone" in capsys.readouterr().out and read_photo(out / f"deep_x4_seed0.{suffix}").bits == 8


def test_16_bits_of_a_resampled_result(model, photo, tmp_path):
    upscale(photo, "-o", tmp_path, "--model", model, "--num_samples", 1, "--bits", 16, "--outscale", 3)
    assert read_photo(tmp_path / "photo_x3_seed0.png").bits == 16


def test_16_bits_are_refused_in_a_format_of_8(model, photo, tmp_path, capsys):
    assert upscale(photo, "-o", tmp_path / "out", "--model", model, "--bits", 16, "--format", "jpg") == 2
    assert (
        "`--bits` 16, as given or as `--like` has it, goes with `--format` png or tiff; jpg holds 8"
        in capsys.readouterr().err
    )


def test_what_is_transparent_is_white_in_a_jpeg(model, tmp_path):
    drawing = np.zeros((24, 24, 4), np.uint8)
    drawing[6:18, 6:18, 3] = 255
    Image.fromarray(drawing).save(tmp_path / "logo.png")
    upscale(tmp_path / "logo.png", "-o", tmp_path, "--model", model, "--num_samples", 1, "--format", "jpg")
    assert np.asarray(Image.open(tmp_path / "logo_x4_seed0.jpg"))[:8].mean() > 200


@pytest.mark.parametrize("suffix", ["webp", "jpg", "tiff"])
def test_other_formats_hold_the_settings_and_the_lr_psnr_of_what_was_written(suffix, model, photo, tmp_path, capsys):
    out = tmp_path / "out"
    assert upscale(photo, "-o", out, "--model", model, "--num_samples", 1, "--format", suffix) == 0
    settings = read_metadata(out / f"photo_x4_seed0.{suffix}")
    x = torch.from_numpy(np.asarray(Image.open(out / f"photo_x4_seed0.{suffix}"), dtype=np.float64)) / 255
    y = torch.from_numpy(np.asarray(Image.open(photo), dtype=np.float64)) / 255
    error = (Downsampling(4)(x.permute(2, 0, 1)) - y.permute(2, 0, 1)).square().mean().item()
    assert settings["lr_psnr"] == pytest.approx(-10 * np.log10(error), abs=1e-2)
    assert ("lossy" in capsys.readouterr().out) == (suffix == "jpg")


def test_exif_is_copied_on_demand_only_and_into_results_that_were_finished_without(model, photo, tmp_path):
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    Image.open(photo).save(photo, exif=exif)
    for options in ([], ["--keep_exif"], []):
        upscale(photo, "-o", tmp_path / "out", "--model", model, "--num_samples", 1, *options)
        tags = Image.open(tmp_path / "out" / "photo_x4_seed0.png").getexif()
        assert (tags.get(0x010F) == "Maker") == bool(options)


def test_all_frames_of_an_animation_on_demand(model, photo, tmp_path):
    frames = [Image.open(photo).rotate(90 * turn) for turn in range(2)]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], lossless=True)
    arguments = ["--model", model, "--num_samples", 1]
    assert upscale(tmp_path / "a.webp", "-o", tmp_path / "one", *arguments) == 0
    assert (tmp_path / "one" / "a_x4_seed0.png").exists()
    assert upscale(tmp_path / "a.webp", "-o", tmp_path / "all", *arguments, "--all_frames") == 0
    names = sorted(path.name for path in (tmp_path / "all").iterdir() if "seed" in path.name)
    assert names == ["a_frame0000_x4_seed0.png", "a_frame0001_x4_seed0.png"]


@pytest.mark.parametrize(("outscale", "size"), [(2, (26, 18)), (3.5, (46, 32)), (8, (104, 72)), (16, (208, 144))])
def test_any_final_factor(outscale, size, model, photo, tmp_path, capsys):
    arguments = ["--model", model, "--num_samples", 2, "--outscale", outscale]
    assert upscale(photo, "-o", tmp_path / "out", *arguments) == 0
    assert Image.open(tmp_path / "out" / f"photo_x{outscale}_seed1.png").size == size
    assert Image.open(tmp_path / "out" / f"photo_x{outscale}_std.png").size == size
    shown = [float(line.split("LR-PSNR ")[1].split()[0]) for line in capsys.readouterr().out.splitlines()[:2]]
    assert min(shown) > (30 if outscale >= 4 else 20)


def test_factors_that_differ_have_names_that_differ(model, photo, tmp_path):
    for outscale in ("4", "4.0000001"):
        assert upscale(photo, "-o", tmp_path, "--model", model, "--num_samples", 1, "--outscale", outscale) == 0
    assert (tmp_path / "photo_x4_seed0.png").exists() and (tmp_path / "photo_x4.0000001_seed0.png").exists()


def test_exif_that_a_jpeg_has_no_room_for_is_left_out(model, photo, tmp_path, caplog):
    for name, note, comment in (("notes", 65000, 10), ("comments", 10, 65000)):
        exif = Image.Exif()
        exif[0x010F] = "Maker"
        exif[0x8769] = {0x9003: "2026:01:02 03:04:05", 0x927C: b"n" * note, 0x9286: b"c" * comment}
        Image.open(photo).save(tmp_path / f"{name}.jpg", exif=exif)
        arguments = ["--model", model, "--num_samples", 3, "--format", "jpg", "--keep_exif"]
        assert upscale(tmp_path / f"{name}.jpg", "-o", tmp_path / "out", *arguments) == 0
        found = tmp_path / "out" / f"{name}_x4_seed0.jpg"
        assert (Image.open(found).getexif().get(0x010F) == "Maker") == (name == "notes")
        assert read_metadata(found)["seed"] == 0
    told = [record.getMessage().split(" are left out")[0] for record in caplog.records]
    kinds = {"notes": "the maker's notes of a photograph's EXIF", "comments": "a photograph's EXIF"}
    results = [(tmp_path / "out" / f"{name}_x4_seed0.jpg", what) for name, what in kinds.items()]
    assert told == [f"{path}: {what}" for path, what in results]  # once for each photograph


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_pipes_and_links_in_a_circle_stop_nothing(model, photo, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    photo.rename(tmp_path / "in" / "photo.png")
    os.mkfifo(tmp_path / "in" / "pipe.png")
    (tmp_path / "in" / "loop.png").symlink_to(tmp_path / "in" / "loop.png")
    assert upscale(tmp_path / "in", "-o", tmp_path / "out", "--model", model, "--num_samples", 1) == 1
    output = capsys.readouterr()
    assert "3 images: 1 upscaled, 0 finished before, 2 failed" in output.out
    assert "pipe.png: not a regular file" in output.err and "loop.png" in output.err


@pytest.mark.slow
def test_work_goes_on_where_nobody_reads_what_is_printed(model, photo, tmp_path):
    command = [sys.executable, "-m", "hvae_sr.cli", "upscale", str(photo), "-o", str(tmp_path / "out")]
    command += ["--model", str(model), "--num_samples", "2", "--device", "cpu"]
    with open(tmp_path / "errors.txt", "w+b") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors)
        process.stdout.close()
        output(process)
        assert process.returncode == 0
    assert len(list((tmp_path / "out").iterdir())) == 4  # two samples, mean, map
    assert "Broken pipe" not in (tmp_path / "errors.txt").read_text()


def test_a_folder_in_place_of_a_result_is_refused_before_sampling(model, photo, tmp_path, capsys):
    (tmp_path / "out" / "photo_x4_mean.png").mkdir(parents=True)
    assert upscale(photo, "-o", tmp_path / "out", "--model", model, "--num_samples", 2, "--overwrite") == 1
    assert "photo_x4_mean.png is in the way, a folder" in capsys.readouterr().err
    assert len(list((tmp_path / "out").iterdir())) == 1


# Names


def test_only_names_that_collide_are_changed_and_only_files_of_one_name_are_refused(model, photo, tmp_path, capsys):
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    for name in ("in/a.png", "in/A.bmp", "in/b.png", "other/b.png"):
        Image.open(photo).save(tmp_path / name)
    inputs = [tmp_path / "in", tmp_path / "other"]
    assert upscale(*inputs, "-o", tmp_path / "out", "--model", model, "--num_samples", 1) == 1
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"a.png_x4_seed0.png", "A.bmp_x4_seed0.png", "b_x4_seed0.png"}
    output = capsys.readouterr()
    assert "4 images: 3 upscaled, 0 finished before, 1 failed" in output.out
    assert f"{tmp_path / 'other' / 'b.png'}: its results would replace those of" in output.err


@pytest.mark.parametrize("more", [[], ["--overwrite"]])
def test_a_result_does_not_replace_another_input(more, model, photo, tmp_path, capsys):
    options = ["--model", model, "--num_samples", 1]
    Image.open(photo).rotate(180).save(other := tmp_path / "other.png")
    assert upscale(other, *options) == 0
    second = (tmp_path / "other_x4_seed0.png").rename(tmp_path / "photo_x4_seed0.png")
    before = second.read_bytes()
    assert upscale(photo, second, *options, "--temperature", 0.1, *more) == 1
    why = "another input" if more else "made of another image"
    assert f"{photo}: {second} is in the way, {why}" in capsys.readouterr().err
    assert second.read_bytes() == before and (tmp_path / "photo_x4_seed0_x4_seed0.png").exists()
    assert upscale(photo, second, *options, "-o", tmp_path / "out") == 0


def test_the_same_command_goes_on_where_a_pattern_names_results_too(model, photo, tmp_path, capsys):
    """As `hvae-sr upscale *.png`, stopped after the first sample and given again."""
    options = ["--model", model, "--num_samples", 2]
    assert upscale(photo, *options) == 0
    first = tmp_path / "photo_x4_seed0.png"
    before = first.read_bytes()
    for name in ("seed1", "mean", "std"):
        (tmp_path / f"photo_x4_{name}.png").unlink()
    assert upscale(photo, first, *options) == 0
    assert first.read_bytes() == before and (tmp_path / "photo_x4_std.png").exists()
    assert "1 of the inputs are results of others of them, and left out" in capsys.readouterr().err
    for more in ([], ["-o", tmp_path / "out"]):
        assert upscale(*sorted(tmp_path.glob("*.png")), *options, *more) == 0  # all of it again
        assert upscale(tmp_path, *options, *more) == 0
    names = {"photo.png", *(f"photo_x4_{name}.png" for name in ("seed0", "seed1", "mean", "std"))}
    assert {path.name for path in tmp_path.glob("*.png")} == names
    assert {path.name for path in (tmp_path / "out").iterdir()} == names - {"photo.png"}


def test_results_of_inputs_of_one_name_are_told_apart(model, photo, tmp_path):
    for number, folder in enumerate((tmp_path / "a", tmp_path / "b")):
        folder.mkdir()
        Image.open(photo).rotate(90 * number, expand=True).save(folder / "photo.png")
    for _ in range(2):
        assert upscale(*sorted(tmp_path.glob("*/*.png")), "--model", model, "--num_samples", 1) == 0
    assert len(list(tmp_path.glob("*/*.png"))) == 4


def test_finished_results_keep_their_names_when_an_input_of_the_same_name_comes(model, photo, tmp_path, capsys):
    options = ["--model", model, "--num_samples", 1, "-o", tmp_path / "out"]
    (tmp_path / "in").mkdir()
    photo.rename(tmp_path / "in" / "photo.png")
    assert upscale(tmp_path / "in", *options) == 0
    before = (tmp_path / "out" / "photo_x4_seed0.png").stat().st_mtime_ns
    Image.open(tmp_path / "in" / "photo.png").save(tmp_path / "in" / "photo.bmp")
    for _ in range(2):
        assert upscale(tmp_path / "in", *options) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"photo_x4_seed0.png", "photo.bmp_x4_seed0.png"}
    assert (tmp_path / "out" / "photo_x4_seed0.png").stat().st_mtime_ns == before


def test_names_that_differ_in_case_alone_are_two_where_the_system_says_so(model, photo, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    Image.open(photo).rotate(180).save(tmp_path / "in" / "A.png")
    Image.open(photo).save(tmp_path / "in" / "a.png")
    if len(list((tmp_path / "in").iterdir())) == 1:
        pytest.skip("this file system does not tell cases apart")
    assert upscale(tmp_path / "in", "--model", model, "--num_samples", 1, "-o", tmp_path / "out") == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a.png_x4_seed0.png", "A.png_x4_seed0.png"}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_source_that_cannot_be_read_again_stops_nothing(model, photo, tmp_path, capsys):
    assert upscale(photo, "--model", model, "--num_samples", 1) == 0
    Image.open(photo).save(fine := tmp_path / "fine.png")
    photo.unlink()
    os.mkfifo(photo)
    result = tmp_path / "photo_x4_seed0.png"
    assert upscale(photo, result, fine, "--model", model, "--num_samples", 1) == 1
    assert (tmp_path / "fine_x4_seed0.png").exists() and "1 failed" in capsys.readouterr().out


def test_a_finished_result_may_be_an_input_alone(model, photo, tmp_path, capsys):
    options = ["--model", model, "--num_samples", 1]
    assert upscale(photo, *options) == 0
    assert upscale(tmp_path / "photo_x4_seed0.png", *options) == 0
    assert (tmp_path / "photo_x4_seed0_x4_seed0.png").exists()


def test_a_folder_may_be_called_like_an_option(model, photo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "version").mkdir()
    photo.rename(tmp_path / "version" / "photo.png")
    assert parse(["version"]).inputs == ["version"]


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_name_through_a_link_is_another_file(model, photo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "other" / "deep")
    Image.open(photo).rotate(90, expand=True).save(tmp_path / "other" / "photo.png")
    plan_ = plan(argparse.Namespace(inputs=["photo.png", "link/../photo.png"], output_dir=None, recursive=False,
                                    format="png", crop=None, all_frames=False))  # fmt: skip
    assert len(plan_.sources) == 2 and not plan_.errors


def test_a_folder_of_results_alone_is_told_from_an_empty_one(model, photo, tmp_path, capsys):
    assert upscale(photo, "-o", tmp_path / "out", "--model", model, "--num_samples", 1) == 0
    assert upscale(tmp_path / "out", "--model", model) == 2
    assert "no images in" in (error := capsys.readouterr().err) and "but 1 results of this command" in error


def test_a_file_that_is_named_in_two_ways_is_one(model, photo, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert upscale("photo.png", photo, Path("..") / tmp_path.name / "photo.png", "-o", "out", "--model", model) == 0
    assert len(list((tmp_path / "out").iterdir())) == 7  # five samples, mean and map
    assert "failed" not in capsys.readouterr().out


def test_names_that_are_too_long_for_results_are_refused_before_sampling(model, photo, tmp_path, capsys):
    long = photo.rename(tmp_path / f"{'ü' * 122}.png")
    assert upscale(long, "-o", tmp_path / "out", "--model", model, "--num_samples", 1) == 1
    assert "names of 257 bytes" in (error := capsys.readouterr().err) and "255" in error
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="names are text there")
def test_names_that_the_terminal_cannot_print_stop_nothing(model, photo, tmp_path, monkeypatch):
    os.rename(photo, os.fsencode(tmp_path) + b"/\xff\xe6\x97\xa5\n\x1b[2J.png")
    screen = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(sys, "stderr", screen)
    assert upscale(tmp_path, "--model", model, "--num-samples", 2) == 0
    screen.seek(0)
    assert screen.read().count("????[2J_x4_") == 4 and screen.errors == "strict"


def test_where_there_is_neither_terminal_nor_file_to_print_to_nothing_stops(model, photo, tmp_path, monkeypatch):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)  # as pythonw has it
    assert upscale(photo, "-o", tmp_path / "out", "--model", model, "--num-samples", 1) == 0
    assert upscale(tmp_path / "none.png", "--model", model) == 2
    assert sys.stdout is None


# Time and details


def test_a_crop_is_the_sample_of_that_part_alone(model, photo, tmp_path, capsys):
    options = ["--model", model, "--num_samples", 1]
    assert upscale(photo, "-o", tmp_path, *options, "--crop", "2,1,8,6") == 0
    Image.open(photo).crop((2, 1, 10, 7)).save(tmp_path / "part.png")
    upscale(tmp_path / "part.png", *options)
    first, second = (Image.open(tmp_path / f"{name}_x4_seed0.png") for name in ("photo_crop2-1-8-6", "part"))
    assert first.tobytes() == second.tobytes()
    upscale(photo, "-o", tmp_path / "like", "--model", model, "--like", tmp_path / "photo_crop2-1-8-6_x4_seed0.png")
    assert Image.open(tmp_path / "like" / "photo_crop2-1-8-6_x4_seed0.png").tobytes() == first.tobytes()
    assert upscale(photo, "-o", tmp_path, *options, "--crop", "9,1,8,6") == 1
    assert "`--crop` must lie in the image, of 13x9" in capsys.readouterr().err


def test_work_of_more_than_a_minute_is_announced_with_what_would_be_faster(model, photo, tmp_path, capsys, monkeypatch):
    options = [photo, "-o", tmp_path / "out", "--model", model, "--num_samples", 2]
    upscale(*options)
    assert "will take" not in capsys.readouterr().err
    monkeypatch.setattr("hvae_sr.cli.upscale.announce", functools.partial(announce, worth_telling=0, probes=0))
    upscale(*options, "--overwrite")
    said = capsys.readouterr().err
    assert "2 samples of 52x36 pixels will take about" in said and "--crop" in said and "--outscale" in said
    upscale(*options)  # finished before
    assert "will take" not in capsys.readouterr().err
    tifffile.imwrite(tmp_path / "float.tif", np.zeros((7, 11, 3), np.float32), photometric="rgb")  # not by Pillow
    exif = Image.Exif()
    exif[274] = 6  # a quarter turn
    Image.new("RGB", (12, 8)).save(tmp_path / "turned.jpg", exif=exif)
    for name, size in {"float.tif": "44x28", "turned.jpg": "32x48"}.items():
        upscale(tmp_path / name, *options[1:])
        assert f"2 samples of {size} pixels will take about" in capsys.readouterr().err


def test_time_is_estimated_by_the_pixels_of_all_passes_and_windows(make_pipeline):
    pipe = make_pipeline()
    pixels = [
        evaluated_pixels(pipe, size, argparse.Namespace(outscale=outscale, max_memory=memory, num_samples=1))
        for size, outscale, memory in (
            ((8, 8), 4, None),
            ((8, 8), 16, None),
            ((4000, 3000), 4, 2**40),
            ((4000, 3000), 4, 2**29),
        )
    ]
    assert pixels[0] == 32**2 and pixels[1] == 32**2 + 128**2
    assert 16000 * 12000 < pixels[2] < 2 * 16000 * 12000 and pixels[3] == 0  # refused for its memory
    assert [duration(seconds) for seconds in (90, 1560, 7300, 200000)] == [
        "90 seconds",
        "26 minutes",
        "2 hours",
        "2 days",
    ]


@pytest.mark.parametrize("disabled", ["", "1"])
def test_bars_share_no_line_with_results_and_tqdm_disable_is_obeyed(disabled, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TQDM_DISABLE", disabled)
    with progress(2, "photo.png") as bar:
        bar.update(1)
        print_line("out/photo.png  LR-PSNR 60 dB")
    lines = screen.getvalue().split("\n")
    assert ("photo.png:" in screen.getvalue()) == (not disabled)
    assert lines[0].split("\r")[-1] == "out/photo.png  LR-PSNR 60 dB"


@pytest.mark.parametrize(("temperature", "low", "high"), [(0, 1, 1), (1, 5, 255)])
def test_the_scale_of_the_map_is_that_of_its_image_and_is_told(temperature, low, high, model, photo, tmp_path, capsys):
    upscale(photo, "-o", tmp_path, "--model", model, "--num_samples", 3, "--temperature", temperature)
    most = read_metadata(tmp_path / "photo_x4_std.png")["grey_levels_of_the_lightest"]
    assert f"from 0 (black) to {most:g} grey levels of 255" in capsys.readouterr().out
    assert low <= most <= high
    brightest = np.asarray(Image.open(tmp_path / "photo_x4_std.png")).max()
    assert brightest >= 252 if temperature else brightest == 3


# Folders


@pytest.fixture
def folder(photo, tmp_path):
    for name in ("a.png", "sub/a.png", "sub/deep/b.png"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.open(photo).save(path)
    return tmp_path / "in"


def test_sub_folders_are_kept_and_finished_images_are_skipped(folder, model, tmp_path, capsys):
    arguments = [folder, "-o", tmp_path / "out", "--model", model, "--num_samples", 2, "--recursive"]
    assert upscale(*arguments) == 0
    results = {path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*seed0.png")}
    assert {str(path) for path in results} == {"a_x4_seed0.png", "sub/a_x4_seed0.png", "sub/deep/b_x4_seed0.png"}
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.png")}
    (tmp_path / "out" / "sub" / "a_x4_std.png").unlink()  # interrupted before the last file
    assert upscale(*arguments) == 0
    assert "3 images: 1 upscaled, 2 finished before, 0 failed" in capsys.readouterr().out
    again = {path for path, time in times.items() if path.stat().st_mtime_ns != time}
    assert {path.name for path in again} == {f"a_x4_{kind}.png" for kind in ("seed0", "seed1", "mean", "std")}
    assert {path.parent.name for path in again} == {"sub"}


def test_other_settings_are_redone_and_results_of_another_image_are_kept(folder, model, photo, tmp_path, capsys):
    arguments = [folder / "a.png", "-o", tmp_path / "out", "--model", model, "--num_samples", 1]
    upscale(*arguments)
    assert upscale(*arguments, "--temperature", 0.3) == 0
    assert "redone" in capsys.readouterr().out
    result = tmp_path / "out" / "a_x4_seed0.png"
    assert read_metadata(result)["temperature"] == 0.3
    Image.open(photo).rotate(180).save(folder / "sub" / "a.png")
    before, other = result.read_bytes(), [folder / "sub" / "a.png", *arguments[1:], "--temperature", 0.3]
    assert upscale(*other) == 1 and "made of another image (a.png)" in capsys.readouterr().err
    assert result.read_bytes() == before
    assert upscale(*other, "--overwrite") == 0 and result.read_bytes() != before


def test_samples_of_other_orientations_are_redone_and_earlier_results_are_kept(model, photo, tmp_path, capsys):
    options = [photo, "-o", tmp_path / "a", "--model", model, "--seed", 3, "--num_samples", 1]
    first = tmp_path / "a" / "photo_x4_seed3.png"
    contents = []
    for ensemble in ([], ["--self_ensemble"], []):
        upscale(*options, *ensemble)
        contents.append(first.read_bytes())
        capsys.readouterr()
        upscale(*options, *ensemble)
        assert "finished before" in capsys.readouterr().out
    assert contents[0] == contents[2] != contents[1]
    for path in (tmp_path / "a").glob("*.png"):  # as a version wrote them that knew of no orientations
        settings = read_metadata(path)
        settings.pop("self_ensemble", None)
        save_image(Image.open(path), path, settings)
    upscale(*options)
    assert "finished before" in capsys.readouterr().out


def test_a_file_of_the_users_is_not_overwritten(folder, model, photo, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    Image.open(photo).save(tmp_path / "out" / "a_x4_mean.png")
    arguments = [folder / "a.png", "-o", tmp_path / "out", "--model", model, "--num_samples", 2]
    assert upscale(*arguments) == 1
    assert "in the way" in capsys.readouterr().err and len(list((tmp_path / "out").iterdir())) == 1
    assert upscale(*arguments, "--overwrite") == 0


def test_links_in_the_output_folder_lead_nowhere(folder, model, photo, tmp_path, capsys):
    out, other = tmp_path / "out", tmp_path / "other"
    out.mkdir()
    other.mkdir()
    (out / "sub").symlink_to(other)
    victim = tmp_path / "victim.png"
    Image.open(photo).save(victim)
    before = victim.read_bytes()
    (out / "a_x4_seed0.png").symlink_to(victim)
    arguments = [folder, "-o", out, "--model", model, "--num_samples", 1, "--recursive", "--overwrite"]
    assert upscale(*arguments) == 1
    assert "leads out of the output folder" in capsys.readouterr().err
    assert list(other.iterdir()) == [] and victim.read_bytes() == before
    assert not (out / "a_x4_seed0.png").is_symlink()


# Ranking


def test_finished_samples_are_ranked_by_what_their_files_tell(model, photo, tmp_path, capsys):
    options = [photo, "-o", tmp_path / "out", "--model", model, "--num_samples", 3]
    upscale(*options, "--rank", "lr_psnr_unprojected")
    ranks = [line for line in capsys.readouterr().out.splitlines() if line.startswith("rank ")]
    upscale(*options, "--rank", "lr_psnr_unprojected")
    again = capsys.readouterr().out
    assert len(ranks) == 3 and "finished before" in again and "\n".join(ranks) in again
    upscale(*options, "--rank", "log_density")
    assert "not ranked" in (said := capsys.readouterr().out) and "--overwrite" in said and "rank 1" not in said
    path = tmp_path / "out" / "photo_x4_seed1.png"  # as a version wrote it that did not tell
    settings = read_metadata(path)
    del settings["lr_psnr_unprojected"]
    save_image(Image.open(path), path, settings)
    upscale(*options, "--rank", "lr_psnr_unprojected")
    assert "not ranked" in (said := capsys.readouterr().out) and "rank 1" not in said


def test_ranks_by_latents_are_refused_for_several_tiles_before_sampling(make_pipeline, photo, tmp_path, capsys):
    make_pipeline(bias_type="spatial").save_pretrained(tmp_path / "fixed")
    options = ["--model", tmp_path / "fixed", "--num_samples", 1, "--tile", "--rank"]
    assert upscale(photo, "-o", tmp_path / "out", *options, "log_density") == 1
    assert "`latents` and `noise` cannot be given or returned" in capsys.readouterr().err
    assert not any((tmp_path / "out").iterdir())
    assert upscale(photo, "-o", tmp_path / "out", *options, "lr_psnr_unprojected") == 0


# Repeating


def test_like_repeats_the_settings_of_a_file(model, photo, tmp_path, capsys):
    options = ["--temperature", 0.4, "--seed", 5, "--num_samples", 2, "--outscale", 3, "--no_consistency"]
    options += ["--bits", 16]
    upscale(photo, "-o", tmp_path / "a", "--model", model, *options)
    first = tmp_path / "a" / "photo_x3_seed6.png"
    assert upscale(photo, "-o", tmp_path / "b", "--model", model, "--like", first) == 0
    assert (tmp_path / "b" / first.name).read_bytes() == first.read_bytes()
    assert not (tmp_path / "b" / "photo_x3_seed5.png").exists()
    mean = tmp_path / "a" / "photo_x3_mean.png"
    assert upscale(photo, "-o", tmp_path / "c", "--model", model, "--like", mean) == 0
    assert (tmp_path / "c" / mean.name).read_bytes() == mean.read_bytes()


def test_like_repeats_results_of_thousands_of_samples(model, photo, tmp_path):
    first = tmp_path / "a" / "photo_x4_mean.png"
    upscale(photo, "-o", tmp_path / "a", "--model", model, "--num_samples", 2)
    settings = {**read_metadata(first), "seeds": list(range(3000))}
    save_image(Image.open(first), first, metadata=settings)
    assert _settings_in(str(first))["seeds"] == list(range(3000))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("fast", [torch.bfloat16, None])
def test_like_computes_in_the_dtype_of_the_file_on_any_machine(dtype, fast, model, photo, tmp_path, monkeypatch):
    options = ["--model", model, "--num_samples", 1]
    upscale(photo, "-o", tmp_path / "a", *options, "--dtype", dtype)
    monkeypatch.setattr("hvae_sr.pipelines.computing.fast_dtype", lambda device: fast)
    first = tmp_path / "a" / "photo_x4_seed0.png"
    assert upscale(photo, "-o", tmp_path / "b", "--model", model, "--like", first) == 0
    assert (tmp_path / "b" / first.name).read_bytes() == first.read_bytes()


def test_like_repeats_the_orientations_of_a_sample(model, photo, tmp_path, capsys):
    options = ["--model", model, "--seed", 3, "--num_samples", 1]
    upscale(photo, "-o", tmp_path / "a", *options, "--self_ensemble")
    first = tmp_path / "a" / "photo_x4_seed3.png"
    assert upscale(photo, "-o", tmp_path / "b", "--model", model, "--like", first) == 0
    assert (tmp_path / "b" / first.name).read_bytes() == first.read_bytes()
    upscale(photo, "-o", tmp_path / "c", *options)
    assert (tmp_path / "c" / first.name).read_bytes() != first.read_bytes()
    assert upscale(photo, "-o", tmp_path / "d", *options, "--self_ensemble", "--rank", "log_density") == 2
    assert "`--self-ensemble`" in capsys.readouterr().err


def test_like_refuses_other_weights_strangers_and_models_that_a_file_names(model, photo, tmp_path, capsys):
    upscale(photo, "-o", tmp_path / "a", "--model", model, "--num_samples", 1)
    first = tmp_path / "a" / "photo_x4_seed0.png"
    assert upscale(photo, "-o", tmp_path / "b", "--like", first) == 2
    assert "name it with `--model`" in capsys.readouterr().err
    assert upscale(photo, "-o", tmp_path / "b", "--model", "natural-x4", "--like", first) == 2
    assert "other weights" in capsys.readouterr().err
    assert upscale(photo, "-o", tmp_path / "b", "--model", model, "--like", photo) == 2
    assert "does not hold the settings" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_like_warns_of_another_version(model, photo, tmp_path, capsys, monkeypatch):
    upscale(photo, "-o", tmp_path / "a", "--model", model, "--num_samples", 1)
    monkeypatch.setattr("hvae_sr.__version__", "9.9")
    first = tmp_path / "a" / "photo_x4_seed0.png"
    assert upscale(photo, "-o", tmp_path / "b", "--model", model, "--like", first) == 0
    assert "is of version" in capsys.readouterr().err


# Measuring


def test_benchmark_looks_first_whether_its_figures_can_be_written(model, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    options = ["benchmark", "--model", str(model), "--device", "cpu", "--side", "8", "--num_samples", "1"]
    options += ["--repeats", "1", "--batch_sizes", "1", "--sizes", "16", "--json"]
    with monkeypatch.context() as patch:
        patch.setattr(SuperResolutionPipeline, "__call__", lambda *given, **options: pytest.fail("measured"))
        for path in (tmp_path, tmp_path / "file" / "figures.json"):
            assert main([*options, str(path)]) == 2
            assert "`--json`" in capsys.readouterr().err
    path = tmp_path / "made" / "figures.json"
    assert main([*options, str(path)]) == 0
    assert json.loads(path.read_text())["sizes"][0]["size"] == 16 and list(path.parent.iterdir()) == [path]
    capsys.readouterr()
    assert main([*options, str(path), "--dtype", "bfloat16"]) == 0
    assert "float32" not in capsys.readouterr().out.replace("bfloat16", "")


# Which model


@pytest.fixture
def two_models(model, tmp_path_factory, monkeypatch):
    """The tiny model for clean inputs, and one for the others, which does not know H."""
    pipe = SuperResolutionPipeline.from_pretrained(model)
    folder = tmp_path_factory.mktemp("models") / "any"
    SuperResolutionPipeline(pipe.vdvae, pipe.lr_encoder, default_temperature=0.4, consistency="none").save_pretrained(
        folder
    )
    monkeypatch.setattr("hvae_sr.checkpoints.names.DEFAULT", str(model))
    monkeypatch.setattr("hvae_sr.checkpoints.names.PHOTO", str(folder))
    return str(model), str(folder)


@pytest.fixture
def inputs(tmp_path):
    """A clean photograph, the same as a small JPEG, and one too small to tell."""
    folder = tmp_path / "in"
    folder.mkdir()
    clean = Image.fromarray(skimage.data.chelsea()).resize((150, 100), Image.Resampling.BICUBIC)
    clean.save(folder / "clean.png")
    clean.save(folder / "small.jpg", quality=40)
    clean.resize((20, 20)).save(folder / "tiny.png")
    return folder


def test_the_look_of_an_input_chooses_its_model_in_one_line_that_says_why(two_models, inputs, tmp_path, capsys):
    default, other = two_models
    options = ["-o", tmp_path / "out", "--num_samples", 1]
    assert upscale(inputs, *options) == 0
    said = capsys.readouterr()
    assert f"clean.png: by {default}, as it looks clean\n" in said.out
    assert (
        f"small.jpg: by {other}, as it shows the 8x8 blocks of strong JPEG compression (`--model {default}`" in said.out
    )
    assert f"tiny.png: by {default}, as it is too small" in said.out and "use a better copy" not in said.err
    found = {path.name.split("_")[0]: read_metadata(path) for path in (tmp_path / "out").iterdir()}
    assert [found[name]["model"] for name in ("clean", "small", "tiny")] == [default, other, default]
    assert [found[name]["temperature"] for name in ("clean", "small")] == [0.7, 0.4]
    assert [found[name]["consistent"] for name in ("clean", "small")] == [True, False]
    assert upscale(inputs, *options) == 0
    said = capsys.readouterr().out
    assert "3 images: 0 upscaled, 3 finished before" in said and "as it" not in said


def test_where_ranks_are_asked_for_the_model_of_one_pass_draws(two_models, inputs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("hvae_sr.checkpoints.names.PHOTO_SCALE", 2)  # one pass of 4 is two of that
    options = ["-o", tmp_path / "out", "--num_samples", 1, "--rank", "lr_psnr_unprojected"]
    assert upscale(inputs / "small.jpg", *options) == 0
    said = capsys.readouterr().out
    assert f"by {two_models[0]}, though it shows the 8x8 blocks" in said and "compares samples of one pass" in said


@pytest.mark.parametrize("given", [["--model"], ["--temperature", 0.1, 0.2, 0.3]])
def test_a_model_or_a_temperature_of_each_of_its_groups_overrides_the_look(given, two_models, inputs, tmp_path, capsys):
    options = [*given, two_models[0]] if given == ["--model"] else given
    assert upscale(inputs / "small.jpg", "-o", tmp_path / "out", "--num_samples", 1, *options) == 0
    said = capsys.readouterr()
    assert "as it" not in said.out and "use a better copy" in said.err
    assert read_metadata(tmp_path / "out" / "small_x4_seed0.png")["model"] == two_models[0]


def test_a_wrong_option_shows_before_anything_is_drawn_where_the_look_chooses(two_models, inputs, tmp_path, capsys):
    assert upscale(inputs, "-o", tmp_path / "out", "--temperature", -1) == 2
    assert "`--temperature` must be" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("words, name", [(["", "-o", "out"], "INPUT"), (["a.png", "-o", ""], "--output-dir")])
def test_an_empty_argument_is_not_the_current_folder(words, name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("a.png")
    assert main(["upscale", *words]) == 2
    assert f"`{name}` is empty" in capsys.readouterr().err and [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_a_path_that_no_file_can_have_does_not_stop_the_others(model, photo, tmp_path, capsys):
    assert upscale("a" * 300 + ".jpg", photo, "-o", tmp_path, "--model", model, "--num_samples", 1) == 1
    assert "too long" in capsys.readouterr().err and (tmp_path / "photo_x4_seed0.png").is_file()


def test_an_animation_that_ends_early_is_told_and_its_first_frame_drawn(model, photo, tmp_path, capsys):
    frames = [Image.effect_noise((24, 20), 20 + number) for number in range(3)]
    frames[0].save(tmp_path / "whole.gif", save_all=True, append_images=frames[1:])
    content = (tmp_path / "whole.gif").read_bytes()
    (tmp_path / "a.gif").write_bytes(content[: len(content) * 8 // 10])
    arguments = ["-o", tmp_path / "out", "--model", model, "--num_samples", "1", "--outscale", "4", "--all_frames"]
    assert upscale(tmp_path / "a.gif", *arguments) == 1
    assert "a.gif" in capsys.readouterr().err and list((tmp_path / "out").glob("a_x4_seed0.png"))


def test_results_larger_than_what_is_read_are_finished_and_recognised(model, tmp_path, monkeypatch, capsys):
    Image.effect_noise((16, 12), 30).convert("RGB").save(tmp_path / "a.png")
    monkeypatch.setattr("hvae_sr.images.reading.MAX_PIXELS", 1000)  # of the input 192, of the result 3072
    for suffix in ("jpg", "png"):
        command = ["--model", model, "--num_samples", "2", "--outscale", "4", "--format", suffix]
        for said in ("mean of 2 samples", "finished before"):
            assert upscale(tmp_path / "a.png", *command, "-o", tmp_path / "out") == 0
            assert said in capsys.readouterr().out
        like = ["-o", tmp_path / "like", "--like", tmp_path / f"out/a_x4_seed1.{suffix}", "--model", model]
        assert upscale(tmp_path / "a.png", *like) == 0


def test_a_folder_in_the_place_of_the_file_is_told_before_the_export(model, tmp_path, capsys):
    (tmp_path / "a.onnx").mkdir()
    assert main(["export", str(tmp_path / "a.onnx"), "--model", str(model)]) == 2
    assert "must be a file, got the folder" in capsys.readouterr().err


# What is wrong is told before anything is computed, by the name of the option.


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(9):
        save_image(Image.effect_noise((16, 16), 20 + number).convert("RGB"), folder / f"{number}.png")
    return folder


@pytest.mark.parametrize(
    "command, named",
    [
        (["analyse", "reconstruction", "--num-images", "0", "-o", "out"], "`--num-images` must be at least 1, got 0"),
        (["analyse", "distance", "--images-per-code", "1", "-o", "out"], "`--images-per-code` must be at least 2"),
        (["analyse", "distance", "--threshold", "nan", "-o", "out"], "`--threshold` must be a number"),
        (["analyse", "distance", "--scales", "4", "0", "-o", "out"], "`--scales` must be factors of at least 1"),
        (["analyse", "temperature", "--temperatures", "1", "-1", "-o", "out"], "`--temperatures` must be finite"),
        (["demo", "--port", "65536"], "`--port` must be between 0 and 65535, got 65536"),
        (["analyse", "samples", "--size", "0", "-o", "out"], "`--size` must be at least 1"),
        (["analyse", "distance", "-o", "photo.png/out"], "`--output-dir`: cannot write"),
        (["analyse", "levels", "--lpips-weights", "photo.png", "-o", "out"], "`--lpips-weights`: photo.png is no"),
        (["figures", "r.json", "-o", "photo.png/out"], "`--output-dir`: cannot write"),
        (["results", "r.json", "-o", "images"], "`--output` must be a file"),
        (["convert", "x.pth", "--preset", "edsr-x4", "-o", "photo.png/out"], "`--output-dir`: cannot write"),
        (["evaluate", "--data", "images", "-o", "r.json", "--write-pairs", "photo.png/out"], "`--write-pairs`: cannot"),
        (["evaluate", "--data", "images", "-o", "r.json", "--write-pairs", "w", "--scale-factor", "0"], "scale_factor"),
        (["export", "a.onnx", "--device", "cuda"], "`--device` must be cpu"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_named_and_leaves_nothing(
    command, named, model, photo, images, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    own = ["--model", str(model)] if command[0] in ("analyse", "export") else []
    assert main([*command, *own]) == 2
    assert named.replace("_", "-") in capsys.readouterr().err.replace("_", "-")
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == before


def test_tables_are_printed_line_by_line(model, images, tmp_path, capsys):
    options = ["--model", str(model), "--device", "cpu"]
    made = ["--data", str(images), "--num-images", "1", "--size", "16", "--num-samples", "1", "--temperatures", "1"]
    assert main(["evaluate", *options, *made, "-o", str(tmp_path / "r.json")]) == 0
    small = ["--side", "8", "--num-samples", "1", "--repeats", "1", "--batch-sizes", "1", "--sizes", "1", "18"]
    assert main(["benchmark", *options, *small]) == 0
    printed = capsys.readouterr().out
    assert "?" not in printed and "|---|---|---|\n| float32 " in printed and "    8x8 " in printed
    assert "   16x16 " in printed  # of y of 4x4, as it is computed


@pytest.mark.slow
def test_every_command_goes_on_where_nobody_reads_what_it_prints(model, images, tmp_path):
    options = ["--model", str(model), "--device", "cpu", "--data", str(images), "--size", "16", "--num-samples", "2"]
    for command in (
        ["evaluate", *options, "--temperatures", "1", "-o", str(tmp_path / "r.json")],
        ["results", str(tmp_path / "r.json"), "-o", str(tmp_path / "r.md")],
        ["calibrate", *options, "-o", str(tmp_path / "calibrated")],
    ):
        process = subprocess.Popen([sys.executable, "-m", "hvae_sr.cli", *command], stdout=subprocess.PIPE)
        process.stdout.close()
        assert process.wait() == 0, command


def test_names_of_files_that_a_c_locale_does_not_know_are_written_as_they_are(tmp_path):
    write_atomically("# odd \udcc3\udcbc\n", tmp_path / "r.md")
    assert (tmp_path / "r.md").read_text("utf-8") == "# odd ü\n"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_work_goes_on_where_nobody_reads(stream, monkeypatch, tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as closed:
        monkeypatch.setattr(sys, stream, closed)
        for _ in range(2):
            (print_line if stream == "stdout" else warn)("words")


def test_distances_of_a_model_with_taps_are_of_bicubic_interpolation(make_pipeline, tmp_path, capsys):
    pipe = make_pipeline()
    SuperResolutionPipeline(pipe.vdvae, pipe.lr_encoder, downsampling_kernel=[0.25] * 4).save_pretrained(tmp_path / "m")
    command = ["analyse", "distance", "--model", str(tmp_path / "m"), "--scales", "1", "4", "8", "--num-codes", "1"]
    assert main([*command, "--images-per-code", "2", "-o", str(tmp_path / "out"), "--device", "cpu"]) == 0
    assert "small by bicubic interpolation" in capsys.readouterr().err
