import math
from pathlib import Path
from typing import Any

import pytest
import torch

from ftbench.algorithm import configure
from ftbench.errors import UsageError
from ftbench.plugins import load_plugins
from ftbench.training.logprobs import CompletionLogProbs, SequenceLogProbs
from ftbench.training.trainer import StepReport
from ftbench_simper import Simper
from tiny import draw_pairs, lead, load, make_training


@pytest.mark.parametrize("seed", range(3))
def test_the_loss_is_the_papers(seed: int) -> None:
    """The paper's exp(mean log p) is one over the perplexity: the geometric mean of the tokens' probabilities."""
    draw = torch.Generator().manual_seed(seed)
    tokens = {
        side: [0.05 + 0.9 * torch.rand(n, generator=draw, dtype=torch.float64) for n in (1, 3, 40)]
        for side in ("chosen", "rejected")
    }
    perplexity = {
        side: [math.prod(1 / p for p in each.tolist()) ** (1 / len(each)) for each in rows]
        for side, rows in tokens.items()
    }
    pairs = zip(perplexity["chosen"], perplexity["rejected"], strict=True)
    expected = sum(1 / rejected - 1 / chosen for chosen, rejected in pairs) / 3
    chosen, rejected = (
        SequenceLogProbs(torch.stack([each.log().sum() for each in rows]), torch.tensor([1, 3, 40]))
        for rows in tokens.values()
    )
    assert configure(Simper, {}).loss(CompletionLogProbs(chosen, rejected)).item() == pytest.approx(expected, rel=1e-9)


def test_the_gradient_is_the_papers() -> None:
    """Each side's gradient weight is its own p / |y|, p being the geometric mean: no side is weighed by the other."""
    lengths = torch.tensor([2, 5])
    sums = [torch.tensor(values, dtype=torch.float64, requires_grad=True) for values in ([-1.0, -9.0], [-4.0, -2.5])]
    chosen, rejected = (SequenceLogProbs(each, lengths) for each in sums)
    loss = configure(Simper, {}).loss(CompletionLogProbs(chosen, rejected))
    loss.backward()  # type: ignore[no-untyped-call]
    for each, sign in zip(sums, (-1, 1), strict=True):
        expected = [sign * math.exp(s / n) / n / 2 for s, n in zip(each.tolist(), lengths.tolist(), strict=True)]
        assert each.grad is not None
        assert each.grad.tolist() == pytest.approx(expected, rel=1e-12)


def test_it_starts_supervised_and_lets_the_chosen_lead_without_a_reference(tiny_llama: Path) -> None:
    algorithm = load_plugins().make("simper", {})
    model = algorithm.adapt(load(tiny_llama), [])
    pairs = draw_pairs(0, 8)

    before = lead(model, pairs)
    reports: list[StepReport] = []
    algorithm.train(make_training(model, pairs, tokens=6000, learning_rate=1e-2, reports=reports))
    assert list(dict.fromkeys(report.stage for report in reports)) == ["supervised", "train"]
    assert lead(model, pairs) > before + 0.3


@pytest.mark.parametrize("options", [{"beta": 2.0}, {"sft_share": 1}, {"sft_learning_rate": 0}])
def test_options_that_make_no_sense_are_usage_errors(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="algorithm 'simper'"):
        configure(Simper, options)
