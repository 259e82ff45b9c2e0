"""Odds-ratio preference optimisation."""

from typing import TYPE_CHECKING

from pydantic import Field

import ftbench

if TYPE_CHECKING:
    from torch import Tensor


class Orpo(ftbench.Algorithm):
    """Odds-ratio preference optimisation (Hong et al. 2024, arXiv:2403.07691): supervised, without a reference."""

    name = "orpo"
    needs = "preferences"

    class Config(ftbench.AdapterConfig):
        """`weight` is the paper's lambda."""

        adapter: str = "lora"
        learning_rate: float = 2e-3
        full_learning_rate = 2e-4
        weight: float = Field(0.1, ge=0, description="of the odds' ratio beside the NLL, the paper's lambda")

    def loss(self, logprobs: "ftbench.CompletionLogProbs") -> "Tensor":
        """Return NLL(chosen) - weight log sigmoid(log odds(chosen) - log odds(rejected)), equations 6 and 7.

        odds = p / (1 - p), p being the geometric mean of a completion's token probabilities.
        """
        from torch.nn.functional import logsigmoid

        ratio = _log_odds(logprobs.chosen.per_token) - _log_odds(logprobs.rejected.per_token)
        weight: float = self.config.weight
        return logprobs.nll() - weight * logprobs.mean(logsigmoid(ratio))


def _log_odds(log_p: "Tensor") -> "Tensor":
    """Return log(p / (1 - p)) of log p, exact also where p is nearly 1; below 1 it must stay, or there are no odds."""
    log_p = log_p.clamp(max=-1e-7)
    return log_p - (-log_p.expm1()).log()


@ftbench.hookimpl
def ftbench_algorithms() -> list[type[ftbench.Algorithm]]:
    """Bring ORPO."""
    return [Orpo]
