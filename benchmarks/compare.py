"""Runs the comparisons that the README and the diary show, and records all of each run but its weights.

python benchmarks/compare.py quick
python benchmarks/compare.py oasst1 oasst1-en-validation.jsonl
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent


def main() -> None:
    """Run one comparison in a fresh folder, then put its record in place of the old one."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name == "quick":
        record, settings = HERE / "quick", ["--algo", "all"]
    elif name == "oasst1" and len(sys.argv) > 2:
        record = HERE / "oasst1-validation"
        settings = ["--algo", "lora", "--recipe", "oasst1-smollm2", "--data", sys.argv[2], "--topic", "programming"]
    else:
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "ftbench", "run", "--out", out, *settings]
        code = subprocess.run(command, check=False).returncode
        if code:
            sys.exit(code)
        shutil.rmtree(record, ignore_errors=True)
        shutil.copytree(out, record, ignore=shutil.ignore_patterns("model", "log.txt"))


if __name__ == "__main__":
    main()
