"""Distances of images for the energy score (of patches, energies of bands, features of VGG16), and a critic.

A distance is |f(a) - f(b)| with some norm and features f, averaged over places, so it is of negative type, and the
energy score with it is proper (Gneiting and Raftery, 2007), as are sums of such scores. A score sees its own features
only.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ..features import FeatureNetwork
from ..images import LUMA

_TINY = 1e-6
"""Keeps the gradient of a root finite where two samples agree."""


class Distance(nn.Module):
    """A distance of images that works on features, so that those of each image are made once."""

    def features(self, x: Tensor) -> list[Tensor]:
        """Feature maps of images `[B, 3, H, W]` on [-1, 1]."""
        raise NotImplementedError

    def forward(self, one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
        """The mean distance, a scalar, of images whose features are given, row by row."""
        raise NotImplementedError


class PatchDistance(Distance):
    """Root mean square of the difference over patches and colours, averaged over patches, images and patch sizes.

    Args:
        patch_sizes: sides of the patches in pixels; all must divide the sides of the images.
    """

    def __init__(self, patch_sizes: Sequence[int] = (1, 4)) -> None:
        super().__init__()
        if not patch_sizes or min(patch_sizes) < 1:
            raise ValueError(f"`patch_sizes` must be at least one integer above 0, got {patch_sizes}")
        self.patch_sizes = tuple(patch_sizes)

    def features(self, x: Tensor) -> list[Tensor]:
        return [x]

    def forward(self, one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
        squares = (one[0] - other[0]).square().mean(dim=1, keepdim=True)
        return torch.stack([(F.avg_pool2d(squares, p) + _TINY).sqrt().mean() for p in self.patch_sizes]).mean()


class BandDistance(Distance):
    """Difference of local energies in bands of frequency and orientation: how much detail there is, and how evenly.

    The luma is filtered with second derivatives of Gaussians along several directions. Over windows that overlap by
    half, the mean of log(b² + e²) and log(mean of b² + e²) are compared, b a filter's response; the two are apart where
    few large responses, such as specks, stand among small ones.

    Args:
        windows: sides in pixels.
        sigmas: of the Gaussians in pixels.
        orientations: number of directions.
        floor: e, in grey levels.
    """

    filters: Tensor
    luma: Tensor

    def __init__(
        self, windows: Sequence[int] = (8, 16, 32), sigmas: Sequence[float] = (0.6, 1.0, 1.6), orientations: int = 4,
        floor: float = 2.0,
    ) -> None:  # fmt: skip
        super().__init__()
        if not windows or min(windows) < 2:
            raise ValueError(f"`windows` must be at least one integer above 1, got {windows}")
        self.windows = tuple(windows)
        self.floor = (floor / 127.5) ** 2
        radius = math.ceil(3 * max(sigmas))
        v, u = torch.meshgrid(*[torch.arange(-radius, radius + 1.0)] * 2, indexing="ij")
        filters = []
        for sigma in sigmas:
            for k in range(orientations):
                angle = math.pi * k / orientations
                along = (u * math.cos(angle) + v * math.sin(angle)) / sigma
                kernel = (along**2 - 1) * torch.exp(-(u**2 + v**2) / (2 * sigma**2))
                kernel = kernel - kernel.mean()
                filters.append(kernel / kernel.norm())
        self.register_buffer("filters", torch.stack(filters)[:, None], persistent=False)
        self.register_buffer("luma", torch.tensor(LUMA).view(1, 3, 1, 1), persistent=False)

    def features(self, x: Tensor) -> list[Tensor]:
        with torch.autocast(x.device.type, enabled=False):
            luma = (x.float() * self.luma).sum(dim=1, keepdim=True)
            squares = F.conv2d(luma, self.filters).square()
            logs = (squares + self.floor).log()
            maps = []
            for window in self.windows:
                maps.append(F.avg_pool2d(logs, window, window // 2))
                maps.append((F.avg_pool2d(squares, window, window // 2) + self.floor).log())
            return maps

    def forward(self, one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
        return torch.stack([(a - b).abs().mean() for a, b in zip(one, other, strict=True)]).mean()


class PerceptualDistance(Distance):
    """Distance of VGG16's features as LPIPS v0.1 takes and weights them (Zhang et al., 2018), without its square.

    At each place of each tap the features have unit length, and their difference is weighted by LPIPS' heads. Besides
    single places, means over squares of `pool` x `pool` places are compared, which know the kind of a texture but not
    where each of its grains lies. The root is taken at each place (a squared distance is not of negative type).

    Args:
        lpips_weights: the file of `FeatureNetwork`, of VGG16 or AlexNet.
        num_taps: how many of the five taps, from the finest.
        pool: side of the squares in places of the tap.

    Raises:
        ValueError: `num_taps` is not 1 to 5, or the file cannot be read or lacks a weight.
    """

    def __init__(self, lpips_weights: str | Path, num_taps: int = 3, pool: int = 4) -> None:
        super().__init__()
        self.network, self.pool = FeatureNetwork.from_file(lpips_weights, num_taps=num_taps), pool
        self.widths = [head.numel() for head in self.network.heads]
        """Channels of each tap."""

    def features(self, x: Tensor) -> list[Tensor]:
        activations = self.network(x.contiguous(memory_format=torch.channels_last))
        # In the network's precision: these maps are the largest of a step.
        return [h * (h.float().square().sum(dim=1, keepdim=True) + _TINY).rsqrt().to(h.dtype) for h in activations]

    def forward(self, one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
        total = []
        for a, b, head in zip(one, other, self.network.heads, strict=True):
            difference, weights = a - b, head.clamp(min=0).view(1, -1, 1, 1)
            for d in (difference, F.avg_pool2d(difference, self.pool)):
                total.append((F.conv2d(d.square(), weights).float() + _TINY).sqrt().mean())
        return torch.stack(total).mean()


class FeatureCritic(nn.Module):
    """How much more real than others each place of an image looks, told from its features: maps C, one for each tap.

    ESRGAN's critic reads pixels, and learns to see first; features of a trained network leave it a few convolutions to
    learn, in minutes.

    Args:
        widths: channels of the taps that are read.
        hidden: channels of the critic's own layers.
    """

    def __init__(self, widths: Sequence[int], hidden: int = 64) -> None:
        super().__init__()
        self.taps = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, hidden, 1), nn.LeakyReLU(0.2),
                nn.Conv2d(hidden, hidden, 3, padding=1), nn.LeakyReLU(0.2),
                nn.Conv2d(hidden, 1, 3, padding=1),
            )
            for width in widths
        )  # fmt: skip

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """C, `[B, 1, h, w]` for each tap, from its features `[B, width, h, w]`, of length 1 or so at each place."""
        return [tap(x * x.shape[1] ** 0.5).float() for tap, x in zip(self.taps, features, strict=True)]

    def losses(self, real: Sequence[Tensor], fake: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The critic's loss, which reaches the critic alone, and that of what made `fake`, which reaches that alone.

        The relativistic average losses of Jolicoeur-Martineau, 2019 (ESRGAN, eq. 1 and 2), halved, s being softplus:

            L_critic = E[s(E C(fake) - C(real))] / 2 + E[s(C(fake) - E C(real))] / 2,

        and the other with real and fake exchanged. Both have gradients for the same update of one optimizer.
        """
        own = _relativistic(self([x.detach() for x in real]), self([x.detach() for x in fake]))
        fixed = {name: parameter.detach() for name, parameter in self.named_parameters()}
        judged = [functional_call(self, fixed, (x,)) for x in (fake, real)]
        return own, _relativistic(*judged)


def _relativistic(above: Sequence[Tensor], below: Sequence[Tensor]) -> Tensor:
    """The loss of C that is to be larger for images `above` than for those `below`."""
    terms = [
        F.softplus(b.mean() - a).mean() + F.softplus(b - a.mean()).mean() for a, b in zip(above, below, strict=True)
    ]
    return torch.stack(terms).mean() / 2
