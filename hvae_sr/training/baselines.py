"""What the compared systems minimise: stages `regression`, `hcflow`, `sr3` and `ddpm`, the prior of DPS."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from ..baselines import EDSR, SPAN, AncestralScheduler, GuidedDiffusionUNet, HCFlow, RRDBNet, SR3UNet, SRVGGNetCompact
from ..baselines.diffusion import variational_bound
from ..baselines.sr3 import sr3_loss
from ..noise import CounterNoise
from ..operators import Downsampling
from ..pipelines.baselines import DPSPipeline, HCFlowPipeline, RegressionPipeline, SR3Pipeline
from ..pipelines.compared import ComparedPipeline
from .objectives import Loss, PairedObjective
from .scores import FeatureCritic, PerceptualDistance

_TIME, _WITHIN = 0, 1
"""Numbers of the uniform draws of a diffusion step: which one, and how far from its noise level."""


class BaselineObjective(PairedObjective):
    """The loss of a compared system.

    Args:
        network: of one of `architectures`.
        operator: H, makes y from x.
        scheduler: of a diffusion model.

    Raises:
        ValueError: a network of another system or scale factor, or a schedule that does not belong to it.
    """

    architectures: ClassVar[tuple[type[ModelMixin], ...]]
    pipeline: ClassVar[type[ComparedPipeline]]
    component: ClassVar[str] = "network"
    variance_type: ClassVar[str | None] = None
    """Of the scheduler; None for a system that has none."""

    def __init__(self, network: Any, operator: Downsampling, scheduler: AncestralScheduler | None = None) -> None:
        super().__init__(operator)
        self._check("network", network)
        found = None if scheduler is None else scheduler.config.variance_type
        if found != self.variance_type:
            raise ValueError(f"`scheduler` must have the variance_type {self.variance_type!r}, has {found!r}")
        self.network: Any = network
        self.scheduler = scheduler

    def _check(self, name: str, network: Any) -> None:
        """Raises a ValueError for a network of another system or scale factor, which is the argument `name`."""
        if not isinstance(network, self.architectures):
            allowed = " or ".join(each.__name__ for each in self.architectures)
            raise ValueError(f"`{name}` must be {allowed} for this stage, got {type(network).__name__}")
        own = network.config.get("scale_factor") or getattr(network, "scale_factor", self.operator.scale_factor)
        if own != self.operator.scale_factor:
            raise ValueError(f"`scale_factor` must be the {name}'s {own}, got {self.operator.scale_factor}")

    def components(self) -> dict[str, Any]:
        return {self.component: self.network}


class Regression(BaselineObjective):
    """Stage `regression`: the mean of |x - f(y)| (EDSR, section 4.2), and what ESRGAN adds to it (eq. 3).

    With weights w_p and w_c of features and a critic,

        L = w |x - f(y)| + w_p d(x, f(y)) + w_c L_adversarial(x, f(y)),

    |.| in the network's own range of values, d the distance of VGG16's features and L_adversarial of `FeatureCritic`,
    which is trained in the same updates. A `teacher` has its image of y in the place of the photograph: f imitates it,
    from y alone.

    Args:
        pixel_weight: w.
        perceptual_weight: w_p.
        critic_weight: w_c.
        distance: d and the features of the critic; None only if both weights are 0.
        teacher: a trained network of one of `architectures`, for the same scale factor.
        exact: whether features and critic see f(y) projected on {x : Hx = y}, as the teacher's image then is.
    """

    figure = "error"
    method = "regression of x (L1)"
    architectures = (EDSR, RRDBNet, SRVGGNetCompact, SPAN)
    pipeline = RegressionPipeline

    def __init__(
        self, network: Any, operator: Downsampling, pixel_weight: float = 1.0, perceptual_weight: float = 0.0,
        critic_weight: float = 0.0, distance: PerceptualDistance | None = None, teacher: Any = None,
        exact: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(network, operator)
        self.weights = pixel_weight, perceptual_weight, critic_weight
        self.distance, self.exact, self.teacher, self.critic = distance, exact, teacher, None
        # Not read in `forward`: the compiler of torch 2.6 fails at a key that a configuration lacks.
        self.value_range = _value_range(network)
        self.teacher_range = 1.0 if teacher is None else _value_range(teacher)
        if distance is None and (perceptual_weight or critic_weight):
            raise ValueError("`distance` must be given for a `perceptual_weight` or `critic_weight` above 0")
        if distance is not None and critic_weight:
            self.critic = FeatureCritic(distance.widths[1:])  # no trial had the finest tap
        if teacher is not None:
            self._check("teacher", teacher)
            teacher.requires_grad_(False)
        if critic_weight or perceptual_weight:
            self.method = "regression of x (L1, features of VGG16" + (", a critic)" if critic_weight else ")")

    def forward(self, images: Tensor, seeds: Sequence[int], rate_weight: float = 1, low: Tensor | None = None) -> Loss:
        x, y = self.pairs(images, low)
        if self.teacher is not None:
            with torch.no_grad():
                x = self._image(self.teacher.eval(), self.teacher_range, y).clamp(-1, 1)
        found = self._image(self.network, self.value_range, y)
        if self.exact and self.teacher is not None:
            x = self._projected(x, y)
        # Before f(y) is projected: what the projection replaces, such as the brightness, would be left to chance.
        error = F.l1_loss(found, x)
        if self.exact:
            found = self._projected(found, y)
        figures = {"error": 127.5 * error.detach()}  # in grey levels, for the log
        pixel, perceptual, critic = self.weights
        loss = pixel * error * (self.value_range / 2)
        if self.distance is None:
            return loss, figures
        with torch.no_grad():
            real = self.distance.features(x)
        fake = self.distance.features(found)
        apart = self.distance(fake, real)
        loss, figures["perceptual"] = loss + perceptual * apart, apart.detach()
        if self.critic is not None:
            own, adversarial = self.critic.losses(real[1:], fake[1:])
            loss, figures["critic"] = loss + critic * adversarial + own, own.detach()
        return loss, figures

    def _projected(self, x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return self.operator.project(x, y)

    @staticmethod
    def _image(network: Any, high: float, y: Tensor) -> Tensor:
        """f(y) on [-1, 1], from y there; the network's own values are on [0, high]."""
        return network((y + 1) * (high / 2), return_dict=False)[0].float() * (2 / high) - 1


def _value_range(network: Any) -> float:
    """The upper end of a network's own values: 255 in EDSR, 1 where the configuration does not say."""
    return float(network.config.get("value_range", 1.0))


class Flow(BaselineObjective):
    """Stage `hcflow`: the negative log-likelihood of x and of the LR image in the flow (HCFlow, eq. 10), in bits per
    pixel up to the constant of dequantisation.

    Args:
        pixel_weight: w of a term w |x - x_0|, on [0, 1], x_0 the sample at temperature 0. Published weights are 0 and,
            in HCFlow+, 0.002 of the likelihood to 1 of the pixels (w = 500), there in updates of their own.
    """

    figure = "nll"
    method = "HCFlow (negative log-likelihood)"
    architectures = (HCFlow,)
    pipeline = HCFlowPipeline
    component = "flow"

    def __init__(self, network: Any, operator: Downsampling, pixel_weight: float = 0.0) -> None:
        super().__init__(network, operator)
        self.pixel_weight = pixel_weight

    def forward(self, images: Tensor, seeds: Sequence[int], rate_weight: float = 1, low: Tensor | None = None) -> Loss:
        x, y, uniform = self._given(images, seeds, low)
        loss = nll = self.network(x, y, uniform).loss.mean()
        figures = {"nll": nll.detach()}
        if self.pixel_weight:
            found = self.network.sample(y, CounterNoise(seeds), temperature=0.0).sample
            error = F.l1_loss(found, x)
            loss = nll + self.pixel_weight * error
            figures["error"] = 255 * error.detach()
        return loss, figures

    def initialise(self, images: Tensor, seeds: Sequence[int], low: Tensor | None = None) -> None:
        """Sets the activation normalisations of a new network by first crops (Glow, section 3.1).

        The arguments are those of `forward`.
        """
        self.network.initialise(*self._given(images, seeds, low))

    def _given(self, images: Tensor, seeds: Sequence[int], low: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        x, y = ((value + 1) / 2 for value in self.pairs(images, low))
        batch, channels, height, width = x.shape
        return x, y, CounterNoise(seeds).uniform(0, (batch, channels, height, width), x.device)


class _Diffusion(BaselineObjective):
    component = "unet"
    scheduler: AncestralScheduler

    def _drawn(self, x: Tensor, seeds: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Steps `[B]`, uniforms `[B]` and normals of x's shape: a function of the seeds."""
        source, shape = CounterNoise(seeds), (len(x), 1, 1, 1)
        time, within = (source.uniform(number, shape, x.device).flatten() for number in (_TIME, _WITHIN))
        batch, channels, height, width = x.shape
        noise = source(0, 1, (batch, channels, height, width), x.device)
        return (time * self.scheduler.num_steps).long(), within, noise

    def _predict(self, seeds: Sequence[int], *given: Tensor) -> Tensor:
        """The network's output, fp32; its dropout is a function of the seeds too, or a resumed run would differ."""
        with torch.random.fork_rng(enabled=self.training):
            if self.training:
                torch.manual_seed(seeds[0] % 2**63)
            return self.network(*given, return_dict=False)[0].float()


class Refinement(_Diffusion):
    """Stage `sr3`: the mean of |noise - f(x_t, y enlarged, level)|, the level drawn uniformly between those of a random
    step and the one before it (SR3, algorithm 1)."""

    figure = "noise_error"
    method = "SR3 (denoising, given y)"
    architectures = (SR3UNet,)
    pipeline = SR3Pipeline
    variance_type = "fixed_small"

    def forward(self, images: Tensor, seeds: Sequence[int], rate_weight: float = 1, low: Tensor | None = None) -> Loss:
        x, y = self.pairs(images, low)
        index, within, noise = self._drawn(x, seeds)
        level = self.scheduler.level_within(index, within)
        noisy = self.scheduler.add_noise(x, noise, level)
        condition = enlarge_batch(y, self.operator.scale_factor)
        loss = sr3_loss(self._predict(seeds, noisy, condition, level), noise)
        return loss, {"noise_error": loss.detach()}


class DiffusionPrior(_Diffusion):
    """Stage `ddpm`: the prior p(x) of DPS, L_simple + w L_vlb (Nichol and Dhariwal, 2021, eq. 16).

    L_vlb, in bits per dimension, trains the variances alone: the predicted noise is detached there.

    Args:
        vlb_weight: w; 0.001 as published.
    """

    figure = "noise_error"
    method = "diffusion prior of DPS (denoising and variational bound)"
    architectures = (GuidedDiffusionUNet,)
    pipeline = DPSPipeline
    variance_type = "learned_range"

    def __init__(
        self, network: Any, operator: Downsampling, scheduler: AncestralScheduler, vlb_weight: float = 0.001
    ) -> None:
        super().__init__(network, operator, scheduler)
        self.vlb_weight = vlb_weight

    def forward(self, images: Tensor, seeds: Sequence[int], rate_weight: float = 1, low: Tensor | None = None) -> Loss:
        x = images.float() / 127.5 - 1
        index, _, noise = self._drawn(x, seeds)
        noisy = self.scheduler.add_noise(x, noise, self.scheduler.level_within(index, torch.zeros_like(x[:, 0, 0, 0])))
        predicted, variance = self._predict(seeds, noisy, index).chunk(2, 1)
        simple = F.mse_loss(predicted, noise)
        bound = variational_bound(self.scheduler, predicted.detach(), variance, index, noisy, x).mean()
        loss = simple + self.vlb_weight * bound
        return loss, {"noise_error": simple.detach(), "vlb_bits_per_dim": bound.detach()}


def enlarge_batch(y: Tensor, scale_factor: int) -> Tensor:
    """y `[B, 3, h, w]` on [-1, 1], rounded to 8 bits and enlarged, as SR3 sees it; on [-1, 1].

    PIL's two rounded passes, on any device: of random images less than 1 % of the values differ, by one grey level.
    """
    with torch.autocast(y.device.type, enabled=False):
        levels = (127.5 * (y.float() + 1)).round()
        height, width = levels.shape[2:]
        for size in ((height, width * scale_factor), (height * scale_factor, width * scale_factor)):
            levels = F.interpolate(levels, size=size, mode="bicubic", antialias=True).clamp(0, 255).round()
        return levels / 127.5 - 1
