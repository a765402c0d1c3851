"""Hook of mkdocs: the pages that are made of files elsewhere, and the source laid out as it is installed."""

import re
import shutil
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
SOURCE = ROOT / ".site-source" / "hvae_sr"
DOCTEST = re.compile(r"^( +)>>> (?:.*\n)(?: +(?!\"\"\")\S.*\n)*", re.MULTILINE)
"""An example in a docstring: without a fence its lists would be taken for links."""


def _fenced(match: re.Match[str]) -> str:
    return f"{match[1]}```python\n{match[0]}{match[1]}```\n"


def on_startup(**_: Any) -> None:
    """Lays out `hvae_sr` with its pipelines inside, as in an installation; mkdocstrings does not follow links.

    Before the configuration is read: folders that are not there then are not searched.
    """
    shutil.rmtree(SOURCE, ignore_errors=True)
    for source, target in ((ROOT / "hvae_sr", SOURCE), (ROOT / "pipelines", SOURCE / "pipelines")):
        for path in source.rglob("*.py"):
            place = target / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(DOCTEST.sub(_fenced, path.read_text("utf-8")), "utf-8")


def on_files(files: Files, config: Any) -> Files:
    """README, contributing and changelog as pages, pictures of the models, each tutorial's script with its output."""
    for source, made in PAGES.items():
        text = (ROOT / source).read_text("utf-8")
        for linked, target in (("docs/", ""), *((f"{name})", f"{page})") for name, page in PAGES.items())):
            text = text.replace(f"]({linked}", f"]({target}")
        files.append(File.generated(config, made, content=text))
    for picture in sorted((ROOT / "hub_configs").glob("natural-*/images/*")):
        page = f"gallery/{picture.parent.parent.name}/{picture.name}"
        files.append(File.generated(config, page, abs_src_path=str(picture)))
    for script in sorted((ROOT / "docs" / "tutorials").glob("*.py")):
        source = script.read_text("utf-8")
        docstring, code = re.match(r'"""(.*?)"""\n+(.*)', source, re.DOTALL).groups()  # type: ignore[union-attr]
        title, _, usage = docstring.partition("\n\n")
        output = script.with_suffix(".txt")
        said = f"\nIt printed\n\n```\n{output.read_text('utf-8').rstrip()}\n```\n" if output.exists() else ""
        text = f"# {title.removesuffix('.')}\n\n```\n{usage.strip()}\n```\n{said}\n```python\n{code}```\n"
        files.append(File.generated(config, f"tutorials/{script.stem}.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Names of documents, `docs/speed.md`, become links to their pages; pictures of models are those of `on_files`."""
    here = page.file.src_uri.count("/")
    markdown = re.sub(r"\]\(\.\./hub_configs/([\w-]+)/images/", r"](gallery/\1/", markdown)

    def link(match: re.Match[str]) -> str:
        name = match[1]
        known = (ROOT / "docs" / f"{name}.md").exists()
        return f"[{match[0].strip('`')}]({'../' * here}{name}.md)" if known else match[0]

    return re.sub(r"`docs/([a-z_]+)\.md`", link, markdown)


def on_page_content(html: str, **_: Any) -> str:
    """A click on a picture opens it in its own size."""
    return re.sub(r'<img [^>]*src="([^"]+)"[^>]*>', r'<a href="\1">\g<0></a>', html)
