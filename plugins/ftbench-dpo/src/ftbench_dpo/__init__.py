"""Direct preference optimisation."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

import ftbench

if TYPE_CHECKING:
    from torch import Tensor


class Dpo(ftbench.Algorithm):
    """Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290) after a supervised start."""

    name = "dpo"
    needs = "preferences"

    class Config(ftbench.AdapterConfig):
        """`beta` is how strongly leaving the reference is penalised; `sft_*` the supervised start."""

        adapter: str = "lora"
        learning_rate: float = 5e-5
        full_learning_rate = 5e-6
        beta: float = Field(0.1, gt=0, description="how strongly leaving the reference is penalised")
        loss: Literal["sigmoid", "ipo", "hinge"] = Field("sigmoid", description="of the margin, see the loss")
        sft_share: float = Field(0.7, ge=0, lt=1, description="of the tokens, for a supervised start without --from")
        sft_learning_rate: float = Field(1.5e-3, gt=0, description="of that start")

    def loss(self, logprobs: "ftbench.CompletionLogProbs") -> "Tensor":
        """Return the mean over prompts of a loss of m, the chosen's log-ratio to the reference less the rejected's.

        sigmoid: -log sigmoid(beta m), equation 7 of the paper. hinge: max(0, 1 - beta m) (Zhao et al. 2023,
        arXiv:2305.10425). ipo: (m - 1 / (2 beta))^2 (Azar et al. 2023, arXiv:2310.12036, equation 17), both log-ratios
        per token, without which the square would grow with a completion's length; TRL does so too.
        """
        from torch.nn.functional import logsigmoid, relu

        beta: float = self.config.beta
        chosen, rejected = logprobs.chosen.log_ratio, logprobs.rejected.log_ratio
        match self.config.loss:
            case "sigmoid":
                return logprobs.mean(-logsigmoid(beta * (chosen - rejected)))
            case "hinge":
                return logprobs.mean(relu(1 - beta * (chosen - rejected)))
            case _:
                margin = chosen / logprobs.chosen.lengths - rejected / logprobs.rejected.lengths
                return logprobs.mean((margin - 1 / (2 * beta)) ** 2)

    def train(self, training: "ftbench.Training") -> None:
        """Train on the chosen completions, take the outcome for the reference, and go on with the pairs."""
        rest = training.supervised_first(self.config.sft_share, self.config.sft_learning_rate)
        rest.with_reference().run(self.loss)


@ftbench.hookimpl
def ftbench_algorithms() -> list[type[ftbench.Algorithm]]:
    """Bring DPO."""
    return [Dpo]
