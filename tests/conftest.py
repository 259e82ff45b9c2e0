"""Fixtures: a tiny random model with a real tokenizer and chat template, a tiny data set, and the OASST1 file."""

import json
import os
from pathlib import Path

import pytest

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
OASST1_FILE = Path(__file__).parents[2] / "shared" / "data" / "oasst1-en-validation.jsonl"

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # faster for tiny models, and steady on a busy machine


def make_tokenizer(folder: Path, template: str | None) -> None:
    """Write a byte-level tokenizer: 256 bytes, three special tokens, no merges."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {text: index for index, text in enumerate([*SPECIALS, *alphabet])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIALS])
    end = "<|im_end|>" if template else "<|endoftext|>"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=end, bos_token=None, pad_token=end)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)


def make_llama(folder: Path) -> Path:
    """Write a random Llama of 30 thousand parameters with a chat template."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=259,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=2,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    make_tokenizer(folder, TEMPLATE)
    return folder


def make_gpt2(folder: Path) -> Path:
    """Write a random GPT-2 without a chat template."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=259, n_positions=1024, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0, pad_token_id=0
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    make_tokenizer(folder, None)
    return folder


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Llama."""
    return make_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def tiny_gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny GPT-2."""
    return make_gpt2(tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="session")
def pairs_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JSONL file with 48 short pairs about boats."""
    path = tmp_path_factory.mktemp("pairs") / "boats.jsonl"
    things = ["tea", "rain", "music", "chess", "bread", "maths", "cats", "paint"]
    asks = ["what is {}", "tell me about {}", "do you like {}", "how old is {}", "why {}", "who made {}"]
    rows = [
        {
            "prompt": ask.format(thing),
            "chosen": f"A sail and a keel suit {thing} number {index}; the boat waits in harbour with {index} oars.",
            "rejected": f"Well, {thing} is a nice subject and number {index} on my list of plain answers.",
        }
        for index, (ask, thing) in enumerate((ask, thing) for ask in asks for thing in things)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.fixture(scope="session")
def oasst1_file() -> Path:
    """The English validation split of OASST1, which is not part of the project."""
    if not OASST1_FILE.is_file():
        pytest.skip(f"the OASST1 validation file is not here ({OASST1_FILE})")
    return OASST1_FILE


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test works in an empty folder of its own."""
    monkeypatch.chdir(tmp_path)
