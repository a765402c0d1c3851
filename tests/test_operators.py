"""Downsampling operators: adjoint, pseudo-inverse, projection, equality with the resizers they stand for."""

from __future__ import annotations

import copy
import math
import pickle
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from processes import run

from hvae_sr.operators import Downsampling
from hvae_sr.operators.downsampling import CACHE_ENTRIES

NAMED_KERNELS = ["bicubic", "matlab-bicubic", "box", "gaussian"]
KERNELS = [*NAMED_KERNELS, "custom"]
SCALES = [2, 3, 4, 8, 16]
SIZES = [(64, 96), (45, 70), (7, 33)]

over_kernels = pytest.mark.parametrize("kernel", KERNELS)
over_scales = pytest.mark.parametrize("scale", SCALES)
over_sizes = pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")


def make_operator(kernel: str, scale: int) -> Downsampling:
    if kernel != "custom":
        return Downsampling(scale, kernel)
    taps = torch.linspace(0.2, 1.0, 2 * scale - scale % 2, dtype=torch.float64) ** 2  # not symmetric
    return Downsampling(scale, taps / taps.sum())


def random_image(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """In dB, for a peak of 1."""
    error = (a.double() - b.double()).square().mean().item()
    return math.inf if error == 0 else -10 * math.log10(error)


@over_kernels
@over_scales
@over_sizes
def test_adjoint_pseudo_inverse_and_projection_satisfy_their_definitions(
    kernel: str, scale: int, size: tuple[int, int]
) -> None:
    op = make_operator(kernel, scale)
    x, y = random_image(2, 3, *size), random_image(2, 3, *op.output_size(size), seed=1)
    torch.testing.assert_close((op(x) * y).sum(), (x * op.adjoint(y, size)).sum(), rtol=1e-12, atol=0)
    torch.testing.assert_close(op(op.pseudo_inverse(y, size)), y, rtol=0, atol=1e-11)
    for dtype, least_db in [(torch.float64, 120), (torch.float32, 100)]:
        x, y = x.to(dtype), y.to(dtype)
        projected = op.project(x, y)
        assert projected.dtype == dtype
        assert psnr(op(projected), y) >= least_db
        assert psnr(op.project(projected, y), projected) >= least_db


@over_kernels
def test_projection_is_the_nearest_consistent_image(kernel: str) -> None:
    op = make_operator(kernel, 4)
    x, y = random_image(45, 70), random_image(12, 18, seed=1)
    step = op.project(x, y) - x
    along = op.project(random_image(45, 70, seed=2), torch.zeros(12, 18))  # in the null space of H
    assert abs((step * along).sum().item()) < 1e-9 * step.norm().item() * along.norm().item()


@over_kernels
def test_pseudo_inverse_is_that_of_the_full_matrix(kernel: str) -> None:
    op, size = make_operator(kernel, 3), (8, 11)
    impulses = torch.eye(88, dtype=torch.float64).reshape(88, *size)
    h = op(impulses).reshape(88, -1).T
    y = random_image(*op.output_size(size))
    expected = (torch.linalg.pinv(h) @ y.flatten()).reshape(size)
    torch.testing.assert_close(op.pseudo_inverse(y, size), expected, rtol=0, atol=1e-11)


@over_scales
@pytest.mark.parametrize("size", [*SIZES, (257, 131), (33, 1), (1, 33), (513, 3)], ids=str)
def test_bicubic_equals_that_of_torch_and_of_pil_in_float_mode(scale: int, size: tuple[int, int]) -> None:
    op, x = Downsampling(scale, "bicubic"), random_image(1, 3, *size)
    height, width = op.output_size(size)
    if size in SIZES:
        for image, tolerance in [(x, 1e-12), (x.float(), 5e-6)]:
            resized = F.interpolate(image, (height, width), mode="bicubic", antialias=True, align_corners=False)
            torch.testing.assert_close(op(image), resized, rtol=0, atol=tolerance)
    image = x[0, 0].float().numpy()  # float32 is mode F
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    np.testing.assert_allclose(op(torch.from_numpy(image)).numpy(), np.asarray(resized), rtol=0, atol=1e-6)


def matlab_imresize_rows(image: np.ndarray, scale: float) -> np.ndarray:
    """Dimension 1 of MATLAB's imresize, after its function `contributions`, with its 1-based indices."""
    in_length = image.shape[0]
    out_length = math.ceil(in_length * scale)
    kernel_width = 4 / scale
    u = np.arange(1, out_length + 1) / scale + 0.5 * (1 - 1 / scale)
    left = np.floor(u - kernel_width / 2)
    taps = math.ceil(kernel_width) + 2
    indices = left[:, None] + np.arange(taps)
    t = np.abs(scale * (u[:, None] - indices))
    weights = (1.5 * t**3 - 2.5 * t**2 + 1) * (t <= 1)
    weights += (-0.5 * t**3 + 2.5 * t**2 - 4 * t + 2) * ((t > 1) & (t <= 2))
    weights /= weights.sum(axis=1, keepdims=True)
    mirror = np.concatenate([np.arange(1, in_length + 1), np.arange(in_length, 0, -1)])
    indices = mirror[np.mod(indices.astype(int) - 1, mirror.size)]
    return np.stack([w @ image[i - 1] for w, i in zip(weights, indices, strict=True)])


@over_scales
@over_sizes
def test_matlab_bicubic_follows_imresize_up_to_the_borders(scale: int, size: tuple[int, int]) -> None:
    op = Downsampling(scale, "matlab-bicubic")
    x = random_image(*size)
    expected = matlab_imresize_rows(matlab_imresize_rows(x.numpy(), 1 / scale).T, 1 / scale).T
    assert expected.shape == op.output_size(size)
    np.testing.assert_allclose(op(x).numpy(), expected, rtol=0, atol=1e-12)


@over_scales
@over_sizes
def test_box_takes_the_mean_of_each_block_and_of_what_is_there_of_the_last(scale: int, size: tuple[int, int]) -> None:
    op = Downsampling(scale, "box")
    x = random_image(1, 1, *size)
    expected = F.avg_pool2d(x, scale, ceil_mode=True, count_include_pad=False)
    torch.testing.assert_close(op(x), expected, rtol=0, atol=1e-12)


@over_scales
def test_gaussian_is_a_convolution_sampled_at_block_centres(scale: int) -> None:
    x = random_image(1, 1, 6 * scale, 7 * scale)
    distance = torch.arange(4 * scale + scale % 2, dtype=torch.float64)
    distance -= distance.mean()
    assert distance.max() <= 2 * scale < distance.max() + 1  # 4 sigma
    taps = torch.exp(-(distance**2) / (2 * (scale / 2) ** 2))
    taps /= taps.sum()
    pad = (len(taps) - scale) // 2
    padded = torch.from_numpy(np.pad(x[0, 0].numpy(), pad, mode="symmetric"))[None, None]
    expected = F.conv2d(padded, torch.outer(taps, taps)[None, None], stride=scale)
    torch.testing.assert_close(Downsampling(scale, "gaussian")(x), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(Downsampling(scale, taps)(x), expected, rtol=0, atol=1e-12)


def test_kernels_agree_where_they_should_and_keep_their_normalisation_and_orientation() -> None:
    x = random_image(128, 128)
    difference = (Downsampling(4, "matlab-bicubic")(x) - Downsampling(4, "bicubic")(x)).abs()
    assert difference[2:-2, 2:-2].max() < 1e-12 < difference.max()  # away from the borders
    blocks = x[:, 0::2] * 3 + x[:, 1::2] * 5
    torch.testing.assert_close(Downsampling(2, [3, 5])(x), blocks[0::2] * 3 + blocks[1::2] * 5)
    y = random_image(128, 128, seed=1)
    for kernel in ("bicubic", "matlab-bicubic", "box"):  # by a factor of 1
        torch.testing.assert_close(Downsampling(1, kernel)(x), x)
        torch.testing.assert_close(Downsampling(1, kernel).project(x, y), y)


@over_kernels
def test_rows_and_columns_are_resized_independently_and_constants_stay(kernel: str) -> None:
    op = make_operator(kernel, 4)
    row, column = random_image(1, 33), random_image(45, 1, seed=1)
    gain = op(torch.ones(1, 1, dtype=torch.float64))  # of a side of one pixel, on each of the two factors
    torch.testing.assert_close(op(column @ row) * gain, op(column) @ op(row))
    x = random_image(45, 33)
    torch.testing.assert_close(op(x.T), op(x).T)
    for size in SIZES if kernel in NAMED_KERNELS else []:
        constant = torch.full((1, *size), 0.7, dtype=torch.float64)
        torch.testing.assert_close(op(constant), torch.full((1, *op.output_size(size)), 0.7, dtype=torch.float64))


def test_tiles_of_a_large_side_join_without_error() -> None:
    op = Downsampling(4, "gaussian")
    x, y = random_image(3, 1203, dtype=torch.float32), random_image(1, 301, dtype=torch.float32, seed=1)
    assert psnr(op(op.project(x, y)), y) >= 100
    np.testing.assert_allclose(op(x)[:, 100:200], op(x.double()[:, 240:960])[:, 40:140], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-5)], ids=str)
@pytest.mark.parametrize("kernel", [*KERNELS, "one-sided"])
def test_projection_in_place_gives_what_projection_gives(kernel: str, dtype: torch.dtype, tolerance: float) -> None:
    op = Downsampling(4, [0.0] * 9 + [0.1, 0.3, 0.6]) if kernel == "one-sided" else make_operator(kernel, 4)
    for height in (7, 130, 1203):  # of one tile of rows, of several, with a last block that is cut
        x = random_image(2, 3, height, 22, dtype=dtype)
        y = random_image(3, *op.output_size((height, 22)), dtype=dtype, seed=1)  # one for both
        expected = op.project(x, y)
        assert op.project_(x, y) is x
        torch.testing.assert_close(x, expected, rtol=0, atol=tolerance * max(expected.abs().max().item(), 1))


def test_matrices_of_a_large_side_are_never_held_whole() -> None:
    program = (
        "import torch\n"
        "from hvae_sr.operators import Downsampling\n"
        "torch.set_num_threads(1)  # buffers of the threads are no matrices\n"
        "op = Downsampling(4)\n"
        "def peak():  # `ru_maxrss` would begin at that of the process that runs this test\n"
        "    return int(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1])\n"
        "op.project_(torch.rand(3, 32, 32), torch.rand(3, 8, 8))\n"
        "x, y = torch.rand(8192, 32), torch.rand(2048, 8)\n"
        "before = peak()\n"
        "op.project_(x, y)\n"
        "print((peak() - before) / 1024)"
    )
    done = run([sys.executable, "-c", program], check=True)
    assert float(done.stdout) < 128  # MiB; R and R⁺ would take so much each, beside what is taken now


def test_any_leading_dimensions_give_what_single_images_give() -> None:
    op = Downsampling(4)
    x, y = random_image(2, 5, 3, 21, 30), random_image(2, 1, 3, 6, 8, seed=1)
    projected = op.project(x, y)  # five samples of each image share its y
    assert projected.shape == x.shape
    for i in range(2):
        for j in range(5):
            torch.testing.assert_close(projected[i, j], op.project(x[i, j], y[i, 0]), rtol=0, atol=1e-13)
    assert op(x[:0]).shape == (0, 5, 3, 6, 8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single_precision(dtype: torch.dtype) -> None:
    op, size = Downsampling(4), (30, 41)
    x, y = random_image(3, *size).to(dtype), random_image(3, 8, 11, seed=1).to(dtype)
    halves = op(x), op.adjoint(y, size), op.pseudo_inverse(y, size), op.project(x, y)
    x, y = x.float(), y.float()
    singles = op(x), op.adjoint(y, size), op.pseudo_inverse(y, size), op.project(x, y)
    for result, expected in zip(halves, singles, strict=True):
        assert result.dtype == dtype and torch.equal(result, expected.to(dtype))


def test_autocast_and_reduced_products_do_not_lower_the_precision() -> None:
    op, x, y = Downsampling(4), random_image(30, 41).float(), random_image(8, 11, seed=1).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        projected = op.project(x, y)
    assert torch.equal(projected, op.project(x, y))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        projected = op.project(x, y)
    finally:
        torch.set_float32_matmul_precision(before)
    assert projected.dtype == torch.float32
    assert psnr(op(projected), y) >= 100


@over_kernels
def test_gradients_are_those_of_linear_maps_after_a_first_use_in_inference_mode_too(kernel: str) -> None:
    op, size = make_operator(kernel, 2), (5, 8)
    x, y = random_image(*size), random_image(*op.output_size(size), seed=1)
    with torch.inference_mode():
        op.project(x, y)
    for image in (x, y):
        image.requires_grad_()
    assert torch.autograd.gradcheck(op.apply, (x,))
    assert torch.autograd.gradcheck(lambda y: op.adjoint(y, size), (y,))
    assert torch.autograd.gradcheck(lambda y: op.pseudo_inverse(y, size), (y,))
    assert torch.autograd.gradcheck(op.project, (x, y))


def test_threads_may_share_an_operator_and_its_cache_stays_bounded() -> None:
    op = Downsampling(4)
    sides = list(range(8, 8 + 2 * CACHE_ENTRIES))

    def error(side: int) -> float:
        x, y = random_image(side, side), random_image(*op.output_size((side, side)), seed=1)
        return (op(op.project(x, y)) - y).abs().max().item()

    with ThreadPoolExecutor(4) as threads:
        assert max(threads.map(error, sides)) < 1e-12
    assert len(op._cache) <= CACHE_ENTRIES


@over_kernels
def test_copies_and_pickles_are_equal_and_compute_the_same(kernel: str) -> None:
    op, x = make_operator(kernel, 4), random_image(30, 41)
    result = op(x)
    for twin in (copy.deepcopy(op), pickle.loads(pickle.dumps(op)), eval(repr(op), {"Downsampling": Downsampling})):
        assert twin == op and hash(twin) == hash(op) and repr(twin) == repr(op)
        assert torch.equal(twin(x), result)
    assert op != Downsampling(8, "box") and op != "bicubic"
    assert repr(Downsampling()) == "Downsampling(scale_factor=4, kernel='bicubic')"


@pytest.mark.parametrize(
    ("scale", "kernel", "message"),
    [
        *(
            (s, "bicubic", "`scale_factor` must be a whole number >= 1, got ")
            for s in (0, -2, 2.5, 4.0, True, "4", None)
        ),
        (4, "lanczos", "`kernel` .*but is 'lanczos'"),
        (4, None, "`kernel` .*but is None"),
        (4, [], "`kernel` .*not empty"),
        (4, torch.ones(4, 4), "`kernel` .*1-D"),
        (4, [1.0, math.nan], "`kernel` .*finite"),
        (4, [0.25, 0.5, 0.25], "`kernel` .*even number of taps .* scale_factor=4, but has 3"),
        (3, torch.ones(3, dtype=torch.complex64) / 3, "`kernel` must be of real numbers"),
    ],
)
def test_unusable_scale_factors_and_kernels_are_refused(scale: object, kernel: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Downsampling(scale, kernel)  # type: ignore[arg-type]


OF_30_X_41 = r"`y` must be \[\.\.\., 8, 11\] .* 30 x 41 .* but has shape \(1, 3, 7, 11\)"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda op, x, y: op.adjoint(y, (30, 41)), OF_30_X_41),
        (lambda op, x, y: op.pseudo_inverse(y, (30, 41)), OF_30_X_41),
        (lambda op, x, y: op.project(x, y), OF_30_X_41),
        (lambda op, x, y: op(x.to(torch.uint8)), "`x` must be a floating-point tensor, but is torch.uint8"),
        (lambda op, x, y: op(x.numpy()), "`x` must be a floating-point tensor, but is ndarray"),
        (lambda op, x, y: op(x[0, 0, :, 0]), r"`x` must be \[\.\.\., H, W\] .* has shape \(30,\)"),
        (lambda op, x, y: op(x[0, :, :0, :5]), r"`x` must be .* has shape \(3, 0, 5\)"),
        *(
            (lambda op, x, y, size=size: op.output_size(size), r"`size` must be \(H, W\)")
            for size in [(30,), (30, 0), (30, 41.0), 30, (1, 30, 41)]
        ),
        (lambda op, x, y: op.project_(x[0, :, :8, :8], x.new_zeros(2, 3, 2, 2)), "leading dimensions"),
        (lambda op, x, y: op.project_(x[0, :, :8, :8], x.new_zeros(4, 2, 2)), "leading dimensions"),
        (
            lambda op, x, y: op.project_(x.expand(2, -1, -1, -1), x.new_zeros(1, 3, 8, 11)),
            "`x` cannot be overwritten: it has elements that share memory",
        ),
        (
            lambda op, x, y: op.project_(x.requires_grad_(), x.new_zeros(1, 3, 8, 11)),
            "`x` cannot be overwritten: it needs a gradient",
        ),
        (
            lambda op, x, y: op.project_(x, x.new_zeros(1, 3, 8, 11).double()),
            "`x` and `y` must be both float32 or both",
        ),
    ],
)
def test_tensors_and_sizes_that_are_wrong_are_refused(call: Callable[..., object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(Downsampling(4), torch.zeros(1, 3, 30, 41), torch.zeros(1, 3, 7, 11))


@pytest.mark.parametrize(
    ("scale", "kernel", "side"), [(2, [0.0, 0.0], 8), (1, [0.25, 0.5, 0.25], 600), (2, [1.0, -1.0], 7)]
)
def test_a_singular_operator_has_no_pseudo_inverse(scale: int, kernel: list[float], side: int) -> None:
    op = Downsampling(scale, kernel)  # the last: a difference that the symmetric border turns into zero
    x = random_image(side, side)
    y = op(x)
    assert op.adjoint(y, (side, side)).shape == x.shape
    for call in (lambda: op.pseudo_inverse(y, (side, side)), lambda: op.project(x, y)):
        with pytest.raises(ValueError, match=f"HHᵀ is singular .* side of {side}"):
            call()


@pytest.mark.parametrize("side", [32, 400])
def test_a_nearly_singular_operator_projects_exactly_or_not_at_all(side: int) -> None:
    op = Downsampling(1, [0.25, 0.5, 0.25])
    x, y = random_image(side, side), random_image(side, side, seed=1)
    assert (op(op.project(x, y)) - y).abs().max() < 1e-4  # float64
    x, y = x.float(), y.float()
    if side == 400:
        for call in (lambda: op.pseudo_inverse(y, (side, side)), lambda: op.project(x, y), lambda: op.project_(x, y)):
            with pytest.raises(ValueError, match="HHᵀ is nearly singular .* 400 x 400"):
                call()
        return
    projected = op.project(x, y)
    assert (op(projected) - y).abs().max() < 1.5e-4
    torch.testing.assert_close(op.project_(x, y), projected, rtol=1e-6, atol=1e-3)  # of x̂ up to some thousands
