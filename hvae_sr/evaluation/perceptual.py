"""Perceptual metrics with injectable networks: LPIPS, FID, and what of them is there.

The formulas are here; the pretrained networks come with the extra `metrics` (torchmetrics, torchvision,
torch-fidelity) and are downloaded by those at first use. What is not installed is reported as absent, never as a
number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .metrics import ArrayLike, Uint8, as_array, as_rgb_pair, to_planes
from .no_reference import brisque

Distance = Callable[[Uint8, Uint8], float]
NAMES = ("brisque", "lpips", "fid")


def lpips(
    a: ArrayLike,
    b: ArrayLike,
    network: Callable[[Tensor], Sequence[Tensor]],
    weights: Sequence[ArrayLike] | None = None,
) -> float:
    """Learned perceptual distance (Zhang et al., CVPR 2018, eq. 1): sum_l mean_hw sum_c w_lc (f_lc(a) - f_lc(b))².

    f_l are the activations of layer l, scaled to unit length across the channels at each position.

    Args:
        a, b: 8-bit RGB images ``[H, W, 3]``.
        network: from ``[2, 3, H, W]`` on [-1, 1] to the activations of each layer, ``[2, C_l, h_l, w_l]``.
        weights: w_l, ``[C_l]`` each; None means 1.

    >>> image = np.zeros((4, 4, 3), dtype=np.uint8)
    >>> lpips(image, image, lambda x: [x])
    0.0
    """
    with torch.no_grad():
        layers = network(to_planes(np.stack(as_rgb_pair(a, b)) / 127.5 - 1))
    factors = [None] * len(layers) if weights is None else list(weights)
    if len(factors) != len(layers):
        raise ValueError(f"`weights` must be one array for each of {len(layers)} layers, got {len(factors)}.")
    total = 0.0
    for layer, factor in zip(layers, factors, strict=True):
        unit = layer / (layer.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)
        squares = (unit[0] - unit[1]).square().mean(dim=(1, 2)).double().cpu().numpy()
        total += float(squares.sum() if factor is None else squares @ as_array("weights", factor).reshape(-1))
    return total


def frechet_distance(a: ArrayLike, b: ArrayLike) -> float:
    """Fréchet distance of two sets of features (FID; Heusel et al. 2017): |m_a - m_b|² + tr(A + B - 2 (AB)^(1/2)).

    m and A, B are the means and covariances (ddof 1) of the Gaussians fitted to the rows. The trace of the root is
    that of (A^(1/2) B A^(1/2))^(1/2), a symmetric matrix, and exact also for fewer rows than features.

    Args:
        a, b: ``[n, features]``, at least two rows each.

    >>> a = np.array([[0.0], [2.0]])
    >>> round(frechet_distance(a, a + 3), 6)
    9.0
    """
    first, second = (as_array(name, value).astype(np.float64) for name, value in (("a", a), ("b", b)))
    for name, value in (("a", first), ("b", second)):
        if value.ndim != 2 or len(value) < 2 or value.shape[1] != first.shape[1]:
            raise ValueError(f"`{name}` must be [n >= 2, {first.shape[-1]}], got shape {value.shape}.")
    # With C = X'X for the centred rows X / sqrt(n - 1), the root's trace is the sum of singular values of X Y'.
    rows = [(value - value.mean(axis=0)) / np.sqrt(len(value) - 1) for value in (first, second)]
    root = np.linalg.svd(rows[0] @ rows[1].T, compute_uv=False).sum()
    distance = ((first.mean(axis=0) - second.mean(axis=0)) ** 2).sum()
    return float(max(distance + sum((value**2).sum() for value in rows) - 2 * root, 0.0))


@dataclass(frozen=True)
class PerceptualMetrics:
    """The perceptual metrics of an evaluation. All of them read 8-bit RGB images ``[H, W, 3]``.

    Args:
        brisque: quality of one image without a reference.
        lpips: distance of two images.
        features: ``[D]`` of one image, between whose sets FID is computed.
        absent: reasons by name for what was asked for and is not there.
    """

    brisque: Callable[[Uint8], float] | None = None
    lpips: Distance | None = None
    features: Callable[[Uint8], ArrayLike] | None = None
    absent: dict[str, str] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """What is there, in the order of `NAMES`."""
        there = (self.brisque, self.lpips, self.features)
        return [name for name, function in zip(NAMES, there, strict=True) if function is not None]


def load_perceptual(names: Iterable[str] = NAMES, device: str | torch.device = "cpu") -> PerceptualMetrics:
    """The perceptual metrics called `names` ("brisque", "lpips", "fid"), as far as they are installed.

    LPIPS is that of AlexNet, version 0.1, as in the papers; FID has the features of the Inception network of 2015.

    Raises ValueError for a name that is none of them.
    """
    wanted = list(dict.fromkeys(names))
    unknown = sorted(set(wanted) - set(NAMES))
    if unknown:
        raise ValueError(f"`metrics` must be among {', '.join(NAMES)}; got {', '.join(unknown)}.")
    found: dict[str, Any] = {"brisque": brisque} if "brisque" in wanted else {}
    absent: dict[str, str] = {}
    loaders = {"lpips": ("lpips", _load_lpips), "fid": ("features", _load_inception)}
    for name, (argument, load) in loaders.items():
        if name in wanted:
            try:
                found[argument] = load(torch.device(device))
            except (ImportError, OSError, RuntimeError, AttributeError) as error:  # a torchvision of another torch
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                absent[name] = f"{reason} (pip install 'hvae-sr[metrics]')"
    return PerceptualMetrics(**found, absent=absent)


def _load_lpips(device: torch.device) -> Distance:
    """The pretrained LPIPS of torchmetrics."""
    import torchvision  # noqa: F401  # torchmetrics says less clearly that it is missing
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    network = LearnedPerceptualImagePatchSimilarity(net_type="alex").to(device)

    def distance(a: Uint8, b: Uint8) -> float:
        planes = [to_planes(image[None] / 127.5 - 1).to(device) for image in (a, b)]
        with torch.no_grad():
            return float(network(*planes))

    return distance


def _load_inception(device: torch.device) -> Callable[[Uint8], ArrayLike]:
    """The pretrained features of torch-fidelity that torchmetrics' FID is computed of."""
    import torch_fidelity  # noqa: F401  # torchmetrics says less clearly that it is missing
    from torchmetrics.image.fid import NoTrainInceptionV3

    network = NoTrainInceptionV3(name="inception-v3-compat", features_list=["2048"]).to(device)

    def features(image: Uint8) -> ArrayLike:
        with torch.no_grad():
            return network(torch.from_numpy(image.copy()).permute(2, 0, 1)[None].to(device))[0].cpu().numpy()

    return features
