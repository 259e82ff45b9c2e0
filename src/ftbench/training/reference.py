"""Log-probabilities under the reference model, computed once before training."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING

from ftbench.memory.fit import in_halves
from ftbench.training.batching import Plan, cut
from ftbench.training.encoding import EncodedExample
from ftbench.training.logprobs import completion_logprobs, is_padded
from ftbench.training.sharding import Ranks
from ftbench.training.watch import StepWatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

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
) -> Plan:
    """Return the plan with the reference log-probabilities of all examples that its steps use.

    The model as it stands is the reference: nothing is copied, and training then moves on from it. With an adapter
    that starts as nothing (LoRA's B is zero), this is the model with the adapter off. Examples beyond the token budget
    are left alone, and so are, under a time limit, those that `TIME_SHARE` of it does not reach: training then goes
    over the ones it has. Several ranks take turns at the micro-batches.
    """
    import torch

    watch, ranks = watch or StepWatch(), ranks or Ranks()
    start = perf_counter()
    limit = None if plan.seconds is None else TIME_SHARE * plan.seconds
    drop_nothing(model)
    model.eval()
    used = used_examples(plan)
    scored: dict[EncodedExample, EncodedExample] = {}
    batches = cut(used, micro_batch_tokens)
    turns = [batches[begin : begin + ranks.count] for begin in range(0, len(batches), ranks.count)]
    own = [turn[min(ranks.index, len(turn) - 1)] for turn in turns]  # who has none left goes along with the last
    padded = is_padded(model, packed=packed)
    watch.expect("reference", [[batch] for batch in own], limited=limit is not None, padded=padded)

    def score(examples: Sequence[EncodedExample]) -> list[tuple[float, float]]:
        found = completion_logprobs(model, examples, packed=packed)
        return list(zip(found.chosen.sums.tolist(), found.rejected.sums.tolist(), strict=True))

    with torch.inference_mode():
        for index, (turn, batch) in enumerate(zip(turns, own, strict=True)):
            if limit is not None and scored and ranks.agree(perf_counter() - start) > limit:
                break
            with watch.step("reference", index, model) as moment, moment("forward"):
                # Of several ranks, the others wait in the middle of the micro-batch.
                sums = score(batch) if ranks.count > 1 else in_halves(batch, score, "scoring the reference")
            for examples, pairs in zip(turn, ranks.gather(sums), strict=False):
                scored |= {one: replace(one, reference=pair) for one, pair in zip(examples, pairs, strict=True)}
    return _with_scores(plan, scored, ranks.agree(perf_counter() - start))


def used_examples(plan: Plan) -> list[EncodedExample]:
    """Return the examples that a plan's steps use, each once, in the order in which they come up."""
    return list(dict.fromkeys(example for step in plan.steps for example in step.examples))


def take_reference(
    model: "PreTrainedModel", plan: Plan, references: Sequence[tuple[float, float] | None], seconds: float
) -> Plan:
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
