"""Agreement with the published implementations: every tensor of every recorded case.

The folder of cases is HVAE_SR_REFERENCE, by default `../shared/reference` beside the repository. A case is
a subfolder with `config.json` (published hyper-parameters), `weights.th` and `case.safetensors` (recorded noise,
inputs and results). `pytest -rP` prints the worst relative error.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import compared_cases
import pytest
import torch
from torch import Tensor

from hvae_sr.checkpoints.convert import convert
from hvae_sr.models import VDVAE, LRConditioner, LREncoder
from hvae_sr.models.distributions import half_bin_shift, quantise

REFERENCE = Path(os.environ.get("HVAE_SR_REFERENCE", Path(__file__).resolve().parents[1] / "../shared/reference"))
CASES = sorted(path.parent for path in REFERENCE.glob("*/case.safetensors"))

pytestmark = pytest.mark.skipif(
    not CASES, reason=f"no reference cases in {REFERENCE}: set HVAE_SR_REFERENCE to their folder"
)


class RecordedNoise:
    """The draws of one recorded pass, as a noise source: normals of each group, uniforms of the pixels."""

    def __init__(self, normals: Sequence[Tensor], uniforms: Sequence[Tensor] = ()) -> None:
        self.normals = normals
        self.uniforms = uniforms

    def __call__(self, group: int, stride: int, shape: tuple[int, ...], device: torch.device) -> Tensor:
        assert tuple(self.normals[group].shape) == tuple(shape)
        return self.normals[group]

    def uniform(self, number: int, shape: tuple[int, ...], device: torch.device) -> Tensor:
        assert tuple(self.uniforms[number].shape) == tuple(shape)
        return self.uniforms[number]


class Comparison(compared_cases.Comparison):
    """With the noise of groups, and of tensors that are recorded whole."""

    def noise(self, part: str, uniforms: bool = False) -> RecordedNoise:
        names = sorted(name for name in self.recorded if name.startswith(f"{part}.eps."))
        pixels = ("uniform_mixture", "uniform_logistic") if uniforms else ()
        return RecordedNoise(
            [self.given(name) for name in names],
            [self.given(f"{part}.{name}").permute(0, 3, 1, 2) for name in pixels],  # recorded as NHWC
        )

    def compare(self, name: str, ours: Tensor | float) -> None:
        assert torch.as_tensor(ours).shape == self.given(name).shape, f"{name}: {tuple(torch.as_tensor(ours).shape)}"
        super().compare(name, ours)

    def compare_groups(self, part: str, values: dict[str, Tensor], group: int) -> None:
        self.compare_all({f"{name}.{group:03d}": value for name, value in values.items()}, f"{part}.")


def nhwc(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


def vdvae_case(case: Comparison, folder: Path) -> None:
    vdvae = VDVAE.from_pretrained(folder).eval()
    x = case.image("image_uint8", -1)
    size = (x.shape[2], x.shape[3])
    case.compare("target", nhwc(quantise(x, vdvae.config.output_bits)))

    activations = vdvae.encode(x)
    case.compare_all(activations, "posterior.activations.")
    noise = case.noise("posterior")
    out = vdvae.top_down(len(x), size, noise, activations=activations)
    assert len(out.groups) == case.config["n_groups"]
    for index, group in enumerate(out.groups):
        values = {
            "qm": group.posterior.mean,
            "qlogsigma": group.posterior.log_sigma,
            "pm": group.prior.mean,
            "plogsigma": group.prior.log_sigma,
            "z": group.z,
            "kl": group.posterior.kl(group.prior),
        }
        case.compare_groups("posterior", values, index)
    parameters = nhwc(vdvae.likelihood(out.stream).parameters)
    case.compare_all({"px_z": vdvae.affine(out.stream), "dmol_params": parameters}, "posterior.")
    elbo = vdvae(x, noise=noise)
    parts = {"nll_per_dim": elbo.distortion, "rate_per_dim": elbo.rate, "elbo_per_dim": elbo.loss}
    case.compare_all(parts, "posterior.")

    noise = case.noise("prior", uniforms=True)
    temperature = case.config["prior_temperature"]
    stream = vdvae.top_down(len(x), size, noise, temperature=temperature).stream
    case.compare("prior.px_z", vdvae.affine(stream))
    drawn = vdvae.sample(len(x), size, noise=noise, temperature=temperature, sample_pixels=True).sample
    case.compare("prior.sample", nhwc(drawn - half_bin_shift(vdvae.config.output_bits)))


def cvdvae_case(case: Comparison, folder: Path) -> None:
    vdvae = VDVAE.from_pretrained(folder, subfolder="vdvae").eval()
    lr_encoder = LREncoder.from_pretrained(folder, subfolder="lr_encoder").eval()
    x = case.image("image_uint8", -1)
    size = (x.shape[2], x.shape[3])
    y = case.image("low_resolution_uint8", -1)
    condition = lr_encoder.encode(y)
    for resolution, activation in zip(sorted(condition.features), lr_encoder(y).features, strict=True):
        case.compare(f"lr.activations.{resolution}", activation)

    k = case.config["n_conditioned_groups"]
    activations = vdvae.encode(x)
    out = vdvae.top_down(len(x), size, case.noise("train"), activations, condition, num_groups=k)
    kls = []
    for index, group in enumerate(out.groups):
        kls.append(group.posterior.kl(group.lr_posterior))
        values = {
            "qx_m": group.posterior.mean,
            "qx_logsigma": group.posterior.log_sigma,
            "qy_m": group.lr_posterior.mean,
            "qy_logsigma": group.lr_posterior.log_sigma,
            "z": group.z,
            "kl": kls[-1],
        }
        case.compare_groups("train", values, index)
    case.compare("train.kl_sum_nats", sum(kl.sum(dim=(1, 2, 3)) for kl in kls))
    case.compare("train.kl_mean_of_groups", sum(kl.mean(dim=(1, 2, 3)) for kl in kls))

    sampling = case.config["sampling"]
    out = vdvae.top_down(
        len(x),
        size,
        case.noise("sample"),
        condition=condition,
        temperature=sampling["prior_temperature"],
        lr_posterior_temperature=sampling["posterior_temperature"],
    )
    case.compare("sample.px_z", vdvae.affine(out.stream))
    case.compare("sample.dmol_params", nhwc(vdvae.likelihood(out.stream).parameters))


def vdvae_sr_case(case: Comparison, folder: Path) -> None:
    vdvae = VDVAE.from_pretrained(folder, subfolder="vdvae").eval()
    conditioner = LRConditioner.from_pretrained(folder, subfolder="lr_encoder").eval()
    x = case.image("image_uint8", -1)
    size = (x.shape[2], x.shape[3])
    condition = conditioner.encode(case.image("low_resolution_uint8", -1))
    case.compare_all(condition.features, "lr.activations.")

    noise = case.noise("posterior")
    out = vdvae.top_down(len(x), size, noise, vdvae.encode(x), condition)
    for index, group in enumerate(out.groups):
        case.compare_groups("posterior", {"z": group.z, "kl": group.posterior.kl(group.prior)}, index)
    elbo = vdvae(x, noise=noise, condition=condition)
    parts = {"px_z": vdvae.affine(out.stream), "nll_per_dim": elbo.distortion, "rate_per_dim": elbo.rate}
    case.compare_all(parts, "posterior.")

    temperature = case.config["temperature"]
    out = vdvae.top_down(len(x), size, case.noise("sample"), condition=condition, temperature=temperature)
    case.compare("sample.px_z", vdvae.affine(out.stream))


def case_of(config: dict[str, Any]) -> Callable[[Comparison, Path], None]:
    if "hparams_lr_encoder" in config:
        return vdvae_sr_case
    return cvdvae_case if "enc_blocks_y" in config["hparams"] else vdvae_case


@pytest.mark.parametrize("folder", CASES, ids=lambda folder: folder.name)
@torch.no_grad()
def test_every_recorded_tensor_agrees_with_the_published_implementation(folder: Path, tmp_path: Path) -> None:
    case = Comparison(folder.absolute())
    converted = convert(folder / "weights.th", tmp_path / "converted", hparams=case.config)
    case_of(case.config)(case, converted)
    case.finish()
