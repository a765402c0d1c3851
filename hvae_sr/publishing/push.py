"""Uploads of a model's folder to the Hub: which files, and one commit that is whole or absent."""

import logging
import os
import re
import time
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import validate_repo_id

from ..files import files_below
from ..pipelines.baselines import pipeline_class
from ..pipelines.inputs import check_components
from .card import IMAGES_FOLDER, model_card, read_index

logger = logging.getLogger(__name__)

PIPELINE_FILE = "pipeline.py"
PIPELINE_CODE = """# For DiffusionPipeline.from_pretrained(ID, custom_pipeline=ID, trust_remote_code=True).
from hvae_sr import SuperResolutionPipeline as SuperResolutionPipeline  # pip install hvae-sr
"""
"""The whole of `pipeline.py` in a repository on the Hub: the code stays in the package."""

_COMPONENT_CODE = """# diffusers asks for this file before it reads pipeline.py, and takes the class from the package.
from hvae_sr import {name} as {name}
"""

_PICTURES = {".png", ".svg", ".webp"}
_SUFFIXES = {".json", ".md", ".png", ".safetensors", ".svg", ".webp", ".weights"}
PUBLISHED = ("LICENSE*", "train.yaml", "degradation.yaml", *(f"*{suffix}" for suffix in sorted(_SUFFIXES)))
"""Patterns of what a repository may hold of a model."""
_TOP = {"model_index.json", "config.json", "train.yaml", "degradation.yaml"}
"""Of the configurations at the top, those of these weights: not the recipes and networks of earlier parts of training,
nor `training_config.json`, which names the folders of the machine that trained."""

_INDEX = r".*\.safetensors\.index(\..+)?\.json"
_WEIGHTS = re.compile(rf".*\.safetensors|{_INDEX}")
"""Files of weights, and indices of their parts, of any variant."""

_SKIPPED_FOLDERS = ("checkpoint-", "logs", "runs", "samples", "validation", "wandb", "__pycache__", ".")
"""Folders that training leaves beside the result: their names begin with one of these."""


def files_to_push(folder: str | os.PathLike[str]) -> dict[str, Path | bytes]:
    """What `push` uploads of a folder: `{path in the repository: file, or content that push adds}`.

    Configurations, safetensors, the card with its pictures, the recipe (`train.yaml`, and `degradation.yaml` if it has
    one) and licences: of the folder itself, its components and `images`, and no folder beside these, which may hold
    photographs or other networks. No recipes of earlier parts, training checkpoints, logs or pickles. A folder without
    a card gets one, and a pipeline the lines of Python that diffusers looks for.

    Raises:
        ValueError: no folder, or one that holds no model or no weights.
    """
    root = Path(folder)
    index = read_index(root)
    if index is not None:
        check_components(index, pipeline_class(root).component_classes)
    own = {IMAGES_FOLDER, *(name for name, kind in (index or {}).items() if isinstance(kind, list))}
    card = root / "README.md"
    said = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    found: dict[str, Path | bytes] = {}
    for path in sorted(files_below(root)):
        relative = path.relative_to(root)
        if len(relative.parts) > 1 and relative.parts[0] not in own or not path.is_file():
            continue
        if any(part.startswith(_SKIPPED_FOLDERS) for part in relative.parts[:-1]):
            continue
        if len(relative.parts) == 1 and path.suffix.lower() in _PICTURES and path.name not in said:
            continue  # none of the card's
        if path.name.startswith("."):
            continue
        wanted = path.suffix.lower() in _SUFFIXES or path.name.startswith("LICENSE") or relative == Path(PIPELINE_FILE)
        if len(relative.parts) == 1 and path.suffix.lower() in (".json", ".yaml", ".yml"):
            wanted = path.name in _TOP or re.fullmatch(_INDEX, path.name) is not None
        if wanted:
            found[relative.as_posix()] = path
    if not any(name.endswith(".safetensors") for name in found):
        raise ValueError(f"`folder`: {root} holds no weights (*.safetensors)")
    if index is not None:
        found.setdefault(PIPELINE_FILE, PIPELINE_CODE.encode())
        for component, kind in index.items():
            if isinstance(kind, list) and kind[:1] == ["hvae_sr"]:
                found[f"{component}/hvae_sr.py"] = _COMPONENT_CODE.format(name=kind[1]).encode()
    if "README.md" not in found:
        found["README.md"] = model_card(root).encode()
    return dict(sorted(found.items()))


def check_repo_id(repo_id: str) -> None:
    """Raises a ValueError unless an id is "owner/name" as the Hub takes it."""
    if repo_id.count("/") != 1:
        raise ValueError(f"`repo_id` must be owner/name, got {repo_id!r}")
    try:
        validate_repo_id(repo_id)
    except ValueError as error:
        raise ValueError(f"`repo_id`: {error}") from None


def push(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    message: str | None = None,
    token: str | None = None,
    attempts: int = 4,
) -> str:
    """Uploads a pipeline or model folder to the Hub, as one commit: the repository is never half new.

    Uploads are addressed by content. What an earlier try, killed or not, has already sent is not sent again, and files
    that have not changed are left alone. Weights of the repository that the folder no longer has are removed, or a
    loader would read old shards beside new ones. Failures of the network and of the server are tried again.

    Args:
        folder: what `save_pretrained` or training has written.
        repo_id: "owner/name"; the repository is made where there is none.
        private: visibility of a repository that is made; None leaves it to the owner's settings.
        revision: branch; None means main.
        message: of the commit.
        token: None means the one that `hf auth login` has stored, or HF_TOKEN.
        attempts: of the whole, after the retries of each request.

    Returns:
        The address of the commit.

    Raises:
        ValueError: a folder, id, card or token that will not do.
        OSError: the network or the server still fails after the last attempt.
    """
    check_repo_id(repo_id)
    content, api = files_to_push(folder), HfApi(token=token)

    def commit() -> str:
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationAdd(path_in_repo=name, path_or_fileobj=source) for name, source in content.items()
        ]
        for name in api.list_repo_files(repo_id, revision=revision):
            if name not in content and _WEIGHTS.fullmatch(name):
                operations.append(CommitOperationDelete(path_in_repo=name))
        title = message or f"Upload {Path(folder).name}"
        return api.create_commit(repo_id, operations, commit_message=title, revision=revision).commit_url

    for attempt in range(attempts):
        try:
            return commit()
        except Exception as error:
            failure = _of_the_hub(error)
            if failure is None:
                raise
            status = _status(failure)
            if (status in (408, 429) or status >= 500) and attempt + 1 < attempts:
                wait = 2**attempt
                logger.warning("%s; trying again in %d s", _first_line(error), wait)
                time.sleep(wait)
                continue
            if status in (401, 403):
                raise ValueError(
                    f"`token`: {repo_id} cannot be written (log in with `hf auth login`): {error}"
                ) from None
            if isinstance(error, (ValueError, OSError)):
                raise
            raise OSError(f"`repo_id`: {repo_id} could not be uploaded: {_first_line(error)}") from error
    raise ValueError(f"`attempts` must be at least 1, got {attempts}")


def _of_the_hub(error: BaseException | None) -> BaseException | None:
    """The failure of the Hub or the network that an error is, or was caused by; None for any other error.

    Failed uploads of files come as RuntimeErrors with a cause. Other RuntimeErrors, and what ran out of memory or is
    wrong in the program, are none of the Hub's and stay what they are.
    """
    libraries = ("httpx", "httpx2", "requests", "urllib3")
    while error is not None:
        if isinstance(error, (HfHubHTTPError, ConnectionError, TimeoutError)):
            return error
        if type(error).__module__.split(".")[0] in libraries:
            return error
        error = error.__cause__
    return None


def _status(failure: BaseException) -> int:
    """The status of the server's answer; 500 where there was none, which may be tried again just so."""
    response = getattr(failure, "response", None)
    return int(response.status_code) if response is not None else 500


def _first_line(error: BaseException) -> str:
    cause = error.__cause__ or error
    return (str(cause).splitlines() or [type(cause).__name__])[0]
