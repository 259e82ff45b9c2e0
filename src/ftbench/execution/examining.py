"""Asks a run's model, in the middle and at the end, and turns what it says into figures."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ftbench.algorithm import Algorithm
from ftbench.data.task import TaskData
from ftbench.evaluation.attack import AttackReply, attack, shipped_attacks
from ftbench.evaluation.evaluate import EvaluatedPrompt, EvaluationSettings, agreement, evaluate, judged_replies
from ftbench.evaluation.panel import Panel
from ftbench.evaluation.statistics import distinct, rise, share
from ftbench.models.chat import ChatFormat
from ftbench.recipe import BASELINE, Recipe
from ftbench.results.result import Outcomes

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Examination:
    """What every model of a run is asked, and by whom it is judged.

    `baseline` holds the evaluated prompts of the untouched model's run; it is empty where there is none.
    """

    recipe: Recipe
    data: TaskData
    panel: Panel
    chat: ChatFormat
    baseline: Sequence[EvaluatedPrompt]
    algorithm: Algorithm

    @property
    def _settings(self) -> EvaluationSettings:
        recipe = self.recipe
        return EvaluationSettings(
            recipe.max_new_tokens,
            recipe.evaluation_batch_size,
            recipe.max_length,
            recipe.micro_batch_tokens,
            self.algorithm.packed,  # known only once it has adapted the model
        )

    def ask(self, model: "PreTrainedModel", report: Callable[[int], None]) -> list[EvaluatedPrompt]:
        """Ask every evaluation prompt."""
        base_replies = {item.prompt: item.reply for item in self.baseline}
        return evaluate(model, self.chat, self.data.evaluation, self.panel, self._settings, base_replies, report)

    def attack(self, model: "PreTrainedModel", report: Callable[[int], None]) -> list[AttackReply]:
        """Ask the prompts that attack."""
        attacks = shipped_attacks(self.recipe.attack_prompts)
        return attack(model, self.chat, attacks, self.panel, self._settings, report)

    def ask_few(self, model: "PreTrainedModel") -> float:
        """Return a model's adherence on the checkpoints' prompts; training can go on afterwards."""
        was_training = model.training
        model.eval()
        try:
            judged = judged_replies(model, self.chat, self._few(), self.panel, self._settings, _ignore)
        finally:
            model.train(was_training)
        return _share([one.verdict.on_topic for one in judged])

    def of_few(self, items: Sequence[EvaluatedPrompt]) -> float:
        """Return the adherence on the checkpoints' prompts among all."""
        few = set(self._few())
        return _share([item.on_topic for item in items if item.prompt in few])

    def _few(self) -> list[str]:
        return [item.prompt for item in self.data.evaluation[: self.recipe.checkpoint_prompts]]

    def measures(
        self, items: Sequence[EvaluatedPrompt], attacks: Sequence[AttackReply], outcomes: Outcomes
    ) -> dict[str, Any]:
        """Return the figures of all that was asked, and of what became of it."""
        found: dict[str, Any] = {
            "adherence": share(sum(item.on_topic for item in items), len(items)),
            "distinct": distinct([item.reply for item in items]),
            "reply_tokens": sum(item.tokens for item in items) / len(items),
            "replies_ended": sum(item.ended for item in items) / len(items),
            "degenerate": share(sum(item.degenerate is not None for item in items), len(items)),
        }
        found["agreement"], found["kappa"] = agreement(items)
        if attacks:
            found["adherence_under_attack"] = share(sum(item.on_topic for item in attacks), len(attacks))
        rows = [
            (nats, tokens)
            for nats, tokens in zip(outcomes.rise, outcomes.ordinary_tokens, strict=True)
            if nats is not None and tokens is not None
        ]
        if rows:
            found["forgetting"] = rise(*zip(*rows, strict=True))
        return found

    def outcomes(self, items: Sequence[EvaluatedPrompt], attacks: Sequence[AttackReply]) -> Outcomes:
        """Return what became of each prompt."""
        baseline = items if self.recipe.algorithm == BASELINE else self.baseline
        base = {item.prompt: item.ordinary_nll for item in baseline}
        return Outcomes(
            prompts=_digest([item.prompt for item in items]),
            on_topic=[item.on_topic for item in items],
            rise=[_difference(item.ordinary_nll, base.get(item.prompt)) for item in items],
            ordinary_tokens=[item.ordinary_tokens for item in items],
            attacks=_digest([item.prompt for item in attacks]) if attacks else "",
            attacks_on_topic=[item.on_topic for item in attacks],
        )


def _difference(nll: float | None, base: float | None) -> float | None:
    return None if nll is None or base is None else nll - base


def _share(verdicts: Sequence[bool]) -> float:
    return sum(verdicts) / len(verdicts) if verdicts else 0.0


def _digest(prompts: list[str]) -> str:
    return hashlib.sha256(json.dumps(prompts).encode()).hexdigest()


def _ignore(_: int) -> None:
    pass
