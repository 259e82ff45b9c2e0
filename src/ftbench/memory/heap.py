"""What a process holds in vain: freed memory that C keeps for later, and walks through what Python never frees."""

import gc
import os
from importlib import import_module

MODELS = ("torch", "transformers.activations", "transformers.modeling_layers")
"""Modules that whatever makes a model imports, and with them most of what there is to import."""


def import_for_good(*names: str) -> None:
    """Import modules, and take all that there is then out of what is ever collected, or looked through for tensors.

    Imports make a million objects and free none. To walk them meanwhile takes a sixth of a process's start, and to walk
    them again whenever memory is freed, or the tensors of a training are counted, takes half a second each time.

    Args:
        names: of the modules; those that have been imported cost nothing.
    """
    gc.disable()
    try:
        for name in names:
            import_module(name)
    finally:
        gc.freeze()
        gc.enable()


def prompt_memory(*, limited: bool) -> dict[str, str]:
    """Return a worker's environment, so that memory that is freed goes back at once, and leaves no holes.

    glibc keeps freed blocks below a threshold that it raises by itself, up to 32 MiB. oneDNN keeps a kernel of about
    1 MB for each of the last 1024 shapes it met, and rows without padding have a new shape in each step. Both together
    held 2.8 GiB beside 1.1 GiB of tensors; letting them go costs a few percent of the speed. What lies free at the
    heap's end is what the next layer asks for again: without a budget it goes back from 64 MiB on, which leaves the
    peak where it is, and the kernel a third fewer pages to clear in a training.

    torch asks for blocks that begin at a multiple of 64 bytes. glibc (seen in 2.36) cuts such a block from a larger
    one, and keeps the slivers before and behind it for the next small thing that is asked for: where it was, no other
    of its size finds room again. Slivers that are not kept grow together with the block when it is freed: 60 to 230 MiB
    beside the tensors of a training in float32, which had been up to 430, at the same speed.

    Args:
        limited: whether the process's memory is to stay within a budget. Such a limit counts the holes between blocks
            in use as well, whose pages went back. Blocks from 1 MiB on are then by themselves, and leave none: of
            one training 150 MiB beside its tensors, where it is 350 without. Mapping and zeroing them anew costs up to
            a third of the speed.
    """
    smallest = str((1 if limited else 4) * 2**20)
    own = os.environ.get("GLIBC_TUNABLES")
    return {
        "GLIBC_TUNABLES": ":".join([*([own] if own else []), "glibc.malloc.tcache_count=0", "glibc.malloc.mxfast=0"]),
        "MALLOC_MMAP_THRESHOLD_": smallest,
        "MALLOC_TRIM_THRESHOLD_": str((4 if limited else 64) * 2**20),
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
    }
