"""Training as a part of a run: adapt, divide, train and save."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ftbench.execution.checkpoints import Checkpoints
from ftbench.execution.course import Course
from ftbench.execution.examining import Examination
from ftbench.execution.sharing import share_references
from ftbench.execution.steplog import StepLog
from ftbench.execution.unfinished import Saving
from ftbench.files import folder_bytes
from ftbench.memory.budget import lift_budget
from ftbench.memory.fit import Fit
from ftbench.results.result import Checkpoint
from ftbench.results.store import METRICS, MODEL
from ftbench.training.batching import Plan
from ftbench.training.clock import Clock
from ftbench.training.keeping import Keeper, digest_of
from ftbench.training.sharding import unite
from ftbench.training.statefile import Told
from ftbench.training.step import trainable
from ftbench.training.trainer import OptimiserSettings, StepReport, Training
from ftbench.training.watch import StepWatch, vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TRAIN = "train"
"""The phase whose state is kept."""


@dataclass(frozen=True)
class Teaching:
    """A run's training; `saving` says where it keeps its state, if it does, and midway `examination` is held."""

    course: Course
    examination: Examination
    saving: Saving | None

    def teach(self, model: "PreTrainedModel", plan: Plan, fit: Fit, since: int) -> list[Checkpoint]:
        """Adapt, divide, train and save; return what was asked midway.

        Args:
            model: as it was loaded.
            plan: the steps.
            fit: how they fit into memory.
            since: bytes of the process before the model was loaded.
        """
        import transformers

        course, found = self.course, self.course.facts.measures
        with course.phase("adapt"), course.meter.counting("adapt", model.parameters(), vocabulary(model)):
            transformers.set_seed(course.recipe.seed)  # adapters start from the seed, whatever was drawn before
            model = course.algorithm.adapt(model, [example.chosen.ids for example in plan.examples])
            found["trainable_parameters"] = sum(p.numel() for p in trainable(model))
        course.divide(model, course.meter.device, since)
        rows = self._train(model, plan, fit)
        with course.phase("save"):
            self._save(model, course.folder / MODEL)
            found["size_on_disk"] = folder_bytes(course.folder / MODEL)
        return rows

    def _train(self, model: "PreTrainedModel", plan: Plan, fit: Fit) -> list[Checkpoint]:
        course, recipe, found = self.course, self.course.recipe, self.course.facts.measures
        algorithm, ranks, meter = course.algorithm, course.ranks, course.meter
        environment, start = course.facts.environment, course.facts.start
        assert environment is not None
        with course.phase(TRAIN, recipe.tokens):
            clock = Clock(ranks.agree)
            log = StepLog(course.events.send, meter.read_peak, clock)
            checkpoints = Checkpoints(
                recipe.checkpoints,
                plan,
                clock,
                lambda: self.examination.ask_few(model),
                together=ranks.count > 1,
            )

            def report(step: StepReport) -> None:
                log(step)
                checkpoints.pass_by(log.rows[-1]["tokens"], log.rows[-1]["seconds"])

            keeper = self._keeper(log, checkpoints, clock)
            training = Training(
                model,
                self.examination.chat.tokenizer,
                plan,
                fit,
                OptimiserSettings(
                    algorithm.config.learning_rate, recipe.weight_decay, recipe.warmup, recipe.max_grad_norm
                ),
                report,
                start.run if start else None,
                algorithm.packed,
                watch=StepWatch(from_start=self._is_doubtful),
                clock=clock,
                keeper=keeper,
                ranks=ranks,
                share=share_references(algorithm, recipe, environment, meter),
            )
            try:
                algorithm.train(training)
            finally:
                keeper.close()
                meter.keep_tensors("train", training.watch.peaks.values())
                found |= {"reductions": fit.reductions, "resumed": keeper.times}
            self._warn_of_idle(training.idle.names)
            if algorithm.then:
                found["trainable_parameters"] = sum(p.numel() for p in trainable(model))
            found |= log.measures(recipe.algorithm)
            if not algorithm.own_trainer:
                found |= {"micro_batch_tokens": fit.micro_batch_tokens, "checkpointing": fit.checkpointing}
        meter.move_seconds("train", "checkpoints", clock.aside)
        meter.add_seconds("train", keeper.before + clock.booked)
        course.write(METRICS, log.rows)
        return checkpoints.rows

    @property
    def _is_doubtful(self) -> bool:
        """Whether nobody said that training fits under its budget: it may come to no further step than the first."""
        plan = self.course.facts.memory_plan
        return self.course.recipe.memory_budget is not None and not (plan and plan.fits)

    def _save(self, model: "PreTrainedModel", folder: Path) -> None:
        course = self.course
        if course.ranks.count > 1:
            lift_budget(course.meter.device)  # whole weights pass through main memory
            unite(model, course.ranks)
        if course.ranks.leads:
            folder.mkdir()
            course.algorithm.save(model, folder)
        course.ranks.wait()

    def _keeper(self, log: StepLog, checkpoints: Checkpoints, clock: Clock) -> Keeper:
        """Return what keeps the state of training, with what was reported of it and asked midway."""
        if self.saving is None:
            return Keeper(clock=clock)
        facts = self.course.facts
        assert facts.data is not None
        assert facts.environment is not None
        start = facts.start.model_dump_json() if facts.start else ""
        of = (
            self.course.recipe.digest(),
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

        return Keeper(self.saving.path, digest_of(*of), self.saving.every, clock, tell, hear, self.course.ranks)

    def _warn_of_idle(self, names: Sequence[str]) -> None:
        """Say what counts as trainable and was not trained: a method that uses its parts in turn may mean it so."""
        if names:
            shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
            self.course.facts.warnings.append(
                f"{type(self.course.algorithm).__qualname__}.adapt leaves {len(names)} parameters trainable that never "
                f"had a gradient ({shown}): use them in the forward pass and the loss, or set their requires_grad to "
                "False"
            )
