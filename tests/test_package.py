"""What is uploaded to a package index: an sdist, the wheel made from it, and the wheel installed by itself."""

import os
import re
import shutil
import site
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_bytes
from pathlib import Path

import numpy as np
import processes
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
MIB = 2**20


def run(*command, **options):
    return processes.run(command, check=True, **options).stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(sdist, wheel): the wheel is built from what the sdist holds."""
    setuptools = pytest.importorskip("setuptools", reason="setuptools builds the package")
    if int(setuptools.__version__.split(".")[0]) < 77:
        pytest.skip(f"setuptools {setuptools.__version__} is older than 77, which pyproject.toml asks for")
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout: which files belong to the package is not known")
    folder = tmp_path_factory.mktemp("build")
    source = folder / "source"
    listed = run("git", "-C", ROOT, "ls-files", "-co", "--exclude-standard").splitlines()
    for name in listed:
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    build = "import sys; from setuptools import build_meta; print(build_meta.{}(sys.argv[1]))"
    run(sys.executable, "-c", build.format("build_sdist"), folder, cwd=source)
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    run(sys.executable, "-c", build.format("build_wheel"), folder, cwd=unpacked)
    (wheel,) = folder.glob("*.whl")
    return sdist, wheel


def test_the_wheel_is_small_and_holds_what_the_package_needs(built):
    sdist, wheel = built
    assert wheel.stat().st_size < 100 * MIB and sdist.stat().st_size < 100 * MIB
    names = set(zipfile.ZipFile(wheel).namelist())
    for name in (
        "hvae_sr/py.typed",
        "hvae_sr/demo/style.css",
        "hvae_sr/hub_configs/natural-x4/model_index.json",
        "hvae_sr/hub_configs/natural-x4/vdvae/diffusion_pytorch_model.safetensors",
        "hvae_sr/hub_configs/natural-x4/LICENSE.weights",
    ):
        assert name in names
    top = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert top == {"hvae_sr"}  # no `pipelines` or `demo` in everybody's site-packages
    modules = [path.relative_to(ROOT).as_posix() for path in (ROOT / "hvae_sr").rglob("*.py")]
    modules += [
        f"hvae_sr/{folder}/{path.name}" for folder in ("pipelines", "demo") for path in (ROOT / folder).glob("*.py")
    ]
    assert not [name for name in modules if name not in names]


def test_the_metadata_is_what_an_index_accepts(built):
    metadata_module = pytest.importorskip("packaging.metadata")
    archive = zipfile.ZipFile(built[1])
    raw = next(archive.read(name) for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = metadata_module.Metadata.from_email(raw, validate=True)
    assert metadata.name == "hvae-sr"
    # Code and weights, with their notices: a wheel holds both.
    assert str(metadata.license_expression).startswith("Apache-2.0 AND LicenseRef-")
    assert {Path(name).name for name in metadata.license_files or ()} == {
        "LICENSE", "LICENSE.weights", "brisque_model.LICENSE"
    }  # fmt: skip
    assert message_from_bytes(raw)["Description-Content-Type"] == "text/markdown"
    base = [requirement.name for requirement in metadata.requires_dist if requirement.marker is None]
    assert "torch" in base and not {"gradio", "playwright", "torchvision"} & set(base)


@pytest.mark.slow
def test_the_installed_wheel_upscales_with_the_bundled_weights(built, tmp_path):
    target = tmp_path / "site"
    with zipfile.ZipFile(built[1]) as archive:  # a wheel of pure Python is installed by unpacking it
        archive.extractall(target)
    Image.fromarray(np.full((12, 10, 3), 90, dtype=np.uint8)).save(tmp_path / "small.png")
    # -S: no .pth files, so the checkout that is being tested is not on the path.
    paths = os.pathsep.join(
        [str(target), *site.getsitepackages(), *(p for p in sys.path if p.endswith("site-packages"))]
    )
    environment = {**os.environ, "PYTHONPATH": paths}
    where = run(sys.executable, "-S", "-c", "import hvae_sr; print(hvae_sr.__file__)", env=environment, cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(target)
    command = ["-S", "-m", "hvae_sr.cli", "upscale", "small.png", "-o", "out", "--num_samples", "1"]
    run(sys.executable, *command, env=environment, cwd=tmp_path)
    assert Image.open(tmp_path / "out" / "small_x4_seed0.png").size == (40, 48)


def test_version_and_python_are_said_alike_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    version, python = project["version"], project["requires-python"].removeprefix(">=")
    assert f'__version__ = "{version}"' in (ROOT / "hvae_sr/__init__.py").read_text("utf-8")
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text("utf-8")
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert f"Python {python} or later" in (ROOT / "README.md").read_text("utf-8")
    assert f"sys.version_info < ({python.replace('.', ', ')})" in (ROOT / "Makefile").read_text("utf-8")


def test_the_floors_of_the_package_are_those_that_are_tested():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    listed = project["dependencies"] + [
        line for extra in ("data", "train", "demo") for line in project["optional-dependencies"][extra]
    ]
    floors = {re.split(r"[\[>=<,]+", line)[0]: re.search(r">=([\d.]+)", line)[1] for line in listed}
    lines = (ROOT / "constraints-lowest.txt").read_text("utf-8").splitlines()
    lowest = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    numbers = lambda text: [int(part) for part in text.split(".") if part != "0"]  # noqa: E731
    assert {name: numbers(lowest[name]) for name in floors} == {name: numbers(floor) for name, floor in floors.items()}
