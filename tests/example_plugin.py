"""Unlikelihood of the rejected completion, as a plugin of ftbench."""

from typing import TYPE_CHECKING

import ftbench

if TYPE_CHECKING:
    from torch import Tensor


class Unlikely(ftbench.Algorithm):
    """Raises the chosen completion and lowers the rejected one (after Welleck et al. 2019, arXiv:1908.04319)."""

    name = "unlikely"
    needs = "preferences"

    class Config(ftbench.AlgorithmConfig):
        """Options; `--set unlikely.weight=1.0` sets one."""

        learning_rate: float = 5e-5
        weight: float = 0.5

    def loss(self, logprobs: "ftbench.CompletionLogProbs") -> "Tensor":
        """Add to the NLL of the chosen completion -log(1 - p), p being the rejected tokens' geometric mean."""
        unlikelihood = -(-logprobs.rejected.per_token.exp()).log1p()
        weight: float = self.config.weight
        return logprobs.nll() + weight * logprobs.mean(unlikelihood)


@ftbench.hookimpl
def ftbench_algorithms() -> list[type[ftbench.Algorithm]]:
    """Bring it."""
    return [Unlikely]
