"""TRL's own trainers, at TRL's defaults: what one would get without ftbench, and the oracle of its losses.

Equal terms with every other algorithm: the same tokens in the same order, effective batch, optimiser and schedule. All
else is TRL's: bfloat16 autocast, activation checkpointing, padding, its loss kernels, and its learning rates.
"""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

import ftbench

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel


class _Config(ftbench.AdapterConfig):
    """What TRL's own configurations call the same."""

    bf16: bool = Field(True, description="autocast to bfloat16")
    gradient_checkpointing: bool = Field(True, description="compute activations again in the backward pass")
    per_device_train_batch_size: int = Field(8, ge=1, description="examples of a micro-batch, at most")


class _Trl(ftbench.Algorithm):
    own_trainer = True

    trainer: str
    """One of `ftbench_trl.trainers.PLACES`."""

    def adapt(self, model: "PreTrainedModel", calibration: "Sequence[Sequence[int]]") -> "PreTrainedModel":
        """Look whether the installed TRL has the trainer before anything is done.

        Raises:
            Skip: it has not.
        """
        from ftbench_trl.trainers import find_trainer

        find_trainer(self.trainer)
        return super().adapt(model, calibration)

    def train(self, training: ftbench.Training) -> None:
        """Train with TRL's trainer."""
        from ftbench_trl.trainers import train

        own = self.config.model_dump(exclude={"adapter", "adapter_options", "learning_rate"})
        train(self.trainer, training, own)


class TrlSft(_Trl):
    """TRL's SFTTrainer at its defaults, every weight, on the completions alone (Ouyang et al. 2022, arXiv:2203.02155).

    Loss:
        The mean over the tokens of the step's chosen completions of -log p(token), as `full` has it: the two are tested
        against each other. In bfloat16 autocast, TRL's default, it is that to bfloat16's precision.
    """

    name = trainer = "trl-sft"

    class Config(_Config):
        """TRL's learning rate."""

        learning_rate: float = 2e-5


class TrlDpo(_Trl):
    """TRL's DPOTrainer at its defaults, every weight, a copy as reference (Rafailov et al. 2023, arXiv:2305.18290).

    Loss:
        The mean over prompts of -log sigmoid(beta m), m being the chosen's log-ratio to the reference less the
        rejected's; `loss_type` names others, of which `sigmoid`, `hinge` and `ipo` are `dpo`'s, and tested against it.
        Other than in `dpo` there is no supervised start; the reference is the model before any training, and a second
        model in memory that is asked at every step (with an adapter a copy of that alone).
    """

    name = trainer = "trl-dpo"
    needs = "preferences"

    class Config(_Config):
        """TRL's learning rate, beta and loss."""

        learning_rate: float = 1e-6
        beta: float = Field(0.1, gt=0, description="how strongly leaving the reference is penalised")
        loss_type: Literal[
            "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
            "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
        ] = Field("sigmoid", description="as TRL calls them; its page on DPOTrainer has their papers")  # fmt: skip


class TrlOrpo(_Trl):
    """TRL's ORPOTrainer at its defaults, every weight (Hong et al. 2024, arXiv:2403.07691); experimental in TRL.

    Loss:
        NLL - beta log sigmoid(log odds(chosen) - log odds(rejected)), with odds = p / (1 - p) and p the geometric mean
        of a completion's token probabilities. The second part is `orpo`'s, and tested against it. The NLL is not: TRL
        counts the prompt's tokens beside the chosen completion's, where the paper and `orpo` count the completion's
        alone, and takes the mean over each micro-batch where `orpo` takes it over the whole step.
    """

    name = trainer = "trl-orpo"
    needs = "preferences"

    class Config(_Config):
        """TRL's learning rate and beta, the paper's lambda."""

        learning_rate: float = 1e-6
        beta: float = Field(0.1, ge=0, description="of the odds' ratio beside the NLL, the paper's lambda")


@ftbench.hookimpl
def ftbench_algorithms() -> list[type[ftbench.Algorithm]]:
    """Bring TRL's three."""
    return [TrlSft, TrlDpo, TrlOrpo]
