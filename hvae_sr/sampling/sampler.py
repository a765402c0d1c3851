"""Samples of one image, window by window where it is large."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ..hooks import PerGroup
from ..models import VDVAE, Condition, LRConditioner, LREncoder, VDVAESample
from ..models.outputs import GroupStatistics
from ..noise import NoiseSource, TensorNoise
from .memory import KEPT_FEATURES, PIXELS_PER_CHUNK, Budget, format_bytes
from .sizes import SizeRequirements, pad_to
from .windows import Tile, Window, split, tiles

MARGIN = 96
"""HR pixels around a window that the networks see and that are not kept: on the bundled models windows and whole then
differ by less than 0.001 grey levels in the mean in float32, single pixels by some tenths (`python
benchmarks/windows.py NAME float32`)."""

SMALL_RESTORER, SMALL_RESTORER_MARGIN, RESTORER_MARGIN = 8, 128, 256
"""The same where y is read through a restorer, which sees further: of up to 8 blocks, and of more. In float32
natural-x4's eight leave differences of 0.004 grey levels at the most, photo-x4's 23 of 0.01 in the mean and 1.4 at the
most (`python benchmarks/windows.py NAME float32`)."""

BLEND = 4
"""Tiles of a model of one size are blended over a quarter of their side."""

WindowNoise = Callable[[tuple[int, int]], NoiseSource]
"""The noise that a window sees, from its origin (row, column) in HR pixels: see `posterior.recipe`."""


class Networks:
    """The prior and the LR network, and how they are evaluated: as they are, or as compiled graphs of them.

    Args:
        vdvae: the prior.
        lr_encoder: the LR network.
        scale_factor: sides of x over sides of y.
        compiled: what has `encode` and `sample` in the place of theirs.
    """

    def __init__(
        self, vdvae: VDVAE, lr_encoder: LREncoder | LRConditioner, scale_factor: int, compiled: Any = None
    ) -> None:
        self.vdvae, self.scale_factor = vdvae, scale_factor
        self.encode: Callable[[Tensor], Condition] = (compiled or lr_encoder).encode
        self.sample: Callable[..., VDVAESample] = (compiled or vdvae).sample
        self.sizes = SizeRequirements.of(vdvae, lr_encoder, scale_factor)
        restorer = getattr(lr_encoder, "restorer", None)
        self.margin, self.min_pixels = MARGIN, 0
        if restorer is not None:
            self.margin = SMALL_RESTORER_MARGIN if len(restorer.body) <= SMALL_RESTORER else RESTORER_MARGIN
            # HR pixels of the smallest evaluation: a wide margin would leave nothing of a smaller one to keep.
            self.min_pixels = (5 * self.margin // 2) ** 2


class WindowSampler:
    """Draws samples for one y, in windows that see the noise of the whole image.

    Args:
        networks: see `Networks`.
        y: `[3, h, w]` in [0, 1], on the device. A model of one size works on it in blended tiles of that size.
        window_size: side of a window in pixels of y, margins left out; None chooses windows of `budget.pixels`.
        budget: what one network evaluation, and features that are kept for the next sample, may take.
        margin: HR pixels around a window that are seen and not kept; None: as the networks need.
    """

    def __init__(
        self,
        networks: Networks,
        y: Tensor,
        window_size: int | None = None,
        budget: Budget | None = None,
        margin: int | None = None,
    ) -> None:
        self.networks, self.vdvae, self.scale = networks, networks.vdvae, networks.scale_factor
        self.y, self.budget = y, budget or Budget(PIXELS_PER_CHUNK, KEPT_FEATURES)
        self.margin = networks.margin if margin is None else margin
        self.padded_size = networks.sizes.padded((y.shape[-2], y.shape[-1]))
        self.size = networks.sizes.output((y.shape[-2], y.shape[-1]))
        self.window_size = window_size
        self.windows = self._split(window_size)
        self._conditions: dict[Window, Condition] = {}
        self._kept = 0

    @property
    def samples_at_once(self) -> int:
        """How many samples one network evaluation may take.

        On a CPU one: the rounding of its convolutions depends on the size of the batch, and larger ones gain nothing.
        """
        if self.y.device.type == "cpu":
            return 1
        largest = max(math.prod(self._view_size(window)) for window in self.windows)
        # Whole samples are held too: beyond what little memory the budget sets aside, they are drawn one by one.
        return max(1, min(self.budget.pixels // largest, PIXELS_PER_CHUNK // math.prod(self.size)))

    def check_windows(self, max_memory: int | None) -> None:
        """Raises a ValueError for a `window_size` with which an evaluation needs more than `max_memory`, if given."""
        largest = max(math.prod(self._view_size(window)) for window in self.windows)
        if max_memory is not None and self.window_size is not None and largest > self.budget.pixels:
            side = int(self.budget.pixels**0.5) // self.scale
            raise ValueError(
                f"`window_size` = {self.window_size} makes evaluations of {largest} pixels, and `max_memory` = "
                f"{format_bytes(max_memory)} leaves room for {self.budget.pixels}: windows of {side} pixels of y, "
                "margins included"
            )

    def sample(
        self,
        count: int,
        noise: WindowNoise | Sequence[Tensor | None],
        latents: Sequence[Tensor | None] | None = None,
        **arguments: Any,
    ) -> VDVAESample:
        """n samples of the whole.

        Args:
            count: n.
            noise: of the n samples, as a function of a window's origin, or given draws of the whole image.
            latents: given values, n rows or one.
            **arguments: others of `VDVAE.sample`.

        Returns:
            Images `[n, 3, H, W]` on [-1, 1] and latents `[n, C, h_l, w_l]`.
        """
        if len(self.windows) == 1:
            return self.sample_window(self.windows[0], count, noise, latents, **arguments)
        whole: VDVAESample | None = None
        for window in self.windows:
            out = self.sample_window(window, count, noise, latents, **arguments)
            if whole is None:
                start = out.sample.new_zeros if isinstance(window, Tile) else out.sample.new_empty
                shapes = (self.vdvae.latent_shape(group, count, self.size) for group in range(len(out.latents)))
                empty = PerGroup(z.new_empty(shape) for z, shape in zip(out.latents, shapes, strict=True))
                whole = VDVAESample(sample=start(count, 3, *self.size), latents=empty)
            window.paste(out.sample, whole.sample, self.scale)
            for group, z in enumerate(out.latents):
                window.paste(z, whole.latents[group], self.scale, self.vdvae.stride(group))
        assert whole is not None
        return whole

    def sample_window(
        self,
        window: Window,
        count: int,
        noise: WindowNoise | Sequence[Tensor | None],
        latents: Sequence[Tensor | None] | None = None,
        **arguments: Any,
    ) -> VDVAESample:
        """As `sample`, of what one window sees."""
        origin = (window.outer[0] * self.scale, window.outer[1] * self.scale)
        source: NoiseSource
        if callable(noise):
            source = noise(origin)
        else:
            source = TensorNoise([draw for draw in self._crop(noise, window) if draw is not None])
        condition, given = self.condition(window), self._crop(latents, window)
        out = self.networks.sample(
            count, self._view_size(window), noise=source, condition=condition, latents=given, **arguments
        )
        out.sample = condition.finish(out.sample, arguments.get("temperature", 1.0))
        return out

    def condition(self, window: Window) -> Condition:
        """The features of what a window sees of y: kept for further samples where there is room, else made anew."""
        kept = self._conditions.get(window)
        if kept is not None:
            return kept
        part = self.y[window.view()][None] * 2 - 1
        top, left, bottom, right = window.outer
        condition = self.networks.encode(pad_to(part, (bottom - top, right - left)))
        if len(self.windows) == 1 or self._kept + condition.nbytes <= self.budget.features:
            self._conditions[window] = condition
            self._kept += condition.nbytes
        return condition

    def forget(self) -> None:
        """Lets go of the features that are kept, for windows that do not come again."""
        self._conditions.clear()
        self._kept = 0

    def statistics(self, window: Window, latents: Sequence[Tensor]) -> list[GroupStatistics]:
        """`GroupStatistics` of every group of one window, for given latents `[n, C, h, w]` of the whole."""
        given = self._crop(latents, window)
        return self.vdvae.top_down(
            len(latents[0]), self._view_size(window), condition=self.condition(window), latents=given
        ).groups

    def _view_size(self, window: Window) -> tuple[int, int]:
        top, left, bottom, right = window.outer
        return (bottom - top) * self.scale, (right - left) * self.scale

    def _split(self, window_size: int | None) -> Sequence[Window]:
        height, width = self.padded_size
        sizes = self.networks.sizes
        if sizes.fixed_side is not None:
            return tiles(height, width, sizes.fixed_side, sizes.fixed_side // BLEND)
        margin = math.ceil(self.margin / self.scale / sizes.multiple) * sizes.multiple
        if window_size is None:
            pixels = max(self.budget.pixels, self.networks.min_pixels)
            window_size = int(pixels**0.5) // self.scale - 2 * margin
        return split(height, width, max(window_size // sizes.multiple, 1) * sizes.multiple, margin)

    def _crop(self, values: Sequence[Tensor | None] | None, window: Window) -> list[Tensor | None]:
        """What a window sees of given noise or latents `[N, C, h_l, w_l]`."""
        return [
            z if z is None else z[window.view(self.scale, self.vdvae.stride(group))]
            for group, z in enumerate(values or ())
        ]
