"""Puts recorded figures into the README: `python benchmarks/readme.py` writes, `--check` only compares."""

import re
import sys
from pathlib import Path

from ftbench.results.rows import build_groups
from ftbench.results.store import find_run, read_runs
from ftbench.results.table import render

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"


def table(source: Path) -> str:
    """The table of a folder of runs, as `ftbench table` prints it."""
    runs, warnings = read_runs(source)
    assert not warnings, warnings
    return render(build_groups(runs), "github")


def replies(source: Path) -> str:
    """The first replies of the LoRA run beside the base model's."""
    lines = []
    for item in find_run("lora", source).replies()[:4]:
        verdict = "adheres" if item.on_topic else "strays"
        lines += [f"> {' '.join(item.prompt.split())}", "", f"- lora ({verdict}): {' '.join(item.reply.split())}"]
        lines += [f"- base: {' '.join((item.base_reply or '').split())}", ""]
    return "\n".join(lines).rstrip()


def plugin(source: Path) -> str:
    """A file of Python."""
    return f"```python\n{source.read_text('utf-8').rstrip()}\n```"


MAKERS = {"table": table, "replies": replies, "plugin": plugin}


def filled(text: str) -> str:
    """Return the README with every marked place filled anew."""
    for kind, make in MAKERS.items():
        pattern = re.compile(rf"(<!-- {kind}: (\S+) -->\n).*?(<!-- /{kind} -->)", re.DOTALL)
        text = pattern.sub(lambda m, make=make: f"{m[1]}\n{make(ROOT / m[2])}\n\n{m[3]}", text)  # type: ignore[misc]
    return text


def main() -> None:
    """Write or check."""
    before = README.read_text("utf-8")
    after = filled(before)
    if "--check" in sys.argv:
        sys.exit("README.md is not up to date: python benchmarks/readme.py" if before != after else 0)
    README.write_text(after, "utf-8")


if __name__ == "__main__":
    main()
