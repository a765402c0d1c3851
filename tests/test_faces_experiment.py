"""The experiment on faces: its data, its systems and its document. Nothing is trained here."""

import argparse
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import faces  # noqa: E402
import faces_systems  # noqa: E402
from faces_document import claims, write_document  # noqa: E402

from hvae_sr import VDVAE, LRConditioner, LREncoder  # noqa: E402
from hvae_sr.checkpoints.compared import Recipe  # noqa: E402

SYSTEMS = ("CVDVAE", "HCFlow", "SR3", "DPS", "energy score")


def test_the_last_faces_are_held_out_and_all_are_reduced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faces, "HELD_OUT", 2)
    for part, count in (("train", 5), ("cc0", 6)):
        (tmp_path / part).mkdir()
        for i in range(count):
            Image.new("RGB", (130, 128), (40 * i, 0, 0)).save(tmp_path / part / f"{i:04d}.png")
    faces.prepare(tmp_path, tmp_path / "out")
    found = {part: sorted(p.name for p in (tmp_path / "out" / "data" / part).iterdir()) for part in ("train", "test")}
    assert found == {"train": ["0000.png", "0001.png", "0002.png"], "test": ["0003.png", "0004.png"]}
    assert Image.open(tmp_path / "out" / "data" / "test" / "0004.png").size == (64, 64)
    with pytest.raises(ValueError, match="`--faces`: .*train holds 0 images"):
        faces.prepare(tmp_path / "out", tmp_path / "other")


@pytest.mark.parametrize("scale", [4, 8])
def test_systems_have_about_as_many_parameters(scale: int) -> None:
    def count(network: torch.nn.Module) -> float:
        return sum(p.numel() for p in network.parameters()) / 1e6

    options = faces_systems.others(scale)
    with torch.device("meta"):
        prior = VDVAE(**faces_systems.PRIOR)
        encoder = LREncoder(**faces_systems.lr_encoder(scale, prior.num_groups, "prior")["lr_config"])
        own = {key: dict(options["energy score"][key]) for key in ("vdvae_config", "lr_config")}
        own["lr_config"].pop("_class_name")
        ours = VDVAE(**own["vdvae_config"]), LRConditioner(**own["lr_config"])
    sizes = {
        name: count(Recipe.of_config(o["baseline"]).build("meta")) for name, o in options.items() if "baseline" in o
    }
    sizes |= {"CVDVAE": count(prior) - count(prior.encoder) + count(encoder), "energy score": sum(map(count, ours))}
    assert all(1.3 < size < 2.3 for size in sizes.values()), sizes


def measured(name: str) -> dict[str, Any]:
    temperatures = [1.0] if name in ("SR3", "DPS") else [0.1, 0.4, 0.8, 1.0]
    rows = [{"name": "bicubic", "psnr": 22.0, "ssim": 0.7, "lpips": 0.3}]
    for t in temperatures:
        for suffix in ("", " projected"):
            row = {"psnr": 25 - t, "ssim": 0.8, "lpips": 0.2, "lpips_vgg": 0.3, "brisque": 30.0}
            row |= {"lr_psnr": 60.0 if suffix else 30.0, "apd_mse": 1e-3 * t, "apd_lpips": 0.1 * t}
            rows.append({"name": f"sample t={t:g}{suffix}", **row})
    evaluations = 30 if name in ("SR3", "DPS") else 1
    report = {"rows": rows, "temperatures": temperatures}
    return {"report": report, "parameters": 1.5e6, "evaluations": evaluations, "seconds": 0.1 * evaluations}


def test_the_document_has_every_claim_with_its_figures(tmp_path: Path) -> None:
    found = {name: measured(name) for name in SYSTEMS}
    analysis = {
        "groups": [0, 1, 2, 3], "scales": [1, 4], "strides": [64, 8, 1], "size": [64, 64], "num_codes": 2,
        "num_images": 2, "distance": {"1": [40.0, 20.0, 9.0, 0.0], "4": [30.0, 9.0, 0.4, 0.0]},
    }  # fmt: skip
    runs = {name: {"updates": 10, "images": 80, "hours": 0.1} for name in SYSTEMS}
    results = {"runs": runs, "measured": found, "analysis": analysis, "groups": 2}
    given = {"hours": 0.1, "scale": 4, "num_images": 2, "num_samples": 2, "steps": 30, "codes": 2}
    write_document(tmp_path / "faces.md", results, given, tmp_path / "images" / "faces")
    text = (tmp_path / "faces.md").read_text()
    assert "**These runs had 0.50 processor hours in all**" in text and "--hours 0.1" in text
    verdicts = {words: holds for words, holds, _ in claims(found, analysis, 4)}
    assert all(words in text for words in verdicts)
    # 2000 steps of a tenth of a second each, and half a grey level below all groups.
    assert verdicts["CVDVAE is more than 500 times faster than the sequential methods at their published steps"]
    assert verdicts["For k large enough, but below all, U_k^4 is below half a grey level"]
    assert "images/faces/samples-x4.png" in text


def test_a_prior_that_serves_every_factor_is_measured_at_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data" / "test").mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(tmp_path / "data" / "test" / "0.png")
    made: list[Path] = []

    def evaluated(*_: object, report_path: Path, **__: object) -> dict[str, object]:
        made.append(report_path)
        return {}

    monkeypatch.setattr("hvae_sr.evaluation.evaluate", evaluated)
    monkeypatch.setattr("hvae_sr.evaluation.load_perceptual", lambda *_, **__: None)
    monkeypatch.setattr("hvae_sr.evaluation.write_report", lambda report, path: path.write_text("{}"))
    monkeypatch.setattr("hvae_sr.evaluation.read_report", lambda path: {"path": path})

    class Pipe:
        has_temperature, config, components = False, dict[str, int](), dict[str, object]()

        def __call__(self, image: Image.Image, seed: int) -> None:
            assert image.size == (64 // scale, 64 // scale)

    found = []
    for scale in (4, 8, 4):
        given = argparse.Namespace(
            scale=scale, num_images=1, num_samples=1, steps=2, lpips_weights=None, output_dir=tmp_path
        )
        found.append(faces.measure(Pipe(), tmp_path, "DPS", {"updates": 3}, given)["report"]["path"])
    assert found[0] == found[2] != found[1] and len(made) == 2
