"""Training runs end with folders that load, resume as if never stopped, survive being killed, and refuse bad input."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from accelerate import Accelerator, tracking
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, is_torch_version
from PIL import Image
from processes import PATIENCE, output, status
from runs import (
    ACCELERATE,
    BASELINES,
    FIGURES,
    LR_CONFIGS,
    STAGES,
    VDVAE_CONFIG,
    assert_equal_trees,
    assert_like,
    assert_same,
    kept,
    log,
    on_processes,
    started,
    state,
    wait_until,
    weights,
    write,
)

import train
from hvae_sr import VDVAE, SuperResolutionPipeline
from hvae_sr.data import ImageFolder
from hvae_sr.pipelines.baselines import pipeline_class
from hvae_sr.training import Trainer, TrainingConfig, parse_arguments
from hvae_sr.training.batches import build_training_set, build_validation_set
from hvae_sr.training.networks import build_objective, check_objective
from hvae_sr.training.signals import leave_to_the_run

LATEST = {"resume_from_checkpoint": "latest"}

# Stages


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_trains_all_of_its_parameters_and_leaves_what_it_should(stage, options, run, tmp_path):
    config, out = parse_arguments(options(stage, tmp_path / "out")), tmp_path / "out"
    objective = build_objective(config)
    check_objective(objective, config, torch.device("cpu"), num_processes=2)
    with pytest.raises(ValueError, match="nothing to train"):
        check_objective(objective.requires_grad_(False), config, torch.device("cpu"), num_processes=1)
    records = run(stage, out)
    if stage == "vdvae":
        network = VDVAE.from_pretrained(out)
        assert torch.isfinite(network(torch.zeros(1, 3, 32, 32)).loss).all()
    else:
        pipeline = pipeline_class(out).from_pretrained(out)
        assert pipeline.config.scale_factor == 4
        pipeline.set_progress_bar_config(disable=True)
        sample = pipeline(Image.new("RGB", (8, 8), (90, 120, 60)), num_samples=2, seed=0)
        assert [image.size for image in sample.images] == [(32, 32)] * 2
    assert [record["step"] for record in records] == [1, 2, 3]
    for record, line in zip(records, (out / "log.jsonl").read_text().splitlines(), strict=True):
        assert record[FIGURES[stage]] > 0 and record["grad_norm"] > 0
        assert record["learning_rate"] == 3e-3 and record["skipped_updates"] == 0
        assert json.loads(line)["images_per_second"] > 0 and 0 < json.loads(line)["mfu"] < 1
    assert json.loads((out / "training_config.json").read_text()) == asdict(config)
    assert kept(out) == [3]


@pytest.mark.parametrize("stage", STAGES)
def test_the_loss_falls_on_a_toy_set(stage, run, tmp_path):
    records = run(stage, tmp_path, max_train_steps=60, logging_steps=10, learning_rate=5e-3, train_batch_size=4)
    losses = [record[FIGURES[stage]] for record in records]
    assert len(losses) == 6 and losses[-1] < 0.95 * losses[0]


@pytest.mark.parametrize(
    "stage, extra", [("lr-encoder", {}), ("vdvae-sr", {"train_decoder": "false"}), ("vdvae-sr", {})]
)
def test_a_frozen_prior_is_bitwise_untouched_and_only_then(stage, extra, run, prior, tmp_path):
    run(stage, tmp_path, **extra)
    before, after = weights(prior), weights(tmp_path / "vdvae")
    same = [torch.equal(before[name], after[name]) for name in before]
    assert before.keys() == after.keys()
    assert all(same) if stage == "lr-encoder" or extra else not all(same)
    assert all(torch.isfinite(x).all() for x in weights(tmp_path / "lr_encoder").values())


@pytest.mark.parametrize(
    "stage, changes",
    [
        ("lr-encoder", {"lr_config": None, "pretrained_lr_encoder": "lr_encoder"}),
        ("hcflow", {"pretrained_network": "flow"}),
    ],
)
def test_training_goes_on_from_a_trained_network(stage, changes, run, tmp_path):
    run(stage, tmp_path / "first")
    trained = {name: value and tmp_path / "first" / value for name, value in changes.items()}
    run(stage, tmp_path / "second", **trained, skip_threshold=1e-30)  # every update left out
    assert_same(weights(tmp_path / "first"), weights(tmp_path / "second"))


def test_the_averaged_weights_are_saved_and_validated_which_leaves_the_run_as_it_was(
    objective_of, run, photos, tmp_path
):
    out, plain = tmp_path / "out", tmp_path / "plain"
    records = run("vdvae", out, max_train_steps=4, validation_data_dir=photos, validation_steps=2)
    found = {each["step"]: each["validation_bits_per_dim"] for each in records if "validation_rate" in each}
    assert sorted(found) == [2, 4]
    held_out = ImageFolder(photos, 32, horizontal_flip=False, scales=(1.0,))
    images = torch.stack([held_out[i]["image"] for i in range(5)])
    objective = objective_of("vdvae")
    objective.vdvae.load_state_dict(VDVAE.from_pretrained(out).state_dict())
    with torch.no_grad():
        _, figures = objective(images, range(5))
    assert found[4] == pytest.approx(float(figures["bits_per_dim"]), rel=1e-5)
    model, _ = state(out / "checkpoint-4")
    exported = weights(out)
    assert not any(torch.equal(x, model[f"vdvae.{name.split(':')[1]}"]) for name, x in exported.items() if x.ndim > 1)
    run("vdvae", plain, max_train_steps=4)
    assert_same(weights(plain), exported)


def test_noise_order_and_weights_depend_on_the_seed_and_not_on_workers(options, run, prior, tmp_path):
    figures = {}
    for name, seed, workers in (("a", 0, 0), ("b", 0, 2), ("c", 1, 0)):
        changes = {"seed": seed, "dataloader_num_workers": workers, "vdvae_config": None, "pretrained_vdvae": prior}
        figures[name] = run("vdvae", tmp_path / name, max_train_steps=7, **changes)
    assert figures["a"] == figures["b"] != figures["c"]
    trainers = [Trainer(parse_arguments(options("vdvae", tmp_path / "d", seed=seed))) for seed in (0, 1)]
    seeds = {seed % 2**64 for trainer in trainers for seed in trainer.batches.noise_seeds(0, 0, 4)}
    assert len(seeds) == 8  # the noise keeps 64 bits


# Resuming


RESUMING = {
    "plain": ("vdvae", {}),
    "accumulation, schedule and average": (
        "vdvae-sr", {"gradient_accumulation_steps": 2, "lr_scheduler": "cosine", "lr_warmup_steps": 2}
    ),
    "workers, no average": ("lr-encoder", {"dataloader_num_workers": 1, "use_ema": "false", "lr_scheduler": "linear"}),
}  # fmt: skip


@pytest.mark.parametrize("case", RESUMING)
def test_a_resumed_run_equals_one_that_never_stopped(case, run, tmp_path):
    """An epoch has 5 updates, or 2 and a batch left over with accumulation: steps 2 to 5 are amid and on borders."""
    stage, extra = RESUMING[case]
    extra = {"max_train_steps": 6, "checkpointing_steps": 1, "checkpoints_total_limit": 9, **extra}
    straight = tmp_path / "straight"
    whole = run(stage, straight, **extra)
    for step in (2, 3, 5):
        out, resume = tmp_path / f"from-{step}", straight / f"checkpoint-{step}"
        if step == 3:  # amid an epoch, as after a crash: in place, the log ahead of the checkpoint and cut off
            shutil.copytree(straight, out, ignore=lambda folder, names: [f"checkpoint-{n}" for n in (4, 5, 6)])
            (out / "log.jsonl").write_text((out / "log.jsonl").read_text() + '{"step": 7, "bi')
            resume = "latest"
        assert run(stage, out, **extra, resume_from_checkpoint=resume) == whole[0 if step == 3 else step :]
        assert_same(weights(straight), weights(out))
        assert_equal_trees(state(straight / "checkpoint-6"), state(out / "checkpoint-6"))


def test_a_finished_run_is_resumed_to_more_steps_or_to_none(run, tmp_path, caplog):
    straight, out = run("vdvae", tmp_path / "straight", max_train_steps=4), tmp_path / "out"
    run("vdvae", out, max_train_steps=2, **LATEST)  # without a checkpoint a fresh start
    after_two = weights(out)
    run("vdvae", out, max_train_steps=2, **LATEST)
    assert_same(after_two, weights(out))
    assert run("vdvae", out, max_train_steps=4, **LATEST) == straight
    assert_same(weights(tmp_path / "straight"), weights(out))
    assert "max_train_steps" not in caplog.text
    run("vdvae", out, max_train_steps=3, **LATEST)
    assert "`max_train_steps` 3: the checkpoint is of update 4, and its weights are what is written" in caplog.text
    assert "an epoch is of another length" not in caplog.text
    run("vdvae", out, max_train_steps=5, crops_per_image=3, **LATEST)
    assert "an epoch is of another length" in caplog.text


def test_a_finished_run_that_is_lengthened_learns_from_its_first_update(run, tmp_path):
    """The schedule of four updates ends with the rate 0, that of eight is half way there."""
    common = {"lr_scheduler": "cosine", "checkpointing_steps": 1, "checkpoints_total_limit": 9}
    assert run("vdvae", tmp_path, max_train_steps=4, **common)[-1]["learning_rate"] == 0
    records = run("vdvae", tmp_path, max_train_steps=8, **common, **LATEST)
    (before, _), (after, _) = (state(tmp_path / f"checkpoint-{step}") for step in (4, 5))
    assert any(not torch.equal(before[name], after[name]) for name in before)
    expected = [3e-3 * (1 + math.cos(math.pi * step / 8)) / 2 for step in (5, 6, 7, 8)]
    assert [record["learning_rate"] for record in records[4:]] == pytest.approx(expected, abs=1e-12)


def test_rotation_keeps_the_newest_checkpoints_also_after_going_back(options, run, tmp_path, monkeypatch):
    common = {"checkpointing_steps": 1, "checkpoints_total_limit": 2}
    run("vdvae", tmp_path, max_train_steps=5, **common)
    assert kept(tmp_path) == [4, 5]
    shutil.copytree(tmp_path / "checkpoint-4", tmp_path / "checkpoint-30")  # of a run that went further
    back = options("vdvae", tmp_path, max_train_steps=6, **common, resume_from_checkpoint=tmp_path / "checkpoint-4")
    assert train.main([*back, "--dry_run"]) == 0 and len(kept(tmp_path)) == 3
    with monkeypatch.context() as patch, pytest.raises(MemoryError):  # before the next checkpoint
        patch.setattr(Trainer, "step", lambda *arguments: exec("raise MemoryError"))
        train.main(back)
    assert kept(tmp_path) == [4]
    assert train.main(back) == 0
    assert kept(tmp_path) == [5, 6] and not list(tmp_path.glob("*.partial"))
    assert [record["step"] for record in log(tmp_path)] == [1, 2, 3, 4, 5, 6]


# Other processes


@pytest.mark.parametrize("stage", ["vdvae", *BASELINES])
def test_a_run_killed_while_it_saves_goes_on_as_if_it_had_not_been(stage, options, run, photos, tmp_path):
    common = {"max_train_steps": 4, "checkpointing_steps": 1, "validation_data_dir": photos, "validation_steps": 3}
    common |= {"validation_images": 2, "checkpoints_total_limit": 9}
    straight, out = run(stage, tmp_path / "straight", **common), tmp_path / "out"
    process = started(options(stage, out, **common), stop_at="checkpoint-3")
    partial = out / "checkpoint-3.partial"
    wait_until(lambda: (partial / "custom_checkpoint_2.pkl").exists(), process)
    os.kill(process.pid, signal.SIGKILL)
    status(process)
    assert kept(out) == [1, 2] and partial.exists()
    assert not (out / "config.json").exists() and not (out / "model_index.json").exists()
    for file in partial.iterdir():
        file.write_bytes(b"not to be read")
    assert train.main(options(stage, out, **common, resume_from_checkpoint=partial)) == 2
    assert run(stage, out, **common, **LATEST) == straight
    assert kept(out) == [1, 2, 3, 4] and not list(out.glob("*.partial"))
    assert_same(weights(tmp_path / "straight"), weights(out))
    assert_equal_trees(state(tmp_path / "straight" / "checkpoint-4"), state(out / "checkpoint-4"))
    assert (out / "validation" / "step-0000003-samples.png").is_file()
    psnr = "validation_rate" if stage == "vdvae" else "validation_psnr_t1"
    assert [record["step"] for record in straight if psnr in record] == [3, 4]
    assert "--stage=" + stage in (out / "README.md").read_text()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_asked_to_stop_saves_a_checkpoint_first(signum, options, run, tmp_path):
    out = tmp_path / "out"
    process = started(options("vdvae", out, max_train_steps=100000))
    wait_until(lambda: (out / "log.jsonl").exists() and len((out / "log.jsonl").read_text()) > 500, process)
    os.kill(process.pid, signum)
    assert status(process) == 128 + signum
    (step,) = kept(out)
    assert [record["step"] for record in log(out)] == list(range(1, step + 1))
    assert not (out / "config.json").exists()
    records = run("vdvae", out, max_train_steps=step + 2, **LATEST)
    assert [record["step"] for record in records] == list(range(1, step + 3))


@pytest.mark.skipif(sys.platform == "win32", reason="there are no groups of processes there")
def test_a_signal_to_all_processes_of_a_run_leaves_a_checkpoint_too(options, tmp_path):
    """As a queue's time limit and `torchrun` send it: the processes that read images get it too."""
    out = tmp_path / "out"
    arguments = options("vdvae", out, max_train_steps=100000, dataloader_num_workers=2)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(
        [sys.executable, train.__file__, *arguments], start_new_session=True, env=environment, **pipes
    )
    with process:
        try:
            deadline = time.monotonic() + PATIENCE
            while not ((out / "log.jsonl").exists() and len((out / "log.jsonl").read_text()) > 500):
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.05)
            assert len(psutil.Process(process.pid).children()) >= 2
            for _ in range(3):  # a launcher that gets it passes it on
                os.killpg(process.pid, signal.SIGTERM)
                time.sleep(0.02)
            assert "stopped by signal 15" in output(process)[1]
        finally:
            process.kill()
    assert process.returncode == 128 + signal.SIGTERM and len(kept(out)) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals there")
def test_a_reader_of_images_outlives_signals_but_not_forever():
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)}
    try:
        leave_to_the_run(0)
        for signum in before:
            for _ in range(2):
                signal.raise_signal(signum)
        assert 0 < signal.alarm(0) <= 600
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


@pytest.mark.parametrize(
    "stage, accumulation",
    [
        ("vdvae", 1),
        pytest.param("lr-encoder", 1, marks=pytest.mark.slow),
        pytest.param("vdvae-sr", 2, marks=pytest.mark.slow),
    ],
)
def test_two_processes_train_like_one(stage, accumulation, options, run, photos, tmp_path):
    """8 updates in epochs of 3 or 2, a batch left over; the second process run resumes amid an epoch."""
    common = {
        "max_train_steps": 8, "crops_per_image": 3 if accumulation == 1 else 4, "checkpointing_steps": 4,
        "gradient_accumulation_steps": accumulation, "lr_scheduler": "cosine", "lr_warmup_steps": 3,
        "validation_data_dir": photos, "validation_steps": 4,
    }  # fmt: skip
    two, resumed = tmp_path / "two", tmp_path / "resumed"
    one = run(stage, tmp_path / "one", **common, train_batch_size=4)
    on_processes(options(stage, two, **common, train_batch_size=2))
    assert len(one) == 10
    assert_like(one, log(two), 1e-4, 1e-8)
    if stage == "vdvae":
        again = common | {"resume_from_checkpoint": two / "checkpoint-4"}
        on_processes(options(stage, resumed, **again, train_batch_size=2))
        assert log(resumed) == log(two)[5:]
        assert_same(weights(two), weights(resumed))
        # And one process goes on from what two have left.
        for expected, found in zip(one[5:], run(stage, tmp_path / "back", **again, train_batch_size=4), strict=True):
            name = "bits_per_dim" if "bits_per_dim" in expected else "validation_bits_per_dim"
            assert found[name] == pytest.approx(expected[name], rel=1e-4)


@pytest.mark.skipif(not is_torch_version(">=", "2.7"), reason="FSDP needs torch 2.7 or later")
@pytest.mark.parametrize("precision", ["no", pytest.param("bf16", marks=pytest.mark.slow)])
def test_two_processes_that_share_the_parameters_train_like_one(precision, options, run, photos, tmp_path):
    """FSDP: the loss, the figures of validation, the exported weights; and a resume, which must be bitwise."""
    common = {
        "max_train_steps": 4, "checkpointing_steps": 2, "validation_data_dir": photos, "validation_steps": 2,
        "gradient_accumulation_steps": 2, "mixed_precision": precision, "score_point_weight": 1.0,
    }  # fmt: skip
    two, resumed = tmp_path / "two", tmp_path / "resumed"
    one = run("energy-score", tmp_path / "one", **common)
    on_processes(options("energy-score", two, **common, train_batch_size=1), sharded=True)
    assert_like(one, log(two), 1e-4 if precision == "no" else 2e-2, 1e-7)
    expected, found = weights(tmp_path / "one"), weights(two)
    assert expected.keys() == found.keys()
    for name in expected:
        assert found[name].shape == expected[name].shape and found[name].dtype == torch.float32
        if precision == "no":
            torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5)
    SuperResolutionPipeline.from_pretrained(two)
    if precision == "no":
        arguments = options("energy-score", resumed, **common, train_batch_size=1)
        on_processes([*arguments, "--resume_from_checkpoint", str(two / "checkpoint-2")], sharded=True)
        assert log(resumed) == log(two)[3:]
        assert_same(weights(two), weights(resumed))


def test_sharding_that_cannot_be_is_refused(options, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(Accelerator, "distributed_type", property(lambda self: DistributedType.FSDP))
    arguments = options("vdvae", tmp_path / "out", train_data_dir=MISSING)
    assert train.main(arguments) == 2
    assert "fsdp_version: 2" in capfd.readouterr().err
    monkeypatch.setattr(Accelerator, "is_fsdp2", True)
    monkeypatch.setattr(torch, "__version__", "2.6.0")
    monkeypatch.setattr("hvae_sr.training.sharding.is_torch_version", lambda operation, version: False)
    assert train.main(arguments) == 2
    assert "FSDP needs torch 2.7 or later, found 2.6.0" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("path", sorted(ACCELERATE.glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_the_files_for_several_processes(path):
    config = load_config_from_file(str(path))
    assert config.distributed_type == (DistributedType.FSDP if path.stem == "fsdp" else DistributedType.MULTI_GPU)
    assert config.num_processes % config.num_machines == 0 and not config.use_cpu
    assert (path.stem == "fsdp") == bool(config.fsdp_config)


# Unsound gradients, precision, memory


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), 1e9])
def test_an_update_with_an_unsound_gradient_is_skipped_and_counted(factor, options, tmp_path):
    arguments = options("vdvae", tmp_path, checkpointing_steps=1, checkpoints_total_limit=9, lr_scheduler="linear")
    trainer = Trainer(parse_arguments(arguments))
    trainer.trainable[0].register_hook(lambda gradient: gradient * factor if trainer.progress.step == 1 else gradient)
    trainer.train()
    assert [record["skipped_updates"] for record in log(tmp_path)] == [0, 1, 1]
    assert [record["learning_rate"] for record in log(tmp_path)] == pytest.approx([2e-3, 1e-3, 0])
    (first, *others), (second, *others_after) = state(tmp_path / "checkpoint-1"), state(tmp_path / "checkpoint-2")
    assert_same(first, second)
    assert_equal_trees(others[0][0]["state"], others_after[0][0]["state"])  # moments of the optimiser
    third, _ = state(tmp_path / "checkpoint-3")
    assert any(not torch.equal(second[name], third[name]) for name in second)


def test_a_run_without_finite_gradients_ends_and_publishes_nothing(options, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("hvae_sr.training.loop.UNSOUND_IN_A_ROW", 11)
    trainer = Trainer(parse_arguments(options("vdvae", tmp_path, max_train_steps=30, checkpointing_steps=2)))
    trainer.trainable[0].register_hook(lambda gradient: gradient * (float("nan") if trainer.progress.step > 1 else 1))
    with pytest.raises(ValueError, match="update 13: the last 11 updates .* not finite; .* left: checkpoint-2"):
        trainer.train()
    assert "update 12: the last 10 updates were left out" in caplog.text
    assert not (tmp_path / "README.md").exists() and not list(tmp_path.glob("*.safetensors"))
    assert kept(tmp_path) == [2]


def test_a_run_that_leaves_most_updates_out_says_so(run, tmp_path, caplog):
    run("vdvae", tmp_path, skip_threshold=1e-30)
    assert "3 of 3 updates were left out" in caplog.text
    card = " ".join((tmp_path / "README.md").read_text().split())
    assert "3 updates (3 of them left out for their gradients)" in card


@pytest.mark.parametrize("stage", ["regression", "vdvae"])
def test_an_objective_that_accelerate_compiles_trains_and_validates(stage, run, photos, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")
    records = run(stage, tmp_path, max_train_steps=1, validation_data_dir=photos)
    assert any("psnr" in name or "group" in name for record in records for name in record)
    assert list(tmp_path.rglob("step-0000001-samples.png"))


@pytest.mark.parametrize("stage", sorted(set(STAGES) - {"hcflow"}))
def test_mixed_precision_and_gradient_checkpointing_run(stage, run, tmp_path):
    reference, out = run(stage, tmp_path / "reference"), tmp_path / "bf16"
    AcceleratorState._reset_state(reset_partial_state=True)
    for expected, found in zip(
        reference, run(stage, out, mixed_precision="bf16", gradient_checkpointing="true"), strict=True
    ):
        assert found[FIGURES[stage]] == pytest.approx(expected[FIGURES[stage]], rel=0.1)
    assert all(x.dtype == torch.float32 for x in weights(out).values())


# Bad input


MISSING = "no-such-folder"
BAD = [  # what is changed, and what the error must name; the folder of photographs is missing where it is not needed
    ("stage=vqvae", "stage, vqvae"),
    ("", "train_data_dir, no-such-folder"),
    ("train_data_dir=EMPTY", "train_data_dir, 0 image files"),
    ("resolution=64 train_data_dir=PHOTOS", "resolution, 64"),  # crops larger than every image
    ("resolution=34 scale_factor=2", "resolution, 34"),  # a size that the model cannot have
    ("resolution=34", "resolution, 34, 4"),  # no multiple of the scale
    ("stage=lr-encoder pretrained_vdvae=", "pretrained_vdvae"),
    ("vdvae_config= pretrained_vdvae=/no/such/prior", "pretrained_vdvae, /no/such/prior"),
    ("vdvae_config= pretrained_vdvae=EMPTY", "pretrained_vdvae, empty"),
    ("vdvae_config=DAMAGED", "vdvae_config, damaged"),
    ("vdvae_config=TYPO", "vdvae_config, widht"),
    ("vdvae_config=OTHER", "vdvae_config"),  # of something else
    ("vdvae_config=BLOCKS", "decoder_blocks, 8y1"),
    ("train_batch_size=11 train_data_dir=PHOTOS", "train_batch_size, 11, 10"),
    ("gradient_accumulation_steps=6 train_data_dir=PHOTOS", "gradient_accumulation_steps, 6, 10"),
    ("resume_from_checkpoint=no-such-folder", "resume_from_checkpoint, no-such-folder"),
    ("resume_from_checkpoint=EMPTY train_data_dir=PHOTOS", "resume_from_checkpoint, empty"),
    ("max_train_steps=0", "max_train_steps, 0"),
    ("learning_rate=inf", "learning_rate, inf"),
    ("mixed_precision=fp64", "mixed_precision, fp64"),
    ("saved_dtype=int8", "saved_dtype, int8"),
    ("lr_scheduler=cosin", "lr_scheduler, cosin"),
    ("batch_size=4", "--batch_size"),
    ("config=no-recipe.yaml", "config, no-recipe.yaml"),
    ("config=UNKNOWN", "config, learning_rat"),
    ("config=WRONG", "crops_per_image, 2.5"),
    ("config=LIST", "config, mapping"),
    ("config=BROKEN", "config, broken.yaml"),
    ("stage=lr-encoder scale_factor=2 lr_config=LR pretrained_vdvae=PRIOR", "scale_factor, 2"),
    ("output_dir=DAMAGED", "output_dir, damaged.json"),  # a folder that is a file, and one below a file
    ("output_dir=BELOW", "output_dir, damaged.json"),
    ("output_dir=EMPTY train_data_dir=EMPTY", "output_dir, train_data_dir"),  # pictures among its images
    ("seed=4294967296", "seed, 4294967296"),
    ("conf=no-such-folder", "--conf"),  # an option cut short
    ("stage=energy-score pretrained_vdvae= vdvae_config=VDVAE train_decoder=false", "train_decoder, pretrained_vdvae"),
    ("dataset_name=a/b", "both"),
    ("train_data_dir=", "neither"),
    ("streaming=true", "streaming"),
    ("train_data_dir= dataset_name=a train_lr_dir=b", "train_lr_dir"),
    ("train_lr_dir=low scale_factor=1", "train_lr_dir"),
    ("validation_lr_dir=low", "validation_lr_dir"),
    ("validation_split=test", "validation_split"),
    ("max_grad_norm=0", "max_grad_norm, 0"),
    ("num_train_epochs=0", "num_train_epochs"),
    ("plateau_factor=1.0", "plateau_factor"),
    ("validation_temperatures=-1", "validation_temperatures"),
    ("stage=sr3 baseline=", "baseline, sr3"),
    ("stage=sr3 baseline=sr4", "baseline, sr4, sr3-16-128"),
    ("stage=sr3 baseline=edsr-x4", "baseline, SR3UNet, EDSR"),
    ("stage=regression baseline=edsr-x2", "edsr-x2, scale_factor, 2, 4"),
    ("stage=regression baseline=TYPED", "baseline, widht"),
    ("stage=ddpm baseline=FIXED", "scheduler, fixed_small"),  # it does not predict variances
    ("stage=hcflow mixed_precision=bf16", "mixed_precision, hcflow"),
    ("stage=regression pretrained_network=PRIOR", "pretrained_network, prior"),
    ("lr_scheduler=piecewise_constant", "lr_step_rules"),
    ("lr_scheduler=piecewise_constant lr_step_rules=1:9,0.5:3,0.1", "lr_step_rules, 1:9"),
    ("lr_scheduler=piecewise_constant lr_step_rules=1:2:3,0.5", "lr_step_rules, 1:2:3"),
    ("skip_threshold=0", "skip_threshold, above 0"),
    ("report_to=paper", "report_to, paper"),
]


@pytest.mark.parametrize("changes, named", BAD)
def test_bad_input_ends_with_one_line_and_leaves_nothing(
    changes, named, options, photos, configs, prior, tmp_path, capfd
):
    (tmp_path / "empty").mkdir()
    places = {
        "EMPTY": tmp_path / "empty",
        "PHOTOS": photos,
        "VDVAE": configs / "vdvae.json",
        "PRIOR": prior,
        "LR": configs / "lr-encoder.json",
        "DAMAGED": write(tmp_path / "damaged.json", json.dumps(VDVAE_CONFIG)[:-9]),
        "BELOW": tmp_path / "damaged.json" / "a" / "b",
        "TYPO": write(tmp_path / "typo.json", {**VDVAE_CONFIG, "widht": 8}),
        "OTHER": write(tmp_path / "other.json", {"_class_name": "LREncoder", **VDVAE_CONFIG}),
        "BLOCKS": write(tmp_path / "blocks.json", {**VDVAE_CONFIG, "decoder_blocks": "8y1"}),
        "TYPED": write(tmp_path / "typed.json", {"architecture": "RRDBNet", "widht": 8}),
        "FIXED": write(tmp_path / "fixed.json", {**BASELINES["ddpm"], "scheduler": {"beta_end": 0.1}}),
        "UNKNOWN": write(tmp_path / "unknown.yaml", "learning_rat: 1.0e-3\n"),
        "WRONG": write(tmp_path / "wrong.yaml", "crops_per_image: 2.5\n"),
        "LIST": write(tmp_path / "list.yaml", "- 1\n"),
        "BROKEN": write(tmp_path / "broken.yaml", "a: [1\nb: {"),
    }
    before = sorted(tmp_path.rglob("*"))
    given = [change.split("=") for change in changes.split()]
    values = {"stage": "vdvae", "output_dir": tmp_path / "out", "train_data_dir": MISSING}
    values |= {name: places.get(value, value) or None for name, value in given}
    assert train.main(options(**values)) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("train.py: error: "), lines
    assert all(word in lines[0] for word in named.split(", ")), lines[0]
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["wandb", "all"])
def test_a_tracker_that_is_not_installed_is_refused(name, options, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(tracking, "_available_trackers", [])
    assert train.main(options("vdvae", tmp_path / "out", report_to=name, train_data_dir=MISSING)) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "`report_to`" in line and "installed" in line and not (tmp_path / "out").exists()


def test_parameters_that_nothing_reads_are_named(options, run, tmp_path, caplog):
    blocks = {"blocks": "8x1,8d2,4x1", "upsampling_blocks": None, "num_conditioned_groups": 1}
    lr_config = write(tmp_path / "lr.json", {**LR_CONFIGS["lr-encoder"], **blocks})
    config = parse_arguments(options("lr-encoder", tmp_path / "out", lr_config=lr_config))
    objective, named = build_objective(config), r"parameters get no gradient.*lr_network\.network.*blocks\."
    with pytest.raises(ValueError, match=named):
        check_objective(objective, config, torch.device("cpu"), num_processes=2)
    check_objective(objective, config, torch.device("cpu"), num_processes=1)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert re.search(named, caplog.text)
    assert all(parameter.grad is None for parameter in objective.parameters())
    run("lr-encoder", tmp_path / "out", lr_config=lr_config, max_train_steps=1)


REFUSED = [  # how a command that goes on differs from the first, and what the error says
    ({"resume_from_checkpoint": None, "seed": 1}, "`output_dir`"),
    ({"learning_rate": 1e-4}, "`learning_rate` is 0.0001"),
    ({"adam_beta1": 0.5}, "`adam_beta1` is 0.5"),
    ({"ema_decay": 0.5}, "`ema_decay` is 0.5"),
    ({"seed": 5}, "`seed` is 5"),
    ({"lr_scheduler": "plateau"}, "`lr_scheduler` 'plateau'"),
    ({"vdvae_config": "WIDE"}, "`resume_from_checkpoint`"),
    ({"resume_from_checkpoint": "ELSEWHERE"}, "`resume_from_checkpoint`"),  # a checkpoint of another run
    ({"train_batch_size": 4}, "= 4 must be the 2 crops an update of"),
    ({"gradient_accumulation_steps": 2}, "= 4 must be the 2 crops an update of"),
]


def test_what_a_run_cannot_go_on_with_is_refused_and_changes_nothing(options, run, tmp_path, capsys):
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere" / "checkpoint-2"
    run("vdvae", out, max_train_steps=2)
    shutil.copytree(out / "checkpoint-2", elsewhere)
    places = {"WIDE": write(tmp_path / "wide.json", {**VDVAE_CONFIG, "width": 12}), "ELSEWHERE": elsewhere}
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for changes, message in REFUSED:
        given = {name: places.get(value, value) for name, value in changes.items()}
        assert train.main(options("vdvae", out, **{"max_train_steps": 4, **LATEST, **given})) == 2, changes
        assert message in capsys.readouterr().err.splitlines()[-1], changes
        assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before, changes


@pytest.mark.parametrize("begun", [2, 3])
@pytest.mark.parametrize(
    "changes", [{"plateau_factor": 0.3}, {"train_batch_size": 1, "gradient_accumulation_steps": 2}]
)
def test_what_changes_nothing_of_a_run_may_change(changes, begun, run, tmp_path):
    whole, out = run("vdvae", tmp_path / "whole", max_train_steps=6), tmp_path / "out"
    run("vdvae", out, max_train_steps=begun)
    for expected, found in zip(whole, run("vdvae", out, max_train_steps=6, **LATEST, **changes), strict=True):
        assert found["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-3)


@pytest.mark.parametrize("variable, given, named", [
    ("GRADIENT_ACCUMULATION_STEPS", "4", "`gradient_accumulation_steps` is 1, but the environment says 4"),
    ("MIXED_PRECISION", "bf16", "`mixed_precision` is 'no', but the environment says 'bf16'"),
    ("MIXED_PRECISION", "no", ""),
])  # fmt: skip
def test_what_the_environment_says_alone_is_refused(variable, given, named, options, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(f"ACCELERATE_{variable}", given)
    assert train.main(options("vdvae", tmp_path / "out")) == (2 if named else 0)
    assert named in capsys.readouterr().err
    if named:
        assert train.main(options("vdvae", tmp_path / "out", dry_run="true")) == 2
        assert named in capsys.readouterr().err


def test_images_held_out_below_those_to_train_on_are_not_trained_on(options, photos, tmp_path, caplog):
    both, number = tmp_path / "photos", len(list(photos.iterdir()))
    for name in ("", "held out"):
        shutil.copytree(photos, both / name)
    arguments = options("vdvae", tmp_path / "out", train_data_dir=both, validation_data_dir=both / "held out")
    config = parse_arguments(arguments)
    assert build_training_set(config, 0, 1).num_images == number
    assert len(build_validation_set(config)) == number and "trained on too" not in caplog.text
    low = shutil.copytree(photos, both / "held out, small")
    assert build_training_set(replace(config, validation_lr_dir=[str(low)]), 0, 1).num_images == number
    shutil.rmtree(low)
    build_validation_set(replace(config, validation_data_dir=[str(both)]))
    assert "its images are trained on too" in caplog.text


# Options


def test_the_options_of_a_run_are_a_recipe(options, photos, tmp_path):
    config = parse_arguments(options("vdvae", tmp_path / "a", validation_data_dir=photos, num_train_epochs=2))
    assert parse_arguments(config.arguments) == config
    config.save(tmp_path / "training_config.json")
    arguments = ["--config", str(tmp_path / "training_config.json"), "--train_data_dir", "b"]
    assert parse_arguments(arguments) == replace(config, train_data_dir=["b"])
    relative = write(tmp_path / "a.yaml", f"vdvae_config: {os.path.relpath(config.vdvae_config, tmp_path)}")
    other = parse_arguments([*options("vdvae", tmp_path / "b", vdvae_config=None), "--config", str(relative)])
    other.save(tmp_path / "b.json")
    again = parse_arguments(["--config", str(tmp_path / "b.json")])
    assert os.path.abspath(again.vdvae_config) == os.path.abspath(other.vdvae_config)
    with pytest.raises(ValueError, match="scales"):
        parse_arguments([*options("vdvae", tmp_path), "--config", str(write(tmp_path / "c.json", {"scales": []}))])


def test_options_that_a_stage_does_not_read_are_not_checked(options, tmp_path):
    for stage, changes in (("vdvae", {"resolution": 50}), ("vdvae-sr", {"resolution": 54, "scale_factor": 3})):
        parse_arguments(options(stage, tmp_path / "out", **changes))


@pytest.mark.parametrize("stage, index", [("vdvae", "config.json"), ("vdvae-sr", "model_index.json")])
def test_a_folder_whose_export_was_cut_short_does_not_load_as_a_mixture(
    stage, index, options, run, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    run(stage, out)
    before = weights(out)
    replace_file, moved = os.replace, []

    def cut_short(source, target):
        if ".safetensors" in str(target) and "checkpoint" not in str(target) and ".tmp" not in str(target):
            moved.append(target)
            raise KeyboardInterrupt
        replace_file(source, target)

    resume = options(stage, out, max_train_steps=4, **LATEST)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(os, "replace", cut_short)
        train.main(resume)
    assert moved and not (out / index).exists() and not list(out.glob(".*"))
    assert train.main(resume) == 0
    assert (out / index).exists() and weights(out).keys() == before.keys()


def test_the_command_line_overrides_the_recipe(tmp_path):
    recipe = {
        "stage": "vdvae", "vdvae_config": "vdvae/config.json", "train_data_dir": ["a", "b"], "learning_rate": "2e-3",
        "rotate": False, "max_train_steps": 7, "report_to": None, "use_ema": True,
    }  # fmt: skip
    path = write(tmp_path / "train.yaml", yaml.safe_dump(recipe))
    config = parse_arguments(["--config", str(path), "--output_dir", "out"])
    assert config.train_data_dir == ["a", "b"] and config.learning_rate == 2e-3
    assert config.rotate is False and config.use_ema is True and config.report_to is None
    assert config.vdvae_config == str(tmp_path / "vdvae" / "config.json")
    config = parse_arguments(
        f"--config={path} --output-dir out --max_train_steps 9 --train_data_dir c --rotate true --no_use_ema".split()
    )
    assert config.train_data_dir == ["c"] and config.max_train_steps == 9
    assert config.rotate is True and config.use_ema is False
    assert parse_arguments(f"--config {path} --output_dir out --use_ema false".split()).use_ema is False


def test_updates_of_the_command_line_count_more_than_epochs_of_a_recipe(options, tmp_path):
    recipe = write(tmp_path / "train.yaml", "num_train_epochs: 1\nmixed_precision: no\n")  # without quotes: False
    arguments = [*options("vdvae", tmp_path / "out", max_train_steps=None), "--config", str(recipe)]
    config = parse_arguments(arguments)
    assert (config.num_train_epochs, config.mixed_precision) == (1, "no")
    for given in (["--max_train_steps", "2"], ["--max_train_steps=2"]):
        config = parse_arguments([*arguments, *given])
        assert (config.num_train_epochs, config.max_train_steps) == (None, 2)


def test_a_checkpoint_without_a_scale_is_none_for_fp16(options, tmp_path):
    before = tmp_path / "training_config.json"
    parse_arguments(options("vdvae", tmp_path)).save(before)
    with pytest.raises(ValueError, match="`mixed_precision` 'fp16' cannot go on from a checkpoint of 'no'"):
        parse_arguments(options("vdvae", tmp_path, mixed_precision="fp16")).check_resumed(before)
    parse_arguments(options("vdvae", tmp_path, mixed_precision="bf16")).check_resumed(before)


REQUIRED = {"train_data_dir": ["x"], "output_dir": "out", "vdvae_config": "c.json"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"train_batch_size": 1.5}, {"max_train_steps": "a"}, {"max_train_steps": True}, {"num_train_epochs": 0.5},
        {"use_ema": "x"}, {"score_patch_sizes": "a"}, {"train_data_dir": "a"}, {"score_low_temperatures": 2.0},
        {"score_level_dropout": [-0.5]}, {"scales": []}, {"scales": [0.0]}, {"downsampling_kernel": "nope"},
    ],
)  # fmt: skip
def test_options_of_another_type_or_out_of_range_are_named(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=f"^`{name}` must .*{re.escape(repr(value))}$"):
        TrainingConfig(**REQUIRED | wrong)


def test_whole_numbers_and_paths_are_taken_for_floats_and_text(tmp_path):
    given = {"train_data_dir": [tmp_path / "in"], "output_dir": tmp_path, "vdvae_config": Path("~/c.json")}
    config = TrainingConfig(**given, learning_rate=1, scales=[1])
    config.save(tmp_path / "options.json")
    assert config.train_data_dir == [str(tmp_path / "in")] and not config.vdvae_config.startswith("~")


def test_help_says_what_turns_an_option_off(capsys):
    with pytest.raises(SystemExit):
        parse_arguments(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "--no-use-ema Turns --use_ema off." in said and "any of the options above" in said


def test_the_weight_of_the_rate_follows_the_given_points():
    assert TrainingConfig(**REQUIRED).rate_weight(5) == 1.0
    config = TrainingConfig(**REQUIRED, rate_weights=["10:0.5", "20:1.0", "20:0.25"])
    assert [config.rate_weight(step) for step in (0, 10, 15, 20, 99)] == [0.5, 0.5, 0.75, 0.25, 0.25]
    for entries in (["5"], ["a:1"], ["5:-1"], ["5:nan"], ["9:1", "3:1"]):
        with pytest.raises(ValueError, match="rate_weights"):
            TrainingConfig(**REQUIRED, rate_weights=entries)
