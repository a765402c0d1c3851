"""Saving and loading as diffusers' own tests ask for it, where this package reads safetensors only."""

import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from processes import PATIENCE
from safetensors.torch import load_file, save_file

from hvae_sr import EDSR, VDVAE, SuperResolutionPipeline
from hvae_sr.loading import from_diffusers

over_models = pytest.mark.parametrize("kind", ["vdvae", "cvdvae", "vdvae-sr"])


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
    image = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert np.array_equal(*(p(image, seed=0, output_type="np").images for p in (pipe, loaded)))


@over_models
def test_a_missing_variant_is_named_as_diffusers_names_it(make_model: Any, tmp_path: Path, kind: str) -> None:
    model = make_model(kind)
    model.save_pretrained(tmp_path, variant="fp16", max_shard_size="10KB")
    type(model).from_pretrained(tmp_path, variant="fp16")
    with pytest.raises(OSError, match="no file named diffusion_pytorch_model"):
        type(model).from_pretrained(tmp_path)


def test_an_index_of_pickled_shards_is_refused_and_names_a_little_like_it_are_not(
    make_vdvae: Any, tmp_path: Path
) -> None:
    make_vdvae().save_pretrained(tmp_path)
    (tmp_path / "README.pt.md").write_text("em português")
    (tmp_path / "bin").mkdir()
    VDVAE.from_pretrained(tmp_path)
    (tmp_path / "diffusion_pytorch_model.bin.index.json").write_text('{"weight_map": {"x": "../other.bin"}}')
    with pytest.raises(ValueError, match="pickled weights"):
        VDVAE.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("diffusers.pipelines.pipeline_loading_utils", "diffusers.pipelines.pipeline_loading_utils"),
        ("diffusers.a_module_of_long_ago", "diffusers.a_module_of_long_ago"),
        (torch.nn.Linear(1, 1), "Linear"),
    ],
)
def test_a_diffusers_without_a_name_that_is_needed_says_which_versions_have_it(place: object, name: str) -> None:
    with pytest.raises(ImportError, match=rf"has no `{name}._TABLES`.*install 'diffusers>=0.40,<"):
        from_diffusers(place, "_TABLES")


def is_same(folder: Path, pipe: SuperResolutionPipeline, **options: Any) -> bool:
    """Whether a folder loads as this pipeline."""
    pipes = SuperResolutionPipeline.from_pretrained(folder, **options), pipe
    loaded, own = ([*p.vdvae.state_dict().values(), *p.lr_encoder.state_dict().values()] for p in pipes)
    return all(map(torch.equal, loaded, own))


def test_what_was_saved_last_loads_and_other_variants_stay(make_pipeline: Any, tmp_path: Path) -> None:
    first, second = make_pipeline(seed=0), make_pipeline(seed=1)
    first.save_pretrained(tmp_path, max_shard_size="5KB")
    first.save_pretrained(tmp_path, variant="fp16", max_shard_size="5KB")
    second.save_pretrained(tmp_path)
    assert is_same(tmp_path, second) and is_same(tmp_path, first, variant="fp16")
    second.save_pretrained(tmp_path, variant="fp16")
    assert is_same(tmp_path, second, variant="fp16")
    kept = ["config.json", *(f"diffusion_pytorch_model{variant}.safetensors" for variant in ("", ".fp16"))]
    assert sorted(path.name for path in (tmp_path / "vdvae").iterdir()) == sorted(kept)


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps who may read in lists, not in permission bits")
@pytest.mark.parametrize("umask", [0o022, 0o007])
def test_saved_files_may_be_read_by_whom_the_umask_lets(make_pipeline: Any, tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        make_pipeline().save_pretrained(tmp_path / "pipe", max_shard_size="5KB")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "pipe").rglob("*") if path.is_file()}
    assert len(modes) > 5 and set(modes.values()) == {0o666 & ~umask}, modes


@pytest.mark.parametrize("error", [OSError("no space left on device"), KeyboardInterrupt()])
def test_a_saving_that_fails_leaves_the_folder_as_it_was(
    make_pipeline: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    first, second = make_pipeline(seed=0), make_pipeline(seed=1)
    first.save_pretrained(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    calls = []

    def full(tensors: Any, path: Any, **options: Any) -> None:
        calls.append(path)
        if len(calls) == 2:
            Path(path).write_bytes(b"half of it")
            raise error
        save_file(tensors, path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "save_file", full)
        with pytest.raises(type(error)):
            second.save_pretrained(tmp_path)
    assert len(calls) == 2
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_files_of_two_savings_never_load_as_one_pipeline(
    make_pipeline: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = make_pipeline(seed=0), make_pipeline(seed=1)
    first.save_pretrained(tmp_path)
    replace, done = os.replace, []

    def stop(source: Any, place: Any) -> None:
        if ".tmp" not in Path(place).parent.name and tmp_path / "vdvae" in Path(place).parents:
            done.append(place)
            if len(done) == 2:
                raise KeyboardInterrupt
        replace(source, place)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", stop)
        with pytest.raises(KeyboardInterrupt):
            second.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="model_index.json"):
        SuperResolutionPipeline.from_pretrained(tmp_path)
    second.save_pretrained(tmp_path)
    assert is_same(tmp_path, second) and not list(tmp_path.rglob(".*"))


def test_places_and_variants_that_cannot_be_saved_to_are_named(make_pipeline: Any, tmp_path: Path) -> None:
    pipe = make_pipeline()
    (tmp_path / "file").write_text("")
    for saved in (pipe, pipe.vdvae):
        with pytest.raises(ValueError, match="`save_directory` must be a folder"):
            saved.save_pretrained(tmp_path / "file")
        for variant in ("../fp16", "", 16, "v1.1"):
            with pytest.raises(ValueError, match=f"`variant` must be.*{re.escape(repr(variant))}"):
                saved.save_pretrained(tmp_path / "model", variant=variant)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_dtypes_are_known_by_name_and_nothing_else_is_taken_for_float32(
    make_pipeline: Any, tmp_path: Path, name: str
) -> None:
    make_pipeline().save_pretrained(tmp_path)
    for source, load in (
        (tmp_path, SuperResolutionPipeline.from_pretrained),
        (tmp_path / "vdvae", VDVAE.from_pretrained),
    ):
        for value in ("float16", "torch.float16", torch.float16):
            assert load(source, **{name: value}).dtype == torch.float16
        assert load(source, **{name: "auto"}).dtype == torch.float32
        for value in ("fp16", torch.int8, "int8", 16, "nn", torch.float8_e4m3fn):
            with pytest.raises(ValueError, match="`dtype` must be a floating-point dtype"):
                load(source, **{name: value})
    mixed = SuperResolutionPipeline.from_pretrained(tmp_path, **{name: {"vdvae": "bfloat16", "default": "float16"}})
    assert (mixed.vdvae.dtype, mixed.lr_encoder.dtype) == (torch.bfloat16, torch.float16)


def test_threads_may_load_at_once_and_later_models_have_weights(make_vdvae: Any, tmp_path: Path) -> None:
    model = make_vdvae()
    model.save_pretrained(tmp_path)
    loaded: list[Any] = []
    threads = [
        threading.Thread(target=lambda: loaded.extend(VDVAE.from_pretrained(tmp_path) for _ in range(4)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert len(loaded) == 16
    for one in [*loaded, make_vdvae()]:
        assert all(map(torch.equal, one.state_dict().values(), model.state_dict().values()))


BAD_WEIGHTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "have NaN or infinite values: out_conv.weight": lambda w: w * float("inf"),
    "holds integers where VDVAE has weights: out_conv.weight": lambda w: w.int(),
    "holds integers where VDVAE has weights: out_conv.weig": lambda w: w > 0,
}


@pytest.mark.parametrize(("message", "change"), BAD_WEIGHTS.items())
def test_weights_that_are_no_numbers_are_refused(
    make_vdvae: Any, tmp_path: Path, message: str, change: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    make_vdvae().save_pretrained(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    save_file(weights | {"out_conv.weight": change(weights["out_conv.weight"])}, path, {"format": "pt"})
    with pytest.raises(ValueError, match=message):
        VDVAE.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.json", "[" * 100_000),
        ("config.json", '{"_class_name": "VDVAE", "width": "8"}'),
        ("config.json", '{"_class_name": "VDVAE", "width": 0}'),
        ("diffusion_pytorch_model.safetensors.index.json", "{}"),
        ("diffusion_pytorch_model.safetensors.index.json", '{"metadata": {}, "weight_map": {"a": 3}}'),
    ],
)
def test_damaged_folders_of_a_model_are_one_kind_of_error_that_leaves_the_default_dtype(
    make_vdvae: Any, tmp_path: Path, name: str, text: str
) -> None:
    make_vdvae().save_pretrained(tmp_path)
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match="`width`" if "width" in text else "cannot load VDVAE from"):
        VDVAE.from_pretrained(tmp_path, dtype=torch.float16)
    assert torch.get_default_dtype() == torch.float32


def test_networks_and_lists_of_another_kind_are_named(make_vdvae: Any, make_lr_network: Any) -> None:
    vdvae, lr_encoder = make_vdvae(), make_lr_network("cvdvae")
    with pytest.raises(ValueError, match="`vdvae` must be of the class VDVAE, got NoneType"):
        SuperResolutionPipeline(None, lr_encoder)
    with pytest.raises(ValueError, match="`lr_encoder` must be of the class LREncoder or LRConditioner, got VDVAE"):
        SuperResolutionPipeline(vdvae, vdvae)
    with pytest.raises(ValueError, match="called by a text or a path, got None"):
        SuperResolutionPipeline.from_pretrained(None)
    with pytest.raises(ValueError, match="`mean` must be a list, each of it a finite number, got"):
        EDSR(num_blocks=1, width=8, mean=[0.4, "0.4", 0.4])


def test_a_network_of_a_class_that_would_not_be_loaded_is_not_saved(make_pipeline, tmp_path):
    class Own(VDVAE):
        pass

    pipe = make_pipeline()
    own = SuperResolutionPipeline(Own.from_config(pipe.vdvae.config), pipe.lr_encoder)
    with pytest.raises(ValueError, match="'vdvae' must be hvae_sr.VDVAE, is"):
        own.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()
