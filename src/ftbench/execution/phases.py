"""What happens in a run: data, load, adapt, train, save, reload, evaluate."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftbench.algorithm import Algorithm
from ftbench.data.task import TaskData
from ftbench.errors import Skip
from ftbench.evaluation.cache import cache_bytes_per_token
from ftbench.evaluation.evaluate import EvaluatedPrompt
from ftbench.execution.checkpoints import Checkpoints, time_to_adherence
from ftbench.execution.environment import choose_device, describe
from ftbench.execution.events import EventWriter, PhaseBegan, Progress
from ftbench.execution.examining import Examination
from ftbench.execution.fitting import encode_training, plan_memory, plan_steps
from ftbench.execution.forecast import TRAINS_ALONE, Question
from ftbench.execution.judging import judge_facts, train_panel
from ftbench.execution.sharing import share_references
from ftbench.execution.starting import LoadBase, Start, load_from
from ftbench.execution.steplog import StepLog
from ftbench.execution.unfinished import Saving
from ftbench.files import folder_bytes, write_jsonl
from ftbench.memory.budget import data_bytes, device_memory, enforce_budget, lift_budget
from ftbench.memory.fit import Fit, free_memory
from ftbench.memory.meter import Meter
from ftbench.models.chat import ChatFormat
from ftbench.models.loading import load_model, load_plain, load_tokenizer, weight_bytes
from ftbench.models.precision import Precision, choose_precision
from ftbench.models.resolve import resolve_model
from ftbench.models.skeleton import load_config
from ftbench.recipe import Recipe
from ftbench.registry import Registry
from ftbench.results.result import (
    BaselineFacts,
    Checkpoint,
    DataFacts,
    Environment,
    JudgeFacts,
    MemoryPlan,
    Outcomes,
    StartFacts,
)
from ftbench.results.store import ATTACKS, METRICS, MODEL, REPLIES
from ftbench.training.batching import Plan
from ftbench.training.clock import Clock
from ftbench.training.encoding import Encoded
from ftbench.training.keeping import Keeper, Told, digest_of
from ftbench.training.sharding import Ranks, make_mesh, shard, unite
from ftbench.training.step import trainable
from ftbench.training.trainer import OptimiserSettings, StepReport, Training
from ftbench.training.watch import StepWatch, vocabulary

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

TRAIN = "train"
"""The phase whose state is kept."""


@dataclass
class Facts:
    """What is known of a run so far; whatever ends it, this much goes into its result."""

    phase: str = "start"
    model_digest: str | None = None
    chat_format: str | None = None
    system_prompt: str | None = None
    start: StartFacts | None = None
    baseline: BaselineFacts | None = None
    data: DataFacts | None = None
    judge: JudgeFacts | None = None
    environment: Environment | None = None
    meter: Meter | None = None
    weight_bytes: int = 0
    memory_plan: MemoryPlan | None = None
    measures: dict[str, Any] = field(default_factory=dict)
    outcomes: Outcomes | None = None
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class RunInProgress:
    """One run; `carry_out` fills `facts` and writes all but the result into `folder`.

    `baseline` holds the evaluated prompts of the untouched model's run; it is empty where there is none. `saving` says
    where training keeps its state, if it does. `ranks` all go through the same phases, each with its share of the
    model; the first alone reports and writes.
    """

    recipe: Recipe
    algorithm: Algorithm
    registry: Registry
    start: Start | None
    folder: Path
    baseline: Sequence[EvaluatedPrompt]
    events: EventWriter
    facts: Facts
    saving: Saving | None = None
    ranks: Ranks = field(default_factory=Ranks)

    def carry_out(self) -> None:
        """Go through all phases.

        Raises:
            FtbenchError: something that the user can mend.
            Exception: anything else, out of memory included.
        """
        import torch
        import transformers

        recipe, facts = self.recipe, self.facts
        transformers.set_seed(recipe.seed)
        # Sums in a fixed order, where there is such a kernel: the same recipe gives the same replies.
        torch.use_deterministic_algorithms(True, warn_only=True)
        # Filling what is then written anyway would be a twentieth of a step.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        device = choose_device(recipe.device)
        precision = choose_precision(recipe.precision, device)
        facts.environment = describe(device, precision)
        facts.start = self.start.facts if self.start else None
        facts.meter = Meter(device)
        with self._phase("data"):
            data = self.registry.read_task(recipe)
            panel = train_panel(self.registry.find_judge(recipe.judge), data, recipe)
            facts.judge = judge_facts(panel, data, recipe)
        self._note_data(data)
        with self._phase("load"):
            files = resolve_model(recipe.model, recipe.revision, self.registry.models)
            if self.start:
                self.start.check(data, files.digest)
            facts.model_digest = files.digest
            facts.weight_bytes = weight_bytes(files.folder, precision, mapped=device.type == "cpu")
            facts.system_prompt = self.registry.instruct(self.algorithm, recipe).system_prompt(data.topic)
            chat = ChatFormat(load_tokenizer(files.folder), facts.system_prompt)
            facts.chat_format = chat.name
        examination = Examination(recipe, data, panel, chat, self.baseline, self.algorithm)

        # Whole weights may be more than a card holds: several ranks load them into main memory, and divide them there.
        place = device if self.ranks.count == 1 else torch.device("cpu")

        def load_with(load: "Callable[[Path, torch.device, Precision], PreTrainedModel]", how: Precision) -> LoadBase:
            return load_from(self.start, lambda folder: load(folder or files.folder, place, how))

        # A trainer of its own does what it does about layers and precision: it is given what it would be elsewhere.
        own = self.algorithm.own_trainer
        if own and self.ranks.count > 1:
            raise Skip(TRAINS_ALONE.format(name=recipe.algorithm))
        trained: Precision = "float32" if own else precision
        since = data_bytes()
        if self.algorithm.needs == "nothing":
            model = self._load(load_with(load_model, precision), device)
            asked = self._settle(model, device, since)
        else:
            config = load_config(files.folder)
            encoded = encode_training(recipe, self.algorithm, data, chat, config, files.digest)
            plan = plan_steps(recipe, encoded)
            self._note_data(data, encoded)
            fit = self._fit(Question(config, plan, device, trained, recipe.start, recipe.devices))
            since = data_bytes()
            model = self._load(load_with(load_plain if own else load_model, trained), device)
            rows = self._teach(model, examination, plan, fit, since)
            del model  # what is evaluated is what was saved
            free_memory()  # a trainer of an algorithm's own may hold on to it in a circle
            # Between small blocks that stay, freed memory is no longer in use, but still counts against a limit on the
            # process's data: what is evaluated has the budget anew.
            if self.ranks.count == 1:
                enforce_budget(recipe.memory_budget, device)
            with self._phase("reload"):
                since = data_bytes()
                model = self._reload(load_with(load_model, precision))
                asked = self._settle(model, device, since)
        if not asked:
            return
        # Counting doubles the time of many small operations: done where there is no training that could be counted.
        counted = self.algorithm.needs == "nothing"
        counting = self._meter.counting("evaluate", model.parameters(), vocabulary(model)) if counted else nullcontext()
        prompts = len(data.evaluation)
        with self._phase("evaluate", prompts + recipe.attack_prompts), counting:
            items = examination.ask(model, lambda done: self.events.send(Progress(done)))
            attacks = examination.attack(model, lambda done: self.events.send(Progress(prompts + done)))
        facts.measures["cache_bytes_per_token"] = cache_bytes_per_token(model)
        facts.measures["own"] = self.algorithm.figures()
        facts.warnings.extend(self.algorithm.warnings())
        facts.outcomes = examination.outcomes(items, attacks)
        facts.measures |= examination.measures(items, attacks, facts.outcomes)
        if self.recipe.checkpoints and "training_tokens" in facts.measures:
            end = Checkpoint(
                tokens=facts.measures["training_tokens"],
                seconds=facts.measures["training_seconds"],
                adherence=examination.of_few(items),
            )
            facts.measures |= time_to_adherence(rows, end)
        self._write(REPLIES, (item.model_dump() for item in items))
        self._write(ATTACKS, (item.model_dump() for item in attacks))
        self.ranks.part()

    @contextmanager
    def _phase(self, name: str, total: int | None = None) -> Iterator[None]:
        self.facts.phase = name
        self.events.send(PhaseBegan(name, total))
        with self._meter.phase(name):
            yield

    @property
    def _meter(self) -> Meter:
        assert self.facts.meter is not None
        return self.facts.meter

    @property
    def _doubtful(self) -> bool:
        """Whether nobody said that training fits under its budget: it may come to no further step than the first."""
        plan = self.facts.memory_plan
        return self.recipe.memory_budget is not None and not (plan and plan.fits)

    def _note_data(self, data: TaskData, encoded: Encoded | None = None) -> None:
        self.facts.data = DataFacts(
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
        if self.recipe.memory_budget is None:
            return Fit(self.recipe.micro_batch_tokens)
        with self._phase("plan"):
            found = plan_memory(self.recipe, self.algorithm, question, question.device.type)
            self.facts.memory_plan = found
        return Fit(found.micro_batch_tokens, found.checkpointing)

    def _load(self, load: LoadBase, device: "torch.device") -> "PreTrainedModel":
        """Load the model that is trained or, as it is, evaluated; from here on the budget holds."""
        with self._phase("load"):
            if self.ranks.count == 1:
                enforce_budget(self.recipe.memory_budget, device)
            else:
                self.ranks.connect(device)
            model = load(None)
            self.facts.measures["total_parameters"] = sum(p.numel() for p in model.parameters())
        return model

    def _divide(self, model: "PreTrainedModel", device: "torch.device", since: int) -> None:
        """Leave each rank its share of the model, if there are several; the budget holds from here on.

        Args:
            model: whole, in main memory.
            device: of this rank.
            since: bytes of the process before the model was loaded.
        """
        if self.ranks.count > 1:
            shard(model, make_mesh(self.ranks.count, device))
            free_memory()
            enforce_budget(self.recipe.memory_budget, device, since)

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
        if self.ranks.count == 1:
            return True
        room = self.recipe.memory_budget or device_memory(device.type)
        if 2 * sum(one.nbytes for one in model.parameters()) > room:
            self._divide(model, device, since)
            return True
        self.ranks.part()
        if self.ranks.leads:
            model.to(device)  # type: ignore[arg-type]
            enforce_budget(self.recipe.memory_budget, device, since)
        return self.ranks.leads

    def _teach(
        self, model: "PreTrainedModel", examination: Examination, plan: Plan, fit: Fit, since: int
    ) -> list[Checkpoint]:
        """Adapt, divide, train and save; return what was asked midway."""
        import transformers

        recipe, found, environment = self.recipe, self.facts.measures, self.facts.environment
        assert environment is not None
        with self._phase("adapt"), self._meter.counting("adapt", model.parameters(), vocabulary(model)):
            transformers.set_seed(recipe.seed)  # adapters start from the seed, whatever was drawn before
            model = self.algorithm.adapt(model, [example.chosen.ids for example in plan.examples])
            found["trainable_parameters"] = sum(p.numel() for p in trainable(model))
        self._divide(model, self._meter.device, since)
        settings = OptimiserSettings(
            self.algorithm.config.learning_rate, recipe.weight_decay, recipe.warmup, recipe.max_grad_norm
        )
        start = self.start.run.folder.name if self.start else None
        with self._phase(TRAIN, recipe.tokens):
            clock = Clock(self.ranks.agree)
            log = StepLog(self.events.send, self._meter.read_peak, clock)
            together = self.ranks.count > 1
            checkpoints = Checkpoints(
                recipe.checkpoints, plan, clock, lambda: examination.ask_few(model), together=together
            )

            def report(step: StepReport) -> None:
                log(step)
                checkpoints.pass_by(log.rows[-1]["tokens"], log.rows[-1]["seconds"])

            tokenizer = examination.chat.tokenizer
            keeper = self._keeper(log, checkpoints, clock)
            training = Training(
                model,
                tokenizer,
                plan,
                fit,
                settings,
                report,
                start,
                self.algorithm.packed,
                watch=StepWatch(from_start=self._doubtful),
                clock=clock,
                keeper=keeper,
                ranks=self.ranks,
                share=share_references(self.algorithm, recipe, environment, self._meter),
            )
            try:
                self.algorithm.train(training)
            finally:
                keeper.close()
                self._meter.keep_tensors("train", training.watch.peaks.values())
                found |= {"reductions": fit.reductions, "resumed": keeper.times}
            self._warn_of_idle(training.idle.names)
            if self.algorithm.then:
                found["trainable_parameters"] = sum(p.numel() for p in trainable(model))
            found |= log.measures(recipe.algorithm)
            if not self.algorithm.own_trainer:
                found |= {"micro_batch_tokens": fit.micro_batch_tokens, "checkpointing": fit.checkpointing}
        self._meter.move_seconds("train", "checkpoints", clock.aside)
        self._meter.add_seconds("train", keeper.before + clock.booked)
        self._write(METRICS, log.rows)
        with self._phase("save"):
            self._save(model, self.folder / MODEL)
            found["size_on_disk"] = folder_bytes(self.folder / MODEL)
        return checkpoints.rows

    def _save(self, model: "PreTrainedModel", folder: Path) -> None:
        if self.ranks.count > 1:
            lift_budget(self._meter.device)  # whole weights pass through main memory
            unite(model, self.ranks)
        if self.ranks.leads:
            folder.mkdir()
            self.algorithm.save(model, folder)
        self.ranks.wait()

    def _write(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        if self.ranks.leads:
            write_jsonl(self.folder / name, rows)

    def _keeper(self, log: StepLog, checkpoints: Checkpoints, clock: Clock) -> Keeper:
        """Return what keeps the state of training, with what was reported of it and asked midway."""
        if self.saving is None:
            return Keeper(clock=clock)
        facts = self.facts
        assert facts.data is not None
        assert facts.environment is not None
        start = facts.start.model_dump_json() if facts.start else ""
        of = (
            self.recipe.digest(),
            facts.model_digest or "",
            facts.data.digest,
            facts.environment.model_dump_json(),
            start,
        )

        def tell() -> Told:
            return {"steps": log.rows, "checkpoints": [row.model_dump() for row in checkpoints.rows]}

        def hear(told: Told) -> None:
            log.rows[:] = told["steps"]
            checkpoints.go_on([Checkpoint(**row) for row in told["checkpoints"]])

        return Keeper(self.saving.path, digest_of(*of), self.saving.every, clock, tell, hear)

    def _warn_of_idle(self, names: Sequence[str]) -> None:
        """Say what counts as trainable and was not trained: a method that uses its parts in turn may mean it so."""
        if names:
            shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
            self.facts.warnings.append(
                f"{type(self.algorithm).__qualname__}.adapt leaves {len(names)} parameters trainable that never had a "
                f"gradient ({shown}): use them in the forward pass and the loss, or set their requires_grad to False"
            )

    def _reload(self, load: LoadBase) -> "PreTrainedModel":
        model = self.algorithm.load(self.folder / MODEL, load)
        model.eval()
        return model
