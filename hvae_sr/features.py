"""What networks of photographs see in an image: the taps of LPIPS, in AlexNet or VGG16, with weights from a file."""

import os
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

NUM_TAPS = 5

#: Of each tap: the side of the maximum pooling before it (0: none), and its convolutions by torchvision's places.
_TAPS: dict[str, tuple[tuple[int, tuple[int, ...]], ...]] = {
    "alexnet": ((0, (0,)), (3, (3,)), (3, (6,)), (0, (8,)), (0, (10,))),
    "vgg16": ((0, (0, 2)), (2, (5, 7)), (2, (10, 12, 14)), (2, (17, 19, 21)), (2, (24, 26, 28))),
}
_MEAN, _STD = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class FeatureNetwork(nn.Module):
    """The features of LPIPS, version 0.1 (Zhang et al., CVPR 2018): activations of five layers, and a head for each.

    The weights are buffers outside the state dict: they are not trained, and no part of a checkpoint.

    Args:
        weights: by name: the trunk's as in torchvision (``features.N.weight``, ``.bias``), the heads as
            ``lin0.weight`` to ``lin4.weight``. Which trunk it is, their names tell.
        num_taps: how many of the five layers are made, from the finest.

    Raises ValueError: the weights are of neither, or there are no so many taps.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, weights: dict[str, Tensor], num_taps: int = NUM_TAPS):
        super().__init__()
        if not 1 <= num_taps <= NUM_TAPS:
            raise ValueError(f"`num_taps` must be between 1 and {NUM_TAPS}, got {num_taps}")
        self.name = "vgg16" if "features.2.weight" in weights else "alexnet"
        self._taps = _TAPS[self.name][:num_taps]
        colours = {"mean": torch.tensor(_MEAN).view(3, 1, 1), "std": torch.tensor(_STD).view(3, 1, 1)}
        try:
            for place in (place for _, places in self._taps for place in places):
                for kind in ("weight", "bias"):
                    self._keep(f"{kind}_{place}", weights[f"features.{place}.{kind}"])
            for tap in range(num_taps):
                self._keep(f"head_{tap}", weights[f"lin{tap}.weight"].flatten())
            for name, value in colours.items():
                self._keep(name, value)
            with torch.no_grad():  # shapes that do not fit show here
                for head, activation in zip(self.heads, self(torch.zeros(1, 3, 32, 32)), strict=True):
                    head.view(activation.shape[1])
        except (KeyError, RuntimeError) as error:
            raise ValueError(f"`weights` must be LPIPS 0.1 on AlexNet or VGG16: {error}") from None
        self.eval()

    def _keep(self, name: str, value: Tensor) -> None:
        self.register_buffer(name, value.float(), persistent=False)

    @classmethod
    def from_file(
        cls, path: str | os.PathLike[str], device: str | torch.device = "cpu", num_taps: int = NUM_TAPS
    ) -> Self:
        """With the weights of a .safetensors file.

        Raises ValueError: the file cannot be read, or holds other weights.
        """
        try:
            # Not mapped into memory: `--dry_run` loads them in a mode that has no storages.
            return cls(load(Path(path).read_bytes()), num_taps).to(device)
        except (OSError, SafetensorError, ValueError) as error:
            raise ValueError(f"`lpips_weights`: {os.fspath(path)!r}: {error}") from None

    @property
    def heads(self) -> list[Tensor]:
        """Weights of the channels of each tap, ``[C_l]`` each."""
        return [getattr(self, f"head_{tap}") for tap in range(len(self._taps))]

    def forward(self, sample: Tensor) -> list[Tensor]:
        """Activations after the ReLU of each tap, ``[B, C_l, h_l, w_l]`` each, of RGB ``[B, 3, H, W]`` on [-1, 1]."""
        x, activations = (sample - self.mean) / self.std, []
        for pool, places in self._taps:
            x = F.max_pool2d(x, pool, 2) if pool else x
            for place in places:
                weight = getattr(self, f"weight_{place}")
                stride = 4 if weight.shape[-1] == 11 else 1  # the first convolution of AlexNet
                padding = 2 if weight.shape[-1] == 11 else weight.shape[-1] // 2
                x = F.relu(F.conv2d(x, weight, getattr(self, f"bias_{place}"), stride, padding))
            activations.append(x)
        return activations
