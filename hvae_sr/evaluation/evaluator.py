"""Evaluation of a pipeline, of bicubic interpolation, or of another method's images by one of the protocols."""

from __future__ import annotations

import logging
import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL
import skimage
import torch
from accelerate.utils import gather_object
from torch import Tensor
from tqdm.auto import tqdm

from ..data import Degradation, load_degradation
from ..images import ImageError
from ..operators import cached_downsampling
from ..processes import bar_options, process_state
from . import metrics, posterior
from .perceptual import LPIPS, PerceptualMetrics, frechet_distance, magnitude
from .protocols import EvaluationProtocol, degraded, protocol_named
from .samples import Float, draw, level_temperatures, quiet, vdvae_of
from .sources import PathLike, Predictions, SourceImage, open_source
from .storage import Features, Key, Partial, Rows
from .tables import infinite, mean_rows

if TYPE_CHECKING:
    from ..pipelines import SuperResolutionPipeline

logger = logging.getLogger(__name__)


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Errors name the image they are about."""
    try:
        yield
    except ImageError:  # it does already
        raise
    except (ValueError, RuntimeError, ArithmeticError, LookupError) as error:
        raise ValueError(f"{name}: {error}") from error


def _by_tap(name: str, taps: Sequence[float]) -> dict[str, float]:
    """A distance by its name, and what each tap of its network adds, if there are several."""
    each = {f"{name}@{tap + 1}": value for tap, value in enumerate(taps)} if len(taps) > 1 else {}
    return {name: sum(taps), **each} if taps else {}


class Scorer:
    """The measurements on the (HR, LR) pair of one image: `rows` by name, and `features` for FID.

    `exact` says whether y is H of the HR image, so that estimates are projected on {x : Hx = y} too, and `projects`
    whether the projected ones are what users get.
    """

    def __init__(
        self, protocol: EvaluationProtocol, image: SourceImage, size: int, scale: int, perceptual: PerceptualMetrics,
        exact: bool, projects: bool,
    ):  # fmt: skip
        self.name, self.protocol, self.scale, self.perceptual = image.name, protocol, scale, perceptual
        self.exact, self.projects = exact, projects
        self.rows: Rows = {}
        self.features: Features = {}
        self.truth: dict[str, list[Tensor]] = {}
        with _naming(image.name):
            self.hr, self.lr = protocol.prepare(image.load(), size, scale)
            least = protocol.ssim_window + (2 * scale if protocol.full_images else 0)  # these are without their border
            if min(self.hr.shape[:2]) < least:
                raise ValueError(f"must be at least {least}x{least} pixels for SSIM, got {self.hr.shape[:2]}")
            self.operator, self.y = cached_downsampling(scale, protocol.kernel), metrics.to_planes(self.lr / 255)
            self._keep_features("truth", self.hr)
            bicubic = protocol.upsample(self.lr, scale) / 255
            self._add("bicubic", bicubic)
            if exact:
                self._add("bicubic projected", self._project(bicubic))

    def _keep_features(self, name: str, image: metrics.Uint8) -> None:
        if self.perceptual.features is not None:
            self.features[name] = np.asarray(self.perceptual.features(image), dtype=np.float32)

    def _project(self, image: Float) -> Float:
        """The image nearest to `image` ``[H, W, 3]`` that is consistent with y."""
        return np.moveaxis(self.operator.project(metrics.to_planes(image), self.y).numpy(), -3, -1)

    def _psnr(self, estimate: Float) -> float:
        return self.protocol.psnr(self.hr, metrics.to_uint8(estimate), self.scale)

    def _quality(self, estimate: Float) -> tuple[dict[str, float], list[Tensor] | None]:
        """Distortion, consistency and perceptual quality of one estimate in [0, 1], before clamping and rounding.

        And what LPIPS' network sees in it.
        """
        image, perceptual = metrics.to_uint8(estimate), self.perceptual
        row = {
            "psnr": self.protocol.psnr(self.hr, image, self.scale),
            "ssim": self.protocol.ssim(self.hr, image, self.scale),
            "lr_psnr": metrics.lr_psnr(self.operator, metrics.to_planes(image / 255), self.y),
            "lr_psnr_float": metrics.lr_psnr(self.operator, metrics.to_planes(estimate), self.y),
        }
        taps, seen = self._lpips("lpips", image)
        row |= _by_tap("lpips", taps)
        row |= {"lpips_vgg": sum(self._lpips("lpips_vgg", image)[0])} if perceptual.lpips_vgg is not None else {}
        if perceptual.brisque is not None:
            row["brisque"] = float(perceptual.brisque(image))
        row["detail"], row["detail_tail"] = metrics.detail_ratios(image, self.hr)
        return row, seen

    def _lpips(self, name: str, image: metrics.Uint8) -> tuple[list[float], list[Tensor] | None]:
        """LPIPS to the truth by tap, and what the network sees; of another distance its value, and None."""
        distance = getattr(self.perceptual, name)
        if isinstance(distance, LPIPS):
            if name not in self.truth:
                self.truth[name] = distance.look(self.hr)
            seen = distance.look(image)
            return distance.taps(distance.maps(seen, self.truth[name])), seen
        return [] if distance is None else [float(distance(self.hr, image))], None

    def _add(self, name: str, estimate: Float, **more: float) -> None:
        """The row of one estimate."""
        self.rows[name] = self._quality(estimate)[0] | more
        self._keep_features(name, metrics.to_uint8(estimate))

    def add_samples(
        self, samples: Float, label: str, kept: int, calibrate: bool = False, temperature: float | None = None
    ) -> None:
        """Rows of samples ``[N, H, W, 3]`` as they are, and projected if y is Hx; those of one temperature tell it.

        Those of a pipeline tell their temperature. Rows are of the first `kept`, and of their mean image. All N of
        what users get serve curves over their number and, if `calibrate`, the calibration. A method of one image has
        one row: its sample is its mean.
        """
        with _naming(self.name):
            more = {} if temperature is None else {"temperature": temperature}
            last, sets = samples, [(samples, label)]
            if self.exact:
                projected = np.stack([self._project(sample) for sample in samples])
                if self.projects:
                    last, sets = projected, [(samples[:kept], label)]
                sets.append((projected if self.projects else projected[:kept], f"{label} projected"))
            for images, name in sets:
                alone = kept == 1 and temperature is None
                each = [self._quality(image) for image in images[:kept]]
                row = {key: float(np.mean([values[key] for values, _ in each])) for key in each[0][0]}
                best, means = self._curves(images, [values["psnr"] for values, _ in each])
                self._keep_features(name if alone else f"sample {name}", metrics.to_uint8(images[0]))
                self.rows[name if alone else f"sample {name}"] = row
                if not alone:
                    self._add(f"mean {name}", images[:kept].mean(axis=0), **means, **more)
                np.clip(images, 0, 1, out=images)
                row |= best
                row |= self._spread(images, [seen for _, seen in each]) if kept > 1 else {}
                row |= self._calibration(images) if calibrate and images is last else {}
                row |= more

    def _curves(self, images: Float, psnrs: list[float]) -> tuple[dict[str, float], dict[str, float]]:
        """PSNR over the number n of all images: of the best of n, and of the mean of n. `psnrs` has the first ones."""
        best: dict[str, float] = {}
        means: dict[str, float] = {}
        if len(images) > 1:
            psnrs = psnrs + [self._psnr(image) for image in images[len(psnrs) :]]
            for n in [2**i for i in range(len(images).bit_length())]:
                best[f"best_psnr@{n}"] = posterior.best_of_n(psnrs, n)
                groups = psnrs if n == 1 else [self._psnr(mean) for mean in posterior.mean_of_n(images, n)]
                means[f"psnr@{n}"] = float(np.mean(groups))
        return best, means

    def _spread(self, images: Float, seen: Sequence[list[Tensor] | None]) -> dict[str, float]:
        """Of as many images as were seen."""
        images, distance = images[: len(seen)], self.perceptual.lpips
        found = posterior.spread(images, self.hr / 255)
        if isinstance(distance, LPIPS):
            looks = [look for look in seen if look is not None]
            pairs = [distance.taps(distance.maps(a, b)) for a, b in combinations(looks, 2)]
            found |= _by_tap("apd_lpips", np.mean(pairs, axis=0).tolist())
            maps = [distance.spatial(distance.maps(look, self.truth["lpips"]), self.hr.shape[:2]) for look in looks]
            found["diversity_score_lpips"] = posterior.diversity_of_maps(np.stack(maps))
        elif distance is not None:
            found["apd_lpips"] = posterior.average_pairwise_distance(metrics.to_uint8(images), distance)
        return found

    def _calibration(self, images: Float) -> dict[str, float]:
        curve = posterior.calibration_curve(images, self.hr / 255)
        row: dict[str, float] = {}
        for level, covered, width in zip(*curve.values(), strict=True):
            row |= {f"coverage@{level:g}": covered, f"width@{level:g}": width}
        for fifth, (spread, error) in enumerate(zip(*posterior.error_by_spread(images, self.hr / 255), strict=True), 1):
            row |= {f"spread_of_fifth@{fifth}": spread, f"error_of_fifth@{fifth}": error}
        return row | {"coverage": row["coverage@0.9"], "interval_width": row["width@0.9"]}


def _describe_pipeline(pipeline: SuperResolutionPipeline) -> dict[str, Any]:
    """Class, configurations, dtype and, as a fingerprint of the weights, the sum of their magnitudes."""

    def config(owner: Any) -> dict[str, str]:  # but for where it was loaded from, which changes nothing
        values = dict(getattr(owner, "config", {}))
        return {key: str(value) for key, value in sorted(values.items()) if key != "_name_or_path"}

    components = getattr(pipeline, "components", {}).items()
    networks = {name: module for name, module in components if isinstance(module, torch.nn.Module)}
    others = {name: config(part) for name, part in components if name not in networks and hasattr(part, "config")}
    return others | {
        "class": type(pipeline).__name__,
        "config": config(pipeline),
        "networks": {name: config(module) for name, module in networks.items()},
        "weights": {name: magnitude(module.parameters()) for name, module in networks.items()},
        "dtype": str(getattr(pipeline, "inference_dtype", torch.float32)).removeprefix("torch."),
    }


def _versions() -> dict[str, str | None]:
    modules = {"numpy": np, "pillow": PIL, "scikit-image": skimage, "hvae-sr": sys.modules.get("hvae_sr")}
    versions = {name: getattr(module, "__version__", None) for name, module in modules.items()}
    return {"python": platform.python_version(), "torch": str(torch.__version__), **versions}


def _check_settings(settings: dict[str, Any], protocol: EvaluationProtocol) -> None:
    temperatures, covered, size = settings["temperatures"], settings["coverage_samples"], settings["size"]
    if len(set(temperatures)) != len(temperatures) or not all(0 <= t < float("inf") for t in temperatures):
        raise ValueError(f"`temperatures` must be different, finite and not negative, got {tuple(temperatures)}.")
    if len({f"{t:g}" for t in temperatures}) != len(temperatures):  # names of rows
        raise ValueError(f"`temperatures` must differ in their first six digits, got {tuple(temperatures)}.")
    if size is None and not protocol.full_images:
        raise ValueError(f"`size` must be given for the {settings['protocol']} protocol, got None.")
    if size is not None and size < protocol.ssim_window:
        raise ValueError(f"`size` must be at least {protocol.ssim_window}, the window of SSIM, got {size}.")
    for name in ("num_samples", "batch_size", "scale_factor"):
        if settings[name] is not None and settings[name] < 1:
            raise ValueError(f"`{name}` must be at least 1, got {settings[name]}.")
    if settings.get("levels") and settings["num_samples"] < 2:
        raise ValueError(f"`num_samples` must be at least 2 with `levels`, got {settings['num_samples']}.")
    if covered is not None and (covered < 19 or 1.0 not in temperatures):
        raise ValueError(f"`coverage_samples` must be >= 19, with temperature 1, got {covered}.")


def evaluate(
    pipeline: SuperResolutionPipeline | None,
    data: PathLike,
    protocol: str = "thesis",
    size: int | None = None,
    temperatures: Sequence[float] | None = None,
    num_samples: int | None = None,
    seed: int = 0,
    num_images: int | None = None,
    every: int = 1,
    batch_size: int | None = None,
    coverage_samples: int | None = None,
    self_ensemble: bool = False,
    levels: bool = False,
    scale_factor: int | None = None,
    predictions: PathLike | None = None,
    perceptual: PerceptualMetrics | None = None,
    split: str = "test",
    image_column: str = "image",
    degradation: Degradation | PathLike | None = None,
    name: str | None = None,
    report_path: str | os.PathLike[str] | None = None,
    progress_bar: bool = True,
) -> dict[str, Any]:
    """Evaluate bicubic interpolation, and a super-resolution pipeline or another method's images, on a data set.

    At every temperature the network runs once, without projection; ``projected`` rows are the projection of its
    output on {x : Hx = y}, before clamping and rounding. They differ from the pipeline's own projected output only
    where the network leaves [0, 1]. Metrics are those of 8-bit images, except ``lr_psnr_float`` and what is measured
    on sets of samples. LR-PSNR is by the protocol's own downsampling.

    Under `accelerate launch` or `torchrun` the images are split over the processes, and each returns the whole report.

    Args:
        pipeline: a `SuperResolutionPipeline`, or None for the bicubic rows, and those of `predictions`.
        data: folder of images, whose name is the name of the data set, or a data set of the Hub.
        protocol: ``"thesis"``, ``"paper"`` or ``"standard"``.
        size: side of the HR squares (paper: 256 by default); ``"standard"`` takes full images and ignores it.
        temperatures: one group of rows each. None means 0.2, 0.8 and 1, and 1 alone for a pipeline without any.
        num_samples: samples per image; ``sample`` rows are means over them, ``mean`` rows their mean image. None means
            8, and 5 for ``"paper"``.
        seed: sample j of every image has the seed ``seed + j``.
        num_images: only the first images, in the order of their names.
        every: only each so-many-th image, from the first on.
        batch_size: samples per network evaluation; ``batch_size // num_samples`` images a call.
        coverage_samples: samples for the calibration of central intervals at temperature 1; one image's are held in
            memory at a time (50 MB for 64 of 256x256).
        self_ensemble: draws samples in eight orientations, see the pipeline; rows of samples are of all of them.
        levels: also rows with one level of the hierarchy at temperature 1 and the others at 0, and with all up to one.
        scale_factor: None means the pipeline's, or 4.
        predictions: folder of another method's images, instead of a pipeline (see `Predictions`).
        perceptual: LPIPS, BRISQUE and FID, from `load_perceptual`.
        split, image_column: of a data set of the Hub.
        degradation: makes the LR images instead of the protocol's downsampling: a bundled name, a file or a
            `Degradation`; that of image i of the data set has the index i and `seed`. Rows are then projected only for
            a pipeline that does so itself.
        name: of the model, for the report.
        report_path: results are kept beside it, as ``REPORT_PATH.partial-`` and a hash of the settings, and taken from
            there by a later call with equal settings. `write_report` removes that file.
        progress_bar: show one.

    Returns a report for `write_report` and `markdown_table`: settings, ``rows`` (means), ``images`` (values).
    Raises ValueError if a setting is out of range, there are no images, the pipeline does not fit, or an image (it
    is named) cannot be read or scored.
    """
    chosen, perceptual = protocol_named(protocol), perceptual or PerceptualMetrics()
    if pipeline is not None and predictions is not None:
        raise ValueError("`pipeline` and `predictions` were both given; one report is about one method.")
    if scale_factor is None:
        scale_factor = pipeline.operator.scale_factor if pipeline is not None else 4
    if temperatures is None:
        temperatures = (0.2, 0.8, 1.0) if getattr(pipeline, "has_temperature", True) else (1.0,)
    settings: dict[str, Any] = {
        "protocol": protocol,
        "dataset": None,
        "size": None if chosen.full_images else (chosen.size if size is None else size),
        "scale_factor": scale_factor,
        "seed": seed,
        "num_samples": chosen.num_samples if num_samples is None else num_samples,
        "temperatures": [float(t) for t in temperatures] if pipeline is not None else [],
        "coverage_samples": coverage_samples if pipeline is not None else None,
        **({"self_ensemble": True} if self_ensemble and pipeline is not None else {}),
        **({"levels": True} if levels and pipeline is not None else {}),
        **({"every": every} if every != 1 else {}),
    }
    _check_settings(settings | {"batch_size": batch_size}, chosen)
    source = open_source(data, split, image_column, num_images, every)
    settings |= {"dataset": source.name, "downsampling_kernel": chosen.kernel, "pipeline": None, "name": name}
    settings |= {"predictions": None, "metrics": perceptual.names, "absent": perceptual.absent, "versions": _versions()}
    settings |= {"metric_identities": perceptual.identities, **({"source": source.options} if source.options else {})}
    made = degradation if isinstance(degradation, Degradation) or degradation is None else load_degradation(degradation)
    projects = pipeline is not None and bool(getattr(pipeline, "projects", True))
    exact = projects or made is None  # then y is Hx, for whoever wants it
    if pipeline is not None and pipeline.config.get("consistency") == "none":
        exact = False
    if made is not None:
        settings["degradation"] = {"name": made.name, "seed": seed, **made.as_dict()}
    others: Predictions | None = None
    if pipeline is not None:
        scale, kernel = pipeline.operator.scale_factor, pipeline.operator.kernel
        if scale != scale_factor:
            raise ValueError(f"`scale_factor` must be the pipeline's {scale}, got {scale_factor}.")
        if kernel != chosen.kernel:
            logger.warning("The pipeline projects for %r, the protocol's is %r.", kernel, chosen.kernel)
        settings["pipeline"] = _describe_pipeline(pipeline)
    elif predictions is not None:
        others = Predictions(predictions, source)
        settings |= {"predictions": {"name": others.name, "sha256": others.sha256}, "num_samples": others.num_samples}
    kept = settings["num_samples"]
    # What samples are drawn at: (label, temperatures, the temperature if it is one).
    draws: list[tuple[str, Any, float | None]] = [(f"t={tau:g}", tau, tau) for tau in settings["temperatures"]]
    if pipeline is not None and levels:
        vdvae = vdvae_of(pipeline)
        opened = level_temperatures([vdvae.stride(group) for group in range(vdvae.num_groups)])
        draws += [(level, each, None) for level, each in opened.items() if level != "all"]  # this is t=1
    options = {"batch_size": batch_size} if batch_size is not None else {}
    options |= {"self_ensemble": True} if "self_ensemble" in settings else {}

    def score(images: Sequence[SourceImage]) -> list[Scorer]:
        scorers = []
        for image in images:
            own = chosen if made is None else degraded(chosen, made, seed, image.number)
            scorers.append(Scorer(own, image, settings["size"] or 0, scale_factor, perceptual, exact, projects))
        for label, at, tau in draws if pipeline is not None else ():
            covered = (coverage_samples or 0) if tau == 1 else 0
            drawn = draw(pipeline, [scorer.lr for scorer in scorers], at, max(kept, covered), seed, **options)
            for scorer, samples in zip(scorers, drawn, strict=True):
                scorer.add_samples(samples, label, kept, bool(covered), tau)
        for scorer, image in zip(scorers, images, strict=True):
            if others is not None:
                scorer.add_samples(others.load(image, *scorer.hr.shape[:2]), others.name, kept)
        return scorers

    if perceptual.features is not None and len(source.images) < 2:
        raise ValueError(f"`data` must hold at least 2 images for FID, got {len(source.images)}.")
    # Degraded images' y depends on their places in the set.
    keys = [(image.name, f"{image.sha256}:{image.number}" if made else image.sha256) for image in source.images]
    with quiet(pipeline):  # one bar, over the images
        partial, step = Partial(report_path, settings), max(1, (batch_size or 1) // kept)
        todo = [(key, image) for key, image in zip(keys, source.images, strict=True) if key not in partial.done]
        done = _score_all(todo, score, partial, step, source.name, progress_bar)
    rows = mean_rows([done[key][0] for key in keys], kept)
    _name_infinite(source.images, [done[key][0] for key in keys])
    if perceptual.features is not None:
        _add_fid(rows, [done[key][1] for key in keys])
    return {
        **settings,
        "num_images": len(keys),
        "num_images_available": len(source.names),
        "rows": rows,
        "images": [
            {"name": image.name, "sha256": image.sha256, "rows": done[key][0]}
            for image, key in zip(source.images, keys, strict=True)
        ],
    }


def _score_all(
    todo: Sequence[tuple[Key, SourceImage]],
    score: Callable[[Sequence[SourceImage]], list[Scorer]],
    partial: Partial,
    step: int,
    title: str,
    progress_bar: bool,
) -> dict[Key, tuple[Rows, Features]]:
    """Results of all images, `step` at a time: from earlier runs, from here and from the other processes."""
    state = process_state()
    share = todo[state.process_index :: state.num_processes]
    shown = bar_options(progress_bar and state.is_main_process)
    with tqdm(total=len(share), desc=title, unit="image", **shown) as bar:
        for start in range(0, len(share), step):
            group = share[start : start + step]
            for scorer, (key, _) in zip(score([image for _, image in group]), group, strict=True):
                partial.add(key, scorer.rows, scorer.features)
            bar.update(len(group))
    # Every process knows the earlier results and its own: together that is all.
    return dict(gather_object(list(partial.done.items())))


def _name_infinite(images: Sequence[Any], metrics: Sequence[Mapping[str, Mapping[str, float]]]) -> None:
    """Says which images have infinite metrics, which their means leave out."""
    named = [image.name for image, rows in zip(images, metrics, strict=True) if infinite(rows)]
    if named:
        logger.warning(
            "With infinite PSNR, LR-PSNR or detail, and left out of means of these: %s%s",
            ", ".join(named[:5]), ", ..." if len(named) > 5 else "",
        )  # fmt: skip


def _add_fid(rows: list[dict[str, Any]], features: Sequence[Features]) -> None:
    """FID of every row between the sets of truths and of estimates; of samples, the first of each image."""
    truth = np.stack([of_image["truth"] for of_image in features])
    for row in rows:
        row["fid"] = frechet_distance(np.stack([of_image[row["name"]] for of_image in features]), truth)
