"""What stands where in a row of several sequences, as a model's attention is told it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Block:
    """Tokens of a row that belong together: where they begin, and how many they are.

    They continue a prefix where there is one: tokens of another block, from `prefix_begin` on, that they attend to as
    if these stood before them.
    """

    begin: int
    length: int
    prefix_begin: int = 0
    prefix_length: int = 0


@dataclass(frozen=True)
class Packing:
    """A row's blocks, one behind the other, and the same for kernels that take all blocks at once.

    `query_bounds` and `key_bounds`, int32 `[blocks + 1]`, say where each block's queries and keys begin; `keys` picks
    the keys, prefixes included, from the row; None where there is no prefix. `tiles` is what attention has made of it
    in a first layer, for the others.
    """

    blocks: tuple[Block, ...]
    query_bounds: "Tensor"
    key_bounds: "Tensor"
    keys: "Tensor | None"
    tiles: dict[Any, Any] = field(default_factory=dict, compare=False)


def pack(blocks: Sequence[Block], device: "torch.device") -> dict[str, Any]:
    """Return what a model is called with beside the row's ids `[1, tokens]`.

    The mask is empty: it keeps transformers from making one, and no attention but this one can take it, so that a
    model that does not hand the packing on fails in place of mixing sequences.
    """
    import torch

    positions = [block.prefix_length + index for block in blocks for index in range(block.length)]
    keys = [
        index
        for block in blocks
        for index in (
            *range(block.prefix_begin, block.prefix_begin + block.prefix_length),
            *range(block.begin, block.begin + block.length),
        )
    ]
    packing = Packing(
        tuple(blocks),
        _bounds([block.length for block in blocks], device),
        _bounds([block.prefix_length + block.length for block in blocks], device),
        torch.tensor(keys, device=device) if len(keys) > len(positions) else None,
    )
    return {
        "position_ids": torch.tensor(positions, device=device)[None],
        "attention_mask": torch.empty(1, 1, 0, 0, device=device),
        "packing": packing,
    }


def _bounds(lengths: Sequence[int], device: "torch.device") -> "Tensor":
    import torch

    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)


def mask_of(block: Block, window: int | None, device: "torch.device") -> "Tensor | None":
    """Return `[queries, keys]`, true where a block's tokens attend: to themselves and `window - 1` keys before.

    None where these are all keys before, of the block alone.
    """
    import torch

    total = block.prefix_length + block.length
    if not block.prefix_length and (window is None or total <= window):
        return None
    mask = torch.ones(block.length, total, dtype=torch.bool, device=device)
    return mask.tril(block.prefix_length).triu(block.prefix_length + 1 - (window or total))
