"""The demo's engine, and its API as programs call it; the page itself is tested in a browser."""

import argparse
import base64
import io
import json
import os
import runpy
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, ImageDraw, ImageFilter
from processes import PATIENCE

from hvae_sr import SuperResolutionPipeline
from hvae_sr.cli import main
from hvae_sr.demo import engine as eng
from hvae_sr.demo.engine import Engine, Refused, Round, Settings, Stopped, describe
from hvae_sr.images import WideImage, colour, read_metadata, save_image
from hvae_sr.pictures import photographs
from hvae_sr.posterior import Recipe


@pytest.fixture
def folder(make_pipeline, tmp_path):
    make_pipeline().save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture
def engine(folder):
    return Engine([str(folder)], max_pixels=40 * 30)


@pytest.fixture
def two_models(make_pipeline, tmp_path):
    """The model of clean pictures and that of all others, which does not know H."""
    pipe = make_pipeline("vdvae-sr")
    for name, consistency, default in (("natural-x4", "exact", 0.5), ("photo-x4", "none", 0.3)):
        more = {"consistency": consistency, "default_temperature": default}
        SuperResolutionPipeline(pipe.vdvae, pipe.lr_encoder, **more).save_pretrained(tmp_path / name)
    return Engine([str(tmp_path / "natural-x4"), str(tmp_path / "photo-x4")])


@pytest.fixture
def photo():
    return Image.fromarray(np.random.default_rng(0).integers(60, 200, (10, 13, 3), dtype=np.uint8))


def draw(engine, drawn, recipes):
    found = engine.draw(drawn.image, drawn.settings, recipes)
    return [drawn.keep(image, recipe, lr_psnr) for recipe, (image, lr_psnr) in zip(recipes, found, strict=True)]


@pytest.fixture
def drawn(engine, photo, tmp_path):
    (tmp_path / "visit").mkdir()
    made = Round("Drawn", photo, Settings("tiny", 0.7), tmp_path / "visit", "holiday")
    draw(engine, made, engine.recipes("tiny", 3, 3))
    return made


def same(a, b):
    return np.array_equal(np.asarray(a), np.asarray(b))


def test_samples_and_their_files_are_the_pipelines_own(engine, drawn, photo):
    for number, sample in enumerate(drawn.samples):
        out = engine.pipelines["tiny"](photo, temperature=0.7, seed=3 + number)
        assert same(sample.image, out.images[0]) and same(Image.open(sample.path), out.images[0])
        assert sample.lr_psnr == out.lr_psnr[0]
        assert sample.path.name == f"holiday_sample_0{number + 1}.png"
        written = read_metadata(sample.path)
        assert written["seed"] == sample.recipe.seed and written["temperature"] == 0.7 and written["model"] == "tiny"


def test_a_version_keeps_the_coarse_groups_and_redraws_the_rest(engine, drawn, photo):
    pipe, first = engine.pipelines["tiny"], drawn.samples[0].recipe
    version, again = draw(engine, drawn, [first.vary(2, 99), first.vary(4, 99)])
    kept = pipe(photo, temperature=0.7, seed=3, return_latents=True).latents
    assert same(version.image, pipe(photo, temperature=0.7, seed=99, latents=kept[:2]).images[0])
    assert same(again.image, drawn.samples[0].image) and not same(version.image, again.image)
    assert read_metadata(version.path)["group_seeds"] == [3, 3, 99, 99]
    assert version.caption.startswith("seed 3 with texture 99, matches") and describe(first) == "seed 3"


def test_a_region_is_redrawn_and_the_rest_stays_as_it_is(engine, drawn):
    mask = np.zeros((40, 52), dtype=bool)
    mask[8:32, 10:40] = True
    (redrawn,) = draw(engine, drawn, [drawn.samples[1].recipe.redraw(mask, 42)])
    before, after = np.asarray(drawn.samples[1].image), np.asarray(redrawn.image)
    assert np.array_equal(after[~mask], before[~mask]) and not np.array_equal(after[mask], before[mask])
    assert redrawn.lr_psnr > 40  # still the input when made small
    assert redrawn.caption.startswith("seed 4, a part redrawn")


def test_a_sample_is_stopped_while_it_is_drawn(engine, photo):
    asked = []

    def stopped():
        asked.append(1)
        return len(asked) > 5  # the tiny model has four blocks

    engine.stopped = stopped
    samples = engine.draw(photo, Settings("tiny", 0.7), engine.recipes("tiny", 0, 3))
    next(samples)
    with pytest.raises(Stopped):
        next(samples)


LOOK = ("Bicubic", "Sample", 50, 50, 16)
PART = ([], 10, 10, 50, 50, 0)
"""What is redrawn: no outline, but a rectangle, and the seed."""


def run_of(handler, visit, *given):
    """A run that was begun, up to its first yield."""
    run = handler(visit, handler.__self__.on_start(visit)[0], *given)
    next(run)
    return run


def drawn_by_the_page(page, visit, image, model="tiny", temperature=0.7, by_level=False, seed=3, ticket=None):
    """The steps of a run that draws one sample."""
    ticket = page.on_start(visit, 1, image)[0] if ticket is None else ticket
    settings = (model, temperature, by_level, *[0.5] * 6, True, seed, 1)
    return list(page.on_draw(visit, ticket, image, *settings, *LOOK))


@pytest.fixture
def gr():
    return pytest.importorskip("gradio", reason="the page needs the extra [demo]")


@pytest.fixture
def views(gr):
    from hvae_sr.demo import views

    return views


@pytest.fixture
def page(gr, engine):
    from hvae_sr.demo.handlers import Handlers

    return Handlers(engine)


@pytest.fixture
def visit(drawn):
    return eng.Visit(rounds=[drawn])


@pytest.fixture
def said(gr, monkeypatch):
    """What visitors are warned of."""
    found = []
    monkeypatch.setattr(gr, "Warning", lambda text, duration: found.append(text))
    return found


def test_a_run_that_ends_late_leaves_the_stop_of_another_one(page, visit):
    late = run_of(page.on_redraw, visit, *PART)
    next(late)
    other = page.engine.stopped = lambda: True
    late.close()
    assert page.engine.stopped is other


def test_views_are_those_of_the_sample_before_while_a_part_is_redrawn(page, visit):
    visit.shown.selected = 1
    run = run_of(page.on_redraw, visit, *PART)
    page.on_look(visit, "Bicubic", "Sample", 50, 50, 16)
    assert visit.shown.chosen is visit.shown.samples[1] and "Stopped" not in page.on_compare(visit, "Bicubic", "Sample")
    list(run)
    assert visit.shown.selected == 3 and visit.shown.chosen.recipe.regions
    page.on_stop(visit, "Bicubic", "Sample")


def test_a_run_leaves_the_gallery_of_another_round_alone(page, visit, gr):
    run = run_of(page.on_vary, visit, 50, 0, 4)
    next(run)
    assert visit.current == 1
    page.on_round(visit, 0)
    rest = list(run)
    assert len(visit.rounds[1].samples) == 4
    assert rest and all(
        not isinstance(gallery, gr.Gallery) and not isinstance(gallery, list) for _, _, gallery, *_ in rest
    )


def test_a_round_has_an_end(page, visit, monkeypatch, said):
    monkeypatch.setattr(f"{type(page).__module__}.MAX_IN_ROUND", 4)
    list(run_of(page.on_redraw, visit, *PART))
    list(run_of(page.on_redraw, visit, *PART))
    assert len(visit.shown.samples) == 4 and "4 samples" in said[0]


@pytest.mark.parametrize("kept, groups", [(0, []), (50, [2]), (100, [3])])
def test_versions_differ_in_a_part_that_was_redrawn_and_never_keep_all(page, visit, kept, groups):
    list(run_of(page.on_redraw, visit, [], 0, 0, 100, 100, 0))
    list(run_of(page.on_vary, visit, kept, 0, 3))
    seeds = [sample.recipe.group_seeds for sample in visit.shown.samples]
    assert len(set(seeds)) == 3 and len({sample.image.tobytes() for sample in visit.shown.samples}) == 3
    told = [read_metadata(sample.path)["regions"] for sample in visit.shown.samples]
    assert "groups" not in told[0][0]
    assert [[region["groups"] for region in regions] for regions in told[1:]] == [groups, groups]


def test_the_last_rounds_are_kept(page, visit, monkeypatch):
    monkeypatch.setattr(f"{type(page).__module__}.MAX_ROUNDS", 3)
    first, rounds = visit.shown, []
    for _ in range(4):
        list(run_of(page.on_vary, visit, 50, 0, 2))
        rounds.append(visit.shown)
        assert visit.rounds == [first, *rounds[-2:]]
    assert not rounds[0].folder.exists() and all(one.folder.exists() for one in visit.rounds)


def test_what_is_drawn_is_what_there_was_when_it_was_asked_for(page, visit, photo, tmp_path):
    photo.save(tmp_path / "first.png")
    image, *_ = page.on_image(visit, str(tmp_path / "first.png"), "tiny")
    visit.reframe(box=(2, 1, 10, 9))
    ticket, *_ = page.on_start(visit, 1, image)
    photo.rotate(180).save(tmp_path / "second.png")
    page.on_image(visit, str(tmp_path / "second.png"), "tiny")  # while it waits
    steps = drawn_by_the_page(page, visit, image, ticket=ticket)
    sample, part = visit.shown.chosen, photo.crop((2, 1, 10, 9))
    assert same(sample.image, page.engine.pipelines["tiny"](part, temperature=0.7, seed=3).images[0])
    assert sample.path.name == "first_sample_01.png" and read_metadata(sample.path)["crop"] == [2, 1, 8, 8]
    assert visit.framed.stem == "second" and not visit.asked
    views = next(step[4:] for step in steps if "first_sample_01" in str(step[4]))  # with the first sample
    assert "comes here" in views[1] and views[5].value["orig_name"] == sample.path.name


def test_a_version_is_one_of_what_was_shown_when_it_was_asked_for(page, visit, photo, tmp_path, said):
    first = visit.shown
    vary, redraw, late = (page.on_start(visit)[0] for _ in range(3))
    first.selected = 2  # while they wait
    list(page.on_vary(visit, vary, 50, 0, 2, *LOOK))
    assert visit.shown.name == "Like seed 3"
    list(page.on_redraw(visit, redraw, *PART, *LOOK))  # another round is shown by now
    assert first.samples[-1].recipe.group_seeds == (3, 3, 3, 3) and first.samples[-1].redrawn
    photo.save(tmp_path / "other.png")
    drawn_by_the_page(page, visit, str(tmp_path / "other.png"))
    list(page.on_redraw(visit, late, *PART, *LOOK))
    assert said == ["The picture that this was asked for is gone."]
    assert len(visit.rounds) == len(visit.shown.samples) == 1 and not visit.meant


def test_a_picture_that_the_page_has_not_read_yet_is_drawn_by_the_model_for_it(gr, two_models, tmp_path):
    from hvae_sr.demo.handlers import Handlers

    page, image = Handlers(two_models), str(tmp_path / "small.jpg")
    photographs()[0].save(image, quality=30)
    for chosen, drawn in ((0.5, 0.3), (0.9, 0.9)):  # the model's own, unless the visitor has chosen another
        visit = eng.Visit()
        drawn_by_the_page(page, visit, image, "natural-x4", chosen)
        assert visit.shown.settings == Settings("photo-x4", drawn, False)
        assert page.on_levels(visit, "photo-x4", False, chosen)[0].value == drawn

    # Read already, but the page does not say so yet; and then it does.
    visit = eng.Visit()
    preview, *_ = page.on_image(visit, image, "natural-x4")
    early = page.on_start(visit, 1, preview)[0]
    page.on_levels(visit, "photo-x4", False, 0.5)
    later = page.on_start(visit, 1, preview)[0]
    drawn_by_the_page(page, visit, preview, "natural-x4", 0.5, by_level=True, ticket=early)
    groups = two_models.pipelines["photo-x4"].vdvae.num_groups
    assert visit.shown.settings == Settings("photo-x4", [0.3] * groups, False)
    drawn_by_the_page(page, visit, preview, "natural-x4", 0.5, ticket=later)
    assert visit.shown.settings == Settings("natural-x4", 0.5)  # the visitor's own choice

    # What is never projected does not say so.
    drawn_by_the_page(page, visit, preview, "photo-x4")
    assert not read_metadata(visit.shown.chosen.path)["consistent"]
    assert [page.on_exact(model).visible for model in ("natural-x4", "photo-x4")] == [True, False]


def test_a_frame_stays_where_another_model_takes_it_and_is_shown_anew(page, visit, engine, tmp_path):
    Image.new("RGB", (100, 100)).save(tmp_path / "large.png")
    page.on_image(visit, str(tmp_path / "large.png"), "tiny")
    visit.reframe(box=(5, 5, 25, 25))
    frames = [page.on_model(visit, "tiny")[2] for _ in range(2)]
    assert visit.framed.box == (5, 5, 25, 25) and frames[0] != frames[1]
    visit.reframe(box=(0, 0, 90, 90))  # that of a model that takes more
    page.on_model(visit, "tiny")
    assert visit.framed.box == engine.detail((100, 100), "tiny")


def test_a_page_that_is_closed_draws_no_more(page, visit):
    request = argparse.Namespace(session_hash="abc")
    ticket, *_ = page.on_start(visit, 4, request=request)
    page.on_leave(request)
    assert list(page.on_vary(visit, ticket, 50, 0, 4)) == [] and not page.visits
    page.on_start(gone := eng.Visit(), 4, request=request)
    assert dict(page.visits) == {"abc": gone}
    del gone  # as gradio does after a while
    assert not page.visits


@pytest.mark.parametrize("seed", [1.5, 2**53, "one", float("nan")])
def test_seeds_are_whole_numbers_that_a_browser_can_hold(page, visit, seed, said):
    list(page.on_vary(visit, page.on_start(visit)[0], 50, seed, 2))
    assert "The seed must" in said[0] and len(visit.rounds) == 1


def test_the_file_of_a_sample_tells_how_to_draw_it_again(page, visit, photo):
    list(run_of(page.on_redraw, visit, [[0.1, 0.1], [0.9, 0.2], [0.3, 0.8]], 0, 0, 0, 0, 0))
    redrawn = visit.shown.chosen
    list(run_of(page.on_vary, visit, 50, 0, 2))
    labels = [sample.label for sample in visit.shown.samples]
    assert labels == ["part redrawn", f"texture {visit.shown.samples[1].recipe.group_seeds[-1]}"]
    written = read_metadata(redrawn.path)
    recipe = Recipe(tuple(written["group_seeds"]))
    for region in written["regions"]:
        mask = np.asarray(Image.open(io.BytesIO(base64.b64decode(region["mask"]))))
        recipe = recipe.redraw(mask, region["seed"])
    (again,) = page.engine.pipelines["tiny"].samples(photo, recipes=[recipe], temperature=written["temperature"])
    assert same(again.image, redrawn.image)


def test_files_go_when_they_are_no_longer_used(page, visit, photo, tmp_path, said):
    photo.save(tmp_path / "photo.png")
    previews = []
    for _ in range(2):
        preview, *_, returned = page.on_image(visit, str(tmp_path / "photo.png"), "tiny")
        assert returned is visit  # so that gradio knows that it is in use
        previews.append(Path(preview))
    assert [path.exists() for path in previews] == [False, True]
    eng.sweep(page.root.name, 60)
    assert previews[1].exists()
    for path in (visit.folder, *visit.folder.iterdir()):
        os.utime(path, (0, 0))
    opening = page.opening_photo()[1]
    eng.sweep(page.root.name, 60)
    assert not visit.folder.exists() and (opening is None or Path(opening).exists())
    assert visit.new_folder(page.root.name).is_dir()

    drawn_by_the_page(page, eng.Visit(rounds=visit.rounds), str(previews[1]))  # by then the visit is another one
    assert said == ["This page has been idle for too long: choose the picture again."]


def test_the_command_repeats_a_sample_of_the_page_or_says_why_not(
    page, visit, photo, folder, make_pipeline, tmp_path, capsys
):
    see_through = photo.convert("RGBA")
    see_through.putalpha(Image.linear_gradient("L").resize(photo.size))
    see_through.save(tmp_path / "through.png")
    photo.resize((65, 50)).save(tmp_path / "large.png")
    photo.save(tmp_path / "photo.png")
    make_pipeline(seed=1).save_pretrained(tmp_path / "other")

    save_image(WideImage(np.full((10, 13, 3), 30_000, np.uint16), {}), tmp_path / "wide.png")

    def like(name, model=folder, preview=None):
        drawn_by_the_page(page, visit, preview or str(tmp_path / name))
        made = ["--like", str(visit.shown.chosen.path), "--model", str(model)]
        return main(["upscale", str(tmp_path / name), "-o", str(tmp_path / "out"), *made]), capsys.readouterr().err

    assert like("photo.png") == (0, "")
    assert same(Image.open(tmp_path / "out" / "photo_x4_seed3.png"), Image.open(visit.shown.chosen.path))
    status, error = like("photo.png", tmp_path / "other")
    assert status == 2 and "other weights" in error
    assert "on white ground" in like("through.png")[1]
    assert "was drawn of 8 bits" in like("wide.png")[1]
    page.on_image(visit, str(tmp_path / "large.png"), "tiny")
    preview, *_ = page.on_shrink(visit, "tiny")
    status, error = like("large.png", preview=preview)
    assert read_metadata(visit.shown.chosen.path)["shrunk"] == list(visit.framed.photo.size)
    assert status == 2 and "shrunk to [39, 30]" in error


def test_bfloat16_is_that_of_the_command(folder, photo):
    made = Engine([str(folder)], dtype=torch.bfloat16)
    pipe = made.pipelines["tiny"]
    assert pipe.vdvae.dtype == torch.float32 and pipe.inference_dtype == torch.bfloat16
    assert made.told("tiny")["weights"] == Engine([str(folder)]).told("tiny")["weights"]


@pytest.mark.parametrize("device", ["gpu", "meta"])
def test_a_device_that_is_none_is_named(device, gr, folder, capsys):
    assert main(["demo", "--model", str(folder), "--device", device, "--no-browser"]) == 2
    assert f"`--device`: cannot use '{device}'" in capsys.readouterr().err


def test_temperatures_are_given_by_level_and_the_last_slider_is_that_of_all_further_levels(page, engine, monkeypatch):
    assert engine.levels("tiny") == [(4, 1), (2, 2), (1, 1)]
    assert engine.temperatures("tiny", [0.1, 0.2, 0.3, 0.4]) == [0.1, 0.2, 0.2, 0.3]
    assert engine.temperatures("tiny", [0.1, 0.2]) == [0.1, 0.2, 0.2, 0.2]
    first, second, third = (one.label for one in page.on_levels(eng.Visit(), "tiny", True, 0.5)[1:4])
    assert first == "Level 1: layout, stride 4 (1 groups)"
    assert (second, third) == ("Level 2: shapes, stride 2 (2 groups)", "Level 3: texture, stride 1 (1 groups)")
    monkeypatch.setattr("hvae_sr.demo.views.MAX_LEVELS", 2)
    labels = [one.label for one in page.on_levels(eng.Visit(), "tiny", True, 0.5)[1:]]
    assert labels == [first, "Levels 2 to 3: texture, stride 2 and less (3 groups)"]


def test_the_end_of_a_run_leaves_the_buttons_to_the_next_one_that_waits(page, gr):
    visit = eng.Visit()
    for expected in (1, 2):  # the second is asked for while the first is drawn
        number, *_ = page.on_start(visit)
        assert number == expected
    for number, idle in ((1, False), (2, True)):
        list(page.on_vary(visit, number, 60, 0, 2))  # refused, as nothing was drawn; it ends all the same
        draw, stop = page.on_end(visit)
        assert (draw.interactive, stop.interactive) == (True, False) if idle else draw == stop == gr.skip()
    page.on_start(visit)
    page.on_stop(visit, "Bicubic", "Sample")
    assert page.on_end(visit)[0].interactive  # the stopped one does not count


def test_models_of_one_name_are_told_apart(engine, folder, tmp_path):
    other = tmp_path / "other" / "tiny"
    shutil.copytree(folder, other)
    assert list(Engine([str(folder), str(other), str(folder)]).pipelines) == [str(folder), str(other)]
    assert list(engine.pipelines) == ["tiny"]


def test_mean_and_uncertainty_are_those_of_the_pipeline_but_for_rounding(engine, drawn, photo, views):
    out = engine.pipelines["tiny"](photo, temperature=0.7, num_samples=3, seed=3)
    mean, std = views.mean_and_std(drawn.samples)
    assert np.abs(np.asarray(mean, dtype=int) - np.asarray(out.mean[0])).max() <= 2  # a batch may round otherwise
    assert np.abs(std - out.std[0]).max() < 2 / 255
    assert views.overlay(drawn.samples[0].image, std).size == mean.size
    assert same(views.difference(mean, mean), np.full((40, 52, 3), 128))


@pytest.mark.parametrize("centre", [(0, 0), (0.5, 0.5), (1, 1)])
def test_close_ups_are_cut_out_of_the_samples(drawn, centre, views):
    parts = views.close_ups(drawn, centre, 16)
    assert len(parts) == 5 and all(part.size == (16, 16) for _, part in parts)


def test_thumbnails_show_where_samples_differ_most(engine, drawn, tmp_path, views):
    flat, spot = np.full((200, 300, 3), 90, np.uint8), np.full((200, 300, 3), 90, np.uint8)
    spot[150:170, 250:280] = 200
    made = Round("", drawn.image, drawn.settings, tmp_path)
    for picture in (flat, spot):
        made.keep(Image.fromarray(picture), Recipe((1,)), 50)
    first, second = (np.asarray(Image.open(path)) for path in views.thumbnails(made))
    assert first.shape == (100, 100, 3) and (second == 200).all(axis=-1).sum() == 600


def test_pictures_that_will_not_do_are_refused_in_friendly_words(engine, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG nonsense")
    for image, words in [
        (None, "Choose a picture"),
        (tmp_path / "broken.png", "cannot be read"),
        (Image.new("RGB", (3, 30)), "too few"),
    ]:
        with pytest.raises(Refused, match=words):
            engine.read(image)
    with pytest.raises(Refused, match="takes up to"):
        engine.check(Image.new("RGB", (41, 30)), "tiny")


@pytest.mark.parametrize("scale, limit", [(2, 40 * 30), (4, 40 * 30), (8, 20 * 15)])
def test_of_large_photos_the_middle_is_framed_and_no_sample_is_smaller_than_its_photo(
    engine, monkeypatch, scale, limit
):
    monkeypatch.setattr(engine, "scale", lambda model: scale)
    for size in [(400, 300), (1000, 12), (15, 4000), (80, 60), (60, 45)]:
        left, top, right, bottom = engine.detail(size, "tiny")
        assert 0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]
        assert 0.9 * limit < (right - left) * (bottom - top) <= limit
        small = engine.shrunk_size(size, "tiny")
        if small is not None:
            assert engine.fits(small, "tiny") and all(a * scale >= b for a, b in zip(small, size, strict=True))
    assert engine.shrunk_size((400, 300), "tiny") is None
    monkeypatch.setattr(engine, "scale", lambda model: 4)
    assert engine.shrunk_size((12, 1400), "tiny") is None  # of 3 pixels it would be refused
    assert engine.shrunk_size((20, 15), "tiny") == (20, 15)


def test_a_drawing_on_transparent_ground_is_read_on_white(engine):
    drawing = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    drawing.paste((0, 0, 0, 255), (2, 2, 6, 6))
    picture = engine.read(drawing)
    assert picture.mode == "RGB" and picture.getpixel((0, 0)) == (255,) * 3 and picture.getpixel((3, 3)) == (0,) * 3


def test_jpeg_blocks_noise_and_blur_of_what_is_visible_are_told_to_the_visitor(engine):
    photo = photographs()[0]
    assert eng.warnings(photo) == []
    compressed = io.BytesIO()
    photo.save(compressed, "JPEG", quality=30)
    noisy = np.asarray(photo) + np.random.default_rng(0).normal(0, 15, (192, 192, 3))
    cut_out, mask = photo.filter(ImageFilter.GaussianBlur(1.5)), Image.new("L", photo.size)
    ImageDraw.Draw(mask).ellipse((4, 4, photo.width - 4, photo.height - 4), fill=255)
    cut_out.putalpha(mask)
    for picture, word in [
        (Image.open(compressed).convert("RGB"), "JPEG"),
        (Image.fromarray(noisy.clip(0, 255).astype(np.uint8)), "nois"),
        (photo.resize((768, 768), Image.Resampling.BICUBIC), "blur"),
        (engine.read(cut_out), "blurred"),
    ]:
        assert any(word in line for line in eng.warnings(picture)), word
        assert not any("--" in line for line in eng.warnings(picture))  # no word of the command line


def test_the_look_of_a_picture_chooses_between_the_models_of_clean_ones_and_of_all_others(gr, two_models, tmp_path):
    from hvae_sr.demo.photos import Photos

    page = Photos(two_models)
    photographs()[0].save(tmp_path / "clean.png")
    photographs()[0].save(tmp_path / "small.jpg", quality=30)
    for file, model, other in (("clean.png", "natural-x4", "photo-x4"), ("small.jpg", "photo-x4", "natural-x4")):
        visit = eng.Visit()
        about = page.on_image(visit, str(tmp_path / file), model)[1]
        assert f"Model {model}, as the picture" in about and "better copy" not in about
        assert page.on_look_of_photo(visit, other).value == model
        assert not hasattr(page.on_look_of_photo(visit, model), "value")
        assert ("better copy" in page.on_model(visit, other)[0]) == (other == "natural-x4")
    assert not hasattr(page.on_look_of_photo(visit, "another"), "value")  # a visitor's own choice of another kind


def test_without_gradio_the_command_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["demo"]) == 2
    assert "hvae-sr[demo]" in capsys.readouterr().err


def test_port_0_is_a_free_one_none_that_of_gradio_and_names_of_models_may_stand_apart(gr, folder, monkeypatch):
    from hvae_sr.demo import interface

    taken = []
    monkeypatch.setattr(interface, "launch", lambda blocks, **options: taken.append(options["server_port"]))
    monkeypatch.setenv("GRADIO_SERVER_PORT", "7999")
    for port in (["--port", "0"], ["--port", "8123"], []):
        assert main(["demo", "--model", str(folder), *port, "--no-browser"]) == 0
    assert taken[0] not in (0, None, 7999) and taken[1:] == [8123, None]  # it reads its variable itself
    monkeypatch.setattr(interface, "build", lambda models, **options: taken.append(models))
    monkeypatch.setenv("HVAE_SR_MODELS", "a, b,")
    runpy.run_module("hvae_sr.demo.app")
    assert taken[3] == ["a", "b"]


def test_the_caption_says_where_pictures_go(gr, monkeypatch):
    from hvae_sr.demo.layout import caption

    monkeypatch.delenv("SPACE_ID", raising=False)
    assert "the computer that runs this page" in caption()
    monkeypatch.setenv("SPACE_ID", "someone/something")
    assert "server of this Space" in caption() and "computer" not in caption()


def test_the_api_gives_the_pipelines_samples_to_programs(gr, folder, photo, tmp_path):
    import gradio_client

    from hvae_sr.demo.interface import build, launch

    photo.save(tmp_path / "photo.png")
    blocks = build([str(folder)], device="cpu")
    try:
        _, address, _ = launch(blocks, prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
        options = {"download_files": str(tmp_path / "down"), "httpx_kwargs": {"timeout": PATIENCE}}
        client = gradio_client.Client(address, verbose=False, **options)
        image = gradio_client.handle_file(str(tmp_path / "photo.png"))
        files, found = client.predict(image, "tiny", 0.6, 2, 7, True, api_name="/upscale")
        with pytest.raises(Exception, match="maximum"):
            client.predict(image, "tiny", 0.6, 99, 7, True, api_name="/upscale")
        assert [name for name in client.view_api(return_format="dict")["named_endpoints"]] == ["/upscale"]
        client.close()
    finally:
        blocks.close()
    found = json.loads(found) if isinstance(found, str) else found
    pipe = Engine([str(folder)]).pipelines["tiny"]
    outs = [pipe(photo, temperature=0.6, seed=seed) for seed in (7, 8)]
    assert found == {"seeds": [7, 8], "lr_psnr": [round(out.lr_psnr[0], 4) for out in outs]}
    for file, out in zip(files, outs, strict=True):
        assert same(Image.open(file["image"]), out.images[0])


@pytest.mark.parametrize("kind", ["RGB", "GRAY"])
def test_the_zip_holds_all_samples_the_mean_and_the_map_with_the_profile_of_the_picture(
    engine, photo, kind, tmp_path, views
):
    if kind == "GRAY":
        photo = photo.convert("L")
        photo.info["icc_profile"] = colour.of_chunks({b"gAMA": (100000).to_bytes(4, "big")}, True)
    else:
        photo.info["icc_profile"] = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    picture = engine.read(photo)
    assert colour.space(picture.info["icc_profile"]) == "RGB"
    drawn = Round("", picture, Settings("tiny", 0.5), tmp_path, "holiday")
    samples = draw(engine, drawn, engine.recipes("tiny", 0, 2))
    with zipfile.ZipFile(views.write_zip(drawn)) as archive:
        *names, mean, uncertainty = archive.namelist()
        assert (mean, uncertainty) == ("holiday_mean.png", "holiday_uncertainty.png")
        assert [archive.read(name) for name in names] == [sample.path.read_bytes() for sample in samples]
        profiles = {Image.open(io.BytesIO(archive.read(name))).info.get("icc_profile") for name in (*names, mean)}
    assert len(names) == 2 and profiles == {picture.info["icc_profile"]}


def test_programs_are_told_what_is_wrong(page, photo, gr):
    good = {"image": photo, "model": "tiny", "temperature": 0.5, "num_samples": 1, "seed": 0, "consistent": True}
    assert page.upscale(**good)[1]["seeds"] == [0]
    for name, value in {"model": "nope", "temperature": None, "num_samples": None, "seed": 1e300}.items():
        with pytest.raises(gr.Error):
            page.upscale(**{**good, name: value})
    for count in (0, -1, 2.5, float("nan"), float("inf")):
        with pytest.raises(gr.Error, match=f"The number of samples must be a whole number >= 1, not {count}"):
            page.upscale(**{**good, "num_samples": count})
    assert page.upscale(**{**good, "num_samples": 2.0})[1]["seeds"] == [0, 1]


def test_a_rectangle_that_leaves_the_picture_is_cut(gr):
    from hvae_sr.demo.handlers import _mask

    assert not _mask(None, (-20, -20, 10, 10), (40, 40)).any()
    assert _mask(None, (-20, -20, 30, 30), (40, 40)).sum() == 16
