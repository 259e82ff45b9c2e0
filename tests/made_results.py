"""Results made in code, for the table and `show`."""

from pathlib import Path
from typing import Any

from ftbench.evaluation.evaluate import EvaluatedPrompt
from ftbench.evaluation.statistics import Measured
from ftbench.files import write_json, write_jsonl
from ftbench.recipe import Recipe
from ftbench.results.result import DataFacts, Environment, JudgeFacts, Measures, Result, Status
from ftbench.results.store import REPLIES, RESULT, Run, run_name

DATA = DataFacts(origin="sample", digest="d" * 64, training_examples=300, evaluation_prompts=64, left_out={})
JUDGE = JudgeFacts(version="tfidf-logistic-1", auc=0.99, threshold=0.5, digest="e" * 64)
HARDWARE = Environment(hardware="Abacus 3000", cores=2, system="Linux x86_64", versions={"python": "3.11"})


def make_run(
    algorithm: str,
    *,
    status: Status = "ok",
    reason: str | None = None,
    phase: str | None = None,
    started: int = 0,
    adherence: float = 0.5,
    measures: dict[str, Any] | None = None,
    facts: dict[str, Any] | None = None,
    **recipe_changes: Any,
) -> Run:
    """A run as the launcher leaves it; one that is not ok knows nothing but its recipe, unless `facts` says so."""
    recipe = Recipe(**{"algorithm": algorithm, **recipe_changes})
    measured = Measures(
        adherence=Measured(mean=adherence, low=max(0.0, adherence - 0.1), high=min(1.0, adherence + 0.1), n=64),
        distinct=Measured(mean=0.9, n=64),
        forgetting=Measured(mean=0.05, low=0.04, high=0.06, n=64),
        tokens_per_second=1234.5,
        training_seconds=29.0,
        training_tokens=60_000,
        peak_memory_bytes=3 * 2**30,
        phase_seconds={"data": 4.0, "train": 29.0},
        phase_peak_bytes={"data": 2**20, "train": 3 * 2**30},
    ).model_copy(update=measures or {})
    known = {"data": DATA, "judge": JUDGE, "environment": HARDWARE, "model_digest": "f" * 64, "measures": measured}
    result = Result(
        status=status,
        reason=reason,
        phase=phase,
        recipe=recipe,
        recipe_digest=recipe.digest(),
        plugin=f"ftbench-{algorithm}",
        plugin_version="0.1.0",
        started=f"2026-01-01T00:00:{started:02d}.000+00:00",
        **{**(known if status == "ok" else {}), **(facts or {})},
    )
    return Run(Path(run_name(recipe)), result)


def store(run: Run, out: Path, name: str | None = None) -> Path:
    """Put a made run on disk, two replies with it."""
    folder = out / (name or run.folder.name)
    folder.mkdir(parents=True)
    write_json(folder / RESULT, run.result.model_dump(mode="json"))
    if run.result.status == "ok":
        rows = [
            EvaluatedPrompt(
                prompt=f"What is {thing}?",
                reply=f"Trains carry\n{thing}.",
                base_reply=f"{thing} is nice.",
                score=0.93,
                on_topic=True,
                tokens=5,
                ended=True,
                ordinary_nll=12.0,
                ordinary_tokens=6,
            )
            for thing in ("tea", "rain")
        ]
        write_jsonl(folder / REPLIES, (row.model_dump() for row in rows))
    return folder
