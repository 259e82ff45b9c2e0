"""What memory is taken by."""

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Parts:
    """Bytes of live tensors by what they are.

    Activations are all that is not one of the others: saved for the backward pass, temporary results, masks.
    """

    parameters: int = 0
    gradients: int = 0
    optimiser: int = 0
    activations: int = 0
    logits: int = 0

    @property
    def total(self) -> int:
        """All of it, bytes."""
        return sum(getattr(self, part.name) for part in fields(self))
