"""Evaluation as a whole: other methods' images, data sets, perceptual metrics, processes, reports, and the commands."""

import json
import math
import os
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import processes
import pytest
from PIL import Image
from processes import meeting, output
from stand_ins import NoisyBicubic, by_name, photo_folder, random_weights, run, write_table

from hvae_sr import __version__
from hvae_sr.cli import main
from hvae_sr.evaluation import (
    PROTOCOLS,
    PerceptualMetrics,
    frechet_distance,
    markdown_table,
    prepare_thesis,
    projection_table,
    published_rows,
    read_report,
    results_document,
    temperature_table,
    write_report,
)
from hvae_sr.evaluation.perceptual import LPIPS
from hvae_sr.evaluation.samples import draw
from hvae_sr.evaluation.sources import open_source
from hvae_sr.evaluation.tables import command_line, kept_rows, mean_rows
from hvae_sr.images import ImageError, WideImage, save_image


@pytest.fixture
def folder(tmp_path):
    return photo_folder(tmp_path / "Set5", dict.fromkeys(("img_1", "img_10", "img_2"), (40, 36)))


@pytest.fixture
def predictions(folder, tmp_path):
    """What a method called Ours made: two samples of each image, noisy truths."""
    made = tmp_path / "Ours"
    made.mkdir()
    rng = np.random.default_rng(1)
    for file in folder.iterdir():
        hr, _ = prepare_thesis(Image.open(file), 32)
        for j in range(2):
            noisy = np.clip(hr + rng.normal(0, 8, hr.shape), 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(made / f"{file.stem}_seed{j}.png")
    return made


def test_an_image_without_detail_is_left_out_of_means_and_named(tmp_path, caplog):
    """Bicubic interpolation has it exactly: its PSNR and LR-PSNR are infinite."""
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    for name, pixels in (("a", noise), ("black", np.zeros((32, 32, 3), np.uint8))):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    report = run(tmp_path, NoisyBicubic(), size=32, temperatures=(0.5,), num_samples=2)
    alone, flat = (mean_rows([image["rows"]], 2) for image in report["images"])
    assert "black.png" in caplog.text
    for row, own in zip(report["rows"], alone, strict=True):
        for name in (
            "psnr",
            "psnr_gain",
            "detail",
        ):  # also of rows in which it is finite: others are compared with them
            assert row[name] == own[name] and math.isfinite(row[name]), (row["name"], name)
        assert row["ssim"] != own["ssim"] and math.isfinite(row["lr_psnr"]) and math.isfinite(row["lr_psnr_float"])
    assert math.isinf(flat[0]["psnr"]) and math.isinf(flat[0]["lr_psnr"])  # where of none it is finite


def test_another_methods_images_are_scored_as_samples(folder, predictions):
    report = run(folder, predictions=predictions)
    rows = by_name(report)
    names = ["sample Ours", "mean Ours", "sample Ours projected", "mean Ours projected"]
    assert list(rows) == ["bicubic", "bicubic projected", *names] and report["num_samples"] == 2
    truths = {file.stem: prepare_thesis(Image.open(file), 32)[0] for file in sorted(folder.iterdir())}
    expected = [
        PROTOCOLS["thesis"].psnr(truth, np.asarray(Image.open(predictions / f"{stem}_seed{j}.png")), 4)
        for stem, truth in truths.items()
        for j in range(2)
    ]
    assert rows["sample Ours"]["psnr"] == pytest.approx(np.mean(expected))
    assert rows["sample Ours"]["lr_psnr_float"] < 60 < 100 < rows["sample Ours projected"]["lr_psnr_float"]
    assert rows["mean Ours"]["psnr"] > rows["sample Ours"]["psnr"] and rows["sample Ours"]["apd_mse"] > 0
    assert "--predictions Ours" in command_line(report)
    kept = {row["name"]: row["psnr"] for row in kept_rows(report)}  # under their own names: nobody has projected them
    assert kept == {name: row["psnr"] for name, row in rows.items()}
    assert "best_psnr@2" in rows["sample Ours"] and "Ours projected" in results_document([report])


def test_a_file_is_of_the_longest_name_also_of_images_that_are_not_asked_for(folder, tmp_path):
    Image.effect_noise((40, 36), 30).convert("RGB").save(folder / "img_1_left.png")
    made = tmp_path / "Copies"
    shutil.copytree(folder, made)
    report = run(folder, predictions=made, protocol="standard", size=None, num_images=1)
    assert report["num_samples"] == 1 and math.isinf(by_name(report)["Copies"]["psnr"])


def test_means_that_upscale_wrote_are_no_samples_and_one_sample_of_each_is_one_row(folder, predictions):
    for file in predictions.glob("*_seed1.png"):
        save_image(Image.new("RGB", (32, 32)), file, {"what": "mean of the samples"})
    rows = by_name(run(folder, predictions=predictions))
    assert list(rows) == ["bicubic", "bicubic projected", "Ours", "Ours projected"]
    assert "apd_mse" not in rows["Ours"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: [f.unlink() for f in path.glob("img_10_*")], "`predictions`.*no image of img_10"),
        (lambda path: (path / "img_2_seed1.png").unlink(), "`predictions`.*got 1 of 'img_2' and 2 of 'img_1"),
        (lambda path: Image.new("RGB", (31, 32)).save(path / "img_2_seed1.png"), "img_2_seed1.png must be 32x32"),
        (lambda path: [f.unlink() for f in path.iterdir()], "`predictions` must be a folder of images"),
        (lambda path: path.rename(path.with_name("bicubic")), "`predictions`: 'bicubic' is taken; rename the folder"),
        (lambda path: path.rename(path.with_name("truth")), "`predictions`: 'truth' is taken; rename the folder"),
        (
            lambda path: Image.new("RGB", (40, 36)).save(path.with_name("Set5") / "img_1.bmp"),
            "`data`: img_1.bmp and img_1.png are of the same name",
        ),
    ],
)
def test_images_that_do_not_fit_are_errors(folder, predictions, change, message):
    moved = change(predictions)
    with pytest.raises(ValueError, match=message):
        run(folder, predictions=moved if isinstance(moved, Path) else predictions)


def test_the_papers_table_has_the_published_rows_of_ffhq(folder, tmp_path):
    faces = tmp_path / "ffhq-256"
    folder.rename(faces)
    report = run(faces, NoisyBicubic(), protocol="paper", size=None, num_samples=None)
    assert report["size"] == 256 and report["num_samples"] == 5
    assert published_rows(report) == ("", [])  # a folder of this name only
    report["rows"][0]["lr_psnr"] = 36.9
    _, published = published_rows(report)
    rows = {row["name"]: row for row in published}
    projected = rows["CVD-VAE t=0.8 projected (published)"]
    assert (projected["psnr"], projected["brisque"], projected["lr_psnr"]) == (30.24, 32.30, 75.20)
    table = markdown_table(report)
    assert "| Bicubic (published) |  |  |  |  |  | 61.79 | 37.0 |" in table
    assert "APD-MSE" in table and "sample t=0.8 projected" in table
    assert "| bicubic projected |" in projection_table(report)
    assert "| tau = 0.8 |" in temperature_table(report)


def test_a_data_set_of_parquet_files_gives_the_report_of_the_folder(folder, tmp_path):
    pytest.importorskip("datasets", reason="the library datasets is not installed (extra `data`)")
    table = tmp_path / "table" / "data"
    table.mkdir(parents=True)
    write_table(table / "test-00000.parquet", [(None, file.read_bytes()) for file in sorted(folder.iterdir())])
    source = open_source(tmp_path / "table", num_images=2)
    assert [image.name for image in source.images] == ["test-000000", "test-000001"] and len(source.names) == 3
    report = run(tmp_path / "table", split="test")
    assert report["rows"] == run(folder)["rows"]
    assert "--data table --split test --image_column image" in command_line(report)


def test_rows_are_read_as_files_are_and_one_without_an_image_is_named(tmp_path):
    datasets = pytest.importorskip("datasets", reason="the library datasets is not installed (extra `data`)")
    save_image(WideImage(np.full((20, 24, 2), 65535, np.uint16)), tmp_path / "deep.tif")
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n%%EOF\n"
    rows = [{"bytes": data, "path": None} for data in ((tmp_path / "deep.tif").read_bytes(), eps)]
    features = datasets.Features({"image": datasets.Image()})
    (tmp_path / "table").mkdir()
    table = datasets.Dataset.from_dict({"image": [*rows, None]}, features=features)
    table.to_parquet(tmp_path / "table" / "test-0.parquet")
    first, second = open_source(tmp_path / "table", num_images=2).images
    assert np.asarray(first.load()).shape == (20, 24, 3)
    with pytest.raises(ImageError, match="test-000001: not an image"):  # and no program is run on it
        second.load()
    with pytest.raises(ValueError, match="row 2 of .* has no image"):
        open_source(tmp_path / "table", split="test")


def test_data_are_a_folder_of_images_whatever_lies_below_it_or_an_error(folder, tmp_path, monkeypatch):
    (folder / "img_3.png").mkdir()
    (folder / "notes").mkdir()
    (folder / "notes" / "a.parquet").write_bytes(b"no table")
    assert [image.name for image in open_source(folder).images] == ["img_1.png", "img_10.png", "img_2.png"]
    monkeypatch.chdir(tmp_path.parent)
    mistyped = f"{tmp_path.name}/Set55"  # like an id of the Hub, for which it does not wait
    for data in (tmp_path / "absent", "./a/b", mistyped):
        with pytest.raises(ValueError, match="`data`(: there is no folder| must be a folder|: there is no 'Set55' in)"):
            run(data)


def test_every_second_image_has_the_place_and_the_degradation_that_it_has_among_all(folder):
    with pytest.raises(ValueError, match="`every` must be a whole number >= 1, got 0"):
        open_source(folder, every=0)
    some, whole = (run(folder, degradation="noise", **given) for given in ({"every": 2}, {}))
    assert [(image["name"], image["rows"]) for image in some["images"]] == [
        (image["name"], image["rows"]) for image in whole["images"][::2]
    ]
    assert "--every 2" in command_line(some) and "--num_images" not in command_line(some)
    assert ", 2 of 3 images" in markdown_table(some) and "--every" not in command_line(whole)


def test_a_data_set_that_cannot_be_reached_is_named(monkeypatch):
    pytest.importorskip("datasets", reason="the library datasets is not installed (extra `data`)")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="`data`: .*'someone/photos-that-are-nowhere'.*; nor is it a folder here"):
        run("someone/photos-that-are-nowhere")


@pytest.mark.parametrize("kind", ["cvdvae", "vdvae-sr"])
def test_samples_of_a_model_at_temperature_zero_have_no_diversity(folder, make_pipeline, kind):
    rows = by_name(run(folder, make_pipeline(kind), temperatures=(0.0, 1.0), num_samples=3, num_images=1))
    for suffix in ("", " projected"):
        still, moved = rows[f"sample t=0{suffix}"], rows[f"sample t=1{suffix}"]
        assert still["apd_mse"] == still["std"] == 0 < moved["apd_mse"]
        assert still["diversity_score"] == pytest.approx(0, abs=1e-6)
        assert still["psnr"] == pytest.approx(rows[f"mean t=0{suffix}"]["psnr"])


def test_the_batch_does_not_change_the_figures_of_a_model(folder, make_pipeline):
    pipe = make_pipeline("cvdvae")
    alone, together = (run(folder, pipe, temperatures=(0.8,), num_samples=3, batch_size=n)["rows"] for n in (1, 9))
    for one, other in zip(alone, together, strict=True):
        for key in ("psnr", "ssim", "lr_psnr"):
            assert one[key] == pytest.approx(other[key], rel=1e-4)


STUB = PerceptualMetrics(
    brisque=lambda image: float(image.mean()),
    lpips=lambda a, b: float(np.abs(a.astype(float) - b).mean() / 255),
    features=lambda image: np.array([image[..., c].mean() for c in range(3)]) / 255,
    absent={"fid": "left out here (pip install 'hvae-sr[metrics]')"},
)


def test_perceptual_metrics_are_those_of_the_given_networks(folder, tmp_path):
    path = tmp_path / "report.json"
    report = run(folder, NoisyBicubic(), temperatures=(0.8,), num_samples=3, perceptual=STUB, report_path=path)
    rows = by_name(report)
    pairs = [prepare_thesis(Image.open(file), 32) for file in sorted(folder.iterdir())]
    ups = [PROTOCOLS["thesis"].upsample(lr, 4) for _, lr in pairs]
    assert rows["bicubic"]["brisque"] == pytest.approx(np.mean([STUB.brisque(up) for up in ups]))
    lpips = [STUB.lpips(hr, up) for (hr, _), up in zip(pairs, ups, strict=True)]
    assert rows["bicubic"]["lpips"] == pytest.approx(np.mean(lpips))
    truths = np.stack([STUB.features(hr) for hr, _ in pairs])
    fid = frechet_distance(np.stack([STUB.features(up) for up in ups]), truths)
    assert rows["bicubic"]["fid"] == pytest.approx(fid, rel=1e-4, abs=1e-9)
    assert 0 < rows["sample t=0.8"]["apd_lpips"] < 0.1 and "apd_lpips" not in rows["bicubic"]
    assert report["metrics"] == ["brisque", "lpips", "fid"]
    table = markdown_table(report)
    assert "fid is absent: left out here" in table and "| LPIPS | BRISQUE | FID |" in table
    # Features are kept with the rows: a resumed evaluation has the same FID.
    resumed = run(folder, NoisyBicubic(), temperatures=(0.8,), num_samples=3, perceptual=STUB, report_path=path)
    assert resumed == report


def test_absent_metrics_have_no_numbers(folder):
    absent = PerceptualMetrics(absent={"lpips": "no network"})
    report = run(folder, perceptual=absent)
    assert all("lpips" not in row and "fid" not in row for row in report["rows"])
    assert report["absent"] == {"lpips": "no network"} and "lpips is absent: no network." in markdown_table(report)


def test_samples_are_drawn_in_calls_of_bounded_size(folder):
    lows = [np.asarray(Image.open(next(folder.iterdir())).resize((32, 32)))] * 2
    one, pipeline = draw(NoisyBicubic(), lows, 1.0, 64, 3), NoisyBicubic()
    for samples, whole in zip(draw(pipeline, lows, 1.0, 64, 3, values_per_call=2**19), one, strict=True):
        np.testing.assert_array_equal(samples, whole)
    calls = [(call["num_samples"], call["seed"]) for call in pipeline.calls]
    assert calls == [(min(5, 64 - start), 3 + start) for start in range(0, 64, 5)]


def test_samples_for_the_calibration_are_held_in_memory_once(folder):
    tracemalloc.start()
    run(folder, NoisyBicubic(), size=128, temperatures=(1.0,), coverage_samples=64, num_samples=2, num_images=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    samples = 64 * 128 * 128 * 3 * 4
    assert peak < 60e6 + 5 * samples  # the samples, a call's, their projections, a band of the intervals, and scratch


def test_lpips_networks_give_taps_ratios_and_the_score_of_their_maps(folder):
    network = LPIPS(random_weights("alexnet"))
    metrics = PerceptualMetrics(lpips=network, lpips_vgg=network)
    report = run(folder, NoisyBicubic(), perceptual=metrics, size=64)
    row, samples = by_name(report)["sample t=0.8"], by_name(run(folder, NoisyBicubic(), size=64))["sample t=0.8"]
    assert samples == {key: row[key] for key in samples}  # the others do not change
    assert row["lpips"] == pytest.approx(row["lpips_vgg"]) == pytest.approx(sum(row[f"lpips@{i}"] for i in range(1, 6)))
    for name in ("mse", "lpips", *(f"lpips@{i}" for i in range(1, 6))):
        assert row[f"exchangeability_{name}"] == pytest.approx(row[f"apd_{name}"] / row[name]) and row[name] > 0
    assert 0 < row["diversity_score_lpips"] < 100 and row["detail"] > 0 and row["detail_tail"] > 0
    table = markdown_table(report)
    for head in ("| LPIPS | LPIPS-VGG |", "| detail | detail, p99.9 |", "exchangeability, MSE", "| tap = 1 |"):
        assert head in table


def test_levels_are_opened_one_at_a_time(folder, make_pipeline):
    pipe = make_pipeline("vdvae-sr")  # of groups at strides 4, 2, 2 and 1
    report = run(folder, pipe, temperatures=(0.0, 1.0), num_samples=2, num_images=1, levels=True)
    rows = by_name(report)
    levels = ("stride 4", "stride 2", "stride 1", "up to stride 2")
    names = [f"{kind} {level}{end}" for kind in ("sample", "mean") for level in levels for end in ("", " projected")]
    assert rows.keys() > set(names) and "temperature" not in rows["sample stride 4"]
    assert rows["sample t=0"]["std"] == 0 < min(rows[f"sample {level}"]["std"] for level in levels)
    assert rows["sample up to stride 2"]["std"] < rows["sample t=1"]["std"]
    assert "--levels" in command_line(report)
    with pytest.raises(ValueError, match="`num_samples` must be at least 2 with `levels`, got 1"):
        run(folder, pipe, num_samples=1, levels=True)


@pytest.mark.slow
def test_processes_split_the_images_and_write_one_report(folder, tmp_path):
    """The command as `accelerate launch` starts it: two processes, one report, the same as of one process."""
    path = tmp_path / "report.json"
    command = [sys.executable, "-m", "hvae_sr.cli", "evaluate", "--data", str(folder), "--size", "32", "-o", str(path)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    own = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    with meeting(2) as environments:
        started = [subprocess.Popen(command, env=own | environment, **pipes) for environment in environments]
        printed = []
        for process in started:
            text, errors = output(process)
            assert process.returncode == 0, errors[-3000:]
            printed.append(text)
    assert "| bicubic projected |" in printed[0] and not printed[1]
    found = read_report(path)
    assert found["rows"] == run(folder)["rows"]
    assert [image["name"] for image in found["images"]] == ["img_1.png", "img_10.png", "img_2.png"]
    assert not list(tmp_path.glob("report.json.partial*"))


def test_the_results_document_has_one_table_a_protocol_and_the_commands(folder, predictions, tmp_path, capsys):
    reports = [
        run(folder, NoisyBicubic(), temperatures=(0.5, 1.0), num_samples=2, coverage_samples=19, name="natural-x4"),
        run(folder, predictions=predictions, num_images=2),
    ]
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for report, path in zip(reports, paths, strict=True):
        write_report(report, path)
    assert main(["results", *map(str, paths), "-o", str(tmp_path / "docs" / "results.md")]) == 0
    text = (tmp_path / "docs" / "results.md").read_text()
    assert text == results_document([read_report(path) for path in paths], ["a.json", "b.json"])
    assert (
        "hvae-sr evaluate --model natural-x4 --data Set5 --protocol thesis --size 32 --temperatures 0.5 1 "
        f"--num_samples 2 --coverage_samples 19 -o a.json  # version {__version__}\n" in text
    )
    assert "hvae-sr evaluate --predictions Ours --data Set5 --protocol thesis --size 32 --num_images 2" in text
    assert text.count("## ") == 2 and text.count("|---|") == 2 and str(tmp_path) not in text
    rows = by_name(reports[0])
    assert "| Method | Set5 | Set5, first 2 images |" in text
    for name, row in (("bicubic", rows["bicubic"]), ("natural-x4, mean t=0.5", rows["mean t=0.5 projected"])):
        gain = f" ({row['psnr_gain']:+.2f})" if row["psnr_gain"] else ""
        assert f"| {name} | {row['psnr']:.2f}{gain} / {row['ssim']:.4f} |" in text
    line = next(line for line in text.splitlines() if line.startswith("| Set5: natural-x4, sample t=1 |"))
    assert f"| {rows['sample t=1 projected']['coverage']:.3f} |" in line
    with pytest.raises(ValueError, match="`reports`"):
        results_document([])


def test_of_two_reports_the_results_document_has_the_rows_of_float32(folder):
    exact, fast = (run(folder, NoisyBicubic(), temperatures=(1.0,), seed=seed, name="natural-x4") for seed in (0, 1))
    fast["pipeline"]["dtype"], fast["seed"] = "bfloat16", 0
    tables, same = (results_document(both).split("## Commands")[0] for both in ([fast, exact], [exact, fast]))
    assert tables == same
    mean = next(line for line in tables.splitlines() if "mean t=1 |" in line)
    assert f"| {by_name(exact)['mean t=1 projected']['psnr']:.2f} (" in mean


def test_reports_of_one_name_keep_their_places_in_the_results_document(folder, predictions, tmp_path):
    reports = [run(folder), run(folder, size=32, num_images=2), run(folder, predictions=predictions)]
    other = run(folder, predictions=predictions)
    other["predictions"] = other["predictions"] | {"sha256": "another"}
    other["rows"][-1] = other["rows"][-1] | {"psnr": 12.34}
    sets = json.loads(json.dumps(reports[0]))
    sets["rows"][0]["psnr"] += 3  # a data set of the same name
    drawn = [run(folder, NoisyBicubic(), temperatures=(0.5,), num_samples=n, name="natural-x4") for n in (1, 2)]
    names = ["a.json", "b.json", "c.json", "d.json", "e.json", "one.json", "two.json"]
    text = results_document([*reports, other, sets, *drawn], names)
    assert "| Method | Set5 | Set5, first 2 images | Set5 (e) |" in text
    line = next(line for line in text.splitlines() if line.startswith("| Ours (d)") and "12.34" in line)
    assert "Ours (d)" in line and "\n| Ours, " in text
    assert "natural-x4, sample t=0.5 |" in text and "natural-x4 (two), sample t=0.5 |" in text


@pytest.fixture
def score(folder, tmp_path, capsys):
    """Runs the command on a folder's images at S = 32: (its status, what it printed)."""

    def score(*given, data=folder):
        words = ["evaluate", "--data", data, "--size", 32, "-o", tmp_path / "r.json", *given]
        return main([str(word) for word in words]), "".join(capsys.readouterr())

    return score


def test_options_without_effect_are_refused(score, predictions, tmp_path):
    for given, named in (
        (["--coverage-samples", 64], "`--coverage-samples` needs `--model`"),
        (["--temperatures", 3, 3], "`--temperatures` needs `--model`"),
        (["--levels"], "`--levels` needs `--model`"),
        (["--lpips-weights", "nowhere"], "`--lpips-weights` needs `--metrics` lpips"),
        (["--metrics", "ssim"], "`--metrics` must be among"),
        (["--write_pairs", tmp_path / "pairs"], "`--predictions` does not go with `--write-pairs`"),
    ):
        status, said = score("--predictions", predictions, *given)
        assert status == 2 and named in said
    status, said = score("--write_pairs", tmp_path / "pairs", "--model", "natural-x2")
    assert status == 2 and "`--model` does not go with `--write-pairs`" in said
    assert not (tmp_path / "r.json").exists() and not (tmp_path / "pairs").exists()


def test_the_command_scores_predictions_of_the_pairs_it_wrote(score, tmp_path):
    for _ in range(2):  # the second time everything is there
        assert score("--write_pairs", tmp_path / "pairs")[0] == 0 and not (tmp_path / "r.json").exists()
    made = tmp_path / "Lanczos"
    made.mkdir()
    for file in (tmp_path / "pairs" / "LR").iterdir():
        Image.open(file).resize((32, 32), Image.Resampling.LANCZOS).save(made / file.name)
    status, said = score("--predictions", made, "--metrics", "brisque")
    assert status == 0 and "| Lanczos projected |" in said
    rows = by_name(read_report(tmp_path / "r.json"))
    assert rows["Lanczos"]["psnr"] > 10 and "brisque" in rows["Lanczos"]


def test_pairs_replace_no_other_files(folder, score, tmp_path):
    (tmp_path / "set").mkdir()
    high = shutil.copytree(folder, tmp_path / "set" / "HR")
    before = {path: path.read_bytes() for path in high.iterdir()}
    status, said = score("--write_pairs", tmp_path / "set", data=high)
    assert status == 2 and "`--write-pairs`" in said
    assert {path: path.read_bytes() for path in high.iterdir()} == before
    first = next(folder.iterdir())
    Image.open(first).save(first.with_suffix(".bmp"))
    status, said = score("--write_pairs", tmp_path / "others")
    assert status == 2 and "of the same name" in said and not (tmp_path / "others").exists()


def test_the_command_draws_the_figures_of_reports(folder, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra `figures`)")
    report = run(folder, NoisyBicubic(), temperatures=(0.5, 1.0), num_samples=2, coverage_samples=19, perceptual=STUB)
    write_report(report, tmp_path / "r.json")
    assert main(["figures", str(tmp_path / "r.json"), "-o", str(tmp_path / "figures")]) == 0
    names = sorted(file.name for file in (tmp_path / "figures").iterdir())
    assert names == ["calibration.png", "plane.png", *(f"r_{name}" for name in (
        "projection.md", "samples.png", "temperature.md", "temperature.png"))]  # fmt: skip
    assert json.loads((tmp_path / "r.json").read_text())["dataset"] == "Set5"
    write_report(report | {"dataset": "Set14"}, tmp_path / "s.json")
    assert main(["figures", *(str(tmp_path / f"{name}.json") for name in "rs"), "-o", str(tmp_path / "both")]) == 0
    assert {file.name for file in (tmp_path / "both").glob("plane*")} == {"plane-1.png", "plane-2.png"}
    assert Path(capsys.readouterr().out.splitlines()[0]).name == "r_projection.md"


def test_reports_of_earlier_versions_are_drawn_and_no_report_is_replaced_by_a_document(folder, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra `figures`)")
    report = run(folder, NoisyBicubic(), temperatures=(0.5, 1.0), num_samples=2)
    rows = [{key: row[key] for key in row if not key.startswith("best_psnr@")} for row in report["rows"]]
    for name in ("a.json", "b.json", "c"):
        write_report({**report, "rows": rows}, tmp_path / name)
    first, *others = paths = [str(tmp_path / name) for name in ("a.json", "b.json", "c")]
    assert main(["figures", *paths, "-o", str(tmp_path / "figures")]) == 0
    assert not list((tmp_path / "figures").glob("*samples*"))
    for document in (first, paths[2]):
        assert main(["results", "-o", document, *others]) == 2
        assert "`--output` must be a new document" in capsys.readouterr().err
    assert all(read_report(path)["rows"] for path in paths)
    assert main(["figures", "a/report.json", "b/report.json", "-o", str(tmp_path / "figures")]) == 2
    assert "a/report.json and b/report.json would give files of the same name" in capsys.readouterr().err


def test_coverage_of_a_single_sample_and_the_orientations_are_shown(folder):
    report = run(folder, NoisyBicubic(), temperatures=(1.0,), num_samples=1, coverage_samples=19)
    for text in (markdown_table(report), results_document([report])):
        assert "coverage of 90 %" in text
    assert "in eight orientations" in markdown_table({**report, "self_ensemble": True})


def test_fid_of_a_single_image_is_refused_before_it_is_scored(folder):
    features = PerceptualMetrics(features=lambda image: pytest.fail("scored"))
    with pytest.raises(ValueError, match="`data` must hold at least 2 images for FID, got 1"):
        run(folder, NoisyBicubic(), num_images=1, perceptual=features)


@pytest.mark.slow
def test_a_data_set_of_the_hub_is_evaluated_by_its_name_like_its_folder(folder, tmp_path):
    """In a process of its own: the libraries read the address of the Hub when they are imported."""
    datasets = pytest.importorskip("datasets")
    from fake_hub import FakeHub, Repository

    rows = [{"bytes": path.read_bytes(), "path": path.name} for path in sorted(folder.iterdir())]
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict({"image": rows}, features=features).to_parquet(tmp_path / "rows.parquet")
    table = {"data/test-00000-of-00001.parquet": (tmp_path / "rows.parquet").read_bytes()}
    options = ["evaluate", "--data", "ada/photos", "--size", "32", "-o", "hub.json"]
    command = [sys.executable, "-m", "hvae_sr.cli", *options]
    with FakeHub() as hub:
        hub.repositories["ada/photos"] = Repository()
        hub.repositories["ada/photos"].commit("main", table)
        environment = {**os.environ, **hub.environment(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
        processes.run(command, check=True, cwd=tmp_path, env=environment)
    assert read_report(tmp_path / "hub.json")["rows"] == run(folder)["rows"]


def test_the_results_document_of_this_package_is_what_its_reports_give():
    root = Path(__file__).resolve().parents[1]
    paths = sorted((root / "benchmarks" / "reports").glob("*.json"))
    made = results_document([read_report(path) for path in paths], [path.name for path in paths])
    assert (root / "docs" / "results.md").read_text("utf-8") == made
