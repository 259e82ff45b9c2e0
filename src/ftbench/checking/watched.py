"""What an algorithm does while it is run: every call of its methods is looked at from outside."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ftbench.algorithm import Algorithm, ThenConfig
from ftbench.checking.surroundings import differences, look

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel

    from ftbench.execution.facts import Facts
    from ftbench.training.batching import Plan
    from ftbench.training.trainer import Training

_SEED = 20_240_229
"""No algorithm is given it, so that who seeds torch's generator anew is seen."""
_IDS = range(3, 43)


@dataclass
class Watched:
    """What a run did; `fresh` makes the algorithm anew, as a later process does.

    Arrays are numpy's, for torch's own would count as memory of the run: `parameters` and `trained` are before and
    after training by name; of the untouched, the trained and the reloaded model, and of what the algorithm made anew
    reloads, the logits are kept, `[40, vocabulary]`.
    """

    fresh: Callable[[], Algorithm]
    error: Exception | None = None
    rows: "list[dict[str, Any]]" = field(default_factory=list)
    frozen_changed: list[str] = field(default_factory=list)
    unmoved: list[str] = field(default_factory=list)
    trainable: int = 0
    logits: "np.ndarray[Any, Any] | None" = None
    base: "np.ndarray[Any, Any] | None" = None
    reloaded: "np.ndarray[Any, Any] | None" = None
    reloaded_anew: "np.ndarray[Any, Any] | None" = None
    leaks: list[tuple[str, str]] = field(default_factory=list)
    pickles: list[str] = field(default_factory=list)
    plan: "Plan | None" = None
    facts: "Facts | None" = None
    others: int = 0
    """Bytes of tensors that stood in this process before."""

    def around(self, method: str, arguments: tuple[Any, ...], call: Callable[[], Any]) -> Any:
        """Look at one call of an algorithm's method."""
        import torch

        if method == "loss":
            return call()
        if method in ("adapt", "train"):
            torch.manual_seed(_SEED)
        before = look()
        handler = getattr(self, f"_{method}", None)
        try:
            return handler(arguments, call) if handler else call()
        finally:
            self.leaks += [(method, what) for what in differences(before, look())]

    def _adapt(self, arguments: tuple[Any, ...], call: Callable[[], Any]) -> Any:
        from ftbench.training.reference import drop_nothing

        self.base = _logits(arguments[0])
        adapted = call()
        drop_nothing(adapted)  # or no two ways to cut a step would agree
        return adapted

    def _train(self, arguments: tuple[Any, ...], call: Callable[[], Any]) -> Any:
        training: Training = arguments[0]
        self.plan, model = training.plan, training.model
        named = list(model.named_parameters())
        before = {name: tensor.detach().numpy().copy() for name, tensor in (*named, *model.named_buffers())}
        trainable = {name for name, parameter in named if parameter.requires_grad and parameter.numel()}
        result = call()
        after = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        if isinstance(self.fresh().config, ThenConfig):  # makes another model first, and then what it trains of that
            trainable |= {name for name, tensor in after.items() if tensor.requires_grad}
        changed = {
            name
            for name, tensor in after.items()
            if name not in before or not _same(before[name], tensor.detach().numpy())
        }
        self.trainable = len(trainable)
        self.frozen_changed = sorted(changed - trainable)
        self.unmoved = sorted(trainable & before.keys() & after.keys() - changed)
        return result

    def _save(self, arguments: tuple[Any, ...], call: Callable[[], Any]) -> Any:
        model, folder = arguments
        self.logits = _logits(model)
        result = call()
        suffixes = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}
        self.pickles = sorted(path.name for path in folder.rglob("*") if path.suffix in suffixes)
        return result

    def _load(self, arguments: tuple[Any, ...], call: Callable[[], Any]) -> Any:
        model = call()
        self.reloaded = _logits(model)
        self.reloaded_anew = _logits(self.fresh().load(*arguments))
        return model


def _logits(model: "PreTrainedModel") -> "np.ndarray[Any, Any]":
    """Logits of forty fixed tokens, float32, `[40, vocabulary]`; a model may put vectors of its own before them."""
    import torch

    was_training = model.training
    model.eval()
    with torch.inference_mode():
        ids = torch.tensor([list(_IDS)], device=model.device)
        logits = model(input_ids=ids).logits[0, -len(_IDS) :].float().cpu().numpy()
    model.train(was_training)
    return logits  # type: ignore[no-any-return]


def _same(one: "np.ndarray[Any, Any]", other: "np.ndarray[Any, Any]") -> bool:
    import numpy as np

    return one.shape == other.shape and bool(np.array_equal(one, other, equal_nan=True))
