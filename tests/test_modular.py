"""The block for diffusers' modular pipelines gives what the pipeline gives."""

import json

import pytest
import torch
from diffusers.modular_pipelines import InputParam, ModularPipelineBlocks, OutputParam, SequentialPipelineBlocks

from hvae_sr import SuperResolutionPipeline
from hvae_sr.pipelines.modular import SuperResolutionBlock


@pytest.fixture
def folder(make_pipeline, tmp_path):
    make_pipeline().save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture
def photo():
    return torch.rand(3, 7, 9, generator=torch.Generator().manual_seed(0))


def loaded(block, folder):
    pipe = block.init_pipeline(str(folder))
    pipe.load_components()
    return pipe


def test_the_block_gives_the_pipelines_samples(make_pipeline, folder, photo):
    given = {"image": photo, "num_samples": 3, "seed": 5, "temperature": 0.7, "output_type": "pt"}
    expected, state = make_pipeline()(**given), loaded(SuperResolutionBlock(), folder)(**given)
    for name in ("images", "mean", "std"):
        assert torch.equal(state.get(name), expected[name])
    assert state.get("seeds") == [5, 6, 7] and state.get("lr_psnr") == expected.lr_psnr
    only = loaded(SuperResolutionBlock(), folder)(image=photo, seed=5, temperature=0.7, output="images")
    assert len(only) == 1 and only[0].size == (36, 28)


def test_a_bundled_name_loads_and_keeps_its_settings_until_told_otherwise(photo):
    pipe = loaded(SuperResolutionBlock(), "natural-x4")
    whole, exact = (SuperResolutionPipeline.from_pretrained("natural-x4", dtype=d) for d in (None, torch.float32))
    assert pipe.config.default_temperature == whole.config.default_temperature
    assert pipe.config.fast_inference == whole.config.fast_inference
    given = {"image": photo, "seed": 1, "output_type": "pt"}
    assert torch.equal(pipe(**given, output="images"), whole(**given).images)
    pipe.update_components(fast_inference=False)
    assert torch.equal(pipe(**given, output="images"), exact(**given).images)


class Halve(ModularPipelineBlocks):
    """A block of somebody else that makes the image darker."""

    @property
    def inputs(self):
        return [InputParam("picture", required=True)]

    @property
    def intermediate_outputs(self):
        return [OutputParam("image")]

    def __call__(self, components, state):
        block_state = self.get_block_state(state)
        block_state.image = block_state.picture / 2
        self.set_block_state(state, block_state)
        return components, state


def test_the_block_works_after_blocks_of_others(make_pipeline, folder, photo):
    blocks = SequentialPipelineBlocks.from_blocks_dict({"halve": Halve(), "upscale": SuperResolutionBlock()})
    images = loaded(blocks, folder)(picture=photo, seed=2, output_type="pt", output="images")
    assert torch.equal(images, make_pipeline()(photo / 2, seed=2, output_type="pt").images)


def test_errors_name_what_is_wrong(folder, photo):
    block = SuperResolutionBlock()
    with pytest.raises(ValueError, match="vdvae, lr_encoder not loaded"):
        block.init_pipeline(str(folder))(image=photo)
    with pytest.raises(ValueError, match="num_samples"):
        loaded(block, folder)(image=photo, num_samples=0)
    with pytest.raises(ValueError, match="image"):
        loaded(block, folder)(num_samples=1)
    with pytest.raises(ValueError, match="no model"):
        block.init_pipeline("unheard-of")


@pytest.mark.parametrize("kind", ["model_index.json", "modular_model_index.json"])
def test_an_index_that_names_classes_of_others_is_refused(folder, kind):
    index = json.loads((folder / "model_index.json").read_text())
    index["vdvae"] = ["this", "Anything"] if kind == "model_index.json" else ["this", "Anything", {}]
    (folder / kind).write_text(json.dumps(index))
    with pytest.raises(ValueError, match="'vdvae' must be hvae_sr.VDVAE"):
        SuperResolutionBlock().init_pipeline(str(folder))


def test_its_documentation_lists_inputs_components_and_outputs():
    text = SuperResolutionBlock().doc
    for word in ("image", "temperature", "num_samples", "vdvae", "scale_factor", "lr_psnr"):
        assert word in text


def test_the_progress_bar_can_be_silenced(folder, photo, capfd):
    for block in (SuperResolutionBlock(), SequentialPipelineBlocks.from_blocks_dict({"sr": SuperResolutionBlock()})):
        pipe = loaded(block, folder)
        capfd.readouterr()
        pipe(image=photo, seed=0)
        assert "1/1" in capfd.readouterr().err
        pipe.set_progress_bar_config(disable=True)
        pipe(image=photo, seed=0)
        assert "1/1" not in capfd.readouterr().err
