"""EDSR, RRDBNet and SRVGGNetCompact against their published implementations, through the published files."""

from pathlib import Path

import pytest
import torch
from compared_cases import Comparison, converted, needs_compared, outputs_of

pytestmark = needs_compared

RRDB_MODULES = {name: name for name in ("conv_first", "body", "conv_body")}
ESRGAN_MODULES = {
    "conv_first": "conv_first",
    "RRDB_trunk.0.RDB1": "body.0.rdb1",
    "RRDB_trunk.0": "body.0",
    "RRDB_trunk": "body",
    "trunk_conv": "conv_body",
    "upconv1_before_lrelu": "conv_up1",
}


@torch.no_grad()
@pytest.mark.parametrize("file", ["weights.pt", "weights.safetensors"])
@pytest.mark.parametrize("name", ["edsr_x2", "edsr_x4"])
def test_edsr_agrees_with_the_published_code(name: str, file: str, tmp_path: Path) -> None:
    case = Comparison(name)
    model, _ = converted(name, file, tmp_path)
    hr, lr = case.pair()
    modules = {"after_sub_mean": "sub_mean", "head": "head", "body.0": "body.0", "body.1": "body.1", "tail.0": "tail.0"}
    out, seen = outputs_of(model, {**modules, "body_out_before_long_skip": "body.2"}, lambda: model(lr * 255).sample)
    case.compare_all(seen)
    case.compare("sr", out)
    case.compare_rounded("sr_quantized", out.clamp(0, 255))
    case.compare("l1_loss", (out - hr * 255).abs().mean())
    case.finish()


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "file", "modules"),
    [
        ("esrgan_rrdb_x4", "weights_old_arch.pth", ESRGAN_MODULES),
        ("esrgan_rrdb_x4", "weights.safetensors", ESRGAN_MODULES),
        ("realesrgan_rrdb_x2", "weights.pth", RRDB_MODULES),
    ],
)
def test_rrdbnet_agrees_with_the_published_code(name: str, file: str, modules: dict[str, str], tmp_path: Path) -> None:
    case = Comparison(name)
    model, _ = converted(name, file, tmp_path)
    _, lr = case.pair()
    case.compare("lr", lr)
    if "pixel_unshuffled" in case.recorded:
        case.compare("pixel_unshuffled", torch.pixel_unshuffle(lr, model.unshuffle))
    # The body is a list of blocks that a checkpointed step runs one by one: its last block has its output.
    last = f"body.{model.config.num_blocks - 1}"
    chosen = {key: last if module == "body" else module for key, module in modules.items()}
    out, seen = outputs_of(model, chosen, lambda: model(lr).sample)
    case.compare_all(seen)
    case.compare("sr", out)
    case.compare_rounded("sr_uint8", out.clamp(0, 1) * 255)
    case.finish()


@torch.no_grad()
def test_srvgg_agrees_with_the_published_code(tmp_path: Path) -> None:
    case = Comparison("realesrgan_srvgg_x4")
    model, _ = converted("realesrgan_srvgg_x4", "weights.pth", tmp_path)
    _, lr = case.pair()
    case.compare("lr", lr)
    modules = {"body.0": "body.0", "body.1": "body.1", "body_last": f"body.{len(model.body) - 1}"}
    out, seen = outputs_of(model, modules, lambda: model(lr).sample)
    case.compare_all(seen)
    case.compare("sr", out)
    case.finish()
