"""Evaluations that are stopped, and reports on disk."""

import json
import os
import re
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from processes import run as process_run
from stand_ins import NoisyBicubic, photo_folder, run

from hvae_sr import SR3Pipeline
from hvae_sr.baselines import AncestralScheduler, SR3UNet
from hvae_sr.evaluation import PerceptualMetrics, markdown_table, read_report, write_report
from hvae_sr.evaluation.evaluator import _describe_pipeline
from hvae_sr.evaluation.storage import Partial


@pytest.fixture
def folder(tmp_path):
    return photo_folder(tmp_path / "Set5", {"a": (45, 60), "b": (50, 41), "c": (40, 40)})


@pytest.fixture
def path(tmp_path):
    return tmp_path / "report.json"


def test_results_by_other_weights_of_a_metric_are_not_taken(folder, path):
    def one(a, b):
        return 1.0

    def two(a, b):
        return 2.0

    run(folder, NoisyBicubic(), report_path=path, num_images=1, perceptual=PerceptualMetrics(lpips=one))
    report = run(folder, NoisyBicubic(), report_path=path, perceptual=PerceptualMetrics(lpips=two))
    assert {image["rows"]["bicubic"]["lpips"] for image in report["images"]} == {2.0}
    network = torch.nn.Linear(2, 2)
    before = PerceptualMetrics(lpips=network).identities
    torch.nn.init.ones_(network.weight)
    assert PerceptualMetrics(lpips=network).identities != before


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_a_stopped_evaluation_resumes_and_its_report_is_that_of_one_run(folder, path):
    run(folder, NoisyBicubic(), report_path=path, num_images=2)
    (partial,) = path.parent.glob("report.json.partial-*")
    partial.write_text(partial.read_text() + '{"image": "c.png", "sha')  # stopped while writing
    resumed = NoisyBicubic()
    report = run(folder, resumed, report_path=path)
    assert len(resumed.calls) == 1 and report == run(folder, NoisyBicubic())
    write_report(report, path)
    assert json.loads(path.read_text()) == report and names(path.parent) == ["Set5", "report.json"]


def test_an_image_whose_place_in_the_set_changed_is_degraded_and_measured_again(folder, path):
    options = {"degradation": "noise", "seed": 3}
    run(folder, NoisyBicubic(), report_path=path, **options)
    Image.open(folder / "b.png").save(folder / "0.png")  # before the others
    resumed = NoisyBicubic()
    assert run(folder, resumed, report_path=path, **options) == run(folder, NoisyBicubic(), **options)


def test_results_of_one_schedule_are_not_those_of_another(path):
    network = SR3UNet(image_size=16, width=8, width_multiples=(1, 2), num_res_blocks=1, norm_groups=4)
    pipes = [SR3Pipeline(network, AncestralScheduler(steps, beta_start=1e-3, beta_end=0.3)) for steps in (20, 5)]
    described = [_describe_pipeline(pipe) for pipe in pipes]
    assert described[0] == _describe_pipeline(pipes[0]) != described[1]


def test_bars_of_an_evaluation_follow_the_environment(folder, tmp_path):
    command = [sys.executable, "-m", "hvae_sr.cli", "evaluate", "--data", folder, "--size", "32"]
    shown, hidden = (
        process_run([*command, "-o", tmp_path / f"{value}.json"], check=True, env={**os.environ, "TQDM_DISABLE": value})
        for value in ("", "1")
    )
    assert "Set5: " in shown.stderr and "Set5: " not in hidden.stderr


def test_damaged_lines_are_measured_again(folder, path, caplog):
    report = run(folder, report_path=path)
    (partial,) = path.parent.glob("report.json.partial-*")
    header, first, second, third = partial.read_bytes().splitlines(keepends=True)
    partial.write_bytes(header + b"\0" * 20 + b"\n" + first[: len(first) // 2] + b"\n" + second + b"[]\n" + third)
    assert run(folder, report_path=path) == report
    assert [record.getMessage().split(" holds")[0] for record in caplog.records] == [str(partial)] * 3
    assert len(partial.read_text().splitlines()) == 4


def test_results_of_any_number_of_processes_are_resumed(folder, path):
    report = run(folder, NoisyBicubic(), report_path=path)
    (partial,) = path.parent.glob("report.json.partial-*")
    header, *lines = partial.read_text().splitlines(keepends=True)
    partial.write_text(header + lines[0])
    partial.with_name(f"{partial.name}.1").write_text(header + lines[1])
    resumed = NoisyBicubic()
    assert run(folder, resumed, report_path=path) == report and len(resumed.calls) == 1
    write_report(report, path)
    assert names(path.parent) == ["Set5", "report.json"]


@pytest.mark.parametrize("change", [{"seed": 1}, {"num_samples": 2}, {"size": 40}, {"temperatures": (0.5,)}])
def test_results_of_other_settings_are_not_reused(folder, path, change):
    run(folder, NoisyBicubic(), report_path=path)
    again = NoisyBicubic()
    report = run(folder, again, report_path=path, **change)
    assert len(again.calls) == 3 and report["rows"] == run(folder, NoisyBicubic(), **change)["rows"]


def test_results_of_another_model_other_predictions_or_a_changed_file_are_not_reused(folder, path, make_pipeline):
    run(folder, NoisyBicubic(), report_path=path)
    Image.new("RGB", (40, 40), (1, 2, 3)).save(folder / "a.png")
    for noise, calls in ((0.03, 1), (0.01, 3)):
        pipeline = NoisyBicubic(noise=noise)
        run(folder, pipeline, report_path=path)
        assert len(pipeline.calls) == calls
    made = photo_folder(path.parent / "Ours", dict.fromkeys("abc", (32, 32)))
    first = run(folder, predictions=made, report_path=path)
    Image.new("RGB", (32, 32)).save(made / "b.png")
    assert run(folder, predictions=made, report_path=path)["rows"] != first["rows"]
    pipeline, options = make_pipeline("cvdvae"), {"num_images": 1, "report_path": path}
    for value in ("None", "0.5"):
        report = run(folder, pipeline, **options)
        assert report["pipeline"]["networks"]["vdvae"]["max_log_sigma"] == value
        pipeline.vdvae.register_to_config(max_log_sigma=0.5)


def test_a_stopped_evaluation_outlives_others_of_other_settings(path):
    report, rows = {"rows": [], "images": []}, {"bicubic": {"psnr": 30.0}}
    path.with_name("report.json.partial-of mine").write_text("not theirs")
    for settings, before, image in [(1, "", "a"), (2, "", "b"), (1, "a", "c"), (2, "b", "d"), (1, "ac", "e")]:
        partial = Partial(path, {"seed": settings})
        assert sorted(name for name, _ in partial.done) == list(before)
        partial.add((image, "sha"), rows, {})
    write_report({"seed": 1, **report}, path)
    assert len(names(path.parent)) == 3 and names(path.parent)[0] == "report.json"
    assert sorted(name for name, _ in Partial(path, {"seed": 2}).done) == ["b", "d"]


def test_reports_are_strict_json_and_read_back_with_their_numbers(folder, path):
    Image.new("RGB", (40, 40), (9, 9, 9)).save(folder / "0.png")
    report = run(folder, num_images=1)
    assert report["rows"][0]["psnr"] == float("inf") and report["rows"][0]["psnr_gain"] == 0
    write_report(report, path)

    def refuse(constant):
        raise AssertionError(constant)

    stored = json.loads(path.read_text(), parse_constant=refuse)
    assert markdown_table(stored) == markdown_table(report) and "| bicubic | inf |" in markdown_table(stored)
    assert read_report(path) == report


@pytest.mark.parametrize(
    "content",
    ['{"rows": []}', '{"rows": [', None, "[]", {"images": [{}]}, {"rows": [{"name": "bicubic", "psnr": None}]}],
)
def test_what_is_no_report_is_named(path, content):
    whole = {"protocol": "thesis", "dataset": "a", "rows": [], "images": []}
    if content is not None:
        path.write_text(content if isinstance(content, str) else json.dumps({**whole, **content}))
    with pytest.raises(ValueError, match="`report`.*report.json"):
        read_report(path)


@pytest.mark.parametrize("place", ["", "file/report.json", "file/a/report.json"])
def test_a_report_that_cannot_be_written_is_refused_before_anything_is_computed(folder, tmp_path, place):
    (tmp_path / "file").write_text("in the way")
    before = sorted(tmp_path.rglob("*"))
    pipeline = NoisyBicubic()
    with pytest.raises(ValueError, match=f"`report_path`.*{re.escape(str(tmp_path / place))}"):
        run(folder, pipeline, report_path=tmp_path / place)
    assert not pipeline.calls and sorted(tmp_path.rglob("*")) == before


def test_a_report_path_with_a_trailing_slash_is_a_file_and_a_folder_none(folder, tmp_path):
    write_report(run(folder, report_path=f"{tmp_path}/new/"), f"{tmp_path}/new/")
    assert names(tmp_path) == ["Set5", "new"] and (tmp_path / "new").is_file()
    with pytest.raises(OSError):
        write_report({"rows": []}, folder)
    assert names(tmp_path) == ["Set5", "new"]  # no temporary file
