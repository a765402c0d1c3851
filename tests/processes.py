"""Processes that tests start: none holds the others up, and one that hangs tells where before it is ended."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from typing import Any

import psutil
import pytest
from torch.distributed import TCPStore

PATIENCE = float(os.environ.get("HVAE_SR_PATIENCE", 300))
"""Seconds after which a process hangs: on two cores they need some ten, and many times that where much else is done."""
os.environ["PYTHONFAULTHANDLER"] = "1"  # one that is aborted prints the stacks of its threads


def abort(pid: int) -> None:
    """Ends a process and all that it has started."""
    with suppress(psutil.NoSuchProcess):
        started = [*psutil.Process(pid).children(recursive=True), psutil.Process(pid)]
        for process in started:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGABRT)
        for process in psutil.wait_procs(started, timeout=10)[1]:
            process.kill()


def output(process: subprocess.Popen[str]) -> tuple[str, str]:
    """What the process prints (standard output, errors) until it has ended."""
    try:
        return process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        abort(process.pid)
        printed = process.communicate(timeout=10)
        pytest.fail(f"{process.args} did not end within {PATIENCE} s:\n" + "\n".join(str(text) for text in printed))


def run(command: list[Any], check: bool = False, **options: Any) -> "subprocess.CompletedProcess[str]":
    """`subprocess.run` with the output as text; with `check`, a status other than 0 fails with all that was printed."""
    command = [str(part) for part in command]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
    done = subprocess.CompletedProcess(command, 0, *output(started))
    done.returncode = started.returncode
    assert not (check and done.returncode), done.stdout + done.stderr
    return done


def status(process: BaseProcess) -> int | None:
    """The exit status of a process of `multiprocessing`, once it has ended."""
    process.join(PATIENCE)
    if process.exitcode is None and process.pid is not None:
        abort(process.pid)
        process.join(10)
    return process.exitcode


@contextmanager
def meeting(count: int) -> Iterator[list[dict[str, str]]]:
    """The environment of each of so many processes, which meet in a store of this one, as `torchrun` has it.

    If one of them listened, another process could take the port that was free, and the others outlive the store.
    """
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    place |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    yield [{**place, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
