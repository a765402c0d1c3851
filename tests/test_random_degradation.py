"""Random degradations: pure in (seed, index), of the size that is promised, within their ranges, and named when bad."""

import io
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from processes import PATIENCE
from stand_ins import NoisyBicubic, by_name, photo_folder, run

from hvae_sr.cli import main
from hvae_sr.data import bundled_degradations, degrade, load_degradation, make_pairs
from hvae_sr.data.degradation_steps import STEPS, Blur, Compress, Noise, convolve
from hvae_sr.data.random_degradation import parse_degradation
from hvae_sr.evaluation import markdown_table, prepare_thesis
from hvae_sr.evaluation.tables import command_line, sample_rows
from hvae_sr.operators import Downsampling

NAMES = ["blur-noise", "mild-jpeg", "noise", "real", "second-order"]


def photograph(height=64, width=64, seed=0):
    small = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def made(*steps):
    return parse_degradation({"steps": list(steps)}, "made")


def random(seed=0):
    return np.random.default_rng(seed)


def test_the_files_that_come_with_the_package_are_the_documented_ones_and_hold_what_they_say():
    assert list(bundled_degradations()) == NAMES
    spec = load_degradation("real")  # with every default written out
    assert parse_degradation(yaml.safe_load(yaml.safe_dump(spec.as_dict())), "real") == spec


def test_results_are_a_function_of_seed_and_index_alone_also_in_another_process():
    x = photograph()
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        for name in NAMES:
            first = [degrade(x, name, 3, index) for index in reversed(range(8))][::-1]
            again = pool.map(partial(degrade, x, name, 3), range(8), timeout=PATIENCE)
            assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
            assert not np.array_equal(np.stack(first), np.stack([degrade(x, name, 4, index) for index in range(8)]))


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("size", [(64, 48), (41, 50), (7, 5), (1, 1)])
def test_sides_are_those_of_the_photograph_over_the_scale_rounded_up(size, scale):
    x = photograph(*size)
    for name in NAMES:
        for index in range(4):
            y = degrade(x, name, 0, index, scale)
            assert y.shape == (-(-size[0] // scale), -(-size[1] // scale), 3) and y.dtype == np.uint8


def test_images_arrays_and_tensors_agree_and_without_a_step_with_the_downsampling_of_clean_images():
    x = photograph()
    tensor = torch.from_numpy(x.transpose(2, 0, 1).copy())
    y = degrade(x, "real", 0, 1)
    assert np.array_equal(np.asarray(degrade(Image.fromarray(x), "real", 0, 1)), y)
    assert np.array_equal(degrade(tensor, "real", 0, 1).permute(1, 2, 0).numpy(), y)
    _, low = make_pairs(tensor[None], Downsampling(4))
    assert (degrade(tensor, made(), 0, 0) - (low[0] + 1) * 127.5).abs().max() <= 1.001


def test_grey_images_stay_grey_where_the_noise_is_grey():
    grey = np.repeat(photograph()[..., :1], 3, axis=2)
    steps = [{"step": name} for name in STEPS if name != "noise"]
    for index in range(6):
        for kind in ("gaussian", "poisson"):
            noise = {"step": "noise", "kinds": {kind: 1}, "grey": 1}
            y = degrade(grey, made(*steps[:2], noise, *steps[2:]), 0, index)
            assert (y == y[..., :1]).all()
            y = degrade(grey, made(steps[1], noise | {"grey": 0, "sigma": 20, "scale": 1}), 0, index)
            assert (y != y[..., :1]).any()


def test_chains_are_drawn_by_their_weights():
    black, white = ({"step": "noise", "kinds": {"gaussian": 1}, "sigma": s} for s in (0, 100))
    chains = [{"weight": 1, "steps": [black]}, {"weight": 3, "steps": [white]}]
    spec = parse_degradation({"chains": chains}, "made")
    x = np.full((8, 8, 3), 128, np.uint8)
    share = np.mean([degrade(x, spec, 0, index).std() > 0 for index in range(400)])
    assert abs(share - 0.75) < 0.07


@pytest.mark.parametrize("kind", ["isotropic", "anisotropic", "generalised", "sinc"])
def test_kernels_have_sum_one_and_the_width_that_was_drawn(kind):
    for seed in range(20):
        kernel = Blur(kinds={kind: 1.0}, sigma=(1.0, 2.0)).kernel(random(seed))
        assert kernel.shape[0] % 2 and np.isclose(kernel.sum(), 1)
        assert np.allclose(kernel, kernel[::-1, ::-1])
        if kind.endswith("isotropic"):
            place = np.arange(len(kernel)) - len(kernel) // 2
            assert 0.8 < np.sqrt((kernel.sum(0) * place**2).sum()) < 2.05
    flat = np.full((3, 12, 9), 77, np.float32)
    assert np.allclose(convolve(flat, kernel), flat, atol=1e-3)


def test_a_wide_kernel_is_not_cut_and_those_that_come_with_the_package_are_as_they_were():
    for kind, sigma in (("isotropic", 20.0), ("anisotropic", 6.0)):
        kernel = Blur(kinds={kind: 1.0}, sigma=(sigma, sigma)).kernel(random())
        place = np.arange(len(kernel)) - len(kernel) // 2
        assert np.isclose(np.sqrt((kernel.sum(0) * place**2).sum()), sigma, rtol=0.02)
    steps = [step for name in NAMES for chain in load_degradation(name).chains for step in chain.steps]
    widest = max(step.sigma[1] for step in steps if isinstance(step, Blur))
    assert Blur(kinds={"generalised": 1.0}, sigma=(widest, widest)).kernel(random()).shape == (21, 21)
    assert Blur(kinds={"isotropic": 1.0}, sigma=(1.1, 1.1)).kernel(random()).shape == (9, 9)


def test_convolution_is_the_formula():
    x, kernel = random(1).random((1, 9, 7)).astype(np.float32), Blur(sigma=(0.3, 0.9)).kernel(random(2))
    radius = len(kernel) // 2
    padded = np.pad(x[0], radius, "symmetric")
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape)
    assert np.allclose(convolve(x, kernel)[0], (windows * kernel[::-1, ::-1]).sum((-2, -1)), atol=1e-5)


@pytest.mark.parametrize(("kind", "key", "value", "deviation"), [
    ("gaussian", "sigma", 12.0, 12.0), ("poisson", "scale", 2.0, 20.0),
])  # fmt: skip
def test_noise_has_the_deviation_that_was_drawn(kind, key, value, deviation):
    flat = np.full((1, 64, 64), 100, np.float32)
    noise = Noise(kinds={kind: 1.0}, **{key: (value, value)}, grey=0.0)(flat, random(), (64, 64))
    assert noise.shape == (3, 64, 64)
    assert abs(noise.std() / deviation - 1) < 0.05 and abs(noise.mean() - 100) < 1
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.06


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_compression_is_the_codec_of_that_quality_and_twice_is_another(kind):
    x = photograph().transpose(2, 0, 1).astype(np.float32)
    step = Compress(kinds={kind: 1.0}, quality=(40, 40), phase=(0, 0), subsampled=1.0)
    once = step(x, random(), (64, 64))
    file = io.BytesIO()
    options = {"subsampling": 2} if kind == "jpeg" else {"method": 2}
    Image.fromarray(photograph()).save(file, kind, quality=40, **options)
    assert np.array_equal(once, np.asarray(Image.open(file).convert("RGB"), np.float32).transpose(2, 0, 1))
    shifted = Compress(kinds={kind: 1.0}, quality=(40, 40), phase=(3, 3), subsampled=1.0)
    twice = shifted(once, random(), (64, 64))
    assert ((twice - x) ** 2).mean() > ((once - x) ** 2).mean()
    best = Compress(kinds={kind: 1.0}, quality=(95, 95))(x, random(), (64, 64))
    assert ((best - x) ** 2).mean() < ((once - x) ** 2).mean()


def test_a_side_longer_than_that_of_a_webp_is_compressed_as_jpeg():
    x = np.broadcast_to(np.linspace(0, 255, 16_400, dtype=np.float32), (3, 8, 16_400))
    webp, jpeg = (Compress(kinds={kind: 1.0}, phase=(0, 0))(x, random(), (8, 16_400)) for kind in ("webp", "jpeg"))
    assert np.array_equal(webp, jpeg) and not np.array_equal(webp, x)
    with pytest.raises(ValueError, match="`compress`: a side must be at most 65500 pixels, got 65501"):
        Compress()(np.zeros((1, 1, 65_501), np.float32), random(), (1, 65_501))


BAD = {
    "an unknown step": ({"steps": [{"step": "blurr"}]}, ["steps[0]", "'blurr'", "blur, resize"]),
    "an unknown option": ({"steps": [{"step": "blur", "sigmas": [1, 2]}]}, ["steps[0] 'blur'", "'sigmas'", "sigma"]),
    "a range out of order": (
        {"chains": [{"name": "old", "steps": [{"step": "downsample"}, {"step": "compress", "quality": [95, 30]}]}]},
        ["chains[0] 'old'", "steps[1] 'compress'", "`quality`", "[95, 30]"],
    ),
    "a range out of its limits": ({"steps": [{"step": "compress", "quality": [30, 101]}]}, ["`quality`", "<= 100"]),
    "a range of words": ({"steps": [{"step": "noise", "sigma": ["a", "b"]}]}, ["'noise'", "`sigma`", "['a', 'b']"]),
    "a probability above one": ({"steps": [{"step": "blur", "probability": 2}]}, ["`probability`", "[0, 1]", "2"]),
    "an unknown kind": ({"steps": [{"step": "resize", "kinds": {"cubic": 1}}]}, ["`kinds`", "'cubic'", "bicubic"]),
    "kinds without weight": ({"steps": [{"step": "resize", "kinds": {"area": 0}}]}, ["`kinds`", "'area': 0"]),
    "a weight below zero": ({"chains": [{"weight": -1, "steps": []}]}, ["chains[0]", "`weight`", "-1"]),
    "no chain that is taken": ({"chains": [{"weight": 0, "steps": []}]}, ["`weight`"]),
    "no steps": ({}, ["`steps`"]),
    "a list": ([1], ["must be a mapping"]),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_in_a_file_is_named(case, tmp_path):
    content, words = BAD[case]
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError) as caught:
        load_degradation(path)
    assert all(word in str(caught.value) for word in ["mine.yaml", *words]), caught.value


@pytest.mark.parametrize(("arguments", "word"), [
    ({"degradation": "unreal"}, "mild-jpeg"), ({"degradation": "missing.yaml"}, "missing.yaml"), ({"seed": -1}, "seed"),
    ({"index": 2**64}, "index"), ({"scale_factor": 0}, "scale_factor"), ({"image": np.zeros((4, 4, 3))}, "image"),
    ({"degradation": None}, "`degradation`.*None"), ({"scale_factor": 1.5}, "scale_factor.*1.5"),
    ({"seed": True}, "seed.*True"), ({"seed": 0.5}, "`seed` must be a whole number"),
    ({"image": torch.zeros(3, 8, 8)}, "`image` must be a PIL image"),
    ({"image": torch.zeros(3, 8, 8, dtype=torch.bfloat16)}, "`image` must be a PIL image.*bfloat16"),
    ({"image": torch.zeros(3, 8, 8, requires_grad=True)}, "`image` must be a PIL image"),
])  # fmt: skip
def test_arguments_out_of_range_are_named(arguments, word):
    with pytest.raises(ValueError, match=word):
        degrade(**({"image": photograph(), "degradation": "real", "seed": 0, "index": 0} | arguments))


def test_an_evaluation_of_degraded_images_is_reproducible_and_says_what_it_is_of(tmp_path):
    folder = photo_folder(tmp_path / "set", dict.fromkeys("abc", (40, 36)))
    report, again, other, first = (
        run(folder, NoisyBicubic(), degradation="second-order", **options)
        for options in ({"seed": 5}, {"seed": 5}, {"seed": 6}, {"seed": 5, "num_images": 1})
    )
    assert report["rows"] == again["rows"] != other["rows"] and report["images"][0] == first["images"][0]
    assert "--degradation second-order" in command_line(report) and "--seed 5" in command_line(report)
    assert "degraded by second-order of seed 5" in markdown_table(report)
    assert "mean t=0.8 projected" in by_name(report)
    blind = NoisyBicubic()
    blind.config["consistency"] = "none"
    covered = run(folder, blind, degradation="noise", temperatures=(1.0,), coverage_samples=19)
    assert list(by_name(covered)) == ["bicubic", "sample t=1", "mean t=1"]
    assert "coverage" in by_name(covered)["sample t=1"] and sample_rows(covered)


def test_the_pairs_that_are_written_are_those_that_are_scored(tmp_path):
    folder = photo_folder(tmp_path / "set", dict.fromkeys("ab", (40, 36)))
    arguments = ["evaluate", "--data", folder, "--size", 32, "--degradation", "real", "--seed", 2, "-o", "x.json"]
    assert main([*map(str, arguments), "--write_pairs", str(tmp_path / "pairs")]) == 0
    hr, _ = prepare_thesis(Image.open(folder / "b.png"), 32)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "pairs" / "LR" / "b.png")), degrade(hr, "real", 2, 1))


def test_pictures_of_other_modes_are_what_they_look_like():
    """16 bits are not clipped, and what is transparent is seen on white."""
    wide = Image.fromarray(np.full((8, 8), 128 * 257, np.uint16))
    assert abs(float(np.asarray(degrade(wide, "mild-jpeg", 0, 0)).mean()) - 128) < 8
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    assert np.asarray(degrade(clear, "mild-jpeg", 0, 0)).min() > 240
    assert prepare_thesis(wide, 8)[0].mean() == 128
