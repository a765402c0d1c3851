"""Model cards: metadata, prose, results of evaluation reports and pictures, written as README.md of a checkpoint.

What a command can find out (architecture, results, emissions) is computed. What only people know is in the folder's
`card_notes.md`: YAML metadata, an introduction, and sections that replace or extend those written here.
"""

import json
import os
import re
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from .evaluation.storage import read_report
from .evaluation.tables import command_line
from .files import write_atomically
from .pictures import CONTACT_SHEET

NOTES_FILE = "card_notes.md"
IMAGES_FOLDER = "images"

_GRAMS_PER_KWH = 475
"""Carbon intensity of electricity where the notes give none: the world's mean (IEA, 2019)."""

_SETTINGS = ("protocol", "size", "seed", "num_samples", "self_ensemble")

_PURPOSE = """\
Looking at several plausible high-resolution versions of a photograph and at where they differ, and research on
diverse super-resolution and on hierarchical VAEs as image priors. Where one best guess is wanted, a regression network
is closer to the truth on average."""

_PRIOR_PURPOSE = """\
A prior of images: for unconditional samples, and as the frozen or the initial prior of a super-resolution model."""

_LIMITS = """\
Samples are not evidence: what the low-resolution image does not hold is invented. The model expects images that were
made small by {kernel} downsampling of factor {scale}; noise, blur or JPEG blocks in the input are magnified. What the
training images hold little of, such as text and fine regular structures, often comes out wrong."""

_MISUSE = """\
A face, a number plate or a line of text in a sample was not read from the image: it was made up in the likeness of the
training images, whose people and places are no fair sample of the world. Super-resolution of faces has turned people
into others, most often those whom the training images show least. Do not use samples to identify anyone, as evidence,
for medical or forensic images, or to show people in a false light; where you show a sample, say that it is one."""

_PAPERS = """\
J. Prost, A. Houdard, A. Almansa, N. Papadakis, *Efficient Posterior Sampling for Diverse Super-Resolution with
Hierarchical VAE Prior*, 2023. D. Chira, I. Haralampiev, O. Winther, A. Dittadi, V. Liévin, *Image Super-Resolution
with Deep Variational Autoencoders*, 2022. R. Child, *Very Deep VAEs Generalize Autoregressive Models and Can
Outperform Them on Images*, ICLR 2021."""

_ORDER = (
    "Use", "What it is for", "Limits", "Bias and misuse", "Training", "Cost and carbon", "Results", "Licence", "Papers"
)  # fmt: skip


def write_model_card(
    folder: str | os.PathLike[str],
    *,
    training_command: str | None = None,
    reports: Sequence[str | os.PathLike[str] | Mapping[str, Any]] = (),
    notes: str | os.PathLike[str] | None = None,
    curve: str | os.PathLike[str] | None = None,
) -> Path:
    """Writes README.md of a checkpoint's folder; a `curve` elsewhere is copied to its `images`.

    The arguments and errors are those of `model_card`.
    """
    root = Path(folder)
    if curve is not None and root.resolve() not in Path(curve).resolve().parents:
        (root / IMAGES_FOLDER).mkdir(exist_ok=True)
        curve = shutil.copy(curve, root / IMAGES_FOLDER)
    card = model_card(root, training_command=training_command, reports=reports, notes=notes, curve=curve)
    write_atomically(card, root / "README.md")
    return root / "README.md"


def model_card(
    folder: str | os.PathLike[str],
    *,
    training_command: str | None = None,
    reports: Sequence[str | os.PathLike[str] | Mapping[str, Any]] = (),
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
            place of this module's, "Training", "Results" and "Use" follow what is computed, others come before the
            licence.
        curve: picture of the training curves in the folder.

    Raises:
        ValueError: a folder without a model, notes or reports that cannot be read.
    """
    root = Path(folder)
    facts = _facts(root)
    found = root / NOTES_FILE
    metadata, sections = _read_notes(Path(notes) if notes is not None else found if found.is_file() else None)
    loaded = [_read_report(report) for report in reports]
    cost = metadata.pop("training", None) or {}
    name = str(metadata.pop("model_name", root.resolve().name))
    results = [result for report in loaded for result in _eval_results(report, facts)]
    data = ModelCardData(
        **{
            "license": "other",
            "library_name": "hvae-sr",
            "pipeline_tag": "image-to-image" if facts["is_pipeline"] else "unconditional-image-generation",
            "tags": facts["tags"],
            "metrics": ["psnr", "ssim"] if facts["is_pipeline"] else None,
            "widget": _widget(root),
            "co2_eq_emissions": _emissions(cost),
            **metadata,
            "model_name": name,
            "eval_results": results or None,
        }
    )
    computed = {
        "Use": _usage(name, facts),
        "What it is for": _PURPOSE if facts["is_pipeline"] else _PRIOR_PURPOSE,
        "Limits": _LIMITS.format(**facts) if facts["is_pipeline"] else "",
        "Bias and misuse": _MISUSE,
        "Training": _training(training_command, curve, root, facts),
        "Cost and carbon": _cost(cost),
        "Results": "\n\n".join(part for part in (_results(loaded, name), _contact_sheet(root)) if part),
        "Licence": _licence(data),
        "Papers": _PAPERS,
    }
    introduction = sections.pop("", "") or _introduction(facts)
    picture = f"{IMAGES_FOLDER}/overview.png"
    if (root / picture).is_file():
        introduction += f"\n\n![From left: the input, samples, their mean, and where they differ]({picture})"
    parts = [f"# {name}", introduction]
    for heading in (*_ORDER[:-2], *(own for own in sections if own not in _ORDER), *_ORDER[-2:]):
        own = sections.get(heading, "")
        if heading in ("Use", "Training", "Cost and carbon", "Results"):
            text = "\n\n".join(part for part in (computed[heading], own) if part)
        else:
            text = own or computed.get(heading, "")
        if text:
            parts.append(f"## {heading}\n\n{text}")
    # The card's class checks the metadata, and writes it as the Hub's own tools do.
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"))


def _facts(root: Path) -> dict[str, Any]:
    """What configurations say: kind, size, tags."""
    import torch

    from .models import VDVAE, LRConditioner, LREncoder

    classes = {"VDVAE": VDVAE, "LREncoder": LREncoder, "LRConditioner": LRConditioner}
    index = root / "model_index.json"
    is_pipeline = index.is_file()
    try:
        settings = json.loads(index.read_text()) if is_pipeline else {}
        models = {}
        for name in ("vdvae", "lr_encoder") if is_pipeline else ("",):
            config = json.loads((root / name / "config.json").read_text())
            with torch.device("meta"):
                models[name or "vdvae"] = classes[config["_class_name"]].from_config(config)
    except (OSError, json.JSONDecodeError, KeyError) as error:
        raise ValueError(f"`folder`: {root} is no folder of a pipeline or of a VDVAE: {error}") from error
    vdvae, network = models["vdvae"], models.get("lr_encoder")
    kind = "cvdvae" if isinstance(network, LREncoder) else "vdvae-sr" if network is not None else "vdvae"
    tags = ["hierarchical-vae", "vdvae"]
    if is_pipeline:
        tags = ["super-resolution", "diverse-super-resolution", *tags, kind, "uncertainty"]
    return {
        "is_pipeline": is_pipeline,
        "kind": kind,
        "tags": tags,
        "has_weights": any(root.rglob("*.safetensors")),
        "parameters": {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()},
        "groups": vdvae.num_groups,
        "strides": sorted({vdvae.stride(group) for group in range(vdvae.num_groups)}, reverse=True),
        "any_size": vdvae.config.bias_type == "channel",
        "image_size": vdvae.config.image_size,
        "conditioning": network.config.get("conditioning") if network is not None else None,
        "conditioned": network.config.num_conditioned_groups if network is not None and kind == "cvdvae" else None,
        "scale": settings.get("scale_factor"),
        "kernel": f"antialiased {settings.get('downsampling_kernel')}",
        "temperature": settings.get("default_temperature"),
    }


def _introduction(facts: dict[str, Any]) -> str:
    millions = {name: f"{count / 1e6:.1f} million" for name, count in facts["parameters"].items()}
    strides = ", ".join(str(stride) for stride in facts["strides"])
    size = "of any size" if facts["any_size"] else f"of {facts['image_size']}x{facts['image_size']} pixels"
    prior = f"a VD-VAE ({millions['vdvae']} parameters, {facts['groups']} latent groups at strides {strides})"
    if facts["kind"] == "vdvae":
        text = f"{prior[0].upper()}{prior[1:]}: a hierarchical prior of images {size}."
    elif facts["kind"] == "cvdvae":
        text = (
            f"Super-resolution of factor {facts['scale']} to images {size} by CVDVAE: {prior} as the prior, and an "
            f"encoder of the low-resolution image ({millions['lr_encoder']} parameters) that gives "
            f"q_psi(z_l | z_<l, y) for {facts['conditioned'] or facts['groups']} groups."
        )
    else:
        network = f"features of the low-resolution image ({millions['lr_encoder']} parameters)"
        how = {
            "final": f"stream is conditioned on {network} by learned gates, before prior and posterior",
            "posterior": f"top group has a prior made of {network}; in training all posteriors see them too",
        }
        text = (
            f"Super-resolution of factor {facts['scale']} to images {size} by VDVAE-SR: {prior} whose "
            f"{how.get(facts['conditioning'], f'top group has a prior made of {network}')}."
        )
    return textwrap.fill(text, 118)


def _usage(name: str, facts: dict[str, Any]) -> str:
    lines = []
    if not facts["has_weights"]:
        from .checkpoints.convert import PRESETS

        preset = next((preset for preset, folder in PRESETS.items() if folder == name), None)
        lines += ["This folder holds the configuration only; there are no weights in it."]
        if preset is not None:
            lines += [
                "The published checkpoint becomes a folder with weights by",
                "",
                f"```\nhvae-sr convert CHECKPOINT -o {name} --preset {preset}\n```",
            ]
        lines += [""]
    if facts["is_pipeline"]:
        code = f"""\
from hvae_sr import SuperResolutionPipeline

pipe = SuperResolutionPipeline.from_pretrained("{name}")
out = pipe("photo.png", num_samples=5, temperature={facts["temperature"]}, seed=0)
out.images, out.mean[0], out.std[0]  # five PIL images, their mean, and the standard deviation of every pixel"""
    else:
        code = f"""\
from hvae_sr import VDVAE

vdvae = VDVAE.from_pretrained("{name}")
vdvae.sample(4, temperature=0.8).sample  # [4, 3, {facts["image_size"]}, {facts["image_size"]}] on [-1, 1]"""
    return "\n".join([*lines, f"```python\n{code}\n```"])


def _training(command: str | None, curve: Any, root: Path, facts: dict[str, Any]) -> str:
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
        text = path.read_text(encoding="utf-8")
        match = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
        metadata = (yaml.safe_load(match[1]) or {}) if match else {}
        if not isinstance(metadata, dict):
            raise ValueError("the metadata is no mapping")
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"`notes`: cannot read {path}: {error}") from error
    parts = re.split(r"^## +(.*)$", text[match.end() if match else 0 :], flags=re.MULTILINE)
    sections = {"": parts[0].strip()}
    for heading, body in zip(parts[1::2], parts[2::2], strict=True):
        sections[heading.strip()] = body.strip()
    return metadata, sections


def _read_report(report: Any) -> dict[str, Any]:
    try:
        return dict(report) if isinstance(report, Mapping) else read_report(report)
    except ValueError as error:
        raise ValueError(str(error).replace("`report`", "`reports`")) from error


_ROW = re.compile(r"(mean|sample) t=([\d.]+)( projected)?")


def _chosen_rows(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of what users get: projected ones where there are both, with names that speak for themselves."""
    names = {row["name"] for row in report["rows"]}
    rows = []
    for row in report["rows"]:
        match = _ROW.fullmatch(row["name"])
        if match and not match[3] and f"{row['name']} projected" in names:
            continue
        name = row["name"]
        if match:
            what = f"mean of {report['num_samples']} samples" if match[1] == "mean" else "one sample"
            name = f"{what}, temperature {match[2]}"
        rows.append({**row, "name": name})
    return rows


def _title(report: dict[str, Any]) -> str:
    size = f" S={report['size']}" if report.get("size") else ""
    share = ""
    if report["num_images"] != report.get("num_images_available", report["num_images"]):
        share = f", first {report['num_images']} images"
    ensemble = ", self-ensemble" if report.get("self_ensemble") else ""
    return f"{report['dataset']} {report['protocol']}{size}{share}{ensemble}"


def _results(reports: list[dict[str, Any]], name: str) -> str:
    """One line for each method, one column for each report; then the spread of samples, and the commands."""
    if not reports:
        return ""
    tables = [{row["name"]: row for row in _chosen_rows(report)} for report in reports]
    names = list(dict.fromkeys(row for table in tables for row in table))
    head = " | ".join(["| PSNR (gain over bicubic) / SSIM", *(_title(report) for report in reports)]) + " |"
    lines = [head, "|---" * (len(reports) + 1) + "|"]
    for row in names:
        cells = []
        for table in tables:
            found = table.get(row, {})
            gain = f" ({float(found['psnr_gain']):+.2f})" if found.get("psnr_gain") else ""
            cells.append(f"{float(found['psnr']):.2f}{gain} / {float(found['ssim']):.4f}" if "psnr" in found else "")
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    spread = {
        "std": ("standard deviation, grey levels", 255, ".1f"),
        "lr_psnr": ("LR-PSNR in 8 bit, dB", 1, ".1f"),
        "lr_psnr_float": ("before rounding, dB", 1, ".1f"),
        "crps": ("CRPS", 1, ".4f"),
        "lpips": ("LPIPS", 1, ".3f"),
        "brisque": ("BRISQUE", 1, ".1f"),
        "coverage": ("coverage of 90 % intervals", 1, ".3f"),
    }
    for report, table in zip(reports, tables, strict=True):
        rows = [row for row in table.values() if "std" in row]
        columns = [key for key in spread if any(key in row for row in rows)]
        if rows:
            heads = " | ".join([f"| Samples: {_title(report)}", *(spread[key][0] for key in columns)])
            lines += ["", heads + " |", "|---" * (len(columns) + 1) + "|"]
        for row in rows:
            cells = [format(float(row[key]) * spread[key][1], spread[key][2]) if key in row else "" for key in columns]
            lines.append(" | ".join([f"| {row['name']}", *cells]) + " |")
    lines += ["", "```", *(command_line({**report, "name": name}) for report in reports), "```"]
    return "\n".join(lines)


def _eval_results(report: dict[str, Any], facts: dict[str, Any]) -> list[EvalResult]:
    """The metadata's results: every sample and mean of a report, at the default temperature where it has that."""
    rows = [row for row in _chosen_rows(report) if "temperature" in row["name"]]
    usual = facts["temperature"]
    default = [row for row in rows if usual is not None and row["name"].endswith(f"temperature {usual:g}")]
    names = {"psnr": "PSNR", "ssim": "SSIM", "lpips": "LPIPS", "lr_psnr": "LR-PSNR", "crps": "CRPS"}
    ensemble = "-self-ensemble" if report.get("self_ensemble") else ""
    return [
        EvalResult(
            task_type="image-to-image",
            task_name=f"super-resolution x{report['scale_factor']}",
            dataset_type=report["dataset"],
            dataset_name=_title(report),
            # Results of one configuration would be merged.
            dataset_config=f"{report['protocol']}-{report['size'] or 'full'}{ensemble}",
            dataset_args={key: report[key] for key in _SETTINGS if report.get(key)},
            metric_type=metric,
            metric_name=f"{title}, {row['name']}",
            metric_value=round(float(row[metric]), 4),
        )
        for row in default or rows
        for metric, title in names.items()
        if metric in row
    ]


def _energy(cost: Mapping[str, Any]) -> tuple[float, float] | None:
    """(kWh, grams of CO2 equivalent) of training, where hours and watts are known."""
    if not (cost.get("hours") and cost.get("watts")):
        return None
    energy = float(cost["hours"]) * float(cost["watts"]) / 1000
    return energy, energy * float(cost.get("grams_per_kwh", _GRAMS_PER_KWH))


def _emissions(cost: Mapping[str, Any]) -> dict[str, Any] | None:
    used = _energy(cost)
    if used is None:
        return None
    return {
        "emissions": round(used[1], 1),
        "source": "hours x power x carbon intensity of electricity",
        "training_type": cost.get("training_type", "pre-training"),
        "hardware_used": cost.get("hardware", "unknown"),
    }


def _cost(cost: Mapping[str, Any]) -> str:
    used = _energy(cost)
    if used is None:
        return ""
    text = (
        f"{cost['hours']:g} hours on {cost.get('hardware', 'one machine')}. At {cost['watts']:g} W and "
        f"{cost.get('grams_per_kwh', _GRAMS_PER_KWH):g} g of CO2 equivalent per kWh that is {used[0]:.3g} kWh and "
        f"{used[1]:.3g} g: an estimate, as neither the power nor the source of the electricity was measured."
    )
    return textwrap.fill(text, 118)


def _licence(data: ModelCardData) -> str:
    if data.license != "other":
        return f"The weights are under the licence {data.license}, the code under the Apache License 2.0."
    link = f" ([{data.license_name}]({data.license_link}))" if data.license_link else ""
    return textwrap.fill(f"The weights come under terms of their own{link}. The code is under Apache 2.0.", 118)


def _contact_sheet(root: Path) -> str:
    picture = f"{IMAGES_FOLDER}/{CONTACT_SHEET}"
    if not (root / picture).is_file():
        return ""
    text = "Images of the benchmark sets at several temperatures: three samples, their mean and standard deviation"
    return f"![{text}]({picture})"


def _widget(root: Path) -> list[dict[str, Any]] | None:
    """The Hub shows these pairs: an input, and what the model makes of it."""
    pairs = [
        {"src": f"{IMAGES_FOLDER}/input.png", "output": {"url": f"{IMAGES_FOLDER}/{name}.png"}}
        for name in ("sample", "mean")
        if all((root / IMAGES_FOLDER / f"{one}.png").is_file() for one in ("input", name))
    ]
    return pairs or None
