"""The analyses on tiny models: closed forms and properties."""

import json
import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from stand_ins import random_weights

from hvae_sr.checkpoints.names import bundled_checkpoints
from hvae_sr.cli import main
from hvae_sr.evaluation import analyses
from hvae_sr.evaluation.perceptual import LPIPS
from hvae_sr.noise import CounterNoise
from hvae_sr.operators import Downsampling

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def photos():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (37, 34, 3), dtype=np.uint8)) for _ in range(2)]


def distance(vdvae, **options):
    defaults = {"scales": (1, 4), "num_codes": 3, "num_images": 3}
    return analyses.low_resolution_distance(vdvae, **(defaults | options))


def test_the_distance_is_its_definition_pair_by_pair(make_vdvae):
    vdvae = make_vdvae()
    found = distance(vdvae)
    assert found["groups"] == list(range(vdvae.num_groups + 1)) and found["strides"] == [4, 2, 2, 1]
    operators = {1: lambda x: x, 4: Downsampling(4)}
    for k in (0, 2):
        for scale, operator in operators.items():
            errors = []
            for code in range(3):
                fixed = vdvae.sample(1, (16, 16), CounterNoise([analyses.code_seed(0, code)])).latents[:k]
                images = []
                for j in range(3):
                    noise = CounterNoise([analyses.code_seed(0, code, 1 + j)])
                    x = vdvae.sample(1, (16, 16), noise, latents=fixed).sample.detach()
                    images.append(operator((x.clamp(-1, 1) + 1) * 127.5).numpy())
                errors += [np.sqrt(np.mean((a - b) ** 2)) for a, b in combinations(images, 2)]
            assert found["distance"][str(scale)][k] == pytest.approx(np.mean(errors), rel=1e-4)


def test_images_that_share_all_groups_are_one_unless_pixels_are_drawn(make_vdvae):
    vdvae = make_vdvae()
    found = distance(vdvae)
    assert found["distance"]["1"][-1] == found["distance"]["4"][-1] == 0 < found["distance"]["4"][0]
    assert all(low <= full for full, low in zip(found["distance"]["1"], found["distance"]["4"], strict=True))
    drawn = distance(vdvae, sample_pixels=True)
    assert drawn["distance"]["1"][-1] > 1


def test_the_distance_depends_on_neither_the_batch_nor_the_run(make_vdvae, monkeypatch):
    vdvae = make_vdvae()
    found = distance(vdvae)
    with monkeypatch.context() as patch:
        patch.setattr(analyses, "PIXELS_PER_BATCH", 1)
        again = distance(vdvae)
    for scale in ("1", "4"):
        assert again["distance"][scale] == pytest.approx(found["distance"][scale], rel=1e-4, abs=1e-4)
        assert again["standard_error"][scale] == pytest.approx(found["standard_error"][scale], rel=1e-3, abs=1e-3)
    assert distance(vdvae, seed=1)["distance"] != found["distance"]
    vdvae.remove_encoder()
    assert distance(vdvae) == found


def test_k_is_chosen_where_the_distance_stays_below_the_threshold():
    analysis = {"groups": [0, 1, 2, 3, 4], "distance": {"4": [9.0, 0.4, 0.6, 0.3, 0.0], "8": [9.0, 5.0, 4.0, 3.0, 0.0]}}
    assert analyses.choose_num_groups(analysis, 4) == 3  # not 1: it rises again
    assert analyses.choose_num_groups(analysis, 4, threshold=10) == 0
    assert analyses.choose_num_groups(analysis, 8) is None
    with pytest.raises(ValueError, match="`scale` must be one of 4, 8; got 2"):
        analyses.choose_num_groups(analysis, 2)


@pytest.mark.parametrize("kind", ["cvdvae", "vdvae-sr"])
def test_expected_consistency_is_the_distance_of_unprojected_samples_to_y(make_pipeline, kind):
    pipe = make_pipeline(kind)
    y = np.random.default_rng(0).random((6, 5, 3)).astype(np.float32)
    pipe.set_progress_bar_config(desc="mine")
    found = analyses.expected_consistency(pipe, [y], num_samples=3)
    assert pipe._progress_bar_config == {"desc": "mine"}  # as the caller had it
    assert found["groups"] == [0, 1, 2, 3, 4]
    for k, value in enumerate(found["consistency"]):
        noise = CounterNoise([0, 1, 2])
        planes = torch.from_numpy(y).permute(2, 0, 1)[None] * 2 - 1
        condition = pipe.lr_encoder.encode(planes).select(torch.zeros(3, dtype=torch.int64))
        x = pipe.vdvae.sample(3, (24, 20), noise, condition=condition, num_conditioned_groups=k).sample.detach()
        errors = (pipe.operator((x + 1) * 127.5) - (planes + 1) * 127.5).square().mean(dim=(1, 2, 3)).sqrt()
        assert value == pytest.approx(float(errors.mean()), rel=1e-3)
    with pytest.raises(ValueError, match="`images`"):
        analyses.expected_consistency(pipe, [])


def test_group_information_adds_up_to_the_rate(make_vdvae, photos):
    vdvae = make_vdvae()
    found = analyses.group_information(vdvae, photos[:1])
    pixels = np.asarray(photos[0].crop((1, 0, 33, 36)))  # the centre of 34x37 whose sides are multiples of 4
    x = torch.from_numpy(pixels / 127.5 - 1).float().permute(2, 0, 1)[None]
    with torch.no_grad():
        out = vdvae(x, noise=CounterNoise([0]))
    assert sum(found["from_x"]) == pytest.approx(float(out.rate) / np.log(2), rel=1e-4)
    assert found["strides"] == [4, 2, 2, 1] and "from_y" not in found


def test_what_the_lr_encoder_writes_needs_no_encoder_of_x(make_pipeline, photos):
    pipe = make_pipeline("cvdvae")  # three of its four groups are conditioned
    with_encoder = analyses.group_information(pipe, photos)
    assert len(with_encoder["from_x"]) == 4 and min(with_encoder["from_x"]) > 0
    assert min(with_encoder["from_y"][:3]) > 0 == with_encoder["from_y"][3]
    pipe.vdvae.remove_encoder()
    without = analyses.group_information(pipe, photos)
    assert "from_x" not in without and without["from_y"] == pytest.approx(with_encoder["from_y"])


def test_reconstructions_get_closer_with_every_group_of_a_model_that_uses_them(make_vdvae, photos):
    vdvae = make_vdvae()
    images, truth, decibels = analyses.reconstructions(vdvae, photos[0])
    x = torch.from_numpy(truth / 127.5 - 1).float().permute(2, 0, 1)[None]
    zeros = [torch.zeros(vdvae.latent_shape(g, 1, truth.shape[:2])) for g in range(4)]
    with torch.no_grad():
        expected = vdvae(x, noise=zeros).sample[0].permute(1, 2, 0).numpy()
        prior = vdvae.sample(1, truth.shape[:2], temperature=0.0).sample[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(images[4] / 127.5 - 1, expected.clip(-1, 1), atol=0.0041)
    np.testing.assert_allclose(images[0] / 127.5 - 1, prior.clip(-1, 1), atol=0.0041)
    mse = np.mean((images[4].astype(float) - truth) ** 2)
    assert len(images) == 5 and decibels[4] == pytest.approx(10 * np.log10(255**2 / mse))


def test_the_spread_of_a_level_is_that_of_samples_with_it_open(make_pipeline):
    pipe, network = make_pipeline("vdvae-sr"), LPIPS(random_weights("alexnet"))
    y = np.random.default_rng(0).random((12, 12, 3)).astype(np.float32)
    found = analyses.level_spread(pipe, [y], num_samples=3, lpips=network)
    assert found["levels"] == ["stride 4", "stride 2", "stride 1", "up to stride 2", "all"]
    samples = [np.asarray(x) for x in pipe(y, temperature=[0, 1, 1, 0], num_samples=3, seed=0).images]
    assert found["std"][1] == pytest.approx(np.std(samples, axis=0, ddof=1).mean())
    assert found["share"][1] == pytest.approx(found["std"][1] / found["std"][-1]) and found["share"][-1] == 1
    distances = [network.distance(a, b) for a, b in combinations(samples, 2)]
    assert found["lpips"][1] == pytest.approx(np.mean(distances))
    table = analyses.level_table(found)
    assert "| open at t = 1 | std, grey levels | of all | LPIPS |" in table and "| all |" in table
    assert "lpips" not in analyses.level_spread(pipe, [y], num_samples=2)
    for images, number, message in (([], 2, "`images`"), ([y], 1, "`num_samples`.*got 1")):
        with pytest.raises(ValueError, match=message):
            analyses.level_spread(pipe, images, number)


@pytest.mark.parametrize("kind", ["vdvae", "vdvae-sr"])
def test_encoder_based_analyses_say_that_the_encoder_is_missing(make_vdvae, make_pipeline, photos, kind):
    model = make_vdvae() if kind == "vdvae" else make_pipeline(kind)
    (model if kind == "vdvae" else model.vdvae).remove_encoder()
    for analysis, given in ((analyses.reconstructions, photos[0]), (analyses.group_information, photos)):
        with pytest.raises(ValueError, match="made without an encoder"):
            analysis(model, given)


def test_bad_settings_are_errors_that_name_them(make_vdvae):
    vdvae = make_vdvae()
    for options, message in (
        ({"num_codes": 0}, "`num_codes`.*got 0"),
        ({"num_images": 1}, "`num_images` must be at least 2.*got 1"),
        ({"scales": ()}, "`scales`"),
        ({"scales": (4, 4)}, "`scales`"),
        ({"scales": (32,)}, "`scales` must not exceed.*got 32"),
        ({"size": (18, 16)}, "`size`"),
    ):
        with pytest.raises(ValueError, match=message):
            distance(vdvae, **options)
    for images, message in (([], "hold at least one"), ([Image.new("RGB", (3, 8))], "be at least as large")):
        with pytest.raises(ValueError, match=f"`images` must {message}"):
            analyses.group_information(vdvae, images)


def test_the_command_runs_every_analysis(make_pipeline, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("HVAE_SR_LPIPS", raising=False)  # the images are too small for it
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra `figures`)")
    make_pipeline("cvdvae").save_pretrained(tmp_path / "model")
    made = tmp_path / "made"
    for name in ("distance", "information", "reconstruction", "samples", "temperature"):
        arguments = ["analyse", name, "--model", str(tmp_path / "model"), "-o", str(made), "--num_images", "1"]
        arguments += ["--num_codes", "1", "--images_per_code", "2", "--scales", "1", "4", "--num_samples", "2"]
        assert main([*arguments, "--temperatures", "0", "1"]) == 0
        assert (made / f"{name}.png").stat().st_size > 1000
    assert main(["analyse", "levels", *arguments[2:]]) == 0
    assert len(json.loads((made / "levels.json").read_text())["std"]) == 5
    written = json.loads((made / "distance.json").read_text())
    assert written["distance"]["groups"] == [0, 1, 2, 3, 4] and written["consistency"] is None
    assert "| k | stride of group k - 1 | U_k^1 | U_k^4 |" in (made / "distance.md").read_text()
    assert str(made / "samples.png") in capsys.readouterr().out


@pytest.mark.parametrize("source", ["hvae_sr/cli/analyse.py", "docs/tutorials/choose_k_and_tau.py"])
def test_the_model_that_is_analysed_by_default_has_an_encoder_of_x(source):
    (name,) = re.findall(r'default="(natural-[\w-]+)"', (ROOT / source).read_text())
    assert json.loads((bundled_checkpoints()[name] / "vdvae" / "config.json").read_text())["encoder_blocks"] is not None
