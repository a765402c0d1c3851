"""What users call a model: a name bundled with the package, a folder, or an id on the Hub."""

import os
from importlib.resources import files
from pathlib import Path

DEFAULT = "natural-x4"
"""The bundled model where none is named."""
PHOTO, PHOTO_SCALE = "photo-x4", 4
"""That of inputs that are not clean, where none is named, and its scale factor."""


def bundled_checkpoints() -> dict[str, Path]:
    """The pipelines whose weights come with the package: `{name: folder}`."""
    root = Path(str(files("hvae_sr.hub_configs")))
    return {
        path.parent.name: path.parent
        for path in sorted(root.glob("*/model_index.json"))
        if any(path.parent.glob("vdvae/*.safetensors"))
    }


def is_hub_id(text: str) -> bool:
    """Whether a text has the form of an id on the Hub, "owner/name"; there may be a folder of that name too."""
    return text.count("/") == 1 and not text.startswith((".", "/", "~")) and not text.endswith("/")


def resolve(name: str | os.PathLike[str]) -> str:
    """A folder, or an id on the Hub, for what a user calls a model: a bundled name, a folder or a Hub id.

    Raises:
        ValueError: neither a folder nor a bundled name, and no "owner/name" either; or no name at all.
    """
    if not isinstance(name, (str, os.PathLike)):
        raise ValueError(f"a model is called by a text or a path, got {name!r}")
    text = os.fspath(name)
    if os.path.isfile(os.path.join(text, "model_index.json")):
        return text
    bundled = bundled_checkpoints()
    if text in bundled:
        return str(bundled[text])
    if os.path.isfile(text):
        raise ValueError(f"a model is a folder, {text!r} is a file")
    if os.path.isdir(text) or is_hub_id(text):
        return text
    raise ValueError(
        f"no model {text!r}: not a folder, not a Hub id (owner/name), and the bundled models are "
        f"{', '.join(sorted(bundled)) or 'none'}"
    )
