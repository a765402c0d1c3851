"""The energy score is the formula, unbiased, of the samples that the pipeline draws, and trains both networks."""

import math

import numpy as np
import pytest
import torch
from runs import LR_CONFIGS, VDVAE_CONFIG, assert_like, assert_same, log, on_processes, shaken, weights, write

from hvae_sr import VDVAE, Downsampling, LRConditioner, LREncoder, SuperResolutionPipeline
from hvae_sr.data import degrade
from hvae_sr.training import EnergyScore, parse_arguments
from hvae_sr.training.batches import build_training_set, build_validation_set
from hvae_sr.training.energy_score import spread_weight
from hvae_sr.training.networks import build_objective
from hvae_sr.training.scores import BandDistance

NETWORKS = {
    "cvdvae": lambda: LREncoder(**LR_CONFIGS["lr-encoder"]),
    "vdvae-sr": lambda: LRConditioner(**LR_CONFIGS["vdvae-sr"]),
}
OPERATOR = Downsampling(4, "bicubic")


def make(kind="vdvae-sr", **options):
    torch.manual_seed(0)
    vdvae = VDVAE(**VDVAE_CONFIG)
    vdvae.remove_encoder()
    network = NETWORKS[kind]()
    return EnergyScore(shaken(vdvae), shaken(network), OPERATOR, **options)


def photographs(count=2, side=32):
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))


class Drawn(EnergyScore):
    """Its samples are N(mean, deviation^2), grey."""

    mean, deviation = 0.3, 0.5

    def __init__(self, num_samples):
        torch.manual_seed(0)
        networks = VDVAE(**VDVAE_CONFIG), NETWORKS["vdvae-sr"]()
        super().__init__(*networks, OPERATOR, num_samples=num_samples, patch_sizes=(1,))

    def samples(self, y, size, seeds, condition=None):
        draws = torch.randn(self.num_samples, 2, 1, *size, generator=torch.Generator().manual_seed(self.num_samples))
        return tuple((self.mean + self.deviation * draws).expand(-1, -1, 3, -1, -1))


def patch_distance(a, b, p):
    """|a - b| of every patch, by loops."""
    found = []
    for top in range(0, a.shape[-2], p):
        for left in range(0, a.shape[-1], p):
            patch = (a - b)[:, top : top + p, left : left + p]
            found.append(math.sqrt(float((patch**2).mean()) + 1e-6))
    return np.array(found)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_loss_is_the_formula(n):
    objective, images, seeds = make(num_samples=n, patch_sizes=(2, 8)), photographs(), [3, 10]
    x, y = objective.pairs(images)
    with torch.no_grad():
        loss, figures = objective(images, seeds)
        samples = np.stack([sample.numpy() for sample in objective.samples(y, (32, 32), seeds)])  # [n, B, 3, H, W]
    scores = []
    for p in (2, 8):
        for b in range(2):
            error = sum(patch_distance(samples[i, b], x[b].numpy(), p) for i in range(n)) / n
            pairs = [patch_distance(samples[i, b], samples[j, b], p) for i in range(n) for j in range(i)]
            scores.append((error - (sum(pairs) / (n * (n - 1)) if pairs else 0)).mean())
    assert float(loss) == pytest.approx(np.mean(scores), rel=1e-5)
    assert figures["score"] == pytest.approx(127.5 * float(loss), rel=1e-5)
    assert float(figures["spread"]) > 0 if n > 1 else float(figures["spread"]) == 0


@pytest.mark.parametrize("n", [2, 5])
def test_the_score_is_unbiased_in_the_number_of_samples(n):
    """E|X - x| - E|X - X'| / 2 of a Gaussian has a closed form (Gneiting and Raftery, 2007, eq. 21), whatever n."""
    mean, deviation = Drawn.mean, Drawn.deviation
    found = float(Drawn(n)(torch.full((2, 3, 256, 256), 128, dtype=torch.uint8), [0, 1])[0])
    offset = (mean - (128 / 127.5 - 1)) / deviation
    density, below = math.exp(-(offset**2) / 2) / math.sqrt(2 * math.pi), 0.5 * math.erfc(-offset / math.sqrt(2))
    expected = deviation * (2 * density + offset * (2 * below - 1) - 1 / math.sqrt(math.pi))
    assert found == pytest.approx(expected, rel=0.01)


def test_the_score_is_least_for_the_true_distribution():
    """Photographs N(0, 0.25^2) of a grey: the spread that the score prefers is theirs."""
    x = (127.5 + 127.5 * 0.25 * torch.randn(2, 1, 256, 256, generator=torch.Generator().manual_seed(9))).round()
    images = x.clamp(0, 255).to(torch.uint8).expand(-1, 3, -1, -1)
    objective, scores = Drawn(2), {}
    for objective.mean, objective.deviation in ((0.0, 0.1), (0.0, 0.25), (0.0, 0.4), (0.1, 0.25)):
        scores[objective.mean, objective.deviation] = float(objective(images, [0, 1])[0])
    assert min(scores, key=scores.get) == (0.0, 0.25)


def test_one_sample_is_a_deterministic_regression_without_levels_and_temperatures():
    for n, options in ((1, {}), (1, {"level_dropout": [0.5], "low_temperatures": 0.4}), (2, {})):
        objective, images = make(num_samples=n, **options), photographs()
        assert len({objective(images, seeds)[0].item() for seeds in ([0, 1], [7, 12345])}) == n
        if options:
            assert {objective._opened([seed]) for seed in range(20)} == {(len(objective.levels) - 1, 1.0)}


def test_the_weight_of_the_point_estimate():
    """The term is |x_0 - x| of the sample at temperature 0 as the network gives it, whatever the seeds."""
    images = photographs()
    with torch.no_grad():
        plain, weighted = make(num_samples=2, patch_sizes=(8,)), make(num_samples=2, patch_sizes=(8,), point_weight=0.5)
        loss, figures = weighted(images, [0, 1])
        x, y = weighted.pairs(images)
        condition = weighted.lr_network.encode(y)
        raw = weighted.vdvae.sample(2, (32, 32), condition=condition, temperature=0.0).sample
        expected = np.mean([patch_distance(raw[b].numpy(), x[b].numpy(), 8).mean() for b in range(2)])
    assert float(figures["point_error"]) == pytest.approx(127.5 * expected, rel=1e-5)
    assert loss.item() == pytest.approx(plain(images, [0, 1])[0].item() + 0.5 * expected, rel=1e-5)


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_first_samples_are_those_of_the_pipeline(kind):
    objective = make(kind, num_samples=2)
    _, y = objective.pairs(photographs())
    with torch.no_grad():
        first, second = objective.samples(y, (32, 32), [5, 6])
    pipe = SuperResolutionPipeline(objective.vdvae, objective.lr_network)
    pipe.set_progress_bar_config(disable=True)
    out = pipe((y + 1) / 2, temperature=1.0, num_samples=1, seed=[5, 6], output_type="pt")
    assert torch.allclose(out.images, (first.clamp(-1, 1) + 1) / 2, atol=1e-5)
    assert (first - second).abs().mean() > 0.01
    assert torch.allclose(OPERATOR(first), y, atol=1e-4) and torch.allclose(OPERATOR(second), y, atol=1e-4)


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("kind", NETWORKS)
def test_the_gradient_reaches_both_networks(kind, n):
    objective = make(kind, num_samples=n)
    objective(photographs(), [0, 1])[0].backward()
    assert all(parameter.grad is not None for parameter in objective.parameters())
    for network in (objective.vdvae, objective.lr_network):
        total = sum(float(parameter.grad.abs().sum()) for parameter in network.parameters())
        assert math.isfinite(total) and total > 0


def test_scores_of_further_distances_are_added_and_their_ratios_logged():
    distance = BandDistance((8,))
    plain, both = make(), make(distances={"band": (distance, 0.25)})
    images, seeds = photographs(), [3, 10]
    x, y = both.pairs(images)
    with torch.no_grad():
        truth, (one, other) = distance.features(x), (distance.features(s) for s in both.samples(y, (32, 32), seeds))
        error, spread = (distance(one, truth) + distance(other, truth)) / 2, distance(one, other)
        loss, figures = both(images, seeds)
        expected = plain(images, seeds)[0] + 0.25 * (error - spread / 2)
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    assert float(figures["band_ratio"]) == pytest.approx(float(spread / error), rel=1e-5)
    assert float(figures["patch_ratio"]) == pytest.approx(float(figures["spread"] / figures["error"]), rel=1e-5)


@pytest.mark.parametrize("shares, silent", [([], False), ([1.0], True), ([0.0], False)])
def test_level_dropout_silences_the_finer_levels(shares, silent):
    objective = make(level_dropout=shares)
    _, y = objective.pairs(photographs())
    seen = []
    for group, block in enumerate(objective.vdvae.blocks):
        block.register_forward_pre_hook(
            lambda _, args, given, group=group: seen.append((group, given["temperature"])), with_kwargs=True
        )
    with torch.no_grad():
        objective.samples(y, (32, 32), [3, 10])
    levels = objective.vdvae.resolutions
    assert dict(seen) == {g: float(not silent or levels[g] == min(levels)) for g in range(len(levels))}


@pytest.mark.parametrize("pools, pool", [(None, 2), ([1], 1)])
def test_coarse_levels_are_scored_on_averages(pools, pool):
    """The fixture's levels have strides of 4 and 2."""
    objective = make(level_dropout=[1.0], level_pools=pools, patch_sizes=(1,))
    images, seeds = photographs(), [3, 10]
    x, y = objective.pairs(images)
    with torch.no_grad():
        averages = [torch.nn.functional.avg_pool2d(s, pool) for s in (x, *objective.samples(y, (32, 32), seeds))]
        _, figures = objective(images, seeds)
    truth, one, other = ([a] for a in averages)
    distance = objective.patches
    expected = (distance(one, truth) + distance(other, truth) - distance(one, other)) / 2
    assert float(figures["score"]) == pytest.approx(127.5 * float(expected), rel=1e-5)


def test_level_dropout_takes_its_share_and_depends_on_the_seeds_alone():
    objective = make(level_dropout=[0.3])
    draws = [objective._temperatures([seed, -1]) for seed in range(300)]
    assert draws == [objective._temperatures([seed, -1]) for seed in range(300)]
    assert 60 < sum(draw.count(0.0) > 0 for draw in draws) < 120


@pytest.mark.parametrize("options", [{"level_dropout": [1.0]}, {"low_temperatures": 1.0}])
def test_held_out_images_are_measured_at_temperature_one(options):
    plain, objective, images = make().eval(), make(**options).eval(), photographs()
    with torch.no_grad():
        assert float(objective(images, [3, 10])[1]["score"]) == float(plain(images, [3, 10])[1]["score"])
        assert float(objective.train()(images, [3, 10])[1]["score"]) != float(plain(images, [3, 10])[1]["score"])


@pytest.mark.parametrize("temperature", [0.0, 0.5, 0.8, 1.0])
def test_the_score_of_a_temperature_is_lowest_at_samples_of_so_much_less_deviation(temperature):
    """Two samples and a truth of a Gaussian in 48 dimensions, a patch of 4x4 pixels; the same draws for every size."""
    one, other, truth = torch.randn(3, 20_000, 48, generator=torch.Generator().manual_seed(0)).double()

    def score(s):
        error = (s * one - truth).norm(dim=1).mean()
        return error - 0.5 * spread_weight(temperature) * s * (one - other).norm(dim=1).mean()

    sizes = [step / 20 for step in range(25)]
    assert min(sizes, key=lambda s: float(score(s))) == pytest.approx(temperature, abs=0.051)


def test_low_temperatures_take_their_share_and_weigh_the_spread():
    objective = make(low_temperatures=0.5, level_dropout=[0.25], level_pools=[1], patch_sizes=(1,))
    drawn = [objective._temperatures([seed]) for seed in range(400)]
    low = [groups for groups in drawn if 0 < max(groups) < 1]
    assert 160 < len(low) < 240 and all(len(set(groups)) == 1 for groups in low)
    images, seed = photographs()[:1], drawn.index(low[0])
    _, figures = objective(images, [seed])
    expected = figures["error"] - 0.5 * spread_weight(low[0][0]) * figures["spread"]
    assert float(figures["score"]) == pytest.approx(float(expected), rel=1e-4)


def test_further_distances_fade_at_low_temperatures():
    images, bands = photographs(32)[:1], {"band": (BandDistance(windows=[8]), 0.3)}
    options = {"low_temperatures": 1.0, "distances": bands, "patch_sizes": (1,)}
    plain, faded = make(**options), make(**options, distance_fade=2.0)
    for seed in range(3):
        (temperature,) = set(plain._temperatures([seed]))
        (loss, figures), (other, faded_figures) = plain(images, [seed]), faded(images, [seed])
        assert figures["band_score"] == faded_figures["band_score"]
        patches = float(loss) - 0.3 * float(figures["band_score"])
        assert float(other) == pytest.approx(patches + temperature**2 * 0.3 * float(figures["band_score"]), rel=1e-5)
    plain, faded = make(distances=bands), make(distances=bands, distance_fade=2.0)
    assert float(plain(images, [1])[0]) == float(faded(images, [1])[0])  # at temperature 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_samples": 0}, {"patch_sizes": ()}, {"patch_sizes": (0,)}, {"level_dropout": (0.5, 0.5)},
        {"level_dropout": (1.5,)}, {"level_pools": (2, 2), "level_dropout": (1.0,)}, {"low_temperatures": 1.1},
        {"distance_fade": -1.0}, {"distance_fade": float("nan")}, {"low_temperatures": 0.6, "level_dropout": (0.5,)},
        {"level_pools": (0,), "level_dropout": (1.0,)},
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(wrong):
    with pytest.raises(ValueError, match=f"`{next(iter(wrong))}`"):
        make(**wrong)


@pytest.mark.parametrize("n", [1, 2])
def test_gradients_of_the_streams_keep_their_channels_last(make_vdvae, make_lr_network, n):
    """A gradient whose planes lie apart makes that of all blocks before it so, and they are copied at each of them."""
    widths = "4:16,8:12"  # truncated from one resolution to the next, as in the bundled models
    vdvae = make_vdvae(encoder_blocks=None, custom_widths=widths)
    network = make_lr_network("vdvae-sr", custom_widths=widths, decoder_custom_widths=widths)
    objective = EnergyScore(vdvae, network, OPERATOR, num_samples=n, point_weight=1.0)
    objective.to(memory_format=torch.channels_last)
    found = []

    def look(_, __, out):
        out = out[0] if isinstance(out, tuple) else out
        out.register_hook(lambda grad: found.append(grad.is_contiguous(memory_format=torch.channels_last)))

    for block in (*vdvae.blocks, *network.network.bottom_up.blocks):
        block.register_forward_hook(look)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = objective(photographs(), [3, 10])
    loss.backward()
    assert len(found) == 2 * len(vdvae.blocks) + len(network.network.bottom_up.blocks) and all(found)


@pytest.mark.parametrize("pool, named", [(8, "averaged over squares of 8.* 4 pixels are too few for the score 'band'"),
                                         (5, "`score_level_pools`: 5 must divide `resolution` 32")])  # fmt: skip
def test_crops_that_a_level_makes_too_small_are_an_error_before_the_run(pool, named):
    distances = {"band": (BandDistance((8,)), 1.0)}
    make(distances=distances).check_resolution(32)
    make(distances=distances, level_dropout=[0.0], level_pools=[pool]).check_resolution(32)  # of which there are none
    with pytest.raises(ValueError, match=named):
        make(distances=distances, level_dropout=[0.1], level_pools=[pool], patch_sizes=(1,)).check_resolution(32)


# On random degradations: nothing is projected, and runs are equal for any number of processes


DEGRADED = {
    "degradation": "real", "max_train_steps": 4, "checkpointing_steps": 2, "crops_per_image": 2, "train_batch_size": 4,
    "score_patch_sizes": 4, "lr_scheduler": "constant", "validation_steps": 4, "validation_images": 1,
}  # fmt: skip


def test_a_run_resumes_and_two_processes_train_like_one(options, run, photos, tmp_path):
    common = DEGRADED | {"validation_data_dir": photos}
    one, back, two = tmp_path / "one", tmp_path / "back", tmp_path / "two"
    records = run("energy-score", one, **common)
    run("energy-score", back, **common, dataloader_num_workers=1, resume_from_checkpoint=one / "checkpoint-2")
    assert_same(weights(one), weights(back))
    on_processes(options("energy-score", two, **common | {"train_batch_size": 2}))
    assert_like(records, log(two), 1e-4, 1e-6)
    assert SuperResolutionPipeline.from_pretrained(one).config.consistency == "none"


@pytest.mark.parametrize("samples", [1, 2])
def test_the_objective_projects_nothing_and_learns_from_the_degraded_image(samples, configure):
    config = configure("energy-score", **DEGRADED, score_samples=samples, score_point_weight=1)
    objective, crops = build_objective(config), build_training_set(config, 0, 1)
    item = crops[3]
    expected = degrade(item["image"], "real", config.seed, 3, 4)
    assert torch.equal(item["low"], expected)
    crops.set_epoch(2)
    again = crops[3]
    assert torch.equal(again["low"], degrade(again["image"], "real", config.seed, (2 << 32) + 3, 4))
    images, low = item["image"][None], item["low"][None]
    y = low.float() / 127.5 - 1
    condition = objective.lr_network.encode(y)
    found = objective.samples(y, tuple(images.shape[-2:]), [0], condition)
    assert len(found) == samples
    assert (objective.operator(found[0]) - y).abs().max() > 1e-2
    loss, figures = objective(images, [0], low=low)
    assert loss.requires_grad and torch.isfinite(loss) and "point_error" in figures


def test_images_held_out_have_their_own_degradations_that_stay(configure, photos):
    config = configure("energy-score", **DEGRADED, validation_data_dir=photos)
    first = build_validation_set(config)[0]
    assert torch.equal(first["low"], degrade(first["image"], "real", config.seed, 1 << 63, 4))


@pytest.mark.parametrize(
    "stage, changes, words",
    [
        ("energy-score", {"degradation": "unreal"}, ["`degradation`", "unreal", "mild-jpeg"]),
        ("energy-score", {"consistency": "exact"}, ["`consistency`", "exact"]),  # a projection on an unknown H
        ("vdvae", {}, ["`stage`", "vdvae"]),
        ("energy-score", {"consistency": "soft"}, ["`consistency`", "exact, none", "soft"]),
    ],
)
def test_options_that_do_not_go_together_are_named(stage, changes, words, configure):
    with pytest.raises(ValueError) as caught:
        configure(stage, **DEGRADED | changes)
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_file_beside_a_recipe_is_found_and_written_down_whole(options, tmp_path):
    write(tmp_path / "mine.yaml", "steps: [{step: noise, sigma: 4}]")
    write(tmp_path / "recipe.yaml", "degradation: mine.yaml")
    arguments = options("energy-score", tmp_path / "out", **{**DEGRADED, "degradation": None})
    config = parse_arguments(["--config", str(tmp_path / "recipe.yaml"), *arguments])
    assert config.degradation == str(tmp_path / "mine.yaml") and not config.exact
