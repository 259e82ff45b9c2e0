"""Log-probabilities of tokens from the language-model head, without logits of all of them at once.

For 1,000 tokens and 49,152 words, logits, their softmax and its gradient take 600 MB in float32; here they exist for a
chunk of tokens, are dropped, and are computed again in the backward pass.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CHUNK_BYTES = {"cpu": 2**26, "cuda": 2**29}
"""What a chunk's logits take in float32 (bytes): large enough that a matrix product of it runs at full speed."""


class TokenLogProbs(torch.autograd.Function):
    """log softmax(hidden Wᵀ + bias) at each target, float32, `[tokens]`.

    The gradient of log p(t) by the logits is onehot(t) - p; p is computed again from the logits' log-sum-exp.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, chunk: int) -> Tensor:
        """`hidden` is `[tokens, dim]`, `weight` `[vocabulary, dim]`, `bias` `[vocabulary]`, `targets` `[tokens]`."""
        found, norms = [], []
        for part, wanted in zip(hidden.split(chunk), targets.split(chunk), strict=True):
            logits = _widened(torch.nn.functional.linear(part, weight, bias))
            highest = logits.amax(-1)
            at_target = logits.gather(-1, wanted[:, None])[:, 0]
            norms.append(logits.sub_(highest[:, None]).exp_().sum(-1).log_() + highest)  # in place: no second copy
            found.append(at_target - norms[-1])
            del logits
        ctx.save_for_backward(hidden, weight, bias, targets, torch.cat(norms))
        ctx.chunk = chunk
        return torch.cat(found)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        """Return the gradients by hidden, weight and bias, as far as they are asked for."""
        hidden, weight, bias, targets, norms = ctx.saved_tensors
        by_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        by_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        by_bias = torch.zeros_like(bias) if ctx.needs_input_grad[2] else None
        for begin in range(0, len(hidden), ctx.chunk):
            rows = slice(begin, begin + ctx.chunk)
            error = _widened(torch.nn.functional.linear(hidden[rows], weight, bias))
            error.sub_(norms[rows, None]).exp_().neg_()
            error.scatter_add_(-1, targets[rows, None], torch.ones_like(error[:, :1]))
            error = error.mul_(grads[0][rows, None]).to(weight.dtype)
            if by_hidden is not None:
                torch.mm(error, weight, out=by_hidden[rows])
            if by_weight is not None:
                by_weight.addmm_(error.T, hidden[rows])
            if by_bias is not None:
                by_bias += error.sum(0)
        return by_hidden, by_weight, by_bias, None, None


def _widened(logits: Tensor) -> Tensor:
    """Return logits in float32, or in float64 where they are."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


class ScoringHead(torch.nn.Linear):
    """A language-model head that can return log-probabilities in place of logits.

    It does so within its own call, so that whatever gathers a module's weights for its call has gathered them. A
    model has such a head only if its logits are the head's output as it is.
    """

    targets: Tensor | None = None

    def forward(self, hidden: Tensor) -> Tensor:
        """Return logits `[batch, tokens, vocabulary]`; within `scoring` log-probabilities, float32, `[1, tokens]`."""
        if self.targets is None:
            return super().forward(hidden)
        chunk = max(1, CHUNK_BYTES.get(hidden.device.type, 2**26) // (4 * len(self.weight)))
        scores = TokenLogProbs.apply(hidden[0], self.weight, self.bias, self.targets, chunk)  # type: ignore[no-untyped-call]
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
