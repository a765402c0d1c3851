"""The demo's engine, and its API as programs call it; the page itself is tested in a browser."""

import io
import json
import math
import shutil
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image

from hvae_sr.cli import main
from hvae_sr.demo import engine as eng
from hvae_sr.demo.engine import Engine, Refused, Session, Settings, describe
from hvae_sr.images import read_metadata
from hvae_sr.posterior import Recipe


@pytest.fixture
def folder(make_pipeline, tmp_path):
    make_pipeline().save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture
def engine(folder):
    return Engine([str(folder)], max_pixels=40 * 30)


@pytest.fixture
def photo():
    return Image.fromarray(np.random.default_rng(0).integers(60, 200, (10, 13, 3), dtype=np.uint8))


@pytest.fixture
def session(engine, photo, tmp_path):
    (tmp_path / "visit").mkdir()
    made = Session(tmp_path / "visit", photo, Settings("tiny", 0.7))
    made.samples = list(engine.draw(made, engine.recipes("tiny", 3, 3)))
    return made


def same(a, b):
    return np.array_equal(np.asarray(a), np.asarray(b))


def test_samples_and_their_files_are_the_pipelines_own(engine, session, photo):
    for number, sample in enumerate(session.samples):
        out = engine.pipelines["tiny"](photo, temperature=0.7, seed=3 + number)
        assert same(sample.image, out.images[0]) and same(Image.open(sample.path), out.images[0])
        assert sample.lr_psnr == out.lr_psnr[0]
        facts = read_metadata(sample.path)
        assert facts["seed"] == sample.recipe.seed and facts["temperature"] == 0.7 and facts["model"] == "tiny"


def test_a_version_keeps_the_coarse_groups_and_redraws_the_rest(engine, session, photo):
    pipe, first = engine.pipelines["tiny"], session.samples[0].recipe
    version = first.vary(2, 99)
    assert version.group_seeds == (3, 3, 99, 99) and version.seed is None
    drawn, again = engine.draw(session, [version, first.vary(4, 99)])
    kept = pipe(photo, temperature=0.7, seed=3, return_latents=True).latents
    expected = pipe(photo, temperature=0.7, seed=99, latents=kept[:2]).images[0]
    assert same(drawn.image, expected)
    assert not same(drawn.image, session.samples[0].image)
    assert same(again.image, session.samples[0].image)
    assert read_metadata(drawn.path)["group_seeds"] == [3, 3, 99, 99]


def test_a_region_is_redrawn_and_the_rest_stays_as_it_is(engine, session, photo):
    mask = np.zeros((40, 52), dtype=bool)
    mask[8:32, 10:40] = True
    (drawn,) = engine.draw(session, [session.samples[1].recipe.redraw(mask, 42)])
    before, after = np.asarray(session.samples[1].image), np.asarray(drawn.image)
    assert np.array_equal(after[~mask], before[~mask]) and not np.array_equal(after[mask], before[mask])
    assert drawn.lr_psnr > 40  # still the input when made small


def test_temperatures_are_given_by_level(engine, session):
    assert engine.levels("tiny") == [(4, 1), (2, 2), (1, 1)]
    assert engine.temperatures("tiny", [0.1, 0.2, 0.3]) == [0.1, 0.2, 0.2, 0.3]
    assert engine.temperatures("tiny", [0.1, 0.2, 0.3, 0.4]) == [0.1, 0.2, 0.2, 0.3]
    assert engine.temperatures("tiny", [0.1, 0.2]) == [0.1, 0.2, 0.2, 0.2]


def test_the_last_slider_is_that_of_all_further_levels(engine, monkeypatch):
    pytest.importorskip("gradio", reason="the page needs the extra [demo]")
    from hvae_sr.demo import handlers

    page = handlers.Handlers(engine)
    assert [one.label for one in page.on_levels("tiny", True, 0.5)[1:4]] == [
        "Level 1: layout, stride 4 (1 groups)",
        "Level 2: shapes, stride 2 (2 groups)",
        "Level 3: texture, stride 1 (1 groups)",
    ]
    monkeypatch.setattr(handlers, "MAX_LEVELS", 2)
    _, *sliders = page.on_levels("tiny", True, 0.5)
    assert [one.label for one in sliders] == [
        "Level 1: layout, stride 4 (1 groups)", "Levels 2 to 3: texture, stride 2 and less (3 groups)"
    ]  # fmt: skip


def test_models_of_one_name_are_told_apart(engine, folder, tmp_path):
    other = tmp_path / "other" / "tiny"
    shutil.copytree(folder, other)
    assert list(Engine([str(folder), str(other), str(folder)]).pipelines) == [str(folder), str(other)]
    assert list(engine.pipelines) == ["tiny"]


def test_mean_and_uncertainty_are_those_of_the_pipeline_but_for_rounding(engine, session, photo):
    out = engine.pipelines["tiny"](photo, temperature=0.7, num_samples=3, seed=3)
    mean, std = eng.mean_and_std(session.samples)
    assert np.abs(np.asarray(mean, dtype=int) - np.asarray(out.mean[0])).max() <= 2  # a batch may round otherwise
    assert np.abs(std - out.std[0]).max() < 2 / 255
    assert eng.overlay(session.samples[0].image, std).size == mean.size


def test_the_zip_holds_every_sample_the_mean_and_the_map(session):
    with zipfile.ZipFile(eng.write_zip(session)) as archive:
        assert {"mean.png", "uncertainty.png"} < set(archive.namelist()) and len(archive.namelist()) == 5
        for sample in session.samples:
            assert archive.read(sample.path.name) == sample.path.read_bytes()


@pytest.mark.parametrize("centre", [(0, 0), (0.5, 0.5), (1, 1)])
def test_close_ups_are_cut_out_of_the_samples_and_flicker_without_loss(session, centre):
    parts = eng.close_ups(session, centre, 16)
    assert len(parts) == 5 and all(part.size == (16, 16) for _, part in parts)
    pictures = [part for _, part in parts[1:-1]]
    moving = Image.open(io.BytesIO(eng.flicker(pictures)))
    assert moving.n_frames == 3
    for number, picture in enumerate(pictures):
        moving.seek(number)
        assert same(moving.convert("RGB"), picture)


def test_pictures_that_will_not_do_are_refused_in_friendly_words(engine, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG nonsense")
    for image, words in [
        (None, "Choose a picture"),
        (tmp_path / "broken.png", "cannot be read"),
        (Image.new("RGB", (41, 30)), "takes up to"),
        (Image.new("RGB", (3, 30)), "too few"),
    ]:
        with pytest.raises(Refused, match=words):
            engine.check(image, "tiny")
    small = engine.shrink(Image.new("RGB", (400, 300)), "tiny")
    assert engine.check(small, "tiny").size == (40, 30)


def test_models_of_large_factors_take_smaller_pictures(engine, monkeypatch):
    picture = Image.new("RGB", (400, 300))
    for scale, size in ((2, (40, 30)), (4, (40, 30)), (8, (20, 15))):
        monkeypatch.setattr(engine, "scale", lambda model, scale=scale: scale)
        assert engine.shrink(picture, "tiny").size == size
        with pytest.raises(Refused, match=f"takes up to {math.isqrt(size[0] * size[1])} x"):
            engine.check(picture, "tiny")
    pytest.importorskip("gradio", reason="the page needs the extra [demo]")
    from hvae_sr.demo.handlers import Handlers

    page = Handlers(engine)
    status, button = page.on_image(Image.new("RGB", (10, 7)), "tiny")
    assert "80 x 56" in status and not button.visible


def test_recipes_describe_themselves():
    assert describe(Recipe((5, 5, 5))) == "seed 5"
    assert describe(Recipe((5, 5, 5)).vary(2, 9)) == "2 groups of 5, then 9"


def test_without_gradio_the_command_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["demo"]) == 2
    assert "hvae-sr[demo]" in capsys.readouterr().err


def test_the_api_gives_the_pipelines_samples_to_programs(folder, photo, tmp_path):
    gradio_client = pytest.importorskip("gradio_client", reason="gradio is not installed (extra demo)")
    pytest.importorskip("gradio", reason="gradio is not installed (extra demo)")
    from hvae_sr.demo.interface import build, launch

    photo.save(tmp_path / "photo.png")
    blocks = build([str(folder)], device="cpu")
    try:
        _, address, _ = launch(blocks, prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
        client = gradio_client.Client(address, verbose=False, download_files=str(tmp_path / "down"))
        image = gradio_client.handle_file(str(tmp_path / "photo.png"))
        files, facts = client.predict(image, "tiny", 0.6, 2, 7, True, api_name="/upscale")
        with pytest.raises(Exception, match="maximum"):
            client.predict(image, "tiny", 0.6, 99, 7, True, api_name="/upscale")
        assert [name for name in client.view_api(return_format="dict")["named_endpoints"]] == ["/upscale"]
        client.close()
    finally:
        blocks.close()
    facts = json.loads(facts) if isinstance(facts, str) else facts
    pipe = Engine([str(folder)]).pipelines["tiny"]
    outs = [pipe(photo, temperature=0.6, seed=seed) for seed in (7, 8)]
    assert facts == {"seeds": [7, 8], "lr_psnr": [round(out.lr_psnr[0], 4) for out in outs]}
    for file, out in zip(files, outs, strict=True):
        assert same(Image.open(file["image"]), out.images[0])


def test_a_sample_that_is_being_drawn_when_the_visitor_stops_is_not_kept(engine, session, monkeypatch):
    pytest.importorskip("gradio", reason="gradio is not installed (extra demo)")
    from hvae_sr.demo.handlers import Handlers

    handlers, draw = Handlers(engine), engine.draw
    fresh = Session(handlers.folder(), session.image, session.settings)

    def stop_meanwhile(*given):
        for number, sample in enumerate(draw(*given)):
            if number == 1:
                handlers.on_stop(fresh)
            yield sample

    monkeypatch.setattr(engine, "draw", stop_meanwhile)
    assert len(list(handlers._run(None, fresh, engine.recipes("tiny", 3, 3)))) == 2
    assert [sample.recipe.seed for sample in fresh.samples] == [3]
    monkeypatch.setattr(engine, "draw", draw)
    assert len(list(handlers._run(None, fresh, engine.recipes("tiny", 3, 2)))) == 3 and len(fresh.samples) == 2
