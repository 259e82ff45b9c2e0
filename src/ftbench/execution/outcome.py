"""From what is known of a run to its result."""

import shlex
from dataclasses import asdict
from typing import Any

from ftbench.execution.facts import Facts
from ftbench.memory.meter import Meter
from ftbench.recipe import Recipe
from ftbench.registry import Registry
from ftbench.results.result import Measures, Result, Status
from ftbench.results.store import run_name


def build_result(
    recipe: Recipe, registry: Registry, facts: Facts, status: Status, reason: str | None, started: str
) -> Result:
    """Put what is known of a run into its result."""
    ended = facts.phase if status == "out-of-memory" else None
    measures = facts.measures | (_memory(facts.meter, ended) if facts.meter else {})
    plugin = registry.plugin_of(recipe.algorithm)
    return Result(
        status=status,
        reason=reason,
        phase=None if status == "ok" else facts.phase,
        recipe=recipe,
        recipe_digest=recipe.digest(),
        plugin=plugin.name,
        plugin_version=plugin.version,
        started=started,
        command=f"ftbench rerun {shlex.quote(run_name(recipe))}",
        model_digest=facts.model_digest,
        chat_format=facts.chat_format,
        system_prompt=facts.system_prompt,
        start=facts.start,
        baseline=facts.baseline,
        data=facts.data,
        judge=facts.judge,
        memory_plan=facts.memory_plan,
        measures=Measures(**measures),
        outcomes=facts.outcomes,
        warnings=[f"plugin {plugin.name} {plugin.version}, {warning}" for warning in facts.warnings],
        environment=facts.environment,
    )


def _memory(meter: Meter, ended: str | None) -> dict[str, Any]:
    """The figures of memory and time; the peak is CUDA's own, and on the CPU that of the tensors that were counted.

    Where none were, as in loading or in a step that was not expected to be the last, it is the process's.

    Args:
        meter: of the run.
        ended: the phase in which memory ran out, if it did; its peak is then the run's.
    """
    phase = ended or next((name for name in ("train", "evaluate") if name in meter.peak), "")
    counted = {name: parts for name, parts in meter.tensors.items() if parts.total}
    tensors = counted.get(phase)
    on_cpu = meter.device.type == "cpu"
    return {
        "peak_memory_bytes": tensors.total if on_cpu and tensors else meter.peak.get(phase),
        "memory_kind": "tensors" if on_cpu and tensors else meter.kind,
        "peak_parts": asdict(tensors) if tensors else {},
        "peak_resident_bytes": meter.peak.get(phase) if on_cpu else None,
        "peak_reserved_bytes": meter.reserved.get(phase),
        "peak_driver_bytes": meter.driver.get(phase),
        "phase_seconds": meter.seconds,
        "run_seconds": sum(meter.seconds.values()),
        "phase_peak_bytes": meter.peak,
        "phase_driver_bytes": meter.driver,
        "phase_tensor_bytes": {name: parts.total for name, parts in counted.items()},
    }
