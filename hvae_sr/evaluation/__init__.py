"""Measuring super-resolution: metrics, evaluation protocols, analyses, reports and figures.

Functions of arrays, for one image (`metrics`), for a set of samples (`posterior`), without a reference
(`no_reference`) or with a network (`perceptual`); `evaluate` runs a protocol; `analyses` look into the latent groups.
Figures are in `hvae_sr.evaluation.figures`, which needs matplotlib.
"""

from .evaluator import evaluate
from .metrics import lr_psnr, luma, psnr, psnr_rgb, psnr_y, ssim_rgb, ssim_y, to_uint8
from .no_reference import brisque
from .perceptual import PerceptualMetrics, frechet_distance, load_perceptual, lpips
from .posterior import (
    average_pairwise_distance,
    best_of_n,
    calibration_curve,
    coverage,
    crps,
    diversity_score,
    expected_mse_ratio,
    interval_width,
    mean_of_n,
    mse_ratio,
)
from .protocols import (
    PROTOCOLS,
    EvaluationProtocol,
    prepare_paper,
    prepare_standard,
    prepare_thesis,
    upsample_matlab,
    upsample_pil,
)
from .storage import read_report, write_report
from .tables import markdown_table, projection_table, published_rows, results_document, temperature_table

__all__ = [
    "PROTOCOLS",
    "EvaluationProtocol",
    "PerceptualMetrics",
    "average_pairwise_distance",
    "best_of_n",
    "brisque",
    "calibration_curve",
    "coverage",
    "crps",
    "diversity_score",
    "evaluate",
    "expected_mse_ratio",
    "frechet_distance",
    "interval_width",
    "load_perceptual",
    "lpips",
    "lr_psnr",
    "luma",
    "markdown_table",
    "mean_of_n",
    "mse_ratio",
    "prepare_paper",
    "prepare_standard",
    "prepare_thesis",
    "projection_table",
    "psnr",
    "psnr_rgb",
    "psnr_y",
    "published_rows",
    "read_report",
    "results_document",
    "ssim_rgb",
    "ssim_y",
    "temperature_table",
    "to_uint8",
    "upsample_matlab",
    "upsample_pil",
    "write_report",
]
