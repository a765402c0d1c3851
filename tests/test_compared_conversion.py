"""Conversion of the compared systems' published files: key by key, and refusals that say what a file holds."""

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from compared_cases import needs_compared, published
from safetensors.torch import save_file
from stand_ins import write_ncnn
from torch import Tensor

from hvae_sr.baselines import AncestralScheduler, GuidedDiffusionUNet, HCFlow, SRVGGNetCompact
from hvae_sr.baselines.guided_diffusion import published_options
from hvae_sr.checkpoints.compared import (
    ARCHITECTURES,
    PRESETS,
    Recipe,
    convert_baseline,
    convert_state_dict,
    published_keys,
    published_shapes,
)
from hvae_sr.checkpoints.convert import ConversionError, convert
from hvae_sr.checkpoints.detect import identify
from hvae_sr.checkpoints.ncnn import load_ncnn
from hvae_sr.cli import main

GUIDED = dict(image_size=16, num_channels=16, num_res_blocks=1, channel_mult="2,4", attention_resolutions=8)
CONFIGS: dict[str, dict[str, Any]] = {
    "EDSR": {"scale_factor": 2, "num_blocks": 2, "width": 8, "residual_scale": 0.1},
    "RRDBNet": {"scale_factor": 2, "num_blocks": 2, "width": 8, "growth": 4},
    "SRVGGNetCompact": {"scale_factor": 3, "num_layers": 2, "width": 8},
    "SPAN": {"scale_factor": 3, "width": 4},
    "HCFlow": {
        "num_levels": 2, "num_steps": 3, "num_conditional_steps": 1, "hidden_width": 4,
        "feature_blocks": [1, 2], "feature_width": 4, "feature_growth": 2,
    },
    "SR3UNet": {"image_size": 16, "width": 8, "width_multiples": [1, 2], "num_res_blocks": 1, "norm_groups": 4},
    "GuidedDiffusionUNet": published_options(**GUIDED, num_head_channels=16),
}  # fmt: skip
SCHEDULER = {"num_train_timesteps": 10, "beta_start": 1e-3, "beta_end": 0.1}


def recipe(architecture: str) -> Recipe:
    return Recipe(architecture, CONFIGS[architecture], SCHEDULER)


def published_state(architecture: str, variant: str = "", **changes: Any) -> dict[str, Tensor]:
    """Random weights under the published names."""
    torch.manual_seed(0)
    model = Recipe(architecture, CONFIGS[architecture] | changes).build()
    names = published_keys(model, variant)
    state = {key: torch.randn(shape) for key, shape in published_shapes(model, names).items()}
    if architecture == "EDSR":
        state |= {key: value for key, value in model.state_dict().items() if "_mean" in key}
    return state


def write(state: dict[str, Any], folder: Path, wrapper: str | None = None) -> Path:
    path = folder / "weights.pth"
    torch.save({wrapper: state} if wrapper else state, path)
    return path


def converted(content: dict[str, Any], folder: Path, architecture: str, **options: Any) -> Path:
    """The folder of a file with this content."""
    config = {"architecture": architecture, **CONFIGS[architecture], **options}
    return convert_baseline(write(content, folder), folder / "out", config=config)


CASES = {
    "edsr_x2": {"EDSR_x2": "edsr-x2", "EDSR_baseline_x2": "edsr-baseline-x2"},
    "edsr_x4": {"EDSR_x4": "edsr-x4", "EDSR_baseline_x4": "edsr-baseline-x4"},
    "esrgan_rrdb_x4": {"RRDB_ESRGAN_x4": "esrgan-x4"},
    "realesrgan_rrdb_x2": {
        "RealESRGAN_x4plus": "realesrgan-x4plus",
        "RealESRGAN_x2plus": "realesrgan-x2plus",
        "RealESRGAN_x4plus_anime_6B": "realesrgan-x4plus-anime-6b",
    },
    "realesrgan_srvgg_x4": {name: name for name in ("realesr-animevideov3", "realesr-general-x4v3")},
    "hcflow_x4": {"SR_DF2K_X4_HCFlow": "hcflow-x4"},
    "hcflow_x8_face": {"SR_CelebA_X8_HCFlow": "hcflow-face-x8"},
    "sr3_x4": {"sr_sr3_16_128": "sr3-16-128", "sr_sr3_64_512": "sr3-64-512"},
    "dps_x4": {"ffhq_10m": "dps-ffhq256", "imagenet256": "dps-imagenet256"},
}
"""Recorded cases -> the published networks whose keys they have -> the presets of these."""


@needs_compared
@pytest.mark.parametrize("case", CASES)
def test_a_preset_has_every_key_of_the_published_network(case: str) -> None:
    networks = {name: recorded for name, recorded in published(case).items() if name != "small_case"}
    assert networks.keys() == CASES[case].keys()
    for network, recorded in networks.items():
        model = Recipe.of_preset(CASES[case][network]).build("meta")
        shapes = {key: tuple(shape) for key, shape in recorded["state_dict"].items()}
        names = published_keys(
            model, identify({key: torch.empty(shapes[key], device="meta") for key in shapes}).variant
        )
        assert published_shapes(model, names) == shapes
        assert sum(torch.Size(shape).numel() for shape in shapes.values()) == recorded["n_parameters"]
        for other, map_name in (("old ESRGAN", "old_arch_name_of"), ("BasicSR", "basicsr_name_of")):
            if map_name in recorded:
                assert {names[key]: theirs for key, theirs in published_keys(model, other).items()} == recorded[
                    map_name
                ]


def test_every_preset_builds() -> None:
    assert {type(Recipe.of_preset(name).build("meta")) for name in PRESETS} == set(ARCHITECTURES.values())


@pytest.mark.parametrize(
    ("architecture", "variant"),
    [(name, "") for name in ARCHITECTURES if name != "RRDBNet"]
    + [("EDSR", "BasicSR"), ("RRDBNet", "BasicSR"), ("RRDBNet", "ESRGAN"), ("RRDBNet", "old ESRGAN")],
)
def test_a_published_file_is_recognised_and_loads(architecture: str, variant: str, tmp_path: Path) -> None:
    state = published_state(architecture, variant)
    finding = identify(state)
    assert (finding.architecture, finding.variant) == (architecture, variant)
    assert all(CONFIGS[architecture][name] == value for name, value in finding.options.items())
    if variant == "BasicSR" and architecture == "EDSR":
        state = {key: value for key, value in state.items() if "_mean." not in key}
    content = {"params_ema": state} if variant == "BasicSR" else state
    folder = converted(content, tmp_path, architecture, scheduler=SCHEDULER)
    (subfolder,) = {"network", "flow", "unet"} & {path.name for path in folder.iterdir()}
    model = ARCHITECTURES[architecture].from_pretrained(folder, subfolder=subfolder)
    names = published_keys(model, variant)
    exact = {key for key, name in names.items() if name in state and model.state_dict()[key].shape == state[name].shape}
    assert all(torch.equal(model.state_dict()[key], state[names[key]]) for key in exact)
    has_scheduler = architecture in ("SR3UNet", "GuidedDiffusionUNet")
    assert (folder / "scheduler").is_dir() == has_scheduler
    if has_scheduler:
        assert AncestralScheduler.from_pretrained(folder / "scheduler").num_steps == 10


def eight_times() -> dict[str, Tensor]:
    state = published_state("EDSR", width=64, num_blocks=16, scale_factor=4)
    return state | {"tail.0.4.weight": state["tail.0.2.weight"], "tail.0.4.bias": state["tail.0.2.bias"]}


def enlarging(variant: str, kept: str, *layers: int) -> dict[str, Tensor]:
    """An RRDBNet that reads y itself, with the keys that begin so and layers `model.N` more: not one of four times."""
    state = published_state("RRDBNet", variant, scale_factor=4)
    more = {f"model.{number}.weight": torch.ones(1) for number in layers}
    return {key: value for key, value in state.items() if re.match(kept, key)} | more


def ones(*keys: str) -> Callable[[], dict[str, Tensor]]:
    return lambda: dict.fromkeys(keys, torch.ones(1))


HAT = [f"layers.0.residual_group.{part}.qkv.weight" for part in ("blocks.0.attn", "overlap_attn")]


@pytest.mark.parametrize(
    ("preset", "state", "message"),
    [
        ("edsr-x4", partial(published_state, "RRDBNet"), "for a network EDSR; .* holds an RRDBNet .scale_factor=2"),
        ("esrgan-x4", partial(published_state, "EDSR"), "is for a network RRDBNet; the file holds an EDSR"),
        ("hcflow-x4", ones("flowUpsamplerNet.layers.1.weight"), "the file holds an SRFlow"),
        ("edsr-x4", ones("conv_first.weight"), "no known architecture, such as conv_first.weight"),
        ("edsr-x4", ones("body.0.weight", "body.2.weight"), "'relu' or 'leakyrelu'"),
        ("edsr-x4", ones(*HAT), "the file holds an HAT"),
        ("dps-ffhq256", ones("model.diffusion_model.a"), "the file holds a latent diffusion model"),
        ("span-x4", lambda: published_state("SPAN") | {"no_norm": torch.ones(1)}, "a SPAN that reads y as it is"),
        ("edsr-baseline-x4", eight_times, r"scale_factor=8 \(not 4\)"),
        ("realesrgan-x2plus", partial(enlarging, "BasicSR", "(?!conv_up2)"), r"=2 or 3, without unshuffling \(not 2\)"),
        ("esrgan-x4", partial(enlarging, "ESRGAN", "(?!upconv2)"), r"=2 or 3, without unshuffling \(not 4\)"),
        ("esrgan-x4", partial(enlarging, "old ESRGAN", "(?!model.6)"), r"=2 or 3, without unshuffling \(not 4\)"),
        ("esrgan-x4", partial(enlarging, "old ESRGAN", "model.[01][.]", 3, 6, 9, 11, 13), r"_factor=8 \(not 4\)"),
        ("esrgan-x4", partial(enlarging, "old ESRGAN", "model.[01][.]", 2, 4), r"=1, without unshuffling \(not 4\)"),
        ("edsr-x4", partial(published_state, "EDSR", width=256, num_blocks=32), r"EDSR with scale_factor=2 \(not 4\)"),
        ("edsr-x2", partial(published_state, "EDSR"), r"num_blocks=2 \(not 32\), width=8 \(not 256\)"),
        ("realesrgan-x4plus", partial(published_state, "RRDBNet"), r"scale_factor=2 \(not 4\)"),
        ("hcflow-face-x8", partial(published_state, "HCFlow"), r"num_levels=2 \(not 3\)"),
    ],
)
def test_a_file_of_another_network_is_named_as_what_it_is(
    preset: str, state: Callable[[], dict[str, Tensor]], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConversionError, match=message):
        convert_baseline(write(state(), tmp_path), tmp_path / "out", preset=preset)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_missing_unexpected_and_misshapen_keys_are_named_as_published(architecture: str) -> None:
    state = published_state(architecture)
    keys = [key for key in state if key.endswith(".weight")]
    key = keys[len(keys) // 2]  # none that tells the network's size
    for changed, message in (
        ({name: value for name, value in state.items() if name != key}, f"1 missing: {key}"),
        (state | {"another.weight": torch.ones(1)}, "1 unexpected: another.weight"),
        (state | {key: torch.ones(2, 2, 2)}, rf"1 misshapen: {key} \[2, 2, 2\]"),
    ):
        with pytest.raises(ConversionError, match=message.replace(".", r"\.")):
            convert_state_dict(changed, recipe(architecture))


def test_the_mean_colour_of_an_edsr_is_that_of_its_range_and_stays_fixed() -> None:
    state = published_state("EDSR")
    model, _ = convert_state_dict(state, recipe("EDSR"))
    fixed = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert fixed == {"sub_mean.weight", "sub_mean.bias", "add_mean.weight", "add_mean.bias"}
    scaled = {key: value / 255 if key.endswith("_mean.bias") else value for key, value in state.items()}
    with pytest.raises(ConversionError, match=r"mean colour is \[0\.4488, .*another range than .* 0\.\.255"):
        convert_state_dict(scaled, recipe("EDSR"))
    black = {key: torch.zeros_like(value) if key.endswith("_mean.bias") else value for key, value in state.items()}
    made = Recipe("EDSR", {**CONFIGS["EDSR"], "mean": [0.0, 0.0, 0.0]})
    assert convert_state_dict(black, made)[0].config.mean == [0.0, 0.0, 0.0]


def schedule_of(betas: Tensor, made: Recipe | None = None, prefix: str = "") -> Any:
    """The scheduler of an SR3 file with these betas."""
    state = {f"{prefix}denoise_fn.{key}": value for key, value in published_state("SR3UNet").items()}
    return convert_state_dict(state | {f"{prefix}betas": betas}, made or recipe("SR3UNet"))[1]


@pytest.mark.parametrize("prefix", ["", "netG."])
def test_the_schedule_in_an_sr3_file_wins_and_must_be_linear(prefix: str) -> None:
    scheduler = schedule_of(torch.linspace(1e-4, 0.5, 8), prefix=prefix)
    assert scheduler.num_steps == 8 and scheduler.config.beta_end == pytest.approx(0.5)
    scheduler = schedule_of(torch.linspace(1e-3, 0.1, 10), prefix=prefix)
    assert scheduler.config.beta_end == 0.1  # the configuration's own digits
    with pytest.raises(ConversionError, match="not linear"):
        schedule_of(torch.linspace(0.01, 0.7, 8) ** 2, prefix=prefix)
    for none in (torch.arange(1, 9), torch.empty(0)):
        with pytest.raises(ConversionError, match="its schedule of noise is"):
            schedule_of(none, prefix=prefix)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_schedule_in_another_precision_is_that_of_the_configuration(dtype: torch.dtype) -> None:
    published = PRESETS["sr3-16-128"]["scheduler"]
    betas = torch.linspace(1e-6, 1e-2, 2000, dtype=torch.float64)
    for given in (published, {}):  # the published one is what a configuration without a schedule means
        scheduler = schedule_of(betas.to(dtype), Recipe("SR3UNet", CONFIGS["SR3UNet"], given))
        assert {key: scheduler.config[key] for key in published} == published


@pytest.mark.parametrize(("out_channels", "variance"), [(6, "learned_range"), (3, "fixed_large")])
def test_guided_diffusion_without_a_schedule_has_the_published_one(out_channels: int, variance: str) -> None:
    config = CONFIGS["GuidedDiffusionUNet"] | {"out_channels": out_channels}
    state = published_state("GuidedDiffusionUNet", out_channels=out_channels)
    _, scheduler = convert_state_dict(state, Recipe("GuidedDiffusionUNet", config))
    assert scheduler is not None and scheduler.num_steps == 1000 and scheduler.config.variance_type == variance
    stored = {f"denoise_fn.{key}": value for key, value in state.items()} | {"betas": torch.linspace(1e-4, 0.5, 8)}
    _, scheduler = convert_state_dict(stored, Recipe("GuidedDiffusionUNet", config))
    assert scheduler is not None and scheduler.num_steps == 8 and scheduler.config.variance_type == variance


@pytest.mark.parametrize("wrapper", ["model", "netG", "ema"])
@pytest.mark.parametrize("prefix", ["", "model.", "netG.", "model.net."])
def test_other_wrappers_and_prefixes_are_taken_off(wrapper: str, prefix: str, tmp_path: Path) -> None:
    state = {f"{prefix}{key}": value for key, value in published_state("HCFlow").items()}
    state |= {f"{prefix}flow.layers.1.actnorm.inited": torch.tensor(True)}
    content = {wrapper: state, "optimizer": {"state": {}, "param_groups": []}, "epoch": 3}
    assert HCFlow.from_pretrained(converted(content, tmp_path, "HCFlow") / "flow").config.num_steps == 3


@pytest.mark.parametrize("kind", ["a scalar beside", "twice", "averaged", "averages beside", "a program"])
def test_wrappers_in_wrappers_and_beside_loose_values_are_taken_off(kind: str, tmp_path: Path) -> None:
    state = published_state("SRVGGNetCompact")
    last = {key: value + 1 for key, value in state.items()}
    content: dict[str, Any] = {
        "a scalar beside": {"model": state, "best_loss": torch.tensor(1.0), "epoch": 3},
        "twice": {"net": {"state_dict": state}, "epoch": 3},
        "averaged": {"n_averaged": torch.tensor(7), **{f"module.{key}": value for key, value in state.items()}},
        "averages beside": {"model": last, "model_ema": state, "epoch": 3},
        "a program": {"state_dict": {"loss.w": torch.ones(3), **{f"net_g.{key}": x for key, x in state.items()}}},
    }[kind]
    folder = converted(content, tmp_path, "SRVGGNetCompact")
    found = SRVGGNetCompact.from_pretrained(folder / "network").state_dict()
    assert all(torch.equal(found[key], value) for key, value in state.items())


@pytest.mark.parametrize("architecture", CONFIGS)
def test_weights_that_lack_one_kind_of_layer_are_refused(architecture: str) -> None:
    state = published_state(architecture)
    of_kind = {key: re.sub(r"\d+", "N", key) for key in state}
    for kind in set(of_kind.values()):
        part = {key: value for key, value in state.items() if of_kind[key] != kind}
        with pytest.raises(ConversionError):
            convert_state_dict(part, recipe(architecture))


def wrapping_itself(wrapper: str) -> dict[str, Any]:
    content: dict[str, Any] = {"epoch": 3}
    content[wrapper] = content
    return content


def indices(*keys: str) -> dict[str, Tensor]:
    return {key: torch.zeros(2, 2, dtype=torch.long) for key in keys}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (wrapping_itself("state_dict"), "`checkpoint`: .*weights.pth"),
        (wrapping_itself("model"), "`checkpoint`: .*weights.pth"),
        (
            {"netG": {"a": torch.ones(1)}, "netD": {"a": torch.ones(1)}},
            "holds several sets of weights, netG, netD: save the one",
        ),
        # Indices, which are no weights, do not hide what a file holds.
        (indices("layers.0.residual_group.blocks.0.attn.relative_position_index"), "a SwinIR, which is not read"),
        (indices("model.diffusion_model.a", "model_ema.num_updates"), "a latent diffusion model, which is not read"),
        (indices("head.0.weight", "body.0.body.0.weight", "tail.0.0.weight"), "holds no weights"),  # an EDSR, damaged
    ],
)
def test_a_file_without_one_set_of_weights_is_refused(content: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=message):
        convert_baseline(write(content, tmp_path), tmp_path / "out", preset="edsr-x4")


def test_guided_diffusion_may_have_its_published_options(tmp_path: Path) -> None:
    path = write(published_state("GuidedDiffusionUNet"), tmp_path)
    config: dict[str, Any] = {"architecture": "GuidedDiffusionUNet"}
    given = config | {"published_options": {**GUIDED, "num_head_channels": 16}}
    folder = convert_baseline(path, tmp_path / "out", config=given)
    assert GuidedDiffusionUNet.from_pretrained(folder / "unet").config.sample_size == GUIDED["image_size"]
    with pytest.raises(ConversionError, match="published_options: .*'num_channels'"):
        convert_baseline(path, tmp_path / "no", config=config | {"published_options": {"num_channel": 1}})


@pytest.mark.parametrize("changes", [{"num_class_embeds": 3}, {"attention_head_dim": None}])
def test_options_of_diffusers_that_guided_diffusion_has_not_are_named(changes: dict[str, Any]) -> None:
    made = Recipe("GuidedDiffusionUNet", CONFIGS["GuidedDiffusionUNet"] | changes)
    with pytest.raises(ValueError, match="guided diffusion has no network with"):
        published_keys(made.build("meta"))


def test_a_compared_system_is_no_prior(tmp_path: Path) -> None:
    path = write(published_state("EDSR"), tmp_path)
    with pytest.raises(ConversionError, match=r"holds an EDSR \(scale_factor=2, .*presets of its own"):
        convert(path, tmp_path / "out", preset="ffhq256")


def command(folder: Path, out: str, **options: Any) -> list[str]:
    """`hvae-sr convert` of an SRVGGNetCompact."""
    save_file(published_state("SRVGGNetCompact"), folder / "net.safetensors")
    hparams = {"architecture": "SRVGGNetCompact", **CONFIGS["SRVGGNetCompact"], **options}
    (folder / "hparams.json").write_text(json.dumps(hparams))
    given = ["convert", folder / "net.safetensors", "-o", folder / out, "--hparams", folder / "hparams.json"]
    return list(map(str, given))


def test_the_command_converts_and_names_all_presets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(tmp_path, "out")) == 0
    assert SRVGGNetCompact.from_pretrained(tmp_path / "out" / "network").config.scale_factor == 3
    for preset, message in (("edsr-x5", "edsr-x4"), ("edsr-x4", "the file holds an SRVGGNetCompact")):
        assert main([*command(tmp_path, "no")[:4], "--preset", preset]) != 0
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pipeline": {"window_margin": -1}}, "`window_margin` must be a whole number >= 0, got -1"),
        ({"pipeline": {"default_temperature": 0.5}}, "`default_temperature`"),
        ({"pipeline": {"foo": 1}}, "RegressionPipeline has no foo"),
        ({"scheduler": {"num_train_timesteps": 5}}, "RegressionPipeline has no scheduler"),
    ],
)
def test_options_with_which_a_folder_could_not_be_loaded_leave_none(
    options: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(tmp_path, "out", **options)) == 2
    error = capsys.readouterr().err
    assert "`--hparams`" in error and message in error and not (tmp_path / "out").exists()


EDSR_CONFIG = {"architecture": "EDSR", **CONFIGS["EDSR"]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "edsr"}, "`preset` must be one of edsr-baseline-x2"),
        ({}, "give either `preset` or `config`"),
        ({"output_dir": ".", "preset": "edsr-x4"}, "exists and is not an empty folder"),
        ({"config": EDSR_CONFIG | {"pipeline": {"scale_factor": 3}}}, "of the pipeline must be the network's 2, got 3"),
        ({"config": EDSR_CONFIG | {"pipeline": {"downsampling_kernel": "lanczos"}}}, "pipeline: `kernel`"),
        ({"config": EDSR_CONFIG | {"pipeline": 5}}, "pipeline must be a mapping of options, got 5"),
        ({"config": {"scale_factor": 2}}, "architecture must be one of EDSR"),
        ({"config": EDSR_CONFIG | {"scale_factor": 5}}, "`config` of EDSR: `scale_factor` must be one of 2, 3, 4; got"),
    ],
)
def test_bad_arguments_are_named(
    options: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(published_state("EDSR"), tmp_path)
    with pytest.raises(ValueError, match=message):
        convert_baseline(path, **{"output_dir": "out", **options})


def test_options_that_a_scheduler_does_not_take_are_named() -> None:
    with pytest.raises(ConversionError, match="`config`: scheduler: .*steps"):
        convert_state_dict(published_state("SR3UNet"), Recipe("SR3UNet", CONFIGS["SR3UNet"], {"steps": 5}))


@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("architecture", ["RRDBNet", "SRVGGNetCompact"])
def test_weights_of_ncnn_are_read_by_the_order_of_their_layers(architecture: str, half: bool, tmp_path: Path) -> None:
    config = CONFIGS[architecture] | {"scale_factor": 4}
    model = ARCHITECTURES[architecture](**config)
    state = model.state_dict()
    kinds = {"Convolution": torch.nn.Conv2d, "PReLU": torch.nn.PReLU}
    layers = [(kind, name) for name, m in model.named_modules() for kind, of in kinds.items() if isinstance(m, of)]
    path = write_ncnn(state, layers, tmp_path, half)
    folder = convert_baseline(path, tmp_path / "out", config={"architecture": architecture, **config})
    loaded = ARCHITECTURES[architecture].from_pretrained(folder, subfolder="network").state_dict()
    tolerance = 1e-3 if half else 0.0
    assert all(torch.allclose(loaded[key], state[key], rtol=tolerance, atol=tolerance) for key in state)


def ncnn(folder: Path, **options: Any) -> Path:
    """An SRVGGNetCompact in ncnn's files, with a first bias of `first`."""
    model = SRVGGNetCompact(**CONFIGS["SRVGGNetCompact"])
    layers = [("PReLU" if i % 2 else "Convolution", f"body.{i}") for i in range(len(model.body))]
    torch.nn.init.constant_(model.body[0].bias, options.pop("first", 0.0))
    return write_ncnn(model.state_dict(), layers, folder, **options)


RESIZED = "Interp down 1 1 a b 0=3 1=0.5"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-4]), "the file ends after"),
        (lambda path: path.write_bytes(path.read_bytes() + b"1234"), "4 bytes are left"),
        (lambda path: path.write_bytes(b"1234" + path.read_bytes()[4:]), "stored in an unknown way, tag 0x34333231"),
        (lambda path: path.with_suffix(".param").write_text("hello"), "no list of ncnn's layers"),
        (lambda path: path.with_suffix(".param").write_text("7767517\n1 1\nLSTM a 1 1 b c"), "kind LSTM is not read"),
        (lambda path: ncnn(path.parent, first=float("nan")), r"not finite in body\.0\.bias"),
        (lambda path: ncnn(path.parent, end=RESIZED), "resizes what its network returns"),
    ],
)
def test_damaged_and_other_weights_of_ncnn_are_refused(
    damage: Callable[[Path], Any], message: str, tmp_path: Path
) -> None:
    path = ncnn(tmp_path)
    damage(path)
    with pytest.raises(ConversionError, match=message):
        load_ncnn(path)
