"""Larger LR networks from trained ones."""

import pytest
import torch
from runs import LR_CONFIGS, VDVAE_CONFIG, shaken, weights, write

import train
from hvae_sr import VDVAE, LRConditioner, LREncoder
from hvae_sr.checkpoints.growth import grow, transfer
from hvae_sr.noise import CounterNoise

KINDS = {"lr-encoder": LREncoder, "vdvae-sr": LRConditioner}
Y = torch.linspace(-1, 1, 2 * 3 * 8 * 16).view(2, 3, 8, 16)


def trained(stage, seed=0, **changes):
    """A network whose weights are all other than at the start."""
    torch.manual_seed(seed)
    return shaken(KINDS[stage](**{**LR_CONFIGS[stage], **changes}))


def features(network):
    return network.encode(Y).features


@pytest.mark.parametrize("stage", KINDS)
@pytest.mark.parametrize(
    "changes",
    [{"blocks": "8x5,8d2,4x2"}, {"bottleneck_multiple": 0.75}, {"blocks": "8x3,8d2,4x4", "bottleneck_multiple": 1.0}],
)
def test_a_larger_network_starts_as_the_same_function_and_learns_everywhere(stage, changes):
    small = trained(stage, blocks="8x2,8d2,4x2", bottleneck_multiple=0.5)
    torch.manual_seed(1)
    large = KINDS[stage](**{**small.config, **changes})
    grow(small, large)
    before, after = features(small), features(large)
    assert before.keys() == after.keys()
    for resolution, value in before.items():
        torch.testing.assert_close(after[resolution], value, atol=1e-5, rtol=1e-5)
    assert sum(p.numel() for p in large.parameters()) > sum(p.numel() for p in small.parameters())
    optimizer = torch.optim.SGD(large.parameters(), lr=0.1)
    start = {name: p.clone() for name, p in large.network.named_parameters()}
    for _ in range(2):  # the second step reaches what stands before the zeros of the first
        sum(value.square().mean() for value in features(large).values()).backward()
        optimizer.step()
        optimizer.zero_grad()
    still = [name for name, p in large.network.named_parameters() if (p == start[name]).flatten().all()]
    assert not still


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"blocks": "8x1,8d2,4x2"}, "`blocks`.*'8x2,8d2,4x2'.*'8x1,8d2,4x2'"),
        ({"blocks": "8x2,8d2,4x1"}, "`blocks`"),
        ({"blocks": "8x2,8d2,4x2,4d2,2x1"}, "`blocks`"),
        ({"bottleneck_multiple": 0.25}, "`bottleneck_multiple`"),
        ({"width": 8}, "`width` is 16.*grow to 8"),
    ],
)  # fmt: skip
def test_what_is_no_growth_is_refused(changes, message):
    small = trained("lr-encoder", blocks="8x2,8d2,4x2", bottleneck_multiple=0.5, width=16)
    large = LREncoder(**{**small.config, **changes})
    with pytest.raises(ValueError, match=message):
        grow(small, large)


@pytest.mark.parametrize("before, after", [("projection", "bicubic"), ("bicubic", "projection")])
def test_the_centre_of_the_likelihood_may_become_another_enlargement_of_y_which_the_log_tells(before, after, caplog):
    small = trained("vdvae-sr", likelihood_location=before)
    large = LRConditioner(**{**small.config, "likelihood_location": after})
    with caplog.at_level("INFO", "hvae_sr"):
        grow(small, large)
    assert f"centred on '{after}', that of the pretrained network on '{before}'" in caplog.text
    assert all(torch.equal(weight, large.state_dict()[name]) for name, weight in small.state_dict().items())
    free = LRConditioner(**{**small.config, "likelihood_location": None})  # means of x itself, no offsets
    with pytest.raises(ValueError, match="`likelihood_location`"):
        grow(small, free)


def test_what_has_no_blocks_is_taken_as_it_is():
    config = {name: value for name, value in LR_CONFIGS["vdvae-sr"].items() if name != "gate_init"}
    small, large = (LRConditioner(**config, conditioning="trivial") for _ in range(2))
    torch.nn.init.normal_(small.network.conv.weight)
    grow(small, large)
    assert torch.equal(features(small)[8], features(large)[8])


def test_training_goes_on_from_the_grown_network(options, run, tmp_path, capsys):
    run("vdvae-sr", tmp_path / "first")
    larger = {**LR_CONFIGS["vdvae-sr"], "bottleneck_multiple": 1.0}
    again = {"pretrained_lr_encoder": tmp_path / "first" / "lr_encoder", "skip_threshold": 1e-30}
    again["lr_config"] = write(tmp_path / "larger.json", larger)
    run("vdvae-sr", tmp_path / "second", **again)  # every update left out
    small, large = (LRConditioner.from_pretrained(tmp_path / name / "lr_encoder") for name in ("first", "second"))
    assert large.config.bottleneck_multiple == 1.0
    y = Y[..., :8]
    for resolution, value in small.encode(y).features.items():
        torch.testing.assert_close(large.encode(y).features[resolution], value, atol=1e-5, rtol=1e-5)
    write(tmp_path / "larger.json", {**larger, "bottleneck_multiple": 0.1})
    assert train.main(options("vdvae-sr", tmp_path / "third", **again)) == 2
    assert "`lr_config`" in capsys.readouterr().err


def test_what_has_its_place_at_another_scale_factor_is_taken_over(options, run, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    run("energy-score", first)
    # y has the size that it had; x is half as large, its finest blocks are those that had half of x's resolution.
    half = {"image_size": 16, "encoder_blocks": "8x1", "decoder_blocks": "8x1"}
    lr = {"decoder_blocks": "8x1", "upsampling_blocks": None, "scale_factor": 2}
    changes = {
        "pretrained_vdvae": first / "vdvae",
        "pretrained_lr_encoder": first / "lr_encoder",
        "vdvae_config": write(tmp_path / "vdvae.json", VDVAE_CONFIG | half),
        "lr_config": write(tmp_path / "lr.json", LR_CONFIGS["energy-score"] | lr),
        "scale_factor": 2,
        "skip_threshold": 1e-30,
    }
    run("energy-score", second, **changes)  # every update left out
    assert LRConditioner.from_pretrained(second / "lr_encoder").config.scale_factor == 2
    for name in ("vdvae", "lr_encoder"):
        old, new = weights(first / name), weights(second / name)
        assert len(new) < len(old)
        for key, value in new.items():
            assert torch.equal(value, old[key]), key
    changes["vdvae_config"] = tmp_path / "lr.json"
    assert train.main(options("energy-score", tmp_path / "third", **changes)) == 2


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"width": 24, "decoder_width": 24}, "no weights of the pretrained LRConditioner"),
        ({"activation": "silu", "decoder_blocks": "8x1"}, "`activation` is 'gelu'.*'silu'"),
    ],
)
def test_weights_of_which_none_would_fit_or_mean_the_same_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        transfer(trained("vdvae-sr"), trained("vdvae-sr", **changes))


@pytest.mark.parametrize("stage", KINDS)
def test_blocks_at_another_distance_from_x_are_those_at_the_same_distance_from_y(stage):
    """As from x4 to x8: what lay at y's resolution and above does so again, one resolution further from x's."""
    first = {"decoder_blocks": "4x1,8m4,8x1,16m8", "blocks": "8x1,8d2,4x1", "num_conditioned_groups": None}
    other = first | {"decoder_blocks": "8x1,16m8,16x1", "upsampling_blocks": "16m8,16x1"}
    small, new = (trained(stage, seed, **changes) for seed, changes in enumerate((first, other)))
    before = {name: value.clone() for name, value in new.state_dict().items()}
    assert transfer(small, new)  # some keep their random weights
    old, now = small.state_dict(), new.state_dict()
    groups = "gates" if stage == "vdvae-sr" else "heads"
    # 4x1: 0, 8m4: 1, 8x1: 2, 16m8: 3, of which 1 and 3 are the first at 8 and at 16.
    for source, place in ((1, 0), (3, 1)):
        names = [name for name in old if name.startswith(f"{groups}.{source}.")]
        assert names
        for name in names:
            assert torch.equal(now[name.replace(f".{source}.", f".{place}.", 1)], old[name])
    for name, value in now.items():
        if name.startswith((f"{groups}.2.", "network.up_blocks.1.")):
            assert torch.equal(value, before[name]), name  # nothing of the old network is here
        elif name.startswith("network."):
            assert torch.equal(value, old[name]), name


def test_what_is_frozen_is_not_left_random(options, prior, tmp_path, capsys):
    without = VDVAE.from_pretrained(prior)
    without.remove_encoder()
    without.save_pretrained(tmp_path / "without")
    new = {"vdvae_config": write(tmp_path / "same.json", VDVAE_CONFIG)}
    wide = {"vdvae_config": write(tmp_path / "wide.json", VDVAE_CONFIG | {"bottleneck_multiple": 0.25})}
    bare = new | {"pretrained_vdvae": tmp_path / "without"}
    frozen = {"train_encoder": False}
    for stage, changes, code in (
        ("lr-encoder", wide, 2), ("lr-encoder", new, 0), ("vdvae-sr", bare | frozen, 2), ("vdvae-sr", bare, 0)
    ):  # fmt: skip
        assert train.main(options(stage, tmp_path / f"{stage}-{code}", **changes)) == code
        assert ("`vdvae_config`" in capsys.readouterr().err) == bool(code)


@pytest.mark.parametrize(
    "options, temperature",
    [
        ({"decoder_blocks": "8x1,8r2,16m8,16r1,16x1,16r1", "mixin_upsampling": "pixel_shuffle"}, 1.0),
        ({"custom_latent_channels": "8:1"}, 0.0),
        ({"custom_latent_channels": "16:6"}, 0.0),
    ],
)
def test_another_decoder_starts_as_the_same_function(options, temperature):
    """With residual blocks without latents and learned upsampling; with other latents, at temperature 0."""
    torch.manual_seed(0)
    plain = shaken(VDVAE(**VDVAE_CONFIG))
    other = VDVAE(**{**VDVAE_CONFIG, **options})
    new = transfer(plain, other)
    if "mixin_upsampling" in options:
        assert new and all(".residual_blocks." in name or name.startswith("upsamplers.") for name in new)
    noise = CounterNoise([3, 4])
    expected, found = (vdvae.sample(2, (32, 64), noise, temperature=temperature).sample for vdvae in (plain, other))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_upsampling_goes_where_its_group_goes():
    torch.manual_seed(0)
    options = {**VDVAE_CONFIG, "mixin_upsampling": "pixel_shuffle", "encoder_blocks": None}
    old = shaken(VDVAE(**options | {"decoder_blocks": "8x1,16m8"}))
    new = VDVAE(**options | {"decoder_blocks": "8x3,16m8"})
    left = transfer(old, new)
    assert torch.equal(new.upsamplers["3"].conv.weight, old.upsamplers["1"].conv.weight)
    assert not [name for name in left if name.startswith("upsamplers.")]
