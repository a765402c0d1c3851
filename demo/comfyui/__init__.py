"""A node for ComfyUI: copy this folder to `custom_nodes/hvae_sr`, and install hvae-sr in ComfyUI's Python.

Takes and gives ComfyUI's images, `[B, H, W, 3]` floats in [0, 1]. ComfyUI's progress bar counts samples, and its cancel
button stops between two of them.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch

from hvae_sr import SuperResolutionPipeline

LARGEST_SEED = 2**64 - 1
"""ComfyUI's own."""


@lru_cache(maxsize=1)
def _pipeline(model: str) -> SuperResolutionPipeline:
    pipeline = SuperResolutionPipeline.from_pretrained(model)
    pipeline.set_progress_bar_config(disable=True)
    try:
        from comfy.model_management import get_torch_device
    except ImportError:  # outside ComfyUI
        return pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
    return pipeline.to(get_torch_device())


def _count_samples(total: int) -> Callable[[], None]:
    """Moves ComfyUI's progress bar, and stops where the user has cancelled."""
    try:
        from comfy.model_management import throw_exception_if_processing_interrupted
        from comfy.utils import ProgressBar
    except ImportError:  # outside ComfyUI
        return lambda: None
    bar = ProgressBar(total)

    def count() -> None:
        bar.update(1)
        throw_exception_if_processing_interrupted()

    return count


class DiverseUpscale:
    """Samples of p(x|y) for each image, image-major; their means; and their standard deviations, 0.1 as white."""

    CATEGORY = "image/upscaling"
    DESCRIPTION = (
        "Draws several plausible high-resolution images for each low-resolution one, with their mean and a map of "
        "where they differ. Samples are plausible images, not evidence of what was there."
    )
    FUNCTION = "upscale"
    RETURN_TYPES = ("IMAGE", "IMAGE", "IMAGE")
    RETURN_NAMES = ("samples", "mean", "uncertainty")
    OUTPUT_TOOLTIPS = (
        "The samples: all of the first image, then all of the second, and so on.",
        "The mean of the samples of each image.",
        "The standard deviation of the samples of each image; white is 0.1 (25 grey levels) and more.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  # ComfyUI's name
        from hvae_sr.checkpoints.names import DEFAULT, bundled_checkpoints

        def widget(kind: str, tooltip: str, **options: Any) -> tuple[str, dict[str, Any]]:
            return kind, {**options, "tooltip": tooltip}

        small = "Low-resolution images; results have the model's factor times their sides."
        models = f"{', '.join(sorted(bundled_checkpoints()))}, a folder, or an id on the Hub."
        variety = "0 is smooth and always the same; 1 is the model's own distribution."
        seed = {"default": 0, "min": 0, "max": LARGEST_SEED, "control_after_generate": True}
        return {
            "required": {
                "image": widget("IMAGE", small),
                "model": widget("STRING", models, default=DEFAULT),
                "num_samples": widget("INT", "Samples of each image.", default=4, min=1, max=64),
                "temperature": widget("FLOAT", variety, default=0.5, min=0.0, max=2.0, step=0.05),
                "seed": widget("INT", "Sample j of every image has the seed plus j.", **seed),
                "consistent": widget("BOOLEAN", "Made small again, a sample gives the input exactly.", default=True),
            }
        }

    def upscale(
        self, image: torch.Tensor, model: str, num_samples: int, temperature: float, seed: int, consistent: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        pipeline, count = _pipeline(model), _count_samples(len(image) * num_samples)
        stacks: list[list[torch.Tensor]] = []
        for y in image[..., :3].movedim(-1, 1).clamp(0, 1):  # bicubic resizing of other nodes overshoots
            stacks.append([])
            for sample in pipeline.samples(
                y,
                range(seed, seed + num_samples),
                temperature=temperature,
                enforce_consistency=None if consistent else False,
                output_type="pt",
            ):
                stacks[-1].append(sample.image.movedim(0, -1).float().cpu())
                count()
        x = torch.stack([torch.stack(stack) for stack in stacks])  # [B, N, H, W, 3]
        return x.flatten(0, 1), x.mean(1), (x.std(1, correction=0) / 0.1).clamp(0, 1)


NODE_CLASS_MAPPINGS = {"HvaeSrDiverseUpscale": DiverseUpscale}
NODE_DISPLAY_NAME_MAPPINGS = {"HvaeSrDiverseUpscale": "Diverse upscale (hvae-sr)"}
