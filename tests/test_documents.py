"""The documents: every command in them is one, their links lead somewhere, what is public is in the API reference."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

from hvae_sr.cli import parse
from hvae_sr.training import parse_arguments

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted(ROOT.glob("hub_configs/*/*.md")),
    *sorted(ROOT.glob("demo/**/*.md")),
]
PACKAGES = (
    "hvae_sr", "pipelines", "models", "operators", "posterior", "images", "evaluation", "training", "baselines", "data"
)  # fmt: skip


def commands(path: Path) -> list[list[str]]:
    """The words of every command in fenced blocks, from the program on; those that leave words out ("...") are not."""
    found = []
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", path.read_text("utf-8"), re.DOTALL | re.MULTILINE):
        for line in [] if language else block.replace("\\\n", " ").splitlines():
            if not re.match(r"(\w+=\S+ )*(hvae-sr|python|accelerate|torchrun) ", line) or "..." in line.split("#")[0]:
                continue
            words = shlex.split(line, comments=True)
            for program, name in (("hvae-sr", "hvae-sr"), ("hvae_sr.cli", "hvae-sr"), ("train.py", "train.py")):
                if program in words:
                    found.append([name, *words[words.index(program) + 1 :]])
            if words[:1] == ["python"] and words[1].endswith(".py") and words[1] != "train.py":
                found.append(words[1:])
    return found


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_of_a_document_is_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for program, *words in commands(path):
        if program == "hvae-sr":
            parse(words)
        elif program == "train.py":
            if not any(word.startswith("$") or re.fullmatch(r"RECIPE(\.yaml)?", word) for word in words):  # stand-ins
                parse_arguments(words)
        else:
            assert (ROOT / program).is_file(), f"{path.name} names {program}"
            sources = "".join(file.read_text("utf-8") for file in (ROOT / program).parent.glob("*.py")).replace(
                "-", "_"
            )
            for word in words:
                name = word.partition("=")[0].replace("-", "_")
                assert not word.startswith("--") or f'"{name}"' in sources, f"{program} has no {word}"


def test_every_script_that_documents_name_is_in_the_list_of_what_was_run_when() -> None:
    text = "\n".join(path.read_text("utf-8") for path in DOCUMENTS)
    scripts = re.findall(r"\b(?:benchmarks|docs/images)/(\w+\.py)\b", text)
    listed = (ROOT / "docs" / "commands.md").read_text("utf-8")
    assert {name for name in scripts if name not in listed} == set()


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_of_a_document_leads_to_a_file(path: Path) -> None:
    text = path.read_text("utf-8")
    linked = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text)
    for name in linked:
        assert (path.parent / name).exists(), name
    for name in re.findall(r"`((?:docs|benchmarks|tests|hvae_sr|pipelines|demo|hub_configs)/[\w./-]+)`", text):
        assert (ROOT / name).exists(), f"{path.name} names {name}"


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_in_the_api_reference(package: str) -> None:
    pages = "\n".join(page.read_text("utf-8") for page in (ROOT / "docs" / "api").glob("*.md"))
    listed = set(re.findall(r"^::: (\S+)", pages, re.MULTILINE))
    module = importlib.import_module("hvae_sr" if package == "hvae_sr" else f"hvae_sr.{package}")
    missing = []
    for name in getattr(module, "__all__", None) or vars(module):
        value = getattr(module, name)
        home = str(getattr(value, "__module__", ""))
        if not name.startswith("_") and callable(value) and home.startswith("hvae_sr."):
            missing += [f"{home}.{name}"] if not {home, f"{home}.{name}"} & listed else []
    assert not missing
