"""Algorithms that break their contract, each in one way: what `ftbench check` is held against."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import ConfigDict
from torch import Tensor
from transformers import PreTrainedModel

import ftbench
from ftbench.registry import Plugin, Registry

DRAWN: list[int] = []


class TakesAnything(ftbench.Algorithm):
    """Takes options that it does not have."""

    name = "takes-anything"

    class Config(ftbench.AlgorithmConfig):
        """Ignores what it does not know."""

        model_config = ConfigDict(frozen=True, extra="ignore")


class MisspeltRate(ftbench.Algorithm):
    """Means the learning rate."""

    name = "misspelt-rate"

    class Config(ftbench.AlgorithmConfig):
        """One letter is missing."""

        learning_rte: float = 1e-3


class MisspeltAdapter(ftbench.Algorithm):
    """Means the adapter, and would train every weight."""

    name = "misspelt-adapter"

    class Config(ftbench.AdapterConfig):
        """One letter is another."""

        adaptor: str = "lora"


class MisspeltDefault(ftbench.Algorithm):
    """Means the rate without an adapter."""

    name = "misspelt-default"

    class Config(ftbench.AdapterConfig):
        """One letter is missing."""

        full_learning_rte: ClassVar[float] = 1e-5


class Forgets(ftbench.Algorithm):
    """Writes down less than it was given."""

    name = "forgets"

    class Config(ftbench.AlgorithmConfig):
        """A default of `weight` that is drawn anew each time."""

        weight: float = 0.0

        def model_post_init(self, context: Any) -> None:
            DRAWN.append(0)
            object.__setattr__(self, "weight", float(len(DRAWN)))


class Raises(ftbench.Algorithm):
    """Raises in the middle of training."""

    name = "raises"

    def loss(self, logprobs: ftbench.CompletionLogProbs) -> Tensor:
        return logprobs.nll() / self._no_such_thing()

    def _no_such_thing(self) -> Tensor:
        raise KeyError("no such\nthing")


class Uphill(ftbench.Algorithm):
    """Moves the weights up the gradient."""

    name = "uphill"

    def loss(self, logprobs: ftbench.CompletionLogProbs) -> Tensor:
        loss = logprobs.nll()
        return loss.detach() * 2 - loss


class TouchesFrozen(ftbench.Algorithm):
    """Says that one layer is trainable, and changes another."""

    name = "touches-frozen"

    def adapt(self, model: PreTrainedModel, calibration: Sequence[Sequence[int]]) -> PreTrainedModel:
        model.requires_grad_(False)
        model.model.layers[0].requires_grad_(True)
        return model

    def train(self, training: ftbench.Training) -> None:
        super().train(training)
        with torch.no_grad():
            training.model.model.layers[1].mlp.up_proj.weight.mul_(1.01)


class Unfreezes(TouchesFrozen):
    """Changes a layer that it had not called trainable, and calls it so afterwards."""

    name = "unfreezes"

    def train(self, training: ftbench.Training) -> None:
        super().train(training)
        training.model.model.layers[1].mlp.up_proj.weight.requires_grad_(True)


class MovesBuffers(ftbench.Algorithm):
    """Changes what is no parameter."""

    name = "moves-buffers"

    def train(self, training: ftbench.Training) -> None:
        super().train(training)
        training.model.model.rotary_emb.inv_freq.mul_(1.01)


class LeavesIdle(ftbench.Algorithm):
    """Adds a parameter that nothing uses."""

    name = "leaves-idle"

    def adapt(self, model: PreTrainedModel, calibration: Sequence[Sequence[int]]) -> PreTrainedModel:
        model.model.gate = torch.nn.Parameter(torch.ones(3))
        return model

    def save(self, model: PreTrainedModel, folder: Path) -> None:
        del model.model.gate
        super().save(model, folder)


class OwnTrainerForgets(ftbench.Algorithm):
    """Brings a trainer that trains one layer of all that are trainable."""

    name = "own-trainer-forgets"
    own_trainer = True

    def train(self, training: ftbench.Training) -> None:
        model = training.model
        optimiser = torch.optim.SGD(model.model.layers[0].parameters(), lr=0.1)
        for index, step in enumerate(training.plan.steps):
            ids = [torch.tensor([example.chosen.ids]) for example in step.examples]
            loss = sum(model(input_ids=one, labels=one).loss for one in ids) / len(ids)
            loss.backward()
            optimiser.step()
            model.zero_grad()
            training.note(index, loss.item(), 0.0, 0.1)


class SavesZeros(ftbench.Algorithm):
    """Saves other weights than it trained."""

    name = "saves-zeros"

    def save(self, model: PreTrainedModel, folder: Path) -> None:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        model.save_pretrained(folder)


class KeepsInMind(ftbench.Algorithm):
    """Saves nothing: what it learnt it keeps in itself."""

    name = "keeps-in-mind"

    def save(self, model: PreTrainedModel, folder: Path) -> None:
        self.kept = model

    def load(self, folder: Path, load_base: Callable[[Path | None], PreTrainedModel]) -> PreTrainedModel:
        return getattr(self, "kept", None) or load_base(None)


class Pickles(ftbench.Algorithm):
    """Saves with torch.save beside."""

    name = "pickles"

    def save(self, model: PreTrainedModel, folder: Path) -> None:
        super().save(model, folder)
        torch.save({}, folder / "extra.pt")


class ChangesNothing(ftbench.Algorithm):
    """Reports steps, and does none."""

    name = "changes-nothing"
    own_trainer = True

    def train(self, training: ftbench.Training) -> None:
        for index, _ in enumerate(training.plan.steps):
            training.note(index, 1.0 / (index + 1), 0.0, 0.0)


class DrawsAnew(ftbench.Algorithm):
    """Draws what no seed fixes."""

    name = "draws-anew"

    def loss(self, logprobs: ftbench.CompletionLogProbs) -> Tensor:
        return logprobs.nll() * (1 + int.from_bytes(os.urandom(2)) / 2**20)


class Remembers(ftbench.Algorithm):
    """Weighs later steps more, and counts them by itself."""

    name = "remembers"

    def loss(self, logprobs: ftbench.CompletionLogProbs) -> Tensor:
        self.calls = getattr(self, "calls", 0) + 1
        return logprobs.nll() * (1 + self.calls / 10)


class CountsMicroBatches(ftbench.Algorithm):
    """Takes the mean over a micro-batch, not over the effective batch."""

    name = "counts-micro-batches"

    def loss(self, logprobs: ftbench.CompletionLogProbs) -> Tensor:
        return -logprobs.chosen.per_token.mean()


class Hoards(ftbench.Algorithm):
    """Keeps memory that no plan can see."""

    name = "hoards"

    def loss(self, logprobs: ftbench.CompletionLogProbs) -> Tensor:
        from torch._subclasses.fake_tensor import FakeTensor

        if not isinstance(logprobs.chosen.sums, FakeTensor):
            self.kept = torch.zeros(2**24)
        return logprobs.nll()


class Reseeds(ftbench.Algorithm):
    """Seeds torch's generator anew."""

    name = "reseeds"

    def adapt(self, model: PreTrainedModel, calibration: Sequence[Sequence[int]]) -> PreTrainedModel:
        torch.manual_seed(0)
        return model


class LeavesTraces(ftbench.Algorithm):
    """Leaves a variable in the environment, and another default dtype."""

    name = "leaves-traces"

    def train(self, training: ftbench.Training) -> None:
        os.environ["BROKEN_BY"] = self.name
        torch.set_default_dtype(torch.float64)
        super().train(training)


class PerPrompt(ftbench.Algorithm):
    """Returns a loss for each prompt."""

    name = "per-prompt"

    def loss(self, logprobs: ftbench.CompletionLogProbs) -> Tensor:
        return -logprobs.chosen.per_token


class NoReturn(ftbench.Algorithm):
    """Returns no loss."""

    name = "no-return"

    def loss(self, logprobs: ftbench.CompletionLogProbs) -> Tensor:  # type: ignore[return]
        logprobs.nll()


class Detached(ftbench.Algorithm):
    """Returns a loss without its graph."""

    name = "detached"

    def loss(self, logprobs: ftbench.CompletionLogProbs) -> Tensor:
        return logprobs.nll().detach()


class MisspeltField(ftbench.Algorithm):
    """Reads a field that its configuration does not have."""

    name = "misspelt-field"

    class Config(ftbench.AlgorithmConfig):
        """One option."""

        weight: float = 0.5

    def loss(self, logprobs: ftbench.CompletionLogProbs) -> Tensor:
        return float(self.config.wieght) * logprobs.nll()


class WantsPairs(ftbench.Algorithm):
    """Reads rejected completions without saying that it needs preferences."""

    name = "wants-pairs"

    def loss(self, logprobs: ftbench.CompletionLogProbs) -> Tensor:
        return logprobs.nll() - logprobs.mean(logprobs.rejected.per_token)


class Frozen(ftbench.Algorithm):
    """Leaves nothing to train."""

    name = "frozen"

    def adapt(self, model: PreTrainedModel, calibration: Sequence[Sequence[int]]) -> PreTrainedModel:
        return model.requires_grad_(False)


ALL = [value for value in list(globals().values()) if isinstance(value, type) and value.__module__ == __name__]
PLUGIN = Plugin("ftbench-broken", "0.3", ("ftbench_algorithms",), tuple(ALL))


def registry(beside: Registry) -> Registry:
    """What is installed, and these."""
    return Registry((*beside.plugins, PLUGIN), ())
