"""How the next token is chosen."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """Temperature 0 is greedy, as evaluation is; otherwise a draw from the likeliest tokens that make up `top_p`."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None


class Sampler:
    """Chooses the tokens of one reply, with random numbers of its own: the same seed gives the same reply."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self._draws = torch.Generator()
        if sampling.seed is None:
            self._draws.seed()
        else:
            self._draws.manual_seed(sampling.seed % 2**63)

    def choose(self, logits: "Tensor") -> int:
        """Return a token; `logits` is `[vocabulary]`, float32."""
        if self.sampling.temperature == 0:
            return int(logits.argmax())
        logits = logits.cpu()
        # less the highest first: a tiny temperature must not make infinities; one that float32 has not is 0 there
        temperature = max(self.sampling.temperature, torch.finfo(torch.float32).tiny)
        shares = torch.softmax((logits - logits.max()) / temperature, dim=-1)
        if self.sampling.top_p < 1:
            ordered, tokens = shares.sort(descending=True, stable=True)
            kept = ordered.cumsum(0) - ordered < self.sampling.top_p  # the one that reaches it is kept
            kept[0] = True  # in float32 a tiny top_p is 0
            return int(tokens[torch.multinomial(ordered * kept, 1, generator=self._draws)])
        return int(torch.multinomial(shares, 1, generator=self._draws))
