"""Every plot is drawn from what its users have: reports and analyses. What they look like was judged by eye."""

import numpy as np
import pytest
from PIL import Image

plots = pytest.importorskip("hvae_sr.evaluation.plots", reason="matplotlib is not installed (extra `figures`)")


def row(name, psnr, temperature=None, **more):
    values = {"name": name, "psnr": psnr, "ssim": 0.7, "lr_psnr": 60.0, "brisque": 70 - psnr, **more}
    return values if temperature is None else {**values, "temperature": temperature}


def report(**changes):
    rows = [row("bicubic", 23.0), row("bicubic projected", 23.5)]
    for tau in (0.2, 1.0):
        for suffix in ("", " projected"):
            spread = {"apd_mse": 0.002 * tau, "crps": 0.04, "exchangeability_mse": tau, "detail": 0.3 + tau}
            spread |= {"mse_ratio_true": 1 + tau / 2, "mse_ratio_true_expected": 1 + tau**2}
            best, means = (
                {f"{key}@{n}": 24 + n / by for n in (1, 2, 4)} for key, by in (("best_psnr", 10), ("psnr", 9))
            )
            rows.append(row(f"sample t={tau:g}{suffix}", 24 - tau, tau, **spread, **best))
            rows.append(row(f"mean t={tau:g}{suffix}", 25 - tau, tau, **means))
    for level in range(1, 10):
        rows[-2] |= {f"coverage@{level / 10:g}": level / 12, f"width@{level / 10:g}": level / 100}
    base = {"name": "model", "dataset": "Set5", "temperatures": [0.2, 1.0], "num_samples": 4, "rows": rows}
    return {**base, "protocol": "thesis", "scale_factor": 4, "num_images": 5, **changes}


@pytest.fixture
def save(tmp_path):
    def save(figure, suffix="png"):
        path = tmp_path / "made" / f"figure.{suffix}"
        plots.save_figure(figure, path)
        assert [file.name for file in path.parent.iterdir()] == [path.name]
        return path

    return save


def labels(figure):
    """Texts of all legends."""
    return [text.get_text() for ax in figure.axes if ax.get_legend() for text in ax.get_legend().get_texts()]


def test_the_distance_figure_shows_every_scale_and_the_expected_consistency(save):
    analysis = {
        "groups": [0, 1, 2, 3],
        "scales": [1, 4],
        "distance": {"1": [60, 40, 20, 0], "4": [50, 10, 0.4, 0]},
        "standard_error": {"1": [1, 1, 1, 0], "4": [1, 1, 0.1, 0]},
        "strides": [8, 4, 2],
    }
    consistency = {"groups": [0, 3], "consistency": [55.0, 3.0], "scale_factor": 4}
    figure = plots.distance_figure(analysis, consistency)
    assert labels(figure) == ["$U_k^{1}$", "$U_k^{4}$", "CE(k), s = 4"]
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    np.testing.assert_array_equal(lines["$U_k^{4}$"].get_ydata(), analysis["distance"]["4"])
    np.testing.assert_array_equal(lines["CE(k), s = 4"].get_xdata(), [0, 3])
    assert np.asarray(Image.open(save(figure))).std() > 10


def test_lines_differ_in_more_than_colour():
    styles = [plots.line_style(index) for index in range(len(plots.COLOURS))]
    for key in ("color", "marker", "linestyle"):
        assert len({str(style[key]) for style in styles}) == len(styles)


def test_the_temperature_figure_has_a_panel_for_each_metric(save):
    figure = plots.temperature_figure(report())
    titles = [ax.get_title() for ax in figure.axes if ax.get_title()]
    shown = ["PSNR", "SSIM", "BRISQUE", "LR-PSNR", "APD-MSE x1e4", "CRPS", "MSE ratio, true mean"]
    assert titles == [*shown, "exchangeability, MSE", "detail"]
    assert {"one sample", "mean of 4", "bicubic", "calibrated", "right"} == set(labels(figure))
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), [23.8, 23.0])
    save(figure, "pdf")
    rows = [row for row in report()["rows"] if not row["name"].endswith(" projected")]
    lines = plots.temperature_figure(report(rows=rows)).axes[0].get_lines()
    assert [set(line.get_ydata()) for line in lines if line.get_label() == "bicubic"] == [{23.0}]
    with pytest.raises(ValueError, match="at least two temperatures"):
        plots.temperature_figure(report(temperatures=[0.2]))
    with pytest.raises(ValueError, match="no rows of samples"):
        plots.temperature_figure(report(temperatures=[]))


def test_the_plane_places_methods_by_distortion_and_perception(save):
    other = report(
        name=None,
        temperatures=[],
        predictions={"name": "ESRGAN"},
        rows=[row("bicubic", 23.0), row("ESRGAN", 22.0), row("ESRGAN projected", 22.5)],
    )
    figure = plots.plane_figure([report(), other])
    assert labels(figure) == ["bicubic", "model", "ESRGAN"]
    ax = figure.axes[0]
    areas = ax.collections[0].get_sizes()
    assert areas[1] == pytest.approx(5 * areas[0])  # diversity is proportional to the area
    np.testing.assert_allclose(ax.collections[1].get_offsets(), [[22.0, 48.0], [22.5, 47.5]])  # and projected
    assert "BRISQUE" in ax.get_ylabel()
    save(figure, "svg")
    with pytest.raises(ValueError, match=r"`perception` must be among.*\['brisque'\]; got 'fid'"):
        plots.plane_figure([report()], "fid")
    with pytest.raises(ValueError, match="`reports` must be of the same data and protocol, got .*; Another"):
        plots.plane_figure([report(), report() | {"dataset": "Another"}])
    with pytest.raises(ValueError, match="`reports`"):
        plots.plane_figure([])


def test_the_calibration_figure_compares_coverage_with_the_level(save):
    figure = plots.calibration_figure([report(), report(size=64)])
    assert labels(figure) == ["calibrated", "model, Set5", "model, Set5, S=64"]
    line = figure.axes[0].lines[1]
    np.testing.assert_allclose(line.get_xdata(), np.arange(1, 10) / 10)
    np.testing.assert_allclose(line.get_ydata(), np.arange(1, 10) / 12)
    np.testing.assert_allclose(figure.axes[1].lines[0].get_ydata(), np.arange(1, 10) * 2.55)
    save(figure)
    with pytest.raises(ValueError, match="`coverage_samples`"):
        plots.calibration_figure([report(rows=[row("bicubic", 23.0)])])


def test_the_samples_figure_has_means_and_best_of_n(save):
    figure = plots.samples_figure(report())
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), [24 + n / 9 for n in (1, 2, 4)])
    np.testing.assert_allclose(figure.axes[1].lines[1].get_ydata(), [24 + n / 10 for n in (1, 2, 4)])
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()
    save(figure)


def test_the_information_figure_has_a_bar_for_each_group(save):
    analysis = {"strides": [8, 8, 4], "from_x": [0.1, 0.2, 0.7], "from_y": [0.1, 0.1, 0.0]}
    figure = plots.information_figure(analysis)
    assert [bar.get_height() for bar in figure.axes[0].patches] == [0.1, 0.2, 0.7]
    assert labels(figure)[:2] == ["stride 8: 30 %", "stride 4: 70 %"]
    assert len(plots.information_figure({"strides": [8], "from_y": [0.1]}).axes) == 1
    path = save(figure)
    with pytest.raises(ValueError):
        plots.save_figure(figure, path.with_suffix(".unknown"))
    assert list(path.parent.iterdir()) == [path]  # nothing is left
