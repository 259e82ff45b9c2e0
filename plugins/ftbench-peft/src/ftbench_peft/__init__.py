"""Every method of the peft library, by its name or by an adapter_config.json."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

import ftbench

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Peft(ftbench.Algorithm):
    """Any method of the peft library, as peft's own comparison sets it: peft:dora, peft:vera, peft:FILE.json, …"""

    name = "peft"
    variants = ("dora", "ia3", "oft", "vera")

    class Config(ftbench.AlgorithmConfig):
        """A peft type, and what its configuration has other than peft's defaults."""

        method: str = Field("LORA", description="peft's type: LORA, IA3, …")
        settings: dict[str, Any] = Field(default_factory=dict, description="fields of that type's configuration")

    _packed = True

    def __init__(self, config: ftbench.AlgorithmConfig) -> None:
        from ftbench_peft.methods import check_settings

        super().__init__(config)
        check_settings(self.config.method, self.config.settings)

    @property
    def is_adapter(self) -> bool:
        """AdaLoRA has a loss and a schedule of its own; all others only say what is trainable."""
        return str(self.config.method) != "ADALORA"

    @property
    def packed(self) -> bool:
        """Methods that put vectors before each row, or mix a row's tokens, need a row for each sequence."""
        return self._packed

    @classmethod
    def variant(cls, text: str) -> tuple[str, dict[str, Any]]:
        """Return the name and the options of a method by its name, or of an adapter_config.json by its path."""
        from ftbench_peft.methods import find_method

        return find_method(text)

    def adapt(self, model: "PreTrainedModel", calibration: Sequence[Sequence[int]]) -> "PreTrainedModel":
        """Freeze the model and add the method's own parameters.

        Raises:
            Skip: the method cannot be put onto this model; with peft's reason.
        """
        from ftbench_peft.methods import wrap

        wrapped, self._packed = wrap(model, self.config.method, self.config.settings, calibration)
        return wrapped

    def train(self, training: ftbench.Training) -> None:
        """Train with the shared loop, and let methods that shift their budget of parameters do so."""
        from ftbench_peft.allocation import follow

        loss, after_step = follow(training, self.loss)
        training.run(loss, after_step=after_step)

    def load(self, folder: Path, load_base: "Callable[[Path | None], PreTrainedModel]") -> "PreTrainedModel":
        """Read the adapter; fold it into the base model's weights where the method can."""
        from ftbench_peft.methods import read

        model, self._packed = read(folder, lambda: load_base(None))
        return model


@ftbench.hookimpl
def ftbench_algorithms() -> list[type[ftbench.Algorithm]]:
    """Bring peft."""
    return [Peft]
