"""Training by processor hours, for comparisons of systems on equal terms; other scripts of this folder use it."""

import json
import os
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CLOCK_SECONDS = 10.0
"""How often a run writes down what it has had."""


def train(folder: Path, options: Mapping[str, Any], data: Sequence[Path], hours: float) -> dict[str, float]:
    """Trains for so many processor hours in all, from where it was left; returns updates, images and hours.

    The run is stopped by a timer of processor time, as by a signal from outside: it leaves a checkpoint first.

    Args:
        folder: of the run.
        options: of train.py; configurations of networks among them are written as files.
        data: folders of photographs.
        hours: of one processor.
    """
    from accelerate.state import AcceleratorState, GradientState

    from hvae_sr.training import Interrupted, Trainer, parse_arguments
    from hvae_sr.training.checkpoints import checkpoint_step, list_checkpoints

    folder.mkdir(parents=True, exist_ok=True)
    values = {"output_dir": folder, "resume_from_checkpoint": "latest", **options}
    for name, value in values.items():
        if isinstance(value, dict):
            values[name] = folder / f"{name}.json"
            values[name].write_text(json.dumps(value, indent=2))
    arguments = []
    for name, value in values.items():
        arguments += [f"--{name}", *map(str, value)] if isinstance(value, list) else [f"--{name}={value}"]
    arguments += ["--train_data_dir", *map(str, data)]
    clock = folder / "processor_seconds.txt"
    spent = float(clock.read_text()) if clock.is_file() else 0.0

    def run(*more: str) -> None:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        Trainer(parse_arguments([*arguments, *more])).train()

    over = []

    def stop(*_: Any) -> None:
        over.append(True)
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:  # not training yet, or not any more
            signal.setitimer(signal.ITIMER_PROF, 1.0)
        else:
            os.kill(os.getpid(), signal.SIGTERM)

    exported = (folder / "config.json").is_file() or (folder / "model_index.json").is_file()
    if spent < 3600 * hours * 0.99:
        start, ended = time.process_time(), threading.Event()

        def keep_time() -> None:
            while not ended.wait(CLOCK_SECONDS):  # a killed run has had its hours too
                clock.write_text(str(spent + time.process_time() - start))

        keeper = threading.Thread(target=keep_time, daemon=True)
        keeper.start()
        signal.signal(signal.SIGPROF, stop)
        signal.setitimer(signal.ITIMER_PROF, 3600 * hours - spent)
        try:
            run()
        except Interrupted:
            if not over:
                raise  # somebody else's signal
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            ended.set()
            keeper.join()
            spent += time.process_time() - start
            clock.write_text(str(spent))
        exported = False
    step = checkpoint_step(list_checkpoints(folder)[-1])
    if not exported:
        run(f"--max_train_steps={step}")  # there already: writes the folder
    return {"updates": step, "images": step * options["train_batch_size"], "hours": spent / 3600}
