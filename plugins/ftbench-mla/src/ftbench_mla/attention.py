"""Latent attention: keys and values of all heads are read off one vector a token, and that is all the cache holds."""

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ftbench_mla.shape import Shape

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedConfig


class LatentAttention(nn.Module):
    """Multi-head latent attention (DeepSeek-AI 2024, arXiv:2405.04434, section 2.1) with a scale and heads of its base.

    With x the layer's input, H query heads in G groups of head size h, latent rank r and d_r rotated dimensions:

    - `latent` c = `down` x, `[r]`; a group's keys are `key_up` c and its values `value_up` c, `[h]` each.
    - absorbable: what is rotated is not in the latent but beside it, `k_rope` x, `[d_r]`, one for all heads, and a
      head's part against it is `q_rope` q. The cache holds both. Keys need not be made: a head's query is taken to the
      latent in their place.
    - exact-rope: all of the key is read off the latent and then rotated. The cache holds the latent alone; keys are
      made from it, and rotated, at every step.
    """

    def __init__(self, config: "PreTrainedConfig", layer_idx: int) -> None:
        """Make the layer with weights that are not set."""
        super().__init__()
        shape = Shape.of(config, layer_idx)
        self.config, self.layer_idx, self.shape = config, layer_idx, shape
        self.is_causal = True
        self.scaling = shape.scaling
        self.dropout = nn.Dropout(shape.dropout)
        self.output_dropout = nn.Dropout(shape.output_dropout)
        heads, groups, size = shape.heads, shape.groups, shape.size
        self.q_proj = nn.Linear(shape.hidden, heads * size, bias=shape.query_bias)
        self.down = nn.Linear(shape.hidden, shape.rank, bias=False)
        self.key_up = nn.Parameter(torch.zeros(groups, size, shape.rank))
        self.value_up = nn.Parameter(torch.zeros(groups, size, shape.rank))
        self.o_proj = nn.Linear(heads * size, shape.hidden, bias=shape.output_bias)
        if shape.exact:
            self.rotary = _rotary(config)
            self.key_bias = nn.Parameter(torch.zeros(groups, size)) if shape.key_bias else None
        elif shape.rotated:
            self.k_rope = nn.Linear(shape.hidden, shape.rotated, bias=shape.key_bias)
            self.q_rope = nn.Parameter(torch.zeros(groups, shape.rotated, size))
            self.frequencies: Tensor
            self.register_buffer("frequencies", torch.zeros(shape.rotated // 2, dtype=torch.long))

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: "Cache | None" = None,
        **given: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend as the base model's attention does; `hidden_states` is `[batch, seq, hidden]`."""
        shape = self.shape
        batch, length = hidden_states.shape[:2]
        query = self.q_proj(hidden_states).view(batch, length, shape.heads, shape.size).transpose(1, 2)
        cached = self.down(hidden_states)[:, None]  # [batch, 1, seq, rank]
        if shape.rotated:
            assert position_embeddings is not None
            angles = tuple(one[..., self.frequencies] for one in position_embeddings)
            beside = rotate(self.k_rope(hidden_states)[:, None], *angles)
            turned = rotate(self._grouped(query, self.q_rope), *angles)
            cached = torch.cat([cached, beside], dim=-1)
        # Whoever keeps keys and values itself, as ftbench's decoding does, is given them in one form at all lengths.
        absorbed = not shape.exact and length == 1 and past_key_values is not None
        begin = 0
        if past_key_values is not None:
            begin = past_key_values.get_seq_length(self.layer_idx) + 0  # a static cache counts on in the same tensor
            cached, _ = past_key_values.update(cached, cached[..., :0], self.layer_idx)
        if shape.exact:
            at = position_embeddings if past_key_values is None else None
            query, key, value, groups = *self._rotated(query, cached, begin, at), shape.heads // shape.groups
        elif not absorbed:
            latent, beside = cached.split([shape.rank, shape.rotated], dim=-1)
            key, value = self._expanded(latent, self.key_up), self._expanded(latent, self.value_up)
            if shape.rotated:
                query = torch.cat([query, turned], dim=-1)
                key = torch.cat([key, beside.expand(-1, shape.groups, -1, -1)], dim=-1)
            groups = shape.heads // shape.groups
        else:
            query = self._grouped(query, self.key_up.transpose(1, 2))
            query = torch.cat([query, turned], dim=-1) if shape.rotated else query
            # All heads read one key, as so many queries would. Values of the key's size take the fast kernels, and the
            # cache as it is: to cut the rotated part off is to copy it.
            query, key, value, groups = query.transpose(1, 2), cached, cached, 1
        output, weights = self._attend(query, key, value, groups, attention_mask, causal=not absorbed, **given)
        if absorbed:
            output = self._grouped(output[..., : shape.rank], self.value_up).transpose(1, 2)
            weights = None if weights is None else weights.transpose(1, 2)
        output = self.o_proj(output.reshape(batch, length, -1))
        return self.output_dropout(output), weights

    def _grouped(self, heads: Tensor, maps: Tensor) -> Tensor:
        """Take every head by its group's map: `[batch, H, seq, n]` and `[G, m, n]` to `[batch, H, seq, m]`.

        All rows and heads of a group stand below one another: a product that broadcasts would copy the maps for each.
        """
        batch, number, length, size = heads.shape
        below = heads.reshape(batch, len(maps), -1, size).transpose(0, 1).reshape(len(maps), -1, size)
        found = torch.bmm(below, maps.transpose(1, 2)).view(len(maps), batch, -1, maps.shape[1])
        return found.transpose(0, 1).reshape(batch, number, length, -1)

    @staticmethod
    def _expanded(latent: Tensor, maps: Tensor) -> Tensor:
        """Read all groups off the latent: `[batch, 1, seq, rank]` and `[G, h, rank]` to `[batch, G, seq, h]`."""
        return latent @ maps.transpose(1, 2)

    def _rotated(
        self, query: Tensor, latent: Tensor, begin: "int | Tensor", given: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, the first two rotated.

        Without a cache the positions are the given ones. With one they are the places in the cache: a score depends on
        the difference of two positions alone, and padding on the left shifts both.
        """
        key, value = self._expanded(latent, self.key_up), self._expanded(latent, self.value_up)
        if self.key_bias is not None:
            key = key + self.key_bias[:, None]
        if given is not None:
            of_query = of_key = given
        else:
            places = torch.arange(key.shape[2], device=key.device)[None]
            of_key = self.rotary(latent, places)
            of_query = self.rotary(latent, torch.arange(query.shape[2], device=key.device)[None] + begin)
        return rotate(query, *of_query), rotate(key, *of_key), value

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, groups: int, mask: Tensor | None, *, causal: bool, **given: Any
    ) -> tuple[Tensor, Tensor | None]:
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
        from transformers.models.llama.modeling_llama import eager_attention_forward

        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        # What attention functions read off the module: the number of heads that share a key is not always the same.
        module = SimpleNamespace(
            num_key_value_groups=groups, is_causal=causal, training=self.training, layer_idx=self.layer_idx
        )
        dropout = self.dropout.p if self.training else 0.0
        size, more = value.shape[-1], key.shape[-1] - value.shape[-1]
        if more > 0 and query.shape[2] > 1:  # fast kernels want keys and values of one size
            value = nn.functional.pad(value, (0, more))
        output, weights = attend(module, query, key, value, mask, dropout=dropout, scaling=self.scaling, **given)
        return output[..., :size], weights


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs (i, i + n/2) of the last dimension, as Llama does.

    `x` is `[batch, heads, seq, n]`; `cos` and `sin` are `[batch, seq, n/2]`, or `[batch, seq, n]` with halves alike.
    """
    half = x.shape[-1] // 2
    cos, sin = cos[:, None, :, :half], sin[:, None, :, :half]
    one, other = x[..., :half], x[..., half:]
    return torch.cat([one * cos - other * sin, other * cos + one * sin], dim=-1)


def _rotary(config: "PreTrainedConfig") -> nn.Module:
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    return LlamaRotaryEmbedding(config)  # type: ignore[no-untyped-call,arg-type]
