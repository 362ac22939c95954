"""Losses of reward models over pairs.

Letters: P pairs, r_w and r_l the scores of the chosen and the rejected response, xi a margin, c the centring weight.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid


@dataclass(frozen=True)
class BradleyTerry:
    """-log sigma(r_w - r_l - xi) + c (r_w + r_l)^2  (Bradley and Terry 1952; centring: Eisenstein et al. 2023,
    arXiv:2312.09244; margin: Llama 2, arXiv:2307.09288, equation 2).

    Margin xi = `margin` * min(gap, 1) where rows carry ratings (gap: the rating difference), else xi = `margin`.
    """

    margin: float = 0.0
    """xi_0: largest margin asked for; 0 is none. Above 0.5 an untrained model cannot reach it and learns length."""
    centre: float = 0.0
    """c: pulls the two scores of a pair towards a sum of 0; changes no preference probability. 0 or 0.01."""

    def __post_init__(self) -> None:
        if not 0 <= self.margin <= 1:
            raise ValueError(
                f"loss.margin is {self.margin}; it lies in [0, 1], and 0.5 is already large: scale it down"
            )
        if not self.centre >= 0:
            raise ValueError(f"loss.centre is {self.centre}; it must not be negative (0.01 is usual)")

    def __call__(
        self, chosen: Float[Tensor, "P"], rejected: Float[Tensor, "P"], gap: Float[Tensor, "P"]
    ) -> Float[Tensor, "P"]:
        margin = self.margin * gap.clamp(max=1)
        return -logsigmoid(chosen - rejected - margin) + self.centre * (chosen + rejected).square()


def pair_nll(chosen: Float[Tensor, "P"], rejected: Float[Tensor, "P"]) -> Float[Tensor, "P"]:
    """-log sigma(r_w - r_l): margin and centring left out, the only loss by which two models may be compared."""
    return -logsigmoid(chosen - rejected)
