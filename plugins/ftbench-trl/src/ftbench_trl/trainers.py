"""TRL's trainers, fed with the tokens that every algorithm gets, in the same order."""

import importlib
import os
import random
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import ftbench

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainerCallback

PLACES = {
    "trl-sft": ("trl", "SFTTrainer", "SFTConfig"),
    "trl-dpo": ("trl", "DPOTrainer", "DPOConfig"),
    "trl-orpo": ("trl.experimental.orpo", "ORPOTrainer", "ORPOConfig"),
}
"""Where TRL keeps a trainer and its configuration."""

Row = dict[str, list[int]]


def find_trainer(name: str) -> tuple[Any, Any]:
    """Return TRL's trainer and its configuration class.

    Raises:
        Skip: the installed TRL does not have it there.
    """
    module, trainer, config = PLACES[name]
    try:
        with surroundings_kept():
            os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
            home = importlib.import_module(module)
        return getattr(home, trainer), getattr(home, config)
    except (ImportError, AttributeError, RuntimeError) as error:
        raise ftbench.Skip(
            f"{_installed()} has no {module}.{trainer} ({_first_line(error)}); "
            f"install another version of trl for {name}, the other algorithms do not need it"
        ) from error


def _installed() -> str:
    try:
        return f"TRL {version('trl')}"
    except PackageNotFoundError:
        return "this environment has no TRL, and so it"


def train(name: str, training: ftbench.Training, options: dict[str, Any]) -> None:
    """Train `training.model` in place with one of TRL's trainers.

    Args:
        name: one of PLACES.
        training: what every algorithm is handed.
        options: TRL's own, by TRL's names.
    """
    import datasets
    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    datasets.disable_progress_bars()
    start = training.clock()
    rows = _rows(training)
    with surroundings_kept(), tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(name, training, rows, {**options, "output_dir": folder}, start)
        counting = ExitStack()
        trainer.add_callback(_watch(trainer, training, start, counting))
        for callback in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(callback)
        with counting:
            trainer.train()
    _restore(trainer, training.model)


@contextmanager
def surroundings_kept() -> Iterator[None]:
    """Take back what TRL and what it is built on leave in the process: variables, and generators seeded anew."""
    import numpy as np
    import torch

    variables, python, numbers = dict(os.environ), random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        os.environ.clear()
        os.environ.update(variables)
        random.setstate(python)
        np.random.set_state(numbers)


def make_trainer(
    name: str, training: ftbench.Training, rows: Sequence[Row], options: dict[str, Any], start: float
) -> Any:
    """Make one of TRL's trainers over rows of tokens (`prompt_ids`, `chosen_ids`, `rejected_ids`).

    The learning rate follows the time since `start` (seconds) where there is a time limit.
    """
    import torch
    from datasets import Dataset

    _, config = find_trainer(name)
    settings, model = training.settings, training.model
    batch = training.plan.effective_batch_size
    micro = max(size for size in range(1, options["per_device_train_batch_size"] + 1) if batch % size == 0)
    checkpointing = options.pop("gradient_checkpointing")
    common = {
        **options,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": batch // micro,
        "max_steps": len(training.plan.steps),
        "train_sampling_strategy": "sequential",
        "max_grad_norm": settings.max_grad_norm,
        # The name that transformers 5 gives to gradient_checkpointing, which is TRL's default
        "activation_checkpointing": checkpointing,
        "gradient_checkpointing": False,
        "use_cpu": model.device.type == "cpu",
        "seed": training.plan.seed,
        "report_to": "none",
        "save_strategy": "no",
        "eval_strategy": "no",
        "disable_tqdm": True,
    }
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True)
    last = len(training.plan.steps) - 1
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: training.rate(min(step, last), training.clock() - start)
    )
    shared = {"model": model, "processing_class": training.tokenizer, "optimizers": (optimiser, schedule)}
    if name == "trl-sft":
        arguments = config(dataset_kwargs={"skip_prepare_dataset": True}, max_length=None, **common)
        return _fed(name)(args=arguments, train_dataset=Dataset.from_list([_labelled(row) for row in rows]), **shared)
    pairs: Dataset = Dataset.from_list(list(rows))
    if name == "trl-dpo":
        arguments = config(max_length=None, **common)
        return _fed(name)(args=arguments, train_dataset=pairs, ref_model=_reference(model), **shared)
    return _fed(name)(args=config(remove_unused_columns=False, **common), train_dataset=pairs, **shared)


def _rows(training: ftbench.Training) -> list[Row]:
    """The planned examples in the order of the steps, as tokens."""
    rows = []
    for step in training.plan.steps:
        for example in step.examples:
            cut = example.chosen.prompt_length
            row = {"prompt_ids": list(example.chosen.ids[:cut]), "chosen_ids": list(example.chosen.ids[cut:])}
            if example.rejected is not None:
                row["rejected_ids"] = list(example.rejected.ids[cut:])
            rows.append(row)
    return rows


def _labelled(row: Row) -> Row:
    """Prompt and completion as one sequence, with loss on the completion."""
    prompt, completion = row["prompt_ids"], row["chosen_ids"]
    return {"input_ids": prompt + completion, "labels": [-100] * len(prompt) + completion}


def _reference(model: "PreTrainedModel") -> "PreTrainedModel | None":
    """Return a copy of the model; with an adapter TRL keeps a copy of that instead."""
    import copy

    if hasattr(model, "peft_config"):
        return None
    reference: PreTrainedModel = copy.deepcopy(model).eval().requires_grad_(False)  # type: ignore[no-untyped-call]
    return reference


@cache
def _fed(name: str) -> type[Any]:
    """Return TRL's trainer, made to take tokens as they are, keep its figures, and send nothing anywhere."""
    trainer, _ = find_trainer(name)

    class Fed(trainer):  # type: ignore[misc, valid-type]
        step_loss = 0.0
        step_grad_norm: Any = 0.0

        def _send_telemetry(self) -> None:
            pass

        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().training_step(*args, **kwargs)
            self.step_loss += loss.item()
            return loss

        def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
            self.step_grad_norm = super()._get_grad_norm(model, grad_norm=grad_norm)
            return self.step_grad_norm

    if name == "trl-dpo":

        def keep(self: Any, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

        Fed._prepare_dataset = keep
    if name == "trl-orpo":
        Fed.tokenize_row = staticmethod(_tokenised)
    return Fed


def _tokenised(row: Row, model: Any = None) -> Row:
    """What ORPOTrainer makes of a row of text, from tokens."""
    prompt = row["prompt_ids"]
    result = {"prompt_input_ids": prompt, "prompt_attention_mask": [1] * len(prompt)}
    for key in ("chosen", "rejected"):
        completion = row[f"{key}_ids"]
        result |= {
            f"{key}_input_ids": prompt + completion,
            f"{key}_attention_mask": [1] * len(prompt + completion),
            f"{key}_labels": [-100] * len(prompt) + completion,
        }
    return result


def _watch(trainer: Any, training: ftbench.Training, start: float, counting: ExitStack) -> "TrainerCallback":
    """Report each of the trainer's steps, count the tensors of the heaviest, and end it at the time limit."""
    import torch
    from transformers import TrainerCallback

    steps = [[step.examples] for step in training.plan.steps]
    training.watch.expect(training.stage, steps, limited=training.plan.seconds is not None, padded=True)

    class Watch(TrainerCallback):
        rate = 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.rate = trainer.optimizer.param_groups[0]["lr"]
            index = state.global_step
            states = trainer.optimizer.state.values()
            kept = [value for state in states for value in state.values() if isinstance(value, torch.Tensor)]
            watched = training.watch.step(training.stage, index, training.model, kept)
            moment = counting.enter_context(watched)
            counting.enter_context(moment("step"))

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
            counting.close()
            loss, trainer.step_loss = trainer.step_loss, 0.0
            training.note(state.global_step - 1, loss, float(trainer.step_grad_norm), self.rate)
            limit = training.plan.seconds
            control.should_training_stop |= limit is not None and training.clock() - start >= limit
            return control

    return Watch()


def _restore(trainer: Any, model: Any) -> None:
    """Take off what the trainer put onto the model: autocast, its own forward, checkpointing, hooks, a reference."""
    trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    trainer.accelerator.free_memory()
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    for patched in (model, inner):
        patched.__dict__.pop("forward", None)
    if "ref" in getattr(model, "peft_config", {}):
        model.delete_adapter("ref")  # DPOTrainer's copy of the adapter
    model.activation_checkpointing_disable()
    model.disable_input_require_grads()
    model.config.use_cache = True
    model.eval()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
