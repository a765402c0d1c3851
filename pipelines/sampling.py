"""Samples of one image, window by window where it is large."""

import math
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from hvae_sr.models import Condition, VDVAESample
from hvae_sr.models.loading import PerGroup
from hvae_sr.noise import CounterNoise, NoiseSource, TensorNoise

from .memory import KEPT_FEATURES, PIXELS_PER_CHUNK, Budget
from .windows import Tile, Window, split, tiles

MARGIN = 96
"""HR pixels around a window that the networks see and that are not kept: on the bundled models windows and whole then
differ by less than 0.01 grey levels in float32 (`python benchmarks/windows.py`)."""

CPU_PIXELS = 2**18
"""HR pixels that the samples of one evaluation have on a CPU: maps beyond 32 MiB would be new pages from the system,
filled with zeros, at every layer."""

BLEND = 4
"""Tiles of a model of one size are blended over a quarter of their side."""


class WindowSampler:
    """Draws samples for one y, in windows that see the noise of the whole image.

    Args:
        pipe: the pipeline; its networks, scale and device are used.
        y: `[3, h, w]` in [0, 1], on the device. A model of one size works on it in blended tiles of that size.
        window_size: side of a window in pixels of y, margins left out; None chooses windows of `room.pixels`.
        room: what one network evaluation, and features that are kept for the next sample, may take.
    """

    def __init__(
        self,
        pipe: Any,
        y: Tensor,
        window_size: int | None = None,
        room: Budget | None = None,
    ) -> None:
        self.vdvae, self.lr_encoder, self.scale = pipe.vdvae, pipe.lr_encoder, pipe.operator.scale_factor
        compiled = pipe.compiled_networks
        self._encode = self.lr_encoder.encode if compiled is None else compiled.encode
        self._draw = self.vdvae.sample if compiled is None else compiled.sample
        self.fixed_side = self.lr_encoder.config.image_size if self.vdvae.config.bias_type == "spatial" else None
        self.room = room or Budget(PIXELS_PER_CHUNK, KEPT_FEATURES)
        self.y = y
        self.padding = self._padding()
        self.windows = self._split(window_size)
        self._conditions: dict[Window, Condition] = {}
        self._kept = 0

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the padded HR image, which latents and noise belong to."""
        height, width = self._padded_size
        return height * self.scale, width * self.scale

    @property
    def _padded_size(self) -> tuple[int, int]:
        return self.y.shape[-2] + self.padding[0], self.y.shape[-1] + self.padding[1]

    @property
    def samples_at_once(self) -> int:
        """How many samples one network evaluation may take."""
        largest = max(self._area(window) for window in self.windows)
        pixels = min(self.room.pixels, CPU_PIXELS) if self.y.device.type == "cpu" else self.room.pixels
        # Whole samples are held too: beyond what little memory `budget` sets aside, they are drawn one by one.
        return max(1, min(pixels // largest, PIXELS_PER_CHUNK // math.prod(self.size)))

    def sample(
        self,
        count: int,
        seeds: list[int] | None,
        noise: Sequence[Tensor | None] | None,
        latents: Sequence[Tensor | None] | None,
        arguments: dict[str, Any],
    ) -> VDVAESample:
        """n samples of the whole.

        Args:
            count: n.
            seeds, noise: of the n samples; one of them.
            latents: given values, n rows or one.
            arguments: others of `VDVAE.sample`.

        Returns:
            Images `[n, 3, H, W]` on [-1, 1] and latents `[n, C, h_l, w_l]`.
        """
        if len(self.windows) == 1:
            return self.sample_window(self.windows[0], count, seeds, noise, latents, arguments)
        whole: VDVAESample | None = None
        for window in self.windows:
            out = self.sample_window(window, count, seeds, noise, latents, arguments)
            if whole is None:
                start = out.sample.new_zeros if isinstance(window, Tile) else out.sample.new_empty
                whole = VDVAESample(
                    sample=start(count, 3, *self.size),
                    latents=PerGroup(
                        z.new_empty(self.vdvae.latent_shape(group, count, self.size))
                        for group, z in enumerate(out.latents)
                    ),
                )
            window.paste(out.sample, whole.sample, self.scale)
            for group, z in enumerate(out.latents):
                window.paste(z, whole.latents[group], self.scale, self.vdvae.stride(group))
        assert whole is not None
        return whole

    def sample_window(
        self,
        window: Window,
        count: int,
        seeds: list[int] | None,
        noise: Sequence[Tensor | None] | None = None,
        latents: Sequence[Tensor | None] | None = None,
        arguments: dict[str, Any] | None = None,
    ) -> VDVAESample:
        """As `sample`, of what one window sees."""
        source: NoiseSource = (
            CounterNoise(seeds, origin=(window.outer[0] * self.scale, window.outer[1] * self.scale))
            if seeds is not None
            else TensorNoise(self._crop(noise, window))  # type: ignore[arg-type]  # none of them is None
        )
        condition = self.condition(window)
        out = self._draw(
            count,
            self._view_size(window),
            noise=source,
            condition=condition,
            latents=self._crop(latents, window),
            **(arguments or {}),
        )
        self._keep(window, condition)
        return out

    def condition(self, window: Window) -> Condition:
        """The features of what a window sees of y, those of an earlier sample where they were kept."""
        return self._conditions.get(window) or self._encode(self._seen(window))

    def _keep(self, window: Window, condition: Condition) -> None:
        """Keeps the features for further samples: those of the only window, of others while there is room.

        After a draw, when the heads have added to them what serves every sample.
        """
        if window in self._conditions:
            return
        size = condition.nbytes
        if len(self.windows) == 1 or self._kept + size <= self.room.features:
            self._conditions[window] = condition
            self._kept += size

    def forget(self) -> None:
        """Lets go of the features that are kept, for windows that do not come again."""
        self._conditions.clear()
        self._kept = 0

    def statistics(self, window: Window, latents: Sequence[Tensor]) -> list[Any]:
        """`GroupStatistics` of every group of one window, for given latents `[n, C, h, w]` of the whole."""
        condition = self.condition(window)
        out = self.vdvae.top_down(
            len(latents[0]),
            self._view_size(window),
            condition=condition,
            latents=self._crop(latents, window),
            record="distributions",
        )
        self._keep(window, condition)
        return out.groups

    def _view_size(self, window: Window) -> tuple[int, int]:
        top, left, bottom, right = window.outer
        return (bottom - top) * self.scale, (right - left) * self.scale

    def _area(self, window: Window) -> int:
        return math.prod(self._view_size(window))

    def _padding(self) -> tuple[int, int]:
        """Rows and columns that y lacks of what the networks need."""
        height, width = self.y.shape[-2:]
        if self.fixed_side is not None:
            return max(self.fixed_side - height, 0), max(self.fixed_side - width, 0)
        return -height % self._multiple, -width % self._multiple

    def _seen(self, window: Window) -> Tensor:
        """What a window sees of y, `[1, 3, h, w]` on [-1, 1], its edges repeated where it lacks rows or columns."""
        part = self.y[window.crop]
        top, left, bottom, right = window.outer
        lacking = (0, right - left - part.shape[-1], 0, bottom - top - part.shape[-2])
        return F.pad(part[None] * 2 - 1, lacking, mode="replicate")

    @property
    def _multiple(self) -> int:
        return size_multiple(self.vdvae, self.lr_encoder, self.scale)

    def _split(self, window_size: int | None) -> Sequence[Window]:
        height, width = self._padded_size
        if self.fixed_side is not None:
            return tiles(height, width, self.fixed_side, self.fixed_side // BLEND)
        multiple = self._multiple
        margin = math.ceil(MARGIN / self.scale / multiple) * multiple
        if window_size is None:
            window_size = int(self.room.pixels**0.5) // self.scale - 2 * margin
        return split(height, width, max(window_size // multiple, 1) * multiple, margin)

    def _crop(self, values: Sequence[Tensor | None] | None, window: Window) -> list[Tensor | None]:
        """What a window sees of given noise or latents `[N, C, h_l, w_l]`."""
        return [
            z if z is None else z[window.view(self.scale, self.vdvae.stride(group))]
            for group, z in enumerate(values or ())
        ]


def size_multiple(vdvae: Any, lr_encoder: Any, scale: int) -> int:
    """What the sides of y must be multiples of, for both networks."""
    multiple = vdvae.size_multiple
    return math.lcm(lr_encoder.size_multiple, multiple // math.gcd(multiple, scale))
