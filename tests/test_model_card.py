"""Model cards: metadata that the Hub reads, prose that people wrote, figures that reports hold."""

import json
import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from PIL import Image

from hvae_sr.checkpoints.names import bundled_checkpoints
from hvae_sr.publishing.card import model_card, write_model_card
from hvae_sr.publishing.push import files_to_push

ROOT = Path(__file__).resolve().parent.parent
REPORT = {
    "protocol": "thesis",
    "dataset": "Photos",
    "size": 64,
    "scale_factor": 4,
    "seed": 0,
    "num_samples": 8,
    "temperatures": [0.5, 0.8],
    "coverage_samples": None,
    "pipeline": {"class": "SuperResolutionPipeline"},
    "num_images": 3,
    "num_images_available": 5,
    "images": [],
    "rows": [
        {"name": "bicubic", "psnr": 25.03, "ssim": 0.67, "psnr_gain": 0.0, "ssim_gain": 0.0},
        {"name": "mean t=0.8", "psnr": 25.7, "ssim": 0.71, "psnr_gain": 0.67, "ssim_gain": 0.04},
        {"name": "mean t=0.8 projected", "psnr": 26.14159, "ssim": 0.7319, "psnr_gain": 1.11159, "ssim_gain": 0.0619},
        {"name": "sample t=0.8 projected", "psnr": 25.5, "ssim": 0.7, "psnr_gain": 0.5, "ssim_gain": 0.03, "std": 0.02},
    ],
}  # fmt: skip
NOTES = """---
license: cc0-1.0
datasets: [someone/photos]
base_model: someone/prior
training: {hours: 3, watts: 200, grams_per_kwh: 100, hardware: one GPU}
---

A small model of photographs.

## Limits

It has never seen a cat.

## Training

Three hours of patience.

## History

It began at night.
"""


@pytest.fixture
def folder(make_pipeline, tmp_path):
    path = tmp_path / "tiny-x4"
    make_pipeline().save_pretrained(path)
    (path / "card_notes.md").write_text(NOTES)
    return path


def test_the_metadata_holds_what_the_hub_looks_for(folder):
    data = ModelCard(model_card(folder, reports=[REPORT])).data
    assert data.license == "cc0-1.0" and data.library_name == "hvae-sr" and data.pipeline_tag == "image-to-image"
    assert data.datasets == ["someone/photos"] and data.base_model == "someone/prior"
    assert {"super-resolution", "cvdvae", "uncertainty"} <= set(data.tags)
    assert data.co2_eq_emissions["emissions"] == 60  # 3 h x 200 W x 100 g/kWh
    found = {(result.metric_name, result.metric_type, result.metric_value) for result in data.eval_results}
    assert ("PSNR, mean of 8 samples, temperature 0.8", "psnr", 26.1416) in found
    assert ("SSIM, one sample, temperature 0.8", "ssim", 0.7) in found
    assert all(result.dataset_name == "Photos thesis S=64, first 3 images" for result in data.eval_results)


def test_notes_take_the_place_of_prose_and_follow_what_is_computed(folder):
    text = model_card(folder, reports=[REPORT], training_command="accelerate launch train.py --stage lr-encoder")
    assert "A small model of photographs." in text and "It has never seen a cat." in text
    assert "were\nmade small by" not in text  # the standard limits
    training = text[text.index("## Training") : text.index("## Cost")]
    assert training.index("accelerate launch") < training.index("Three hours of patience")
    assert text.index("## History") < text.index("## Licence")
    for heading in ("Use", "What it is for", "Bias and misuse", "Cost and carbon", "Results", "Papers"):
        assert f"\n## {heading}\n" in text
    assert "Super-resolution of faces" in " ".join(text.split()) and "0.6 kWh" in text and "60 g" in text


def test_tables_show_the_rows_that_users_get_and_the_command_that_makes_them(folder):
    text = model_card(folder, reports=[REPORT, {**REPORT, "size": 256, "rows": REPORT["rows"][:1]}])
    line = next(line for line in text.splitlines() if line.startswith("| mean of 8 samples, temperature 0.8"))
    assert line == "| mean of 8 samples, temperature 0.8 | 26.14 (+1.11) / 0.7319 |  |"
    assert "25.70" not in text  # before the projection
    level = {**REPORT["rows"][3], "name": "sample up to stride 4 projected", "exchangeability_lpips": 0.5}
    card = model_card(folder, reports=[{**REPORT, "rows": [*REPORT["rows"], level]}])
    name = "Photos thesis S=64, first 3 images: one sample, temperature 1 up to stride 4 and 0 elsewhere"
    assert f"| {name} | 5.1 | 0.50 |" in card and "stride" not in str(ModelCard(card).data.eval_results)
    assert "--model tiny-x4 --data Photos --protocol thesis --size 64 --temperatures 0.5 0.8" in text


def test_the_metadata_keeps_configurations_apart_and_holds_the_default_temperature_alone(folder):
    degraded = {**REPORT, "num_images": 5, "degradation": {"name": "noise", "seed": 1}}
    reports = [REPORT, {**REPORT, "size": 256}, {**REPORT, "num_images": 5}, degraded]
    text = model_card(folder, reports=reports)
    data = [result["dataset"] for result in ModelCard(text).data.to_dict()["model-index"][0]["results"]]
    configurations = [found["config"] for found in data]
    assert configurations[:3] == ["thesis-64-first-3-images", "thesis-256-first-3-images", "thesis-64"]
    assert len(set(configurations)) == 4
    names = ["S=64, first 3 images", "S=256, first 3 images", "S=64", "S=64, LR degraded by noise of seed 1"]
    assert [found["name"] for found in data] == [f"Photos thesis {name}" for name in names]
    assert all(f"| Photos thesis {name}" in text for name in names)
    settings = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**settings, "default_temperature": 1.0}))
    rows = [*REPORT["rows"], {"name": "mean t=1 projected", "psnr": 25.0, "ssim": 0.6}]
    results = ModelCard(model_card(folder, reports=[{**REPORT, "rows": rows}])).data.eval_results
    names = {result.metric_name for result in results}
    assert names == {f"{metric}, mean of 8 samples, temperature 1" for metric in ("PSNR", "SSIM")}


def test_a_curve_that_is_not_there_leaves_nothing(folder, tmp_path):
    with pytest.raises(ValueError, match="`curve` must be a picture, there is no file"):
        write_model_card(folder, curve=tmp_path / "none.png")
    (tmp_path / "loss.png").write_bytes(b"picture")
    with pytest.raises(ValueError, match="`notes`"):
        write_model_card(folder, curve=tmp_path / "loss.png", notes=tmp_path / "none.md")
    assert not (folder / "README.md").exists() and not (folder / "images").exists()


def test_a_card_is_written_beside_its_curve_and_uploaded(folder, tmp_path):
    assert files_to_push(folder)["README.md"] == model_card(folder).encode()  # it has none yet
    Image.new("RGB", (4, 4)).save(tmp_path / "loss.png")
    path = write_model_card(folder, curve=tmp_path / "loss.png")
    assert path == folder / "README.md" and "![Training curves](images/loss.png)" in path.read_text()
    assert {"README.md", "images/loss.png"} <= set(files_to_push(folder))


@pytest.mark.parametrize("kind", ["cvdvae", "vdvae-sr"])
def test_without_notes_the_card_describes_the_model_by_its_configuration(make_pipeline, tmp_path, kind):
    make_pipeline(kind).save_pretrained(tmp_path / "model")
    text = model_card(tmp_path / "model")
    assert "factor 4" in text and "4 latent groups at strides 4, 2, 1" in " ".join(text.split())
    assert kind in ModelCard(text).data.tags


CHECKPOINTS = sorted({path.parent for n in ("model_index", "config") for path in ROOT.glob(f"hub_configs/*/{n}.json")})


@pytest.mark.parametrize("path", CHECKPOINTS, ids=lambda path: path.name)
def test_every_checkpoint_in_hub_configs_has_a_card(path):
    card = ModelCard((path / "README.md").read_text(encoding="utf-8"))
    data, is_pipeline = card.data, (path / "model_index.json").is_file()
    assert data.license and data.library_name == "hvae-sr" and data.tags and data.datasets
    assert data.pipeline_tag == ("image-to-image" if is_pipeline else "unconditional-image-generation")
    assert data.metrics == (["psnr", "ssim"] if is_pipeline else None)
    for heading in ("Use", "Bias and misuse", "Licence", "Papers", *(["Limits"] if is_pipeline else [])):
        assert f"\n## {heading}\n" in card.text
    assert "Super-resolution of faces" in " ".join(card.text.split())
    for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", card.text):
        assert (path / picture).is_file(), picture
    if data.license == "other":
        assert data.license_name and (path / data.license_link).is_file()


@pytest.mark.parametrize("path", bundled_checkpoints().values(), ids=lambda path: path.name)
def test_cards_of_bundled_weights_have_their_cost_training_and_pictures(path):
    card = ModelCard((path / "README.md").read_text(encoding="utf-8"))
    assert "\n## Training\n" in card.text and "\n## Cost and carbon\n" in card.text
    assert card.data.co2_eq_emissions["emissions"] > 0 and card.data.co2_eq_emissions["hardware_used"]
    assert card.data.widget
    for pair in card.data.widget:
        for name in (pair["src"], pair["output"]["url"]):
            Image.open(path / name).verify()
            assert name in files_to_push(path)
    for result in card.data.eval_results or []:  # what the metadata says stands in the card's own table
        assert result.task_type == "image-to-image" and result.dataset_name and result.metric_name
        if result.metric_type == "psnr":
            # Rounded to four decimals there, and to two here, of the same number: 28.88497 is 28.8850 and 28.88.
            assert any(f"{result.metric_value + error:.2f}" in card.text for error in (-5e-5, 0, 5e-5))


def test_a_card_is_made_again_the_same(tmp_path):
    source = ROOT / "hub_configs" / "vdvae-cifar10"
    assert model_card(source) == (source / "README.md").read_text(encoding="utf-8")


def test_what_cannot_be_read_or_has_no_card_is_named(folder, tmp_path):
    for argument, value in (("reports", ["nowhere.json"]), ("notes", "nowhere.md")):
        with pytest.raises(ValueError, match=f"`{argument}`.*nowhere"):
            model_card(folder, **{argument: value})
    with pytest.raises(ValueError, match="`folder`"):
        model_card(tmp_path)
    (tmp_path / "model_index.json").write_text('{"_class_name": "RegressionPipeline"}')
    with pytest.raises(ValueError, match=r"`folder`: .* is of a compared system \(RegressionPipeline\)"):
        write_model_card(tmp_path)


@pytest.mark.parametrize(
    ("notes", "said"),
    [
        ("training: 5", "training must be a mapping"),
        ("training: {hours: abc, watts: 3}", "training's hours must be a finite number >= 0, got 'abc'"),
        ("training: {hours: .inf, watts: 10}", "training's hours must be a finite number"),
        ("training: {hours: 1, watts: 10, grams_per_kwh: -1}", "training's grams_per_kwh must be"),
        *((f"tags: {tags}", "tags must be a list") for tags in ("3", "faces", "{a: 1}")),
    ],
)
def test_metadata_that_are_none_are_named(folder, notes, said):
    (folder / "card_notes.md").write_text(f"---\n{notes}\n---\n")
    with pytest.raises(ValueError, match=f"`notes`: {said}"):
        model_card(folder)


@pytest.mark.parametrize(
    "notes", ["\ufeff---\nlicense: mit\n---\n", "--- \nlicense: mit\n--- \nText.\n", "---\nlicense: mit\n---"]
)
def test_notes_of_any_editor_keep_their_metadata(folder, notes):
    (folder / "card_notes.md").write_text(notes, encoding="utf-8")
    assert "license: mit" in model_card(folder)


def test_code_and_repeated_headings_of_notes_stay_whole(folder):
    code = "```\n## step 1\ncommand\n```"
    (folder / "card_notes.md").write_text(f"## Training\n\n{code}\n\n## Data\n\none\n\n## Data\n\ntwo\n")
    text = model_card(folder)
    assert code in text and text.count("## Data") == 1 and text.index("one") < text.index("two")
