"""Latent-attention compression."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import TYPE_CHECKING, Literal

from pydantic import Field

import ftbench
from ftbench.errors import Unpredictable

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from torch import Tensor
    from transformers import PreTrainedModel

    from ftbench.training.step import Moment
    from ftbench_mla.conversion import Settings, Teacher, convert
    from ftbench_mla.heal import Divergence

__all__ = ["Mla", "Settings", "convert"]

CONVERTED, THEN = "converted", "then"
"""Folders of a saved model that another algorithm trained: the model, and what that algorithm saved."""

COMPARED = 16
"""Texts that the base draws and the model is not healed on, to compare the two."""


class Mla(ftbench.Algorithm):
    """Latent attention (DeepSeek-AI 2024, arXiv:2405.04434) decomposed from the trained one, healed, then trained.

    How the weights are decomposed is `recipe`: `transmla` (Meng et al. 2025, arXiv:2502.07864), `mha2mla` (Ji et al.
    2025, arXiv:2502.14837), `plain`, or ftbench's own `fisher`.

    Loss:
        Of healing the mean over tokens of KL(base || model), nats: of the next token as the untouched model predicts
        it, and as the converted one does. Of training the task the mean negative log-likelihood of the chosen
        completions' tokens, or the loss of the algorithm that `then` names.
    """

    name = "mla"

    class Config(ftbench.ThenConfig):
        """What is kept of the cache, and how the model is healed before it is trained."""

        learning_rate: float = 1.5e-4
        kv: float = Field(0.3125, gt=0, le=1, description="share of the base's cache that is kept")
        mode: Literal["absorbable", "exact-rope"] = Field("absorbable", description="how keys know their place")
        recipe: Literal["fisher", "transmla", "mha2mla", "plain"] = Field(
            "fisher", description="how the weights are decomposed; two are named as their papers"
        )
        rank: int | None = Field(None, ge=1, description="of every layer; by default what kv leaves")
        rope_dims: int | None = Field(None, ge=0, description="rotated beside the latent; by default a quarter")
        calibration_tokens: int = Field(8192, ge=256, description="of the training texts, to decompose by")
        heal_tokens: int = Field(
            20_000, ge=0, description="beside the recipe's; half of training texts, half drawn by the base"
        )
        heal_learning_rate: float = Field(1e-4, gt=0, description="the highest of healing")
        heal_length: int = Field(256, ge=16, description="tokens of a text")
        decode_contexts: tuple[int, ...] = Field((128, 1024), description="tokens before those whose speed is measured")

    def __init__(self, config: ftbench.AlgorithmConfig) -> None:
        super().__init__(config)
        self._teacher: Teacher | None = None
        self._figures: dict[str, float] = {}
        self._warnings: list[str] = []
        self._converted: TemporaryDirectory[str] | None = None
        self._trained: PreTrainedModel | None = None

    def figures(self) -> dict[str, float]:
        """Return how far the model was from the base when it was converted and when it was healed, and its speed."""
        return self._figures

    def warnings(self) -> Sequence[str]:
        """Say where the texts to calibrate on were few."""
        return self._warnings

    def settings(self) -> "Settings":
        """Return how the model is converted."""
        from ftbench_mla.conversion import Settings

        config = self.config
        return Settings(config.kv, config.mode, config.recipe, config.rank, config.rope_dims)

    def adapt(self, model: "PreTrainedModel", calibration: Sequence[Sequence[int]]) -> "PreTrainedModel":
        """Convert the model, calibrated on the training texts."""
        from ftbench_mla.conversion import convert_keeping, reshape, scarcity
        from ftbench_mla.family import UnconvertibleError

        start = perf_counter()
        try:
            if is_valueless(model):
                return reshape(model, self.settings())
            texts = first_tokens(calibration, self.config.calibration_tokens)
            few = scarcity(model, texts)
            self._teacher = convert_keeping(model, texts, self.settings())
            self._warnings += [few] if few else []
        except UnconvertibleError as error:
            raise ftbench.Skip(str(error)) from error
        self._figures["convert_s"] = perf_counter() - start
        return model

    def train(self, training: "ftbench.Training") -> None:
        """Heal, and then train as any other model is."""
        if self.then is not None and self.config.heal_tokens and is_valueless(training.model):
            # Without it training takes more: of all weights, where healing is of attention's alone.
            raise Unpredictable(
                f"it is healed before {self.then.name} trains it, which may take more; set heal_tokens=0"
            )
        if self._teacher is not None:
            self._heal(training, self._teacher)
        self._teacher = None  # and with it the attention that was
        if self.then is None:
            training.run(self.loss)
            return
        model, other = training.model, self.then
        if not is_valueless(model):
            self._converted = TemporaryDirectory()
            model.save_pretrained(self._converted.name)
        self._trained = other.adapt(model, [example.chosen.ids for example in training.plan.examples])
        settings = replace(training.settings, learning_rate=other.config.learning_rate)
        other.train(replace(training, model=self._trained, settings=settings))

    def save(self, model: "PreTrainedModel", folder: Path) -> None:
        """Write the model; what another algorithm then trained stands beside the converted one."""
        if self.then is None or self._converted is None or self._trained is None:
            super().save(model, folder)
            return
        shutil.copytree(self._converted.name, folder / CONVERTED)
        self._converted.cleanup()
        (folder / THEN).mkdir()
        self.then.save(self._trained, folder / THEN)
        self._trained = None  # evaluation loads another

    def _heal(self, training: "ftbench.Training", teacher: "Teacher") -> None:
        """Heal on training texts and on some that the base draws, and compare with it before and after on others."""
        from ftbench.training.encoding import EncodedExample, TokenSequence
        from ftbench_mla.decode import STEPS, decode_speed
        from ftbench_mla.heal import HealSettings, compare, draw_texts, heal

        config, model, length = self.config, training.model, self.config.heal_length
        count = config.heal_tokens // length
        longest = model.config.max_position_embeddings - STEPS
        contexts = [context for context in config.decode_contexts if context <= longest]
        with teacher.in_place() as base:
            start = base.config.bos_token_id
            first = training.plan.examples[0].chosen.ids[0]
            known = joined([example.chosen.ids for example in training.plan.examples], length)[: count // 2]
            wanted, begin = COMPARED + count - len(known), first if start is None else start
            drawn = draw_texts(base, begin, wanted, length, training.plan.seed)
            with training.clock.stopped():  # what is measured trains nothing
                for context in contexts:
                    self._figures[f"decode_{context}_base_tokens/s"] = decode_speed(base, context)
        texts, held_out = alternating(known, drawn[COMPARED:]), drawn[:COMPARED]
        with training.clock.stopped():
            for context in contexts:
                self._figures[f"decode_{context}_tokens/s"] = decode_speed(model, context)
            self._compare("converted", compare(model, teacher, held_out))
        if not texts:
            return
        settings = HealSettings(length, training.fit.micro_batch_tokens, training.settings.max_grad_norm)

        def report(loss: float, norm: float, rate: float, tokens: int, sequences: int) -> None:
            training.report(ftbench.StepReport("heal", loss, norm, rate, tokens, sequences, sequences))

        examples = [EncodedExample(TokenSequence(tuple(text), 1), None) for text in texts]
        training.watch.expect("heal", [[(example,)] for example in examples[:: settings.texts(length)]], limited=False)

        def counted(index: int, kept: "Iterator[Tensor]") -> "AbstractContextManager[Moment]":
            return training.watch.step("heal", index, model, kept)

        heal(model, teacher, texts, config.heal_learning_rate, settings, report, counted)
        with training.clock.stopped():
            self._compare("healed", compare(model, teacher, held_out))

    def _compare(self, when: str, found: "Divergence") -> None:
        self._figures[f"KL_{when}_nats/token"] = found.kl
        self._figures[f"agreement_{when}"] = found.agreement
        self._figures[f"perplexity_ratio_{when}"] = found.perplexity_ratio

    def load(self, folder: Path, load_base: "Callable[[Path | None], PreTrainedModel]") -> "PreTrainedModel":
        """Read the converted model."""
        import ftbench_mla.modeling  # noqa: F401  makes its classes known to transformers

        if self.then is None:
            return load_base(folder)
        return self.then.load(folder / THEN, lambda other: load_base(other or folder / CONVERTED))


def __getattr__(name: str) -> object:
    """Bring what converts a model by itself, once somebody asks for it: it imports torch."""
    if name in ("Settings", "convert"):
        from ftbench_mla import conversion

        return getattr(conversion, name)
    raise AttributeError(f"module 'ftbench_mla' has no attribute '{name}'")


def is_valueless(model: "PreTrainedModel") -> bool:
    """Whether a model is only planned with, and has no values."""
    from torch._subclasses.fake_tensor import FakeTensor

    return isinstance(next(model.parameters()).data, FakeTensor)


def first_tokens(texts: Sequence[Sequence[int]], tokens: int) -> list[Sequence[int]]:
    """Return as many whole texts as have so many tokens together."""
    found: list[Sequence[int]] = []
    for text in texts:
        if sum(map(len, found)) >= tokens:
            break
        found.append(text)
    return found


def joined(texts: Sequence[Sequence[int]], length: int) -> list[list[int]]:
    """Put texts one behind another and cut them into whole pieces of one length."""
    every = [token for text in texts for token in text]
    return [every[begin : begin + length] for begin in range(0, len(every) - length + 1, length)]


def alternating(some: Sequence[list[int]], others: Sequence[list[int]]) -> list[list[int]]:
    """Return both kinds of texts, in turn while there are both."""
    pairs = [text for pair in zip(some, others, strict=False) for text in pair]
    both = min(len(some), len(others))
    return [*pairs, *some[both:], *others[both:]]


@ftbench.hookimpl
def ftbench_algorithms() -> list[type[ftbench.Algorithm]]:
    """Bring latent-attention compression."""
    return [Mla]
