"""SR3 and DPS against their published implementations: networks, training step, and chains step by step."""

import ast
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compared_cases import Comparison, converted, needs_compared, outputs_of, pil_bicubic
from torch import Tensor

from hvae_sr.baselines import AncestralScheduler, GuidedDiffusionUNet, SR3UNet
from hvae_sr.baselines.diffusion import space_timesteps
from hvae_sr.baselines.dps import DPSStep, dps_chain, dps_step
from hvae_sr.baselines.sr3 import SR3Step, sr3_chain, sr3_loss, sr3_step
from hvae_sr.operators import Downsampling

pytestmark = needs_compared


@pytest.mark.parametrize("file", ["I1_E1_gen.pth", "weights.safetensors"])
def test_sr3_agrees_with_the_published_code(file: str, tmp_path: Path) -> None:
    case = Comparison("sr3_x4")
    unet, folder = converted("sr3_x4", file, tmp_path)
    scheduler = AncestralScheduler.from_pretrained(folder / "scheduler")
    case.pair()
    up = case.given("up_uint8")
    assert torch.equal(pil_bicubic(case.given("lr_uint8"), (up.shape[2], up.shape[3])), up)
    y = case.image("up_uint8", -1.0, 1.0)
    case.compare("y", y)
    sr3_network(case, unet, y)
    sr3_schedules(case, scheduler)
    sr3_training(case, unet, scheduler, y)
    sr3_sampling(case, unet, scheduler, y[:1])
    case.finish()


@torch.no_grad()
def sr3_network(case: Comparison, unet: SR3UNet, y: Tensor) -> None:
    modules = {
        "unet.positional_encoding": "noise_level_mlp.0",
        "unet.noise_embedding": "noise_level_mlp",
        "unet.downs.0": "downs.0",
        "unet.downs.3": "downs.3",
        "unet.downs.4_with_attention": "downs.4",
        "unet.mid.0_with_attention": "mid.0",
    }
    sample, level = case.given("unet.x_noisy"), case.given("unet.noise_level")
    out, seen = outputs_of(unet, modules, lambda: unet(sample, y, level).sample)
    case.compare_all({**seen, "unet.output": out})


def sr3_schedules(case: Comparison, scheduler: AncestralScheduler) -> None:
    """The scheduler of the file, and the published one of 2000 steps."""
    abar = scheduler.alphas_cumprod
    derived = {
        "sqrt_alphas_cumprod_prev": np.sqrt(np.append(1.0, abar)),
        "sqrt_recip_alphas_cumprod": np.sqrt(1 / abar),
        "sqrt_recipm1_alphas_cumprod": np.sqrt(1 / abar - 1),
    }
    for name in case.names("schedule8."):
        attribute = name.removeprefix("schedule8.")
        case.compare(name, derived[attribute] if attribute in derived else getattr(scheduler, attribute))
    published = AncestralScheduler(2000, 1e-6, 1e-2)
    index = case.given("schedule2000.index").numpy()
    for name in case.names("schedule2000."):
        if name != "schedule2000.index":
            case.compare(name, getattr(published, name.removeprefix("schedule2000."))[index])


def sr3_training(case: Comparison, unet: SR3UNet, scheduler: AncestralScheduler, y: Tensor) -> None:
    hr, noise = case.given("train.hr"), case.given("train.noise_target")
    level = case.given("train.continuous_sqrt_alpha_cumprod")
    index = case.given("train.t").repeat(2) - 1
    ends = [scheduler.level_within(index, torch.full((2,), end)) for end in (0.0, 1.0)]
    assert (ends[0] <= level[:, 0]).all() and (level[:, 0] <= ends[1]).all()
    noisy = scheduler.add_noise(hr, noise, level)
    prediction = unet(noisy, y, level).sample
    loss, count = sr3_loss(prediction, noise), noise.numel()
    sums = {"loss_sum": loss * count, "loss_sum_l2": sr3_loss(prediction, noise, "l2") * count}
    case.compare_all({"x_noisy": noisy, "eps_pred": prediction, "l_pix": loss, **sums}, "train.")
    loss.backward()
    for name in case.names("train.grad."):
        case.compare(name, unet.get_parameter(name.removeprefix("train.grad.denoise_fn.")).grad)


@torch.no_grad()
def sr3_sampling(case: Comparison, unet: SR3UNet, scheduler: AncestralScheduler, y: Tensor) -> None:
    def draw(index: int) -> Tensor | None:
        return None if index == 0 else case.given(f"sample.t{index:02d}.noise")

    def noise(group: int, stride: int, shape: tuple[int, ...], device: torch.device) -> Tensor:
        found = case.given("sample.x_T") if group == 0 else draw(group - 1)
        assert found is not None and tuple(found.shape) == shape
        return found

    def compare(step: SR3Step) -> None:
        abar = scheduler.alphas_cumprod[step.index]
        original = (step.sample - np.sqrt(1 - abar) * step.prediction) / np.sqrt(abar)
        values = {"noise_level": step.noise_level, "x_t": step.sample, "eps_pred": step.prediction}
        clipped = (original.abs() > 1).float().mean()
        case.compare_all({**values, "x0_fraction_clipped": clipped}, f"sample.t{step.index:02d}.")
        if step.index:
            case.compare(f"sample.t{step.index - 1:02d}.x_t", step.previous)
        else:
            case.compare("sample.result", step.previous[0])

    steps = range(scheduler.num_steps)
    single = (sr3_step(unet, scheduler, i, case.given(f"sample.t{i:02d}.x_t"), y, draw(i)) for i in steps)
    case.compare_steps(sr3_chain(unet, scheduler, y, noise), single, compare)


def test_dps_agrees_with_the_published_code(tmp_path: Path) -> None:
    case = Comparison("dps_x4")
    unet, folder = converted("dps_x4", "weights.safetensors", tmp_path)
    scheduler = AncestralScheduler.from_pretrained(folder / "scheduler")
    scheduler.set_timesteps(case.config["diffusion"]["timestep_respacing"])
    for name in case.names("sampler."):
        case.compare(name, getattr(scheduler, name.removeprefix("sampler.")))
    dps_network(case, unet)
    dps_measurement(case)
    dps_sampling(case, unet, scheduler)
    case.finish()


@torch.no_grad()
def dps_network(case: Comparison, unet: GuidedDiffusionUNet) -> None:
    modules = {
        "unet.time_embed": "time_embedding",
        "unet.input_blocks.1": "down_blocks.0.resnets.0",
        "unet.input_blocks.2_down": "down_blocks.0.downsamplers.0",
        "unet.input_blocks.3_with_attention": "down_blocks.1.attentions.0",
        "unet.middle_block": "mid_block",
        "unet.output_blocks.1_up": "up_blocks.0.upsamplers.0",
    }
    out, seen = outputs_of(unet, modules, lambda: unet(case.given("unet.x"), case.given("unet.t")).sample)
    case.compare_all({**seen, "unet.output": out})


def dps_measurement(case: Comparison) -> None:
    """The published operator is our "matlab-bicubic"; its matrix is read off images that are 1 in one row."""
    for side, factor in ((20, 4), (32, 4), (32, 8)):
        start = f"resizer.x{factor}_{side}."
        operator = Downsampling(factor, "matlab-bicubic")
        rows = torch.eye(side)[:, :, None].expand(side, side, side)
        case.compare(f"{start}matrix", operator(rows)[:, :, 0].T)
        if f"{start}x" in case.recorded:
            case.compare(f"{start}y", operator(case.given(f"{start}x")))
    ref = case.image("ref_uint8", -1.0, 1.0)
    case.compare("ref", ref)
    clean = Downsampling(4, "matlab-bicubic")(ref)
    case.compare("y_clean", clean)
    case.compare("y", clean + case.config["measurement"]["noise"]["sigma"] * case.given("y_noise"))


def dps_sampling(case: Comparison, unet: GuidedDiffusionUNet, scheduler: AncestralScheduler) -> None:
    operator, y = Downsampling(4, "matlab-bicubic"), case.given("y")
    scale = case.config["conditioning"]["params"]["scale"]
    last = scheduler.num_steps - 1
    timesteps = {scheduler.timestep(index): index for index in range(last + 1)}

    def noise(group: int, stride: int, shape: tuple[int, ...], device: torch.device) -> Tensor:
        return case.given("x_start") if group == 0 else case.given(f"step{last - timesteps[group - 1]}.noise")

    def compare(step: DPSStep) -> None:
        number = last - step.index  # the first step recorded is the noisiest
        attributes: dict[str, Any] = {
            "t_model": step.timestep,
            "x_t": step.sample,
            "model_output": step.prediction,
            "x0_hat": step.original,
            "norm": step.residual,
            "grad": step.gradient,
            "x_prev_before_guidance": step.unguided,
        }
        case.compare_all(attributes, f"step{number}.")
        case.given(f"step{number}.unused_q_sample_noise")  # drawn by the published code, and not used
        case.given(f"step{number}.noise")
        case.compare(f"step{number + 1}.x_t" if step.index else "result", step.previous)

    def single(number: int) -> DPSStep:
        draw = None if number == last else case.given(f"step{number}.noise")
        return dps_step(unet, scheduler, last - number, case.given(f"step{number}.x_t"), y, operator, draw, scale)

    chain = list(dps_chain(unet, scheduler, y, operator, (32, 32), noise, scale))
    case.compare_steps(chain, map(single, range(last + 1)), compare)
    x = chain[-1].previous[0]
    case.compare("result_minmax_saved", (x - x.min()) / (x.max() - x.min()))


def test_shortened_chains_are_those_of_the_published_code() -> None:
    recorded = Comparison("dps_x4").config["space_timesteps"]
    for arguments, expected in recorded.items():
        total, chosen = ast.literal_eval(arguments)
        assert space_timesteps(total, chosen) == expected, arguments


def test_a_variance_that_is_not_learned_is_the_smaller_or_the_larger_of_the_two() -> None:
    nothing, one = torch.zeros(1, 3, 2, 2), torch.ones(1, 3, 2, 2)
    for steps in (10, 1000):
        small, large = (AncestralScheduler(variance_type=f"fixed_{size}") for size in ("small", "large"))
        for scheduler in (small, large):
            scheduler.set_timesteps(steps)
        for index in (1, steps - 1):
            deviations = [float(s.step(nothing, index, nothing, one).prev_sample[0, 0, 0, 0]) for s in (small, large)]
            before, after = large.alphas_cumprod[index - 1 : index + 1]
            beta = 1 - after / before
            assert deviations == pytest.approx([(beta * (1 - before) / (1 - after)) ** 0.5, beta**0.5], rel=1e-5)
