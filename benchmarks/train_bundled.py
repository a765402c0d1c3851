"""Trains a bundled model by its recipe, and evaluates it: one command, which goes on where it was interrupted.

python benchmarks/train_bundled.py NAME --train_data_dir DIR [DIR ...] --output_dir OUT [--lpips_weights VGG16]
    [--restorer FOLDER] [--regression FOLDER] [--benchmarks DIR [--lpips ALEXNET]] [further options of train.py]

`hub_configs/NAME/recipe.yaml` has the model to start from (`start`: a folder of hub_configs; NAME@REVISION, one of an
earlier revision of this repository; or null for random weights), the files of options for train.py (`parts`, at most
three, in turn, each from the weights of the last one; a part of stage `regression` trains the restorer of the parts
after it, with the one in `--restorer` as its teacher, from that or from the one that is the start), and the options of
`hvae-sr evaluate` for each table (`evaluate`: name of the set, size and so on). A restorer or a regression that y is
read through comes from the folders given by these names where the start has none for its scale factor, or of another
size. Part n is in OUT/n-PART; the trained folder is that of the last part; the reports are OUT/evaluation-n.json.
"""

import argparse
import io
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "hub_configs"


def read_recipe(name: str) -> dict:
    """`recipe.yaml` of the model.

    Raises:
        ValueError: there is none, or it does not say what it should.
    """
    path = CONFIGS / name / "recipe.yaml"
    if not path.is_file():
        known = sorted(recipe.parent.name for recipe in CONFIGS.glob("*/recipe.yaml"))
        raise ValueError(f"`NAME` must be one of {', '.join(known)}, which have a recipe, got {name!r}")
    recipe = yaml.safe_load(path.read_text())
    if not isinstance(recipe, dict) or set(recipe) != {"start", "parts", "evaluate"}:
        raise ValueError(f"{path} must have `start`, `parts` and `evaluate`, got {recipe!r}")
    if not 1 <= len(recipe["parts"]) <= 3:
        raise ValueError(f"`parts` of {path} must be one to three files, got {recipe['parts']!r}")
    return recipe


def start_folder(start: str | None, output: Path) -> Path | None:
    """The folder of the model to start from; that of an earlier revision is taken out of the history into `output`.

    Raises:
        ValueError: there is no such revision here, or no such folder in it.
    """
    if start is None:
        return None
    name, _, revision = start.partition("@")
    if not revision:
        return CONFIGS / name
    folder = output / start
    if not folder.is_dir():
        inside = f"{CONFIGS.name}/{name}"
        try:
            found = subprocess.run(["git", "archive", revision, inside], cwd=ROOT, capture_output=True, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            said = getattr(error, "stderr", b"").decode(errors="replace").strip() or error
            raise ValueError(
                f"`start` of the recipe must be a folder of hub_configs at a revision that this clone has (a shallow "
                f"clone has the last alone), got {start!r}: {said}"
            ) from error
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output) as unpacked, tarfile.open(fileobj=io.BytesIO(found.stdout)) as tar:
            tar.extractall(unpacked, filter="data")
            (Path(unpacked) / inside).rename(folder)
    return folder


FROZEN = {"restorer": ("restorer_blocks", "RRDBNet"), "regression": ("regression_width", "SPAN")}
"""Networks that an LR network reads y through: the option that says it has one, and the class of their weights."""


def frozen_networks(lr_config: Path) -> set[tuple[str, int, int]]:
    """Those of `FROZEN` that the LR network of this configuration has, for which scale factor and of which size."""
    network = json.loads(lr_config.read_text()) if lr_config.is_file() else {}
    sizes = {kind: network.get(option) for kind, (option, _) in FROZEN.items()}
    return {(kind, network["scale_factor"], size) for kind, size in sizes.items() if size}


def training_commands(
    name: str, recipe: dict, output: Path, options: list[str], restorer: str | None = None,
    regression: str | None = None,
) -> list[list[str]]:  # fmt: skip
    """The command of each part; the weights of the last part are where the next one starts.

    Raises:
        ValueError: a part needs the weights of a restorer or a regression that its start lacks and that are not given;
            or the start is not there.
    """
    commands, start = [], start_folder(recipe["start"], output)
    weights = {"restorer": restorer, "regression": regression}
    held = set() if start is None else frozen_networks(start / "lr_encoder" / "config.json")
    for number, part in enumerate(recipe["parts"], 1):
        folder = output / f"{number}-{Path(part).stem}"
        command = [sys.executable, str(ROOT / "train.py"), "--config", str(CONFIGS / name / part)]
        common = ["--output_dir", str(folder), "--resume_from_checkpoint", "latest", *options]
        own = yaml.safe_load((CONFIGS / name / part).read_text())
        if own.get("stage") == "regression":
            given = weights["restorer"]
            if given is None:
                raise ValueError(f"`--restorer` must be given: {part} imitates a trained RRDBNet, got none")
            trained = given if start is None or not (start / "network").is_dir() else str(start / "network")
            commands.append([*command, "--pretrained_teacher", given, "--pretrained_network", trained, *common])
            weights["restorer"] = str(folder / "network")
            held = {each for each in held if each[0] != "restorer"}
            continue
        if start is not None:
            command += [
                "--pretrained_vdvae",
                str(start / "vdvae"),
                "--pretrained_lr_encoder",
                str(start / "lr_encoder"),
            ]
        needed = frozen_networks(CONFIGS / name / own["lr_config"]) if "lr_config" in own else set()
        for kind, *_ in sorted(needed - held):
            given = weights[kind]
            if given is None:
                raise ValueError(
                    f"`--{kind}` must be given: {part} reads y through a trained {FROZEN[kind][1]}, got none"
                )
            command += [f"--pretrained_{kind}", given]
        held |= needed
        commands.append([*command, *common])
        start = folder
    return commands


def evaluation_commands(recipe: dict, model: Path, output: Path, benchmarks: Path) -> list[list[str]]:
    """The command of each table."""
    commands = []
    for number, (data, *options) in enumerate(recipe["evaluate"], 1):
        report = output / f"evaluation-{number}.json"
        command = [sys.executable, "-m", "hvae_sr.cli", "evaluate", "--model", str(model)]
        commands.append([*command, "--data", str(benchmarks / data), *map(str, options), "-o", str(report)])
    return commands


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", metavar="NAME", help="folder of hub_configs with a recipe.yaml")
    parser.add_argument("--output_dir", required=True, type=Path, help="of the parts and the reports")
    parser.add_argument(
        "--restorer", help="folder of the trained RRDBNet that the LR network reads y through, or learns"
    )
    parser.add_argument("--regression", help="folder of the trained SPAN whose estimate the likelihood is centred on")
    parser.add_argument("--benchmarks", type=Path, help="folder of the folders Set5, BSD100, ...; none: no evaluation")
    parser.add_argument("--lpips", help="AlexNet's weights, for LPIPS in the evaluation")
    given, options = parser.parse_known_args(arguments)
    try:
        recipe = read_recipe(given.name)
        commands = training_commands(given.name, recipe, given.output_dir, options, given.restorer, given.regression)
    except ValueError as error:
        parser.error(str(error))
    if given.benchmarks is not None:
        model = given.output_dir / f"{len(recipe['parts'])}-{Path(recipe['parts'][-1]).stem}"
        lpips = ["--lpips-weights", given.lpips] if given.lpips else []
        commands += [[*c, *lpips] for c in evaluation_commands(recipe, model, given.output_dir, given.benchmarks)]
    for command in commands:
        print("+", " ".join(command), flush=True)
        status = subprocess.run(command).returncode
        if status:
            raise SystemExit(status)


if __name__ == "__main__":
    main()
