"""Keep, mix, redraw, rank; quantiles."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from hvae_sr import Downsampling
from hvae_sr.cli import main
from hvae_sr.posterior import Recipe, log_density, mix, read_mask, unseen_change
from hvae_sr.posterior.density import LOG_SIGMA_FLOOR, rank
from hvae_sr.sampling import Budget, WindowSampler
from hvae_sr.sampling.memory import PIXELS_PER_CHUNK

PHOTO = np.random.default_rng(0).random((14, 17, 3), dtype=np.float32) * 0.6 + 0.2
GREY = PHOTO * 0.02 + 0.49
"""Far from 0 and 1: clamping is not consistent with anything."""
LARGER = np.random.default_rng(1).random((40, 33, 3), dtype=np.float32)
MASK = np.zeros((56, 68), dtype=bool)
MASK[12:44, 20:52] = True


@pytest.fixture(params=["cvdvae", "vdvae-sr"])
def pipe(request, make_pipeline):
    return make_pipeline(request.param)


def test_fixed_groups_are_kept_and_the_others_drawn(pipe):
    first = pipe(PHOTO, seed=0, output_type="latent").latents
    new = pipe(PHOTO, seed=9, latents=first, num_fixed_groups=2, output_type="latent").latents
    plain = pipe(PHOTO, seed=9, latents=first[:2], output_type="latent").latents
    assert all(map(torch.equal, first[:2], new[:2]))
    assert not torch.equal(first[2], new[2]) and torch.equal(new[2], plain[2])
    mixed = pipe(PHOTO, latents=mix(first, plain, 2), output_type="latent").latents
    assert all(map(torch.equal, mixed, (*first[:2], *plain[2:])))
    with pytest.raises(ValueError, match="num_fixed_groups"):
        pipe(PHOTO, num_fixed_groups=2)


def test_a_redrawn_region_changes_inside_only_and_stays_consistent(pipe, monkeypatch):
    old = pipe(GREY, seed=3, output_type="pt").images[0]
    seen, sample = [], pipe.vdvae.sample
    monkeypatch.setattr(pipe.vdvae, "sample", lambda *given, **named: seen.append(1) or sample(*given, **named))
    out = pipe.redraw_region(GREY, MASK, seed=3, new_seed=50, num_samples=2, output_type="pt")
    assert len(seen) == 3  # versions share the sample that they start from
    for new in out.images:
        difference = (new - old).abs().amax(dim=0).numpy()
        assert difference[~MASK].max() == 0 and difference[MASK].max() > 0.01
        change = (Downsampling(4)(new.double()) - Downsampling(4)(old.double())).abs()
        clamped = torch.nn.functional.max_pool2d(((new == 0) | (new == 1)).double(), 20, 4, 8) > 0
        assert change[~clamped].max() < 1e-5 and not clamped.all()
    assert not torch.equal(*out.images) and out.seeds == [50, 51]
    # As every sample is, before it is clamped: what H sees of the parts that are cut off is not lost in between.
    plain, version = pipe(PHOTO, seed=3), pipe.redraw_region(PHOTO, MASK, 3, 50, num_samples=2, return_latents=True)
    assert min(*plain.lr_psnr_float, *version.lr_psnr_float) > 100 > max(version.lr_psnr)
    assert len(version.latents) == pipe.vdvae.num_groups and {len(z) for z in version.latents} == {2}
    assert len(version.lr_psnr_unprojected) == 2 and len(pipe.rank(PHOTO, version)) == 2
    assert out.latents is None
    with pytest.raises(ValueError, match="`keep_images` must be True"):
        pipe.redraw_region(PHOTO, MASK, 0, 5, keep_images=False)


def draws(pipe, recipes):
    return [next(pipe.samples(GREY, recipes=[recipe], output_type="pt")).x for recipe in recipes]


def test_regions_are_drawn_one_over_the_other_and_what_is_outside_the_last_stays(pipe):
    masks = [np.zeros((56, 68), dtype=bool) for _ in range(2)]
    masks[0][4:24, 4:24] = masks[1][16:40, 16:40] = True
    first = Recipe.of(3, pipe.vdvae.num_groups).redraw(masks[0], 50)
    varied, second = first.vary(1, 8), first.vary(1, 8).redraw(masks[1], 51)
    seen = draws(pipe, (first, varied, second))
    assert torch.equal(seen[0], pipe.redraw_region(GREY, masks[0], 3, 50, output_type="pt").images[0])
    assert not torch.equal(seen[0], seen[1])
    difference = (seen[2] - seen[1]).abs().amax(dim=0).numpy()
    assert difference[~masks[1]].max() == 0 and difference[masks[1]].max() > 0.01
    with pytest.raises(ValueError, match="`recipes`.*groups"):
        pipe.samples(GREY, recipes=[Recipe((1,))])
    with pytest.raises(ValueError, match="`recipes`.*mask"):
        pipe.samples(GREY, recipes=[first.redraw(masks[0][:5], 1)])


@pytest.mark.parametrize("kept", [0, 2])
def test_a_version_of_a_redrawn_sample_has_new_texture_in_the_redrawn_part_too(pipe, kept):
    whole, groups = np.ones((56, 68), dtype=bool), pipe.vdvae.num_groups
    redrawn = Recipe.of(3, groups).redraw(whole, 50)
    recipes = [redrawn, *(redrawn.vary(kept, seed) for seed in (8, 9)), Recipe.of(50, groups).vary(kept, 8)]
    old, *versions, same = draws(pipe, recipes)
    assert all((a - b).abs().max() > 0.01 for a, b in [(old, versions[0]), (old, versions[1]), versions])
    if kept:  # the layout is the redrawn part's, the texture that of the version
        assert (versions[0] - same).abs().max() < 1e-4
    else:
        assert redrawn.vary(kept, 8).seed == 8
        new = pipe.redraw_region(GREY, np.ones((14, 17), dtype=bool), 3, 50, feather=32, output_type="pt").images[0]
        assert (new - pipe(GREY, seed=50, output_type="pt").images[0]).abs().max() < 0.01  # clamping
    assert redrawn.vary(groups, 8).regions == redrawn.regions
    with pytest.raises(ValueError, match="`recipes`: a region's groups must be"):
        pipe.samples(GREY, recipes=[Recipe(redrawn.group_seeds, (redrawn.regions[0].first(0),))])


def flat_weights(height, width, rows, columns):
    weights = torch.zeros(height, width, dtype=torch.float64)
    weights[rows, columns] = 1
    change = torch.randn(3, height, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return change, weights


def test_the_unseen_change_is_unseen_and_is_the_projection_where_weights_are_one():
    operator, (change, weights) = Downsampling(4), flat_weights(64, 80, slice(17, 50), slice(20, 61))
    found = unseen_change(operator, change, weights)
    assert operator(found).abs().max() < 1e-7
    assert (found[:, weights == 0] == 0).all() and found.abs().max() > 0.5
    whole = unseen_change(operator, change, torch.ones_like(weights))
    expected = operator.project(change, torch.zeros(3, 16, 20, dtype=torch.float64))
    assert (whole - expected).abs().max() < 1e-6


@pytest.mark.parametrize(("taps", "scale"), [(40, 2), (100, 4)])
def test_the_change_is_unseen_by_long_kernels_too(taps, scale):
    kernel = np.zeros(taps)
    kernel[[0, taps // 2 - 1, taps // 2, -1]] = 0.2, 0.3, 0.3, 0.2
    operator = Downsampling(scale, kernel.tolist())
    change = unseen_change(operator, *flat_weights(160, 160, slice(60, 100), slice(60, 100)))
    assert operator(change).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mask": np.ones((5, 5), dtype=bool)}, "`mask` must be 56x68"),
        ({"mask": np.zeros((14, 17), dtype=bool)}, "`mask` is empty"),
        ({"mask": "mask.png"}, "`mask` must be a picture or an array"),
        ({"mask": None}, "`mask` must be a picture or an array"),
        ({"mask": np.full((14, 17), 255.0)}, r"`mask` as floats must lie in \[0, 1\]"),
        ({"seed": None}, "`seed`"),
        ({"new_seed": 1.5}, "`new_seed`"),
        ({"new_seed": True}, "`new_seed`"),
        ({"num_samples": None}, "`num_samples`"),
    ],
)
def test_a_region_needs_a_mask_and_whole_numbers(make_pipeline, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_pipeline().redraw_region(PHOTO, **{"mask": MASK, "seed": 0, "new_seed": 1, **arguments})


def test_a_mask_may_be_of_any_kind_of_array():
    mask = MASK[::4, ::4]
    kinds = [
        *(mask.astype(kind) for kind in (np.uint8, np.int64, np.float32)),
        np.ascontiguousarray(mask[:, ::-1])[:, ::-1],
        mask.astype(np.uint16) * 65535,
        mask.astype(">u2") * 40000,
        mask.astype(np.int32) * 255,
        torch.from_numpy(mask.astype(np.uint16) * 65535),
        torch.from_numpy(mask).bfloat16(),
        Image.fromarray(mask),
        Image.fromarray(mask.astype(np.uint16) * 65535),
        Image.fromarray(mask.astype(np.float32) * 0.6),
    ]
    assert all(torch.equal(read_mask(kind, (56, 68), 4), torch.from_numpy(MASK)) for kind in (MASK, mask, *kinds))


@pytest.mark.parametrize("window_size", [None, 8])
def test_quantiles_are_those_of_the_samples(pipe, monkeypatch, window_size):
    photo = LARGER * 0.6 + 0.2
    samples = pipe(photo, num_samples=9, seed=2, output_type="pt").images
    expected = torch.quantile(samples, torch.tensor([0.1, 0.5]), dim=0)
    seen, encode = [], pipe.lr_encoder.encode
    monkeypatch.setattr(pipe.lr_encoder, "encode", lambda y: seen.append(y.shape) or encode(y))
    found = pipe.quantiles(photo, (0.1, 0.5), num_samples=9, seed=2, window_size=window_size, window_margin=32)
    assert found.shape == expected.shape
    low, margin = torch.from_numpy(photo).movedim(-1, 0), max(32, pipe.operator.reach)
    windows = WindowSampler(pipe.networks, low, window_size, margin=margin).windows
    assert len(seen) == len({window.outer for window in windows})  # once a window, not a sample
    assert (found - expected).abs().max() < (1e-5 if window_size is None else 1 / 255)
    with pytest.raises(ValueError, match="q"):
        pipe.quantiles(photo, (1.5,))


@pytest.mark.parametrize("margin", [0, 4])
def test_windows_of_quantiles_see_what_the_projection_needs(margin, make_pipeline):
    pipe, photo = make_pipeline("vdvae-sr"), LARGER * 0.6 + 0.2
    samples = pipe(photo, num_samples=2, seed=0, output_type="pt").images
    ends = pipe.quantiles(photo, (0, 1), num_samples=2, seed=0, window_size=8, window_margin=margin)
    assert (ends - torch.stack([samples.amin(0), samples.amax(0)])).abs().max() < 0.5 / 255


def test_the_reach_of_a_projection_is_that_of_its_kernel():
    flat = np.exp(-((np.arange(24) - 11.5) ** 2) / 32)
    reaches = [Downsampling(4, kernel).reach for kernel in ("box", "bicubic", (flat / flat.sum()).tolist())]
    assert reaches == sorted(reaches) and reaches[0] < 8 and reaches[2] > 3 * reaches[1]


def test_quantiles_of_few_samples_are_of_windows_no_larger_than_a_calls(make_pipeline):
    pipe, y = make_pipeline(), torch.zeros(3, 1000, 1000)
    for sampler in [pipe._quantile_sampler(y, pipe.check_inputs(), n) for n in (2, 64)]:
        assert max(math.prod(sampler._view_size(window)) for window in sampler.windows) <= PIXELS_PER_CHUNK


def test_quantiles_take_seeds_and_sizes_as_the_pipeline_does(make_pipeline):
    pipe = make_pipeline()
    assert torch.equal(pipe.quantiles(PHOTO, num_samples=2, seed=[4]), pipe.quantiles(PHOTO, num_samples=2, seed=4))
    torch.manual_seed(0)
    first = pipe.quantiles(PHOTO, num_samples=2, seed=None)
    torch.manual_seed(0)
    assert torch.equal(first, pipe.quantiles(PHOTO, num_samples=2, seed=None))
    assert torch.equal(
        pipe.quantiles(PHOTO, num_samples=2, seed=0, temperature=np.full(4, 0.5)),
        pipe.quantiles(PHOTO, num_samples=2, seed=0, temperature=0.5),
    )
    with pytest.raises(ValueError, match="`seed` has 2 entries"):
        pipe.quantiles(PHOTO, seed=[1, 2])
    with pytest.raises(ValueError, match="at least 2x2"):
        pipe.quantiles(PHOTO[:1])
    with pytest.raises(ValueError, match=r"`image` must be 4x4 pixels.*; got \d+x\d+$"):  # `tile` is no argument
        make_pipeline(bias_type="spatial").quantiles(PHOTO)


def test_ranks_order_by_density_or_faithfulness(pipe):
    out = pipe(PHOTO, seed=0, num_samples=4, return_latents=True, output_type="np")
    for by in ("log_density", "lr_psnr_unprojected"):
        ranks = pipe.rank(PHOTO, out, by)
        values = [getattr(one, by) for one in ranks]
        assert values == sorted(values, reverse=True) and {one.index for one in ranks} == {0, 1, 2, 3}
    with pytest.raises(ValueError, match="latents"):
        pipe.rank(PHOTO, pipe(PHOTO, seed=0))
    with pytest.raises(ValueError, match="`output` must be of one image, it holds samples of 2"):
        pipe.rank(PHOTO, pipe([PHOTO, PHOTO], seed=0, return_latents=True))
    for wrong in (None, torch.tensor(1), out.images):
        with pytest.raises(ValueError, match="`output` must be what a call returned"):
            pipe.rank(PHOTO, wrong)
    with pytest.raises(ValueError, match="`densities` must be finite"):
        rank([0.0, float("nan")], [50.0, 50.0], "log_density")


def test_densities_of_deviations_below_the_precision_of_latents_are_finite(pipe, monkeypatch):
    out = pipe(PHOTO, seed=0, num_samples=2, return_latents=True)
    statistics = WindowSampler.statistics

    def narrow(self, window, latents):  # as energy-score models have them on black and white
        for group in statistics(self, window, latents):
            found = group.lr_posterior or group.prior
            narrow = found._replace(log_sigma=torch.full_like(found.log_sigma, -1000.0))
            yield replace(group, z=found.mean, **{"lr_posterior" if group.lr_posterior else "prior": narrow})

    monkeypatch.setattr(WindowSampler, "statistics", narrow)
    expected = -LOG_SIGMA_FLOOR - 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(pipe.log_density(PHOTO, out.latents).numpy(), expected, rtol=1e-6)


def test_the_density_is_highest_at_the_mean_and_the_same_in_windows(pipe, monkeypatch):
    mean = pipe(LARGER, temperature=0.0, seed=0, output_type="latent").latents
    draw = pipe(LARGER, temperature=1.0, seed=0, output_type="latent").latents
    whole = pipe.log_density(LARGER, draw)
    assert pipe.log_density(LARGER, mean)[0] > whole[0]
    draws = pipe(LARGER, num_samples=3, seed=0, output_type="latent").latents
    seen, encode = [], pipe.lr_encoder.encode
    monkeypatch.setattr(pipe.lr_encoder, "encode", lambda y: seen.append(1) or encode(y))
    assert len(pipe.log_density(LARGER, draws)) == 3 and len(seen) == 1  # once for all samples
    y = torch.from_numpy(LARGER).movedim(-1, 0)
    with torch.no_grad():
        parts = log_density(WindowSampler(pipe.networks, y, 8, Budget(2**20, 0), margin=32), draw)
    assert torch.allclose(parts, whole, atol=1e-4)
    with pytest.raises(ValueError, match="`max_memory`"):
        pipe.log_density(LARGER, draw, max_memory=2**20)


@pytest.mark.parametrize("cut", [lambda z: z[:3], lambda z: [], lambda z: z[0], lambda z: [None, *z[1:]]])
def test_a_density_needs_the_latents_of_every_group(make_pipeline, cut):
    pipe = make_pipeline()
    latents = pipe(PHOTO, seed=0, output_type="latent").latents
    with pytest.raises(ValueError, match="`latents"):
        pipe.log_density(PHOTO, cut(latents))


@pytest.mark.parametrize("by", ["log_density", "lr_psnr_unprojected"])
def test_the_command_line_ranks_samples(by, make_pipeline, tmp_path, capsys):
    model = make_pipeline("vdvae-sr")
    model.save_pretrained(tmp_path / "model")
    Image.fromarray((255 * PHOTO).astype(np.uint8)).save(tmp_path / "photo.png")
    options = ["-o", tmp_path / "out", "--model", tmp_path / "model", "--num_samples", 3, "--seed", 5, "--rank", by]
    command = ["upscale", tmp_path / "photo.png", *options, "--device", "cpu", "--dtype", "float32"]
    assert main([str(word) for word in command]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("rank ")]
    out = model(tmp_path / "photo.png", seed=5, num_samples=3, return_latents=True)
    expected = [5 + one.index for one in model.rank(tmp_path / "photo.png", out, by)]
    assert [int(line.split("seed ")[1].split(",")[0]) for line in lines] == expected
    assert main([*(str(word) for word in command), "--outscale", "16", "--overwrite"]) == 2
    assert "--rank" in capsys.readouterr().err


@pytest.mark.parametrize("kept", [-1, 9, 1.5, True])
def test_a_version_keeps_a_number_of_groups(kept):
    latents = [torch.zeros(1, 1, 1, 1)] * 4
    with pytest.raises(ValueError, match=f"`kept` must be a whole number between 0 and 4, got {kept}"):
        Recipe.of(0, 4).vary(kept, 5)
    with pytest.raises(ValueError, match=f"`num_fixed_groups` must be a whole number between 0 and 4, got {kept}"):
        mix(latents, latents, kept)
