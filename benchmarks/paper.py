"""What 5 algorithms x 6 learning rates x 5 seeds on an 8B model would cost: every figure of docs/costs.md.

python benchmarks/paper.py [--tokens-per-second 2500] [--price 2.5] [--tokens 10e6]

Nothing here was measured on a card. Bytes are what `ftbench plan --model benchmarks/configs/llama-8b --memory-budget
80GiB --device cuda` predicts. Hours are arithmetic: FLOP a token, over a share of the card's rate that is assumed,
unless --tokens-per-second says what LoRA was measured at; the others are then scaled by their FLOP.
"""

import argparse
from dataclasses import dataclass

PARAMETERS = 8.03e9
RATE = 989e12  # FLOP/s: an H100 SXM's dense bf16, as its maker states it
SHARES = (0.3, 0.5)
FIXED_HOURS = 5 / 60  # loading twice, planning, saving, evaluation: assumed
SHARDED = 0.9  # of the speed that is left to each of several cards: assumed
RATES, SEEDS, NODE = 6, 5, 8
KEPT_EVERY, BACK_AFTER = 300 / 3600, 10 / 60  # hours: the default of --save-every; a new node: assumed


@dataclass(frozen=True)
class Kind:
    """An algorithm: FLOP a token and parameter, predicted bytes, cards a run, bytes of what is stored."""

    name: str
    flop: int
    predicted: float
    cards: int
    stored: float


KINDS = (
    Kind("full", 6, 128.49e9, 2, 16.06e9),
    Kind("lora", 4, 18.98e9, 1, 0.084e9),  # no gradients of frozen weights
    Kind("dpo", 6, 21.31e9, 1, 0.084e9),  # and a forward pass of the reference
    Kind("orpo", 4, 21.31e9, 1, 0.084e9),
    Kind("simpo", 4, 21.31e9, 1, 0.084e9),
)


def main() -> None:
    """Print the page's figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens-per-second", type=float, help="what LoRA was measured at, on one card")
    parser.add_argument("--price", type=float, default=2.5, help="of a card's hour")
    parser.add_argument("--tokens", type=float, default=10e6, help="real tokens a run")
    given = parser.parse_args()
    stored = sum(kind.stored for kind in KINDS) * RATES * SEEDS
    print(f"{len(KINDS) * RATES * SEEDS} runs of {given.tokens / 1e6:g}M tokens; models stored: {stored / 1e9:.0f} GB")
    for kind in KINDS:
        print(f"{kind.name:6} {kind.predicted / 1e9:6.1f} GB predicted, {kind.cards} card(s) a run")
    measured = given.tokens_per_second
    speeds = [measured] if measured else [RATE * share / (4 * PARAMETERS) for share in SHARES]
    for speed in speeds:
        print(f"\nLoRA at {speed:,.0f} tokens/s")
        hours = {kind: _hours(kind, speed, given.tokens) for kind in KINDS}
        print("  hours a run: " + ", ".join(f"{kind.name} {time:.2f}" for kind, time in hours.items()))
        for cards in (8, 64):
            _schedule(hours, cards, given.price)


def _hours(kind: Kind, speed: float, tokens: float) -> float:
    share = SHARDED if kind.cards > 1 else 1.0
    return tokens / (speed * 4 / kind.flop * kind.cards * share) / 3600 + FIXED_HOURS


def _schedule(hours: dict[Kind, float], cards: int, price: float) -> None:
    """Give each run, those of most card-hours first, to a node's cards that are free soonest; print it all."""
    free = [[0.0] * NODE for _ in range(cards // NODE)]
    used = 0.0
    for kind, time in sorted(hours.items(), key=lambda item: -item[1] * item[0].cards):
        for _ in range(RATES * SEEDS):
            node = min(free, key=lambda times: sorted(times)[kind.cards - 1])
            node.sort()
            end = node[kind.cards - 1] + time
            node[: kind.cards] = [end] * kind.cards
            used += time * kind.cards
    wall = max(max(node) for node in free)
    # Of a training over several cards no state is kept.
    lost = NODE * (max([KEPT_EVERY, *(time for kind, time in hours.items() if kind.cards > 1)]) + BACK_AFTER)
    paid = cards * wall
    print(
        f"  {cards:2} cards: {wall:.1f} h, {used:.0f} card-hours used, {paid:.0f} paid ({paid * price:,.0f} "
        f"at {price:g} an hour), {1 - used / paid:.0%} idle; a lost node costs at most {lost:.1f} card-hours"
    )


if __name__ == "__main__":
    main()
