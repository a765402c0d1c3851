"""Tiny networks, and what the tests of training ask of a run: its log, its weights, its processes."""

import gc
import json
import multiprocessing
import os
import time
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_multi_gpu_env
from processes import PATIENCE, meeting, status
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

import train
from hvae_sr.baselines.guided_diffusion import published_options
from hvae_sr.training import Trainer
from hvae_sr.training.checkpoints import checkpoint_step, list_checkpoints
from hvae_sr.training.networks import STAGES

FIGURES = {stage: objective.figure for stage, objective in STAGES.items()}
"""What a stage logs of its loss."""
DECODER = {"decoder_blocks": "8x1,16m8,16x1", "latent_channels": 4}
VDVAE_CONFIG = {
    "image_size": 32, "width": 8, "encoder_blocks": "16x1,16d2,8x1", "bottleneck_multiple": 0.5, "num_mixtures": 2,
    "patch_size": 2, **DECODER,
}  # fmt: skip
LR_CONFIG = {"image_size": 8, "blocks": "8x1", "upsampling_blocks": "16m8", "width": 8, "bottleneck_multiple": 0.5}
LR_CONFIGS = {
    "lr-encoder": {**LR_CONFIG, **DECODER, "decoder_width": 8, "num_conditioned_groups": 2},
    "vdvae-sr": {**LR_CONFIG, "decoder_blocks": DECODER["decoder_blocks"], "decoder_width": 8, "gate_init": 0.3},
}
LR_CONFIGS["joint"] = LR_CONFIGS["lr-encoder"]
LR_CONFIGS["energy-score"] = {"_class_name": "LRConditioner", **LR_CONFIGS["vdvae-sr"]}
_SCHEDULE = {"num_train_timesteps": 20, "beta_start": 1e-3, "beta_end": 0.3}
BASELINES = {
    "regression": {"architecture": "RRDBNet", "num_blocks": 1, "width": 8, "growth": 4},
    "hcflow": {
        "architecture": "HCFlow", "num_steps": 2, "num_conditional_steps": 1, "hidden_width": 8, "feature_width": 8,
        "feature_growth": 4, "feature_blocks": [1, 1],
    },
    "sr3": {
        "architecture": "SR3UNet", "image_size": 32, "width": 8, "width_multiples": [1, 2], "num_res_blocks": 1,
        "norm_groups": 4, "dropout": 0.2, "scheduler": _SCHEDULE, "pipeline": {"num_inference_steps": 4},
    },
    "ddpm": {
        "architecture": "GuidedDiffusionUNet", **published_options(32, 32, 1, "1,1"),
        "scheduler": {**_SCHEDULE, "variance_type": "learned_range"}, "pipeline": {"num_inference_steps": 4},
    },
}  # fmt: skip
"""Small ones of the compared systems, one for each of their stages."""
ACCELERATE = Path(__file__).parents[2] / "hub_configs" / "accelerate"
PROCESSES = multiprocessing.get_context("forkserver")  # imports once for all; no threads or devices are inherited
PROCESSES.set_forkserver_preload(["train", "pytest", "hvae_sr.pipelines", "torch._dynamo", "torch.distributed"])


def strict(line):
    """The JSON of a line, without the figures that depend on the clock; NaN is no JSON."""
    record = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} in the log"))
    for name in ("images_per_second", "mfu"):
        record.pop(name, None)
    return record


def log(output_dir):
    return [strict(line) for line in (output_dir / "log.jsonl").read_text().splitlines()]


def weights(folder):
    """Every tensor below a folder of networks."""
    files = sorted(folder.rglob("*.safetensors"))
    files = [file for file in files if "checkpoint-" not in str(file.relative_to(folder))]
    assert files
    return {f"{file.relative_to(folder)}:{name}": x for file in files for name, x in load_file(file).items()}


def state(checkpoint):
    """Weights, optimiser, average, schedule and progress of a checkpoint, as one flat list."""
    loaded = [torch.load(file, weights_only=False) for file in sorted(checkpoint.glob("*.bin"))]
    loaded += [torch.load(file, weights_only=False) for file in sorted(checkpoint.glob("custom_checkpoint_*.pkl"))]
    return load_file(checkpoint / "model.safetensors"), loaded


def kept(output_dir):
    """The updates of the checkpoints in a folder."""
    return [checkpoint_step(path) for path in list_checkpoints(output_dir)]


def shaken(network):
    """The network, with weights that are all other than at the start, where posteriors hardly differ from priors."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def assert_same(a, b):
    assert_close(a, b, rtol=0, atol=0)


def assert_equal_trees(a, b):
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal_trees(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_equal_trees(x, y)
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b


def assert_like(expected, found, tolerance, absolute):
    """Records of a run on one process, and of one on several; PSNR is of 8 bits: a last digit may turn a pixel."""
    for one, other in zip(expected, found, strict=True):
        assert one.keys() == other.keys()
        for name in one:  # also the figures of every group
            if not name.endswith("_ratio"):  # of what each process has alone, averaged
                rel = max(tolerance, 1e-3) if "psnr" in name else tolerance
                assert other[name] == pytest.approx(one[name], rel=rel, abs=absolute), name


def fsdp_environment():
    """What `accelerate launch` makes of the FSDP configuration that is shipped."""
    arguments = launch_command_parser().parse_args(["--config_file", str(ACCELERATE / "fsdp.yaml"), "train.py"])
    environment = prepare_multi_gpu_env(_validate_launch_command(arguments)[0])
    return {name: value for name, value in environment.items() if "FSDP" in name}


def allow_fsdp_on_the_cpu():
    """accelerate takes FSDP for a matter of GPUs; all of its code, and torch's, also runs on the CPU over gloo.

    Every further `AcceleratorState()`, as autocast and `prepare` make, asks the state below for the kind.
    """
    initialise = AcceleratorState.__init__

    def patched(self, *args, **kwargs):
        initialise(self, *args, **kwargs)
        if kwargs.get("fsdp_plugin") is None:
            return
        self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        self.fsdp_plugin = kwargs["fsdp_plugin"]
        if self._mixed_precision != "no":
            self.fsdp_plugin.set_mixed_precision(self._mixed_precision)

    AcceleratorState.__init__ = patched


def expect_shared_parameters(trainer):
    """Of a run whose parameters each process holds as a whole, which would test something else."""
    assert trainer.trainable and all(isinstance(parameter, DTensor) for parameter in trainer.trainable)


def expect_wrappers_to_go_before_their_group(accelerator):
    """Of a run that closes the process group while DDP's wrapper holds it, which would hang, now and then."""
    assert not [each for each in gc.get_objects() if isinstance(each, DistributedDataParallel)]


def before(owner, name, check):
    """Has a method look first whether all is as a test wants it: else the run fails."""
    method = getattr(owner, name)

    def checked(self):
        check(self)
        return method(self)

    setattr(owner, name, checked)


def in_process(arguments, environment, stop_at=None):
    """Runs `train.main` and ends with its status; hangs while it writes the checkpoint named `stop_at`."""
    os.environ.update(environment, OMP_NUM_THREADS="1", ACCELERATE_USE_CPU="true")
    torch.set_num_threads(1)
    if "ACCELERATE_USE_FSDP" in environment:
        allow_fsdp_on_the_cpu()
        before(Trainer, "train", expect_shared_parameters)
    if "WORLD_SIZE" in environment:
        before(Accelerator, "end_training", expect_wrappers_to_go_before_their_group)
    if stop_at is not None:
        save_state = Accelerator.save_state

        def slow(self, output_dir):
            save_state(self, output_dir)
            while os.path.basename(output_dir).startswith(stop_at):
                time.sleep(0.05)

        Accelerator.save_state = slow
    raise SystemExit(train.main(arguments))


def started(arguments, environment=None, stop_at=None):
    process = PROCESSES.Process(target=in_process, args=(arguments, environment or {}, stop_at))
    process.start()
    return process


def wait_until(condition, process):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert process.is_alive(), f"the run ended with status {process.exitcode}"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def on_processes(arguments, count=2, sharded=False):
    """Runs `train.main` on so many processes of the CPU that meet over gloo, with FSDP if `sharded`."""
    more = fsdp_environment() if sharded else {}
    with meeting(count) as environments:
        ranks = [started(arguments, environment | more) for environment in environments]
        assert [status(process) for process in ranks] == [0] * count


def write(path, content):
    """A file of a text, or of anything else as JSON."""
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path
