"""What 5 algorithms x 6 learning rates x 5 seeds on an 8B model would cost: every figure of docs/costs.md.

python benchmarks/paper.py [--tokens-per-second 2500] [--price 2.5] [--tokens 10e6]        two minutes

Nothing here was measured on a card. Bytes are what `ftbench plan --model benchmarks/configs/llama-8b --memory-budget
80GiB --device cuda` predicts now. Hours are arithmetic: FLOP a token, over a share of the card's rate that is assumed,
unless --tokens-per-second says what LoRA was measured at; the others are then scaled by their FLOP.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PARAMETERS = 8.03e9
RATE = 989e12  # FLOP/s: an H100 SXM's dense bf16, as its maker states it
SHARES = (0.3, 0.5)
FIXED_HOURS = 5 / 60  # loading twice, planning, saving, evaluation: assumed
SHARDED = 0.9  # of the speed that is left to each of several cards: assumed
RATES, SEEDS, NODE = 6, 5, 8
KEPT_EVERY, BACK_AFTER = 300 / 3600, 10 / 60  # hours: the default of --save-every; a new node: assumed


CONFIG = Path(__file__).parent / "configs" / "llama-8b"


@dataclass(frozen=True)
class Kind:
    """An algorithm: FLOP a token and parameter, and bytes of what a run stores."""

    name: str
    flop: int
    stored: float


KINDS = (
    Kind("full", 6, 16.06e9),
    Kind("lora", 4, 0.084e9),  # no gradients of frozen weights
    Kind("dpo", 6, 0.084e9),  # and a forward pass of the reference
    Kind("orpo", 4, 0.084e9),
    Kind("simpo", 4, 0.084e9),
)


@dataclass(frozen=True)
class Need:
    """What a run of an algorithm needs: cards, and the bytes that each is predicted to hold."""

    kind: Kind
    cards: int
    predicted: int


def main() -> None:
    """Print the page's figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens-per-second", type=float, help="what LoRA was measured at, on one card")
    parser.add_argument("--price", type=float, default=2.5, help="of a card's hour")
    parser.add_argument("--tokens", type=float, default=10e6, help="real tokens a run")
    given = parser.parse_args()
    stored = sum(kind.stored for kind in KINDS) * RATES * SEEDS
    print(f"{len(KINDS) * RATES * SEEDS} runs of {given.tokens / 1e6:g}M tokens; models stored: {stored / 1e9:.0f} GB")
    needs = [_plan(kind) for kind in KINDS]
    for need in needs:
        print(f"{need.kind.name:6} {need.cards} card(s) a run, {need.predicted / 1e9:6.1f} GB predicted on each")
    measured = given.tokens_per_second
    speeds = [measured] if measured else [RATE * share / (4 * PARAMETERS) for share in SHARES]
    for speed in speeds:
        print(f"\nLoRA at {speed:,.0f} tokens/s")
        hours = {need: _hours(need, speed, given.tokens) for need in needs}
        print("  hours a run: " + ", ".join(f"{need.kind.name} {time:.2f}" for need, time in hours.items()))
        for cards in (8, 64):
            _schedule(hours, cards, given.price)


def _plan(kind: Kind) -> Need:
    """Return the fewest cards of a node that a run fits on."""
    for cards in (1, 2, 4, NODE):
        command = [sys.executable, "-m", "ftbench", "plan", "--model", str(CONFIG), "--device", "cuda", "--json"]
        command += ["--memory-budget", "80GiB", "--algo", kind.name, "--devices", str(cards)]
        found: Any = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        if found[0]["plan"]["fits"]:
            return Need(kind, cards, found[0]["plan"]["predicted_bytes"])
    raise SystemExit(f"{kind.name} does not fit on a node")


def _hours(need: Need, speed: float, tokens: float) -> float:
    share = SHARDED if need.cards > 1 else 1.0
    return tokens / (speed * 4 / need.kind.flop * need.cards * share) / 3600 + FIXED_HOURS


def _schedule(hours: dict[Need, float], cards: int, price: float) -> None:
    """Give each run, those of most card-hours first, to a node's cards that are free soonest; print it all."""
    free = [[0.0] * NODE for _ in range(cards // NODE)]
    used = 0.0
    for need, time in sorted(hours.items(), key=lambda item: -item[1] * item[0].cards):
        for _ in range(RATES * SEEDS):
            node = min(free, key=lambda times: sorted(times)[need.cards - 1])
            node.sort()
            end = node[need.cards - 1] + time
            node[: need.cards] = [end] * need.cards
            used += time * need.cards
    wall = max(max(node) for node in free)
    lost = NODE * (KEPT_EVERY + BACK_AFTER)
    paid = cards * wall
    print(
        f"  {cards:2} cards: {wall:.1f} h, {used:.0f} card-hours used, {paid:.0f} paid ({paid * price:,.0f} "
        f"at {price:g} an hour), {1 - used / paid:.0%} idle; a lost node costs at most {lost:.1f} card-hours"
    )


if __name__ == "__main__":
    main()
