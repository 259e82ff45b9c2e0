"""Will it fit? The highest point of training, predicted from small probes, and the micro-batch for a budget."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from ftbench.memory.parts import Parts

Peaks = Mapping[str, Parts]
"""The highest point of each moment."""


LOAD = "load"
"""The moment before training that its peak does not count, and a budget must hold."""
ADAPT = "adapt"
"""The moment whose peak is the same however a step is cut."""
UPDATE = "update"


@dataclass(frozen=True)
class Cut:
    """A way to cut a step: real tokens of a micro-batch, and whether activations are computed again."""

    micro_batch_tokens: int
    checkpointing: bool


@dataclass(frozen=True)
class Forecast:
    """The highest point that is predicted for one way to cut a step.

    `accumulation` is the number of micro-batches that the effective batch takes, at most; `load` is what loading the
    model takes before, bytes.
    """

    cut: Cut
    accumulation: int
    peak: Parts
    moment: str
    load: int = 0

    @property
    def need(self) -> int:
        """What there must be room for, bytes."""
        return max(self.peak.total, self.load)

    @property
    def least(self) -> bool:
        """Whether no other cut could take less."""
        return self.load >= self.peak.total or self.moment == ADAPT


def extrapolate(shallow: tuple[int, Peaks], deep: tuple[int, Peaks], layers: int) -> dict[str, Parts]:
    """Predict the peaks of a model from two of fewer layers, in which each moment's peak is a straight line.

    Args:
        shallow: layers and peaks of the one.
        deep: of the other, which has more layers.
        layers: of the model that is asked for.
    """
    (few, low), (more, high) = shallow, deep
    return {moment: _line(low[moment], high[moment], (layers - few) / (more - few)) for moment in low}


def _line(low: Parts, high: Parts, position: float) -> Parts:
    values = {
        part.name: getattr(low, part.name) + position * (getattr(high, part.name) - getattr(low, part.name))
        for part in fields(Parts)
    }
    return Parts(**{name: max(0, round(value)) for name, value in values.items()})


def highest(peaks: Peaks) -> tuple[str, Parts]:
    """Return the moment of the highest peak, and the peak."""
    return max(peaks.items(), key=lambda item: item[1].total)


def choose(forecasts: Sequence[Forecast], room: int) -> Forecast | None:
    """Return the forecast with the largest micro-batch that fits into `room` bytes; None where none does.

    Computing activations again takes time, so that it is only chosen where not even the smallest micro-batch fits
    without.
    """
    fitting = [forecast for forecast in forecasts if forecast.need <= room]
    return max(
        fitting,
        key=lambda forecast: (not forecast.cut.checkpointing, forecast.cut.micro_batch_tokens),
        default=None,
    )


def smallest(forecasts: Sequence[Forecast]) -> Forecast:
    """Return the forecast that needs least; the larger micro-batch where two need the same."""
    return min(forecasts, key=lambda forecast: (forecast.need, -forecast.cut.micro_batch_tokens))
