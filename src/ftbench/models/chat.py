"""How a conversation is written as tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal

from ftbench.errors import FtbenchError
from ftbench.models.neutral import control_markers, neutralise

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLAIN_FORMAT = "### Question:\n{prompt}\n\n### Answer:\n"
"""For models without a chat template, such as GPT-2. A system prompt stands before it, followed by an empty line;
the completion ends with the tokenizer's end-of-sequence token."""


@dataclass(frozen=True)
class Turn:
    """What one side said; raw text."""

    role: Literal["system", "user", "assistant"]
    text: str


@dataclass(frozen=True)
class ChatFormat:
    """The one writer of prompts, for training, evaluation, chat and serving alike.

    Args:
        tokenizer: the model's.
        system: the system prompt; with None the template's own default stands.
    """

    tokenizer: "PreTrainedTokenizerBase"
    system: str | None = None

    @property
    def name(self) -> str:
        """What the format is called in results."""
        return "chat template" if self.tokenizer.chat_template else "question/answer"

    @cached_property
    def end(self) -> int:
        """The token that ends a reply.

        Raises:
            FtbenchError: the tokenizer has no end-of-sequence token.
        """
        token: int | None = self.tokenizer.eos_token_id
        if token is None:
            raise FtbenchError(
                "the model's tokenizer has no end-of-sequence token; ftbench cannot tell where a reply ends"
            )
        return token

    @cached_property
    def _markers(self) -> tuple[str, ...]:
        return control_markers(self.tokenizer, self.tokenizer.chat_template or PLAIN_FORMAT)

    def harmless(self, text: str) -> str:
        """Neutralise the control tokens in user text."""
        return neutralise(text, self._markers)

    def prompt_ids(self, prompt: str) -> list[int]:
        """Tokens of a prompt, up to where the reply begins."""
        return self.conversation_ids([Turn("user", prompt)])

    def conversation_ids(self, turns: Sequence[Turn]) -> list[int]:
        """Tokens of a conversation, up to where the next reply begins; that of one user turn is a prompt's.

        What system turns say follows the format's own system prompt, wherever they stand. Turns of one role in a row
        are one turn.

        Raises:
            FtbenchError: the model's template does not take such a conversation.
        """
        systems = [self.harmless(turn.text) for turn in turns if turn.role == "system"]
        system = "\n\n".join(([self.system] if self.system else []) + systems)
        spoken = [
            (role, "\n\n".join(self.harmless(turn.text) for turn in same))
            for role, same in groupby((turn for turn in turns if turn.role != "system"), key=lambda turn: turn.role)
        ]
        if not self.tokenizer.chat_template:
            texts = [PLAIN_FORMAT.format(prompt=text) if role == "user" else f"{text}\n\n" for role, text in spoken]
            return self._encode("".join([f"{system}\n\n"] * bool(system) + texts), special=True)
        messages: list[dict[str, Any]] = [{"role": role, "content": text} for role, text in spoken]
        if system:
            messages.insert(0, {"role": "system", "content": system})
        return self._encode(self._written(messages), special=False)

    def _written(self, messages: list[dict[str, Any]]) -> str:
        from jinja2 import TemplateError

        try:
            return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        except TemplateError as error:
            reason = " ".join(str(error).split())[:200]
            raise FtbenchError(f"the model's chat template does not take this conversation: {reason}") from error

    def completion_ids(self, completion: str) -> list[int]:
        """Tokens of a reply, its end included."""
        return [*self._encode(self.harmless(completion), special=False), self.end]

    def reply_text(self, tokens: list[int]) -> str:
        """The text of generated tokens, control tokens left out."""
        return self.written_text(tokens).strip()

    def written_text(self, tokens: list[int]) -> str:
        """The same with the blanks around it."""
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))

    def _encode(self, text: str, *, special: bool) -> list[int]:
        # Templates write their own beginning-of-sequence token; the plain format leaves that to the tokenizer.
        return list(self.tokenizer(text, add_special_tokens=special)["input_ids"])
