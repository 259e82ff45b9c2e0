"""What is known of a run so far."""

from dataclasses import dataclass, field
from typing import Any

from ftbench.memory.meter import Meter
from ftbench.results.result import (
    BaselineFacts,
    DataFacts,
    Environment,
    JudgeFacts,
    MemoryPlan,
    Outcomes,
    StartFacts,
)


@dataclass
class Facts:
    """What is known of a run so far; whatever ends it, this much goes into its result."""

    phase: str = "start"
    model_digest: str | None = None
    chat_format: str | None = None
    system_prompt: str | None = None
    start: StartFacts | None = None
    baseline: BaselineFacts | None = None
    data: DataFacts | None = None
    judge: JudgeFacts | None = None
    environment: Environment | None = None
    meter: Meter | None = None
    weight_bytes: int = 0
    memory_plan: MemoryPlan | None = None
    measures: dict[str, Any] = field(default_factory=dict)
    outcomes: Outcomes | None = None
    warnings: list[str] = field(default_factory=list)
