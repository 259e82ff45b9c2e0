"""Writes the plugin: whole or not at all, and never over what is there."""

import keyword
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Literal

from ftbench.algorithm import NO_ADAPTER
from ftbench.contract import ALL
from ftbench.errors import UsageError
from ftbench.files import disk_error, follow_umask, sync_folder
from ftbench.plugins import GROUP
from ftbench.registry import Registry

Changes = Literal["loss", "model", "trainer"]

WHAT: dict[Changes, str] = {
    "loss": "a loss that keeps the rejected completion a margin below the chosen one",
    "model": "tuning of biases and normalisation alone",
    "trainer": "a trainer of its own, with the optimiser Lion",
}
"""What the algorithm that each template holds does."""
LONGEST = 40


@dataclass(frozen=True)
class Names:
    """An algorithm's name, and those that are made of it."""

    algorithm: str

    @property
    def distribution(self) -> str:
        """What pip installs."""
        return f"{GROUP}-{self.algorithm}"

    @property
    def module(self) -> str:
        """What Python imports."""
        return self.distribution.replace("-", "_")

    @property
    def cls(self) -> str:
        """The algorithm's class."""
        return "".join(part.capitalize() for part in self.algorithm.split("-"))


def check_name(name: str, registry: Registry) -> Names:
    """Return the names for an algorithm.

    Raises:
        UsageError: not a name that an algorithm, a distribution and a module can have, or one that is taken.
    """
    plain = name.removeprefix(f"{GROUP}-")
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", plain) or len(plain) > LONGEST:
        raise UsageError(
            f"'{name}' is no name for an algorithm: small letters, digits and single hyphens, a letter first, "
            f"{LONGEST} characters at most, for example my-method"
        )
    if plain in (ALL, NO_ADAPTER):
        raise UsageError(f"'{plain}' means something else to ftbench; choose another name")
    names = Names(plain)
    if keyword.iskeyword(names.cls):
        raise UsageError(f"'{plain}' would make a class that Python keeps for itself; choose another name")
    if plain in registry.algorithms:
        plugin = registry.plugin_of(plain)
        raise UsageError(f"there is an algorithm '{plain}' already, from {plugin.name}; choose another name")
    return names


def write_plugin(names: Names, changes: Changes, out: Path) -> Path:
    """Write the distribution into a folder of its name below `out`, and return that folder.

    Raises:
        UsageError: there is something of that name.
        FtbenchError: it cannot be written; nothing is left behind.
    """
    target = out / names.distribution
    if os.path.lexists(target):
        raise UsageError(f"there is a {target} already, which is left as it is; choose another name, or move it away")
    staging = None
    try:
        out.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(dir=out, prefix=f".{names.distribution}."))
        for path, text in _texts(names, changes).items():
            (staging / path).parent.mkdir(parents=True, exist_ok=True)
            (staging / path).write_text(text, "utf-8")
        follow_umask(staging)
        sync_folder(staging)
        staging.rename(target)
    except OSError as error:
        raise disk_error(target, error) from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
    return target


def _texts(names: Names, changes: Changes) -> dict[str, str]:
    """Return the files of the distribution by their paths."""
    mine = version("ftbench")
    values = {
        "algorithm": names.algorithm,
        "distribution": names.distribution,
        "module": names.module,
        "cls": names.cls,
        "what": WHAT[changes],
        "version": mine,
        "next_version": next_version(mine),
    }
    templates = {
        "pyproject.toml": "pyproject.toml",
        "README.md": "README.md",
        f"src/{names.module}/__init__.py": f"{changes}.py",
        f"tests/test_{names.module.removeprefix('ftbench_')}.py": f"{changes}_test.py",
    }
    folder = files("ftbench.scaffold") / "templates"
    return {
        path: Template((folder / f"{template}.template").read_text("utf-8")).substitute(values)
        for path, template in templates.items()
    }


def next_version(text: str) -> str:
    """Return the first version that may break what this one promises: until 1.0 the minor one counts."""
    major, minor = (int(part) for part in text.split(".")[:2])
    return f"{major + 1}.0" if major else f"0.{minor + 1}"
