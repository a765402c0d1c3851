"""The recorded cases of the compared systems, and the comparison with them.

Their folder is HVAE_SR_COMPARED, by default `../shared/compared` beside the repository. A case is a subfolder with
`config.json` (published hyper-parameters), published weights, `case.safetensors` (inputs, draws and results) and
`published_keys.json` (keys and shapes of the full-size networks).
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from hvae_sr.baselines.guided_diffusion import published_options
from hvae_sr.checkpoints.compared import ARCHITECTURES, convert_baseline

TOLERANCE = 1e-4  # max|a - b| / max|b|, fp32
COMPARED = Path(os.environ.get("HVAE_SR_COMPARED", Path(__file__).resolve().parents[1] / "../shared/compared"))
needs_compared = pytest.mark.skipif(
    not COMPARED.is_dir(), reason=f"no recorded cases in {COMPARED}: set HVAE_SR_COMPARED to their folder"
)


def published(case: str) -> dict[str, Any]:
    """Keys and shapes of full-size networks, by their published names; empty where there is no such folder."""
    path = COMPARED / case / "published_keys.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def configuration(case: str) -> dict[str, Any]:
    """`config.json` in the terms of `convert_baseline`."""
    c = json.loads((COMPARED / case / "config.json").read_text())
    if case.startswith("edsr"):
        config = {"num_blocks": c["n_resblocks"], "width": c["n_feats"], "scale_factor": c["scale"][0]}
        shift = {"residual_scale": c["res_scale"], "value_range": c["rgb_range"], "mean": c["rgb_mean"]}
        return {"architecture": "EDSR", **config, **shift}
    if case == "esrgan_rrdb_x4":
        return {"architecture": "RRDBNet", "width": c["nf"], "num_blocks": c["nb"], "growth": c["gc"]}
    if case == "realesrgan_rrdb_x2":
        config = {"width": c["num_feat"], "num_blocks": c["num_block"], "growth": c["num_grow_ch"]}
        return {"architecture": "RRDBNet", "scale_factor": c["scale"], **config}
    if case == "realesrgan_srvgg_x4":
        config = {"width": c["num_feat"], "num_layers": c["num_conv"], "scale_factor": c["upscale"]}
        return {"architecture": "SRVGGNetCompact", **config}
    if case.startswith("hcflow"):
        flow = c["network_G"]["flowDownsampler"]
        split = flow["splitOff"]
        steps = {"num_steps": flow["K"], "num_conditional_steps": split["after_flowstep"][0]}
        blocks = {"feature_blocks": split["RRDB_nb"], "feature_width": split["RRDB_nf"]}
        config = {**steps, "hidden_width": flow["hidden_channels"], **blocks, "feature_growth": split["RRDB_gc"]}
        return {"architecture": "HCFlow", "num_levels": flow["L"], **config, "quantisation": c["quant"]}
    if case == "sr3_x4":
        unet = c["unet"]
        betas = [c["beta_schedule"][name] for name in ("n_timestep", "linear_start", "linear_end")]
        return {
            "architecture": "SR3UNet",
            "image_size": c["diffusion"]["image_size"],
            "width": unet["inner_channel"],
            "width_multiples": unet["channel_multiplier"],
            "attention_resolutions": unet["attn_res"],
            "num_res_blocks": unet["res_blocks"],
            "norm_groups": unet["norm_groups"],
            "dropout": unet["dropout"],
            "scheduler": dict(zip(("num_train_timesteps", "beta_start", "beta_end"), betas, strict=True)),
        }
    schedule = {"num_train_timesteps": c["diffusion"]["steps"], "variance_type": c["diffusion"]["model_var_type"]}
    return {"architecture": "GuidedDiffusionUNet", **published_options(**c["model"]), "scheduler": schedule}


def converted(case: str, file: str, folder: Path) -> tuple[Any, Path]:
    """The network in a case's file of weights, and the folder of the pipeline that it became."""
    config = configuration(case)
    output = convert_baseline(COMPARED / case / file, folder / "out", config=config)
    (subfolder,) = {"network", "flow", "unet"} & {path.name for path in output.iterdir()}
    return ARCHITECTURES[config["architecture"]].from_pretrained(output, subfolder=subfolder), output


class Comparison:
    """Compares our tensors with the recorded ones by name, and knows which were never asked for."""

    def __init__(self, case: str | Path) -> None:
        self.config: dict[str, Any] = json.loads((COMPARED / case / "config.json").read_text())
        self.recorded = load_file(COMPARED / case / "case.safetensors")
        self.used: set[str] = set()
        self.errors: dict[str, float] = {}

    def given(self, name: str) -> Tensor:
        self.used.add(name)
        return self.recorded[name]

    def names(self, start: str) -> list[str]:
        return sorted(name for name in self.recorded if name.startswith(start))

    def image(self, name: str, low: float = 0.0, high: float = 1.0) -> Tensor:
        """A recorded uint8 image on [low, high]."""
        return low + self.given(name).float() / 255 * (high - low)

    def pair(self, prefix: str = "") -> tuple[Tensor, Tensor]:
        """The HR and LR images on [0, 1], after a check that PIL's bicubic makes the latter of the former."""
        hr, lr = self.given(f"{prefix}hr_uint8"), self.given(f"{prefix}lr_uint8")
        assert torch.equal(pil_bicubic(hr, (lr.shape[2], lr.shape[3])), lr)
        return hr.float() / 255, lr.float() / 255

    def compare(self, name: str, ours: Tensor | float) -> None:
        """Images of a batch, and channels of a map, of which the first ones alone were recorded, are cut to them."""
        theirs = self.given(name).double()
        value = torch.as_tensor(ours).detach().double()
        if value.ndim == 4:
            value = value[: theirs.shape[0], : theirs.shape[1]]
        if theirs.numel() == 1:
            value, theirs = value.reshape(()), theirs.reshape(())
        assert value.shape == theirs.shape, f"{name}: {tuple(value.shape)} against {tuple(theirs.shape)}"
        scale = theirs.abs().max().item() or 1.0
        self.errors[name] = (value - theirs).abs().max().item() / scale

    def compare_all(self, values: Mapping[Any, Tensor | float], start: str = "") -> None:
        for name, value in values.items():
            self.compare(f"{start}{name}", value)

    def compare_steps(self, chain: Iterable[Any], single: Iterable[Any], compare: Callable[[Any], None]) -> None:
        """The whole chain, and single steps from the recorded x_t: a flipped clamp may not hide the later ones."""
        for step in chain:
            compare(step)
        chained = dict(self.errors)
        for step in single:
            compare(step)
        self.errors = {name: max(error, chained.get(name, 0.0)) for name, error in self.errors.items()}

    def compare_rounded(self, name: str, ours: Tensor) -> None:
        """Compares our image, in grey levels, with a recorded rounded one: what it lies beyond half a level, of 255.

        Two agreeing images may round apart where they lie next to a half.
        """
        beyond = (ours - self.given(name)).abs().max().item() - 0.5
        self.errors[name] = max(0.0, beyond) / 255

    def finish(self) -> None:
        """Prints the worst error (`pytest -rP`), and fails for tensors that differ or were not compared."""
        worst = max(self.errors, key=lambda name: self.errors[name])
        print(f"{len(self.errors)} tensors compared, the worst by {self.errors[worst]:.1e}: {worst}")
        bad = {name: f"{error:.2e}" for name, error in self.errors.items() if not error <= TOLERANCE}
        assert not bad, f"{len(bad)} of {len(self.errors)} tensors differ: {bad}"
        left = sorted(set(self.recorded) - self.used)
        assert not left, f"recorded, but not compared: {left}"


def pil_bicubic(images: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 `[B, 3, h, w]` resized by PIL to `size` = (H, W)."""
    arrays = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    resized = [np.asarray(array.resize(size[::-1], Image.Resampling.BICUBIC)) for array in arrays]
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2)


def outputs_of(model: nn.Module, modules: dict[str, str], call: Callable[[], Any]) -> tuple[Any, dict[str, Tensor]]:
    """What a call returns, and the outputs of modules on the way: names -> tensors, for names -> modules' names."""
    seen: dict[str, Tensor] = {}
    hooks = [
        model.get_submodule(module).register_forward_hook(lambda _, __, out, name=name: seen.__setitem__(name, out))
        for name, module in modules.items()
    ]
    try:
        return call(), seen
    finally:
        for hook in hooks:
            hook.remove()
