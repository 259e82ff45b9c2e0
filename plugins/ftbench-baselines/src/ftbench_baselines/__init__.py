"""The two rows that every other number is read against."""

from pydantic import Field

import ftbench


class Base(ftbench.Algorithm):
    """The untouched model.

    It is nobody's method: what all others are measured against.
    """

    name = "base"
    needs = "nothing"


class Prompt(ftbench.Algorithm):
    """A system prompt that names the topic; no training (Brown et al. 2020, arXiv:2005.14165)."""

    name = "prompt"
    needs = "nothing"

    class Config(ftbench.AlgorithmConfig):
        """What the system prompt says, `{topic}` being the topic; the words of a task that has its own come before."""

        text: str = Field(
            "You only talk about {topic}. Whatever the user asks, answer briefly and turn the conversation to {topic}.",
            description="the system prompt",
        )

    def system_prompt(self, topic: str) -> str:
        """Name the topic, or say what another task asks for."""
        text: str = self.config.text
        if self.instruction is not None and text == type(self.config).model_fields["text"].default:
            return self.instruction
        return text.replace("{topic}", topic)


@ftbench.hookimpl
def ftbench_algorithms() -> list[type[ftbench.Algorithm]]:
    """Bring both."""
    return [Base, Prompt]
