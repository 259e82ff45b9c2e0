import math
from pathlib import Path
from typing import Any

import pytest
import torch

from ftbench.algorithm import configure
from ftbench.errors import UsageError
from ftbench.plugins import load_plugins
from ftbench.training.logprobs import CompletionLogProbs, SequenceLogProbs, completion_logprobs
from ftbench.training.trainer import StepReport
from ftbench_simpo import Simpo
from tiny import draw_pairs, lead, load, make_training


@pytest.mark.parametrize(("beta", "gamma_ratio"), [(2.0, 0.5), (10.0, 0.3), (1.0, 0.0)])
@pytest.mark.parametrize("seed", range(3))
def test_the_loss_is_the_papers(seed: int, beta: float, gamma_ratio: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    c, r = (-100 * torch.rand(5, generator=draw, dtype=torch.float64) for _ in range(2))
    n, m = (torch.randint(1, 40, (5,), generator=draw) for _ in range(2))
    expected = 0.0
    for chosen, rejected, length, other_length in zip(c.tolist(), r.tolist(), n.tolist(), m.tolist(), strict=True):
        x = beta / length * chosen - beta / other_length * rejected - beta * gamma_ratio
        expected += (math.log1p(math.exp(-x)) if x > 0 else -x + math.log1p(math.exp(x))) / 5
    options = {"beta": beta, "gamma_ratio": gamma_ratio}
    loss = configure(Simpo, options).loss(CompletionLogProbs(SequenceLogProbs(c, n), SequenceLogProbs(r, m)))
    assert loss.item() == pytest.approx(expected, rel=1e-9)


def test_it_needs_no_reference_and_lets_the_chosen_lead(tiny_llama: Path) -> None:
    algorithm = load_plugins().make("simpo", {"sft_share": 0})
    model = algorithm.adapt(load(tiny_llama), [])
    pairs = draw_pairs(0, 8)

    before = lead(model, pairs)
    reports: list[StepReport] = []
    algorithm.train(make_training(model, pairs, tokens=6000, learning_rate=1e-2, reports=reports))
    assert {report.stage for report in reports} == {"train"}
    assert lead(model, pairs) > before + 0.5
    with torch.no_grad():
        assert completion_logprobs(model, pairs).chosen.reference is None


def test_by_default_it_starts_supervised(tiny_llama: Path) -> None:
    algorithm = load_plugins().make("simpo", {})
    reports: list[StepReport] = []
    model = algorithm.adapt(load(tiny_llama), [])
    algorithm.train(make_training(model, draw_pairs(0, 8), tokens=3000, reports=reports))
    assert [report.stage for report in reports] == sorted(report.stage for report in reports)
    assert {report.stage for report in reports} == {"supervised", "train"}


@pytest.mark.parametrize("options", [{"beta": 0}, {"gamma_ratio": -0.1}, {"gamma": 1}, {"sft_share": 1}])
def test_options_that_make_no_sense_are_usage_errors(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="algorithm 'simpo'"):
        configure(Simpo, options)
