"""Log-probabilities of tokens from the language-model head, without logits of all of them at once.

For 1,000 tokens and 49,152 words, logits, their softmax and its gradient take 600 MB in float32; here they exist for a
chunk of tokens, are dropped, and are computed again in the backward pass.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ftbench.memory.standin import kind_of
from ftbench.models.blocks import blocks
from ftbench.models.precision import wide_dtype
from ftbench.models.vocabulary import InPlace

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CHUNK_BYTES = {"cpu": 2**26, "cuda": 2**29}
"""What a chunk's logits would take in float32 (bytes): large enough that a matrix product of it runs at full speed."""

WIDE_BYTES = {"cpu": 2**21, "cuda": 2**29}
"""What is in float32 of it at a time (bytes): on the CPU so little that it stays in the cache."""


class TokenLogProbs(torch.autograd.Function):
    """log softmax(hidden Wᵀ + bias) at each target, float32, `[tokens]`.

    The gradient of log p(t) by the logits is onehot(t) - p. Where the weights are trained, p is computed again in the
    backward pass from the logits' log-sum-exp. Where they rest, the gradient by `hidden` is that of the token's
    log-probability times its row: it is computed with the logits at hand, and nothing is computed again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        chunk: int,
        wide: int,
        in_place: InPlace,
    ) -> Tensor:
        """Score.

        Args:
            ctx: torch's.
            hidden: `[tokens, dim]`.
            weight: `[vocabulary, dim]`.
            bias: `[vocabulary]`.
            targets: `[tokens]`.
            chunk: tokens whose logits exist at a time.
            wide: tokens whose logits are in float32 at a time.
            in_place: whether the gradient by the weights is added to what there is of it.
        """
        by_hidden, by_weight, by_bias, *_ = ctx.needs_input_grad
        ahead = torch.empty_like(hidden) if by_hidden and not (by_weight or by_bias) else None
        scores = torch.empty(len(hidden), dtype=wide_dtype(hidden.dtype), device=hidden.device)
        norms = torch.empty_like(scores)
        for rows, logits in _chunks(hidden, weight, bias, chunk):
            _normalise(logits, norms[rows], wide)
            torch.sub(logits.gather(-1, targets[rows, None])[:, 0], norms[rows], out=scores[rows])
            if ahead is not None:
                _turn_into_errors(logits, norms[rows], targets[rows], torch.ones_like(norms[rows]), wide)
                torch.mm(logits, weight, out=ahead[rows])
        ctx.save_for_backward(ahead, hidden if ahead is None else None, weight, bias, targets, norms)
        ctx.asked = chunk, wide, in_place
        ctx.parameter = weight  # what autograd gives back in the backward pass is another tensor
        return scores

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients by hidden, weight and bias, as far as they are asked for."""
        ahead, hidden, weight, bias, targets, norms = ctx.saved_tensors
        if ahead is not None:
            return (ahead * grads[0][:, None].to(ahead.dtype), *[None] * 6)
        chunk, wide, in_place = ctx.asked
        by_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        added = ctx.needs_input_grad[1] and in_place.takes(ctx.parameter)
        by_weight = ctx.parameter.grad if added else None
        by_bias = torch.zeros_like(bias) if ctx.needs_input_grad[2] else None
        for rows, errors in _chunks(hidden, weight, bias, chunk):
            _turn_into_errors(errors, norms[rows], targets[rows], grads[0][rows], wide)
            if by_hidden is not None:
                torch.mm(errors, weight, out=by_hidden[rows])
            if by_bias is not None:
                by_bias += errors.sum(0)
            if by_weight is not None:
                by_weight.addmm_(errors.T, hidden[rows])
            elif ctx.needs_input_grad[1]:  # zeros to begin with would be a pass over all weights
                by_weight = errors.T @ hidden[rows]
                if added:
                    in_place.put(ctx.parameter, by_weight)
        return by_hidden, None if added else by_weight, by_bias, None, None, None, None


def _chunks(hidden: Tensor, weight: Tensor, bias: Tensor | None, chunk: int) -> Iterator[tuple[slice, Tensor]]:
    """Yield the logits of a chunk of tokens after the other, `[chunk, vocabulary]`, in the same memory."""
    room = hidden.new_empty(min(chunk, len(hidden)), len(weight))
    for rows in blocks(hidden, chunk):
        logits = room[: len(hidden[rows])]
        if bias is None:
            torch.mm(hidden[rows], weight.T, out=logits)
        else:
            torch.addmm(bias, hidden[rows], weight.T, out=logits)
        yield rows, logits


def _widened(logits: Tensor, wide: int) -> Iterator[tuple[slice, Tensor]]:
    """Yield copies of a few rows after the others in float32, in the same memory."""
    room = torch.empty(min(wide, len(logits)), logits.shape[1], dtype=wide_dtype(logits.dtype), device=logits.device)
    for rows in blocks(logits, wide):
        yield rows, room[: len(logits[rows])].copy_(logits[rows])


def _normalise(logits: Tensor, norms: Tensor, wide: int) -> None:
    """Write the logarithm of the sum of the exponentials of each row of `logits` to `norms`."""
    for rows, some in _widened(logits, wide):
        highest = some.amax(-1)
        norms[rows] = some.sub_(highest[:, None]).exp_().sum(-1).log_().add_(highest)


def _turn_into_errors(logits: Tensor, norms: Tensor, targets: Tensor, scales: Tensor, wide: int) -> None:
    """Make `scales` times (onehot(target) - softmax) of logits, in their place."""
    for rows, some in _widened(logits, wide):
        some.sub_(norms[rows, None]).exp_().neg_()
        some.scatter_add_(-1, targets[rows, None], torch.ones_like(some[:, :1]))
        logits[rows] = some.mul_(scales[rows, None])


class ScoringHead(torch.nn.Linear):
    """A language-model head that can return log-probabilities in place of logits.

    It does so within its own call, so that whatever gathers a module's weights for its call has gathered them. A
    model has such a head only if its logits are the head's output as it is.
    """

    targets: Tensor | None = None
    in_place: InPlace

    def forward(self, hidden: Tensor) -> Tensor:
        """Return logits `[batch, tokens, vocabulary]`; within `scoring` log-probabilities, float32, `[1, tokens]`."""
        if self.targets is None:
            return super().forward(hidden)
        chunk, wide = (
            max(1, sizes.get(kind_of(hidden.device), sizes["cpu"]) // (4 * len(self.weight)))
            for sizes in (CHUNK_BYTES, WIDE_BYTES)
        )
        asked = self.targets, chunk, wide, self.in_place
        scores = TokenLogProbs.apply(hidden[0], self.weight, self.bias, *asked)  # type: ignore[no-untyped-call]
        return scores[None]  # type: ignore[no-any-return]

    @contextmanager
    def scoring(self, targets: Tensor) -> Iterator[None]:
        """Score `targets`, `[tokens]`: the token that each position of the one row predicts."""
        self.targets = targets
        try:
            yield
        finally:
            self.targets = None


def use_scoring_head(model: "PreTrainedModel") -> None:
    """Give a model such a head, if its logits are its head's output as it is: no cap, no scale, no adapter.

    Whether they are is seen by running it on two tokens, with or without values.
    """
    head = model.get_output_embeddings()
    if type(head) is not torch.nn.Linear:
        return
    head.__class__ = ScoringHead
    head.in_place = InPlace()  # type: ignore[assignment]
    seen: list[Tensor] = []
    watch = head.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    try:
        with torch.no_grad():
            ids = torch.zeros(1, 2, dtype=torch.long, device=model.device)
            logits = model(input_ids=ids, use_cache=False).logits
    finally:
        watch.remove()
    if not (len(seen) == 1 and logits is seen[0]):
        head.__class__ = torch.nn.Linear
