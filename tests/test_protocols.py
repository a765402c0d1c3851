import json

import numpy as np
import pytest
import torch
from PIL import Image
from stand_ins import NoisyBicubic, by_name, photo_folder, run

from hvae_sr.evaluation import (
    PROTOCOLS,
    evaluate,
    markdown_table,
    prepare_paper,
    prepare_standard,
    prepare_thesis,
    published_rows,
    to_uint8,
    upsample_matlab,
    upsample_pil,
)
from hvae_sr.evaluation.tables import curve
from hvae_sr.operators import Downsampling

GAUSSIAN_ROWS = ["sample t=0.8", "mean t=0.8", "sample t=0.8 projected", "mean t=0.8 projected"]


@pytest.fixture
def folder(tmp_path):
    path = photo_folder(tmp_path / "Set5", {"b": (50, 41), "a": (45, 60), "c": (40, 40)})
    (path / "notes.txt").write_text("not an image")
    return path


BICUBIC = [
    ("thesis", "Set5", 64, 23.13, 0.6621), ("thesis", "Set5", 256, 28.88, 0.8185), ("thesis", "T91", 64, 25.03, 0.6722),
    ("thesis", "Set14", 64, 23.42, 0.6382), ("thesis", "BSD100", 64, 25.03, 0.6709),
    ("thesis", "Set14", 256, 26.11, 0.7268), ("standard", "Set5", None, 28.43, None),
    *(pytest.param(*row, marks=pytest.mark.slow) for row in [
        ("thesis", "T91", 256, 31.52, 0.8452), ("thesis", "BSD100", 256, 27.10, 0.7142),
        ("standard", "Set14", None, 26.09, None), ("standard", "BSD100", None, 25.96, None),
    ]),
]  # fmt: skip


@pytest.mark.parametrize(("protocol", "dataset", "size", "psnr", "ssim"), BICUBIC)
def test_protocols_reproduce_the_bicubic_rows(benchmark_folder, protocol, dataset, size, psnr, ssim):
    row = evaluate(None, benchmark_folder / dataset, protocol, size, progress_bar=False)["rows"][0]
    assert round(row["psnr"], 2) == psnr and (ssim is None or round(row["ssim"], 4) == ssim)


@pytest.mark.parametrize("size", [(50, 41), (41, 50), (32, 32), (20, 90)])
def test_pairs_are_squares_from_the_centre_or_whole_images_cropped_to_a_multiple(size):
    columns = (np.linspace(0, 255, size[0])[None, :, None] * np.ones((size[1], 1, 3))).astype(np.uint8)
    for prepare in (prepare_thesis, prepare_paper):
        hr, lr = prepare(Image.fromarray(columns), 32)
        assert hr.shape == (32, 32, 3) and lr.shape == (8, 8, 3) and hr.dtype == lr.dtype == np.uint8
        assert abs(hr[:, :16].mean() + hr[:, 16:].mean() - 255) < 8  # a symmetric ramp stays so
    hr, lr = prepare_standard(Image.fromarray(columns))
    assert lr.shape == (size[1] // 4, size[0] // 4, 3)
    np.testing.assert_array_equal(hr, columns[: size[1] // 4 * 4, : size[0] // 4 * 4])


def test_an_image_is_turned_before_it_is_cropped(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new("RGB", (63, 41)).save(tmp_path / "turned.jpg", exif=exif)
    hr, lr = prepare_standard(Image.open(tmp_path / "turned.jpg"))
    assert hr.shape == (60, 40, 3) and lr.shape == (15, 10, 3)


def test_the_papers_pairs_are_by_the_antialiased_operator():
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    hr, lr = prepare_paper(Image.fromarray(pixels), 64, 8)
    np.testing.assert_array_equal(hr, pixels)  # images of the right size are taken as they are
    expected = Downsampling(8)(torch.from_numpy(pixels / 255).permute(2, 0, 1))
    np.testing.assert_array_equal(lr, to_uint8(expected.permute(1, 2, 0)))


def test_matlab_upsampling_is_cubic_interpolation_with_symmetric_borders():
    lr = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)

    def keys(d):
        d = abs(d)
        return 1.5 * d**3 - 2.5 * d**2 + 1 if d <= 1 else max(0, 2 - d) and -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2

    def interpolate(row):  # [n, ...] -> [4n, ...]
        padded = np.pad(row, [(2, 2)] + [(0, 0)] * (row.ndim - 1), mode="symmetric")
        positions = [(i + 0.5) / 4 - 0.5 + 2 for i in range(4 * len(row))]
        return np.stack([sum(keys(p - j) * padded[j] for j in range(len(padded))) for p in positions])

    expected = interpolate(interpolate(lr.astype(float)).swapaxes(0, 1)).swapaxes(0, 1)
    np.testing.assert_allclose(upsample_matlab(lr), expected.clip(0, 255), atol=0.5001)


@pytest.mark.parametrize("protocol", sorted(PROTOCOLS))
def test_the_report_has_a_row_for_bicubic_samples_and_means(folder, protocol):
    report = run(folder, NoisyBicubic(PROTOCOLS[protocol].kernel), protocol=protocol)
    rows = by_name(report)
    assert list(rows) == ["bicubic", "bicubic projected", *GAUSSIAN_ROWS]
    for name, row in rows.items():
        assert row["psnr_gain"] == pytest.approx(row["psnr"] - rows["bicubic"]["psnr"])
        assert row["ssim"] == pytest.approx(np.mean([i["rows"][name]["ssim"] for i in report["images"]]))
        if "projected" in name:
            assert row["lr_psnr_float"] > 100 and 45 < row["lr_psnr"] < 90
    for suffix in ("t=0.8", "t=0.8 projected"):
        assert rows[f"mean {suffix}"]["psnr"] > rows[f"sample {suffix}"]["psnr"]
        assert rows[f"sample {suffix}"]["std"] == pytest.approx(0.024, rel=0.25)
        assert rows[f"sample {suffix}"]["mse_ratio"] > 1
    assert [image["name"] for image in report["images"]] == ["a.png", "b.png", "c.png"]
    assert report["size"] == (None if protocol == "standard" else 32)
    assert report["versions"]["torch"] and report["pipeline"]["class"] == "NoisyBicubic"
    json.dumps(report)


def test_sample_rows_are_those_of_the_pipeline(folder):
    pipeline = NoisyBicubic()
    report = run(folder, pipeline, num_images=1, num_samples=2)
    hr, lr = prepare_thesis(Image.open(folder / "a.png"), 32)
    options = {"enforce_consistency": False, "output_type": "np"}
    images = pipeline([Image.fromarray(lr)], temperature=0.8, num_samples=2, seed=0, **options).images
    expected = [PROTOCOLS["thesis"].psnr(hr, np.round(image * 255).astype(np.uint8), 4) for image in images]
    assert by_name(report)["sample t=0.8"]["psnr"] == pytest.approx(np.mean(expected))


def test_without_noise_samples_equal_bicubic(folder):
    rows = by_name(run(folder, NoisyBicubic(noise=0), num_samples=1))
    for name in GAUSSIAN_ROWS:
        base = rows["bicubic projected" if "projected" in name else "bicubic"]
        assert all(rows[name][key] == pytest.approx(base[key]) for key in ("psnr", "ssim", "lr_psnr"))
    assert "std" not in rows["sample t=0.8"]  # one sample has no diversity


def test_coverage_takes_its_own_number_of_samples_and_leaves_the_rest_alone(folder):
    pipeline = NoisyBicubic()
    with_coverage = run(folder, pipeline, temperatures=(0.8, 1.0), coverage_samples=20)
    without = run(folder, NoisyBicubic(), temperatures=(0.8, 1.0))
    assert sorted({call["num_samples"] for call in pipeline.calls}) == [3, 20]
    row = by_name(with_coverage)["sample t=1 projected"]
    assert 0 < row["coverage"] == row["coverage@0.9"] <= 1 and row["interval_width"] == row["width@0.9"] > 0
    assert curve(row, "coverage@")[0] == pytest.approx([i / 10 for i in range(1, 10)])
    spreads = curve(row, "spread_of_fifth@")[1]
    assert spreads == sorted(spreads) and len(curve(row, "error_of_fifth@")[1]) == 5
    # The samples beyond the third serve the calibration and curves over their number, nothing else.
    assert curve(row, "best_psnr@")[0] == [1, 2, 4, 8, 16]
    for one, other in zip(with_coverage["rows"], without["rows"], strict=True):
        assert other.keys() <= one.keys()
        assert all(one[key] == other[key] for key in other if "t=1 projected" not in one["name"] or "@" not in key)


def test_curves_over_the_number_of_samples_end_at_the_rows_which_tell_the_mse_ratio_to_expect(folder):
    rows = by_name(run(folder, NoisyBicubic(), num_samples=4))
    for suffix in ("t=0.8", "t=0.8 projected"):
        sizes, means = curve(rows[f"mean {suffix}"], "psnr@")
        assert sizes == [1, 2, 4] and means == sorted(means)
        assert means[0] == pytest.approx(rows[f"sample {suffix}"]["psnr"])
        assert means[-1] == pytest.approx(rows[f"mean {suffix}"]["psnr"])
        sizes, best = curve(rows[f"sample {suffix}"], "best_psnr@")
        assert best == sorted(best) and best[0] == pytest.approx(rows[f"sample {suffix}"]["psnr"])
    row = rows["sample t=0.8"]
    assert row["temperature"] == 0.8
    assert row["mse_ratio_expected"] == pytest.approx(1.64 / 1.16)
    assert row["mse_ratio_true_expected"] == pytest.approx(1.64)
    assert row["mse_ratio"] == pytest.approx(row["mse"] / row["mse_of_mean"])
    assert row["mse_ratio_true"] == pytest.approx(row["mse"] / (row["mse_of_mean"] - row["variance"] / 4))


def test_batches_of_images_give_the_same_report(folder):
    pipeline = NoisyBicubic()
    assert run(folder, pipeline, batch_size=6)["rows"] == run(folder, NoisyBicubic())["rows"]
    assert [call["images"] for call in pipeline.calls] == [2, 1]
    assert pipeline.calls[0]["batch_size"] == 6


def test_the_table_shows_published_rows_with_gains_over_their_own_bicubic(folder):
    report = run(folder, NoisyBicubic(), size=64)
    assert published_rows(report) == ("", [])  # a folder of this name only
    small = run(folder)  # of a size without published figures
    assert published_rows(small) == ("", []) and small["pipeline"] is None
    assert "published" not in markdown_table(small).lower()
    report["rows"][0]["psnr"] = 23.2
    source, published = published_rows(report)
    assert "thesis" in source and len(published) == 5
    table = markdown_table(report)
    assert "| EDSR (published) | 26.13 | 0.8082 | +3.00 | +0.1461 |" in table
    assert "| VDVAE-SR t=0.8 (published) | 24.79 | 0.7600 | +1.66 | +0.0979 |" in table
    assert f"| bicubic | {report['rows'][0]['psnr']:.2f} |" in table and ", 3 of 3 images" in table
    part = markdown_table({**report, "num_images_available": 9})
    assert "the first 3 of 9 images" in part and "published" not in part.lower()
    for block in table.split("\n\n"):  # every table has as many cells in each line
        assert len({line.count("|") for line in block.splitlines() if line.startswith("|")}) <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol": "other"}, r"`protocol` must be one of \['paper', 'standard', 'thesis'\], got 'other'"),
        ({"size": None}, "`size` must be given"),
        ({"size": 30}, r"`size` must be a positive multiple of `scale_factor` \(4\), got 30"),
        ({"temperatures": (0.8, 0.8)}, "`temperatures`"),
        ({"temperatures": (-1,)}, "`temperatures`"),
        ({"temperatures": (0.1234567, 0.1234568)}, "`temperatures` must differ in their first six digits"),
        ({"size": 4}, "`size` must be at least 7, the window of SSIM, got 4"),
        ({"size": 0}, "`size` must be at least 7, the window of SSIM, got 0"),
        ({"num_samples": 0}, "`num_samples` must be at least 1, got 0"),
        ({"num_images": 0}, "`num_images`"),
        ({"coverage_samples": 18, "temperatures": (1.0,)}, "`coverage_samples`.*got 18"),
        ({"coverage_samples": 64}, "`coverage_samples`"),
        ({"scale_factor": 8}, "`scale_factor` must be the pipeline's 4, got 8"),
        ({"temperatures": (float("nan"),)}, "`temperatures`"),
        ({"predictions": "folder"}, "`pipeline` and `predictions` were both given"),
    ],
)
def test_bad_settings_are_errors_that_name_them(folder, options, message):
    with pytest.raises(ValueError, match=message):
        run(folder, NoisyBicubic(), **options)


@pytest.mark.parametrize("pipeline", [None, NoisyBicubic("matlab-bicubic")])
def test_errors_about_an_image_name_it(folder, pipeline):
    Image.new("RGB", (3, 50)).save(folder / "small.png")
    with pytest.raises(ValueError, match="^small.png: "):
        run(folder, pipeline, protocol="standard")  # it cannot be prepared
    Image.new("RGB", (12, 12)).save(folder / "small.png")
    with pytest.raises(ValueError, match=r"^small.png: must be at least 19x19 .*got \(12, 12\)"):
        run(folder, pipeline, protocol="standard")  # too small for the windows of SSIM without the border
    (folder / "small.png").write_text("no image")
    with pytest.raises(ValueError, match="small.png"):
        run(folder, pipeline, protocol="standard")


def test_weights_are_summed_on_the_cpu(folder, monkeypatch):
    class Elsewhere(torch.nn.Parameter):
        """As on MPS: there is no fp64."""

        moved = 0

        def detach(self):
            return self

        def cpu(self):
            Elsewhere.moved += 1
            return self.data.as_subclass(torch.Tensor)

        def abs(self):
            raise TypeError("MPS has no float64")

    pipeline = NoisyBicubic()
    network = torch.nn.Linear(2, 1, bias=False)
    network.weight = Elsewhere(torch.tensor([[1.0, -2.0]]))
    pipeline.components = {"vdvae": network}
    report = run(folder, pipeline)
    assert report["pipeline"]["weights"] == {"vdvae": "3.000000000e+00"} and Elsewhere.moved == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: prepare_standard(Image.new("RGB", (9, 3))), "`image` must be at least 4x4 pixels, got 9x3"),
        (lambda: prepare_standard(Image.new("RGB", (9, 9)), 0), "`scale_factor` must be a whole number >= 1, got 0"),
        (lambda: prepare_standard(Image.new("RGB", (9, 9)), 1.5), "`scale_factor`.*got 1.5"),
        (lambda: prepare_thesis(Image.new("RGB", (64, 64)), 64.0), "`size` must be a whole number >= 1, got 64.0"),
        (lambda: upsample_pil(np.zeros((4, 4, 3))), "`lr` must be a uint8 .*got float64"),
        (lambda: upsample_matlab(np.zeros((4, 4, 3), np.uint8), 1.5), "`scale_factor`.*got 1.5"),
    ],
)
def test_bad_arguments_of_a_pair_are_errors_that_name_them(call, message):
    with pytest.raises(ValueError, match=message):
        call()
