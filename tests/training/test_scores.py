"""Distances of the energy score: each is its definition, zero between equal images, and a metric's triangle holds."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from stand_ins import random_weights

from hvae_sr.evaluation.perceptual import LPIPS
from hvae_sr.features import FeatureNetwork
from hvae_sr.training.scores import BandDistance, PatchDistance, PerceptualDistance


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of VGG16 with LPIPS' heads, with random weights up to the second tap."""
    path = tmp_path_factory.mktemp("vgg") / "vgg.safetensors"
    names = [f"features.{n}.{kind}" for n in (0, 2, 5, 7) for kind in ("weight", "bias")]
    tensors = random_weights("vgg16")
    save_file({name: tensors[name] for name in (*names, "lin0.weight", "lin1.weight")}, path)
    return path


@pytest.fixture
def distances(weights):
    return {"patch": PatchDistance((1, 4)), "band": BandDistance((8, 16)), "perceptual": PerceptualDistance(weights, 2)}


def images(seed, side=32):
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("kind", ["patch", "band", "perceptual"])
def test_a_distance_is_symmetric_near_zero_of_equal_images_and_has_gradients(distances, kind):
    distance = distances[kind]
    one, other, third = (images(seed).requires_grad_() for seed in range(3))
    features = [distance.features(x) for x in (one, other, third)]
    between = distance(features[0], features[1])
    assert between.item() == pytest.approx(distance(features[1], features[0]).item())
    assert distance(features[0], features[0]) < 0.02 * between
    assert between <= distance(features[0], features[2]) + distance(features[2], features[1])
    (gradient,) = torch.autograd.grad(between, one, retain_graph=True)
    assert gradient.isfinite().all() and gradient.abs().sum() > 0
    (gradient,) = torch.autograd.grad(distance(features[0], distance.features(one)), one)
    assert gradient.isfinite().all()
    assert not list(distance.parameters()) and not distance.state_dict()  # no part of a checkpoint


def test_bands_tell_specks_from_an_even_grain_of_the_same_energy():
    """Patches see how large the deviations are on average, and log energies where they are."""
    generator = torch.Generator().manual_seed(0)
    even = torch.randn(1, 1, 64, 64, generator=generator).expand(-1, 3, -1, -1) * 0.05
    specks = even * (torch.rand(1, 1, 64, 64, generator=generator) < 0.05) / math.sqrt(0.05)
    distance = BandDistance((32,))
    other_grain = torch.randn(1, 1, 64, 64, generator=generator).expand(-1, 3, -1, -1) * 0.05
    grain, rare, again = (distance.features(x) for x in (even, specks, other_grain))
    assert distance(grain, rare) > 3 * distance(grain, again)


def test_bands_are_those_of_a_direct_computation():
    distance = BandDistance((4,), sigmas=(1.0,), orientations=2, floor=2.0)
    x = images(0, 12)
    luma = (x * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(dim=1).numpy()
    v, u = np.mgrid[-3:4, -3:4].astype(float)
    found = distance.features(x)
    assert [tuple(feature.shape) for feature in found] == [(2, 2, 2, 2)] * 2
    for k, along in enumerate((u, v)):
        kernel = (along**2 - 1) * np.exp(-(u**2 + v**2) / 2)
        kernel -= kernel.mean()
        kernel /= np.linalg.norm(kernel)
        window = luma[0, :10, :10]  # what the first of the windows of 4 x 4 responses sees
        responses = [(window[i : i + 7, j : j + 7] * kernel).sum() for i in range(4) for j in range(4)]
        squares, floor = np.square(responses), (2 / 127.5) ** 2
        assert found[0][0, k, 0, 0] == pytest.approx(np.log(squares + floor).mean(), rel=1e-4)
        assert found[1][0, k, 0, 0] == pytest.approx(np.log(squares.mean() + floor), rel=1e-4)


def test_single_places_of_the_perceptual_distance_are_those_of_lpips(weights):
    """The square of each place, averaged over places, is what the tap adds to LPIPS."""
    distance, network = PerceptualDistance(weights, 2), LPIPS.from_file(weights, num_taps=2)
    one, other = images(0)[:1], images(1)[:1]
    taps = zip(distance.features(one), distance.features(other), distance.network.heads, strict=True)
    found = [float(((a - b).square() * head.clamp(min=0).view(1, -1, 1, 1)).sum(dim=1).mean()) for a, b, head in taps]
    assert found == pytest.approx(network.taps(network.maps(network(one), network(other))), rel=1e-3)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda path: PatchDistance(()), "`patch_sizes`"),
        (lambda path: BandDistance((1,)), r"`windows`.*\(1,\)"),
        (lambda path: PerceptualDistance(path, 6), "`num_taps` must be between 1 and 5, got 6"),
        (lambda path: PerceptualDistance(path, 3), "`lpips_weights`.*features.10.weight"),
        (lambda path: PerceptualDistance("nowhere.safetensors", 2), "`lpips_weights`.*nowhere"),
        (lambda path: FeatureNetwork(random_weights("vgg16") | {"lin1.weight": torch.zeros(3)}), "`weights`.*128"),
    ],
)
def test_wrong_arguments_of_distances_are_named(weights, make, message):
    with pytest.raises(ValueError, match=message):
        make(weights)
