"""New versions of a region of a sample: what is outside stays as it is, bit for bit, and H sees no change."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor

from ..checks import check_count
from ..operators import Downsampling
from .recipe import Recipe


def composite(draw: Callable[[Recipe], Tensor], operator: Downsampling | None, recipe: Recipe) -> Tensor:
    """The picture of a recipe with regions.

    Inside a mask the latents get the noise of another seed, so that the region still fits its surroundings. The
    change d = x_new - x_old, with weights w that fall to 0 at the edge of the mask, is then projected on the changes
    that H does not see and that stay inside,

        d̂ = w d - W Hᵀ (H W Hᵀ)⁺ H w d,    W = diag(w)

    (by conjugate gradients), so that H(x_old + d̂) = H x_old; region after region.

    Args:
        draw: the plain sample of a recipe, `[3, H, W]`, nominally in [0, 1], not clamped.
        operator: H; None where it is not known, and the change w d is taken as it is.
        recipe: of the picture.

    Returns:
        x, `[3, H, W]`, nominally in [0, 1], not clamped.
    """
    x = draw(Recipe(recipe.group_seeds))  # not clamped, as no sample is until the last: H sees what is cut off
    for count, region in enumerate(recipe.regions, 1):
        new = draw(Recipe(recipe.group_seeds, recipe.regions[:count]))
        weights = feather_weights(torch.from_numpy(region.mask.copy()), region.feather).to(x.device)
        if operator is None:
            x = x + weights.to(x.dtype) * (new - x)
        else:
            x = x + unseen_change(operator, new - x, weights)
    return x


def unseen_change(operator: Downsampling, change: Tensor, weights: Tensor, tolerance: float = 1e-9) -> Tensor:
    """The change `[3, H, W]` as H does not see it, and as it is 0 where `weights` `[H, W]` are; see `composite`."""
    scale = operator.scale_factor
    rows, columns = (torch.nonzero(weights.amax(dim=dim)).flatten() for dim in (1, 0))
    if not len(rows):
        return torch.zeros_like(change)
    # Beyond the kernel's reach, neither the change nor what H makes of it is seen; in pixels of y.
    taps = 0 if isinstance(operator.kernel, str) else len(operator.kernel)
    reach = max(6, -(-taps // (2 * scale)) + 2)
    box = []
    for found, length in zip((rows, columns), weights.shape, strict=True):
        first, last = int(found[0]) // scale - reach, int(found[-1]) // scale + reach
        box.append(slice(max(first, 0) * scale, min((last + 1) * scale, length)))
    wide = torch.float32 if change.device.type == "mps" else torch.float64
    w = weights[box[0], box[1]].to(wide)
    d = w * change[:, box[0], box[1]].to(wide)
    size = (d.shape[-2], d.shape[-1])

    residual = operator(d)
    solution = torch.zeros_like(residual)
    scaling = 1 / operator(w[None]).abs().clamp_min(1e-4)  # about the diagonal: pixels of y of which w shows little
    scaled = scaling * residual
    direction, power = scaled.clone(), (residual * scaled).sum()
    enough = power * tolerance**2
    for _ in range(1000):
        if power <= enough or power == 0:
            break
        image = operator(w * operator.adjoint(direction, size))
        step = power / (direction * image).sum()
        solution += step * direction
        residual -= step * image
        scaled = scaling * residual
        power, previous = (residual * scaled).sum(), power
        direction = scaled + power / previous * direction
    found = torch.zeros_like(change)
    found[:, box[0], box[1]] = (d - w * operator.adjoint(solution, size)).to(change.dtype)
    return found


def read_mask(mask: Image.Image | np.ndarray | Tensor, size: tuple[int, int], scale: int) -> Tensor:
    """Where pixels are redrawn: booleans `[H, W]`, on the CPU.

    Args:
        mask: true, or above half of its range ([0, 1]; integers beyond 1: [0, 255], beyond 255: 16 bits): `[H, W]` of
            the result or `[h, w]` of y.
        size: (H, W).
        scale: sides of x over sides of y.

    Raises:
        ValueError: another size, empty, no numbers, or floats beyond 1.
    """
    if isinstance(mask, Image.Image):
        mask = np.asarray(mask if mask.mode.startswith(("1", "I", "F")) else mask.convert("L"))
    if isinstance(mask, Tensor):
        mask = (mask.float() if mask.is_floating_point() else mask).detach().cpu().numpy()
    given = np.asarray(mask)
    if given.dtype.kind not in "buif":
        raise ValueError(f"`mask` must be a picture or an array of booleans or numbers, got {mask!r}")
    most = given.max(initial=0)
    if given.dtype.kind == "f" and not most <= 1:
        raise ValueError(f"`mask` as floats must lie in [0, 1], got values up to {most:g}")
    # Integers of 0 and 1 are how most arrays spell booleans.
    half = 0.5 if most <= 1 else 127 if most <= 255 else 32767
    values = torch.from_numpy(np.ascontiguousarray(given > half))
    if tuple(values.shape) == (size[0] // scale, size[1] // scale):
        values = values.repeat_interleave(scale, 0).repeat_interleave(scale, 1)
    if tuple(values.shape) != size:
        raise ValueError(f"`mask` must be {size[0]}x{size[1]} (height x width) or the size of the image, got "
                         f"{tuple(values.shape)}")  # fmt: skip
    if not values.any():
        raise ValueError("`mask` is empty: nothing is to be redrawn")
    return values


def feather_weights(inside: Tensor, feather: int) -> Tensor:
    """How much of a change goes through: 1 inside a mask, falling to 0 at its edge.

    Args:
        inside: booleans `[H, W]`, on the CPU.
        feather: pixels inside the mask, >= 1, over which the weights grow from 0 to 1.

    Returns:
        `[H, W]` in [0, 1], float64; 1 everywhere for a mask without an edge.
    """
    if inside.all():  # without an edge there is nothing to measure distances to
        return torch.ones(inside.shape, dtype=torch.float64, device="cpu")
    return torch.from_numpy(ndimage.distance_transform_edt(inside.numpy()) / feather).clamp(0, 1)


def mix(coarse: Sequence[Tensor], fine: Sequence[Tensor], num_fixed_groups: int) -> list[Tensor]:
    """Latents with the first groups of one sample and the others of another: layout from one, texture from the other.

    Args:
        coarse, fine: latents of samples of one image, `[N, C, h, w]` for each group (`return_latents=True`).
        num_fixed_groups: how many groups come from `coarse`.

    Returns:
        What the pipeline takes as `latents`.

    Raises:
        ValueError: latents of other models, or a number of groups that they do not have.
    """
    if len(coarse) != len(fine):
        raise ValueError(f"`coarse` has {len(coarse)} groups and `fine` {len(fine)}")
    check_count("num_fixed_groups", num_fixed_groups, 0, len(coarse))
    return [*coarse[:num_fixed_groups], *fine[num_fixed_groups:]]
