"""What latent attention needs to be read again, once it is exported."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ftbench.errors import FtbenchError
from ftbench.execution.reloading import reload_run
from ftbench.export.folder import export_folder
from ftbench.export.gguf import export_gguf
from ftbench.files import write_json, write_jsonl
from ftbench.models.loading import load_plain
from ftbench.models.resolve import resolve_model
from ftbench.plugins import load_plugins
from ftbench.recipe import Recipe
from ftbench.results.result import Environment, Measures, Result
from ftbench.results.store import Run, read_run
from ftbench_mla.conversion import Settings, convert


def make_run(folder: Path, base: Path) -> Run:
    """A run of `mla` whose model is converted and not trained."""
    model = convert(load_plain(base, torch.device("cpu")), [list(range(3, 250))] * 2, Settings(kv=0.5))
    recipe = Recipe(algorithm="mla", model=str(base), precision="float32")
    result = Result(
        status="ok",
        recipe=recipe,
        recipe_digest=recipe.digest(),
        plugin="ftbench-mla",
        plugin_version="0.1.0",
        started="2026-01-01T00:00:00.000+00:00",
        model_digest=resolve_model(str(base)).digest,
        measures=Measures(training_tokens=10),
        environment=Environment(hardware="none", cores=1, system="Linux", versions={}),
    )
    folder.mkdir()
    model.save_pretrained(folder / "model")
    write_json(folder / "result.json", result.model_dump(mode="json"))
    asked = {"prompt": "Why?", "reply": "So.", "base_reply": None, "score": 0.5, "on_topic": True}
    write_jsonl(
        folder / "replies.jsonl", [asked | {"tokens": 2, "ended": True, "ordinary_nll": None, "ordinary_tokens": None}]
    )
    return read_run(folder)


READ = """
import sys
from transformers import AutoModelForCausalLM
if sys.argv[2:]:
    __import__(sys.argv[2])
AutoModelForCausalLM.from_pretrained(sys.argv[1])
"""


def test_it_says_what_must_be_imported(tiny_llama: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "mla-s0-1", tiny_llama)
    to = tmp_path / "model"
    written = export_folder(run, load_plugins(), to)
    assert written.needs == "ftbench_mla.modeling"
    assert f"import {written.needs}  # from ftbench-mla 0.1.0" in (to / "README.md").read_text("utf-8")
    alone, with_plugin = (
        subprocess.run([sys.executable, "-c", READ, str(to), *more], capture_output=True, text=True, check=False)
        for more in ([], [written.needs])
    )
    assert alone.returncode
    assert "ftbench_mla_llama" in alone.stderr
    assert with_plugin.returncode == 0, with_plugin.stderr
    ids = torch.tensor([[5, 80, 33, 200]])
    with torch.inference_mode():
        exported, reloaded = (
            load_plain(to, torch.device("cpu")),
            reload_run(run, load_plugins(), load_plain).model,
        )
        assert torch.equal(exported(ids).logits, reloaded(ids).logits)


def test_llama_cpp_knows_no_such_model(tiny_llama: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "mla-s0-1", tiny_llama)
    with pytest.raises(FtbenchError, match=r"^llama\.cpp knows no model of ftbench_mla\.modeling; use --to FOLDER"):
        export_gguf(run, load_plugins(), tmp_path / "a.gguf")
    assert not (tmp_path / "a.gguf").exists()
