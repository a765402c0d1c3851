"""Evaluation protocols: how (HR, LR) pairs are made, what is measured on them, and the report.

``thesis``: squares of S x S pixels, LR by PIL's bicubic, PSNR on Y and SSIM on RGB, no border crop.
``standard``: full images, LR by MATLAB's bicubic, PSNR and SSIM on Y, `scale_factor` border pixels cropped.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import skimage
import torch
from numpy.typing import NDArray
from PIL import Image
from tqdm.auto import tqdm

from ..images import IMAGE_SUFFIXES, ImageError, load_image
from ..operators import Downsampling
from . import metrics
from .storage import Partial, Rows, partial_path, strict, write_atomically

logger = logging.getLogger(__name__)

Uint8 = NDArray[np.uint8]
Float = NDArray[np.floating[Any]]


@cache
def _operator(kernel: str, scale_factor: int) -> Downsampling:
    return Downsampling(scale_factor, kernel=kernel)


def _check_image(image: Image.Image, size: int, scale_factor: int) -> Image.Image:
    if scale_factor < 1:
        raise ValueError(f"`scale_factor` must be at least 1, got {scale_factor}.")
    if size < scale_factor or size % scale_factor:
        raise ValueError(f"`size` must be a positive multiple of `scale_factor` ({scale_factor}), got {size}.")
    return image.convert("RGB")


def prepare_thesis(image: Image.Image, size: int, scale_factor: int = 4) -> tuple[Uint8, Uint8]:
    """(HR, LR) of the thesis protocol, 8-bit ``[S, S, 3]`` and ``[S/s, S/s, 3]``.

    The shorter side is resized to `size` (PIL bilinear, antialiased), the centre square is cut out, and PIL's
    bicubic gives the LR image.
    """
    image = _check_image(image, size, scale_factor)
    short, long = min(image.size), int(size * max(image.size) / min(image.size))
    width, height = (size, long) if image.width == short else (long, size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    hr = image.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + size, top + size))
    lr = hr.resize((size // scale_factor, size // scale_factor), Image.Resampling.BICUBIC)
    return np.asarray(hr), np.asarray(lr)


def prepare_standard(image: Image.Image, scale_factor: int = 4) -> tuple[Uint8, Uint8]:
    """(HR, LR) of the standard protocol, 8-bit ``[H, W, 3]`` and ``[H/s, W/s, 3]``.

    The image is cropped at its right and bottom to multiples of `scale_factor`; LR by MATLAB's bicubic.
    """
    width, height = (side // scale_factor * scale_factor for side in image.size)
    hr = np.asarray(_check_image(image, min(width, height), scale_factor))[:height, :width]
    lr = _operator("matlab-bicubic", scale_factor)(metrics.to_planes(hr / 255))
    return hr, metrics.to_uint8(lr.permute(1, 2, 0))


def upsample_pil(lr: Uint8, scale_factor: int = 4) -> Uint8:
    """PIL's bicubic interpolation of an 8-bit image."""
    size = (lr.shape[1] * scale_factor, lr.shape[0] * scale_factor)
    return np.asarray(Image.fromarray(lr).resize(size, Image.Resampling.BICUBIC))


def upsample_matlab(lr: Uint8, scale_factor: int = 4) -> Uint8:
    """MATLAB's ``imresize(lr, scale_factor)``: bicubic with a = -0.5, symmetric borders, rounded to 8 bits.

    It is s² Hᵀ of MATLAB's downsampling, whose kernel is this one stretched by s and divided by its sum.
    """
    size = (lr.shape[0] * scale_factor, lr.shape[1] * scale_factor)
    upsampled = scale_factor**2 * _operator("matlab-bicubic", scale_factor).adjoint(metrics.to_planes(lr / 255), size)
    return metrics.to_uint8(upsampled.permute(1, 2, 0))


@dataclass(frozen=True)
class EvaluationProtocol:
    """The functions take (image, size, scale), (LR, scale) and (HR, estimate, scale)."""

    kernel: str
    prepare: Callable[[Image.Image, int, int], tuple[Uint8, Uint8]]
    upsample: Callable[[Uint8, int], Uint8]
    psnr: Callable[[Uint8, Uint8, int], float]
    ssim: Callable[[Uint8, Uint8, int], float]
    full_images: bool = False


PROTOCOLS: dict[str, EvaluationProtocol] = {
    "thesis": EvaluationProtocol(
        kernel="bicubic",
        prepare=prepare_thesis,
        upsample=upsample_pil,
        psnr=lambda hr, estimate, scale: metrics.psnr_y(hr, estimate),
        ssim=lambda hr, estimate, scale: metrics.ssim_rgb(hr, estimate),
    ),
    "standard": EvaluationProtocol(
        kernel="matlab-bicubic",
        prepare=lambda image, size, scale: prepare_standard(image, scale),
        upsample=upsample_matlab,
        psnr=lambda hr, estimate, scale: metrics.psnr_y(hr, estimate, crop_border=scale),
        ssim=lambda hr, estimate, scale: metrics.ssim_y(hr, estimate, crop_border=scale),
        full_images=True,
    ),
}


def _project(operator: Downsampling, images: Float, y: torch.Tensor) -> Float:
    """The images nearest to `images` ``[N, H, W, 3]`` that are consistent with `y` ``[3, h, w]``."""
    return np.moveaxis(operator.project(metrics.to_planes(images), y).numpy(), -3, -1)


@contextmanager
def _naming(file: Path) -> Iterator[None]:
    """Errors name the image they are about."""
    try:
        yield
    except ImageError:  # it does already
        raise
    except (ValueError, RuntimeError, ArithmeticError, LookupError) as error:
        raise ValueError(f"{file.name}: {error}") from error


class _Scorer:
    """The measurements on the (HR, LR) pair of one image."""

    def __init__(self, protocol: EvaluationProtocol, file: Path, size: int, scale: int):
        with _naming(file):
            hr, lr = protocol.prepare(load_image(file), size, scale)
        self.protocol, self.file, self.hr, self.lr, self.scale = protocol, file, hr, lr, scale
        self.operator, self.y = _operator(protocol.kernel, scale), metrics.to_planes(lr / 255)

    def quality(self, estimate: Float) -> dict[str, float]:
        """Distortion and consistency of one estimate in [0, 1], before clamping and rounding."""
        image = metrics.to_uint8(estimate)
        return {
            "psnr": self.protocol.psnr(self.hr, image, self.scale),
            "ssim": self.protocol.ssim(self.hr, image, self.scale),
            "lr_psnr": metrics.lr_psnr(metrics.to_planes(image / 255), self.y, self.operator),
            "lr_psnr_float": metrics.lr_psnr(metrics.to_planes(estimate), self.y, self.operator),
        }

    def bicubic(self) -> Rows:
        estimate = self.protocol.upsample(self.lr, self.scale) / 255
        projected = _project(self.operator, estimate[None], self.y)[0]
        return {"bicubic": self.quality(estimate), "bicubic projected": self.quality(projected)}

    def samples(self, samples: Float, suffix: str) -> Rows:
        """Rows of the samples ``[N, H, W, 3]`` (means over samples) and of their mean image."""
        each = [self.quality(sample) for sample in samples]
        row = {key: float(np.mean([values[key] for values in each])) for key in each[0]}
        if len(samples) > 1:
            row |= metrics.spread(np.clip(samples, 0, 1), self.hr / 255)
        return {f"sample {suffix}": row, f"mean {suffix}": self.quality(samples.mean(axis=0))}


def _describe_pipeline(pipeline: Any) -> dict[str, Any]:
    """Class, configuration and, as a fingerprint of the weights, the sum of their magnitudes (on the CPU, in fp64)."""
    weights = {
        name: f"{sum(float(p.detach().cpu().abs().sum(dtype=torch.float64)) for p in module.parameters()):.9e}"
        for name, module in getattr(pipeline, "components", {}).items()
        if isinstance(module, torch.nn.Module)
    }
    config = {key: str(value) for key, value in dict(getattr(pipeline, "config", {})).items()}
    return {"class": type(pipeline).__name__, "config": config, "weights": weights}


def _versions() -> dict[str, str | None]:
    modules = {"numpy": np, "pillow": PIL, "scikit-image": skimage, "hvae-sr": sys.modules.get("hvae_sr")}
    versions = {name: getattr(module, "__version__", None) for name, module in modules.items()}
    return {"python": platform.python_version(), "torch": str(torch.__version__), **versions}


def _list_images(data_dir: str | os.PathLike[str]) -> list[Path]:
    files = sorted(Path(data_dir).iterdir()) if Path(data_dir).is_dir() else []
    files = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
    if not files:
        raise ValueError(f"`data_dir` must be a folder of images, got {os.fspath(data_dir)!r}.")
    return files


def _check_settings(settings: dict[str, Any]) -> None:
    protocol, temperatures, covered = (settings[k] for k in ("protocol", "temperatures", "coverage_samples"))
    if protocol not in PROTOCOLS:
        raise ValueError(f"`protocol` must be one of {sorted(PROTOCOLS)}, got {protocol!r}.")
    if len(set(temperatures)) != len(temperatures) or not all(t >= 0 for t in temperatures):
        raise ValueError(f"`temperatures` must be different and not negative, got {tuple(temperatures)}.")
    if settings["size"] is None and not PROTOCOLS[protocol].full_images:
        raise ValueError(f"`size` must be given for the {protocol} protocol, got None.")
    for name in ("num_samples", "num_images", "batch_size"):
        if settings[name] is not None and settings[name] < 1:
            raise ValueError(f"`{name}` must be at least 1, got {settings[name]}.")
    if covered is not None and (covered < 19 or 1.0 not in temperatures):
        raise ValueError(f"`coverage_samples` must be >= 19, with temperature 1, got {covered}.")


def _pipeline_rows(
    pipeline: Any, scorers: Sequence[_Scorer], settings: dict[str, Any], batch_size: int | None
) -> list[Rows]:
    """Rows of the pipeline for some images: one network run per temperature, projected here."""
    rows: list[Rows] = [{} for _ in scorers]
    options: dict[str, Any] = {"output_type": "np"}
    options |= {} if batch_size is None else {"batch_size": batch_size}
    for temperature in settings["temperatures"]:
        kept = settings["num_samples"]
        covered = (settings["coverage_samples"] or 0) if temperature == 1 else 0
        drawn, label = max(kept, covered), f"t={temperature:g}"
        images = pipeline(
            [Image.fromarray(scorer.lr) for scorer in scorers],
            temperature=temperature,
            num_samples=drawn,
            seed=settings["seed"],
            enforce_consistency=False,
            **options,
        ).images
        if len(images) != drawn * len(scorers):
            raise ValueError(f"`pipeline` must return {drawn * len(scorers)} images, got {len(images)}.")
        for index, scorer in enumerate(scorers):
            samples = np.stack([images[index * drawn + j] for j in range(drawn)]).astype(np.float32)
            with _naming(scorer.file):
                projected = _project(pipeline.operator, samples, scorer.y)
                rows[index] |= scorer.samples(samples[:kept], label)
                rows[index] |= scorer.samples(projected[:kept], f"{label} projected")
                if covered:
                    covering = np.clip(projected[:covered], 0, 1)
                    rows[index][f"sample {label} projected"] |= metrics.calibration(covering, scorer.hr / 255)
    return rows


def evaluate(
    pipeline: Any,
    data_dir: str | os.PathLike[str],
    protocol: str = "thesis",
    size: int | None = None,
    temperatures: Sequence[float] = (0.2, 0.8, 1.0),
    num_samples: int = 8,
    seed: int = 0,
    num_images: int | None = None,
    batch_size: int | None = None,
    coverage_samples: int | None = None,
    scale_factor: int = 4,
    report_path: str | os.PathLike[str] | None = None,
    progress_bar: bool = True,
) -> dict[str, Any]:
    """Evaluate a super-resolution pipeline, and bicubic interpolation, on a folder of images.

    At every temperature the network runs once, without projection; ``projected`` rows are
    ``pipeline.operator.project`` of its output, before clamping and rounding. They differ from the pipeline's
    own projected output only where the network leaves [0, 1]. Metrics are those of 8-bit images, except
    ``lr_psnr_float`` and the spread of the samples. LR-PSNR is by the protocol's own downsampling.

    Args:
        pipeline: a `SuperResolutionPipeline`, or None for the bicubic rows alone.
        data_dir: folder of images; its name is the name of the data set.
        protocol: ``"thesis"`` or ``"standard"``.
        size: side of the thesis protocol's HR squares; ``"standard"`` takes full images and ignores it.
        temperatures: one group of rows each.
        num_samples: samples per image; ``sample`` rows are means over them, ``mean`` rows their mean image.
        seed: sample j of every image has the seed ``seed + j``.
        num_images: only the first images, in the order of their names.
        batch_size: samples per network evaluation; ``batch_size // num_samples`` images a call.
        coverage_samples: samples for the coverage of central 90 % intervals at temperature 1.
        scale_factor: 4 in all published figures.
        report_path: results are kept in ``REPORT_PATH.partial``, and taken from there by a later call with
            equal settings. `write_report` removes that file.
        progress_bar: show one.

    Returns a report for `write_report` and `markdown_table`: settings, ``rows`` (means), ``images`` (values).
    Raises ValueError if a setting is out of range, there are no images, the pipeline does not fit, or an image (it
    is named) cannot be read or scored.
    """
    settings: dict[str, Any] = {
        "protocol": protocol,
        "dataset": Path(data_dir).resolve().name,
        "size": size,
        "scale_factor": scale_factor,
        "seed": seed,
        "num_samples": num_samples,
        "temperatures": [float(t) for t in temperatures],
        "coverage_samples": coverage_samples,
    }
    _check_settings(settings | {"num_images": num_images, "batch_size": batch_size})
    chosen, available = PROTOCOLS[protocol], _list_images(data_dir)
    settings["size"] = None if chosen.full_images else size
    files = available[:num_images]
    settings |= {"downsampling_kernel": chosen.kernel, "pipeline": None, "versions": _versions()}
    if pipeline is not None:
        scale, kernel = pipeline.operator.scale_factor, pipeline.operator.kernel
        if scale != scale_factor:
            raise ValueError(f"`scale_factor` must be the pipeline's {scale}, got {scale_factor}.")
        if kernel != chosen.kernel:
            logger.warning("The pipeline projects for %r, the protocol's is %r.", kernel, chosen.kernel)
        settings["pipeline"] = _describe_pipeline(pipeline)
        pipeline.set_progress_bar_config(disable=True)  # one bar, over the images
    partial = Partial(report_path, settings)
    keys = [(file.name, hashlib.sha256(file.read_bytes()).hexdigest()[:16]) for file in files]
    todo = [(file, key) for file, key in zip(files, keys, strict=True) if key not in partial.done]
    step = max(1, (batch_size or 1) // num_samples)
    for start in tqdm(range(0, len(todo), step), desc=settings["dataset"], disable=not progress_bar):
        group = todo[start : start + step]
        scorers = [_Scorer(chosen, file, size or 0, scale_factor) for file, _ in group]
        found = _pipeline_rows(pipeline, scorers, settings, batch_size) if pipeline is not None else []
        for index, (file, key) in enumerate(group):
            with _naming(file):
                rows = scorers[index].bicubic()
            partial.add(*key, rows | (found[index] if found else {}))
    return {
        **settings,
        "num_images": len(files),
        "num_images_available": len(available),
        "rows": metrics.mean_rows([partial.done[key] for key in keys]),
        "images": [{"name": key[0], "sha256": key[1], "rows": partial.done[key]} for key in keys],
    }


def write_report(report: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Write the report as JSON, whole or not at all, and remove ``PATH.partial``, which it replaces."""
    write_atomically(json.dumps(strict(report), indent=1) + "\n", Path(path))
    partial_path(Path(path)).unlink(missing_ok=True)


def published_rows(report: dict[str, Any]) -> tuple[str, list[dict[str, Any]]]:
    """(source, rows) of the published figures for the report's protocol, data set and size, if there are."""
    text = resources.files(__package__).joinpath("published.json").read_text(encoding="utf-8")
    entry = json.loads(text)[report["protocol"]]
    tables = entry["tables"].get(f"{report['size'] or 'full'} x{report['scale_factor']}", {})
    rows: list[dict[str, Any]] = []
    for method, (psnr, ssim) in zip(entry["methods"], tables.get(report["dataset"], []), strict=False):
        base = rows[0] if rows else {"psnr": psnr, "ssim": ssim}
        gains = {"psnr_gain": psnr - base["psnr"], "ssim_gain": ssim - base["ssim"]}
        rows.append({"name": f"{method} (published)", "psnr": psnr, "ssim": ssim, **gains})
    return (entry["source"] if rows else ""), rows


def markdown_table(report: dict[str, Any]) -> str:
    """The report's rows below the published ones; gains are over the bicubic row of the same source."""
    source, published = published_rows(report)
    rows = [*published, *report["rows"]]
    columns = {key: column for key, column in metrics.COLUMNS.items() if any(key in row for row in rows)}
    size = f", {report['size']}x{report['size']}" if report["size"] else ""
    title = f"**{report['dataset']}**, {report['protocol']} protocol{size}, x{report['scale_factor']}, "
    title += f"{report['num_images']} of {report['num_images_available']} images."
    lines = [title, "", " | ".join(["| Method", *(head for head, _ in columns.values())]) + " |"]
    lines.append("|---|" + "---:|" * len(columns))
    for row in rows:
        cells = [format(float(row[key]), spec) if key in row else "" for key, (_, spec) in columns.items()]
        lines.append(f"| {row['name']} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, *(["", f"Published figures: {source}."] if source else []), ""])
