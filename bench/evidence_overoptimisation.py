"""Over-optimisation on the embedded world: which reward from a small reward model still agrees with the gold score?

`python bench/evidence_overoptimisation.py OUT` trains reward models on 3,000 noisy pairs (a scalar, a distribution over
scores, three scalars with other data orders) and a policy from each reward, with equal settings and seeds. The gold
score judges them and trains nothing. Prints where each arm's gold score turns and where it ends, compared with the
scalar by seed, and draws OUT/overoptimisation.png. What is in OUT already is not made again.
"""

import argparse
import json
import math
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from numpy.typing import NDArray

import treeward as tw
from made import made
from treeward.data.world import NEGATION
from treeward.methods.reinforce import REINFORCE, ReinforceRun
from treeward.methods.reward import Reward, RewardRun
from treeward.methods.sft import SFT, SFTRun
from treeward.report.figures import COLOURS, INK, MARKERS, STYLE
from treeward.runner import settings
from treeward.runner.members import train_members
from treeward.stats import formatting
from treeward.stats.intervals import Difference, Interval, clustered_mean, holm, paired_mean

PAIRS, MEMBERS, STEPS, EVERY, BETA = 3000, 3, 160, 20, 0.01
BASE = "scalar"
ARMS = {
    BASE: "scalar",
    "scalar, PAR": "scalar#par",
    "mean": "distribution",
    "mean - sd": "distribution#mean-sd:1",
    "CVaR of 25 %": "distribution#cvar:0.25",
    "entropic": "distribution#entropic:75",
    "ensemble, mean - spread": "ensemble#mean-spread:1",
    "ensemble, worst": "ensemble#worst",
}
"""The rewards that are compared, by name; of a distribution where no ensemble is named. Scores are divided by their
standard deviation, which is 1.34 for the start, so 1 / (1.34 BETA) = 75 is the KL's own coefficient for entropic risk.
"""
PROMPTS, SAMPLES, BEST_OF = 64, 64, (1, 2, 4, 8, 16)
"""Samples of the start for best of n."""

Curve = NDArray[np.float64]
"""[seed, measurement, (KL, gold, reward)]."""


def train(out: Path, seeds: int) -> None:
    """Make what is missing: the start, the reward models, and a policy for each seed and arm."""
    start = made(SFTRun, SFT, settings.recipe("world-sft") | {"require": "any"}, out / "start")
    pairs: dict[str, Any] = {
        **settings.recipe("world-reward"), "data": {"source": f"world:{PAIRS}"}, "epochs": 3, "require": "any",
    }  # fmt: skip
    made(RewardRun, Reward, pairs, out / "scalar")
    made(RewardRun, Reward, {**pairs, "head": {"kind": "categorical"}}, out / "distribution")
    if not (out / "ensemble/ensemble.json").exists():
        fields = {key: value for key, value in pairs.items() if key != "command"}
        train_members(settings.build(RewardRun, {**fields, "members": MEMBERS, "out": str(out / "ensemble")}))
    for seed in range(seeds):
        for arm, reward in ARMS.items():
            fields = {
                "model": {"path": str(start)}, "reward": str(out / reward), "evaluation": {"scorer": "gold"},
                "normalise": "running", "kl": {"beta": BETA}, "steps": STEPS, "evaluate_every": EVERY,
                "save_every": STEPS, "seed": seed, "require": "any",
            }  # fmt: skip
            made(
                ReinforceRun, REINFORCE, settings.merge(settings.recipe("world-reinforce"), fields), run(out, arm, seed)
            )


def run(out: Path, arm: str, seed: int) -> Path:
    """The directory of a run."""
    return out / "runs" / f"{ARMS[arm].replace('#', '-').replace(':', '-')}-{seed}"


def curve(out: Path, arm: str, seeds: int) -> Curve:
    """KL and gold on the validation part, and the mean reward of the samples trained on since the last measurement."""
    curves = []
    for seed in range(seeds):
        rows = [json.loads(line) for line in (run(out, arm, seed) / "metrics.jsonl").read_text().splitlines()]
        blocks = [rows[at : at + EVERY] for at in range(0, len(rows), EVERY)]
        curves.append([
            (block[-1]["validation/kl"], block[-1]["validation/score"], np.mean([row["score"] for row in block]))
            for block in blocks
        ])  # fmt: skip
    return np.array(curves)


def negations(out: Path, arm: str, seeds: int) -> tuple[Interval, Interval]:
    """Words `not` and `never` of a sampled review, in the first and the last five steps: means over seeds."""
    first, last = [], []
    for seed in range(seeds):
        rows = [json.loads(line) for line in (run(out, arm, seed) / "rollouts.jsonl").read_text().splitlines()]
        counts = [(row["step"], sum(word in NEGATION for word in row["response"].split())) for row in rows]
        first.append(fmean(count for step, count in counts if step <= 5))
        last.append(fmean(count for step, count in counts if step > STEPS - 5))
    return clustered_mean(first, range(seeds)), clustered_mean(last, range(seeds))


def best_of_n(out: Path) -> dict[int, tuple[float, Interval]]:
    """KL bound and gold of the start's sample that the scalar reward model prefers among n, on 64 test prompts.

    The mean over all subsets of n of the samples: the sample with i samples below it is the best of a random subset
    with probability C(i, n - 1) / C(SAMPLES, n).
    """
    policy = tw.Policy.load(out / "start/model")
    rollout = tw.sample(policy, tw.load("world").test[:PROMPTS], n=SAMPLES, max_new_tokens=40, seed=0)
    reward, gold = (np.array(tw.score(rollout, name).scores) for name in (str(out / "scalar"), "gold"))
    by_reward = np.take_along_axis(gold, reward.argsort(1), 1)
    points = {}
    for n in BEST_OF:
        chances = np.array([math.comb(below, n - 1) for below in range(SAMPLES)]) / math.comb(SAMPLES, n)
        points[n] = (math.log(n) - (n - 1) / n, clustered_mean(by_reward @ chances, range(PROMPTS)))
    return points


def table(curves: dict[str, Curve]) -> list[str]:
    """For each arm the highest mean gold score while training and the last one, and the last against the scalar's."""
    rows = [
        "| reward | highest gold, step, KL | gold at the end | fall since | KL at the end | end against scalar | p |",
        "|---|---|---|---|---|---|---|",
    ]
    others = [arm for arm in curves if arm != BASE]
    seeds = range(len(curves[BASE]))
    gains = {arm: paired_mean(curves[BASE][:, -1, 1], curves[arm][:, -1, 1], seeds) for arm in others}
    corrected = dict(zip(others, holm([gains[arm].p for arm in others]), strict=True))
    for arm, values in curves.items():
        turn = int(values[:, :, 1].mean(0).argmax())
        fall = paired_mean(values[:, turn, 1], values[:, -1, 1], seeds)
        against = [change(gains[arm]), f"{corrected[arm]:.2g}"] if arm in gains else ["", ""]
        top = (
            f"{shown(clustered_mean(values[:, turn, 1], seeds))}, {(turn + 1) * EVERY}, {values[:, turn, 0].mean():.2g}"
        )
        ends = [shown(clustered_mean(values[:, -1, column], seeds)) for column in (1, 0)]
        rows.append("| " + " | ".join([arm, top, ends[0], change(fall), ends[1], *against]) + " |")
    return rows


def shown(interval: Interval) -> str:
    """A mean with its interval."""
    return f"{interval.value:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


def change(gain: Difference) -> str:
    """A difference with its interval."""
    return f"{gain.value:+.2f} [{gain.low:+.2f}, {gain.high:+.2f}]"


def draw(curves: dict[str, Curve], best: dict[int, tuple[float, Interval]], file: Path) -> None:
    """Reward and gold by step of the scalar; gold by KL of every arm and best of n. Rings mark where gold turns."""
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.2), layout="constrained", width_ratios=(1, 1.5))
        steps = np.arange(1, STEPS // EVERY + 1) * EVERY
        for column, name, colour in ((2, "reward that trains", COLOURS[1]), (1, "gold score", COLOURS[0])):
            means = [clustered_mean(curves[BASE][:, n, column], range(len(curves[BASE]))) for n in range(len(steps))]
            left.plot(steps, [mean.value for mean in means], color=colour, label=name)
            left.fill_between(steps, [mean.low for mean in means], [mean.high for mean in means], color=colour,
                              alpha=0.15, linewidth=0)  # fmt: skip
        turn = int(curves[BASE][:, :, 1].mean(0).argmax())
        left.axvline(steps[turn], color=INK, linewidth=0.8, linestyle=":", label="gold turns")
        left.set(xlabel="step", ylabel="score", title=f"{BASE}: means over {len(curves[BASE])} seeds, 95 %")
        left.legend(frameon=False)
        for place, (arm, values) in enumerate(curves.items()):
            by_kl(right, values.mean(0), arm, COLOURS[place], MARKERS[place % len(MARKERS)])
        right.errorbar([kl for kl, _ in best.values()], [mean.value for _, mean in best.values()],
                       yerr=[[mean.value - mean.low for _, mean in best.values()],
                             [mean.high - mean.value for _, mean in best.values()]],
                       color=INK, linestyle="--", linewidth=1.0, label="best of n by the scalar")  # fmt: skip
        right.set(
            xlabel="KL(policy, start), nats a response", ylabel="gold score", xscale="symlog", title="means over seeds"
        )
        right.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
        figure.savefig(file, dpi=160, facecolor="white")


def by_kl(axes: Axes, means: NDArray[np.float64], arm: str, colour: str, marker: str) -> None:
    """One arm's path."""
    turn = int(means[:, 1].argmax())
    axes.plot(means[:, 0], means[:, 1], color=colour, linewidth=1.1, marker=marker, markersize=3, label=arm)
    axes.plot(means[turn, 0], means[turn, 1], marker="o", markersize=9, markerfacecolor="none", color=colour)


def main() -> None:
    """Make what is missing, print the tables, draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=8)
    asked = parser.parse_args()
    out: Path = asked.out
    train(out, asked.seeds)
    for name in ("scalar", "distribution"):
        accuracy = json.loads((out / name / "receipt.json").read_text())["after"]
        print(f"{name}: accuracy {formatting.interval(accuracy)}, n={accuracy['n']}")
    best = best_of_n(out)
    print(
        "best of n by the scalar, gold:", *(f"n={n} {shown(mean)} at {kl:.2f} nats;" for n, (kl, mean) in best.items())
    )
    curves = {arm: curve(out, arm, asked.seeds) for arm in ARMS}
    print("\n".join(table(curves)))
    for arm in ARMS:
        print(f"{arm}: negations a review {' -> '.join(map(shown, negations(out, arm, asked.seeds)))}")
    draw(curves, best, out / "overoptimisation.png")
    print(f"\n{out / 'overoptimisation.png'}")


if __name__ == "__main__":
    main()
