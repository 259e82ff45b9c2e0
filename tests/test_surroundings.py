"""What an algorithm shares with its process: each part that it changes is named, and is put back."""

import os
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch

from ftbench.checking.surroundings import differences, kept, look

CHANGES: dict[str, Callable[[], object]] = {
    "Python's random generator": random.random,
    "numpy's random generator": np.random.rand,
    "the seed of torch's random generator": lambda: torch.manual_seed(987_654_321),
    "torch's default dtype": lambda: torch.set_default_dtype(torch.float64),
    "torch's default device": lambda: torch.set_default_device("meta"),
    "torch's gradient mode": lambda: torch.set_grad_enabled(False),
    "torch's autocast": lambda: torch.set_autocast_enabled("cpu", True),
    "torch's number of threads": lambda: torch.set_num_threads(torch.get_num_threads() + 1),
    "torch's deterministic algorithms": lambda: torch.use_deterministic_algorithms(True, warn_only=True),
    "torch's precision of matrix products": lambda: torch.set_float32_matmul_precision("medium"),
    "torch's anomaly detection": lambda: torch.set_anomaly_enabled(True),
    "the environment": lambda: os.environ.update(FTBENCH_TEST_OF_SURROUNDINGS="1"),
    "the working folder": lambda: os.chdir("/"),
}


def test_there_is_a_change_for_each_part() -> None:
    assert set(CHANGES) == set(look())


@pytest.mark.parametrize("part", CHANGES)
def test_what_is_changed_is_named_and_put_back(part: str) -> None:
    before = look()
    with kept():
        CHANGES[part]()
        (named,) = differences(before, look())
        assert named.startswith(part)
    assert not differences(before, look())


def test_drawing_from_torchs_generator_is_no_change_of_its_seed_and_is_undone() -> None:
    before, drawn = look(), torch.get_rng_state()
    with kept():
        torch.rand(3)
        assert not differences(before, look())
    assert torch.equal(torch.get_rng_state(), drawn)
