"""EDSR, RRDBNet and SRVGGNetCompact against their published implementations, through the published files."""

from pathlib import Path

import pytest
import torch
from compared_cases import Comparison, converted, needs_compared, outputs_of

# Names of recorded tensors -> of our modules. A checkpointed step runs the blocks of RRDBNet's body one by one: the
# last one has its output.
EDSR = {
    "after_sub_mean": "sub_mean", "head": "head", "body.0": "body.0", "body.1": "body.1", "tail.0": "tail.0",
    "body_out_before_long_skip": "body.2",
}  # fmt: skip
ESRGAN = {
    "conv_first": "conv_first", "RRDB_trunk.0.RDB1": "body.0.rdb1", "RRDB_trunk.0": "body.0",
    "RRDB_trunk": "body.{last}", "trunk_conv": "conv_body", "upconv1_before_lrelu": "conv_up1",
}  # fmt: skip
RRDB = {"conv_first": "conv_first", "body": "body.{last}", "conv_body": "conv_body"}
SRVGG = {"body.0": "body.0", "body.1": "body.1", "body_last": "body.{last}"}


@needs_compared
@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "file", "modules"),
    [
        *((name, file, EDSR) for name in ("edsr_x2", "edsr_x4") for file in ("weights.pt", "weights.safetensors")),
        *(("esrgan_rrdb_x4", file, ESRGAN) for file in ("weights_old_arch.pth", "weights.safetensors")),
        ("realesrgan_rrdb_x2", "weights.pth", RRDB),
        ("realesrgan_srvgg_x4", "weights.pth", SRVGG),
    ],
)
def test_a_regression_agrees_with_the_published_code(
    name: str, file: str, modules: dict[str, str], tmp_path: Path
) -> None:
    case = Comparison(name)
    model, _ = converted(name, file, tmp_path)
    hr, lr = case.pair()
    whole = model.config.get("value_range", 1)
    chosen = {key: module.format(last=len(model.body) - 1) for key, module in modules.items()}
    out, seen = outputs_of(model, chosen, lambda: model(lr * whole).sample)
    case.compare_all({**seen, "sr": out})
    others = {"lr": lr, "pixel_unshuffled": torch.pixel_unshuffle(lr, model.unshuffle)}
    others["l1_loss"] = (out - hr * whole).abs().mean()
    case.compare_all({key: value for key, value in others.items() if key in case.recorded})
    for key in {"sr_quantized", "sr_uint8"} & case.recorded.keys():
        case.compare_rounded(key, out.clamp(0, whole) / whole * 255)
    case.finish()
