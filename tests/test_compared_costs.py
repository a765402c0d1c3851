"""The table of costs, against what was counted from the published implementations."""

import json
import sys
from pathlib import Path

import pytest
from compared_cases import COMPARED, needs_compared

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import costs  # noqa: E402

ROWS = {  # recorded name -> preset and the number of its row, at 256 x 256 or the network's own size
    "EDSR_x4": ("edsr-x4", 0),
    "EDSR_x2": ("edsr-x2", 0),
    "EDSR_baseline_x4": ("edsr-baseline-x4", 0),
    "EDSR_baseline_x2": ("edsr-baseline-x2", 0),
    "ESRGAN_RRDB_x4 (= RealESRGAN_x4plus)": ("esrgan-x4", 0),
    "RealESRGAN_x2plus": ("realesrgan-x2plus", 0),
    "RealESRGAN_x4plus_anime_6B": ("realesrgan-x4plus-anime-6b", 0),
    "SRVGGNetCompact realesr-animevideov3": ("realesr-animevideov3", 0),
    "SRVGGNetCompact realesr-general-x4v3": ("realesr-general-x4v3", 0),
    "SR3 sr_sr3_16_128 at 128": ("sr3-16-128", 0),
    "SR3 sr_sr3_16_128 weights run at 256": ("sr3-16-128", 1),
    "SR3 sr_sr3_16_128 config built with image_size=256": ("sr3-64-256", 0),
    "SR3 sr_sr3_64_512 at 512": ("sr3-64-512", 0),
    "SR3 sr_sr3_64_512 at 256": ("sr3-64-512", 1),
    "guided diffusion ffhq_10m: forward only": ("dps-ffhq256", 0),
    "DPS ffhq_10m: forward + gradient, parameters frozen": ("dps-ffhq256", 1),
    "guided diffusion imagenet256: forward only": ("dps-imagenet256", 0),
    "DPS imagenet256: forward + gradient, parameters frozen": ("dps-imagenet256", 1),
    "HCFlow SR_DF2K_X4 sampling": ("hcflow-x4", 0),
    "HCFlow SR_DF2K_X4 encoding (forward only)": ("hcflow-x4", 1),
    "HCFlow SR_CelebA_X8 sampling": ("hcflow-face-x8", 0),
    "HCFlow SR_CelebA_X8 encoding (forward only)": ("hcflow-face-x8", 1),
}


LARGE = ("dps-imagenet256", "hcflow-face-x8", "hcflow-x4", "sr3-16-128", "sr3-64-256")
PRESETS = sorted({preset for preset, _ in ROWS.values()})


@needs_compared
@pytest.mark.parametrize(
    "preset", [pytest.param(name, marks=pytest.mark.slow) if name in LARGE else name for name in PRESETS]
)
def test_counted_costs_are_those_of_the_published_networks(preset: str) -> None:
    recorded = json.loads((COMPARED / "costs.json").read_text())["rows"]
    rows = costs.costs_of_preset(preset)
    for name, (owner, index) in ROWS.items():
        if owner == preset:
            row, expected = rows[index], recorded[name]
            assert row.parameters == expected["parameters"]
            assert row.gflop == pytest.approx(expected["gflop_per_evaluation"], abs=0.006)
            assert row.gflop_per_sample == pytest.approx(expected["gflop_per_sample"], rel=1e-3, abs=0.06)


def test_the_command_refuses_sides_that_not_all_networks_take() -> None:
    with pytest.raises(ValueError, match="`--size` must be a multiple of 32, got 100"):
        costs.main(["--size", "100"])
