"""Strangers' plugins as pip would leave them, and the command line in a process of its own or in this one."""

import io
import os
import subprocess
import sys
import tomllib
from contextlib import ExitStack, chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

from ftbench.cli import main

GOOD = '''
import ftbench

class Good(ftbench.Algorithm):
    """Does what the default does."""
    name = "good"

@ftbench.hookimpl
def ftbench_algorithms():
    return [Good]
'''

FAULTS = '''
import os
import signal
import time
from pathlib import Path

import ftbench


class Raises(ftbench.Algorithm):
    """Raises an error of two lines."""
    name = "raises"
    def adapt(self, model, calibration):
        raise KeyError("no such layer\\nin this model")


class Killed(ftbench.Algorithm):
    """Is killed, as by the kernel when memory runs out."""
    name = "killed"
    def adapt(self, model, calibration):
        os.kill(os.getpid(), signal.SIGKILL)


class Crashes(ftbench.Algorithm):
    """Crashes half-way through saving."""
    name = "crashes"
    def save(self, model, folder):
        (folder / "model.safetensors").write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGSEGV)


class Silent(ftbench.Algorithm):
    """Trains without a report."""
    name = "silent"
    def train(self, training):
        pass


class Sleeps(ftbench.Algorithm):
    """Hangs in training."""
    name = "sleeps"
    def train(self, training):
        time.sleep(600)


class Eats(ftbench.Algorithm):
    """Takes 2 GiB."""
    name = "eats"
    def adapt(self, model, calibration):
        import torch
        self.held = torch.ones(2**31, dtype=torch.uint8)
        return model


class Skips(ftbench.Algorithm):
    """Cannot apply."""
    name = "skips"
    def skip(self, recipe):
        return "boats cannot be taught"


class SkipRaises(ftbench.Algorithm):
    """Does not even get to say whether it applies."""
    name = "skip-raises"
    def skip(self, recipe):
        raise ZeroDivisionError("a ratio of nothing")


class Zeroed(ftbench.Algorithm):
    """Trains, and saves zeros."""
    name = "zeroed"
    def save(self, model, folder):
        import copy
        zeros = copy.deepcopy(model)
        for parameter in zeros.parameters():
            parameter.data.zero_()
        zeros.save_pretrained(folder)


class Fills(ftbench.Algorithm):
    """Fills the disk that the working folder is on."""
    name = "fills"
    def adapt(self, model, calibration):
        with Path("filler").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1024))


@ftbench.hookimpl
def ftbench_algorithms():
    return [Raises, Killed, Crashes, Silent, Sleeps, Eats, Skips, SkipRaises, Zeroed, Fills]
'''


def install(folder: Path, name: str, source: str, version: str = "1.0", needs: str = "ftbench") -> Path:
    """Write a distribution with one module into `folder`, as pip does; the folder is ready for PYTHONPATH."""
    module = name.replace("-", "_")
    info = folder / f"{module}-{version}.dist-info"
    info.mkdir(parents=True)
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Dist: {needs}\n"
    (info / "METADATA").write_text(metadata)
    (info / "entry_points.txt").write_text(f"[ftbench]\n{module} = {module}\n")
    (folder / f"{module}.py").write_text(source)
    return folder


def editable(folder: Path, site: Path) -> Path:
    """Write into `site` what pip does of a distribution installed with -e: metadata, and where its sources are."""
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    info = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir(parents=True)
    needs = "".join(f"Requires-Dist: {need}\n" for need in project["dependencies"])
    named = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n{needs}"
    (info / "METADATA").write_text(named)
    entries = "".join(f"{key} = {value}\n" for key, value in project["entry-points"]["ftbench"].items())
    (info / "entry_points.txt").write_text(f"[ftbench]\n{entries}")
    return site


def command_line(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "ftbench", *map(str, arguments)]


def environment(plugins: Path | None = None) -> dict[str, str]:
    """One thread a process: the models are tiny, and tests run two launchers at once.

    Bytecode may be cached, whatever the caller's environment says: it halves the seconds that a worker imports for.
    """
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": ""}
    if plugins is None:
        return variables
    given = [path for path in [os.environ.get("PYTHONPATH")] if path]  # where a checkout that is not installed is
    return {**variables, "PYTHONPATH": os.pathsep.join([str(plugins), *given])}


def ftbench(
    *arguments: str | Path, plugins: Path | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Call the command line in a process of its own."""
    return subprocess.run(
        command_line(*arguments),
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
        cwd=cwd,
        env=environment(plugins),
    )


def ftbench_here(*arguments: object, cwd: Path, apart: bool = False) -> subprocess.CompletedProcess[str]:
    """Call the command line in this process, which has imported what it needs.

    Workers work here, too, one after the other; `apart` leaves them processes of their own, as a memory budget needs.
    """
    from working_here import WorkingHere

    out, errors = io.StringIO(), io.StringIO()
    with ExitStack() as stack:
        if not apart:
            stack.enter_context(patch("ftbench.execution.machine.Workers", WorkingHere))
        stack.enter_context(chdir(cwd))
        stack.enter_context(redirect_stdout(out))
        stack.enter_context(redirect_stderr(errors))
        stack.enter_context(patch.dict(os.environ, environment()))
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as ended:
            code = ended.code
    assert isinstance(code, int)
    return subprocess.CompletedProcess(["ftbench", *map(str, arguments)], code, out.getvalue(), errors.getvalue())
