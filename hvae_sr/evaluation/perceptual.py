"""Perceptual metrics: LPIPS from a local file, FID with an injectable network, and what of them is there.

What has no weights or is not installed is reported as absent, never as a number.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..features import FeatureNetwork
from .metrics import Array, ArrayLike, Uint8, as_array, as_rgb, as_rgb_pair, to_planes
from .no_reference import brisque

Distance = Callable[[Uint8, Uint8], float]
NAMES = ("brisque", "lpips", "lpips_vgg", "fid")
LPIPS_WEIGHTS = "HVAE_SR_LPIPS"
"""The variable of the environment that names the folder of LPIPS' weights."""


def tap_maps(
    first: Sequence[Tensor], second: Sequence[Tensor], weights: Sequence[ArrayLike] | None = None
) -> list[Tensor]:
    """LPIPS (Zhang et al., CVPR 2018, eq. 1) at each position of each layer l: sum_c w_lc (f_lc(a) - f_lc(b))².

    f_l are the activations, scaled to unit length across the channels at each position.

    Args:
        first, second: activations of each layer, ``[B, C_l, h_l, w_l]``.
        weights: w_l, ``[C_l]`` each; None means 1.

    Returns ``[B, h_l, w_l]`` for each layer: LPIPS is the sum over layers of their means.
    """
    if weights is not None and len(weights) != len(first):
        raise ValueError(f"`weights` must be one array for each of {len(first)} layers, got {len(weights)}.")
    maps = []
    for index, (a, b) in enumerate(zip(first, second, strict=True)):
        squares = (a / (a.norm(dim=1, keepdim=True) + 1e-10) - b / (b.norm(dim=1, keepdim=True) + 1e-10)).square()
        if weights is not None:
            squares = squares * torch.as_tensor(weights[index], dtype=a.dtype, device=a.device).view(1, -1, 1, 1)
        maps.append(squares.sum(dim=1))
    return maps


def lpips(
    a: ArrayLike,
    b: ArrayLike,
    network: Callable[[Tensor], Sequence[Tensor]],
    weights: Sequence[ArrayLike] | None = None,
) -> float:
    """LPIPS of two 8-bit RGB images ``[H, W, 3]`` by any network: sum over layers of the means of `tap_maps`.

    Args:
        a, b: the images.
        network: from ``[2, 3, H, W]`` on [-1, 1] to the activations of each layer, ``[2, C_l, h_l, w_l]``.
        weights: of the channels of each layer, ``[C_l]`` each; None means 1.

    >>> image = np.zeros((4, 4, 3), dtype=np.uint8)
    >>> lpips(image, image, lambda x: [x])
    0.0
    """
    with torch.no_grad():
        layers = network(to_planes(np.stack(as_rgb_pair(a, b)) / 127.5 - 1))
        return sum(float(m.mean()) for m in tap_maps([f[:1] for f in layers], [f[1:] for f in layers], weights))


class LPIPS(FeatureNetwork):
    """LPIPS, version 0.1, with its own heads on AlexNet or VGG16 (Zhang et al., CVPR 2018)."""

    @torch.no_grad()
    def look(self, image: ArrayLike) -> list[Tensor]:
        """What this network sees in an 8-bit image ``[H, W, 3]``, for `maps`: images are looked at once each."""
        pixels, least = as_rgb("image", image), {"alexnet": 31, "vgg16": 16}[self.name]
        if min(pixels.shape[:2]) < least:
            raise ValueError(
                f"`image` must be at least {least}x{least} pixels for LPIPS on {self.name}, got {pixels.shape[:2]}."
            )
        return self(to_planes(pixels[None] / 127.5 - 1).to(self.mean.device))

    def maps(self, first: Sequence[Tensor], second: Sequence[Tensor]) -> list[Tensor]:
        """The weighted squares at each position of each tap, ``[B, h_l, w_l]``; LPIPS is the sum of their means."""
        return tap_maps(first, second, self.heads)

    @staticmethod
    def taps(maps: Sequence[Tensor]) -> list[float]:
        """What each tap adds to LPIPS: the means of its map."""
        return [float(tap.mean()) for tap in maps]

    @staticmethod
    def spatial(maps: Sequence[Tensor], size: tuple[int, int]) -> Array:
        """LPIPS at each pixel, ``[H, W]``: the maps of all taps, enlarged bilinearly to `size`, added up."""
        enlarged = [F.interpolate(tap[None], size, mode="bilinear", align_corners=False)[0, 0] for tap in maps]
        return torch.stack(enlarged).sum(dim=0).cpu().numpy()

    def distance(self, a: ArrayLike, b: ArrayLike) -> float:
        """LPIPS of two 8-bit RGB images ``[H, W, 3]``."""
        return sum(self.taps(self.maps(*map(self.look, as_rgb_pair(a, b)))))


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
        lpips: `LPIPS`, or any distance of two images: to the truth, and between samples.
        features: ``[D]`` of one image, between whose sets FID is computed.
        lpips_vgg: a second distance to the truth.
        absent: reasons by name for what was asked for and is not there.
    """

    brisque: Callable[[Uint8], float] | None = None
    lpips: LPIPS | Distance | None = None
    features: Callable[[Uint8], ArrayLike] | None = None
    lpips_vgg: LPIPS | Distance | None = None
    absent: dict[str, str] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """What is there, in the order of `NAMES`."""
        there = (self.brisque, self.lpips, self.lpips_vgg, self.features)
        return [name for name, function in zip(NAMES, there, strict=True) if function is not None]

    @property
    def identities(self) -> dict[str, str]:
        """What tells one metric from another of the same name: its weights, or else the function's name."""
        there = zip(NAMES, (self.brisque, self.lpips, self.lpips_vgg, self.features), strict=True)
        return {name: _identity(function) for name, function in there if function is not None}


def magnitude(tensors: Iterable[Tensor]) -> str:
    """The sum of magnitudes, a fingerprint of weights; on the CPU, as some devices have no fp64."""
    return f"{sum(float(tensor.detach().cpu().abs().sum(dtype=torch.float64)) for tensor in tensors):.9e}"


def _identity(function: Any) -> str:
    if isinstance(function, torch.nn.Module):  # whose weights may be buffers, see `FeatureNetwork`
        return f"{type(function).__name__} {magnitude((*function.parameters(), *function.buffers()))}"
    kind = function if hasattr(function, "__qualname__") else type(function)
    return f"{kind.__module__}.{kind.__qualname__}"


def load_perceptual(
    names: Iterable[str] = NAMES,
    device: str | torch.device = "cpu",
    lpips_weights: str | os.PathLike[str] | None = None,
) -> PerceptualMetrics:
    """The perceptual metrics called `names` ("brisque", "lpips", "lpips_vgg", "fid"), as far as they are there.

    LPIPS is that of AlexNet, version 0.1, as in the papers, and `lpips_vgg` that of VGG16; FID has the features of the
    Inception network of 2015.

    Args:
        names: which.
        device: of the networks.
        lpips_weights: a folder of ``lpips_alexnet*.safetensors`` and ``lpips_vgg16*.safetensors``, or one such file;
            None means the folder that HVAE_SR_LPIPS names.

    Raises ValueError: a name that is none of them, or weights that were named and cannot be read or are of none.
    """
    wanted = list(dict.fromkeys(names))
    unknown = sorted(set(wanted) - set(NAMES))
    if unknown:
        raise ValueError(f"`names` must be among {', '.join(NAMES)}; got {', '.join(unknown)}.")
    found: dict[str, Any] = {"brisque": brisque} if "brisque" in wanted else {}
    absent: dict[str, str] = {}
    for name, trunk in (("lpips", "alexnet"), ("lpips_vgg", "vgg16")):
        if name in wanted:
            file = find_lpips(trunk, lpips_weights)
            if file is not None:
                found[name] = LPIPS.from_file(file, device)
            else:
                absent[name] = f"no lpips_{trunk}.safetensors (its folder: --lpips-weights or {LPIPS_WEIGHTS})"
    trunks = {"lpips", "lpips_vgg"} & set(wanted)
    if lpips_weights is not None and trunks and not trunks & set(found):
        raise ValueError(
            f"`lpips_weights`: {os.fspath(lpips_weights)} is or holds no file called lpips_alexnet or lpips_vgg16, as "
            f"{' and '.join(sorted(trunks))} needs"
        )
    if "fid" in wanted:
        try:
            found["features"] = _load_inception(torch.device(device))
        except (ImportError, OSError, RuntimeError, AttributeError) as error:  # a torchvision of another torch
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            absent["fid"] = f"{reason} (pip install 'hvae-sr[metrics]')"
    return PerceptualMetrics(**found, absent=absent)


def find_lpips(trunk: str = "alexnet", weights: str | os.PathLike[str] | None = None) -> Path | None:
    """The file of LPIPS on "alexnet" or "vgg16" among `weights` (see `load_perceptual`), if there is one.

    Raises ValueError: `weights` is given, and is neither a file nor a folder.
    """
    place = Path(weights if weights is not None else os.environ.get(LPIPS_WEIGHTS) or os.devnull)
    if weights is not None and not place.exists():
        raise ValueError(f"`lpips_weights` must be a folder or a .safetensors file, got {os.fspath(weights)!r}.")
    files = sorted(place.glob("*.safetensors")) if place.is_dir() else [place]
    return next((file for file in files if file.name.startswith(f"lpips_{trunk}") and file.is_file()), None)


def _load_inception(device: torch.device) -> Callable[[Uint8], ArrayLike]:
    """The pretrained features of torch-fidelity that torchmetrics' FID is computed of."""
    import torch_fidelity  # noqa: F401  # torchmetrics says less clearly that it is missing
    from torchmetrics.image.fid import NoTrainInceptionV3

    network = NoTrainInceptionV3(name="inception-v3-compat", features_list=["2048"]).to(device)

    def features(image: Uint8) -> ArrayLike:
        with torch.no_grad():
            return network(torch.from_numpy(image.copy()).permute(2, 0, 1)[None].to(device))[0].cpu().numpy()

    return features
