"""Models and tokenizers in memory. Never with code from outside, never from pickles."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftbench.errors import FtbenchError
from ftbench.models.precision import Precision, torch_dtype

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


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


def prepare(model: "PreTrainedModel") -> "PreTrainedModel":
    """Give a model in evaluation mode our attention, head and layers, where it can be given them."""
    from ftbench.models.attention import use_packed_attention
    from ftbench.models.head import use_scoring_head
    from ftbench.models.layers import use_own_layers

    use_packed_attention(model)
    use_scoring_head(model)
    use_own_layers(model)
    return model


def context_length(config: "PreTrainedConfig") -> int:
    """Tokens that a model can attend to."""
    return int(getattr(config, "max_position_embeddings", None) or 2**31)


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its kind where there is none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
