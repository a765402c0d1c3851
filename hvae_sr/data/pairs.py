"""The LR images that belong to crops: made by the operator of inference, or given."""

from collections.abc import Callable

import torch


def make_pairs(
    images: torch.Tensor, operator: Callable[[torch.Tensor], torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn 8-bit HR images u into pairs x = 2 u / 255 - 1 and y = 2 round(clip(H u, 0, 255)) / 255 - 1.

    H is the same operator as at inference. y is rounded to 8 bit because that is how LR images arrive there.
    Computed in float32 without gradients, also under autocast.

    Args:
        images: u, uint8 tensor [B, 3, H, W].
        operator: H, from float [B, 3, H, W] to [B, 3, h, w], such as `hvae_sr.operators.Downsampling`.

    Returns:
        (x, y): float32 in [-1, 1], [B, 3, H, W] and [B, 3, h, w].

    Raises:
        ValueError: `images` is not uint8 of shape [B, 3, H, W].
    """
    _check("images", images)
    with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        levels = images.float()
        low = operator(levels).clamp(0.0, 255.0).round()
        return levels / 127.5 - 1.0, low / 127.5 - 1.0


def convert_pairs(images: torch.Tensor, low: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x and y on [-1, 1] of 8-bit HR images and the 8-bit LR images that were given with them.

    Raises:
        ValueError: one of them is not uint8 of shape [B, 3, H, W].
    """
    _check("images", images)
    _check("low", low)
    return images.float() / 127.5 - 1.0, low.float() / 127.5 - 1.0


def _check(argument: str, images: torch.Tensor) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"{argument} must be uint8 [B, 3, H, W], got {images.dtype} {tuple(images.shape)}")
