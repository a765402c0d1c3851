"""The Hub: what is uploaded, what happens when the network or the process fails, and that it loads again."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from fake_hub import TOKEN, FakeHub
from huggingface_hub import HfApi
from processes import PATIENCE, run

from hvae_sr import SuperResolutionPipeline
from hvae_sr.checkpoints.names import bundled_checkpoints
from hvae_sr.cli import main
from hvae_sr.publishing.card import model_card
from hvae_sr.publishing.push import files_to_push, push

REPO = "someone/tiny-x4"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with FakeHub() as server:
        server.connect(monkeypatch, tmp_path / "home")
        monkeypatch.setattr("time.sleep", lambda seconds: None)
        yield server


@pytest.fixture
def folder(make_pipeline, tmp_path):
    """A pipeline folder as training leaves it."""
    path = tmp_path / "tiny"
    make_pipeline().save_pretrained(path)
    (path / "README.md").write_text("---\nlicense: mit\n---\n\n# tiny\n")
    (path / "train.yaml").write_text("stage: lr-encoder\n")
    (path / "log.jsonl").write_text("{}\n")
    (path / "optimizer.bin").write_bytes(b"pickle")
    (path / "checkpoint-10" / "vdvae").mkdir(parents=True)
    (path / "checkpoint-10" / "vdvae" / "diffusion_pytorch_model.safetensors").write_bytes(b"old")
    return path


def test_a_dry_run_lists_the_files_and_asks_the_hub_nothing(hub, folder, capsys):
    assert main(["push", str(folder), "--repo_id", REPO, "--dry_run"]) == 0
    out = capsys.readouterr().out
    listed = [line.split()[1] for line in out.splitlines()[:-1]]
    networks = ("config.json", "diffusion_pytorch_model.safetensors", "hvae_sr.py")
    expected = ["README.md", "model_index.json", "pipeline.py", "train.yaml"]
    assert listed == sorted(expected + [f"{part}/{name}" for part in ("lr_encoder", "vdvae") for name in networks])
    assert not hub.log


def test_of_recipes_only_that_of_the_weights_is_uploaded():
    found = set(files_to_push(bundled_checkpoints()["natural-x4"]))
    assert "train.yaml" in found and not [name for name in found if name.startswith("train_") or "_larger" in name]
    assert {"model_index.json", "lr_encoder/config.json", "LICENSE.weights", "images/overview.png"} <= found


def test_what_training_and_people_leave_beside_a_model_stays_here(folder):
    taken = ["images/samples.png", "images/validation_curve.png", "images/a.png", "logs.md", "shown.png"]
    left_out = ["samples/a.png", "validation/b.png", "wandb/run/c.yaml", ".cache/d.md", "images/.hidden.png"]
    left_out += ["photos/0.png", "prior/diffusion_pytorch_model.safetensors", "cat.png"]
    for name in (*taken, *left_out):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n\n![curve](shown.png)\n")
    found = set(files_to_push(folder))
    assert set(taken) <= found and not found & set(left_out)


def test_push_uploads_the_listed_files_unchanged_in_one_commit(hub, folder, capsys):
    assert main(["push", str(folder), "--repo_id", REPO, "--private"]) == 0
    assert capsys.readouterr().out.startswith(f"{hub.endpoint}/{REPO}/commit/")
    remote = {name: data for name, data in hub.files(REPO).items() if name != ".gitattributes"}
    local = {name: it if isinstance(it, bytes) else it.read_bytes() for name, it in files_to_push(folder).items()}
    assert remote == local
    assert hub.repositories[REPO].private
    assert len(hub.repositories[REPO].branches["main"]) == 2  # the first is that of the empty repository


def test_a_second_push_sends_only_what_has_changed_and_removes_weights_that_are_gone(hub, folder):
    push(folder, REPO)
    (folder / "train.yaml").write_text("stage: vdvae-sr\n")
    (folder / "vdvae/diffusion_pytorch_model.safetensors").rename(folder / "vdvae/model.safetensors")
    before = len(hub.log)
    push(folder, REPO)
    assert not [line for line in hub.log[before:] if line.startswith("PUT")]  # the content was there
    assert hub.files(REPO)["train.yaml"] == b"stage: vdvae-sr\n"
    weights = {name for name in hub.files(REPO) if name.endswith(".safetensors")}
    assert weights == {"lr_encoder/diffusion_pytorch_model.safetensors", "vdvae/model.safetensors"}


def test_the_index_of_a_variant_goes_and_stays_with_its_weights(hub, folder, make_vdvae, tmp_path):
    make_vdvae().save_pretrained(tmp_path / "prior", variant="fp16", max_shard_size="2KB")
    assert "diffusion_pytorch_model.safetensors.index.fp16.json" in files_to_push(tmp_path / "prior")
    pipe = SuperResolutionPipeline.from_pretrained(folder)
    pipe.save_pretrained(folder, variant="fp16", max_shard_size="2KB")
    push(folder, REPO)
    assert "vdvae/diffusion_pytorch_model.safetensors.index.fp16.json" in hub.files(REPO)
    for path in folder.rglob("*fp16*"):
        path.unlink()
    push(folder, REPO, revision="step-10")  # to the branch that is asked for
    assert not [name for name in hub.files(REPO, "step-10") if "fp16" in name]
    assert [name for name in hub.files(REPO) if "fp16" in name]


@pytest.mark.parametrize("request_", ["POST /api/repos/create", "PUT /lfs/", "POST .*/commit/", "GET .*/tree/"])
@pytest.mark.parametrize("status", [503, 0])
def test_failures_of_the_server_and_the_network_are_tried_again(hub, folder, request_, status):
    hub.failures += [(request_, status)]
    push(folder, REPO)
    assert not hub.failures and "model_index.json" in hub.files(REPO)


def test_what_was_sent_before_a_failure_is_not_sent_again(hub, folder):
    hub.failures += [("POST .*/commit/", 500)] * 9
    with pytest.raises(OSError):
        push(folder, REPO, attempts=1)
    assert "model_index.json" not in hub.files(REPO)  # nothing is half there
    sent = len(hub.requests("PUT /lfs/"))
    hub.failures.clear()
    push(folder, REPO)
    assert sent == 2 and len(hub.requests("PUT /lfs/")) == sent


@pytest.mark.slow
def test_a_push_that_was_killed_goes_on_where_it_was(folder, tmp_path):
    stalled, killed = threading.Event(), threading.Event()
    with FakeHub() as hub:
        environment = {**os.environ, **hub.environment(tmp_path / "home")}
        hub.failures += [("POST /lfs/verify", lambda: (stalled.set(), killed.wait()))] * 9  # the client asks again
        command = [sys.executable, "-m", "hvae_sr.cli", "push", str(folder), "--repo_id", REPO]
        first = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        assert stalled.wait(PATIENCE)
        first.kill()
        first.wait()
        hub.failures.clear()
        killed.set()
        assert hub.objects and "model_index.json" not in hub.files(REPO)
        run(command, check=True, env=environment)
        assert "model_index.json" in hub.files(REPO)
        sent = [line.split("/")[-1] for line in hub.requests("PUT /lfs/")]
        assert len(set(sent)) == 2 and len(sent) <= 3  # one may have been on its way when the process died


@pytest.mark.parametrize("repo_id", ["tiny", "a/b/c", "some one/tiny", "someone/tiny..x4"])
def test_an_id_that_is_none_is_refused_before_anything_is_sent(hub, folder, repo_id, capsys):
    for more in ("--dry-run", "--private"):
        assert main(["push", str(folder), "--repo_id", repo_id, more]) == 2
        assert "`--repo-id`" in capsys.readouterr().err and not hub.log


def test_a_wrong_token_is_named_and_not_tried_again(hub, folder):
    with pytest.raises(ValueError, match="`token`.*hf auth login"):
        push(folder, REPO, token="hf_wrong")
    assert len(hub.requests("POST /api/repos/create")) == 1


def test_folders_without_model_or_weights_are_refused(tmp_path, folder):
    with pytest.raises(ValueError, match="`folder`.*model_index.json"):
        files_to_push(tmp_path)
    with pytest.raises(ValueError, match="`folder`: there is no folder"):
        files_to_push(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="`folder`.*holds neither model_index.json nor config.json"):
        model_card(tmp_path)
    with pytest.raises(ValueError, match="cannot load.*holds no model_index.json"):
        SuperResolutionPipeline.from_pretrained(tmp_path)
    for path in folder.glob("*/*.safetensors"):
        path.unlink()
    with pytest.raises(ValueError, match="`folder`.*no weights"):
        files_to_push(folder)


def test_a_card_that_the_hub_refuses_is_an_error_that_says_so(hub, folder):
    (folder / "README.md").write_text("---\nlicense: [mit\n---\n")
    with pytest.raises(ValueError, match="README.md"):
        push(folder, REPO)


LOAD = """
import sys, numpy as np
repo = sys.argv[1]
from diffusers import DiffusionPipeline
assert "hvae_sr" not in sys.modules
pipes = [DiffusionPipeline.from_pretrained(repo, custom_pipeline=repo, trust_remote_code=True)]
from hvae_sr import SuperResolutionPipeline
pipes += [SuperResolutionPipeline.from_pretrained(repo)]
image = np.linspace(0, 1, 5 * 6 * 3, dtype=np.float32).reshape(5, 6, 3)
for pipe in pipes:
    print(type(pipe).__name__, repr(float(pipe(image, seed=3, output_type="np").images.astype(np.float64).sum())))
"""


@pytest.mark.slow
def test_what_was_pushed_loads_from_the_hub_in_a_fresh_process(folder, tmp_path, monkeypatch):
    with FakeHub() as hub:
        with monkeypatch.context() as patch:
            hub.connect(patch, tmp_path / "home")
            push(folder, REPO)
        environment = {**os.environ, **hub.environment(tmp_path / "other home", token="")}
        done = run([sys.executable, "-c", LOAD, REPO], check=True, env=environment, cwd=tmp_path)
    image = np.linspace(0, 1, 5 * 6 * 3, dtype=np.float32).reshape(5, 6, 3)
    # The generic class computes in the weights' dtype; this package's own in bfloat16, where the processor has it.
    for line, dtype in zip(done.stdout.splitlines(), ({"dtype": torch.float32}, {}), strict=True):
        pipe = SuperResolutionPipeline.from_pretrained(folder, **dtype)
        expected = pipe(image, seed=3, output_type="np").images.astype(np.float64).sum()
        name, value = line.split()
        assert name == "SuperResolutionPipeline" and float(value) == pytest.approx(expected, abs=1e-3)


def test_code_in_a_repository_is_not_run_where_nobody_trusts_it(hub, folder, tmp_path):
    mark = tmp_path / "ran"
    (folder / "pipeline.py").write_text(f"open({str(mark)!r}, 'w')\n")
    push(folder, REPO)
    repository = hub.repositories[REPO]
    files = hub.files(REPO) | {"vdvae/hvae_sr.py": f"open({str(mark)!r}, 'w')\n".encode()}
    repository.commit("main", files)
    SuperResolutionPipeline.from_pretrained(REPO)
    assert not mark.exists()


def test_a_private_repository_needs_the_token(hub, folder, tmp_path):
    push(folder, REPO, private=True)
    with pytest.raises(OSError, match=REPO):  # the Hub's own answer, not a damaged folder
        SuperResolutionPipeline.from_pretrained(REPO, token=False, cache_dir=tmp_path / "empty")
    assert SuperResolutionPipeline.from_pretrained(REPO, token=TOKEN, cache_dir=tmp_path / "full") is not None


@pytest.mark.parametrize("error", [MemoryError("out of memory"), TypeError("a programming error"), RuntimeError("own")])
def test_what_is_no_failure_of_the_hub_is_not_called_one(hub, folder, error, monkeypatch):
    def fails(self, *arguments, **options):
        raise error

    monkeypatch.setattr(HfApi, "create_commit", fails)
    with pytest.raises(type(error), match=str(error)):
        push(folder, REPO)


@pytest.mark.parametrize("content", [b"[]", b"null", b"{", b"\xff\xfe", b'{"vdvae": []}', b'{"vdvae": ["hvae_sr"]}'])
def test_a_damaged_index_is_named(folder, content, capsys):
    (folder / "model_index.json").write_bytes(content)
    for command in (["push", str(folder), "--repo-id", REPO, "--dry-run"], ["card", str(folder)]):
        if command[0] == "push" or not content.startswith(b'{"'):
            assert main(command) == 2 and "model_index.json" in capsys.readouterr().err
