"""Converted models as transformers' own: configurations and models by family, known to its Auto classes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.utils.output_capturing import OutputRecorder

from ftbench_mla.attention import LatentAttention
from ftbench_mla.shape import PREFIX

_BASES: dict[str, tuple[type[PreTrainedConfig], type[PreTrainedModel]]] = {
    "gpt2": (GPT2Config, GPT2LMHeadModel),
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
}


class LatentMixin:
    """What all converted models have: latent attention in every layer."""

    _supports_flash_attn = False  # its kernels want keys and values of one size
    _supports_flex_attn = False
    base_model_tp_plan: Any = None

    def __init__(self, config: Any) -> None:
        """Make the base model and put latent attention into its layers."""
        super().__init__(config)  # type: ignore[call-arg]
        for index, layer in enumerate(layers_of(self)):
            setattr(layer, attention_name(layer), LatentAttention(config, index))


def layers_of(model: Any) -> nn.ModuleList:
    """Return the decoder layers of a model of one of the families, converted or not."""
    base = model.base_model
    return base.h if hasattr(base, "h") else base.layers  # type: ignore[no-any-return]


def attention_name(layer: nn.Module) -> str:
    """Return the name of a layer's attention."""
    return "attn" if hasattr(layer, "attn") else "self_attn"


@contextmanager
def attending(layer: nn.Module, attention: nn.Module) -> Iterator[None]:
    """Put an attention in the place of a layer's own, as long as this is open."""
    name = attention_name(layer)
    own = getattr(layer, name)
    setattr(layer, name, attention)
    try:
        yield
    finally:
        setattr(layer, name, own)


def _make(kind: str) -> tuple[type[PreTrainedConfig], type[PreTrainedModel]]:
    base_config, base_model = _BASES[kind]
    name = base_model.__name__.removesuffix("ForCausalLM").removesuffix("LMHeadModel")
    fields = {
        "__module__": __name__,
        "__doc__": f"{name} with latent attention.",
        "__annotations__": {"latent_ranks": list[int], "latent_rotated": list[int], "latent_mode": str},
        "model_type": PREFIX + kind,
        "base_model_tp_plan": None,
        "latent_ranks": (),
        "latent_rotated": (),
        "latent_mode": "absorbable",
    }
    config = type(f"Latent{name}Config", (base_config,), fields)
    where = "attn" if kind == "gpt2" else "self_attn"
    recorded = {**(base_model._can_record_outputs or {}), "attentions": OutputRecorder(LatentAttention, 1, f".{where}")}
    recorded.pop("cross_attentions", None)
    model = type(
        f"Latent{name}ForCausalLM",
        (LatentMixin, base_model),
        {
            "__module__": __name__,
            "__doc__": f"{name} with latent attention, and a language-model head.",
            "config_class": config,
            "_can_record_outputs": recorded,
        },
    )
    AutoConfig.register(PREFIX + kind, config)
    AutoModelForCausalLM.register(config, model)
    return config, model


CLASSES = {kind: _make(kind) for kind in _BASES}
"""Configuration and model of each family."""
