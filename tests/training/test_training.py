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
    assert_same,
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
from hvae_sr.training.checkpoints import list_checkpoints
from hvae_sr.training.networks import build_objective, check_objective
from hvae_sr.training.signals import leave_to_the_run

# Stages


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_leaves_what_it_should(stage, options, tmp_path):
    out = tmp_path / "out"
    assert train.main(options(stage, out)) == 0
    if stage == "vdvae":
        network = VDVAE.from_pretrained(out)
        assert torch.isfinite(network(torch.zeros(1, 3, 32, 32)).loss).all()
    else:
        pipeline = pipeline_class(out).from_pretrained(out)
        assert pipeline.config.scale_factor == 4
        pipeline.set_progress_bar_config(disable=True)
        sample = pipeline(Image.new("RGB", (8, 8), (90, 120, 60)), num_samples=2, seed=0)
        assert [image.size for image in sample.images] == [(32, 32)] * 2
    records = log(out)
    assert [record["step"] for record in records] == [1, 2, 3]
    figure = FIGURES[stage]
    for record in records:
        assert record[figure] > 0 and record["grad_norm"] > 0
        assert record["learning_rate"] == 3e-3 and record["skipped_updates"] == 0
    for line in (out / "log.jsonl").read_text().splitlines():
        record = json.loads(line)
        assert record["images_per_second"] > 0 and 0 < record["mfu"] < 1
    saved = json.loads((out / "training_config.json").read_text())
    assert saved == asdict(parse_arguments(options(stage, out)))
    assert [path.name for path in list_checkpoints(out)] == ["checkpoint-3"]


@pytest.mark.parametrize("stage", STAGES)
def test_the_loss_falls_on_a_toy_set(stage, options, tmp_path):
    arguments = options(stage, tmp_path, max_train_steps=60, logging_steps=10, learning_rate=5e-3, train_batch_size=4)
    assert train.main(arguments) == 0
    losses = [record[FIGURES[stage]] for record in log(tmp_path)]
    assert len(losses) == 6 and losses[-1] < 0.95 * losses[0]


@pytest.mark.parametrize(
    "stage, extra", [("lr-encoder", {}), ("vdvae-sr", {"train_decoder": "false"}), ("vdvae-sr", {})]
)
def test_a_frozen_prior_is_bitwise_untouched_and_only_then(stage, extra, options, prior, tmp_path):
    assert train.main(options(stage, tmp_path, **extra)) == 0
    before, after = weights(prior), weights(tmp_path / "vdvae")
    same = [torch.equal(before[name], after[name]) for name in before]
    assert before.keys() == after.keys()
    assert all(same) if stage == "lr-encoder" or extra else not all(same)
    lr_network = weights(tmp_path / "lr_encoder")
    assert all(torch.isfinite(x).all() for x in lr_network.values())


def test_training_goes_on_from_a_pretrained_lr_network(options, configs, tmp_path):
    assert train.main(options("lr-encoder", tmp_path / "first")) == 0
    again = options(
        "lr-encoder", tmp_path / "second", lr_config=None, pretrained_lr_encoder=tmp_path / "first" / "lr_encoder",
        skip_threshold=1e-30,
    )  # fmt: skip
    assert train.main(again) == 0
    first, second = weights(tmp_path / "first"), weights(tmp_path / "second")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_averaged_weights_are_saved_and_validated(options, photos, tmp_path):
    arguments = options("vdvae", tmp_path, max_train_steps=4, validation_data_dir=photos, validation_steps=2)
    assert train.main(arguments) == 0
    found = {each["step"]: each["validation_bits_per_dim"] for each in log(tmp_path) if "validation_rate" in each}
    assert sorted(found) == [2, 4]
    held_out = ImageFolder(photos, 32, horizontal_flip=False, scales=(1.0,))
    images = torch.stack([held_out[i]["image"] for i in range(5)])
    objective = build_objective(parse_arguments(arguments))
    objective.vdvae.load_state_dict(VDVAE.from_pretrained(tmp_path).state_dict())
    with torch.no_grad():
        _, figures = objective(images, range(5))
    assert found[4] == pytest.approx(float(figures["bits_per_dim"]), rel=1e-5)
    model, custom = state(tmp_path / "checkpoint-4")
    exported = weights(tmp_path)
    assert not any(torch.equal(x, model[f"vdvae.{name.split(':')[1]}"]) for name, x in exported.items() if x.ndim > 1)


def test_validation_leaves_the_run_as_it_was(options, photos, tmp_path):
    assert train.main(options("vdvae", tmp_path / "a")) == 0
    assert train.main(options("vdvae", tmp_path / "b", validation_data_dir=photos, validation_steps=1)) == 0
    assert_same(weights(tmp_path / "a"), weights(tmp_path / "b"))


def test_noise_order_and_weights_depend_on_the_seed_and_not_on_workers(options, prior, tmp_path):
    figures = {}
    for name, seed, workers in (("a", 0, 0), ("b", 0, 2), ("c", 1, 0)):
        changes = {"seed": seed, "dataloader_num_workers": workers, "vdvae_config": None, "pretrained_vdvae": prior}
        assert train.main(options("vdvae", tmp_path / name, max_train_steps=7, **changes)) == 0
        figures[name] = log(tmp_path / name)
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
def test_a_resumed_run_equals_one_that_never_stopped(case, options, tmp_path):
    """An epoch has 5 updates, or 2 and a batch left over with accumulation: steps 2 to 5 are amid and on borders."""
    stage, extra = RESUMING[case]
    extra = {"max_train_steps": 6, "checkpointing_steps": 1, "checkpoints_total_limit": 9, **extra}
    straight = tmp_path / "straight"
    assert train.main(options(stage, straight, **extra)) == 0
    for step in (2, 3, 5):
        out = tmp_path / f"from-{step}"
        if step == 3:  # amid an epoch, as after a crash: in place, the log ahead of the checkpoint and cut off
            shutil.copytree(straight, out, ignore=lambda folder, names: [f"checkpoint-{n}" for n in (4, 5, 6)])
            (out / "log.jsonl").write_text((out / "log.jsonl").read_text() + '{"step": 7, "bi')
            resume = "latest"
        else:
            resume = straight / f"checkpoint-{step}"
        assert train.main(options(stage, out, **extra, resume_from_checkpoint=resume)) == 0
        assert_same(weights(straight), weights(out))
        assert_equal_trees(state(straight / "checkpoint-6"), state(out / "checkpoint-6"))
        assert log(out) == log(straight)[0 if step == 3 else step :]


def test_a_finished_run_is_resumed_to_more_steps_or_to_none(options, tmp_path):
    assert train.main(options("vdvae", tmp_path / "straight", max_train_steps=4)) == 0
    out = tmp_path / "out"
    # "latest" without a checkpoint is a fresh start.
    assert train.main(options("vdvae", out, max_train_steps=2, resume_from_checkpoint="latest")) == 0
    after_two = weights(out)
    assert train.main(options("vdvae", out, max_train_steps=2, resume_from_checkpoint="latest")) == 0
    assert_same(after_two, weights(out))
    assert train.main(options("vdvae", out, max_train_steps=4, resume_from_checkpoint="latest")) == 0
    assert_same(weights(tmp_path / "straight"), weights(out))
    assert log(out) == log(tmp_path / "straight")


def test_a_finished_run_that_is_lengthened_learns_from_its_first_update(options, tmp_path):
    """The schedule of four updates ends with the rate 0, that of eight is half way there."""
    common = {"lr_scheduler": "cosine", "checkpointing_steps": 1, "checkpoints_total_limit": 9}
    assert train.main(options("vdvae", tmp_path, max_train_steps=4, **common)) == 0
    assert log(tmp_path)[-1]["learning_rate"] == 0
    longer = options("vdvae", tmp_path, max_train_steps=8, **common, resume_from_checkpoint="latest")
    assert train.main(longer) == 0
    (before, _), (after, _) = (state(tmp_path / f"checkpoint-{step}") for step in (4, 5))
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert [record["learning_rate"] for record in log(tmp_path)[4:]] == pytest.approx(
        [3e-3 * (1 + math.cos(math.pi * step / 8)) / 2 for step in (5, 6, 7, 8)], abs=1e-12
    )


def test_a_run_that_went_further_than_is_asked_for_says_so(options, tmp_path, caplog):
    assert train.main(options("vdvae", tmp_path, max_train_steps=4)) == 0
    assert train.main(options("vdvae", tmp_path, max_train_steps=4, resume_from_checkpoint="latest")) == 0
    assert "max_train_steps" not in caplog.text
    assert train.main(options("vdvae", tmp_path, max_train_steps=3, resume_from_checkpoint="latest")) == 0
    assert "`max_train_steps` 3: the checkpoint is of update 4, and its weights are what is written" in caplog.text


def test_rotation_keeps_the_newest_checkpoints_also_after_going_back(options, tmp_path):
    common = {"checkpointing_steps": 1, "checkpoints_total_limit": 2}
    assert train.main(options("vdvae", tmp_path, max_train_steps=5, **common)) == 0
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-4", "checkpoint-5"]
    shutil.copytree(tmp_path / "checkpoint-4", tmp_path / "checkpoint-30")  # of a run that went further
    back = options("vdvae", tmp_path, max_train_steps=6, **common, resume_from_checkpoint=tmp_path / "checkpoint-4")
    assert train.main([*back, "--dry_run"]) == 0 and len(list_checkpoints(tmp_path)) == 3
    killed = pytest.MonkeyPatch()
    with killed.context() as patch, pytest.raises(MemoryError):  # before the next checkpoint
        patch.setattr(Trainer, "step", lambda *arguments: exec("raise MemoryError"))
        train.main(back)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-4"]
    assert train.main(back) == 0
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-5", "checkpoint-6"]
    assert [record["step"] for record in log(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert not list(tmp_path.glob("*.partial"))


# Other processes


def test_a_run_killed_while_it_saves_goes_on_from_the_checkpoint_before(options, tmp_path):
    common = {"max_train_steps": 5, "checkpointing_steps": 2}
    assert train.main(options("vdvae", tmp_path / "straight", **common)) == 0
    out = tmp_path / "out"
    process = started(options("vdvae", out, **common), stop_at="checkpoint-4")
    partial = out / "checkpoint-4.partial"
    wait_until(lambda: (partial / "custom_checkpoint_2.pkl").exists(), process)
    os.kill(process.pid, signal.SIGKILL)
    status(process)
    assert partial.exists() and not (out / "checkpoint-4").exists() and not (out / "config.json").exists()
    for file in partial.iterdir():
        file.write_bytes(b"not to be read")
    assert train.main(options("vdvae", out, **common, resume_from_checkpoint=partial)) == 2
    assert train.main(options("vdvae", out, **common, resume_from_checkpoint="latest")) == 0
    assert [path.name for path in list_checkpoints(out)] == ["checkpoint-4", "checkpoint-5"]
    assert not list(out.glob("*.partial"))
    assert_same(weights(tmp_path / "straight"), weights(out))
    assert log(out) == log(tmp_path / "straight")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_asked_to_stop_saves_a_checkpoint_first(signum, options, tmp_path):
    out = tmp_path / "out"
    process = started(options("vdvae", out, max_train_steps=100000))
    wait_until(lambda: (out / "log.jsonl").exists() and len((out / "log.jsonl").read_text()) > 500, process)
    os.kill(process.pid, signum)
    assert status(process) == 128 + signum
    (checkpoint,) = list_checkpoints(out)
    step = int(checkpoint.name.split("-")[1])
    assert [record["step"] for record in log(out)] == list(range(1, step + 1))
    assert not (out / "config.json").exists()
    assert train.main(options("vdvae", out, max_train_steps=step + 2, resume_from_checkpoint="latest")) == 0
    assert [record["step"] for record in log(out)] == list(range(1, step + 3))


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
    assert process.returncode == 128 + signal.SIGTERM and len(list_checkpoints(out)) == 1


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
def test_two_processes_train_like_one(stage, accumulation, options, photos, tmp_path):
    """8 updates in epochs of 3 or 2, a batch left over; the second process run resumes amid an epoch."""
    common = {
        "max_train_steps": 8, "crops_per_image": 3 if accumulation == 1 else 4, "checkpointing_steps": 4,
        "gradient_accumulation_steps": accumulation, "lr_scheduler": "cosine", "lr_warmup_steps": 3,
        "validation_data_dir": photos, "validation_steps": 4,
    }  # fmt: skip
    one, two, resumed = tmp_path / "one", tmp_path / "two", tmp_path / "resumed"
    assert train.main(options(stage, one, **common, train_batch_size=4)) == 0
    on_processes(options(stage, two, **common, train_batch_size=2))
    assert len(log(one)) == 10
    for expected, found in zip(log(one), log(two), strict=True):
        assert found.keys() == expected.keys()
        for name in expected:  # also the figures of every group
            # LR-PSNR is that of 8-bit images, of which the last digit of a float may turn a pixel.
            rel = 1e-3 if "lr_psnr" in name else 1e-4
            assert found[name] == pytest.approx(expected[name], rel=rel, abs=1e-8), name
    if stage == "vdvae":
        on_processes(options(stage, resumed, **common, train_batch_size=2, resume_from_checkpoint=two / "checkpoint-4"))
        assert log(resumed) == log(two)[5:]
        assert_same(weights(two), weights(resumed))
        # And one process goes on from what two have left.
        back = tmp_path / "back"
        arguments = options(stage, back, **common, train_batch_size=4, resume_from_checkpoint=two / "checkpoint-4")
        assert train.main(arguments) == 0
        for expected, found in zip(log(one)[5:], log(back), strict=True):
            name = "bits_per_dim" if "bits_per_dim" in expected else "validation_bits_per_dim"
            assert found[name] == pytest.approx(expected[name], rel=1e-4)


@pytest.mark.skipif(not is_torch_version(">=", "2.7"), reason="FSDP needs torch 2.7 or later")
@pytest.mark.parametrize("precision", ["no", pytest.param("bf16", marks=pytest.mark.slow)])
def test_two_processes_that_share_the_parameters_train_like_one(precision, options, photos, tmp_path):
    """FSDP: the loss, the figures of validation, the exported weights; and a resume, which must be bitwise."""
    common = {
        "max_train_steps": 4, "checkpointing_steps": 2, "validation_data_dir": photos, "validation_steps": 2,
        "gradient_accumulation_steps": 2, "mixed_precision": precision, "score_point_weight": 1.0,
    }  # fmt: skip
    one, two, resumed = tmp_path / "one", tmp_path / "two", tmp_path / "resumed"
    assert train.main(options("energy-score", one, **common)) == 0
    arguments = options("energy-score", two, **common, train_batch_size=1)
    on_processes(arguments, sharded=True)
    tolerance = 1e-4 if precision == "no" else 2e-2
    for expected, found in zip(log(one), log(two), strict=True):
        assert found.keys() == expected.keys()
        for name in expected:
            if not name.endswith("_ratio"):  # of what each process has alone, averaged
                assert found[name] == pytest.approx(expected[name], rel=tolerance, abs=1e-7), name
    expected, found = weights(one), weights(two)
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


def test_sharding_of_the_first_kind_is_refused(options, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(Accelerator, "distributed_type", property(lambda self: DistributedType.FSDP))
    assert train.main(options("vdvae", tmp_path / "out", train_data_dir=MISSING)) == 2
    assert "fsdp_version: 2" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_sharding_by_a_torch_that_cannot_is_refused(options, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(Accelerator, "distributed_type", property(lambda self: DistributedType.FSDP))
    monkeypatch.setattr(Accelerator, "is_fsdp2", True)
    monkeypatch.setattr(torch, "__version__", "2.6.0")
    monkeypatch.setattr("hvae_sr.training.sharding.is_torch_version", lambda operation, version: False)
    assert train.main(options("vdvae", tmp_path / "out", train_data_dir=MISSING)) == 2
    assert "FSDP needs torch 2.7 or later, found 2.6.0" in capfd.readouterr().err


@pytest.mark.parametrize("path", sorted(ACCELERATE.glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_the_files_for_several_processes(path):
    config = load_config_from_file(str(path))
    kinds = {"fsdp": DistributedType.FSDP}
    assert config.distributed_type == kinds.get(path.stem, DistributedType.MULTI_GPU)
    assert config.num_processes % config.num_machines == 0 and not config.use_cpu
    assert (path.stem == "fsdp") == bool(config.fsdp_config)


# Unsound gradients, precision, memory


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), 1e9])
def test_an_update_with_an_unsound_gradient_is_skipped_and_counted(factor, options, tmp_path):
    arguments = options("vdvae", tmp_path, checkpointing_steps=1, checkpoints_total_limit=9, lr_scheduler="linear")
    trainer = Trainer(parse_arguments(arguments))
    trainer.trainable[0].register_hook(lambda gradient: gradient * factor if trainer.progress.step == 1 else gradient)
    trainer.train()
    records = log(tmp_path)
    assert [record["skipped_updates"] for record in records] == [0, 1, 1]
    assert [record["learning_rate"] for record in records] == pytest.approx([2e-3, 1e-3, 0])
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
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-2"]


def test_a_run_that_leaves_most_updates_out_says_so(options, tmp_path, caplog):
    assert train.main(options("vdvae", tmp_path, skip_threshold=1e-30)) == 0
    assert "3 of 3 updates were left out" in caplog.text
    card = " ".join((tmp_path / "README.md").read_text().split())
    assert "3 updates (3 of them left out for their gradients)" in card


@pytest.mark.parametrize("stage", ["regression", "vdvae"])
def test_an_objective_that_accelerate_compiles_trains_and_validates(stage, options, photos, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")
    assert train.main(options(stage, tmp_path, max_train_steps=1, validation_data_dir=photos)) == 0
    assert any("psnr" in name or "group" in name for record in log(tmp_path) for name in record)
    assert list(tmp_path.rglob("step-0000001-samples.png"))


@pytest.mark.parametrize("stage", sorted(set(STAGES) - {"hcflow"}))
def test_mixed_precision_and_gradient_checkpointing_run(stage, options, tmp_path):
    reference, out = tmp_path / "reference", tmp_path / "bf16"
    assert train.main(options(stage, reference)) == 0
    AcceleratorState._reset_state(reset_partial_state=True)
    assert train.main(options(stage, out, mixed_precision="bf16", gradient_checkpointing="true")) == 0
    figure = FIGURES[stage]
    for expected, found in zip(log(reference), log(out), strict=True):
        assert found[figure] == pytest.approx(expected[figure], rel=0.1)
    assert all(x.dtype == torch.float32 for x in weights(out).values())


# Bad input


MISSING = "no-such-folder"
BAD = {  # what is changed, and what the error must name; the folder of photographs is missing where it is not needed
    "a stage that does not exist": ({"stage": "vqvae"}, ["stage", "vqvae"]),
    "a folder that does not exist": ({}, ["train_data_dir", MISSING]),
    "an empty folder": ({"train_data_dir": "EMPTY"}, ["train_data_dir", "0 image files"]),
    "crops larger than every image": ({"resolution": 64, "train_data_dir": "PHOTOS"}, ["resolution", "64"]),
    "a size that the model cannot have": ({"resolution": 34, "scale_factor": 2}, ["resolution", "34"]),
    "a size that is no multiple of the scale": ({"resolution": 34}, ["resolution", "34", "4"]),
    "no prior": ({"stage": "lr-encoder", "pretrained_vdvae": None}, ["pretrained_vdvae"]),
    "a prior that does not exist": (
        {"vdvae_config": None, "pretrained_vdvae": "/no/such/prior"},
        ["pretrained_vdvae", "/no/such/prior"],
    ),
    "a prior without weights": ({"vdvae_config": None, "pretrained_vdvae": "EMPTY"}, ["pretrained_vdvae", "empty"]),
    "a damaged configuration": ({"vdvae_config": "DAMAGED"}, ["vdvae_config", "damaged"]),
    "a configuration with a typo": ({"vdvae_config": "TYPO"}, ["vdvae_config", "widht"]),
    "a configuration of something else": ({"vdvae_config": "OTHER"}, ["vdvae_config"]),
    "block notation that is none": ({"vdvae_config": "BLOCKS"}, ["decoder_blocks", "8y1"]),
    "a batch larger than the epoch": (
        {"train_batch_size": 11, "train_data_dir": "PHOTOS"},
        ["train_batch_size", "11", "10"],
    ),
    "more accumulation than an epoch has": (
        {"gradient_accumulation_steps": 6, "train_data_dir": "PHOTOS"},
        ["gradient_accumulation_steps", "6", "10"],
    ),
    "a checkpoint that does not exist": ({"resume_from_checkpoint": MISSING}, ["resume_from_checkpoint", MISSING]),
    "a checkpoint that is none": (
        {"resume_from_checkpoint": "EMPTY", "train_data_dir": "PHOTOS"},
        ["resume_from_checkpoint", "empty"],
    ),
    "no steps": ({"max_train_steps": 0}, ["max_train_steps", "0"]),
    "an endless rate": ({"learning_rate": "inf"}, ["learning_rate", "inf"]),
    "a precision that does not exist": ({"mixed_precision": "fp64"}, ["mixed_precision", "fp64"]),
    "a dtype to save that is none": ({"saved_dtype": "int8"}, ["saved_dtype", "int8"]),
    "a schedule that does not exist": ({"lr_scheduler": "cosin"}, ["lr_scheduler", "cosin"]),
    "an option that does not exist": ({"batch_size": 4}, ["--batch_size"]),
    "a recipe that does not exist": ({"config": "no-recipe.yaml"}, ["config", "no-recipe.yaml"]),
    "a recipe with an unknown option": ({"config": "UNKNOWN"}, ["config", "learning_rat"]),
    "a recipe with a wrong type": ({"config": "WRONG"}, ["crops_per_image", "2.5"]),
    "a recipe that is no mapping": ({"config": "LIST"}, ["config", "mapping"]),
    "a recipe that is no YAML": ({"config": "BROKEN"}, ["config", "broken.yaml"]),
    "a network of another scale": (
        {"stage": "lr-encoder", "scale_factor": 2, "lr_config": "LR", "pretrained_vdvae": "PRIOR"},
        ["scale_factor", "2"],
    ),
    "a folder that is a file": ({"output_dir": "DAMAGED"}, ["output_dir", "damaged.json"]),
    "a folder below a file": ({"output_dir": "BELOW"}, ["output_dir", "damaged.json"]),
    "pictures among its images": ({"output_dir": "EMPTY", "train_data_dir": "EMPTY"}, ["output_dir", "train_data_dir"]),
    "a seed that torch does not take": ({"seed": 2**32}, ["seed", str(2**32)]),
    "an option cut short": ({"conf": MISSING}, ["--conf"]),
    "a decoder that would stay random": (
        {"stage": "energy-score", "pretrained_vdvae": None, "vdvae_config": "VDVAE", "train_decoder": "false"},
        ["train_decoder", "pretrained_vdvae"],
    ),
    "two sources of images": ({"dataset_name": "a/b"}, ["both"]),
    "no source of images": ({"train_data_dir": None}, ["neither"]),
    "a stream of a folder": ({"streaming": "true"}, ["streaming"]),
    "LR images beside a dataset": (
        {"train_data_dir": None, "dataset_name": "a", "train_lr_dir": "b"},
        ["train_lr_dir"],
    ),
    "LR images of the same size": ({"train_lr_dir": "low", "scale_factor": 1}, ["train_lr_dir"]),
    "LR images held out alone": ({"validation_lr_dir": "low"}, ["validation_lr_dir"]),
    "a split of a folder": ({"validation_split": "test"}, ["validation_split"]),
    "gradients clipped to nothing": ({"max_grad_norm": 0}, ["max_grad_norm", "0"]),
    "no epochs": ({"num_train_epochs": 0}, ["num_train_epochs"]),
    "a factor that lowers nothing": ({"plateau_factor": 1.0}, ["plateau_factor"]),
    "a temperature below 0": ({"validation_temperatures": -1}, ["validation_temperatures"]),
    "no compared system": ({"stage": "sr3", "baseline": None}, ["baseline", "sr3"]),
    "a compared system that does not exist": ({"stage": "sr3", "baseline": "sr4"}, ["baseline", "sr4", "sr3-16-128"]),
    "a compared system of another stage": ({"stage": "sr3", "baseline": "edsr-x4"}, ["baseline", "SR3UNet", "EDSR"]),
    "a compared system of another scale": (
        {"stage": "regression", "baseline": "edsr-x2"},
        ["edsr-x2", "scale_factor", "2", "4"],
    ),
    "a compared system with a typo": ({"stage": "regression", "baseline": "TYPED"}, ["baseline", "widht"]),
    "a prior of diffusion without its variances": (
        {"stage": "ddpm", "baseline": "FIXED"},
        ["scheduler", "fixed_small"],
    ),
    "a flow in half precision": ({"stage": "hcflow", "mixed_precision": "bf16"}, ["mixed_precision", "hcflow"]),
    "trained weights of another network": (
        {"stage": "regression", "pretrained_network": "PRIOR"},
        ["pretrained_network", "prior"],
    ),
    "a schedule of steps without them": ({"lr_scheduler": "piecewise_constant"}, ["lr_step_rules"]),
    "steps of a schedule that go back": (
        {"lr_scheduler": "piecewise_constant", "lr_step_rules": "1:9,0.5:3,0.1"},
        ["lr_step_rules", "1:9"],
    ),
    "steps of a schedule with more than a factor and an update": (
        {"lr_scheduler": "piecewise_constant", "lr_step_rules": "1:2:3,0.5"},
        ["lr_step_rules", "1:2:3"],
    ),
    "a threshold that leaves all updates out": ({"skip_threshold": 0}, ["skip_threshold", "above 0"]),
    "a tracker that does not exist": ({"report_to": "paper"}, ["report_to", "paper"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_ends_with_one_line_and_leaves_nothing(case, options, photos, configs, prior, tmp_path, capfd):
    changes, named = BAD[case]
    (tmp_path / "empty").mkdir()
    places = {
        "EMPTY": tmp_path / "empty",
        "PHOTOS": photos,
        "VDVAE": configs / "vdvae.json",
        "PRIOR": prior,
        "LR": configs / "lr-encoder.json",
        "DAMAGED": write(tmp_path / "damaged.json", json.dumps(VDVAE_CONFIG)[:-9]),
        "TYPO": write(tmp_path / "typo.json", json.dumps({**VDVAE_CONFIG, "widht": 8})),
        "OTHER": write(tmp_path / "other.json", json.dumps({"_class_name": "LREncoder", **VDVAE_CONFIG})),
        "BLOCKS": write(tmp_path / "blocks.json", json.dumps({**VDVAE_CONFIG, "decoder_blocks": "8y1"})),
        "TYPED": write(tmp_path / "typed.json", json.dumps({"architecture": "RRDBNet", "widht": 8})),
        "FIXED": write(tmp_path / "fixed.json", json.dumps({**BASELINES["ddpm"], "scheduler": {"beta_end": 0.1}})),
        "UNKNOWN": write(tmp_path / "unknown.yaml", "learning_rat: 1.0e-3\n"),
        "WRONG": write(tmp_path / "wrong.yaml", "crops_per_image: 2.5\n"),
        "LIST": write(tmp_path / "list.yaml", "- 1\n"),
        "BROKEN": write(tmp_path / "broken.yaml", "a: [1\nb: {"),
    }
    places["BELOW"] = places["DAMAGED"] / "a" / "b"
    before = sorted(tmp_path.rglob("*"))
    values = {"stage": "vdvae", "output_dir": tmp_path / "out", "train_data_dir": MISSING, **changes}
    values = {name: places.get(value, value) if isinstance(value, str) else value for name, value in values.items()}
    assert train.main(options(**values)) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("train.py: error: "), lines
    assert all(word in lines[0] for word in named), lines[0]
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["wandb", "all"])
def test_a_tracker_that_is_not_installed_is_refused(name, options, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(tracking, "_available_trackers", [])
    assert train.main(options("vdvae", tmp_path / "out", report_to=name, train_data_dir=MISSING)) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "`report_to`" in line and "installed" in line
    assert not (tmp_path / "out").exists()


def test_parameters_that_nothing_reads_are_named(options, tmp_path, caplog):
    blocks = {"blocks": "8x1,8d2,4x1", "upsampling_blocks": None, "num_conditioned_groups": 1}
    lr_config = write(tmp_path / "lr.json", json.dumps({**LR_CONFIGS["lr-encoder"], **blocks}))
    config = parse_arguments(options("lr-encoder", tmp_path / "out", lr_config=lr_config))
    objective, named = build_objective(config), r"parameters get no gradient.*lr_network\.network.*blocks\."
    with pytest.raises(ValueError, match=named):
        check_objective(objective, config, torch.device("cpu"), num_processes=2)
    check_objective(objective, config, torch.device("cpu"), num_processes=1)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert re.search(named, caplog.text)
    assert all(parameter.grad is None for parameter in objective.parameters())
    assert train.main(options("lr-encoder", tmp_path / "out", lr_config=lr_config, max_train_steps=1)) == 0


@pytest.mark.parametrize("stage", STAGES)
def test_every_parameter_of_a_stage_gets_a_gradient(stage, options, tmp_path):
    config = parse_arguments(options(stage, tmp_path))
    objective = build_objective(config)
    check_objective(objective, config, torch.device("cpu"), num_processes=2)
    with pytest.raises(ValueError, match="nothing to train"):
        check_objective(objective.requires_grad_(False), config, torch.device("cpu"), num_processes=1)


WIDE = "another width"
REFUSED = {  # how a command that goes on differs from the first, and what the error says
    "a fresh start": ({"resume_from_checkpoint": None, "seed": 1}, "`output_dir`"),
    "another rate": ({"learning_rate": 1e-4}, "`learning_rate` is 0.0001"),
    "another moment": ({"adam_beta1": 0.5}, "`adam_beta1` is 0.5"),
    "another average": ({"ema_decay": 0.5}, "`ema_decay` is 0.5"),
    "other crops": ({"seed": 5}, "`seed` is 5"),
    "a schedule of another kind": ({"lr_scheduler": "plateau"}, "`lr_scheduler` 'plateau'"),
    "another model": ({"vdvae_config": WIDE}, "`resume_from_checkpoint`"),
    "a checkpoint of another run": ({"resume_from_checkpoint": "ELSEWHERE"}, "`resume_from_checkpoint`"),
    "another batch size": ({"train_batch_size": 4}, "= 4 must be the 2 crops an update of"),
    "another accumulation": ({"gradient_accumulation_steps": 2}, "= 4 must be the 2 crops an update of"),
}


def test_what_a_run_cannot_go_on_with_is_refused_and_changes_nothing(options, tmp_path, capsys):
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere" / "checkpoint-2"
    assert train.main(options("vdvae", out, max_train_steps=2)) == 0
    shutil.copytree(out / "checkpoint-2", elsewhere)
    wide = write(tmp_path / "wide.json", json.dumps({**VDVAE_CONFIG, "width": 12}))
    places = {WIDE: wide, "ELSEWHERE": elsewhere}
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for case, (changes, message) in REFUSED.items():
        changes = {name: places.get(value, value) for name, value in changes.items()}
        more = {"max_train_steps": 4, "resume_from_checkpoint": "latest", **changes}
        assert train.main(options("vdvae", out, **more)) == 2, case
        assert message in capsys.readouterr().err.splitlines()[-1], case
        assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before, case


@pytest.mark.parametrize("begun", [2, 3])
@pytest.mark.parametrize(
    "changes", [{"plateau_factor": 0.3}, {"train_batch_size": 1, "gradient_accumulation_steps": 2}]
)
def test_what_changes_nothing_of_a_run_may_change(changes, begun, options, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert train.main(options("vdvae", whole, max_train_steps=6)) == 0
    assert train.main(options("vdvae", out, max_train_steps=begun)) == 0
    more = {"max_train_steps": 6, "resume_from_checkpoint": "latest"}
    assert train.main(options("vdvae", out, **more, **changes)) == 0
    for expected, found in zip(log(whole), log(out), strict=True):
        assert found["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-3)


def test_another_number_of_crops_is_told_where_a_run_goes_on(options, tmp_path, caplog):
    out = tmp_path / "out"
    assert train.main(options("vdvae", out, max_train_steps=1)) == 0
    again = {"resume_from_checkpoint": "latest"}
    assert train.main(options("vdvae", out, max_train_steps=2, **again)) == 0
    assert "an epoch is of another length" not in caplog.text
    assert train.main(options("vdvae", out, max_train_steps=3, crops_per_image=3, **again)) == 0
    assert "an epoch is of another length" in caplog.text


def test_accumulation_of_the_environment_is_refused(options, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    assert train.main(options("vdvae", tmp_path / "out")) == 2
    assert "`gradient_accumulation_steps` is 1, but the environment says 4" in capsys.readouterr().err


@pytest.mark.parametrize("given, status", [("bf16", 2), ("no", 0)])
def test_a_precision_of_the_environment_alone_is_refused(given, status, options, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", given)
    assert train.main(options("vdvae", tmp_path / "out")) == status
    assert ("`mixed_precision` is 'no', but the environment says 'bf16'" in capsys.readouterr().err) == bool(status)


def test_images_held_out_below_those_to_train_on_are_not_trained_on(options, photos, tmp_path, caplog):
    both = tmp_path / "photos"
    shutil.copytree(photos, both)
    shutil.copytree(photos, both / "held out")
    arguments = options("vdvae", tmp_path / "out", train_data_dir=both, validation_data_dir=both / "held out")
    config = parse_arguments(arguments)
    number = len(list(photos.iterdir()))
    assert len(build_training_set(config, 0, 1)) == number * config.crops_per_image
    assert len(build_validation_set(config)) == number and "trained on too" not in caplog.text
    low = both / "held out, small"
    shutil.copytree(photos, low)
    assert (
        len(build_training_set(replace(config, validation_lr_dir=[str(low)]), 0, 1)) == number * config.crops_per_image
    )
    shutil.rmtree(low)
    build_validation_set(replace(config, validation_data_dir=[str(both)]))
    assert "its images are trained on too" in caplog.text


# Options


def test_the_options_of_a_run_are_a_recipe(options, photos, tmp_path):
    config = parse_arguments(options("vdvae", tmp_path / "a", validation_data_dir=photos, num_train_epochs=2))
    config.save(tmp_path / "training_config.json")
    arguments = ["--config", str(tmp_path / "training_config.json"), "--train_data_dir", "b"]
    assert parse_arguments(arguments) == replace(config, train_data_dir=["b"])
    relative = write(tmp_path / "a.yaml", f"vdvae_config: {os.path.relpath(config.vdvae_config, tmp_path)}")
    other = parse_arguments([*options("vdvae", tmp_path / "b", vdvae_config=None), "--config", str(relative)])
    (tmp_path / "b").mkdir()
    other.save(tmp_path / "b" / "training_config.json")
    again = parse_arguments(["--config", str(tmp_path / "b" / "training_config.json")])
    assert os.path.abspath(again.vdvae_config) == os.path.abspath(other.vdvae_config)
    recipe = write(tmp_path / "empty.json", json.dumps({"scales": []}))
    with pytest.raises(ValueError, match="scales"):
        parse_arguments([*options("vdvae", tmp_path), "--config", str(recipe)])


def test_options_that_a_stage_does_not_read_are_not_checked(options, tmp_path):
    for stage, changes in (("vdvae", {"resolution": 50}), ("vdvae-sr", {"resolution": 54, "scale_factor": 3})):
        parse_arguments(options(stage, tmp_path / "out", **changes))


def test_the_card_has_the_command_of_the_run_and_not_that_of_its_caller(options, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["caller.py", "--password", "secret"])
    arguments = options("vdvae", tmp_path / "out")
    assert train.main(arguments) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "secret" not in card and "train.py --stage=vdvae" in card
    config = parse_arguments(arguments)
    assert parse_arguments(config.arguments) == config


@pytest.mark.parametrize("stage, index", [("vdvae", "config.json"), ("vdvae-sr", "model_index.json")])
def test_a_folder_whose_export_was_cut_short_does_not_load_as_a_mixture(stage, index, options, tmp_path, monkeypatch):
    out = tmp_path / "out"
    assert train.main(options(stage, out)) == 0
    before = weights(out)
    replace_file, moved = os.replace, []

    def cut_short(source, target):
        if ".safetensors" in str(target) and "checkpoint" not in str(target) and ".tmp" not in str(target):
            moved.append(target)
            raise KeyboardInterrupt
        replace_file(source, target)

    resume = options(stage, out, max_train_steps=4, resume_from_checkpoint="latest")
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", cut_short)
        with pytest.raises(KeyboardInterrupt):
            train.main(resume)
    assert moved and not (out / index).exists() and not list(out.glob(".*"))
    assert train.main(resume) == 0
    assert (out / index).exists() and weights(out).keys() == before.keys()


def test_a_cut_off_checkpoint_without_its_list_is_passed_over(options, tmp_path):
    arguments = options("vdvae", tmp_path / "out", checkpointing_steps=2, max_train_steps=4)
    assert train.main(arguments) == 0
    newest = tmp_path / "out" / "checkpoint-4"
    (newest / "files.json").unlink()
    data = (newest / "model.safetensors").read_bytes()
    (newest / "model.safetensors").write_bytes(data[: len(data) // 2])
    assert train.main([*arguments, "--resume_from_checkpoint", "latest"]) == 0
    assert log(tmp_path / "out")[-1]["step"] == 4


def test_the_command_line_overrides_the_recipe(tmp_path):
    (tmp_path / "vdvae").mkdir()
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
    recipe = write(tmp_path / "train.yaml", "num_train_epochs: 1\n")
    arguments = options("vdvae", tmp_path / "out", max_train_steps=None)
    assert parse_arguments([*arguments, "--config", str(recipe)]).num_train_epochs == 1
    for given in (["--max_train_steps", "2"], ["--max_train_steps=2"]):
        config = parse_arguments([*arguments, *given, "--config", str(recipe)])
        assert (config.num_train_epochs, config.max_train_steps) == (None, 2)


def test_a_checkpoint_without_a_scale_is_none_for_fp16(options, tmp_path):
    before = tmp_path / "training_config.json"
    parse_arguments(options("vdvae", tmp_path)).save(before)
    config = parse_arguments(options("vdvae", tmp_path, mixed_precision="fp16"))
    with pytest.raises(ValueError, match="`mixed_precision` 'fp16' cannot go on from a checkpoint of 'no'"):
        config.check_resumed(before)
    parse_arguments(options("vdvae", tmp_path, mixed_precision="bf16")).check_resumed(before)


def test_a_recipe_may_say_no_without_quotes(options, tmp_path):
    recipe = write(tmp_path / "train.yaml", "mixed_precision: no\n")
    assert parse_arguments([*options("vdvae", tmp_path / "out"), "--config", str(recipe)]).mixed_precision == "no"


RECIPES = sorted((Path(__file__).parents[2] / "hub_configs").glob("*/train*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_the_recipes_of_the_checkpoints_are_complete(path):
    given = "--train_data_dir in --output_dir out --pretrained_vdvae prior --pretrained_lr_encoder encoder "
    given += "--pretrained_network network"
    config = parse_arguments(f"--config {path} {given} --lpips_weights vgg16.safetensors".split())
    for file in (config.vdvae_config, config.lr_config):
        assert file is None or json.loads(Path(file).read_text())


@pytest.mark.parametrize(
    "wrong",
    [
        {"train_batch_size": 1.5}, {"max_train_steps": "a"}, {"max_train_steps": True}, {"num_train_epochs": 0.5},
        {"use_ema": "x"}, {"score_patch_sizes": "a"}, {"train_data_dir": "a"}, {"score_low_temperatures": 2.0},
        {"score_level_dropout": [-0.5]}, {"scales": []}, {"scales": [0.0]}, {"downsampling_kernel": "nope"},
    ],
)  # fmt: skip
def test_options_of_another_type_or_out_of_range_are_named(wrong):
    options = {"train_data_dir": ["x"], "output_dir": "out", "vdvae_config": "c.json"}
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=f"^`{name}` must .*{re.escape(repr(value))}$"):
        TrainingConfig(**options | wrong)


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


def test_the_weight_of_the_rate_follows_the_given_points(tmp_path):
    options = {"train_data_dir": ["x"], "output_dir": str(tmp_path), "vdvae_config": "c.json"}
    assert TrainingConfig(**options).rate_weight(5) == 1.0
    config = TrainingConfig(**options, rate_weights=["10:0.5", "20:1.0", "20:0.25"])
    assert [config.rate_weight(step) for step in (0, 10, 15, 20, 99)] == [0.5, 0.5, 0.75, 0.25, 0.25]
    for entries in (["5"], ["a:1"], ["5:-1"], ["5:nan"], ["9:1", "3:1"]):
        with pytest.raises(ValueError, match="rate_weights"):
            TrainingConfig(**options, rate_weights=entries)
