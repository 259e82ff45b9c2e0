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


@dataclass
class LayerStatistics:
    """Sums over the tokens of a calibration, of one layer.

    `inputs` is the second moment of the attention's inputs x, `[hidden, hidden]`, and `mean` their mean; `fisher` that
    of the gradients by keys and values before rotation, `[2 G h, 2 G h]`, of the log-likelihood of labels that the
    model itself draws (the Fisher information); `distances` the share of attention that goes so many tokens back,
    `[longest]`, over all heads and tokens.
    """

    inputs: Tensor
    mean: Tensor
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
    draw = torch.Generator().manual_seed(0)
    frozen = [parameter for parameter in model.parameters() if parameter.requires_grad]
    tokens = 0
    try:
        for parameter in frozen:
            parameter.requires_grad_(False)
        with ExitStack() as stack:
            for layer in layers:
                stack.enter_context(layer.watching())
            for sequence in sequences:
                _run(model, torch.tensor([list(sequence)], device=model.device), draw)
                tokens += len(sequence)
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
    found = [layer.finish(tokens) for layer in layers]
    for index, one in enumerate(found):
        if not all(bool(tensor.isfinite().all()) for tensor in (one.inputs, one.fisher, one.distances)):
            raise UnconvertibleError(
                f"the activations or gradients of layer {index} are not finite on the calibration texts"
            )
    return found


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


class _Sums:
    """Adds up what one attention layer sees."""

    def __init__(self, family: Family, attention: nn.Module, longest: int) -> None:
        self._family, self._attention = family, attention
        self._base = family.projections(attention)
        groups = len(self._base.key)
        device = self._base.key.device
        hidden = self._base.key.shape[1]
        self._inputs = torch.zeros(hidden, hidden, dtype=torch.float32, device=device)
        self._mean = torch.zeros(hidden, dtype=torch.float32, device=device)
        self._fisher = torch.zeros(2 * groups, 2 * groups, dtype=torch.float32, device=device)
        self._distances = torch.zeros(longest, dtype=torch.float32, device=device)

    @contextmanager
    def watching(self) -> Iterator[None]:
        handle = self._attention.register_forward_pre_hook(self._see_inputs, with_kwargs=True)
        with ExitStack() as stack:
            stack.callback(handle.remove)
            stack.enter_context(self._family.watch_keys_and_values(self._attention, self._see_gradients))
            yield

    def _see_inputs(self, module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        x = given[0] if given else named["hidden_states"]
        flat = x.detach()[0].float()
        self._inputs += flat.T @ flat
        self._mean += flat.sum(0)
        angles = named.get("position_embeddings")
        self._distances[: len(flat)] += attended(self._base, self._family, self._attention, flat, angles)

    def _see_gradients(self, gradient: Tensor) -> None:
        flat = gradient[0].float()  # [seq, 2 G h]
        self._fisher += flat.T @ flat

    def finish(self, tokens: int) -> LayerStatistics:
        return LayerStatistics(
            self._inputs.double() / tokens,
            self._mean.double() / tokens,
            self._fisher.double() / tokens,
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
