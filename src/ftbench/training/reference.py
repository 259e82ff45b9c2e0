"""Log-probabilities under the reference model, computed once before training."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING

from ftbench.memory.fit import in_halves
from ftbench.memory.parts import Parts
from ftbench.models.digest import RATE
from ftbench.training.batching import MicroBatch, Plan, batch_tokens, cut
from ftbench.training.clock import Clock
from ftbench.training.encoding import EncodedExample
from ftbench.training.logprobs import completion_logprobs, is_padded
from ftbench.training.sharding import Ranks
from ftbench.training.sharing import Pair, Scored, Share, depends_on
from ftbench.training.watch import StepWatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STAGE = "reference"
TIME_SHARE = 0.25
"""What the reference may take of a time limit: about what it takes to score a pair, out of scoring and training."""


def add_reference(
    model: "PreTrainedModel",
    plan: Plan,
    micro_batch_tokens: int,
    *,
    packed: bool,
    watch: StepWatch | None = None,
    ranks: Ranks | None = None,
    share: Share | None = None,
    clock: Clock | None = None,
) -> Plan:
    """Return the plan with the reference log-probabilities of all examples that its steps use.

    The model as it stands is the reference: nothing is copied, and training then moves on from it. With an adapter
    that starts as nothing (LoRA's B is zero), this is the model with the adapter off. Examples beyond the token budget
    are left alone, and so are, under a time limit, those that `TIME_SHARE` of it does not reach: training then goes
    over the ones it has. Several ranks take turns at the micro-batches.

    What another run found is taken where there is a `share`: see `_shared`.
    """
    start = perf_counter()
    drop_nothing(model)
    model.eval()
    batches = cut(used_examples(plan), micro_batch_tokens)
    scoring = _Scoring(model, batches, packed, watch or StepWatch(), ranks or Ranks(), plan.seconds)
    # Under a time limit the clock says how far it comes, and a share of a model has no digest of its own.
    if share is None or plan.seconds is not None or scoring.ranks.count > 1 or len(batches) < 2:
        pairs = scoring.score(0, len(batches))
    else:
        pairs = _shared(scoring, share, clock or Clock())
    examples = [example for batch in batches for example in batch]
    scored = {one: replace(one, reference=pair) for one, pair in zip(examples, pairs, strict=False)}
    return _with_scores(plan, scored, scoring.ranks.agree(perf_counter() - start))


class _Scoring:
    """The micro-batches that a reference scores, and what watches over it."""

    def __init__(
        self,
        model: "PreTrainedModel",
        batches: Sequence[MicroBatch],
        packed: bool,
        watch: StepWatch,
        ranks: Ranks,
        seconds: float | None,
    ) -> None:
        self.model, self.batches, self.packed, self.watch, self.ranks = model, batches, packed, watch, ranks
        self._limit = None if seconds is None else TIME_SHARE * seconds
        turns = [batches[begin : begin + ranks.count] for begin in range(0, len(batches), ranks.count)]
        # Who has none left goes along with the last.
        self._own = [turn[min(ranks.index, len(turn) - 1)] for turn in turns]
        padded = is_padded(model, packed=packed)
        watch.expect(STAGE, [[batch] for batch in self._own], limited=seconds is not None, padded=padded)

    def score(self, begin: int, end: int) -> list[Pair]:
        """Return what is found of the examples in these turns of the ranks, as far as time allows, in their order."""
        import torch

        start = perf_counter()
        found: list[Pair] = []
        with torch.inference_mode():
            for index, batch in enumerate(self._own[begin:end], begin):
                if self._limit is not None and found and self.ranks.agree(perf_counter() - start) > self._limit:
                    break
                with self.watch.step(STAGE, index, self.model) as moment, moment("forward"):
                    # Of several ranks, the others wait in the middle of the micro-batch.
                    alone = self.ranks.count == 1
                    sums = in_halves(batch, self._sums, "scoring the reference") if alone else self._sums(batch)
                turn = self.batches[index * self.ranks.count : (index + 1) * self.ranks.count]
                found += [pair for _, pairs in zip(turn, self.ranks.gather(sums), strict=False) for pair in pairs]
        return found

    def _sums(self, examples: Sequence[EncodedExample]) -> list[Pair]:
        found = completion_logprobs(self.model, examples, packed=self.packed)
        return list(zip(found.chosen.sums.tolist(), found.rejected.sums.tolist(), strict=True))


def _shared(scoring: _Scoring, share: Share, clock: Clock) -> list[Pair]:
    """Return what is found of all examples: of the first micro-batch here, of the others by whichever run came first.

    A run that takes them is no faster and no leaner for it: the seconds that they took, counting included, count on its
    clock, and their highest point in memory is one of its own. What sharing takes, and waiting for another run that is
    at it, does not count. Where weights would take longer to hash than the rest to score, nothing is shared. A
    micro-batch that was halved because memory ran out gives numbers that are equal to rounding.
    """
    start = perf_counter()
    first = scoring.score(0, 1)
    examples = [example for batch in scoring.batches for example in batch]
    rest = (perf_counter() - start) * (batch_tokens(examples) / batch_tokens(scoring.batches[0]) - 1)
    if sum(one.nbytes for one in scoring.model.parameters()) / RATE > rest:
        return first + scoring.score(1, len(scoring.batches))
    watch, since = scoring.watch, clock()

    def find() -> Scored:
        begin = perf_counter()
        pairs = scoring.score(1, len(scoring.batches))
        return Scored(pairs, perf_counter() - begin, watch.peaks.get(STAGE, Parts()))

    without = share.without_effect(scoring.model)
    of = depends_on(scoring.model, scoring.batches, first, without, packed=scoring.packed)
    found = share.once(of, find)
    watch.peaks[STAGE] = max(found.peak, watch.peaks.get(STAGE, Parts()), key=lambda parts: parts.total)
    clock.count(since, found.seconds)
    return first + found.pairs


def used_examples(plan: Plan) -> list[EncodedExample]:
    """Return the examples that a plan's steps use, each once.

    They stand in the plan's order, which is the same for every seed; under a time limit, which may leave some out, in
    the order in which they come up.
    """
    used = dict.fromkeys(example for step in plan.steps for example in step.examples)
    return list(used) if plan.seconds is not None else list(dict.fromkeys(one for one in plan.examples if one in used))


def take_reference(model: "PreTrainedModel", plan: Plan, references: Sequence[Pair | None], seconds: float) -> Plan:
    """Return the plan with log-probabilities that `add_reference` found of its examples before, in so many seconds."""
    drop_nothing(model)
    model.eval()
    pairs = zip(plan.examples, references, strict=True)
    return _with_scores(
        plan, {example: replace(example, reference=pair) for example, pair in pairs if pair is not None}, seconds
    )


def _with_scores(plan: Plan, scored: Mapping[EncodedExample, EncodedExample], seconds: float) -> Plan:
    """Put what was scored in its place; where some that are needed were not, the others alone are left."""
    examples = tuple(scored.get(example, example) for example in plan.examples)
    if any(example not in scored for step in plan.steps for example in step.examples):
        examples = tuple(example for example in examples if example.reference is not None)
    left = None if plan.seconds is None else max(0.0, plan.seconds - seconds)
    return replace(plan, examples=examples, seconds=left)


def drop_nothing(model: "PreTrainedModel") -> None:
    """Switch dropout off for good: in a ratio to the reference it would be noise."""
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):  # Llama and its kin hand it to the kernel
            module.attention_dropout = 0.0  # type: ignore[assignment]
