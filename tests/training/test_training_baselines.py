"""Stages of the compared systems: their losses are the published formulas, and their runs resume and go on."""

import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from runs import write
from safetensors.torch import save_file
from stand_ins import random_weights
from torch.testing import assert_close

from hvae_sr import AncestralScheduler, Downsampling, HCFlow
from hvae_sr.baselines import EDSR, SPAN, RRDBNet
from hvae_sr.baselines.diffusion import variational_bound
from hvae_sr.noise import CounterNoise
from hvae_sr.pipelines.baselines import enlarge, pipeline_class
from hvae_sr.training import Trainer
from hvae_sr.training.baselines import enlarge_batch
from hvae_sr.training.cost import plan

IMAGES = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
SEEDS = [3, 10]


NETWORKS = {"SPAN": SPAN, "EDSR": EDSR, "RRDBNet": RRDBNet}
BLOCK = {"num_blocks": 1, "width": 8}


@pytest.fixture
def regression(objective_of, tmp_path):
    """A function that makes a regression by a new network, which starts from a trained one if there are `trained`."""

    def make(architecture, trained=None, **options):
        changes = {"baseline": write(tmp_path / "own.json", {"architecture": architecture, **options})}
        if trained is not None:
            network = NETWORKS[architecture](**trained)
            network.save_pretrained(tmp_path / "trained")
            changes["pretrained_network"] = tmp_path / "trained"
            return objective_of("regression", **changes).network.state_dict(), network.state_dict()
        return objective_of("regression", **changes)

    return make


@pytest.mark.parametrize(
    "architecture, shape, enlarging", [("SPAN", {"width": 8}, "upsampler."), ("EDSR", BLOCK, "tail.")]
)
def test_a_regression_starts_from_one_for_another_scale_factor_but_for_what_enlarges(
    architecture, shape, enlarging, regression
):
    own, trained = regression(architecture, {"scale_factor": 2, **shape}, **shape)
    for name, value in trained.items():
        same, enlarges = name in own and torch.equal(own[name], value), name.startswith(enlarging)
        assert same != enlarges or (enlarges and not value.any())


@pytest.mark.parametrize(
    "architecture, trained, shape, message",
    [
        ("SPAN", {"scale_factor": 2, "width": 8}, {"width": 12}, "width 8, not 12"),
        ("RRDBNet", {"scale_factor": 2, **BLOCK, "growth": 4}, {**BLOCK, "growth": 4}, r"conv_first\.weight"),
        ("EDSR", {**BLOCK, "residual_scale": 1.0}, {**BLOCK, "residual_scale": 0.1}, r"residual_scale 1\.0, not 0\.1"),
    ],
)
def test_a_regression_does_not_start_from_one_of_another_shape_or_function(
    architecture, trained, shape, message, regression
):
    with pytest.raises(ValueError, match=f"`pretrained_network` .*trained.*{message}"):
        regression(architecture, trained, **shape)


def test_a_network_without_gradient_checkpointing_is_named(configure, tmp_path):
    file = write(tmp_path / "span.json", {"architecture": "SPAN", "width": 8})
    config = configure("regression", baseline=file, gradient_checkpointing="true")
    for run in (Trainer, plan):
        with pytest.raises(ValueError, match="`gradient_checkpointing` must be false: SPAN has none"):
            run(config)


def test_a_regression_is_the_mean_error_in_grey_levels(regression):
    objective = regression("EDSR", **BLOCK)
    x, y = objective.pairs(IMAGES)
    with torch.no_grad():
        loss, figures = objective(IMAGES, SEEDS)
        expected = (objective.network(127.5 * (y + 1)).sample - IMAGES).abs().mean()
    assert_close(loss, expected, rtol=1e-5, atol=1e-4)
    assert_close(figures["error"], loss)


@pytest.fixture
def esrgan(tmp_path):
    """Options of a regression with features and a critic that imitates a teacher of more blocks."""
    shape, teacher = {**BLOCK, "growth": 4}, tmp_path / "teacher"
    file = write(tmp_path / "rrdb.json", {"architecture": "RRDBNet", "upsampling": "pixelshuffle", **shape})
    torch.manual_seed(4)
    RRDBNet(**{**shape, "num_blocks": 3}).save_pretrained(teacher)
    save_file({name: value.half() for name, value in random_weights("vgg16").items()}, tmp_path / "vgg.safetensors")
    own = {"baseline": file, "pretrained_teacher": teacher, "pretrained_network": teacher, "pretrained_blocks": 1}
    own |= {"lpips_weights": tmp_path / "vgg.safetensors", "consistency": "exact"}
    return own | {"regression_pixel_weight": 0.3, "regression_perceptual_weight": 1, "regression_critic_weight": 0.02}


def test_a_regression_may_imitate_a_teacher_under_features_and_a_critic(esrgan, objective_of):
    objective = objective_of("regression", **esrgan)
    x, y = objective.pairs(IMAGES)
    with torch.no_grad():
        loss, figures = objective(IMAGES, SEEDS)
        taught = objective.operator.project(objective.teacher((y + 1) / 2).sample.clamp(0, 1) * 2 - 1, y)
        image = objective.network((y + 1) / 2).sample * 2 - 1
        found = objective.operator.project(image, y)
        real, fake = (objective.distance.features(each) for each in (taught, found))
        pixel, apart = (image - taught).abs().mean(), objective.distance(fake, real)
        judged = [[tap.mean() for tap in objective.critic(features[1:])] for features in (fake, real)]
        critics = objective.critic.losses(real[1:], fake[1:])
    assert_close(loss, 0.15 * pixel + apart + 0.02 * critics[1] + critics[0])
    assert_close(torch.stack([figures["error"], figures["perceptual"]]), torch.stack([127.5 * pixel, apart]))
    assert all(abs(float(a) - float(b)) < 1 for a, b in zip(*judged, strict=True))


def test_what_the_losses_see_is_projected_and_judged_in_float32(esrgan, objective_of, monkeypatch):
    objective = objective_of("regression", **esrgan)
    project, seen = objective.operator.project, []

    def watched(x, y):
        seen.append((x.dtype, torch.is_autocast_enabled("cpu")))
        return project(x, y)

    monkeypatch.setattr(objective.operator, "project", watched)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = objective(IMAGES, SEEDS)
        judged = objective.critic([torch.rand(1, width, 8, 8) for width in objective.distance.widths[1:]])
    assert seen == [(torch.float32, False)] * 2
    assert {loss.dtype, *(each.dtype for each in judged)} == {torch.float32}


def test_the_critic_and_what_it_judges_each_follow_their_own_loss(esrgan, objective_of):
    objective = objective_of("regression", **esrgan)
    real, fake = (objective.distance.features(torch.rand(2, 3, 32, 32)) for _ in range(2))
    fake = [x.requires_grad_() for x in fake]
    own, adversarial = objective.critic.losses(real[1:], fake[1:])
    parameters = list(objective.critic.parameters())
    assert all(bool(g.any()) for g in torch.autograd.grad(own, parameters[:1], retain_graph=True))
    assert torch.autograd.grad(own, fake[1:], allow_unused=True) == (None, None)
    assert torch.autograd.grad(adversarial, parameters, allow_unused=True, retain_graph=True) == (None,) * 12
    towards = torch.autograd.grad(adversarial, fake[1:])
    assert all(bool(gradient.any()) for gradient in towards)


def test_the_published_network_is_all_that_an_imitation_saves(esrgan, run, tmp_path):
    run("regression", tmp_path / "out", **esrgan)
    network = RRDBNet.from_pretrained(tmp_path / "out" / "network")
    assert network.upsampling == "pixelshuffle" and len(network.body) == 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if (path / "config.json").is_file()) == ["network"]
    teacher = RRDBNet.from_pretrained(tmp_path / "teacher")
    assert not torch.equal(network.conv_first.weight, teacher.conv_first.weight)
    assert_close(network.conv_first.weight, teacher.conv_first.weight, atol=0.05, rtol=0)  # where it started


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lpips_weights": None}, "`lpips_weights` must be given for a perceptual or critic weight above 0"),
        ({"pretrained_teacher": "nowhere"}, "`pretrained_teacher` 'nowhere' is no folder of EDSR, RRDBNet"),
        ({"pretrained_blocks": 7}, "`blocks` must be 1 ascending numbers below 3"),
        ({"pretrained_network": None}, "`pretrained_blocks` needs `pretrained_network`"),
        ({"scale_factor": 2}, "`scale_factor` must be the network's 4, got 2"),
    ],
)
def test_an_imitation_that_cannot_be_is_refused(esrgan, objective_of, change, message):
    given = {name: value for name, value in {**esrgan, **change}.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        objective_of("regression", **given)


def test_a_new_flow_is_normalised_by_first_crops(objective_of):
    objective = objective_of("hcflow")
    before = objective(IMAGES, SEEDS)[0].item()
    objective.initialise(IMAGES, SEEDS)
    assert all(bool(x.any()) for name, x in objective.named_parameters() if name.endswith("actnorm.bias"))
    x, y = ((value + 1) / 2 for value in objective.pairs(IMAGES))
    uniform = CounterNoise(SEEDS).uniform(0, tuple(x.shape), x.device)
    with torch.no_grad():
        expected = objective.network(x, y, uniform).loss.mean()
        loss, _ = objective(IMAGES, SEEDS)
    assert_close(loss, expected)
    assert float(loss) != before


def test_a_run_begins_with_a_normalised_flow(run, tmp_path):
    run("hcflow", tmp_path, max_train_steps=1, learning_rate=0, use_ema="false")
    flow = HCFlow.from_pretrained(tmp_path / "flow")
    assert all(bool(x.any()) for name, x in flow.named_parameters() if name.endswith("actnorm.bias"))


def test_the_pixels_of_a_flow_are_those_of_its_sample_at_temperature_0(objective_of):
    objective = objective_of("hcflow", flow_pixel_weight=500)
    x, y = ((value + 1) / 2 for value in objective.pairs(IMAGES))
    with torch.no_grad():
        loss, figures = objective(IMAGES, SEEDS)
        error = (objective.network.sample(y, CounterNoise(SEEDS), 0.0).sample - x).abs().mean()
    assert_close(loss, figures["nll"] + 500 * error)
    assert_close(figures["error"], 255 * error)


def test_sr3_learns_the_noise_at_levels_between_steps(objective_of):
    objective = objective_of("sr3")
    objective.eval()
    seen = []
    objective.network.register_forward_pre_hook(lambda _, given: seen.extend(given))
    with torch.no_grad():
        loss, _ = objective(IMAGES, SEEDS)
        x, y = objective.pairs(IMAGES)
        noisy, condition, level = seen[:3]
        share = level.reshape(-1, 1, 1, 1)
        noise = (noisy - share * x) / (1 - share**2).sqrt()
        expected = (objective.network(noisy, condition, level).sample - noise).abs().mean()
    assert_close(loss, expected, rtol=1e-4, atol=1e-4)
    levels = np.sqrt(np.append(1.0, objective.scheduler.alphas_cumprod))
    assert all(levels[-1] <= float(each) <= 1 for each in level) and len(set(level.tolist())) == 2
    assert_close(condition, enlarge_batch(y, 4))


def test_y_is_enlarged_as_pil_does_to_a_grey_level():
    low = torch.randint(0, 256, (2, 3, 9, 12), generator=torch.Generator().manual_seed(1)).float()
    expected = torch.stack([enlarge(image / 255, 4) for image in low])
    difference = (enlarge_batch(low / 127.5 - 1, 4) - expected).abs() * 127.5
    assert float(difference.max()) < 1.01 and float((difference > 0.5).float().mean()) < 0.01


def test_a_diffusion_prior_adds_the_bound_that_trains_its_variances(objective_of):
    objective = objective_of("ddpm", vlb_weight=0.5)
    loss, figures = objective(IMAGES, SEEDS)
    assert_close(loss.detach(), figures["noise_error"] + 0.5 * figures["vlb_bits_per_dim"])
    plain = objective_of("ddpm", vlb_weight=0)
    plain.load_state_dict(objective.state_dict())
    gradients = []
    for each in (objective, plain):
        each.zero_grad()
        each(IMAGES, SEEDS)[0].backward()
        gradients.append(each.network.conv_out.weight.grad)
    assert_close(gradients[0][:3], gradients[1][:3])  # of the noise: the bound adds nothing
    assert bool(gradients[0][3:].any()) and not bool(gradients[1][3:].any())


@pytest.mark.parametrize("index", [0, 1, 7])
def test_the_bound_of_one_step_is_its_divergence_in_bits(index):
    """Against torch's own distributions; at step 0 the mass of the level that x has."""
    scheduler = AncestralScheduler(10, 1e-3, 0.3, "learned_range")
    rand = torch.Generator().manual_seed(index)
    x = torch.randint(0, 256, (1, 3, 4, 4), generator=rand) / 127.5 - 1
    noise, variance = torch.randn(1, 3, 4, 4, generator=rand), torch.rand(1, 3, 4, 4, generator=rand) * 2 - 1
    abar = float(scheduler.alphas_cumprod[index])
    noisy = scheduler.add_noise(x, noise, torch.tensor([math.sqrt(abar)]))
    predicted = noise + 0.1
    found = variational_bound(scheduler, predicted, variance, torch.tensor([index]), noisy, x)
    low, high = scheduler.posterior_log_variance_clipped[index], math.log(scheduler.betas[index])
    sigma = torch.exp((low + (variance + 1) / 2 * (high - low)) / 2)
    c1, c2 = scheduler.posterior_mean_coef1[index], scheduler.posterior_mean_coef2[index]
    x0 = (noisy - math.sqrt(1 - abar) * predicted) / math.sqrt(abar)
    model = torch.distributions.Normal(c1 * x0 + c2 * noisy, sigma)
    if index:
        truth = torch.distributions.Normal(c1 * x + c2 * noisy, math.exp(low / 2))
        nats = torch.distributions.kl_divergence(truth, model)
    else:
        above = torch.where(x > 0.999, 1.0, model.cdf(x + 1 / 255))
        below = torch.where(x < -0.999, 0.0, model.cdf(x - 1 / 255))
        nats = -(above - below).clamp(min=1e-12).log()
    assert_close(found, 10 * nats.mean()[None] / math.log(2), rtol=1e-4, atol=1e-4)


def test_a_diffusion_model_is_saved_with_its_schedule_and_samples_in_the_steps_that_its_file_says(run, tmp_path):
    run("ddpm", tmp_path, max_train_steps=1)
    pipe = pipeline_class(tmp_path).from_pretrained(tmp_path)
    assert pipe.scheduler.config.num_train_timesteps == 20 and pipe.config.num_inference_steps == 4
    assert pipe.config.downsampling_kernel == "bicubic" and pipe.config.scale_factor == 4
    pipe.set_progress_bar_config(disable=True)
    out = pipe(Image.new("RGB", (8, 8), (90, 120, 60)), seed=0, enforce_consistency=True)
    assert out.images[0].size == (32, 32) and out.lr_psnr_float[0] > 80


def test_random_degradations_train_a_system_that_does_not_project(run, tmp_path):
    run("sr3", tmp_path, max_train_steps=1, degradation="noise")
    assert pipeline_class(tmp_path).from_pretrained(tmp_path).config.enforce_consistency is False


def test_the_operator_of_training_is_that_of_the_saved_pipeline(objective_of, run, tmp_path):
    _, y = objective_of("regression", downsampling_kernel="box").pairs(IMAGES)
    assert_close(y, (Downsampling(4, "box")(IMAGES.float()).round() / 127.5) - 1)
    run("regression", tmp_path, downsampling_kernel="box", max_train_steps=1)
    assert pipeline_class(tmp_path).from_pretrained(tmp_path).config.downsampling_kernel == "box"
    shutil.rmtree(tmp_path / "network")
    with pytest.raises(ValueError, match="cannot load"):
        pipeline_class(tmp_path).from_pretrained(tmp_path)
