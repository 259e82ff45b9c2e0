"""What a model's weights are known by."""

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

RATE = 1e9
"""Bytes of weights that are hashed in a second, about."""


def weights_digest(model: "PreTrainedModel", without: "Iterable[Tensor]" = ()) -> str:
    """SHA-256 over names, kinds, shapes and values of all weights and buffers, in main memory one after the other.

    Args:
        model: whole, on any device.
        without: weights whose values are left out.
    """
    import torch

    left_out = {id(one) for one in without}
    found = hashlib.sha256()
    for name, one in [*model.named_parameters(), *model.named_buffers()]:
        found.update(f"{name} {one.dtype} {list(one.shape)}\n".encode())
        if id(one) not in left_out:
            values = one.detach().to_dense().cpu().contiguous().reshape(-1)
            found.update(values.view(torch.uint8).numpy().data)
    return found.hexdigest()
