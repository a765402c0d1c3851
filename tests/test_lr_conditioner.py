"""What each row of table 5.1 of the VDVAE-SR thesis conditions on y, and what it leaves alone."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from stand_ins import levels, objective_of
from torch import Tensor

from hvae_sr import VDVAE, LRConditioner, SuperResolutionPipeline
from hvae_sr.models import DiagonalGaussian
from hvae_sr.models.lr_conditioner import CONDITIONINGS
from hvae_sr.noise import CounterNoise
from hvae_sr.publishing.card import model_card
from hvae_sr.training.energy_score import EnergyScore
from hvae_sr.training.networks import check_objective
from hvae_sr.training.objectives import GROUPS

over_rows = pytest.mark.parametrize("conditioning", CONDITIONINGS)
ONLY_THE_TOP = ("trivial", "lr_encoder")
SIZE = (16, 16)


@pytest.fixture
def make_row(make_lr_network: Any) -> Any:
    """A conditioner of a row: new, or with random weights where they start at zero, as if it had been trained."""

    def make(conditioning: str, new: bool = False, **changes: Any) -> LRConditioner:
        upsampling = {"upsampling_blocks": None} if conditioning in ONLY_THE_TOP else {}
        options = {"conditioning": conditioning, "latent_channels": 4, "gate_init": 0.0, **upsampling, **changes}
        model = make_lr_network("vdvae-sr", randomise=not new, **options)
        with torch.no_grad():
            for gate in [] if new else model.gates.values():
                gate.gate.fill_(0.5)
        return model

    return make


# A new conditioner.


@over_rows
def test_a_new_conditioner_leaves_the_prior_exactly_and_the_elbo_but_for_ungated_features_in_the_posterior(
    make_vdvae: Any, make_row: Any, conditioning: str
) -> None:
    vdvae, network, x = make_vdvae(), make_row(conditioning, new=True), levels(2, 16, seed=2)
    # One row each: those of the plain sample at temperature 0 are all one, and processors round two rows otherwise.
    noise, condition = CounterNoise([0]), network.encode(levels(1, 4, seed=3))
    for temperature in (0.0, 0.7):
        conditioned = vdvae.sample(1, SIZE, noise=noise, condition=condition, temperature=temperature)
        plain = vdvae.sample(1, SIZE, noise=noise, temperature=temperature)
        assert torch.equal(conditioned.sample, plain.sample)
        assert all(map(torch.equal, conditioned.latents, plain.latents))
    noise, condition = CounterNoise([0, 1]), network.encode(levels(2, 4, seed=3))
    conditioned, plain = vdvae(x, noise=noise, condition=condition), vdvae(x, noise=noise)
    equal = [torch.equal(conditioned[name], plain[name]) for name in ("loss", "distortion", "rate")]
    assert equal == [conditioning != "posterior"] * 3


# What y reaches.


@over_rows
def test_y_reaches_what_the_table_says_and_nothing_else(make_vdvae: Any, make_row: Any, conditioning: str) -> None:
    vdvae, network, noise = make_vdvae(), make_row(conditioning), CounterNoise([5])
    activations, latents, passes = vdvae.encode(levels(1, 16, seed=2)), None, []
    for seed in (3, 4):  # two observations of one x, and the same z
        condition = network.encode(levels(1, 4, seed))
        passes.append(vdvae.top_down(1, SIZE, noise, activations, condition, latents=latents))
        latents = [group.z for group in passes[0].groups]
    one, other = passes
    priors, posteriors = (
        [
            not all(map(torch.equal, getattr(a, kind), getattr(b, kind)))
            for a, b in zip(one.groups, other.groups, strict=True)
        ]
        for kind in ("prior", "posterior")
    )
    # Group 3 works at a resolution without features of y; the stream carries y there in the final model alone.
    top = [True, False, False, False]
    expected = {"final": ([True] * 4, [True] * 4), "posterior": (top, [True, True, True, False])}
    assert (priors, posteriors) == expected.get(conditioning, (top, [False] * 4))
    assert torch.equal(one.stream, other.stream) == (conditioning != "final")
    alone = [vdvae.sample(1, SIZE, noise, c, num_conditioned_groups=0).sample for c in (condition, None)]
    assert torch.equal(*alone)  # no conditioned groups leave the prior


# The equations, computed by other means.


def prior_of_the_top(vdvae: VDVAE, network: LRConditioner, y: Tensor) -> DiagonalGaussian:
    """p(z_0 | y) of a row that has it, from its weights."""
    plain = vdvae.top_down(1, SIZE, CounterNoise([0]), num_groups=1).groups[0].prior
    if network.config.conditioning == "trivial":
        layer, stride = network.network.conv, network.network.stride
        weight = layer.weight.reshape(-1, 3, stride, stride)
        pixels = ((y + 1) * 127.5 + network.config.input_shift) * network.config.input_scale
        parameters = F.conv2d(pixels, weight, layer.bias, stride=stride)
    else:
        top = network(y).features[0]
        parameters = torch.einsum("oi,bihw->bohw", network.top.weight[..., 0, 0], top) + network.top.bias.view(-1, 1, 1)
    mean, log_sigma = parameters.chunk(2, dim=1)
    return DiagonalGaussian(plain.mean + mean, plain.log_sigma + log_sigma)


@pytest.mark.parametrize("conditioning", ["trivial", "lr_encoder", "posterior"])
@torch.no_grad()
def test_the_top_group_is_drawn_from_its_conditioned_prior_and_the_rate_is_that_of_it(
    make_vdvae: Any, make_row: Any, conditioning: str
) -> None:
    vdvae, network, x, y = make_vdvae(), make_row(conditioning), levels(1, 16, seed=2), levels(1, 4, seed=3)
    condition, top, noise = network.encode(y), prior_of_the_top(vdvae, network, y), CounterNoise([7])
    draw = noise(0, vdvae.stride(0), vdvae.latent_shape(0, 1, SIZE), torch.device("cpu"))
    for temperature in (0.0, 0.5, 1.0):
        z = vdvae.sample(1, SIZE, noise=noise, condition=condition, temperature=temperature).latents[0]
        torch.testing.assert_close(z, top.mean + temperature * top.log_sigma.exp() * draw)
    activations = vdvae.encode(x)
    if conditioning == "posterior":  # eq. 4.5: q(z | x, y) reads the sum of the activations; else eq. 5.1
        activations = {r: a + condition.features.get(r, 0) for r, a in activations.items()}
    groups = vdvae.top_down(1, SIZE, noise, activations).groups
    priors = [top, *(group.prior for group in groups[1:])]
    kl = [group.posterior.kl(prior).sum() for group, prior in zip(groups, priors, strict=True)]
    out = vdvae(x, noise=noise, condition=condition)
    torch.testing.assert_close(torch.cat(out.group_kl), torch.stack(kl))
    torch.testing.assert_close(out.rate[0], torch.stack(kl).sum() / x.numel())
    torch.testing.assert_close(out.loss, out.distortion + out.rate)


def test_rows_are_special_cases_of_each_other(make_vdvae: Any, make_row: Any) -> None:
    # What is added to the posteriors is not there when there is no x.
    vdvae, posterior, top = make_vdvae(), make_row("posterior", upsampling_blocks=None), make_row("lr_encoder")
    top.load_state_dict(posterior.state_dict())
    y, noise = levels(1, 4, seed=3), CounterNoise([0])
    assert torch.equal(*(vdvae.sample(1, SIZE, noise, n.encode(y)).sample for n in (posterior, top)))
    # The trivial encoder is one linear map, here of a y finer than the top group: positions cover several pixels.
    network, a, b = make_row("trivial", image_size=8), levels(1, 8, seed=3), levels(1, 8, seed=4)
    assert [parameter.ndim for parameter in network.parameters()] == [4, 1]
    first, second, middle = (network(y).sample for y in (a, b, 0.25 * a + 0.75 * b))
    torch.testing.assert_close(middle, 0.25 * first + 0.75 * second)
    assert first.shape == (1, 8, 4, 4) and not torch.allclose(first, second)


# What holds for every row.


@pytest.mark.parametrize("conditioning", [*CONDITIONINGS, "cvdvae"])
def test_rows_of_a_batch_are_the_images_one_by_one_and_a_bound_of_log_sigma_holds(
    make_vdvae: Any, make_lr_network: Any, make_row: Any, conditioning: str
) -> None:
    network = make_row(conditioning) if conditioning in CONDITIONINGS else make_lr_network(conditioning)
    vdvae, bounded, y = make_vdvae(), make_vdvae(max_log_sigma=-1.0), levels(2, 4, seed=3)
    condition = network.encode(y).select(torch.tensor([1, 1, 0]))
    together = vdvae.sample(3, SIZE, noise=CounterNoise([5, 6, 7]), condition=condition).sample
    for row, source in enumerate([1, 1, 0]):
        condition = network.encode(y[source : source + 1])
        alone = vdvae.sample(1, SIZE, noise=CounterNoise([5 + row]), condition=condition).sample
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-5, atol=1e-5)
    out = bounded.top_down(1, SIZE, CounterNoise([0]), condition=condition)
    assert max(group.prior.log_sigma.max() for group in out.groups) == -1


@over_rows
def test_checkpointing_changes_no_gradient(make_vdvae: Any, make_row: Any, conditioning: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        vdvae, network = make_vdvae().train(), make_row(conditioning).train()
        for model in (vdvae, network):
            if checkpointing:
                model.enable_gradient_checkpointing()
        condition = network.encode(levels(1, 4, seed=3))
        vdvae(levels(1, 16, seed=2), noise=CounterNoise([0]), condition=condition).loss.sum().backward()
        gradients.append({name: p.grad for name, p in network.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and gradients[0]
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-6)


@over_rows
def test_a_saved_conditioner_is_the_same_and_keeps_its_row(make_row: Any, conditioning: str, tmp_path: Path) -> None:
    network, y = make_row(conditioning), levels(1, 4, seed=3)
    network.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config.pop("conditioning") == conditioning
    loaded = LRConditioner.from_pretrained(tmp_path)
    assert loaded.state_dict().keys() == network.state_dict().keys()
    assert torch.equal(loaded(y).sample, network(y).sample)
    if conditioning == "final":
        del config["latent_channels"]  # as it was written before there were rows
        assert LRConditioner.from_config(config).config.conditioning == "final"


@pytest.mark.parametrize(
    ("conditioning", "changes", "message"),
    [
        ("concatenation", {}, "`conditioning` must be one of trivial, lr_encoder, posterior, final; got 'concat"),
        ("trivial", {"gate_init": 0.3}, "`gate_init` must be 0 for conditioning='trivial'.*0.3"),
        ("posterior", {"gate_init": 0.3}, "`gate_init` must be 0 for conditioning='posterior'.*0.3"),
        ("trivial", {"num_conditioned_groups": 2}, "`num_conditioned_groups` must be None or 1 .*'trivial'.*got 2"),
        ("lr_encoder", {"num_conditioned_groups": 4}, "`num_conditioned_groups` must be None or 1.*got 4"),
        ("lr_encoder", {"upsampling_blocks": "8m4"}, "`upsampling_blocks` must be None .*'8m4'"),
        ("trivial", {"image_size": 6}, "`image_size` must be a multiple of the top group's resolution 4, got 6"),
        ("lr_encoder", {"image_size": 8, "blocks": "8x1"}, "`blocks`: no features of y at resolution 4.*'8x1'"),
        (
            "posterior",
            {"image_size": 8, "blocks": "8x1", "upsampling_blocks": None},
            "`blocks`: no features of y at resolution 4.*'8x1'",
        ),
        (
            "final",
            {"image_size": 8, "blocks": "8x1", "upsampling_blocks": None, "num_conditioned_groups": 1},
            r"`blocks`: no features of y where groups are conditioned, \[4\], in '8x1'",
        ),
        ("posterior", {"width": 12}, "`custom_widths`: 12 channels at resolution 4, where the decoder has 8"),
        ("posterior", {"num_conditioned_groups": 5}, "`num_conditioned_groups` must be between 1 and 4, got 5"),
    ],
)
def test_combinations_that_cannot_be_are_refused(
    make_row: Any, conditioning: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_row(conditioning, **changes)


# The pipeline.


@over_rows
def test_the_pipeline_samples_projects_and_reloads_with_a_card_that_says_what_is_conditioned(
    make_vdvae: Any, make_row: Any, conditioning: str, tmp_path: Path
) -> None:
    pipe = SuperResolutionPipeline(make_vdvae(), make_row(conditioning))
    pipe.set_progress_bar_config(disable=True)
    picture = Image.effect_mandelbrot((11, 7), (-2, -1, 1, 1), 20).convert("RGB")  # no multiple of anything
    options = {"temperature": 0.8, "output_type": "np"}
    out = pipe(picture, num_samples=3, seed=4, **options)
    assert out.images.shape == (3, 28, 44, 3) and min(out.lr_psnr_float) > 80
    assert out.std[0].max() > 0 and out.seeds == [4, 5, 6]
    alone = pipe(picture, num_samples=1, seed=6, **options)
    torch.testing.assert_close(torch.tensor(alone.images[0]), torch.tensor(out.images[2]), rtol=0, atol=1e-5)
    pipe.save_pretrained(tmp_path)
    loaded = SuperResolutionPipeline.from_pretrained(tmp_path, dtype=torch.float32)
    loaded.set_progress_bar_config(disable=True)
    images = [p(picture, num_samples=3, seed=4, **options).images for p in (loaded, pipe.to(torch.float32))]
    assert (images[0] == images[1]).all()
    card = " ".join(model_card(tmp_path).split())
    assert ("by learned gates, before prior and posterior" in card) == (conditioning == "final")
    assert ("top group has a prior made of features" in card) == (conditioning != "final")
    assert ("all posteriors see them" in card) == (conditioning == "posterior")


@over_rows
def test_other_widths_are_refused_where_they_matter(
    make_vdvae: Any, make_row: Any, training: Any, conditioning: str
) -> None:
    network = make_row(conditioning, latent_channels=6)
    if conditioning == "final":
        SuperResolutionPipeline(make_vdvae(), network)
    else:
        with pytest.raises(ValueError, match="`lr_encoder` was made for latent_channels 6, not 4"):
            SuperResolutionPipeline(make_vdvae(), network)
    if conditioning in ONLY_THE_TOP:  # nothing is added to the decoder
        assert torch.isfinite(make_row(conditioning, width=12)(levels(1, 4, seed=3)).sample).all()
        with pytest.raises(ValueError, match="`lr_encoder` was made for decoder_width 12, not"):
            training(conditioning, lr={"decoder_width": 12})


# Training.


@pytest.fixture
def training(make_vdvae: Any, make_row: Any, tmp_path: Path) -> Any:
    """The objective of a stage for a row, from a saved prior, checked as the trainer checks it."""

    def make(conditioning: str, stage: str = "vdvae-sr", lr: Any = None, **more: Any) -> tuple[Any, Any]:
        make_vdvae().save_pretrained(tmp_path / "prior")
        (tmp_path / "lr.json").write_text(make_row(conditioning, new=True, **(lr or {})).to_json_string())
        return objective_of(tmp_path, stage=stage, **more)

    return make


def update(objective: Any) -> set[str]:
    """Takes one step on one batch; returns which parts changed: encoder, posterior heads, decoder, LR network."""
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    optimizer = torch.optim.Adam([p for p in objective.parameters() if p.requires_grad], lr=1e-3)
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    loss, figures = objective(images, [0, 1])
    loss.backward()
    optimizer.step()
    assert all(torch.isfinite(value).all() for value in figures.values())
    changed = {name for name, value in objective.state_dict().items() if not torch.equal(value, before[name])}
    parts = {"vdvae.encoder.": "encoder", "lr_network.": "LR network", "vdvae.": "decoder"}
    return {
        "posterior heads" if ".posterior_head." in name else next(parts[p] for p in parts if name.startswith(p))
        for name in changed
    }


@over_rows
def test_an_update_changes_the_parts_that_are_trained(training: Any, conditioning: str, tmp_path: Path) -> None:
    for fixed in (False, True):
        objective, _ = training(conditioning, train_encoder=False, train_decoder=not fixed)
        assert update(objective) == ({"LR network"} if fixed else {"LR network", "decoder", "posterior heads"})
    if conditioning in ("trivial", "posterior"):
        objective, _ = training(conditioning, stage="energy-score")
        assert isinstance(objective, EnergyScore) and objective.vdvae.encoder is None
        assert update(objective) == {"LR network", "decoder"}
    if conditioning == "trivial":
        with pytest.raises(ValueError, match="`lr_from_vdvae`.*trivial"):
            training("trivial", lr_from_vdvae=tmp_path / "prior")


@over_rows
def test_every_parameter_of_a_trained_row_gets_a_gradient(
    training: Any, conditioning: str, caplog: pytest.LogCaptureFixture
) -> None:
    objective, config = training(conditioning)
    update(objective)  # away from the zeros that hold gradients back
    with caplog.at_level(logging.WARNING):
        check_objective(objective, config, torch.device("cpu"), num_processes=2)
    assert "no gradient" not in caplog.text


@over_rows
def test_a_conditioner_learns_what_y_tells(training: Any, conditioning: str) -> None:
    # Flat images of random colours: q(z_0 | x) differs between them, as y does; a prior without y is the same for all.
    objective, _ = training(conditioning, train_decoder=False, train_encoder=False)
    colours = torch.randint(0, 256, (8, 3, 1, 1), generator=torch.Generator().manual_seed(1))
    images = colours.expand(-1, -1, 16, 16).to(torch.uint8)
    optimizer = torch.optim.Adam([p for p in objective.parameters() if p.requires_grad], lr=1e-2)
    losses, top = [], []
    for _ in range(30):
        loss, figures = objective(images, list(range(8)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        top.append(figures[GROUPS][0].item())
    assert losses[-1] < losses[0]
    if conditioning in ONLY_THE_TOP:
        assert top[-1] < 0.6 * top[0]
