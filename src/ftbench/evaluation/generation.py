"""Replies to prompts: greedy, in batches of like length.

Where the model has our attention, a reply does not hang on the others of its batch, and is the one that `serve` gives.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ftbench.memory.fit import in_halves
from ftbench.models.attention import is_packed
from ftbench.models.chat import ChatFormat

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel


_Write = Callable[["PreTrainedModel", ChatFormat, list[list[int]], int], list[list[int]]]


@dataclass(frozen=True)
class GeneratedReply:
    """A reply's text, its length in tokens, and whether the model ended it by itself."""

    text: str
    tokens: int
    ended: bool


def generate_replies(
    model: "PreTrainedModel",
    chat: ChatFormat,
    prompts: Sequence[str],
    max_new_tokens: int,
    batch_size: int,
    report: Callable[[int], None],
    *,
    padded: bool = True,
) -> list[GeneratedReply]:
    """Return the greedy reply to every prompt, in the order of the prompts.

    Args:
        model: in evaluation mode.
        chat: the format that the model was trained in.
        prompts: raw user text.
        max_new_tokens: where a reply is cut.
        batch_size: prompts generated for at once.
        report: called with the number of finished replies after each batch.
        padded: whether prompts of unlike length may share a batch; a model that puts vectors of its own before each
            row gives other replies behind padding.
    """
    encoded = [chat.prompt_ids(prompt) for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda index: (len(encoded[index]), index))
    replies: dict[int, GeneratedReply] = {}
    write = _decode if padded and is_packed(model) else _generate
    for batch in _batches(order, [len(row) for row in encoded], batch_size, padded=padded):
        rows = [encoded[index] for index in batch]
        written = in_halves(rows, lambda some: write(model, chat, list(some), max_new_tokens), "generating")
        for index, tokens in zip(batch, written, strict=True):
            ended = bool(tokens) and tokens[-1] == chat.end
            replies[index] = GeneratedReply(chat.reply_text(tokens), len(tokens), ended)
        report(len(replies))
    return [replies[index] for index in range(len(prompts))]


def _batches(order: list[int], lengths: list[int], size: int, *, padded: bool) -> list[list[int]]:
    """Cut `order`, which goes by length, into batches of at most `size`; without padding, of one length each."""
    batches: list[list[int]] = []
    for index in order:
        full = not batches or len(batches[-1]) == size
        if full or not (padded or lengths[batches[-1][-1]] == lengths[index]):
            batches.append([])
        batches[-1].append(index)
    return batches


def _decode(model: "PreTrainedModel", chat: ChatFormat, rows: list[list[int]], max_new_tokens: int) -> list[list[int]]:
    """Return the new tokens of every row, up to and with the end of the reply."""
    from ftbench.models.decoding import Decoder, Row

    decoder = Decoder(model)
    replies: list[list[int]] = []
    living: dict[Row, list[int]] = {}
    for ids in rows:
        row, logits = decoder.read(ids)
        replies.append([int(logits.argmax())])
        living[row] = replies[-1]
    while True:
        for row in [row for row, reply in living.items() if reply[-1] == chat.end or len(reply) == max_new_tokens]:
            decoder.drop(row)
            del living[row]
        if not living:
            return replies
        for row, logits in decoder.write({row: reply[-1] for row, reply in living.items()}).items():
            living[row].append(int(logits.argmax()))


def _generate(
    model: "PreTrainedModel", chat: ChatFormat, rows: list[list[int]], max_new_tokens: int
) -> list[list[int]]:
    """Return the same by transformers' own means."""
    import torch

    pad = chat.tokenizer.pad_token_id
    width = max(len(row) for row in rows)
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=model.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=model.device)
    with own_settings(model, chat, max_new_tokens) as settings, torch.inference_mode():
        out = model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)  # type: ignore[operator]
    return [_until_end(row, chat.end) for row in out[:, width:].tolist()]


@contextmanager
def own_settings(model: "PreTrainedModel", chat: ChatFormat, max_new_tokens: int) -> "Iterator[GenerationConfig]":
    """Give a greedy configuration for `generate`, the model's own set aside meanwhile.

    The model's may ask for sampling or penalties, and rows must be comparable; generate() reads from it whatever ours
    leaves open.
    """
    from transformers import GenerationConfig

    pad = chat.tokenizer.pad_token_id
    settings = GenerationConfig(do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=chat.end, pad_token_id=pad)
    own, model.generation_config = model.generation_config, settings
    try:
        yield settings
    finally:
        model.generation_config = own


def _until_end(tokens: list[int], end: int) -> list[int]:
    return tokens[: tokens.index(end) + 1] if end in tokens else tokens
