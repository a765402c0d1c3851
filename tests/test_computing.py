"""How networks are evaluated: their dtype, compiled graphs, hooks; the same weights afterwards."""

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from hvae_sr import VDVAE, SuperResolutionPipeline
from hvae_sr.images import read_photo
from hvae_sr.images.degradation import inspect
from hvae_sr.models.blocks import Convolution
from hvae_sr.noise import CounterNoise
from hvae_sr.pipelines import computing
from hvae_sr.pipelines.computing import fast_dtype

over_kinds = pytest.mark.parametrize("kind", ["cvdvae", "vdvae-sr"])
has_bf16 = fast_dtype(torch.device("cpu")) is not None


def photo(side: int = 8, seed: int = 0) -> Tensor:
    return torch.rand(3, side, side, generator=torch.Generator().manual_seed(seed)) * 0.5 + 0.25


def draw(pipe: SuperResolutionPipeline, **options: Any) -> Tensor:
    """Samples of the photograph, of seed 0 unless `options` say else."""
    return pipe(photo(), **{"seed": 0, "output_type": "pt", **options}).images


@pytest.mark.parametrize(("temperature", "rows"), [(0.0, [1, 1, 1, 1]), ([0.0, 0.0, 1.0, 1.0], [1, 1, 1, 3])])
def test_samples_share_the_stream_until_the_first_noise(make_pipeline: Any, temperature: Any, rows: list[int]) -> None:
    pipe = make_pipeline()
    seen: list[int] = []
    for block in pipe.vdvae.blocks:
        block.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    with torch.no_grad():
        options = {"condition": pipe.lr_encoder.encode(photo()[None] * 2 - 1), "temperature": temperature}
        out = pipe.vdvae.sample(3, (32, 32), noise=CounterNoise([0, 1, 2]), **options)
        assert seen == rows
        assert len(out.sample) == 3 and all(len(z) == 3 for z in out.latents)
        one = pipe.vdvae.sample(1, (32, 32), noise=CounterNoise([2]), **options)
    torch.testing.assert_close(out.sample[2:], one.sample, rtol=0, atol=1e-5)


def test_a_pipeline_computes_as_its_configuration_says(make_pipeline: Any, tmp_path: Path) -> None:
    pipe = make_pipeline()
    expected = draw(pipe)
    pipe.save_pretrained(tmp_path / "exact")
    loaded = SuperResolutionPipeline.from_pretrained(tmp_path / "exact")
    assert torch.equal(draw(loaded), expected)
    loaded.register_to_config(fast_inference=True)
    loaded.save_pretrained(tmp_path / "fast")
    for loader in (SuperResolutionPipeline, DiffusionPipeline):
        fast = loader.from_pretrained(tmp_path / "fast")
        assert type(fast) is SuperResolutionPipeline
        assert torch.equal(draw(fast), expected) is not has_bf16, loader
        fast.disable_fast_inference()
        assert torch.equal(draw(fast), expected), loader


def test_fast_inference_is_close_to_float32(make_pipeline: Any, tmp_path: Path) -> None:
    make_pipeline().save_pretrained(tmp_path)
    fast = SuperResolutionPipeline.from_pretrained(tmp_path)
    fast.enable_fast_inference()
    exact = SuperResolutionPipeline.from_pretrained(tmp_path, dtype=torch.float32)
    assert {p.dtype for p in fast.vdvae.parameters()} == {torch.float32}
    for temperature in (0.0, 0.8, 1.5):
        out = fast(photo(), num_samples=2, temperature=temperature, seed=0, output_type="pt")
        expected = draw(exact, num_samples=2, temperature=temperature)
        assert (out.images - expected).square().mean() <= 10**-4.5  # a PSNR of 45 dB
        assert torch.equal(out.images, expected) is not has_bf16
        assert min(out.lr_psnr_float) >= 100 and out.images.dtype == torch.float32
    fast.disable_fast_inference()
    assert torch.equal(draw(fast), draw(exact))
    fast.enable_fast_inference()
    fast.to(torch.float32)
    assert torch.equal(draw(fast), draw(exact))


@over_kinds
@pytest.mark.parametrize("dtype", [torch.float32, "auto"], ids=str)
def test_a_sample_is_the_same_to_the_bit_in_any_batch(make_pipeline: Any, kind: str, dtype: Any) -> None:
    pipe = make_pipeline(kind)
    pipe.enable_fast_inference(dtype)
    together = draw(pipe, num_samples=3)
    assert all(torch.equal(draw(pipe, seed=seed)[0], together[seed]) for seed in range(3))


def test_a_condition_holds_nothing_of_the_weights_that_the_groups_use(make_pipeline: Any) -> None:
    pipe = make_pipeline("cvdvae")
    y = photo()[None] * 2 - 1

    def drawn(condition: Any) -> Tensor:
        return pipe.vdvae.sample(1, (32, 32), noise=CounterNoise([0]), condition=condition).sample

    with torch.no_grad():
        old = pipe.lr_encoder.encode(y)
        before = drawn(old)
        for parameter in pipe.lr_encoder.heads.parameters():
            parameter.mul_(1.3)
        after = drawn(old)
        assert torch.equal(after, drawn(pipe.lr_encoder.encode(y))) and not torch.equal(after, before)


def test_the_compute_dtype_is_put_back_after_each_evaluation(make_pipeline: Any) -> None:
    pipe = make_pipeline()
    pipe.enable_fast_inference(torch.bfloat16)
    seen = []
    pipe.vdvae.blocks[0].register_forward_pre_hook(lambda block, _: seen.append(block.resnet.c1.compute_dtype))
    samples = pipe.samples(photo(), [0, 1], batch_size=1)
    next(samples)
    assert pipe.vdvae.blocks[0].resnet.c1.compute_dtype is None is pipe.lr_encoder.compute_dtype
    next(samples)
    assert seen == [torch.bfloat16] * 2 and pipe.vdvae.blocks[0].prior_head.c1.compute_dtype is None


def test_an_evaluation_that_is_stopped_while_it_begins_holds_up_no_other(
    make_pipeline: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = make_pipeline()
    pipe.enable_fast_inference(torch.bfloat16)
    expected = draw(pipe)

    def stopped(*_: Any) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(type(pipe.vdvae), "set_compute_dtype", stopped)
    with pytest.raises(KeyboardInterrupt):
        pipe(photo(), seed=0)
    assert not computing._running
    pipe.disable_fast_inference()
    pipe(photo(), seed=0)
    pipe.enable_fast_inference(torch.bfloat16)
    assert torch.equal(draw(pipe), expected)


@pytest.mark.parametrize("dtype", ["float32", 7, torch.int8, torch.float64])
def test_a_dtype_that_is_none_is_refused(make_pipeline: Any, dtype: Any) -> None:
    with pytest.raises(ValueError, match="`dtype`"):
        make_pipeline().enable_fast_inference(dtype)


def test_a_pipeline_is_saved_as_it_was_loaded(make_pipeline: Any, tmp_path: Path) -> None:
    make_pipeline().save_pretrained(tmp_path / "first")
    pipe = SuperResolutionPipeline.from_pretrained(tmp_path / "first")
    pipe(photo(), num_samples=2, seed=0)
    pipe.save_pretrained(tmp_path / "second")
    names = sorted(path.relative_to(tmp_path / "first") for path in (tmp_path / "first").rglob("*") if path.is_file())
    assert len(names) == 5
    for name in names:
        first, second = ((tmp_path / folder / name).read_bytes() for folder in ("first", "second"))
        if name.suffix == ".json":  # diffusers adds where it loaded a model from
            first, second = ({**json.loads(text), "_name_or_path": None} for text in (first, second))
        assert first == second, name


def test_weights_that_change_between_calls_are_used(make_pipeline: Any) -> None:
    pipe = make_pipeline()
    before = draw(pipe)
    for parameter in pipe.vdvae.parameters():
        parameter.data.mul_(1.1)  # as moving averages do: no version counter tells of it
    after = draw(pipe)
    assert (before - after).abs().max() > 1e-3
    again = SuperResolutionPipeline(copy.deepcopy(pipe.vdvae), copy.deepcopy(pipe.lr_encoder))
    assert torch.equal(draw(again), after)


def test_hooks_of_users_are_called_on_the_fast_path(make_pipeline: Any) -> None:
    pipe = make_pipeline()
    expected = draw(pipe)
    called: set[str] = set()
    for name, module in pipe.vdvae.named_modules():
        if not list(module.children()) and "encoder" not in name and "posterior" not in name:
            module.register_forward_hook(lambda _, __, ___, name=name: called.add(name))
    torch.testing.assert_close(draw(pipe), expected, rtol=0, atol=1e-5)
    assert {"affine", "out_conv", "blocks.0.z_projection", "blocks.0.prior_head.c4"} <= called


class Doubled(torch.nn.Module):
    """What fine-tuning puts in the place of a convolution: the convolution, and more."""

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.base_layer = layer

    @property
    def weight(self) -> Tensor:
        return self.base_layer.weight

    def forward(self, x: Tensor) -> Tensor:
        return 1 + 2 * self.base_layer(x)


@over_kinds
@pytest.mark.parametrize("by_hook", [False, True], ids=["layers", "hooks"])
def test_layers_and_hooks_that_change_results_do_so_with_and_without_gradients(
    make_vdvae: Any, make_lr_network: Any, kind: str, by_hook: bool
) -> None:
    def drawn() -> Tensor:
        condition = network.encode(photo()[None] * 2 - 1)
        return vdvae.sample(2, (32, 32), noise=CounterNoise([0, 1]), condition=condition).sample

    vdvae, network = make_vdvae(encoder_blocks=None), make_lr_network(kind)
    plain = drawn().detach()
    names = [
        (model, name)
        for model in (vdvae, network)
        for name, module in model.named_modules()
        if isinstance(module, Convolution) and (".0." in name or ".1." in name or "." not in name)
    ]
    assert len(names) > 12
    for model, name in names:
        parent, _, last = name.rpartition(".")
        layer = model.get_submodule(name)
        if by_hook:
            handle = layer.register_forward_hook(lambda _, __, out: 1 + 2 * out)
        else:
            setattr(model.get_submodule(parent), last, Doubled(layer))
        with torch.no_grad():
            fast = drawn()
        torch.testing.assert_close(fast, drawn().detach(), rtol=1e-4, atol=1e-4)
        assert (fast - plain).abs().max() > 1e-5, name
        if by_hook:
            handle.remove()
        else:
            setattr(model.get_submodule(parent), last, layer)


@over_kinds
@pytest.mark.parametrize("compute", [torch.bfloat16, torch.float16])
def test_weights_of_a_byte_are_computed_with_in_half_precision(
    make_pipeline: Any, kind: str, compute: torch.dtype
) -> None:
    pipe = make_pipeline(kind)
    expected = draw(pipe, temperature=0.3)
    for network in (pipe.vdvae, pipe.lr_encoder):
        network.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=compute)
    found = draw(pipe, temperature=0.3)
    assert (found.float() - expected).abs().mean() < 0.05


# Without the encoder.


def test_without_its_encoder_a_model_of_the_hub_is_asked_for_as_a_whole(
    make_pipeline: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_pipeline().save_pretrained(tmp_path)
    monkeypatch.setattr(SuperResolutionPipeline, "download", lambda name, **_: str(tmp_path))
    assert SuperResolutionPipeline.from_pretrained("some/model", load_encoder=False).vdvae.encoder is None

    def fail(name: str, **_: Any) -> None:
        raise OSError(f"cannot reach the Hub for {name}")

    monkeypatch.setattr(SuperResolutionPipeline, "download", fail)
    with pytest.raises(OSError, match="cannot reach the Hub for some/model"):
        SuperResolutionPipeline.from_pretrained("some/model", load_encoder=False)


@over_kinds
def test_a_pipeline_loads_without_the_encoder_and_samples_the_same(
    make_pipeline: Any, kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_pipeline(kind).save_pretrained(tmp_path)
    whole = SuperResolutionPipeline.from_pretrained(tmp_path)
    part = SuperResolutionPipeline.from_pretrained(tmp_path, load_encoder=False)
    assert caplog.text == ""
    assert whole.vdvae.encoder is not None and part.vdvae.encoder is None
    assert torch.equal(draw(part), draw(whole))
    part.save_pretrained(tmp_path / "small")
    kept = load_file(tmp_path / "small/vdvae/diffusion_pytorch_model.safetensors")
    assert not [name for name in kept if name.startswith("encoder.") or ".posterior_head." in name]


def test_only_the_encoder_s_weights_may_be_left_out(make_vdvae: Any, tmp_path: Path) -> None:
    make_vdvae(encoder_blocks="16x3,16d2,8x1,8d2,4x1").save_pretrained(tmp_path)
    VDVAE.from_pretrained(tmp_path, encoder_blocks=None)
    with pytest.raises(ValueError, match="unknown keys.*encoder"):
        VDVAE.from_pretrained(tmp_path, encoder_blocks="16x1,16d2,8x1,8d2,4x1")


# With other tools.


def test_sampling_compiles_to_one_graph(make_vdvae: Any, make_lr_network: Callable[..., Any]) -> None:
    vdvae, network = make_vdvae(), make_lr_network("cvdvae")
    y = photo()[None] * 2 - 1
    source = CounterNoise([0, 1])
    noise = [
        source(group, vdvae.stride(group), vdvae.latent_shape(group, 2, (32, 32)), y.device)
        for group in range(vdvae.num_groups)
    ]

    def drawn(y: Tensor, noise: list[Tensor]) -> Tensor:
        return vdvae.sample(2, (32, 32), noise=noise, condition=network.encode(y), return_latents=False).sample

    torch.compiler.reset()
    with torch.no_grad():
        compiled = torch.compile(drawn, backend="aot_eager", fullgraph=True)(y, noise)
        torch.testing.assert_close(compiled, drawn(y, noise), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["cvdvae", pytest.param("vdvae-sr", marks=pytest.mark.slow)])
def test_a_compiled_pipeline_makes_one_graph_for_all_seeds_and_temperatures(make_pipeline: Any, kind: str) -> None:
    pipe = make_pipeline(kind=kind)
    calls: list[dict[str, Any]] = [
        {"seed": 0, "temperature": 0.8},
        {"seed": 7, "temperature": 0.3},
        {"seed": 7, "temperature": [0.5 + group / 10 for group in range(pipe.vdvae.num_groups)]},
    ]
    if kind == "cvdvae":
        calls.append({"seed": 1, "temperature": 0.8, "lr_posterior_temperature": 1.0})
    expected = [draw(pipe, num_samples=2, **call) for call in calls]
    torch.compiler.reset()
    counter = CompileCounterWithBackend("eager")
    pipe.enable_compilation(backend=counter, fullgraph=True)
    for call, images in zip(calls, expected, strict=True):
        torch.testing.assert_close(draw(pipe, num_samples=2, **call), images, rtol=0, atol=1e-4)
    assert counter.frame_count == 2  # encode, sample
    kept = pipe(photo(), num_samples=2, seed=0, output_type="pt", return_latents=True)
    redrawn = draw(pipe, num_samples=2, seed=9, latents=kept.latents)
    torch.testing.assert_close(redrawn, kept.images, rtol=0, atol=1e-4)
    pipe.disable_compilation()
    assert torch.equal(draw(pipe, num_samples=2, **calls[0]), expected[0])


def test_streams_of_a_compiled_model_of_any_size_stay_in_float32(make_pipeline: Any) -> None:
    pipe = make_pipeline(bias_type="channel")
    exact = draw(pipe)
    pipe.enable_fast_inference(torch.bfloat16)
    eager = draw(pipe)
    torch.compiler.reset()
    pipe.enable_compilation(backend="aot_eager")
    assert (draw(pipe) - exact).square().mean() <= 2 * (eager - exact).square().mean() + 1e-10


def with_other_networks(pipe: SuperResolutionPipeline) -> SuperResolutionPipeline:
    new = SuperResolutionPipeline.from_pipe(pipe)
    new.enable_compilation(backend="eager")
    draw(new)
    new.register_modules(**copy.deepcopy(pipe.components))
    return new


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pipe: pickle.loads(pickle.dumps(pipe)), with_other_networks])
def test_a_compiled_pipeline_samples_with_its_own_networks(make_pipeline: Any, copied: Any) -> None:
    torch.compiler.reset()
    pipe = make_pipeline()
    pipe.enable_compilation(backend="eager")
    before = draw(pipe)
    other = copied(pipe)
    with torch.no_grad():
        other.vdvae.out_conv.weight.mul_(-1)
    after = draw(other)
    other.disable_compilation()
    torch.testing.assert_close(after, draw(other), atol=1e-5, rtol=0)
    assert not torch.equal(after, before) and torch.equal(draw(pipe), before)


def test_a_compiled_method_serves_every_seed(make_pipeline: Any) -> None:
    torch.compiler.reset()
    pipe = make_pipeline()
    expected = draw(pipe, seed=2**63, num_samples=3)
    pipe.vdvae.sample = torch.compile(pipe.vdvae.sample, backend="eager")
    torch.testing.assert_close(draw(pipe, seed=2**63, num_samples=3), expected, atol=1e-5, rtol=0)


def test_the_defaults_of_the_process_change_neither_noise_nor_quantiles(make_pipeline: Any) -> None:
    pipe = make_pipeline("vdvae-sr")
    image = (np.random.default_rng(0).random((8, 8, 3)) * 255).astype(np.uint8)
    latents = pipe(image, seed=0, output_type="latent").latents

    def all_of_them() -> list[Tensor]:
        changed = pipe.redraw_region(image, np.eye(8, dtype=bool), 0, 1, output_type="pt").images
        return [pipe.quantiles(image, num_samples=2), pipe.log_density(image, latents), changed]

    expected = all_of_them()
    with torch.device("meta"):  # as `set_default_device`, which torch 2.6 does not undo
        found = all_of_them()
    try:
        torch.set_default_dtype(torch.float64)
        found += all_of_them()
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(found, expected * 2, strict=True))


def test_an_image_may_be_part_of_a_graph_and_is_read_as_it_is(make_pipeline: Any, recwarn: Any) -> None:
    pipe = make_pipeline()
    (expected,) = pipe.samples(photo(), [0])
    recwarn.clear()
    (found,) = pipe.samples(photo().requires_grad_(), [0])
    assert torch.equal(found.x, expected.x) and not found.x.requires_grad
    assert not [str(warning.message) for warning in recwarn if "requires_grad" in str(warning.message)]


def test_pixels_stay_on_the_processor_whatever_the_default_device() -> None:
    grey = Image.fromarray(np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16))
    drawn, noisy = torch.rand(3, 64, 64), torch.rand(3, 64, 64)
    expected = read_photo(grey).finish(drawn, keep_grey=True, bits=16).pixels, inspect(noisy)
    with torch.device("meta"):
        found = read_photo(grey).finish(drawn, keep_grey=True, bits=16).pixels, inspect(noisy)
    assert np.array_equal(found[0], expected[0]) and found[1] == expected[1] is not None


def test_a_graph_that_gives_no_finite_values_is_reported(make_pipeline: Any) -> None:
    def broken(graph: Any, inputs: Any) -> Callable[..., Any]:
        return lambda *args: tuple(value * torch.nan for value in graph(*args))

    torch.compiler.reset()
    pipe = make_pipeline()
    pipe.enable_compilation(backend=broken)
    with pytest.raises(RuntimeError, match="not finite.*disable_compilation"):
        pipe(photo(), seed=0)
    pipe.disable_compilation()
    pipe(photo(), seed=0)


@pytest.mark.parametrize(
    "options", [{"mode": "fastest"}, {"speed": 9}, {"backend": "cudagraphs"}, {"backend": "none"}], ids=str
)
def test_options_that_the_compiler_does_not_have_are_refused(make_pipeline: Any, options: dict[str, Any]) -> None:
    pipe = make_pipeline()
    with pytest.raises(ValueError, match=str(list(options.values())[0])):
        pipe.enable_compilation(**options)
    pipe(photo(), seed=0)


@pytest.mark.parametrize("kind", ["cvdvae", "vdvae-sr"])
@pytest.mark.parametrize("network", ["vdvae", "lr_encoder"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_networks_may_be_of_two_dtypes(make_pipeline, kind, network, dtype):
    pipe = make_pipeline(kind)
    expected = draw(pipe)
    getattr(pipe, network).to(dtype)
    assert (draw(pipe) - expected).abs().max() < (0.2 if dtype == torch.bfloat16 else 1e-4)
