"""Folders with several processes: interrupted at any moment, resumed, and one damaged file that stops nothing."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import psutil
import pytest
from PIL import Image
from processes import PATIENCE, output
from stand_ins import noise

from hvae_sr.images import read_metadata

SAMPLES = 12
COMMAND = """
import os, sys, time
from hvae_sr.cli import main
replace, count = os.replace, 0
def stopping(source, place):
    global count
    count += 1
    while count > int(sys.argv[1]):
        time.sleep(1)
    replace(source, place)
os.replace = stopping
sys.exit(main(sys.argv[2:]))
"""
"""`hvae-sr`, which stops for good when it has written so many files, with the next one half there."""


@pytest.mark.slow
def test_a_folder_that_was_killed_half_way_is_finished_by_the_same_command(tmp_path, make_pipeline):
    """As the documentation tells, on two processes of the CPU."""
    make_pipeline("vdvae-sr").save_pretrained(tmp_path / "model")
    (tmp_path / "in" / "below").mkdir(parents=True)
    for number in range(6):
        picture = Image.fromarray(noise(48, 40 + number, number))
        picture.save(tmp_path / "in" / ("below" if number % 2 else "") / f"photo{number}.png")
    (tmp_path / "in" / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n and nothing that belongs there")
    (tmp_path / "stopping.py").write_text(COMMAND)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    arguments = ["upscale", "in", "-o", "out", "--recursive"]
    arguments += ["--model", "model", "--num_samples", str(SAMPLES), "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"}

    def launch(*program: str) -> subprocess.Popen[str]:
        options = {"cwd": tmp_path, "env": environment, "text": True, "start_new_session": True}
        words = [*command, *program, *arguments]
        return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)

    process = launch("stopping.py", str(SAMPLES + 2 + 3))  # one image and three files of the next
    deadline = time.monotonic() + PATIENCE
    while [len(list((tmp_path / "out").glob(kind))) for kind in ("**/*.png", "**/.*")] != [2 * (SAMPLES + 2 + 3), 2]:
        assert process.poll() is None and time.monotonic() < deadline, output(process)[0]
        time.sleep(0.02)
    workers = [child for child in psutil.Process(process.pid).children() if "stopping.py" in child.cmdline()]
    assert len(workers) == 2
    os.killpg(process.pid, signal.SIGKILL)
    for worker in workers:  # of sessions of their own
        with suppress(psutil.NoSuchProcess):
            worker.kill()
    output(process)
    before = {path: path.read_bytes() for path in (tmp_path / "out").glob("**/*.png")}
    for path in before:  # none of them half written
        Image.open(path).load()
        assert read_metadata(path)
    complete = sum(path.name.endswith("_std.png") for path in before)
    assert complete == 2

    process = launch("-m", "hvae_sr.cli")
    text = output(process)[0]
    assert process.returncode == 1, text
    (summary,) = [line for line in text.splitlines() if line.startswith("7 images")]
    assert summary == f"7 images: {6 - complete} upscaled, {complete} finished before, 1 failed"
    assert "damaged.png" in text
    written = set((tmp_path / "out").glob("**/*.png"))
    assert len(written) == 6 * (SAMPLES + 2) and {path.parent.name for path in written} == {"out", "below"}
    assert not list((tmp_path / "out").glob("**/.*"))  # nor is anything left of what was being written
    finished = [path for path in before if path.name.endswith("_std.png")]
    assert all(path.read_bytes() == before[path] for path in finished)
