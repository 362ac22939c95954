"""Preference losses that read the two log-ratios apart: they can keep the chosen response's likelihood from falling.

Letters: x_w, x_l log-ratios of chosen and rejected, D = x_w - x_l. Shapes: every loss maps (P,) to (P,).
Left out: BCO's running reward shift and its prompt classifier, and SPPO's win rates other than 0 and 1.
"""

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from treeward.maths.pair_scores import Anchored, PairScores, require_positive


@dataclass(frozen=True)
class NCA(Anchored):
    """NCA on pairs (Chen et al. 2024, arXiv:2402.05369): noise-contrastive, both sides against their absolute level.

    -log sigma(beta x_w) - (1/2) log sigma(-beta x_w) - (1/2) log sigma(-beta x_l)
    """

    def __call__(self, scores: PairScores) -> Float[Tensor, "P"]:
        chosen, rejected = self.rewards(scores)
        return -logsigmoid(chosen) - 0.5 * logsigmoid(-chosen) - 0.5 * logsigmoid(-rejected)

    def at_start(self, start: PairScores | None = None) -> float:
        return 2 * math.log(2)


@dataclass(frozen=True)
class BCO(Anchored):
    """Binary classifier optimisation on pairs (Jung et al. 2024, arXiv:2404.04656), without its reward shift.

    -log sigma(beta x_w) - log sigma(-beta x_l)
    """

    def __call__(self, scores: PairScores) -> Float[Tensor, "P"]:
        chosen, rejected = self.rewards(scores)
        return -logsigmoid(chosen) - logsigmoid(-rejected)

    def at_start(self, start: PairScores | None = None) -> float:
        return 2 * math.log(2)


@dataclass(frozen=True)
class SPPOHard(Anchored):
    """Self-play preference optimisation with hard labels (Wu et al. 2024, arXiv:2405.00675, equation 4.8).

    (x_w - 1/(2 beta))^2 + (x_l + 1/(2 beta))^2
    """

    beta: float = 0.1
    """The log-ratios' targets are plus and minus 1 / (2 beta) nats."""

    def __call__(self, scores: PairScores) -> Float[Tensor, "P"]:
        target = 1 / (2 * self.beta)
        return (scores.chosen - target).square() + (scores.rejected + target).square()

    def at_start(self, start: PairScores | None = None) -> float:
        return 1 / (2 * self.beta**2)


@dataclass(frozen=True)
class APOZero(Anchored):
    """APO-zero (D'Oosterlinck et al. 2024, arXiv:2408.06266): chosen up, rejected down, each saturating.

    1 - sigma(beta x_w) + sigma(beta x_l): for data better than the policy.
    """

    def __call__(self, scores: PairScores) -> Float[Tensor, "P"]:
        chosen, rejected = self.rewards(scores)
        return 1 - chosen.sigmoid() + rejected.sigmoid()

    def at_start(self, start: PairScores | None = None) -> float:
        return 1.0


@dataclass(frozen=True)
class APODown(Anchored):
    """APO-down (D'Oosterlinck et al. 2024, arXiv:2408.06266): both down, the rejected further.

    sigma(beta x_w) + 1 - sigma(beta D): for a policy better than the data.
    """

    def __call__(self, scores: PairScores) -> Float[Tensor, "P"]:
        chosen, rejected = self.rewards(scores)
        return chosen.sigmoid() + 1 - (chosen - rejected).sigmoid()

    def at_start(self, start: PairScores | None = None) -> float:
        return 1.0


@dataclass(frozen=True)
class DPOP(Anchored):
    """DPO-Positive (Pal et al. 2024, arXiv:2402.13228, equation 3): guards the chosen response's likelihood.

    -log sigma(beta (D - omega max(0, -x_w)))
    """

    penalty: float = 5.0
    """omega: weight of the chosen log-ratio's fall below the anchor; 5 to 50."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("loss.penalty", self.penalty)

    def __call__(self, scores: PairScores) -> Float[Tensor, "P"]:
        fallen = (-scores.chosen).relu()
        return -logsigmoid(self.beta * (scores.chosen - scores.rejected - self.penalty * fallen))

    def at_start(self, start: PairScores | None = None) -> float:
        return math.log(2)
