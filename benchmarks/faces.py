"""The paper's experiment on faces, at a size that a processor can do: trains every system, and compares them.

python benchmarks/faces.py --faces FACES_SYNTHETIC --output_dir OUT --lpips_weights DIR [--hours 1] [--scale 4]

FACES_SYNTHETIC holds `train` (photographs of faces; the last 200 are held out) and `cc0` (those that may be shown). All
are reduced to 64x64. Each system is trained for `--hours` hours of one processor, CVDVAE's half on its prior and half
on its LR encoder; the command trains what is missing and goes on from checkpoints, so that it can be stopped at any
time and called again, with more hours too; `--only` trains some of them, so that processes share them. Then it measures
every system on the same images, draws the figures and writes the document (`--document`).
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from faces_document import write_document
from faces_systems import SIDE, SYSTEMS, lr_encoder, others, prior
from hours import train
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
HELD_OUT = 200
TEMPERATURES = (0.1, 0.4, 0.8, 1.0)
"""Of the systems that have one; the paper's tables are at 0.8."""
THRESHOLD = 0.5
"""Grey levels: k is the first from which on U_k^s is below it (appendix A)."""
SHOWN = 4
"""Faces in a figure."""


def prepare(faces: Path, output: Path) -> None:
    """Writes the faces at 64x64: `train`, `test` (the last 200) and `cc0`, once.

    Raises:
        ValueError: a folder that is missing or too small.
    """
    for part in ("train", "cc0"):
        found = sorted(path for path in (faces / part).glob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
        if len(found) <= (HELD_OUT if part == "train" else SHOWN):
            raise ValueError(f"`--faces`: {faces / part} holds {len(found)} images, too few")
        last = len(found) - HELD_OUT if part == "train" else len(found)
        for number, path in enumerate(found):
            place = output / "data" / (part if number < last else "test") / f"{path.stem}.png"
            if not place.is_file():
                place.parent.mkdir(parents=True, exist_ok=True)
                with Image.open(path) as image:
                    square = min(image.size)
                    left, top = ((side - square) // 2 for side in image.size)
                    cut = image.convert("RGB").crop((left, top, left + square, top + square))
                    cut.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(place)


def choose_groups(folder: Path, scale: int, codes: int) -> tuple[int, dict[str, Any]]:
    """k of CVDVAE by appendix A, and U_k^s; where U stays above the threshold, from where on it is a 20th of U_0."""
    from hvae_sr import VDVAE
    from hvae_sr.evaluation.analyses import choose_num_groups, low_resolution_distance

    file = folder / f"low_resolution_distance-{codes}.json"
    if not file.is_file():
        analysis = low_resolution_distance(VDVAE.from_pretrained(folder), (1, 4, 8, 16), codes, 5)
        file.write_text(json.dumps(analysis))
    analysis = json.loads(file.read_text())
    found = choose_num_groups(analysis, scale, THRESHOLD)
    if found is None:
        found = choose_num_groups(analysis, scale, analysis["distance"][str(scale)][0] / 20)
    return found or analysis["groups"][-1], analysis


def open_pipeline(folder: Path, steps: int) -> Any:
    """The pipeline of a run, its chain of `steps` steps if it has one."""
    from hvae_sr.pipelines.baselines import pipeline_class

    pipe = pipeline_class(folder).from_pretrained(folder)
    if "num_inference_steps" in pipe.config:
        pipe.register_to_config(num_inference_steps=steps)
    if "guidance_scale" in pipe.config:  # of all steps together as far as by the published 0.3 in 1000 steps
        pipe.register_to_config(guidance_scale=0.3 * pipe.scheduler.config.num_train_timesteps / steps)
    if hasattr(pipe, "disable_fast_inference"):
        pipe.disable_fast_inference()  # all are timed in float32
    pipe.set_progress_bar_config(disable=True)
    return pipe


def measure(pipe: Any, folder: Path, name: str, run: Mapping[str, float], given: argparse.Namespace) -> dict[str, Any]:
    """The report of `hvae-sr evaluate` (paper's protocol), and seconds and network evaluations of a sample."""
    from hvae_sr.evaluation import evaluate, load_perceptual, read_report, write_report

    what = f"x{given.scale}-{run['updates']:.0f}-{given.num_images}x{given.num_samples}-{given.steps}"
    path = folder / f"report-{what}.json"  # DPS' folder serves every factor
    if not path.is_file():
        perceptual = load_perceptual(("brisque", "lpips", "lpips_vgg"), lpips_weights=given.lpips_weights)
        temperatures = TEMPERATURES if getattr(pipe, "has_temperature", True) else (1.0,)
        report = evaluate(
            pipe, given.output_dir / "data" / "test", "paper", SIDE, temperatures, given.num_samples,
            num_images=given.num_images, perceptual=perceptual, name=name, report_path=path,
        )  # fmt: skip
        write_report(report, path)
    timed = path.with_suffix(".seconds.json")
    if not timed.is_file():
        y = Image.open(next((given.output_dir / "data" / "test").glob("*.png")))
        y = y.resize((SIDE // given.scale, SIDE // given.scale), Image.Resampling.BICUBIC)
        found = []
        for seed in range(4):  # the first one warms up
            start = time.process_time()
            pipe(y, seed=seed)
            found.append(time.process_time() - start)
        chain = "num_inference_steps" in pipe.config
        parameters = sum(p.numel() for part in pipe.components.values() for p in getattr(part, "parameters", list)())
        cost = {"seconds": float(np.median(found[1:])), "evaluations": given.steps if chain else 1}
        timed.write_text(json.dumps({**cost, "parameters": parameters}))
    return {"report": read_report(path), **json.loads(timed.read_text())}


def figures(pipes: Mapping[str, Any], given: argparse.Namespace, folder: Path) -> None:
    """Samples of every system side by side (figures 3 and 4), and by temperature (figure 5); CC0 faces only."""
    from hvae_sr.training.plots import sheet

    folder.mkdir(parents=True, exist_ok=True)
    paths = sorted((given.output_dir / "data" / "cc0").glob("*.png"))[:SHOWN]
    highs = [Image.open(path).convert("RGB") for path in paths]
    low = SIDE // given.scale
    lows = [image.resize((low, low), Image.Resampling.BICUBIC) for image in highs]

    def stacked(images: Sequence[Image.Image]) -> np.ndarray:
        return np.stack([np.asarray(image) for image in images])

    columns = {"y": stacked([image.resize((SIDE, SIDE), Image.Resampling.NEAREST) for image in lows])}
    for name, pipe in pipes.items():
        temperature = 0.8 if getattr(pipe, "has_temperature", True) else None
        for seed in (0, 1):
            images = pipe(lows, temperature=temperature, seed=[seed] * len(lows)).images
            columns[f"{name} {seed + 1}"] = stacked(images)
    sheet({**columns, "x": stacked(highs)}).save(folder / f"samples-x{given.scale}.png")
    for name in ("CVDVAE", "HCFlow"):
        columns = {
            f"{name} t={t:g} {seed + 1}": stacked(pipes[name](lows, temperature=t, seed=[seed] * len(lows)).images)
            for t in TEMPERATURES
            for seed in (0, 1)
        }
        sheet(columns).save(folder / f"temperature-{name.lower()}-x{given.scale}.png")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faces", type=Path, required=True, help="folder with `train` and `cc0`")
    parser.add_argument("--output_dir", type=Path, required=True, help="of data, runs and reports")
    parser.add_argument("--lpips_weights", help="folder of LPIPS' weights")
    parser.add_argument("--hours", type=float, default=1.0, help="processor hours of each system's training, in all")
    parser.add_argument("--scale", type=int, choices=(4, 8), default=4)
    parser.add_argument(
        "--only", nargs="+", choices=SYSTEMS, help="train these and stop: one process a core trains several at a time"
    )
    parser.add_argument("--num_images", type=int, default=50, help="held-out faces that are measured")
    parser.add_argument("--num_samples", type=int, default=3, help="of each")
    parser.add_argument(
        "--steps", type=int, default=50, help="of the chains of SR3 and DPS, whose published ones are 2000 and 1000"
    )
    parser.add_argument("--codes", type=int, default=50, help="latent codes of the analysis that chooses k")
    parser.add_argument("--document", type=Path, help="default docs/faces.md, for x8 docs/faces_x8.md")
    given = parser.parse_args(arguments)
    given.document = given.document or ROOT / "docs" / ("faces.md" if given.scale == 4 else "faces_x8.md")
    if not given.hours > 0:
        raise ValueError(f"`--hours` must be above 0, got {given.hours}")
    prepare(given.faces, given.output_dir)
    data, folder = [given.output_dir / "data" / "train"], given.output_dir / f"x{given.scale}"

    chosen = given.only or SYSTEMS
    places: dict[str, Path] = {}
    runs: dict[str, dict[str, float]] = {}
    groups, analysis = 0, dict[str, Any]()
    if "CVDVAE" in chosen:
        vdvae = given.output_dir / "prior"
        runs["prior of CVDVAE"] = train(vdvae, prior(), data, given.hours / 2)
        groups, analysis = choose_groups(vdvae, given.scale, given.codes)
        places["CVDVAE"] = folder / f"cvdvae-{groups}"
        runs["CVDVAE"] = train(places["CVDVAE"], lr_encoder(given.scale, groups, str(vdvae)), data, given.hours / 2)
    for name, options in others(given.scale).items():
        if name in chosen:
            places[name] = given.output_dir / "dps" if name == "DPS" else folder / name.lower().replace(" ", "-")
            shared = {} if name == "DPS" else {"scale_factor": given.scale}
            runs[name] = train(places[name], {**options, **shared}, data, given.hours)
    if given.only:
        print("trained:", ", ".join(f"{name} ({run['updates']:.0f} updates)" for name, run in runs.items()))
        return

    pipes = {name: open_pipeline(place, given.steps) for name, place in places.items()}
    if pipes["DPS"].config.scale_factor != given.scale:  # its prior serves every factor
        pipes["DPS"].register_to_config(scale_factor=given.scale)
    measured = {name: measure(pipe, places[name], name, runs[name], given) for name, pipe in pipes.items()}
    pictures = given.document.parent / "images" / "faces"
    figures(pipes, given, pictures)
    results = {"runs": runs, "measured": measured, "analysis": analysis, "groups": groups}
    write_document(given.document, results, vars(given), pictures)


if __name__ == "__main__":
    main()
