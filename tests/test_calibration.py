"""Intervals that keep their promise: split conformal prediction, its factor in the pipeline, the command."""

import hashlib
import json
import os
import shutil
import sys

import numpy as np
import processes
import pytest
import torch
from fake_hub import FakeHub, Repository
from PIL import Image
from stand_ins import photo_folder

from hvae_sr import Downsampling, SuperResolutionPipeline
from hvae_sr.cli import main
from hvae_sr.posterior import Calibration
from hvae_sr.posterior.conformal import FACTORS, missed, quantiles_of, smallest_factor, widen
from hvae_sr.publishing.push import files_to_push

LEVEL = 0.9
NEEDED = [(0.9, 9), (0.5, 1), (0.99, 99)]


def photos(count, seed=0, side=16):
    return list(np.random.default_rng(seed).random((count, side, side, 3), dtype=np.float32))


def draws(count, seed, spread):
    """Intervals of a model that believes in one spread, and truths of another one, `[count, 500]`, by image."""
    generator = torch.Generator().manual_seed(seed)
    scale = 0.005 + 0.05 * torch.rand(count, 500, generator=generator, dtype=torch.float64)
    truth = 0.5 + spread * scale * torch.randn(count, 500, generator=generator, dtype=torch.float64)
    wrong = torch.full_like(truth, 0.5)
    return torch.stack([wrong - 1.645 * scale, wrong, wrong + 1.645 * scale], dim=1), truth.clamp(0, 1)


@pytest.mark.parametrize("spread", [0.3, 1.0, 2.5])
def test_widened_intervals_cover_further_images_to_within_one_percent(spread):
    intervals, truth = draws(200, 0, spread)
    factor, count = smallest_factor(map(missed, intervals, truth), LEVEL)
    assert count == 200 and factor == pytest.approx(spread, rel=0.1)  # but for half a level
    new, answer = draws(200, 1, spread)
    low, _, high = widen(new.movedim(1, 0), factor)
    assert LEVEL - 0.003 < ((low <= answer) & (answer <= high)).double().mean() < LEVEL + 0.01


def test_one_value_an_image_gives_the_quantile_of_split_conformal_prediction():
    truth = torch.linspace(0.5, 0.9, 50, dtype=torch.float64)[:, None]
    intervals = torch.tensor([[0.4], [0.5], [0.6]]).expand(50, 3, 1)
    factor, _ = smallest_factor(map(missed, intervals, truth), LEVEL)
    needed = (truth[45] - 0.5) / (0.1 + 0.5 / 255)  # the 46th of 50: ceil(0.9 x 51)
    assert needed <= factor * (1 + 1e-9) and factor <= needed * FACTORS[1] / FACTORS[0]


def test_a_model_without_doubt_gets_intervals_too_and_the_truth_of_all_pixels_is_within_reach():
    intervals, truth = torch.full((3, 6, 6), 0.2), torch.ones(6, 6)
    assert missed(intervals, truth)[-1] == 0
    factor, _ = smallest_factor([missed(intervals, truth)] * 9, LEVEL)
    assert torch.equal(widen(intervals, factor)[2], truth)


def test_where_most_values_need_no_interval_there_is_no_upper_bound():
    paper = torch.ones(3, 8, 8)
    factor, count = smallest_factor([missed(paper, paper[0])] * 50, LEVEL)
    assert factor == FACTORS[0]
    assert Calibration(LEVEL, factor, count, 2, 1.0, True).promised == 1
    assert Calibration(LEVEL, 1.1, count, 2, 1.0, True).promised == LEVEL + 2 / 51


def test_a_coverage_that_nine_images_all_but_allow_needs_ten():
    curves = [np.zeros(len(FACTORS))] * 9
    assert smallest_factor(curves, LEVEL)[0] == FACTORS[0]
    with pytest.raises(ValueError, match="at least 10 "):
        smallest_factor(curves, LEVEL + 5e-12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(({"coverage": c}, "`coverage`") for c in (0, 1, -0.5, float("nan"), "0.9", True)),
        *(({"temperature": t}, "`temperature` must be one number, got") for t in (None, [0.5, 1.0], True)),
        ({"images": "folder"}, "`images` must be several images, got one: str"),
        ({"images": photos(1)[0]}, "`images` must be several images, got one: ndarray"),
        ({"images": None}, "`images` must be several images, got"),
        ({"images": photos(9, side=3)}, r"`images\[0\]` must be at least 4x4 pixels, is 3x3"),
        ({"low": 2}, "`low` must be several images, got"),
        ({"low": photos(8, side=4)}, "`low` must be as many as `images`, 9, got 8"),
        ({"low": [np.zeros((5, 4, 3), np.float32)] * 9}, r"`low\[0\]` must be 4x4 pixels"),
        *(({"images": photos(n - 1), "coverage": c}, f"`images` must be at least {n} ") for c, n in NEEDED),
    ],
)
def test_what_cannot_be_calibrated_with_is_named(make_pipeline, changes, message):
    with pytest.raises(ValueError, match=message):
        make_pipeline().calibrate(**{"images": photos(9), "num_samples": 2, **changes})


@pytest.mark.parametrize(("coverage", "needed"), NEEDED)
def test_too_few_images_promise_nothing(coverage, needed):
    with pytest.raises(ValueError, match=f"at least {needed} "):
        smallest_factor([np.zeros(len(FACTORS))] * (needed - 1), coverage)


def test_the_intervals_of_a_pipeline_cover_further_images_to_within_one_percent_also_when_loaded_again(
    make_pipeline, tmp_path
):
    pipe = make_pipeline("vdvae-sr")
    found = pipe.calibrate(photos(110), num_samples=2)
    assert isinstance(found, Calibration) and found == pipe.calibration and found.num_images == 110
    pipe.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["calibration"] == found.to_dict()
    again = SuperResolutionPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert again.calibration == found
    assert b'"factor"' in files_to_push(tmp_path)["model_index.json"].read_bytes()
    inside, operator = [], Downsampling(4)
    for photo in photos(15, seed=1):
        x = torch.from_numpy(photo).movedim(-1, 0)
        low, middle, high = again.quantiles(operator(x), calibrated=True)
        assert ((low <= middle) & (middle <= high)).all() and low.min() >= 0 and high.max() <= 1
        inside.append(((low <= x) & (x <= high)).double().mean())
    assert abs(float(np.mean(inside)) - LEVEL) < 0.01


def test_photographs_of_a_lazy_list_are_read_one_by_one(make_pipeline):
    class Lazy:
        """As a data set of torch: a length, and items by number."""

        held = 0

        def __len__(self):
            return 10

        def __getitem__(self, number):
            if number >= 10:
                raise IndexError(number)
            Lazy.held += 1
            assert Lazy.held - len(seen) <= 1, "more than one at a time"
            return photos(10)[number]

    seen = []
    pipe = make_pipeline()
    quantiles = pipe._quantiles
    pipe._quantiles = lambda *given: seen.append(given) or quantiles(*given)
    assert pipe.calibrate(Lazy(), num_samples=2).num_images == 10


def test_a_pipeline_of_the_same_parts_keeps_the_calibration(make_pipeline):
    pipe = make_pipeline()
    found = pipe.calibrate(photos(9), num_samples=2)
    assert SuperResolutionPipeline.from_pipe(pipe, **pipe.components).calibration == found
    assert SuperResolutionPipeline.from_pipe(pipe, vdvae=pipe.vdvae, scale_factor=4).calibration == found
    assert SuperResolutionPipeline.from_pipe(pipe, vdvae=make_pipeline().vdvae).calibration is None


def test_calibrated_intervals_are_the_quantiles_widened_around_the_median(make_pipeline):
    pipe = make_pipeline()
    y = photos(1, side=8)[0]
    with pytest.raises(ValueError, match="`calibrated`.*no calibration"):
        pipe.quantiles(y, calibrated=True)
    found = pipe.calibrate(photos(9), num_samples=2, temperature=0.7)
    plain = pipe.quantiles(y, quantiles_of(LEVEL), num_samples=2, temperature=0.7)
    for q in (None, (0.05, 0.5, 0.95)):
        assert torch.equal(pipe.quantiles(y, q, calibrated=True), widen(plain, found.factor))
    for name, value in {
        "q": (0.1, 0.5, 0.9), "num_samples": 32, "temperature": 1.0, "enforce_consistency": False
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=f"`{name}` must be None or"):
            pipe.quantiles(y, calibrated=True, **{name: value})


def test_pairs_may_be_given_and_must_fit(make_pipeline):
    pipe, high = make_pipeline(), photos(9, side=18)
    operator = Downsampling(4)
    low = [operator(torch.from_numpy(x).movedim(-1, 0)[:, :16, :16]).mul(255).round() / 255 for x in high]
    arguments = {"num_samples": 2}
    assert pipe.calibrate(iter(high), iter(low), **arguments) == pipe.calibrate(high, **arguments)
    with pytest.raises(ValueError, match="`low` must be as many as `images`, got 8 of `low` and more of `images`"):
        pipe.calibrate(iter(high), iter(low[:8]), **arguments)
    with pytest.raises(ValueError, match="got 8 of `images` and more of `low`"):
        pipe.calibrate(iter(high[:8]), iter(low), coverage=0.5, **arguments)


def test_a_model_that_does_not_know_h_needs_pairs(make_pipeline):
    pipe = make_pipeline()
    pipe.register_to_config(consistency="none")
    with pytest.raises(ValueError, match="`low` must be given"):
        pipe.calibrate(photos(9))


@pytest.mark.parametrize("damaged", [{}, {"factor": 1}, 3, Calibration(0.9, -1.0, 9, 2, 1.0, True).to_dict()])
def test_a_damaged_calibration_is_refused(make_pipeline, tmp_path, damaged):
    make_pipeline().save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(json.dumps({**index, "calibration": damaged}))
    with pytest.raises(ValueError, match="`calibration`"):
        SuperResolutionPipeline.from_pretrained(tmp_path)


@pytest.fixture
def model(make_pipeline, tmp_path):
    """The folder of a model."""
    make_pipeline("vdvae-sr").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def calibrate(tmp_path, capsys):
    """Runs the command on the saved model: (its status, what it printed)."""

    def calibrate(output="out", data="photos", **options):
        if not (tmp_path / data).exists():
            photo_folder(tmp_path / data, dict.fromkeys("0123456789", (24, 24)))
        command = ["calibrate", "--model", tmp_path / "model", "--data", tmp_path / data, "-o", tmp_path / output]
        command += ["--device", "cpu", "--dtype", "float32"]
        for name, value in {"num-samples": 2, "size": 16, **options}.items():
            command += [f"--{name}", tmp_path / value if name == "low" else value]
        status = main([str(word) for word in command])
        return status, "".join(capsys.readouterr())

    return calibrate


@pytest.fixture
def seen(monkeypatch):
    """The pairs that the command hands to the pipeline, which then does nothing."""
    pairs = []

    def calibrate(self, images, low, *arguments, **named):
        pairs.extend(zip(images, low, strict=True))
        return Calibration(0.9, 1.0, 9, 2, 1.0, True)

    monkeypatch.setattr(SuperResolutionPipeline, "calibrate", calibrate)
    return pairs


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_command_writes_a_model_that_is_calibrated(model, calibrate, tmp_path):
    (model / "LICENSE.weights").write_text("for research")
    status, said = calibrate()
    pipe = SuperResolutionPipeline.from_pretrained(tmp_path / "out")
    assert status == 0 and pipe.calibration.num_images == 10 and pipe.calibration.num_samples == 2
    assert (tmp_path / "out" / "LICENSE.weights").read_text() == "for research"
    for part in (f"{pipe.calibration.factor:.3f}", "of the middle 16x16 of further ones", "hold 90.0% to 100.0% on"):
        assert part in said
    assert "_name_or_path" not in json.loads((tmp_path / "out" / "model_index.json").read_text())  # of this machine
    assert calibrate("model")[0] == 0  # in place
    assert SuperResolutionPipeline.from_pretrained(model).calibration == pipe.calibration


def test_what_the_command_cannot_do_is_named_and_leaves_folders_as_they_are(model, calibrate, tmp_path):
    for name, file in (("mine", "README.md"), ("edsr", "model_index.json")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text('{"_class_name": "EDSRPipeline"}')
    (tmp_path / "low").mkdir()
    before = contents(model) | contents(tmp_path / "mine") | contents(tmp_path / "edsr")
    for options, message in (
        ({"num-images": 4}, "`--data`: images must be at least 9"),
        ({"output": "mine"}, "is not empty and holds no model"),
        ({"output": "edsr"}, "holds another system, EDSRPipeline"),
        ({"output": "model/calibrated"}, "`--output-dir`: "),
        ({"output": "model/calibrated"}, "inside the model"),
        ({"low": "low"}, "--low"),
    ):
        status, said = calibrate(**options)
        assert status == 2 and message in said
    assert before == contents(model) | contents(tmp_path / "mine") | contents(tmp_path / "edsr")


@pytest.fixture
def other(make_pipeline, tmp_path):
    """Another model than the one that is saved as "out", in the place of the command's model."""
    pipe = make_pipeline("vdvae-sr", seed=7, lr={"seed": 8})
    pipe.save_pretrained(tmp_path / "model")
    make_pipeline("vdvae-sr").save_pretrained(tmp_path / "out", max_shard_size="2KB")
    return pipe


def test_nothing_of_another_model_stays_in_the_folder(other, calibrate, tmp_path):
    """Its shards and their index would be loaded instead of the weights beside them."""
    out = tmp_path / "out"
    (out / "README.md").write_text("of the other model")
    mine = [out / name for name in ("notes.txt", "4x-sharp.safetensors", "vdvae/backup.safetensors")]
    mine.append(out / "model.safetensors")
    for path in mine:
        path.write_text("mine")
    assert len(list(out.rglob("*model*.safetensors"))) > 3
    assert calibrate()[0] == 0
    assert len(list(out.rglob("diffusion*.safetensors"))) == 2 and all(path.read_text() == "mine" for path in mine)
    assert "of the other model" not in (out / "README.md").read_text()
    found = SuperResolutionPipeline.from_pretrained(out)
    for name, network in other.components.items():
        for key, value in network.state_dict().items():
            assert torch.equal(getattr(found, name).state_dict()[key], value), key


def test_a_model_that_cannot_be_copied_leaves_what_was_there(other, calibrate, tmp_path, monkeypatch):
    before, copyfile = contents(tmp_path / "out"), shutil.copyfile

    def full(source, target):
        if "safetensors" in str(source) and "vdvae" in str(source):
            raise OSError(28, "No space left on device", str(target))
        return copyfile(source, target)

    monkeypatch.setattr(shutil, "copyfile", full)
    status, said = calibrate()
    assert status == 2 and "No space left" in said and contents(tmp_path / "out") == before


def test_low_images_with_the_sides_rounded_up_are_cut_as_the_photographs_are(make_pipeline):
    pipe, images = make_pipeline("vdvae-sr"), photos(9, side=19)
    low = [np.asarray(pipe.operator(torch.from_numpy(x).permute(2, 0, 1)).clamp(0, 1).permute(1, 2, 0)) for x in images]
    assert low[0].shape == (5, 5, 3)
    found = pipe.calibrate(images, low, num_samples=2)
    assert found.factor == pipe.calibrate(images, [y[:4, :4] for y in low], num_samples=2).factor


def test_the_command_cuts_pairs_at_the_same_place(model, calibrate, seen, tmp_path):
    for name, step in (("high", 1), ("low", 4)):
        (tmp_path / name).mkdir()
        places = np.arange(0, 29, step, dtype=np.uint8)
        pixels = np.stack(np.broadcast_arrays(places[:, None], places[None], 0), axis=2)
        for number in range(9):
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / name / f"{number}.png")
    assert calibrate(data="high", low="low")[0] == 0
    for x, y in seen:
        assert x.size == (16, 16) and y.size == (4, 4) and x.getpixel((0, 0)) == y.getpixel((0, 0)) == (4, 4, 0)


def test_pairs_are_of_one_name_or_of_one_stem(model, calibrate, seen, tmp_path):
    high, low = tmp_path / "high", tmp_path / "low"
    for folder, side in ((high, 16), (low, 4)):
        folder.mkdir()
        for number in range(5):
            for offset, kind in ((0, "bmp"), (100, "png")):
                Image.new("RGB", (side, side), (number + offset,) * 3).save(folder / f"{number}.{kind}")
    pairs = {"data": "high", "low": "low", "size": 0}
    assert calibrate(**pairs)[0] == 0
    assert len(seen) == 10 and all(x.getpixel((0, 0)) == y.getpixel((0, 0)) for x, y in seen)
    (low / "3.bmp").rename(low / "3.tiff")
    status, said = calibrate(**pairs)
    assert status == 2 and "`--low`: 3.png and 3.tiff may be of 3.bmp or 3.png" in said
    (high / "3.png").unlink()
    (low / "3.png").unlink()
    assert calibrate(**pairs)[0] == 0


def test_pairs_of_other_sizes_are_refused_before_they_are_cut_to_fit(model, calibrate, tmp_path):
    for name, size in (("high", (32, 24)), ("whole", (32, 24)), ("turned", (6, 8))):
        photo_folder(tmp_path / name, dict.fromkeys("123456789", size))
    for name in ("whole", "turned"):
        status, said = calibrate(data="high", low=name)
        assert status == 2 and "which is not 32x24 over 4" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_model_of_the_hub_is_calibrated_whole(model, tmp_path):
    """With what is not loaded for it, such as the encoder of x. In a process of its own: see `test_evaluation`."""
    (model / "README.md").write_text("---\nlicense: mit\n---\n")
    photo_folder(tmp_path / "high", dict.fromkeys("123456789", (16, 16)))
    held = {str(path.relative_to(model)): path for path in model.rglob("*.*")}
    options = ["--data", "high", "--num-samples", "2", "--size", "16", "-o", "out", "--device", "cpu"]
    with FakeHub() as hub:
        hub.repositories["ada/model"] = Repository()
        files = {name: path.read_bytes() for name, path in held.items()}
        hub.repositories["ada/model"].commit("main", files)
        hub.objects = {hashlib.sha256(data).hexdigest(): data for data in files.values()}
        environment = {**os.environ, **hub.environment(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "hvae_sr.cli", "calibrate", "--model", "ada/model", *options]
        processes.run(command, check=True, cwd=tmp_path, env=environment)
    found = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*")}
    assert held.keys() <= found and any(name.endswith(".safetensors") for name in held)
    for name in held.keys() - {"model_index.json", "README.md"}:
        assert (tmp_path / "out" / name).read_bytes() == held[name].read_bytes()


def test_a_calibration_is_of_its_networks_and_settings_alone(make_pipeline, make_lr_network, tmp_path, caplog):
    pipe = make_pipeline()
    found = pipe.calibrate(photos(9), num_samples=2)
    pipe.save_pretrained(tmp_path)
    other = make_lr_network("cvdvae", seed=9)
    assert SuperResolutionPipeline.from_pipe(pipe).calibration == found
    assert SuperResolutionPipeline.from_pretrained(tmp_path, load_encoder=False).calibration == found
    assert SuperResolutionPipeline.from_pipe(pipe, lr_encoder=other).calibration is None
    assert "made with another `lr_encoder`" in caplog.text
    assert SuperResolutionPipeline.from_pipe(pipe, downsampling_kernel="box").calibration is None
    assert SuperResolutionPipeline.from_pretrained(tmp_path, lr_encoder=other).calibration is None
    pipe.lr_encoder = pipe.lr_encoder
    assert pipe.calibration == found
    pipe.register_modules(lr_encoder=other)
    assert pipe.calibration is None
    pipe.calibrate(photos(9), num_samples=2)
    pipe.vdvae = make_pipeline().vdvae
    assert pipe.calibration is None
