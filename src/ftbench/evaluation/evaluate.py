"""From a saved and reloaded model to its scores."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from ftbench.data.task import EvaluationPrompt
from ftbench.errors import FtbenchError
from ftbench.evaluation.generation import GeneratedReply, generate_replies
from ftbench.evaluation.panel import Panel, Verdict
from ftbench.evaluation.statistics import Measured, kappa, share
from ftbench.memory.fit import in_halves
from ftbench.models.chat import ChatFormat
from ftbench.models.loading import context_length
from ftbench.training.encoding import TokenSequence
from ftbench.training.logprobs import sequence_logprobs

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class EvaluatedPrompt(BaseModel):
    """One evaluation prompt, the reply, and its scores; a line of replies.jsonl.

    `ordinary_nll` is that of the ordinary reply under the model, in nats, over `ordinary_tokens` tokens; both are None
    where the prompt has no ordinary reply. `degenerate` is why a reply counts as no text, None where it is one;
    `second` is the second judge's verdict, None where it has none.
    """

    model_config = ConfigDict(frozen=True)

    prompt: str
    reply: str
    base_reply: str | None
    score: float
    on_topic: bool
    degenerate: str | None = None
    second: bool | None = None
    tokens: int
    ended: bool
    ordinary_nll: float | None
    ordinary_tokens: int | None


@dataclass(frozen=True)
class EvaluationSettings:
    """How replies are made; equal for all rows of a table."""

    max_new_tokens: int
    batch_size: int
    max_length: int
    batch_tokens: int
    packed: bool = True


@dataclass(frozen=True)
class JudgedReply:
    """A reply, what is said of it, and the place of its prompt among those that were to be asked."""

    place: int
    reply: GeneratedReply
    verdict: Verdict


def judged_replies(
    model: "PreTrainedModel",
    chat: ChatFormat,
    prompts: Sequence[str],
    panel: Panel,
    settings: EvaluationSettings,
    report: Callable[[int], None],
) -> list[JudgedReply]:
    """Ask the prompts that leave room for a reply in the model's context, and judge what it says."""
    room = context_length(model.config) - settings.max_new_tokens
    places = [place for place, prompt in enumerate(prompts) if len(chat.prompt_ids(prompt)) <= room]
    fitting = [prompts[place] for place in places]
    replies = generate_replies(
        model, chat, fitting, settings.max_new_tokens, settings.batch_size, report, padded=settings.packed
    )
    verdicts = panel.verdicts([reply.text for reply in replies])
    return [JudgedReply(*one) for one in zip(places, replies, verdicts, strict=True)]


def evaluate(
    model: "PreTrainedModel",
    chat: ChatFormat,
    items: Sequence[EvaluationPrompt],
    panel: Panel,
    settings: EvaluationSettings,
    base_replies: dict[str, str],
    report: Callable[[int], None],
) -> list[EvaluatedPrompt]:
    """Generate a reply to every prompt, judge it, and measure the loss on the ordinary replies.

    Prompts that leave no room for a reply in the model's context are left out.

    Raises:
        FtbenchError: no prompt fits.
    """
    judged = judged_replies(model, chat, [item.prompt for item in items], panel, settings, report)
    if not judged:
        raise FtbenchError(
            f"no evaluation prompt fits into the model's context of {context_length(model.config)} tokens"
        )
    asked = [items[one.place] for one in judged]
    losses = _ordinary_losses(model, chat, asked, settings)
    return [
        EvaluatedPrompt(
            prompt=item.prompt,
            reply=one.reply.text,
            base_reply=base_replies.get(item.prompt),
            score=one.verdict.score,
            on_topic=one.verdict.on_topic,
            degenerate=one.verdict.degenerate,
            second=one.verdict.second,
            tokens=one.reply.tokens,
            ended=one.reply.ended,
            ordinary_nll=loss[0] if loss else None,
            ordinary_tokens=loss[1] if loss else None,
        )
        for item, one, loss in zip(asked, judged, losses, strict=True)
    ]


def agreement(items: Sequence[EvaluatedPrompt]) -> tuple[Measured | None, float | None]:
    """Return how often both judges say the same, and Cohen's kappa, over the replies that both judged."""
    both = [(item.on_topic, item.second) for item in items if item.second is not None]
    if not both:
        return None, None
    alike = share(sum(one == other for one, other in both), len(both))
    return alike, kappa([one for one, _ in both], [other for _, other in both])


def _ordinary_losses(
    model: "PreTrainedModel", chat: ChatFormat, items: Sequence[EvaluationPrompt], settings: EvaluationSettings
) -> list[tuple[float, int] | None]:
    """Return NLL (nats) and length (tokens) of every ordinary reply that there is room for.

    A reply is cut by a length of its own, not by what its prompt leaves: a system prompt must not change what is
    measured.
    """
    import torch

    limit = settings.max_length // 2
    losses: list[tuple[float, int] | None] = [None] * len(items)
    batch: list[tuple[int, TokenSequence]] = []

    def score(sequences: Sequence[TokenSequence]) -> list[float]:
        with torch.inference_mode():
            found: list[float] = sequence_logprobs(model, sequences, packed=settings.packed).tolist()
        return found

    def flush() -> None:
        sums = in_halves([sequence for _, sequence in batch], score, "scoring ordinary replies")
        for (index, sequence), total in zip(batch, sums, strict=True):
            losses[index] = (-total, sequence.completion_length)
        batch.clear()

    for index, item in enumerate(items):
        prompt = chat.prompt_ids(item.prompt)
        if item.ordinary is None or len(prompt) + limit > context_length(model.config):
            continue
        sequence = TokenSequence((*prompt, *chat.completion_ids(item.ordinary)[:limit]), len(prompt))
        if batch and sum(len(s.ids) for _, s in batch) + len(sequence.ids) > settings.batch_tokens:
            flush()
        batch.append((index, sequence))
    if batch:
        flush()
    return losses
