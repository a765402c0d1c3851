"""A frozen restoration network that an LR network reads y through: the layers of Real-ESRGAN, with its weights."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .outputs import Regressed
from .rrdb import RRDBLayers

RESTORER_WIDTH = 64
_EXACT = ("conv_first", "conv_body", "conv_last")
"""Convolutions whose kernels are not rounded."""


def move_towards(
    x: Tensor, estimate: Tensor, share: Tensor | float, tolerance: float | None, scale_factor: int
) -> Tensor:
    """x + m w (G(y) - x): a sample moved the share m of the way to an estimate, as far as both agree.

    w = exp(-(d / tau)^2) is 1 where they do: d is the difference of their means over the square of each pixel of y, its
    size averaged over the colours. Letters that the estimate makes up do not agree with y.

    Args:
        x: `[n, 3, H, W]` on [-1, 1].
        estimate: G(y), `[n, 3, H, W]` or `[1, 3, H, W]` on [-1, 1].
        share: m.
        tolerance: tau in grey levels of 0..255; None is w = 1 everywhere.
        scale_factor: sides of x over sides of y.
    """
    towards = estimate.to(x) - x
    if tolerance is not None:
        apart = F.avg_pool2d(towards, scale_factor).abs().mean(1, keepdim=True) * (127.5 / tolerance)
        towards = towards * F.interpolate(torch.exp(-(apart**2)), scale_factor=scale_factor, mode="bilinear")
    return x + share * towards


class Restorer(RRDBLayers, nn.Module):
    """The layers of a trained `RRDBNet` for x4, which no training changes further.

    Long training on degraded photographs has taught them to tell noise and blocks from texture. What they give is one
    image; the decoder's samples spread around it, and correct it.

    Its kernels are rounded to what float8 (e4m3) has, so that a file can hold them in a byte a number: its images move
    by some grey levels, and look as before. Rounding the convolutions at the ends of the trunk, and the last, would
    shift colours as well.

    Args:
        num_blocks: n.
        upsampling: "nearest" or "pixelshuffle", see `RRDBLayers`.
        padding: pixels by which the borders of y are repeated outwards before, and taken off again after it. Its
            convolutions read zeros beyond them, which are a black frame: on flat ground it answers with bright corners.
    """

    def __init__(self, num_blocks: int, upsampling: str = "nearest", padding: int = 0) -> None:
        super().__init__()
        self.padding = padding
        self._build_layers(3, num_blocks, RESTORER_WIDTH, upsampling=upsampling)
        self.requires_grad_(False)

    def forward(self, y: Tensor) -> Regressed:
        """Features and estimate from y, `[B, 3, h, w]` on [-1, 1]."""
        p = self.padding
        features = self.features(F.pad((y + 1) / 2, (p, p, p, p), mode="replicate"))
        image = self.image(features).float().clamp(0, 1) * 2 - 1
        return Regressed(F.pad(features, (-p,) * 4), F.pad(image, (-4 * p,) * 4))

    @torch.no_grad()
    def take(self, trained: RRDBLayers) -> None:
        """The weights of a trained network with as many blocks; most kernels rounded to float8.

        Raises:
            ValueError: a network of another shape.
        """
        assert isinstance(trained, nn.Module)
        try:
            self.load_state_dict(trained.state_dict())
        except RuntimeError as error:
            raise ValueError(
                f"an RRDBNet for x4 of {len(self.body)} blocks, {RESTORER_WIDTH} channels and upsampling "
                f"{self.upsampling!r} is needed, this one has {len(trained.body)} blocks and {trained.upsampling!r}: "
                f"{' '.join(str(error).split())[:200]}"
            ) from error
        for name, parameter in self.named_parameters():
            if parameter.ndim == 4 and not name.startswith(_EXACT):
                parameter.copy_(parameter.to(torch.float8_e4m3fn))
