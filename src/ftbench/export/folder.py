"""A run's model as a folder for plain transformers."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftbench.errors import FtbenchError, UsageError
from ftbench.execution.reloading import Reloaded, reload_run
from ftbench.export.card import model_card
from ftbench.files import disk_error, follow_umask, sync_folder, write_text
from ftbench.models.loading import load_plain
from ftbench.models.precision import Precision
from ftbench.models.template import template_of
from ftbench.registry import Registry
from ftbench.results.store import Run, staging

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Written:
    """The precision of the weights, and what must be imported to read them; None where transformers needs nothing."""

    precision: Precision
    needs: str | None


def export_folder(run: Run, registry: Registry, to: Path) -> Written:
    """Write a run's model into the folder `to`, whole or not at all.

    The folder has the weights as safetensors, merged, in the precision that the run was evaluated in; the tokenizer
    with a chat template that writes prompts as the run's did; how replies were generated; and a model card.

    Raises:
        UsageError: `to` is there already, or the run has no model.
        FtbenchError: the model cannot be folded into one, or a file cannot be read or written.
    """
    if to.exists():
        raise UsageError(f"{to} is there already; choose another --to")
    try:
        with staging(to.parent) as folder:
            written = write_model(run, registry, folder)
            follow_umask(folder)  # a server may be another user
            sync_folder(folder)
            folder.rename(to)
    except OSError as error:
        raise disk_error(to, error) from error
    return written


def write_model(run: Run, registry: Registry, folder: Path) -> Written:
    """Write model, tokenizer and card into a folder.

    Raises:
        UsageError, FtbenchError: as `export_folder` does.
    """
    loaded = reload_run(run, registry, load_plain)
    if loaded.digest != run.result.model_digest:
        raise FtbenchError(
            f"{run.folder.name} changed the model {run.result.recipe.model}, which is another now; do the run again"
        )
    model: Any = _whole(run, loaded)
    needs = None if type(model).__module__.startswith("transformers.") else type(model).__module__
    model.generation_config = _generation(run, loaded)
    model.save_pretrained(folder)
    tokenizer = loaded.chat.tokenizer
    tokenizer.chat_template = template_of(loaded.chat)
    for how in ("is_local", "local_files_only"):  # it was read here: nothing that others should be told
        tokenizer.init_kwargs.pop(how, None)
    tokenizer.save_pretrained(folder)
    write_text(folder / "README.md", model_card(run, loaded.precision, needs))
    return Written(loaded.precision, needs)


def _whole(run: Run, loaded: Reloaded) -> "PreTrainedModel":
    """Return the model, if all that it learnt is in its weights."""
    from transformers import PreTrainedModel

    if not (isinstance(loaded.model, PreTrainedModel) and loaded.packed):
        raise FtbenchError(
            f"cannot export {run.folder.name}: {run.result.recipe.algorithm} cannot be folded into the model's weights"
        )
    return loaded.model


def _generation(run: Run, loaded: Reloaded) -> Any:
    """Return how the run's evaluation asked for replies."""
    from transformers import GenerationConfig

    chat = loaded.chat
    return GenerationConfig(
        do_sample=False,
        max_new_tokens=run.result.recipe.max_new_tokens,
        bos_token_id=chat.tokenizer.bos_token_id,
        eos_token_id=chat.end,
        pad_token_id=chat.tokenizer.pad_token_id,
    )
