"""The self-ensemble: samples in eight orientations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from test_pipeline import MakePipeline

from hvae_sr.evaluation import evaluate
from hvae_sr.evaluation.tables import command_line
from hvae_sr.sampling.memory import MIN_PIXELS, budget, bytes_per_pixel
from hvae_sr.sampling.orientations import NUM_ORIENTATIONS, orient, restore


def photo(height: int = 5, width: int = 6) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).uniform(0.2, 0.8, (3, height, width))).float()


def test_orientations_are_the_symmetries_of_the_square() -> None:
    image = torch.arange(9.0).view(1, 3, 3)
    found = {tuple(orient(image, i).flatten().tolist()) for i in range(NUM_ORIENTATIONS)}
    turned = [torch.rot90(each, k, (-2, -1)) for each in (image, image.flip(-1)) for k in range(4)]
    assert found == {tuple(each.flatten().tolist()) for each in turned}
    assert all(torch.equal(restore(orient(image, i), i), image) for i in range(NUM_ORIENTATIONS))


@pytest.mark.parametrize("kind", ["cvdvae", "vdvae-sr"])
@pytest.mark.parametrize("batch_size", [1, 10])
def test_a_sample_is_that_of_the_turned_image_turned_back(
    make_pipeline: MakePipeline, kind: str, batch_size: int
) -> None:
    pipe, y = make_pipeline(kind), photo()
    out = pipe(y, seed=3, num_samples=10, self_ensemble=True, batch_size=batch_size, output_type="pt")
    for seed, sample in zip(range(3, 13), out.images, strict=True):
        alone = pipe(orient(y, seed % 8), seed=seed, output_type="pt").images[0]
        torch.testing.assert_close(sample, restore(alone, seed % 8), atol=1e-5, rtol=0)
    assert min(out.lr_psnr_float) > 100  # before clamping
    torch.testing.assert_close(out.mean[0], out.images.mean(dim=0), atol=1e-5, rtol=0)


def test_a_seed_gives_its_sample_alone_and_in_windows(make_pipeline: MakePipeline) -> None:
    pipe, y = make_pipeline("vdvae-sr", bias_type="channel"), photo(70, 61)
    whole = pipe(y, seed=6, num_samples=3, self_ensemble=True, output_type="pt")
    alone = pipe(y, seed=7, self_ensemble=True, output_type="pt", window_size=16)
    torch.testing.assert_close(alone.images[0], whole.images[1], atol=2e-3, rtol=0)


def test_the_mean_of_eight_does_not_depend_on_how_the_image_is_turned(make_pipeline: MakePipeline) -> None:
    pipe, y = make_pipeline("vdvae-sr"), photo(4, 4)
    options = {"seed": 0, "num_samples": 8, "temperature": 0.0, "output_type": "pt"}
    mean = pipe(y, self_ensemble=True, **options).mean[0]
    for orientation in range(NUM_ORIENTATIONS):
        turned = pipe(orient(y, orientation), self_ensemble=True, **options).mean[0]
        torch.testing.assert_close(restore(turned, orientation), mean, atol=1e-5, rtol=0)
    assert (pipe(y.flip(-1), **options).mean[0].flip(-1) - pipe(y, **options).mean[0]).abs().max() > 1e-3


def test_what_has_one_orientation_is_refused(make_pipeline: MakePipeline) -> None:
    pipe, y = make_pipeline("vdvae-sr"), photo(4, 4)
    latents = pipe(y, seed=0, return_latents=True).latents
    for options in ({"latents": latents}, {"return_latents": True}, {"output_type": "latent"}):
        with pytest.raises(ValueError, match="`self_ensemble`.*latents"):
            pipe(y, self_ensemble=True, **options)
    with pytest.raises(ValueError, match="`self_ensemble`.*region"):
        pipe.redraw_region(y, np.ones((16, 16), bool), 0, 1, self_ensemble=True)
    with pytest.raises(ValueError, match="`self_ensemble`.*one orientation"):
        make_pipeline("cvdvae", bias_type="spatial")(y, self_ensemble=True)


def test_a_report_tells_that_its_samples_are_of_eight_orientations(make_pipeline: MakePipeline, tmp_path) -> None:
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (40, 32, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    pipe = make_pipeline("vdvae-sr")
    options = {"size": 16, "temperatures": (0.5,), "num_samples": 2, "progress_bar": False}
    with_it, without = (evaluate(pipe, tmp_path, self_ensemble=each, **options) for each in (True, False))
    assert "--self_ensemble" in command_line(with_it) and "--self_ensemble" not in command_line(without)
    rows = [{row["name"]: row["psnr"] for row in report["rows"]} for report in (with_it, without)]
    assert rows[0]["bicubic"] == rows[1]["bicubic"]
    assert rows[0]["mean t=0.5"] != rows[1]["mean t=0.5"]


def test_the_copies_of_samples_are_counted_in_the_bound_of_memory(make_pipeline: MakePipeline, monkeypatch) -> None:
    vdvae, size = make_pipeline("vdvae-sr").vdvae, (2048, 2048)
    monkeypatch.setattr("hvae_sr.sampling.memory.used_and_available", lambda device: (0, 2**40))
    least = {}
    for name, options in {"plain": {}, "turned": {"self_ensemble": True}, "four": {"batch_size": 4}}.items():
        low, high = 0, 2**34
        while high - low > 1:
            middle = (low + high) // 2
            try:
                budget(vdvae, size, 4, "pil", True, middle, torch.device("cuda"), **options)
                high = middle
            except ValueError as error:
                assert "`max_memory`" in str(error)
                low = middle
        least[name] = high
    assert least["turned"] - least["plain"] == 12 * 2048**2
    assert least["four"] - least["plain"] == 36 * 2048**2
    assert least["plain"] > MIN_PIXELS * bytes_per_pixel(vdvae)


def test_orientations_do_not_depend_on_the_default_dtype(make_pipeline):
    pipe, y = make_pipeline(), np.random.default_rng(3).random((9, 7, 3), dtype=np.float32)
    expected = pipe(y, seed=0, num_samples=3, self_ensemble=True, output_type="pt").images
    try:
        torch.set_default_dtype(torch.float64)
        found = pipe(y, seed=0, num_samples=3, self_ensemble=True, output_type="pt").images
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
