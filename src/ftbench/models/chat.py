"""How a conversation is written as tokens."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ftbench.errors import FtbenchError
from ftbench.models.neutral import control_markers, neutralise

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLAIN_FORMAT = "### Question:\n{prompt}\n\n### Answer:\n"
"""For models without a chat template, such as GPT-2. A system prompt stands before it, followed by an empty line;
the completion ends with the tokenizer's end-of-sequence token."""


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
        prompt = self.harmless(prompt)
        if not self.tokenizer.chat_template:
            text = PLAIN_FORMAT.format(prompt=prompt)
            return self._encode(f"{self.system}\n\n{text}" if self.system else text, special=True)
        messages: list[dict[str, Any]] = [{"role": "user", "content": prompt}]
        if self.system:
            messages.insert(0, {"role": "system", "content": self.system})
        text = str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        return self._encode(text, special=False)

    def completion_ids(self, completion: str) -> list[int]:
        """Tokens of a reply, its end included."""
        return [*self._encode(self.harmless(completion), special=False), self.end]

    def reply_text(self, tokens: list[int]) -> str:
        """The text of generated tokens, control tokens left out."""
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True)).strip()

    def _encode(self, text: str, *, special: bool) -> list[int]:
        # Templates write their own beginning-of-sequence token; the plain format leaves that to the tokenizer.
        return list(self.tokenizer(text, add_special_tokens=special)["input_ids"])
