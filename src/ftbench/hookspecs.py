"""The hooks that a plugin may implement."""

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from ftbench.algorithm import Algorithm
    from ftbench.evaluation.judge import Judge

hookspec = pluggy.HookspecMarker("ftbench")
hookimpl = pluggy.HookimplMarker("ftbench")


@hookspec
def ftbench_algorithms() -> "list[type[Algorithm]]":
    """Return the algorithms that this plugin brings."""
    raise NotImplementedError  # a specification: pluggy never calls it


@hookspec
def ftbench_judges() -> "list[type[Judge]]":
    """Return the kinds of judge that this plugin brings."""
    raise NotImplementedError  # a specification: pluggy never calls it
