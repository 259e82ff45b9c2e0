"""How a step is cut to fit into memory: chosen before training, made smaller when reality exceeds the plan."""

import ctypes
import gc
from collections.abc import Iterable
from dataclasses import dataclass, field

# torch raises plain RuntimeErrors on the CPU; these are the words of its allocator, of mmap and safetensors, and of
# oneDNN, which does not tell why it could not make what a matrix product of a new shape needs.
_ALLOCATION_FAILED = (
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "out of memory",
    "could not create a primitive",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell an exhausted memory, whatever library raised it, from other errors."""
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in _ALLOCATION_FAILED)


def free_memory() -> None:
    """Let go of what only circles hold, and of what allocators keep for later."""
    import torch

    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc's
        trim(0)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@dataclass(frozen=True)
class Reduction:
    """A step ran out of memory and was done again with this from then on."""

    stage: str
    step: int
    micro_batch_tokens: int
    checkpointing: bool


@dataclass
class Fit:
    """The size of a micro-batch in real tokens, and whether activations are computed again in the backward pass.

    The effective batch never changes: smaller micro-batches are more of them. Stages share one fit, so that what was
    learnt in one holds in the next.
    """

    micro_batch_tokens: int
    checkpointing: bool = False
    reductions: list[Reduction] = field(default_factory=list)

    def reduce(self, stage: str, step: int, micro_batches: Iterable[tuple[int, int]], *, can_checkpoint: bool) -> bool:
        """Make it smaller after an out-of-memory: half the micro-batch; once that is one example, checkpointing.

        Args:
            stage: in which it happened.
            step: index of the step.
            micro_batches: examples and real tokens of each.
            can_checkpoint: whether the model can compute its activations again.

        Returns:
            Whether there was anything left to try.
        """
        sizes = list(micro_batches)
        if any(examples > 1 for examples, _ in sizes):
            largest = max(tokens for examples, tokens in sizes if examples > 1)
            self.micro_batch_tokens = max(1, min(self.micro_batch_tokens, largest) // 2)
        elif can_checkpoint and not self.checkpointing:
            self.checkpointing = True
        else:
            return False
        self.reductions.append(Reduction(stage, step, self.micro_batch_tokens, self.checkpointing))
        return True
