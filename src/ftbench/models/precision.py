"""In which precision a model computes."""

import re
from functools import cache
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Precision = Literal["bf16", "float32"]

_PAYS = 1.5
"""How many times as fast a matrix product must be in bf16 for training to gain by it."""
_HOPELESS = 3.0
"""How many times as slow it is, at least, where there is no arithmetic for it."""

_PROCESSOR = Path("/proc/cpuinfo")
"""Linux's description of the processor."""


def choose_precision(asked: str, device: "torch.device") -> Precision:
    """Return the precision to train and to evaluate in.

    Args:
        asked: a precision, or "auto": bf16 where the device has arithmetic for it, else float32.
        device: to compute on.
    """
    if asked == "float32":
        return "float32"
    if asked == "bf16":
        return "bf16"
    return "bf16" if _has_bf16(device) else "float32"


def torch_dtype(precision: Precision) -> "torch.dtype":
    """Return torch's name of a precision."""
    import torch

    return torch.bfloat16 if precision == "bf16" else torch.float32


@cache
def _has_bf16(device: "torch.device") -> bool:
    """Whether bf16 is worth it. On a processor that understands it, it is tried, once: it need not do it fast."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if _lacks_bf16(_PROCESSOR):
        return False
    wide = half = 0.0
    for rows, times in ((16, 8), (256, 2), (256, 12)):  # without such arithmetic all of these would take a minute
        wide, half = _seconds(torch.float32, torch.bfloat16, rows=rows, times=times)
        if half > _HOPELESS * wide:
            return False
    return wide > _PAYS * half


def _lacks_bf16(processor: Path) -> bool:
    """Whether a processor's description lists its instructions, and none of them computes in bf16."""
    text = processor.read_text("utf-8", "replace") if processor.exists() else ""
    listed = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return listed is not None and "bf16" not in listed[1]


def _seconds(*dtypes: "torch.dtype", rows: int, times: int) -> list[float]:
    """Time a matrix product of a layer's size in each: the fastest of many, which other work disturbs least."""
    import torch

    pairs = [(torch.randn(rows, 768).to(dtype), torch.randn(768, 2048).to(dtype)) for dtype in dtypes]
    fastest = [float("inf")] * len(pairs)
    with torch.inference_mode():
        for _ in range(times):
            for index, (left, right) in enumerate(pairs):
                start = perf_counter()
                left @ right
                fastest[index] = min(fastest[index], perf_counter() - start)
    return fastest


def wide_dtype(dtype: "torch.dtype") -> "torch.dtype":
    """Return float32 for what is narrower, and otherwise the same."""
    import torch

    return torch.promote_types(dtype, torch.float32)
