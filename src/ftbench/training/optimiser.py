"""AdamW over weights of any precision, with float32 where it counts."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from ftbench.errors import ContractError
from ftbench.memory.standin import kind_of
from ftbench.training.sharding import held

PIECE = {"cpu": 2**19, "cuda": 2**24}
"""Weights that are updated together: on a CPU what they take in float32, 2 MiB, stays in the cache meanwhile."""

_ROOMS = 3
"""What a group is moved in: float32 of all its values, so many times."""

_KEPT_BYTES = 8
"""What is kept of a weight: two moments, 4 bytes each, or of a bf16 weight 2 and 4, and 2 of its lower half."""

_LARGEST = 2**15 - 1
"""Of int16."""


@dataclass(frozen=True)
class Piece:
    """A weight, what of it lies here, or some of it, flat: `size` values from `begin` on."""

    weight: torch.nn.Parameter
    begin: int
    size: int

    @property
    def values(self) -> Tensor:
        """The values, as they are now: a model may be given others in their place."""
        whole = held(self.weight.detach())
        return whole if whole.numel() == self.size else whole.view(-1)[self.begin : self.begin + self.size]

    @property
    def gradient(self) -> Tensor | None:
        """The gradient of these values, in their shape."""
        if self.weight.grad is None:
            return None
        whole = held(self.weight.grad)
        return whole if whole.numel() == self.size else whole.reshape(-1)[self.begin : self.begin + self.size]


@dataclass(frozen=True)
class Group:
    """Pieces of one precision, and where what is kept of them from step to step lies, flat, one behind the other.

    `kept` is of all groups of the precision: `steps`, float32 `[pieces]`, counts steps; `first` are first moments in
    the weights' precision, `second` second moments in float32. `low`, int16, has the lower halves of float32 weights
    whose upper halves the bf16 weights are, rounded; it is not there where the weights are float32.
    """

    pieces: list[Piece]
    kept: Mapping[str, Tensor]
    numbers: slice
    """Of the pieces, among all of the precision."""
    place: slice
    """Of their values."""

    @property
    def size(self) -> int:
        """Values of all pieces."""
        return int(self.place.stop - self.place.start)

    @property
    def steps(self) -> Tensor:
        """As above, of this group alone."""
        return self.kept["steps"][self.numbers]

    @property
    def first(self) -> Tensor:
        """As above, of this group alone."""
        return self.kept["first"][self.place]

    @property
    def second(self) -> Tensor:
        """As above, of this group alone."""
        return self.kept["second"][self.place]

    @property
    def low(self) -> Tensor | None:
        """As above, of this group alone."""
        low = self.kept.get("low")
        return None if low is None else low[self.place]

    def cut(self, room: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
        """Cut what stands for all values into what belongs to each piece, in the shape of `like`."""
        parts = room[: self.size].split([piece.size for piece in self.pieces])
        return [part.view(one.shape) for part, one in zip(parts, like, strict=True)]


def update_bytes(kept: int, kind: str) -> int:
    """Return what an update takes beside all that is there, at most, bytes.

    Args:
        kept: bytes that the optimiser keeps of all weights.
        kind: of the device.
    """
    return _ROOMS * torch.float32.itemsize * min(_piece(kind), kept // _KEPT_BYTES)


class MasterAdamW:
    """AdamW (Loshchilov and Hutter 2019) on float32 weights; of these, bf16 weights are the rounded upper halves.

    An update is often smaller than the distance between two neighbouring bf16 numbers, and would be lost (Micikevicius
    et al. 2018, section 3.1). The 16 bits that a bf16 weight lacks are kept beside it, so that nothing is kept twice.
    First moments of bf16 weights are bf16, as their gradients are: they follow these at a tenth of the distance a step.
    Second moments move by a thousandth, which bf16 would round away; they are float32.
    """

    def __init__(self, parameters: Sequence[torch.nn.Parameter], learning_rate: float, weight_decay: float) -> None:
        """Take the weights as they stand.

        Raises:
            ContractError: a weight is neither float32 nor bf16.
        """
        strange = next((one for one in parameters if one.dtype not in (torch.bfloat16, torch.float32)), None)
        if strange is not None:
            raise ContractError(f"weights are trained in bf16 or float32, not {strange.dtype}: cast them", "adapt")
        size = _piece(kind_of(parameters[0].device))
        self._parameters = parameters
        self._kept: dict[str, Tensor] = {}
        self._groups: list[Group] = []
        for dtype in (torch.bfloat16, torch.float32):
            pieces = [piece for one in parameters if one.dtype == dtype for piece in _pieces(one, size)]
            self._groups += self._take(str(dtype).removeprefix("torch."), _grouped(pieces, size))
        self._rate, self._decay = learning_rate, weight_decay

    def _take(self, precision: str, groups: list[list[Piece]]) -> Iterator[Group]:
        """Make room for what is kept of all groups of a precision: a few large tensors, not many between others."""
        pieces = [piece for group in groups for piece in group]
        if not pieces:
            return
        zeros = partial(torch.zeros, device=pieces[0].values.device)
        count, dtype = sum(piece.size for piece in pieces), pieces[0].values.dtype
        kept = {"steps": zeros(len(pieces)), "first": zeros(count, dtype=dtype), "second": zeros(count)}
        if dtype.itemsize == 2:
            kept["low"] = zeros(count, dtype=torch.int16)
        self._kept |= {f"{precision}.{name}": tensor for name, tensor in kept.items()}
        piece, value = 0, 0
        for group in groups:
            end = value + sum(one.size for one in group)
            yield Group(group, kept, slice(piece, piece + len(group)), slice(value, end))
            piece, value = piece + len(group), end

    def set_learning_rate(self, rate: float) -> None:
        """Set it for all weights."""
        self._rate = rate

    @property
    def tensors(self) -> Iterator[Tensor]:
        """All that is kept from step to step: moments, step counts, lower halves."""
        yield from self._kept.values()

    def named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """All that is kept from step to step, by names that `load` knows."""
        yield from self._kept.items()

    def load(self, read: Callable[[str], Tensor]) -> None:
        """Take what `named_tensors` gave of an optimiser of the same weights, which are as they were then.

        Args:
            read: returns one of the tensors.
        """
        for name, tensor in self._kept.items():
            tensor.copy_(read(name))

    def gradient_norm(self) -> Tensor:
        """Return the 2-norm of all gradients that lie here together, a float32 scalar."""
        (room,) = self._rooms(1)
        gradients = (piece.gradient for group in self._groups for piece in group.pieces)
        squares = [_square(one, room) for one in gradients if one is not None]
        return torch.stack(squares).sum().sqrt() if squares else torch.zeros((), device=self._parameters[0].device)

    @torch.no_grad()
    def step(self, scale: float = 1.0) -> None:
        """Move the weights by their gradients.

        Args:
            scale: what the gradients are multiplied by before.
        """
        rooms = self._rooms(_ROOMS)
        for group in self._groups:
            self._move(group, scale, *(room[: group.size] for room in rooms))

    def _move(self, group: Group, scale: float, weights: Tensor, gradients: Tensor, first: Tensor) -> None:
        """Move a group's weights, with room for as many in float32, three times."""
        moved = [(index, piece.gradient) for index, piece in enumerate(group.pieces)]
        given = {index: gradient for index, gradient in moved if gradient is not None}
        if not given:
            return
        whole = [piece.values for piece in group.pieces]
        torch._foreach_copy_(group.cut(weights, whole), whole)
        low = group.low
        if low is not None:
            weights.view(torch.int32).add_(gradients.view(torch.int32).copy_(low))
        first.copy_(group.first)
        of_each = [group.cut(one, whole) for one in (weights, gradients, first, group.second)]
        moving, errors, firsts, seconds = ([each[index] for index in given] for each in of_each)
        torch._foreach_copy_(errors, list(given.values()))
        if scale != 1.0:
            gradients.mul_(scale)
        steps = group.steps
        adamw(
            moving,
            errors,
            firsts,
            seconds,
            [],
            [steps[index] for index in given],
            fused=True,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=self._rate,
            weight_decay=self._decay,
            eps=1e-8,
            maximize=False,
        )
        group.first.copy_(first)
        torch._foreach_copy_(whole, group.cut(weights, whole))
        if low is not None:
            torch._foreach_copy_(group.cut(gradients, whole), whole)
            # The difference of two neighbours' bits; half-way between two bf16 numbers it may be one too many.
            difference = weights.view(torch.int32).sub_(gradients.view(torch.int32))
            low.copy_(difference.clamp_(max=_LARGEST))

    def _rooms(self, count: int) -> list[Tensor]:
        """Return room for a group in float32: taken once a step, for fresh memory costs more than sums."""
        size = max((group.size for group in self._groups), default=0)
        return [torch.empty(size, device=self._parameters[0].device) for _ in range(count)]

    def zero_grad(self) -> None:
        """Let the gradients go."""
        for parameter in self._parameters:
            parameter.grad = None


def clip(norm: float, highest: float) -> float:
    """Return what gradients of a norm are scaled by so that it is `highest` at most (Pascanu et al. 2013)."""
    return min(1.0, highest / (norm + 1e-6)) if math.isfinite(norm) else 1.0


def _square(gradient: Tensor, room: Tensor) -> Tensor:
    """Return the square of the 2-norm, in float32."""
    if gradient.device.type != "cpu":
        norm: Tensor = torch.linalg.vector_norm(gradient, dtype=torch.float32)
        return norm.square()
    # A copy in the cache and its product with itself take a third of the time of torch's norm.
    flat = gradient.reshape(-1)
    wide = flat if flat.dtype.itemsize > 2 else room[: len(flat)].copy_(flat)
    return torch.dot(wide, wide)


def _piece(kind: str) -> int:
    """Return how many weights are updated together on a kind of device."""
    return PIECE.get(kind, PIECE["cpu"])


def _pieces(weight: torch.nn.Parameter, size: int) -> Iterator[Piece]:
    """Cut a weight into pieces of at most so many values, if it has more."""
    count = held(weight.detach()).numel()  # none where all of it lies on other ranks
    for begin in range(0, count, size):
        yield Piece(weight, begin, min(size, count - begin))


def _grouped(pieces: Sequence[Piece], size: int) -> list[list[Piece]]:
    """Put pieces together, as long as they are so many values at most."""
    groups: list[list[Piece]] = []
    room = 0
    for piece in pieces:
        if piece.size > room:
            groups.append([])
            room = size
        groups[-1].append(piece)
        room -= piece.size
    return groups
