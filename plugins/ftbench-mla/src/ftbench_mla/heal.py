"""Healing: a converted model learns to predict again what it predicted before."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ftbench.errors import FtbenchError
from ftbench.training.step import unwatched
from ftbench_mla.attention import LatentAttention
from ftbench_mla.conversion import Teacher

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CHUNK = 256
"""Tokens whose logits exist at a time."""

ROWS = 32
"""Texts that are drawn at once: their cache is smaller than what training keeps."""

Report = Callable[[float, float, float, int, int], None]
"""Called with a step's loss, its gradients' norm, the learning rate, and its tokens and texts."""

Count = Callable[[int, Iterator[Tensor]], AbstractContextManager[Any]]
"""Opens a step, by its index and what the optimiser keeps, for somebody who looks at memory."""


def uncounted(_index: int, _kept: Iterator[Tensor]) -> AbstractContextManager[Any]:
    """Open a step that nobody looks at."""
    return nullcontext(unwatched)


@dataclass(frozen=True)
class HealSettings:
    """How much healing does at once: tokens a step, tokens a micro-batch, and the largest norm of gradients."""

    step_tokens: int = 256
    micro_batch_tokens: int = 1024
    max_grad_norm: float = 1.0

    def texts(self, length: int) -> int:
        """Return how many texts of so many tokens a step has."""
        return max(1, self.step_tokens // length)


@dataclass(frozen=True)
class Divergence:
    """How far a model is from the one it was, over some texts.

    `kl` is KL(base || model), nats/token; `agreement` the share of tokens on which their likeliest next token is the
    same; `perplexity_ratio` the model's perplexity of the texts over the base's.
    """

    kl: float
    agreement: float
    perplexity_ratio: float


class HeadDivergence(torch.autograd.Function):
    """KL(softmax(teacher Wᵀ) || softmax(student Wᵀ)) at each token, nats, `[tokens]`, without all logits at once.

    Its gradient by the student's logits is the difference of the two distributions; the one by its hidden states is
    computed in the forward pass, for the head's weights rest.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, weight: Tensor) -> Tensor:
        """`student` and `teacher` are the head's inputs, `[tokens, hidden]`; `weight` is `[vocabulary, hidden]`."""
        found = torch.empty(len(student), dtype=torch.float32, device=student.device)
        ahead = torch.empty_like(student)
        for begin in range(0, len(student), CHUNK):
            rows = slice(begin, begin + CHUNK)
            wanted = (teacher[rows] @ weight.T).float().log_softmax(-1)
            own = (student[rows] @ weight.T).float().log_softmax(-1)
            chances = wanted.exp()
            found[rows] = (chances * (wanted - own)).sum(-1)
            ahead[rows] = own.exp_().sub_(chances).to(weight.dtype) @ weight
        ctx.save_for_backward(ahead)
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient by the student's hidden states."""
        (ahead,) = ctx.saved_tensors
        return ahead * grads[0][:, None].to(ahead.dtype), None, None


def attention_weights(model: "PreTrainedModel") -> "list[torch.nn.Parameter]":
    """Return what healing trains: all weights of latent attention."""
    return [
        parameter
        for module in model.modules()
        if isinstance(module, LatentAttention)
        for parameter in module.parameters(recurse=True)
    ]


def heal(
    model: "PreTrainedModel",
    teacher: Teacher,
    texts: Sequence[Sequence[int]],
    learning_rate: float,
    settings: HealSettings,
    report: Report,
    count: Count = uncounted,
) -> None:
    """Train latent attention to what the model was, on texts of one length; nothing else is changed.

    Args:
        model: the converted one; what was trainable is so again afterwards.
        teacher: what it was.
        texts: token ids; each is taken once, in their order.
        learning_rate: the highest: it rises over the first twentieth of the steps, and falls to a tenth as a cosine.
        settings: how much is done at once.
        report: called after every step.
        count: opens every step.
    """
    from ftbench.training.optimiser import MasterAdamW, clip
    from ftbench.training.trainer import rate_share

    weights = attention_weights(model)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    for weight in weights:
        weight.requires_grad_(True)
    optimiser = MasterAdamW(weights, learning_rate, 0.0)
    size = settings.texts(len(texts[0]))
    steps = math.ceil(len(texts) / size)
    warmup = max(1, steps // 20) / steps
    model.train()
    try:
        for index in range(steps):
            step = texts[index * size : (index + 1) * size]
            rate = learning_rate * rate_share(index / steps, (index + 1) / steps, warmup)
            optimiser.set_learning_rate(rate)
            rows = max(1, settings.micro_batch_tokens // len(texts[0]))
            with count(index, optimiser.tensors) as moment, moment("heal"):
                loss = _accumulate(model, teacher, step, rows)
                norm = optimiser.gradient_norm().item()
                if not (math.isfinite(loss) and math.isfinite(norm)):
                    where = f"healing's loss is no longer finite at step {index + 1}"
                    raise FtbenchError(f"{where}; try a lower heal_learning_rate")
                optimiser.step(clip(norm, settings.max_grad_norm))
            optimiser.zero_grad()
            report(loss, norm, rate, sum(map(len, step)), len(step))
    finally:
        model.zero_grad()
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        for parameter in [*trainable, *weights]:
            parameter.requires_grad_(True)
        model.eval()


def _accumulate(model: "PreTrainedModel", teacher: Teacher, step: Sequence[Sequence[int]], size: int) -> float:
    """Add the gradients of the mean divergence over all tokens of a step, and return it, nats/token."""
    tokens = sum(map(len, step))
    weight = model.get_output_embeddings().weight.detach()
    total = 0.0
    for begin in range(0, len(step), size):
        ids = torch.tensor([list(text) for text in step[begin : begin + size]], device=model.device)
        with teacher.in_place() as base:
            wanted = base.base_model(input_ids=ids, use_cache=False).last_hidden_state.flatten(0, 1)
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state.flatten(0, 1)
        each: Tensor = HeadDivergence.apply(hidden, wanted, weight)  # type: ignore[no-untyped-call]
        loss = each.sum() / tokens
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.item()
    return total


def compare(model: "PreTrainedModel", teacher: Teacher, texts: Sequence[Sequence[int]]) -> Divergence:
    """Measure how far a converted model is from what it was, each text by itself."""
    return diverge(model, texts, _in_turn(teacher, texts))


def _in_turn(teacher: Teacher, texts: Sequence[Sequence[int]]) -> Iterator[Tensor]:
    """Yield what the base predicts of each text: of one at a time, for it is as large as the vocabulary."""
    for text in texts:
        with teacher.in_place() as base:
            wanted = predict(base, text)
        yield wanted


@torch.no_grad()
def predict(model: "PreTrainedModel", text: Sequence[int]) -> Tensor:
    """Return the log-probabilities of each next token of a text, `[tokens - 1, vocabulary]`, float32."""
    ids = torch.tensor([list(text)], device=model.device)
    logits: Tensor = model(input_ids=ids, use_cache=False).logits[0, :-1]
    return logits.float().log_softmax(-1)


def diverge(model: "PreTrainedModel", texts: Sequence[Sequence[int]], known: Iterable[Tensor]) -> Divergence:
    """Measure how far a model is from what a base predicts of the same texts (`predict`)."""
    kl = agreed = own_loss = base_loss = 0.0
    for text, wanted in zip(texts, known, strict=True):
        own, next_tokens = predict(model, text), torch.tensor([[token] for token in text[1:]], device=wanted.device)
        kl += float((wanted.exp() * (wanted - own)).sum())
        agreed += float((wanted.argmax(-1) == own.argmax(-1)).sum())
        base_loss -= float(wanted.gather(-1, next_tokens).sum())
        own_loss -= float(own.gather(-1, next_tokens).sum())
    tokens = sum(len(text) - 1 for text in texts)
    ratio = float(torch.tensor((own_loss - base_loss) / tokens, dtype=torch.float64).exp())
    return Divergence(kl / tokens, agreed / tokens, ratio)


@torch.no_grad()
def draw_texts(
    model: "PreTrainedModel", start: int, count: int, length: int, seed: int, rows: int = ROWS
) -> list[list[int]]:
    """Let a model speak, past every end: texts of all that it knows of.

    Args:
        model: in evaluation mode.
        start: the token that texts begin with.
        count: texts.
        length: tokens of each.
        seed: of the draw.
        rows: texts at a time.
    """
    from transformers import DynamicCache

    draw = torch.Generator(model.device).manual_seed(seed)
    texts: list[list[int]] = []
    while len(texts) < count:
        last = torch.full((min(rows, count - len(texts)), 1), start, device=model.device)
        drawn, cache = [last], DynamicCache(config=model.config)
        for _ in range(length - 1):
            logits = model(input_ids=last, past_key_values=cache, use_cache=True).logits[:, -1]
            last = torch.multinomial(logits.float().softmax(-1), 1, generator=draw)
            drawn.append(last)
        texts += torch.cat(drawn, dim=1).tolist()
    return texts
