"""From what is known of a run to its result."""

from ftbench.execution.phases import Facts
from ftbench.plugins import Registry
from ftbench.recipe import Recipe
from ftbench.results.result import Measures, Result, Status


def build_result(
    recipe: Recipe, registry: Registry, facts: Facts, status: Status, reason: str | None, started: str
) -> Result:
    """Put what is known of a run into its result."""
    measures = dict(facts.measures)
    if facts.meter:
        main_phase = "train" if "train" in facts.meter.peak else "evaluate"
        measures |= {
            "peak_memory_bytes": facts.meter.peak.get(main_phase),
            "peak_reserved_bytes": facts.meter.reserved.get(main_phase),
            "memory_kind": facts.meter.kind,
            "phase_seconds": facts.meter.seconds,
            "phase_peak_bytes": facts.meter.peak,
        }
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
        model_digest=facts.model_digest,
        chat_format=facts.chat_format,
        system_prompt=facts.system_prompt,
        start=facts.start,
        data=facts.data,
        judge=facts.judge,
        measures=Measures(**measures),
        environment=facts.environment,
    )
