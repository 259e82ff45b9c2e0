"""Says which checks of `ftbench check all --json` were skipped, and fails where another was than is known."""

import json
import sys
from collections import defaultdict
from pathlib import Path

TRAINS_NOTHING = {"trains", "trainable", "reloads", "seed", "resumes", "accumulation", "memory"}
OWN_TRAINER = {"resumes", "accumulation", "memory"}
KNOWN = {
    "base": TRAINS_NOTHING,
    "prompt": TRAINS_NOTHING,
    **dict.fromkeys(("trl-sft", "trl-dpo", "trl-orpo"), OWN_TRAINER),
}


def main() -> None:
    """Compare what was skipped with what is known to be."""
    rows = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    skipped: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        if row["verdict"] == "skipped":
            skipped[row["algorithm"]].add(row["check"])
    for name, checks in skipped.items():
        if checks != KNOWN.get(name, set()):
            words = {row["check"]: row["text"] for row in rows if row["algorithm"] == name and row["text"]}
            sys.exit(f"{name}: skipped {words}; known to be skipped: {sorted(KNOWN.get(name, ()))}")
    passed = sum(row["verdict"] == "passed" for row in rows)
    print(f"{len({row['algorithm'] for row in rows})} algorithms, {passed} checks passed, {len(rows) - passed} skipped")


if __name__ == "__main__":
    main()
