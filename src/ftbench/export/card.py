"""The model card: what was done to the model, with what, and what it reached."""

import json
from importlib.metadata import version
from pathlib import Path

from ftbench.data.sources import OASST1
from ftbench.models.bundled import HUB_ID, LICENCE
from ftbench.models.precision import Precision
from ftbench.recipe import BASELINE, DEFAULT_MODEL, Recipe
from ftbench.results.rows import build_groups
from ftbench.results.store import Run
from ftbench.results.table import render

_USE = """\
```python
{needed}from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # where this card is
model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
prompt = [{{"role": "user", "content": {prompt}}}]
inputs = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_tensors="pt", return_dict=True)
reply = model.generate(**inputs)[0, inputs["input_ids"].shape[1] :]
print(tokenizer.decode(reply, skip_special_tokens=True))
```"""


def model_card(run: Run, precision: Precision, needs: str | None) -> str:
    """Return a README for a model folder, in Markdown, with the metadata that model hubs read.

    Args:
        run: that was exported, and ended well.
        precision: of the weights.
        needs: the module that must be imported before transformers reads the model; None where it needs none.

    Raises:
        FtbenchError: the run's replies cannot be read.
    """
    run = _without_paths(run)
    result = run.result
    recipe = result.recipe
    prompt = json.dumps(run.replies()[0].prompt, ensure_ascii=False)
    needed = f"import {needs}  # from {result.plugin} {result.plugin_version}\n" if needs else ""
    parts = [
        _metadata(recipe, needs),
        f"# {run.folder.name}",
        _summary(run, precision, needs),
        "## Use",
        _USE.format(needed=needed, prompt=prompt),
        _format(run),
        "## Measured",
        render(build_groups([run]), "github"),
        "One run, measured as it was saved and read again. ftbench's README says what each column is.",
        "## Data and licences",
        _licences(recipe, result.data.origin if result.data else recipe.data),
        "## Recipe",
        f"`{result.recipe_digest}`, started {result.started}; with its data and its model, `ftbench run --recipe` "
        f"does it again.\n\n```toml\n{recipe.to_toml().strip()}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _without_paths(run: Run) -> Run:
    """Return the run with the names alone of files and folders of this machine: a card is made to be published."""
    recipe = run.result.recipe
    given = {name: getattr(recipe, name) for name in ("model", "data", "topic", "start")}
    names = {name: Path(value).name for name, value in given.items() if value and Path(value).exists()}
    return Run(run.folder, run.result.model_copy(update={"recipe": recipe.model_copy(update=names)}))


def _metadata(recipe: Recipe, needs: str | None) -> str:
    """Return the card's first lines, as YAML; JSON's texts are YAML's."""
    lines = {
        "license": json.dumps(LICENCE.lower()) if recipe.model == DEFAULT_MODEL else None,
        "base_model": _hub_id(recipe.model),
        "library_name": None if needs else '"transformers"',
        "pipeline_tag": '"text-generation"',
        "language": json.dumps([recipe.lang]),
        "tags": json.dumps(["ftbench", recipe.algorithm]),
    }
    return "\n".join(["---", *(f"{name}: {value}" for name, value in lines.items() if value), "---"])


def _hub_id(model: str) -> str | None:
    if model == DEFAULT_MODEL:
        return json.dumps(HUB_ID)
    return json.dumps(model) if model.count("/") == 1 else None


def _summary(run: Run, precision: Precision, needs: str | None) -> str:
    result = run.result
    recipe = result.recipe
    what = f"taught by `{recipe.algorithm}` to keep to the topic '{recipe.topic}' whatever it is asked"
    if result.measures.training_tokens is None:
        what = "untouched" if recipe.algorithm == BASELINE else f"its weights untouched, under `{recipe.algorithm}`"
    start = f", starting from the run {result.start.run} ({result.start.algorithm})" if result.start else ""
    lines = (
        f"{recipe.model}, {what}{start}. Written by ftbench {version('ftbench')} from one of its runs, in {precision}."
    )
    if not needs:
        return lines
    package = f"{result.plugin} {result.plugin_version}"
    return (
        f"{lines}\n\nThe model is of a type that transformers does not bring: install {package}, and import `{needs}`."
    )


def _format(run: Run) -> str:
    result = run.result
    told = (
        "The chat template is the model's own."
        if result.chat_format == "chat template"
        else ("The model has no chat template of its own; the one here is the format that it was trained in.")
    )
    if result.system_prompt:
        told += " The system prompt that was measured is in it, before any that a conversation brings."
    return (
        f"{told} Replies are greedy and end after {result.recipe.max_new_tokens} tokens, as measured. ftbench breaks "
        "control tokens in what users type (`<|im_end|>` becomes `< |im_end|>`); a program that does not lets users "
        "write turns of their own."
    )


def _licences(recipe: Recipe, origin: str) -> str:
    model = (
        f"{HUB_ID} is under {LICENCE}"
        if recipe.model == DEFAULT_MODEL
        else (f"the licence of {recipe.model}, which ftbench does not know, holds for these weights too")
    )
    data = {
        "sample": "the sample was written for ftbench and is under Apache-2.0 as ftbench is",
        "oasst1": f"{OASST1} (Köpf et al. 2023, arXiv:2304.07327) is under Apache-2.0",
    }.get(recipe.data, f"the rights in {origin} are its owner's")
    return f"- Model: {model}.\n- Data: {data}."
