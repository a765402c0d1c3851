"""LPIPS and FID: formulas with any network, and published values with the pretrained ones."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from scipy.linalg import sqrtm
from stand_ins import random_weights

from hvae_sr.evaluation import PerceptualMetrics, load_perceptual, perceptual, posterior, prepare_standard
from hvae_sr.evaluation.perceptual import LPIPS, find_lpips

REFERENCE = Path(os.environ.get("HVAE_SR_REFERENCE", Path(__file__).resolve().parents[1] / "../shared/reference"))
NETWORKS = Path(os.environ.get("HVAE_SR_LPIPS", REFERENCE.parent / "networks"))


@pytest.fixture
def images(rng):
    a = rng.integers(0, 256, (72, 80, 3), dtype=np.uint8)
    return a, np.clip(a + rng.normal(0, 12, a.shape), 0, 255).astype(np.uint8)


def pretrained(trunk):
    file = find_lpips(trunk, NETWORKS) if NETWORKS.is_dir() else None
    if file is None:
        pytest.skip(f"no weights of LPIPS on {trunk}: set HVAE_SR_LPIPS to their folder")
    return LPIPS.from_file(file)


def test_lpips_of_the_pretrained_vgg16_is_the_published_value():
    """Of ten pairs of random images, as torchmetrics documents it."""
    network = pretrained("vgg16")
    np.random.seed(123)
    first, second = (torch.from_numpy(np.random.rand(10, 3, 100, 100)).float() * 2 - 1 for _ in range(2))
    with torch.no_grad():
        maps = network.maps(network(first), network(second))
    assert sum(network.taps(maps)) == pytest.approx(0.3494, abs=1e-4)


def test_lpips_of_the_pretrained_alexnet_is_that_of_bicubic_on_set5(benchmark_folder):
    """Measured independently on the files of Set5, whole images, PIL's bicubic down and up."""
    network, found = pretrained("alexnet"), []
    for file in sorted((benchmark_folder / "Set5").iterdir()):
        hr = Image.fromarray(prepare_standard(Image.open(file))[0])
        small = hr.resize((hr.width // 4, hr.height // 4), Image.Resampling.BICUBIC)
        found.append(network.distance(np.asarray(hr), np.asarray(small.resize(hr.size, Image.Resampling.BICUBIC))))
    assert np.mean(found) == pytest.approx(0.3397, abs=2e-4)


def alexnet_taps(x, weights):
    def convolve(x, place, **options):
        return F.relu(F.conv2d(x, weights[f"features.{place}.weight"], weights[f"features.{place}.bias"], **options))

    taps = [convolve(x, 0, stride=4, padding=2)]
    taps.append(convolve(F.max_pool2d(taps[-1], 3, 2), 3, padding=2))
    taps.append(convolve(F.max_pool2d(taps[-1], 3, 2), 6, padding=1))
    for place in (8, 10):
        taps.append(convolve(taps[-1], place, padding=1))
    return taps


def test_lpips_is_its_formula(images):
    weights = random_weights("alexnet")
    network = LPIPS(weights)
    planes = torch.from_numpy(np.stack(images).astype(np.float32)).permute(0, 3, 1, 2) / 127.5 - 1
    shift, scale = (torch.tensor(v).view(3, 1, 1) for v in ((-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)))
    expected = []
    for tap, features in enumerate(alexnet_taps((planes - shift) / scale, weights)):
        unit = features.numpy() / np.linalg.norm(features.numpy(), axis=1, keepdims=True)
        head = weights[f"lin{tap}.weight"].flatten().numpy()
        expected.append(np.mean(np.einsum("chw,c->hw", (unit[0] - unit[1]) ** 2, head)))
    maps = network.maps(*map(network.look, images))
    assert network.taps(maps) == pytest.approx(expected, rel=1e-4) and min(expected) > 0
    assert network.distance(*images) == pytest.approx(sum(expected), rel=1e-4)
    assert network.distance(*images) == pytest.approx(network.distance(*images[::-1]))
    assert network.distance(images[0], images[0]) == 0
    heads = [weights[f"lin{tap}.weight"] for tap in range(5)]
    assert perceptual.lpips(*images, network, heads) == pytest.approx(sum(expected), rel=1e-4)
    spatial = network.spatial(maps, (72, 80))
    assert spatial.shape == (72, 80) and spatial.mean() == pytest.approx(sum(expected), rel=0.1)


def test_the_taps_of_vgg16_are_at_full_and_halved_sizes():
    shapes = [tuple(tap.shape[1:]) for tap in LPIPS(random_weights("vgg16"))(torch.zeros(1, 3, 32, 48))]
    assert shapes == [(64, 32, 48), (128, 16, 24), (256, 8, 12), (512, 4, 6), (512, 2, 3)]


def test_maps_show_where_images_differ_and_give_the_diversity_score(images):
    network, (a, b) = LPIPS(random_weights("alexnet")), images
    left, right = a.copy(), a.copy()
    left[:, :40], right[:, 40:] = b[:, :40], b[:, 40:]
    maps = np.stack([network.spatial(network.maps(network.look(x), network.look(a)), (72, 80)) for x in (left, right)])
    assert maps[0, :, :16].mean() > 3 * maps[0, :, -16:].mean()
    assert posterior.diversity_of_maps(maps[:1]) == 0 < posterior.diversity_of_maps(maps) <= 100
    best = maps.min(axis=0).mean() / maps.mean(axis=(1, 2)).min()  # each is right where the other is wrong
    assert posterior.diversity_of_maps(maps) == pytest.approx(100 * (1 - best))


def test_weights_are_found_by_folder_file_or_environment(tmp_path, monkeypatch):
    file = tmp_path / "lpips_alexnet_f32.safetensors"
    save_file(random_weights("alexnet"), file)
    monkeypatch.delenv("HVAE_SR_LPIPS", raising=False)
    assert find_lpips() is None and find_lpips("alexnet", tmp_path) == find_lpips("alexnet", file) == file
    assert find_lpips("vgg16", tmp_path) is None
    found = load_perceptual(["lpips", "lpips_vgg"])
    assert found.lpips is None and "--lpips-weights or HVAE_SR_LPIPS" in found.absent["lpips"]
    monkeypatch.setenv("HVAE_SR_LPIPS", str(tmp_path))
    found = load_perceptual(["lpips", "lpips_vgg"])
    assert found.names == ["lpips"] and found.lpips.name == "alexnet" and list(found.absent) == ["lpips_vgg"]
    with pytest.raises(ValueError, match="`lpips_weights` must be a folder or a .safetensors file"):
        find_lpips("alexnet", tmp_path / "nowhere")
    with pytest.raises(ValueError, match="`lpips_weights`: .* no file called lpips_alexnet"):
        load_perceptual(["lpips_vgg"], lpips_weights=file)


@pytest.mark.parametrize("content", [b"no weights", {"features.0.weight": torch.zeros(2)}, {}])
def test_files_of_other_weights_are_named(tmp_path, content):
    file = tmp_path / "lpips_alexnet.safetensors"
    file.write_bytes(content) if isinstance(content, bytes) else save_file(content, file)
    with pytest.raises(ValueError, match="`lpips_weights`: .*lpips_alexnet.safetensors"):
        LPIPS.from_file(file)


@pytest.mark.parametrize("rows", [(400, 300), (5, 8)])  # more rows than features, and fewer
def test_the_frechet_distance_is_its_formula(rng, rows):
    mixing = rng.normal(size=(12, 12))
    a, b = rng.normal(size=(rows[0], 12)) @ mixing, rng.normal(size=(rows[1], 12)) + 0.5
    covariances = [np.cov(x, rowvar=False) for x in (a, b)]
    root = np.real(np.trace(sqrtm(covariances[0] @ covariances[1])))
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + sum(np.trace(c) for c in covariances) - 2 * root
    assert perceptual.frechet_distance(a, b) == pytest.approx(expected, rel=1e-4)
    assert perceptual.frechet_distance(a, b) == pytest.approx(perceptual.frechet_distance(b, a))
    assert perceptual.frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_networks_that_are_not_installed_are_absent_with_a_reason(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    monkeypatch.delenv("HVAE_SR_LPIPS", raising=False)
    found = load_perceptual()
    assert found.names == ["brisque"] and found.lpips is None and found.features is None
    assert found.absent.keys() == {"lpips", "lpips_vgg", "fid"} and "hvae-sr[metrics]" in found.absent["fid"]
    assert load_perceptual([]).names == PerceptualMetrics().names == []
    with pytest.raises(ValueError, match="`names`.*got psnr"):
        load_perceptual(["psnr"])
