"""Sheets of pictures for model cards: what stands where, pixel by pixel."""

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image

from hvae_sr import RegressionPipeline, SuperResolutionPipeline
from hvae_sr.baselines import RRDBNet
from hvae_sr.cli import main
from hvae_sr.images import load_image, save_image, uncertainty_to_pil
from hvae_sr.operators import Downsampling
from hvae_sr.pictures import BENCHMARK_CROPS, CONTACT_SHEET, benchmark_crops, contact_sheet, draw_sheet, references
from hvae_sr.publishing.push import files_to_push

SIDE, GAP, HEADING, MARGIN = 16, 4, 24, 20


def photo(seed, side=SIDE):
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    return small.resize((side, side), Image.Resampling.BICUBIC)


def tile(sheet, row, column, temperatures, left=0):
    """The tile at a row and column of a contact sheet's part that begins at `left`."""
    x = left + MARGIN + column * (SIDE + GAP)
    y = HEADING + row * (SIDE + GAP) + row // temperatures * 2 * GAP * (temperatures > 1)
    return np.asarray(sheet.crop((x, y, x + SIDE, y + SIDE)))


@pytest.mark.parametrize(("temperatures", "num_samples"), [((0.2, 0.5, 1.0), 4), ((0.8,), 2)])
def test_a_contact_sheet_has_references_once_and_samples_at_every_temperature(make_pipeline, temperatures, num_samples):
    pipe, photos, rows = make_pipeline("cvdvae"), [photo(seed) for seed in range(3)], len(temperatures)
    sheet = contact_sheet(pipe, photos, temperatures, num_samples, seed=5)
    right = (sheet.width - 24) // 2 + 24  # two photographs on the left, the third on the right
    for left, row, truth in ((0, 0, photos[0]), (0, rows, photos[1]), (right, 0, photos[2])):
        small, nearest, bicubic = references(pipe, truth)
        for index, temperature in enumerate(temperatures):
            out = pipe(small, temperature=temperature, num_samples=num_samples, seed=5)
            made = [*out.images[:3], out.mean[0], uncertainty_to_pil(out.std[0])]
            empty = Image.new("RGB", (SIDE, SIDE), "white")
            expected = [empty, empty, *made, empty] if index else [nearest, bicubic, *made, truth]
            for column, picture in enumerate(expected):
                found = tile(sheet, row + index, column, rows, left)
                np.testing.assert_array_equal(found, np.asarray(picture), err_msg=f"{row + index}, {column}")


@pytest.mark.parametrize("kernel", ["bicubic", "box"])
def test_references_are_y_by_the_pipelines_own_kernel(make_vdvae, make_lr_network, kernel):
    pipe, truth = SuperResolutionPipeline(make_vdvae(), make_lr_network("cvdvae"), downsampling_kernel=kernel), photo(0)
    small, nearest, bicubic = references(pipe, truth)
    planes = torch.from_numpy(np.asarray(truth) / 255).permute(2, 0, 1)
    y = Downsampling(4, kernel=kernel)(planes).permute(1, 2, 0).numpy()
    np.testing.assert_allclose(np.asarray(small) / 255, y.clip(0, 1), atol=0.501 / 255)
    assert nearest == small.resize(truth.size, Image.Resampling.NEAREST)
    assert bicubic == small.resize(truth.size, Image.Resampling.BICUBIC)


def test_sheets_that_cannot_be_drawn_are_errors(make_pipeline):
    for photos, options in (([], {}), ([photo(0), photo(1, 32)], {}), ([photo(0)], {"temperatures": ()})):
        with pytest.raises(ValueError, match="`photos` must be images of one size, at least one, and `temperatures`"):
            contact_sheet(make_pipeline("cvdvae"), photos, **options)


def test_the_colours_of_the_uncertainty_are_drawn_where_they_are_asked_for():
    plain, scale = (draw_sheet([[photo(0), None]], ["a", "b"], scale=scale) for scale in (False, True))
    assert scale.height == plain.height + 30 and (np.asarray(plain)[24 : 24 + SIDE, SIDE + GAP :] == 255).all()


@pytest.fixture
def benchmarks(tmp_path):
    for name in BENCHMARK_CROPS:
        path = tmp_path / "sets" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        photo(len(name), 440).save(path)
    return tmp_path / "sets"


def test_the_crops_are_squares_of_the_files(benchmarks):
    crops = benchmark_crops(benchmarks, 32)
    assert len(crops) == 12 and {crop.size for crop in crops} == {(32, 32)}
    name, (left, top) = list(BENCHMARK_CROPS.items())[3]
    expected = Image.open(benchmarks / name).crop((left, top, left + 32, top + 32))
    np.testing.assert_array_equal(np.asarray(crops[3]), np.asarray(expected))


def test_the_card_command_draws_and_shows_the_contact_sheet(benchmarks, make_pipeline, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "model"
    make_pipeline("cvdvae").save_pretrained(folder)
    monkeypatch.setattr("hvae_sr.pictures.BENCHMARK_CROPS", dict(list(BENCHMARK_CROPS.items())[:2]))
    monkeypatch.setattr("hvae_sr.pictures.photographs", lambda: [photo(0, 32)])
    command = ["card", str(folder), "--benchmarks", str(benchmarks)]
    assert main(command) == 2 and "`--benchmarks` goes with `--pictures`" in capsys.readouterr().err
    assert main([*command[:2], "--pictures"]) == 0 and CONTACT_SHEET not in (folder / "README.md").read_text()
    assert main([*command[:2], "--reports", "nowhere.json"]) == 2 and "nowhere.json" in capsys.readouterr().err
    assert main([*command, "--pictures", "--temperatures", "0", "0.5", "1"]) == 0
    picture = f"images/{CONTACT_SHEET}"
    text = (folder / "README.md").read_text()
    assert f"]({picture})" in text and "images/overview.png" in text and picture in files_to_push(folder)
    for pair in ModelCard(text).data.widget:  # the Hub shows these
        small, big = Image.open(folder / pair["src"]), Image.open(folder / pair["output"]["url"])
        assert big.size == (4 * small.width, 4 * small.height)
    assert Image.open(folder / picture).format == "WEBP"
    (benchmarks / next(iter(BENCHMARK_CROPS))).unlink()
    assert main([*command, "--pictures"]) == 2
    assert "`--benchmarks` must hold Set14/img_001.png" in capsys.readouterr().err


def test_pictures_of_a_compared_system_are_refused_before_anything_is_written(tmp_path, capsys):
    RegressionPipeline(RRDBNet(4, 1, 8, 4)).save_pretrained(tmp_path / "model")
    found = sorted(tmp_path.rglob("*"))
    assert main(["card", str(tmp_path / "model"), "--pictures"]) == 2
    assert "`folder` must hold a SuperResolutionPipeline" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == found


@pytest.mark.parametrize("suffix", ["webp", "jpg"])
def test_a_quality_makes_files_smaller(tmp_path, suffix):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    sizes = []
    for quality in (90, 30):
        save_image(noise, tmp_path / f"a.{suffix}", {"seed": 1}, quality=quality)
        sizes.append((tmp_path / f"a.{suffix}").stat().st_size)
    assert sizes[1] < sizes[0] and load_image(tmp_path / f"a.{suffix}").size == (64, 64)
