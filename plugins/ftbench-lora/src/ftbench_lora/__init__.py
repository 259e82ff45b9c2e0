"""LoRA, through peft."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

import ftbench

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class Lora(ftbench.Algorithm):
    """Low-rank adapters on all linear layers (Hu et al. 2021, arXiv:2106.09685): W + (alpha / rank) B A."""

    name = "lora"

    class Config(ftbench.AlgorithmConfig):
        """The adapters' size and scale."""

        learning_rate: float = 1.5e-3
        rank: int = Field(16, ge=1, description="of A and B, the inner dimension")
        alpha: float = Field(32, gt=0, description="what B A is scaled by, times the rank")
        dropout: float = Field(0.0, ge=0, lt=1, description="of what goes into the adapters, in training")

    def adapt(self, model: "PreTrainedModel", calibration: Sequence[Sequence[int]]) -> "PreTrainedModel":
        """Freeze the model and put adapters beside every linear layer but the output layer."""
        from peft import LoraConfig, get_peft_model

        from ftbench_lora.lowrank import use_low_rank

        settings = LoraConfig(
            r=self.config.rank,
            lora_alpha=self.config.alpha,
            lora_dropout=self.config.dropout,
            target_modules="all-linear",
            fan_in_fan_out=model.config.model_type == "gpt2",  # its Conv1D layers store their weights transposed
            task_type="CAUSAL_LM",
        )
        adapted = get_peft_model(model, settings, autocast_adapter_dtype=False)
        return use_low_rank(adapted)  # type: ignore[arg-type]

    def without_effect(self, model: "PreTrainedModel") -> "list[Tensor]":
        """Return A wherever B is zero, as it is before training."""
        from peft.tuners.lora import LoraLayer

        layers: list[Any] = [module for module in model.modules() if isinstance(module, LoraLayer)]
        pairs = [(layer.lora_A[name].weight, up.weight) for layer in layers for name, up in layer.lora_B.items()]
        return [down for down, up in pairs if not up.any()]

    def load(self, folder: Path, load_base: "Callable[[Path | None], PreTrainedModel]") -> "PreTrainedModel":
        """Read the adapters and fold them into the base model's weights."""
        from peft import PeftModel

        ftbench.check_adapter(folder)
        adapted = PeftModel.from_pretrained(load_base(None), str(folder), autocast_adapter_dtype=False)
        return adapted.merge_and_unload()  # type: ignore[no-any-return, operator]


@ftbench.hookimpl
def ftbench_algorithms() -> list[type[ftbench.Algorithm]]:
    """Bring LoRA."""
    return [Lora]
