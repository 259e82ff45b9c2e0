"""What conversion must know of a model: how its attention's inputs, gradients and distances are distributed."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ftbench_mla.family import Family, Projections, UnconvertibleError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


PASSES = 3
"""Over the calibration texts: after two, the moments hardly change any more."""

SHRINK_INPUTS, SHRINK_FISHER = 0.003, 0.03
"""By how much the weighed moments are drawn towards the identity: a few thousand tokens know no small eigenvalues."""


@dataclass(frozen=True)
class LayerStatistics:
    """What the tokens of a calibration tell of one layer.

    `inputs` is the second moment of the attention's inputs x, `[hidden, hidden]`, and `mean` their mean; `distances`
    the share of attention that goes so many tokens back, `[longest]`, over all heads and tokens.

    g being the gradient by keys and values before rotation, `[2 G h]`, of the log-likelihood of labels that the model
    itself draws, the Fisher information by the weights is E[g gᵀ ⊗ x xᵀ]. `fisher`, `[2 G h, 2 G h]`, and `weighed`,
    `[hidden, hidden]`, are its best Kronecker factors: those of the matrix normal distribution (Dutilleul 1999), in
    which every token's x xᵀ is weighed by gᵀ fisher⁻¹ g, and its g gᵀ by xᵀ weighed⁻¹ x. Taken each by itself, as
    K-FAC does (Martens and Grosse 2015), the moments are ruled by tokens on which next to nothing hangs: on
    SmolLM2-135M, keeping half the cache then cost twice the divergence.
    """

    inputs: Tensor
    mean: Tensor
    weighed: Tensor
    fisher: Tensor
    distances: Tensor


def collect(model: "PreTrainedModel", family: Family, sequences: Sequence[Sequence[int]]) -> list[LayerStatistics]:
    """Run a model over token sequences, forward and backward, each by itself, and return its layers' statistics.

    Raises:
        UnconvertibleError: there is no sequence, or something is not a finite number.
    """
    longest = max((len(sequence) for sequence in sequences), default=0)
    if not longest:
        raise UnconvertibleError("calibration needs at least one text")
    layers = [_Sums(family, attention, longest) for attention in family.attentions(model)]
    frozen = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in frozen:
            parameter.requires_grad_(False)
        with ExitStack() as stack:
            for layer in layers:
                stack.enter_context(layer.watching())
            for _ in range(PASSES):
                for layer in layers:
                    layer.begin_pass()
                draw = torch.Generator().manual_seed(0)
                for sequence in sequences:
                    _run(model, torch.tensor([list(sequence)], device=model.device), draw)
                for layer in layers:
                    layer.end_pass()
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
    for index, layer in enumerate(layers):
        if not layer.is_finite:
            raise UnconvertibleError(
                f"the activations or gradients of layer {index} are not finite on the calibration texts"
            )
    return [layer.finish() for layer in layers]


def _run(model: "PreTrainedModel", ids: Tensor, draw: torch.Generator) -> None:
    """Go forward and backward once, with labels drawn from the model."""
    with torch.enable_grad():
        inputs = model.get_input_embeddings()(ids).detach().requires_grad_()
        logits = model(inputs_embeds=inputs, use_cache=False).logits[0].float()
        chances = logits.detach().softmax(-1)
        if not bool(chances.isfinite().all()):
            raise UnconvertibleError("the model's predictions on the calibration texts are not finite numbers")
        labels = torch.multinomial(chances.cpu(), 1, generator=draw)[:, 0].to(logits.device)
        torch.nn.functional.cross_entropy(logits, labels, reduction="sum").backward()


@dataclass(frozen=True)
class _Weighing:
    """What weighs a pass: the inverses of the moments of the one before."""

    weighed: Tensor
    fisher: Tensor


class _Moments:
    """The first and second moment of the inputs, and the weighed second moments of inputs and gradients."""

    def __init__(self, hidden: int, out: int, device: torch.device) -> None:
        self.inputs = torch.zeros(hidden, hidden, device=device)
        self.mean = torch.zeros(hidden, device=device)
        self.weighed = torch.zeros(hidden, hidden, device=device)
        self.fisher = torch.zeros(out, out, device=device)
        self.tokens = 0

    def add(self, x: Tensor, g: Tensor, before: _Weighing | None) -> None:
        """Add tokens, `[seq, hidden]` and `[seq, out]`, weighed by the inverse moments of the pass before, if any."""
        self.inputs += x.T @ x
        self.mean += x.sum(0)
        self.tokens += len(x)
        self.weighed += (x if before is None else x * _weight(g, before.fisher)).T @ x
        self.fisher += (g if before is None else g * _weight(x, before.weighed)).T @ g

    def inverted(self) -> _Weighing:
        """Return what weighs the next pass."""
        return _Weighing(_inverse(self.weighed / self.tokens), _inverse(self.fisher / self.tokens))


def _weight(rows: Tensor, inverse: Tensor) -> Tensor:
    """Return rowᵀ inverse row over their width, `[seq, 1]`: one on average."""
    return ((rows @ inverse) * rows).sum(1, keepdim=True) / rows.shape[1]


def _inverse(moment: Tensor) -> Tensor:
    inverse: Tensor = torch.linalg.inv(shrunk(moment.double(), 1e-3))
    return inverse.float()


def shrunk(moment: Tensor, share: float) -> Tensor:
    """Draw a moment towards the identity of the same size."""
    size = moment.diagonal().mean() + 1e-30
    return (1 - share) * moment + share * size * torch.eye(len(moment), dtype=moment.dtype, device=moment.device)


class _Sums:
    """Adds up what one attention layer sees."""

    def __init__(self, family: Family, attention: nn.Module, longest: int) -> None:
        self._family, self._attention = family, attention
        self._base = family.projections(attention)
        key = self._base.key
        self._sizes = key.shape[1], 2 * len(key), key.device
        self._moments = _Moments(*self._sizes)
        self._done: _Moments | None = None
        self._before: _Weighing | None = None
        self._distances = torch.zeros(longest, dtype=torch.float32, device=key.device)
        self._x = torch.empty(0)

    @contextmanager
    def watching(self) -> Iterator[None]:
        handle = self._attention.register_forward_pre_hook(self._see_inputs, with_kwargs=True)
        with ExitStack() as stack:
            stack.callback(handle.remove)
            stack.enter_context(self._family.watch_keys_and_values(self._attention, self._see_gradients))
            yield

    def _see_inputs(self, module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        x = given[0] if given else named["hidden_states"]
        self._x = x.detach()[0].float()
        if self._done is None:
            angles = named.get("position_embeddings")
            self._distances[: len(self._x)] += attended(self._base, self._family, self._attention, self._x, angles)

    def _see_gradients(self, gradient: Tensor) -> None:
        self._moments.add(self._x, gradient[0].float(), self._before)

    def begin_pass(self) -> None:
        if self._done is not None and self.is_finite:
            self._before = self._done.inverted()

    def end_pass(self) -> None:
        self._done, self._moments = self._moments, _Moments(*self._sizes)

    @property
    def is_finite(self) -> bool:
        done = self._done
        return done is not None and all(
            bool(tensor.isfinite().all()) for tensor in (done.inputs, done.weighed, done.fisher, self._distances)
        )

    def finish(self) -> LayerStatistics:
        assert self._done is not None
        done, tokens = self._done, self._done.tokens
        return LayerStatistics(
            done.inputs.double() / tokens,
            done.mean.double() / tokens,
            shrunk(done.weighed.double() / tokens, SHRINK_INPUTS),
            shrunk(done.fisher.double() / tokens, SHRINK_FISHER),
            self._distances.double() / self._distances.sum(),
        )


def attended(
    base: Projections, family: Family, attention: nn.Module, x: Tensor, angles: tuple[Tensor, Tensor] | None
) -> Tensor:
    """Return how much attention goes how many tokens back, `[seq]`, summed over heads and tokens.

    `x` is `[seq, hidden]`, `angles` cosines and sines of its positions.
    """
    from ftbench_mla.attention import rotate

    length = len(x)
    if angles is None:  # nothing is rotated, and so nobody asks
        return torch.ones(length, device=x.device)
    query = _heads(x, base.query, base.query_bias, base.size)
    key = _heads(x, base.key, base.key_bias, base.size)
    cos, sin = (one.float() for one in angles)
    query, key = rotate(query, cos, sin), rotate(key, cos, sin)
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    scores = query @ key.transpose(2, 3) * family.scaling(attention)
    causal = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
    weights = scores.masked_fill(~causal, -torch.inf).softmax(-1)[0].sum(0)  # [seq, seq]
    places = torch.arange(length, device=x.device)
    back = (places[:, None] - places[None]).clamp(min=0)
    return torch.zeros(length, device=x.device).index_add_(0, back.flatten(), weights.flatten())


def _heads(x: Tensor, weight: Tensor, bias: Tensor | None, size: int) -> Tensor:
    found = torch.nn.functional.linear(x, weight.float(), None if bias is None else bias.float())
    return found.view(1, len(x), -1, size).transpose(1, 2)
