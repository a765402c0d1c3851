"""An LR network that reads y through a frozen restoration network: what it gives, what is saved, what is trained."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from stand_ins import levels, objective_of

from hvae_sr import LRConditioner, SuperResolutionPipeline
from hvae_sr.baselines import RRDBNet
from hvae_sr.checkpoints.growth import transfer
from hvae_sr.images import to_tensor
from hvae_sr.models.restorer import Restorer
from hvae_sr.sampling import Budget, WindowSampler, budget
from hvae_sr.sampling.sampler import Networks
from hvae_sr.training.publish import _smaller, write_folder

RESTORED = {"restorer_blocks": 1, "likelihood_location": "bicubic"}
SIDE = 4
SHARES = "0:-0.5,0.5:0.5,1:0"


@pytest.fixture
def make_restored(make_lr_network: Any) -> Any:
    def make(**changes: Any) -> LRConditioner:
        return make_lr_network("vdvae-sr", **{"conditioning": "final", "latent_channels": 4, **RESTORED, **changes})

    return make


@pytest.fixture
def trained() -> RRDBNet:
    torch.manual_seed(3)
    return RRDBNet(num_blocks=1)


def test_a_restorer_gives_what_the_network_gives_and_what_its_last_layers_read(trained: RRDBNet) -> None:
    restorer = Restorer(1)
    restorer.load_state_dict(trained.state_dict())
    y = levels(2, 8, seed=1)
    features, image = restorer(y)
    expected = trained((y + 1) / 2).sample
    torch.testing.assert_close(image, expected.clamp(0, 1) * 2 - 1)
    assert features.shape == (2, 64, 8, 8) and image.shape == (2, 3, 32, 32)
    torch.testing.assert_close(trained.image(features), expected)
    # As a LoRA wraps it, another layer may stand in the place of a convolution.
    trained.body[0].rdb1.conv1 = torch.nn.Sequential(trained.body[0].rdb1.conv1)
    assert torch.equal(trained((y + 1) / 2).sample, expected)


def test_a_restorer_with_padding_sees_the_borders_repeated(trained: RRDBNet) -> None:
    plain, padded = Restorer(1), Restorer(1, padding=3)
    for restorer in (plain, padded):
        restorer.take(trained)
    y = levels(2, SIDE, seed=1)
    frame = torch.nn.functional.pad(y, (3, 3, 3, 3), mode="replicate")
    whole, found = plain(frame), padded(y)
    torch.testing.assert_close(found.image, whole.image[..., 12:-12, 12:-12])
    torch.testing.assert_close(found.features, whole.features[..., 3:-3, 3:-3])
    assert (found.image - plain(y).image).abs().max() > 1e-3


def test_taken_weights_are_those_of_the_network_with_rounded_kernels(trained: RRDBNet) -> None:
    restorer = Restorer(1)
    restorer.take(trained)
    for name, value in trained.state_dict().items():
        rounded = name.startswith(("body.", "conv_up", "conv_hr")) and value.ndim == 4
        expected = value.to(torch.float8_e4m3fn).float() if rounded else value
        assert torch.equal(restorer.state_dict()[name], expected), name
    assert not torch.equal(restorer.state_dict()["body.0.rdb1.conv1.weight"], trained.body[0].rdb1.conv1.weight)


@pytest.mark.parametrize(
    "shape", [{"num_blocks": 2}, {"width": 32}, {"growth": 8}, {"scale_factor": 2}, {"upsampling": "pixelshuffle"}]
)
def test_networks_of_another_shape_are_refused(shape: dict[str, int]) -> None:
    message = "an RRDBNet for x4 of 1 blocks, 64 channels and upsampling .nearest. is needed"
    with pytest.raises(ValueError, match=message):
        Restorer(1).take(RRDBNet(**{"num_blocks": 1, **shape}))


def test_the_finest_features_hold_the_estimate_and_the_stem_reads_the_restorers(make_restored: Any) -> None:
    network, y = make_restored(), levels(1, SIDE, seed=1)
    before = network.encode(y).features  # a new network does not read it yet
    with torch.no_grad():
        network.estimate.weight.normal_()
    after = network.encode(y).features
    finest = max(before)
    assert {r for r in before if not torch.equal(before[r], after[r])} == {finest}
    with torch.no_grad():
        network.network.bottom_up.in_conv.weight[:, :3] = 0  # y itself is not read any more
    one, other = (network.encode(levels(1, SIDE, seed)).features for seed in (1, 2))
    assert not any(torch.equal(one[r], other[r]) for r in one)


def test_shares_are_found_whatever_the_default_device(make_restored: Any, make_vdvae: Any) -> None:
    pipe = SuperResolutionPipeline(make_vdvae(), make_restored(restored_shares="0:0.1,1:0.5"))
    image = Image.effect_noise((8, 8), 30)
    expected = pipe(image, seed=0, output_type="pt").images
    with torch.device("meta"):
        assert torch.equal(pipe(image, seed=0, output_type="pt").images, expected)


def test_convolutions_of_the_restorer_follow_the_compute_dtype(make_restored: Any) -> None:
    network, y = make_restored(), levels(1, SIDE, seed=1)
    exact = network.restorer(y)
    network.set_compute_dtype(torch.bfloat16)
    found = {m.compute_dtype for name, m in network.restorer.named_modules() if name.startswith("body.0.rdb1.conv")}
    assert found == {torch.bfloat16} and network.restorer.conv_last.compute_dtype is None
    rounded = network.restorer(y)
    assert rounded.image.dtype == rounded.features.dtype == torch.float32
    assert 0 < (rounded.image - exact.image).abs().max() < 0.05
    network.set_compute_dtype(None)
    assert torch.equal(network.restorer(y).image, exact.image)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"restored_tolerance": 10.0}, "`restored_tolerance` must be .* with `restored_shares`"),
        ({"upsampling_blocks": "12m4"}, "`upsampling_blocks` must end at a resolution that divides 16"),
        ({"restorer_blocks": 0}, "`restorer_blocks` must be None or a whole number >= 1"),
        ({"restorer_padding": -1}, "`restorer_padding` must be a whole number >= 0"),
        ({"restorer_padding": 1.5}, "`restorer_padding` must be"),
        ({"restorer_blocks": None, "restorer_padding": 1}, "`restorer_padding` needs `restorer_blocks`"),
        ({"restorer_blocks": "two"}, "`restorer_blocks` must be"),
        ({"conditioning": "lr_encoder", "upsampling_blocks": None, "gate_init": 0.0}, "conditioning 'final'"),
        ({"scale_factor": 2}, "scale_factor 4"),
        ({"restorer_blocks": None, "restored_shares": SHARES}, "`restored_shares` needs `restorer_blocks`"),
        ({"restorer_blocks": None, "restored_tolerance": 10.0}, "`restored_tolerance` needs `restorer_blocks`"),
        *(
            ({"restored_shares": shares}, "`restored_shares` must be pairs of rising temperatures and shares")
            for shares in ("0.5:1,0.2:0", "0:x", "0:nan", "1", "0:1,0:2")
        ),
        *(
            ({"restored_shares": SHARES, "restored_tolerance": tau}, "`restored_tolerance` must be")
            for tau in (0, -1.0, float("inf"), float("nan"), "ten")
        ),
    ],
)
def test_options_that_do_not_go_with_a_restorer_are_refused(
    make_restored: Any, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_restored(**changes)


def test_a_saved_conditioner_is_the_same(make_restored: Any, tmp_path: Path) -> None:
    network, y = make_restored(), levels(1, SIDE, seed=1)
    network.save_pretrained(tmp_path)
    again = LRConditioner.from_pretrained(tmp_path)
    assert torch.equal(again.encode(y).location, network.encode(y).location)
    assert not any(p.requires_grad for p in again.restorer.parameters())


@pytest.mark.parametrize(
    ("temperature", "share"), [(0.0, -0.5), (0.25, 0.0), (0.5, 0.5), (0.9, 0.1), (1.0, 0), (2.0, 0)]
)
def test_samples_are_moved_towards_the_estimate_by_the_share_of_their_temperature(
    make_vdvae: Any, make_restored: Any, temperature: float, share: float
) -> None:
    vdvae, plain = make_vdvae(), make_restored()
    moved = make_restored(restored_shares=SHARES)
    moved.load_state_dict(plain.state_dict())
    options = {"consistency": "none", "default_temperature": 0.5}
    image = Image.fromarray(((levels(1, SIDE, seed=5)[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())
    found = []
    for network in (plain, moved):
        pipe = SuperResolutionPipeline(vdvae, network, **options)
        pipe.disable_fast_inference()
        pipe.set_progress_bar_config(disable=True)
        found.append(pipe(image, temperature=temperature, seed=3, output_type="pt").images[0])
    estimate = plain.restorer(to_tensor(image)[None] * 2 - 1).image[0] / 2 + 0.5
    inside = (found[0] > 0) & (found[0] < 1)  # what is clamped is so after the move
    expected = (found[0] + share * (estimate - found[0])).clamp(0, 1)
    torch.testing.assert_close(found[1][inside], expected[inside], atol=2e-5, rtol=0)


def test_windows_see_further_where_a_restorer_does_in_any_memory(make_vdvae: Any, make_restored: Any) -> None:
    vdvae, y = make_vdvae(), torch.zeros(3, 400, 400)
    networks = Networks(vdvae, make_restored(restorer_blocks=9), 4)
    plain = Networks(vdvae, make_restored(restorer_blocks=None), 4)
    assert WindowSampler(plain, y).margin == 96 and WindowSampler(networks, y).margin == 256
    assert WindowSampler(Networks(vdvae, make_restored(), 4), y).margin == 128  # one block
    assert WindowSampler(networks, y, margin=16).margin == 16
    little = WindowSampler(networks, y, budget=Budget(256**2, 0))
    sides = {(bottom - top, right - left) for top, left, bottom, right in (w.outer for w in little.windows)}
    assert little.margin == 256 and max(max(side) for side in sides) == 160  # of y: 640 pixels, 128 of them kept
    used, device = 2**30, torch.device("cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hvae_sr.sampling.memory.used_and_available", lambda device: (used, 2**34))
        arguments = (vdvae, (1600, 1600), 1, "pil", True, used + 2**29, device)
        assert budget(*arguments).pixels >= 256**2
        with pytest.raises(ValueError, match="`max_memory` = .* is too little"):
            budget(*arguments, min_pixels=2**26)


# Training.


@pytest.fixture
def training(make_vdvae: Any, make_restored: Any, trained: RRDBNet, tmp_path: Path) -> Any:
    make_vdvae().save_pretrained(tmp_path / "prior")
    trained.save_pretrained(tmp_path / "restorer")
    (tmp_path / "lr.json").write_text(make_restored().to_json_string())
    return partial(objective_of, tmp_path, stage="energy-score", degradation="real")


def test_an_update_leaves_the_restorer_as_it_was(training: Any, tmp_path: Path) -> None:
    objective, _ = training(pretrained_restorer=tmp_path / "restorer")
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], lr=1e-2)
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    loss, _ = objective(images, [0, 1])
    loss.backward()
    optimizer.step()
    same = {name for name, value in objective.state_dict().items() if torch.equal(value, before[name])}
    assert same == {name for name in before if ".restorer." in name}


@pytest.mark.parametrize("saved_dtype", ["float16", "float8"])
def test_a_run_starts_with_the_restorers_weights_and_saves_small_ones(
    training: Any, saved_dtype: str, tmp_path: Path
) -> None:
    objective, config = training(pretrained_restorer=tmp_path / "restorer", saved_dtype=saved_dtype)
    folder = tmp_path / "model"
    write_folder(objective, config, folder)
    stored = load_file(folder / "lr_encoder" / "diffusion_pytorch_model.safetensors")
    exact = "restorer.conv_body"  # not rounded, and so not stored as if
    kernels = {n for n, x in stored.items() if x.ndim == 4 and x.numel() >= 2048 and not n.startswith(exact)}
    eighth = kernels if saved_dtype == "float8" else set()
    assert len(kernels) > 10 and {n for n, x in stored.items() if x.dtype == torch.float8_e4m3fn} == eighth
    assert {x.dtype for name, x in stored.items() if name not in eighth} == {torch.float16}
    pipe = SuperResolutionPipeline.from_pretrained(folder)
    own = objective.lr_network.state_dict()
    for name, value in pipe.lr_encoder.state_dict().items():
        rounded = own[name].to(torch.float8_e4m3fn if name in eighth else torch.float16).float()
        assert value.dtype == torch.float32 and torch.equal(value, rounded), name
        if name.startswith("restorer.body.") and value.ndim == 4:
            assert torch.equal(value, own[name]), name  # nothing is lost of it
    assert own["restorer.body.0.rdb1.conv1.weight"].dtype == torch.float32  # the run's own weights stay what they are
    pipe.set_progress_bar_config(disable=True)
    images = pipe(Image.new("RGB", (8, 8), (90, 120, 60)), num_samples=2, seed=1).images
    assert images[0].size == (32, 32) and images[0].tobytes() != images[1].tobytes()


def test_weights_that_do_not_fit_or_are_missing_are_refused(training: Any, make_restored: Any, tmp_path: Path) -> None:
    make_restored(restorer_blocks=None).save_pretrained(tmp_path / "plain")
    with pytest.raises(ValueError, match="`pretrained_restorer` needs an LRConditioner with `restorer_blocks`"):
        training(lr_config=tmp_path / "plain" / "config.json", pretrained_restorer=tmp_path / "restorer")
    RRDBNet(num_blocks=2).save_pretrained(tmp_path / "two")
    with pytest.raises(ValueError, match="`pretrained_restorer` .*two.*: an RRDBNet for x4 of 1 blocks"):
        training(pretrained_restorer=tmp_path / "two")
    for start in ({}, {"pretrained_lr_encoder": tmp_path / "plain"}):  # the restorer would stay random
        with pytest.raises(ValueError, match="`pretrained_restorer` must be given"):
            training(**start)
    make_restored().save_pretrained(tmp_path / "own")
    training(pretrained_lr_encoder=tmp_path / "own")  # whose restorer is trained


def test_a_restorer_for_another_factor_does_not_fit_a_pipeline(make_vdvae: Any, make_restored: Any) -> None:
    network = make_restored(image_size=8, blocks="8x1,8d2,4x1", upsampling_blocks=None, likelihood_location=None)
    with pytest.raises(ValueError, match="`lr_encoder` was made for scale_factor 4, not 2"):
        SuperResolutionPipeline(make_vdvae(), network, scale_factor=2)


@pytest.mark.parametrize("storage", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_weights_may_be_stored_in_fewer_bits_than_are_computed_with(
    make_restored: Any, trained: RRDBNet, storage: torch.dtype, compute: torch.dtype
) -> None:
    network, y = make_restored().to(compute), levels(1, SIDE, seed=1)
    network.enable_layerwise_casting(storage_dtype=storage, compute_dtype=compute)
    assert network.encode(y).estimate.isfinite().all()
    trained.to(compute).enable_layerwise_casting(storage_dtype=storage, compute_dtype=compute)
    assert trained(torch.rand(1, 3, 8, 8).to(compute)).sample.isfinite().all()


def test_float8_is_for_kernels_not_for_learned_maps(make_vdvae: Any) -> None:
    vdvae = make_vdvae(bias_type="spatial")
    for parameter in vdvae.parameters():
        torch.nn.init.normal_(parameter)
    smaller = _smaller(vdvae, kernels_in_float8=True)
    assert {p.dtype for n, p in smaller.named_parameters() if n.startswith("biases.")} == {torch.float16}


def test_a_network_with_a_restorer_starts_from_what_fits_of_one_without(
    training: Any, make_restored: Any, tmp_path: Path
) -> None:
    plain = make_restored(restorer_blocks=None)
    plain.save_pretrained(tmp_path / "plain")
    objective, _ = training(pretrained_lr_encoder=tmp_path / "plain", pretrained_restorer=tmp_path / "restorer")
    state = objective.lr_network.state_dict()
    taken = {name for name, value in plain.state_dict().items() if torch.equal(value, state[name])}
    assert taken == set(plain.state_dict()) - {"network.bottom_up.in_conv.weight"}
    y = levels(1, SIDE, seed=1)  # and as the same function: what the restorer gives is not read yet
    assert objective.lr_network.restorer(y).features.abs().max() > 0.01
    for one, other in zip(plain(y).features, objective.lr_network(y).features, strict=True):
        torch.testing.assert_close(one, other)
    wider = make_restored(custom_widths="4:12", decoder_custom_widths="4:12")  # whose stem starts anew
    assert "network.bottom_up.in_conv.weight" in transfer(plain, wider)
    assert wider.network.bottom_up.in_conv.weight.flatten(1).abs().sum(1).min() > 0


def test_shares_may_be_given_to_a_trained_network(training: Any, make_restored: Any, tmp_path: Path) -> None:
    network = make_restored()
    network.save_pretrained(tmp_path / "trained")
    (tmp_path / "shares.json").write_text(make_restored(restored_shares=SHARES).to_json_string())
    objective, _ = training(lr_config=tmp_path / "shares.json", pretrained_lr_encoder=tmp_path / "trained")
    assert objective.lr_network.config.restored_shares == SHARES
    own = objective.lr_network.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in network.state_dict().items())


def test_where_estimate_and_sample_disagree_at_ys_resolution_the_share_is_smaller(make_restored: Any) -> None:
    plain = make_restored(restored_shares="0:0.5")
    tolerant = make_restored(restored_shares="0:0.5", restored_tolerance=20)
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(4)) - 0.5
    fine = torch.tensor([0.3, -0.3]).repeat(8)  # which the mean over 4x4 pixels does not have
    t = torch.tensor(0.0)
    torch.testing.assert_close(tolerant.finish(x, x + fine, t), plain.finish(x, x + fine, t))
    moved = tolerant.finish(x, x + 20 / 127.5, t) - x  # one tau apart, everywhere
    torch.testing.assert_close(moved, torch.full_like(x, 0.5 * np.exp(-1) * 20 / 127.5))
    assert (tolerant.finish(x, x + 1.5, t) - x).abs().max() < 1e-6
