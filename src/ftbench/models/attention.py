"""Attention over packed rows: sequences stand one behind the other, and each attends within itself alone.

transformers' own way is a mask with a cell for every two tokens of the row. Here there is no mask: each sequence is
attended by itself, so that the work is the sum of the squares of the lengths, not the square of their sum. Completions
of one prompt may share it: then it stands in the row once.
"""

import logging
from typing import TYPE_CHECKING, Any

from ftbench.memory.fit import is_out_of_memory
from ftbench.models.packing import Block, Packing, mask_of, pack

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

    from ftbench.models.decoding import Reading, Writing

_LOG = logging.getLogger(__name__)

PACKED = "ftbench_packed"
"""The name under which transformers knows this attention. Without a packing it is transformers' own `sdpa`."""

_CHANGES = ("softcap", "s_aux", "position_bias")
"""What a model may ask of its attention that is not done here."""


def use_packed_attention(model: "PreTrainedModel") -> None:
    """Give a model this attention, if it can be given: it must hand the packing on, and ask for nothing beyond.

    Whether it does is seen by running it on four tokens, with or without values.
    """
    import torch
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(PACKED, packed_attention)
    AttentionMaskInterface.register(PACKED, sdpa_mask)
    before = model.config._attn_implementation
    model.set_attn_implementation(PACKED)
    try:
        with torch.no_grad():
            ids = torch.zeros(1, 4, dtype=torch.long, device=model.device)
            model(input_ids=ids, use_cache=False, **pack([Block(0, 2), Block(2, 2)], model.device))
    except Exception as error:  # any: models refuse in ways of their own
        if is_out_of_memory(error):
            raise
        model.set_attn_implementation(before)
        _LOG.info("rows of %s are padded: %s", type(model).__name__, " ".join(str(error).split())[:200])


def is_packed(model: "PreTrainedModel") -> bool:
    """Whether the model has this attention."""
    return bool(model.config._attn_implementation == PACKED)


def packed_attention(
    module: "torch.nn.Module",
    query: "Tensor",
    key: "Tensor",
    value: "Tensor",
    attention_mask: "Tensor | None",
    packing: Packing | None = None,
    rows: "Reading | Writing | None" = None,
    **asked: Any,
) -> "tuple[Tensor, Tensor | None]":
    """Attend as transformers' attention functions do; with `rows` as these do, while a reply is written.

    Query, key and value are `[batch, heads, seq, dim]`; what is returned is `[batch, seq, heads, dim]`.

    Raises:
        NotImplementedError: the model asks for something that is not done here.
    """
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    from ftbench.models.inturn import InTurn
    from ftbench.models.tiled import Tiled, tiles_of

    if packing is None and rows is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **asked)
    beyond = [name for name in _CHANGES if asked.get(name) is not None]
    if beyond or asked.get("is_causal") is False:
        raise NotImplementedError(f"packed attention without {beyond or 'causality'}")
    window, dropout, scale = asked.get("sliding_window"), asked.get("dropout", 0.0), asked.get("scaling")
    narrow = value.shape[-1]
    if narrow < query.shape[-1]:  # the kernels want one size
        value = torch.nn.functional.pad(value, (0, query.shape[-1] - narrow))
    if packing is None:
        assert rows is not None
        found = rows.attend(query, key, value, scale, window)
    elif query.device.type == "cuda" and query.dtype.itemsize == 2 and not dropout:
        found = _varlen(query, key, value, packing, window, scale)[None]
    elif query.device.type == "cpu" and query.shape[-1] == value.shape[-1] and not dropout:
        if query.dtype.itemsize == 2:
            tiles = tiles_of(packing, window, query.dtype)
            found = Tiled.apply(query, key, value, tiles, scale)  # type: ignore[no-untyped-call]
        else:
            found = InTurn.apply(query, key, value, packing, window, scale)  # type: ignore[no-untyped-call]
    else:
        found = _each(query, key, value, packing, window, scale, dropout)
    return found[..., :narrow], None


def _each(
    query: "Tensor",
    key: "Tensor",
    value: "Tensor",
    packing: Packing,
    window: int | None,
    scale: float | None,
    dropout: float,
) -> "Tensor":
    """Attend block by block; return `[1, seq, heads, dim]`."""
    import torch

    outputs = []
    for block in packing.blocks:
        q, k, v = (whole.narrow(2, block.begin, block.length) for whole in (query, key, value))
        if block.prefix_length:
            k, v = (
                torch.cat([whole.narrow(2, block.prefix_begin, block.prefix_length), own], dim=2)
                for whole, own in ((key, k), (value, v))
            )
        mask = mask_of(block, window, query.device)
        outputs.append(
            torch.nn.functional.scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=mask,
                is_causal=mask is None,
                dropout_p=dropout,
                scale=scale,
                enable_gqa=query.shape[1] != key.shape[1],
            ).transpose(1, 2)
        )
    return torch.cat(outputs, dim=1)


def _varlen(
    query: "Tensor", key: "Tensor", value: "Tensor", packing: Packing, window: int | None, scale: float | None
) -> "Tensor":
    """Attend to all blocks in one kernel; return `[seq, heads, dim]`."""
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = (whole[0].transpose(0, 1) for whole in (query, key, value))
    if packing.keys is not None:
        k, v = k[packing.keys], v[packing.keys]
    return varlen_attn(  # type: ignore[return-value]
        q,
        k,
        v,
        packing.query_bounds,
        packing.key_bounds,
        max(block.length for block in packing.blocks),
        max(block.prefix_length + block.length for block in packing.blocks),
        scale=scale,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
