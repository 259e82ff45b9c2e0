"""What a reference finds is found once, and shared by all runs that would find the same."""

import hashlib
import json
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ftbench.memory.parts import Parts
from ftbench.models.digest import weights_digest
from ftbench.training.batching import MicroBatch
from ftbench.training.logprobs import is_padded

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

Pair = tuple[float, float]
"""log p(completion | prompt) of an example's chosen and rejected completion, nats."""


@dataclass(frozen=True)
class Scored:
    """What a reference found of examples, in their order; the seconds that it took; its highest point in memory."""

    pairs: list[Pair]
    seconds: float
    peak: Parts


@dataclass(frozen=True)
class Share:
    """How runs come by what a reference finds.

    Args:
        once: is given all that this hangs on, as JSON has it, and what finds it, and returns what one run has found.
        without_effect: returns the weights that change nothing in what the model says as it stands.
    """

    once: Callable[[Mapping[str, Any], Callable[[], Scored]], Scored]
    without_effect: "Callable[[PreTrainedModel], Iterable[Tensor]]" = lambda _: ()


def depends_on(
    model: "PreTrainedModel",
    batches: Sequence[MicroBatch],
    first: Sequence[Pair],
    without: "Iterable[Tensor]",
    *,
    packed: bool,
) -> dict[str, Any]:
    """Return all that a reference's numbers hang on but the machine and the software, as JSON has it.

    They are equal to the bit only for the same micro-batches, and so hang on the cut, too.

    Args:
        model: the reference.
        batches: that it scores.
        first: what it found of the first of them: whatever shapes what a model says and is no weight of it (the scale
            of an adapter, a hook, a kernel) shows here.
        without: weights that change nothing.
        packed: whether a row without padding is asked for.
    """
    config = {**model.config.to_dict(), "_name_or_path": None}  # where it lies changes nothing
    return {
        "weights": weights_digest(model, without),
        "kind": f"{type(model).__module__}.{type(model).__qualname__}",
        "config": json.dumps(config, sort_keys=True, default=str),
        "attention": model.config._attn_implementation,
        "padded": is_padded(model, packed=packed),
        "tokens": _tokens_digest(batches),
        "first": list(first),
    }


def _tokens_digest(batches: Sequence[MicroBatch]) -> str:
    """SHA-256 over all token ids, and where sequences, prompts and micro-batches end."""
    found = hashlib.sha256()
    for batch in batches:
        found.update(array("q", [len(batch)]).tobytes())
        for one in (sequence for example in batch for sequence in (example.chosen, example.rejected)):
            ids = one.ids if one else ()
            found.update(array("q", [len(ids), one.prompt_length if one else 0, *ids]).tobytes())
    return found.hexdigest()
