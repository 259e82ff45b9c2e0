"""Replies token by token, for rows that come and go: what a row is told does not hang on who stands beside it.

A matrix product of another number of rows may round otherwise, and half of a model's greedy replies in bf16 then read
differently alone and in a batch. So that they do not: a prompt is read by itself, every later pass has the same number
of rows (`ROWS`), some of them idle, and keys and values stand from the left in rooms whose lengths are multiples of
`ROOM`, so that a row's attention is the same sum whatever the others' lengths, and whichever thread computes it
(`QUERIES`). Evaluation and serving decode so, and hence say the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROWS = 32
"""Rows of a pass. In bf16, where a processor is made for it, so many take a sixth longer than one."""

ROOM = 64
"""Tokens by which a row's room grows."""

QUERIES = 8
"""What the queries of a key's heads are filled up to a multiple of.

A processor's attention gives each thread a part of one scratch memory. With fewer queries the parts do not begin at
multiples of 64 bytes, and a product of matrices that do not is summed in another order: MKL promises equal sums for
equal alignment alone.
"""


@dataclass(eq=False)
class Row:
    """A sequence that is being written: its tokens so far, and where its keys and values stand."""

    length: int
    shelf: "Shelf" = field(repr=False)
    place: int = 0


class Shelf:
    """Keys and values of the rows that have the same room, for every layer `[places, heads, room, dim]`, without gaps.

    There may be more places than rows, so that a row that joins seldom moves the others.
    """

    def __init__(self, room: int) -> None:
        self.room = room
        self.places = 0
        self.rows: list[Row] = []
        self.layers: list[list[Tensor]] = []

    def resize(self, places: int) -> None:
        """Have so many places. Should that fail half way, all rows still stand where they stood."""
        self.places = min(self.places, places)
        for layer in self.layers:  # one tensor at a time: not all are held twice
            for index, one in enumerate(layer):
                # zeros: what is masked is still multiplied by 0, and nobody knows what stands in fresh memory
                layer[index] = one.new_zeros(places, *one.shape[1:])
                layer[index][: len(self.rows)] = one[: len(self.rows)]
        self.places = places

    def put(self, row: Row, layers: list[list[Tensor]]) -> None:
        """Take a row in, for which there is a place; `layers` holds its keys and values, `[heads, tokens, dim]`."""
        if not self.layers:
            self.layers = [
                [one.new_zeros(self.places, len(one), self.room, one.shape[-1]) for one in layer] for layer in layers
            ]
        row.shelf, row.place = self, len(self.rows)
        self.rows.append(row)
        for layer, given in zip(self.layers, layers, strict=True):
            for whole, one in zip(layer, given, strict=True):
                whole[row.place, :, : one.shape[1]] = one

    def of(self, row: Row) -> list[list[Tensor]]:
        """Return a row's keys and values, `[heads, tokens, dim]`."""
        return [[one[row.place, :, : row.length] for one in layer] for layer in self.layers]

    def remove(self, row: Row) -> None:
        """Let a row go; the last one moves into its place. Of places that few rows need, half are given up."""
        last = self.rows.pop()
        if last is not row:
            for layer in self.layers:
                for one in layer:
                    one[row.place] = one[last.place]
            last.place = row.place
            self.rows[row.place] = last
        if not self.rows:
            self.layers, self.places = [], 0
        elif len(self.rows) <= self.places // 4:
            self.resize(self.places // 2)


@dataclass
class Reading:
    """A pass over a prompt by itself: every layer's keys and values are kept."""

    layers: list[list[Tensor]] = field(default_factory=list)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None, window: int | None) -> Tensor:
        """Query, key and value are `[1, heads, seq, dim]`; what is returned is `[1, seq, heads, dim]`."""
        self.layers.append([key[0], value[0]])
        length = query.shape[2]
        mask = None
        if window is not None and window < length:
            mask = torch.ones(length, length, dtype=torch.bool, device=query.device).tril().triu(1 - window)
        found = scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            is_causal=mask is None,
            scale=scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        return found.transpose(1, 2)


@dataclass(frozen=True)
class Span:
    """Rows of one shelf, one behind the other, in a pass from row `begin` on; the last token of each is at `ends`."""

    shelf: Shelf
    first: int
    begin: int
    ends: Tensor

    @property
    def count(self) -> int:
        """How many rows."""
        return len(self.ends)


@dataclass
class Writing:
    """A pass over the newest token of several rows."""

    spans: list[Span]
    layer: int = 0
    masks: dict[tuple[int, int | None], Tensor] = field(default_factory=dict)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None, window: int | None) -> Tensor:
        """Query, key and value are `[1, heads, rows, dim]`; what is returned is `[1, rows, heads, dim]`."""
        found = query.new_zeros(1, query.shape[2], query.shape[1], value.shape[-1])
        groups = key.shape[1]
        for index, span in enumerate(self.spans):
            count, within = span.count, slice(span.begin, span.begin + span.count)
            keys, values = (one[span.first : span.first + count] for one in span.shelf.layers[self.layer])
            each = torch.arange(count, device=query.device)
            keys[each, :, span.ends] = key[0, :, within].transpose(0, 1)
            values[each, :, span.ends] = value[0, :, within].transpose(0, 1)
            # the heads that share a key stand as its queries: nothing is repeated
            asked = query[0, :, within].transpose(0, 1).reshape(count, groups, -1, query.shape[-1])
            sharing = asked.shape[2]
            asked = torch.nn.functional.pad(asked, (0, 0, 0, -sharing % QUERIES))
            mask = self._mask(index, window).expand(count, 1, asked.shape[2], span.shelf.room)
            answer = scaled_dot_product_attention(asked, keys, values, attn_mask=mask, scale=scale)
            found[0, within] = answer[:, :, :sharing].reshape(count, query.shape[1], -1)
        self.layer += 1
        return found

    def _mask(self, index: int, window: int | None) -> Tensor:
        """Return `[rows, 1, 1, room]`, true where a span's rows attend."""
        if (index, window) not in self.masks:
            span = self.spans[index]
            places = torch.arange(span.shelf.room, device=span.ends.device)
            ends = span.ends[:, None, None, None]
            seen = places <= ends
            self.masks[index, window] = seen if window is None else seen & (places > ends - window)
        return self.masks[index, window]


class Decoder:
    """Writes rows with a model that has our attention (`is_packed`).

    Args:
        model: what writes.
        limit: tokens that memory may be held for, as far as the rows themselves need no more; None sets none.
    """

    def __init__(self, model: "PreTrainedModel", limit: int | None = None) -> None:
        self.model = model
        self.limit = limit
        self._shelves: dict[int, Shelf] = {}
        # In float32 on a processor, so many rows cost four times one; what they round is too little to be seen.
        self._width = ROWS if model.get_input_embeddings().weight.dtype == torch.bfloat16 else 1

    @property
    def held(self) -> int:
        """Tokens that there is memory for now, on all shelves; may be asked in any thread."""
        return sum(shelf.places * shelf.room for shelf in list(self._shelves.values()))

    @torch.inference_mode()
    def read(self, ids: list[int]) -> tuple[Row, Tensor]:
        """Begin a row with a prompt; return it and the logits of the token that follows, float32, `[vocabulary]`."""
        reading = Reading()
        logits = self._run(ids, list(range(len(ids))), reading, last=True)
        row = Row(len(ids), Shelf(0))
        self._shelf(row.length + 1).put(row, reading.layers)
        return row, logits[-1]

    @torch.inference_mode()
    def write(self, tokens: Mapping[Row, int]) -> dict[Row, Tensor]:
        """Add a token to each of these rows; return the logits of the token after it, float32, `[vocabulary]`.

        Should that fail, the rows are as they were, and may be written again.
        """
        for row in tokens:
            if row.length == row.shelf.room:
                self._move(row)
        self._tidy()
        order = [row for _, shelf in sorted(self._shelves.items()) for row in shelf.rows if row in tokens]
        found: dict[Row, Tensor] = {}
        for begin in range(0, len(order), ROWS):
            rows = order[begin : begin + ROWS]
            idle = max(0, self._width - len(rows))
            ids = [tokens[row] for row in rows] + [0] * idle
            positions = [row.length for row in rows] + [0] * idle
            logits = self._run(ids, positions, Writing(self._spans(rows)), last=False)
            found |= {row: logits[index] for index, row in enumerate(rows)}
        for row in order:
            row.length += 1
        return found

    @torch.inference_mode()
    def drop(self, row: Row) -> None:
        """End a row."""
        row.shelf.remove(row)
        self._tidy()

    def _move(self, row: Row) -> None:
        """Give a row more room."""
        before, copy = row.shelf, Row(row.length, row.shelf, row.place)
        self._shelf(row.length + 1).put(row, before.of(row))
        before.rows[copy.place] = copy
        before.remove(copy)
        self._spare(0)

    def _shelf(self, length: int) -> Shelf:
        """Return the shelf for a row of this length, with a place for it."""
        room = -(-length // ROOM) * ROOM
        shelf = self._shelves.setdefault(room, Shelf(room))
        if shelf.places == len(shelf.rows):
            more = max(1, len(shelf.rows))
            if self.limit is not None:
                self._spare(more * room)
                more = max(1, min(more, (self.limit - self.held) // room))
            shelf.resize(shelf.places + more)
        return shelf

    def _spare(self, tokens: int) -> None:
        """Give all places up that no row has, where so many tokens more would pass the limit."""
        if self.limit is not None and self.held + tokens > self.limit:
            for shelf in self._shelves.values():
                if shelf.places > len(shelf.rows):
                    shelf.resize(len(shelf.rows))

    def _tidy(self) -> None:
        self._shelves = {room: shelf for room, shelf in self._shelves.items() if shelf.rows}

    def _spans(self, rows: list[Row]) -> list[Span]:
        """Cut the rows of a pass wherever the next one does not stand behind the one before."""
        starts = [
            begin
            for begin, row in enumerate(rows)
            if not begin or (rows[begin - 1].shelf, rows[begin - 1].place + 1) != (row.shelf, row.place)
        ]
        spans = []
        for begin, end in zip(starts, [*starts[1:], len(rows)], strict=True):
            ends = torch.tensor([row.length for row in rows[begin:end]], device=self.model.device)
            spans.append(Span(rows[begin].shelf, rows[begin].place, begin, ends))
        return spans

    def _run(self, ids: list[int], positions: list[int], rows: "Reading | Writing", *, last: bool) -> Tensor:
        device = self.model.device
        given: dict[str, Any] = {"logits_to_keep": 1} if last else {}
        logits: Tensor = self.model(
            input_ids=torch.tensor([ids], device=device),
            position_ids=torch.tensor([positions], device=device),
            # as in packed rows: transformers makes no mask, and no attention but ours can take this one
            attention_mask=torch.empty(1, 1, 0, 0, device=device),
            use_cache=False,
            rows=rows,
            **given,
        ).logits
        return logits[0].float()
