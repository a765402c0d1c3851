"""Any final factor: what is resampled after the model."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from hvae_sr.baselines import EDSR
from hvae_sr.operators import Downsampling, interpolate
from hvae_sr.pipelines import RegressionPipeline
from hvae_sr.pipelines.chaining import lr_psnr, samples_at


def by_rows(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Antialiased bicubic interpolation of `[C, H, W]`, each side as the width."""
    for length in (size[1], size[0]):
        x = F.interpolate(x[None], (x.shape[-2], length), mode="bicubic", antialias=True)[0].mT.contiguous()
    return x


@pytest.mark.parametrize("before", [(16, 8), (16, 1), (4, 1), (1, 9)])
@pytest.mark.parametrize("after", [(4, 1), (8, 1), (1, 1), (1, 5), (3, 9)])
def test_images_of_width_1_are_interpolated_as_others(before, after):
    x = torch.rand(3, *before, generator=torch.Generator().manual_seed(0))
    assert (interpolate(x[None], after)[0] - by_rows(x, after)).abs().max() < 1e-6


def test_a_resampled_result_of_width_1_is_that_of_the_sample(make_pipeline):
    pipe, photo = make_pipeline(), np.random.default_rng(0).random((12, 2, 3), dtype=np.float32)
    samples = list(samples_at(pipe, photo, [3], outscale=0.5))
    expected = by_rows(pipe(photo, seed=3, output_type="pt").images[0], (6, 1)).clamp(0, 1).permute(1, 2, 0) * 255
    assert samples[0].image.size == (1, 6)
    assert np.abs(np.asarray(samples[0].image) - expected.numpy()).max() < 0.51


def test_latents_are_of_one_pass(make_pipeline):
    with pytest.raises(ValueError, match="`return_latents`: latents are of one pass, and `outscale` 16 takes 2"):
        samples_at(make_pipeline(), np.zeros((4, 4, 3), np.float32), [3], outscale=16, return_latents=True)


@pytest.mark.parametrize("outscale", [None, 2, 4, 16])
def test_a_grey_file_stays_grey_at_any_factor(outscale):
    pipe = RegressionPipeline(EDSR(num_blocks=1, width=8).eval())
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 10), np.uint8))
    for file in (photo.convert("RGB"), photo):
        (sample,) = samples_at(pipe, file, [0], outscale)
        assert sample.image.size == (10 * (outscale or 4), 12 * (outscale or 4))
    assert np.ptp(np.asarray(sample.image.convert("RGB")).astype(int), axis=2).max() == 0


def test_a_sample_on_another_device_is_measured_where_y_is():
    seen = []

    class Elsewhere(torch.Tensor):
        def to(self, device):
            seen.append(torch.device(device))
            return self.as_subclass(torch.Tensor)

    x, operator = torch.rand(3, 44, 36), Downsampling(4)
    measured = lr_psnr(operator, x.as_subclass(Elsewhere), operator(x))
    assert measured > 100 and set(seen) == {torch.device("cpu")}
