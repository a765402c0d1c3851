"""The whole sampler as one graph, y, temperature and noise in and images out: for `torch.export` and ONNX."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from hvae_sr.files import remove_abandoned, replacing
from hvae_sr.images import LUMA
from hvae_sr.noise import CounterNoise
from hvae_sr.sampling.sizes import SizeRequirements

from .super_resolution import SuperResolutionPipeline

OPSET = 20


class Sampler(nn.Module):
    """Bottom-up pass over y, top-down pass, E[x|z], and the projection on the images consistent with y
    (of a model that knows H).

    Args:
        pipe: a pipeline; its networks are used as they are.
        size: (h, w) of y: what the networks need multiples of.

    Raises:
        ValueError: a size that does not fit the networks; the message names the nearest one that does.
    """

    def __init__(self, pipe: SuperResolutionPipeline, size: tuple[int, int]) -> None:
        super().__init__()
        self.vdvae, self.lr_encoder, self.operator = pipe.vdvae, pipe.lr_encoder, pipe.operator
        self.exact = pipe.config.consistency == "exact"
        scale = self.operator.scale_factor
        self.lr_size = size
        self.size = (size[0] * scale, size[1] * scale)
        if min(size) < 2:
            raise ValueError(f"`size` must be at least 2x2, got {size[0]}x{size[1]}")
        if self.vdvae.config.bias_type == "spatial":
            self.vdvae.check_size(self.size, "size")
        else:
            multiple = SizeRequirements.of(self.vdvae, self.lr_encoder, scale).multiple
            if size[0] % multiple or size[1] % multiple:
                fits = "x".join(str(max(1, round(side / multiple)) * multiple) for side in size)
                raise ValueError(f"`size` must be multiples of {multiple} (such as {fits}), got {size[0]}x{size[1]}")

    def noise_shapes(self, batch_size: int) -> list[tuple[int, int, int, int]]:
        """The shape of each group's noise."""
        return [self.vdvae.latent_shape(group, batch_size, self.size) for group in range(self.vdvae.num_groups)]

    def draw_noise(self, seeds: Sequence[int]) -> list[Tensor]:
        """The noise that the pipeline draws for samples of these seeds."""
        source, device = CounterNoise(seeds), torch.device("cpu")
        return [
            source(group, self.vdvae.stride(group), shape, device).contiguous()
            for group, shape in enumerate(self.noise_shapes(len(seeds)))
        ]

    def forward(self, image: Tensor, temperature: Tensor, noise: list[Tensor]) -> Tensor:
        """Samples of p(x|y), one for each row of the noise.

        Args:
            image: y, `[1, 3, h, w]` in [0, 1].
            temperature: a number >= 0, `[]`, of all groups.
            noise: standard normals, `[B, C, h_l, w_l]` for each group.

        Returns:
            `[B, 3, H, W]` in [0, 1], not rounded; of a y without colours, without colours.
        """
        condition = self.lr_encoder.encode(image * 2 - 1)
        scaled = [draw * temperature for draw in noise]  # tau scales the standard deviation: as well the noise
        out = self.vdvae.sample(
            noise[0].shape[0], self.size, noise=scaled, condition=condition, temperature=1.0, return_latents=False
        )
        x = (condition.finish(out.sample, temperature) + 1) / 2
        luminance = sum(weight * x[:, channel : channel + 1] for channel, weight in enumerate(LUMA))
        x = torch.where((image == image[:, :1]).all(), luminance, x)  # as the pipeline does
        return (self.operator.project(x, image) if self.exact else x).clamp(0, 1)


def example_inputs(sampler: Sampler, batch_size: int = 2) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Inputs of the shapes that `forward` takes."""
    image = torch.rand(1, 3, *sampler.lr_size, generator=torch.Generator().manual_seed(0))
    return image, torch.tensor(0.8), sampler.draw_noise(range(batch_size))


@torch.no_grad()
def export_program(sampler: Sampler) -> torch.export.ExportedProgram:
    """The sampler as a `torch.export` program, for any number of samples."""
    inputs = example_inputs(sampler)
    sampler.eval()(*inputs)  # builds the matrices of the projection
    batch = torch.export.Dim("samples", min=1, max=4096)
    shapes = {"image": None, "temperature": None, "noise": [{0: batch} for _ in inputs[2]]}
    return torch.export.export(sampler, inputs, dynamic_shapes=shapes, strict=False)


def export_onnx(pipe: SuperResolutionPipeline, path: str | os.PathLike[str], size: tuple[int, int]) -> None:
    """Writes the sampler as one ONNX file, whole or not at all.

    Its inputs are `image` `[1, 3, h, w]` in [0, 1], `temperature` `[]` and `noise_0` to `noise_{L-1}`; its output is
    `images` `[samples, 3, H, W]`; the metadata of the model has the scale, the default temperature and the shapes.

    Args:
        pipe: the pipeline.
        path: of the file.
        size: (h, w) of y.

    Raises:
        ValueError: a size that does not fit, weights that are not float32, or ONNX's packages are missing.
    """
    if pipe.vdvae.dtype != torch.float32 or pipe.lr_encoder.dtype != torch.float32:
        raise ValueError(f"`dtype` must be float32 for export, the pipeline has {pipe.vdvae.dtype}")
    try:
        import onnx
        import onnxscript  # noqa: F401  # torch.onnx needs it
    except ImportError as error:
        raise ValueError(f"ONNX export needs `pip install hvae-sr[onnx]`: {error}") from None
    sampler = Sampler(pipe, size)
    program = torch.onnx.export(
        export_program(sampler),
        input_names=["image", "temperature", *(f"noise_{group}" for group in range(sampler.vdvae.num_groups))],
        output_names=["images"],
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    facts = {
        "scale_factor": pipe.config.scale_factor,
        "default_temperature": pipe.config.default_temperature,
        "size": list(size),
        "noise_shapes": [list(shape[1:]) for shape in sampler.noise_shapes(1)],
        "strides": [sampler.vdvae.stride(group) for group in range(sampler.vdvae.num_groups)],
    }
    onnx.helper.set_model_props(model, {name: json.dumps(value) for name, value in facts.items()})
    onnx.checker.check_model(model)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(target.parent)
    with replacing(target) as file:
        file.write(model.SerializeToString())
