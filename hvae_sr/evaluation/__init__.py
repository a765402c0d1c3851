"""Measuring super-resolution: metrics, evaluation protocols, analyses, reports and plots.

Functions of arrays, for one image (`metrics`), for a set of samples (`posterior`), without a reference
(`no_reference`) or with a network (`perceptual`); `evaluate` runs a protocol (`protocols`) on images (`sources`), keeps
its results (`storage`) and shows them (`tables`, and `plots`, which needs matplotlib); `analyses` look into the latent
groups.
"""

# ruff: noqa: F401

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
