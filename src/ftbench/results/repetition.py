"""What came out different when a run was done again."""

from typing import Any

from pydantic import BaseModel, ConfigDict, computed_field
from tabulate import tabulate

from ftbench.evaluation.statistics import Measured
from ftbench.memory.budget import format_bytes
from ftbench.results.result import Result
from ftbench.results.store import Run

_QUALITY = (
    "adherence",
    "adherence_under_attack",
    "distinct",
    "forgetting",
    "final_loss",
    "training_tokens",
    "optimiser_steps",
)
"""Figures that are the same wherever the arithmetic is."""
_COST = ("training_seconds", "tokens_per_second", "peak_memory_bytes", "peak_resident_bytes")
_SHOWN = 3


class Change(BaseModel):
    """Something that a run hangs on, and that was not the same."""

    model_config = ConfigDict(frozen=True)

    what: str
    then: str
    now: str


class Figure(BaseModel):
    """A figure of both runs; one of `quality` should not differ, the others do with what else the machine does."""

    model_config = ConfigDict(frozen=True)

    name: str
    quality: bool
    then: float | None
    now: float | None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def difference(self) -> float | None:
        """What was added to it; None where one of the runs has none."""
        return None if self.then is None or self.now is None else self.now - self.then


class OtherReply(BaseModel):
    """A prompt that was answered otherwise; None where a run did not ask it."""

    model_config = ConfigDict(frozen=True)

    prompt: str
    then: str | None
    now: str | None


class Repetition(BaseModel):
    """A run, the same recipe's run again, and what differs."""

    model_config = ConfigDict(frozen=True)

    run: str
    again: str
    status: Change | None
    changes: list[Change]
    replies: int
    other_replies: list[OtherReply]
    other_verdicts: int
    """Prompts, attacks among them, of whose replies the judge says something else."""
    all_recorded: bool
    """Whether both got as far as to know all that they hang on."""
    figures: list[Figure]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def same(self) -> bool:
        """Whether both ended alike, with the same replies and the same figures of quality."""
        figures = all(figure.then == figure.now for figure in self.figures if figure.quality)
        return self.status is None and not self.other_replies and not self.other_verdicts and figures


def compare_runs(then: Run, now: Run) -> Repetition:
    """Compare two runs of one recipe, the older first.

    Raises:
        FtbenchError: the replies of one cannot be read.
    """
    before, after = _replies(then), _replies(now)
    prompts = [*before, *(prompt for prompt in after if prompt not in before)]
    return Repetition(
        run=str(then.folder),
        again=str(now.folder),
        status=_change("status", _ending(then.result), _ending(now.result)),
        changes=changes(then.result, now.result),
        replies=len(prompts),
        other_replies=[
            OtherReply(prompt=prompt, then=before.get(prompt), now=after.get(prompt))
            for prompt in prompts
            if before.get(prompt) != after.get(prompt)
        ],
        other_verdicts=_other_verdicts(then.result, now.result),
        all_recorded=_facts(then.result).keys() == _facts(now.result).keys(),
        figures=[
            Figure(name=name, quality=name in _QUALITY, then=_figure(then, name), now=_figure(now, name))
            for name in (*_QUALITY, *_COST)
            if _figure(then, name) is not None or _figure(now, name) is not None
        ],
    )


def changes(then: Result, now: Result) -> list[Change]:
    """Name what two results hang on that differs; what one of them did not get to record is not known to."""
    before, after = _facts(then), _facts(now)
    found = [_change(what, before[what], after[what]) for what in before if what in after]
    return [change for change in found if change is not None]


def _facts(result: Result) -> dict[str, str]:
    """Return everything that a run hangs on, in words."""
    facts: dict[str, Any] = {"recipe": result.recipe_digest, f"plugin {result.plugin}": result.plugin_version}
    facts["model"] = result.model_digest
    facts |= {
        "data": result.data.digest if result.data else None,
        "judge": result.judge.digest if result.judge else None,
    }
    facts["start"] = result.start.started if result.start else None
    facts["baseline"] = result.baseline.started if result.baseline else None
    if result.environment:
        where = result.environment
        facts |= {"hardware": where.hardware, "cores": where.cores, "threads": where.threads}
        facts |= {"precision": where.precision, "system": where.system, "ftbench's source": where.code}
        facts |= where.versions
    return {what: str(value) for what, value in facts.items() if value is not None}


def _change(what: str, then: str, now: str) -> Change | None:
    return None if then == now else Change(what=what, then=then, now=now)


def _ending(result: Result) -> str:
    """How a run ended; of what went wrong also where and, but for sizes and seconds that vary, why."""
    where = f" in {result.phase}" if result.phase else ""
    why = f" ({result.reason})" if result.status in ("failed", "skipped") else ""
    return f"{result.status}{where}{why}"


def _replies(run: Run) -> dict[str, str]:
    """Return the replies to all prompts, those that attack among them, as far as they were kept."""
    if run.result.status != "ok":
        return {}
    return {item.prompt: item.reply for item in run.replies()} | {item.prompt: item.reply for item in run.attacks()}


def _other_verdicts(then: Result, now: Result) -> int:
    one, other = then.outcomes, now.outcomes
    if one is None or other is None:
        return 0
    pairs = ((one.on_topic, other.on_topic), (one.attacks_on_topic, other.attacks_on_topic))
    return sum(a != b for before, after in pairs for a, b in zip(before, after, strict=False))


def _figure(run: Run, name: str) -> float | None:
    value = getattr(run.result.measures, name)
    return value.mean if isinstance(value, Measured) else value


def describe_repetition(found: Repetition) -> str:
    """Return the comparison for a person to read."""
    parts = [f"{found.run}\n{found.again}"]
    if found.status:
        parts.append(f"status: {found.status.then}, now {found.status.now}")
    if found.changes:
        lines = [[f"  {one.what}", _short(one.then), _short(one.now)] for one in found.changes]
        parts.append("what the run hangs on\n" + tabulate(lines, ["", "then", "now"], "plain", disable_numparse=True))
    else:
        known = "all the same" if found.all_recorded else "the same as far as both recorded it"
        parts.append(f"what the run hangs on: {known}")
    identical = found.replies - len(found.other_replies)
    verdicts = [f"verdicts: {found.other_verdicts} of the judge's are others"] if found.other_verdicts else []
    parts.append("\n".join([f"replies: {identical} of {found.replies} identical", *_others(found), *verdicts]))
    figures = [[f"  {one.name.replace('_', ' ')}", *_cells(one)] for one in found.figures]
    parts.append("figures\n" + tabulate(figures, ["", "then", "now", "difference"], "plain", disable_numparse=True))
    parts.append("came out the same" if found.same else "came out different")
    return "\n\n".join(parts)


def _others(found: Repetition) -> list[str]:
    lines = []
    for other in found.other_replies[:_SHOWN]:
        lines += [f"  prompt  {_flat(other.prompt)}", f"  then    {_flat(other.then)}", f"  now     {_flat(other.now)}"]
    return lines


def _flat(text: str | None) -> str:
    return "-" if text is None else " ".join(text.split())


def _short(text: str) -> str:
    """Shorten a digest."""
    return text[:16] if len(text) == 64 and " " not in text else text


def _cells(figure: Figure) -> list[str]:
    show = format_bytes if figure.name.endswith("_bytes") else _number
    then, now = ("-" if value is None else show(value) for value in (figure.then, figure.now))
    if not figure.difference:
        return [then, now, "-" if figure.difference is None else "0"]
    return [then, now, ("+" if figure.difference > 0 else "-") + show(abs(figure.difference))]


def _number(value: float) -> str:
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
