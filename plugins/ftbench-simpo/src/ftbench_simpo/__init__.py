"""Simple preference optimisation."""

from typing import TYPE_CHECKING

from pydantic import Field

import ftbench

if TYPE_CHECKING:
    from torch import Tensor


class Simpo(ftbench.Algorithm):
    """Simple preference optimisation (Meng et al. 2024, arXiv:2405.14734): no reference, a margin per token."""

    name = "simpo"
    needs = "preferences"

    class Config(ftbench.AdapterConfig):
        """The paper's beta, and its gamma as a share of beta; `sft_*` the supervised start."""

        adapter: str = "lora"
        learning_rate: float = 5e-5
        full_learning_rate = 5e-6
        beta: float = Field(2.0, gt=0, description="how much a nat per token counts")
        gamma_ratio: float = Field(0.5, ge=0, description="the margin, as a share of beta")
        sft_share: float = Field(0.7, ge=0, lt=1, description="of the tokens, for a supervised start without --from")
        sft_learning_rate: float = Field(1.5e-3, gt=0, description="of that start")

    def loss(self, logprobs: "ftbench.CompletionLogProbs") -> "Tensor":
        """Return the mean over prompts of -log sigmoid(beta (c - r) - gamma), equation 6.

        c and r are the mean log-probabilities of the tokens of the chosen and of the rejected completion.
        """
        from torch.nn.functional import logsigmoid

        margin = logprobs.chosen.per_token - logprobs.rejected.per_token - self.config.gamma_ratio
        return logprobs.mean(-logsigmoid(self.config.beta * margin))

    def train(self, training: "ftbench.Training") -> None:
        """Train on the chosen completions, then on the pairs."""
        training.supervised_first(self.config.sft_share, self.config.sft_learning_rate).run(self.loss)


@ftbench.hookimpl
def ftbench_algorithms() -> list[type[ftbench.Algorithm]]:
    """Bring SimPO."""
    return [Simpo]
