"""AdamW over weights of any precision, with float32 where it counts."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

GROUP = 2**24
"""Weights that are updated together: what their gradients take in float32 is 64 MiB, and is there for a moment only."""


class MasterAdamW:
    """AdamW (Loshchilov and Hutter 2019) that keeps float32 copies of weights in half precision, and steps on those.

    An update is often smaller than the distance between two neighbouring bf16 numbers, and would be lost (Micikevicius
    et al. 2018, section 3.1). Weights in float32 are their own master copies: there it is torch's fused AdamW.
    """

    def __init__(self, parameters: Sequence[torch.nn.Parameter], learning_rate: float, weight_decay: float) -> None:
        """Take the weights as they stand."""
        self._pairs = [[(weight, _master(weight)) for weight in group] for group in _grouped(parameters)]
        self._groups = [
            torch.optim.AdamW([master for _, master in pairs], lr=learning_rate, weight_decay=weight_decay, fused=True)
            for pairs in self._pairs
        ]

    def set_learning_rate(self, rate: float) -> None:
        """Set it for all weights."""
        for optimiser in self._groups:
            for group in optimiser.param_groups:
                group["lr"] = rate

    @property
    def tensors(self) -> Iterator[Tensor]:
        """All that is kept from step to step: moments, step counts, master copies."""
        for optimiser in self._groups:
            yield from state_tensors(optimiser)
        for pairs in self._pairs:
            yield from (master for weight, master in pairs if master is not weight)

    def gradient_norm(self) -> Tensor:
        """Return the 2-norm of all gradients together, a float32 scalar."""
        gradients = [weight.grad for pairs in self._pairs for weight, _ in pairs if weight.grad is not None]
        if not gradients:
            return torch.zeros(())
        norms = torch.stack([torch.linalg.vector_norm(one, dtype=torch.float32) for one in gradients])
        total: Tensor = torch.linalg.vector_norm(norms)
        return total

    def step(self, scale: float | Tensor = 1.0) -> None:
        """Move the weights by their gradients.

        Args:
            scale: what the gradients are multiplied by before.
        """
        room = self._room()
        for pairs, optimiser in zip(self._pairs, self._groups, strict=True):
            begin = 0
            for weight, master in pairs:
                if weight.grad is None:
                    master.grad = None
                elif master is weight:
                    weight.grad.mul_(scale)
                else:
                    wide = room[begin : begin + weight.numel()].view_as(weight)
                    master.grad = wide.copy_(weight.grad).mul_(scale)
                    begin += weight.numel()
            optimiser.step()
            with torch.no_grad():
                for weight, master in pairs:
                    if master is not weight:
                        master.grad = None
                        weight.copy_(master)

    def _room(self) -> Tensor:
        """Return room for a group's gradients in float32: taken once a step, for fresh memory costs more than sums."""
        sizes = [sum(weight.numel() for weight, master in pairs if master is not weight) for pairs in self._pairs]
        return torch.empty(max(sizes), device=self._pairs[0][0][0].device)

    def zero_grad(self) -> None:
        """Let the gradients go."""
        for pairs in self._pairs:
            for weight, _ in pairs:
                weight.grad = None


def state_tensors(optimiser: torch.optim.Optimizer) -> Iterator[Tensor]:
    """Return what an optimiser of torch keeps from step to step."""
    for state in optimiser.state.values():
        yield from (value for value in state.values() if isinstance(value, Tensor))


def clip(norm: float, highest: float) -> float:
    """Return what gradients of a norm are scaled by so that it is `highest` at most (Pascanu et al. 2013)."""
    return min(1.0, highest / (norm + 1e-6)) if math.isfinite(norm) else 1.0


def _master(weight: torch.nn.Parameter) -> torch.nn.Parameter:
    return torch.nn.Parameter(weight.detach().float()) if weight.dtype.itemsize < 4 else weight


def _grouped(parameters: Sequence[torch.nn.Parameter]) -> list[list[torch.nn.Parameter]]:
    """Cut into groups of about `GROUP` values."""
    groups: list[list[torch.nn.Parameter]] = []
    size = GROUP
    for parameter in parameters:
        if size >= GROUP:
            groups.append([])
            size = 0
        groups[-1].append(parameter)
        size += parameter.numel()
    return groups
