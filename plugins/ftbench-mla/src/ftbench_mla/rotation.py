"""Which part of the keys stays rotated, when the heads' keys of a frequency may be mixed before.

A rotary pair is a complex number: of frequency l, the component of key head g is kappa_g, and position p multiplies it
by exp(i theta_l p). A complex-linear map over the heads of one frequency commutes with that.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ftbench_mla.family import Projections
from ftbench_mla.statistics import LayerStatistics

Mix = Literal["none", "pca", "query"]
Choice = Literal["norm", "first", "sensitivity"]


@dataclass(frozen=True)
class Rotation:
    """Components of keys, chosen for staying rotated or not, in float64.

    `keys` takes a layer's keys `[G h]` to all components, `[G h, G h]`, and `queries` a group's query `[h]` to what
    these components are multiplied with, `[G, G h, h]`. `rotated` and `still` number the components of either kind; the
    first half of the rotated are real parts, the second the imaginary parts of the same, and `frequencies` are theirs.
    """

    keys: Tensor
    queries: Tensor
    rotated: Tensor
    still: Tensor
    frequencies: Tensor


def choose_rotation(
    base: Projections,
    statistics: LayerStatistics,
    angles: Tensor,
    wanted: int,
    mix: Mix,
    choice: Choice,
) -> Rotation:
    """Mix the heads and choose what stays rotated.

    Args:
        base: the layer's weights.
        statistics: the layer's.
        angles: theta, radians a token, `[h / 2]`.
        wanted: dimensions that stay rotated, an even number.
        mix: of the heads of a frequency: none; by their principal components; or by those of what the queries see.
        choice: of the components: those of largest norm, the same number of each head; the first components of as many
            frequencies as there is room for; or those whose scores change most if they are not rotated.
    """
    half, groups = base.size // 2, len(base.key) // base.size
    covariance = _complex(_second_moment(base.key, base.key_bias, statistics), groups, half)  # [half, G, G]
    seen = _query_energy(base, statistics, groups, half)  # [half, G]
    root = torch.diag_embed(seen.sqrt()).to(covariance.dtype)
    if mix == "none":
        taken = torch.eye(groups, dtype=covariance.dtype, device=root.device).expand(half, -1, -1)
        back = taken
        weight = covariance.diagonal(dim1=-2, dim2=-1).real * seen
    else:
        scale = (
            root if mix == "query" else torch.eye(groups, dtype=covariance.dtype, device=root.device).expand_as(root)
        )
        values, vectors = torch.linalg.eigh(scale @ covariance @ scale)
        values, vectors = values.flip(-1), vectors.flip(-1)  # the largest first
        taken = vectors.mH @ scale
        back = vectors.mH @ torch.linalg.inv(scale)
        weight = values
    lost = _change_without_rotation(statistics.distances, angles)  # [half]
    ranks = torch.arange(groups, device=root.device).expand(half, -1)
    importance = {
        "norm": _by_turns(weight),
        "first": -ranks.double() * half - torch.arange(half, device=root.device)[:, None],
        "sensitivity": weight * lost[:, None],
    }[choice]
    order = importance.flatten().argsort(descending=True, stable=True)  # numbers l G + j
    picked, rest = order[: wanted // 2].sort().values, order[wanted // 2 :].sort().values
    imaginary = half * groups
    return Rotation(
        _as_real(taken),
        _as_real(back).view(-1, groups, base.size).transpose(0, 1),
        torch.cat([picked, picked + imaginary]),
        torch.cat([rest, rest + imaginary]),
        picked // groups,
    )


def _by_turns(weight: Tensor) -> Tensor:
    """Return an importance in whose order every head's strongest frequency comes first, then every head's second."""
    turn = weight.argsort(0, descending=True).argsort(0).double()
    return weight / (weight.max() + 1e-30) - 2 * turn


def _second_moment(weight: Tensor, bias: Tensor | None, statistics: LayerStatistics) -> Tensor:
    """Return E[y yᵀ] for y = W x + b."""
    wide = weight.double()
    found = wide @ statistics.inputs @ wide.T
    if bias is not None:
        mean, shift = wide @ statistics.mean, bias.double()
        found = found + torch.outer(mean, shift) + torch.outer(shift, mean) + torch.outer(shift, shift)
    return found


def _complex(moment: Tensor, groups: int, half: int) -> Tensor:
    """Return E[kappa kappaᴴ] of every frequency, `[half, G, G]`, from E[k kᵀ], `[G h, G h]`."""
    parts = moment.view(groups, 2, half, groups, 2, half)
    same = torch.arange(half, device=moment.device)
    real = parts[:, 0, :, :, 0, :] + parts[:, 1, :, :, 1, :]  # [G, half, G, half]
    imaginary = parts[:, 1, :, :, 0, :] - parts[:, 0, :, :, 1, :]
    return torch.complex(real[:, same, :, same], imaginary[:, same, :, same])  # [half, G, G]


def _query_energy(base: Projections, statistics: LayerStatistics, groups: int, half: int) -> Tensor:
    """Return the sum of E|q|² over the heads of a group, by frequency, `[half, G]`; never quite zero."""
    power = _second_moment(base.query, base.query_bias, statistics).diagonal()
    found = power.view(groups, -1, 2, half).sum((1, 2)).T
    return found + 1e-9 * found.mean() + 1e-30


def _change_without_rotation(distances: Tensor, angles: Tensor) -> Tensor:
    """Return E|1 - exp(-i theta d)|² over the distances d that attention goes, by frequency, `[half]`."""
    places = torch.arange(len(distances), dtype=torch.float64, device=distances.device)
    return 2 * (1 - torch.cos(angles.double()[:, None] * places) @ distances)


def _as_real(maps: Tensor) -> Tensor:
    """Return the real matrix `[G h, G h]` of complex maps over the heads of each frequency, `[half, G, G]`.

    Its rows are the real parts of component j of frequency l, at l G + j, and then all imaginary parts; its columns are
    the dimensions of all heads as they stand in a layer.
    """
    half, groups, _ = maps.shape
    found = torch.zeros(2, half, groups, groups, 2, half, dtype=torch.float64, device=maps.device)
    for frequency in range(half):
        real, imaginary = maps[frequency].real, maps[frequency].imag
        found[0, frequency, :, :, 0, frequency] = real
        found[0, frequency, :, :, 1, frequency] = -imaginary
        found[1, frequency, :, :, 0, frequency] = imaginary
        found[1, frequency, :, :, 1, frequency] = real
    return found.view(2 * half * groups, groups * 2 * half)
