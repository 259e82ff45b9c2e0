"""How a step is cut to fit into memory: chosen before training, made smaller when reality exceeds the plan."""

import ctypes
import gc
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

Row = TypeVar("Row")
Found = TypeVar("Found")

# torch raises plain RuntimeErrors on the CPU; these are the words of its allocator, of mmap and safetensors, of oneDNN,
# which does not tell why it could not make what a matrix product of a new shape needs, of C++, of CUDA's libraries, and
# of Python where there is no room for a thread's stack.
_ALLOCATION_FAILED = (
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "out of memory",
    "could not create a primitive",
    "std::bad_alloc",
    "_status_alloc_failed",
    "can't start new thread",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell an exhausted memory, whatever library raised it, from other errors."""
    return exhaustion(error) is not None


def exhaustion(error: BaseException) -> BaseException | None:
    """Return what says that memory was exhausted: the error, or one that it was raised from or while handling."""
    seen: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop(0)
        if one is None or any(one is other for other in seen):
            continue
        if isinstance(one, MemoryError) or tells_of_exhaustion(str(one)):
            return one
        seen.append(one)
        waiting += [one.__cause__, one.__context__]
    return None


def tells_of_exhaustion(text: str) -> bool:
    """Whether a message is one of those that libraries have for exhausted memory."""
    return any(words in text.lower() for words in _ALLOCATION_FAILED)


def free_memory() -> None:
    """Let go of what only circles hold, and of what allocators keep for later."""
    import torch

    gc.collect()
    trim_heap()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def trim_heap() -> None:
    """Have C's allocator give blocks that are free back to the system, where it can."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc's
        trim(0)


def in_halves(rows: Sequence[Row], work: Callable[[Sequence[Row]], list[Found]], doing: str) -> list[Found]:
    """Work on all rows at once, or half and half where that runs out of memory.

    Args:
        rows: in order; how they are put together must not change what comes out.
        work: returns one result for each.
        doing: what is done, for the log.
    """
    try:
        return work(rows)
    except Exception as error:
        if len(rows) == 1 or not is_out_of_memory(error):
            raise
        logging.getLogger(__name__).warning("out of memory while %s: %d rows are halved", doing, len(rows))
    free_memory()  # not in the handler: until it ends, the error holds the tensors
    half = len(rows) // 2
    return [one for part in (rows[:half], rows[half:]) for one in in_halves(part, work, doing)]


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
