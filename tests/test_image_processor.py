"""The image processor: the pipeline's surroundings for those who run the networks by themselves."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from test_pipeline import MakePipeline, photo

from hvae_sr.noise import CounterNoise
from hvae_sr.pipelines.image_processor import SuperResolutionImageProcessor


@pytest.mark.parametrize("kind", ["cvdvae", "vdvae-sr"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_networks_between_its_two_halves_give_what_the_pipeline_gives(
    make_pipeline: MakePipeline, kind: str, mode: str
) -> None:
    pipe, image = make_pipeline(kind, lr={"blocks": "4x2,4d2,2x1"}), photo(mode=mode)
    expected = pipe(image, num_samples=3, seed=0, temperature=0.7)
    processor = SuperResolutionImageProcessor.from_pipeline(pipe)
    inputs = processor(image, return_tensors="pt")
    assert inputs.pixel_values.shape == (1, 3, 6, 6) and inputs.output_size == (24, 24)
    with torch.no_grad():
        condition = pipe.lr_encoder.encode(inputs.pixel_values)
        options = {"noise": CounterNoise(range(3)), "condition": condition, "temperature": 0.7}
        x = pipe.vdvae.sample(3, inputs.output_size, **options).sample
    before = x.clone()
    found = processor.post_process(x, image)
    assert torch.equal(x, before)
    for sample, wanted, decibels in zip(found, expected.images, expected.lr_psnr, strict=True):
        assert sample.image.mode == wanted.mode and sample.image.size == (24, 20)
        np.testing.assert_allclose(np.asarray(sample.image, int), np.asarray(wanted, int), atol=1)
        assert sample.lr_psnr == pytest.approx(decibels, abs=0.5)


def test_its_configuration_is_saved_and_read(make_pipeline: MakePipeline, tmp_path) -> None:
    processor = SuperResolutionImageProcessor.from_pipeline(make_pipeline(lr={"blocks": "4x2,4d2,2x1"}))
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert saved["scale_factor"] == 4 and saved["size_multiple"] == 2 and saved["downsampling_kernel"] == "bicubic"
    again = SuperResolutionImageProcessor.from_pretrained(tmp_path)
    assert again.to_dict() == processor.to_dict()
    assert SuperResolutionImageProcessor.from_pretrained(tmp_path, size_multiple=4).size_multiple == 4
    assert torch.equal(again(photo()).pixel_values, processor(photo()).pixel_values)
    SuperResolutionImageProcessor(4, torch.full((4,), 0.25)).save_pretrained(tmp_path)
    assert SuperResolutionImageProcessor.from_pretrained(tmp_path).downsampling_kernel == (0.25,) * 4


def test_several_images_have_their_samples_in_a_row() -> None:
    processor = SuperResolutionImageProcessor(scale_factor=2)
    images = [photo(), photo(mode="L")]
    assert processor(images).pixel_values.shape == (2, 3, 5, 6)
    found = processor.post_process(torch.zeros(4, 3, 10, 12), images, output_type="pt")
    assert [sample.index for sample in found] == [0, 1, 2, 3]
    assert min(sample.lr_psnr_float for sample in found) > 100


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda p: p([photo(4, 4), photo(5, 6)]), "one size.*4x4.*6x5"),
        (lambda p: p(photo(), return_tensors="np"), "`return_tensors`.*'np'"),
        (lambda p: p.post_process(torch.zeros(1, 3, 20, 24), photo(), output_type="latent"), "`output_type`"),
        (lambda p: p.post_process(torch.zeros(1, 3, 20, 20), photo()), r"`samples`.*\(20, 24\)"),
        (lambda p: p.post_process(torch.zeros(3, 3, 20, 24), [photo(), photo()]), "`samples`.*2 images"),
        (lambda p: p.post_process(torch.zeros(1, 6, 20, 24), photo()), r"`samples`.*\(1, 6, 20, 24\)"),
        (lambda p: p.post_process(np.zeros((1, 3, 20, 24)), photo()), "`samples`.*ndarray"),
        (lambda p: SuperResolutionImageProcessor(size_multiple=None), "`size_multiple`.*None"),
        (lambda p: SuperResolutionImageProcessor(size_multiple=0), "`size_multiple`.*0"),
        (lambda p: SuperResolutionImageProcessor(downsampling_kernel="sinc"), "sinc"),
    ],
)
def test_what_does_not_fit_is_refused(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call(SuperResolutionImageProcessor())
