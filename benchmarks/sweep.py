"""Looks for settings: trains with each, and measures on the way, on prompts that no reported figure uses.

python benchmarks/sweep.py full --set learning_rate=1e-4 --set learning_rate=2e-4
python benchmarks/sweep.py lora --recipe oasst1-smollm2 --data FILE --topic programming --set 'rank=8;dropout=0.1'

Each --set is one trial. A quarter of the training examples (64 at most) is set aside for measuring; the evaluation
prompts of `ftbench run` are not looked at. A line a checkpoint: tokens, adherence, distinct, seconds of training.
"""

import argparse
import tomllib
from dataclasses import replace
from time import perf_counter
from typing import Any

import torch
import transformers

from ftbench.data.task import EvaluationPrompt, TaskData, build_task
from ftbench.evaluation.generation import generate_replies
from ftbench.evaluation.panel import Panel
from ftbench.evaluation.statistics import distinct
from ftbench.execution.judging import train_panel
from ftbench.memory.fit import Fit
from ftbench.models.chat import ChatFormat
from ftbench.models.loading import load_model, load_tokenizer
from ftbench.models.precision import choose_precision
from ftbench.models.resolve import resolve_model
from ftbench.plugins import load_plugins
from ftbench.recipe import Recipe, read_recipe
from ftbench.training.batching import Plan
from ftbench.training.encoding import encode
from ftbench.training.trainer import OptimiserSettings, StepReport, Training


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("algorithm")
    parser.add_argument("--recipe", default="quick")
    parser.add_argument("--set", dest="trials", action="append", default=[], help="NAME=VALUE;… of the algorithm")
    parser.add_argument("--every", type=int, default=10_000, help="tokens between two measurements")
    for name, field in Recipe.model_fields.items():
        if name in ("data", "topic", "tokens", "effective_batch_size", "max_length", "seed", "micro_batch_tokens"):
            parser.add_argument(f"--{name.replace('_', '-')}", type=type(field.default))
    given = vars(parser.parse_args())
    name, trials, every = given.pop("algorithm"), given.pop("trials") or [""], given.pop("every")
    recipe = read_recipe(given.pop("recipe")).change(**{key: v for key, v in given.items() if v is not None})
    data = build_task(recipe.data, recipe.topic, recipe.lang, recipe.evaluation_prompts)
    panel = train_panel(load_plugins().find_judge(recipe.judge), data, recipe)
    for trial in trials:
        options = tomllib.loads("\n".join(part for part in trial.split(";") if part))
        print(f"{name} {trial}", flush=True)
        _try(recipe, name, options, set_aside(data), panel, every)


def set_aside(data: TaskData) -> TaskData:
    """Measure on the last quarter of the training examples (they go by a hash), and train on the others."""
    cut = len(data.train) - min(64, len(data.train) // 4)
    prompts = tuple(EvaluationPrompt(example.prompt, example.rejected) for example in data.train[cut:])
    return replace(data, train=data.train[:cut], evaluation=prompts)


def _try(recipe: Recipe, name: str, options: dict[str, Any], data: TaskData, panel: Panel, every: int) -> None:
    transformers.set_seed(recipe.seed)
    registry = load_plugins()
    plain, held = registry.resolve(name)
    algorithm = registry.make(plain, {**held, **options})
    folder = resolve_model(recipe.model, recipe.revision).folder
    device = torch.device("cpu")
    model = load_model(folder, device, choose_precision(recipe.precision, device))
    chat = ChatFormat(load_tokenizer(folder))
    encoded = encode(data.train, chat, recipe.max_length, preferences=algorithm.needs == "preferences")
    plan = Plan(encoded.examples, recipe.tokens, recipe.effective_batch_size, recipe.seed)
    torch.manual_seed(recipe.seed)
    model = algorithm.adapt(model, [example.chosen.ids for example in encoded.examples])
    done, spent, since = 0, 0.0, perf_counter()

    prompts = [item.prompt for item in data.evaluation]

    def measure() -> None:
        was_training = model.training
        model.eval()
        length, size = recipe.max_new_tokens, recipe.evaluation_batch_size
        made = generate_replies(model, chat, prompts, length, size, _ignore, padded=algorithm.packed)
        replies = [reply.text for reply in made]
        model.train(was_training)
        on_topic = sum(verdict.on_topic for verdict in panel.verdicts(replies)) / len(replies)
        print(f"  {done:7,} tokens  adherence {on_topic:.2f}  distinct {distinct(replies).mean:.2f}  {spent:4.0f} s")
        print(f"          {' '.join(replies[0].split())[:150]}", flush=True)

    def report(step: StepReport) -> None:
        nonlocal done, spent, since
        spent += perf_counter() - since
        before, done = done, done + step.tokens
        if done // every > before // every or done >= recipe.tokens:
            measure()
        since = perf_counter()

    settings = OptimiserSettings(
        algorithm.config.learning_rate, recipe.weight_decay, recipe.warmup, recipe.max_grad_norm
    )
    fit = Fit(recipe.micro_batch_tokens)
    algorithm.train(Training(model, chat.tokenizer, plan, fit, settings, report, None, algorithm.packed))


def _ignore(_: int) -> None:
    pass


if __name__ == "__main__":
    main()
