"""Model cards: metadata, prose, results of evaluation reports and pictures, written as README.md of a checkpoint.

What a command can find out (architecture, results, emissions) is computed; what all cards say is in `card.md` beside
this file. What only people know is in the folder's `card_notes.md`: YAML metadata, an introduction, and sections that
replace or extend the others.
"""

import math
import os
import re
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..checkpoints.convert import PRESETS
from ..evaluation import read_report
from ..evaluation.tables import command_line, image_cell, kept_rows, markdown_lines, part_of, table
from ..files import read_object, write_atomically
from ..pictures import CONTACT_SHEET

NOTES_FILE = "card_notes.md"
IMAGES_FOLDER = "images"

_GRAMS_PER_KWH = 475
"""Carbon intensity of electricity where the notes give none: the world's mean (IEA, 2019)."""

_OVERVIEW = "From left: the input, bicubic, samples, their mean, where they differ, and the photograph"
_SHEET = "Images of Set5, Set14 and BSD100 at several temperatures: three samples, their mean and standard deviation"
_SETTINGS = ("protocol", "size", "seed", "num_samples", "self_ensemble")

_FOLLOWED = ("Use", "Training", "Cost and carbon", "Results")
"""Sections whose text is computed, and what the notes say follows it."""

Report = str | os.PathLike[str] | Mapping[str, Any]


def write_model_card(
    folder: str | os.PathLike[str], *, curve: str | os.PathLike[str] | None = None, **options: Any
) -> Path:
    """Writes README.md of a checkpoint's folder; a `curve` elsewhere is copied to its `images`.

    The arguments and errors are those of `model_card`; a `curve` that is no file is one too.
    """
    root, picture = Path(folder), None if curve is None else Path(curve)
    if picture is not None and not picture.is_file():
        raise ValueError(f"`curve` must be a picture, there is no file {str(picture)!r}")
    shown = picture
    if picture is not None and root.resolve() not in picture.resolve().parents:
        shown = root / IMAGES_FOLDER / picture.name
    text = model_card(root, curve=shown, **options)
    if picture is not None and picture != shown:
        (root / IMAGES_FOLDER).mkdir(exist_ok=True)
        shutil.copy(picture, root / IMAGES_FOLDER)
    write_atomically(text, root / "README.md")
    return root / "README.md"


def model_card(
    folder: str | os.PathLike[str],
    *,
    training_command: str | None = None,
    reports: Sequence[Report] = (),
    notes: str | os.PathLike[str] | None = None,
    curve: str | os.PathLike[str] | None = None,
) -> str:
    """The model card of a checkpoint's folder, as text.

    Args:
        folder: of a pipeline or of a VDVAE, with or without weights.
        training_command: how the weights were made.
        reports: of `hvae_sr.evaluation.evaluate`, or their files: become tables and the metadata's results.
        notes: Markdown file with metadata on top; None means the folder's `card_notes.md`, if there is one. Its keys
            are those of the Hub's card metadata, and `training` with `hours`, `watts`, `hardware` and
            `grams_per_kwh`. Its text before the first heading introduces the model. A section "## Limits" takes the
            place of the usual one, "Training", "Results" and "Use" follow what is computed, others come before the
            licence.
        curve: picture of the training curves in the folder.

    Raises:
        ValueError: a folder without a model, notes or reports that cannot be read.
    """
    root = Path(folder)
    model = _describe(root)
    is_pipeline = model["is_pipeline"]
    found = root / NOTES_FILE
    metadata, sections = _read_notes(Path(notes) if notes is not None else found if found.is_file() else None)
    loaded = [_read_report(report) for report in reports]
    training = metadata.pop("training", None) or {}
    if not isinstance(training, Mapping):
        raise ValueError(f"`notes`: training must be a mapping such as 'hours: 3', got {training!r}")
    if isinstance(metadata.get("tags", []), str) or not isinstance(metadata.get("tags", []), Sequence):
        raise ValueError(f"`notes`: tags must be a list such as [faces], got {metadata['tags']!r}")
    emissions, cost = _emissions(training)
    name = str(metadata.pop("model_name", root.resolve().name))
    results = [result for report in loaded for result in _eval_results(report, model)]
    data = ModelCardData(
        **{
            "license": "other",
            "library_name": "hvae-sr",
            "pipeline_tag": "image-to-image" if is_pipeline else "unconditional-image-generation",
            "tags": model["tags"],
            "metrics": ["psnr", "ssim"] if is_pipeline else None,
            "widget": _widget(root),
            "co2_eq_emissions": emissions,
            **metadata,
            "model_name": name,
            "eval_results": results or None,
        }
    )
    preset = next((preset for preset, folder in PRESETS.items() if folder == name), None)
    _, texts = _read_notes(Path(__file__).with_suffix(".md"))

    def standard(heading: str) -> str:
        return texts[heading].format(**model, name=name, preset=preset)

    def picture(file: str, text: str) -> str:
        return f"![{text}]({IMAGES_FOLDER}/{file})" if (root / IMAGES_FOLDER / file).is_file() else ""

    use = standard("Use" if is_pipeline else "Use of a prior")
    if not model["has_weights"]:
        use = standard("Use of a published checkpoint" if preset else "Use without weights") + "\n\n" + use
    computed = {
        "Use": use,
        "What it is for": standard("What it is for" if is_pipeline else "What a prior is for"),
        "Limits": standard("Limits") if is_pipeline else "",
        "Bias and misuse": standard("Bias and misuse"),
        "Training": _training(training_command, curve, root),
        "Cost and carbon": cost,
        "Results": "\n\n".join(part for part in (_results(loaded, name), picture(CONTACT_SHEET, _SHEET)) if part),
        "Licence": _licence(data),
        "Papers": standard("Papers"),
    }
    introduction = sections.pop("", "") or textwrap.fill(standard(f"About {model['kind']}"), 118)
    overview = picture("overview.png", _OVERVIEW)
    parts, headings = [f"# {name}", introduction, *([overview] if overview else [])], list(computed)
    for heading in (*headings[:-2], *(own for own in sections if own not in computed), *headings[-2:]):
        own, text = sections.get(heading, ""), computed.get(heading, "")
        text = "\n\n".join(part for part in (text, own) if part) if heading in _FOLLOWED else own or text
        if text:
            parts.append(f"## {heading}\n\n{text}")
    # The card's class checks the metadata, and writes it as the Hub's own tools do.
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"))


def read_index(root: Path) -> dict[str, Any] | None:
    """model_index.json of the folder of a pipeline; None of that of a network alone.

    Raises:
        ValueError: there is no such folder, it is neither, or its index is damaged.
    """
    if not root.is_dir():
        raise ValueError(f"`folder`: there is no folder {root}")
    if (root / "model_index.json").is_file():
        return read_object(root / "model_index.json", "folder")
    if not (root / "config.json").is_file():
        raise ValueError(f"`folder`: {root} holds neither model_index.json nor config.json")
    return None


def _describe(root: Path) -> dict[str, Any]:
    """What configurations say: kind, size, tags."""
    import torch

    from ..models import VDVAE, LRConditioner, LREncoder
    from ..pipelines.baselines import PIPELINES

    classes = {"VDVAE": VDVAE, "LREncoder": LREncoder, "LRConditioner": LRConditioner}
    index = read_index(root)
    settings, is_pipeline = index or {}, index is not None
    try:
        system = settings.get("_class_name")
        if system in PIPELINES and system != "SuperResolutionPipeline":
            raise ValueError(
                f"`folder`: {root} is of a compared system ({system}), of which no card is made: write its README.md"
            )
        models = {}
        for name in ("vdvae", "lr_encoder") if is_pipeline else ("",):
            config = read_object(root / name / "config.json", "folder")
            with torch.device("meta"):
                models[name or "vdvae"] = classes[config["_class_name"]].from_config(config)
    except (KeyError, TypeError) as error:
        raise ValueError(f"`folder`: {root} is no folder of a pipeline or of a VDVAE: {error}") from error
    vdvae, network = models["vdvae"], models.get("lr_encoder")
    tags = ["hierarchical-vae", "vdvae"]
    kind = method = "cvdvae" if isinstance(network, LREncoder) else "vdvae-sr" if network is not None else "vdvae"
    if isinstance(network, LRConditioner):
        conditioning = network.config.conditioning
        kind += f", {conditioning if conditioning in ('final', 'posterior') else 'top group'}"
    if is_pipeline:
        tags = ["super-resolution", "diverse-super-resolution", *tags, method, "uncertainty"]
    side = vdvae.config.image_size
    return {
        "is_pipeline": is_pipeline,
        "kind": kind,
        "tags": tags,
        "has_weights": any(root.rglob("*.safetensors")),
        "millions": {name: sum(p.numel() for p in model.parameters()) / 1e6 for name, model in models.items()},
        "groups": vdvae.num_groups,
        "strides": ", ".join(map(str, sorted({vdvae.stride(g) for g in range(vdvae.num_groups)}, reverse=True))),
        "size": "of any size" if vdvae.config.bias_type == "channel" else f"of {side}x{side} pixels",
        "image_size": side,
        "conditioned": network.config.get("num_conditioned_groups") or vdvae.num_groups if network else None,
        "scale": settings.get("scale_factor"),
        "kernel": f"antialiased {settings.get('downsampling_kernel')}",
        "temperature": settings.get("default_temperature"),
    }


def _training(command: str | None, curve: str | os.PathLike[str] | None, root: Path) -> str:
    parts = [f"```\n{command.strip()}\n```"] if command else []
    if curve is not None:
        relative = os.path.relpath(Path(curve).resolve(), root.resolve()).replace(os.sep, "/")
        parts.append(f"![Training curves]({relative})")
    return "\n\n".join(parts)


def _read_notes(path: Path | None) -> tuple[dict[str, Any], dict[str, str]]:
    """(metadata, {heading: text}); the text before the first heading has the heading ""."""
    if path is None:
        return {}, {}
    try:
        text = path.read_text(encoding="utf-8-sig")  # also of editors that begin a file with a mark
        match = re.match(r"---[ \t]*\n(.*?)^---[ \t]*(?:\n|\Z)", text, re.DOTALL | re.MULTILINE)
        metadata = (yaml.safe_load(match[1]) or {}) if match else {}
        if not isinstance(metadata, dict):
            raise ValueError("the metadata is no mapping")
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"`notes`: cannot read {path}: {error}") from error
    found: dict[str, list[str]] = {"": []}
    heading, fence = "", ""
    for line in text[match.end() if match else 0 :].splitlines():
        if mark := re.match(r" {0,3}(`{3,}|~{3,})", line):  # in a block of code, "## " begins a comment
            fence = mark[1] if not fence else "" if mark[1].startswith(fence) else fence
        if not fence and (named := re.match(r"## +(.*)$", line)):
            heading = named[1].strip()
            found.setdefault(heading, []).append("")
        else:
            found[heading].append(line)
    return metadata, {heading: "\n".join(lines).strip() for heading, lines in found.items()}


def _read_report(report: Report) -> dict[str, Any]:
    try:
        return dict(report) if isinstance(report, Mapping) else read_report(report)
    except ValueError as error:
        raise ValueError(str(error).replace("`report`", "`reports`")) from error


_ROW = re.compile(r"(mean|sample) (?:t=([\d.]+)|((?:up to )?stride \d+))")
_SPREAD = {
    "grey_levels": ("standard deviation, grey levels", ".1f"),
    "lr_psnr": ("LR-PSNR in 8 bit, dB", ".1f"),
    "lr_psnr_float": ("before rounding, dB", ".1f"),
    "crps": ("CRPS", ".4f"),
    "lpips": ("LPIPS", ".3f"),
    "lpips_vgg": ("LPIPS-VGG", ".3f"),
    "apd_lpips": ("LPIPS between samples x1e3", ".1f"),
    "exchangeability_lpips": ("exchangeability, LPIPS", ".2f"),
    "exchangeability_mse": ("exchangeability, MSE", ".2f"),
    "detail": ("detail", ".2f"),
    "detail_tail": ("detail, p99.9", ".2f"),
    "brisque": ("BRISQUE", ".1f"),
    "coverage": ("coverage of 90 % intervals", ".3f"),
}


def _chosen_rows(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of what users get: projected ones where there are both, with names that speak for themselves."""
    rows = []
    for row in kept_rows(report):
        match = _ROW.fullmatch(row["name"])
        name = row["name"]
        if match:
            what = f"mean of {report['num_samples']} samples" if match[1] == "mean" else "one sample"
            name = f"{what}, temperature {match[2] or f'1 at {match[3]} and 0 elsewhere'}".replace("at up to", "up to")
        rows.append({**row, "name": name})
    return rows


def _title(report: dict[str, Any]) -> str:
    size = f" S={report['size']}" if report.get("size") else ""
    made = report.get("degradation")
    degraded = f", LR degraded by {made['name']} of seed {made['seed']}" if made else ""
    ensemble = ", self-ensemble" if report.get("self_ensemble") else ""
    return f"{report['dataset']} {report['protocol']}{size}{part_of(report)}{degraded}{ensemble}"


def _results(reports: list[dict[str, Any]], name: str) -> str:
    """One line for each method, one column for each report; one table of samples; the first report's command."""
    if not reports:
        return ""
    tables = [{row["name"]: row for row in _chosen_rows(report)} for report in reports]
    titles = [_title(report) for report in reports]

    names = dict.fromkeys(row for rows in tables for row in rows)
    cells = [[row, *(image_cell(rows.get(row, {}), with_lpips=False) for rows in tables)] for row in names]
    lines = markdown_lines(["PSNR (gain over bicubic) / SSIM", *titles], cells, "---|" * (len(tables) + 1))
    samples = [
        {**row, "name": f"{title}: {row['name']}", "grey_levels": 255 * float(row["std"])}
        for title, rows in zip(titles, tables, strict=True)
        for row in rows.values()
        if "std" in row
    ]
    lines += ["", *table(samples, _SPREAD, "Samples")] if samples else []
    command = command_line({**reports[0], "name": name})
    return "\n".join([*lines, "", f"The first column is by this command, others likewise:\n\n```\n{command}\n```"])


def _eval_results(report: dict[str, Any], model: dict[str, Any]) -> list[EvalResult]:
    """The metadata's results: every sample and mean of a report, at the default temperature where it has that."""
    rows = [row for row in _chosen_rows(report) if "temperature" in row["name"] and "stride" not in row["name"]]
    usual = model["temperature"]
    default = [row for row in rows if usual is not None and row["name"].endswith(f"temperature {usual:g}")]
    names = {"psnr": "PSNR", "ssim": "SSIM", "lpips": "LPIPS", "lr_psnr": "LR-PSNR", "crps": "CRPS"}
    configuration = f"{report['protocol']}-{report['size'] or 'full'}"
    if made := report.get("degradation"):
        configuration += f"-{made['name']}-{made['seed']}"
    configuration += part_of(report).replace(", ", "-").replace(" ", "-")
    configuration += "-self-ensemble" if report.get("self_ensemble") else ""
    return [
        EvalResult(
            task_type="image-to-image",
            task_name=f"super-resolution x{report['scale_factor']}",
            dataset_type=report["dataset"],
            dataset_name=_title(report),
            # Results of one configuration would be merged.
            dataset_config=configuration,
            dataset_args={key: report[key] for key in _SETTINGS if report.get(key)},
            metric_type=metric,
            metric_name=f"{title}, {row['name']}",
            metric_value=round(float(row[metric]), 4),
        )
        for row in default or rows
        for metric, title in names.items()
        if metric in row
    ]


def _emissions(cost: Mapping[str, Any]) -> tuple[dict[str, Any] | None, str]:
    """Energy and emissions of training, in the Hub's terms and in words, where hours and watts are known."""
    numbers = {name: cost[name] for name in ("hours", "watts", "grams_per_kwh") if cost.get(name) is not None}
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) < math.inf:
            raise ValueError(f"`notes`: training's {name} must be a finite number >= 0, got {value!r}")
    if not (cost.get("hours") and cost.get("watts")):
        return None, ""
    kwh = float(cost["hours"]) * float(cost["watts"]) / 1000
    intensity = float(cost.get("grams_per_kwh", _GRAMS_PER_KWH))
    metadata = {
        "emissions": round(kwh * intensity, 1),
        "source": "hours x power x carbon intensity of electricity",
        "training_type": cost.get("training_type", "pre-training"),
        "hardware_used": cost.get("hardware", "unknown"),
    }
    text = (
        f"{cost['hours']:g} hours on {cost.get('hardware', 'one machine')}. At {cost['watts']:g} W and {intensity:g} g "
        f"of CO2 equivalent per kWh that is {kwh:.3g} kWh and {kwh * intensity:.3g} g: an estimate, as neither the "
        "power nor the source of the electricity was measured."
    )
    return metadata, textwrap.fill(text, 118)


def _licence(data: ModelCardData) -> str:
    if data.license != "other":
        return f"The weights are under the licence {data.license}, the code under the Apache License 2.0."
    link = f" ([{data.license_name}]({data.license_link}))" if data.license_link else ""
    return textwrap.fill(f"The weights come under terms of their own{link}. The code is under Apache 2.0.", 118)


def _widget(root: Path) -> list[dict[str, Any]] | None:
    """The Hub shows these pairs: an input, and what the model makes of it."""
    pairs = [
        {"src": f"{IMAGES_FOLDER}/input.png", "output": {"url": f"{IMAGES_FOLDER}/{name}.png"}}
        for name in ("sample", "mean")
        if all((root / IMAGES_FOLDER / f"{one}.png").is_file() for one in ("input", name))
    ]
    return pairs or None
