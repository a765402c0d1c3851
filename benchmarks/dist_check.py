"""sdist and wheel as an index would get them, into dist/; and the wheel in an environment of its own.

python benchmarks/dist_check.py [--python PYTHON]

--python names an interpreter whose environment has the dependencies already; without it a new one gets them from the
index, as pinned in constraints.txt. It prints the sizes and, from another folder, runs the console script, upscales
with the bundled weights, and starts the demo.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"
MIB = 2**20
MAX_WHEEL = 100 * MIB
"""What PyPI takes of one file."""


def run(*command: object, **options: object) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)  # type: ignore[call-overload]
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


def environment(folder: Path) -> Path:
    run(sys.executable, "-m", "venv", folder)
    return folder / "bin" / "python"


def build(folder: Path) -> tuple[Path, Path]:
    """The sdist of the files that git knows, and the wheel of that sdist."""
    source = folder / "source"
    for name in run("git", "-C", ROOT, "ls-files").splitlines():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    builder = environment(folder / "builder")
    run(builder, "-m", "pip", "install", "-q", "build")
    shutil.rmtree(DIST, ignore_errors=True)
    run(builder, "-m", "build", "--outdir", DIST, source)
    return next(DIST.glob("*.tar.gz")), next(DIST.glob("*.whl"))


def check_contents(sdist: Path, wheel: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
    assert not [name for name in names if name.startswith("tests/")], "the sdist holds tests, which would not run there"
    top = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert top == {"hvae_sr"}, f"the wheel installs {top}"
    for path in (sdist, wheel):
        print(f"{path.name}: {path.stat().st_size / MIB:.1f} MiB")
    assert wheel.stat().st_size < MAX_WHEEL, f"the wheel is above {MAX_WHEEL // MIB} MiB"


def check_demo(command: list[str], folder: Path, variables: dict[str, str]) -> None:
    with (folder / "demo.txt").open("w") as log:
        demo = subprocess.Popen(command, cwd=folder, env=variables, stdout=log, stderr=subprocess.STDOUT)
    try:
        for _ in range(600):
            found = re.search(r"https?://[\w.]+:\d+", (folder / "demo.txt").read_text())
            if demo.poll() is not None:
                sys.exit("the demo ended: " + (folder / "demo.txt").read_text())
            if found:
                try:
                    with urllib.request.urlopen(found[0], timeout=10) as page:
                        assert page.status == 200
                        print("the demo answers")
                        return
                except urllib.error.URLError:
                    pass
            time.sleep(1)
        sys.exit("the demo did not answer within ten minutes: " + (folder / "demo.txt").read_text())
    finally:
        demo.terminate()
        demo.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", help="of an environment that has the dependencies")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sdist, wheel = build(folder)
        check_contents(sdist, wheel)
        python = environment(folder / "installed")
        if options.python:  # the dependencies alone are another environment's: the package comes from the wheel
            paths = run(options.python, "-c", "import site; print(*site.getsitepackages(), sep='\\n')")
            # A line of a .pth that is a path adds it; .pth files in there, such as that of a checkout, are not read.
            (target,) = run(python, "-c", "import site; print(*site.getsitepackages())").split()
            Path(target, "dependencies.pth").write_text(paths)
            run(python, "-m", "pip", "install", "-q", "--no-deps", "--force-reinstall", wheel)
        else:
            for what in (wheel, f"{wheel}[demo]"):
                run(python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", what)
                size = sum(path.stat().st_size for path in (folder / "installed").rglob("*") if not path.is_symlink())
                print(f"installed {Path(what).name}: {size / MIB:.0f} MiB")
        elsewhere = folder / "elsewhere"
        elsewhere.mkdir()
        variables = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        where = run(python, "-c", "import hvae_sr; print(hvae_sr.__file__)", cwd=elsewhere, env=variables).strip()
        assert Path(where).is_relative_to(folder), f"not the wheel: {where}"
        script = python.with_name("hvae-sr")
        print(run(script, "--version", cwd=elsewhere, env=variables).strip())
        draw = "from PIL import Image; Image.new('RGB', (12, 10), (90, 120, 60)).save('small.png')"
        run(python, "-c", draw, cwd=elsewhere, env=variables)
        run(script, "upscale", "small.png", "-o", "out", "--num-samples", "1", cwd=elsewhere, env=variables)
        assert (elsewhere / "out").is_dir() and any((elsewhere / "out").iterdir())
        print("upscaled with the bundled weights")
        check_demo([str(script), "demo", "--port", "0", "--no-browser"], elsewhere, variables)


if __name__ == "__main__":
    main()
