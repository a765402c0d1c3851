"""The house: no room imports a higher one, each module exists once, and nothing is imported before it is used."""

import ast
import importlib
import sys
from pathlib import Path

import pytest
from processes import run

ROOT = Path(__file__).resolve().parent.parent
ROOMS = [
    ["files", "checks", "noise", "loading", "hooks", "processes", "features"],
    ["operators"],
    ["models", "images"],
    ["sampling", "baselines"],
    ["posterior"],
    ["data"],
    ["checkpoints"],
    ["pipelines"],
    ["evaluation", "pictures"],
    ["publishing"],
    ["training"],
    ["cli", "demo"],
]
"""From the lowest to the highest; those of one line may import each other's public names."""
LEVEL = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}


def modules() -> list[tuple[str, Path]]:
    found = [
        (path.relative_to(ROOT / "hvae_sr").parts[0].removesuffix(".py"), path)
        for path in (ROOT / "hvae_sr").rglob("*.py")
    ]
    found += [(folder, path) for folder in ("pipelines", "demo") for path in (ROOT / folder).rglob("*.py")]
    return [(room, path) for room, path in found if room != "__init__"]


def imported(path: Path) -> list[tuple[str, list[str]]]:
    """(room, names) of each import of this package at run time; imports for type checkers alone are left out."""
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node.body = []
    package = path.relative_to(ROOT).with_suffix("").parts
    package = package if package[0] == "hvae_sr" else ("hvae_sr", *package)
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level]) if node.level else []
            names = base + (node.module.split(".") if node.module else [])
            if names and names[0] == "hvae_sr":
                inner = names[1:] or [alias.name for alias in node.names]
                found += [(inner[0], [alias.name for alias in node.names])]
    return found


def test_every_module_is_in_a_room() -> None:
    assert {room for room, _ in modules()} <= LEVEL.keys()


@pytest.mark.parametrize(("room", "path"), modules(), ids=lambda value: str(value).removeprefix(f"{ROOT}/"))
def test_no_room_imports_a_higher_one_or_private_names(room: str, path: Path) -> None:
    for other, names in imported(path):
        if other in LEVEL:
            assert LEVEL[other] <= LEVEL[room], f"{path.name} imports {other}"
            assert other == room or not [name for name in names if name.startswith("_") and name != "__version__"]


@pytest.mark.parametrize("name", ["hvae_sr", "tests", "docs", "train", "benchmarks"])
def test_a_checkout_has_no_second_copy_of_anything(name: str) -> None:
    with pytest.raises(ImportError):
        importlib.import_module(f"hvae_sr.{name}")


def test_the_package_imports_nothing_before_it_is_used() -> None:
    code = "import sys, hvae_sr; print([n for n in ('torch', 'diffusers', 'numpy') if n in sys.modules])"
    done = run([sys.executable, "-c", code], cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
