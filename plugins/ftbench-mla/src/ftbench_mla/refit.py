"""A converted model's output weights, fitted anew, layer by layer: they make up for what the latents leave out."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ftbench_mla.family import UnconvertibleError
from ftbench_mla.modeling import attending, attention_name, layers_of
from ftbench_mla.padded import side_by_side

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RIDGE = 0.3
"""What holds the weights to those of the base, as a share of the mean second moment of what they are applied to."""


class _ReachedError(Exception):
    """A module was reached: what comes behind it is not needed."""


@torch.no_grad()
def refit_outputs(model: "PreTrainedModel", before: Sequence[nn.Module], texts: Sequence[Sequence[int]]) -> None:
    """Fit each layer's output weights to what the base's attention puts out, one layer after the other.

    With o what the converted layer's heads bring, `[tokens, H h]`, and y what the base's attention puts out at the same
    token, each behind layers of its own kind, W' minimises E|y - W' o|² + ridge |W' - W|². So it makes up for what its
    own layer has lost and, because o is what it is behind converted layers, for some of what those before have.

    Args:
        model: converted, its layers' parts other than attention those of the base.
        before: the attention that each layer had.
        texts: token ids.

    Raises:
        UnconvertibleError: what the converted layers put out is not finite.
    """
    training = model.training
    model.eval()
    try:
        batches = list(side_by_side(texts, model.device))
        known = [_first_call(model, batch.ids) for batch in batches]
        base, own = [hidden for hidden, _ in known], [hidden for hidden, _ in known]
        for index, (layer, attention) in enumerate(zip(layers_of(model), before, strict=True)):
            with attending(layer, attention), _seen(attention) as wanted:
                base = [_out(layer, hidden, named) for hidden, (_, named) in zip(base, known, strict=True)]
            after = getattr(layer, attention_name(layer))
            fit = _Fit(after.o_proj)
            for batch, hidden, (_, named), output in zip(batches, own, known, wanted, strict=True):
                (heads,), _ = _reach(after.o_proj, partial(layer, hidden, **named))
                fit.add(heads[batch.real], output[batch.real])
            if not fit.is_finite:
                raise UnconvertibleError(f"what the converted layer {index} puts out is not finite")
            after.o_proj.weight += fit.change().to(after.o_proj.weight.dtype)
            own = [_out(layer, hidden, named) for hidden, (_, named) in zip(own, known, strict=True)]
    finally:
        model.train(training)


class _Fit:
    """The moments that a layer's ridge regression needs, float64."""

    def __init__(self, output: nn.Linear) -> None:
        self._output = output
        self._weight = output.weight.double()
        size = self._weight.shape[1]
        self._heads = self._weight.new_zeros(size, size)  # sum of o oᵀ
        self._errors = torch.zeros_like(self._weight)  # sum of (y - W o) oᵀ
        self._tokens = 0

    def add(self, heads: Tensor, wanted: Tensor) -> None:
        """Add tokens: `heads` is `[tokens, H h]`, `wanted` `[tokens, hidden]`."""
        rows, bias = heads.double(), self._output.bias
        errors = wanted.double() - rows @ self._weight.T
        if bias is not None:
            errors -= bias.double()
        self._heads += rows.T @ rows
        self._errors += errors.T @ rows
        self._tokens += len(rows)

    @property
    def is_finite(self) -> bool:
        return bool(self._heads.isfinite().all() and self._errors.isfinite().all())

    def change(self) -> Tensor:
        """Return what is added to the weights, `[hidden, H h]`."""
        heads, errors = self._heads / self._tokens, self._errors / self._tokens
        heads.diagonal().add_(RIDGE * heads.diagonal().mean() + 1e-30)
        found: Tensor = torch.linalg.solve(heads, errors, left=False)
        return found


def _first_call(model: "PreTrainedModel", ids: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """Return hidden states before the first layer, `[texts, seq, hidden]`, and what layers are given beside."""
    given, named = _reach(layers_of(model)[0], partial(model, ids, use_cache=False))
    return (given[0], named) if given else (named.pop("hidden_states"), named)


def _reach(module: nn.Module, run: Callable[[], Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return what a module is given in a run, which goes no further."""
    found: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def reached(_module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        found.append((given, dict(named)))
        raise _ReachedError

    handle = module.register_forward_pre_hook(reached, with_kwargs=True)
    try:
        run()
    except _ReachedError:
        pass
    finally:
        handle.remove()
    return found[0]


def _out(layer: nn.Module, hidden: Tensor, named: dict[str, Any]) -> Tensor:
    found: Tensor | tuple[Tensor, ...] = layer(hidden, **named)
    return found[0] if isinstance(found, tuple) else found


@contextmanager
def _seen(attention: nn.Module) -> Iterator[list[Tensor]]:
    """Collect what an attention puts out."""
    found: list[Tensor] = []
    handle = attention.register_forward_hook(lambda _module, _given, output: found.append(output[0]))
    try:
        yield found
    finally:
        handle.remove()
