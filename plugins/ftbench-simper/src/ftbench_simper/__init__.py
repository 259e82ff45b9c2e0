"""Preference alignment by inverse perplexity."""

from typing import TYPE_CHECKING

from pydantic import Field

import ftbench

if TYPE_CHECKING:
    from torch import Tensor


class Simper(ftbench.Algorithm):
    """Inverse perplexity of chosen less rejected, nothing to be set (SimPER; Xiao et al. 2025, arXiv:2502.00883)."""

    name = "simper"
    needs = "preferences"

    class Config(ftbench.AdapterConfig):
        """The loss has no options; `sft_*` is the supervised start."""

        adapter: str = "lora"
        learning_rate: float = 5e-5
        full_learning_rate = 5e-6
        sft_share: float = Field(0.7, ge=0, lt=1, description="of the tokens, for a supervised start without --from")
        sft_learning_rate: float = Field(1.5e-3, gt=0, description="of that start")

    def loss(self, logprobs: "ftbench.CompletionLogProbs") -> "Tensor":
        """Return the mean of exp(r) - exp(c), the paper's L_SimPER; c, r: mean log-probabilities of the tokens."""
        return logprobs.mean(logprobs.rejected.per_token.exp() - logprobs.chosen.per_token.exp())

    def train(self, training: "ftbench.Training") -> None:
        """Train on the chosen completions, then on the pairs."""
        training.supervised_first(self.config.sft_share, self.config.sft_learning_rate).run(self.loss)


@ftbench.hookimpl
def ftbench_algorithms() -> list[type[ftbench.Algorithm]]:
    """Bring SimPER."""
    return [Simper]
