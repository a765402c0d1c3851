"""SPAN: its equations, its published files, and an LR network whose likelihood is centred on what it gives."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from stand_ins import levels, objective_of, write_ncnn
from torch import Tensor, nn

from hvae_sr import LRConditioner, SuperResolutionPipeline
from hvae_sr.baselines import SPAN, RRDBNet
from hvae_sr.checkpoints.compared import convert_baseline
from hvae_sr.checkpoints.convert import ConversionError
from hvae_sr.checkpoints.growth import transfer
from hvae_sr.checkpoints.ncnn import load_ncnn
from hvae_sr.checkpoints.span import merge_convolutions
from hvae_sr.models.span import COLOUR_MEAN, Regression
from hvae_sr.sampling.sampler import MARGIN
from hvae_sr.training.publish import write_folder

CENTRED = {"likelihood_location": "regression", "regression_width": 4}
ROWS = ["conv_1", *(f"block_{i}.c{j}_r" for i in range(1, 7) for j in range(1, 4)), "conv_2"]


def published_row(name: str, inputs: int, outputs: int) -> dict[str, Tensor]:
    """Random weights of one convolution as it is trained: three in a row, of twice the width, beside one of a pixel."""
    shapes = {
        "sk": (outputs, inputs, 1, 1), "conv.0": (2 * inputs, inputs, 1, 1),
        "conv.1": (2 * outputs, 2 * inputs, 3, 3), "conv.2": (outputs, 2 * outputs, 1, 1),
        "eval_conv": (outputs, inputs, 3, 3),
    }  # fmt: skip
    state: dict[str, Tensor] = {}
    for part, shape in shapes.items():
        state[f"{name}.{part}.weight"] = torch.randn(shape) / (shape[1] * shape[2] ** 2) ** 0.5
        state[f"{name}.{part}.bias"] = torch.randn(shape[0]) * 0.1
    return state


def published_state(scale_factor: int, width: int) -> dict[str, Tensor]:
    """Random weights of a network under the published names."""
    torch.manual_seed(0)
    state: dict[str, Tensor] = {}
    for name in ROWS:
        state |= published_row(name, 3 if name == "conv_1" else width, width)
    state["conv_cat.weight"], state["conv_cat.bias"] = torch.randn(width, 4 * width, 1, 1) / 9, torch.randn(width)
    last = 3 * scale_factor**2
    state["upsampler.0.weight"], state["upsampler.0.bias"] = torch.randn(last, width, 3, 3) / 9, torch.rand(last)
    return state


def published_network(state: dict[str, Tensor], y: Tensor, scale_factor: int) -> Tensor:
    """The network's equations (figure 2 of the paper) with one kernel for each row, written once more."""

    def conv(name: str, x: Tensor) -> Tensor:
        weight = state[f"{name}.weight"]
        return F.conv2d(x, weight, state[f"{name}.bias"], padding=weight.shape[-1] // 2)

    outputs = [conv("conv_1", (y - torch.tensor(COLOUR_MEAN)[:, None, None]) * 255)]
    for i in range(1, 7):
        first = F.silu(conv(f"block_{i}.c1_r", outputs[-1]))
        last = conv(f"block_{i}.c3_r", F.silu(conv(f"block_{i}.c2_r", first)))
        outputs.append((last + outputs[-1]) * (last.sigmoid() - 0.5))
    joined = torch.cat([outputs[0], conv("conv_2", outputs[6]), outputs[1], first], 1)
    return F.pixel_shuffle(conv("upsampler.0", conv("conv_cat", joined)), scale_factor)


def test_a_row_of_convolutions_is_merged_into_the_one_that_it_amounts_to() -> None:
    torch.manual_seed(0)
    state, x = published_row("conv_1", 3, 5), torch.randn(2, 3, 9, 8)
    merged = merge_convolutions(state)
    assert set(merged) == {"conv_1.weight", "conv_1.bias"}
    row = x
    for part in ("conv.0", "conv.1", "conv.2"):
        row = F.conv2d(row, state[f"conv_1.{part}.weight"], state[f"conv_1.{part}.bias"])
    shortcut = F.conv2d(x, state["conv_1.sk.weight"], state["conv_1.sk.bias"])[..., 1:-1, 1:-1]
    torch.testing.assert_close(F.conv2d(x, merged["conv_1.weight"], merged["conv_1.bias"]), row + shortcut)
    kept = {name: value for name, value in state.items() if ".eval_conv." in name}
    assert torch.equal(merge_convolutions(kept)["conv_1.weight"], state["conv_1.eval_conv.weight"])


@pytest.mark.parametrize("scale_factor", [2, 4])
def test_a_published_file_becomes_the_published_network(scale_factor: int, tmp_path: Path) -> None:
    state = published_state(scale_factor, 6)
    save_file(state, tmp_path / "span.safetensors")
    config = {"architecture": "SPAN", "scale_factor": scale_factor, "width": 6}
    folder = convert_baseline(tmp_path / "span.safetensors", tmp_path / "out", config=config)
    model, y = SPAN.from_pretrained(folder, subfolder="network"), torch.rand(2, 3, 7, 9)
    expected = published_network(merge_convolutions(state), y, scale_factor)
    torch.testing.assert_close(model(y).sample, expected, rtol=1e-4, atol=1e-3 * float(expected.std()))
    with pytest.raises(ConversionError, match=r"the file holds a SPAN with width=6 \(not 48\)"):
        convert_baseline(tmp_path / "span.safetensors", tmp_path / "no", preset=f"span-x{scale_factor}")
    del state["block_3.c2_r.conv.1.bias"]
    save_file(state, tmp_path / "damaged.safetensors")
    with pytest.raises(ConversionError, match=r"block_3\.c2_r\."):
        convert_baseline(tmp_path / "damaged.safetensors", tmp_path / "no", config=config)


def test_weights_of_ncnn_are_read_and_another_mean_colour_is_refused(tmp_path: Path) -> None:
    model = SPAN(4, 4)
    state = {**model.state_dict(), "mean": torch.tensor(COLOUR_MEAN)}
    layers = [("MemoryData", "mean"), *(("Convolution", name) for name in (*ROWS, "conv_cat", "upsampler.0"))]
    end = "Swish act 1 1 a b\nSigmoid att 1 1 a b"
    found = load_ncnn(write_ncnn(state, layers, tmp_path, end=end))
    assert set(found) == set(model.state_dict())
    assert all(torch.allclose(found[name], value, atol=1e-3) for name, value in model.state_dict().items())
    with pytest.raises(ConversionError, match="no SPAN with the mean colour"):
        load_ncnn(write_ncnn({**state, "mean": torch.full((3,), 0.5)}, layers, tmp_path, end=end))


@pytest.fixture
def make_centred(make_lr_network: Any) -> Any:
    def make(**changes: Any) -> LRConditioner:
        return make_lr_network("vdvae-sr", **{"conditioning": "final", "latent_channels": 4, **CENTRED, **changes})

    return make


def test_the_likelihood_is_centred_on_what_the_regression_gives(make_centred: Any, make_vdvae: Any) -> None:
    network, y = make_centred(), levels(2, 4, seed=1)
    twin = SPAN(4, 4)
    twin.load_state_dict(network.regression.state_dict())
    condition = network.encode(y)
    torch.testing.assert_close(condition.location, twin((y + 1) / 2).sample * 2 - 1)
    assert condition.estimate is None and not any(p.requires_grad for p in network.regression.parameters())
    pipe, drawn = make_vdvae(), {}
    for location in (condition.location, torch.zeros_like(condition.location)):
        moved = type(condition)(network, condition.features, location)
        drawn[location] = pipe.sample(2, (16, 16), None, condition=moved, temperature=0.0).sample
    (one, centred), (other, plain) = drawn.items()
    torch.testing.assert_close(centred - plain, one - other, rtol=1e-4, atol=1e-5)
    # Its features are read.
    with torch.no_grad():
        network.network.bottom_up.in_conv.weight[:, :3] = 0  # y itself is not read any more
    one, other = (network.encode(levels(1, 4, seed)).features for seed in (1, 2))
    assert not any(torch.equal(one[r], other[r]) for r in one)


def test_a_restorers_offset_is_from_the_regression(make_centred: Any) -> None:
    network, y = make_centred(restorer_blocks=1), levels(1, 4, seed=1)
    with torch.no_grad():
        network.estimate.weight.normal_()
        before = network.encode(y)
        for parameter in network.regression.upsampler.parameters():
            parameter.zero_()
        after = network.encode(y)
    finest = max(before.features)
    assert {r for r in before.features if not torch.equal(before.features[r], after.features[r])} == {finest}
    assert torch.equal(before.estimate, after.estimate)


def test_a_gated_location_lies_between_y_resized_and_the_regression(make_centred: Any) -> None:
    network, y = make_centred(likelihood_location="gated"), levels(1, 4, seed=1)
    resized = F.interpolate(y, scale_factor=4, mode="bicubic", align_corners=False)
    regressed = network.regression(y).image
    gate = network.location_gate
    # It starts next to y resized, the same share everywhere: sigmoid(-3).
    torch.testing.assert_close(network.encode(y).location, torch.lerp(resized, regressed, 0.047426), atol=1e-4, rtol=0)
    for bias, expected in ((-40.0, resized), (40.0, regressed)):
        nn.init.constant_(gate.bias, bias)
        torch.testing.assert_close(network.encode(y).location, expected)
    nn.init.zeros_(gate.bias)
    nn.init.normal_(gate.weight)
    share = (network.encode(y).location - resized) / (regressed - resized)
    assert (share > -1e-3).all() and (share < 1.001).all() and share.std() > 0.05
    torch.testing.assert_close(share[:, 0], share[:, 2], atol=1e-2, rtol=0)  # one share for the colours of a place


def test_a_gated_location_keeps_the_restorers_offset_from_y_resized(make_centred: Any) -> None:
    network, y = make_centred(likelihood_location="gated", restorer_blocks=1), levels(1, 4, seed=1)
    twin = make_centred(likelihood_location="bicubic", regression_width=None, restorer_blocks=1)
    transfer(twin, network)
    with torch.no_grad():
        for conditioner in (twin, network):
            nn.init.ones_(conditioner.estimate.weight)
            conditioner.restorer.load_state_dict(twin.restorer.state_dict())
    one, other = twin.encode(y), network.encode(y)
    for resolution, x in one.features.items():  # the regression's features are read with zeros at first
        torch.testing.assert_close(x, other.features[resolution])
    assert not torch.equal(one.location, other.location)


def test_all_but_the_last_convolution_follow_the_compute_dtype(make_centred: Any) -> None:
    network, y = make_centred(), levels(1, 8, seed=1)
    exact = network.regression(y).image
    network.set_compute_dtype(torch.bfloat16)
    kept = {n for n, m in network.regression.named_modules() if getattr(m, "compute_dtype", 0) is None}
    assert kept == {"upsampler.0"}
    assert 0 < (network.regression(y).image - exact).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"regression_width": None}, "`regression_width` must be a whole number >= 1 .* got None with 'regression'"),
        ({"regression_width": True}, "`regression_width` must be a whole number or None, got True"),
        ({"regression_width": 0}, "got 0 with 'regression'"),
        ({"likelihood_location": "bicubic"}, "None with another, got 4 with 'bicubic'"),
        ({"conditioning": "trivial", "gate_init": 0.0}, "`likelihood_location` 'regression' needs features of y"),
        ({"likelihood_location": "gated", "regression_width": None}, "got None with 'gated'"),
        ({"likelihood_location": "gated", "conditioning": "trivial", "gate_init": 0.0}, "'gated' needs features of y"),
    ],
)
def test_options_that_do_not_go_together_are_named(make_centred: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_centred(**changes)


@pytest.fixture
def training(make_vdvae: Any, make_centred: Any, tmp_path: Path) -> Any:
    Image.effect_noise((32, 32), 40).convert("RGB").save(tmp_path / "x.png")
    make_vdvae().save_pretrained(tmp_path / "prior")
    torch.manual_seed(5)
    SPAN(4, 4).save_pretrained(tmp_path / "span")
    (tmp_path / "lr.json").write_text(make_centred().to_json_string())

    return partial(objective_of, tmp_path, stage="energy-score", saved_dtype="float8")


@pytest.mark.parametrize("location", ["regression", "gated"])
def test_a_run_takes_a_trained_regression_leaves_it_as_it_is_and_saves_it_exactly(
    training: Any, make_centred: Any, location: str, tmp_path: Path
) -> None:
    (tmp_path / "lr.json").write_text(make_centred(likelihood_location=location).to_json_string())
    plain = make_centred(likelihood_location="bicubic", regression_width=None)
    plain.save_pretrained(tmp_path / "plain")
    objective, config = training(pretrained_regression=tmp_path / "span", pretrained_lr_encoder=tmp_path / "plain")
    trained = SPAN.from_pretrained(tmp_path / "span").state_dict()
    state = objective.lr_network.state_dict()
    assert all(torch.equal(state[f"regression.{name}"], value) for name, value in trained.items())
    taken = {name for name, value in plain.state_dict().items() if torch.equal(state[name], value)}
    assert taken == set(plain.state_dict()) - {"network.bottom_up.in_conv.weight"}
    stem = state["network.bottom_up.in_conv.weight"]
    assert torch.equal(stem[:, :3], plain.network.bottom_up.in_conv.weight) and not stem[:, 3:].any()
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    loss, _ = objective(images, [0, 1])
    loss.backward()
    assert all(p.grad is None for p in objective.lr_network.regression.parameters())
    assert objective.lr_network.network.bottom_up.in_conv.weight.grad[:, 3:].abs().max() > 0
    if location == "gated":
        assert all(parameter.grad.abs().max() > 0 for parameter in objective.lr_network.location_gate.parameters())
    write_folder(objective, config, tmp_path / "model")
    stored = load_file(tmp_path / "model" / "lr_encoder" / "diffusion_pytorch_model.safetensors")
    assert {x.dtype for name, x in stored.items() if name.startswith("regression.")} == {torch.float16}
    pipe = SuperResolutionPipeline.from_pretrained(tmp_path / "model")
    pipe.set_progress_bar_config(disable=True)
    assert pipe(Image.new("RGB", (8, 8), (90, 120, 60)), seed=1).images[0].size == (32, 32)


def test_weights_that_are_missing_or_of_another_shape_are_refused(
    training: Any, make_centred: Any, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="`pretrained_regression` must be given: the regression would stay random"):
        training()
    SPAN(2, 4).save_pretrained(tmp_path / "x2")
    with pytest.raises(ValueError, match=r"`pretrained_regression` '.*x2': .*upsampler\.0\.weight"):
        training(pretrained_regression=tmp_path / "x2")
    plain = make_centred(likelihood_location="bicubic", regression_width=None)
    (tmp_path / "lr.json").write_text(plain.to_json_string())
    with pytest.raises(ValueError, match="needs an LRConditioner with likelihood_location 'regression'"):
        training(pretrained_regression=tmp_path / "span")


def test_a_regression_for_another_factor_does_not_fit_a_pipeline(make_vdvae: Any, make_centred: Any) -> None:
    with pytest.raises(ValueError, match="`lr_encoder` was made for scale_factor 2, not 4"):
        SuperResolutionPipeline(make_vdvae(), make_centred(scale_factor=2), scale_factor=4)


def test_the_margin_of_windows_holds_all_that_a_regression_sees() -> None:
    network, centre = Regression(4, 4), 40
    y = levels(1, 2 * centre + 1, seed=1).requires_grad_()
    network(y).image[..., 4 * centre, 4 * centre].sum().backward()
    seen = y.grad.abs().sum((0, 1, 3)).nonzero()
    assert 4 * max(centre - int(seen.min()), int(seen.max()) - centre) <= MARGIN


def test_a_restorer_before_a_network_with_a_regression_changes_nothing_at_first(make_centred: Any) -> None:
    torch.manual_seed(0)
    network, y = make_centred().eval(), levels(1, 4, seed=1)
    own = {name: value for name, value in network.config.items() if not name.startswith("_")}
    combined = LRConditioner(**own | {"restorer_blocks": 1}).eval()
    transfer(network, combined)
    combined.restorer.take(RRDBNet(num_blocks=1))
    assert combined.restorer(y).features.abs().max() > 0.01
    one, other = network.encode(y), combined.encode(y)
    torch.testing.assert_close(one.location, other.location)
    for resolution, x in one.features.items():
        torch.testing.assert_close(x, other.features[resolution])
