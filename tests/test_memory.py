"""Memory: of large images nothing is held but the input, the sample, and what is returned."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from processes import run

from hvae_sr.pipelines.chaining import samples_at
from hvae_sr.pipelines.inputs import SamplingOptions
from hvae_sr.pipelines.output import collate
from hvae_sr.sampling import Budget, WindowSampler, memory
from hvae_sr.sampling.memory import budget, format_bytes, parse_bytes, used_and_available

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
PROGRAM = """
import json, sys
sys.path.insert(0, {folder!r})
import numpy as np
from memory import resident, small
pipe = small()
pipe.set_progress_bar_config(disable=True)
found = [resident() / 2**20]

def draw(side, **options):
    pipe(np.zeros((side, side, 3), dtype=np.uint8), seed=0, **options)
    found.append(resident() / 2**20)

{program}
print(json.dumps(found))
"""


def peaks(program: str) -> list[Any]:
    """The largest memory, MiB, of a process that has loaded the benchmark's small network, then after every `draw`."""
    done = run([sys.executable, "-c", PROGRAM.format(folder=str(BENCHMARKS), program=program)], check=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_memory_beside_the_arrays_does_not_grow_with_the_image() -> None:
    _, _, small, large = peaks("draw(32); draw(256); draw(768)")
    arrays = 8 * 1024**2 * 16 + 12 * (768**2 - 256**2)  # more pixels: a sample in float32, its 8-bit image, the input
    assert large - small - arrays / 2**20 < 50  # MiB, of nine megapixels: a copy in float32 would take 108


def test_the_bound_holds_and_one_that_cannot_is_refused() -> None:
    program = """
draw(512, num_samples=2, max_memory=int(found[0] + 400) * 2**20)
try:
    draw(512, num_samples=3, max_memory=300 * 2**20)
except ValueError as error:
    found.append(str(error))
"""
    loaded, drawn, refused = peaks(program)
    assert drawn < loaded + 400
    assert "`max_memory` = 300 MB is too little for 3 samples of 2048x2048" in refused


@pytest.mark.parametrize(
    "stat, expected", [("anon 5\ninactive_file 7000000000\n", 7.1e9), ("anon 5\n", 1e8), (None, 1e8)]
)
def test_what_a_container_keeps_of_files_that_were_read_is_available(
    stat: str | None, expected: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"memory.max": "8000000000\n", "memory.current": "7900000000\n", "memory.stat": stat}
    for name, text in files.items():
        if text is not None:
            (tmp_path / name).write_text(text)
    monkeypatch.setattr(memory, "Path", lambda _: tmp_path)
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=64e9))
    found = used_and_available(torch.device("cpu"))
    assert found is not None and found[1] == pytest.approx(expected)


def test_sizes_are_shown_with_units_and_read_within_reason() -> None:
    assert [format_bytes(value) for value in (2, 2**20, 2**30)] == ["2 bytes", "1 MB", "1.0 GB"]
    with pytest.raises(ValueError, match="`max_memory`"):
        parse_bytes("9" * 400)


def test_a_processor_draws_samples_one_by_one_whatever_their_batch(make_pipeline: Any) -> None:
    vdvae = make_pipeline().vdvae
    common = ((1024, 1024), 64, "pt", False, 3 * 2**30, torch.device("cpu"))
    assert budget(vdvae, *common, batch_size=64) == budget(vdvae, *common)


@pytest.mark.parametrize("named", [{"max_memory": 2**20}, {"options": SamplingOptions(max_memory=2**20)}])
def test_a_bound_that_has_no_room_for_the_resampled_result_is_refused(make_pipeline: Any, named: Any) -> None:
    with pytest.raises(ValueError, match="`max_memory` = 1 MB is too little: 1 samples of 600x300"):
        samples_at(make_pipeline(), np.zeros((100, 200, 3), np.uint8), [0], outscale=3, **named)


def test_samples_of_16_bits_have_their_own_room(make_pipeline: Any) -> None:
    device, size = torch.device("cpu"), (4096, 4096)
    arguments = (make_pipeline().vdvae, size, 1, "pt", False)
    used, _ = used_and_available(device) or (0, 0)
    levels_and_floats = 60 * size[0] * size[1]
    with pytest.raises(ValueError, match="is too little for 1 samples of 4096x4096"):
        budget(*arguments, used + levels_and_floats, device)
    assert budget(*arguments, used + levels_and_floats + 2**28, device).pixels > 0


def test_an_iterator_takes_no_memory_for_the_samples_that_it_has_given(make_pipeline: Any) -> None:
    y = np.full((50, 50, 3), 90, np.uint8)
    for output_type in ("pt", "pil"):
        samples = make_pipeline().samples(y, seeds=range(10_000), output_type=output_type, max_memory=3 * 2**30)
        assert next(samples).image is not None


def test_windows_that_are_given_keep_to_the_bound(make_pipeline: Any) -> None:
    pipe, y, bound = make_pipeline(), np.full((300, 300, 3), 90, np.uint8), 3 * 2**30
    sampler = WindowSampler(pipe.networks, torch.zeros(3, 300, 300), 300, Budget(10**6, 0))
    with pytest.raises(ValueError, match="`window_size` = 300 makes evaluations of 1440000 pixels, and `max_memory` ="):
        sampler.check_windows(bound)
    sampler.check_windows(None)
    pipe(y, window_size=64, max_memory=bound)


def test_a_result_that_memory_cannot_hold_is_refused_before_the_first_pass(make_pipeline: Any) -> None:
    pipe, called = make_pipeline(), []
    pipe.vdvae.register_forward_hook(lambda *_: called.append(1))
    pipe.lr_encoder.register_forward_pre_hook(lambda *_: called.append(1))
    with pytest.raises(ValueError, match="memory.*too little: 1 samples of 20000000x10000000"):
        samples_at(pipe, np.zeros((100, 200, 3), np.uint8), [0], outscale=np.float64(100_000))
    assert not called


def test_one_item_is_not_copied_and_several_are_taken_out_of_the_list() -> None:
    for item in (np.ones((2, 3, 3), np.float32), torch.ones(3, 2, 3)):
        whole = collate([item], "np")
        assert tuple(whole.shape) == (1, *item.shape)
        assert np.shares_memory(np.asarray(whole), np.asarray(item))
        items = [item, 2 * item]
        whole = collate(items, "np")
        assert type(whole) is type(item) and not items
        assert [float(part.mean()) for part in whole] == [1, 2]
    different = [np.ones((2, 3, 3)), np.ones((3, 2, 3))]
    assert collate(different, "np") is different


def test_a_photograph_that_memory_will_not_hold_is_refused_before_the_first_is_drawn(make_pipeline: Any) -> None:
    pipe, called = make_pipeline(), []
    pipe.lr_encoder.register_forward_pre_hook(lambda *_: called.append(1))
    pipe.vdvae.register_forward_pre_hook(lambda *_: called.append(1))
    used, _ = used_and_available(torch.device("cpu")) or (0, 0)
    with pytest.raises(ValueError, match="is too little for 1 samples of 1200x1200"):
        pipe([torch.rand(3, 300, 300)] * 40, seed=0, output_type="np", max_memory=used + 500 * 2**20)
    large = [torch.rand(3, 40, 40), torch.rand(3, 400, 400)]
    with pytest.raises(ValueError, match="`window_size` = 300 makes evaluations"):
        pipe(large, seed=0, window_size=300, max_memory=used + 300 * 2**20)
    assert not called
