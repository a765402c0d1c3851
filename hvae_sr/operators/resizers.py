"""The resizers of `Downsampling` in one dimension, as banded matrices: R, Rᵀ and R⁺ = Rᵀ(RRᵀ)⁻¹.

R has about 4 s entries per row, and the entries of R⁺ decay exponentially away from its diagonal. None of them is ever
held whole: those of a side of 8192 pixels would take 128 MiB each.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy import linalg, sparse

KERNELS = ("bicubic", "matlab-bicubic", "box", "gaussian")

_AT_ONCE = 2**20
"""Numbers in float64 that are worked on together: 8 MiB."""

RowTile = tuple[int, torch.Tensor]
"""Some rows of a matrix in float64, `[rows, columns]`, and the first of its columns that they begin with."""


class BandedMatrix:
    """A matrix [r, c] as tiles of rows, each cut to the columns where its entries are not negligible.

    The cost of a product grows with the number of pixels and not with its power 3/2.

    Args:
        row_tiles: gives the tiles from the top. Called twice: the whole of a large matrix is never held.
        dtype, device: of the products.
        condition: for R⁺, the condition number of RRᵀ; else 1.
    """

    def __init__(
        self,
        row_tiles: Callable[[], Iterable[RowTile]],
        dtype: torch.dtype,
        device: torch.device,
        condition: float = 1.0,
    ) -> None:
        self.condition = condition
        negligible = max(block.abs().max().item() for _, block in row_tiles()) * torch.finfo(dtype).eps / 16
        self.dtype = dtype
        self.tiles: list[tuple[int, int, torch.Tensor]] = []
        for start, block in row_tiles():
            used = (block.abs() > negligible).any(dim=0).nonzero()
            low, high = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 1)
            # float64 is left behind before the device, which may not have it; clone() lets go of the block.
            self.tiles.append((start + low, start + high, block[:, low:high].clone().to(dtype).to(device)))

    def multiply_width(self, x: torch.Tensor) -> torch.Tensor:
        """x Aᵀ: [..., H, c] -> [..., H, r]."""
        return torch.cat([x[..., low:high] @ block.T for low, high, block in self.tiles], dim=-1)


class PseudoInverse:
    """R⁺ = Rᵀ(RRᵀ)⁻¹ [n, m] of R [m, n], by the Cholesky factor of the banded RRᵀ.

    Args:
        r: R.

    Attributes:
        condition: the condition number of RRᵀ in the 1-norm; infinite where it has no Cholesky factor.
    """

    def __init__(self, r: sparse.csr_array) -> None:
        self.transposed = r.T.tocsr()
        gram = (r @ self.transposed).tocoo()
        self.side = gram.shape[0]
        width = int(np.abs(gram.row - gram.col).max(initial=0)) + 1
        lower = np.zeros((width, self.side))
        below = gram.row >= gram.col
        lower[(gram.row - gram.col)[below], gram.col[below]] = gram.data[below]
        self.condition = math.inf
        try:
            self._factor = linalg.cholesky_banded(lower, lower=True, check_finite=False)
        except linalg.LinAlgError:
            return
        step = max(_AT_ONCE // self.side, 1)
        inverse_norm = max(
            float(np.abs(self._inverse_columns(low, min(low + step, self.side))).sum(axis=0).max())
            for low in range(0, self.side, step)
        )
        self.condition = float(np.abs(gram).sum(axis=0).max()) * inverse_norm

    def row_tiles(self) -> Iterator[RowTile]:
        """As `BandedMatrix` takes them."""
        for low, block in row_tiles(self.transposed)():
            inverse = self._inverse_columns(low, low + block.shape[1])
            yield 0, block @ torch.from_numpy(inverse).T

    def _inverse_columns(self, low: int, high: int) -> np.ndarray:
        """Columns of (RRᵀ)⁻¹, [m, high - low]."""
        impulses = np.eye(self.side, high - low, -low)
        return linalg.cho_solve_banded((self._factor, True), impulses, overwrite_b=True, check_finite=False)


def row_tiles(matrix: sparse.csr_array) -> Callable[[], Iterator[RowTile]]:
    """What `BandedMatrix` takes: a tile of rows spans `rows * width / height` columns of the matrix at the least."""
    count = 32 if matrix.shape[0] < matrix.shape[1] else 128

    def tiles() -> Iterator[RowTile]:
        for start in range(0, matrix.shape[0], count):
            rows = matrix[start : start + count]
            low, high = (int(rows.indices.min()), int(rows.indices.max()) + 1) if rows.nnz else (0, 1)
            yield low, torch.from_numpy(rows[:, low:high].toarray())

    return tiles


def resizing_matrix(kernel: str | Sequence[float], n: int, s: int) -> sparse.csr_array:
    """R, [ceil(n / s), n], in float64.

    Args:
        kernel: as `Downsampling` checked it.
        n: the HR side.
        s: scale factor.
    """
    m = -(-n // s)
    if kernel == "bicubic":
        return _interpolation_matrix(m, n)
    if kernel == "box":
        return _box_matrix(m, n, s)
    if kernel == "matlab-bicubic":
        taps = _sample(_keys_cubic, s, support=2 * s)
    elif kernel == "gaussian":
        taps = _sample(lambda t: math.exp(-2 * t * t), s, support=2 * s)  # t = d / s = d / (2 sigma)
    else:
        taps = [float(weight) for weight in kernel]
    return _tap_matrix(taps, m, n, s)


def interpolate(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Antialiased bicubic `F.interpolate` of `[N, C, H, W]` to (H, W) = `size`, also where W = 1."""
    if size[1] == 1:  # PyTorch resizes the height of images of width 1 wrongly on the CPU
        return F.interpolate(images.mT, (1, size[0]), mode="bicubic", antialias=True, align_corners=False).mT
    return F.interpolate(images, size, mode="bicubic", antialias=True, align_corners=False)


def _interpolation_matrix(m: int, n: int) -> sparse.csr_array:
    """[m, n]: `interpolate` from n to m samples, applied to the n unit impulses."""
    columns = []
    step = max(_AT_ONCE // n, 1)
    for start in range(0, n, step):
        count = min(step, n - start)
        impulses = torch.zeros(1, 1, count, n, dtype=torch.float64, device="cpu")
        impulses[0, 0, :, start : start + count].fill_diagonal_(1)
        resized = interpolate(impulses, (count, m))
        columns.append(sparse.csr_array(resized[0, 0].numpy()))
    return sparse.vstack(columns).T.tocsr()


def _box_matrix(m: int, n: int, s: int) -> sparse.csr_array:
    """[m, n]: means of blocks of s samples, the last block cut at the border."""
    block = np.arange(n) // s
    weights = 1 / np.bincount(block, minlength=m)
    return sparse.csr_array((weights[block], (block, np.arange(n))), shape=(m, n))


def _tap_matrix(taps: Sequence[float], m: int, n: int, s: int) -> sparse.csr_array:
    """[m, n]: row i has the taps around the centre of block i, folded back at symmetric borders."""
    first = (s - len(taps)) // 2  # position of the first tap relative to the first sample of its block
    row, tap = np.indices((m, len(taps))).reshape(2, -1)
    position = (row * s + first + tap) % (2 * n)  # x_0 ... x_(n-1) x_(n-1) ... x_0, repeated
    position = np.where(position < n, position, 2 * n - 1 - position)
    return sparse.csr_array((np.asarray(taps)[tap], (row, position)), shape=(m, n))  # what falls together is added


def _sample(function: Callable[[float], float], s: int, support: int) -> list[float]:
    """`function(d / s)` at the distances |d| <= support of the pixels from a block's centre, with sum 1."""
    count = 2 * support + s % 2  # s even: d = ±1/2, ±3/2, ...; s odd: d = 0, ±1, ...
    values = [function((j - (count - 1) / 2) / s) for j in range(count)]
    return [value / math.fsum(values) for value in values]


def _keys_cubic(t: float) -> float:
    """Keys' cubic convolution kernel with a = -1/2, on |t| <= 2."""
    t = abs(t)
    return 1.5 * t**3 - 2.5 * t**2 + 1 if t <= 1 else -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
