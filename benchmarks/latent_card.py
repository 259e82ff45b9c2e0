"""Latent attention on a card: how fast a converted SmolLM2-135M goes on, and what long healing leaves of its loss.

python benchmarks/latent_card.py decode oasst1-en-validation.jsonl   8k of context, 64 rows; two minutes
python benchmarks/latent_card.py heal oasst1-en-validation.jsonl     100 million tokens; ten minutes or two

Both keep 31.25 % of the cache, in bf16. Decoding: tokens/s of the converted model and of the base, whose attention is
torch's SDPA, in turn, medians of five; all layers have one rank, and latent and rotated part together a multiple of 8.
Healing: on OASST1's conversations, each four times at most, in turn with texts that the base draws as they are asked
for; the figures are those of benchmarks/latent.py, on texts of two kinds that were not healed on. A line each is added
to benchmarks/latent/DEVICE.jsonl, with when, where and of which code it is. It exits with 1 where the converted model
is less than twice as fast, or its perplexity of conversations more than 1.03 times the base's.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, overload

import torch
from latent import base_folder, pieces, read_texts
from origin import machine, now

from ftbench.models.loading import load_plain
from ftbench_mla.conversion import Settings, Teacher, convert, convert_keeping
from ftbench_mla.decode import STEPS, decode_speed
from ftbench_mla.heal import HealSettings, diverge, draw_texts, heal, predict
from ftbench_mla.modeling import layers_of

HERE = Path(__file__).parent
KEPT = 0.3125
TIMES = 5
PASSES = 4
"""How often a conversation is healed on at most."""
CUT = 256
"""Tokens of a text that is healed on."""
GOALS = {"decode": 2.0, "heal": 1.03}


@dataclass(frozen=True)
class Sizes:
    """How much is done: rows and tokens before those whose speed is measured; tokens of healing, of a step, drawn rows.

    `rate` is the highest of healing.
    """

    batch: int = 64
    context: int = 8192
    tokens: int = 100_000_000
    step_tokens: int = 65_536
    rows: int = 2048
    rate: float = 3e-4


def main() -> None:
    """Measure one of the two, print it and add it to the records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=GOALS)
    parser.add_argument("file", help="OASST1's English validation messages")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    for name, usual in asdict(Sizes()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(usual), default=usual)
    given = vars(parser.parse_args())
    sizes = Sizes(**{name: given[name] for name in asdict(Sizes())})
    measure = {"decode": measure_decoding, "heal": measure_healing}[given["what"]]
    found = measure(base_folder(), given["file"], torch.device(given["device"]), sizes)
    row = {"what": given["what"], **found, "when": now(), "environment": machine(given["device"])}
    with (HERE / "latent" / f"{given['device']}.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(found, indent=1))
    reached = found["times"] >= GOALS["decode"] if given["what"] == "decode" else found["ratio"] <= GOALS["heal"]
    sys.exit(0 if reached else 1)


def measure_decoding(folder: Path, file: str, device: torch.device, sizes: Sizes) -> dict[str, Any]:
    """Return tokens/s behind a context, of the base and of the converted model."""
    base, other = (load_plain(folder, device, "bf16") for _ in range(2))
    attention: Any = layers_of(base)[0].self_attn
    kept = round(KEPT * (attention.k_proj.out_features + attention.v_proj.out_features))
    rotated = 8 * round(kept / 4 / 8)
    converted = convert(other, read_texts(file, folder)[0], Settings(rank=kept - rotated, rope_dims=rotated))
    context = min(sizes.context, base.config.max_position_embeddings - STEPS)
    speeds: dict[str, list[float]] = {"base": [], "converted": []}
    for _ in range(TIMES):
        speeds["base"].append(decode_speed(base, context, sizes.batch))
        speeds["converted"].append(decode_speed(converted, context, sizes.batch))
    times = median(speeds["converted"]) / median(speeds["base"])
    return {"context": context, "batch": sizes.batch, "kept": kept, "tokens_per_second": speeds, "times": times}


def measure_healing(folder: Path, file: str, device: torch.device, sizes: Sizes) -> dict[str, Any]:
    """Return how far a converted model is from the base before healing and after it."""
    torch.manual_seed(0)
    calibration, healing, *domains = read_texts(file, folder)
    model = load_plain(folder, device, "bf16")
    known = [[predict(model, text) for text in texts] for texts in domains]
    teacher = convert_keeping(model, calibration, Settings(kv=KEPT))

    def compared() -> dict[str, Any]:
        names = zip(("inside", "outside"), domains, known, strict=True)
        return {name: asdict(diverge(model, texts, predicted)) for name, texts, predicted in names}

    before, start = compared(), perf_counter()
    talk = pieces(healing, CUT)
    begin = talk[0][0] if model.config.bos_token_id is None else model.config.bos_token_id
    texts = Alternating(talk, sizes.tokens // CUT, lambda seed: speak(teacher, begin, sizes.rows, seed))
    settings = HealSettings(sizes.step_tokens, min(sizes.step_tokens, 16_384))
    losses: list[float] = []
    heal(model, teacher, texts, sizes.rate, settings, lambda loss, *_: losses.append(loss))
    seconds, after = perf_counter() - start, compared()
    ratio = after["inside"]["perplexity_ratio"]
    facts = {"tokens": len(texts) * CUT, "seconds": seconds, "losses": losses[:: max(1, len(losses) // 100)]}
    return {**facts, "converted": before, "healed": after, "ratio": ratio}


def speak(teacher: Teacher, begin: int, rows: int, seed: int) -> list[list[int]]:
    """Let the base draw so many texts that begin with a token."""
    with teacher.in_place() as base:
        return draw_texts(base, begin, rows, CUT, seed, rows)


@dataclass
class Alternating(Sequence[list[int]]):
    """Given texts, each a few times, in turn with drawn ones, which are made when they are asked for, in order."""

    given: list[list[int]]
    many: int
    draw: Callable[[int], list[list[int]]]
    _drawn: list[list[int]] = field(default_factory=list)
    _made: int = 0

    def __len__(self) -> int:
        return self.many

    @overload
    def __getitem__(self, at: int) -> list[int]: ...
    @overload
    def __getitem__(self, at: slice) -> list[list[int]]: ...
    def __getitem__(self, at: int | slice) -> list[int] | list[list[int]]:
        if isinstance(at, slice):
            return [self._take(index) for index in range(*at.indices(self.many))]
        return self._take(range(self.many)[at])

    def _take(self, index: int) -> list[int]:
        turn, drawn = divmod(index, 2)
        if not drawn and turn < PASSES * len(self.given):
            return self.given[turn % len(self.given)]
        if not self._drawn:
            self._made += 1
            self._drawn = self.draw(self._made)
        return self._drawn.pop()


if __name__ == "__main__":
    main()
