"""A model and a restoration network made one: samples moved towards its image, and consistent all the same."""

import pytest
import torch
from PIL import Image

from hvae_sr import SuperResolutionPipeline
from hvae_sr.baselines import RRDBNet
from hvae_sr.checkpoints.growth import add_restorer
from hvae_sr.cli import main
from hvae_sr.pipelines import RegressionPipeline


@pytest.fixture
def pipe(make_pipeline):
    return make_pipeline("vdvae-sr")


@pytest.fixture
def trained():
    torch.manual_seed(1)
    return RRDBNet(num_blocks=1)


@pytest.fixture
def photo():
    channels = [Image.effect_noise((16, 12), 20) for _ in range(3)]  # of grey ones samples are made grey
    return Image.merge("RGB", channels)


@pytest.fixture
def folders(pipe, trained, tmp_path):
    """Of a model and of a restoration network."""
    pipe.save_pretrained(tmp_path / "model")
    RegressionPipeline(trained).save_pretrained(tmp_path / "restorer")
    return tmp_path / "model", tmp_path / "restorer"


def combine(*arguments):
    return main(["combine", *map(str, arguments)])


def test_without_a_share_samples_are_those_of_before(pipe, trained, photo):
    combined = add_restorer(pipe.lr_encoder, trained, "0:0,1:0")
    new = SuperResolutionPipeline(pipe.vdvae, combined)
    one, other = (p(photo, seed=3, num_samples=2, output_type="pt").images for p in (pipe, new))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_a_sample_goes_its_share_of_the_way_and_stays_consistent(pipe, trained, photo):
    def draw(shares, **options):
        new = SuperResolutionPipeline(pipe.vdvae, add_restorer(pipe.lr_encoder, trained, shares))
        return new(photo, seed=3, temperature=0.8, output_type="pt", **options)

    start, end = (draw(shares, enforce_consistency=False).images for shares in ("0:0,1:0", "0:1,1:1"))
    found = draw("0.5:0,1:0.5", enforce_consistency=False).images
    inside = (start > 0) & (start < 1)  # beyond, what is moved is not what is shown
    assert inside.float().mean() > 0.5 and (found - start).abs().mean() > 0.01
    torch.testing.assert_close(found[inside], (start + 0.3 * (end - start))[inside], rtol=0, atol=1e-5)
    assert draw("0.5:0,1:0.5").lr_psnr[0] > 60  # projected after it was moved


def test_the_command_writes_a_model_that_moves_samples(folders, photo, tmp_path, capsys):
    model, restorer = folders
    out = tmp_path / "out"
    assert combine(model, "--restorer", restorer, "-o", out, "--default-temperature", 0.7) == 0
    found = SuperResolutionPipeline.from_pretrained(out)
    assert (
        found.config.default_temperature == 0.7 and found.lr_encoder.config.restored_shares == "0:0,0.5:0.4,0.8:0.6,1:0"
    )
    before = SuperResolutionPipeline.from_pretrained(model)
    for t, alike in ((0, True), (0.5, False), (0.8, False), (1, True)):
        one, other = (p(photo, seed=0, temperature=t, output_type="pt").images for p in (before, found))
        assert ((one - other).abs().mean() < 0.01) == alike  # but for half precision
    again = combine(out, "--restorer", restorer, "-o", tmp_path / "again")
    assert again == 2 and "must be an LRConditioner without a restorer" in capsys.readouterr().err
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    "options, named",
    [
        (["--restored-shares", "0.5"], "`--restored-shares` must be pairs"),
        (["--restored-tolerance", "-1"], "`--restored-tolerance` must be"),
        (["--restored-tolerance", "nan"], "`--restored-tolerance` must be"),
        (["--default-temperature", "-1"], "`--default-temperature` must be"),
    ],
)
def test_options_that_are_none_are_named_and_nothing_is_left(options, named, folders, tmp_path, capsys):
    model, restorer = folders
    assert combine(model, "--restorer", restorer, "-o", tmp_path / "out", *options) == 2
    assert named in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_other_kinds_of_networks_are_named(folders, make_pipeline, tmp_path, capsys):
    model, restorer = folders
    out = tmp_path / "out"
    assert combine(restorer, "--restorer", restorer, "-o", out) == 2
    assert "`MODEL` must be a model of this package" in capsys.readouterr().err
    assert combine(model, "--restorer", model, "-o", out) == 2
    assert "`--restorer` must hold an RRDBNet" in capsys.readouterr().err
    make_pipeline("cvdvae").save_pretrained(tmp_path / "cvdvae")
    assert combine(tmp_path / "cvdvae", "--restorer", restorer, "-o", out) == 2
    assert "`MODEL` must have an LRConditioner" in capsys.readouterr().err
    assert combine(model, "--restorer", restorer, "-o", model) == 2
    assert "`--output-dir` must not exist yet" in capsys.readouterr().err
    RegressionPipeline(RRDBNet(num_blocks=1, scale_factor=2), scale_factor=2).save_pretrained(tmp_path / "two")
    assert combine(model, "--restorer", tmp_path / "two", "-o", out) == 2
    assert not out.exists()
