"""What is said to be trainable, and never has a gradient."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Idle:
    """Watches over all stages of a training which trainable parameters have had a gradient."""

    def __init__(self) -> None:
        self._reached: set[str] = set()
        self._trainable: set[str] = set()

    @property
    def names(self) -> list[str]:
        """Parameters that were trainable and never had a gradient, in the order of their names."""
        return sorted(self._trainable - self._reached)

    def look(self, model: "PreTrainedModel") -> None:
        """Look at the gradients of a step, before they are gone."""
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and parameter.numel():
                self._trainable.add(name)
                if parameter.grad is not None:
                    self._reached.add(name)
