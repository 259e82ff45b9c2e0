import math
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from ftbench.errors import ContractError
from ftbench.models import precision
from ftbench.models.precision import choose_precision, torch_dtype
from ftbench.training import optimiser
from ftbench.training.optimiser import MasterAdamW, clip

CPU = torch.device("cpu")


def weights(dtype: torch.dtype) -> list[torch.nn.Parameter]:
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(size).to(dtype)) for size in ((5, 3), (7,), (2, 2))]


def fill_gradients(parameters: list[torch.nn.Parameter], seed: int) -> None:
    torch.manual_seed(seed)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape).to(parameter.dtype)


@pytest.mark.parametrize("size", [1, 4, 10, 10**6])
def test_in_float32_it_is_torchs_adamw(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(optimiser.PIECE, "cpu", size)
    ours, theirs = weights(torch.float32), weights(torch.float32)
    one, other = MasterAdamW(ours, 1e-2, 0.1), torch.optim.AdamW(theirs, lr=1e-2, weight_decay=0.1)
    for seed in range(5):
        fill_gradients(ours, seed)
        fill_gradients(theirs, seed)
        norm = one.gradient_norm().item()
        assert norm == pytest.approx(torch.nn.utils.clip_grad_norm_(theirs, 1.0).item())
        one.step(clip(norm, 1.0))
        other.step()
        one.zero_grad()
        assert all(parameter.grad is None for parameter in ours)
    for mine, its in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, its)


def test_steps_too_small_for_bf16_add_up() -> None:
    weight = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    kept = MasterAdamW([weight], 1e-4, 0.0)
    for _ in range(200):  # each a fortieth of the distance to the next number below 1
        weight.grad = torch.ones_like(weight)
        kept.step()
    torch.testing.assert_close(weight.detach().float(), torch.full((4,), 0.98), atol=2**-8, rtol=0)
    assert weight.dtype == torch.bfloat16


@pytest.mark.parametrize("size", [1, 4, 10, 10**6])
def test_in_bf16_it_is_adamw_on_float32_weights_but_for_first_moments(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(optimiser.PIECE, "cpu", size)
    low, high = weights(torch.bfloat16), [torch.nn.Parameter(w.detach().float()) for w in weights(torch.bfloat16)]
    one, other = MasterAdamW(low, 1e-2, 0.1), torch.optim.AdamW(high, lr=1e-2, weight_decay=0.1)
    for seed in range(5):
        fill_gradients(low, seed)
        for parameter, its in zip(high, low, strict=True):
            assert its.grad is not None
            parameter.grad = its.grad.float()
        norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in high if parameter.grad is not None])
        torch.testing.assert_close(one.gradient_norm(), norm)
        one.step()
        other.step()
        for state in other.state.values():
            state["exp_avg"].copy_(state["exp_avg"].bfloat16())
    for its, parameter in zip(low, high, strict=True):
        assert torch.equal(its, parameter.to(torch.bfloat16))


def test_weights_without_a_gradient_stay() -> None:
    one, two = weights(torch.bfloat16)[:2]
    before = two.detach().clone()
    kept = MasterAdamW([one, two], 1e-2, 0.1)
    one.grad = torch.ones_like(one)
    kept.step()
    assert torch.equal(two, before)


@pytest.mark.parametrize(("dtype", "each"), [(torch.bfloat16, 2 + 2 + 4), (torch.float32, 4 + 4)])
def test_everything_that_is_kept_is_told(dtype: torch.dtype, each: int) -> None:
    parameters = weights(dtype)
    kept = MasterAdamW(parameters, 1e-2, 0.0)
    count, steps = sum(parameter.numel() for parameter in parameters), 4 * len(parameters)
    assert sum(tensor.nbytes for tensor in kept.tensors) == each * count + steps
    fill_gradients(parameters, 0)
    kept.step()
    assert sum(tensor.nbytes for tensor in kept.tensors) == each * count + steps


def test_what_was_kept_goes_on_to_the_bit() -> None:
    ones = [*weights(torch.bfloat16), *weights(torch.float32)]
    one = MasterAdamW(ones, 1e-2, 0.1)
    fill_gradients(ones, 0)
    one.step()
    others = [torch.nn.Parameter(weight.detach().clone()) for weight in ones]
    other = MasterAdamW(others, 1e-2, 0.1)
    kept = {name: tensor.clone() for name, tensor in one.named_tensors()}
    other.load(kept.__getitem__)
    for parameters, optimiser_ in ((ones, one), (others, other)):
        fill_gradients(parameters, 1)
        optimiser_.step()
    assert all(torch.equal(mine, its) for mine, its in zip(ones, others, strict=True))


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=False), min_size=1))
def test_a_bf16_weight_and_its_lower_half_are_a_float32_weight(values: list[float]) -> None:
    """Steps of no size, from float32 weights that were reached somehow, change nothing."""
    wide = torch.tensor(values)
    weight = torch.nn.Parameter(wide.bfloat16())
    assume(weight.isfinite().all())
    kept = MasterAdamW([weight], 0.0, 0.0)
    low = dict(kept.named_tensors())["bfloat16.low"]
    bits = wide.view(torch.int32) - weight.detach().float().view(torch.int32)
    low.copy_(bits.clamp(max=2**15 - 1))
    before, known = weight.detach().clone(), low.clone()
    for _ in range(3):
        weight.grad = torch.ones_like(weight)
        kept.step()
    # A number half-way between two bf16 numbers stands for its neighbour, and is then nearer to the one below.
    assert torch.equal(weight, before)
    assert torch.equal(low, known)


def test_half_way_between_two_bf16_numbers_no_weight_leaps() -> None:
    """1 + 2^-8 is as far from 1 as from the next bf16 number; what is kept of it must not be 1 - 2^-8."""
    weight = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    kept = MasterAdamW([weight], 2.0**-8, 0.0)
    low = dict(kept.named_tensors())["bfloat16.low"]
    weight.grad = torch.tensor([-1.0, 1.0, 0.0], dtype=torch.bfloat16)
    kept.step()
    reached = (weight.detach().float().view(torch.int32) + low).view(torch.float32)
    torch.testing.assert_close(reached, torch.tensor([1 + 2.0**-8, 1 - 2.0**-8, 1.0]), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_weights_of_another_precision_are_refused_in_a_line(dtype: torch.dtype) -> None:
    with pytest.raises(ContractError, match="bf16 or float32, not torch"):
        MasterAdamW(weights(dtype), 1e-2, 0.0)


@pytest.mark.parametrize(("norm", "scale"), [(0.5, 1.0), (4.0, 0.25), (math.inf, 1.0), (math.nan, 1.0)])
def test_only_gradients_above_the_norm_are_clipped(norm: float, scale: float) -> None:
    assert clip(norm, 1.0) == pytest.approx(scale, rel=1e-6)


@pytest.mark.parametrize("asked", ["bf16", "float32"])
def test_a_precision_that_is_asked_for_is_taken(asked: str) -> None:
    assert choose_precision(asked, CPU) == asked


def test_where_bf16_is_hopeless_no_large_product_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[int] = []

    def seconds(*_: torch.dtype, rows: int, times: int) -> list[float]:
        timed.append(rows)
        return [1.0, 100.0]

    monkeypatch.setattr(precision, "_has_bf16", precision._has_bf16.__wrapped__)
    monkeypatch.setattr(precision, "_seconds", seconds)
    monkeypatch.setattr(precision, "_PROCESSOR", Path("/nowhere"))
    assert choose_precision("auto", CPU) == "float32"
    assert timed == [16]


@pytest.mark.parametrize(("slow", "expected"), [(torch.float32, "bf16"), (torch.bfloat16, "float32")])
def test_otherwise_it_is_what_the_processor_is_fast_in(
    slow: torch.dtype, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "_has_bf16", precision._has_bf16.__wrapped__)  # else is tried once a process
    monkeypatch.setattr(precision, "_PROCESSOR", Path("/nowhere"))
    monkeypatch.setattr(precision, "_seconds", lambda *dtypes, **_: [2.0 if dtype == slow else 1.0 for dtype in dtypes])
    assert choose_precision("auto", CPU) == expected
    assert torch_dtype(choose_precision("auto", CPU)) != slow


@pytest.mark.parametrize(
    ("text", "tried"),
    [
        ("model name\t: a\nflags\t\t: fpu avx2 avx512f\n", False),
        ("model name\t: a\nflags\t\t: fpu avx512f avx512_bf16 amx_tile\n", True),
        ("Features\t: fp asimd asimdhp sve\n", False),
        ("Features\t: fp asimd sve bf16 i8mm\n", True),
        ("processor\t: 0\nmodel name\t: says nothing of bf16\n", True),
    ],
)
def test_a_processor_without_an_instruction_for_bf16_is_not_asked_how_fast_it_is(
    text: str, tried: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def seconds(*dtypes: torch.dtype, **_: int) -> list[float]:
        asked.append(dtypes)
        return [2.0, 1.0]

    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(precision, "_has_bf16", precision._has_bf16.__wrapped__)
    monkeypatch.setattr(precision, "_PROCESSOR", tmp_path / "cpuinfo")
    monkeypatch.setattr(precision, "_seconds", seconds)
    assert choose_precision("auto", CPU) == ("bf16" if tried else "float32")
    assert bool(asked) == tried
