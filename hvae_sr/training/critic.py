"""A critic that is trained along with what it judges: the adversarial loss of ESRGAN, on features of VGG16."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call


class FeatureCritic(nn.Module):
    """How much more real than others each place of an image looks, told from its features: maps C, one for each tap.

    ESRGAN's critic reads pixels, and learns to see first; features of a trained network leave it a few convolutions to
    learn, in minutes.

    Args:
        widths: channels of the taps that are read.
        hidden: channels of the critic's own layers.
    """

    def __init__(self, widths: Sequence[int], hidden: int = 64) -> None:
        super().__init__()
        self.taps = nn.ModuleList(_head(width, hidden) for width in widths)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """C, `[B, 1, h, w]` for each tap, from its features `[B, width, h, w]`, of length 1 or so at each place."""
        return [tap(x * x.shape[1] ** 0.5).float() for tap, x in zip(self.taps, features, strict=True)]

    def losses(self, real: Sequence[Tensor], fake: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The critic's loss, which reaches the critic alone, and that of what made `fake`, which reaches that alone.

        The relativistic average losses of Jolicoeur-Martineau, 2019 (ESRGAN, eq. 1 and 2), halved, s being softplus:

            L_critic = E[s(E C(fake) - C(real))] / 2 + E[s(C(fake) - E C(real))] / 2,

        and the other with real and fake exchanged. Both have gradients for the same update of one optimizer.
        """
        own = _relativistic(self([x.detach() for x in real]), self([x.detach() for x in fake]))
        fixed = {name: parameter.detach() for name, parameter in self.named_parameters()}
        judged = [functional_call(self, fixed, (x,)) for x in (fake, real)]
        return own, _relativistic(*judged)


def _head(width: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width, hidden, 1), nn.LeakyReLU(0.2),
        nn.Conv2d(hidden, hidden, 3, padding=1), nn.LeakyReLU(0.2),
        nn.Conv2d(hidden, 1, 3, padding=1),
    )  # fmt: skip


def _relativistic(above: Sequence[Tensor], below: Sequence[Tensor]) -> Tensor:
    """The loss of C that is to be larger for images `above` than for those `below`."""
    terms = [
        F.softplus(b.mean() - a).mean() + F.softplus(b - a.mean()).mean() for a, b in zip(above, below, strict=True)
    ]
    return torch.stack(terms).mean() / 2
