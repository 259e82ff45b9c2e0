"""Gradients of a vocabulary's weights, which the embedding and the head often share.

Autograd makes the gradient of each use anew before it adds it to what there is: 57 MB in bf16 for 49,152 words of 576
values each, of which the embedding's are nearly all zeros, twice in every micro-batch. Here they are added in place.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(eq=False)
class InPlace:
    """Whether a backward pass may add to the gradients that are there, and who is told of one that was not there.

    It may where all gradients are asked for and nobody looks at each: in the training loop.
    """

    on: bool = False
    told: Callable[[Tensor], None] | None = None

    def takes(self, weight: Tensor) -> bool:
        """Whether this weight's gradient is added in place."""
        return self.on and weight.is_leaf and not weight._backward_hooks

    def put(self, weight: Tensor, gradient: Tensor) -> None:
        """Let this be a weight's first gradient."""
        weight.grad = gradient
        if self.told is not None:
            self.told(weight)


class Embed(torch.autograd.Function):
    """The rows of `weight` that `ids` name."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, ids: Tensor, padding: int | None, in_place: InPlace) -> Tensor:
        """`weight` is `[vocabulary, dim]`, `ids` `[...]`, and what is returned `[..., dim]`."""
        ctx.save_for_backward(ids)
        ctx.asked = weight, padding, in_place  # what autograd would give back is another tensor than the parameter
        return torch.nn.functional.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, None]:
        """Add each token's gradient to its word's row; that of padding is none."""
        (ids,) = ctx.saved_tensors
        weight, padding, in_place = ctx.asked
        if not in_place.takes(weight) or weight.grad is None:
            padding = -1 if padding is None else padding
            dense = torch.ops.aten.embedding_dense_backward(grads[0], ids, len(weight), padding, False)
            return dense, None, None, None
        rows = grads[0] if padding is None else grads[0].masked_fill((ids == padding)[..., None], 0)
        weight.grad.index_add_(0, ids.reshape(-1), rows.reshape(-1, rows.shape[-1]))
        return None, None, None, None


class TokenEmbedding(torch.nn.Embedding):
    """A model's input embedding."""

    in_place: InPlace

    def forward(self, ids: Tensor) -> Tensor:
        """Return `[..., dim]`."""
        if self.max_norm is not None or self.scale_grad_by_freq or self.sparse:
            return super().forward(ids)
        return Embed.apply(self.weight, ids, self.padding_idx, self.in_place)  # type: ignore[no-any-return,no-untyped-call]


def use_token_embedding(model: "PreTrainedModel") -> None:
    """Give a model such an embedding, where its own is torch's."""
    embedding = _embedding(model)
    if type(embedding) is torch.nn.Embedding:
        embedding.__class__ = TokenEmbedding
        embedding.in_place = InPlace()  # type: ignore[assignment]


def _embedding(model: "PreTrainedModel") -> torch.nn.Module | None:
    try:
        return model.get_input_embeddings()
    except NotImplementedError:  # transformers does not find it in every model
        return None


def switches(model: "PreTrainedModel") -> list[InPlace]:
    """Return what says of a model's embedding and head whether their gradients are added in place."""
    layers = [_embedding(model), model.get_output_embeddings()]
    found = [getattr(layer, "in_place", None) for layer in layers]
    return [one for one in found if isinstance(one, InPlace)]


@contextmanager
def adding_in_place(model: "PreTrainedModel") -> Iterator[None]:
    """Have gradients of the vocabulary's weights added in place by backward passes inside."""
    of_both = switches(model)
    for one in of_both:
        one.on = True
    try:
        yield
    finally:
        for one in of_both:
            one.on = False
