"""Writes the pages that are made of ftbench itself: its docstrings, its options and its own help.

Run by `conf.py` before each build. Only what the repository ships is told of, whatever else is installed.
"""

import html
import inspect
import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel

import ftbench
from ftbench import hookspecs
from ftbench.algorithm import Algorithm, summary
from ftbench.checking.checks import CHECKS
from ftbench.cli import ftbench as command_line
from ftbench.plugins import load_plugins
from ftbench.recipe import Recipe
from ftbench.registry import Plugin
from ftbench.results.columns import COLUMNS

ROOT = Path(__file__).parents[1]
WIDTH = 84
"""Characters of a line of help."""
STAGES = {"adapt": "What is trainable", "loss": "The loss", "train": "Training", "save": "What is kept"}
"""The methods that an algorithm may write, in the order in which they are told of."""
SUBJECTS = {
    "Algorithms": ["Algorithm", "AlgorithmConfig", "AdapterConfig", "ThenConfig", "hookimpl"],
    "Losses and training": [
        "CompletionLogProbs",
        "SequenceLogProbs",
        "Training",
        "StepReport",
        "TokenSequence",
    ],
    "Tasks and data": [
        "Task",
        "TaskData",
        "Example",
        "HeldOut",
        "DataSource",
        "ordinary_replies",
        "split_examples",
    ],
    "Judges": ["Judge", "Gold", "best_threshold"],
    "Models": ["ModelSource", "check_adapter"],
    "The report": ["ReportSection", "ReportTable", "ReportChart", "Run"],
    "Recipes": ["Recipe"],
    "Errors": ["UsageError", "Skip", "nearest"],
}
"""What `import ftbench` gives, by what it is for."""


def pages() -> dict[str, str]:
    """Return every generated page by its path, as Markdown of MyST's kind."""
    kinds = list(_algorithms())
    return {
        **{f"algorithms/{kind.name}.md": algorithm_page(kind, plugin) for kind, plugin in kinds},
        "algorithms.md": algorithms_page(kinds),
        "parts/columns.md": columns_table(),
        "parts/checks.md": checks_table(),
        "parts/recipe.md": options_table(Recipe),
        "parts/hooks.md": hooks_list(),
        "parts/tasks.md": tasks_list(),
        "commands.md": commands_page(),
        "reference.md": reference_page(),
    }


def write(folder: Path) -> None:
    """Write every page below `folder`; those that say the same stay untouched, and others that are there go."""
    made = {folder / path: text for path, text in pages().items()}
    for path, text in made.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or path.read_text("utf-8") != text:
            path.write_text(text, "utf-8")
    for path in set(folder.rglob("*.md")) - set(made):
        path.unlink()


def _algorithms() -> Iterator[tuple[type[Algorithm], Plugin]]:
    shipped = {path.name for path in (ROOT / "plugins").iterdir() if path.is_dir()}
    for plugin in load_plugins().plugins:
        if plugin.name in shipped:
            yield from ((kind, plugin) for kind in plugin.algorithms)


def algorithms_page(kinds: Sequence[tuple[type[Algorithm], Plugin]]) -> str:
    """Return the list of algorithms, with a line for each."""
    rows = [
        [f"[{kind.name}](algorithms/{kind.name}.md)", linked(_cell(summary(kind))), NEEDS[kind.needs]]
        for kind, _ in kinds
    ]
    contents = "\n".join(f"algorithms/{kind.name}" for kind, _ in kinds)
    return "\n".join(
        [
            "# The algorithms",
            "",
            "Each is a class in a plugin of its own, found through the same hook as anybody's. Every page here is made",
            "of that class: its docstrings, and the options with the defaults that they have in it.",
            "`ftbench algos` prints the same list, with what else is installed.",
            "",
            table(["algorithm", "what it does", "trained on"], rows),
            "",
            f"```{{toctree}}\n:hidden:\n\n{contents}\n```",
            "",
        ]
    )


NEEDS = {
    "nothing": "nothing",
    "demonstrations": "chosen completions",
    "preferences": "chosen and rejected completions",
}


def algorithm_page(kind: type[Algorithm], plugin: Plugin) -> str:
    """Return an algorithm's page: what it is, how it is run, its loss, and its options."""
    name = f"{kind.name}:{kind.variants[0]}" if kind.variants else kind.name
    parts = [f"# {kind.name}", linked(docstring(kind)), f"```sh\nftbench run --algo {name}\n```"]
    if kind.variants:
        listed = ", ".join(f"`{kind.name}:{each}`" for each in kind.variants)
        parts.append(f"Run as `{kind.name}:VARIANT`; `--algo all` runs {listed}.")
    facts = [f"Trained on: {NEEDS[kind.needs]}.", f"Plugin: `{plugin.name}` {plugin.version}."]
    if kind.own_trainer:
        facts.append("It brings a trainer of its own, whose memory cannot be predicted.")
    parts.append("\n".join(f"- {fact}" for fact in facts))
    for method, title in STAGES.items():
        written = vars(kind).get(method)
        if written is not None:
            parts.append(f"## {title}\n\n{linked(docstring(written))}")
        elif method == "loss" and kind.needs == "nothing":
            parts.append(f"## {title}\n\nNothing is trained, so there is none.")
        elif method == "loss":
            default = "" if kind.own_trainer else _DEFAULT_LOSS
            parts.append(f"## {title}\n\n{linked(section(kind, 'Loss') or default)}")
    leave = ("learning_rate",) if kind.needs == "nothing" else ()
    options = options_table(kind.Config, leave=leave)
    if options:
        said = docstring(kind.Config) if vars(kind.Config).get("__doc__") else ""
        how = f"`--set {kind.name}.OPTION=VALUE` sets one."
        parts.append(f"## Options\n\n{linked(said)}\n\n{how}\n\n{options}")
    else:
        parts.append("## Options\n\nNone.")
    return "\n\n".join(parts) + "\n"


_DEFAULT_LOSS = """The mean negative log-likelihood of the chosen completions' tokens,
[as it is by default](#ftbench.Algorithm.loss)."""


def options_table(config: type[BaseModel], *, leave: Sequence[str] = ()) -> str:
    """Return the fields of a configuration as a table: type and bounds, default, description; empty without fields."""
    schema = config.model_json_schema()["properties"]
    rows = []
    for name, known in config.model_fields.items():
        if name in leave:
            continue
        default = known.get_default(call_default_factory=True)
        rows.append([f"`{name}`", _type(schema[name]), _cell(_shown(default)), _cell(description(config, name))])
    return table(["option", "takes", "default", "what it is"], rows) if rows else ""


def description(config: type[BaseModel], name: str) -> str:
    """Return what is said of a field, in its own class or in one that it comes from."""
    for parent in config.__mro__:
        field = getattr(parent, "model_fields", {}).get(name)
        if field is not None and field.description:
            return str(field.description)
    return ""


def _type(schema: dict[str, Any]) -> str:
    """Return a type with its bounds, as a person says it."""
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in schema["anyOf"] if one.get("type") != "null")
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    words = {"number": "number", "integer": "whole number", "string": "text", "boolean": "true, false"}
    word = words.get(schema.get("type", ""), {"array": "list", "object": "table"}.get(schema.get("type", ""), "any"))
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {schema[key]:g}" for key, sign in signs.items() if key in schema]
    return " ".join([word, ", ".join(bounds)]).strip()


def _shown(default: Any) -> str:
    if default is None or default in ({}, []):
        return "-"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if isinstance(default, float):
        return f"`{default:g}`"
    return f"`{list(default)}`" if isinstance(default, tuple) else f"`{default}`"


def columns_table() -> str:
    """Return what each column of the table is, its name in JSON and CSV, and whether more or less of it is better."""
    rows = [[_cell(column.heading), f"`{column.key}`", column.better or "-", _cell(column.about)] for column in COLUMNS]
    return table(["heading", "in JSON and CSV", "better", "what it is"], rows) + "\n"


def checks_table() -> str:
    """Return the contract tests of `ftbench check`, each with what it asks."""
    rows = [[f"`{check.name}`", _cell(check.promise), f"`{check.read}`"] for check in CHECKS]
    return table(["check", "an algorithm that passes", "read"], rows) + "\n"


def hooks_list() -> str:
    """Return every hook with its docstring, and what a plugin subclasses for it."""
    return "\n".join(f"`{name}()`\n: {docstring(hook)}\n" for name, hook in hooks().items())


def tasks_list() -> str:
    """Return every shipped task with its judge and its docstring."""
    tasks = [task for plugin in load_plugins([]).plugins for task in plugin.tasks]
    return "\n".join(f"`{task.name}`, judged by `{task.judge}`\n: {docstring(task)}\n" for task in tasks)


def hooks() -> dict[str, Any]:
    """Return the specifications of the hooks by name."""
    return {name: hook for name, hook in vars(hookspecs).items() if hasattr(hook, "ftbench_spec")}


def commands_page() -> str:
    """Return what `ftbench --help`, and `--help` of each shipped command, print."""
    context = click.Context(command_line, info_name="ftbench", terminal_width=WIDTH)
    parts = [
        "# The commands",
        "What each prints for `--help`. Exit codes: 0 done, 1 a run failed or could not start, 2 wrong usage.",
    ]
    for name in command_line.list_commands(context):
        command = command_line.get_command(context, name)
        assert command is not None
        if not getattr(command.callback, "__module__", "").startswith("ftbench.cli."):
            continue  # a plugin's
        inner = click.Context(command, info_name=name, parent=context, terminal_width=WIDTH)
        parts.append(f"## ftbench {name}\n\n```text\n{command.get_help(inner)}\n```")
    return "\n\n".join(parts) + "\n"


def reference_page() -> str:
    """Return what `import ftbench` gives."""
    parts = [
        "# Python reference",
        "All that the author of a plugin imports, and nothing else: `import ftbench`. Shapes stand in brackets "
        "(`[prompts]`), log-probabilities are in nats.",
    ]
    for subject, names in SUBJECTS.items():
        parts.append(f"## {subject}")
        parts.extend(_documented(name) for name in names)
    return "\n\n".join(parts) + "\n"


def _documented(name: str) -> str:
    thing = getattr(ftbench, name)
    if not inspect.isclass(thing):
        kind = "autofunction" if inspect.isroutine(thing) else "autodata"
        return f"```{{eval-rst}}\n.. {kind}:: ftbench.{name}\n```"
    members = "" if issubclass(thing, Exception) else "   :members:\n   :exclude-members: model_config\n"
    text = f"```{{eval-rst}}\n.. autoclass:: ftbench.{name}\n{members}```"
    if issubclass(thing, BaseModel):
        text += f"\n\n{options_table(thing)}"
    return text


def docstring(thing: Any) -> str:
    """Return a docstring without its sections: `Args:` and the like are for callers, `Loss:` has a place of its own."""
    return _SECTIONS.split(inspect.cleandoc(thing.__doc__ or ""))[0].strip()


def section(thing: Any, name: str) -> str:
    """Return one section of a docstring, empty where it has none."""
    _, *parts = _SECTIONS.split(inspect.cleandoc(thing.__doc__ or ""))
    found = dict(zip(parts[::2], parts[1::2], strict=True))
    return textwrap.dedent(found.get(name, "")).strip()


_SECTIONS = re.compile(r"^(Args|Returns|Raises|Loss):$", re.MULTILINE)


def linked(text: str) -> str:
    """Return the text with arXiv numbers as links."""
    return re.sub(r"arXiv:(\d{4}\.\d{5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(text: str) -> str:
    """Return text that cannot break out of its cell; the text of code stays as it is."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()).replace("|", "\\|"))
    return "".join(part if part.startswith("`") else html.escape(part, quote=False) for part in parts)
