"""Models without weights, from their configuration alone."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftbench.errors import FtbenchError
from ftbench.models.loading import first_line, prepare
from ftbench.models.precision import Precision, torch_dtype

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel


def load_config(folder: Path) -> "PreTrainedConfig":
    """Read a model's configuration.

    Raises:
        FtbenchError: the folder's config.json cannot be read, or needs code of its own.
    """
    from transformers import AutoConfig

    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise FtbenchError(f"cannot read the configuration in {folder}: {first_line(error)}") from error
    return config


def layer_count(config: "PreTrainedConfig") -> int:
    """Layers of the language model."""
    return int(config.get_text_config().num_hidden_layers)


def with_layers(config: "PreTrainedConfig", layers: int) -> "PreTrainedConfig | None":
    """Return the configuration with another number of layers; None where its layers are not all alike."""
    changed = deepcopy(config)
    text = changed.get_text_config()
    for name, value in _lists_a_layer(text):
        if len(set(map(str, value))) > 1:
            return None
        setattr(text, name, list(value)[:layers])
    if any(getattr(text, name, None) for name in _UNLIKE):
        return None
    text.num_hidden_layers = layers
    return changed


# What makes layers unlike each other without a list of them: the first ones dense, or every so many another kind.
_UNLIKE = (
    "first_k_dense_replace",
    "sliding_window_pattern",
    "decoder_sparse_step",
    "mlp_only_layers",
    "attn_layer_period",
)


def _lists_a_layer(config: "PreTrainedConfig") -> list[tuple[str, Any]]:
    count = config.num_hidden_layers
    values = config.to_dict().items()
    return [(name, value) for name, value in values if isinstance(value, list) and len(value) == count]


def build_skeleton(config: "PreTrainedConfig", precision: Precision) -> "PreTrainedModel":
    """Make a model whose weights are not set: for `without_values`.

    Raises:
        FtbenchError: there is no causal language model of this kind.
    """
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    try:
        with no_init_weights():
            model: PreTrainedModel = AutoModelForCausalLM.from_config(
                deepcopy(config),  # transformers writes the precision into it
                dtype=torch_dtype(precision),
            )
    except (ValueError, KeyError) as error:
        raise FtbenchError(f"no causal language model from this configuration: {first_line(error)}") from error
    model.tie_weights()  # which no_init_weights leaves out
    return prepare(model.eval())


@contextmanager
def without_values(device: "torch.device") -> Iterator[None]:
    """Make tensors inside that have a size and a device, and no values: models of any size fit.

    torch moves and converts a module of such tensors by swapping them, which it refuses for tensors that
    FakeTensorMode itself holds weak references to. Without values there is nothing to swap, but perhaps a kind.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    swap = torch.utils.swap_tensors

    def convert(one: torch.Tensor, other: torch.Tensor) -> None:
        if (one.dtype, one.shape, one.device) != (other.dtype, other.shape, other.device):
            one.data = other

    torch.utils.swap_tensors = convert
    try:
        # Where tensors are made on the processor anyway, nobody has to stand in every call's way to say so.
        with FakeTensorMode(), nullcontext() if device.type == "cpu" else torch.device(device):  # type: ignore[no-untyped-call]
            yield
    finally:
        torch.utils.swap_tensors = swap
