"""What each part of the latent-attention decomposition is worth, on SmolLM2-135M at half the cache, `exact-rope`.

python benchmarks/ablation.py oasst1-en-validation.jsonl               about twenty minutes

Texts, and what is compared, as in benchmarks/latent.py. Each case changes the moments that the factors are the best
by, or how ranks and rotated dimensions are chosen. A line a case is added to benchmarks/latent/ablation.jsonl; what is
there is not measured again.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from latent import base_folder, divergences, load_base, read_texts
from torch import Tensor

from ftbench_mla import conversion, statistics
from ftbench_mla.family import Family
from ftbench_mla.heal import predict
from ftbench_mla.statistics import LayerStatistics, shrunk

HERE = Path(__file__).parent
HALF = {"kv": 0.5, "mode": "exact-rope"}
ALIKE = {**HALF, "rank": 192}
"""Half of 384 in every layer, in place of ranks that are shared out."""
LESS = {"kv": 0.3125, "mode": "exact-rope", "recipe": "unfitted"}
DRAWN = (statistics.SHRINK_INPUTS, statistics.SHRINK_FISHER)
"""How far the plugin draws the moments of inputs and of gradients to the identity."""

EACH = statistics.DRAWS[1]
"""Draws of a token: what so few tokens as these have."""

Moments = tuple[Tensor, Tensor]
"""Of the inputs, `[hidden, hidden]`, and of the gradients, `[out, out]`; made of tokens, `[seq, …]`, in float64."""
Fit = Callable[[Tensor, Tensor], Moments]


def k_fac(x: Tensor, g: Tensor) -> Moments:
    """Every token counts the same (Martens and Grosse 2015)."""
    return x.T @ x / len(x), g.T @ g / len(g)


def without_first(x: Tensor, g: Tensor) -> Moments:
    """Leave out the first token of every text, which all others attend to."""
    kept = torch.arange(len(x)) % 512 != 0
    return k_fac(x[kept], g[kept])


def nearest(clip: float | None = None, rounds: int = 3) -> Fit:
    """The Kronecker product that is nearest in the least squares (Van Loan and Pitsianis 1993)."""

    def fit(x: Tensor, g: Tensor) -> Moments:
        inputs, gradients = k_fac(x, g)
        for _ in range(rounds):
            inputs = _weighed(x, _form(g, gradients).clamp(max=clip) if clip else _form(g, gradients))
            gradients = _weighed(g, _form(x, inputs))
        return inputs, gradients

    return fit


def matrix_normal(
    rounds: int = 3, power: float = 1.0, only: str = "both", shrink: tuple[float, float] = (0.0, 0.0)
) -> Fit:
    """The maximum of the matrix normal's likelihood (Dutilleul 1999)."""

    def fit(x: Tensor, g: Tensor) -> Moments:
        inputs, gradients = k_fac(x, g)
        for _ in range(rounds):
            of_gradients = _form(g, torch.linalg.inv(shrunk(gradients, statistics._NEXT_TO_NOTHING))) ** power
            of_inputs = _form(x, torch.linalg.inv(shrunk(inputs, statistics._NEXT_TO_NOTHING))) ** power
            inputs = inputs if only == "gradients" else _weighed(x, of_gradients)
            gradients = gradients if only == "inputs" else _weighed(g, of_inputs)
        return shrunk(inputs, shrink[0]), shrunk(gradients, shrink[1])

    return fit


def plugins(many: int = EACH, shrink: tuple[float, float] = DRAWN) -> Fit:
    """As the plugin has it, of so many draws, but of all tokens at once; weights are not brought to a mean of one.

    So the product of both moments has the size that the likelihood gives it, by which ranks are shared out over layers.
    """

    def fit(x: Tensor, g: Tensor) -> Moments:
        tokens = len(x) // EACH  # one draw stands behind the other
        x, g = x[:tokens], g.view(EACH, tokens, -1)[:many]
        found = statistics.Moments.plain(x, g)
        for _ in range(statistics.ROUNDS):
            found = found.reweigh(x, g, tokens)
        return shrunk(found.inputs / tokens, shrink[0]), shrunk(found.gradients / tokens, shrink[1])

    return fit


def _form(rows: Tensor, matrix: Tensor) -> Tensor:
    """Return rowᵀ matrix row, one on average, `[seq]`."""
    found = ((rows @ matrix) * rows).sum(1)
    return found / found.mean()


def _weighed(rows: Tensor, weights: Tensor) -> Tensor:
    return (rows * (weights / weights.mean())[:, None]).T @ rows / len(rows)


def a_tenth(x: Tensor, g: Tensor) -> Moments:
    """Replace a tenth of the gradients' moment by the identity."""
    inputs, gradients = k_fac(x, g)
    return inputs, shrunk(gradients, 0.1)


TAKEN = plugins()
CASES: dict[str, tuple[Fit, dict[str, Any]]] = {
    "weights alone": (k_fac, {**HALF, "recipe": "plain"}),
    "inputs whitened, keys and values balanced, all layers alike": (k_fac, {**ALIKE, "recipe": "balanced"}),
    "Fisher, all layers alike": (k_fac, ALIKE),
    "Fisher, ranks shared out": (k_fac, HALF),
    "the same, first tokens of texts left out": (without_first, HALF),
    "the same, a tenth of the Fisher's moment replaced by the identity": (a_tenth, HALF),
    "nearest Kronecker product, three rounds": (nearest(), HALF),
    "the same, weights clipped at ten": (nearest(10.0), HALF),
    "matrix normal, three rounds": (matrix_normal(), HALF),
    "only the inputs weighed": (matrix_normal(only="inputs"), HALF),
    "only the gradients weighed": (matrix_normal(only="gradients"), HALF),
    "six rounds": (matrix_normal(6), HALF),
    "the square root of the weights": (matrix_normal(power=0.5), HALF),
    "the weights' power 1.5": (matrix_normal(power=1.5), HALF),
    "three rounds, both drawn a little to the identity": (matrix_normal(shrink=DRAWN), HALF),
    "one round, both drawn": (matrix_normal(1, shrink=DRAWN), HALF),
    "two rounds, both drawn": (matrix_normal(2, shrink=DRAWN), HALF),
    "outputs left as they are": (TAKEN, {**HALF, "recipe": "unfitted"}),
    "absorbable, 31.25 %, outputs left as they are": (TAKEN, {"kv": 0.3125, "recipe": "unfitted"}),
    **{f"31.25 %, outputs left as they are, draws: {many}": (plugins(many), LESS) for many in (1, 2, 4, 6)},
    "31.25 %, outputs left as they are, drawn less": (plugins(shrink=(0.003, 0.03)), LESS),
    **{f"absorbable, 50 %, {dims} rotated": (TAKEN, {"kv": 0.5, "rope_dims": dims}) for dims in (40, 48, 64, 80)},
    **{f"absorbable, 31.25 %, {dims} rotated": (TAKEN, {"kv": 0.3125, "rope_dims": dims}) for dims in (24, 32, 40, 48)},
}


def main() -> None:
    """Measure what is not there yet, and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="OASST1's English validation messages")
    given = parser.parse_args()
    path = HERE / "latent" / "ablation.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    wanted = [name for name in CASES if name not in [row["case"] for row in rows]]
    if wanted:
        calibration, _, *domains = read_texts(given.file, base_folder())
        base = load_base()
        known = [[predict(base, text) for text in texts] for texts in domains]
        tokens, seen = _tokens(base, calibration)
    for name in wanted:
        fit, settings = CASES[name]
        model = _converted(fit, settings, calibration, tokens, seen)
        rows.append({"case": name, **divergences(model, domains, known)})
        with path.open("a") as file:
            file.write(json.dumps(rows[-1]) + "\n")
    for row in rows:
        print(f"{row['case']:70} {row['inside']['kl']:.3f} / {row['outside']['kl']:.3f}")


class _Kept(statistics._Layer):
    """Keeps the tokens of all blocks; `every` holds all that were made, in the order of layers."""

    every: list["_Kept"] = []

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.x: list[Tensor] = []  # [tokens, hidden]
        self.g: list[Tensor] = []  # [draws, tokens, out]
        self.every.append(self)

    def take_in(self) -> bool:
        """Take a block's tokens in, and keep them."""
        self.x += self._x
        self.g += self._g
        return super().take_in()


def _tokens(base: Any, calibration: list[list[int]]) -> tuple[list[Moments], list[LayerStatistics]]:
    """Return each layer's inputs and gradients, `[draws seq, …]`, and its statistics."""
    statistics._Layer = _Kept  # type: ignore[misc, assignment]
    seen = statistics.collect(base, Family.of(base.config), calibration)
    return [(torch.cat(one.x).repeat(EACH, 1), torch.cat(one.g, dim=1).flatten(0, 1)) for one in _Kept.every], seen


def _converted(
    fit: Fit, settings: dict[str, Any], calibration: Any, tokens: Sequence[Moments], seen: Sequence[LayerStatistics]
) -> Any:
    """Convert with the moments that `fit` makes of the tokens."""
    fitted = [fit(x.double(), g.double()) for x, g in tokens]
    told = [
        replace(one, weighed=inputs, fisher=gradients) for one, (inputs, gradients) in zip(seen, fitted, strict=True)
    ]
    conversion.collect = lambda *_: told  # type: ignore[assignment, attr-defined]
    fisher = conversion.RECIPES["fisher"]
    conversion.RECIPES["balanced"] = fisher._replace(metric="balanced")
    conversion.RECIPES["unfitted"] = fisher._replace(refits=False)
    model = load_base()
    conversion.convert_keeping(model, calibration, conversion.Settings(**settings))
    return model


if __name__ == "__main__":
    main()
