"""A network with fewer blocks, and one that ends in a pixel shuffle."""

from typing import Any

import pytest
import torch

from hvae_sr.baselines import EDSR, RRDBNet
from hvae_sr.checkpoints.pruning import take_blocks

SHAPE: dict[str, Any] = {"width": 8, "growth": 4}


@pytest.fixture
def trained() -> RRDBNet:
    torch.manual_seed(1)
    network = RRDBNet(num_blocks=5, **SHAPE)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.1)
    return network


def test_a_block_that_is_left_out_leaves_its_gain(trained: RRDBNet) -> None:
    """Against the trained network in which those blocks give 1.2 h."""
    fewer = RRDBNet(num_blocks=2, **SHAPE)
    assert take_blocks(fewer, trained, [1, 4]) == set()
    for block in (0, 2, 3):
        trained.body[block] = Gain()
    y = torch.rand(2, 3, 6, 5, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        torch.testing.assert_close(fewer(y).sample, trained(y).sample)


class Gain(torch.nn.Module):
    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return 1.2 * h


def test_what_comes_after_the_blocks_may_be_new(trained: RRDBNet) -> None:
    fewer = RRDBNet(num_blocks=5, upsampling="pixelshuffle", **SHAPE)
    new = take_blocks(fewer, trained, range(5))
    assert new == {"conv_last.weight", "conv_last.bias"}
    y = torch.rand(1, 3, 6, 5)
    torch.testing.assert_close(fewer.features(y), trained.features(y))


@pytest.mark.parametrize("blocks", [[0], [0, 5], [1, 1], [3, 1], [-1, 2], [0, 1, 2]])
def test_other_blocks_are_refused(trained: RRDBNet, blocks: list[int]) -> None:
    with pytest.raises(ValueError, match="`blocks` must be 2 ascending numbers below 5"):
        take_blocks(RRDBNet(num_blocks=2, **SHAPE), trained, blocks)


@pytest.mark.parametrize("change", [{"width": 16}, {"growth": 8}, {"scale_factor": 2}])
def test_networks_of_other_widths_are_refused(trained: RRDBNet, change: dict[str, int]) -> None:
    fewer = RRDBNet(**{"num_blocks": 2, **SHAPE, **change})
    before = {name: value.clone() for name, value in fewer.state_dict().items()}
    with pytest.raises(ValueError, match="`network` must have the width, growth and scale factor"):
        take_blocks(fewer, trained, [0, 1])
    assert all(torch.equal(value, before[name]) for name, value in fewer.state_dict().items())
    with pytest.raises(ValueError, match="`network` must be an RRDBNet, got EDSR"):
        take_blocks(EDSR(num_blocks=1, width=8), trained, [0, 1])  # type: ignore[arg-type]


def test_a_pixel_shuffle_has_the_sides_and_range_of_the_other(tmp_path: Any) -> None:
    network = RRDBNet(num_blocks=1, upsampling="pixelshuffle", **SHAPE)
    y = torch.rand(2, 3, 6, 5)
    with torch.no_grad():
        out = network(y).sample
        x = torch.nn.functional.interpolate(network.features(y), scale_factor=2, mode="nearest")
        for layer in (network.conv_up1, network.conv_hr):
            x = torch.nn.functional.leaky_relu(layer(x), 0.2)
        torch.testing.assert_close(out, torch.nn.functional.pixel_shuffle(network.conv_last(x), 2))
    assert out.shape == (2, 3, 24, 20)
    network.save_pretrained(tmp_path)
    torch.testing.assert_close(RRDBNet.from_pretrained(tmp_path)(y).sample, out)
    with pytest.raises(ValueError, match="`upsampling` must be one of nearest, pixelshuffle; got 'bilinear'"):
        RRDBNet(num_blocks=1, upsampling="bilinear")
