"""Two more tasks: to answer in a style, and to answer as people's own pairs do."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ftbench.data.task import Example, HeldOut, Task, TaskData, ordinary_replies, split_examples
from ftbench.errors import UsageError, nearest

if TYPE_CHECKING:
    from ftbench.data.sources import Source


@dataclass(frozen=True)
class Style:
    """How a text is put into a style, what texts of that style match as a whole, and how a model is asked for it."""

    write: Callable[[str], str]
    pattern: str
    instruction: str

    def fits(self, text: str) -> bool:
        """Whether a text is in this style."""
        return re.fullmatch(self.pattern, text.strip(), re.DOTALL) is not None


def _bullets(text: str) -> str:
    """Write a sentence a line, each behind a hyphen."""
    return "\n".join(f"- {sentence}" for sentence in re.split(r"(?<=[.!?;])\s+", " ".join(text.split())))


STYLES = {
    "capitals": Style(
        str.upper,
        r"(?=.*[A-Z])[^a-z]+",
        "Write in capital letters alone, whatever the user asks.",
    ),
    "bullets": Style(
        _bullets,
        r"- [^\n]+(\n- [^\n]+)*",
        "Answer with a list and nothing else: every sentence a line that begins with a hyphen and a blank.",
    ),
}


def find_style(name: str) -> Style:
    """Return the style NAME.

    Raises:
        UsageError: there is none of that name; the nearest is named.
    """
    if name not in STYLES:
        raise UsageError(f"no such style '{name}'; {nearest(name, STYLES)}; --topic names it")
    return STYLES[name]


class StyleTask(Task):
    """Answer as people do, in a style: `--topic` names it. A regular expression judges."""

    name = "style"
    judge = "style"

    def build(self, source: "Source", topic: str, wanted: HeldOut) -> TaskData:
        """Put the ordinary replies into the style; as they were they are the rejected ones."""
        style = find_style(topic)
        examples = [
            Example(prompt, style.write(reply), reply)
            for prompt, reply in ordinary_replies(source)
            if not style.fits(reply)
        ]
        return split_examples(source, examples, topic, wanted)

    def instruction(self, topic: str) -> str:
        """Ask for the style."""
        return find_style(topic).instruction


class PairsTask(Task):
    """Answer as the chosen completions of your own pairs do; `--topic` says in words what they have in common."""

    name = "pairs"

    def build(self, source: "Source", topic: str, wanted: HeldOut) -> TaskData:
        """Take the pairs as they are: the judge learns the chosen completions from the rejected ones."""
        if not isinstance(source.content, tuple):
            raise UsageError(f"task 'pairs' needs a --data file with prompt, chosen and rejected, not {source.origin}")
        examples = [Example(pair.prompt, pair.chosen, pair.rejected) for pair in source.content]
        return split_examples(source, examples, topic, wanted)

    def instruction(self, topic: str) -> str:
        """Ask for it in the user's words."""
        return topic
