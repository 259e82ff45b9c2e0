"""Models and tokenizers in memory. Never with code from outside, never from pickles."""

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftbench.errors import FtbenchError
from ftbench.models.precision import Precision, torch_dtype

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


_NAMES: Mapping[Precision, str] = {"bf16": "BF16", "float32": "F32"}
"""What safetensors calls a precision."""
_WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Bytes of a value, by safetensors' names."""


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """Load the tokenizer of a model folder; one without a padding token pads with its end-of-sequence token.

    Raises:
        FtbenchError: the folder's tokenizer cannot be read, or is not there.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise FtbenchError(f"cannot read the tokenizer in {folder}: {first_line(error)}") from error
    if not tokenizer.vocab_size:  # what transformers makes of a folder without a tokenizer
        raise FtbenchError(f"{folder} holds no tokenizer: tokenizer.json is missing")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(folder: Path, device: "torch.device", precision: Precision = "float32") -> "PreTrainedModel":
    """Load a causal language model, ready for evaluation, with our layers where it can be given them.

    Raises:
        FtbenchError: as `load_plain` does.
    """
    return prepare(load_plain(folder, device, precision))


def load_plain(folder: Path, device: "torch.device", precision: Precision = "float32") -> "PreTrainedModel":
    """Load a causal language model as transformers has it, for a trainer that is not ours.

    Raises:
        FtbenchError: the folder's model cannot be read, lacks some weights, or needs code of its own.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch_dtype(precision),
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # told below
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise FtbenchError(f"cannot read the model in {folder}: {first_line(error)}") from error
    model: PreTrainedModel = loaded[0]
    found = loaded[1]
    # transformers would go on with random weights in their place
    wrong = sorted([*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])])
    if wrong:
        raise FtbenchError(
            f"the weights in {folder} do not fit its config.json: {len(wrong)} missing or of another shape, {wrong[0]} "
            "first"
        )
    model.to(device)  # type: ignore[arg-type]
    model.eval()
    return model


def check_adapter(folder: Path) -> None:
    """See that a folder holds an adapter as safetensors; peft would take a pickle in its stead, or ask the hub.

    Raises:
        FtbenchError: it does not, or they cannot be read.
    """
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        try:
            (folder / name).open("rb").close()
        except FileNotFoundError as error:
            line = f"cannot read the adapter in {folder}: {name} is missing; run it again with --fresh"
            raise FtbenchError(line) from error
        except OSError as error:  # safetensors would say of what it may not read that it is not there
            raise FtbenchError(f"cannot read {folder / name}: {error.strerror or error}") from error


def weight_bytes(folder: Path, precision: Precision, *, mapped: bool = False) -> int:
    """Return what the weights in a folder's safetensors take in a precision, bytes; files that cannot be read none.

    Args:
        folder: of the model.
        precision: that they are loaded in.
        mapped: whether weights in another precision count twice, as a file that is mapped and as their copy.
    """
    from safetensors import SafetensorError, safe_open

    size = torch_dtype(precision).itemsize
    count = 0
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "np") as file:
                for weight in map(file.get_slice, list(file.keys())):
                    values, filed = prod(weight.get_shape()), weight.get_dtype()
                    copied = mapped and filed != _NAMES[precision]
                    count += values * (size + (_WIDTHS.get(filed, size) if copied else 0))
        except (OSError, SafetensorError):  # told by whoever loads them
            continue
    return count


def loading_bytes(model: "PreTrainedModel", config: "PreTrainedConfig") -> int:
    """Return what loading a model takes in main memory, bytes.

    Its file is mapped so that it counts as the process's own; weights in its precision stay there, those in another are
    copied beside it. A configuration that does not say its precision is of a time when it was float32.

    Args:
        model: as it is when it is loaded; weights without values do.
        config: as it stands beside the file.
    """
    import torch

    filed = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
    weights = list(model.parameters())
    copied = sum(weight.numel() * filed.itemsize for weight in weights if weight.dtype != filed)
    return sum(weight.nbytes for weight in weights) + copied


def prepare(model: "PreTrainedModel") -> "PreTrainedModel":
    """Give a model in evaluation mode our attention, head and layers, where it can be given them."""
    from ftbench.models.attention import use_packed_attention
    from ftbench.models.head import use_scoring_head
    from ftbench.models.layers import use_own_layers
    from ftbench.models.vocabulary import use_token_embedding

    use_packed_attention(model)
    use_scoring_head(model)
    use_own_layers(model)
    use_token_embedding(model)
    return model


def context_length(config: "PreTrainedConfig") -> int:
    """Tokens that a model can attend to."""
    return int(getattr(config, "max_position_embeddings", None) or 2**31)


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its kind where there is none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
