"""Runs the comparisons that the README and the diary show, and records all of each run but its weights and log.

python benchmarks/compare.py quick
python benchmarks/compare.py preferences
python benchmarks/compare.py style
python benchmarks/compare.py halved
python benchmarks/compare.py oasst1 oasst1-en-validation.jsonl

With --runs FOLDER the runs are made there and kept: called again, it goes on where it was interrupted. What else is
given goes to `ftbench run`: --seeds 3 --tune makes the comparison that takes a night. A run that failed is a row, too.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
TASKS = {
    "quick": "quick",
    "preferences": "preferences",
    "style": "style",
    "halved": "halved",
    "oasst1": "oasst1-validation",
}


def main() -> None:
    """Run one comparison, then put its record in place of the old one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("file", nargs="?", help="OASST1's English validation messages, for oasst1")
    parser.add_argument("--runs", type=Path, help="folder of the runs; by default a temporary one")
    given, more = parser.parse_known_args()
    if given.task == "quick":
        settings = ["--algo", "all"]
    elif given.task == "preferences":
        settings = [part for name in ("base", "lora", "dpo", "simpo", "orpo", "simper") for part in ("--algo", name)]
    elif given.task == "style":
        settings = ["--task", "style", "--topic", "capitals", "--algo", "base", "--algo", "lora"]
    elif given.task == "halved":
        settings = ["--algo", "base", "--algo", "full", "--algo", "mla", "--set", "mla.kv=0.5"]
    elif given.file:
        settings = ["--recipe", "oasst1-smollm2", "--data", given.file, "--topic", "programming"]
        settings += [part for name in ("full", "lora", "dpo", "orpo") for part in ("--algo", name)]
    else:
        parser.error("oasst1 needs the file")
    with tempfile.TemporaryDirectory() as temporary:
        runs = given.runs or Path(temporary)
        command = [sys.executable, "-m", "ftbench", "run", "--out", str(runs), *settings, *more]
        code = subprocess.run(command, check=False).returncode
        if code not in (0, 1):
            sys.exit(code)
        record = HERE / TASKS[given.task]
        shutil.rmtree(record, ignore_errors=True)
        shutil.copytree(runs, record, ignore=shutil.ignore_patterns("model", "log.txt", ".*"))
    sys.exit(code)


if __name__ == "__main__":
    main()
