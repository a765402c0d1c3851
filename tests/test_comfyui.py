"""The node for ComfyUI, called as ComfyUI calls nodes."""

import importlib.util
import inspect
import sys
import types
from pathlib import Path

import pytest
import torch

from hvae_sr.checkpoints.names import DEFAULT

FOLDER = Path(__file__).resolve().parent.parent / "demo/comfyui"


@pytest.fixture
def comfyui(tmp_path):
    """The folder as ComfyUI loads it: by its path, under a name of its own."""
    specification = importlib.util.spec_from_file_location("custom_nodes_hvae_sr", FOLDER / "__init__.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def node(comfyui):
    return comfyui.NODE_CLASS_MAPPINGS["HvaeSrDiverseUpscale"]()


@pytest.fixture
def arguments(make_pipeline, node, tmp_path):
    """What the node's widgets hold at first, with a tiny model."""
    make_pipeline().save_pretrained(tmp_path / "tiny")
    required = node.INPUT_TYPES()["required"]
    widgets = {name: options["default"] for name, (_, options) in required.items() if "default" in options}
    images = torch.rand(2, 8, 12, 3, generator=torch.Generator().manual_seed(0))
    return widgets | {"image": images, "model": str(tmp_path / "tiny"), "num_samples": 3, "seed": 5}


def test_the_node_gives_the_pipelines_samples_as_comfyui_images(comfyui, node, arguments):
    samples, mean, uncertainty = getattr(node, node.FUNCTION)(**arguments)
    assert samples.shape == (6, 32, 48, 3) and mean.shape == uncertainty.shape == (2, 32, 48, 3)
    out = comfyui._pipeline(arguments["model"])(
        arguments["image"].movedim(-1, 1),
        num_samples=3,
        temperature=arguments["temperature"],
        seed=5,
        output_type="pt",
    )
    assert torch.equal(samples, out.images.movedim(1, -1).float())
    torch.testing.assert_close(mean, out.mean.movedim(1, -1).float())
    torch.testing.assert_close(uncertainty, (out.std.movedim(1, -1) / 0.1).clamp(0, 1))
    for picture in (samples, mean, uncertainty):
        assert picture.dtype == torch.float32 and picture.device.type == "cpu"
        assert picture.min() >= 0 and 0 < picture.max() <= 1


def test_inputs_of_other_nodes_fit(node, arguments):
    opaque = arguments["image"]
    with_alpha = torch.cat([opaque, torch.ones(2, 8, 12, 1)], dim=-1)  # some nodes pass an alpha channel on
    assert torch.equal(node.upscale(**arguments)[0], node.upscale(**arguments | {"image": with_alpha})[0])
    largest = node.INPUT_TYPES()["required"]["seed"][1]["max"]
    assert node.upscale(**arguments | {"seed": largest})[0].isfinite().all()


def test_the_node_declares_itself_as_comfyui_expects(comfyui, node):
    kind = type(node)
    required = kind.INPUT_TYPES()["required"]
    assert list(inspect.signature(getattr(kind, kind.FUNCTION)).parameters)[1:] == list(required)
    assert len(kind.RETURN_TYPES) == len(kind.RETURN_NAMES) == len(kind.OUTPUT_TOOLTIPS)
    assert set(comfyui.NODE_DISPLAY_NAME_MAPPINGS) == set(comfyui.NODE_CLASS_MAPPINGS)
    assert required["model"][1]["default"] == DEFAULT
    assert required["seed"][1]["max"] == 2**64 - 1 and required["seed"][1]["control_after_generate"]
    assert all(options["tooltip"] for _, options in required.values())


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("cancelled_after", [None, 2])
def test_comfyuis_progress_bar_moves_and_its_cancel_button_stops(node, arguments, monkeypatch, cancelled_after):
    counts, totals = [], []

    class ProgressBar:
        def __init__(self, total):
            totals.append(total)

        def update(self, value):
            counts.append(value)

    def throw_exception_if_processing_interrupted():
        if cancelled_after is not None and len(counts) >= cancelled_after:
            raise Interrupted

    parts = {
        "comfy": {},
        "comfy.model_management": {
            "get_torch_device": lambda: torch.device("cpu"),
            "throw_exception_if_processing_interrupted": throw_exception_if_processing_interrupted,
        },
        "comfy.utils": {"ProgressBar": ProgressBar},
    }
    for name, content in parts.items():
        monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(**content))
    if cancelled_after is None:
        assert len(node.upscale(**arguments)[0]) == 6
        assert totals == [6] and counts == [1] * 6
    else:
        with pytest.raises(Interrupted):
            node.upscale(**arguments)
        assert len(counts) == cancelled_after
