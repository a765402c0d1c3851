"""Saving and loading as diffusers' own tests ask for it, where this package reads safetensors only."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hvae_sr import SuperResolutionPipeline
from hvae_sr.loading import from_diffusers

over_models = pytest.mark.parametrize("kind", ["vdvae", "cvdvae", "vdvae-sr"])


def image() -> torch.Tensor:
    return torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_a_pipeline_saved_without_safe_serialization_is_safetensors_and_loads(
    make_pipeline: Any, tmp_path: Path, variant: str | None
) -> None:
    pipe = make_pipeline()
    pipe.save_pretrained(tmp_path, safe_serialization=False, variant=variant)
    weights = sorted(path.name for path in tmp_path.glob("*/*") if path.suffix != ".json")
    assert weights == [f"diffusion_pytorch_model.{variant + '.' if variant else ''}safetensors"] * 2
    loaded = SuperResolutionPipeline.from_pretrained(tmp_path, variant=variant)
    loaded.set_progress_bar_config(disable=True)
    images = [p(image(), seed=0, output_type="np").images for p in (pipe, loaded)]
    assert np.array_equal(*images)


@over_models
def test_a_missing_variant_is_named_as_diffusers_names_it(make_model: Any, tmp_path: Path, kind: str) -> None:
    model = make_model(kind)
    model.save_pretrained(tmp_path, variant="fp16", max_shard_size="10KB")
    type(model).from_pretrained(tmp_path, variant="fp16")
    with pytest.raises(OSError, match="no file named diffusion_pytorch_model"):
        type(model).from_pretrained(tmp_path)


def test_an_index_of_pickled_shards_is_refused(make_vdvae: Any, tmp_path: Path) -> None:
    model = make_vdvae()
    model.save_pretrained(tmp_path)
    (tmp_path / "diffusion_pytorch_model.bin.index.json").write_text('{"weight_map": {"x": "../other.bin"}}')
    with pytest.raises(ValueError, match="pickled weights"):
        type(model).from_pretrained(tmp_path)


def test_names_that_look_a_little_like_weights_are_no_weights(make_vdvae: Any, tmp_path: Path) -> None:
    model = make_vdvae()
    model.save_pretrained(tmp_path)
    (tmp_path / "README.pt.md").write_text("em português")
    (tmp_path / "bin").mkdir()
    type(model).from_pretrained(tmp_path)


@pytest.mark.parametrize("module", ["diffusers.pipelines.pipeline_loading_utils", "diffusers.a_module_of_long_ago"])
def test_a_diffusers_without_a_name_that_is_needed_says_which_versions_have_it(module: str) -> None:
    with pytest.raises(ImportError, match=rf"has no `{module}.TABLES`.*install 'diffusers>=0.40,<"):
        from_diffusers(module, "TABLES")


def test_a_registry_that_diffusers_keeps_elsewhere_is_named() -> None:
    with pytest.raises(ImportError, match="has no `Linear._hooks_of_diffusers`.*install 'diffusers>=0.40,<"):
        from_diffusers(torch.nn.Linear(1, 1), "_hooks_of_diffusers")
