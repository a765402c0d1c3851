"""Invertible layers of normalising flows: Glow's three steps (Kingma and Dhariwal, "Glow: Generative Flow with
Invertible 1x1 Convolutions", NeurIPS 2018), with the coupling that HCFlow uses.

Every layer maps `[B, C, h, w]` to the same, and adds to `log_det` `[B]` the logarithm of its Jacobian's determinant.
With `reverse=True` it computes the inverse, and leaves `log_det` alone.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

COUPLING_SLOPE = 0.318
"""About 1/pi: the logarithm of a coupling's scale stays within (-1/2, 1/2)."""
ZERO_CONV_FACTOR = 3.0
"""Of the logarithm of a `ZeroConv`'s scale: a larger learning rate, in effect."""


class ActNorm(nn.Module):
    """z' = (z + b) exp(s), for each channel; log|det| = h w sum(s)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.logs = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.initialising = False

    def forward(self, z: Tensor, log_det: Tensor, reverse: bool = False) -> tuple[Tensor, Tensor]:
        if reverse:
            return z * torch.exp(-self.logs) - self.bias, log_det
        return self.normalise(z), log_det + z.shape[2] * z.shape[3] * self.logs.sum()

    def normalise(self, z: Tensor) -> Tensor:
        """z'; where `initialising`, after b and s were set so that z' has mean 0 and variance 1 in each channel."""
        if self.initialising:
            with torch.no_grad():
                self.bias.copy_(-z.mean((0, 2, 3), keepdim=True))
                variance = (z + self.bias).square().mean((0, 2, 3), keepdim=True)
                self.logs.copy_(-torch.log(variance.sqrt() + 1e-6))
        return (z + self.bias) * torch.exp(self.logs)


class InvertibleConv(nn.Module):
    """z' = W z at every position, a generalised permutation of channels; log|det| = h w log|det W|.

    The determinant and the inverse are computed in float64: W is 48 x 48 at most, and there may be 78 of them.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        # On a meta device there are no numbers to orthogonalise, and in half precision no QR decomposition.
        weight = torch.empty(channels, channels, dtype=torch.float32)
        weight = weight if weight.is_meta else nn.init.orthogonal_(weight)
        self.weight = nn.Parameter(weight.to(torch.get_default_dtype()))

    def forward(self, z: Tensor, log_det: Tensor, reverse: bool = False) -> tuple[Tensor, Tensor]:
        # MPS has no float64.
        exact = (self.weight.cpu() if self.weight.device.type == "mps" else self.weight).double()
        weight = self.weight
        if reverse:
            weight = torch.linalg.inv(exact).to(weight)
        else:
            volume = torch.linalg.slogdet(exact).logabsdet.to(log_det)
            log_det = log_det + z.shape[2] * z.shape[3] * volume
        return F.conv2d(z.to(weight.dtype), weight[:, :, None, None]), log_det


class NormedConv(nn.Conv2d):
    """A convolution without bias, and an `ActNorm` after it."""

    def __init__(self, width_in: int, width_out: int, kernel_size: int) -> None:
        super().__init__(width_in, width_out, kernel_size, padding=kernel_size // 2, bias=False)
        nn.init.normal_(self.weight, std=0.05)
        self.actnorm = ActNorm(width_out)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, width_in, h, w]` to `[B, width_out, h, w]`."""
        # The flow's own numbers may be in more bits, where a hook stores the weights of convolutions in fewer.
        return self.actnorm.normalise(super().forward(x.to(self.weight.dtype)))


class ZeroConv(nn.Conv2d):
    """Conv(x) exp(3 s), zero at first, so that a flow starts as the identity and a Gaussian as the standard normal."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__(width_in, width_out, 3, padding=1)
        self.logs = nn.Parameter(torch.zeros(width_out, 1, 1))
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """`[B, width_in, h, w]` to `[B, width_out, h, w]`."""
        return super().forward(x.to(self.weight.dtype)) * torch.exp(ZERO_CONV_FACTOR * self.logs)


class CouplingNetwork(nn.Module):
    """Three convolutions, 3x3, 1x1 and 3x3, that need no inverse."""

    def __init__(self, width_in: int, hidden: int, width_out: int) -> None:
        super().__init__()
        self.conv1 = NormedConv(width_in, hidden, 3)
        self.conv2 = NormedConv(hidden, hidden, 1)
        self.conv3 = ZeroConv(hidden, width_out)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, width_in, h, w]` to `[B, width_out, h, w]`."""
        return self.conv3(F.relu(self.conv2(F.relu(self.conv1(x)))))


class AffineCoupling(nn.Module):
    """z_2' = (z_2 + b) exp(s) with (b, s) a function of z_1 and the condition; s = 0.318 atan(2 s'), log|det| = sum(s).

    z_1 is the first half of the channels, the smaller one of an odd number. The network's even channels are b, its odd
    channels s'.
    """

    def __init__(self, channels: int, hidden: int, condition_channels: int) -> None:
        super().__init__()
        self.first = channels // 2
        self.f = CouplingNetwork(self.first + condition_channels, hidden, 2 * (channels - self.first))

    def forward(
        self, z: Tensor, log_det: Tensor, features: Tensor | None = None, reverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        """z' and `log_det`; `features` is the condition, `[B, condition_channels, h, w]`."""
        z1, z2 = z[:, : self.first], z[:, self.first :]
        shift, scale = cross_split(self.f(z1 if features is None else torch.cat((z1, features), 1)))
        log_scale = COUPLING_SLOPE * torch.atan(2 * scale)
        if reverse:
            z2 = z2 * torch.exp(-log_scale) - shift
        else:
            z2 = (z2 + shift) * torch.exp(log_scale)
            log_det = log_det + log_scale.sum((1, 2, 3))
        return torch.cat((z1, z2), 1), log_det


class FlowStep(nn.Module):
    """`ActNorm`, `InvertibleConv`, `AffineCoupling`, in that order."""

    def __init__(self, channels: int, hidden: int, condition_channels: int = 0) -> None:
        super().__init__()
        self.actnorm = ActNorm(channels)
        self.permute = InvertibleConv(channels)
        self.affine = AffineCoupling(channels, hidden, condition_channels)

    def forward(
        self, z: Tensor, log_det: Tensor, features: Tensor | None = None, reverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        """z' and `log_det`; `features` is what the coupling is conditioned on."""
        if reverse:
            z, log_det = self.affine(z, log_det, features, reverse=True)
            z, log_det = self.permute(z, log_det, reverse=True)
            return self.actnorm(z, log_det, reverse=True)
        z, log_det = self.actnorm(z, log_det)
        z, log_det = self.permute(z, log_det)
        return self.affine(z, log_det, features)


def cross_split(x: Tensor) -> tuple[Tensor, Tensor]:
    """The even and the odd channels."""
    return x[:, 0::2], x[:, 1::2]
