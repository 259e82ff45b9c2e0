"""What happens in a run: data, load, adapt, train, save, reload, evaluate."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ftbench.data.task import TaskData
from ftbench.errors import Skip
from ftbench.evaluation.cache import cache_bytes_per_token
from ftbench.evaluation.evaluate import EvaluatedPrompt
from ftbench.execution.checkpoints import time_to_adherence
from ftbench.execution.course import Course
from ftbench.execution.environment import choose_device, describe
from ftbench.execution.events import Progress
from ftbench.execution.examining import Examination
from ftbench.execution.fitting import encode_training, plan_memory, plan_steps
from ftbench.execution.forecast import TRAINS_ALONE, Question
from ftbench.execution.judging import judge_facts, train_panel
from ftbench.execution.starting import LoadBase, Start, load_from
from ftbench.execution.teaching import Teaching
from ftbench.execution.unfinished import Saving
from ftbench.memory.budget import data_bytes, device_memory, enforce_budget
from ftbench.memory.fit import Fit, free_memory
from ftbench.memory.meter import Meter
from ftbench.models.chat import ChatFormat
from ftbench.models.loading import load_model, load_plain, load_tokenizer, weight_bytes
from ftbench.models.precision import Precision, choose_precision
from ftbench.models.resolve import ModelFiles, resolve_model
from ftbench.models.skeleton import load_config
from ftbench.registry import Registry
from ftbench.results.result import Checkpoint, DataFacts
from ftbench.results.store import ATTACKS, MODEL, REPLIES
from ftbench.training.encoding import Encoded
from ftbench.training.watch import vocabulary

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class RunInProgress:
    """One run and what it begins with.

    `baseline` holds the evaluated prompts of the untouched model's run; it is empty where there is none. `saving` says
    where training keeps its state, if it does.
    """

    course: Course
    registry: Registry
    start: Start | None = None
    baseline: Sequence[EvaluatedPrompt] = ()
    saving: Saving | None = None

    def carry_out(self) -> None:
        """Go through all phases.

        Raises:
            FtbenchError: something that the user can mend.
            Exception: anything else, out of memory included.
        """
        course, recipe, facts = self.course, self.course.recipe, self.course.facts
        device = choose_device(recipe.device)
        precision = choose_precision(recipe.precision, device)
        _be_repeatable(recipe.seed)
        facts.environment = describe(device, precision)
        facts.start = self.start.facts if self.start else None
        facts.meter = Meter(device)
        with course.phase("data"):
            data = self.registry.read_task(recipe)
            panel = train_panel(self.registry.find_judge(recipe.judge), data, recipe)
            facts.judge = judge_facts(panel, data, recipe)
        self._note_data(data)
        with course.phase("load"):
            files = resolve_model(recipe.model, recipe.revision, self.registry.models)
            if self.start:
                self.start.check(data, files.digest)
            facts.model_digest = files.digest
            facts.weight_bytes = weight_bytes(files.folder, precision, mapped=device.type == "cpu")
            facts.system_prompt = self.registry.instruct(course.algorithm, recipe).system_prompt(data.topic)
            chat = ChatFormat(load_tokenizer(files.folder), facts.system_prompt)
            facts.chat_format = chat.name
        examination = Examination(recipe, data, panel, chat, self.baseline, course.algorithm)
        rows: list[Checkpoint] = []
        if course.algorithm.needs == "nothing":
            since = data_bytes()
            model = self._load(self._loading(files, load_model, precision), device)
            asked = self._settle(model, device, since)
        else:
            rows = self._learn(examination, files, precision)
            with course.phase("reload"):
                since = data_bytes()
                model = course.algorithm.load(course.folder / MODEL, self._loading(files, load_model, precision))
                model.eval()
                asked = self._settle(model, device, since)
        if asked:
            self._evaluate(model, examination, rows)

    def _loading(
        self,
        files: ModelFiles,
        load: "Callable[[Path, torch.device, Precision], PreTrainedModel]",
        precision: Precision,
    ) -> LoadBase:
        """Return what loads the model that this run begins with."""
        # Whole weights may be more than a card holds: several ranks load them into main memory, and divide them there.
        place = self.course.meter.device if self.course.ranks.count == 1 else choose_device("cpu")
        return load_from(self.start, lambda folder: load(folder or files.folder, place, precision))

    def _learn(self, examination: Examination, files: ModelFiles, precision: Precision) -> list[Checkpoint]:
        """Plan, load and train; return what was asked midway. Nothing of it stays but what is saved."""
        course, recipe, algorithm = self.course, self.course.recipe, self.course.algorithm
        device, own = course.meter.device, algorithm.own_trainer
        if own and course.ranks.count > 1:
            raise Skip(TRAINS_ALONE.format(name=recipe.algorithm))
        # A trainer of its own does what it does about layers and precision: it is given what it would be elsewhere.
        trained: Precision = "float32" if own else precision
        config = load_config(files.folder)
        encoded = encode_training(recipe, algorithm, examination.data, examination.chat, config, files.digest)
        plan = plan_steps(recipe, encoded)
        self._note_data(examination.data, encoded)
        fit = self._fit(Question(config, plan, device, trained, recipe.start, recipe.devices))
        since = data_bytes()
        model = self._load(self._loading(files, load_plain if own else load_model, trained), device)
        rows = Teaching(course, examination, self.saving).teach(model, plan, fit, since)
        del model
        free_memory()  # a trainer of an algorithm's own may hold on to it in a circle
        # Between small blocks that stay, freed memory is no longer in use, but still counts against a limit on the
        # process's data: what is evaluated has the budget anew.
        if course.ranks.count == 1:
            enforce_budget(recipe.memory_budget, device)
        return rows

    def _evaluate(self, model: "PreTrainedModel", examination: Examination, rows: list[Checkpoint]) -> None:
        """Ask the model, and note what comes out; `rows` is what was asked midway."""
        course, recipe, facts, algorithm = self.course, self.course.recipe, self.course.facts, self.course.algorithm
        # Counting doubles the time of many small operations: done where there is no training that could be counted.
        counted = algorithm.needs == "nothing"
        watched = model.parameters(), vocabulary(model)
        counting = course.meter.counting("evaluate", *watched) if counted else nullcontext()
        prompts = len(examination.data.evaluation)
        with course.phase("evaluate", prompts + recipe.attack_prompts), counting:
            items = examination.ask(model, lambda done: course.events.send(Progress(done)))
            attacks = examination.attack(model, lambda done: course.events.send(Progress(prompts + done)))
        facts.measures["cache_bytes_per_token"] = cache_bytes_per_token(model)
        facts.measures["own"] = algorithm.figures()
        facts.warnings.extend(algorithm.warnings())
        facts.outcomes = examination.outcomes(items, attacks)
        facts.measures |= examination.measures(items, attacks, facts.outcomes)
        if recipe.checkpoints and "training_tokens" in facts.measures:
            end = Checkpoint(
                tokens=facts.measures["training_tokens"],
                seconds=facts.measures["training_seconds"],
                adherence=examination.of_few(items),
            )
            facts.measures |= time_to_adherence(rows, end)
        course.write(REPLIES, (item.model_dump() for item in items))
        course.write(ATTACKS, (item.model_dump() for item in attacks))
        course.ranks.part()

    def _note_data(self, data: TaskData, encoded: Encoded | None = None) -> None:
        self.course.facts.data = DataFacts(
            origin=data.origin,
            digest=data.digest(),
            training_examples=len(data.train),
            evaluation_prompts=len(data.evaluation),
            left_out=data.left_out,
            examples_left_out=encoded.left_out if encoded else {},
            completions_cut=encoded.cut if encoded else 0,
        )

    def _fit(self, question: Question) -> Fit:
        """Choose the micro-batch under the recipe's memory budget; without one it is the recipe's."""
        if self.course.recipe.memory_budget is None:
            return Fit(self.course.recipe.micro_batch_tokens)
        with self.course.phase("plan"):
            found = plan_memory(self.course.recipe, self.course.algorithm, question, question.device.type)
            self.course.facts.memory_plan = found
        return Fit(found.micro_batch_tokens, found.checkpointing)

    def _load(self, load: LoadBase, device: "torch.device") -> "PreTrainedModel":
        """Load the model that is trained or, as it is, evaluated; from here on the budget holds."""
        with self.course.phase("load"):
            if self.course.ranks.count == 1:
                enforce_budget(self.course.recipe.memory_budget, device)
            else:
                self.course.ranks.connect(device)
            model = load(None)
            self.course.facts.measures["total_parameters"] = sum(p.numel() for p in model.parameters())
        return model

    def _settle(self, model: "PreTrainedModel", device: "torch.device", since: int) -> bool:
        """Put a model that is only asked where it is asked: on the first rank's device, or on all if it is too large.

        Token by token, gathering a model takes longer than what is computed with it.

        Args:
            model: whole, on the device or, of several ranks, in main memory.
            device: of this rank.
            since: bytes of the process before the model was loaded.

        Returns:
            Whether this rank takes part.
        """
        if self.course.ranks.count == 1:
            return True
        room = self.course.recipe.memory_budget or device_memory(device.type)
        if 2 * sum(one.nbytes for one in model.parameters()) > room:
            self.course.divide(model, device, since)
            return True
        self.course.ranks.part()
        if self.course.ranks.leads:
            model.to(device)  # type: ignore[arg-type]
            enforce_budget(self.course.recipe.memory_budget, device, since)
        return self.course.ranks.leads


def _be_repeatable(seed: int) -> None:
    """Make the same recipe give the same replies."""
    import torch
    import transformers

    transformers.set_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)  # sums in a fixed order, where there is such a kernel
    # Filling what is then written anyway would be a twentieth of a step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
