"""Conversion of the compared systems' published files: key by key, and refusals that say what a file holds."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from compared_cases import needs_compared, published
from safetensors.torch import save_file
from stand_ins import write_ncnn
from torch import Tensor

from hvae_sr.baselines import (
    EDSR,
    SPAN,
    AncestralScheduler,
    GuidedDiffusionUNet,
    HCFlow,
    RRDBNet,
    SR3UNet,
    SRVGGNetCompact,
)
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
        "num_levels": 2,
        "num_steps": 3,
        "num_conditional_steps": 1,
        "hidden_width": 4,
        "feature_blocks": [1, 2],
        "feature_width": 4,
        "feature_growth": 2,
    },
    "SR3UNet": {"image_size": 16, "width": 8, "width_multiples": [1, 2], "num_res_blocks": 1, "norm_groups": 4},
    "GuidedDiffusionUNet": published_options(**GUIDED, num_head_channels=16),
}
SCHEDULER = {"num_train_timesteps": 10, "beta_start": 1e-3, "beta_end": 0.1}


def recipe(architecture: str) -> Recipe:
    return Recipe(architecture, CONFIGS[architecture], SCHEDULER)


def published_state(architecture: str, variant: str = "") -> dict[str, Tensor]:
    """Random weights under the published names."""
    torch.manual_seed(0)
    model = recipe(architecture).build()
    names = published_keys(model, variant)
    state = {key: torch.randn(shape) for key, shape in published_shapes(model, names).items()}
    if architecture == "EDSR":
        state |= {key: value for key, value in model.state_dict().items() if "_mean" in key}
    return state


def write(state: dict[str, Tensor], folder: Path, wrapper: str | None = None) -> Path:
    path = folder / "weights.pth"
    torch.save({wrapper: state} if wrapper else state, path)
    return path


FULL_SIZE = [
    ("edsr_x2", "EDSR_x2", "edsr-x2", ""),
    ("edsr_x4", "EDSR_x4", "edsr-x4", ""),
    ("edsr_x2", "EDSR_baseline_x2", "edsr-baseline-x2", ""),
    ("edsr_x4", "EDSR_baseline_x4", "edsr-baseline-x4", ""),
    ("esrgan_rrdb_x4", "RRDB_ESRGAN_x4", "esrgan-x4", "ESRGAN"),
    ("realesrgan_rrdb_x2", "RealESRGAN_x4plus", "realesrgan-x4plus", "BasicSR"),
    ("realesrgan_rrdb_x2", "RealESRGAN_x2plus", "realesrgan-x2plus", "BasicSR"),
    ("realesrgan_rrdb_x2", "RealESRGAN_x4plus_anime_6B", "realesrgan-x4plus-anime-6b", "BasicSR"),
    ("realesrgan_srvgg_x4", "realesr-animevideov3", "realesr-animevideov3", ""),
    ("realesrgan_srvgg_x4", "realesr-general-x4v3", "realesr-general-x4v3", ""),
    ("hcflow_x4", "SR_DF2K_X4_HCFlow", "hcflow-x4", ""),
    ("hcflow_x8_face", "SR_CelebA_X8_HCFlow", "hcflow-face-x8", ""),
    ("sr3_x4", "sr_sr3_16_128", "sr3-16-128", ""),
    ("sr3_x4", "sr_sr3_64_512", "sr3-64-512", ""),
    ("dps_x4", "ffhq_10m", "dps-ffhq256", ""),
    ("dps_x4", "imagenet256", "dps-imagenet256", ""),
]


@needs_compared
@pytest.mark.parametrize(("case", "network", "preset", "variant"), FULL_SIZE)
def test_a_preset_has_every_key_of_the_published_network(case: str, network: str, preset: str, variant: str) -> None:
    recorded = published(case)[network]
    model = Recipe.of_preset(preset).build("meta")
    names = published_keys(model, variant)
    assert published_shapes(model, names) == {key: tuple(shape) for key, shape in recorded["state_dict"].items()}
    counted = sum(torch.Size(shape).numel() for shape in published_shapes(model, names).values())
    assert counted == recorded["n_parameters"]
    for other, map_name in (("old ESRGAN", "old_arch_name_of"), ("BasicSR", "basicsr_name_of")):
        if map_name in recorded:
            assert {names[key]: theirs for key, theirs in published_keys(model, other).items()} == recorded[map_name]


def test_the_list_of_published_networks_covers_every_recorded_one() -> None:
    for case in {case for case, *_ in FULL_SIZE}:
        recorded = {name for name in published(case) if name != "small_case"}
        assert recorded <= {network for folder, network, *_ in FULL_SIZE if folder == case}


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
    folder = convert_baseline(
        write(state, tmp_path, "params_ema" if variant == "BasicSR" else None),
        tmp_path / "out",
        config={"architecture": architecture, "scheduler": SCHEDULER, **CONFIGS[architecture]},
    )
    (subfolder,) = {"network", "flow", "unet"} & {path.name for path in folder.iterdir()}
    model = ARCHITECTURES[architecture].from_pretrained(folder, subfolder=subfolder)
    names = published_keys(model, variant)
    exact = {key for key, name in names.items() if name in state and model.state_dict()[key].shape == state[name].shape}
    assert all(torch.equal(model.state_dict()[key], state[names[key]]) for key in exact)
    has_scheduler = architecture in ("SR3UNet", "GuidedDiffusionUNet")
    assert (folder / "scheduler").is_dir() == has_scheduler
    if has_scheduler:
        assert AncestralScheduler.from_pretrained(folder / "scheduler").num_steps == 10


def resized(architecture: str, **changes: Any) -> Callable[[], dict[str, Tensor]]:
    def make() -> dict[str, Tensor]:
        model = Recipe(architecture, CONFIGS[architecture] | changes).build()
        return {name: model.state_dict()[key] for key, name in published_keys(model).items()}

    return make


HAT = [f"layers.0.residual_group.{part}.qkv.weight" for part in ("blocks.0.attn", "overlap_attn")]


def eight_times() -> dict[str, Tensor]:
    state = resized("EDSR", width=64, num_blocks=16, scale_factor=4)()
    return state | {"tail.0.4.weight": state["tail.0.2.weight"], "tail.0.4.bias": state["tail.0.2.bias"]}


def not_unshuffled(variant: str) -> Callable[[], dict[str, Tensor]]:
    """An RRDBNet that reads y itself and enlarges it less than four times."""
    lost = {"BasicSR": "conv_up2", "ESRGAN": "upconv2", "old ESRGAN": "model.6"}[variant]

    def make() -> dict[str, Tensor]:
        model = Recipe("RRDBNet", CONFIGS["RRDBNet"] | {"scale_factor": 4}).build()
        names = published_keys(model, variant)
        return {name: model.state_dict()[key] for key, name in names.items() if not name.startswith(f"{lost}.")}

    return make


def old_esrgan(*layers: int) -> Callable[[], dict[str, Tensor]]:
    """The old names of one that enlarges another number of times: these numbers of layers after the blocks."""

    def make() -> dict[str, Tensor]:
        model = Recipe("RRDBNet", CONFIGS["RRDBNet"] | {"scale_factor": 4}).build()
        names = published_keys(model, "old ESRGAN").items()
        state = {name: model.state_dict()[key] for key, name in names if name.startswith(("model.0.", "model.1."))}
        return state | {f"model.{number}.weight": torch.ones(1) for number in layers}

    return make


@pytest.mark.parametrize(
    ("preset", "state", "message"),
    [
        ("edsr-x4", resized("RRDBNet"), r"is for a network EDSR; the file holds an RRDBNet \(scale_factor=2"),
        ("esrgan-x4", resized("EDSR"), "is for a network RRDBNet; the file holds an EDSR"),
        ("hcflow-x4", lambda: {"flowUpsamplerNet.layers.1.weight": torch.ones(1)}, "the file holds an SRFlow"),
        ("edsr-x4", lambda: {"conv_first.weight": torch.ones(1)}, "no known architecture, such as conv_first.weight"),
        ("edsr-x4", lambda: dict.fromkeys(("body.0.weight", "body.2.weight"), torch.ones(1)), "'relu' or 'leakyrelu'"),
        ("edsr-x4", lambda: dict.fromkeys(HAT, torch.ones(1)), "the file holds an HAT"),
        ("edsr-baseline-x4", eight_times, r"scale_factor=8 \(not 4\)"),
        ("realesrgan-x2plus", not_unshuffled("BasicSR"), r"scale_factor=2 or 3, without unshuffling \(not 2\)"),
        ("esrgan-x4", not_unshuffled("ESRGAN"), r"scale_factor=2 or 3, without unshuffling \(not 4\)"),
        ("esrgan-x4", not_unshuffled("old ESRGAN"), r"scale_factor=2 or 3, without unshuffling \(not 4\)"),
        ("esrgan-x4", old_esrgan(3, 6, 9, 11, 13), r"scale_factor=8 \(not 4\)"),
        ("esrgan-x4", old_esrgan(2, 4), r"scale_factor=1, without unshuffling \(not 4\)"),
        ("span-x4", lambda: published_state("SPAN") | {"no_norm": torch.ones(1)}, "a SPAN that reads y as it is"),
        ("dps-ffhq256", lambda: {"model.diffusion_model.a": torch.ones(1)}, "the file holds a latent diffusion model"),
        ("edsr-x4", resized("EDSR", width=256, num_blocks=32), r"holds an EDSR with scale_factor=2 \(not 4\)"),
        ("edsr-x2", resized("EDSR"), r"num_blocks=2 \(not 32\), width=8 \(not 256\)"),
        ("realesrgan-x4plus", resized("RRDBNet"), r"scale_factor=2 \(not 4\)"),
        ("hcflow-face-x8", resized("HCFlow"), r"num_levels=2 \(not 3\)"),
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
    variant = "BasicSR" if architecture == "RRDBNet" else ""
    state = published_state(architecture, variant)
    keys = [key for key in state if key.endswith(".weight")]
    key = keys[len(keys) // 2]  # none that tells the network's size
    for changed, message in (
        ({name: value for name, value in state.items() if name != key}, f"1 missing: {key}"),
        (state | {"another.weight": torch.ones(1)}, "1 unexpected: another.weight"),
        (state | {key: torch.ones(2, 2, 2)}, rf"1 misshapen: {key} \[2, 2, 2\]"),
    ):
        with pytest.raises(ConversionError, match=message.replace(".", r"\.")):
            convert_state_dict(changed, recipe(architecture))


def test_weights_for_another_range_of_values_are_refused() -> None:
    state = published_state("EDSR")
    state = {key: value / 255 if key.endswith("_mean.bias") else value for key, value in state.items()}
    with pytest.raises(ConversionError, match=r"mean colour is \[0\.4488, .*another range than .* 0\.\.255"):
        convert_state_dict(state, recipe("EDSR"))


def test_fixed_colours_of_a_converted_edsr_stay_fixed() -> None:
    model, _ = convert_state_dict(published_state("EDSR"), recipe("EDSR"))
    fixed = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert fixed == {"sub_mean.weight", "sub_mean.bias", "add_mean.weight", "add_mean.bias"}


def test_the_schedule_in_an_sr3_file_wins_and_must_be_linear() -> None:
    state = {f"denoise_fn.{key}": value for key, value in published_state("SR3UNet").items()}
    _, scheduler = convert_state_dict(state | {"betas": torch.linspace(1e-4, 0.5, 8)}, recipe("SR3UNet"))
    assert scheduler is not None and scheduler.num_steps == 8
    assert scheduler.config.beta_end == pytest.approx(0.5)
    _, scheduler = convert_state_dict(state | {"betas": torch.linspace(1e-3, 0.1, 10)}, recipe("SR3UNet"))
    assert scheduler is not None and scheduler.config.beta_end == 0.1  # the configuration's own digits
    with pytest.raises(ConversionError, match="not linear"):
        convert_state_dict(state | {"betas": torch.linspace(0.01, 0.7, 8) ** 2}, recipe("SR3UNet"))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_schedule_in_another_precision_is_that_of_the_configuration(dtype: torch.dtype) -> None:
    state = {f"denoise_fn.{key}": value for key, value in published_state("SR3UNet").items()}
    published = PRESETS["sr3-16-128"]["scheduler"]
    betas = torch.linspace(1e-6, 1e-2, 2000, dtype=torch.float64)
    for given in (published, {}):  # the published one is what a configuration without a schedule means
        made = Recipe("SR3UNet", CONFIGS["SR3UNet"], given)
        _, scheduler = convert_state_dict(state | {"betas": betas.to(dtype)}, made)
        assert scheduler is not None and {key: scheduler.config[key] for key in published} == published


@pytest.mark.parametrize(("learn_sigma", "variance"), [(True, "learned_range"), (False, "fixed_large")])
def test_guided_diffusion_without_a_schedule_has_the_published_one(learn_sigma: bool, variance: str) -> None:
    made = Recipe("GuidedDiffusionUNet", published_options(**GUIDED, num_head_channels=16, learn_sigma=learn_sigma))
    model = made.build()
    names = published_keys(model)
    state = {key: torch.randn(shape) for key, shape in published_shapes(model, names).items()}
    _, scheduler = convert_state_dict(state, made)
    assert scheduler is not None and scheduler.num_steps == 1000 and scheduler.config.variance_type == variance


@pytest.mark.parametrize("wrapper", ["model", "netG", "ema"])
@pytest.mark.parametrize("prefix", ["", "model.", "netG.", "model.net."])
def test_other_wrappers_and_prefixes_are_taken_off(wrapper: str, prefix: str, tmp_path: Path) -> None:
    state = {f"{prefix}{key}": value for key, value in published_state("HCFlow").items()}
    state |= {f"{prefix}flow.layers.1.actnorm.inited": torch.tensor(True)}
    torch.save({wrapper: state, "optimizer": {"state": {}, "param_groups": []}, "epoch": 3}, tmp_path / "w.pth")
    config = {"architecture": "HCFlow", **CONFIGS["HCFlow"]}
    folder = convert_baseline(tmp_path / "w.pth", tmp_path / "out", config=config)
    assert HCFlow.from_pretrained(folder / "flow").config.num_steps == 3


@pytest.mark.parametrize("kind", ["a scalar beside", "twice", "averaged", "a program"])
def test_wrappers_in_wrappers_and_beside_loose_values_are_taken_off(kind: str, tmp_path: Path) -> None:
    state = published_state("SRVGGNetCompact")
    content: dict[str, Any] = {
        "a scalar beside": {"model": state, "best_loss": torch.tensor(1.0), "epoch": 3},
        "twice": {"net": {"state_dict": state}, "epoch": 3},
        "averaged": {"n_averaged": torch.tensor(7), **{f"module.{key}": value for key, value in state.items()}},
        "a program": {"state_dict": {"loss.w": torch.ones(3), **{f"net_g.{key}": x for key, x in state.items()}}},
    }[kind]
    torch.save(content, tmp_path / "w.pth")
    config = {"architecture": "SRVGGNetCompact", **CONFIGS["SRVGGNetCompact"]}
    folder = convert_baseline(tmp_path / "w.pth", tmp_path / "out", config=config)
    found = SRVGGNetCompact.from_pretrained(folder / "network").state_dict()
    assert all(torch.equal(found[key], value) for key, value in state.items())


@pytest.mark.parametrize("wrapper", ["state_dict", "model"])
def test_a_file_that_wraps_itself_is_refused(wrapper: str, tmp_path: Path) -> None:
    content: dict[str, Any] = {"epoch": 3}
    content[wrapper] = content
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ConversionError, match="`checkpoint`: .*w.pth"):
        convert_baseline(tmp_path / "w.pth", tmp_path / "out", preset="edsr-x4")


def test_an_sr3_file_of_a_whole_model_has_its_network_and_its_schedule() -> None:
    state = {f"netG.denoise_fn.{key}": value for key, value in published_state("SR3UNet").items()}
    _, scheduler = convert_state_dict(state | {"netG.betas": torch.linspace(1e-4, 0.5, 8)}, recipe("SR3UNet"))
    assert scheduler is not None and scheduler.num_steps == 8


def test_of_several_sets_of_weights_the_averages_are_taken_or_all_are_named(tmp_path: Path) -> None:
    state = published_state("SRVGGNetCompact")
    averages = {key: value + 1 for key, value in state.items()}
    config = {"architecture": "SRVGGNetCompact", **CONFIGS["SRVGGNetCompact"]}
    torch.save({"model": state, "model_ema": averages, "epoch": 3}, tmp_path / "w.pth")
    folder = convert_baseline(tmp_path / "w.pth", tmp_path / "out", config=config)
    found = SRVGGNetCompact.from_pretrained(folder / "network").state_dict()
    assert all(torch.equal(found[key], value) for key, value in averages.items())
    torch.save({"netG": state, "netD": averages}, tmp_path / "w.pth")
    with pytest.raises(ConversionError, match="holds several sets of weights, netG, netD: save the one"):
        convert_baseline(tmp_path / "w.pth", tmp_path / "no", config=config)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["layers.0.residual_group.blocks.0.attn.relative_position_index"], "holds a SwinIR, which is not read"),
        (["model.diffusion_model.a", "model_ema.num_updates"], "holds a latent diffusion model, which is not read"),
        (["head.0.weight", "body.0.body.0.weight", "tail.0.0.weight"], "holds no weights"),  # an EDSR, damaged
    ],
)
def test_indices_in_a_file_do_not_hide_what_it_holds(keys: list[str], message: str, tmp_path: Path) -> None:
    path = write({key: torch.zeros(2, 2, dtype=torch.long) for key in keys}, tmp_path)
    with pytest.raises(ConversionError, match=message):
        convert_baseline(path, tmp_path / "out", preset="edsr-x4")


def test_guided_diffusion_may_have_its_published_options(tmp_path: Path) -> None:
    path = write(published_state("GuidedDiffusionUNet"), tmp_path)
    config: dict[str, Any] = {"architecture": "GuidedDiffusionUNet"}
    given = config | {"published_options": {**GUIDED, "num_head_channels": 16}}
    folder = convert_baseline(path, tmp_path / "out", config=given)
    assert GuidedDiffusionUNet.from_pretrained(folder / "unet").config.sample_size == GUIDED["image_size"]
    with pytest.raises(ConversionError, match="published_options: .*'num_channels'"):
        convert_baseline(path, tmp_path / "no", config=config | {"published_options": {"num_channel": 1}})


def test_a_mean_colour_of_black_is_one() -> None:
    made = Recipe("EDSR", {**CONFIGS["EDSR"], "mean": [0.0, 0.0, 0.0]})
    state = {k: torch.zeros_like(v) if k.endswith("_mean.bias") else v for k, v in published_state("EDSR").items()}
    assert convert_state_dict(state, made)[0].config.mean == [0.0, 0.0, 0.0]


def test_a_compared_system_is_no_prior(tmp_path: Path) -> None:
    path = write(published_state("EDSR"), tmp_path)
    with pytest.raises(ConversionError, match=r"holds an EDSR \(scale_factor=2, .*presets of its own"):
        convert(path, tmp_path / "out", preset="ffhq256")


def test_the_command_converts_and_names_all_presets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(published_state("SRVGGNetCompact"), path)
    hparams = tmp_path / "hparams.json"
    hparams.write_text(json.dumps({"architecture": "SRVGGNetCompact", **CONFIGS["SRVGGNetCompact"]}))
    assert main(["convert", str(path), "-o", str(tmp_path / "out"), "--hparams", str(hparams)]) == 0
    assert SRVGGNetCompact.from_pretrained(tmp_path / "out" / "network").config.scale_factor == 3
    assert main(["convert", str(path), "-o", str(tmp_path / "no"), "--preset", "edsr-x5"]) != 0
    assert "edsr-x4" in capsys.readouterr().err
    assert main(["convert", str(path), "-o", str(tmp_path / "no"), "--preset", "edsr-x4"]) != 0
    assert "the file holds an SRVGGNetCompact" in capsys.readouterr().err


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
    config = CONFIGS["SRVGGNetCompact"]
    save_file(published_state("SRVGGNetCompact"), tmp_path / "net.safetensors")
    hparams = tmp_path / "hparams.json"
    hparams.write_text(json.dumps({"architecture": "SRVGGNetCompact", **config, **options}))
    command = ["convert", str(tmp_path / "net.safetensors"), "-o", str(tmp_path / "out"), "--hparams", str(hparams)]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "`--hparams`" in error and message in error and not (tmp_path / "out").exists()


def test_bad_arguments_are_named(tmp_path: Path) -> None:
    path = write(published_state("EDSR"), tmp_path)
    with pytest.raises(ValueError, match="`preset` must be one of edsr-baseline-x2"):
        convert_baseline(path, tmp_path / "out", preset="edsr")
    with pytest.raises(ValueError, match="give either `preset` or `config`"):
        convert_baseline(path, tmp_path / "out")
    with pytest.raises(ValueError, match="exists and is not an empty folder"):
        convert_baseline(path, tmp_path, preset="edsr-x4")
    edsr = {"architecture": "EDSR", **CONFIGS["EDSR"]}
    for part, message in (
        ({"pipeline": {"scale_factor": 3}}, "scale_factor of the pipeline must be the network's 2, got 3"),
        ({"pipeline": {"downsampling_kernel": "lanczos"}}, "pipeline: `kernel`"),
        ({"pipeline": 5}, "pipeline must be a mapping of options, got 5"),
    ):
        with pytest.raises(ConversionError, match=message):
            convert_baseline(path, tmp_path / "out", config={**edsr, **part})
    made = Recipe("SR3UNet", CONFIGS["SR3UNet"], {"steps": 5})
    with pytest.raises(ConversionError, match="`config`: scheduler: .*steps"):
        convert_state_dict(published_state("SR3UNet"), made)
    with pytest.raises(ValueError, match="`channel_mult` must begin with a whole number, got '0.5,1'"):
        published_options(**{**GUIDED, "num_channels": 64, "channel_mult": "0.5,1"}, num_head_channels=16)
    with pytest.raises(ConversionError, match="architecture must be one of EDSR"):
        convert_baseline(path, tmp_path / "out", config={"scale_factor": 2})
    with pytest.raises(ConversionError, match="`config` of EDSR: `scale_factor` must be one of 2, 3, 4; got 5"):
        convert_baseline(path, tmp_path / "out", config={"architecture": "EDSR", "scale_factor": 5})


def test_every_preset_builds() -> None:
    classes = {type(Recipe.of_preset(name).build("meta")) for name in PRESETS}
    assert classes == {EDSR, RRDBNet, SRVGGNetCompact, SPAN, HCFlow, SR3UNet, GuidedDiffusionUNet}


@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("architecture", ["RRDBNet", "SRVGGNetCompact"])
def test_weights_of_ncnn_are_read_by_the_order_of_their_layers(architecture: str, half: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
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


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-4]), "the file ends after"),
        (lambda path: path.write_bytes(path.read_bytes() + b"1234"), "4 bytes are left"),
        (lambda path: path.write_bytes(b"1234" + path.read_bytes()[4:]), "stored in an unknown way, tag 0x34333231"),
        (lambda path: path.with_suffix(".param").write_text("hello"), "no list of ncnn's layers"),
        (lambda path: path.with_suffix(".param").write_text("7767517\n1 1\nLSTM a 1 1 b c"), "kind LSTM is not read"),
    ],
)
def test_damaged_weights_of_ncnn_are_refused(damage: Callable[[Path], Any], message: str, tmp_path: Path) -> None:
    model = SRVGGNetCompact(**CONFIGS["SRVGGNetCompact"])
    layers = [("PReLU" if i % 2 else "Convolution", f"body.{i}") for i in range(len(model.body))]
    path = write_ncnn(model.state_dict(), layers, tmp_path, half=True)
    damage(path)
    with pytest.raises(ConversionError, match=message):
        load_ncnn(path)


def test_values_of_ncnn_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model = SRVGGNetCompact(**CONFIGS["SRVGGNetCompact"])
    layers = [("PReLU" if i % 2 else "Convolution", f"body.{i}") for i in range(len(model.body))]
    state = model.state_dict() | {"body.0.weight": torch.full_like(model.body[0].weight, float("nan"))}
    with pytest.raises(ConversionError, match=r"not finite in body\.0\.weight"):
        load_ncnn(write_ncnn(state, layers, tmp_path, half=False))


@pytest.mark.parametrize("changes", [{"num_class_embeds": 3}, {"attention_head_dim": None}])
def test_options_of_diffusers_that_guided_diffusion_has_not_are_named(changes: dict[str, Any]) -> None:
    made = Recipe("GuidedDiffusionUNet", published_options(**GUIDED, num_head_channels=16) | changes)
    with pytest.raises(ValueError, match="guided diffusion has no network with"):
        published_keys(made.build("meta"))


def test_a_network_of_ncnn_that_resizes_its_result_is_refused(tmp_path: Path) -> None:
    model = SRVGGNetCompact(**CONFIGS["SRVGGNetCompact"])
    layers = [("PReLU" if i % 2 else "Convolution", f"body.{i}") for i in range(len(model.body))]
    path = write_ncnn(model.state_dict(), layers, tmp_path, half=True, end="Interp down 1 1 a b 0=3 1=0.5")
    with pytest.raises(ConversionError, match="resizes what its network returns"):
        load_ncnn(path)
