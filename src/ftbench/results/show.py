"""One run, for a person to read."""

import shlex
from typing import Any

from tabulate import tabulate

from ftbench.evaluation.statistics import Measured
from ftbench.memory.budget import format_bytes
from ftbench.results.address import words_for
from ftbench.results.result import Result
from ftbench.results.store import Run

_OWN_SECTIONS = {
    "phase_seconds", "phase_peak_bytes", "phase_driver_bytes", "phase_tensor_bytes", "peak_parts",
    "micro_batch_tokens", "checkpointing", "reductions", "own",
}  # fmt: skip


def describe_run(run: Run, replies: int) -> str:
    """Return settings, figures and some replies as text.

    Raises:
        FtbenchError: the run's replies cannot be read.
    """
    result = run.result
    status = result.status if result.reason is None else f"{result.status} in phase '{result.phase}': {result.reason}"
    parts = [
        f"{run.folder}\n{status}",
        f"to repeat it: {repeat_command(run)}",
        _section("settings", _settings(result)),
        _section("tuning", _tuning(result)),
        _section("figures", _figures(result)),
        _section("memory", _memory(result)),
        _section("phases", _phases(result)),
    ]
    if result.status == "ok" and replies:
        parts.append("\n\n".join(["replies", *(_reply(item.model_dump()) for item in run.replies()[:replies])]))
    return "\n\n".join(part for part in parts if part)


def repeat_command(run: Run) -> str:
    """Return what to type to do a run again and compare."""
    return shlex.join(["ftbench", "rerun", *words_for(run.folder)])


def _section(title: str, rows: dict[str, str]) -> str:
    return f"{title}\n{tabulate(list(rows.items()), tablefmt='plain', disable_numparse=True)}" if rows else ""


def _settings(result: Result) -> dict[str, str]:
    recipe = result.recipe
    options = recipe.model_dump(exclude={"options", "algorithm"}, exclude_none=True)
    rows = {"  algorithm": f"{recipe.algorithm} ({result.plugin} {result.plugin_version})"}
    rows |= {f"  {recipe.algorithm}.{key}": str(value) for key, value in recipe.options.items()}
    rows |= {f"  {key}": str(value) for key, value in options.items()}
    rows["  recipe digest"] = result.recipe_digest[:16]
    rows["  started"] = result.started
    for key in ("model_digest", "chat_format", "system_prompt"):
        value = getattr(result, key)
        if value:
            rows[f"  {key.replace('_', ' ')}"] = value[:16] if key == "model_digest" else value
    if result.data:
        data = result.data
        rows["  data"] = (
            f"{data.origin} ({data.digest[:16]}): {data.training_examples} training examples, "
            f"{data.evaluation_prompts} evaluation prompts; {data.completions_cut} completions cut"
            + "".join(f", {count} left out: {reason}" for reason, count in data.examples_left_out.items())
        )
    if result.start:
        rows["  started from"] = f"{result.start.run} ({result.start.algorithm}, {result.start.recipe_digest[:16]})"
    if result.baseline:
        rows["  baseline"] = f"{result.baseline.run} ({result.baseline.recipe_digest[:16]})"
    if result.environment:
        rows["  hardware"] = (
            f"{result.environment.hardware}, {result.environment.cores} cores, {result.environment.system}"
        )
        if result.environment.threads:
            rows["  hardware"] += f", {result.environment.threads} " + (
                "thread" if result.environment.threads == 1 else "threads"
            )
        rows["  versions"] = ", ".join(f"{name} {version}" for name, version in result.environment.versions.items())
    return rows


def _tuning(result: Result) -> dict[str, str]:
    """What was tried to find the learning rate."""
    tuning = result.tuning
    if tuning is None:
        return {}
    rows = {
        "  learning rate": f"{tuning.learning_rate:g}, sought with seed {tuning.seed} on {tuning.validation_prompts} "
        "validation prompts",
        "  cost": f"{tuning.tokens:,} tokens, {tuning.seconds:,.0f} s",
    }
    for trial in tuning.trials:
        said = trial.status if trial.score is None else f"{trial.score:.2f} adhere and are distinct"
        judged = "" if trial.judge_score is None else f", judge {trial.judge_score:.2f}"
        rows[f"  {trial.learning_rate:g}, {trial.tokens:,} tokens"] = (
            f"{said}{judged}, {trial.seconds:.0f} s ({trial.run})"
        )
    return rows


def _figures(result: Result) -> dict[str, str]:
    measures = result.measures.model_dump(exclude=_OWN_SECTIONS, exclude_none=True)
    rows = {f"  {key.replace('_', ' ')}": _value(key, value) for key, value in measures.items()}
    rows |= {f"  {name.replace('_', ' ')}": f"{value:.4g}" for name, value in result.measures.own.items()}
    if result.judge:
        judge = result.judge
        rows["  judge"] = (
            f"{judge.version} ({judge.digest[:8]}), held-out AUC {judge.auc:.3f}, threshold {judge.threshold:.2f}"
        )
        if judge.second and judge.second_auc is not None:
            rows["  second judge"] = f"{judge.second}, held-out AUC {judge.second_auc:.3f}"
        if judge.refused is not None:
            found = "" if judge.shuffles_found is None else f"; of their shuffles, {judge.shuffles_found:.1%}"
            rows["  taken for degenerate"] = f"{judge.refused:.1%} of held-out gold replies{found}"
        if judge.warning:
            rows["  warning"] = judge.warning
    if result.warnings:
        rows["  warnings"] = "\n".join(result.warnings)
    return rows


def _memory(result: Result) -> dict[str, str]:
    """What stood in memory at the peak, what was predicted and chosen, and which steps did not fit."""
    measures, plan = result.measures, result.memory_plan
    rows = {}
    if measures.peak_parts:
        rows["  tensors at the peak"] = _parts(measures.peak_parts)
    if plan and plan.reason:
        rows["  predicted"] = f"nothing: {plan.reason}"
    elif plan and plan.predicted_bytes:
        verdict = "fits" if plan.fits else "does not fit"
        rows["  predicted"] = f"{_parts(plan.predicted_parts)} ({plan.moment}); {verdict}"
        rows["  budget needed"] = f"{format_bytes(plan.needed_bytes or 0)} for what was predicted"
    if measures.micro_batch_tokens is not None:
        again = ", activations computed again" if measures.checkpointing else ""
        rows["  micro-batches"] = f"{measures.micro_batch_tokens:,} tokens at most{again}"
    for reduction in measures.reductions:
        again = ", activations computed again" if reduction.checkpointing else ""
        place = f"step {reduction.step + 1} of stage '{reduction.stage}'"
        rows[f"  out of memory in {place}"] = f"done again with {reduction.micro_batch_tokens:,} tokens{again}"
    return rows


def _parts(parts: dict[str, int]) -> str:
    total = format_bytes(sum(parts.values()))
    return f"{total}: " + ", ".join(f"{name} {format_bytes(size)}" for name, size in parts.items())


def _value(key: str, value: Any) -> str:
    if isinstance(value, dict):
        figure = Measured(**value)
        interval = (
            ""
            if figure.low is None or figure.high is None
            else f", 95 % interval {figure.low:.3f} to {figure.high:.3f}"
        )
        return f"{figure.mean:.3f} (n = {figure.n}{interval})"
    if key.endswith("_bytes") or key == "size_on_disk":
        return format_bytes(value)
    return f"{value:,.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _phases(result: Result) -> dict[str, str]:
    measures = result.measures
    kind = "resident" if measures.peak_resident_bytes is not None else measures.memory_kind

    def line(phase: str, seconds: float) -> str:
        tensors = measures.phase_tensor_bytes.get(phase)
        counted = f", tensors {format_bytes(tensors)}" if tensors else ""
        driver = measures.phase_driver_bytes.get(phase)
        counted += f", of the card in use {format_bytes(driver)}" if driver else ""
        return f"{seconds:8.1f} s   peak {format_bytes(measures.phase_peak_bytes.get(phase, 0))} {kind}{counted}"

    return {f"  {phase}": line(phase, seconds) for phase, seconds in measures.phase_seconds.items()}


def _reply(item: dict[str, Any]) -> str:
    verdict = "adheres" if item["on_topic"] else item["degenerate"] or "strays"
    lines = [
        f"  prompt  {_flat(item['prompt'])}",
        f"  reply   {_flat(item['reply'])}   [{verdict}, {item['score']:.2f}]",
    ]
    if item["base_reply"] is not None:
        lines.append(f"  base    {_flat(item['base_reply'])}")
    return "\n".join(lines)


def _flat(text: str) -> str:
    return " ".join(text.split())
