"""Every method of the peft library, by its name or by an adapter_config.json."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

import ftbench

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Peft(ftbench.Algorithm):
    """Any method of the peft library, as peft's own comparison sets it: peft:dora, peft:vera, peft:FILE.json, …

    - `dora`: LoRA, the weights' lengths trained apart from their directions (Liu et al. 2024, arXiv:2402.09353).
    - `ia3`: a factor for each key, value and inner feed-forward activation (Liu et al. 2022, arXiv:2205.05638).
    - `oft`: weights turned by block-diagonal orthogonal matrices (Qiu et al. 2023, arXiv:2306.07280).
    - `vera`: scaling vectors beside low-rank matrices that are random and shared (Kopiczko et al. 2023,
      arXiv:2310.11454).

    The papers of the others: `adalora` arXiv:2303.10512, `adaption_prompt` arXiv:2303.16199, `bdlora`
    arXiv:2510.23346, `beft` arXiv:2509.15974, `boft` arXiv:2311.06243, `c3a` arXiv:2407.19342, `delora`
    arXiv:2503.18225, `fourierft` arXiv:2405.03003, `glora` arXiv:2306.07967, `gralora` arXiv:2505.20355, `hra`
    arXiv:2405.17484, `kasa` arXiv:2412.06071, `ln_tuning` arXiv:2312.11420, `loha` and `lokr` arXiv:2108.06098 and
    arXiv:2309.14859, `lora` arXiv:2106.09685, `mica` arXiv:2604.01694, `miss` arXiv:2409.15371, `osf`
    arXiv:2504.07097, `p_tuning` arXiv:2103.10385, `peanut` arXiv:2410.01870, `prefix_tuning` arXiv:2101.00190,
    `prompt_tuning` arXiv:2104.08691, `psoft` arXiv:2505.11235, `pvera` arXiv:2512.07703, `randlora` arXiv:2502.00987,
    `road` arXiv:2409.00119, `rslora` arXiv:2312.03732, `shadow` arXiv:2604.19254, `shira` arXiv:2406.13175,
    `supertuning` arXiv:2607.09287, `tinylora` arXiv:2602.04118, `unilora` arXiv:2506.00799, `vblora`
    arXiv:2405.15179, `velora` arXiv:2405.17991, `waveft` arXiv:2505.12532. Of `adamss`, `deft`, `frod` and `hira`
    peft names no number there, and of `trainable_tokens` no paper.

    Loss:
        The mean negative log-likelihood of the chosen completions' tokens, as `full` has it. `adalora` adds its own
        penalty, `orth_reg_weight` times the mean of ||P P^T - I|| over its factors (equation 4 of its paper).
    """

    name = "peft"
    variants = ("dora", "ia3", "oft", "vera")

    class Config(ftbench.AlgorithmConfig):
        """A peft type, and what its configuration has other than peft's defaults."""

        method: str = Field("LORA", description="peft's type: LORA, IA3, …")
        settings: dict[str, Any] = Field(default_factory=dict, description="fields of that type's configuration")

    _packed = True

    def __init__(self, config: ftbench.AlgorithmConfig) -> None:
        from ftbench_peft.methods import check_settings

        super().__init__(config)
        check_settings(self.config.method, self.config.settings)

    @property
    def is_adapter(self) -> bool:
        """AdaLoRA has a loss and a schedule of its own; all others only say what is trainable."""
        return str(self.config.method) != "ADALORA"

    @property
    def packed(self) -> bool:
        """Methods that put vectors before each row, or mix a row's tokens, need a row for each sequence."""
        return self._packed

    @classmethod
    def variant(cls, text: str) -> tuple[str, dict[str, Any]]:
        """Return the name and the options of a method by its name, or of an adapter_config.json by its path."""
        from ftbench_peft.methods import find_method

        return find_method(text)

    def adapt(self, model: "PreTrainedModel", calibration: Sequence[Sequence[int]]) -> "PreTrainedModel":
        """Freeze the model and add the method's own parameters.

        Raises:
            Skip: the method cannot be put onto this model; with peft's reason.
        """
        from ftbench_peft.methods import wrap

        wrapped, self._packed = wrap(model, self.config.method, self.config.settings, calibration)
        return wrapped

    def train(self, training: ftbench.Training) -> None:
        """Train with the shared loop, and let methods that shift their budget of parameters do so."""
        from ftbench_peft.allocation import follow

        loss, after_step = follow(training, self.loss)
        training.run(loss, after_step=after_step)

    def load(self, folder: Path, load_base: "Callable[[Path | None], PreTrainedModel]") -> "PreTrainedModel":
        """Read the adapter; fold it into the base model's weights where the method can."""
        from ftbench_peft.methods import read

        model, self._packed = read(folder, lambda: load_base(None))
        return model


@ftbench.hookimpl
def ftbench_algorithms() -> list[type[ftbench.Algorithm]]:
    """Bring peft."""
    return [Peft]
