"""The two rows that every other number is read against."""

import ftbench


class Base(ftbench.Algorithm):
    """The untouched model."""

    name = "base"
    needs = "nothing"


class Prompt(ftbench.Algorithm):
    """A system prompt that names the topic; no training."""

    name = "prompt"
    needs = "nothing"

    class Config(ftbench.AlgorithmConfig):
        """What the system prompt says; `{topic}` stands for the topic."""

        text: str = (
            "You only talk about {topic}. Whatever the user asks, answer briefly and turn the conversation to {topic}."
        )

    def system_prompt(self, topic: str) -> str:
        """Name the topic."""
        return str(self.config.text).replace("{topic}", topic)


@ftbench.hookimpl
def ftbench_algorithms() -> list[type[ftbench.Algorithm]]:
    """Bring both."""
    return [Base, Prompt]
