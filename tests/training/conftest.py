"""Photographs, configurations and command lines of tiny training runs."""

import sys

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from PIL import Image
from runs import BASELINES, LR_CONFIGS, VDVAE_CONFIG, log, shaken, write

import train
from hvae_sr import VDVAE
from hvae_sr.training import parse_arguments
from hvae_sr.training.networks import build_objective


@pytest.fixture(autouse=True)
def fresh_accelerate(monkeypatch):
    """Every run of the process begins like the first, on the CPU."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    torch.set_flush_denormal(False)


@pytest.fixture
def matplotlib():
    """For tests that look at plots; the others run without, which is faster, and must work too."""
    return pytest.importorskip("matplotlib")


@pytest.fixture(autouse=True)
def only_plots_that_are_asked_for(monkeypatch, request):
    if "matplotlib" not in request.fixturenames:
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Five smooth pictures of 40 to 60 pixels."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(5):
        rows, columns = np.mgrid[: 40 + 5 * i, : 60 - 3 * i]
        waves = [np.sin((rows * (c + 1) + columns * (i + 1)) / 15 + i) for c in range(3)]
        Image.fromarray((127.5 + 100 * np.stack(waves, -1)).astype(np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("configs")
    for name, config in {"vdvae": VDVAE_CONFIG, **LR_CONFIGS, **BASELINES}.items():
        write(folder / f"{name}.json", config)
    return folder


@pytest.fixture(scope="module")
def prior(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("prior")
    shaken(VDVAE(**VDVAE_CONFIG)).save_pretrained(folder)
    return folder


@pytest.fixture
def options(photos, configs, prior):
    """A function that makes a command line for a stage; `name=None` leaves an option out."""

    def make(stage, output_dir, **changes):
        values = {
            "stage": stage, "train_data_dir": photos, "output_dir": output_dir, "resolution": 32,
            "crops_per_image": 2, "train_batch_size": 2, "max_train_steps": 3, "learning_rate": 3e-3,
            "lr_scheduler": "constant", "lr_warmup_steps": 0, "logging_steps": 1, "ema_decay": 0.9,
        }  # fmt: skip
        if stage in BASELINES:
            values["baseline"] = configs / f"{stage}.json"
            values["skip_threshold"] = 1e12  # a flow's likelihood begins with steep gradients
        else:
            scratch = stage in ("vdvae", "joint")
            values |= {"vdvae_config": configs / "vdvae.json"} if scratch else {"pretrained_vdvae": prior}
        if stage in LR_CONFIGS:
            values["lr_config"] = configs / f"{stage}.json"
        values |= changes
        return [part for name, value in values.items() if value is not None for part in (f"--{name}", str(value))]

    return make


@pytest.fixture
def run(options):
    """A function that trains with these options to the end; gives the log."""

    def make(stage, output_dir, **changes):
        assert train.main(options(stage, output_dir, **changes)) == 0
        return log(output_dir)

    return make


@pytest.fixture
def configure(options, tmp_path):
    """A function that makes the resolved options of a run into `tmp_path / "out"`."""
    return lambda stage, **changes: parse_arguments(options(stage, **{"output_dir": tmp_path / "out", **changes}))


@pytest.fixture
def objective_of(configure):
    return lambda stage, **changes: build_objective(configure(stage, **changes))


@pytest.fixture(autouse=True)
def one_thread():
    """Sums depend on the number of threads in the last digit; the other processes of these tests have one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
