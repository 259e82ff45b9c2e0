"""What a model keeps of each token while it generates."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SHORT, _LONG = 8, 24


def cache_bytes_per_token(model: "PreTrainedModel") -> float | None:
    """Return by how many bytes a model's cache grows a token: measured of its tensors; None where there is no cache."""
    short, long = _cache_bytes(model, _SHORT), _cache_bytes(model, _LONG)
    return None if short is None or long is None else (long - short) / (_LONG - _SHORT)


def _cache_bytes(model: "PreTrainedModel", tokens: int) -> int | None:
    import torch

    ids = torch.zeros(1, tokens, dtype=torch.long, device=model.device)
    with torch.inference_mode():
        cache = getattr(model(input_ids=ids, use_cache=True), "past_key_values", None)
    layers = getattr(cache, "layers", None)
    if not layers:
        return None
    held = [getattr(layer, name, None) for layer in layers for name in ("keys", "values")]
    return sum(tensor.nbytes for tensor in held if isinstance(tensor, torch.Tensor))
