"""Processes that tests start: none holds the others up, and one that hangs tells where before it is ended."""

import os
import signal
import subprocess
from contextlib import suppress
from multiprocessing.process import BaseProcess
from typing import Any

import psutil
import pytest

PATIENCE = float(os.environ.get("HVAE_SR_PATIENCE", 120))
"""Seconds that a process may take: on two cores they need some ten; more for a machine that has much else to do."""
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
