"""One reply at a time, by transformers' own means: for models whose rows cannot be written together."""

from time import monotonic
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from ftbench.evaluation.generation import own_settings
from ftbench.serving.ticket import Refused, Writer


class _Choice(LogitsProcessor):
    """Leaves the token alone that the writer's sampler chooses."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self.token = 0

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        self.token = self._writer.sampler.choose(scores[0].float())
        only = torch.full_like(scores, -torch.inf)
        only[0, self.token] = 0
        return only  # type: ignore[return-value]


class _End(StoppingCriteria):
    """Hands each token to the writer, and stops when that has ended, nobody listens, or the time is over."""

    def __init__(self, writer: Writer, choice: _Choice) -> None:
        self._writer, self._choice = writer, choice
        self.finished = False

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **given: Any) -> torch.BoolTensor:
        ticket = self._writer.ticket
        self.finished = not self._writer.take(self._choice.token)
        over = self.finished or ticket.cancelled.is_set() or ticket.deadline < monotonic()
        return torch.full((len(input_ids),), over, device=input_ids.device)  # type: ignore[return-value]


def write_single(writer: Writer) -> None:
    """Write a whole reply."""
    ticket = writer.ticket
    model, chat = ticket.served.model, ticket.served.chat
    choice = _Choice(writer)
    end = _End(writer, choice)
    ids = torch.tensor([ticket.ids], device=model.device)
    with own_settings(model, chat, ticket.max_tokens) as settings, torch.inference_mode():
        model.generate(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            generation_config=settings,
            logits_processor=LogitsProcessorList([choice]),
            stopping_criteria=StoppingCriteriaList([end]),
        )
    if not end.finished and not ticket.cancelled.is_set():
        ticket.tell(Refused("timeout"))
