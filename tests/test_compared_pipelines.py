"""The pipelines of the compared systems: called as ours, with its output, seeds, batches and projection."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate.utils import is_torch_version
from diffusers import DDPMScheduler, DiffusionPipeline
from PIL import Image
from stand_ins import photo_folder
from test_compared_conversion import CONFIGS, published_state, write
from test_compared_networks import make
from torch import Tensor
from transformers import Swin2SRConfig, Swin2SRForImageSuperResolution

from hvae_sr.baselines import EDSR, AncestralScheduler, GuidedDiffusionUNet, SR3UNet
from hvae_sr.baselines.dps import dps_chain, gradient_bytes
from hvae_sr.baselines.guided_diffusion import published_options
from hvae_sr.baselines.sr3 import activation_bytes, sr3_chain
from hvae_sr.checkpoints.compared import convert_baseline
from hvae_sr.cli import main
from hvae_sr.evaluation import analyses, evaluate
from hvae_sr.evaluation.tables import kept_rows
from hvae_sr.noise import CounterNoise
from hvae_sr.operators import Downsampling
from hvae_sr.pipelines import DPSPipeline, HCFlowPipeline, RegressionPipeline, SR3Pipeline
from hvae_sr.pipelines.baselines import enlarge, pipeline_class
from hvae_sr.sampling.sizes import pad_to

KINDS = ["EDSR", "RRDBNet", "SRVGGNetCompact", "SPAN", "Swin2SR", "HCFlow", "SR3", "DPS"]
STOCHASTIC = ["HCFlow", "SR3", "DPS"]


def chain(**changes: Any) -> AncestralScheduler:
    return AncestralScheduler(num_train_timesteps=3, beta_start=1e-2, beta_end=0.5, **changes)


def make_pipeline(kind: str, **changes: Any) -> Any:
    if kind == "HCFlow":
        pipe: Any = HCFlowPipeline(make("HCFlow"), **changes)
    elif kind == "SR3":
        pipe = SR3Pipeline(make("SR3UNet"), chain(), scale_factor=4, **changes)
    elif kind == "DPS":
        pipe = DPSPipeline(make("GuidedDiffusionUNet"), chain(variance_type="learned_range"), **changes)
    elif kind == "Swin2SR":
        torch.manual_seed(0)
        sizes = {"image_size": 8, "embed_dim": 8, "depths": [1], "num_heads": [2], "window_size": 4, "upscale": 2}
        config = Swin2SRConfig(**sizes, upsampler="pixelshuffledirect")
        pipe = RegressionPipeline(Swin2SRForImageSuperResolution(config).eval(), **changes)
    else:
        pipe = RegressionPipeline(make(kind), **changes)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def photographs() -> list[Tensor]:
    """Of sizes that no network takes without padding."""
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(3, 5, 7, generator=generator), torch.rand(3, 6, 5, generator=generator)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_call_returns_what_ours_does(kind: str) -> None:
    pipe, images = make_pipeline(kind), photographs()
    scale = pipe.config.scale_factor
    out = pipe(images, num_samples=2, seed=[3, 9], output_type="pt", enforce_consistency=True)
    assert [tuple(x.shape) for x in out.images] == [(3, 5 * scale, 7 * scale)] * 2 + [(3, 6 * scale, 5 * scale)] * 2
    assert out.seeds == [3, 4, 9, 10]
    assert min(out.lr_psnr_float) > 90 and max(out.lr_psnr_unprojected) < 60
    torch.testing.assert_close(out.mean[0], (out.images[0] + out.images[1]) / 2, rtol=0, atol=1e-5)
    torch.testing.assert_close(out.std[1], (out.images[2] - out.images[3]).abs() / 2, rtol=0, atol=1e-5)
    free = pipe(images, seed=[3, 9], output_type="pt", enforce_consistency=False)
    assert free.lr_psnr_float == free.lr_psnr_unprojected
    assert torch.equal(out.images[0], out.images[1]) == (kind not in STOCHASTIC)


@pytest.mark.parametrize("kind", KINDS)
def test_a_pipeline_from_another_casts_networks_to_a_dtype_that_is_given_alone(kind: str) -> None:
    pipe = make_pipeline(kind).to(torch.bfloat16)
    other = type(pipe).from_pipe(pipe)
    assert other.components == pipe.components and pipe.inference_dtype == torch.bfloat16
    assert type(pipe).from_pipe(pipe, dtype="float64").inference_dtype == torch.float64


@pytest.mark.parametrize("kind", STOCHASTIC)
def test_a_sample_depends_on_its_seed_and_on_nothing_else(kind: str) -> None:
    pipe, image = make_pipeline(kind), photographs()[0]
    state = torch.get_rng_state()
    together = pipe(image, num_samples=2, seed=5, batch_size=2, output_type="pt").images
    assert torch.equal(torch.get_rng_state(), state)
    singles = [next(pipe.samples(image, [seed], output_type="pt")).x for seed in (5, 6)]
    torch.testing.assert_close(together, torch.stack(singles), rtol=0, atol=2e-3)
    assert not torch.allclose(together[0], together[1], atol=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_pipeline_loads_by_its_folder(kind: str, tmp_path: Path) -> None:
    pipe, image = make_pipeline(kind, enforce_consistency=True), photographs()[0]
    pipe.save_pretrained(tmp_path)
    expected = pipe(image, seed=1, output_type="np").images
    for loader in (pipeline_class(tmp_path), DiffusionPipeline):
        loaded = loader.from_pretrained(tmp_path)
        assert type(loaded) is type(pipe)
        assert all(loaded.config[key] == value for key, value in pipe.config.items() if not key.startswith("_"))
        loaded.set_progress_bar_config(disable=True)
        # Not to the last bit: processors add up in another order where the weights lie at another place in memory.
        np.testing.assert_allclose(loaded(image, seed=1, output_type="np").images, expected, atol=1e-5, rtol=0)


def test_a_converted_file_is_a_pipeline(tmp_path: Path) -> None:
    config = {"architecture": "EDSR", **CONFIGS["EDSR"], "pipeline": {"downsampling_kernel": "matlab-bicubic"}}
    folder = convert_baseline(write(published_state("EDSR"), tmp_path), tmp_path / "out", config=config)
    pipe = pipeline_class(folder).from_pretrained(folder)
    assert isinstance(pipe, RegressionPipeline) and isinstance(pipe.network, EDSR)
    assert pipe.operator == Downsampling(2, "matlab-bicubic")
    assert pipe(Image.new("RGB", (5, 4))).images[0].size == (10, 8)


def test_the_commands_evaluate_and_upscale_by_a_compared_system(tmp_path: Path) -> None:
    make_pipeline("HCFlow").save_pretrained(tmp_path / "model")
    photo_folder(tmp_path / "data", dict.fromkeys("ab", (32, 32)))
    report = tmp_path / "report.json"
    arguments = ["--data", str(tmp_path / "data"), "--protocol", "standard", "--temperatures", "0.9"]
    arguments += ["--num_samples", "2", "-o", str(report)]
    assert main(["evaluate", "--model", str(tmp_path / "model"), *arguments]) == 0
    found = json.loads(report.read_text())
    assert found["pipeline"]["class"] == "HCFlowPipeline" and found["num_images"] == 2
    methods = [row["name"] for row in found["rows"]]
    assert any("t=0.9" in method and "projected" in method for method in methods)
    image, folder = str(tmp_path / "data" / "a.png"), tmp_path / "out"
    assert main(["upscale", image, "--model", str(tmp_path / "model"), "-o", str(folder), "--num_samples", "2"]) == 0
    pipe = HCFlowPipeline.from_pretrained(tmp_path / "model")
    with Image.open(folder / "a_x4_seed1.png") as result:  # not projected, as its configuration says
        difference = np.asarray(result).astype(float) - np.asarray(pipe(image, seed=1).images[0])
    assert np.abs(difference).mean() < 0.1  # processors add up in another order at another place in memory
    table = {row["name"]: row for row in kept_rows(found)}
    assert table["sample t=0.9"]["lr_psnr"] < table["sample t=0.9 projected"]["lr_psnr"]
    degraded = evaluate(pipe, tmp_path / "data", "standard", temperatures=[0.9], num_samples=1, degradation="noise")
    assert not [row["name"] for row in degraded["rows"] if "projected" in row["name"]]


def test_commands_know_that_a_regression_has_no_temperature_and_no_vdvae(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_pipeline("EDSR").save_pretrained(tmp_path / "model")
    photo_folder(tmp_path / "data", {"a": (32, 32)})
    model, made = ["--model", str(tmp_path / "model")], ["-o", str(tmp_path / "made")]
    data, report = ["--data", str(tmp_path / "data"), "--size", "32"], tmp_path / "report.json"
    assert main(["evaluate", *model, *data, "--num_samples", "1", "-o", str(report)]) == 0
    assert json.loads(report.read_text())["temperatures"] == [1]
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra `figures`)")
    for command in (
        ["evaluate", *model, *data, *made, "--levels"],
        *(["analyse", name, *model, *made] for name in ("distance", "information", "levels", "reconstruction")),
        ["benchmark", *model],
    ):
        assert main(command) == 2
        assert "RegressionPipeline has no VD-VAE" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "a.onnx"), *model]) == 2
    assert "RegressionPipeline, which has no VD-VAE" in capsys.readouterr().err
    for analysis in (analyses.expected_consistency, analyses.group_information, analyses.level_spread):
        with pytest.raises(ValueError, match="`pipeline`: RegressionPipeline has no VD-VAE"):
            analysis(make_pipeline("EDSR"), [Image.new("RGB", (32, 32))])
    assert main(["analyse", "samples", *model, *made]) == 2
    assert "`--size` must be given" in capsys.readouterr().err
    assert main(["analyse", "samples", *model, *made, *data]) == 0


def test_an_index_that_names_other_classes_is_refused(tmp_path: Path) -> None:
    make_pipeline("EDSR").save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    for changes, message in (
        ({"network": ["os", "system"]}, "'network' must be hvae_sr.EDSR or .* is \\['os', 'system'\\]"),
        ({"another": ["os", "system"]}, "'another' must be left out"),
        ({"network": None}, "'network' must be hvae_sr.EDSR"),
    ):
        (tmp_path / "model_index.json").write_text(json.dumps(index | changes))
        with pytest.raises(ValueError, match=message):
            RegressionPipeline.from_pretrained(tmp_path)
    (tmp_path / "model_index.json").write_text(json.dumps(index | {"_class_name": "StableDiffusionPipeline"}))
    with pytest.raises(ValueError, match="must name one of SuperResolutionPipeline, RegressionPipeline"):
        pipeline_class(tmp_path)


@pytest.mark.parametrize(
    ("kind", "size", "temperature", "margin", "side", "tolerance"),
    [
        ("RRDBNet", (40, 46), None, 8, 24, 0.01),
        ("RRDBNet", (40, 46), None, 36, 2, 1e-5),
        ("HCFlow", (24, 30), 0.0, 12, 4, 1e-4),
        ("HCFlow", (24, 30), 0.8, 12, 4, 1e-4),
    ],
)
def test_windows_are_parts_of_the_whole_with_its_noise(
    kind: str, size: tuple[int, int], temperature: float | None, margin: int, side: int, tolerance: float
) -> None:
    pipe, image = make_pipeline(kind, window_margin=margin), torch.rand(3, *size)
    given: dict[str, Any] = {"num_samples": 2, "seed": 3, "temperature": temperature, "output_type": "pt"}
    windows, whole = pipe(image, **given, window_size=side).images, pipe(image, **given).images
    torch.testing.assert_close(windows, whole, rtol=0, atol=tolerance)


def test_memory_of_activations_and_gradients_is_told_before_it_is_needed() -> None:
    y = torch.rand(3, 8, 8)
    pipe = make_pipeline("SR3")
    assert activation_bytes(pipe.unet, (32, 32)) == 4 * activation_bytes(pipe.unet, (16, 16))
    with pytest.raises(ValueError, match=r"2 sample\(s\) take about .* not cut into windows: take a smaller one"):
        pipe(y, num_samples=2, batch_size=2, max_memory=1)
    pipe = make_pipeline("DPS")
    plain = gradient_bytes(pipe.unet, (16, 16))
    assert gradient_bytes(pipe.unet, (32, 32)) > 3 * plain
    with pytest.raises(ValueError, match=r"2 sample\(s\) take about .*gradient of 32x32 .*enable_gradient_checkp"):
        pipe(y, num_samples=2, batch_size=2, max_memory=1)
    pipe.unet.enable_gradient_checkpointing()
    assert gradient_bytes(pipe.unet, (16, 16)) < plain


@torch.no_grad()
def test_attention_of_sr3_holds_no_scores_of_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    attention = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, k, v: seen.append(q) or attention(q, k, v))
    sizes = {"image_size": 16, "width": 8, "width_multiples": [1], "num_res_blocks": 1, "norm_groups": 4}
    unet = SR3UNet(**sizes, attention_resolutions=[16])
    unet(torch.rand(1, 3, 16, 16), torch.rand(1, 3, 16, 16), torch.rand(1))
    assert seen and all(q.shape == (1, 1, 256, 8) for q in seen)  # torch's fused kernels take four axes alone


def test_a_temperature_of_zero_makes_samples_of_the_flow_equal() -> None:
    pipe, image = make_pipeline("HCFlow"), photographs()[0]
    out = pipe(image, num_samples=2, temperature=0, output_type="pt").images
    assert torch.equal(out[0], out[1])
    spread = [pipe(image, num_samples=2, seed=0, temperature=t, output_type="pt").std.mean() for t in (0.2, 0.8)]
    assert spread[0] < spread[1]


@pytest.mark.parametrize("kind", ["SR3", "DPS"])
def test_a_pipeline_of_a_chain_is_the_chain(kind: str) -> None:
    """On an image that needs no padding, with a shortened chain."""
    pipe = make_pipeline(kind, enforce_consistency=False)
    y = (torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(0)) * 255).round() / 255
    out = pipe(y, num_samples=2, seed=5, output_type="pt", num_inference_steps=2).images
    scheduler = AncestralScheduler.from_config(pipe.scheduler.config)
    scheduler.set_timesteps(2)
    noise = CounterNoise([5, 6])
    if kind == "SR3":
        condition = enlarge(y, 4).expand(2, -1, -1, -1)
        with torch.no_grad():
            steps: Any = list(sr3_chain(pipe.unet, scheduler, condition, noise))
    else:
        given = (y * 2 - 1).expand(2, -1, -1, -1)
        steps = list(dps_chain(pipe.unet, scheduler, given, pipe.operator, (16, 16), noise, 0.3))
    assert len(steps) == 2
    expected = (steps[-1].previous.clamp(-1, 1) + 1) / 2
    torch.testing.assert_close(out, expected, rtol=0, atol=2e-3)
    assert pipe.scheduler.num_steps == 3


def test_scores_of_attention_are_not_counted_where_none_are_kept() -> None:
    wide = {"image_size": 64, "num_channels": 32, "num_res_blocks": 1, "channel_mult": "1"}
    unet = GuidedDiffusionUNet(**published_options(**wide, attention_resolutions="64", num_head_channels=32))
    scores = 64**4 * 4  # bytes, of one attention
    assert gradient_bytes(unet, (64, 64)) < scores


@pytest.mark.parametrize("store", ["disk", "float8"])
def test_guidance_has_the_weights_that_a_hook_takes_away(store: str, tmp_path: Path) -> None:
    y, cpu = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(0)), torch.device("cpu")
    expected = make_pipeline("DPS")(y, seed=1, output_type="pt").images
    pipe = make_pipeline("DPS")
    if store == "disk":
        if not is_torch_version(">=", "2.7") and not torch.accelerator.is_available():
            pytest.skip("diffusers' offloading to disk needs torch 2.7 or an accelerator")
        pipe.unet.enable_group_offload(
            cpu, cpu, offload_type="leaf_level", offload_to_disk_path=str(tmp_path / "weights")
        )
    else:
        pipe.unet.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    found = pipe(y, seed=1, output_type="pt").images
    assert (found - expected).abs().max() <= (0 if store == "disk" else 0.2)


@pytest.mark.parametrize(
    ("kind", "call", "message"),
    [
        ("EDSR", {"temperature": 0.5}, "`temperature` must be None or 1 for RegressionPipeline.* got 0.5"),
        ("HCFlow", {"temperature": -1}, "`temperature` must be a finite number >= 0, got -1"),
        ("HCFlow", {"num_inference_steps": 5}, "`num_inference_steps` is no argument"),
        ("SR3", {"num_inference_steps": 99}, "^`num_inference_steps`: 99 steps cannot be kept of 3"),
        ("DPS", {"guidance_scale": "x"}, "`guidance_scale` must be a finite number >= 0, got 'x'"),
        ("DPS", {"guidance_scale": 10**400}, "`guidance_scale` must be a finite number >= 0, got 1000"),
        ("SR3", {"self_ensemble": True}, "`self_ensemble` has no effect on SR3Pipeline, got True"),
        ("SR3", {"window_size": 8}, "`window_size` has no effect on SR3Pipeline"),
        ("SR3", {"num_inference_steps": 2.0}, "^`num_inference_steps` must be whole numbers.* got 2.0"),
        ("HCFlow", {"max_memory": 2**30}, "`max_memory` has no effect on HCFlowPipeline"),
        ("HCFlow", {"latents": []}, "`latents` has no effect on HCFlowPipeline"),
        ("EDSR", {"output_type": "latent"}, "`output_type` must be one of pil, np, pt; got 'latent'"),
        ("EDSR", {"enforce_consistency": 1}, "`enforce_consistency` must be True or False, got 1"),
        ("EDSR", {"num_samples": 0}, "`num_samples` must be a whole number >= 1, got 0"),
        ("EDSR", {"seed": 1.5}, "`seed` must be a whole number"),
        ("EDSR", {"temprature": 1}, "did you mean `temperature`"),
    ],
)
def test_arguments_that_do_not_fit_are_named(kind: str, call: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_pipeline(kind)(photographs()[0], **call)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "Swin2SR"])
def test_networks_of_the_compiler_and_inference_mode_change_nothing(kind: str) -> None:
    pipe = make_pipeline(kind)
    expected = pipe(photographs()[0], seed=1, output_type="pt").images[0]
    (part,) = {"network", "flow", "unet"} & set(pipe.components)
    setattr(pipe, part, torch.compile(getattr(pipe, part), backend="eager"))
    with torch.inference_mode():
        assert torch.equal(pipe(photographs()[0], seed=1, output_type="pt").images[0], expected)


@pytest.mark.parametrize("kind", ["SR3", "DPS"])
def test_a_chain_leaves_a_network_in_training_and_warns_of_nothing(
    kind: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger("diffusers"), "propagate", True)
    pipe = make_pipeline(kind)
    for layer in pipe.unet.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.5
    given: dict[str, Any] = {"seed": 1, "num_inference_steps": np.int64(2), "output_type": "pt"}
    expected = pipe(photographs()[0], **given).images[0]
    pipe.unet.train()
    assert torch.equal(pipe(photographs()[0], **given).images[0], expected)
    assert pipe.unet.training and not caplog.records
    assert all(p.requires_grad and p.grad is None for p in pipe.unet.parameters())


def test_windows_of_a_large_factor_are_no_smaller_than_their_margin() -> None:
    pipe = make_pipeline("SRVGGNetCompact")
    pipe.register_to_config(scale_factor=16)  # a chunk of a million pixels has no more than two margins of y
    seen = []
    call = pipe.check_inputs()

    def evaluate(y: Tensor, window: Any) -> Tensor:
        seen.append(y.shape[-2:])
        return torch.zeros(1, 3, 16 * y.shape[-2], 16 * y.shape[-1])

    pipe._in_windows(torch.rand(3, 130, 130), call, 1, evaluate)
    assert 1 < len(seen) <= 25 and min(min(size) for size in seen) >= 64


def test_a_regression_mirrors_what_it_pads() -> None:
    pipe = make_pipeline("RRDBNet")  # of factor 2, which unshuffles y by 2
    y = photographs()[0]
    given = torch.nn.functional.pad(y[None], (0, 1, 0, 1), mode="reflect")
    own = pipe.network(given).sample[0, :, :10, :14].clamp(0, 1)
    torch.testing.assert_close(pipe(y, output_type="pt").images[0], own)
    small = y[None, :, :2, :2]
    assert torch.equal(pad_to(small, (4, 4), reflect=True), pad_to(small, (4, 4)))  # there is not so much to mirror


def test_colours_of_a_grey_photograph_are_the_networks_own() -> None:
    """Three equal channels say nothing; a file of one channel does, and so does the projection."""
    pipe = make_pipeline("EDSR")
    low = torch.rand(1, 6, 6, generator=torch.Generator().manual_seed(0))
    own = (pipe.network(low.expand(1, 3, -1, -1) * 255).sample[0] / 255).clamp(0, 1)
    torch.testing.assert_close(pipe(low.expand(3, -1, -1), output_type="pt").images[0], own)
    file = Image.fromarray((low[0] * 255).round().byte().numpy())
    for given, projected in ((file, None), (low.expand(3, -1, -1), True)):
        image = pipe(given, output_type="pt", enforce_consistency=projected).images[0]
        assert (image.amax(0) - image.amin(0)).max() < 1e-5


@pytest.mark.parametrize(
    ("make_it", "message"),
    [
        (lambda: make_pipeline("EDSR", enforce_consistency="yes"), "`enforce_consistency` must be True or False"),
        (lambda: make_pipeline("HCFlow", downsampling_kernel="lanczos"), "`kernel`"),
        (lambda: make_pipeline("HCFlow", default_temperature=-1), "`default_temperature` must be .* >= 0, got -1"),
        (lambda: make_pipeline("EDSR", default_temperature=0.9), "`default_temperature` must be None or 1 .* got 0.9"),
        (lambda: make_pipeline("DPS", guidance_scale=-1), "`guidance_scale` must be a finite number >= 0, got -1"),
        (lambda: make_pipeline("SR3", num_inference_steps=99), "`num_inference_steps`: 99 steps cannot be kept of 3"),
        (lambda: make_pipeline("EDSR", scale_factor=3), "`scale_factor` must be the network's 2, got 3"),
        (lambda: make_pipeline("EDSR", window_margin=-1), "`window_margin` must be a whole number >= 0, got -1"),
        (lambda: make_pipeline("HCFlow", window_margin=0.5), "`window_margin` must be a whole number >= 0, got 0.5"),
        (lambda: list(make_pipeline("SR3").samples(photographs()[0], [])), "`seeds` must be a list that is not empty"),
        (lambda: list(make_pipeline("SR3").samples(photographs(), [1])), "`image` must be one image, got 2"),
    ],
)
def test_wrong_settings_are_named(make_it: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_it()


@pytest.mark.parametrize("scheduler", [DDPMScheduler(), chain()])
def test_a_scheduler_that_does_not_fit_is_named(scheduler: Any) -> None:
    with pytest.raises(ValueError, match="`scheduler` must"):
        DPSPipeline(make("GuidedDiffusionUNet"), scheduler)
    wrong = scheduler if isinstance(scheduler, DDPMScheduler) else chain(variance_type="learned_range")
    with pytest.raises(ValueError, match="`scheduler` must"):
        SR3Pipeline(make("SR3UNet"), wrong, scale_factor=4)
