"""What a latent attention layer looks like, read off the configuration of its model."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

EXACT, ABSORBABLE = "exact-rope", "absorbable"

PREFIX = "ftbench_mla_"
"""Before the base's model type: the model type of a converted model."""

FAMILIES = ("gpt2", "llama", "mistral", "qwen2")
"""Model types that can be converted."""


@dataclass(frozen=True)
class Shape:
    """Sizes of one layer's attention.

    `rank` is the latent's size, and `rotated` the dimensions beside it that are rotated: none in `exact` mode, where
    keys are rotated after they were read off the latent, and none where the base does not rotate.
    """

    hidden: int
    heads: int
    groups: int
    size: int
    rank: int
    rotated: int
    exact: bool
    scaling: float
    query_bias: bool
    key_bias: bool
    output_bias: bool
    dropout: float
    output_dropout: float

    @classmethod
    def of(cls, config: "PreTrainedConfig", layer: int) -> "Shape":
        """Read it off a converted model's configuration."""
        kind = config.model_type.removeprefix(PREFIX)
        mode, rank, rotated = config.latent_mode, config.latent_ranks[layer], config.latent_rotated[layer]
        hidden, heads = config.hidden_size, config.num_attention_heads
        if kind == "gpt2":
            size = hidden // heads
            scaling = (size**-0.5 if config.scale_attn_weights else 1.0) / (
                layer + 1 if config.scale_attn_by_inverse_layer_idx else 1
            )
            dropouts = float(config.attn_pdrop), float(config.resid_pdrop)
            return cls(hidden, heads, heads, size, rank, 0, False, scaling, True, False, True, *dropouts)
        size = getattr(config, "head_dim", None) or hidden // heads
        biased = kind == "qwen2" or bool(getattr(config, "attention_bias", False))
        return cls(
            hidden,
            heads,
            config.num_key_value_heads,
            size,
            rank,
            rotated,
            mode == EXACT,
            size**-0.5,
            biased,
            biased,
            biased,
            float(config.attention_dropout or 0.0),
            0.0,
        )
