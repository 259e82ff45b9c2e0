"""Attention on the CPU in half precision, by tiles of queries of one size, over all sequences that a tile touches.

The matrix products are oneDNN's, which in bf16 are several times as fast as torch's attention, whose own are float32's.
Each new shape costs a kernel there, so that tiles are of one size and keys begin at multiples of another. Scores and
probabilities are rounded to half precision, as in transformers' eager attention; softmax itself is float32's.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor  # which torch itself has imported

from ftbench.models.packing import Block, Packing
from ftbench.models.precision import wide_dtype

QUERIES = 128
"""Of a tile."""
KEYS = 64
"""A tile's first key stands at a multiple of this."""


@dataclass(frozen=True)
class Tile:
    """Queries from `begin` to `end` of a row, and keys from `first` to `end`.

    `bias`, `[queries, keys]`, is 0 where a query attends to a key, and -inf elsewhere.
    """

    begin: int
    end: int
    first: int
    bias: Tensor


class Tiled(torch.autograd.Function):
    """softmax(scale * query keyᵀ) value within each block, and over its prefix."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, tiles: Sequence[Tile], scale: float | None
    ) -> Tensor:
        """Query, key and value are `[1, heads, seq, dim]`; what is returned is `[1, seq, heads, dim]`."""
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        keys, values = key[0].contiguous(), value[0].contiguous()
        found = query.new_empty(1, query.shape[2], query.shape[1], query.shape[3])
        for tile in _some(tiles, query):
            probabilities = _attend(_together(query[0, :, tile.begin : tile.end], keys), keys, tile, scale)
            outputs = torch.bmm(probabilities, values[:, tile.first : tile.end])
            found[0, tile.begin : tile.end] = _apart(outputs, tile).transpose(0, 1)
        ctx.save_for_backward(query, keys, values)
        ctx.asked = tiles, scale
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients by query, key and value. Probabilities are computed again."""
        query, keys, values = ctx.saved_tensors
        tiles, scale = ctx.asked
        by_query = torch.empty_like(query)
        by_key, by_value = (torch.zeros_like(one, dtype=wide_dtype(one.dtype)) for one in (keys, values))
        for tile in _some(tiles, query):
            q = _together(query[0, :, tile.begin : tile.end], keys)
            grad = _together(grads[0][0, tile.begin : tile.end].transpose(0, 1), keys)
            k, v = (one[:, tile.first : tile.end] for one in (keys, values))
            probabilities = _attend(q, keys, tile, scale)
            by_value[:, tile.first : tile.end] += torch.bmm(probabilities.transpose(1, 2), grad)
            errors = torch.bmm(grad, v.transpose(1, 2))
            errors = torch._softmax_backward_data(errors, probabilities, -1, errors.dtype)
            by_query[0, :, tile.begin : tile.end] = _apart(torch.bmm(errors, k).mul_(scale), tile)
            by_key[:, tile.first : tile.end].add_(torch.bmm(errors.transpose(1, 2), q), alpha=scale)
        return by_query, by_key.to(keys.dtype)[None], by_value.to(values.dtype)[None], None, None


def tiles_of(packing: Packing, window: int | None, dtype: torch.dtype) -> Sequence[Tile]:
    """Cut a row into tiles. They are the same in all layers, and are made in the first.

    Args:
        packing: of the row.
        window: keys that a query attends to, itself included; None for all before.
        dtype: of queries and keys.
    """
    known = packing.tiles.get((window, dtype))
    if known is None:
        ends = [block.begin + block.length for block in packing.blocks]
        starts = range(0, ends[-1], QUERIES)
        known = [_tile(packing, begin, min(begin + QUERIES, ends[-1]), window, dtype) for begin in starts]
        packing.tiles[window, dtype] = known
    return known


def _tile(packing: Packing, begin: int, end: int, window: int | None, dtype: torch.dtype) -> Tile:
    touched = [block for block in packing.blocks if block.begin < end and block.begin + block.length > begin]
    first = min(span.start for block in touched for span in _spans(block, max(block.begin, begin), end, window))
    first -= first % KEYS
    device = packing.query_bounds.device
    bias = torch.full((end - begin, end - first), -torch.inf, dtype=dtype, device=device)
    for block in touched:
        low, high = max(block.begin, begin), min(block.begin + block.length, end)
        at = torch.arange(low - block.begin, high - block.begin, device=device)[:, None] + block.prefix_length
        for span in _spans(block, low, high, window):
            offset = block.prefix_length - block.begin if span.start >= block.begin else -block.prefix_begin
            before = at - (torch.arange(span.start, span.stop, device=device) + offset)
            seen = (before >= 0) if window is None else (before >= 0) & (before < window)
            bias[low - begin : high - begin, span.start - first : span.stop - first].masked_fill_(seen, 0)
    return Tile(begin, end, first, bias)


def _spans(block: Block, low: int, high: int, window: int | None) -> Iterator[range]:
    """Yield where the keys stand that a block's tokens from `low` to `high` may attend to: its prefix's, its own."""
    if block.prefix_length:
        yield range(block.prefix_begin, block.prefix_begin + block.prefix_length)
    first = block.begin if window is None else max(block.begin, low + 1 - window)
    yield range(first, min(block.begin + block.length, high))


def _some(tiles: Sequence[Tile], query: Tensor) -> Sequence[Tile]:
    """Return all tiles; without values only the one that takes most memory."""
    return [max(tiles, key=lambda tile: tile.bias.numel())] if isinstance(query, FakeTensor) else tiles


def _together(rows: Tensor, keys: Tensor) -> Tensor:
    """Put heads that share a key behind each other: `[heads, queries, dim]` to `[key heads, queries, dim]`."""
    return rows.reshape(len(keys), -1, rows.shape[-1])


def _apart(rows: Tensor, tile: Tile) -> Tensor:
    """Take them apart again."""
    return rows.view(-1, tile.end - tile.begin, rows.shape[-1])


def _attend(queries: Tensor, keys: Tensor, tile: Tile, scale: float) -> Tensor:
    """Return a tile's probabilities, `[key heads, queries, keys]`."""
    scores = queries.new_empty(len(keys), queries.shape[1], tile.bias.shape[1])
    scores.view(-1, *tile.bias.shape).copy_(tile.bias)
    scores.baddbmm_(queries, keys[:, tile.first : tile.end].transpose(1, 2), alpha=scale)
    return torch.softmax(scores, -1)
