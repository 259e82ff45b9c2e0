"""The Kronecker factors of the Fisher information, against their definition and against a distribution known."""

import pytest
import torch
from test_conversion import build

from ftbench_mla import padded, statistics
from ftbench_mla.family import Family
from ftbench_mla.statistics import ROUNDS, LayerStatistics, Moments, collect, fisher_roots, shrunk


def fitted(x: torch.Tensor, g: torch.Tensor, rounds: int = ROUNDS) -> Moments:
    """Weigh tokens as often as that, `[seq, hidden]`; gradients are `[seq, out]`, or `[draws, seq, out]`."""
    g = g.view(-1, *g.shape[-2:])
    moments = Moments.plain(x, g)
    for _ in range(rounds):
        moments = moments.reweigh(x, g, len(x))
    return moments


def cosine(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.double() * wanted.double()).sum() / (found.double().norm() * wanted.double().norm()))


def test_the_first_moments_are_plain_and_the_next_weigh_tokens_as_the_matrix_normals_likelihood_does() -> None:
    torch.manual_seed(0)
    x, g = torch.randn(300, 8), torch.randn(300, 6) * torch.rand(300, 1)
    first, second = fitted(x, g, 0), fitted(x, g, 1)
    assert torch.allclose(first.inputs, x.T @ x, rtol=1e-4, atol=1e-3)
    assert torch.allclose(first.gradients, g.T @ g, rtol=1e-4, atol=1e-3)
    inverse = torch.linalg.inv(shrunk(first.gradients.double() / 300, 1e-3))
    by_hand = sum(float(v @ inverse @ v) / 6 * torch.outer(u, u) for u, v in zip(x.double(), g.double(), strict=True))
    assert isinstance(by_hand, torch.Tensor)
    assert torch.allclose(second.inputs.double(), by_hand, rtol=1e-3, atol=1e-3)
    inverse = torch.linalg.inv(shrunk(first.inputs.double() / 300, 1e-3))
    by_hand = sum(float(u @ inverse @ u) / 8 * torch.outer(v, v) for u, v in zip(x.double(), g.double(), strict=True))
    assert isinstance(by_hand, torch.Tensor)
    assert torch.allclose(second.gradients.double(), by_hand, rtol=1e-3, atol=1e-3)


def test_several_draws_of_a_token_count_as_much_as_one() -> None:
    torch.manual_seed(0)
    x, g = torch.randn(300, 8), torch.randn(300, 6)
    once, twice = fitted(x, g), fitted(x, torch.stack([g, -g]))
    assert torch.allclose(once.inputs, twice.inputs, rtol=1e-4, atol=1e-3)
    assert torch.allclose(once.gradients, twice.gradients, rtol=1e-4, atol=1e-3)


def test_tokens_on_which_nothing_hangs_do_not_count() -> None:
    """A third of the tokens lie in directions of their own, and the loss does not depend on what is made of them."""
    torch.manual_seed(0)
    told, idle = torch.randn(2000, 8) @ torch.randn(8, 8), 30 * torch.randn(1000, 8) @ torch.randn(8, 8)
    x = torch.cat([told, idle])
    g = torch.cat([torch.randn(2000, 6), 1e-3 * torch.randn(1000, 6)])
    wanted = told.T @ told / 2000
    assert cosine(fitted(x, g, 0).inputs, wanted) < 0.9
    assert cosine(fitted(x, g).inputs, wanted) > 0.99


def test_what_is_drawn_has_the_moment_of_labels_and_each_draw_is_more_like_it_than_a_label_is() -> None:
    torch.manual_seed(0)
    logits = torch.tensor([4.0, 1.0, 0.0, -1.0, -2.0])
    chances = logits.softmax(-1)
    wanted = torch.diag(chances) - torch.outer(chances, chances)
    many = chances.expand(20_000, -1)
    found = fisher_roots(many, torch.Generator().manual_seed(0))
    assert found.sum(-1).abs().max() < 1e-6  # a shift of all logits changes nothing
    assert torch.allclose(found.T @ found / len(found), wanted, atol=2e-3)
    labels = torch.nn.functional.one_hot(torch.multinomial(chances, 20_000, replacement=True), 5).float() - chances
    assert torch.allclose(labels.T @ labels / len(labels), wanted, atol=8e-3)
    assert found.square().sum(-1).var() < 0.2 * labels.square().sum(-1).var()


@pytest.fixture
def same_signs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give every token the same signs: what is drawn hangs on which texts stand side by side."""

    def roots(chances: torch.Tensor, _draw: torch.Generator) -> torch.Tensor:
        found = chances.sqrt() * (torch.arange(chances.shape[-1]) % 3 - 1)
        return found - chances * found.sum(-1, keepdim=True)

    monkeypatch.setattr(statistics, "fisher_roots", roots)


def texts_of(*lengths: int) -> list[list[int]]:
    draw = torch.Generator().manual_seed(1)
    return [torch.randint(1, 64, (length,), generator=draw).tolist() for length in lengths]


@pytest.mark.usefixtures("same_signs")
@pytest.mark.parametrize("name", ["gpt2", "gqa"])
def test_more_tokens_than_are_kept_at_a_time_tell_nearly_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(name)
    family = Family.of(model.config)
    calibration = texts_of(*[40] * 40)
    whole = collect(model, family, calibration)
    monkeypatch.setattr(statistics, "BLOCK", 400)
    _alike(whole, collect(model, family, calibration), 0.99)


@pytest.mark.usefixtures("same_signs")
@pytest.mark.parametrize("name", ["gpt2", "gqa"])
def test_few_tokens_that_come_first_do_not_weigh_the_many_after_them(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of eight tokens no moment can be inverted: by what they alone say, all others would count for far too much."""
    model = build(name)
    family = Family.of(model.config)
    calibration = texts_of(8, *[60] * 20)
    whole = collect(model, family, calibration)
    monkeypatch.setattr(statistics, "BLOCK", 60)
    _alike(whole, collect(model, family, calibration), 0.99)


@pytest.mark.usefixtures("same_signs")
@pytest.mark.parametrize("name", ["gpt2", "gqa"])
def test_texts_side_by_side_tell_the_same_as_one_by_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(name)
    family = Family.of(model.config)
    calibration = texts_of(60, 3, 17, 60, 44, 1, 45, 30)
    together = collect(model, family, calibration)
    monkeypatch.setattr(padded, "TOKENS", 1)
    _alike(together, collect(model, family, calibration), 0.99999)


@pytest.mark.parametrize(("gradients", "draws"), [(10**6, 6), (120, 3), (40, 2), (1, 2)])
def test_many_tokens_are_drawn_twice_each_and_few_more_often(
    monkeypatch: pytest.MonkeyPatch, gradients: int, draws: int
) -> None:
    model = build("gqa")
    drawn = []

    def roots(chances: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
        drawn.append(len(chances))
        return fisher_roots(chances, draw)

    monkeypatch.setattr(statistics, "fisher_roots", roots)
    monkeypatch.setattr(statistics, "GRADIENTS", gradients)
    collect(model, Family.of(model.config), texts_of(25, 15))
    assert sum(drawn) == draws * 40


def _alike(ones: list[LayerStatistics], others: list[LayerStatistics], least: float) -> None:
    for one, other in zip(ones, others, strict=True):
        assert torch.allclose(one.inputs, other.inputs, rtol=1e-4, atol=1e-5)
        assert torch.allclose(one.mean, other.mean, rtol=1e-4, atol=1e-5)
        assert torch.allclose(one.distances, other.distances, rtol=1e-4, atol=1e-6)
        assert cosine(one.weighed, other.weighed) > least
        assert cosine(one.fisher, other.fisher) > least
        sizes = [float(layer.weighed.trace() * layer.fisher.trace()) for layer in (one, other)]
        assert 0.6 < sizes[0] / sizes[1] < 1.6  # the ranks of layers hang on it
