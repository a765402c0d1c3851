"""Memory: of large images nothing is held but the input, the sample, and what is returned."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from hvae_sr.pipelines.output import collate

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "memory.py"


def beside(side: int) -> float:
    """MiB that an input of `side` x `side` takes beside its arrays, by the benchmark."""
    command = [sys.executable, str(BENCHMARK), "--small", "--sides", str(side)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1].split("|")[6])


def test_memory_beside_the_arrays_does_not_grow_with_the_image() -> None:
    assert beside(768) - beside(256) < 50  # MiB, of nine megapixels: a copy in float32 would take 108


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
