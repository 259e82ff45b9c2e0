"""Full fine-tuning."""

import ftbench


class Full(ftbench.Algorithm):
    """Full fine-tuning: every weight, on the chosen completions.

    It is nobody's method: as old as training itself.
    """

    name = "full"

    class Config(ftbench.AlgorithmConfig):
        """A fifth of LoRA's learning rate."""

        learning_rate: float = 1.5e-4


@ftbench.hookimpl
def ftbench_algorithms() -> list[type[ftbench.Algorithm]]:
    """Bring full fine-tuning."""
    return [Full]
