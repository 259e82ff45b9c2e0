"""In which precision a model computes."""

from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Precision = Literal["bf16", "float32"]

_PAYS = 1.5
"""How many times as fast a matrix product must be in bf16 for training to gain by it."""


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


def _has_bf16(device: "torch.device") -> bool:
    """Whether bf16 is worth it. On a processor it is tried: flags say what it understands, not what it does fast."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return _seconds(torch.float32) > _PAYS * _seconds(torch.bfloat16)


def _seconds(dtype: "torch.dtype") -> float:
    """Time a matrix product of a layer's size: median of five, after one that sets it up."""
    import torch

    with torch.inference_mode():
        left, right = torch.randn(256, 768).to(dtype), torch.randn(768, 2048).to(dtype)
        taken = []
        for _ in range(6):
            start = perf_counter()
            left @ right
            taken.append(perf_counter() - start)
    return median(taken[1:])


def wide_dtype(dtype: "torch.dtype") -> "torch.dtype":
    """Return float32 for what is narrower, and otherwise the same."""
    import torch

    return torch.promote_types(dtype, torch.float32)
