"""Python's collector, kept from walking what is never freed."""

import gc
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
