"""The Kronecker factors of the Fisher information, against their definition and against a distribution known."""

import torch

from ftbench_mla.statistics import PASSES, _Moments, shrunk


def passes(x: torch.Tensor, g: torch.Tensor, many: int = PASSES) -> _Moments:
    """Go over tokens as `collect` does, in pieces."""
    before, done = None, _Moments(x.shape[1], g.shape[1], x.device)
    for _ in range(many):
        done = _Moments(x.shape[1], g.shape[1], x.device)
        for begin in range(0, len(x), 100):
            done.add(x[begin : begin + 100], g[begin : begin + 100], before)
        before = done.inverted()
    return done


def cosine(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.double() * wanted.double()).sum() / (found.double().norm() * wanted.double().norm()))


def test_the_first_pass_is_plain_and_the_next_weigh_tokens_as_the_matrix_normals_likelihood_does() -> None:
    torch.manual_seed(0)
    x, g = torch.randn(300, 8), torch.randn(300, 6) * torch.rand(300, 1)
    first, second = passes(x, g, 1), passes(x, g, 2)
    assert torch.allclose(first.weighed, x.T @ x, rtol=1e-4, atol=1e-3)
    assert torch.allclose(first.fisher, g.T @ g, rtol=1e-4, atol=1e-3)
    inverse = torch.linalg.inv(shrunk(first.fisher.double() / 300, 1e-3))
    by_hand = sum(float(v @ inverse @ v) / 6 * torch.outer(u, u) for u, v in zip(x.double(), g.double(), strict=True))
    assert isinstance(by_hand, torch.Tensor)
    assert torch.allclose(second.weighed.double(), by_hand, rtol=1e-3, atol=1e-3)
    assert torch.allclose(second.inputs, x.T @ x, rtol=1e-4, atol=1e-3)


def test_tokens_on_which_nothing_hangs_do_not_count() -> None:
    """A third of the tokens lie in directions of their own, and the loss does not depend on what is made of them."""
    torch.manual_seed(0)
    told, idle = torch.randn(2000, 8) @ torch.randn(8, 8), 30 * torch.randn(1000, 8) @ torch.randn(8, 8)
    x = torch.cat([told, idle])
    g = torch.cat([torch.randn(2000, 6), 1e-3 * torch.randn(1000, 6)])
    wanted = told.T @ told / 2000
    assert cosine(passes(x, g, 1).weighed, wanted) < 0.9
    assert cosine(passes(x, g).weighed, wanted) > 0.99
