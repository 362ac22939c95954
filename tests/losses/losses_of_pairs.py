"""Every loss of pairs, with its defaults and with other parameters, and helpers that build `PairScores`."""

import dataclasses
import typing
from typing import Any

import torch
from torch import Tensor

from treeward.losses import preference
from treeward.losses.preference import PairScores, Sum, Term

KINDS = [kind for kind in typing.get_args(preference.AnyTerm) if kind is not preference.FromFile]
"""Every loss of the registry but sums and losses from files: a loss that is added there is tested here."""

SUM = Sum((Term(0.7, preference.Sigmoid(beta=0.3)), Term(0.2, preference.ChosenNLL()), Term(1.5, preference.IPO(0.4))))
DEFAULTS = [kind() for kind in KINDS]
OTHERS = [
    preference.Sigmoid(beta=0.3),
    preference.Sigmoid(beta=0.2, flip=0.2),
    preference.Sigmoid(beta=0.2, clip=1.5),
    preference.Robust(beta=0.2, flip=0.3),
    preference.Hinge(beta=0.3),
    preference.IPO(beta=0.7),
    preference.NormalisedSigmoid(beta=2.0),
    preference.EXO(beta=0.3, smoothing=0.1),
    preference.NCA(beta=0.3),
    preference.BCO(beta=0.3),
    preference.SPPOHard(beta=0.5),
    preference.APOZero(beta=0.3),
    preference.APODown(beta=0.3),
    preference.DPOP(beta=0.3, penalty=2.0),
    preference.ORPO(weight=0.7),
    preference.SIMPO(beta=5.0, gamma=0.5),
    SUM,
]
LOSSES: list[Any] = [*DEFAULTS, *OTHERS]
WITH_REFERENCE = [loss for loss in LOSSES if loss.needs_reference]
DIFFERENCE = [loss for loss in LOSSES if loss.admits_divergence]
"""Those that admit a divergence: they depend on x_w - x_l alone."""


def pairs(
    chosen: Any,
    rejected: Any,
    lengths: tuple[Any, Any] = ((1,), (1,)),
    logps: tuple[Any, Any] | None = None,
    dtype: torch.dtype = torch.float32,
) -> PairScores:
    """Pairs with these log-ratios, lengths and log-probabilities (default: -2 per token)."""
    x, y = (side if isinstance(side, Tensor) else torch.tensor(side, dtype=dtype) for side in (chosen, rejected))
    m, n = (torch.tensor(side).expand(len(x)) for side in lengths)
    policy_logps = [-2.0 * m.to(x.dtype), -2.0 * n.to(x.dtype)]
    if logps is not None:
        policy_logps = [side if isinstance(side, Tensor) else torch.tensor(side, dtype=dtype) for side in logps]
    return PairScores(x, y, m, n, *policy_logps)


def reordered(scores: PairScores, order: Any) -> PairScores:
    """The same pairs in another order."""
    values = {f.name: getattr(scores, f.name) for f in dataclasses.fields(scores)}
    return PairScores(**{name: None if value is None else value[order] for name, value in values.items()})


def one(loss: Any, difference: float, margin: float | None = None) -> float:
    """The loss of one pair with this difference of log-ratios, split unevenly over the two sides."""
    scores = pairs([0.3 * difference], [-0.7 * difference])
    margins = None if margin is None else torch.tensor([margin])
    value: Tensor = loss(dataclasses.replace(scores, margins=margins))
    return value.item()
