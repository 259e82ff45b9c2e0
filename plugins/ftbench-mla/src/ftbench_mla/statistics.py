"""What conversion must know of a model: how its attention's inputs, gradients and distances are distributed."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ftbench_mla.family import Family, Projections, UnconvertibleError
from ftbench_mla.padded import Batch, side_by_side

if TYPE_CHECKING:
    from transformers import PreTrainedModel


DRAWS = (2, 6)
"""Gradients of a token, at least and at most. What 31.25 % of SmolLM2-135M's cache cost, nats/token: `exact-rope` 0.387
with one of each of 3,072 tokens, 0.325 with six; `absorbable` 0.489 with one of each of 23,000, 0.477 with two."""

GRADIENTS = 20_000
"""Of all tokens together, between these bounds: another token tells more than another draw of the same."""

ROUNDS = 2
"""Of weighing tokens anew: after two, the moments hardly change any more."""

BLOCK = 2048
"""Tokens whose inputs and gradients are kept at a time."""

SHRINK_INPUTS, SHRINK_FISHER = 0.1, 0.1
"""By how much the weighed moments are drawn towards the identity: a few thousand tokens know no small eigenvalues."""

_NEXT_TO_NOTHING = 1e-3
"""By how much moments are drawn there before they are inverted, to weigh by."""


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

    Labels are not drawn one by one: see `fisher_roots`.
    """

    inputs: Tensor
    mean: Tensor
    weighed: Tensor
    fisher: Tensor
    distances: Tensor


def collect(model: "PreTrainedModel", family: Family, sequences: Sequence[Sequence[int]]) -> list[LayerStatistics]:
    """Run a model over token sequences, forward and backward, and return its layers' statistics.

    Raises:
        UnconvertibleError: there is no sequence, or something is not a finite number.
    """
    longest = max((len(sequence) for sequence in sequences), default=0)
    if not longest:
        raise UnconvertibleError("calibration needs at least one text")
    layers = [_Layer(family, attention, longest) for attention in family.attentions(model)]
    frozen = [parameter for parameter in model.parameters() if parameter.requires_grad]
    draw, draws = torch.Generator().manual_seed(0), draws_of(sum(map(len, sequences)))
    try:
        for parameter in frozen:
            parameter.requires_grad_(False)
        with ExitStack() as stack:
            for layer in layers:
                stack.enter_context(layer.watching())
            for block in _blocks(sequences):
                for batch in side_by_side(block, model.device):
                    _run(model, batch, draw, draws)
                    for layer in layers:
                        layer.keep(batch.real)
                for index, layer in enumerate(layers):
                    if not layer.take_in():
                        raise UnconvertibleError(
                            f"the activations or gradients of layer {index} are not finite on the calibration texts"
                        )
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
    return [layer.finish() for layer in layers]


def _blocks(sequences: Sequence[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
    """Put sequences together until they have so many tokens as are kept at a time."""
    block: list[Sequence[int]] = []
    for sequence in sequences:
        if block and sum(map(len, block)) + len(sequence) > BLOCK:
            yield block
            block = []
        block.append(sequence)
    yield block


def draws_of(tokens: int) -> int:
    """Return how many gradients are drawn of each of so many tokens."""
    least, most = DRAWS
    return max(least, min(most, round(GRADIENTS / tokens)))


def _run(model: "PreTrainedModel", batch: Batch, draw: torch.Generator, draws: int) -> None:
    """Go forward once, and backward for each draw."""
    with torch.enable_grad():
        inputs = model.get_input_embeddings()(batch.ids).detach().requires_grad_()
        logits = model(inputs_embeds=inputs, use_cache=False).logits[batch.real].float()
        chances = logits.detach().softmax(-1)
        if not bool(chances.isfinite().all()):
            raise UnconvertibleError("the model's predictions on the calibration texts are not finite numbers")
        for left in reversed(range(draws)):
            logits.backward(fisher_roots(chances, draw), retain_graph=left > 0)


def fisher_roots(chances: Tensor, draw: torch.Generator) -> Tensor:
    """Return gradients by logits, `[seq, vocabulary]`, whose second moment is that of p - onehot(y), y drawn from p.

    That moment, the Fisher information by the logits, is diag p - p pᵀ = S Sᵀ with S = diag √p - p √pᵀ, and so also
    that of S e for signs e. Where a label is drawn, a token of which the model is sure has next to no gradient but in
    the rare draw, when it has a large one; so many signs leave far less to chance.
    """
    signs = torch.randint(0, 2, chances.shape, generator=draw, dtype=torch.int8).to(chances.device)
    found = chances.sqrt().mul_(signs.mul_(2).sub_(1))
    found -= chances * found.sum(-1, keepdim=True)
    return found


@dataclass(frozen=True)
class Moments:
    """Sums over tokens: of x xᵀ, and of g gᵀ over their draws, each token weighed."""

    inputs: Tensor
    gradients: Tensor

    @classmethod
    def plain(cls, x: Tensor, g: Tensor) -> "Moments":
        """Add up tokens that count alike, `[seq, hidden]` and `[draws, seq, out]`."""
        flat = g.flatten(0, 1)
        return cls(x.T @ x, flat.T @ flat / len(g))

    def reweigh(self, x: Tensor, g: Tensor, tokens: int) -> "Moments":
        """Add up tokens, each weighed by what these moments, of so many tokens, say of it; the weights are about 1."""
        of_x = _weights(x, self.inputs / tokens)
        of_g = _weights(g, self.gradients / tokens).mean(0)
        gradients = (g * of_x).flatten(0, 1).T @ g.flatten(0, 1) / len(g)
        return Moments((x * of_g).T @ x, gradients)

    def __add__(self, other: "Moments") -> "Moments":
        """Put two together."""
        return Moments(self.inputs + other.inputs, self.gradients + other.gradients)

    @property
    def is_finite(self) -> bool:
        """Whether all of both are finite numbers."""
        return bool(self.inputs.isfinite().all() and self.gradients.isfinite().all())


def _weights(rows: Tensor, moment: Tensor) -> Tensor:
    """Return rowᵀ moment⁻¹ row over their width, `[…, seq, 1]`: one on average."""
    inverse = torch.linalg.inv(shrunk(moment.double(), _NEXT_TO_NOTHING)).to(rows.dtype)
    found: Tensor = ((rows @ inverse) * rows).sum(-1, keepdim=True) / rows.shape[-1]
    return found


def shrunk(moment: Tensor, share: float) -> Tensor:
    """Draw a moment towards the identity of the same size."""
    size = moment.diagonal().mean() + 1e-30
    return (1 - share) * moment + share * size * torch.eye(len(moment), dtype=moment.dtype, device=moment.device)


class _Layer:
    """Adds up what one attention layer sees."""

    def __init__(self, family: Family, attention: nn.Module, longest: int) -> None:
        self._family, self._attention = family, attention
        self._base = family.projections(attention)
        key = self._base.key
        hidden, device = key.shape[1], key.device
        self._inputs = torch.zeros(hidden, hidden, device=device)
        self._mean = torch.zeros(hidden, device=device)
        self._distances = torch.zeros(longest, device=device)
        out = key.shape[0] + self._base.value.shape[0]
        self._moments = Moments(torch.zeros(hidden, hidden, device=device), torch.zeros(out, out, device=device))
        self._tokens = 0
        self._seen: tuple[Tensor, Any] | None = None  # of a batch: its inputs, and its positions' angles
        self._drawn: list[Tensor] = []  # of a batch: its gradients
        self._x: list[Tensor] = []  # of each batch of the block, [tokens, hidden]
        self._g: list[Tensor] = []  # of each batch of the block, [draws, tokens, 2 G h]

    @contextmanager
    def watching(self) -> Iterator[None]:
        handle = self._attention.register_forward_pre_hook(self._see_inputs, with_kwargs=True)
        with ExitStack() as stack:
            stack.callback(handle.remove)
            stack.enter_context(self._family.watch_keys_and_values(self._attention, self._see_gradients))
            yield

    def _see_inputs(self, module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        self._seen = (given[0] if given else named["hidden_states"]).detach(), named.get("position_embeddings")

    def _see_gradients(self, gradient: Tensor) -> None:
        self._drawn.append(gradient)

    def keep(self, real: Tensor) -> None:
        """Keep what was seen of a batch's texts, and not of what fills them up."""
        assert self._seen is not None
        x, angles = self._seen
        found = attended(self._base, self._family, self._attention, x.float(), angles, real)
        self._distances[: len(found)] += found
        self._x.append(x[real])
        self._g.append(torch.stack([gradient[real] for gradient in self._drawn]))
        self._seen, self._drawn = None, []

    def take_in(self) -> bool:
        """Add a block's tokens, and let go of them; return whether all is finite.

        Tokens are weighed by what their block and all that came before say; what came before keeps its weights.
        """
        x = torch.cat(self._x).float()
        g = torch.cat(self._g, dim=1).float()
        self._x, self._g = [], []
        plain = Moments.plain(x, g)
        if not (plain.is_finite and bool(self._distances.isfinite().all())):
            return False
        self._inputs += plain.inputs
        self._mean += x.sum(0)
        self._tokens += len(x)
        found = self._moments + plain
        for _ in range(ROUNDS):
            found = self._moments + found.reweigh(x, g, self._tokens)
        self._moments = found
        return True

    def finish(self) -> LayerStatistics:
        tokens = self._tokens
        return LayerStatistics(
            self._inputs.double() / tokens,
            self._mean.double() / tokens,
            shrunk(self._moments.inputs.double() / tokens, SHRINK_INPUTS),
            shrunk(self._moments.gradients.double() / tokens, SHRINK_FISHER),
            self._distances.double() / self._distances.sum(),
        )


def attended(
    base: Projections,
    family: Family,
    attention: nn.Module,
    x: Tensor,
    angles: tuple[Tensor, Tensor] | None,
    real: Tensor,
) -> Tensor:
    """Return how much attention goes how many tokens back, `[seq]`, summed over texts, heads and tokens.

    `x` is `[texts, seq, hidden]`, `angles` cosines and sines of its positions, `real` which tokens count.
    """
    from ftbench_mla.attention import rotate

    length = x.shape[1]
    if angles is None:  # nothing is rotated, and so nobody asks
        return real.sum(0).float()
    query = _heads(x, base.query, base.query_bias, base.size)
    key = _heads(x, base.key, base.key_bias, base.size)
    cos, sin = (one.float() for one in angles)
    query, key = rotate(query, cos, sin), rotate(key, cos, sin)
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    scores = query @ key.transpose(2, 3) * family.scaling(attention)
    causal = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
    weights = scores.masked_fill(~causal, -torch.inf).softmax(-1)
    weights = weights.sum(1)[real].view(-1)  # of each token that counts, [tokens seq]
    places = torch.arange(length, device=x.device)
    back = (places[:, None] - places[None]).clamp(min=0).expand(len(x), -1, -1)[real].view(-1)
    return torch.zeros(length, device=x.device).index_add_(0, back, weights)


def _heads(x: Tensor, weight: Tensor, bias: Tensor | None, size: int) -> Tensor:
    found = torch.nn.functional.linear(x, weight.float(), None if bias is None else bias.float())
    return found.view(*x.shape[:2], -1, size).transpose(1, 2)
