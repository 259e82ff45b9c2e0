"""What an algorithm will take in memory on a model, from the model's configuration and fake tensors."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ftbench.algorithm import Algorithm
from ftbench.errors import FtbenchError, Skip, Unpredictable
from ftbench.memory.fit import Fit
from ftbench.memory.parts import Parts
from ftbench.memory.plan import ADAPT, LOAD, UPDATE, Cut, Forecast, extrapolate, highest
from ftbench.memory.standin import kind_of
from ftbench.models.loading import loading_bytes
from ftbench.models.precision import Precision
from ftbench.models.skeleton import build_skeleton, layer_count, with_layers, without_values
from ftbench.training.batching import Plan
from ftbench.training.probing import Probe
from ftbench.training.sharding import Ranks, pretended, shard
from ftbench.training.step import can_checkpoint
from ftbench.training.trainer import OptimiserSettings, StepReport

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig

TRAINS_ALONE = "{name} brings a trainer of its own, which is not spread over several devices; leave --devices out"

DEPTHS = (2, 3)
"""Layers of the models that are probed in place of one whose layers are all alike."""


@dataclass(frozen=True)
class Question:
    """What is asked: on which model, with which data and settings, on which kind of device, in which precision."""

    config: "PreTrainedConfig"
    plan: Plan
    device: "torch.device"
    precision: Precision
    start: str | None = None
    devices: int = 1


def forecast(question: Question, algorithm: Algorithm, cuts: Sequence[Cut]) -> list[Forecast]:
    """Predict the highest point of training for each way to cut a step that the model can be trained in.

    Args:
        question: as it says.
        algorithm: is changed as by a run.
        cuts: ways to cut a step.

    Raises:
        Skip: the algorithm does not apply to the model.
        Unpredictable: as it says.
        FtbenchError: there is no causal language model of this kind.
    """
    if algorithm.own_trainer and question.devices > 1:
        raise Skip(TRAINS_ALONE.format(name=algorithm.name))
    if algorithm.own_trainer:
        raise Unpredictable("it brings a trainer of its own")
    layers = layer_count(question.config)
    shallow = _depths(question.config, layers)
    probes = [(depth, _probe(config, question, algorithm, cuts)) for depth, config in shallow]
    forecasts = []
    for way in probes[0][1].cuts:
        if len(probes) == 1:
            peaks = dict(probes[0][1].found[way])
        else:
            (few, low), (more, high) = probes
            peaks = extrapolate((few, low.found[way]), (more, high.found[way]), layers)
        load = peaks.pop(LOAD, Parts()).total
        moment, peak = highest({name: _whole(name, parts, question.device) for name, parts in peaks.items()})
        forecasts.append(Forecast(way, probes[0][1].accumulation[way], peak, moment, load))
    return forecasts


def _whole(moment: str, parts: Parts, device: "torch.device") -> Parts:
    """Add to an update's moment what the update takes beside, which no probe has seen."""
    from ftbench.training.optimiser import update_bytes

    if not moment.endswith(UPDATE):
        return parts
    return replace(parts, activations=parts.activations + update_bytes(parts.optimiser, kind_of(device)))


def ways_to_cut(plan: Plan, micro_batch_tokens: int) -> list[Cut]:
    """Return what can be tried: from a whole step, at most `micro_batch_tokens`, halved down to one example."""
    longest = max(example.tokens for example in plan.examples)
    size = max(longest, min(micro_batch_tokens, max(step.tokens for step in plan.steps)))
    sizes = [size]
    while sizes[-1] > longest:
        sizes.append(max(longest, sizes[-1] // 2))
    return [Cut(size, checkpointing) for checkpointing in (False, True) for size in sizes]


def _depths(config: "PreTrainedConfig", layers: int) -> "list[tuple[int, PreTrainedConfig]]":
    """Return two shallow models to probe, or the whole one where its layers are few or not alike."""
    if layers > DEPTHS[-1]:
        shallow = [(depth, with_layers(config, depth)) for depth in DEPTHS]
        if all(changed is not None for _, changed in shallow):
            return [(depth, changed) for depth, changed in shallow if changed is not None]
    return [(layers, config)]


def _probe(config: "PreTrainedConfig", question: Question, algorithm: Algorithm, cuts: Sequence[Cut]) -> Probe:
    from ftbench.memory.ledger import Ledger

    with pretended(question.devices, question.device) as mesh, without_values(question.device):
        ledger = Ledger()
        calibration = [example.chosen.ids for example in question.plan.examples]
        try:
            model = build_skeleton(config, question.precision)
            loading = Parts(parameters=loading_bytes(model, question.config))
            ledger.claim("parameters", model.parameters())
            with ledger, ledger.moment(ADAPT):
                model = algorithm.adapt(model, calibration)
            if mesh is not None:
                shard(model, mesh)
            possible = tuple(way for way in cuts if can_checkpoint(model) or not way.checkpointing)
            probe = Probe(
                model,
                None,  # type: ignore[arg-type]
                question.plan,
                Fit(cuts[0].micro_batch_tokens),
                OptimiserSettings(1e-4, 0.0, 0.0, 1.0),
                _nowhere,
                question.start,
                algorithm.packed,
                ranks=Ranks(question.devices),
                cuts=possible,
            )
            if not possible:
                return probe
            algorithm.train(probe)
        except FtbenchError:
            raise
        except Exception as error:  # an algorithm or a model may look at values, which fake tensors do not have
            raise Unpredictable(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}") from error
    if not probe.found:
        raise Unpredictable("it brings a trainer of its own")
    if mesh is not None:  # what comes before the model is divided happens in main memory
        return probe
    for peaks in probe.found.values():
        peaks[ADAPT] = ledger.peaks.get(ADAPT, Parts())
        if kind_of(question.device) == "cpu":
            peaks[LOAD] = loading
    return probe


def _nowhere(_: StepReport) -> None:
    pass
