"""Conversion of published checkpoints: names, refusals, and folders that appear complete or not at all."""

import importlib.resources
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from hvae_sr.checkpoints.convert import (
    PRESETS,
    ConversionError,
    _published_names,
    _published_shapes,
    check_keys,
    config_from_hparams,
    convert,
    load_checkpoint,
)
from hvae_sr.cli import main
from hvae_sr.models import VDVAE, LRConditioner, LREncoder

REFERENCE = Path(os.environ.get("HVAE_SR_REFERENCE", Path(__file__).resolve().parents[1] / "../shared/reference"))
FACTS = REFERENCE / "openai_checkpoints.json"
PUBLISHED: dict[str, Any] = json.loads(FACTS.read_text()) if FACTS.is_file() else {}
needs_reference = pytest.mark.skipif(
    not PUBLISHED, reason=f"no openai_checkpoints.json in {REFERENCE}: set HVAE_SR_REFERENCE to its folder"
)
HUB_CONFIGS = importlib.resources.files("hvae_sr.hub_configs")

HPARAMS = {
    "width": 8, "zdim": 2, "custom_width_str": "4:12,1:12", "no_bias_above": 4, "num_mixtures": 2, "image_size": 8,
    "enc_blocks": "8x1,8d2,4x1,4d4,1x1", "dec_blocks": "1x1,4m1,4x1,8m4", "shift": -100.0, "scale": 0.02,
}  # fmt: skip
HPARAMS_CVDVAE = HPARAMS | {
    "custom_width_str": "", "image_size_y": 4, "enc_blocks_y": "4x1,4d4,1x1", "width_y": 8, "ky": 3,
}  # fmt: skip
HPARAMS_SR = {
    "hparams": HPARAMS | {"custom_width_str": ""}, "input_shift": -110.0, "input_scale": 0.015,
    "hparams_lr_encoder": {"width": 8, "image_size": 4, "enc_blocks": "4x1,4d4,1x1"},
}  # fmt: skip


def convolution(name, out, into, kernel=1):
    return {f"{name}.weight": torch.randn(out, into, kernel, kernel), f"{name}.bias": torch.randn(out)}


def published_block(state, name, sizes, kernel):
    width_in, middle, width_out = sizes
    shapes = {"c1": (middle, width_in, 1), "c2": (middle, middle, kernel), "c3": (middle, middle, kernel)}
    for layer, shape in (shapes | {"c4": (width_out, middle, 1)}).items():
        state |= convolution(f"{name}.{layer}", *shape)


def published_state(widths):
    """Random weights of a VD-VAE with `HPARAMS`, named and shaped as openai/vdvae does."""
    torch.manual_seed(0)
    state = convolution("encoder.in_conv", 8, 3, 3) | convolution("decoder.out_net.out_conv", 20, 8)
    for i, resolution in enumerate((8, 8, 4, 4, 1)):
        w = widths[resolution]
        published_block(state, f"encoder.enc_blocks.{i}", (w, w // 4, w), 3 if resolution > 2 else 1)
    for i, resolution in enumerate((1, 4, 4, 8)):
        w, kernel = widths[resolution], 3 if resolution > 2 else 1
        name = f"decoder.dec_blocks.{i}"
        published_block(state, f"{name}.enc", (2 * w, w // 4, 4), kernel)
        published_block(state, f"{name}.prior", (w, w // 4, 4 + w), kernel)
        published_block(state, f"{name}.resnet", (w, w // 4, w), kernel)
        state |= convolution(f"{name}.z_proj", w, 2)
    for i, resolution in enumerate((1, 4)):
        state[f"decoder.bias_xs.{i}"] = torch.randn(1, widths[resolution], resolution, resolution)
    return state | {"decoder.gain": torch.randn(1, 8, 1, 1), "decoder.bias": torch.randn(1, 8, 1, 1)}


def published_lr_blocks(prefix):
    state = convolution(f"{prefix}.in_conv", 8, 3, 3)
    for i, kernel in enumerate((3, 3, 1)):
        published_block(state, f"{prefix}.enc_blocks.{i}", (8, 2, 8), kernel)
    return state


@pytest.fixture
def vdvae_state():
    return published_state({8: 8, 4: 12, 1: 12})


@pytest.fixture
def cvdvae_state():
    state = published_state({8: 8, 4: 8, 1: 8}) | published_lr_blocks("encoder_y")
    for i, kernel in enumerate((1, 3, 3)):
        published_block(state, f"decoder.dec_blocks.{i}.enc_y", (16, 2, 4), kernel)
    return state | {"shift": torch.full((1, 1, 1), -100.0), "scale": torch.full((1, 1, 1), 0.02)}


@pytest.fixture
def sr_state():
    state = {f"vae.{key}": value for key, value in published_state({8: 8, 4: 8, 1: 8}).items()}
    state |= {f"vae.decoder.dec_blocks.{i}.gate_param": torch.randn(1, 8, 1, 1) for i in range(4)}
    return state | published_lr_blocks("vae_sr.encoder")


@pytest.fixture
def given(vdvae_state, cvdvae_state):
    """The state and the hyper-parameters of either kind."""
    return {"vdvae": (vdvae_state, HPARAMS), "cvdvae": (cvdvae_state, HPARAMS_CVDVAE)}


def saved(state, path):
    (save_file if path.suffix == ".safetensors" else torch.save)(state, path)
    return path


def refused(path, message, **options):
    """The text of the one error that the conversion of a file ends with, after which there is nothing new."""
    with pytest.raises(ConversionError, match=message) as caught:
        convert(path, path.parent / "out", **(options or {"hparams": HPARAMS}))
    assert list(path.parent.iterdir()) == [path]
    return str(caught.value)


def assert_same_files(first, second, pattern="*"):
    files = sorted(path.relative_to(first) for path in first.rglob(pattern) if path.is_file())
    assert files == sorted(path.relative_to(second) for path in second.rglob(pattern) if path.is_file())
    assert len(files) > 1 and all((first / file).read_bytes() == (second / file).read_bytes() for file in files)


@needs_reference
@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_vdvae_converts_by_name_and_shape_and_has_its_preset(name):
    facts = PUBLISHED[name]
    config = config_from_hparams(facts)
    with torch.device("meta"):
        state = {key: torch.empty(shape) for key, shape in facts["state_dict"].items()}
        model = VDVAE(**config)
    names = _published_names(model)
    check_keys(state, _published_shapes([(model, names)]))  # refuses any other name or shape
    assert sum(state[name].numel() for name in names.values()) == facts["n_parameters"]
    assert model.num_groups == facts["n_groups"]
    preset = json.loads(HUB_CONFIGS.joinpath(PRESETS[name], "config.json").read_text("utf-8"))
    assert preset["_class_name"] == "VDVAE"
    assert {key: preset[key] for key in config} == config
    assert config_from_hparams(facts["hparams"]) == config  # normalisation by dataset
    assert preset["output_bits"] == (5 if facts["low_bit"] else 8)


@pytest.mark.parametrize("name", [name for name, folder in PRESETS.items() if name == folder])
def test_the_parts_of_a_pipeline_preset_fit_together(name):
    folder = HUB_CONFIGS.joinpath(name)
    index, vdvae, lr = (
        json.loads(folder.joinpath(*path.split("/")).read_text("utf-8"))
        for path in ("model_index.json", "vdvae/config.json", "lr_encoder/config.json")
    )
    assert index["lr_encoder"] == ["hvae_sr", lr["_class_name"]]
    assert vdvae["image_size"] == index["scale_factor"] * lr["image_size"]
    assert lr["decoder_blocks"] == vdvae["decoder_blocks"]
    assert (lr["input_shift"], lr["input_scale"]) == (vdvae["input_shift"], vdvae["input_scale"])
    network = {"LREncoder": LREncoder, "LRConditioner": LRConditioner}[lr["_class_name"]]
    with torch.device("meta"):
        model = network(**{key: value for key, value in lr.items() if not key.startswith("_")})
    assert len(model.resolutions) == lr["num_conditioned_groups"]
    assert max(model.resolutions) <= lr["image_size"]


def test_hparams_are_completed_or_refused_by_name():
    config = config_from_hparams(HPARAMS | {"shift": -0.4, "scale": 4.0})  # for images on 0..1
    assert (config["input_shift"], config["input_scale"]) == (-102.0, 4 / 255)
    with pytest.raises(ConversionError, match="enc_blocks, dec_blocks"):
        config_from_hparams({"width": 8, "image_size": 8})
    with pytest.raises(ConversionError, match="shift and scale"):
        config_from_hparams({key: value for key, value in HPARAMS.items() if key != "shift"})


@pytest.mark.parametrize("wrapper", ["", "module."], ids=["plain", "DataParallel"])
@pytest.mark.parametrize("suffix", [".th", ".safetensors", ".h5"])
def test_a_vdvae_round_trips(vdvae_state, tmp_path, suffix, wrapper):
    file = {f"{wrapper}{key}": value for key, value in vdvae_state.items()}
    convert(saved(file, tmp_path / f"weights{suffix}"), tmp_path / "out", hparams=HPARAMS)
    model = VDVAE.from_pretrained(tmp_path / "out")
    assert model.config.custom_widths == HPARAMS["custom_width_str"]
    names = _published_names(model)
    assert all(torch.equal(value, vdvae_state[names[key]]) for key, value in model.state_dict().items())
    head = vdvae_state["decoder.dec_blocks.2.enc.c1.weight"]
    assert torch.equal(model.blocks[2].posterior_head.c1.weight, head)
    assert torch.equal(model.biases["4"].bias, vdvae_state["decoder.bias_xs.1"])


@needs_reference
@pytest.mark.parametrize("folder", sorted(path.parent for path in REFERENCE.glob("*/weights.th")), ids=str)
def test_recorded_weights_convert_alike_from_th_and_safetensors(folder, tmp_path):
    hparams = json.loads((folder / "config.json").read_text())
    suffixes = ("th", "safetensors")
    assert_same_files(*(convert(folder / f"weights.{s}", tmp_path / s, hparams=hparams) for s in suffixes))


def test_a_lightning_checkpoint_of_a_cvdvae_becomes_a_pipeline_and_its_normalisation_wins(cvdvae_state, tmp_path):
    cvdvae_state["shift"].fill_(-90.0)
    lightning = {"epoch": 3, "state_dict": {f"cvae.{key}": value for key, value in cvdvae_state.items()}}
    path = saved(lightning, tmp_path / "last.ckpt")
    convert(path, tmp_path / "out", hparams=HPARAMS_CVDVAE)
    index = json.loads((tmp_path / "out/model_index.json").read_text())
    assert (index["vdvae"], index["lr_encoder"]) == (["hvae_sr", "VDVAE"], ["hvae_sr", "LREncoder"])
    assert index["scale_factor"] == 2
    lr_encoder = LREncoder.from_pretrained(tmp_path / "out", subfolder="lr_encoder")
    head = cvdvae_state["decoder.dec_blocks.2.enc_y.c4.bias"]
    assert torch.equal(lr_encoder.heads[2].c4.bias, head)
    vdvae = VDVAE.from_pretrained(tmp_path / "out", subfolder="vdvae")
    for network in (vdvae, lr_encoder):
        assert (network.config.input_shift, network.config.input_scale) == (-90.0, 0.02)


def test_vdvae_sr_takes_the_averaged_weights_and_drops_what_is_unused(sr_state, tmp_path):
    # The published files hold the trained networks (wrapped) and their averages, and a decoder nobody runs.
    wrapped = {key.replace(".", ".module.", 1): value for key, value in sr_state.items()}
    file = {key: torch.zeros_like(value) for key, value in wrapped.items()}
    file |= {f"ema_{key}": value for key, value in wrapped.items()}
    file |= {"vae_sr.module.decoder.gain": torch.zeros(1), "ema_vae_sr.decoder.gain": torch.zeros(1)}
    convert(saved(file, tmp_path / "model.h5"), tmp_path / "out", hparams=HPARAMS_SR)
    plain = convert(saved(sr_state, tmp_path / "plain.h5"), tmp_path / "plain", hparams=HPARAMS_SR)
    assert_same_files(plain, tmp_path / "out")
    conditioner = LRConditioner.from_pretrained(tmp_path / "out", subfolder="lr_encoder")
    assert sorted(conditioner.gates) == ["0", "1", "2"]  # group 3 works at a resolution finer than y's
    gate = sr_state["vae.decoder.dec_blocks.1.gate_param"]
    assert torch.equal(conditioner.gates["1"].gate, gate)
    vdvae = VDVAE.from_pretrained(tmp_path / "out", subfolder="vdvae")
    assert torch.equal(vdvae.affine.gain, sr_state["vae.decoder.gain"])
    assert (vdvae.config.input_shift, conditioner.config.input_scale) == (-110.0, 0.015)


def test_wrong_keys_are_all_named_and_nothing_is_written(vdvae_state, tmp_path):
    del vdvae_state["decoder.gain"]
    vdvae_state["decoder.extra"] = torch.zeros(1)
    vdvae_state["decoder.dec_blocks.1.z_proj.weight"] = torch.zeros(12, 3, 1, 1)
    path = saved(vdvae_state, tmp_path / "weights.th")
    message = refused(path, "1 missing: decoder.gain")
    assert "1 unexpected: decoder.extra" in message
    assert "1 misshapen: decoder.dec_blocks.1.z_proj.weight [12, 3, 1, 1] (should be [12, 2, 1, 1])" in message
    # Long lists are cut and counted.
    assert len(refused(path, r"\d{4} missing: .*, \.\.\.", preset="ffhq256")) < 5000
    refused(path, "CVDVAE.*VD-VAE", preset="cvdvae-ffhq256-x4")


class Payload:
    """Unpickling it would create a folder."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("suffix", [".th", ".ckpt", ".h5"])
def test_a_pickle_with_code_is_refused_and_the_code_is_not_run(tmp_path, suffix):
    path = saved({"weight": torch.zeros(1), "x": Payload(tmp_path / "pwned")}, tmp_path / f"evil{suffix}")
    refused(path, "refused and nothing in it was run: it refers to .*mkdir")


@pytest.mark.parametrize("suffix", [".th", ".safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.9])
def test_a_truncated_file_is_refused(vdvae_state, tmp_path, suffix, share):
    path = saved(vdvae_state, tmp_path / f"weights{suffix}")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    refused(path, "damaged")


@pytest.mark.parametrize("content", [[1, 2], {}, {"epoch": 3}, {"state_dict": {"a": "text"}}])
def test_a_file_without_named_tensors_is_refused(tmp_path, content):
    with pytest.raises(ConversionError, match="tensor"):
        load_checkpoint(saved(content, tmp_path / "weights.th"))


WRONG = {
    "vdvae": [
        {"width": "8"}, {"width": None, "hparams": [1]}, {"hparams": [1]}, {"enc_blocks": 8}, {"image_size": "8"},
        {"image_size": 0}, {"shift": "far"}, {"shift": float("nan")}, {"scale": float("inf")}, {"scale": 0},
        {"custom_width_str": "4:wide"}, {"width": float("inf")}, {"input_normalisation": 3},
    ],
    "cvdvae": [{"image_size_y": "4"}, {"image_size_y": 0}, {"ky": "3"}, {"enc_blocks_y": 4}],
}  # fmt: skip


@pytest.mark.parametrize(("kind", "changes"), [(kind, one) for kind, all_ in WRONG.items() for one in all_], ids=str)
def test_hparams_of_wrong_types_are_refused_in_one_line(kind, changes, given, tmp_path):
    state, hparams = given[kind]
    assert "\n" not in refused(saved(state, tmp_path / "weights.th"), "^`hparams`: ", hparams=hparams | changes)


def test_an_output_that_exists_is_left_alone(vdvae_state, tmp_path):
    path = saved(vdvae_state, tmp_path / "weights.th")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("precious")
    for output in (tmp_path / "out", path):
        with pytest.raises(ValueError, match="`output_dir`"):
            convert(path, output, hparams=HPARAMS)
    assert (tmp_path / "out/mine.txt").read_text() == "precious"


def test_the_output_may_be_empty_or_a_link_or_the_folder_one_is_in(vdvae_state, tmp_path, monkeypatch):
    path = saved(vdvae_state, tmp_path / "weights.th")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    convert(path, tmp_path / "link", hparams=HPARAMS)
    assert (tmp_path / "target/config.json").is_file() and (tmp_path / "link").is_symlink()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    convert(path, ".", hparams=HPARAMS)
    assert (tmp_path / "here/config.json").is_file()


@pytest.mark.parametrize("kind", ["vdvae", "cvdvae"])
@pytest.mark.parametrize("error", [OSError("no space left on device"), KeyboardInterrupt("killed")], ids=repr)
def test_what_was_being_written_is_removed_at_once_or_by_the_next(error, kind, given, tmp_path, monkeypatch):
    state, hparams = given[kind]
    path = saved(state, tmp_path / "weights.th")

    def stopped(self, folder):
        Path(folder).mkdir(parents=True)
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(VDVAE, "save_pretrained", stopped)
        if isinstance(error, KeyboardInterrupt):  # it did not come to the end
            patch.setattr("shutil.rmtree", lambda *given, **options: None)
        with pytest.raises(type(error)):
            convert(path, tmp_path / "out", hparams=hparams)
    left = set(tmp_path.iterdir()) - {path}
    assert len(left) == isinstance(error, KeyboardInterrupt)
    for one in left:
        os.utime(one, (0, 0))  # long ago: this process, which wrote it, lives on
    convert(path, tmp_path / "out", hparams=hparams)
    assert sorted(tmp_path.iterdir()) == [tmp_path / "out", path]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "`preset`"),
        ({"preset": "ffhq256", "hparams": HPARAMS}, "`preset`"),
        ({"preset": "ffhq-256"}, "`preset`"),
        ({"preset": "ffhq256"}, "`checkpoint`.*is not a file"),
    ],
)
def test_arguments_are_checked_before_anything_is_read(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        convert(tmp_path / "not-there.th", tmp_path / "out", **arguments)


@pytest.mark.parametrize("part", ["vae", "vae_sr"])
def test_averages_of_one_network_alone_are_taken_with_a_warning(sr_state, part, tmp_path, caplog):
    file = sr_state | {f"ema_{k}": v + 1 for k, v in sr_state.items() if k.startswith(f"{part}.")}
    with caplog.at_level("WARNING"):
        state = load_checkpoint(saved(file, tmp_path / "model.h5"))
    assert f"has averages of '{part}.' alone" in caplog.text
    assert state.keys() == sr_state.keys()
    for key, value in state.items():
        assert torch.equal(value, sr_state[key] + key.startswith(f"{part}."))


def test_averages_that_lack_a_parameter_are_not_completed_from_the_last_weights(sr_state, tmp_path):
    file = sr_state | {f"ema_{key}": value for key, value in sr_state.items()}
    del file["ema_vae.decoder.gain"]
    refused(saved(file, tmp_path / "model.h5"), "1 missing: vae.decoder.gain", hparams=HPARAMS_SR)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_weights_of_any_floating_point_type_become_float32(vdvae_state, dtype, tmp_path):
    path = saved({key: value.to(dtype) for key, value in vdvae_state.items()}, tmp_path / "weights.th")
    weights = VDVAE.from_pretrained(convert(path, tmp_path / "out", hparams=HPARAMS)).state_dict()
    assert {value.dtype for value in weights.values()} == {torch.float32}
    assert torch.equal(weights["affine.gain"], vdvae_state["decoder.gain"].to(dtype).float())


@pytest.mark.parametrize(
    ("value", "message"),
    [
        *(
            (torch.zeros(1, 8, 1, 1).to(getattr(torch, dtype)), dtype)
            for dtype in ("complex64", "int64", "float8_e4m3fn")
        ),
        (torch.zeros(1, 8, 1, 1).to_sparse(), "sparse"),
        (torch.full((1, 8, 1, 1), torch.nan), "not finite in decoder.gain"),
        (torch.full((1, 8, 1, 1), torch.inf), "not finite in decoder.gain"),
        (torch.full((1, 8, 1, 1), 1e300, dtype=torch.float64), "not finite in decoder.gain"),
        (torch.zeros(1).expand(10**6, 10**6), "larger than what they hold: decoder.gain"),
    ],
    ids=["complex", "integers", "eight bits", "sparse", "nan", "infinite", "beyond float32", "a view"],
)
def test_tensors_that_are_no_weights_are_refused_by_name(vdvae_state, value, message, tmp_path):
    path = saved(vdvae_state | {"decoder.gain": value}, tmp_path / "weights.th")
    text = refused(path, rf"`checkpoint`.*{message}")
    assert "decoder.gain" in text and "\n" not in text


@pytest.mark.parametrize("suffix", [".th", ".h5", ".ckpt", ".safetensors"])
@pytest.mark.parametrize(
    "content",
    [b"", b"\x89HDF\r\n\x1a\n" + bytes(64), b"not a checkpoint\n" * 9, b"\x89PNG\r\n\x1a\n" + bytes(64), b"PK\x03\x04"],
    ids=["empty", "hdf5", "text", "png", "zip"],
)
def test_other_files_are_refused_in_one_line(suffix, content, tmp_path, capsys):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    assert main(["convert", str(path), "-o", str(tmp_path / "out"), "--preset", "vdvae-sr-64"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("hvae-sr: error: `checkpoint`: ") and str(path) in line and len(line) < 500
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("dataset", "bits"), [("ffhq_256", 5), ("ffhq256", 5), ("imagenet64", 8)])
def test_a_data_set_has_its_bits_in_either_spelling(dataset, bits):
    given = {"width": 8, "image_size": 16, "enc_blocks": "16x1", "dec_blocks": "16x1", "dataset": dataset}
    assert config_from_hparams(given)["output_bits"] == bits
    assert config_from_hparams({**given, "low_bit": None})["output_bits"] == bits
    assert config_from_hparams({**given, "low_bit": False})["output_bits"] == 8
    with pytest.raises(ConversionError, match="low_bit must be true or false, got 'False'"):
        config_from_hparams({**given, "low_bit": "False"})
