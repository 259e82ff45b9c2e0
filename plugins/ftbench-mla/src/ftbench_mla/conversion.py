"""From a trained model to one with latent attention."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ftbench_mla.attention import LatentAttention
from ftbench_mla.factor import Factors, Metric, factorise, share_out
from ftbench_mla.family import Family, Projections, UnconvertibleError
from ftbench_mla.modeling import CLASSES, attending, attention_name, layers_of
from ftbench_mla.refit import refit_outputs
from ftbench_mla.rotation import Choice, Mix, Rotation, choose_rotation
from ftbench_mla.shape import ABSORBABLE
from ftbench_mla.statistics import LayerStatistics, collect

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MIN_TOKENS = 256
"""Calibration tokens below which moments say nothing; with fewer than the layer's width they are filled up."""

Recipe = Literal["fisher", "transmla", "mha2mla", "plain"]


class Steps(NamedTuple):
    """How heads are mixed, what stays rotated, what factors are the best of, and whether outputs are fitted anew."""

    mix: Mix
    choice: Choice
    metric: Metric
    refits: bool


RECIPES = {
    "fisher": Steps("query", "sensitivity", "fisher", refits=True),
    "transmla": Steps("pca", "first", "balanced", refits=False),  # arXiv:2502.07864
    "mha2mla": Steps("none", "norm", "plain", refits=False),  # arXiv:2502.14837
    "plain": Steps("query", "sensitivity", "plain", refits=False),
}


@dataclass(frozen=True)
class Settings:
    """How a model is converted.

    `kv` is the share of the base's cache that is kept. `rope_dims` and `rank` are a layer's, None for what `kv` gives:
    a quarter of the kept part rotated, and ranks shared out over the layers.
    """

    kv: float = 0.5
    mode: Literal["absorbable", "exact-rope"] = "absorbable"
    recipe: Recipe = "fisher"
    rank: int | None = None
    rope_dims: int | None = None


@dataclass(frozen=True)
class _Layer:
    """A layer on its way: its weights, what of its keys stays rotated, and the factors of the rest."""

    base: Projections
    rotation: Rotation | None
    factors: Factors


def convert(
    model: "PreTrainedModel", calibration: Sequence[Sequence[int]], settings: Settings | None = None
) -> "PreTrainedModel":
    """Give a model latent attention in the place of its own, and return it; warn where the texts are few.

    Args:
        model: of one of the families; changed in place.
        calibration: texts as token ids, as long as those that will be served.
        settings: what to keep of the cache, and how.

    Raises:
        UnconvertibleError: the model is of no family, or the settings or the texts do not fit it.
    """
    few = scarcity(model, calibration)
    convert_keeping(model, calibration, settings or Settings())
    if few:
        warnings.warn(few, stacklevel=2)
    return model


def scarcity(model: "PreTrainedModel", calibration: Sequence[Sequence[int]]) -> str | None:
    """Say that texts are too few to know a model's inputs by, or return None."""
    tokens, width = sum(map(len, calibration)), model.config.hidden_size
    if tokens >= width:
        return None
    return (
        f"calibrated on {tokens} tokens, fewer than the {width} dimensions of a layer's input: what these texts do not "
        "show counts for little in the decomposition; give more, or longer, texts"
    )


class Teacher:
    """The attention that a converted model had before: all else it shares with the model that learns from it."""

    def __init__(self, model: "PreTrainedModel", attentions: Sequence[nn.Module]) -> None:
        self._model, self.attentions = model, list(attentions)
        for attention in self.attentions:
            attention.requires_grad_(False)

    @contextmanager
    def in_place(self) -> Iterator["PreTrainedModel"]:
        """Make the model what it was, for as long as this is open; nothing is trained meanwhile."""
        training = self._model.training
        try:
            with ExitStack() as stack:
                for layer, attention in zip(layers_of(self._model), self.attentions, strict=True):
                    stack.enter_context(attending(layer, attention))
                stack.enter_context(torch.no_grad())
                yield self._model.eval()
        finally:
            self._model.train(training)


def convert_keeping(model: "PreTrainedModel", calibration: Sequence[Sequence[int]], settings: Settings) -> Teacher:
    """Do as `convert` does, and return what the model was."""
    family = Family.of(model.config)
    rotated, total = sizes(family, model, settings)
    tokens = sum(map(len, calibration))
    if tokens < MIN_TOKENS:
        raise UnconvertibleError(f"conversion needs {MIN_TOKENS} tokens to calibrate on at least, and has {tokens}")
    statistics = collect(model, family, calibration)
    angles, scale = family.rotation(model)
    layers = [
        _decompose(family.projections(attention), one, angles, rotated, settings, rotates=family.rotates)
        for attention, one in zip(family.attentions(model), statistics, strict=True)
    ]
    if settings.rank is not None:
        ranks = [settings.rank] * len(layers)
    elif RECIPES[settings.recipe].metric == "fisher":
        ranks = share_out([layer.factors.loss for layer in layers], total)
    else:
        ranks = [total // len(layers)] * len(layers)
    before = family.attentions(model)
    _replace_attention(model, family, settings, rotated, ranks)
    for attention, layer, rank in zip(family.attentions(model), layers, ranks, strict=True):
        fill(attention, layer, rank, scale**2)
    teacher = Teacher(model, before)
    if RECIPES[settings.recipe].refits:
        refit_outputs(model, before, calibration)
    return teacher


def reshape(model: "PreTrainedModel", settings: Settings) -> "PreTrainedModel":
    """Give a model without values the shape that `convert` would give it, all layers alike, and return it.

    Raises:
        UnconvertibleError: the model is of no family, or the settings do not fit it.
    """
    family = Family.of(model.config)
    rotated, total = sizes(family, model, settings)
    layers = len(layers_of(model))
    _replace_attention(model, family, settings, rotated, [total // layers] * layers)
    return model


def sizes(family: Family, model: "PreTrainedModel", settings: Settings) -> tuple[int, int]:
    """Return the rotated dimensions of a layer, and the ranks of all layers together.

    Raises:
        UnconvertibleError: they do not fit the model.
    """
    layers = family.attentions(model)
    base = family.projections(layers[0])
    keys = len(base.key)
    if not 0 < settings.kv <= 1:
        raise UnconvertibleError(f"the share of the cache to keep must be above 0 and at most 1, not {settings.kv}")
    kept = round(settings.kv * 2 * keys)
    beside = family.rotates and settings.mode == ABSORBABLE
    rotated = (settings.rope_dims if settings.rope_dims is not None else 2 * round(kept / 8)) if beside else 0
    if settings.rope_dims is not None and not beside:
        raise UnconvertibleError("rope_dims has no meaning here: nothing is rotated beside the latent")
    if rotated % 2 or not 0 <= rotated <= keys:
        raise UnconvertibleError(f"rope_dims must be an even number up to {keys}, not {rotated}")
    most = min(2 * keys - rotated, base.key.shape[1])
    if settings.rank is not None:
        if not 1 <= settings.rank <= most:
            raise UnconvertibleError(f"rank must be from 1 to {most}, not {settings.rank}")
        return rotated, settings.rank * len(layers)
    if kept <= rotated:
        raise UnconvertibleError(
            f"{settings.kv:.2%} of the cache is {kept} values a token and layer, and {rotated} of them are rotated: "
            "nothing is left for the latent; keep more, or rotate less (rope_dims)"
        )
    return rotated, min(kept - rotated, most) * len(layers)


def _decompose(
    base: Projections, statistics: LayerStatistics, angles: Tensor, wanted: int, settings: Settings, *, rotates: bool
) -> _Layer:
    """Choose what stays rotated, and factorise the rest."""
    steps = RECIPES[settings.recipe]
    key, value = base.key.double(), base.value.double()
    fisher, keys = statistics.fisher, len(base.key)
    rotation = None
    if rotates and settings.mode == ABSORBABLE:
        rotation = choose_rotation(base, statistics, angles.double(), wanted, steps.mix, steps.choice)
        still = rotation.still
        # Gradients take the inverse and transposed way that keys take.
        gradients = torch.linalg.inv(rotation.keys).T[still]
        key, keys = rotation.keys[still] @ key, len(still)
        move = torch.block_diag(gradients, torch.eye(len(value), dtype=torch.float64, device=value.device))
        fisher = move @ fisher @ move.T
    weight = torch.cat([key, value])
    return _Layer(base, rotation, factorise(weight, statistics.inputs, statistics.weighed, fisher, steps.metric, keys))


def _replace_attention(
    model: "PreTrainedModel", family: Family, settings: Settings, rotated: int, ranks: Sequence[int]
) -> None:
    """Make a model one of our classes, with latent attention whose decomposed weights are not yet set."""
    old, (config_class, model_class) = model.config, CLASSES[family.kind]
    fields = {name: value for name, value in old.to_dict().items() if name not in ("model_type", "architectures")}
    latent = {"latent_ranks": list(ranks), "latent_rotated": [rotated] * len(ranks), "latent_mode": settings.mode}
    config = config_class.from_dict({**fields, **latent, "architectures": [model_class.__name__]})
    config._attn_implementation = old._attn_implementation
    for module in model.modules():
        if getattr(module, "config", None) is old:
            setattr(module, "config", config)  # noqa: B010  mypy takes it for a tensor
    model.__class__ = model_class
    for index, layer in enumerate(layers_of(model)):
        name = attention_name(layer)
        before = getattr(layer, name)
        weight = next(before.parameters())
        with torch.device(weight.device):
            after = LatentAttention(config, index).to(weight.dtype)
        _keep(family.projections(before), after)
        setattr(layer, name, after.train(before.training))


def _keep(base: Projections, attention: LatentAttention) -> None:
    """Set what stays as it is: the query, and the output, into whose bias the value's goes.

    Attention weights add up to one, so that a bias of the values comes out of every head as it is.
    """
    shape = attention.shape
    with torch.no_grad():
        attention.q_proj.weight.copy_(base.query)
        if base.query_bias is not None:
            attention.q_proj.bias.copy_(base.query_bias)
        attention.o_proj.weight.copy_(base.output)
        if shape.output_bias:
            bias = torch.zeros(shape.hidden, dtype=torch.float64, device=base.output.device)
            if base.output_bias is not None:
                bias += base.output_bias.double()
            if base.value_bias is not None:
                each = base.value_bias.double().view(shape.groups, shape.size)
                bias += base.output.double() @ each.repeat_interleave(shape.heads // shape.groups, 0).flatten()
            attention.o_proj.bias.copy_(bias)


def fill(attention: nn.Module, layer: _Layer, rank: int, scale: float) -> None:
    """Set the decomposed weights of a latent attention.

    Args:
        attention: a `LatentAttention`.
        layer: its decomposition.
        rank: the latent's.
        scale: by which rotated scores are larger than others in the base, where its rotation also scales.
    """
    assert isinstance(attention, LatentAttention)
    shape, base, rotation = attention.shape, layer.base, layer.rotation
    up, down = layer.factors.cut(rank)
    keys = len(up) - len(base.value)
    with torch.no_grad():
        attention.down.weight.copy_(down)
        attention.value_up.copy_(up[keys:].view(shape.groups, shape.size, rank))
        if rotation is None:
            attention.key_up.copy_(up[:keys].view(shape.groups, shape.size, rank))
            if shape.exact and attention.key_bias is not None and base.key_bias is not None:
                attention.key_bias.copy_(base.key_bias.reshape(shape.groups, shape.size))
            return
        queries = rotation.queries[:, rotation.still]  # [G, still, h]
        attention.key_up.copy_(scale * queries.transpose(1, 2) @ up[:keys])
        if shape.rotated:
            taken = rotation.keys[rotation.rotated]
            attention.k_rope.weight.copy_(taken @ base.key.double())
            if base.key_bias is not None:
                attention.k_rope.bias.copy_(taken @ base.key_bias.double())
            attention.q_rope.copy_(rotation.queries[:, rotation.rotated])
            attention.frequencies.copy_(rotation.frequencies)
