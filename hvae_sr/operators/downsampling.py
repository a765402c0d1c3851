"""Linear degradations: downsampling H, its adjoint Hᵀ, its pseudo-inverse H⁺, the projection onto Hx = y."""

from __future__ import annotations

import operator
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import cached_property, lru_cache
from itertools import accumulate

import torch

from ..checks import check_count
from ..hooks import outside_graphs
from .resizers import KERNELS, BandedMatrix, PseudoInverse, resizing_matrix, row_tiles

MAX_CONDITION = 1e10  # of RRᵀ; beyond it float64 leaves fewer than six digits of H⁺
# Of HHᵀ, the product of those of both sides, by whose root H⁺ may magnify y - Hx and its rounding errors. Beyond the
# first, float32 is too coarse for the products; beyond the second, for what x̂ becomes.
CONDITION_OF_FLOAT64 = 1e8
MAX_CONDITION_OF_FLOAT32 = 1e12
CACHE_ENTRIES = 32


class Downsampling:
    """Downsampling by an integer factor, and the exact projection onto the images that agree with y.

    H is separable: y = Hx = R_h x R_wᵀ, where each R is the [ceil(n / s), n] matrix of the resizer in one
    dimension, built in float64. Hence H⁺ = Hᵀ(HHᵀ)⁻¹ is separable too, R⁺ = Rᵀ(RRᵀ)⁻¹, and

        x̂ = (I - H⁺H) x + H⁺ y        (CVDVAE slides, eq. 14)

    holds Hx̂ = y to rounding, for every kernel, size and border.

    Tensors are [..., H, W] with any leading dimensions, in any range of values: every method is linear and
    none of them clamps. float16 and bfloat16 are computed in float32 and float64 in float64, as are all where H⁺
    is large, which that of the named kernels is not; the result has the dtype and device of its (first) argument.
    All methods are differentiable. The matrices of a side are computed when it is first met (seconds for sides of
    several thousand pixels) and kept for the next images; before `torch.export`, call the method once with the sizes
    to export.

    Args:
        scale_factor: integer s >= 1. The LR sides are ceil(H / s) and ceil(W / s).
        kernel: the resizer.

            - `"bicubic"`: `F.interpolate(mode="bicubic", antialias=True)`, which is PIL's bicubic on mode F.
              For sides that are not multiples of s, its kernel stretches to n / ceil(n / s).
            - `"matlab-bicubic"`: MATLAB's `imresize(x, 1/s)`: stretched by s exactly, symmetric borders.
            - `"box"`: the mean of each s x s block; a last, partial block is the mean of what is there.
            - `"gaussian"`: sigma = s / 2, truncated at 4 sigma, sum 1, symmetric borders.
            - a 1-D tensor or sequence k of K taps: y_i = sum_j k_j x_(c_i + j - (K - 1) / 2) in both
              dimensions, c_i the centre of block i, symmetric borders, k as it is (not normalised). The
              centre of a block lies on a pixel when s is odd and between two when s is even, so that K must
              be odd or even as s is.

    Raises:
        ValueError: if `scale_factor` is not a whole number >= 1 or `kernel` is none of the above.

    Example:
        >>> import torch
        >>> op = Downsampling(scale_factor=4, kernel="bicubic")
        >>> x, y = torch.rand(1, 3, 30, 41), torch.rand(1, 3, 8, 11)
        >>> op(x).shape
        torch.Size([1, 3, 8, 11])
        >>> torch.allclose(op(op.project(x, y)), y, atol=1e-5)
        True
    """

    def __init__(self, scale_factor: int = 4, kernel: str | Sequence[float] | torch.Tensor = "bicubic") -> None:
        check_count("scale_factor", scale_factor, 1)
        self.scale_factor = int(scale_factor)
        self.kernel: str | tuple[float, ...] = _check_kernel(kernel, self.scale_factor)
        self._cache: OrderedDict[tuple[object, ...], BandedMatrix] = OrderedDict()
        self._lock = threading.Lock()

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """Hx = R_h x R_wᵀ: the LR image, [..., ceil(H / s), ceil(W / s)], of x [..., H, W].

        Raises:
            ValueError: if x is not a floating-point tensor of two or more dimensions.
        """
        _check_image("x", x)
        return self._transform("apply", x, (x.shape[-2], x.shape[-1]))

    __call__ = apply

    def apply_rows(
        self, rows: Callable[[int, int], torch.Tensor], size: tuple[int, int], device: torch.device | str = "cpu"
    ) -> Iterator[torch.Tensor]:
        """`apply` to an image that is asked for some rows at a time, as it is not held, or not in floating point.

        Args:
            rows: `rows(low, high)` gives [..., high - low, W]; rows near the borders of strips are asked for twice.
            size: (H, W).
            device: that of the rows; computed in float64 where it has it.

        Yields:
            Hx, [..., ceil(H / s), ceil(W / s)], as strips of rows from the top.
        """
        height, width = _check_size(size)
        device = torch.device(device)
        dtype = torch.float32 if device.type == "mps" else torch.float64
        matrix, columns = self._matrices("apply", (height, width), device, dtype)
        for low, high, block in matrix.tiles:
            yield columns.multiply_width(block @ rows(low, high).to(dtype))

    def adjoint(self, y: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Hᵀy = R_hᵀ y R_w, [..., H, W] = `size`, of y [..., ceil(H / s), ceil(W / s)]: <Hx, y> = <x, Hᵀy>.

        Raises:
            ValueError: if y is not a floating-point image of that size.
        """
        size = self._check_lr("y", y, size)
        return self._transform("adjoint", y, size)

    def pseudo_inverse(self, y: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """H⁺y = Hᵀ(HHᵀ)⁻¹y = R_h⁺ y (R_w⁺)ᵀ: of all x [..., H, W] = `size` with Hx = y, the one of least norm.

        Raises:
            ValueError: if y is not a floating-point image of that size, or if RRᵀ of either side is singular
                or its condition number (in the 1-norm) is above 1e10; for images of less than float64, if that of
                HHᵀ, of both sides together, is above 1e12.
        """
        size = self._check_lr("y", y, size)
        wide = y.to(self._precise_dtype(size, y.device, y.dtype))
        return self._transform("pseudo_inverse", wide, size).to(y.dtype)

    def project(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """x̂ = x + H⁺(y - Hx) = (I - H⁺H) x + H⁺ y (CVDVAE slides, eq. 14): the nearest image with Hx̂ = y.

        Half types return x̂ rounded to them, which limits how well Hx̂ = y holds: project in float32 or
        float64, then round.

        Args:
            x: [..., H, W].
            y: [..., ceil(H / s), ceil(W / s)]; the leading dimensions of x and y broadcast.

        Raises:
            ValueError: as `pseudo_inverse`, for y and the size of x.
        """
        _check_image("x", x)
        size = self._check_lr("y", y, (x.shape[-2], x.shape[-1]))
        dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
        dtype = torch.promote_types(dtype, self._precise_dtype(size, x.device, x.dtype))
        x_wide, y_wide = x.to(dtype), y.to(dtype)
        residual = y_wide - self._transform("apply", x_wide, size)
        return (x_wide + self._transform("pseudo_inverse", residual, size)).to(x.dtype)

    def project_(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """`project` in place, a strip of rows at a time: for images too large to be held several times over.

        Args:
            x: [..., H, W], float32 or float64; overwritten by x̂.
            y: [..., ceil(H / s), ceil(W / s)], of the dtype of x, with leading dimensions that broadcast to those of x.

        Returns:
            x.

        Raises:
            ValueError: as `project`, or for another dtype, or an x that cannot be overwritten.
        """
        _check_image("x", x)
        size = self._check_lr("y", y, (x.shape[-2], x.shape[-1]))
        if x.dtype not in (torch.float32, torch.float64) or y.dtype != x.dtype:
            raise ValueError(f"`x` and `y` must be both float32 or both float64, but are {x.dtype} and {y.dtype}")
        shared = any(step == 0 and count > 1 for step, count in zip(x.stride(), x.shape, strict=True))
        if shared or (x.requires_grad and torch.is_grad_enabled()):
            reason = "needs a gradient" if not shared else "has elements that share memory (`expand`)"
            raise ValueError(f"`x` cannot be overwritten: it {reason}; `project` makes a new image")
        ends = list(zip(reversed(x.shape[:-2]), reversed(y.shape[:-2]), strict=False))
        if y.ndim > x.ndim or any(of_y not in (1, of_x) for of_x, of_y in ends):
            raise ValueError(f"`y` {tuple(y.shape)} has leading dimensions that `x` {tuple(x.shape)} has not")
        dtype = self._precise_dtype(size, x.device, x.dtype)
        down, down_columns = self._matrices("apply", size, x.device, dtype)
        up, up_columns = self._matrices("pseudo_inverse", size, x.device, dtype)
        # Rows from which on this tile and all later ones read: below them, the residual is of no more use, and x may
        # be overwritten.
        unread_x = deque(_running_minimum([low for low, _, _ in down.tiles]))
        unread_residual = deque(_running_minimum([low for low, _, _ in up.tiles]))
        waiting = deque(down.tiles)
        first = stop = row = 0  # `residual` holds the rows from `first` to `stop`
        residual = x.new_empty(*x.shape[:-2], 0, y.shape[-1], dtype=down.dtype)
        for low, high, block in up.tiles:
            end = row + block.shape[0]
            parts = [residual[..., unread_residual.popleft() - first :, :]]
            first = stop - parts[0].shape[-2]
            while waiting and (stop < high or unread_x[0] < end):
                unread_x.popleft()
                strip = self._strip(waiting.popleft(), down_columns, x)
                parts.append(y[..., stop : stop + strip.shape[-2], :].to(strip.dtype) - strip)
                stop += strip.shape[-2]
            residual = torch.cat(parts, dim=-2) if len(parts) > 1 else parts[0]
            x[..., row:end, :] += self._strip((low - first, high - first, block), up_columns, residual).to(x.dtype)
            row = end
        return x

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(ceil(H / s), ceil(W / s)), the size of the LR image of an HR image of `size` = (H, W).

        Raises:
            ValueError: if `size` is not two integers >= 1.
        """
        height, width = _check_size(size)
        return -(-height // self.scale_factor), -(-width // self.scale_factor)

    @cached_property
    def reach(self) -> int:
        """HR pixels beyond which a pixel of x or y changes x̂ by less than 1e-4 of its own change.

        (RRᵀ)⁻¹ decays exponentially, the faster the smaller its condition: a part of an image is projected as in the
        whole where so much is seen around it.
        """
        s, side = self.scale_factor, 257
        y = torch.zeros(1, side, dtype=torch.float64)
        y[0, side // 2] = 1
        response = self.pseudo_inverse(y, (s, s * side))[0].abs()
        far = (response > 1e-4).nonzero().flatten() - s * side // 2
        kernel = (self.adjoint(y, (s, s * side))[0].abs() > 1e-4).sum()
        return int(far.abs().max() + kernel)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(scale_factor={self.scale_factor}, kernel={self.kernel!r})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Downsampling):
            return NotImplemented
        return (self.scale_factor, self.kernel) == (other.scale_factor, other.kernel)

    def __hash__(self) -> int:
        return hash((self.scale_factor, self.kernel))

    def __reduce__(self) -> tuple[type[Downsampling], tuple[object, ...]]:
        # Copies and pickles carry the two arguments: the cache is rebuilt, and a lock cannot travel.
        return type(self), (self.scale_factor, self.kernel)

    def _check_lr(self, name: str, y: torch.Tensor, size: tuple[int, int]) -> tuple[int, int]:
        _check_image(name, y)
        (height, width), expected = _check_size(size), self.output_size(size)
        if tuple(y.shape[-2:]) != expected:
            raise ValueError(
                f"`{name}` must be [..., {expected[0]}, {expected[1]}] for an HR image of {height} x {width} "
                f"and scale_factor={self.scale_factor}, but has shape {tuple(y.shape)}"
            )
        return height, width

    def _transform(self, kind: str, image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """A_h image A_wᵀ, A the `kind` of matrix of HR sides `size`; what lies between is never held whole."""
        rows, columns = self._matrices(kind, size, image.device, image.dtype)
        return torch.cat([self._strip(tile, columns, image).to(image.dtype) for tile in rows.tiles], dim=-2)

    @staticmethod
    def _strip(tile: tuple[int, int, torch.Tensor], columns: BandedMatrix, image: torch.Tensor) -> torch.Tensor:
        """The rows of A_h image A_wᵀ that a tile of A_h gives."""
        low, high, block = tile
        has_autocast = torch.amp.is_autocast_available(image.device.type)
        with torch.autocast(image.device.type, enabled=False) if has_autocast else nullcontext():
            return columns.multiply_width(block @ image[..., low:high, :].to(block.dtype))

    @outside_graphs
    def _matrices(
        self, kind: str, size: tuple[int, int], device: torch.device, dtype: torch.dtype
    ) -> tuple[BandedMatrix, BandedMatrix]:
        """R, Rᵀ or R⁺ of both sides, in the dtype that images of `dtype` are computed in."""
        dtype = _product_dtype(device, dtype)
        return self._matrix(kind, size[0], device, dtype), self._matrix(kind, size[1], device, dtype)

    @outside_graphs
    def _precise_dtype(self, size: tuple[int, int], device: torch.device, dtype: torch.dtype) -> torch.dtype:
        """`dtype`, or float64 where H⁺ needs it. Raises ValueError where its results cannot be held in `dtype`."""
        rows, columns = self._matrices("pseudo_inverse", size, device, dtype)
        condition = rows.condition * columns.condition
        if dtype == torch.float64 or condition <= CONDITION_OF_FLOAT64:
            return dtype
        most = CONDITION_OF_FLOAT64 if device.type == "mps" else MAX_CONDITION_OF_FLOAT32  # mps has no float64
        if condition > most:
            raise ValueError(
                f"HHᵀ is nearly singular for {self!r} and an HR image of {size[0]} x {size[1]}, and has no usable"
                f" inverse in {dtype}: its condition number is {condition:.1e}, and must be {most:.0e} at most but for"
                " float64"
            )
        return torch.float64

    def _matrix(self, kind: str, n: int, device: torch.device, dtype: torch.dtype) -> BandedMatrix:
        """R, Rᵀ or R⁺ for HR side n, from the cache (the least recently used entry leaves it first)."""
        key = (kind, n, device, dtype)
        with self._lock:
            matrix = self._cache.get(key)
            if matrix is not None:
                self._cache.move_to_end(key)
                return matrix
        # Built outside the lock: two threads may build the same matrix, none waits for another's. And tensors
        # made in inference mode could not serve a later backward pass.
        with torch.inference_mode(False), torch.no_grad():
            r = resizing_matrix(self.kernel, n, self.scale_factor)
            if kind == "pseudo_inverse":
                inverse = PseudoInverse(r)
                if not inverse.condition <= MAX_CONDITION:
                    raise ValueError(
                        f"HHᵀ is singular or nearly so for {self!r} and an HR side of {n}, and has no usable inverse:"
                        f" the condition number of RRᵀ is {inverse.condition:.1e}, and must be {MAX_CONDITION:.0e} at"
                        " most"
                    )
                matrix = BandedMatrix(inverse.row_tiles, dtype, device, inverse.condition)
            else:
                matrix = BandedMatrix(row_tiles(r.T.tocsr() if kind == "adjoint" else r), dtype, device)
        with self._lock:
            self._cache[key] = matrix
            while len(self._cache) > CACHE_ENTRIES:
                self._cache.popitem(last=False)
        return matrix


def cached_downsampling(scale_factor: int, kernel: str | Sequence[float] | torch.Tensor = "bicubic") -> Downsampling:
    """The operator of a factor and a kernel that all who ask for it share, and with it its matrices.

    Raises:
        ValueError: as `Downsampling`.
    """
    check_count("scale_factor", scale_factor, 1)
    return _shared(int(scale_factor), _check_kernel(kernel, scale_factor))


@lru_cache(maxsize=8)
def _shared(scale_factor: int, kernel: str | tuple[float, ...]) -> Downsampling:
    return Downsampling(scale_factor, kernel)


def _running_minimum(values: Sequence[int]) -> list[int]:
    """The least of each value and all that follow it."""
    return list(accumulate(reversed(values), min))[::-1]


def _product_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """float32; float64 for float64 images and where float32 products may be rounded to TF32 or bfloat16."""
    if dtype == torch.float64:
        return torch.float64
    if device.type == "mps":  # has no float64, and no such rounding
        return torch.float32
    settings = [
        getattr(getattr(backend, "matmul", None), "fp32_precision", None)
        for backend in (torch.backends.cuda, torch.backends.mkldnn)
    ]
    if None in settings:  # a torch older than the settings by backend
        exact = torch.get_float32_matmul_precision() == "highest"
    else:
        exact = all(setting in ("none", "ieee") for setting in settings)
    return torch.float32 if exact else torch.float64


def _check_kernel(kernel: str | Sequence[float] | torch.Tensor, s: int) -> str | tuple[float, ...]:
    if isinstance(kernel, str):
        if kernel not in KERNELS:
            raise ValueError(f"`kernel` must be one of {KERNELS} or a 1-D tensor, but is {kernel!r}")
        return kernel
    if isinstance(kernel, torch.Tensor) and kernel.is_complex():
        raise ValueError(f"`kernel` must be of real numbers, but is of {kernel.dtype}")
    try:
        # A device without float64 is left before it.
        given = kernel.detach().cpu() if isinstance(kernel, torch.Tensor) else kernel
        taps = torch.as_tensor(given, dtype=torch.float64, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"`kernel` must be one of {KERNELS} or a 1-D tensor, but is {kernel!r}") from error
    if taps.ndim != 1 or taps.numel() == 0 or not bool(taps.isfinite().all()):
        raise ValueError(f"`kernel` must be 1-D, finite and not empty, but is {kernel!r}")
    if (taps.numel() - s) % 2:
        raise ValueError(
            f"`kernel` must have an {'odd' if s % 2 else 'even'} number of taps to be centred on blocks of "
            f"scale_factor={s}, but has {taps.numel()}"
        )
    return tuple(taps.tolist())


def _check_size(size: tuple[int, int]) -> tuple[int, int]:
    try:
        height, width = (operator.index(side) for side in size)
    except (TypeError, ValueError):
        height = width = 0
    if height < 1 or width < 1:
        raise ValueError(f"`size` must be (H, W), two integers >= 1, but is {size!r}")
    return height, width


def _check_image(name: str, image: torch.Tensor) -> None:
    if not isinstance(image, torch.Tensor) or not image.is_floating_point():
        kind = image.dtype if isinstance(image, torch.Tensor) else type(image).__name__
        raise ValueError(f"`{name}` must be a floating-point tensor, but is {kind}")
    if image.ndim < 2 or 0 in image.shape[-2:]:
        raise ValueError(f"`{name}` must be [..., H, W] with sides >= 1, but has shape {tuple(image.shape)}")
