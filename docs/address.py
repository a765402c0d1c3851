"""Writes the repository's address where it belongs; once, when there is one.

python docs/address.py https://HOST/OWNER/hvae-sr [--branch main]
"""

import argparse
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address")
    parser.add_argument("--branch", default="main")
    options = parser.parse_args()
    address = options.address.rstrip("/").removesuffix(".git")

    readme = (ROOT / "README.md").read_text("utf-8").replace("git clone ADDRESS", f"git clone {address}")
    for text, kind in ((r"!\[[^\]]*\]", "raw"), (r"(?<!!)\[[^\]]*\]", "blob")):  # pictures, documents
        readme = re.sub(rf"({text}\()(?!https?:)", rf"\1{address}/{kind}/{options.branch}/", readme)
    (ROOT / "README.md").write_text(readme, "utf-8")

    project = (ROOT / "pyproject.toml").read_text("utf-8")
    urls = "\n".join(
        f'{name} = "{address}{path}"'
        for name, path in {
            "Repository": "",
            "Issues": "/issues",
            "Changelog": f"/blob/{options.branch}/CHANGELOG.md",
        }.items()
    )
    if "[project.urls]" not in project:
        project = project.replace("[project.scripts]", f"[project.urls]\n{urls}\n\n[project.scripts]")
        (ROOT / "pyproject.toml").write_text(project, "utf-8")
    for name, line in (("CITATION.cff", f'repository-code: "{address}"\n'), ("mkdocs.yml", f"repo_url: {address}\n")):
        text = (ROOT / name).read_text("utf-8")
        if line not in text:
            (ROOT / name).write_text(f"{text.rstrip()}\n{line}", "utf-8")


if __name__ == "__main__":
    main()
