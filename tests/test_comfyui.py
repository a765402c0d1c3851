"""The node for ComfyUI, called as ComfyUI calls nodes."""

import torch

from hvae_sr.demo import comfyui


def test_the_node_gives_the_pipelines_samples_as_comfyui_images(make_pipeline, tmp_path):
    pipe = make_pipeline()
    pipe.save_pretrained(tmp_path / "tiny")
    node = comfyui.NODE_CLASS_MAPPINGS["HvaeSrDiverseUpscale"]()
    images = torch.rand(2, 8, 12, 3, generator=torch.Generator().manual_seed(0))
    arguments = {
        name: options[-1].get("default") for name, options in node.INPUT_TYPES()["required"].items() if options[1:]
    }
    arguments |= {"model": str(tmp_path / "tiny"), "num_samples": 3, "seed": 5}
    samples, mean, uncertainty = getattr(node, node.FUNCTION)(image=images, **arguments)
    assert samples.shape == (6, 32, 48, 3) and mean.shape == uncertainty.shape == (2, 32, 48, 3)
    out = comfyui._pipeline(arguments["model"])(
        images.movedim(-1, 1), num_samples=3, temperature=arguments["temperature"], seed=5, output_type="pt"
    )
    assert torch.equal(samples, out.images.movedim(1, -1).float()) and torch.equal(
        mean, out.mean.movedim(1, -1).float()
    )
    assert 0 < uncertainty.max() <= 1 and len(node.RETURN_TYPES) == 3
