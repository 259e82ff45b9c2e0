import math
from pathlib import Path
from typing import Any

import pytest
import torch

from ftbench.algorithm import configure
from ftbench.errors import UsageError
from ftbench.plugins import load_plugins
from ftbench.training.logprobs import CompletionLogProbs, SequenceLogProbs, completion_logprobs
from ftbench_orpo import Orpo
from tiny import draw_pairs, load, make_training


@pytest.mark.parametrize("weight", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_the_loss_is_the_papers(seed: int, weight: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    c, r = (-20 * torch.rand(5, generator=draw, dtype=torch.float64) - 0.1 for _ in range(2))
    n, m = (torch.randint(1, 40, (5,), generator=draw) for _ in range(2))
    nll, preference = 0.0, 0.0
    for chosen, rejected, length, other_length in zip(c.tolist(), r.tolist(), n.tolist(), m.tolist(), strict=True):
        p, q = math.exp(chosen / length), math.exp(rejected / other_length)
        ratio = (p / (1 - p)) / (q / (1 - q))
        nll -= chosen / n.sum().item()
        preference -= math.log(ratio / (1 + ratio)) / 5
    loss = configure(Orpo, {"weight": weight}).loss(CompletionLogProbs(SequenceLogProbs(c, n), SequenceLogProbs(r, m)))
    assert loss.item() == pytest.approx(nll + weight * preference, rel=1e-9)


def test_sure_completions_give_a_finite_loss_and_gradient() -> None:
    sums = torch.tensor([-1e-6, -1e-3], requires_grad=True)
    lengths = torch.tensor([40, 1])
    other = SequenceLogProbs(torch.tensor([-500.0, -1e-6]), lengths)
    loss = configure(Orpo, {}).loss(CompletionLogProbs(SequenceLogProbs(sums, lengths), other))
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.isfinite()
    assert sums.grad is not None
    assert sums.grad.isfinite().all()


def test_it_raises_the_chosen_and_their_lead(tiny_llama: Path) -> None:
    algorithm = load_plugins().make("orpo", {"adapter": "none"})
    model = algorithm.adapt(load(tiny_llama), [])
    pairs = draw_pairs(0, 8)

    def measured() -> tuple[float, float]:
        with torch.no_grad():
            found = completion_logprobs(model, pairs)
        return found.chosen.sums.mean().item(), (found.chosen.sums - found.rejected.sums).mean().item()

    before = measured()
    algorithm.train(make_training(model, pairs, tokens=6000, learning_rate=3e-3))
    after = measured()
    assert after[0] > before[0] + 5
    assert after[1] > before[1] + 5


def test_its_adapter_is_lora_and_its_rate_follows_it() -> None:
    registry = load_plugins()
    adapted, full = registry.make("orpo", {}), registry.make("orpo", {"adapter": "none"})
    assert adapted.adapter is not None
    assert adapted.adapter.name == "lora"
    assert full.adapter is None
    assert full.config.learning_rate < adapted.config.learning_rate


@pytest.mark.parametrize("options", [{"weight": -1}, {"wieght": 0.1}, {"beta": 0.1}])
def test_options_that_make_no_sense_are_usage_errors(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="algorithm 'orpo'"):
        configure(Orpo, options)
