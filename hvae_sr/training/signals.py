"""Signals that ask a run to stop: it saves a checkpoint first."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Interrupted(Exception):
    """The run was asked to stop by the signal `signum` and has left a checkpoint after update `step`."""

    def __init__(self, signum: int, step: int) -> None:
        super().__init__(f"stopped by signal {signum} after step {step}")
        self.signum = signum
        self.step = step


_PATIENCE = 600
"""Seconds that a process that reads images lives on after a signal: the run needs it until its last update is done."""


def leave_to_the_run(worker: int) -> None:
    """In a process that reads images: signals to stop are the run's, which ends its readers after its checkpoint.

    A queue's time limit and `torchrun` send them to the whole group of processes; a run whose readers are gone fails.

    Args:
        worker: its number, which `DataLoader` passes to its `worker_init_fn`; not used.
    """

    def note(signum: int, frame: Any) -> None:
        signal.signal(signum, signal.SIG_IGN)
        if hasattr(signal, "alarm"):  # not on Windows, where no such signal comes
            signal.alarm(_PATIENCE)

    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, note)


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM in the list it gives, while it lasts.

    The second SIGINT acts as it always did. A further SIGTERM is the same request once more (where a queue signals all
    processes, the launcher among them passes it on), also while the process comes to its end.
    """
    received: list[int] = []
    previous: dict[int, Any] = {}

    def note(signum: int, frame: Any) -> None:
        received.append(signum)
        signal.signal(signum, previous[signum] if signum == signal.SIGINT else signal.SIG_IGN)

    if threading.current_thread() is threading.main_thread():  # elsewhere Python takes no handlers
        previous = {each: signal.getsignal(each) or signal.SIG_DFL for each in (signal.SIGINT, signal.SIGTERM)}
        for signum in previous:
            signal.signal(signum, note)
    try:
        yield received
    finally:
        for signum, handler in previous.items():
            if signum != signal.SIGTERM or signum not in received:
                signal.signal(signum, handler)
