"""What surrounds the loop: recipes, dry runs, schedules, the joint stage, pictures, cards, uploads, damage."""

import importlib.util
import io
import json
import logging
import os
import re
import resource
import shutil
import sqlite3
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from processes import run as process
from processes import status
from runs import assert_same, kept, log, started, weights, write
from safetensors.torch import load_file, save_file
from stand_ins import random_weights, write_table

import train
from hvae_sr import VDVAE, SuperResolutionPipeline
from hvae_sr.training import Joint, Trainer, parse_arguments, publish
from hvae_sr.training.batches import build_training_set, build_validation_set
from hvae_sr.training.checkpoints import Progress
from hvae_sr.training.cost import plan
from hvae_sr.training.log import Log
from hvae_sr.training.loop import arithmetic
from hvae_sr.training.networks import build_objective
from hvae_sr.training.schedule import PlateauSchedule, make_schedule

HUB_CONFIGS = Path(__file__).parents[2] / "hub_configs"
RECIPES = {  # prior and other networks that are given on the command line; groups conditioned, parameters in all
    "vdvae-cifar10": ({}, 39145700),
    "vdvae-imagenet32": ({}, 119280868),
    "vdvae-imagenet64": ({}, 125005860),
    "vdvae-ffhq256": ({}, 114874852),
    "vdvae-ffhq1024": ({}, 109366904),
    "cvdvae-ffhq256-x4": ({"pretrained_vdvae": "vdvae-ffhq256"}, 57),
    "cvdvae-ffhq256-x8": ({"pretrained_vdvae": "vdvae-ffhq256"}, 43),
    "cvdvae-ffhq256-x16": ({"pretrained_vdvae": "vdvae-ffhq256"}, 21),
    "vdvae-sr-64": ({"pretrained_vdvae": "vdvae-imagenet64"}, 30),
    "vdvae-sr-256": ({"pretrained_vdvae": "vdvae-ffhq256", "lr_from_vdvae": "vdvae-imagenet64"}, 21),
}


@pytest.mark.parametrize("path", sorted(HUB_CONFIGS.glob("*/train*.yaml")), ids=lambda p: f"{p.parent.name}/{p.name}")
def test_the_recipes_of_the_checkpoints_are_complete(path):
    given = "--train_data_dir in --output_dir out --pretrained_vdvae prior --pretrained_lr_encoder encoder "
    given += "--pretrained_network network"
    config = parse_arguments(f"--config {path} {given} --lpips_weights vgg16.safetensors".split())
    for file in (config.vdvae_config, config.lr_config):
        assert file is None or json.loads(Path(file).read_text())


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipe_of_a_published_model_builds_it(name):
    given, expected = RECIPES[name]
    extra = [part for key, folder in given.items() for part in (f"--{key}", str(HUB_CONFIGS / folder))]
    recipe = HUB_CONFIGS / name / "train.yaml"
    config = parse_arguments(["--config", str(recipe), "--train_data_dir", "in", "--output_dir", "out", *extra])
    with torch.device("meta"):
        objective = build_objective(config, load_weights=False)
    assert objective.vdvae.config.image_size == config.resolution
    assert config.scales == [1.0] and not config.rotate
    if not given:
        assert sum(parameter.numel() for parameter in objective.parameters()) == expected
        return
    network = objective.lr_network
    assert network.config.num_conditioned_groups == expected
    assert network.config.image_size * config.scale_factor == config.resolution
    trained = {name.split(".")[0] for name, p in objective.named_parameters() if p.requires_grad}
    assert trained == ({"lr_network"} if config.stage == "lr-encoder" else {"lr_network", "vdvae"})
    assert not any(p.requires_grad for p in objective.vdvae.encoder.parameters())


def test_the_lr_network_may_start_from_the_encoder_of_a_vdvae(objective_of, tmp_path):
    torch.manual_seed(3)
    blocks = {"encoder_blocks": "8x1", "decoder_blocks": "8x1", "width": 8, "bottleneck_multiple": 0.5}
    source, wide = VDVAE(image_size=8, **blocks), VDVAE(image_size=8, **{**blocks, "width": 16})
    source.save_pretrained(tmp_path / "source")
    network = objective_of("vdvae-sr", lr_from_vdvae=tmp_path / "source").lr_network.network
    assert_same(network.bottom_up.state_dict(), source.encoder.state_dict())
    wide.save_pretrained(tmp_path / "wide")
    with pytest.raises(ValueError, match="`lr_from_vdvae`.*does not fit"):
        objective_of("vdvae-sr", lr_from_vdvae=tmp_path / "wide")


# Dry run


def test_a_dry_run_tells_all_and_writes_nothing(options, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("hvae_sr.data.ImageCrops._decode", lambda self, image: pytest.fail("an image was decoded"))
    arguments = options("lr-encoder", tmp_path / "out", dry_run="true", train_batch_size=4)
    assert train.main(arguments) == 0
    text = capsys.readouterr().out
    objective = build_objective(parse_arguments(arguments))
    counts = {name: sum(p.numel() for p in net.parameters()) for name, net in objective.components().items()}
    assert f"vdvae: VDVAE, {counts['vdvae']:,} parameters, 0 of them trained" in text
    assert f"lr_encoder: LREncoder, {counts['lr_encoder']:,} parameters, {counts['lr_encoder']:,} of them" in text
    assert "images: 5, 10 crops in an epoch, 2 updates" in text and '"train_batch_size": 4' in text
    assert re.search(r"computation: \d+\.\d\d GFLOPs per image", text)
    assert re.search(r"memory \(estimate, each process\): \d+ MiB", text)
    file = write(tmp_path / "file", "")
    for changes in ({"train_data_dir": "none"}, {"train_batch_size": 11}, {"output_dir": file / "out"}):
        given = {"output_dir": tmp_path / "out", "dry_run": "true", **changes}
        assert train.main(options("vdvae", **given)) == 2  # what the run refuses
        assert f"`{next(iter(changes))}`" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_dry_run_reads_the_network_of_a_perceptual_score(options, tmp_path, capsys):
    tensors = {name: value.half() for name, value in random_weights("vgg16").items()}
    save_file(tensors, tmp_path / "vgg.safetensors")
    score = {"score_perceptual_weight": 1.0, "score_perceptual_taps": 1, "lpips_weights": tmp_path / "vgg.safetensors"}
    assert train.main(options("energy-score", tmp_path / "out", dry_run="true", **score)) == 0
    assert "GFLOPs per image" in capsys.readouterr().out


def test_the_plan_counts_what_a_step_computes_and_keeps(configure, tmp_path):
    """Against the count of the real step, and against a model twice as long."""
    config = configure("vdvae")
    _, cost = plan(config)
    assert Trainer(config).cost == cost
    blocks = json.loads(Path(config.vdvae_config).read_text())
    longer = write(tmp_path / "longer.json", {**blocks, "decoder_blocks": "8x1,16m8,16x5"})
    _, more = plan(configure("vdvae", vdvae_config=longer))
    assert cost.flops < more.flops and cost.activation_bytes < more.activation_bytes
    _, less = plan(configure("vdvae", vdvae_config=longer, gradient_checkpointing="true"))
    assert less.activation_bytes < more.activation_bytes and less.flops > more.flops


# Schedules


@pytest.mark.parametrize("validated", [False, True])
def test_the_plateau_schedule_lowers_the_rate_and_survives_a_resume(validated, run, photos, tmp_path):
    extra = {"lr_scheduler": "plateau", "plateau_patience": 0, "learning_rate": 1e-9, "validation_steps": 2,
             "lr_warmup_steps": 2, "max_train_steps": 17, "checkpointing_steps": 5, "checkpoints_total_limit": 9,
             "validation_images": 0}  # fmt: skip
    if validated:
        extra["validation_data_dir"] = photos
    whole, again = tmp_path / "whole", tmp_path / "again"
    records = run("vdvae", whole, **extra)
    rates = [record["learning_rate"] for record in records if "learning_rate" in record]
    assert rates[0] == pytest.approx(5e-10) and rates[1] == pytest.approx(1e-9)
    assert rates == sorted(rates[:2]) + sorted(rates[2:], reverse=True) and rates[-1] < 0.9e-9
    assert all(rate in {5e-10} | {1e-9 * 0.5**k for k in range(9)} for rate in rates)
    resumed = run("vdvae", again, **extra, resume_from_checkpoint=whole / "checkpoint-5")
    assert resumed == [record for record in records if record["step"] > 5]
    assert_same(weights(whole), weights(again))


@pytest.mark.parametrize("loss", [5.0, -5.0])
@pytest.mark.parametrize("change", [0.0, 1e-5])
def test_a_loss_that_becomes_no_better_lowers_the_rate_whatever_its_sign(loss, change):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = PlateauSchedule(optimizer, warmup_steps=0, factor=0.5, patience=2)
    for count in range(7):
        schedule.step()
        schedule.observe(loss + change * count)
    assert schedule.get_last_lr() == [0.25]
    for count in range(7):
        schedule.step()
        schedule.observe(loss - 1e-6 - 1e-6 * count)
    assert schedule.get_last_lr() == [0.25]


def test_epochs_may_be_given_instead_of_updates(run, tmp_path):
    records = run("vdvae", tmp_path, num_train_epochs=2, train_batch_size=4, max_train_steps=99)
    assert [record["step"] for record in records] == [1, 2, 3, 4]


def test_rates_in_steps_have_a_warm_up_too(configure):
    config = configure("vdvae", lr_scheduler="piecewise_constant", lr_step_rules="1:6,0.5", lr_warmup_steps=4)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule, rates = make_schedule(config, optimizer, 8), []
    for _ in range(8):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 0.5, 0.5]


def test_a_pipeline_keeps_the_temperature_of_the_one_that_it_started_from(configure, make_pipeline, tmp_path):
    pipe = make_pipeline("vdvae-sr")
    pipe.register_to_config(default_temperature=0.35)
    pipe.save_pretrained(tmp_path)
    start = {"pretrained_vdvae": tmp_path / "vdvae", "pretrained_lr_encoder": tmp_path / "lr_encoder"}
    start["lr_config"] = None
    for given, expected in ((start, 0.35), ({**start, "default_temperature": 0.6}, 0.6), ({}, 0.8)):
        assert publish.default_temperature(configure("vdvae-sr", **given)) == expected


def test_pictures_of_runs_are_none_of_the_images(configure, photos, tmp_path):
    photos, root = shutil.copytree(photos, tmp_path / "photos"), tmp_path / "root"
    shutil.copytree(photos, root / "photos")
    # Of this run, of one with its options beside them, and of one in whose folder the photographs are.
    for folder in (photos / "out" / "images", photos / "another" / "run" / "images", root / "validation"):
        folder.mkdir(parents=True)
        Image.new("RGB", (64, 64)).save(folder / "step-0000001-samples.png")
    for folder in (photos / "another" / "run", root):
        write(folder / "training_config.json", "{}")
    own = configure("vdvae", output_dir=photos / "out", train_data_dir=photos, validation_data_dir=photos)
    other = configure("vdvae", train_data_dir=root)
    found = [build_training_set(own, 0, 1), build_validation_set(own), build_training_set(other, 0, 1)]
    assert [len(images.paths) for images in found] == [5, 5, 5]


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps who may read in lists, not in permission bits")
def test_what_a_run_leaves_may_be_read_by_whom_the_umask_lets(run, tmp_path):
    before = os.umask(0o022)
    try:
        run("vdvae", tmp_path / "out", checkpointing_steps=2, max_train_steps=3)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert "model.safetensors" in modes and set(modes.values()) == {0o644}, modes


# Joint stage


def test_the_joint_loss_trains_the_prior_as_if_alone_and_the_lr_encoder_as_if_it_were_frozen(objective_of, prior):
    gradients, losses, kl = {}, {}, {}
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for stage in ("vdvae", "lr-encoder", "joint"):
        torch.manual_seed(1)
        objective = objective_of(stage, vdvae_config=None, pretrained_vdvae=prior)
        loss, figures = objective(images, [4, 5])
        loss.backward()
        losses[stage], kl[stage] = loss.item(), figures.get("kl_bits_per_dim")
        gradients[stage] = {name: p.grad for name, p in objective.named_parameters() if p.grad is not None}
    assert isinstance(objective, Joint)
    assert losses["joint"] == pytest.approx(losses["vdvae"] + losses["lr-encoder"], rel=1e-5)
    assert float(kl["joint"]) == pytest.approx(float(kl["lr-encoder"]), rel=1e-5)
    expected = gradients["vdvae"] | gradients["lr-encoder"]
    assert gradients["joint"].keys() == expected.keys()
    for name, gradient in gradients["joint"].items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)


# Watching


@pytest.mark.parametrize("stage", ["vdvae", "lr-encoder", "vdvae-sr"])
def test_validation_writes_figures_of_every_group_and_pictures(stage, run, photos, matplotlib, tmp_path):
    records = run(stage, tmp_path, validation_data_dir=photos, validation_steps=3, validation_images=2)
    (record,) = [record for record in records if "validation_group_bits_per_dim" in record]
    groups = record["validation_group_bits_per_dim"]
    total = record["validation_kl_bits_per_dim" if stage == "lr-encoder" else "validation_rate"]
    assert len(groups) == (2 if stage == "lr-encoder" else 3) and sum(groups) == pytest.approx(total, rel=1e-4)
    samples = np.asarray(Image.open(tmp_path / "validation" / "step-0000003-samples.png"))
    assert samples.shape == (2 * (128 + 4) + 4 + 14, 5 * (128 + 4) + 4, 3)  # four times as large
    columns = [samples[18:146:4, 4 + 132 * i : 132 + 132 * i : 4].astype(int) for i in range(5)]
    stored = [np.asarray(Image.open(path).convert("RGB")) for path in sorted(photos.iterdir())]
    windows = [image[y : y + 32, x : x + 32] for image in stored[:1] for y in range(9) for x in range(29)]
    assert any(np.array_equal(columns[0], window) for window in windows)
    if stage != "vdvae":
        blocks = columns[1].reshape(8, 4, 8, 4, 3)
        assert (blocks == blocks[:, :1, :, :1]).all()  # LR, magnified
        for temperature in ("0.2", "0.8", "1"):
            assert 30 < record[f"validation_lr_psnr_t{temperature}"] < 90
            assert record[f"validation_psnr_t{temperature}"] > 5
    assert Image.open(tmp_path / "validation" / "step-0000003-groups.png").size == (640, 360)


def test_pictures_and_figures_reach_tensorboard_once_also_after_a_step_back(options, photos, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    extra = {"validation_data_dir": photos, "validation_steps": 3, "validation_images": 1, "checkpointing_steps": 1}
    command = options("vdvae", tmp_path, report_to="tensorboard", checkpoints_total_limit=9, **extra)
    assert train.main(command) == 0
    assert train.main([*command, "--resume_from_checkpoint", str(tmp_path / "checkpoint-1")]) == 0
    events = EventAccumulator(str(tmp_path / "logs" / "hvae-sr"))
    events.Reload()
    scalars, images = (set(events.Tags()[kind]) for kind in ("scalars", "images"))
    assert {"bits_per_dim", "images_per_second", "mfu", "validation_bits_per_dim"} <= scalars
    assert [event.step for event in events.Scalars("bits_per_dim")] == [1, 2, 3]
    (name,) = [name for name in images if name.startswith("validation/samples")]
    assert [event.step for event in events.Images(name)] == [3]


@pytest.mark.slow
@pytest.mark.parametrize("tracker", ["wandb", "trackio"])
def test_pictures_and_figures_reach_the_trackers_without_a_network(tracker, options, photos, tmp_path):
    if importlib.util.find_spec(tracker) is None:
        pytest.skip(f"{tracker} is not installed")
    extra = {"validation_data_dir": photos, "validation_steps": 3, "validation_images": 1, "report_to": tracker}
    out = tmp_path / "out"
    environment = {"WANDB_MODE": "offline", "TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HUB_OFFLINE": "1"}
    process = started(options("vdvae", out, **extra), environment)
    assert status(process) == 0
    if tracker == "wandb":
        (run,) = (out / "logs").glob("wandb/offline-run-*")  # below the run's folder, not where it was started
        assert {path.name.split("_")[0] for path in run.rglob("media/images/validation/*.png")} >= {"samples"}
        assert b"bits_per_dim" in next(run.glob("*.wandb")).read_bytes()
    else:
        rows = sqlite3.connect(tmp_path / "trackio" / "hvae-sr.db").execute("select step, metrics from metrics")
        found = {(step, name) for step, metrics in rows for name in json.loads(metrics)}
        assert {(1, "bits_per_dim"), (3, "validation_bits_per_dim"), (3, "validation/samples")} <= found
        assert list((tmp_path / "trackio" / "media").rglob("*.png"))


# The finished folder


def test_the_finished_folder_says_how_it_was_made_and_not_where(run, prior, matplotlib, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["caller.py", "--password", "secret"])
    out = tmp_path / "portraits"
    readme, notes = out / "README.md", out / "card_notes.md"
    run("lr-encoder", out)
    card = readme.read_text()
    assert card.startswith("---\n") and "pipeline_tag: image-to-image" in card and "library_name: hvae-sr" in card
    assert Image.open(out / "images" / "curve.png").size == (640, 360) and "(images/curve.png)" in card
    assert "# portraits" in card and "kl bits per dim" in card and "SuperResolutionPipeline" in card
    assert "secret" not in card and "train.py --stage=lr-encoder" in card
    for file in ("vdvae/config.json", "lr_encoder/config.json", "model_index.json"):
        assert str(prior.parent) not in (out / file).read_text() and "_name_or_path" not in (out / file).read_text()
    SuperResolutionPipeline.from_pretrained(out)
    readme.write_text("my own card\n")
    run("lr-encoder", out, max_train_steps=4, resume_from_checkpoint="latest")
    assert readme.read_text() == "my own card\n"
    readme.unlink()
    for steps, words in ((5, "One night."), (6, "Two nights.")):  # the card keeps up with own notes
        text = f"---\nlicense: mit\n---\n\n## Training\n\n{words}\n\n## Training data\n\nMine.\n"
        notes.write_text(text, encoding="utf-8-sig")
        run("lr-encoder", out, max_train_steps=steps, resume_from_checkpoint="latest")
        assert words in readme.read_text() and "license: mit" in readme.read_text()
    notes.write_text("---\nlicense: mit\n---\n\n## Training data\n\nMine.\n")
    run("lr-encoder", out, max_train_steps=7, resume_from_checkpoint="latest")
    assert "7 updates of" in readme.read_text()


def test_the_command_on_a_card_names_no_folders_of_this_machine(configure, tmp_path):
    config = configure("lr-encoder", output_dir=tmp_path / "a=b" / "out", train_data_dir=tmp_path / "c=d")
    command = publish._command(config)
    assert str(tmp_path) not in command and "--train_data_dir c=d" in command.replace("'", "")


def test_weights_saved_in_half_precision_are_the_rounded_ones_and_load_as_float32(run, tmp_path):
    whole, half = tmp_path / "whole", tmp_path / "half"
    for out, dtype in ((whole, "float32"), (half, "float16")):
        run("energy-score", out, saved_dtype=dtype)
    for name in ("vdvae", "lr_encoder"):
        exact, rounded = (load_file(out / name / "diffusion_pytorch_model.safetensors") for out in (whole, half))
        assert {x.dtype for x in exact.values()} == {torch.float32}
        assert all(torch.equal(rounded[key], value.half()) for key, value in exact.items())
    pipe = SuperResolutionPipeline.from_pretrained(half)
    assert {p.dtype for network in (pipe.vdvae, pipe.lr_encoder) for p in network.parameters()} == {torch.float32}


def test_the_finished_folder_is_uploaded_without_paths_of_this_machine(options, photos, tmp_path, monkeypatch, capsys):
    from fake_hub import FakeHub

    with FakeHub() as hub:
        hub.connect(monkeypatch, tmp_path / "home")
        out = tmp_path / "portraits"
        arguments = options("lr-encoder", out, push_to_hub="true", hub_model_id="ada/portraits")
        assert train.main(arguments) == 0
        files = hub.files("ada/portraits")
        assert {"README.md", "model_index.json", "vdvae/config.json", "lr_encoder/config.json"} <= set(files)
        assert not any("checkpoint-" in name or name.startswith(("logs", "validation")) for name in files)
        texts = [content for name, content in files.items() if not name.endswith((".safetensors", ".png"))]
        assert (out / "training_config.json").is_file() and "training_config.json" not in files
        assert not any(str(folder).encode() in text for text in texts for folder in (tmp_path, photos.parent))
        # Without an owner, and nobody whom the Hub knows: an error before anything is trained.
        other = tmp_path / "other"
        for name, said in ((None, ""), ("ada/my portraits", ""), ("ada/b/c", ""), ("ada/b", "nobody is logged in")):
            if said:
                monkeypatch.setattr(publish, "get_token", lambda: None)
            assert train.main(options("lr-encoder", other, push_to_hub="true", hub_model_id=name)) == 2
            message = capsys.readouterr().err
            assert "`hub_model_id`" in message and said in message and not other.exists()


# Damage


def test_latest_passes_over_a_damaged_checkpoint(run, tmp_path, caplog):
    common = {"max_train_steps": 4, "checkpointing_steps": 1, "checkpoints_total_limit": 4}
    whole, out = tmp_path / "whole", tmp_path / "out"
    records = run("vdvae", whole, **common)
    shutil.copytree(whole, out)
    model = out / "checkpoint-4" / "model.safetensors"
    content = bytearray(model.read_bytes())
    content[-3] ^= 1  # one bit of one weight: it would load
    model.write_bytes(content)
    (out / "checkpoint-3" / "optimizer.bin").unlink()
    (out / "checkpoint-2" / "files.json").unlink()  # without its list, and cut off
    (out / "checkpoint-2" / "model.safetensors").write_bytes(content[: len(content) // 2])
    with caplog.at_level(logging.WARNING):
        assert run("vdvae", out, **common, resume_from_checkpoint="latest") == records
    assert "checkpoint-4 is damaged" in caplog.text and "model.safetensors has changed" in caplog.text
    assert "checkpoint-3 is damaged" in caplog.text and "optimizer.bin is missing" in caplog.text
    assert "checkpoint-2 is damaged" in caplog.text
    assert_same(weights(whole), weights(out))


def test_without_a_sound_checkpoint_the_run_does_not_start_over(options, run, tmp_path, capsys):
    run("vdvae", tmp_path)
    (tmp_path / "checkpoint-3" / "optimizer.bin").write_bytes(b"")
    assert train.main(options("vdvae", tmp_path, max_train_steps=5, resume_from_checkpoint="latest")) == 2
    assert "checkpoint-3 is damaged" in capsys.readouterr().err


def test_on_a_full_disk_the_earlier_checkpoint_survives(options, run, tmp_path, capfd):
    """The limit of the size of a file stands for a full disk: writing fails half way."""
    common = {"checkpointing_steps": 1, "checkpoints_total_limit": 1}
    run("vdvae", tmp_path, max_train_steps=2, **common)
    resume = options("vdvae", tmp_path, max_train_steps=4, **common, resume_from_checkpoint="latest")
    before = (tmp_path / "checkpoint-2" / "model.safetensors").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        status = train.main(resume)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert status == 2
    message = capfd.readouterr().err.splitlines()[-1]
    assert "checkpoint-3 could not be written" in message and "MiB of" in message and "left: checkpoint-2" in message
    assert kept(tmp_path) == [2] and not list(tmp_path.glob("*.partial"))
    assert (tmp_path / "checkpoint-2" / "model.safetensors").read_bytes() == before
    assert train.main(resume) == 0


# Sources of images


@pytest.fixture
def table(photos, tmp_path, monkeypatch):
    """A function that writes a parquet file of pictures, by default the photographs."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.05, raising=False)

    def make(pictures=None):
        write_table(tmp_path / "t.parquet", pictures or [(p.name, p.read_bytes()) for p in sorted(photos.iterdir())])
        return tmp_path / "t.parquet"

    return make


def test_a_run_on_a_stream_resumes_bitwise(options, run, table, tmp_path, monkeypatch, caplog):
    source = {"train_data_dir": None, "dataset_name": table(), "streaming": "true"}
    common = {**source, "max_train_steps": 5, "checkpointing_steps": 3, "checkpoints_total_limit": 9}
    whole, again = tmp_path / "whole", tmp_path / "again"
    records, resume = run("vdvae", whole, **common), {"resume_from_checkpoint": whole / "checkpoint-3"}
    assert run("vdvae", again, **common, **resume) == records[3:]
    assert_same(weights(whole), weights(again))
    load = Progress.load_state_dict
    monkeypatch.setattr(Progress, "load_state_dict", lambda own, state: load(own, {**state, "stream_workers": 4}))
    with caplog.at_level("WARNING"):
        run("vdvae", tmp_path / "other", **{**common, "max_train_steps": 4}, **resume)
    assert "`dataloader_num_workers` gives 1 processes that read" in caplog.text


def test_an_error_of_a_reading_process_is_one_sentence(options, table, tmp_path, capsys):
    small = io.BytesIO()
    Image.new("RGB", (8, 8)).save(small, "PNG")
    source = {"train_data_dir": None, "dataset_name": table([("small.png", small.getvalue())] * 2), "streaming": "true"}
    for workers in (0, 1):
        assert train.main(options("vdvae", tmp_path / "out", **source, dataloader_num_workers=workers)) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert "`dataset_name`" in said and "holds no usable image" in said and "Traceback" not in said


def test_float32_is_no_tf32_unless_it_is_asked_for(configure):
    before = torch.backends.cudnn.allow_tf32
    for asked in (False, True):
        with arithmetic(configure("vdvae", allow_tf32=str(asked).lower())):
            assert torch.backends.cudnn.allow_tf32 is asked
        assert torch.backends.cudnn.allow_tf32 is before


@pytest.mark.slow
def test_a_dataset_on_the_hub_is_trained_on_by_its_name_whole_and_streamed(options, table, tmp_path):
    """In a process of its own: the libraries read the address of the Hub when they are imported."""
    from fake_hub import FakeHub, Repository

    files = {f"data/{split}-00000-of-00001.parquet": table().read_bytes() for split in ("train", "test")}
    common = {"train_data_dir": None, "dataset_name": "ada/photos", "validation_split": "test", "validation_images": 0}
    streaming = {"whole": "false", "streamed": "true"}
    runs = [options("vdvae", tmp_path / name, **common, streaming=value) for name, value in streaming.items()]
    with FakeHub() as hub:
        hub.repositories["ada/photos"] = Repository()
        hub.repositories["ada/photos"].commit("main", files)
        environment = {**os.environ, **hub.environment(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
        command = f"import sys, train; sys.exit(any(train.main(arguments) for arguments in {runs!r}))"
        process([sys.executable, "-c", command], check=True, cwd=Path(train.__file__).parent, env=environment)
        assert hub.requests("GET /datasets/ada/photos/resolve/.*/data/train-.*parquet")
    for name in streaming:
        records = log(tmp_path / name)
        assert [record["step"] for record in records] == [1, 2, 3, 3] and "validation_bits_per_dim" in records[-1]


def test_given_lr_images_are_trained_on_and_validated_with(configure, run, photos, tmp_path, caplog):
    low = tmp_path / "low"
    low.mkdir()
    for path in photos.iterdir():
        image = Image.open(path)
        Image.new("RGB", (-(-image.width // 4), -(-image.height // 4)), (9, 9, 9)).save(low / path.name)
    given = {"train_lr_dir": low, "validation_data_dir": photos, "cache_gib": 0}
    assert "low" not in build_validation_set(configure("vdvae-sr", **given))[0]
    assert "LR images of validation_data_dir" in caplog.text
    trainer = Trainer(configure("vdvae-sr", **given, validation_lr_dir=low, validation_images=0))
    assert (trainer.validator.dataset[0]["low"] == 9).all() and trainer.validator.dataset._buffer is None
    batch = next(iter(trainer.batches.loader))
    assert batch["low"].shape == (2, 3, 8, 8) and (batch["low"] == 9).all()
    _, y = trainer.objective.pairs(batch["image"], batch["low"])
    assert torch.allclose(y, torch.tensor(9 / 127.5 - 1))
    trainer.train()
    assert log(tmp_path / "out") != run("vdvae-sr", tmp_path / "made", scales=1.0)


def test_figures_that_are_not_finite_are_left_out_of_the_log(tmp_path):
    accelerator = SimpleNamespace(is_main_process=True, log=lambda scalars, step: None)
    log = Log(SimpleNamespace(output_path=tmp_path), accelerator)
    log.write(3, {"loss": float("nan"), "groups": [1.0, float("inf")], "rate": 0.5})
    assert (tmp_path / "log.jsonl").read_text() == '{"step": 3, "rate": 0.5}\n'


def test_a_tilde_is_the_home_folder_in_options_and_recipes(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "recipes").mkdir()
    recipe = write(tmp_path / "recipes" / "own.yaml", "stage: vdvae\nvdvae_config: ~/vdvae.json\noutput_dir: ~/out\n")
    config = parse_arguments(["--config", str(recipe), "--train_data_dir", "~/a", "b"])
    assert config.output_dir == str(tmp_path / "out") and config.vdvae_config == str(tmp_path / "vdvae.json")
    assert config.train_data_dir == [str(tmp_path / "a"), "b"]


def test_a_folder_of_several_names_is_one(configure, photos):
    config = configure("vdvae", train_data_dir="x")
    several = replace(config, train_data_dir=[str(photos), f"{photos}/../{photos.name}"])
    assert parse_arguments(several.arguments) == several
    sets = [build_training_set(given, 0, 1) for given in (several, replace(config, train_data_dir=[str(photos)]))]
    assert len(sets[0]) == len(sets[1])
