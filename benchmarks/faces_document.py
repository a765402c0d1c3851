"""The document of `faces.py`: its tables, its figures, and the paper's claims one by one."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hvae_sr.evaluation.tables import FACTORS, markdown_lines
from hvae_sr.files import write_atomically

PUBLISHED_STEPS = {"SR3": 2000, "DPS": 1000}
COLUMNS = {
    "psnr": ("PSNR", ".2f"), "ssim": ("SSIM", ".4f"), "lpips": ("LPIPS-Alex", ".3f"), "lpips_vgg": ("LPIPS-VGG", ".3f"),
    "brisque": ("BRISQUE", ".1f"), "lr_psnr": ("LR-PSNR", ".1f"), "apd_mse": ("APD-MSE x1e4", ".2f"),
    "apd_lpips": ("APD-LPIPS x1e3", ".1f"),
}  # fmt: skip
"""Of the paper's tables 1 and 2; the distances between samples are multiplied as they are there."""


def rows_of(measured: Mapping[str, Any]) -> dict[str, Mapping[str, float]]:
    """Rows of a report by their names."""
    return {row["name"]: row for row in measured["report"]["rows"]}


def sample(measured: Mapping[str, Any], temperature: float, projected: bool = False) -> Mapping[str, float]:
    """The row of single samples at a temperature; of a system that has none, its only one."""
    rows, suffix = rows_of(measured), " projected" if projected else ""
    return rows.get(f"sample t={temperature:g}{suffix}") or rows[f"sample t=1{suffix}"]


def cells(row: Mapping[str, float]) -> list[str]:
    """The columns of a row."""
    return [
        format(float(row[key]) * FACTORS.get(key, 1), spec) if key in row else "" for key, (_, spec) in COLUMNS.items()
    ]


def default_row(name: str, measured: Mapping[str, Any]) -> Mapping[str, float]:
    """The row that a system is compared by: t = 0.8; CVDVAE, SR3 and the energy score projected, as in the paper."""
    return sample(measured, 0.8, projected=name in ("CVDVAE", "SR3", "energy score"))


def quality_table(measured: Mapping[str, Any]) -> list[str]:
    """Tables 1 and 2 of the paper."""
    first = next(iter(measured.values()))
    body = [["bicubic", *cells(rows_of(first)["bicubic"]), "", "", ""]]
    for name, found in measured.items():
        cost = [f"{found['parameters'] / 1e6:.2f} M", f"{found['evaluations']}", f"{found['seconds']:.3f}"]
        body.append([name, *cells(default_row(name, found)), *cost])
    heads = ["", *(title for title, _ in COLUMNS.values()), "parameters", "evaluations", "seconds a sample"]
    return markdown_lines(heads, body, "---|" * len(heads))


def projection_table(measured: Mapping[str, Any]) -> list[str]:
    """Every system with and without the projection, at t = 0.8."""
    body = [
        [f"{name}{', projected' if projected else ''}", *cells(sample(found, 0.8, projected))]
        for name, found in measured.items()
        for projected in (False, True)
    ]
    heads = ["", *(title for title, _ in COLUMNS.values())]
    return markdown_lines(heads, body, "---|" * len(heads))


def temperature_table(measured: Mapping[str, Any]) -> list[str]:
    """Systems that have a temperature, at each, compared as in the first table."""
    body = []
    for name, found in measured.items():
        temperatures = found["report"]["temperatures"]
        for t in temperatures if len(temperatures) > 1 else ():
            body.append([f"{name} t={t:g}", *cells(sample(found, t, name != "HCFlow"))])
    heads = ["", *(title for title, _ in COLUMNS.values())]
    return markdown_lines(heads, body, "---|" * len(heads))


def distance_table(analysis: Mapping[str, Any]) -> list[str]:
    """U_k^s at the borders of the levels."""
    strides = analysis["strides"]
    shown = [
        k for k in analysis["groups"] if k in (0, len(strides)) or strides[k - 1] != strides[min(k, len(strides) - 1)]
    ]
    side = analysis["size"][0]
    body = [
        [f"{k}", f"{side // strides[k - 1]} x {side // strides[k - 1]}" if k else "none"]
        + [f"{analysis['distance'][str(s)][k]:.2f}" for s in analysis["scales"]]
        for k in shown
    ]
    heads = ["k", "latents up to", *(f"U_k^{s}" for s in analysis["scales"])]
    return markdown_lines(heads, body, "---|" * len(heads))


def training_table(runs: Mapping[str, Mapping[str, float]]) -> list[str]:
    """What each run has had."""
    body = [
        [name, f"{run['hours']:.2f}", f"{run['updates']:.0f}", f"{run['images']:.0f}"] for name, run in runs.items()
    ]
    return markdown_lines(["", "processor hours", "updates", "images seen"], body, "---|" * 4)


def claims(measured: Mapping[str, Any], analysis: Mapping[str, Any], scale: int) -> list[tuple[str, bool, str]]:
    """The paper's claims: words, whether they hold in these figures, and the figures."""
    row = {name: default_row(name, found) for name, found in measured.items()}
    paper = [name for name in row if name != "energy score"]

    def order(key: str, best: Any) -> str:
        return ", ".join(
            f"{name} {row[name][key] * FACTORS.get(key, 1):.4g}"
            for name in sorted(paper, key=lambda n: best(row[n][key]))
        )

    def leads(name: str, key: str, sign: int, places: int = 1) -> bool:
        return name in sorted(paper, key=lambda n: sign * row[n][key])[:places]

    cvdvae = measured["CVDVAE"]
    slower = {
        name: steps / measured[name]["evaluations"] * measured[name]["seconds"] / cvdvae["seconds"]
        for name, steps in PUBLISHED_STEPS.items()
    }
    cold, warm = (sample(cvdvae, t, projected=True) for t in (0.1, 1.0))
    plain, projected = (sample(cvdvae, 0.8, each) for each in (False, True))
    u = analysis["distance"]
    top = len(analysis["groups"]) - 1
    falls = all(u[str(s)][0] > u[str(s)][top // 2] > u[str(s)][top - 1] for s in analysis["scales"])
    ordered = all(u["1"][k] >= u[str(scale)][k] for k in analysis["groups"])
    return [
        (
            "CVDVAE is more than 500 times faster than the sequential methods at their published steps",
            min(slower.values()) > 500,
            ", ".join(f"{name} {value:,.0f} times slower (extrapolated by steps)" for name, value in slower.items()),
        ),
        (
            "HCFlow has the best distortion (PSNR and LPIPS)",
            leads("HCFlow", "psnr", -1) and leads("HCFlow", "lpips", 1),
            f"PSNR: {order('psnr', lambda v: -v)}; LPIPS: {order('lpips', lambda v: v)}",
        ),
        (
            "CVDVAE is second in distortion (PSNR)",
            leads("CVDVAE", "psnr", -1, 2),
            f"PSNR: {order('psnr', lambda v: -v)}",
        ),
        (
            "CVDVAE and DPS, which have unconditional priors, have the best visual quality (BRISQUE)",
            leads("CVDVAE", "brisque", 1, 2) and leads("DPS", "brisque", 1, 2),
            f"BRISQUE: {order('brisque', lambda v: v)}",
        ),
        (
            "HCFlow lacks high-level diversity: its APD-LPIPS is the smallest",
            leads("HCFlow", "apd_lpips", 1),
            f"APD-LPIPS x1e3: {order('apd_lpips', lambda v: v)}",
        ),
        (
            "SR3, with the same budget, is worse than the others (LPIPS)",
            leads("SR3", "lpips", -1),
            f"LPIPS: {order('lpips', lambda v: v)}",
        ),
        (
            "CVDVAE's samples, projected, are consistent: an LR-PSNR above HCFlow's",
            projected["lr_psnr"] > row["HCFlow"]["lr_psnr"],
            f"{projected['lr_psnr']:.1f} and {row['HCFlow']['lr_psnr']:.1f} dB in 8 bits",
        ),
        (
            "The projection makes samples consistent and costs no quality (slides): PSNR and LPIPS no worse",
            projected["psnr"] >= plain["psnr"] and projected["lpips"] <= plain["lpips"] + 0.005,
            f"LR-PSNR {plain['lr_psnr']:.1f} to {projected['lr_psnr']:.1f} dB, PSNR {plain['psnr']:.2f} to "
            f"{projected['psnr']:.2f} dB, LPIPS {plain['lpips']:.3f} to {projected['lpips']:.3f}",
        ),
        (
            "A higher temperature gives more diversity, a lower one less distortion (figure 5)",
            warm["apd_lpips"] > cold["apd_lpips"] and cold["psnr"] > warm["psnr"],
            f"CVDVAE at t=0.1 and t=1: APD-LPIPS x1e3 {1e3 * cold['apd_lpips']:.1f} and {1e3 * warm['apd_lpips']:.1f}, "
            f"PSNR {cold['psnr']:.2f} and {warm['psnr']:.2f} dB",
        ),
        (
            f"Groups that are fixed fix the LR image first: U_k^s falls with k, and U_k^{scale} lies below U_k^1",
            falls and ordered,
            f"U_k^{scale} is {u[str(scale)][0]:.1f} at k=0, {u[str(scale)][top - 1]:.2f} at k={top - 1}",
        ),
        (
            f"For k large enough, but below all, U_k^{scale} is below half a grey level",
            min(u[str(scale)][:top]) < 0.5,
            f"smallest U_k^{scale} for k < {top}: {min(u[str(scale)][:top]):.2f}",
        ),
    ]


def other_factor(path: Path, scale: int) -> str:
    """A sentence that leads to the document of the other factor, where there is one beside this."""
    found = {4: "faces.md", 8: "faces_x8.md"}
    links = [f"[x{s}]({name})" for s, name in found.items() if s != scale and (path.parent / name).is_file()]
    return f" The same for another factor, with the same prior of CVDVAE and of DPS: {links[0]}." if links else ""


def write_document(path: Path, results: Mapping[str, Any], given: Mapping[str, Any], pictures: Path) -> None:
    """Writes the Markdown document."""
    measured, analysis, scale = results["measured"], results["analysis"], given["scale"]
    total = sum(run["hours"] for run in results["runs"].values())
    options = {key: given[key] for key in ("hours", "scale", "num_images", "num_samples", "steps", "codes")}
    called = "python benchmarks/faces.py --faces FACES_SYNTHETIC --output_dir OUT --lpips_weights DIR " + shlex.join(
        part for key, value in options.items() for part in (f"--{key}", str(value))
    )
    shown = pictures.relative_to(path.parent).as_posix()
    found = claims(measured, analysis, scale)
    verdicts = [[words, "holds" if holds else "does not", why] for words, holds, why in found]
    parts = [
        f"# The paper's experiment on faces, x{scale}, at the size of a processor",
        f"```\n{called}\n```",
        f"""CVDVAE (Prost et al., 2023) is compared there with HCFlow, SR3 and DPS on FFHQ-256, after 48 hours on four
GPUs for each. Here every system runs in this package, is trained by `train.py` and measured by one command, on faces of
64x64 from {64 // scale}x{64 // scale} (x{scale}): synthetic ones (StyleGAN's kind, no real person), of which the last
200 are held out. **These runs had {total:.2f} processor hours in all**, each on one core: they are short, and say how
the systems learn at the same small cost, not how good they become. Nothing here stands beside figures of FFHQ. The
same command with more `--hours` goes on from the checkpoints.{other_factor(path, scale)}""",
        "## Training",
        "\n".join(training_table(results["runs"])),
        f"""All have the images, the batch of 8, mirrored images, averaged weights and bf16 (HCFlow: float32) in
common, and each its published loss; the networks are those of `benchmarks/faces_systems.py`. CVDVAE's hours are shared
by its prior, a VD-VAE with spatial biases from 1x1 to 64x64, and its LR encoder, which conditions
k = {results["groups"]} of {len(analysis["strides"])} groups: the first from which on U_k^{scale} (below) is under half
a grey level or, where none is, a 20th of U_0^{scale}. The encoder's means are kept within 8 standard deviations of the
prior's (`max_deviation`): without that bound some draws for faces of another generator, as the CC0 ones below, were not
finite. DPS' prior serves every factor. HCFlow has the likelihood alone
(no pixel loss). The energy score is this package's own objective, with its networks of photographs made smaller.""",
        "## Quality, consistency, diversity and cost (tables 1 and 2 of the paper)",
        "\n".join(quality_table(measured)),
        f"""Means over {given["num_images"]} held-out faces and {given["num_samples"]} samples of each, at t = 0.8 where
there is a temperature; CVDVAE, SR3 and the energy score are projected on the images consistent with y, as CVDVAE and
SR3 are in the paper, HCFlow and DPS are not. Distances between samples (APD) are of intensities on [0, 1] and of
LPIPS-Alex. SR3 and DPS take {given["steps"]} steps evenly spread over the 2000 and 1000 that are published, DPS with a
guidance scale of 0.3 times 1000 / {given["steps"]}, for as much guidance in all as is published. Seconds are of one
processor core and one sample; evaluations are of the network, for DPS each with its gradient.""",
        f"![Two samples of each system]({shown}/samples-x{scale}.png)",
        "*Figures 3 and 4: y, two samples of each system, and x. Faces of the CC0 set, of another generator.*",
        "## Temperature (figure 5)",
        "\n".join(temperature_table(measured)),
        f"![CVDVAE by temperature]({shown}/temperature-cvdvae-x{scale}.png)",
        f"![HCFlow by temperature]({shown}/temperature-hcflow-x{scale}.png)",
        "## The projection",
        "\n".join(projection_table(measured)),
        "## Where the LR image is decided (appendix A)",
        "\n".join(distance_table(analysis)),
        f"Grey levels, {analysis['num_codes']} latent codes of the prior, {analysis['num_images']} images of each.",
        "## The paper's claims",
        "\n".join(markdown_lines(["claim", "here", "figures"], verdicts, "---|" * 3)),
        """What short runs cannot show: which system is best when all have converged; how a flow or a diffusion model of
a hundred times the parameters compares; whether the order of BRISQUE, a measure of photographs of natural scenes, means
anything on faces of 64 pixels. What they can: costs, consistency, what the temperature and the projection do, and how
much each system makes of the same processor time.""",
    ]
    write_atomically("\n\n".join(parts) + "\n", path)
