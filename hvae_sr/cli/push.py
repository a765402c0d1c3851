"""Upload a pipeline folder to the Hub."""

import argparse
from pathlib import Path

from .terminal import print_line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", help="a bundled name, or a folder of save_pretrained or training")
    parser.add_argument("--repo-id", required=True, metavar="OWNER/NAME")
    parser.add_argument("--private", action="store_true", default=None, help="if the repository is made")
    parser.add_argument("--revision", help="branch (default main)")
    parser.add_argument("--message", help="of the commit")
    parser.add_argument("--dry-run", action="store_true", help="list the files and upload nothing")


def run(options: argparse.Namespace) -> int:
    from ..checkpoints.names import bundled_checkpoints
    from ..publishing.push import check_repo_id, files_to_push, push

    check_repo_id(options.repo_id)
    folder = bundled_checkpoints().get(options.folder, Path(options.folder))
    if options.dry_run:
        content = files_to_push(folder)
        sizes = {name: len(it) if isinstance(it, bytes) else it.stat().st_size for name, it in content.items()}
        for name, size in sizes.items():
            print_line(f"{size:>12,}  {name}{'  (added)' if isinstance(content[name], bytes) else ''}")
        print_line(
            f"{sum(sizes.values()):>12,}  bytes in {len(sizes)} files for {options.repo_id}; nothing was uploaded"
        )
        return 0
    url = push(folder, options.repo_id, private=options.private, revision=options.revision, message=options.message)
    print_line(url)
    return 0
