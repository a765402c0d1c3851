"""Bundled models from their recipes, by one command."""

import importlib.util
import json
import subprocess
from pathlib import Path

import pytest
import yaml
from runs import LR_CONFIGS, VDVAE_CONFIG, log, weights, write

from hvae_sr.training import TrainingConfig
from hvae_sr.training.config import read_recipe
from hvae_sr.training.networks import baseline_recipe

ROOT = Path(__file__).parents[2]
RECIPES = sorted(path.parent.name for path in (ROOT / "hub_configs").glob("*/recipe.yaml"))


@pytest.fixture
def command(monkeypatch):
    spec = importlib.util.spec_from_file_location("train_bundled", ROOT / "benchmarks" / "train_bundled.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", RECIPES)
def test_the_parts_of_a_recipe_are_there_and_follow_each_other(name, command, tmp_path, monkeypatch):
    recipe = command.read_recipe(name)
    earlier = recipe["start"] is not None and "@" in recipe["start"]
    if earlier:  # a shallow clone, or none, lacks it
        monkeypatch.setattr(command, "start_folder", lambda start, output: output / start)
    folders: list[Path] = []
    frozen, held = {"restorer": "restorer", "regression": "regression"}, set()
    given = ["--train_data_dir", "photos", "--lpips_weights", "vgg16.safetensors"]
    for arguments in command.training_commands(name, recipe, tmp_path, given, "restorer", "regression"):
        options = dict(zip(arguments[2::2], arguments[3::2], strict=True))
        options_of_part = read_recipe(Path(options["--config"]))
        network = json.loads(Path(options_of_part["lr_config"]).read_text()) if "lr_config" in options_of_part else {}
        for kind, folder in frozen.items():
            needed = bool(network.get({"restorer": "restorer_blocks", "regression": "regression_width"}[kind]))
            assert options.get(f"--pretrained_{kind}") == (folder if needed and kind not in held else None)
            held |= {kind} if needed else set()
        named = {name: options.get(f"--{name}") for name in ("output_dir", "lpips_weights", "pretrained_network")}
        config = TrainingConfig(**options_of_part | named, train_data_dir=[options["--train_data_dir"]])
        if config.stage == "regression":
            assert options["--pretrained_teacher"] == options["--pretrained_network"] == "restorer"
            frozen["restorer"] = str(Path(config.output_dir) / "network")
            network = baseline_recipe(config).build("meta")
            assert len(config.pretrained_blocks) == len(network.body)
            folders.append(Path(config.output_dir))
            continue
        start = options.get("--pretrained_vdvae")
        assert not folders or Path(start).parent in (folders[-1], tmp_path / str(recipe["start"]))
        folders.append(Path(options["--output_dir"]))
    assert earlier or recipe["start"] is None or (ROOT / "hub_configs" / recipe["start"] / "vdvae").is_dir()
    for arguments in command.evaluation_commands(recipe, folders[-1], tmp_path, tmp_path):
        assert arguments[arguments.index("--model") + 1] == str(folders[-1])


def test_a_recipe_with_a_restorer_needs_its_weights(command, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "start_folder", lambda start, output: output / str(start))

    def commands(name, *given):
        return command.training_commands(name, command.read_recipe(name), tmp_path, [], *given)

    regression = "`--regression` must be given: train_first.yaml reads y through a trained SPAN"
    restorer = "`--restorer` must be given: train_first.yaml reads y through a trained RRDB"
    teacher = "`--restorer` must be given: train.yaml imitates a trained RRDBNet"
    for name, given, message in (
        ("photo-x4", (), regression), ("photo-x4", (None, "regression"), restorer), ("realsr-small", (), teacher),
        ("natural-x4", ("restorer",), regression),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            commands(name, *given)
    recipe = command.read_recipe("natural-x4")
    network = tmp_path / recipe["start"] / "lr_encoder" / "config.json"
    network.parent.mkdir(parents=True)
    had = {"restorer_blocks": 6, "regression_width": 48, "scale_factor": 4}
    write(network, had | {"restorer_blocks": 8})
    with pytest.raises(ValueError, match="`--restorer` must be given"):  # one of another size is none
        commands("natural-x4")
    write(network, had)
    for arguments in commands("natural-x4"):
        assert not {"--pretrained_restorer", "--pretrained_regression"} & set(arguments)
    write(network, had | {"restorer_blocks": 8})
    first, last = commands("natural-x4", "restorer")
    assert first[first.index("--pretrained_restorer") + 1] == "restorer"
    assert "--pretrained_restorer" not in last  # it starts from what the first part left
    write(network, had | {"scale_factor": 2})  # a network of another scale factor is none
    with pytest.raises(ValueError, match="`--regression` must be given"):
        commands("natural-x4", "restorer")


def test_a_restorer_is_trained_from_the_one_that_is_the_start(command, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "start_folder", lambda start, output: output / start)
    (tmp_path / "realsr-small@ee3651a" / "network").mkdir(parents=True)
    recipe = command.read_recipe("realsr-small")
    (arguments,) = command.training_commands("realsr-small", recipe, tmp_path, [], "teacher")
    options = dict(zip(arguments[2::2], arguments[3::2], strict=True))
    assert options["--pretrained_teacher"] == "teacher"
    assert options["--pretrained_network"] == str(tmp_path / recipe["start"] / "network")


def test_weights_of_an_earlier_revision_are_taken_out_of_the_history(command, monkeypatch, tmp_path):
    configs, output = tmp_path / "hub_configs", tmp_path / "out"
    monkeypatch.setattr(command, "ROOT", tmp_path)
    monkeypatch.setattr(command, "CONFIGS", configs)

    def git(*arguments):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments], cwd=tmp_path, check=True)

    git("init", "--quiet")
    (configs / "old" / "vdvae").mkdir(parents=True)
    (configs / "old" / "vdvae" / "config.json").write_text("{}")
    git("add", "hub_configs")
    git("commit", "--quiet", "-m", "with it")
    git("rm", "--quiet", "-r", "hub_configs/old")
    git("commit", "--quiet", "-m", "without it")
    with pytest.raises(ValueError, match="`start` of the recipe must be .* got 'old@HEAD'"):
        command.start_folder("old@HEAD", output)
    for _ in range(2):
        folder = command.start_folder("old@HEAD~1", output)
        assert (folder / "vdvae" / "config.json").read_text() == "{}"
    assert [path.name for path in output.iterdir()] == ["old@HEAD~1"]
    monkeypatch.setenv("PATH", "")  # no git
    with pytest.raises(ValueError, match="got 'old@HEAD~2': .*git"):
        command.start_folder("old@HEAD~2", output)


@pytest.mark.parametrize("wrong, named", [(None, "must be one of"), ({"parts": []}, "`start`"),
                                          ({"start": None, "parts": [], "evaluate": []}, "`parts`"),
                                          ({"start": None, "parts": ["a"] * 4, "evaluate": 0}, "`parts`")])  # fmt: skip
def test_a_recipe_that_is_none_is_named(wrong, named, command, monkeypatch, tmp_path):
    monkeypatch.setattr(command, "CONFIGS", tmp_path)
    if wrong is not None:
        (tmp_path / "tiny").mkdir()
        (tmp_path / "tiny" / "recipe.yaml").write_text(yaml.safe_dump(wrong))
    with pytest.raises(ValueError, match=named):
        command.read_recipe("tiny")


@pytest.mark.slow
def test_one_command_trains_all_parts_and_evaluates_what_they_leave(command, photos, monkeypatch, tmp_path):
    monkeypatch.setattr(command, "CONFIGS", tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    folder, out = tmp_path / "tiny", tmp_path / "out"
    folder.mkdir()
    write(folder / "vdvae.json", VDVAE_CONFIG)
    write(folder / "lr_encoder.json", LR_CONFIGS["energy-score"])
    part = {"stage": "energy-score", "resolution": 32, "train_batch_size": 2, "max_train_steps": 2, "logging_steps": 1}
    first = {**part, "vdvae_config": "vdvae.json", "lr_config": "lr_encoder.json", "score_samples": 1}
    for name, options in {"first": first, "second": {**part, "seed": 1, "learning_rate": 1e-3}}.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(options))
    recipe = {"start": None, "parts": ["first.yaml", "second.yaml"], "evaluate": [[photos.name, "--size", 32]]}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    arguments = ["tiny", "--output_dir", str(out), "--benchmarks", str(photos.parent), "--train_data_dir", str(photos)]
    command.main(arguments)
    assert json.loads((out / "evaluation-1.json").read_text())
    one, two = weights(out / "1-first"), weights(out / "2-second")
    assert one.keys() == two.keys() and any((one[name] != two[name]).any() for name in one)
    assert [line["step"] for line in log(out / "2-second")][:2] == [1, 2]
