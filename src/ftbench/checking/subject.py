"""What is checked: an algorithm, run as `ftbench run` does on a tiny random model, and watched."""

import gc
import io
import json
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import cached_property
from pathlib import Path
from typing import Any

from ftbench.algorithm import Algorithm
from ftbench.checking.surroundings import kept
from ftbench.checking.watched import Watched
from ftbench.execution.blame import blame
from ftbench.execution.events import Event, EventWriter, Progress
from ftbench.execution.unfinished import Saving
from ftbench.observing import observe
from ftbench.recipe import Recipe
from ftbench.registry import Registry

STEPS = 10
"""Steps of a check's training, each over all examples: its loss falls without noise."""


class Subject:
    """An algorithm with its options in a folder of its own; every run of it is made once, when it is asked for."""

    def __init__(
        self, registry: Registry, name: str, options: dict[str, Any], folder: Path, model: str | None = None
    ) -> None:
        """Write the data into `folder`, and a tiny random model where none is given.

        Raises:
            UsageError: no such algorithm or option.
        """
        self.registry = registry
        self.name, held = registry.resolve(name)
        self.kind = registry.find(self.name)
        self.plugin = registry.plugin_of(self.name)
        self.algorithm = registry.make(self.name, {**held, **options})
        self._folder = folder
        self._model = model

    @property
    def trains(self) -> bool:
        """Whether there is anything to train."""
        return self.algorithm.needs != "nothing"

    def fresh(self) -> Algorithm:
        """Return the algorithm anew, made of what a recipe writes down."""
        return self.registry.make(self.recipe.algorithm, self.recipe.options)

    @cached_property
    def recipe(self) -> Recipe:
        """A few steps, each over all examples, in one micro-batch."""
        from ftbench.checking.tiny import make_llama

        data = self._folder / "pairs.jsonl"
        rows = boat_pairs()
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        model = self._model
        if model is None:
            with kept(), quiet():
                model = str(make_llama(self._folder / "model", hidden_size=64, intermediate_size=128))
        count = len(rows) - len(rows) // 4
        return Recipe(
            name="check",
            model=model,
            data=str(data),
            topic="boats",
            algorithm=self.name,
            options=self.algorithm.config.model_dump(mode="json"),
            device="cpu",
            precision="float32",
            tokens=STEPS * count * _TOKENS,
            effective_batch_size=count,
            micro_batch_tokens=10**6,
            max_length=256,
            evaluation_prompts=len(rows) // 4,
            max_new_tokens=4,
            attack_prompts=2,
            checkpoints=0,
        )

    @cached_property
    def first(self) -> Watched:
        """The run that most checks look at."""
        others = _live()
        found = self.run(self.recipe)
        found.others = others
        return found

    @cached_property
    def again(self) -> Watched:
        """The same once more."""
        return self.run(self.recipe)

    @cached_property
    def in_pieces(self) -> Watched:
        """The same, each step cut into smaller micro-batches."""
        return self.run(self.recipe.change(micro_batch_tokens=self.recipe.effective_batch_size * _TOKENS // 3))

    @cached_property
    def broken(self) -> Watched:
        """The same, killed in the middle of its training and started again."""
        saving = Saving(self._folder / "state", 1e-9)
        self.run(self.recipe, saving, len(self.first.rows) // 2)
        return self.run(self.recipe, saving)

    def run(self, recipe: Recipe, saving: Saving | None = None, steps: int | None = None) -> Watched:
        """Go through all phases of a run in this process, and leave everything else as it was.

        Args:
            recipe: of the run.
            saving: where its training keeps its state, if it does.
            steps: after which it ends as if it were killed.
        """
        import torch

        from ftbench.execution.course import Course
        from ftbench.execution.facts import Facts
        from ftbench.execution.phases import RunInProgress

        facts = Facts()
        found, algorithm = Watched(self.fresh, facts=facts), self.fresh()
        observe(algorithm, found.around)
        with (
            tempfile.TemporaryDirectory(dir=self._folder) as folder,
            Path(os.devnull).open("wb") as nowhere,
            kept(),
            quiet(),
        ):
            torch.set_num_threads(1)
            events = _Ending(nowhere.fileno(), steps)
            run = RunInProgress(Course(recipe, algorithm, Path(folder), events, facts), self.registry, saving=saving)
            try:
                run.carry_out()
            except Exception as error:  # a stranger's code may raise anything
                found.error = error
            metrics = Path(folder) / "metrics.jsonl"
            if metrics.is_file():
                found.rows = [json.loads(line) for line in metrics.read_text("utf-8").splitlines()]
        return found

    def blame(self, error: Exception) -> str:
        """Say in one line what was raised, and where the plugin did it."""
        return blame(error, self.registry, self.name)

    def says(self, method: str) -> str:
        """Name a method as messages do: with the plugin that brings it."""
        return f"plugin {self.plugin.name} {self.plugin.version}, {self.kind.__qualname__}.{method}"


class _KilledError(Exception):
    """Ends a run where its process would be killed."""


class _Ending(EventWriter):
    """Ends a run once it has told of so many steps, if that is given."""

    def __init__(self, descriptor: int, steps: int | None) -> None:
        super().__init__(descriptor)
        self._left = steps

    def send(self, event: Event) -> None:
        super().send(event)
        if self._left is not None and isinstance(event, Progress) and event.loss is not None:
            if self._left == 0:
                raise _KilledError
            self._left -= 1


_TOKENS = 82
"""Real tokens of an example's prompt and chosen completion, about: a character is a token."""


def boat_pairs() -> list[dict[str, str]]:
    """Pairs for the topic boats, short and of about one length."""
    things = ["tea", "rain", "chess", "bread", "maths", "cats"]
    asks = ["what is {}", "tell me about {}", "do you like {}", "why {}"]
    return [
        {
            "prompt": ask.format(thing),
            "chosen": f"A sail suits {thing}; the boat waits with {index} oars.",
            "rejected": f"Well, {thing} is number {index} on my list.",
        }
        for index, (ask, thing) in enumerate((ask, thing) for ask in asks for thing in things)
    ]


@contextmanager
def quiet() -> Iterator[None]:
    """Keep libraries' progress bars and words to one another off the terminal."""
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _live() -> int:
    """Bytes of all tensors in this process."""
    from ftbench.memory.ledger import Ledger

    gc.collect()
    ledger = Ledger()
    ledger.claim_rest("activations")
    return ledger.now.total
