"""The networks: what diffusers asks of a model, and what the top-down pass promises."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.hooks import group_offloading
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from hvae_sr import VDVAE, Downsampling, LRConditioner, LREncoder
from hvae_sr.models.blocks import BottomUp, parse_blocks
from hvae_sr.noise import CounterNoise

Model = VDVAE | LREncoder | LRConditioner
WEIGHTS = "diffusion_pytorch_model.safetensors"

over_models = pytest.mark.parametrize("kind", ["vdvae", "cvdvae", "vdvae-sr"])
over_conditions = pytest.mark.parametrize("kind", ["cvdvae", "vdvae-sr"])


def image(batch_size: int = 2, height: int = 16, width: int = 16, seed: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    levels = torch.randint(0, 256, (batch_size, 3, height, width), generator=generator)
    return levels / 127.5 - 1


# What diffusers asks of every model.


@over_models
@pytest.mark.parametrize("options", [{}, {"variant": "fp16"}, {"shards": True}, {"shards": True, "variant": "ema"}])
def test_saved_models_load_and_compute_the_same(
    make_model: Callable[..., Model], model_inputs: Any, kind: str, options: dict[str, Any], tmp_path: Any
) -> None:
    model, variant = make_model(kind), options.get("variant")
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    shard = {"max_shard_size": f"{int(0.6 * size / 1024)}KB"} if options.get("shards") else {}
    model.save_pretrained(tmp_path, variant=variant, **shard)
    assert len(list(tmp_path.glob("*.safetensors"))) == (2 if shard else 1)
    loaded, info = type(model).from_pretrained(tmp_path, variant=variant, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert all(loaded.config[key] == value for key, value in model.config.items() if not key.startswith("_"))
    assert torch.equal(loaded(**model_inputs(model))[0], model(**model_inputs(model))[0])


@over_models
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("low_cpu_mem_usage", [True, False])
def test_models_load_in_the_dtype_asked_for_and_stay_finite(
    make_model: Any, model_inputs: Any, kind: str, dtype: torch.dtype, low_cpu_mem_usage: bool, tmp_path: Any
) -> None:
    model = make_model(kind)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, dtype=dtype, low_cpu_mem_usage=low_cpu_mem_usage)
    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
    inputs = model_inputs(model)
    output = loaded(**{**inputs, "sample": inputs["sample"].to(dtype)})[0]
    assert torch.isfinite(output).all()
    # The VDVAE's latents see rounded activations: the tolerance is that of bf16 through the whole model.
    torch.testing.assert_close(output.float(), model(**inputs)[0], rtol=0.1, atol=0.1)


@over_models
def test_weights_that_do_not_fit_are_refused_and_of_another_width_load_on_request_alone(
    make_model: Any, kind: str, tmp_path: Any
) -> None:
    model = make_model(kind)
    model.save_pretrained(tmp_path)
    load = type(model).from_pretrained
    wider = {"width": 12} if kind == "vdvae" else {"width": 12, "decoder_width": 12}
    with pytest.raises(ValueError, match="Cannot load"):
        load(tmp_path, **wider)
    loaded = load(tmp_path, low_cpu_mem_usage=False, ignore_mismatched_sizes=True, **wider)
    assert loaded.config.width == 12
    assert all(tensor.abs().max() < 10 for tensor in loaded.state_dict().values())  # not what memory held
    weights = load_file(tmp_path / WEIGHTS)
    missing = sorted(weights)[0]
    fewer = {key: value for key, value in weights.items() if key != missing}
    for changed, key in ((fewer, missing), (weights | {"extra.weight": torch.zeros(3)}, "extra.weight")):
        save_file(changed, tmp_path / WEIGHTS, metadata={"format": "pt"})
        with pytest.raises(ValueError, match=key):
            load(tmp_path)


@over_models
def test_forward_is_deterministic_as_a_tuple_too_and_does_not_change_its_input(
    make_model: Any, model_inputs: Any, kind: str
) -> None:
    model, inputs = make_model(kind), model_inputs(make_model(kind))
    before, output = copy.deepcopy(inputs), model(**inputs)
    as_tuple = model(**inputs, return_dict=False)
    assert isinstance(as_tuple, tuple)
    torch.testing.assert_close(as_tuple, tuple(output.values()), rtol=0, atol=0)
    assert torch.equal(inputs["sample"], before["sample"])


def check_checkpointing(model: Model, loss: Callable[[], Tensor]) -> None:
    """Asserts that checkpointing changes no gradient, and runs what it covers, such as a block of z_1, twice."""
    gradients = []
    for checkpointing in (False, True):
        model.zero_grad()
        assert not model.is_gradient_checkpointing
        if checkpointing:
            model.enable_gradient_checkpointing()
        runs: list[int] = []
        block = model.blocks[1].prior_head if isinstance(model, VDVAE) else model.network.bottom_up.blocks[0].c1
        hook = block.register_forward_hook(lambda *_, seen=runs: seen.append(1))
        loss().backward()
        hook.remove()
        assert len(runs) == 1 + checkpointing == 1 + model.is_gradient_checkpointing
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    model.disable_gradient_checkpointing()
    assert not model.is_gradient_checkpointing and gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-6)


@over_models
def test_gradient_checkpointing_reruns_blocks_and_changes_nothing(
    make_model: Any, model_inputs: Any, kind: str
) -> None:
    model = make_model(kind).train()
    check_checkpointing(model, lambda: model(**model_inputs(model)).sample.square().mean())


@pytest.mark.parametrize("encoder_blocks", [None, "16x1,16d2,8x1,8d2,4x1"])
def test_checkpointing_reruns_top_down_blocks_with_the_same_draws(make_vdvae: Any, encoder_blocks: str | None) -> None:
    model = make_vdvae(encoder_blocks=encoder_blocks).train()

    def loss() -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return (
            model(image(), generator=generator).loss if encoder_blocks else model.sample(2, generator=generator)[0]
        ).mean()

    check_checkpointing(model, loss)


@over_models
def test_moving_averages_are_saved_and_loaded(make_model: Any, kind: str, tmp_path: Any) -> None:
    model = make_model(kind)
    average = EMAModel(model.parameters(), model_cls=type(model), model_config=model.config)
    average.step(model.parameters())
    average.save_pretrained(str(tmp_path))
    loaded = EMAModel.from_pretrained(str(tmp_path), model_cls=type(model))
    assert all(torch.equal(a, b) for a, b in zip(average.shadow_params, loaded.shadow_params, strict=True))


@over_models
@pytest.mark.parametrize(("storage", "tolerance"), [(torch.float16, 0.01), (torch.float8_e4m3fn, 0.3)])
def test_layerwise_casting_computes_in_the_compute_dtype(
    make_model: Any, model_inputs: Any, kind: str, storage: torch.dtype, tolerance: float
) -> None:
    model = make_model(kind)
    present = {type(module).__name__ for module in model.modules()}  # names that hooks rely on are true
    assert set(model._repeated_blocks) <= present and {"Bottleneck"} <= set(model._no_split_modules) & present
    expected = model(**model_inputs(model))[0]
    model.enable_layerwise_casting(storage_dtype=storage, compute_dtype=torch.float32)
    assert storage in {parameter.dtype for parameter in model.parameters()}
    torch.testing.assert_close(model(**model_inputs(model))[0], expected, rtol=0.3, atol=tolerance)


OFFLOADING = [{"offload_type": "block_level", "num_blocks_per_group": 1}, {"offload_type": "leaf_level"}]
needs_group_offloading = pytest.mark.skipif(
    torch.__version__.startswith("2.6.") and not torch.accelerator.is_available(),
    reason="diffusers' group offloading asks torch 2.6 for an accelerator, and there is none",
)


@needs_group_offloading
@over_models
@pytest.mark.parametrize("options", OFFLOADING, ids=lambda options: options["offload_type"])
def test_weights_that_are_on_a_disk_are_not_saved(
    make_model: Any, kind: str, options: dict[str, Any], tmp_path: Path
) -> None:
    model = make_model(kind)
    model.enable_group_offload(torch.device("cpu"), offload_to_disk_path=str(tmp_path / "disk"), **options)
    with pytest.raises(ValueError, match="are on a disk"):
        model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


@over_models
def test_weights_that_are_nowhere_are_not_saved(make_model: Any, kind: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="on the device 'meta'"):
        make_model(kind).to("meta").save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


@pytest.fixture
def poisoned_offloading(monkeypatch: pytest.MonkeyPatch) -> None:
    """Group offloading on one device: weights are NaN while they are offloaded, so that a use of them shows."""
    away: dict[int, Tensor] = {}

    def members(group: Any) -> list[Tensor]:
        return [p for module in group.modules for p in module.parameters()] + list(group.parameters)

    def onload(group: Any) -> None:
        for parameter in members(group):
            parameter.data = away.pop(id(parameter), parameter.data)

    def offload(group: Any) -> None:
        for parameter in members(group):
            if id(parameter) not in away:
                away[id(parameter)] = parameter.data
                parameter.data = torch.full_like(parameter.data, torch.nan)

    monkeypatch.setattr(group_offloading.ModuleGroup, "onload_", onload)
    monkeypatch.setattr(group_offloading.ModuleGroup, "offload_", offload)


@needs_group_offloading
@over_conditions
@pytest.mark.parametrize("options", OFFLOADING, ids=lambda options: options["offload_type"])
def test_group_offloading_brings_weights_in_before_they_are_used(
    make_vdvae: Any, make_lr_network: Any, kind: str, options: dict[str, Any], poisoned_offloading: None
) -> None:
    vdvae, network, y, noise = make_vdvae(), make_lr_network(kind), image(2, 4, 4), CounterNoise([0, 1])

    def outputs() -> list[Tensor]:
        sample = vdvae.sample(2, noise=noise, condition=network.encode(y)).sample
        return [vdvae(image(), noise=noise).loss, network(y).sample, sample]

    expected = outputs()
    for model in (vdvae, network):
        model.enable_group_offload(torch.device("cpu"), **options)
    assert all(map(torch.equal, outputs(), expected))


@over_models
def test_sequential_offloading_gives_the_same(make_model: Any, model_inputs: Any, kind: str, tmp_path: Any) -> None:
    from accelerate import cpu_offload, disk_offload

    # Groups above `no_bias_above` start from zeros, which must not be made where the weights are.
    model = make_model(kind, **({"no_bias_above": 8} if kind == "vdvae" else {}))
    expected = model(**model_inputs(model))[0]
    for offload, options in ((cpu_offload, {}), (disk_offload, {"offload_dir": str(tmp_path)})):
        offloaded = copy.deepcopy(model)
        offload(offloaded, execution_device=torch.device("cpu"), **options)
        assert {parameter.device.type for parameter in offloaded.parameters()} == {"meta"}
        assert torch.equal(offloaded(**model_inputs(model))[0], expected)


@over_models
def test_a_batch_is_its_rows_one_by_one_and_channels_may_be_last(make_model: Any, model_inputs: Any, kind: str) -> None:
    model = make_model(kind)
    inputs = model_inputs(model, batch_size=3)
    together = model(**inputs)[0]
    for row in range(3):
        one = {"sample": inputs["sample"][row : row + 1]}
        if "noise" in inputs:
            one["noise"] = [draws[row : row + 1] for draws in inputs["noise"]]
        torch.testing.assert_close(model(**one)[0], together[row : row + 1], rtol=1e-5, atol=1e-5)
    inputs["sample"] = inputs["sample"].to(memory_format=torch.channels_last)
    torch.testing.assert_close(model.to(memory_format=torch.channels_last)(**inputs)[0], together, rtol=1e-5, atol=1e-5)


@over_models
def test_autocast_to_bf16_trains(make_model: Any, model_inputs: Any, kind: str) -> None:
    model = make_model(kind).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(**model_inputs(model))
        loss = (output.loss if kind == "vdvae" else output.sample.float().square()).mean()
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@over_models
@pytest.mark.parametrize("checkpointing", [False, True])
def test_forward_is_one_graph_for_the_compiler(
    make_model: Any, model_inputs: Any, kind: str, checkpointing: bool
) -> None:
    model = make_model(kind)
    if checkpointing:
        model.enable_gradient_checkpointing()
    torch.compiler.reset()
    several = checkpointing and torch.__version__.startswith("2.6")  # whose checkpoints give tensors alone
    compiled = torch.compile(model, backend="eager", fullgraph=not several)
    assert torch.equal(compiled(**model_inputs(model))[0], model(**model_inputs(model))[0])


# Sizes.


def test_channel_biases_work_at_any_multiple_of_the_stride_by_which_samples_move(make_vdvae: Any) -> None:
    model = make_vdvae()
    assert model.size_multiple == 4
    for size in ((4, 4), (8, 20), (36, 16)):
        assert model(image(1, *size)).sample.shape == (1, 3, *size)
        assert model.sample(2, size).sample.shape == (2, 3, *size)
    whole = model.sample(1, (64, 64), noise=CounterNoise([0])).sample
    window = model.sample(1, (40, 64), noise=CounterNoise([0], origin=(24, 0))).sample
    torch.testing.assert_close(window[..., 24:, :], whole[..., 48:, :], rtol=1e-4, atol=1e-4)


@over_conditions
def test_the_condition_matters_and_maps_of_another_size_or_batch_are_refused(
    make_vdvae: Any, make_lr_network: Any, kind: str
) -> None:
    vdvae, network, noise = make_vdvae(), make_lr_network(kind), CounterNoise([0])
    conditions = [None, *(network.encode(image(1, 4, 4, seed=seed)) for seed in range(2))]
    samples = [vdvae.sample(1, noise=noise, condition=condition).sample for condition in conditions]
    assert not any(torch.equal(samples[i], samples[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    for size in ((32, 16), (16, 32), (4, 4)):  # also of one row or column, which would be taken for all
        with pytest.raises(ValueError, match="`condition` at resolution .* to fit `size`"):
            vdvae.sample(1, size, condition=conditions[1])
    with pytest.raises(ValueError, match="`activations` at resolution .* must have shape \\[3, width"):
        vdvae.top_down(3, (16, 16), activations=vdvae.encode(image(2, 16, 16)))


def test_other_sizes_are_refused(make_vdvae: Any) -> None:
    model, spatial = make_vdvae(), make_vdvae(bias_type="spatial")
    for size in (16, (16,), (16.0, 16.0), (-16, 16), (0, 16), (16, 16, 3), (True, 16), "16"):
        message = f"`size` must be (height, width), two whole numbers >= 1, got {size!r}"
        with pytest.raises(ValueError, match=re.escape(message)):
            model.sample(1, size)
    for size in ((16, 18), (15, 16)):
        with pytest.raises(ValueError, match=f"multiples of 4, got {size[0]}x{size[1]}"):
            model.sample(1, size)
    assert spatial(image()).sample.shape == (2, 3, 16, 16)
    with pytest.raises(ValueError, match="must be 16x16 .* got 32x16"):
        spatial(image(1, 32, 16))


@pytest.mark.parametrize(
    "changes",
    [
        {"patch_size": 2, "encoder_blocks": "8x1,8d2,4x1", "decoder_blocks": "4x1,8m4,8x1"},
        {"custom_widths": "4:16"},
        {"custom_widths": "4:6,16:12"},
    ],
)
def test_patches_and_widths_of_resolutions_change_no_sizes(make_vdvae: Any, changes: dict[str, Any]) -> None:
    model = make_vdvae(**changes)
    out = model(image(), generator=torch.Generator().manual_seed(0))
    assert out.sample.shape == (2, 3, 16, 16) and torch.isfinite(out.loss).all()
    assert model.latent_shape(1, 2, (16, 16)) == (2, 4, 8, 8)


# One top-down pass.


def test_elbo_is_distortion_plus_rate_and_rate_is_the_sum_of_the_groups(make_vdvae: Any) -> None:
    model, x = make_vdvae(), image()
    out = model(x, generator=torch.Generator().manual_seed(0))
    assert out.loss.shape == out.distortion.shape == out.rate.shape == (2,)
    torch.testing.assert_close(out.loss, out.distortion + out.rate)
    assert len(out.group_kl) == model.num_groups and all(kl.shape == (2,) for kl in out.group_kl)
    torch.testing.assert_close(torch.stack(out.group_kl).sum(dim=0) / x[0].numel(), out.rate)
    assert (torch.stack(out.group_kl) >= 0).all()


def test_elbo_is_a_bound_in_nats_per_dimension(make_vdvae: Any) -> None:
    # log p(x|z) - log q(z|x)/p(z) at the drawn z, averaged over draws, is the negative loss.
    model, x = make_vdvae(), image(1)
    totals, losses = [], []
    with torch.no_grad():
        for seed in range(60):
            top_down = model.top_down(1, (16, 16), CounterNoise([seed]), activations=model.encode(x))
            log_ratio = sum(
                (group.posterior.log_prob(group.z) - group.prior.log_prob(group.z)).sum() for group in top_down.groups
            )
            totals.append((log_ratio - model.likelihood(top_down.stream).log_prob(x).sum()) / x.numel())
            losses.append(model(x, noise=CounterNoise([seed])).loss[0])
    difference = torch.stack(totals) - torch.stack(losses)
    assert abs(difference.mean().item()) < 5 * difference.std().item() / 60**0.5 + 1e-4


def test_given_latents_are_kept_and_the_rest_is_redrawn(make_vdvae: Any) -> None:
    model = make_vdvae()
    first = model.sample(2, noise=CounterNoise([0, 1]), temperature=0.7)
    for latents in (first.latents, list(first.latents[:2]), [*first.latents[:2], None, None]):
        other = model.sample(2, noise=CounterNoise([8, 9]), latents=latents)
        same = [torch.equal(a, b) for a, b in zip(first.latents, other.latents, strict=True)]
        assert same == ([True] * 4 if latents is first.latents else [True, True, False, False])
        assert torch.equal(first.sample, other.sample) == all(same)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_conditioned_groups": -1}, "`num_conditioned_groups` must lie between 0 and 4, got -1"),
        ({"num_conditioned_groups": 99}, "`num_conditioned_groups`"),
        ({"num_groups": 0}, "`num_groups` must lie between 1 and 4, got 0"),
        ({"record": "distribution"}, "`record`.*'distribution'"),
        ({"batch_size": 0}, "`batch_size` must be a whole number >= 1"),
        ({"latents": [torch.zeros(1, 4, 3, 4)]}, r"`latents\[0\]` must have shape \[N, 4, 4, 4\]"),
        ({"latents": [torch.zeros(2, 4, 4, 4)]}, r"`latents\[0\]` must have shape \[N, 4, 4, 4\] with N = 1,"),
        ({"latents": ["z"]}, r"`latents\[0\]` must have shape \[N, 4, 4, 4\]"),
        ({"latents": [None] * 5}, "`latents` must be a list of at most 4 tensors.*got 5"),
        *(
            ({"temperature": t}, "`temperature`")
            for t in (-0.1, math.nan, math.inf, 10**400, [1.0, 1.0], [1.0, 1.0, 1.0, "1"])
        ),
    ],
)
def test_wrong_arguments_of_the_pass_are_refused(make_vdvae: Any, changes: dict[str, Any], message: str) -> None:
    arguments = {"batch_size": 1, "size": (16, 16)} | changes
    model = make_vdvae()
    for call in (model.top_down,) if arguments.keys() & {"num_groups", "record"} else (model.top_down, model.sample):
        with pytest.raises(ValueError, match=message):
            call(**arguments)


def test_temperature_is_per_group_and_scales_the_standard_deviation(make_vdvae: Any) -> None:
    model, state = make_vdvae(), torch.get_rng_state()
    a, b, c = (
        model.sample(1, noise=noise, temperature=0).sample for noise in (CounterNoise([0]), CounterNoise([1]), None)
    )
    assert torch.equal(a, b) and torch.equal(a, c) and torch.equal(torch.get_rng_state(), state)  # 0 needs no noise
    mean, half, full = (
        model.sample(1, noise=CounterNoise([0]), temperature=[t, 0, 0, 0]).latents[0] for t in (0, 0.5, 1)
    )
    torch.testing.assert_close(half - mean, 0.5 * (full - mean), rtol=1e-4, atol=1e-6)
    one, other = (model.sample(1, noise=CounterNoise([s]), temperature=[0, 0, 0, 1]).latents for s in (0, 1))
    assert [torch.equal(x, y) for x, y in zip(one, other, strict=True)] == [True, True, True, False]


@over_models
def test_images_of_wrong_shape_or_type_are_refused(make_model: Any, kind: str) -> None:
    for shape in ((3, 16, 16), (1, 1, 16, 16), (1, 4, 16, 16)):
        with pytest.raises(ValueError, match="`sample` must be"):
            make_model(kind)(torch.zeros(shape))
    with pytest.raises(ValueError, match="`sample` must be .*float.*uint8"):
        make_model(kind)(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))


def test_a_model_without_an_encoder_samples_but_has_no_elbo(make_vdvae: Any) -> None:
    full, model = make_vdvae(), make_vdvae(encoder_blocks=None)
    weights = {k: v for k, v in full.state_dict().items() if not k.startswith("encoder.") and "posterior" not in k}
    model.load_state_dict(weights)
    noise = CounterNoise([0])
    assert torch.equal(model.sample(1, noise=noise).sample, full.sample(1, noise=noise).sample)
    with pytest.raises(ValueError, match="without an encoder"):
        model(image())


def test_pixel_draws_are_on_the_image_range_and_follow_the_noise(make_vdvae: Any) -> None:
    model, five = make_vdvae(), make_vdvae(output_bits=5)
    a, b, c = (model.sample(1, noise=CounterNoise([s]), sample_pixels=True).sample for s in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert a.abs().max() <= 1
    lost = five.sample(1, noise=CounterNoise([0])).sample - model.sample(1, noise=CounterNoise([0])).sample
    torch.testing.assert_close(lost, torch.full_like(a, 3.5 / 127.5))  # samples of five bits get the half bin back


# Conditioning.


def test_only_conditioned_groups_have_a_posterior_given_y_which_may_have_its_own_temperature(
    make_vdvae: Any, make_lr_network: Any
) -> None:
    model, condition, noise = make_vdvae(), make_lr_network("cvdvae").encode(image(1, 4, 4)), CounterNoise([0])
    for k, expected in ((None, 3), (0, 0), (1, 1), (4, 3)):
        out = model.top_down(1, (16, 16), noise, condition=condition, num_conditioned_groups=k)
        assert [group.lr_posterior is not None for group in out.groups] == [i < expected for i in range(4)]
    mixed, full = (
        model.sample(1, noise=noise, condition=condition, temperature=t, lr_posterior_temperature=1.0).latents
        for t in (0.0, 1.0)
    )
    assert [torch.equal(a, b) for a, b in zip(mixed, full, strict=True)] == [True, True, True, False]


@pytest.mark.parametrize("location", ["bicubic", "projection"])
def test_a_location_centres_the_likelihood_on_y(make_vdvae: Any, make_lr_network: Any, location: str) -> None:
    model, network = make_vdvae(), make_lr_network("vdvae-sr", gate_init=0.0, likelihood_location=location)
    y, noise = image(1, 4, 4), CounterNoise([0])
    condition = network.encode(y)
    offset = model.sample(1, noise=noise).sample
    torch.testing.assert_close(
        model.sample(1, noise=noise, condition=condition).sample, offset + condition.location, rtol=1e-5, atol=1e-5
    )
    if location == "projection":
        torch.testing.assert_close(network.operator(condition.location), y, rtol=1e-4, atol=1e-4)


def test_distillation_reaches_the_lr_encoder_alone(make_vdvae: Any, make_lr_network: Any) -> None:
    model, network = make_vdvae(), make_lr_network("cvdvae").train()
    model.requires_grad_(False)
    condition = network.encode(image(1, 4, 4))
    out = model.top_down(
        1, (16, 16), CounterNoise([0]), activations=model.encode(image(1)), condition=condition, num_groups=3
    )
    assert len(out.groups) == 3
    sum(group.posterior.kl(group.lr_posterior).sum() for group in out.groups).backward()
    assert all(parameter.grad is not None for parameter in network.heads.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())


# Construction.


@pytest.mark.parametrize("item", ["x", "32y3", "32x", "0x2", "32xm", "-4x1", "", "4d2", "4r", "4r0", "8r2", "4r100000"])
def test_wrong_block_notation_is_refused_with_the_argument_and_the_item(item: str) -> None:
    with pytest.raises(ValueError, match="`decoder_blocks`") as error:
        VDVAE(decoder_blocks=f"4x1,{item}")
    assert repr(item) in str(error.value)


def test_block_notation_is_vd_vae_s() -> None:
    def read(blocks: str) -> list[tuple[int | None, ...]]:
        return [tuple(spec) for spec in parse_blocks(blocks)]

    assert read("1x2, 4m1") == [(1, None, None, 0), (1, None, None, 0), (4, None, 1, 0)]
    assert read("8,8d2") == [(8, None, None, 0), (8, 2, None, 0)]
    assert read("4x2,4r1,8m4,8r2,8r1") == [(4, None, None, 0), (4, None, None, 1), (8, None, 4, 3)]


def test_residual_blocks_without_latents_belong_to_the_group_before_them(make_vdvae: Any) -> None:
    plain = make_vdvae(seed=5)
    deeper = make_vdvae(seed=5, decoder_blocks="4x1,8m4,8r2,8x1,16m8,16r1", residual_multiple=1.0)
    assert deeper.resolutions == plain.resolutions
    added = deeper.state_dict().keys() - plain.state_dict().keys()
    assert {name.rsplit(".", 2)[0] for name in added} == {
        "blocks.1.residual_blocks.0", "blocks.1.residual_blocks.1", "blocks.3.residual_blocks.0"
    }  # fmt: skip
    assert deeper.blocks[1].residual_blocks[0].c2.out_channels == deeper.config.width  # residual_multiple of it
    deeper.load_state_dict(plain.state_dict(), strict=False)
    noise = CounterNoise([3])
    changed = deeper.sample(1, noise=noise).sample
    for name in added:
        if ".c4." in name:
            deeper.get_parameter(name).data.zero_()
    expected = plain.sample(1, noise=noise).sample
    torch.testing.assert_close(deeper.sample(1, noise=noise).sample, expected)
    assert not torch.allclose(changed, expected)


def test_latent_channels_of_each_resolution(make_vdvae: Any, make_lr_network: Any) -> None:
    vdvae = make_vdvae(custom_latent_channels="16:1,4:3")
    shapes = [(2, 3, 4, 4), (2, 4, 8, 8), (2, 4, 8, 8), (2, 1, 16, 16)]
    assert [vdvae.latent_shape(group, 2, (16, 16)) for group in range(4)] == shapes
    assert [tuple(z.shape) for z in vdvae.sample(2, noise=CounterNoise([1, 2])).latents] == shapes
    assert len(vdvae(torch.zeros(2, 3, 16, 16), noise=CounterNoise([1, 2])).group_kl) == 4
    make_lr_network("vdvae-sr").check_fit(vdvae.config, Downsampling(4))  # which has no parameters of latents
    with pytest.raises(ValueError, match="`lr_encoder` was made for latent_channels 4, not '16:1,4:3'"):
        make_lr_network("cvdvae").check_fit(vdvae.config, Downsampling(4))


def test_a_shuffled_stream_says_different_things_to_neighbours(make_vdvae: Any) -> None:
    nearest, shuffled = (make_vdvae(mixin_upsampling=name) for name in ("nearest", "pixel_shuffle"))
    assert not nearest.upsamplers and list(shuffled.upsamplers) == ["1", "3"]
    coarse = torch.randn(1, 8, 4, 4)
    upsampled, mixed = (vdvae._start(1, {4: coarse}, 1, (16, 16)) for vdvae in (nearest, shuffled))
    assert torch.equal(upsampled[..., ::2, ::2], upsampled[..., 1::2, 1::2])
    assert not torch.allclose(mixed[..., ::2, ::2], mixed[..., 1::2, 1::2])
    torch.testing.assert_close(mixed - shuffled.biases["8"](1, 1, 1), shuffled.upsamplers["1"](coarse))


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("vdvae", {"custom_widths": "8=4"}, "`custom_widths`: '8=4'"),
        ("vdvae", {"bias_type": "none"}, "`bias_type`.*'none'"),
        ("vdvae", {"output_bits": 7}, "`output_bits`.*7"),
        ("vdvae", {"image_size": 32}, "`decoder_blocks` must end at"),
        ("vdvae", {"encoder_blocks": "16x1,8x1"}, "`encoder_blocks`: resolution 16 cannot be followed by 8"),
        ("vdvae", {"encoder_blocks": "8x1,8d2,4x1"}, "`encoder_blocks` must begin at 16"),
        ("vdvae", {"encoder_blocks": "16x1,16d2,8x1"}, "`encoder_blocks` .* reach every resolution"),
        ("vdvae", {"decoder_blocks": "3x1,16m3", "encoder_blocks": None}, "`decoder_blocks`: 3 must divide 16"),
        ("vdvae", {"activation": "relu"}, "`activation` must be one of gelu, silu; got 'relu'"),
        ("vdvae", {"num_mixtures": 0}, "`num_mixtures` must be at least 1, got 0"),
        ("vdvae", {"image_size": 16.0}, "`image_size` must be a whole number, got 16.0"),
        (
            "vdvae",
            {"num_mixtures": 10**8},
            "`num_mixtures` = 100000000 and `patch_size` = 1 make more than 65536 channels",
        ),
        ("vdvae", {"width": 0}, "`width`"),
        ("vdvae", {"width": "8"}, "`width` must be a whole number, got '8'"),
        ("vdvae", {"width": True}, "`width` must be a whole number, got True"),
        ("vdvae", {"decoder_blocks": 5}, "`decoder_blocks` must be text, got 5"),
        ("vdvae", {"encoder_blocks": []}, r"`encoder_blocks` must be text or None, got \[\]"),
        ("vdvae", {"input_scale": float("nan")}, "`input_scale` must be a finite number, got nan"),
        ("vdvae", {"max_log_sigma": "1"}, "`max_log_sigma` must be a finite number or None, got '1'"),
        ("vdvae", {"custom_latent_channels": "8"}, "`custom_latent_channels`: '8'"),
        ("vdvae", {"custom_latent_channels": "8:0"}, "`latent_channels` and `custom_latent_channels` must be .* got 0"),
        ("vdvae", {"residual_multiple": 0}, "`residual_multiple` must be None or above 0, got 0"),
        (
            "vdvae",
            {"mixin_upsampling": "linear"},
            "`mixin_upsampling` must be one of nearest, pixel_shuffle; got 'linear'",
        ),
        ("vdvae", {"encoder_blocks": "16x1,16r1,16d2,8x1,8d2,4x1"}, "`encoder_blocks`: '16r1'"),
        ("vdvae", {"width": 10**6}, "`width` and `custom_widths` must be between 1 and 65536, got 1000000"),
        (
            "vdvae",
            {"decoder_blocks": "1x100000000,16m1"},
            "`decoder_blocks`: '1x100000000' makes more than 10000 blocks",
        ),
        ("vdvae", {"residual_multiple": 0.01, "decoder_blocks": "4x2,8m4,8r1,16m8"}, "`residual_multiple` = 0.01"),
        ("vdvae", {"bottleneck_multiple": 1e9}, "`bottleneck_multiple` makes"),
        ("vdvae", {"bottleneck_multiple": 0.01}, "`bottleneck_multiple` leaves no channels"),
        ("cvdvae", {"num_conditioned_groups": 0}, "`num_conditioned_groups` must be between 1 and 4, got 0"),
        ("cvdvae", {"num_conditioned_groups": 4}, "group 3 works at resolution 16"),
        ("cvdvae", {"blocks": "8x1", "upsampling_blocks": None}, "`blocks` must start at image_size = 4"),
        ("cvdvae", {"upsampling_blocks": "16m8"}, "`upsampling_blocks`"),
        ("vdvae-sr", {"width": 12}, "`custom_widths`: 12 channels at resolution 4, where the decoder has 8"),
        ("vdvae-sr", {"likelihood_location": "nearest"}, "`likelihood_location`.*'nearest'"),
    ],
)
def test_wrong_configurations_are_refused(make_model: Any, kind: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_model(kind, **changes)


def test_the_networks_of_the_defaults_belong_together() -> None:
    vdvae, encoder = VDVAE(), LREncoder()
    condition = encoder.encode(torch.zeros(1, 3, 8, 8))
    sample = vdvae.sample(1, noise=CounterNoise([0]), condition=condition).sample
    assert sample.shape == (1, 3, 32, 32) and sample.isfinite().all()


def test_initial_weights_are_the_published_ones(make_vdvae: Any) -> None:
    model = make_vdvae(randomise=False, initial_log_scale=-3.0)
    assert not any(block.prior_head.c4.weight.any() for block in model.blocks)
    assert not any(bias.bias.any() for bias in model.biases.values())
    convolutions = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d)]
    assert not any(module.bias.any() for module in convolutions if module is not model.out_conv)
    out = model.top_down(1, (16, 16), CounterNoise([0]))
    assert all(not group.prior.mean.any() and not group.prior.log_sigma.any() for group in out.groups)
    bias = model.out_conv.bias.view(10, 2)
    assert (bias[[2, 5, 8]] == -3).all() and not bias[[0, 1, 3, 4, 6, 7, 9]].any()
    for count in (1, 4, 16):  # residual branches start smaller the deeper the network
        bound = (1 / 16) ** 0.5 * (1 / count) ** 0.5  # torch's default is uniform within 1 / sqrt(fan_in)
        for block in BottomUp(f"8x{count}", {8: 64}).blocks:
            assert 0.9 * bound < block.c4.weight.abs().max() <= bound
