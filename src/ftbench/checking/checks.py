"""What every algorithm must keep to. Each check says what is wrong, and where to read about it."""

import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from ftbench.algorithm import AlgorithmConfig
from ftbench.checking.subject import Subject
from ftbench.checking.watched import Watched
from ftbench.errors import FtbenchError, Skip, UsageError

if TYPE_CHECKING:
    import numpy as np

UNKNOWN = "no_such_option"
SLIP = 2
"""Letters that two names do not share, at most, where one is taken for the other misspelt: one letter for another."""
SHORT = 4
"""Names of so few letters are near to too many."""
ROUNDING = 1e-3
"""Relative difference of losses that rounding can make."""
LOGITS = 1e-3
"""Difference of logits that folding an adapter into the weights can make."""
BEYOND = 1.05
"""Of its predicted memory a training may take this much."""


class BrokenError(FtbenchError):
    """A check that an algorithm does not pass: one line that names plugin and method and says what to do."""


class NotApplicable(FtbenchError):  # noqa: N818  what happened is no error
    """A check that does not apply to an algorithm, for this reason."""


@dataclass(frozen=True)
class Check:
    """One thing that an algorithm must keep to; `read` is where its documentation stands, for `python -m pydoc`."""

    name: str
    promise: str
    read: str
    look: Callable[[Subject], None]


@dataclass(frozen=True)
class Outcome:
    """What came of a check; `text` is empty where it passed."""

    check: Check
    verdict: Literal["passed", "failed", "skipped"]
    text: str
    seconds: float


def run_checks(subject: Subject, checks: Sequence[Check] | None = None) -> Iterator[Outcome]:
    """Go through the checks of an algorithm, one by one; by default all."""
    for check in CHECKS if checks is None else checks:
        start = perf_counter()
        verdict, text = _verdict(check, subject)
        yield Outcome(check, verdict, text, perf_counter() - start)


def _verdict(check: Check, subject: Subject) -> tuple[Literal["passed", "failed", "skipped"], str]:
    try:
        check.look(subject)
    except BrokenError as error:
        return "failed", str(error)
    except NotApplicable as error:
        return "skipped", str(error)
    return "passed", ""


def _options(subject: Subject) -> None:
    kind, options = subject.kind, subject.recipe.options
    where = subject.says("Config")
    refused = False
    try:
        kind.Config(**{**options, UNKNOWN: 1})
    except (ValidationError, UsageError):
        refused = True
    if not refused:
        raise BrokenError(f"{where} takes an unknown option: leave model_config's extra = 'forbid' as it is")
    _misspelt(kind.Config, where)
    read = tomllib.loads(subject.recipe.to_toml())["options"]
    try:
        again = subject.registry.make(subject.name, read).config
    except UsageError as error:
        raise BrokenError(f"{where} does not take what it wrote down itself: {error}") from error
    if again.model_dump(mode="json", exclude_none=True) != subject.algorithm.config.model_dump(
        mode="json", exclude_none=True
    ):
        raise BrokenError(
            f"{where} is another when it is read from a recipe: options must be what TOML and JSON can hold"
        )


def _misspelt(config: type[AlgorithmConfig], where: str) -> None:
    """Refuse a new name that is nearly one of those that ftbench reads of a configuration."""
    bases = [base for base in config.__mro__ if issubclass(base, AlgorithmConfig) and base is not config]
    ours = [base for base in bases if base.__module__ == AlgorithmConfig.__module__]
    known = {name for base in ours for name in (*base.model_fields, *base.__class_vars__)}
    for own in set(vars(config).get("__annotations__", {})) - known:
        for name in sorted(known):
            shared = sum(block.size for block in SequenceMatcher(None, own, name, autojunk=False).get_matching_blocks())
            if len(name) > SHORT and len(own) + len(name) - 2 * shared <= SLIP:
                raise BrokenError(f"{where}.{own} is a new option; is '{name}' meant, which ftbench reads?")


def _runs(subject: Subject) -> None:
    reason = subject.algorithm.skip(subject.recipe)
    if reason is not None:
        raise NotApplicable(f"it declines the tiny model's recipe: {reason}")
    error = subject.first.error
    if isinstance(error, Skip):
        raise NotApplicable(f"it does not apply to the tiny model: {error}")
    if error is not None:
        facts = subject.first.facts
        raise BrokenError(f"in phase '{facts.phase if facts else 'start'}': {subject.blame(error)}")


def _trained(subject: Subject) -> Watched:
    """Return the first run, if it trained."""
    if not subject.trains:
        raise NotApplicable("it trains nothing")
    if subject.first.error is not None:
        raise NotApplicable("its run did not come to an end")
    return subject.first


def _trains(subject: Subject) -> None:
    stages: dict[str, list[float]] = {}
    before = 0
    for row in _trained(subject).rows:
        if row["prompts"] - before == subject.recipe.effective_batch_size:  # a stage of its own may see other texts
            stages.setdefault(row["stage"], []).append(row["loss"])
        before = row["prompts"]
    if not any(len(losses) > 1 for losses in stages.values()):
        raise BrokenError(f"{subject.says('train')} does not go through the planned steps: see training.plan.steps")
    for stage, losses in stages.items():
        if len(losses) > 1 and not losses[-1] < losses[0]:
            raise BrokenError(
                f"{subject.says('loss')}: in stage '{stage}' the loss went from {losses[0]:.6g} to {losses[-1]:.6g} in "
                f"{len(losses)} steps over the same examples; it must fall: is its sign right, and the default "
                "learning rate neither far too high nor too low?"
            )


def _trainable(subject: Subject) -> None:
    run = _trained(subject)
    if run.frozen_changed:
        raise BrokenError(
            f"{subject.says('train')} changed {_some(run.frozen_changed)}, which adapt() had said is not trainable: "
            "set its requires_grad in adapt(), or leave it alone"
        )
    idle = run.facts.warnings if run.facts else []
    if idle:
        raise BrokenError(f"plugin {subject.plugin.name} {subject.plugin.version}, {idle[0]}")
    if run.unmoved and subject.algorithm.own_trainer:
        raise BrokenError(
            f"{subject.says('train')} left {_some(run.unmoved)} as it was, which adapt() had said is trainable: give "
            "your trainer every parameter with requires_grad"
        )


def _reloads(subject: Subject) -> None:
    run = _trained(subject)
    if run.pickles:
        raise BrokenError(f"{subject.says('save')} wrote {_some(run.pickles)}: a pickle; write safetensors")
    if run.logits is None or run.base is None or run.reloaded is None or run.reloaded_anew is None:
        raise BrokenError(f"{subject.says('train')} left nothing to be saved")
    if _apart(run.logits, run.base) == 0:
        raise BrokenError(f"{subject.says('train')} changed nothing: the model says what it said before training")
    anew = " by an algorithm made anew, as later processes do,"
    for reloaded, who in ((run.reloaded, ""), (run.reloaded_anew, anew)):
        apart = _apart(reloaded, run.logits)
        if not apart <= LOGITS:
            raise BrokenError(
                f"{subject.says('load')}: the logits of what is reloaded{who} are {apart:.2g} from those that were "
                f"saved (at most {LOGITS:g}); save() must write all that training changed, and load() read it"
            )


def _seed(subject: Subject) -> None:
    first, again = _trained(subject), subject.again
    if again.error is not None:
        raise BrokenError(f"the second run fails where the first did not: {subject.blame(again.error)}")
    for one, other in zip(first.rows, again.rows, strict=False):
        if one["loss"] != other["loss"]:
            raise BrokenError(
                f"{subject.says('train')}: with the same seed the loss of step {one['step']} is {one['loss']!r} and "
                f"then {other['loss']!r}; draw from torch's generator or from one seeded with training.plan.seed"
            )
    if first.logits is None or again.logits is None or _apart(first.logits, again.logits) != 0:
        raise BrokenError(
            f"{subject.says('train')}: with the same seed another model is learnt; draw from torch's generator or from "
            "one seeded with training.plan.seed"
        )


def _resumes(subject: Subject) -> None:
    first = _trained(subject)
    if subject.algorithm.own_trainer:
        raise NotApplicable("it brings a trainer of its own, which begins anew")
    broken = subject.broken
    if broken.error is not None:
        raise BrokenError(f"a training that was killed half-way fails when it goes on: {subject.blame(broken.error)}")
    if first.logits is None or broken.logits is None or _apart(first.logits, broken.logits) != 0:
        raise BrokenError(
            f"{subject.says('train')}: killed half-way and started again, it ends with another model than unbroken; "
            "between steps, keep nothing outside of the model's parameters, or train with an after_step of your own"
        )
    if not (broken.facts and broken.facts.measures.get("resumed")):
        raise NotApplicable("it trains with an after_step of its own, and begins anew")


def _accumulation(subject: Subject) -> None:
    first = _trained(subject)
    if subject.algorithm.own_trainer:
        raise NotApplicable("it brings a trainer of its own, which cuts steps by itself")
    pieces = subject.in_pieces
    if pieces.error is not None:
        raise BrokenError(f"it fails with smaller micro-batches: {subject.blame(pieces.error)}")
    for one, other in zip(first.rows, pieces.rows, strict=False):
        for figure in ("loss", "grad_norm") if one["step"] == 1 else ("loss",):
            if abs(one[figure] - other[figure]) > ROUNDING * max(1.0, abs(one[figure])):
                raise BrokenError(
                    f"{subject.says('loss')}: the {figure.replace('_', ' ')} of step {one['step']} is "
                    f"{one[figure]:.6g} in one micro-batch and {other[figure]:.6g} in several: end the loss with "
                    "logprobs.mean(values) or logprobs.nll(), which divide by the whole effective batch"
                )


def _memory(subject: Subject) -> None:
    from ftbench.execution.fitting import plan_memory
    from ftbench.execution.forecast import Question

    run = _trained(subject)
    if subject.algorithm.own_trainer:
        raise NotApplicable("it brings a trainer of its own, whose memory cannot be predicted")
    assert run.plan is not None
    assert run.facts is not None
    assert run.facts.meter is not None
    import torch

    from ftbench.checking.subject import quiet
    from ftbench.checking.surroundings import kept
    from ftbench.models.resolve import resolve_model
    from ftbench.models.skeleton import load_config

    recipe = subject.recipe
    files = resolve_model(recipe.model, recipe.revision, subject.registry.models)
    with kept(), quiet():
        question = Question(load_config(files.folder), run.plan, torch.device("cpu"), "float32")
        plan = plan_memory(recipe, subject.fresh(), question, "cpu")
    if plan.predicted_bytes is None:
        raise NotApplicable(f"its memory cannot be predicted, so that no budget can be planned for: {plan.reason}")
    taken = run.facts.meter.tensors["train"].total - run.others
    if taken > BEYOND * plan.predicted_bytes:
        raise BrokenError(
            f"{subject.says('train')} took {taken:,} bytes of tensors, and {plan.predicted_bytes:,} were predicted: "
            "what adapt(), loss() and train() allocate must not hang on whether tensors have values"
        )


def _surroundings(subject: Subject) -> None:
    if subject.first.error is not None:
        raise NotApplicable("its run did not come to an end")
    if subject.first.leaks:
        method, _ = subject.first.leaks[0]
        left = ", ".join(dict.fromkeys(what for leaking, what in subject.first.leaks if leaking == method))
        raise BrokenError(
            f"{subject.says(method)} does not leave as it was: {left}; put it back, or use a generator of your own"
        )


def _some(names: list[str]) -> str:
    return ", ".join(f"'{name}'" for name in names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _apart(one: "np.ndarray[Any, Any]", other: "np.ndarray[Any, Any]") -> float:
    """The largest difference; infinite where the shapes differ or something is no number."""
    import numpy as np

    if one.shape != other.shape:
        return float("inf")
    apart = float(np.abs(one - other).max())
    return apart if apart == apart else float("inf")


CHECKS = (
    Check("options", "refuses unknown options, reads back its own", "ftbench.AlgorithmConfig", _options),
    Check("runs", "goes through every phase of a run", "ftbench.Algorithm", _runs),
    Check("trains", "trains, and its loss falls", "ftbench.Algorithm.loss", _trains),
    Check("trainable", "changes what it says is trainable, and only that", "ftbench.Algorithm.adapt", _trainable),
    Check("reloads", "is the same when saved and reloaded", "ftbench.Algorithm.load", _reloads),
    Check("seed", "is the same under the same seed", "ftbench.Training", _seed),
    Check("resumes", "ends the same when it was killed half-way", "ftbench.Training", _resumes),
    Check("accumulation", "is the same in smaller micro-batches", "ftbench.CompletionLogProbs", _accumulation),
    Check("memory", "stays within its predicted memory", "ftbench.Algorithm.adapt", _memory),
    Check("surroundings", "leaves the rest of the process as it was", "ftbench.Algorithm", _surroundings),
)
"""In the order in which they are looked at."""
