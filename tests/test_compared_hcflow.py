"""HCFlow against its published implementation: likelihood, gradients, initialisation and samples."""

from pathlib import Path

import pytest
import torch
from compared_cases import Comparison, converted, needs_compared, outputs_of
from torch import Tensor

from hvae_sr.baselines import HCFlow
from hvae_sr.baselines.hcflow import Level
from hvae_sr.checkpoints.compared import published_keys

pytestmark = [needs_compared, pytest.mark.parametrize("name", ["hcflow_x4", "hcflow_x8_face"])]

DECODED = {"a": "split", "mean": "mean", "logs": "log_sigma"}
ENCODED = {
    **DECODED, "z": "latent", "eps": "noise", "logdet_in": "log_det_before", "logdet_out": "log_det",
    "conditional_feature": "features",
}  # fmt: skip


def test_hcflow_agrees_with_the_published_code(name: str, tmp_path: Path) -> None:
    case = Comparison(name)
    model, _ = converted(name, "weights.pth", tmp_path)
    names = {theirs: ours for ours, theirs in published_keys(model).items()}
    hr, lr = case.pair()
    encode(case, model, names, hr, lr)
    decode(case, model, names, lr)
    initialise(case, model)
    case.finish()


def recorded_steps(case: Comparison, names: dict[str, str], part: str) -> dict[str, str]:
    """`encode.layers.1` and so on -> our name of that flow step."""
    steps = {name.rpartition(".")[0] for name in case.names(f"{part}.layers.")}
    return {step: names[f"{step.replace(part, 'flow')}.actnorm.bias"].removesuffix(".actnorm.bias") for step in steps}


def compare_levels(case: Comparison, part: str, levels: tuple[Level, ...], attributes: dict[str, str]) -> None:
    for index, level in enumerate(levels):
        case.compare_all({name: getattr(level, ours) for name, ours in attributes.items()}, f"{part}.level{index}.")


def encode(case: Comparison, model: HCFlow, names: dict[str, str], hr: Tensor, lr: Tensor) -> None:
    uniform = case.given("encode.dequant_uniform")
    out, seen = outputs_of(model, recorded_steps(case, names, "encode"), lambda: model(hr, lr, uniform))
    for step, (z, log_det) in seen.items():
        case.compare_all({"z": z, "logdet": log_det}, f"{step}.")
    compare_levels(case, "encode", out.levels, ENCODED)
    loss = out.loss.mean()
    values = {"lr_before_quantization": out.lr_estimate, "fake_lr": out.quantised_lr, "logdet_total": out.log_det}
    case.compare_all({**values, "objective_per_image": out.objective, "nll": loss}, "encode.")
    loss.backward()
    for recorded in case.names("train.grad."):
        case.compare(recorded, model.get_parameter(names[recorded.removeprefix("train.grad.")]).grad)


@torch.no_grad()
def decode(case: Comparison, model: HCFlow, names: dict[str, str], lr: Tensor) -> None:
    noise = [case.given(f"decode.level{level}.eps") for level in range(model.num_groups)]
    assert [tuple(draw.shape) for draw in noise] == [model.latent_shape(i, 2, (32, 32)) for i in range(len(noise))]
    temperature = case.config["temperature"]
    steps = recorded_steps(case, names, "decode")
    out, seen = outputs_of(model, steps, lambda: model.sample(lr, noise, temperature))
    case.compare_all({f"{step}.z": z for step, (z, _) in seen.items()})
    compare_levels(case, "decode", out.levels, DECODED)
    case.compare("decode.sr_before_clamp", out.sample)
    case.compare("decode.sr", out.sample.clamp(0, 1))
    case.compare("decode.sr_temperature0", model.sample(lr, noise, temperature=0.0).sample.clamp(0, 1))


def initialise(case: Comparison, model: HCFlow) -> None:
    """Activation normalisations that a first batch sets are the stored ones, which the published code was set by."""
    stored = {key: value.clone() for key, value in model.state_dict().items() if "actnorm" in key}
    with torch.no_grad():
        for key in stored:
            model.get_parameter(key).zero_()
    hr, lr = case.pair("init.")
    out = model.initialise(hr, lr, case.given("init.dequant_uniform"))
    case.compare("init.nll", out.loss.mean())
    for key, value in stored.items():
        error = (model.get_parameter(key) - value).abs().max() / value.abs().max()
        assert error <= 1e-4, f"{key}: {error:.1e}"
