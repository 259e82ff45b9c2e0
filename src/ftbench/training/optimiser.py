"""AdamW over weights of any precision, with float32 where it counts."""

import math
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass

import torch
from torch import Tensor

from ftbench.memory.standin import kind_of
from ftbench.training.sharding import held, is_shard

PIECE = {"cpu": 2**21, "cuda": 2**26}
"""Weights that are updated together: what their gradients take in float32, 8 MiB on a CPU, is written and read once."""

_STATE = ("step", "exp_avg", "exp_avg_sq")
"""What torch's AdamW keeps of each weight."""


@dataclass(frozen=True)
class Piece:
    """A weight, what of it lies here, or some of it, flat; and what AdamW steps on: that, or a float32 copy."""

    weight: torch.nn.Parameter
    begin: int
    values: Tensor
    master: torch.nn.Parameter

    @property
    def copied(self) -> bool:
        """Whether the master is a copy."""
        return self.master.dtype != self.values.dtype

    @property
    def gradient(self) -> Tensor | None:
        """The gradient of these values, in their shape."""
        if self.weight.grad is None:
            return None
        whole = held(self.weight.grad)
        if whole.shape == self.values.shape:
            return whole
        return whole.reshape(-1)[self.begin : self.begin + len(self.values)]


class MasterAdamW:
    """AdamW (Loshchilov and Hutter 2019) that keeps float32 copies of weights in half precision, and steps on those.

    An update is often smaller than the distance between two neighbouring bf16 numbers, and would be lost (Micikevicius
    et al. 2018, section 3.1). Weights in float32 are their own master copies: there it is torch's fused AdamW.
    """

    def __init__(self, parameters: Sequence[torch.nn.Parameter], learning_rate: float, weight_decay: float) -> None:
        """Take the weights as they stand."""
        size = PIECE.get(kind_of(parameters[0].device), PIECE["cpu"])
        self._parameters = parameters
        self._groups = _grouped([piece for one in parameters for piece in _pieces(one, size)], size)
        self._optimisers = [
            torch.optim.AdamW(
                [piece.master for piece in group], lr=learning_rate, weight_decay=weight_decay, fused=True
            )
            for group in self._groups
        ]

    def set_learning_rate(self, rate: float) -> None:
        """Set it for all weights."""
        for optimiser in self._optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate

    @property
    def tensors(self) -> Iterator[Tensor]:
        """All that is kept from step to step: moments, step counts, master copies."""
        yield from (tensor for _, tensor in self.named_tensors())

    def named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """All that is kept from step to step, by names that `load` knows."""
        for name, piece, optimiser in self._named():
            state = optimiser.state.get(piece.master, {})
            yield from ((f"{name}.{key}", value) for key, value in state.items() if isinstance(value, Tensor))
            if piece.copied:
                yield f"{name}.master", piece.master.detach()

    def load(self, names: Set[str], read: Callable[[str], Tensor]) -> None:
        """Take what `named_tensors` gave of an optimiser of the same weights.

        Args:
            names: of the tensors that there are.
            read: returns one of them.
        """
        for name, piece, optimiser in self._named():
            device = piece.values.device
            if piece.copied:
                piece.master.data.copy_(read(f"{name}.master"))
            known = [key for key in _STATE if f"{name}.{key}" in names]
            if known:
                optimiser.state[piece.master] = {key: read(f"{name}.{key}").to(device) for key in known}

    def _named(self) -> Iterator[tuple[str, Piece, torch.optim.Optimizer]]:
        for number, (group, optimiser) in enumerate(zip(self._groups, self._optimisers, strict=True)):
            yield from ((f"{number}.{index}", piece, optimiser) for index, piece in enumerate(group))

    def gradient_norm(self) -> Tensor:
        """Return the 2-norm of all gradients that lie here together, a float32 scalar."""
        room = self._room()
        gradients = (piece.gradient for group in self._groups for piece in group)
        squares = [_square(one, room) for one in gradients if one is not None]
        return torch.stack(squares).sum().sqrt() if squares else torch.zeros((), device=self._parameters[0].device)

    def step(self, scale: float | Tensor = 1.0) -> None:
        """Move the weights by their gradients.

        Args:
            scale: what the gradients are multiplied by before.
        """
        room = self._room()
        for group, optimiser in zip(self._groups, self._optimisers, strict=True):
            begin = 0
            for piece in group:
                gradient = piece.gradient
                if gradient is not None and piece.copied:
                    end = begin + gradient.numel()
                    gradient, begin = room[begin:end].view_as(gradient).copy_(gradient), end
                piece.master.grad = None if gradient is None else gradient.mul_(scale)
            optimiser.step()
            with torch.no_grad():
                for piece in group:
                    if piece.master is not piece.weight:
                        piece.master.grad = None
                    if piece.copied:
                        piece.values.copy_(piece.master)

    def _room(self) -> Tensor:
        """Return room for a group's gradients in float32: taken once a step, for fresh memory costs more than sums."""
        sizes = [sum(piece.values.numel() for piece in group if piece.copied) for group in self._groups]
        return torch.empty(max(sizes, default=0), device=self._parameters[0].device)

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


def _pieces(weight: torch.nn.Parameter, size: int) -> Iterator[Piece]:
    """Cut a weight into pieces of at most so many values, if it has more."""
    whole, half = held(weight.detach()), weight.dtype.itemsize < 4
    if not whole.numel():  # all of it lies on other ranks
        return
    if whole.numel() <= size:
        wide = whole.float() if half else whole
        yield Piece(weight, 0, whole, torch.nn.Parameter(wide) if half or is_shard(weight) else weight)
        return
    for begin in range(0, whole.numel(), size):
        values = whole.view(-1)[begin : begin + size]
        yield Piece(weight, begin, values, torch.nn.Parameter(values.float() if half else values))


def _grouped(pieces: Sequence[Piece], size: int) -> list[list[Piece]]:
    """Put pieces together, as long as they are so many values at most."""
    groups: list[list[Piece]] = []
    room = 0
    for piece in pieces:
        if piece.values.numel() > room:
            groups.append([])
            room = size
        groups[-1].append(piece)
        room -= piece.values.numel()
    return groups
