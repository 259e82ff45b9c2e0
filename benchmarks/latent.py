"""What latent-attention compression loses on SmolLM2-135M, by share of the cache and recipe; and what healing mends.

python benchmarks/latent.py oasst1-en-validation.jsonl                 one-shot, about ten minutes
python benchmarks/latent.py oasst1-en-validation.jsonl --heal          and 20,000 tokens of healing; an hour
python benchmarks/latent.py oasst1-en-validation.jsonl --heal --ways   and by other texts, rates and steps; an hour more

Calibration: 3,072 tokens of OASST1's conversations, or some 23,000 (`calibrate`). In-domain: others of these, 4,096
tokens. Other domain: Python's language reference, as every Python carries it, 4,096 tokens. All in texts of 512 tokens,
in float32. Healing: half on further conversations, half on texts that the base draws, or on conversations alone; none
of them has been calibrated on. A line a conversion is added to benchmarks/latent/cpu.jsonl; what is there is not made
again.
"""

import argparse
import json
from dataclasses import asdict
from math import ceil
from pathlib import Path
from pydoc_data.topics import topics
from time import perf_counter
from typing import Any

import torch

from ftbench.data.conversations import Selection
from ftbench.data.sources import read_source
from ftbench.models.chat import ChatFormat
from ftbench.models.loading import load_model, load_tokenizer
from ftbench.models.resolve import resolve_model
from ftbench.recipe import read_recipe
from ftbench_mla import alternating
from ftbench_mla.conversion import Settings, convert_keeping
from ftbench_mla.heal import HealSettings, diverge, draw_texts, heal, predict

HERE = Path(__file__).parent
LENGTH = 512
"""Tokens of a text."""

CASES: list[dict[str, Any]] = [
    *({"kv": kv, "recipe": recipe} for kv in (0.5, 0.3125, 0.1875) for recipe in ("mha2mla", "transmla", "fisher")),
    *({"kv": kv, "recipe": "fisher", "mode": "exact-rope"} for kv in (0.5, 0.3125, 0.1875)),
    {"kv": 0.5, "recipe": "plain"},
    {"kv": 0.5, "recipe": "plain", "mode": "exact-rope"},
]
FURTHER = {"calibrate": 20_000, "heal": 20_000, "texts": "conversations"}
HEALED: list[dict[str, Any]] = [
    {"kv": 0.3125, "recipe": "fisher", "heal": 20_000},
    {"kv": 0.3125, "recipe": "fisher", "mode": "exact-rope", "heal": 20_000},
    {"kv": 0.3125, "recipe": "fisher", **FURTHER},
    {"kv": 0.3125, "recipe": "fisher", "mode": "exact-rope", **FURTHER},
]
WAYS: list[dict[str, Any]] = [
    {**HEALED[0], "rope_dims": 32, **way}
    for way in (
        {"texts": "drawn", "rate": 3e-4, "step_tokens": 512},
        {"texts": "conversations", "rate": 3e-4, "step_tokens": 512},
        *({"texts": "both", "rate": rate, "step_tokens": 512} for rate in (1e-4, 3e-4, 5e-4)),
        {"texts": "both", "rate": 3e-4, "step_tokens": 512, "length": 512},
        {"texts": "both", "rate": 2e-4, "step_tokens": 256},
    )
] + [{**HEALED[1], "texts": "both", "rate": 3e-4, "step_tokens": 512}]
HEALING = {"calibrate": 0, "heal": 0, "texts": "both", "rate": 1e-4, "step_tokens": 256, "length": 256}
"""What a case may say beside settings, with what holds where it does not: tokens of further conversations to calibrate
on, tokens of healing, on which texts, learning rate, lengths."""


def main() -> None:
    """Convert what is not there yet, and print how far each is from the base."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="OASST1's English validation messages")
    parser.add_argument("--heal", action="store_true")
    parser.add_argument("--ways", action="store_true")
    given = parser.parse_args()
    path = HERE / "latent" / "cpu.jsonl"
    path.parent.mkdir(exist_ok=True)
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    calibration, healing, *domains = read_texts(given.file, base_folder())
    cases = CASES + (HEALED if given.heal else []) + (WAYS if given.ways else [])
    wanted = [case for case in cases if case not in [row["case"] for row in rows]]
    known = [[predict(base, text) for text in texts] for texts in domains] if wanted and (base := load_base()) else []
    for case in cases:
        if case not in [row["case"] for row in rows]:
            found = _measure(case, calibration, healing, domains, known)
            rows.append({"case": case, **found})
            with path.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
        _print(next(row for row in rows if row["case"] == case))


Texts = list[list[int]]


def base_folder() -> Path:
    """Return where the untouched model is."""
    return resolve_model(read_recipe("quick").model, None).folder


def read_texts(file: str, folder: Path) -> tuple[Texts, Texts, Texts, Texts]:
    """Return texts to calibrate on, to heal on, others of the same kind, and of another kind, for a folder's model."""
    chat = ChatFormat(load_tokenizer(folder))
    content = read_source(file, "en").content
    assert isinstance(content, Selection)
    pairs = [(one.prompt, one.replies[0].text) for one in content.conversations]
    talk = [token for prompt, reply in pairs for token in (*chat.prompt_ids(prompt), *chat.completion_ids(reply))]
    prose = chat.tokenizer("\n\n".join(topics[name] for name in sorted(topics)))["input_ids"]
    calibration, inside = 3072 // LENGTH, 4096 // LENGTH
    cut = [talk[begin : begin + LENGTH] for begin in range(0, len(talk) - LENGTH, LENGTH)]
    other = [prose[begin : begin + LENGTH] for begin in range(0, len(prose) - LENGTH, LENGTH)]
    step = len(other) // inside
    same, healing = cut[calibration : calibration + inside], cut[calibration + inside :]
    return cut[:calibration], healing, same, other[: inside * step : step]


def pieces(texts: Texts, length: int) -> Texts:
    """Cut each text into pieces of a length."""
    return [text[begin : begin + length] for text in texts for begin in range(0, len(text), length)]


def load_base() -> Any:
    """Return the untouched model."""
    return load_model(base_folder(), torch.device("cpu"))


def _measure(
    case: dict[str, Any], calibration: Texts, healing: Texts, domains: list[Texts], known: list[list[torch.Tensor]]
) -> dict[str, Any]:
    """Convert, heal where it is asked for, and compare."""
    torch.manual_seed(0)
    model = load_base()
    settings = Settings(**{name: value for name, value in case.items() if name not in HEALING})
    healed: dict[str, Any] = {name: case.get(name, usual) for name, usual in HEALING.items()}
    further = ceil(healed["calibrate"] / LENGTH)
    calibration, healing = calibration + healing[:further], healing[further:]
    start = perf_counter()
    teacher = convert_keeping(model, calibration, settings)
    found: dict[str, Any] = {"convert_seconds": round(perf_counter() - start, 1), "ranks": model.config.latent_ranks}
    if healed["heal"]:
        found["converted"] = divergences(model, domains, known)
        length, converted = healed["length"], perf_counter()
        many = healed["heal"] // length
        share = {"drawn": many, "both": many - many // 2, "conversations": 0}[healed["texts"]]
        with teacher.in_place() as base:
            drawn = draw_texts(base, base.config.bos_token_id, share, length, seed=0) if share else []
        talk = pieces(healing, length)[: many - share]
        texts = alternating(talk, drawn) if talk and drawn else talk or drawn
        drew = perf_counter()
        found["draw_seconds"] = round(drew - converted, 1)
        losses: list[float] = []
        settled = HealSettings(step_tokens=healed["step_tokens"])
        heal(model, teacher, texts, healed["rate"], settled, lambda loss, *_: losses.append(loss))
        found["heal_seconds"] = round(perf_counter() - drew, 1)
        found["heal_losses"] = losses
    return {**found, **divergences(model, domains, known)}


def divergences(model: Any, domains: list[Texts], known: list[list[torch.Tensor]]) -> dict[str, Any]:
    """Compare with what the base predicts in both domains."""
    return {
        name: asdict(diverge(model, texts, predicted))
        for name, texts, predicted in zip(("inside", "outside"), domains, known, strict=True)
    }


def _print(row: dict[str, Any]) -> None:
    what = ", ".join(f"{name} {value}" for name, value in row["case"].items())
    forms = {"kl": "{:.3f}", "agreement": "{:.0%}", "perplexity_ratio": "{:.2f}"}
    kl, same, ratio = (
        " / ".join(form.format(row[where][name]) for where in ("inside", "outside")) for name, form in forms.items()
    )
    before = row.get("converted")
    if before:
        kl += f" (before healing {before['inside']['kl']:.3f} / {before['outside']['kl']:.3f})"
    seconds = row["convert_seconds"]
    print(f"{what:45} KL {kl}, same likeliest token {same}, perplexity x {ratio}; {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
