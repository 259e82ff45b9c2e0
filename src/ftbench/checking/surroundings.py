"""What an algorithm shares with everything else in its process: random generators, defaults, the environment."""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def look() -> dict[str, Any]:
    """Return the state of all that is shared, by its name.

    Of torch's generator only the seed: adapters are drawn from it, and may be; who seeds it anew takes the run's seed
    away from all that comes after.
    """
    import numpy as np
    import torch

    generator: Any = np.random.get_state(legacy=True)
    return {
        "Python's random generator": random.getstate(),
        "numpy's random generator": (generator[0], generator[1].tobytes(), *generator[2:]),
        "the seed of torch's random generator": torch.initial_seed(),
        "torch's default dtype": torch.get_default_dtype(),
        "torch's default device": str(torch.get_default_device()),
        "torch's gradient mode": torch.is_grad_enabled(),
        "torch's autocast": torch.is_autocast_enabled("cpu"),
        "torch's number of threads": torch.get_num_threads(),
        "torch's deterministic algorithms": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        "torch's precision of matrix products": torch.get_float32_matmul_precision(),
        "torch's anomaly detection": torch.is_anomaly_enabled(),
        "the environment": dict(os.environ),
        "the working folder": os.getcwd(),  # noqa: PTH109  as the system has it
    }


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Name what is not as it was; of the environment, the variables."""
    changed = [name for name in before if before[name] != after[name]]
    return [_said(name, before[name], after[name]) for name in changed]


def _said(name: str, before: Any, after: Any) -> str:
    if name == "the environment":
        variables = sorted(key for key in {*before, *after} if before.get(key) != after.get(key))
        return f"{name} ({', '.join(variables)})"
    if "generator" in name:
        return name
    return f"{name} ({before} became {after})"


@contextmanager
def kept() -> Iterator[None]:
    """Leave everything as it was, whatever happens inside."""
    import numpy as np
    import torch

    before, numbers, drawn = look(), np.random.get_state(), torch.get_rng_state()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    try:
        yield
    finally:
        random.setstate(before["Python's random generator"])
        np.random.set_state(numbers)
        torch.manual_seed(before["the seed of torch's random generator"])
        torch.set_rng_state(drawn)
        torch.set_default_dtype(before["torch's default dtype"])
        if str(torch.get_default_device()) != (device := before["torch's default device"]):
            torch.set_default_device(None if device == "cpu" else device)  # any other slows every call down
        torch.set_grad_enabled(before["torch's gradient mode"])
        torch.set_autocast_enabled("cpu", before["torch's autocast"])
        torch.set_num_threads(before["torch's number of threads"])
        deterministic, warn_only = before["torch's deterministic algorithms"]
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
        torch.set_float32_matmul_precision(before["torch's precision of matrix products"])
        torch.set_anomaly_enabled(before["torch's anomaly detection"])
        os.environ.clear()
        os.environ.update(before["the environment"])
        os.chdir(before["the working folder"])
