"""Our loss values and gradients against TRL's own code, on the same random log-probabilities: `python bench/losses.py`.

TRL runs in its own environment (`losses_trl.py`), pair by pair, with a stub model that returns the per-token
log-probabilities drawn here. Ours are the public losses. The loss and its gradient in the policy's log-probability of
each response are compared, by the largest difference relative to max(1, |TRL's|).
"""

import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import treeward as tw
from peer import VERSION, ready
from treeward.losses import divergences

ROOT = Path(__file__).resolve().parent.parent
PAIRS, LONGEST, LIMIT = 256, 60, 1e-5
p = tw.losses
REVERSE = divergences.ReverseKL()
Case = tuple[dict[str, Any], Any, Any]

CASES: dict[str, Case] = {
    "sigmoid": ({"loss_type": ["sigmoid"]}, p.Sigmoid(), REVERSE),
    "sigmoid, beta 0.5": ({"loss_type": ["sigmoid"], "beta": 0.5}, p.Sigmoid(beta=0.5), REVERSE),
    "robust": ({"loss_type": ["robust"], "label_smoothing": 0.1}, p.Robust(flip=0.1), REVERSE),
    "hinge": ({"loss_type": ["hinge"]}, p.Hinge(), REVERSE),
    "ipo": ({"loss_type": ["ipo"]}, p.IPO(), REVERSE),
    "normalised-sigmoid": ({"loss_type": ["sigmoid_norm"], "beta": 5.0}, p.NormalisedSigmoid(), REVERSE),
    "exo": ({"loss_type": ["exo_pair"], "label_smoothing": 1e-3}, p.EXO(), REVERSE),
    "nca": ({"loss_type": ["nca_pair"]}, p.NCA(), REVERSE),
    "bco": ({"loss_type": ["bco_pair"]}, p.BCO(), REVERSE),
    "sppo-hard": ({"loss_type": ["sppo_hard"]}, p.SPPOHard(), REVERSE),
    "apo-zero": ({"loss_type": ["apo_zero"]}, p.APOZero(), REVERSE),
    "apo-down": ({"loss_type": ["apo_down"]}, p.APODown(), REVERSE),
    "chosen-nll": ({"loss_type": ["sft"]}, p.ChosenNLL(), REVERSE),
    "sum of sigmoid and 0.3 nca": (
        {"loss_type": ["sigmoid", "nca_pair"], "loss_weights": [1.0, 0.3]},
        p.Sum((p.Term(), p.Term(0.3, p.NCA()))), REVERSE,
    ),
    "sigmoid, forward-kl": ({"f_divergence_type": "forward_kl"}, p.Sigmoid(), divergences.ForwardKL()),
    "hinge, forward-kl": (
        {"loss_type": ["hinge"], "f_divergence_type": "forward_kl"}, p.Hinge(), divergences.ForwardKL()
    ),
    "sigmoid, jensen-shannon": ({"f_divergence_type": "js_divergence"}, p.Sigmoid(), divergences.JensenShannon()),
    **{
        f"sigmoid, alpha {a}": (
            {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 1 - a}, p.Sigmoid(),
            divergences.Alpha(a),
        )
        for a in (0.0, 0.3, 0.5, 0.7)
    },
    "orpo": ({"trainer": "orpo", "beta": 0.1}, p.ORPO(), REVERSE),
    "simpo": ({"trainer": "cpo", "beta": 2.0, "simpo_gamma": 1.0}, p.SIMPO(), REVERSE),
    "kto": ({"trainer": "kto", "desirable_weight": 1.3, "undesirable_weight": 0.8}, None, REVERSE),
    "sigmoid with flip 0.1": ({"loss_type": ["sigmoid"], "label_smoothing": 0.1}, p.Sigmoid(flip=0.1), REVERSE),
    "sigmoid, alpha 0.3 without conversion": (
        {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.3}, p.Sigmoid(), divergences.Alpha(0.3)
    ),
}  # fmt: skip
"""By name: TRL's settings, our loss, our divergence. The last two mean different things, and must differ."""

DIFFERENT = ("sigmoid with flip 0.1", "sigmoid, alpha 0.3 without conversion")
EXTREMES = {name: CASES[name] for name in ("sigmoid", "sigmoid, forward-kl", "sigmoid, jensen-shannon",
                                           "sigmoid, alpha 0.5", "exo")}  # fmt: skip


def drawn(pairs: int, seed: int) -> dict[str, list[list[list[float]]]]:
    """Per-token log-probabilities: by model (policy, reference, and both for mismatched text), side and response."""
    chance = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, LONGEST + 1, (2, pairs), generator=chance)
    logps: dict[str, list[list[list[float]]]] = {"policy": [], "reference": [], "policy_kl": [], "reference_kl": []}
    for name, start in (("policy", "reference"), ("policy_kl", "reference_kl")):
        for side in range(2):
            other = [-3 * torch.rand(int(n), generator=chance) - 0.5 for n in lengths[side]]
            drift = [0.4 * torch.randn(len(row), generator=chance) + 0.02 for row in other]
            logps[start].append([row.tolist() for row in other])
            logps[name].append([(row + d).clamp(max=-0.01).tolist() for row, d in zip(other, drift, strict=True)])
    return {name: [[list(map(_exact, row)) for row in side] for side in sides] for name, sides in logps.items()}


def _exact(value: float) -> float:
    """A multiple of 1/1024: sums of these are exact in float32, so that no order of summation is compared."""
    return min(round(value * 1024), -1) / 1024


FALLEN = 6
"""The pair of `extremes` whose chosen response has fallen by 1000 nats."""


def extremes() -> dict[str, list[list[list[float]]]]:
    """Fifty tokens a response; log-ratios of 0, +-40, +-100 and +-1000 on either side."""
    wanted = [(0, 0), (40, -40), (-40, 40), (-100, -100), (100, -100), (-100, 100), (-1000, 0), (0, -1000)]
    reference = [[-25.0] * 50 for _ in wanted]
    policy = [[[-25.0 + pair[side] / 50] * 50 for pair in wanted] for side in range(2)]
    return {
        "policy": policy,
        "reference": [reference, reference],
        "policy_kl": policy,
        "reference_kl": [reference, reference],
    }


def ours(loss: Any, divergence: Any, data: Any) -> list[list[float]]:
    """By pair: the loss, and its slopes in the policy's two sums."""
    policy = [torch.tensor([sum(row) for row in side], requires_grad=True) for side in data["policy"]]
    reference = [torch.tensor([sum(row) for row in side]) for side in data["reference"]]
    lengths = [torch.tensor([len(row) for row in side]) for side in data["policy"]]
    if loss is None:
        return _kto(policy, reference, data)
    scores = [divergence.score(a - b) for a, b in zip(policy, reference, strict=True)]
    values = loss(p.PairScores(*scores, *lengths, *policy))
    return _with_slopes(values, policy)


def _kto(policy: list[Tensor], reference: list[Tensor], data: Any) -> list[list[float]]:
    """Both sides of each pair as two labelled responses, whose mismatched text gives the reference."""
    kl = [
        sum(a) - sum(b)
        for side in range(2)
        for a, b in zip(data["policy_kl"][side], data["reference_kl"][side], strict=True)
    ]
    loss = p.KTO(desirable=1.3, undesirable=0.8)
    pairs = len(policy[0])
    z0 = torch.tensor(kl).view(2, pairs).mean(0).clamp(min=0)
    labels = torch.tensor([True, False])
    ratios = torch.stack([policy[side] - reference[side] for side in range(2)], 1)
    values = torch.stack([loss(p.LabelledScores(ratios[n], labels, z0[n])).mean() for n in range(pairs)])
    return _with_slopes(values, policy)


def _with_slopes(values: Tensor, policy: list[Tensor]) -> list[list[float]]:
    slopes = torch.autograd.grad(values.sum(), policy, allow_unused=True)
    filled = [torch.zeros_like(values) if slope is None else slope for slope in slopes]
    return torch.stack([values.detach(), *filled], 1).tolist()


def theirs(python: Path, settings: dict[str, dict[str, Any]], data: Any) -> dict[str, list[list[float]]]:
    """The same from TRL, by case."""
    with tempfile.TemporaryDirectory() as folder:
        request, answer = Path(folder) / "request.json", Path(folder) / "answer.json"
        request.write_text(json.dumps({"cases": settings, "data": data}))
        subprocess.run([python, ROOT / "bench" / "losses_trl.py", request, answer], check=True)
        results: dict[str, list[list[float]]] = json.loads(answer.read_text())
    return results


def largest(mine: list[list[float]], other: list[list[float]]) -> tuple[float, float]:
    """Largest relative difference of the losses, and of the slopes; NaN counts as infinite."""
    apart = [
        [abs(a - b) / max(1.0, abs(b)) if math.isfinite(b) else math.inf for a, b in zip(x, y, strict=True)]
        for x, y in zip(mine, other, strict=True)
    ]
    return max(row[0] for row in apart), max(max(row[1:]) for row in apart)


def main() -> int:
    """Print the two tables; 1 if what must agree does not, or what must differ does not."""
    python = Path(sys.argv[1]) if len(sys.argv) > 1 else ready(ROOT)
    data = drawn(PAIRS, 0)
    peer = theirs(python, {name: case[0] for name, case in CASES.items()}, data)
    print(f"TRL {VERSION}, {PAIRS} pairs\n\n| loss | largest difference: loss | slopes | |\n|---|---|---|---|")
    wrong = 0
    for name, (_, loss, divergence) in CASES.items():
        value, slope = largest(ours(loss, divergence, data), peer[name])
        same = max(value, slope) <= LIMIT
        wrong += same == (name in DIFFERENT)
        print(f"| {name} | {value:.1e} | {slope:.1e} | {'equal' if same else 'differs'} |")
    far = extremes()
    peer = theirs(python, {name: case[0] for name, case in EXTREMES.items()}, far)
    print("\n| log-ratios to +-1000 | pairs not finite: TRL | ours | slope in x_w at -1000: TRL | ours |")
    print("|---|---|---|---|---|")
    for name, (_, loss, divergence) in EXTREMES.items():
        sides = peer[name], ours(loss, divergence, far)
        counts = [sum(not all(map(math.isfinite, row)) for row in rows) for rows in sides]
        wrong += counts[1] > 0
        slopes = [rows[FALLEN][1] for rows in sides]
        print(f"| {name} | {counts[0]} of {len(sides[0])} | {counts[1]} | {slopes[0]:.3g} | {slopes[1]:.3g} |")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
