"""What a killed process was writing is removed by the next one, and nothing else is."""

import os
import re
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from PIL import Image
from processes import run
from stand_ins import noise

from hvae_sr.baselines import RRDBNet
from hvae_sr.cli import main
from hvae_sr.files import check_file, remove_abandoned, replacing_in, temporary_path, write_atomically
from hvae_sr.images import save_image
from hvae_sr.training import checkpoints

WRITER = """
import sys, time
from pathlib import Path
from hvae_sr.files import temporary_path
with open(temporary_path(Path(sys.argv[1])), "xb") as file:
    file.write(b"half of it")
    file.flush()
    print("writing", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def writer(tmp_path):
    """A process in the middle of writing `out/below/photo.png`."""
    (tmp_path / "out" / "below").mkdir(parents=True)
    command = [sys.executable, "-c", WRITER, str(tmp_path / "out" / "below" / "photo.png")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "writing\n"
    yield process
    process.kill()
    process.communicate()


def test_what_a_killed_process_was_writing_is_removed_by_the_next_run(writer, make_pipeline, tmp_path, capsys):
    make_pipeline("vdvae-sr").save_pretrained(tmp_path / "model")
    (tmp_path / "in" / "below").mkdir(parents=True)
    Image.fromarray(noise(8, 9)).save(tmp_path / "in" / "below" / "photo.png")
    command = ["upscale", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--recursive", "--device", "cpu"]
    command += ["--model", str(tmp_path / "model"), "--num_samples", "1"]

    (half,) = (tmp_path / "out").glob("**/.*.tmp")
    assert main(command) == 0
    assert half.exists()  # its process is alive
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    assert main(command) == 0
    assert "finished before" in capsys.readouterr().out
    assert not half.exists()
    assert len(list((tmp_path / "out" / "below").iterdir())) == 1


@pytest.mark.parametrize(("kind", "message"), [("image", r"a\.png"), ("weights", "weights cannot be written")])
def test_a_file_that_finds_no_room_is_named_and_leaves_nothing(tmp_path, kind, message):
    resource = pytest.importorskip("resource", reason="no bounds of file sizes on this system")
    network = RRDBNet(num_blocks=1, width=8, growth=4)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000 if kind == "image" else 4096, before[1]))
    try:
        with pytest.raises(OSError, match=message):
            if kind == "image":
                save_image(Image.effect_noise((64, 64), 60), tmp_path / "a.png")
            else:
                network.save_pretrained(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def test_only_files_that_nobody_is_writing_are_removed(tmp_path):
    own = temporary_path(tmp_path / "photo.png")
    machine = own.name.split("-")[2]
    ended = run([sys.executable, "-c", "import os; print(os.getpid())"])
    token, long_ago = "0123456789abcdef", time.time() - 10 * 24 * 3600

    def make(name: str, modified: float) -> Path:
        path = tmp_path / name
        path.write_bytes(b"half of it")
        os.utime(path, (modified, modified))
        return path

    of_ended, of_this = f"{machine}-{int(ended.stdout)}", f"{machine}-{os.getpid()}"
    gone = [
        make(f".hvae-sr-{of_ended}-{token}.tmp", time.time()),
        make(f".hvae-sr-{of_this}-{token}.tmp", long_ago),  # of another process that had this number
        make(f".hvae-sr-00000000-{os.getpid()}-{token}.tmp", long_ago),
        make(f".hvae-sr-{token}.tmp", long_ago),  # as earlier versions called it
    ]
    kept = [
        make(own.name, time.time()),
        make(f".hvae-sr-00000000-{int(ended.stdout)}-{token}.tmp", time.time()),  # another machine may be writing it
        make(f".hvae-sr-{of_ended}-{token}.tmp.png", long_ago),
        make(f"hvae-sr-{of_ended}-{token}.tmp", long_ago),
        make("notes.tmp", long_ago),
    ]
    link = tmp_path / f".hvae-sr-{of_ended}-{token[::-1]}.tmp"
    link.symlink_to(kept[-1])
    for name, paths in ((of_ended, gone), (of_this, kept)):  # of a model
        paths.append(tmp_path / f".hvae-sr-{name}-{token[::2] * 2}.tmp")
        (paths[-1] / "vdvae").mkdir(parents=True)
        (paths[-1] / "vdvae" / "config.json").write_text("{}")
    assert remove_abandoned(tmp_path) == len(gone)
    assert not any(path.exists() for path in gone)
    assert all(path.exists() for path in kept) and link.is_symlink()
    assert remove_abandoned(tmp_path / "missing") == 0


@pytest.mark.parametrize("index", ["model_index.json", "config.json"])
def test_what_loads_is_of_one_writer_wherever_the_other_was_killed(index, tmp_path, monkeypatch):
    """A folder by its index, and each folder in it by its config.json; an error leaves the files as a kill does."""
    names = (index, "a/config.json", "a/weights", "b/config.json", "b/weights", "z")
    replace, left = os.replace, []

    def write(content):
        with replacing_in(tmp_path / "model", index, re.compile("none")) as place:
            for name in names:
                (place / name).parent.mkdir(exist_ok=True)
                (place / name).write_text(content)

    def killed(source, target):
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        replace(source, target)

    for count in range(len(names)):
        write("old")
        left[:] = [count]
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(os, "replace", killed)
            write("new")
        there = [path for path in (tmp_path / "model").rglob("*") if path.is_file()]
        found = {path.relative_to(tmp_path / "model").as_posix(): path.read_text() for path in there}
        assert index not in found
        for part in ("a", "b"):
            assert found.get(f"{part}/config.json", found[f"{part}/weights"]) == found[f"{part}/weights"]
    write("new")
    assert {(tmp_path / "model" / name).read_text() for name in names} == {"new"}


def test_what_is_synchronised_may_be_written(tmp_path, monkeypatch):
    """Windows refuses to synchronise what is open for reading alone."""
    fcntl, synchronise = pytest.importorskip("fcntl"), os.fsync

    def windows(descriptor):
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            assert fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
        synchronise(descriptor)

    monkeypatch.setattr(os, "fsync", windows)
    with replacing_in(tmp_path / "out", "index.json", re.compile(r"none")) as temporary:
        (temporary / "index.json").write_text("{}")
    partial = tmp_path / "checkpoint-1.partial"
    partial.mkdir()
    (partial / "state").write_text("a")
    checkpoints._finish(partial, tmp_path / "checkpoint-1")
    checkpoints.check_checkpoint(tmp_path / "checkpoint-1")


def test_what_is_no_file_is_written_to_and_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    read = []
    thread = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_text()))
    thread.start()
    write_atomically("a report\n", tmp_path / "link")
    thread.join(10)
    assert read == ["a report\n"]
    check_file(Path("/dev/null"), "--output")
    write_atomically("nothing\n", Path("/dev/null"))
    command = (
        "from pathlib import Path; from hvae_sr.files import write_atomically as w; w('to it\\n', Path('/dev/stdout'))"
    )
    with (tmp_path / "out").open("w") as out:
        subprocess.run([sys.executable, "-c", command], stdout=out, check=True)
    assert (tmp_path / "out").read_text() == "to it\n" and Path("/dev/stdout").is_symlink()
    (tmp_path / "out").unlink()
    assert (tmp_path / "link").is_symlink() and (tmp_path / "pipe").is_fifo() and len(list(tmp_path.iterdir())) == 2
