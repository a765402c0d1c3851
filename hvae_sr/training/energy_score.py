"""Stage `energy-score`: proper scoring rules of the sampler that the pipeline runs."""

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import check_count
from ..models import VDVAE, Condition, LRConditioner, LREncoder
from ..noise import CounterNoise
from ..operators import Downsampling
from .objectives import ConditionalObjective, Loss
from .scores import Distance, PatchDistance

_SAMPLE_STRIDE = 0xD1B54A32D192ED03
"""Between the noise addresses of one crop's samples: odd and far from 1, like the stride between seeds of runs."""


class EnergyScore(ConditionalObjective):
    """Stage `energy-score`: proper scoring rules of the sampler that the pipeline runs; there is no encoder of x.

    Samples x_1..x_n ~ p(x|y), E[x|z] each, projected on {x : Hx = y} as at inference, are compared with the
    photograph x by the energy score (Gneiting and Raftery, 2007, eq. 22), unbiased in n:

        ES = 1/n sum_i |x_i - x| - 1/(n (n - 1)) sum_{i<j} |x_i - x_j|,

    |.| the root mean square over a patch of p x p pixels and the colours, averaged over the patches and the sizes p.
    The first term draws every sample to the photograph, the second keeps them apart; the minimum is at the true
    distribution, so the spread of the samples is calibrated and not bought by a weight. With n = 1 the second term is
    missing, and z are the means of their distributions: the regression of a point estimate, at half the cost.

    `distances` add the scores of other distances, each with its weight; their sum stays proper. Of each, the ratio
    of the spread to the error is logged: 1 where samples and photographs can be exchanged, 0 where the samples are all
    alike, above 1 where they are too far apart.

    `level_dropout` has the scores taken on samples whose finer levels are at temperature 0, in a share of the updates,
    and averaged over squares of `level_pools`: the groups up to each level are to be a calibrated sampler of images at
    that resolution, where without it the finest, whose noise is the easiest to use, would say everything. Without the
    averages (1) they would have to say everything themselves, and silence the finer ones.

    `low_temperatures` is the share of the updates whose samples are drawn at a temperature t, uniform on [0, 1), with
    the spread weighted by `spread_weight(t)`. Without them, what samples at t < 1 look like is left to chance: the
    networks never see latents of that size. The further `distances` then count t^`distance_fade` times: the estimate
    that is best for features is as sharp as a photograph and far from the one for pixels, so that with them samples at
    low temperatures would differ nearly as much as at 1.

    A finite network that has to spread its samples gives up some of the accuracy of its sample at temperature 0.
    `point_weight` w adds w |x_0 - x|, x_0 that sample, so that low temperatures stay close to the best point estimate.
    It is compared before its projection: what the projection replaces, such as the brightness, would be left to chance.

    Args:
        num_samples: n.
        patch_sizes: p, in pixels; all must divide the sides of the crops.
        point_weight: w; 0 leaves the term out.
        distances: further distances and the weights of their scores, by name.
        level_dropout: shares of the updates with only the coarsest level at temperature 1, the two coarsest, and so on;
            what is left of 1 goes to all levels.
        level_pools: sides in pixels of these squares, one for each share; None means half the stride of the finest
            level at temperature 1.
        low_temperatures: share of the updates with all levels at a temperature below 1.
        distance_fade: see above.
        exact: whether y is Hx. If not (y of random degradations), nothing is projected, here as at inference.
    """

    figure = "score"
    method = "conditioned VD-VAE decoder trained with the energy score"

    def __init__(
        self, vdvae: VDVAE, lr_network: LREncoder | LRConditioner, operator: Downsampling, num_samples: int = 2,
        patch_sizes: Sequence[int] = (1, 4), point_weight: float = 0.0,
        distances: Mapping[str, tuple[Distance, float]] | None = None,
        level_dropout: Sequence[float] = (), level_pools: Sequence[int] | None = None, low_temperatures: float = 0.0,
        distance_fade: float = 0.0, exact: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(vdvae, lr_network, operator)
        check_count("num_samples", num_samples, 1)
        for name, value in (("point_weight", point_weight), ("distance_fade", distance_fade)):
            if not 0 <= value < float("inf"):
                raise ValueError(f"`{name}` must be a finite number >= 0, got {value}")
        self.levels = sorted(set(vdvae.resolutions))
        most = len(self.levels) - 1
        if len(level_dropout) > most or any(p < 0 for p in level_dropout) or sum(level_dropout) > 1:
            raise ValueError(
                f"`level_dropout` must be at most {most} shares >= 0 with a sum of at most 1, got {level_dropout}"
            )
        if not 0 <= low_temperatures <= 1 - sum(level_dropout):
            words = "must be a share between 0 and 1, what `level_dropout` leaves of it"
            raise ValueError(f"`low_temperatures` {words}, got {low_temperatures}")
        strides = [vdvae.config.image_size // level for level in self.levels[: len(level_dropout)]]
        pools = [max(1, stride // 2) for stride in strides] if level_pools is None else level_pools
        if len(pools) != len(level_dropout) or any(pool < 1 for pool in pools):
            raise ValueError(f"`level_pools` must be {len(level_dropout)} integers above 0, got {level_pools}")
        self.pools = (*pools, *(1 for _ in self.levels[len(pools) :]))
        self.num_samples, self.point_weight, self.level_dropout = num_samples, point_weight, tuple(level_dropout)
        self.low_temperatures, self.distance_fade = low_temperatures, distance_fade
        self.patches = PatchDistance(patch_sizes)
        self.distances = nn.ModuleDict({name: distance for name, (distance, _) in (distances or {}).items()})
        self.weights = {name: weight for name, (_, weight) in (distances or {}).items()}
        self.exact = exact

    def forward(self, images: Tensor, seeds: Sequence[int], rate_weight: float = 1, low: Tensor | None = None) -> Loss:
        x, y = self.pairs(images, low)
        size = (x.shape[-2], x.shape[-1])
        condition = self.lr_network.encode(y)
        samples = self.samples(y, size, seeds, condition)
        finest, temperature = self._opened(seeds)
        pool, kept = self.pools[finest], 0.5 * spread_weight(temperature)
        seen, drawn = F.avg_pool2d(x, pool), [F.avg_pool2d(sample, pool) for sample in samples]
        error, spread = _error_and_spread(self.patches, drawn, seen)
        loss = score = error - kept * spread
        figures = {"score": score, "error": error, "spread": spread}
        if self.point_weight:
            figures["point_error"] = self.patches([self._draw(size, None, condition, 0.0)], [x])
            loss = loss + self.point_weight * figures["point_error"]
        figures = {name: 127.5 * value.detach() for name, value in figures.items()}  # in grey levels, for the log
        for name, distance in self.distances.items():
            assert isinstance(distance, Distance)
            far, apart = _error_and_spread(distance, drawn, seen)
            loss = loss + temperature**self.distance_fade * self.weights[name] * (far - kept * apart)
            figures[f"{name}_score"] = (far - kept * apart).detach()
            figures[f"{name}_ratio"] = (apart / far).detach()
        if len(samples) > 1:
            figures["patch_ratio"] = (spread / error).detach()
            images = torch.stack(drawn).detach()
            # The mean square of the difference of each two is twice their unbiased variance.
            figures["mse_ratio"] = 2 * images.var(dim=0).mean() / (images - seen).square().mean()
        return loss, figures

    def check_resolution(self, side: int) -> None:
        """Raises a ValueError if crops of so many pixels cannot be scored at every level that is."""
        for share, pool in zip((*self.level_dropout, 1.0), (*self.pools[: len(self.level_dropout)], 1), strict=True):
            seen = side // pool
            if not share:
                continue
            if side % pool or any(seen % patch for patch in self.patches.patch_sizes):
                raise ValueError(
                    f"`score_level_pools`: {pool} must divide `resolution` {side} into what `score_patch_sizes` "
                    f"{list(self.patches.patch_sizes)} divide"
                )
            for name, distance in self.distances.items():
                assert isinstance(distance, Distance)
                try:
                    features = distance.features(torch.zeros(1, 3, seen, seen, device=next(self.parameters()).device))
                    distance(features, features)
                except RuntimeError as error:
                    raise ValueError(
                        f"`resolution` {side}: averaged over squares of {pool} (`score_level_pools`), its {seen} "
                        f"pixels are too few for the score {name!r}"
                    ) from error

    def samples(
        self, y: Tensor, size: tuple[int, int], seeds: Sequence[int], condition: Condition | None = None
    ) -> tuple[Tensor, ...]:
        """n samples for each y, as the pipeline returns them before clamping, `[B, 3, H, W]` on [-1, 1] each.

        Args:
            y: `[B, 3, h, w]` on [-1, 1].
            size: (H, W).
            seeds: one integer for each y.
            condition: what the LR network made of y, where it is known.
        """
        n = self.num_samples
        condition = condition or self.lr_network.encode(y)
        noise = CounterNoise([seed + j * _SAMPLE_STRIDE for j in range(n) for seed in seeds])
        drawn = self._draw(size, noise, condition.repeat(n), self._temperatures(seeds) if n > 1 else 0.0)
        if not self.exact:
            return drawn.chunk(n)
        with torch.autocast(y.device.type, enabled=False):
            return self.operator.project(drawn, y.repeat(n, 1, 1, 1)).chunk(n)

    def _opened(self, seeds: Sequence[int]) -> tuple[int, float]:
        """The number of the finest level above temperature 0, and its temperature: a function of the batch's seeds.

        Held-out images are measured with all levels at temperature 1, and a point estimate has none.
        """
        if not self.training or self.num_samples == 1:
            return len(self.levels) - 1, 1.0
        share, temperature = np.random.default_rng([seed % 2**64 for seed in seeds]).random(2)
        limits = [*itertools.accumulate(self.level_dropout)]
        finest = next((level for level, limit in enumerate(limits) if share < limit), len(self.levels) - 1)
        return finest, float(temperature) if share >= 1 - self.low_temperatures else 1.0

    def _temperatures(self, seeds: Sequence[int]) -> list[float]:
        """The temperature of every group: 0 beyond the finest level that is open."""
        finest, temperature = self._opened(seeds)
        return [temperature if resolution <= self.levels[finest] else 0.0 for resolution in self.vdvae.resolutions]

    def _draw(
        self, size: tuple[int, int], noise: CounterNoise | None, condition: Condition,
        temperature: float | Sequence[float],
    ) -> Tensor:  # fmt: skip
        """One sample for each row of the condition, not projected."""
        out = self.vdvae.sample(condition.batch_size, size, noise, condition=condition, temperature=temperature)
        return condition.finish(out.sample.float(), temperature)


def spread_weight(temperature: float) -> float:
    """lambda(t) = t sqrt(2 / (1 + t^2)), the weight of the spread in the energy score of samples at temperature t.

    For a Gaussian p(x|y) of standard deviation sigma the minimum over Gaussian samplers is then at t sigma, which is
    what temperature means: with s their deviation over sigma, E|x_i - x| is proportional to sqrt(1 + s^2) and
    E|x_i - x_j| to sqrt(2) s. It is 1 at t = 1, the energy score itself, and 0 at t = 0, the point estimate's error.
    """
    return temperature * math.sqrt(2 / (1 + temperature**2))


def _error_and_spread(distance: Distance, samples: Sequence[Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """The mean distance of the samples from x, and of each two of them: 0 where there is only one."""
    with torch.no_grad():
        truth = distance.features(x)
    maps = [feature.chunk(len(samples)) for feature in distance.features(torch.cat(tuple(samples)))]
    drawn = list(zip(*maps, strict=True))
    error = torch.stack([distance(sample, truth) for sample in drawn]).mean()
    pairs = [distance(one, other) for one, other in itertools.combinations(drawn, 2)]
    return error, torch.stack(pairs).mean() if pairs else torch.zeros_like(error)
