"""Which network a file of weights holds, by the names and shapes of its tensors.

A file of another architecture is then refused by its name, and not by a list of keys that nobody knows.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Finding:
    """What a file holds.

    Args:
        architecture: its name; one of `READABLE` or of those that are only recognised. None where it is unknown.
        variant: which of the names in use for that architecture.
        options: what names and shapes tell of its configuration, under the names of our class.
    """

    architecture: str | None
    variant: str = ""
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        options = ", ".join(f"{name}={value}" for name, value in self.options.items())
        return self.name + (f" ({options})" if options else "")

    @property
    def name(self) -> str:
        """The architecture with its article."""
        if self.architecture is None:
            return "weights of no known architecture"
        spelt = re.match(r"[EI]|RRDB|RCAN|HCF|HAT|SR|MD", self.architecture)  # letters said as "en", "ar", "aitch"
        return f"{'an' if spelt else 'a'} {self.architecture}"


def identify(state: State) -> Finding:
    """The network that a state dict belongs to."""
    for architecture, variant, patterns, describe in _RULES:
        if all(any(re.match(pattern, key) for key in state) for pattern in patterns):
            try:
                return Finding(architecture, variant, describe(state))
            except (LookupError, ValueError, ZeroDivisionError, StopIteration):  # the layers that tell are missing
                return Finding(architecture, variant)
    return Finding(None)


def count(state: State, pattern: str) -> int:
    """How many numbers the first group of `pattern` takes in the keys: the length of a list of modules."""
    return len({match[1] for key in state if (match := re.match(pattern, key))})


def _nothing(state: State) -> dict[str, Any]:
    return {}


def _edsr(upsampler: str, block: str) -> Callable[[State], dict[str, Any]]:
    """`upsampler` is the name of the list of upsampling layers, `block` that of a block's first convolution."""

    def describe(state: State) -> dict[str, Any]:
        first = state[f"{upsampler}.0.weight"]
        width = first.shape[1]
        steps = count(state, rf"{re.escape(upsampler)}\.(\d+)\.weight")
        scale_factor = {4: 2, 9: 3}[first.shape[0] // width] ** steps
        return {"scale_factor": scale_factor, "num_blocks": count(state, block), "width": width}

    return describe


def _rrdb(first: str, block: str, upsampling: str, beside: int = 0) -> Callable[[State], dict[str, Any]]:
    """`first` is the name of the first convolution, `block` that of the blocks, up to a dense block's first one.

    `upsampling` is the pattern of the layers that follow one enlargement each; where y was not unshuffled, they tell
    the factor; so many layers `beside` them have names like theirs.
    """

    def describe(state: State) -> dict[str, Any]:
        weight = state[f"{first}.weight"]
        inner = next(state[key] for key in state if re.match(block + r".*\.weight$", key))
        steps = len({key for key in state if re.match(upsampling, key)}) - beside
        scale_factor = {0: "1, without unshuffling", 1: "2 or 3, without unshuffling"}.get(steps, 2**steps)
        return {
            "scale_factor": {3: scale_factor, 12: 2, 48: 1}[weight.shape[1]],
            "num_blocks": count(state, block),
            "width": weight.shape[0],
            "growth": inner.shape[0],
        }

    return describe


def _srvgg(state: State) -> dict[str, Any]:
    layers = count(state, r"body\.(\d+)\.")
    last = state[f"body.{layers - 1}.weight"]
    scale_factor = round((last.shape[0] / 3) ** 0.5)
    return {"scale_factor": scale_factor, "num_layers": (layers - 3) // 2, "width": last.shape[1]}


def _span(state: State) -> dict[str, Any]:
    last = state["upsampler.0.weight"]
    return {"scale_factor": round((last.shape[0] / 3) ** 0.5), "width": last.shape[1]}


def _hcflow(state: State) -> dict[str, Any]:
    levels = count(state, r"flow\.level(\d+)_condFlow\.")
    conditional = count(state, r"flow\.level0_condFlow\.additional_flow_steps\.(\d+)\.")
    dense = state["flow.level0_condFlow.RRDB_trunk0.0.RDB1.conv1.weight"]
    return {
        "num_levels": levels,
        "num_steps": conditional + count(state, r"flow\.layers\.(\d+)\.") // levels,
        "num_conditional_steps": conditional,
        "hidden_width": state["flow.layers.1.affine.f.conv1.weight"].shape[0],
        "feature_blocks": [count(state, rf"flow\.level0_condFlow\.RRDB_trunk{i}\.(\d+)\.") for i in (0, 1)],
        "feature_width": dense.shape[1],
        "feature_growth": dense.shape[0],
    }


def _sr3(state: State) -> dict[str, Any]:
    return {"width": state["downs.0.weight"].shape[0]}


def _guided_diffusion(state: State) -> dict[str, Any]:
    return {"time_embedding_dim": state["time_embed.0.weight"].shape[0], "out_channels": state["out.2.weight"].shape[0]}


READABLE = ("EDSR", "RRDBNet", "SRVGGNetCompact", "SPAN", "HCFlow", "SR3UNet", "GuidedDiffusionUNet")

_RULES: tuple[tuple[str, str, tuple[str, ...], Callable[[State], dict[str, Any]]], ...] = (
    # Those that only resemble another one's names come before it.
    ("CVDVAE", "", (r"encoder_y\.|.*\.enc_y\.",), _nothing),
    ("VDVAE-SR", "", (r"vae\.|vae_sr\.",), _nothing),
    ("VD-VAE", "", (r"encoder\.enc_blocks\.", r"decoder\.dec_blocks\."), _nothing),
    ("SRFlow", "", (r"flowUpsamplerNet\.",), _nothing),
    ("latent diffusion model", "", (r"model\.diffusion_model\.",), _nothing),
    ("HAT", "", (r"layers\.0\.residual_group\.overlap_attn\.",), _nothing),
    ("SwinIR", "", (r"layers\.0\.residual_group\.blocks\.0\.attn\.",), _nothing),
    ("Swin2SR of transformers", "", (r"swin2sr\.",), _nothing),
    ("RCAN", "", (r"head\.0\.weight", r"body\.0\.body\.0\.body\.0\."), _nothing),
    ("MDSR", "", (r"head\.0\.weight", r"pre_process\.0\."), _nothing),
    ("SRResNet", "", (r"conv_first\.weight", r"body\.0\.conv1\.", r"upconv1\.", r"conv_hr\."), _nothing),
    ("HCFlow", "", (r"flow\.level0_condFlow\.", r"flow\.layers\.\d+\."), _hcflow),
    ("SR3UNet", "", (r"noise_level_mlp\.", r"downs\.0\.weight"), _sr3),
    ("GuidedDiffusionUNet", "", (r"input_blocks\.0\.0\.weight", r"time_embed\.0\.weight"), _guided_diffusion),
    (
        "EDSR",
        "",
        (r"head\.0\.weight", r"body\.0\.body\.0\.weight", r"tail\."),
        _edsr("tail.0", r"body\.(\d+)\.body\.0\."),
    ),
    (
        "EDSR",
        "BasicSR",
        (r"conv_first\.weight", r"body\.0\.conv1\.weight", r"conv_after_body\."),
        _edsr("upsample", r"body\.(\d+)\.conv1\."),
    ),
    (
        "RRDBNet",
        "BasicSR",
        (r"conv_first\.weight", r"body\.0\.rdb1\."),
        _rrdb("conv_first", r"body\.(\d+)\.rdb1\.conv1\b", r"conv_up\d+\.weight"),
    ),
    (
        "RRDBNet",
        "ESRGAN",
        (r"conv_first\.weight", r"RRDB_trunk\.0\.RDB1\."),
        _rrdb("conv_first", r"RRDB_trunk\.(\d+)\.RDB1\.conv1\b", r"upconv\d+\.weight"),
    ),
    (
        "RRDBNet",
        "old ESRGAN",
        (r"model\.0\.weight", r"model\.1\.sub\.0\.RDB1\."),
        _rrdb("model.0", r"model\.1\.sub\.(\d+)\.RDB1\.conv1\b", r"model\.([2-9]|\d\d+)\.weight", beside=2),
    ),
    ("SPAN", "", (r"block_1\.c1_r\.", r"conv_cat\.weight"), _span),
    ("SRVGGNetCompact", "", (r"body\.0\.weight", r"body\.1\.weight", r"body\.2\.bias"), _srvgg),
)
"""Architecture, variant of names, patterns that must all match some key, and what describes it."""

RECOGNISED = {name for name, *_ in _RULES} - {*READABLE, "VDVAE-SR", "CVDVAE", "VD-VAE"}
"""Those that are not read here at all."""
