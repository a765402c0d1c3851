"""Models of one image size: other sizes are refused, or worked on in blended tiles."""

import numpy as np
import pytest
import torch

from hvae_sr import SuperResolutionPipeline
from hvae_sr.sampling.windows import tiles


@pytest.mark.parametrize(("size", "side", "blend"), [((64, 64), 64, 16), ((65, 200), 64, 16), ((33, 63), 32, 10)])
def test_weights_of_tiles_sum_to_one_everywhere(size, side, blend):
    total = torch.zeros(1, 4 * size[0], 4 * size[1])
    for tile in tiles(*size, side, blend):
        tile.paste(torch.ones(1, 4 * side, 4 * side), total, 4)
    assert (total - 1).abs().max() < 1e-6


@pytest.fixture
def pipe(make_vdvae, make_lr_network):
    description = "a face aligned as in FFHQ"
    pipeline = SuperResolutionPipeline(
        make_vdvae(bias_type="spatial"), make_lr_network("cvdvae"), input_description=description
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_another_size_is_refused_with_the_size_and_alignment_that_fit(pipe):
    with pytest.raises(ValueError, match="4x4 pixels of a face aligned as in FFHQ.*got 9x6.*tile=True"):
        pipe(np.zeros((6, 9, 3), dtype=np.uint8))


@pytest.mark.parametrize("size", [(4, 4), (3, 4), (6, 9), (2, 13)])
def test_tiles_give_exactly_scale_times_the_size_and_stay_consistent(pipe, size):
    photo = np.random.default_rng(0).random((*size, 3)) * 0.1 + 0.45
    out = pipe(photo, tile=True, seed=0, output_type="np")
    assert out.images.shape == (1, 4 * size[0], 4 * size[1], 3) and out.lr_psnr_float[0] > 100
    again = pipe(photo, tile=True, seed=0, output_type="np")
    assert np.array_equal(out.images, again.images)


def test_latents_of_several_tiles_are_refused(pipe):
    with pytest.raises(ValueError, match="several tiles"):
        pipe(np.zeros((6, 9, 3)), tile=True, output_type="latent")
    for name in ("window_size", "window_margin"):
        with pytest.raises(ValueError, match=f"`{name}` has no effect on this model: it works at one size only"):
            pipe(np.zeros((6, 9, 3)), tile=True, **{name: 4})
