"""peft's methods: found by name or file, put onto a model, read back."""

import json
import re
import tomllib
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ftbench

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel

_MIXING = {"LILY": "its router averages over all tokens of a forward pass, so that a reply hangs on the batch it is in"}
"""Types that cannot be measured in batches, and why."""

_PADDED = ("CARTRIDGE", "SHADOW")
"""Types that put tokens before the row, or run a network beside the model that is not told where sequences begin."""

_OF_ONE_FILE = (
    "peft_type",
    "peft_version",
    "task_type",
    "auto_mapping",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
)
"""What an adapter_config.json says of itself and of the model that it was made for."""


def find_method(text: str) -> tuple[str, dict[str, Any]]:
    """Return the short name and the options of a method.

    Args:
        text: a method's name as peft's comparison or peft's types have it, or the path of an adapter_config.json.

    Raises:
        UsageError: there is no such method or file; the nearest is named.
    """
    if text.endswith(".json") or "/" in text:
        return _read_file(Path(text))
    name = text.lower().replace("-", "_")
    presets = _presets()
    if name in presets:
        return name, {"settings": {}, **presets[name]}
    types = _types()
    if name.upper() in types:
        return name, {"method": name.upper(), "settings": {}}
    known = {*presets, *(kind.lower() for kind in types)}
    raise ftbench.UsageError(f"peft has no method '{text}'; {ftbench.nearest(name, known)}")


def check_settings(method: str, settings: dict[str, Any]) -> None:
    """See that peft has the type, and the type each setting.

    Raises:
        UsageError: it has not; the nearest is named.
    """
    if any(preset["method"] == method and preset.get("settings", {}) == settings for preset in _presets().values()):
        return  # known without importing peft, which takes seconds
    types = _types()
    if method not in types:
        raise ftbench.UsageError(f"peft has no type '{method}'; {ftbench.nearest(method, types)}")
    fields = types[method].__dataclass_fields__
    for setting in settings:
        if setting not in fields:
            raise ftbench.UsageError(f"peft's {method} has no setting '{setting}'; {ftbench.nearest(setting, fields)}")


def _presets() -> dict[str, dict[str, Any]]:
    return tomllib.loads((files("ftbench_peft") / "presets.toml").read_text("utf-8"))


def _types() -> "dict[str, type[PeftConfig]]":
    """peft's types and their configurations.

    Raises:
        UsageError: the installed peft keeps them elsewhere.
    """
    try:
        from peft import PEFT_TYPE_TO_CONFIG_MAPPING
    except ImportError as error:
        raise ftbench.UsageError(f"the installed peft does not fit: {error}; this plugin was made for 0.21") from error

    return {str(kind.value): config for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}


def _read_file(path: Path) -> tuple[str, dict[str, Any]]:
    """Read an adapter_config.json; the short name is its folder's, or its own where it is called otherwise."""
    try:
        values = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ftbench.UsageError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise ftbench.UsageError(f"{path} is not JSON: {error}") from error
    method = values.get("peft_type") if isinstance(values, dict) else None
    types = _types()
    if not isinstance(method, str) or method not in types:
        raise ftbench.UsageError(f"{path}: its peft_type is {method!r}; peft has {', '.join(sorted(types))}")
    fields = types[method].__dataclass_fields__
    settings = {
        key: value
        for key, value in values.items()
        if key in fields and key not in _OF_ONE_FILE and value is not None and value != fields[key].default
    }
    settings = {key: value for key, value in settings.items() if value not in ({}, [])}
    stem = path.parent.resolve().name if path.name == "adapter_config.json" else path.stem
    return re.sub(r"[^A-Za-z0-9_-]+", "-", stem), {"method": method, "settings": settings}


def wrap(
    model: "PreTrainedModel", method: str, settings: dict[str, Any], calibration: Sequence[Sequence[int]]
) -> "tuple[PreTrainedModel, bool]":
    """Put a method onto a model; also return whether packed sequences stay apart.

    Raises:
        Skip: peft cannot, or the wrapped model cannot run as plain language model; with peft's reason.
    """
    import torch
    from peft import get_peft_model

    types = _types()
    if method in _MIXING:
        raise ftbench.Skip(f"{method} cannot be measured: {_MIXING[method]}")
    ids = torch.tensor([list(calibration[0][:16]) if calibration else [0, 1, 2]], device=model.device)
    try:
        config = types[method](task_type="CAUSAL_LM", **_completed(method, settings, model))
        wrapped = get_peft_model(model, config, autocast_adapter_dtype=False)
        with torch.no_grad():
            wrapped(input_ids=ids, attention_mask=torch.ones_like(ids))
    except MemoryError:
        raise
    except Exception as error:  # each method has errors of its own
        text = " ".join(str(error).split()) or type(error).__name__
        if "memory" in text.lower():
            raise
        raise ftbench.Skip(f"peft cannot put {method} onto this model: {text[:300]}") from error
    if not any(parameter.requires_grad and parameter.numel() for parameter in wrapped.parameters()):
        raise ftbench.Skip(f"{method} with these settings leaves nothing to train in this model")
    return wrapped, _stays_apart(config)  # type: ignore[return-value]


def _completed(method: str, settings: dict[str, Any], model: "PreTrainedModel") -> dict[str, Any]:
    """Add what a method demands and this model alone can tell."""
    added: dict[str, Any] = {}
    if method == "ADALORA":
        added["total_step"] = 1_000_000  # the number of steps is set when training begins
    if method == "ADAPTION_PROMPT":
        added["adapter_layers"] = model.config.num_hidden_layers
    return {**added, **settings}


def _stays_apart(config: "PeftConfig") -> bool:
    looks_for_tokens = getattr(config, "alora_invocation_tokens", None)  # anywhere in the row
    return not config.is_prompt_learning and kind_of(config) not in _PADDED and not looks_for_tokens


def kind_of(config: "PeftConfig") -> str:
    """Return peft's type of a configuration."""
    return str(getattr(config.peft_type, "value", config.peft_type))


def read(folder: Path, load_base: "Callable[[], PreTrainedModel]") -> "tuple[PreTrainedModel, bool]":
    """Read an adapter onto its base model; also return whether packed sequences stay apart."""
    from peft import PeftModel

    ftbench.check_adapter(folder)

    def adapted() -> Any:
        return PeftModel.from_pretrained(load_base(), str(folder), autocast_adapter_dtype=False)

    model = adapted()
    apart = _stays_apart(model.peft_config["default"])
    if not hasattr(model.base_model, "merge_and_unload"):
        return model, apart
    try:
        return model.merge_and_unload(), apart
    except (NotImplementedError, ValueError, RuntimeError):
        del model  # some find half-way that they cannot: start again
        return adapted(), apart
