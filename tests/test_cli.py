"""The command line: what it writes, what it prints, and how it refuses."""

import argparse
import functools
import io
import json
import os
import shlex
import shutil
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


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def upscale(model, out, capsys):
    """Runs the command, of the tiny model, into `out` and one sample if not told otherwise; gives what it printed."""

    def run_it(*arguments, status=0, **options):
        options = {"output_dir": out, "model": model, "num_samples": 1, "device": "cpu", **options}
        named = [part for name, value in options.items() if value is not None for part in (f"--{name}", value)]
        assert main(["upscale", *map(str, [*arguments, *named])]) == status, capsys.readouterr().err
        return capsys.readouterr()

    return run_it


def names_in(folder):
    return {path.name for path in folder.iterdir()}


def lr_psnr(result, given):
    """dB between what two files hold, the first made small."""
    x, y = (
        torch.from_numpy(np.asarray(Image.open(path), np.float64)).permute(2, 0, 1) / 255 for path in (result, given)
    )
    return -10 * np.log10((Downsampling(4)(x) - y).square().mean().item())


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


def test_upscale_writes_samples_mean_and_uncertainty_at_exactly_four_times_the_size(upscale, photo, out):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.open(photo).save(photo, icc_profile=profile)
    assert upscale(photo, num_samples=3, seed=7).out.count("LR-PSNR") == 3
    assert names_in(out) == {f"photo_x4_{what}.png" for what in ("seed7", "seed8", "seed9", "mean", "std")}
    assert {Image.open(path).size for path in out.iterdir()} == {(52, 36)}
    for name in ("seed7", "mean"):
        assert Image.open(out / f"photo_x4_{name}.png").info.get("icc_profile") == profile


@pytest.mark.parametrize("suffix", ["png", "webp", "jpg", "tiff"])
def test_a_file_tells_how_it_was_made_and_its_lr_psnr_is_that_of_the_file(suffix, upscale, photo, out):
    said = upscale(photo, format=suffix, temperature=0.5).out
    settings = read_metadata(out / f"photo_x4_seed0.{suffix}")
    assert (settings["seed"], settings["temperature"], settings["version"]) == (0, 0.5, __version__)
    assert settings["lr_psnr"] == pytest.approx(lr_psnr(out / f"photo_x4_seed0.{suffix}", photo), abs=1e-3)
    assert ("lossy" in said) == (suffix == "jpg")


def test_one_bad_file_does_not_stop_the_others(upscale, photo, tmp_path, out):
    (tmp_path / "z.png").write_bytes(b"not an image")
    missing = "a" * 300 + ".jpg"  # a path that no file can have
    said = upscale(missing, photo, tmp_path / "z.png", status=1)
    assert "z.png" in said.err and "too long" in said.err
    assert "3 images: 1 upscaled, 0 finished before, 2 failed" in said.out and names_in(out) == {"photo_x4_seed0.png"}


@pytest.mark.parametrize(("name", "side"), [("webp", 4100), ("jpg", 16400)])
def test_sides_that_a_format_cannot_hold_are_refused_before_sampling(name, side, upscale, tmp_path, out):
    Image.new("RGB", (side, 2), "teal").save(tmp_path / "wide.png")
    error = upscale(tmp_path / "wide.png", format=name, status=1).err
    assert f"`--format` {name}" in error and f"{4 * side}x8" in error and not names_in(out)


# What is wrong is told in one line before anything is computed, by the name of the option.


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(9):
        save_image(Image.effect_noise((16, 16), 20 + number).convert("RGB"), folder / f"{number}.png")
    return folder


@pytest.fixture
def wrong(model, photo, images, tmp_path, monkeypatch):
    """The folder that the command is called in: the tiny model, images, and files that are none."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model, "tiny")
    shutil.copytree(model, "broken")
    weights = Path("broken/vdvae/diffusion_pytorch_model.safetensors")
    weights.write_bytes(weights.read_bytes()[:200])
    Path("text.png").write_text("hello")
    Path("none.png").write_bytes(b"")
    Image.new("RGB", (1, 1)).save("one.png")
    Image.new("RGB", (40, 40)).save("whole.png")
    Path("cut.png").write_bytes(Path("whole.png").read_bytes()[:60])
    Path("Empty").mkdir()
    Path("a.onnx").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    "command, named",
    [
        ("upscale missing.png -o out", "missing.png"),
        ("upscale text.png -o out", "text.png"),
        ("upscale none.png -o out", "none.png"),
        ("upscale one.png -o out", "one.png"),
        ("upscale cut.png -o out", "cut.png"),
        ("upscale photo.png -o out --num_samples 0", "`--num-samples`"),
        ("upscale photo.png -o out --temperature -1", "temperature"),
        ("upscale photo.png -o out --temperature nan", "temperature"),
        ("upscale photo.png -o out --batch_size 0", "`--batch-size`"),
        ("upscale photo.png -o out -n no-such", "no model 'no-such': not a folder, not a Hub id (owner/name), and "),
        ("upscale photo.png -o out --model no-such", ", natural-x4, "),
        ("upscale photo.png -o out --model broken", "broken"),
        ("upscale photo.png -o out --outscale 0", "outscale"),
        ("upscale photo.png -o out --outscale nan", "outscale"),
        ("upscale photo.png -o out --max_memory much", "`--max-memory`"),
        ("upscale photo.png -o out --crop 1,2,3", "X,Y,W,H"),
        ("upscale photo.png -o out -n 5", "`--num-samples 5`"),
        ("upscale photo.png -o out --device nonsense", "nonsense"),
        ("upscale photo.png -o out --device meta", "meta"),
        ("upscale photo.png -o out --bits 16 --format jpg", "`--bits` 16, as given or as `--like` has it, goes with "
         "`--format` png or tiff; jpg holds 8"),
        ("upscale photo.png -o result.png", "`--output-dir` must be a folder"),
        ("upscale photo.png -o text.png/sub", "`--output-dir`"),
        ("upscale '' -o out", "`INPUT` is empty"),
        ("upscale photo.png -o ''", "`--output-dir` is empty"),
        ("evaluate --data Empty -o r.json", "Empty"),
        ("evaluate --data images -o r.json --write-pairs photo.png/out", "`--write-pairs`: cannot"),
        ("evaluate --data images -o r.json --write-pairs w --scale-factor 0", "scale_factor"),
        ("analyse reconstruction --num-images 0 -o out", "`--num-images` must be at least 1, got 0"),
        ("analyse distance --images-per-code 1 -o out", "`--images-per-code` must be at least 2"),
        ("analyse distance --threshold nan -o out", "`--threshold` must be a number"),
        ("analyse distance --scales 4 0 -o out", "`--scales` must be factors of at least 1"),
        ("analyse temperature --temperatures 1 -1 -o out", "`--temperatures` must be finite"),
        ("analyse samples --size 0 -o out", "`--size` must be at least 1"),
        ("analyse distance -o photo.png/out", "`--output-dir`: cannot write"),
        ("analyse levels --lpips-weights photo.png -o out", "`--lpips-weights`: photo.png is no"),
        ("demo --port 65536", "`--port` must be between 0 and 65535, got 65536"),
        ("figures r.json -o photo.png/out", "`--output-dir`: cannot write"),
        ("results r.json -o images", "`--output` must be a file"),
        ("convert x.pth --preset edsr-x4 -o photo.png/out", "`--output-dir`: cannot write"),
        ("export b.onnx --device cuda", "`--device` must be cpu"),
        ("export a.onnx", "must be a file, got the folder"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_named_in_one_line_and_leaves_nothing(command, named, wrong, capsys):
    before = sorted(wrong.rglob("*"))
    words = shlex.split(command)
    if words[0] in ("upscale", "analyse", "export") and not {"--model", "-n"} & set(words):
        words += ["--model", "tiny"]
    assert main(words) == 2
    *_, error = capsys.readouterr().err.splitlines()
    assert error.startswith("hvae-sr: error: ") and named.replace("_", "-") in error.replace("_", "-")
    assert sorted(wrong.rglob("*")) == before


@pytest.mark.parametrize("given", ["photo.png", "."])
def test_results_are_beside_the_input_and_not_upscaled_again_and_one_sample_has_no_mean(
    given, upscale, photo, tmp_path
):
    for _ in range(2):
        upscale(tmp_path / given, output_dir=None)
    assert names_in(tmp_path) == {"photo.png", "photo_x4_seed0.png"}


# Photographs of other kinds


def test_alpha_is_upscaled_apart_and_grey_stays_grey(upscale, photo, tmp_path, out):
    rgba = Image.open(photo).convert("RGBA")
    rgba.putalpha(Image.linear_gradient("L").resize(rgba.size))
    rgba.save(tmp_path / "alpha.png")
    Image.open(photo).convert("L").save(tmp_path / "grey.png")
    upscale(tmp_path / "alpha.png", tmp_path / "grey.png")
    result = Image.open(out / "alpha_x4_seed0.png")
    expected = rgba.getchannel("A").resize(result.size, Image.Resampling.BICUBIC)
    assert result.mode == "RGBA" and result.getchannel("A").tobytes() == expected.tobytes()
    assert Image.open(out / "grey_x4_seed0.png").mode == "L"


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_16_bits_give_16_bits_that_are_consistent_with_all_of_the_input(suffix, upscale, photo, tmp_path, out):
    fine = np.asarray(Image.open(photo).convert("RGB"), np.uint16) * 100 + 20000 + np.arange(3, dtype=np.uint16)
    save_image(WideImage(fine), tmp_path / "deep.png")
    save_image(WideImage(fine[..., :1]), tmp_path / "grey.tif")
    draw = functools.partial(upscale, tmp_path / "deep.png", tmp_path / "grey.tif", num_samples=2, format=suffix)
    draw()
    for name, grey in (("deep", False), ("grey", True)):
        for kind in ("seed0", "mean"):
            result = read_photo(out / f"{name}_x4_{kind}.{suffix}")
            assert result.bits == 16 and result.grey == grey
            error = (Downsampling(4)(to_tensor(result).double()) - to_tensor(fine[..., :1] if grey else fine)).abs()
            assert error.max() < 1e-4  # a level of 8 bits is 4e-3
    assert "2 finished before" in draw().out
    assert "redone" in draw(bits=8).out and read_photo(out / f"deep_x4_seed0.{suffix}").bits == 8


def test_what_is_transparent_is_white_in_a_jpeg(upscale, tmp_path, out):
    drawing = np.zeros((24, 24, 4), np.uint8)
    drawing[6:18, 6:18, 3] = 255
    Image.fromarray(drawing).save(tmp_path / "logo.png")
    upscale(tmp_path / "logo.png", format="jpg")
    assert np.asarray(Image.open(out / "logo_x4_seed0.jpg"))[:8].mean() > 200


def test_exif_is_copied_on_demand_only_and_into_results_that_were_finished_without(upscale, photo, out):
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    Image.open(photo).save(photo, exif=exif)
    for options in ([], ["--keep_exif"], []):
        upscale(photo, *options)
        tags = Image.open(out / "photo_x4_seed0.png").getexif()
        assert (tags.get(0x010F) == "Maker") == bool(options)


def test_exif_that_a_jpeg_has_no_room_for_is_left_out(upscale, photo, tmp_path, out, caplog):
    for name, note, comment in (("notes", 65000, 10), ("comments", 10, 65000)):
        exif = Image.Exif()
        exif[0x010F] = "Maker"
        exif[0x8769] = {0x9003: "2026:01:02 03:04:05", 0x927C: b"n" * note, 0x9286: b"c" * comment}
        Image.open(photo).save(tmp_path / f"{name}.jpg", exif=exif)
        upscale(tmp_path / f"{name}.jpg", "--keep_exif", num_samples=3, format="jpg")
        found = out / f"{name}_x4_seed0.jpg"
        assert (Image.open(found).getexif().get(0x010F) == "Maker") == (name == "notes")
        assert read_metadata(found)["seed"] == 0
    kinds = {"notes": "the maker's notes of a photograph's EXIF", "comments": "a photograph's EXIF"}
    told = [record.getMessage().split(" are left out")[0] for record in caplog.records]
    assert told == [f"{out / name}_x4_seed0.jpg: {what}" for name, what in kinds.items()]  # once for each photograph


def test_all_frames_of_an_animation_on_demand(upscale, photo, tmp_path):
    frames = [Image.open(photo).rotate(90 * turn) for turn in range(2)]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], lossless=True)
    upscale(tmp_path / "a.webp", output_dir=tmp_path / "one")
    assert names_in(tmp_path / "one") == {"a_x4_seed0.png"}
    upscale(tmp_path / "a.webp", "--all_frames", output_dir=tmp_path / "all")
    assert names_in(tmp_path / "all") == {"a_frame0000_x4_seed0.png", "a_frame0001_x4_seed0.png"}


def test_an_animation_that_ends_early_is_told_and_its_first_frame_drawn(upscale, tmp_path, out):
    frames = [Image.effect_noise((24, 20), 20 + number) for number in range(3)]
    frames[0].save(tmp_path / "whole.gif", save_all=True, append_images=frames[1:])
    content = (tmp_path / "whole.gif").read_bytes()
    (tmp_path / "a.gif").write_bytes(content[: len(content) * 8 // 10])
    assert "a.gif" in upscale(tmp_path / "a.gif", "--all_frames", status=1).err
    assert names_in(out) == {"a_x4_seed0.png"}


@pytest.mark.parametrize(("outscale", "size"), [(2, (26, 18)), (3.5, (46, 32)), (8, (104, 72)), (16, (208, 144))])
def test_any_final_factor(outscale, size, upscale, photo, out):
    said = upscale(photo, num_samples=2, outscale=outscale, bits=16).out
    assert read_photo(out / f"photo_x{outscale}_seed1.png").bits == 16
    for kind in ("seed1", "std"):
        assert Image.open(out / f"photo_x{outscale}_{kind}.png").size == size
    shown = [float(line.split("LR-PSNR ")[1].split()[0]) for line in said.splitlines()[:2]]
    assert min(shown) > (30 if outscale >= 4 else 20)


def test_factors_that_differ_have_names_that_differ(upscale, photo, out):
    for outscale in ("4", "4.0000001"):
        upscale(photo, outscale=outscale)
    assert names_in(out) == {"photo_x4_seed0.png", "photo_x4.0000001_seed0.png"}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_pipes_and_links_in_a_circle_stop_nothing(upscale, photo, tmp_path):
    (tmp_path / "in").mkdir()
    photo.rename(tmp_path / "in" / "photo.png")
    os.mkfifo(tmp_path / "in" / "pipe.png")
    (tmp_path / "in" / "loop.png").symlink_to(tmp_path / "in" / "loop.png")
    said = upscale(tmp_path / "in", status=1)
    assert "3 images: 1 upscaled, 0 finished before, 2 failed" in said.out
    assert "pipe.png: not a regular file" in said.err and "loop.png" in said.err


def test_a_folder_in_place_of_a_result_is_refused_before_sampling(upscale, photo, out):
    (out / "photo_x4_mean.png").mkdir(parents=True)
    said = upscale(photo, "--overwrite", num_samples=2, status=1).err
    assert "photo_x4_mean.png is in the way, a folder" in said and len(names_in(out)) == 1


def test_results_larger_than_what_is_read_are_finished_and_recognised(upscale, tmp_path, out, monkeypatch):
    Image.effect_noise((16, 12), 30).convert("RGB").save(tmp_path / "a.png")
    monkeypatch.setattr("hvae_sr.images.reading.MAX_PIXELS", 1000)  # of the input 192, of the result 3072
    for suffix in ("jpg", "png"):
        for said in ("mean of 2 samples", "finished before"):
            assert said in upscale(tmp_path / "a.png", num_samples=2, format=suffix).out
        again = {"output_dir": tmp_path / "like", "num_samples": None, "like": out / f"a_x4_seed1.{suffix}"}
        upscale(tmp_path / "a.png", **again)


# Names


def test_only_names_that_collide_are_changed_and_only_files_of_one_name_are_refused(upscale, photo, tmp_path, out):
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    for name in ("in/a.png", "in/A.bmp", "in/b.png", "other/b.png"):
        Image.open(photo).save(tmp_path / name)
    said = upscale(tmp_path / "in", tmp_path / "other", status=1)
    assert names_in(out) == {"a.png_x4_seed0.png", "A.bmp_x4_seed0.png", "b_x4_seed0.png"}
    assert "4 images: 3 upscaled, 0 finished before, 1 failed" in said.out
    assert f"{tmp_path / 'other' / 'b.png'}: its results would replace those of" in said.err


@pytest.mark.parametrize("more", [[], ["--overwrite"]])
def test_a_result_does_not_replace_another_input(more, upscale, photo, tmp_path):
    Image.open(photo).rotate(180).save(other := tmp_path / "other.png")
    upscale(other, output_dir=None)
    second = (tmp_path / "other_x4_seed0.png").rename(tmp_path / "photo_x4_seed0.png")
    before = second.read_bytes()
    said = upscale(photo, second, *more, output_dir=None, temperature=0.1, status=1).err
    why = "another input" if more else "made of another image"
    assert f"{photo}: {second} is in the way, {why}" in said
    assert second.read_bytes() == before and (tmp_path / "photo_x4_seed0_x4_seed0.png").exists()
    upscale(photo, second)


def test_the_same_command_goes_on_where_a_pattern_names_results_too(upscale, photo, tmp_path, out):
    """As `hvae-sr upscale *.png`, stopped after the first sample and given again."""
    draw = functools.partial(upscale, output_dir=None, num_samples=2)
    draw(photo)
    first = tmp_path / "photo_x4_seed0.png"
    before = first.read_bytes()
    for name in ("seed1", "mean", "std"):
        (tmp_path / f"photo_x4_{name}.png").unlink()
    assert "1 of the inputs are results of others of them, and left out" in draw(photo, first).err
    assert first.read_bytes() == before and (tmp_path / "photo_x4_std.png").exists()
    for folder in (None, out):
        draw(*sorted(tmp_path.glob("*.png")), output_dir=folder)  # all of it again
        draw(tmp_path, output_dir=folder)
    names = {f"photo_x4_{name}.png" for name in ("seed0", "seed1", "mean", "std")}
    assert {path.name for path in tmp_path.glob("*.png")} == {"photo.png", *names} and names_in(out) == names


def test_results_of_inputs_of_one_name_are_told_apart(upscale, photo, tmp_path):
    for number, folder in enumerate((tmp_path / "a", tmp_path / "b")):
        folder.mkdir()
        Image.open(photo).rotate(90 * number, expand=True).save(folder / "photo.png")
    for _ in range(2):
        upscale(*sorted(tmp_path.glob("*/*.png")), output_dir=None)
    assert len(list(tmp_path.glob("*/*.png"))) == 4


def test_finished_results_keep_their_names_when_an_input_of_the_same_name_comes(upscale, photo, tmp_path, out):
    (tmp_path / "in").mkdir()
    photo.rename(tmp_path / "in" / "photo.png")
    upscale(tmp_path / "in")
    before = (out / "photo_x4_seed0.png").stat().st_mtime_ns
    Image.open(tmp_path / "in" / "photo.png").save(tmp_path / "in" / "photo.bmp")
    for _ in range(2):
        upscale(tmp_path / "in")
    assert names_in(out) == {"photo_x4_seed0.png", "photo.bmp_x4_seed0.png"}
    assert (out / "photo_x4_seed0.png").stat().st_mtime_ns == before


def test_names_that_differ_in_case_alone_are_two_where_the_system_says_so(upscale, photo, tmp_path, out):
    (tmp_path / "in").mkdir()
    Image.open(photo).rotate(180).save(tmp_path / "in" / "A.png")
    Image.open(photo).save(tmp_path / "in" / "a.png")
    if len(names_in(tmp_path / "in")) == 1:
        pytest.skip("this file system does not tell cases apart")
    upscale(tmp_path / "in")
    assert names_in(out) == {"a.png_x4_seed0.png", "A.png_x4_seed0.png"}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_source_that_cannot_be_read_again_stops_nothing(upscale, photo, tmp_path):
    upscale(photo, output_dir=None)
    Image.open(photo).save(fine := tmp_path / "fine.png")
    photo.unlink()
    os.mkfifo(photo)
    assert "1 failed" in upscale(photo, tmp_path / "photo_x4_seed0.png", fine, output_dir=None, status=1).out
    assert (tmp_path / "fine_x4_seed0.png").exists()


def test_a_folder_may_be_called_like_an_option(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "version").mkdir()
    assert parse(["version"]).inputs == ["version"]


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_name_through_a_link_is_another_file(photo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "other" / "deep")
    Image.open(photo).rotate(90, expand=True).save(tmp_path / "other" / "photo.png")
    planned = plan(parse(["upscale", "photo.png", "link/../photo.png"]))
    assert len(planned.sources) == 2 and not planned.errors


def test_a_folder_of_results_alone_is_told_from_an_empty_one_and_one_by_name_is_upscaled(upscale, photo, out):
    upscale(photo)
    error = upscale(out, output_dir=None, status=2).err
    assert "no images in" in error and "but 1 results of this command" in error
    upscale(out / "photo_x4_seed0.png", output_dir=None)
    assert (out / "photo_x4_seed0_x4_seed0.png").exists()


def test_a_file_that_is_named_in_two_ways_is_one(upscale, photo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = upscale("photo.png", photo, Path("..") / tmp_path.name / "photo.png", output_dir="out", num_samples=None)
    assert len(names_in(tmp_path / "out")) == 7 and "failed" not in said.out  # five samples, mean and map


def test_names_that_are_too_long_for_results_are_refused_before_sampling(upscale, photo, tmp_path, out):
    error = upscale(photo.rename(tmp_path / f"{'ü' * 122}.png"), status=1).err
    assert "names of 257 bytes" in error and "255" in error and not names_in(out)


@pytest.mark.skipif(sys.platform == "win32", reason="names are text there")
def test_names_that_the_terminal_cannot_print_stop_nothing(upscale, photo, tmp_path, monkeypatch):
    os.rename(photo, os.fsencode(tmp_path) + b"/\xff\xe6\x97\xa5\n\x1b[2J.png")
    screen = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(sys, "stderr", screen)
    upscale(tmp_path, output_dir=None, num_samples=2)
    screen.seek(0)
    assert screen.read().count("????[2J_x4_") == 4 and screen.errors == "strict"


def test_where_there_is_neither_terminal_nor_file_to_print_to_nothing_stops(upscale, photo, tmp_path, monkeypatch):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)  # as pythonw has it
    upscale(photo)
    upscale(tmp_path / "none.png", status=2)
    assert sys.stdout is None


# Time and details


def test_a_crop_is_the_sample_of_that_part_alone(upscale, photo, tmp_path):
    draw = functools.partial(upscale, output_dir=tmp_path)
    draw(photo, crop="2,1,8,6")
    Image.open(photo).crop((2, 1, 10, 7)).save(tmp_path / "part.png")
    draw(tmp_path / "part.png")
    name = "photo_crop2-1-8-6_x4_seed0.png"
    first, second = (Image.open(tmp_path / file) for file in (name, "part_x4_seed0.png"))
    assert first.tobytes() == second.tobytes()
    upscale(photo, output_dir=tmp_path / "like", num_samples=None, like=tmp_path / name)
    assert Image.open(tmp_path / "like" / name).tobytes() == first.tobytes()
    assert "`--crop` must lie in the image, of 13x9" in draw(photo, crop="9,1,8,6", status=1).err


def test_work_of_more_than_a_minute_is_announced_with_what_would_be_faster(upscale, photo, tmp_path, monkeypatch):
    assert "will take" not in upscale(photo, num_samples=2).err
    monkeypatch.setattr("hvae_sr.cli.upscale.announce", functools.partial(announce, worth_telling=0, probes=0))
    said = upscale(photo, "--overwrite", num_samples=2).err
    assert "2 samples of 52x36 pixels will take about" in said and "--crop" in said and "--outscale" in said
    assert "will take" not in upscale(photo, num_samples=2).err  # finished before
    tifffile.imwrite(tmp_path / "float.tif", np.zeros((7, 11, 3), np.float32), photometric="rgb")  # not by Pillow
    exif = Image.Exif()
    exif[274] = 6  # a quarter turn
    Image.new("RGB", (12, 8)).save(tmp_path / "turned.jpg", exif=exif)
    for name, size in {"float.tif": "44x28", "turned.jpg": "32x48"}.items():
        assert f"2 samples of {size} pixels will take about" in upscale(tmp_path / name, num_samples=2).err


def test_time_is_estimated_by_the_pixels_of_all_passes_and_windows(make_pipeline):
    pipe = make_pipeline()
    pixels = [
        evaluated_pixels(pipe, (width, height), argparse.Namespace(outscale=factor, max_memory=memory, num_samples=1))
        for width, height, factor, memory in (
            (8, 8, 4, None),
            (8, 8, 16, None),
            (4000, 3000, 4, 2**40),
            (4000, 3000, 4, 2**29),
        )
    ]
    assert pixels[0] == 32**2 and pixels[1] == 32**2 + 128**2
    assert 16000 * 12000 < pixels[2] < 2 * 16000 * 12000 and pixels[3] == 0  # refused for its memory
    told = {90: "90 seconds", 1560: "26 minutes", 7300: "2 hours", 200000: "2 days"}
    assert {seconds: duration(seconds) for seconds in told} == told


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
def test_the_scale_of_the_map_is_that_of_its_image_and_is_told(temperature, low, high, upscale, photo, out):
    said = upscale(photo, num_samples=3, temperature=temperature).out
    most = read_metadata(out / "photo_x4_std.png")["grey_levels_of_the_lightest"]
    assert f"from 0 (black) to {most:g} grey levels of 255" in said and low <= most <= high
    brightest = np.asarray(Image.open(out / "photo_x4_std.png")).max()
    assert brightest >= 252 if temperature else brightest == 3


# Folders


@pytest.fixture
def folder(photo, tmp_path):
    for name in ("a.png", "sub/a.png", "sub/deep/b.png"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.open(photo).save(path)
    return tmp_path / "in"


def test_sub_folders_are_kept_and_finished_images_are_skipped(folder, upscale, out):
    upscale(folder, "--recursive", num_samples=2)
    results = {str(path.relative_to(out)) for path in out.rglob("*seed0.png")}
    assert results == {"a_x4_seed0.png", "sub/a_x4_seed0.png", "sub/deep/b_x4_seed0.png"}
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    (out / "sub" / "a_x4_std.png").unlink()  # interrupted before the last file
    said = upscale(folder, "--recursive", num_samples=2).out
    assert "3 images: 1 upscaled, 2 finished before, 0 failed" in said
    again = {path for path, time in times.items() if path.stat().st_mtime_ns != time}
    assert again == {out / "sub" / f"a_x4_{kind}.png" for kind in ("seed0", "seed1", "mean", "std")}


def test_other_settings_are_redone_and_results_of_another_image_are_kept(folder, upscale, photo, out):
    result = out / "a_x4_seed0.png"
    upscale(folder / "a.png")
    assert "redone" in upscale(folder / "a.png", temperature=0.3).out and read_metadata(result)["temperature"] == 0.3
    Image.open(photo).rotate(180).save(other := folder / "sub" / "a.png")
    before = result.read_bytes()
    assert "made of another image (a.png)" in upscale(other, temperature=0.3, status=1).err
    assert result.read_bytes() == before
    upscale(other, "--overwrite", temperature=0.3)
    assert result.read_bytes() != before


def test_samples_of_other_orientations_are_redone_and_earlier_results_are_kept(upscale, photo, out):
    contents = []
    for ensemble in ([], ["--self_ensemble"], []):
        upscale(photo, *ensemble, seed=3)
        contents.append((out / "photo_x4_seed3.png").read_bytes())
        assert "finished before" in upscale(photo, *ensemble, seed=3).out
    assert contents[0] == contents[2] != contents[1]
    for path in out.glob("*.png"):  # as a version wrote them that knew of no orientations
        settings = read_metadata(path)
        settings.pop("self_ensemble", None)
        save_image(Image.open(path), path, settings)
    assert "finished before" in upscale(photo, seed=3).out


def test_a_file_of_the_users_is_not_overwritten(upscale, photo, out):
    out.mkdir()
    Image.open(photo).save(out / "photo_x4_mean.png")
    assert "in the way" in upscale(photo, num_samples=2, status=1).err and len(names_in(out)) == 1
    upscale(photo, "--overwrite", num_samples=2)


def test_links_in_the_output_folder_lead_nowhere(folder, upscale, photo, tmp_path, out):
    other, victim = tmp_path / "other", tmp_path / "victim.png"
    out.mkdir()
    other.mkdir()
    (out / "sub").symlink_to(other)
    Image.open(photo).save(victim)
    before = victim.read_bytes()
    (out / "a_x4_seed0.png").symlink_to(victim)
    assert "leads out of the output folder" in upscale(folder, "--recursive", "--overwrite", status=1).err
    assert not names_in(other) and victim.read_bytes() == before
    assert not (out / "a_x4_seed0.png").is_symlink()


# Ranking


def test_finished_samples_are_ranked_by_what_their_files_tell(upscale, photo, out):
    draw = functools.partial(upscale, photo, num_samples=3, rank="lr_psnr_unprojected")
    ranks = [line for line in draw().out.splitlines() if line.startswith("rank ")]
    again = draw().out
    assert len(ranks) == 3 and "finished before" in again and "\n".join(ranks) in again
    said = draw(rank="log_density").out
    assert "not ranked" in said and "--overwrite" in said and "rank 1" not in said
    path = out / "photo_x4_seed1.png"  # as a version wrote it that did not tell
    settings = read_metadata(path)
    del settings["lr_psnr_unprojected"]
    save_image(Image.open(path), path, settings)
    said = draw().out
    assert "not ranked" in said and "rank 1" not in said


def test_ranks_by_latents_are_refused_for_several_tiles_before_sampling(make_pipeline, upscale, photo, tmp_path, out):
    make_pipeline(bias_type="spatial").save_pretrained(tmp_path / "fixed")
    said = upscale(photo, "--tile", model=tmp_path / "fixed", rank="log_density", status=1).err
    assert "`latents` and `noise` cannot be given or returned" in said and not names_in(out)
    upscale(photo, "--tile", model=tmp_path / "fixed", rank="lr_psnr_unprojected")


# Repeating


@pytest.fixture
def repeat(upscale, photo, out, tmp_path):
    """Draws with the settings of a result alone, and gives whether the file is the same; and what was printed."""

    def draw_like(name, folder="again"):
        said = upscale(photo, output_dir=tmp_path / folder, num_samples=None, like=out / name)
        return (tmp_path / folder / name).read_bytes() == (out / name).read_bytes(), said

    return draw_like


def test_like_repeats_the_settings_of_a_file(upscale, photo, repeat, tmp_path, out):
    upscale(photo, "--no_consistency", num_samples=2, temperature=0.4, seed=5, outscale=3, bits=16)
    assert repeat("photo_x3_seed6.png")[0]
    assert not (tmp_path / "again" / "photo_x3_seed5.png").exists()
    assert repeat("photo_x3_mean.png", "mean")[0]
    mean, many = out / "photo_x3_mean.png", list(range(3000))
    save_image(Image.open(mean), mean, metadata={**read_metadata(mean), "seeds": many})
    assert _settings_in(str(mean))["seeds"] == many


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("fast", [torch.bfloat16, None])
def test_like_computes_in_the_dtype_of_the_file_on_any_machine(dtype, fast, upscale, photo, repeat, monkeypatch):
    upscale(photo, dtype=dtype)
    monkeypatch.setattr("hvae_sr.pipelines.computing.fast_dtype", lambda device: fast)
    assert repeat("photo_x4_seed0.png")[0]  # at the model's own temperature, as none was given


def test_like_repeats_the_orientations_of_a_sample(upscale, photo, repeat, tmp_path, out):
    upscale(photo, "--self_ensemble", seed=3)
    assert repeat("photo_x4_seed3.png")[0]
    upscale(photo, seed=3, output_dir=tmp_path / "c")
    assert (tmp_path / "c" / "photo_x4_seed3.png").read_bytes() != (out / "photo_x4_seed3.png").read_bytes()
    assert "`--self-ensemble`" in upscale(photo, "--self_ensemble", rank="log_density", status=2).err


def test_like_refuses_other_weights_strangers_and_models_that_a_file_names(model, upscale, photo, tmp_path, out):
    upscale(photo)
    for named, file, why in (
        (None, out / "photo_x4_seed0.png", "name it with `--model`"),
        ("natural-x4", out / "photo_x4_seed0.png", "other weights"),
        (model, photo, "does not hold the settings"),
    ):
        said = upscale(photo, model=named, like=file, num_samples=None, output_dir=tmp_path / "b", status=2).err
        assert why in said and not (tmp_path / "b").exists()


def test_like_warns_of_another_version(upscale, photo, repeat, monkeypatch):
    upscale(photo)
    monkeypatch.setattr("hvae_sr.__version__", "9.9")
    assert "is of version" in repeat("photo_x4_seed0.png")[1].err


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


def test_the_look_of_an_input_chooses_its_model_in_one_line_that_says_why(two_models, inputs, upscale, out):
    default, other = two_models
    said = upscale(inputs, model=None)
    assert f"clean.png: by {default}, as it looks clean\n" in said.out
    why = f"by {other}, as it shows the 8x8 blocks of strong JPEG compression (`--model {default}`"
    assert f"small.jpg: {why}" in said.out
    assert f"tiny.png: by {default}, as it is too small" in said.out and "use a better copy" not in said.err
    found = {path.name.split("_")[0]: read_metadata(path) for path in out.iterdir()}
    assert [found[name]["model"] for name in ("clean", "small", "tiny")] == [default, other, default]
    assert [found[name]["temperature"] for name in ("clean", "small")] == [0.7, 0.4]
    assert [found[name]["consistent"] for name in ("clean", "small")] == [True, False]
    said = upscale(inputs, model=None).out
    assert "3 images: 0 upscaled, 3 finished before" in said and "as it" not in said


def test_where_ranks_are_asked_for_the_model_of_one_pass_draws(two_models, inputs, upscale, monkeypatch):
    monkeypatch.setattr("hvae_sr.checkpoints.names.PHOTO_SCALE", 2)  # one pass of 4 is two of that
    said = upscale(inputs / "small.jpg", model=None, rank="lr_psnr_unprojected").out
    assert f"by {two_models[0]}, though it shows the 8x8 blocks" in said and "compares samples of one pass" in said


@pytest.mark.parametrize("given", [["--model"], ["--temperature", 0.1, 0.2, 0.3]])
def test_a_model_or_a_temperature_of_each_of_its_groups_overrides_the_look(given, two_models, inputs, upscale, out):
    options = [*given, two_models[0]] if given == ["--model"] else given
    said = upscale(inputs / "small.jpg", *options, model=None)
    assert "as it" not in said.out and "use a better copy" in said.err
    assert read_metadata(out / "small_x4_seed0.png")["model"] == two_models[0]


def test_a_wrong_option_shows_before_anything_is_drawn_where_the_look_chooses(two_models, inputs, upscale, out):
    assert "`--temperature` must be" in upscale(inputs, model=None, temperature=-1, status=2).err
    assert not out.exists()


# Other commands


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


def test_tables_are_printed_line_by_line_and_the_report_has_their_rows(model, images, tmp_path, capsys):
    options = ["--model", str(model), "--device", "cpu"]
    made = ["--data", str(images), "--num-images", "1", "--size", "16", "--num-samples", "2", "--temperatures", "0.8"]
    assert main(["evaluate", *options, *made, "-o", str(tmp_path / "r.json")]) == 0
    names = {row.get("row", row.get("name")) for row in json.loads((tmp_path / "r.json").read_text())["rows"]}
    assert {"bicubic", "sample t=0.8 projected", "mean t=0.8 projected"} <= names
    small = ["--side", "8", "--num-samples", "1", "--repeats", "1", "--batch-sizes", "1", "--sizes", "1", "18"]
    assert main(["benchmark", *options, *small]) == 0
    printed = capsys.readouterr().out
    assert "?" not in printed and "bicubic" in printed and "|---|---|---|\n| float32 " in printed
    assert "    8x8 " in printed and "   16x16 " in printed  # of y of 4x4, as it is computed


@pytest.mark.slow
def test_every_command_goes_on_where_nobody_reads_what_it_prints(model, photo, images, tmp_path, out):
    options = ["--model", str(model), "--device", "cpu", "--num-samples", "2"]
    made = [*options, "--data", str(images), "--size", "16"]
    for command in (
        ["upscale", str(photo), "-o", str(out), *options],
        ["evaluate", *made, "--temperatures", "1", "-o", str(tmp_path / "r.json")],
        ["results", str(tmp_path / "r.json"), "-o", str(tmp_path / "r.md")],
        ["calibrate", *made, "-o", str(tmp_path / "calibrated")],
    ):
        with open(tmp_path / "errors.txt", "w+b") as errors:
            program = [sys.executable, "-m", "hvae_sr.cli", *command]
            process = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=errors)
            process.stdout.close()
            output(process)
        assert process.returncode == 0 and "Broken pipe" not in (tmp_path / "errors.txt").read_text(), command
    assert len(names_in(out)) == 4  # two samples, mean, map


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_work_goes_on_where_nobody_reads(stream, monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as closed:
        monkeypatch.setattr(sys, stream, closed)
        for _ in range(2):
            (print_line if stream == "stdout" else warn)("words")


def test_names_of_files_that_a_c_locale_does_not_know_are_written_as_they_are(tmp_path):
    write_atomically("# odd \udcc3\udcbc\n", tmp_path / "r.md")
    assert (tmp_path / "r.md").read_text("utf-8") == "# odd ü\n"


def test_distances_of_a_model_with_taps_are_of_bicubic_interpolation(make_pipeline, tmp_path, capsys):
    pipe = make_pipeline()
    SuperResolutionPipeline(pipe.vdvae, pipe.lr_encoder, downsampling_kernel=[0.25] * 4).save_pretrained(tmp_path / "m")
    command = ["analyse", "distance", "--model", str(tmp_path / "m"), "--scales", "1", "4", "8", "--num-codes", "1"]
    assert main([*command, "--images-per-code", "2", "-o", str(tmp_path / "out"), "--device", "cpu"]) == 0
    assert "small by bicubic interpolation" in capsys.readouterr().err
