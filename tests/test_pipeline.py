"""The pipeline: sizes, modes, seeds, consistency, statistics, errors, saving and loading."""

from __future__ import annotations

import json
import logging
import math
import pickle
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import cpu_offload, cpu_offload_with_hook
from diffusers.pipelines import pipeline_utils
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from hvae_sr import Downsampling, SuperResolutionOutput, SuperResolutionPipeline
from hvae_sr.checkpoints.names import resolve
from hvae_sr.pipelines.output import RunningMoments

MakePipeline = Callable[..., SuperResolutionPipeline]
WEIGHTS, CONFIG, INDEX = "vdvae/diffusion_pytorch_model.safetensors", "vdvae/config.json", "model_index.json"

over_kinds = pytest.mark.parametrize("kind", ["cvdvae", "vdvae-sr"])


def photo(height: int = 5, width: int = 6, seed: int = 0, mode: str = "RGB") -> Image.Image:
    levels = np.random.default_rng(seed).integers(60, 196, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(levels).convert(mode)


def as_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255


def draw(pipe: SuperResolutionPipeline, image: Any = None, **options: Any) -> Any:
    """Samples as tensors, of seed 0 unless `options` say else."""
    return pipe(photo() if image is None else image, **{"seed": 0, "output_type": "pt", **options}).images


def psnr(x: Tensor, y: Tensor) -> float:
    """Between Hx and y in dB, peak 1."""
    error = (Downsampling(4, "bicubic")(x.double()) - y.double()).square().mean().item()
    return -10 * math.log10(error)


# Inputs and outputs.


@over_kinds
@pytest.mark.parametrize("size", [(4, 4), (5, 6), (2, 3), (9, 2), (2, 11), (7, 13)])
def test_samples_are_scale_times_as_large_and_consistent(
    make_pipeline: MakePipeline, kind: str, size: tuple[int, int]
) -> None:
    out = make_pipeline(kind)(photo(*size), seed=0, num_samples=3)
    assert [image.size for image in [*out.images, *out.mean]] == [(4 * size[1], 4 * size[0])] * 4
    assert out.std.shape == (1, 4 * size[0], 4 * size[1], 3)
    assert min(out.lr_psnr_float) >= 100  # before the clamp
    assert max(out.lr_psnr_unprojected) < 60


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1", "CMYK"])
def test_every_mode_gives_what_its_rgb_colours_give(make_pipeline: MakePipeline, mode: str) -> None:
    pipe, image = make_pipeline(), photo(mode=mode)
    assert torch.equal(draw(pipe, image), draw(pipe, image.convert("RGB")))


def test_paths_arrays_and_tensors_give_what_the_pil_image_gives(make_pipeline: MakePipeline, tmp_path: Path) -> None:
    pipe, image = make_pipeline(), photo()
    image.save(tmp_path / "photo.png")
    array, tensor = np.array(image), as_tensor(image)
    levels, floats = array.astype(np.uint16) * 257, array.astype(np.float32) / 255
    inputs: list[Any] = [tmp_path / "photo.png", str(tmp_path / "photo.png"), array, floats, tensor, levels]
    inputs += [array[None], tensor[None], torch.from_numpy(array).permute(2, 0, 1), [image], (tensor,)]
    for given in inputs:
        torch.testing.assert_close(draw(pipe, given), draw(pipe, image), rtol=1e-5, atol=1e-5)
    assert torch.equal(draw(pipe, levels.astype(">u2")), draw(pipe, levels))  # of another byte order


def test_a_list_may_mix_kinds_and_sizes(make_pipeline: MakePipeline) -> None:
    pipe = make_pipeline()
    images = [photo(5, 6, 0), np.array(photo(4, 4, 1)), as_tensor(photo(3, 8, 2))]
    out = pipe(images, seed=0, num_samples=2)
    assert [image.size for image in out.images] == [(24, 20)] * 2 + [(16, 16)] * 2 + [(32, 12)] * 2
    assert isinstance(draw(pipe, images), list)
    assert [std.shape for std in out.std] == [(20, 24, 3), (16, 16, 3), (12, 32, 3)]
    latents = pipe(images, num_samples=3, batch_size=2, output_type="latent").latents
    assert [[z.shape[0] for z in image] for image in latents] == [[3] * pipe.vdvae.num_groups] * 3


def test_output_types_and_the_tuple_agree(make_pipeline: MakePipeline) -> None:
    pipe = make_pipeline()
    images = [photo(), photo(seed=1)]
    outputs = {kind: pipe(images, seed=3, num_samples=2, output_type=kind) for kind in ("pil", "np", "pt")}
    assert outputs["np"].images.shape == (4, 20, 24, 3) and outputs["pt"].images.shape == (4, 3, 20, 24)
    assert outputs["np"].mean.shape == (2, 20, 24, 3) and outputs["pt"].std.shape == (2, 3, 20, 24)
    assert np.array_equal(outputs["np"].images, outputs["pt"].images.permute(0, 2, 3, 1).numpy())
    for pil, array in zip(outputs["pil"].images, outputs["np"].images, strict=True):
        assert np.array_equal(np.array(pil), np.round(array * 255))
    for array in (outputs["np"].images, outputs["np"].mean):
        assert 0 <= array.min() and array.max() <= 1
    out, as_tuple = outputs["pt"], pipe(images, seed=3, num_samples=2, output_type="pt", return_dict=False)
    assert isinstance(out, SuperResolutionOutput) and isinstance(as_tuple, tuple)
    assert torch.equal(as_tuple[0], out.images) and torch.equal(out[0], out.images)
    assert len(as_tuple) == len(out.to_tuple())


def test_latents_reproduce_the_images_they_came_from(make_pipeline: MakePipeline) -> None:
    pipe = make_pipeline()
    latents = pipe(photo(), seed=0, num_samples=2, output_type="latent")
    assert latents.images is latents.latents and len(latents.latents) == pipe.vdvae.num_groups
    assert latents.seeds == [0, 1] and latents.lr_psnr is None
    direct = pipe(photo(), seed=0, num_samples=2, output_type="pt", return_latents=True)
    assert torch.equal(draw(pipe, seed=None, num_samples=2, latents=latents.latents), direct.images)
    assert all(torch.equal(a, b) for a, b in zip(direct.latents, latents.latents, strict=True))
    coarse = [z[:1] for z in latents.latents[:2]]  # one row serves every sample
    out = pipe(photo(), seed=5, num_samples=3, latents=coarse, output_type="pt", return_latents=True)
    assert all(torch.equal(kept.expand_as(z), z) for kept, z in zip(coarse, out.latents, strict=False))
    assert not torch.equal(out.images[0], out.images[1])


def test_given_noise_replaces_seeds(make_pipeline: MakePipeline) -> None:
    pipe, y = make_pipeline(), photo(4, 4)
    generator = torch.Generator().manual_seed(0)
    noise = [torch.randn(pipe.vdvae.latent_shape(group, 3, (16, 16)), generator=generator) for group in range(4)]
    out = pipe(y, noise=noise, num_samples=3, output_type="pt")
    assert out.seeds is None
    one = pipe(y, noise=[draws[1:2] for draws in noise], output_type="pt")
    torch.testing.assert_close(one.images[0], out.images[1], rtol=1e-5, atol=1e-5)


# Seeds.


@over_kinds
def test_a_sample_does_not_depend_on_its_batch_or_chunk(make_pipeline: MakePipeline, kind: str) -> None:
    pipe = make_pipeline(kind)
    images = [photo(5, 6, 0), photo(4, 4, 1), photo(5, 6, 2)]
    out = pipe(images, seed=10, num_samples=5, output_type="pt", batch_size=2)
    assert out.seeds == [10, 11, 12, 13, 14] * 3
    for i, image in enumerate(images):
        own = out.images[5 * i : 5 * i + 5]
        chunked = {size: draw(pipe, image, seed=10, num_samples=5, batch_size=size) for size in (1, 2, 3, None)}
        assert all(torch.equal(a, b) for a, b in zip(own, chunked[2], strict=True))
        for images_of_chunk in chunked.values():
            torch.testing.assert_close(images_of_chunk, torch.stack(list(own)), rtol=1e-5, atol=1e-5)
        for j in (0, 3):
            torch.testing.assert_close(own[j], draw(pipe, image, seed=10 + j)[0], rtol=1e-5, atol=1e-5)


def test_every_image_has_a_base_seed_that_reproduces(make_pipeline: MakePipeline) -> None:
    def generator(seed: int) -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    pipe, images = make_pipeline(), [photo(), photo(seed=1)]
    out = pipe(images, seed=[7, np.int64(2)], num_samples=2, output_type="pt")
    assert out.seeds == [7, 8, 2, 3]
    assert torch.equal(out.images[2], draw(pipe, images[1], seed=2)[0])
    out, again = (pipe(images, generator=generator(4), num_samples=2, output_type="pt") for _ in range(2))
    assert out.seeds == again.seeds and torch.equal(out.images, again.images)
    assert torch.equal(draw(pipe, images, seed=out.seeds[::2], num_samples=2), out.images)
    out = pipe(images, generator=[generator(0), generator(1)], output_type="pt")
    alone = pipe(images[1], generator=generator(1), output_type="pt")
    assert out.seeds[1] == alone.seeds[0]
    torch.testing.assert_close(out.images[1:], alone.images, rtol=1e-5, atol=1e-5)
    a, b = (pipe(photo(), output_type="pt") for _ in range(2))  # without any: another each time
    assert a.seeds != b.seeds and not torch.equal(a.images, b.images)
    assert torch.equal(draw(pipe, seed=a.seeds), a.images)


# Statistics and consistency.


@pytest.mark.parametrize("batch_size", [1, 3, None])
def test_mean_and_std_are_those_of_the_images(make_pipeline: MakePipeline, batch_size: int | None) -> None:
    pipe = make_pipeline()
    out = pipe([photo(), photo(seed=1)], seed=0, num_samples=6, output_type="pt", batch_size=batch_size)
    samples = out.images.unflatten(0, (2, 6)).double()
    torch.testing.assert_close(out.mean.double(), samples.mean(dim=1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(out.std.double(), samples.std(dim=1, correction=0), rtol=1e-4, atol=1e-6)
    assert out.std.max() > 0
    one = pipe(photo(), seed=0, output_type="np", batch_size=batch_size)
    assert not one.std.any() and np.array_equal(one.mean[0], one.images[0])


def test_moments_keep_two_images_however_many_are_added() -> None:
    moments, images = RunningMoments(), torch.rand(200, 3, 4, 5) + 100
    for image in images:
        moments.add(image)
        held = [value for value in vars(moments).values() if isinstance(value, Tensor)]
        assert sum(value.untyped_storage().nbytes() for value in held) == 2 * image.numel() * 4
    torch.testing.assert_close(moments.std_(), images.std(dim=0, correction=0), rtol=1e-3, atol=1e-4)


@over_kinds
def test_lr_psnr_is_that_of_the_returned_array(make_pipeline: MakePipeline, kind: str) -> None:
    pipe, y = make_pipeline(kind), photo(7, 5)
    readers = {"pil": as_tensor, "np": lambda x: torch.from_numpy(x).permute(2, 0, 1), "pt": lambda x: x}
    for output_type, read in readers.items():
        out = pipe(y, seed=0, num_samples=3, output_type=output_type)
        expected = [psnr(read(image), as_tensor(y)) for image in out.images]
        assert out.lr_psnr == pytest.approx(expected, abs=0.01), output_type


def test_without_projection_the_samples_are_the_network_s_own(make_pipeline: MakePipeline) -> None:
    pipe, y = make_pipeline(), photo(4, 4)
    out = pipe(y, seed=0, enforce_consistency=False, output_type="pt")
    assert out.lr_psnr_float == out.lr_psnr_unprojected
    projected = pipe(y, seed=0, output_type="pt")
    assert projected.lr_psnr_unprojected == out.lr_psnr_unprojected
    assert not torch.equal(projected.images, out.images)


@over_kinds
def test_temperature_zero_gives_equal_samples_and_none_is_the_pipeline_s_own(
    make_pipeline: MakePipeline, kind: str
) -> None:
    pipe = make_pipeline(kind)
    assert torch.equal(*draw(pipe, num_samples=2, temperature=0, batch_size=1))
    a, b, c = (draw(pipe, temperature=t) for t in (None, 0.8, 0.3))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_temperatures_and_seeds_may_be_arrays(make_pipeline: MakePipeline) -> None:
    pipe, each = make_pipeline(), [0.2, 0.4, 0.6, 0.8]
    expected = draw(pipe, temperature=each, lr_posterior_temperature=each, seed=[3])
    arrays = {"temperature": np.array(each), "lr_posterior_temperature": np.array(each), "seed": np.array([3])}
    assert torch.equal(draw(pipe, **arrays), expected)


def test_zero_conditioned_groups_sample_the_prior(make_pipeline: MakePipeline) -> None:
    pipe, options = make_pipeline(), {"num_conditioned_groups": 0, "enforce_consistency": False}
    assert torch.equal(draw(pipe, photo(4, 4, 0), **options), draw(pipe, photo(4, 4, 1), **options))


@pytest.mark.parametrize(("bits", "level"), [(8, 128.0), (5, 131.5)])
def test_a_five_bit_prior_gives_no_dark_images(make_pipeline: MakePipeline, bits: int, level: float) -> None:
    # A likelihood whose mean is level 128 everywhere: for 5 bits that stands for 128..135.
    pipe = make_pipeline(output_bits=bits)
    with torch.no_grad():
        pipe.vdvae.out_conv.weight.zero_()
        pipe.vdvae.out_conv.bias.zero_()
        pipe.vdvae.out_conv.bias.view(10, 2)[[1, 4, 7]] = 128 / 127.5 - 1
    out = pipe(photo(), seed=0, enforce_consistency=False, output_type="np")
    np.testing.assert_allclose(out.images * 255, level, atol=1e-3)


# Errors.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_samples": 0}, "`num_samples`.*0"),
        ({"num_samples": 1.5}, "`num_samples`.*1.5"),
        ({"num_samples": True}, "`num_samples`.*True"),
        ({"num_samples": None}, "`num_samples`.*None"),
        ({"num_samples": 10**9}, "too little for 1000000000 samples of 24x20"),
        ({"batch_size": 0}, "`batch_size`.*0"),
        ({"window_size": 0}, "`window_size`.*0"),
        ({"output_type": "jpg"}, "`output_type`.*'jpg'"),
        ({"temperature": -1}, "`temperature`.*-1"),
        ({"temperature": math.nan}, "`temperature`.*nan"),
        ({"temperature": "hot"}, "`temperature`.*'hot'"),
        ({"temperature": [1.0, 1.0]}, "`temperature`.*4 groups.*2"),
        ({"temperature": torch.tensor(1.0)}, "`temperature`"),
        ({"temperature": np.array(0.5)}, "`temperature`.*0.5"),
        ({"lr_posterior_temperature": -1.0}, "`lr_posterior_temperature`.*-1"),
        ({"lr_posterior_temperature": [1.0]}, "`lr_posterior_temperature`.*4 groups.*1"),
        ({"num_conditioned_groups": 5}, "`num_conditioned_groups`.*5"),
        ({"num_conditioned_groups": "2"}, "`num_conditioned_groups`.*'2'"),
        ({"seed": 1.5}, "`seed`.*1.5"),
        ({"seed": True}, "`seed`.*True"),
        ({"seed": "a"}, "`seed`.*'a'"),
        ({"seed": torch.tensor([1, 2])}, r"`seed`.*tensor\(\[1, 2\]\)"),
        ({"seed": torch.tensor(1.5)}, r"`seed`.*tensor\(1.5"),
        ({"seed": np.array(1.5)}, "`seed`.*1.5"),
        ({"seed": [1, 2]}, "`seed` has 2 entries for 1 images"),
        ({"seed": 1, "generator": torch.Generator()}, "`seed` and `generator`"),
        ({"generator": [torch.Generator()] * 3}, "`generator` has 3 entries for 1 images"),
        ({"generator": 3}, "`generator`.*3"),
        ({"generator": ["a"]}, "`generator`"),
        ({"noise": [torch.zeros(1, 4, 8, 8)], "seed": 1}, "`noise`.*`seed`"),
        ({"noise": [torch.zeros(2, 4, 8, 8)]}, r"`noise\[0\]`.*N = 1, got \(2, 4, 8, 8\)"),
        ({"noise": [torch.zeros(1, 4, 8, 8)]}, "`noise"),
        ({"noise": torch.zeros(4, 1, 4, 8, 8)}, "`noise` must be a list"),
        ({"latents": [torch.zeros(3, 4, 8, 8)]}, r"`latents\[0\]`.*N = 1"),
        ({"latents": [torch.zeros(1, 4, 1, 1)]}, r"`latents\[0\]`"),
        ({"latents": ["z"]}, r"`latents\[0\]`.*str"),
        ({"latents": [None] * 5}, "`latents`.*at most 4.*5"),
        ({"latents": [torch.full((1, 4, 5, 6), torch.nan)]}, r"`latents\[0\]` holds NaN"),
        ({"latents": 5, "num_fixed_groups": 1}, "`latents`, got int"),
        ({"callback_on_sample_end": print}, "`callback_on_sample_end`.*`pipe.samples"),
        ({"callback_on_step_end": print}, "`callback_on_step_end`.*`pipe.samples"),
        ({"num_images_per_prompt": 3}, "`num_images_per_prompt`.*`num_samples`"),
        ({"num_sample": 3}, "`num_sample`.*did you mean `num_samples`"),
        ({"options": 3}, "`options`.*3"),
        ({"enforce_consistency": "no"}, "`enforce_consistency`.*'no'"),
        ({"temperature": True}, "`temperature`.*True"),
        ({"tile": True}, "`tile=True` has no effect"),
        ({"noise": [torch.zeros(1, 4, 8, 8)] * 5}, "`noise`.*at most 4.*5"),
    ],
)
def test_bad_arguments_are_refused_by_name(
    make_pipeline: MakePipeline, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        make_pipeline()(photo(), **arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_samples_that_are_not_finite_are_refused(make_pipeline: MakePipeline, output_type: str, value: float) -> None:
    pipe = make_pipeline()
    with torch.no_grad():
        pipe.vdvae.out_conv.bias.fill_(value)
    with pytest.raises(ValueError, match="not finite.*`dtype`"):
        pipe(photo(), seed=0, output_type=output_type)


@pytest.mark.parametrize(
    "image",
    [None, 3, [], "no-such-file.png", np.zeros((4, 4, 2), np.uint8), np.full((4, 4, 3), 200.0)]
    + [torch.zeros(2, 4, 4), torch.full((3, 4, 4), torch.nan), Image.new("RGB", (1, 9)), torch.zeros(3, 0, 4)],
    ids=lambda image: type(image).__name__,
)
def test_bad_images_are_refused(make_pipeline: MakePipeline, image: Any) -> None:
    with pytest.raises(ValueError, match="image|no-such-file.png") as error:
        make_pipeline()(image)
    assert "\n" not in str(error.value)


def test_images_say_what_is_wrong_with_them(make_pipeline: MakePipeline, tmp_path: Path) -> None:
    pipe = make_pipeline()
    with pytest.raises(ValueError, match="`noise` and `latents` need images of one size"):
        pipe([photo(4, 4), photo(5, 6)], latents=[None])
    with pytest.raises(ValueError, match=r"floats must lie in \[0, 1\], got values up to 255"):
        pipe(np.full((8, 8, 4), 255.0))
    photo().save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        pass
    with pytest.raises(ValueError, match="^image: its file was closed before its pixels were read$"):
        pipe(image)


def test_networks_that_do_not_fit_are_refused(
    make_pipeline: MakePipeline, make_vdvae: Any, make_lr_network: Any
) -> None:
    with pytest.raises(ValueError, match="`scale_factor` = 2 does not fit"):
        SuperResolutionPipeline(make_vdvae(), make_lr_network("cvdvae"), scale_factor=2)
    with pytest.raises(ValueError, match="decoder_width"):
        SuperResolutionPipeline(make_vdvae(width=16), make_lr_network("cvdvae"))
    pipe = make_pipeline("vdvae-sr")
    pipe.lr_encoder = make_lr_network("vdvae-sr", decoder_blocks="4x1,8m4,16m8")
    with pytest.raises(ValueError, match="`lr_encoder` was made for decoder_blocks"):
        pipe(photo(4, 4))
    pipe = make_pipeline()
    pipe.vdvae.to("meta")  # as weights that were not loaded
    with pytest.raises(ValueError, match="'meta'"):
        pipe(photo())


@pytest.mark.parametrize("temperature", [-3, "abc", math.nan, [0.1, 0.2], [0.5] * 4], ids=str)
def test_a_default_temperature_that_cannot_be_is_refused_at_once(make_pipeline: MakePipeline, temperature: Any) -> None:
    must = " must be a number" if isinstance(temperature, list) else ""
    with pytest.raises(ValueError, match=f"`default_temperature`{must}"):
        SuperResolutionPipeline(**make_pipeline().components, default_temperature=temperature)


# Saving, loading, and what diffusers asks of a pipeline.


@over_kinds
@pytest.mark.parametrize("options", [{}, {"variant": "fp16"}, {"max_shard_size": "10KB"}], ids=str)
def test_a_saved_pipeline_loads_and_computes_the_same(
    make_pipeline: MakePipeline, kind: str, options: dict[str, Any], tmp_path: Path
) -> None:
    pipe = make_pipeline(kind)
    pipe.save_pretrained(tmp_path, **options)
    named = {"variant": options.get("variant"), "dtype": torch.float32, "default_temperature": 0.5}
    loaded = SuperResolutionPipeline.from_pretrained(tmp_path, **named)
    assert isinstance(loaded.lr_encoder, type(pipe.lr_encoder)) and loaded.config.default_temperature == 0.5
    assert torch.equal(draw(loaded, temperature=0.8), draw(pipe))
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["vdvae"] == ["hvae_sr", "VDVAE"] and index["scale_factor"] == 4
    assert index["default_temperature"] == 0.8 and index["downsampling_kernel"] == "bicubic"


def test_numbers_of_numpy_and_torch_are_saved_as_numbers_and_loaded_without_a_warning(
    make_vdvae: Any, make_lr_network: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel, x, warnings = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8, torch.rand(3, 8, 8), []
    loader = logging.getLogger("diffusers.pipelines.pipeline_utils")
    monkeypatch.setattr(loader, "warning", lambda message, *_: warnings.append(message))
    projecting = make_lr_network("vdvae-sr", likelihood_location="projection", downsampling_kernel=kernel)
    of_factor_2 = make_lr_network("cvdvae", image_size=8, blocks="8x1,8d2,4x1", upsampling_blocks=None)
    numbers = {"scale_factor": np.int64(4), "default_temperature": np.float32(0.5), "downsampling_kernel": kernel}
    for network, given in (
        (projecting, numbers),
        (of_factor_2, {"scale_factor": 2, "downsampling_kernel": (0.5, 0.5)}),
    ):
        pipe = SuperResolutionPipeline(make_vdvae(), network, **given)
        pipe.save_pretrained(tmp_path)
        loaded = SuperResolutionPipeline.from_pretrained(tmp_path)
        assert not warnings
        assert loaded.operator.kernel == pipe.operator.kernel and torch.equal(loaded.operator(x), pipe.operator(x))
        assert loaded.config.default_temperature == given.get("default_temperature", 0.8)
    assert projecting.operator.kernel == Downsampling(4, kernel).kernel


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_finite_and_close(make_pipeline: MakePipeline, dtype: torch.dtype, tmp_path: Path) -> None:
    pipe = make_pipeline()
    pipe.save_pretrained(tmp_path)
    half = SuperResolutionPipeline.from_pretrained(tmp_path, dtype=dtype)
    assert half.vdvae.dtype == half.lr_encoder.dtype == dtype
    out = half(photo(), seed=0, num_samples=2, output_type="pt")
    assert out.images.dtype == torch.float32 and (out.images - draw(pipe, num_samples=2)).abs().mean() < 0.02
    assert min(out.lr_psnr_float) >= 100
    assert torch.equal(draw(pipe.to(dtype=dtype), num_samples=2), out.images)


def test_components_may_have_dtypes_of_their_own_and_be_passed_in(make_pipeline: MakePipeline, tmp_path: Path) -> None:
    pipe = make_pipeline()
    pipe.save_pretrained(tmp_path)
    dtypes = {"vdvae": torch.bfloat16, "default": torch.float16}
    loaded = SuperResolutionPipeline.from_pretrained(tmp_path, torch_dtype=dtypes)
    assert SuperResolutionPipeline.from_pretrained(tmp_path, vdvae=pipe.vdvae).vdvae is pipe.vdvae
    assert (loaded.vdvae.dtype, loaded.lr_encoder.dtype) == (torch.bfloat16, torch.float16)
    again = SuperResolutionPipeline.from_pipe(loaded)
    assert again.lr_encoder is loaded.lr_encoder
    assert (loaded.vdvae.dtype, loaded.lr_encoder.dtype) == (torch.bfloat16, torch.float16)
    other = SuperResolutionPipeline.from_pipe(pipe)
    assert set(pipe.components) == {"vdvae", "lr_encoder"} and other.components == pipe.components
    assert other.config.scale_factor == 4


def test_a_pipeline_from_another_computes_as_it_does(make_pipeline: MakePipeline) -> None:
    pipe = make_pipeline()
    assert SuperResolutionPipeline.from_pipe(pipe).inference_dtype == torch.float32
    pipe.enable_fast_inference(torch.bfloat16)
    assert SuperResolutionPipeline.from_pipe(pipe).inference_dtype == torch.bfloat16
    assert SuperResolutionPipeline.from_pipe(pipe, torch_dtype=torch.float32).inference_dtype == torch.float32
    other = SuperResolutionPipeline.from_pipe(pipe, fast_inference=False)
    assert other.inference_dtype == torch.float32 and pipe.inference_dtype == torch.bfloat16
    for dtype in (torch.bfloat16, torch.float64):  # of the weights, which both have
        pipe = make_pipeline().to(dtype)
        assert SuperResolutionPipeline.from_pipe(pipe).inference_dtype == dtype == pipe.vdvae.dtype


@pytest.mark.parametrize("method", ["__call__", "quantiles", "samples"])
def test_offloaded_networks_leave_the_device_after_an_error_too(
    make_pipeline: MakePipeline, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    pipe, freed = make_pipeline(), []
    monkeypatch.setattr(pipe, "maybe_free_model_hooks", lambda: freed.append(True))
    monkeypatch.setattr(pipe.vdvae, "sample", lambda *args, **options: (_ for _ in ()).throw(MemoryError()))
    y = torch.rand(3, 4, 4)
    with pytest.raises(MemoryError):
        list(pipe.samples(y, [0])) if method == "samples" else getattr(pipe, method)(y)
    assert freed


def test_without_the_encoder_all_networks_are_placed_by_a_device_map(
    make_pipeline: MakePipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_pipeline().save_pretrained(tmp_path)
    supported = [*pipeline_utils.SUPPORTED_DEVICE_MAP, "meta"]  # in the place of a GPU
    monkeypatch.setattr(pipeline_utils, "SUPPORTED_DEVICE_MAP", supported)
    pipe = SuperResolutionPipeline.from_pretrained(tmp_path, device_map="meta", load_encoder=False)
    assert pipe.vdvae.device.type == pipe.lr_encoder.device.type == "meta"


def test_a_variant_that_one_network_has_is_loaded_without_the_encoder_too(
    make_pipeline: MakePipeline, tmp_path: Path
) -> None:
    pipe = make_pipeline()
    pipe.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="variant=fp16"):
        SuperResolutionPipeline.from_pretrained(tmp_path, variant="fp16")
    pipe.lr_encoder.save_pretrained(tmp_path / "lr_encoder", variant="fp16")
    (tmp_path / "lr_encoder" / "diffusion_pytorch_model.safetensors").unlink()
    for load_encoder in (True, False):
        SuperResolutionPipeline.from_pretrained(tmp_path, variant="fp16", load_encoder=load_encoder)


@over_kinds
def test_pixels_are_drawn_for_every_sample_where_the_latents_are_the_same(
    make_pipeline: MakePipeline, kind: str
) -> None:
    pipe, y = make_pipeline(kind), torch.rand(3, 5, 6, generator=torch.Generator().manual_seed(0))
    options = {"sample_pixels": True, "temperature": 0, "num_samples": 3}
    together = draw(pipe, y, **options)
    assert not torch.equal(together[0], together[1])
    torch.testing.assert_close(draw(pipe, y, **options, batch_size=1), together)
    latents = pipe(y, seed=0, output_type="latent").latents
    assert len(draw(pipe, y, latents=latents, num_samples=2, sample_pixels=True)) == 2


def test_the_progress_bar_counts_samples_and_can_be_turned_off(
    make_pipeline: MakePipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe = make_pipeline()
    pipe([photo(), photo()], num_samples=2)
    assert capsys.readouterr().err == ""
    pipe.set_progress_bar_config(disable=False)
    pipe([photo(), photo()], num_samples=2)
    assert "4/4" in capsys.readouterr().err


@over_kinds
@pytest.mark.parametrize("dtype", [torch.float32, "auto"], ids=str)
def test_offloading_to_the_cpu_gives_the_same(make_pipeline: MakePipeline, kind: str, dtype: Any) -> None:
    whole, by_model, by_layer = pipes = [make_pipeline(kind) for _ in range(3)]
    hook = None
    for name in by_model.model_cpu_offload_seq.split("->"):
        _, hook = cpu_offload_with_hook(getattr(by_model, name), torch.device("cpu"), prev_module_hook=hook)
    for component in by_layer.components.values():
        cpu_offload(component, torch.device("cpu"))
    assert {parameter.device.type for parameter in by_layer.vdvae.blocks.parameters()} == {"meta"}
    for pipe in pipes:
        pipe.enable_fast_inference(dtype)
    for pipe in (by_model, by_layer):
        difference = draw(pipe, num_samples=2) - draw(whole, num_samples=2)
        # Layers whose weights come and go are not merged: sums are rounded in another order.
        assert dtype == "auto" or difference.abs().max() <= 1e-5
        assert difference.square().mean() <= 1e-9  # in bfloat16 too: streams and heads are in float32 all the same


@over_kinds
def test_weights_are_on_the_device_whenever_a_component_is_used(make_pipeline: MakePipeline, kind: str) -> None:
    # What `enable_model_cpu_offload` does: a component's use moves it in, and the one before it in the sequence out.
    pipe = make_pipeline(kind)
    present: set[str] = set()

    def move(name: str, *_: Any) -> None:
        present.add(name)
        present.difference_update({"lr_encoder"} if name == "vdvae" else ())

    def check(name: str, *_: Any) -> None:
        assert name in present, f"{name} was used while it was offloaded"

    for name, component in pipe.components.items():
        component._hf_hook = SimpleNamespace(pre_forward=partial(move, name))
        for module in list(component.modules())[1:]:
            module.register_forward_pre_hook(partial(check, name))
    pipe([photo(), photo(seed=1)], seed=0, num_samples=2, batch_size=1)


@pytest.mark.parametrize("name", ["no-such-model", "./no/such/folder", "a/b/c", ""])
def test_unknown_models_are_named(name: str) -> None:
    with pytest.raises(ValueError) as error:
        SuperResolutionPipeline.from_pretrained(name)
    assert repr(name) in str(error.value) and "\n" not in str(error.value)


def test_hub_ids_folders_and_files_are_told_apart(make_pipeline: MakePipeline, tmp_path: Path) -> None:
    assert resolve("owner/name") == "owner/name"
    assert resolve(tmp_path) == str(tmp_path)
    make_pipeline().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="a model is a folder, .*model_index.json' is a file"):
        SuperResolutionPipeline.from_pretrained(tmp_path / INDEX)


def set_bias(file: Path, value: Tensor | None) -> None:
    """Another bias of the last layer, or none, in a file of weights."""
    weights = load_file(file) | {"out_conv.bias": value}
    save_file({name: v for name, v in weights.items() if v is not None}, file, metadata={"format": "pt"})


def set_value(file: Path, name: str, value: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | {name: value}))


@pytest.mark.parametrize(
    ("name", "damage", "named"),
    [
        (WEIGHTS, lambda file: file.write_bytes(file.read_bytes()[:100]), "vdvae"),
        (WEIGHTS, lambda file: file.write_bytes(b"not weights" * 50), "vdvae"),
        (WEIGHTS, Path.unlink, "vdvae"),
        (WEIGHTS, lambda file: file.rename(file.with_suffix(".bin")).write_bytes(pickle.dumps([print])), "vdvae"),
        (WEIGHTS, lambda file: shutil.rmtree(file.parent), "config.json"),
        (WEIGHTS, lambda file: set_bias(file, None), "out_conv.bias"),
        (WEIGHTS, lambda file: set_bias(file, torch.zeros(3)), "out_conv.bias"),
        (INDEX, lambda file: file.write_text("{"), INDEX),
        (INDEX, lambda file: set_value(file, "vdvae", ["hvae_sr", "NoSuchModel"]), "NoSuchModel"),
        (CONFIG, lambda file: set_value(file, "bottleneck_multiple", math.inf), ""),
        (CONFIG, lambda file: set_value(file, "max_log_sigma", "x"), "max_log_sigma"),
        (CONFIG, lambda file: set_value(file, "max_log_sigma", []), "max_log_sigma"),
    ],
)
def test_damaged_folders_are_refused_in_one_line_that_names_the_file(
    make_pipeline: MakePipeline, name: str, damage: Callable[[Path], Any], named: str, tmp_path: Path
) -> None:
    make_pipeline().save_pretrained(tmp_path)
    damage(tmp_path / name)
    with pytest.raises(ValueError) as error:
        SuperResolutionPipeline.from_pretrained(tmp_path)
    message = str(error.value)
    assert "\n" not in message and str(tmp_path) in message
    assert named in message.replace(str(tmp_path), "", 1)


def test_an_output_is_shown_by_shapes_and_pictures(make_pipeline: MakePipeline) -> None:
    out = make_pipeline()(photo(), num_samples=2, seed=0)
    text = repr(out)
    assert len(text) < 600 and "images=[RGB" in text and "std=ndarray(1, " in text
    assert out._repr_html_().count("<img") == 2 and "seed 1" in out._repr_html_()
    for kind in ("latent", "np"):  # lists of other things are no pictures
        assert make_pipeline()([photo(), photo(4, 4)], output_type=kind)._repr_html_().startswith("<pre>")
    assert "array([" not in repr(make_pipeline()(photo(), seed=0, output_type="np"))


def test_samples_come_one_by_one_and_are_those_of_a_call(make_pipeline: MakePipeline) -> None:
    pipe = make_pipeline()
    whole = pipe(photo(), num_samples=3, seed=4, output_type="pt")
    nothing = dict.fromkeys(("latents", "num_samples", "num_fixed_groups", "noise", "seed", "generator"))
    samples = pipe.samples(photo(), [6, 4], output_type="pt", **nothing)
    first = next(samples)
    assert first.seed == 6 and torch.equal(first.x, whole.images[2]) and first.lr_psnr == whole.lr_psnr[2]
    assert torch.equal(next(samples).x, whole.images[0]) and next(samples, None) is None
    assert [one.seed for one in pipe.samples(photo(), np.array([0]), output_type="latent")] == [0]
    refused: dict[str, dict[str, Any]] = {
        "`seeds` or": {},
        "`recipes`": {"recipes": [1]},
        "`latents`": {"seeds": [0], "latents": []},
        "`seeds`": {"seeds": []},
        "`seed`": {"seeds": [1.5]},
        "`seed` is an argument of a call": {"seeds": [1], "seed": 0},
    }
    for message, arguments in refused.items():
        with pytest.raises(ValueError, match=message):
            pipe.samples(photo(), **arguments)  # before the first sample is asked for


# Models that do not know H


def test_a_model_that_does_not_know_the_degradation_projects_nothing(make_pipeline, tmp_path):
    exact = make_pipeline()
    SuperResolutionPipeline(**exact.components, consistency="none").save_pretrained(tmp_path)
    pipe = SuperResolutionPipeline.from_pretrained(tmp_path)
    assert pipe.config.consistency == "none" and exact.config.consistency == "exact"
    y = photo()
    found, expected = (p(y, seed=0, output_type="pt", enforce_consistency=e) for p, e in ((pipe, None), (exact, False)))
    assert torch.equal(found.images, expected.images) and found.lr_psnr == expected.lr_psnr
    for call in (pipe, pipe.quantiles):
        with pytest.raises(ValueError, match="`enforce_consistency`.*degradation is not known"):
            call(y, enforce_consistency=True)
    with pytest.raises(ValueError, match="`consistency` must be one of 'exact', 'none'; got 'soft'"):
        SuperResolutionPipeline(**exact.components, consistency="soft")


def test_folders_from_before_consistency_was_an_option_are_exact(make_pipeline, tmp_path):
    make_pipeline().save_pretrained(tmp_path)
    saved = json.loads((tmp_path / INDEX).read_text())
    del saved["consistency"]
    (tmp_path / INDEX).write_text(json.dumps(saved))
    pipe = SuperResolutionPipeline.from_pretrained(tmp_path)
    assert pipe.config.consistency == "exact"
    assert min(pipe(photo(), seed=0).lr_psnr_float) > 60


def test_pipelines_that_share_networks_and_not_the_dtype_take_turns(make_pipeline: MakePipeline) -> None:
    exact = make_pipeline()
    fast = SuperResolutionPipeline.from_pipe(exact)
    fast.enable_fast_inference(torch.bfloat16)
    expected = {pipe: draw(pipe) for pipe in (exact, fast)}

    def repeats(pipe: SuperResolutionPipeline) -> bool:
        return all(torch.equal(draw(pipe), expected[pipe]) for _ in range(6))

    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(repeats, (exact, fast)))
