"""A node for ComfyUI: copy this folder to `custom_nodes/hvae_sr`, and install hvae-sr in ComfyUI's Python.

Takes and gives ComfyUI's images, `[B, H, W, 3]` floats in [0, 1].
"""

from functools import lru_cache
from typing import Any

import torch


@lru_cache(maxsize=1)
def _pipeline(model: str) -> Any:
    from hvae_sr import SuperResolutionPipeline

    pipeline = SuperResolutionPipeline.from_pretrained(model)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to("cuda" if torch.cuda.is_available() else "cpu")


class DiverseUpscale:
    """Samples of p(x|y) for each image, image-major; their means; and their standard deviations, 0.1 as white."""

    CATEGORY = "image/upscaling"
    FUNCTION = "upscale"
    RETURN_TYPES = ("IMAGE", "IMAGE", "IMAGE")
    RETURN_NAMES = ("samples", "mean", "uncertainty")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  # ComfyUI's name
        from hvae_sr.hub import bundled_checkpoints

        return {
            "required": {
                "image": ("IMAGE",),
                "model": ("STRING", {"default": sorted(bundled_checkpoints())[0]}),
                "num_samples": ("INT", {"default": 4, "min": 1, "max": 64}),
                "temperature": ("FLOAT", {"default": 0.5, "min": 0.0, "max": 2.0, "step": 0.05}),
                "seed": ("INT", {"default": 0, "min": 0, "max": 2**63 - 1}),
                "consistent": ("BOOLEAN", {"default": True}),
            }
        }

    def upscale(
        self, image: torch.Tensor, model: str, num_samples: int, temperature: float, seed: int, consistent: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        out = _pipeline(model)(
            image[..., :3].movedim(-1, 1),
            num_samples=num_samples,
            temperature=temperature,
            seed=seed,
            enforce_consistency=consistent,
            output_type="pt",
        )
        pictures = (out.images, out.mean, (out.std / 0.1).clamp(0, 1))
        return tuple(picture.movedim(1, -1).float().cpu() for picture in pictures)  # type: ignore[return-value]


NODE_CLASS_MAPPINGS = {"HvaeSrDiverseUpscale": DiverseUpscale}
NODE_DISPLAY_NAME_MAPPINGS = {"HvaeSrDiverseUpscale": "Diverse upscale (hvae-sr)"}
