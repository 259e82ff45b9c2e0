"""What tests of the core and of the plugins do with tiny models: load, train, look at logits."""

import random
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ftbench.algorithm import Algorithm
from ftbench.memory.fit import Fit
from ftbench.models.loading import load_model, load_tokenizer
from ftbench.training.batching import Plan
from ftbench.training.encoding import EncodedExample, TokenSequence
from ftbench.training.logprobs import completion_logprobs
from ftbench.training.trainer import OptimiserSettings, StepReport, Training

VOCABULARY = 259
IDS = torch.arange(3, 43)[None]


def load(folder: Path) -> PreTrainedModel:
    """Load a model folder onto the CPU."""
    return load_model(folder, torch.device("cpu"))


def drop_nothing(model: PreTrainedModel) -> None:
    """Switch dropout off, or two passes in training mode would draw differently."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for name in ("attn_pdrop", "attention_dropout"):
        if hasattr(model.config, name):
            setattr(model.config, name, 0.0)


def logits(model: PreTrainedModel) -> Tensor:
    """Logits of forty fixed tokens, `[1, 40, vocabulary]`."""
    with torch.inference_mode():
        return model(input_ids=IDS).logits  # type: ignore[no-any-return]


def draw_sequence(draw: random.Random, prompt: int | None = None) -> TokenSequence:
    """Draw a sequence of a random length."""
    prompt = prompt or draw.randint(1, 24)
    ids = tuple(draw.randrange(3, VOCABULARY) for _ in range(prompt + draw.randint(1, 32)))
    return TokenSequence(ids, prompt)


def draw_pairs(seed: int, count: int = 5, prompt: int | None = None) -> tuple[EncodedExample, ...]:
    """Draw examples of unequal lengths, the prompt of both completions the same."""
    draw = random.Random(seed)
    examples = []
    for _ in range(count):
        chosen = draw_sequence(draw, prompt)
        rejected = draw_sequence(draw, chosen.prompt_length)
        same_prompt = chosen.ids[: chosen.prompt_length] + rejected.ids[chosen.prompt_length :]
        examples.append(EncodedExample(chosen, TokenSequence(same_prompt, chosen.prompt_length)))
    return tuple(examples)


def lead(model: PreTrainedModel, pairs: Sequence[EncodedExample]) -> float:
    """By how much chosen completions are likelier than rejected ones: nats a token, mean over the pairs."""
    with torch.no_grad():
        found = completion_logprobs(model, pairs)
    return (found.chosen.per_token - found.rejected.per_token).mean().item()


def make_training(
    model: PreTrainedModel,
    examples: Sequence[EncodedExample],
    *,
    tokens: int = 800,
    learning_rate: float = 1e-2,
    reports: list[StepReport] | None = None,
    start: str | None = None,
    packed: bool = True,
) -> Training:
    """What an algorithm's train() is handed."""
    return Training(
        model,
        load_tokenizer(Path(model.config._name_or_path)),
        Plan(tuple(examples), tokens, effective_batch_size=8, seed=0),
        Fit(micro_batch_tokens=100),
        OptimiserSettings(learning_rate, 0.0, 0.1, 1.0),
        (reports if reports is not None else []).append,
        start,
        packed,
    )


def train(algorithm: Algorithm, model: PreTrainedModel, *, tokens: int = 800, rate: float = 1e-2) -> list[StepReport]:
    """Train on counting sequences, or pairs of them, and return the reports."""
    chosen = [TokenSequence(tuple(range(n, n + 20)), 5) for n in range(3, 40)]
    pairs = algorithm.needs == "preferences"
    rejected = [TokenSequence((*s.ids[:5], *reversed(s.ids[5:])), 5) if pairs else None for s in chosen]
    examples = [EncodedExample(*pair) for pair in zip(chosen, rejected, strict=True)]
    reports: list[StepReport] = []
    training = make_training(
        model, examples, tokens=tokens, learning_rate=rate, reports=reports, packed=algorithm.packed
    )
    algorithm.train(training)
    return reports
