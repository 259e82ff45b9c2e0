"""The kinds of attention that can be converted, and where each keeps its weights."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ftbench_mla.shape import FAMILIES

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Projections:
    """An attention's weights, rows being outputs: query `[H h, hidden]`, key and value `[G h, hidden]`, output
    `[hidden, H h]`, and their biases, None where there are none.
    """

    size: int
    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    query_bias: Tensor | None
    key_bias: Tensor | None
    value_bias: Tensor | None
    output_bias: Tensor | None


class UnconvertibleError(ValueError):
    """A model that cannot be converted, and why."""


@dataclass(frozen=True)
class Family:
    """One of `FAMILIES`, by its model type."""

    kind: str

    @classmethod
    def of(cls, config: "PreTrainedConfig") -> "Family":
        """Return the family of a model.

        Raises:
            UnconvertibleError: it is of none, or has something about its attention that conversion would not keep.
        """
        kind = config.model_type
        if kind not in FAMILIES:
            raise UnconvertibleError(
                f"models of type '{kind}' cannot be converted: there is a conversion for {', '.join(FAMILIES)}, whose "
                "keys are a linear function of the layer's input"
            )
        if getattr(config, "add_cross_attention", False):
            raise UnconvertibleError("its cross-attention reads keys from elsewhere, not from the tokens' own latent")
        kinds = getattr(config, "layer_types", None) or ()
        sliding = "sliding_attention" in kinds or (not kinds and getattr(config, "sliding_window", None))
        if sliding:
            raise UnconvertibleError(
                f"its attention slides over {config.sliding_window} tokens; only attention over all tokens is converted"
            )
        if kind == "gpt2" and config.reorder_and_upcast_attn:
            raise UnconvertibleError("reorder_and_upcast_attn is not supported")
        rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
        if rope in ("dynamic", "longrope"):
            raise UnconvertibleError(f"its rotation ('{rope}') changes with the length of the text")
        return cls(kind)

    @property
    def rotates(self) -> bool:
        """Whether keys are rotated by their position."""
        return self.kind != "gpt2"

    def attentions(self, model: "PreTrainedModel") -> list[nn.Module]:
        """Return the attention of every layer."""
        from ftbench_mla.modeling import attention_name, layers_of

        return [getattr(layer, attention_name(layer)) for layer in layers_of(model)]

    def rotation(self, model: Any) -> tuple[Tensor, float]:
        """Return the angles of the rotation, radians a token, `[h / 2]`, and what it scales keys and queries by."""
        if not self.rotates:
            return torch.zeros(0), 1.0
        rotary = model.base_model.rotary_emb
        return rotary.inv_freq.detach(), float(rotary.attention_scaling)

    def scaling(self, attention: nn.Module) -> float:
        """Return what scores are multiplied by."""
        return float(attention.scaling)  # type: ignore[arg-type]

    def projections(self, attention: Any) -> Projections:
        """Return an attention's weights."""
        size = attention.head_dim
        if self.kind == "gpt2":
            query, key, value = (one.detach() for one in attention.c_attn.weight.T.chunk(3))
            of_query, of_key, of_value = (one.detach() for one in attention.c_attn.bias.chunk(3))
            output = attention.c_proj.weight.detach().T
            of_output = attention.c_proj.bias.detach()
            return Projections(size, query, key, value, output, of_query, of_key, of_value, of_output)
        parts = attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj
        biases = [None if part.bias is None else part.bias.detach() for part in parts]
        return Projections(size, *(part.weight.detach() for part in parts), *biases)

    @contextmanager
    def watch_keys_and_values(self, attention: Any, see: Callable[[Tensor], None]) -> Iterator[None]:
        """Hand on the gradients by keys and values, `[texts, seq, 2 G h]`, of every backward pass inside."""
        watched = [attention.c_attn] if self.kind == "gpt2" else [attention.k_proj, attention.v_proj]
        known: dict[int, Tensor] = {}

        def note(place: int, gradient: Tensor) -> None:
            known[place] = gradient
            if len(known) == len(watched):
                whole = torch.cat([known.pop(each) for each in range(len(watched))], dim=-1)
                see(whole[..., whole.shape[-1] // 3 :] if self.kind == "gpt2" else whole)

        def watch(place: int) -> Callable[..., None]:
            def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
                output.register_hook(lambda gradient: note(place, gradient))

            return hook

        handles = [module.register_forward_hook(watch(place)) for place, module in enumerate(watched)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
