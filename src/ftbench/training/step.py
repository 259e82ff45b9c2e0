"""One optimiser step: the gradients of the effective batch, micro-batch by micro-batch."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from ftbench.errors import ContractError
from ftbench.training.batching import MicroBatch, Step
from ftbench.training.logprobs import CompletionLogProbs, completion_logprobs
from ftbench.training.sharding import is_shard

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

    from ftbench.models.shelf import Shelf

Loss = Callable[[CompletionLogProbs], "Tensor"]

Moment = Callable[[str], AbstractContextManager[None]]
"""Opens a moment of a step, by its name, for somebody who looks at memory."""


def unwatched(_: str) -> AbstractContextManager[None]:
    """Open a moment that nobody looks at."""
    return nullcontext()


def accumulate(
    model: "PreTrainedModel",
    step: Step,
    micro_batches: Sequence[MicroBatch],
    loss: Loss,
    *,
    packed: bool,
    moment: Moment = unwatched,
    shelf: "Shelf | None" = None,
) -> "Tensor":
    """Add the gradients of the step's loss to the model's, and return the loss: a scalar, float64, without its graph.

    Nothing here waits for a value, so that it works on fake tensors too.

    Args:
        model: in training mode.
        step: whose examples they are.
        micro_batches: an empty one is a pass whose loss counts nothing, by a rank that has no example left: the others
            need its share of the weights.
        loss: see `Training.run`.
        packed: see `completion_logprobs`.
        moment: opens the moments of each micro-batch.
        shelf: where activations are kept, of several steps in turn.

    Raises:
        ContractError: the loss is no scalar tensor, or hangs on nothing that is trained.
    """
    import torch

    from ftbench.models.saved import keeping_little
    from ftbench.models.shelf import Shelf
    from ftbench.models.vocabulary import adding_in_place

    shelf = shelf or Shelf()
    sharded = any(map(is_shard, model.parameters()))
    total = torch.zeros((), dtype=torch.float64, device=model.device)
    for batch in micro_batches:
        with moment("forward"), keeping_little(shelf):
            found = completion_logprobs(model, batch or [step.lightest], step, packed=packed)
            value = _scalar(loss(found), loss)
            if not batch:
                value = value * 0.0
        with moment("backward"), nullcontext() if sharded else adding_in_place(model):
            value.backward()
        total += value.detach()
    return total


def _scalar(value: "Tensor", loss: Loss) -> "Tensor":
    """Refuse what no gradient can be taken of."""
    import torch

    where = getattr(loss, "__qualname__", None)
    if not isinstance(value, torch.Tensor):
        raise ContractError(
            f"the loss is of the type {type(value).__name__}, and a scalar tensor is needed; is a return missing?",
            where,
        )
    if value.dim():
        raise ContractError(
            f"the loss has the shape {list(value.shape)}, and a scalar is needed: end it with logprobs.mean(values) "
            "for a mean over prompts, or logprobs.nll() for one over tokens",
            where,
        )
    if not value.requires_grad:
        raise ContractError(
            "the loss hangs on no trainable parameter: compute it from logprobs without detach(), item() or no_grad(), "
            "and leave requires_grad on in adapt() for what the forward pass uses",
            where,
        )
    return value


def trainable(model: "PreTrainedModel") -> "list[torch.nn.Parameter]":
    """Return the parameters that training changes; a method may leave some without a single value."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad and parameter.numel()]


def can_checkpoint(model: "PreTrainedModel") -> bool:
    """Whether the model can compute its activations again in the backward pass."""
    return bool(getattr(model, "supports_gradient_checkpointing", False))


def set_checkpointing(model: "PreTrainedModel", on: bool) -> None:
    """Keep only each layer's input for the backward pass and compute the rest again (Chen et al. 2016), or all."""
    if on and not model.is_activation_checkpointing:
        model.activation_checkpointing_enable()
    elif not on and model.is_activation_checkpointing:
        model.activation_checkpointing_disable()
