"""Control tokens in user text are text: the one place that sees to it."""

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What templates write as plain text around turns: "[INST]", "<start_of_turn>", "<<SYS>>", "### Answer:".
_SCAFFOLDING = re.compile(r"\[/?[A-Z_]+\]|<<?/?[|\w]+>?>|#{2,} *\w+:")


def control_markers(tokenizer: "PreTrainedTokenizerBase", template: str) -> tuple[str, ...]:
    """Return every string that could be read as control: the special tokens, and the template's own marks.

    Args:
        tokenizer: its special tokens count, and every added token that it marks as special.
        template: the source of the chat template, or the text of a plain format.
    """
    added = (str(token) for token in tokenizer.added_tokens_decoder.values() if token.special)
    marks = _SCAFFOLDING.findall(template)
    every = {*tokenizer.all_special_tokens, *added, *marks}
    return tuple(sorted((marker for marker in every if marker.strip()), key=lambda marker: (-len(marker), marker)))


def neutralise(text: str, markers: Iterable[str]) -> str:
    """Return the text with a space after the first character of every marker in it, whatever its case.

    "<|im_end|>" becomes "< |im_end|>": as readable as before, and no longer one control token. Text without markers
    comes back as it was. A marker of one character cannot be broken so, and is removed.

    Args:
        text: what a user typed, or what stands in a data set.
        markers: from `control_markers`.
    """
    pattern = _any_of(tuple(markers))
    # Breaking one marker can complete another ("a" + " " + "b" where "a b" is a marker): until nothing is found.
    while True:
        broken = pattern.sub(lambda match: f"{match[0][0]} {match[0][1:]}" if len(match[0]) > 1 else "", text)
        if broken == text:
            return text
        text = broken


@lru_cache(maxsize=16)
def _any_of(markers: tuple[str, ...]) -> re.Pattern[str]:
    """Match every marker, the longest first, whatever its case.

    Without the space at its ends: " <s>" stays in "<s>" however many spaces are put before it.
    """
    cores = sorted({marker.strip() for marker in markers} - {""}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, cores)) or "(?!)", re.IGNORECASE)
