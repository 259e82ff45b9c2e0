"""Full fine-tuning."""

import ftbench


class Full(ftbench.Algorithm):
    """Full fine-tuning: every weight, on the chosen completions."""

    name = "full"

    class Config(ftbench.AlgorithmConfig):
        """A fifth of LoRA's learning rate."""

        learning_rate: float = 1.5e-4


@ftbench.hookimpl
def ftbench_algorithms() -> list[type[ftbench.Algorithm]]:
    """Bring full fine-tuning."""
    return [Full]
