"""How fast a model goes on, token by token, behind a context."""

from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STEPS = 12


@torch.no_grad()
def decode_speed(model: "PreTrainedModel", context: int, batch: int = 1) -> float:
    """Return tokens a second, over all rows, behind `context` tokens each; medians of a few steps."""
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    ids = torch.arange(batch * context, device=model.device).view(batch, context) % min(1000, model.config.vocab_size)
    model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    last, taken = ids[:, -1:], []
    for _ in range(STEPS):
        _wait(model)
        start = perf_counter()
        last = model(input_ids=last, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)
        _wait(model)
        taken.append(perf_counter() - start)
    return batch / median(taken[2:])


def _wait(model: "PreTrainedModel") -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize()
