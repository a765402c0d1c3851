"""What comes from elsewhere: damaged images, model folders with code in them."""

import importlib.util
import json
import pickle
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline

from hvae_sr import VDVAE, SuperResolutionPipeline

FUZZ = Path(__file__).parents[1] / "benchmarks" / "fuzz.py"


@pytest.fixture(scope="module")
def fuzz():
    specification = importlib.util.spec_from_file_location("hvae_sr_fuzz", FUZZ)
    module = importlib.util.module_from_spec(specification)
    sys.modules["hvae_sr_fuzz"] = module
    specification.loader.exec_module(module)
    return module


@pytest.mark.filterwarnings("ignore")
def test_damaged_files_of_every_format_are_images_or_one_error(fuzz, tmp_path):
    files = fuzz.originals()
    for name, data in files.items():
        (tmp_path / "whole.png").write_bytes(data)
        assert fuzz.read(tmp_path / "whole.png") == "read", name
    results = []
    for case in range(400):
        name, data = fuzz.mutate(files, 10**6 + case)
        (tmp_path / "case.png").write_bytes(data)
        results.append(fuzz.read(tmp_path / "case.png"))  # anything but an ImageError of one line fails here
    assert {"read", "refused"} == set(results)


class Trap:
    """Runs code when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (Path(self.path),))


@pytest.fixture
def folder(make_pipeline, tmp_path):
    make_pipeline().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "model.pt", "weights.ckpt", "extra.PKL"])
@pytest.mark.parametrize("component", ["vdvae", "lr_encoder"])
@pytest.mark.parametrize("alone", [True, False])
def test_pickled_weights_are_refused_alone_and_beside_others(folder, tmp_path, name, component, alone):
    if alone:
        (folder / component / "diffusion_pytorch_model.safetensors").unlink()
    (folder / component / name).write_bytes(pickle.dumps({"weights": Trap(tmp_path / "ran")}))
    with pytest.raises(ValueError, match="pickled weights"):
        SuperResolutionPipeline.from_pretrained(folder)
    assert not (tmp_path / "ran").exists()


def test_a_harmless_pickle_is_refused_too_and_cannot_be_asked_for(make_vdvae, tmp_path):
    model = make_vdvae()
    model.save_pretrained(tmp_path)
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match="pickled weights"):
        VDVAE.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="use_safetensors=False"):
        VDVAE.from_pretrained(tmp_path, use_safetensors=False)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"vdvae": ["trap_module", "VDVAE"]}, "vdvae"),
        ({"vdvae": ["hvae_sr", "LREncoder"]}, "vdvae"),
        ({"safety": ["trap_module", "Checker"]}, "safety"),
        ({"safety": ["trap_module", 1]}, "safety"),
        ({"_class_name": ["trap_module", "Pipeline"]}, "Pipeline"),
        ({"vdvae": None}, "vdvae"),
    ],
)
def test_an_index_that_names_foreign_classes_is_refused_and_nothing_is_imported(
    folder, tmp_path, monkeypatch, change, named
):
    for place in (tmp_path, folder):
        (place / "trap_module.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass VDVAE: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, **change}))
    with pytest.raises(ValueError, match=named):
        SuperResolutionPipeline.from_pretrained(folder)
    assert not (tmp_path / "ran").exists()


def test_a_pipeline_of_the_folder_is_not_run_without_trust(folder, tmp_path):
    (folder / "pipeline.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(ValueError):
        DiffusionPipeline.from_pretrained(folder, custom_pipeline=str(folder))
    SuperResolutionPipeline.from_pretrained(folder)
    assert not (tmp_path / "ran").exists()
