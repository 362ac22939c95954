"""WARP against REINFORCE on the embedded world: fronts of gold score against KL at equal numbers of sampled responses.

`python bench/evidence_warp.py OUT` trains every arm on 12,800 responses per seed against a small reward model; the gold
score judges and trains nothing. An arm's front is the policies between its first start and its last merge, so REINFORCE
has one too: the interpolation from the start to its policy. Prints every arm's front against that of the best beta of
REINFORCE, with intervals over seeds and prompts, and draws OUT/fronts.png. `--part validation --seeds 0,1,2` explores;
`--part test --seeds 3,4,5,6,7 --only 'ARM;ARM'` is for arms that were fixed before. What is in OUT is not made again.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt

from made import made
from treeward.methods.reward import Reward, RewardRun
from treeward.methods.sft import SFT, SFTRun
from treeward.report.figures import COLOURS, MARKERS, STYLE
from treeward.runner import settings
from treeward.runner.warp import WarpRun, warp
from treeward.stats.frontier import Between, Front, between
from treeward.stats.intervals import Difference

PAIRS, RESPONSES, PER_STEP = 3000, 12_800, 64
FROZEN: dict[str, Any] = {"iterations": 1, "members": 1, "reference": {"kind": "frozen"}}
WARP: dict[str, Any] = {"iterations": 2, "members": 2, "reference": {"rate": 0.05}, "kl": {"beta": 0.05}}
ARMS: dict[str, dict[str, Any]] = {
    "REINFORCE, beta 0.01": {**FROZEN, "kl": {"beta": 0.01}},
    "REINFORCE, beta 0.05": {**FROZEN, "kl": {"beta": 0.05}},
    "REINFORCE, beta 0.1": {**FROZEN, "kl": {"beta": 0.1}},
    "REINFORCE, beta 0.3": {**FROZEN, "kl": {"beta": 0.3}},
    "EMA reference": {**WARP, "iterations": 1, "members": 1},
    "M=2, slerp": {**WARP, "iterations": 1},
    "M=2, linear": {**WARP, "iterations": 1, "merge": "linear"},
    "M=4, slerp": {**WARP, "iterations": 1, "members": 4},
    "WARP, I=2, M=2": WARP,
    "WARP, I=3, M=2": {**WARP, "iterations": 3},
    "WARP with leave-one-out": {**WARP, "baseline": {"kind": "leave-one-out"}},
}
"""All arms sample equally many responses: the steps of a member are what iterations and members leave."""
REFERENCE_ARMS = [name for name in ARMS if name.startswith("REINFORCE")]


def train(out: Path, arms: list[str], seeds: list[int]) -> None:
    """Make what is missing: the start, the reward model, and a run for each seed and arm."""
    start = made(SFTRun, SFT, settings.recipe("world-sft") | {"require": "any"}, out / "start")
    pairs = {**settings.recipe("world-reward"), "data": {"source": f"world:{PAIRS}"}, "epochs": 3, "require": "any"}
    made(RewardRun, Reward, pairs, out / "reward")
    shared = settings.recipe("world-warp")
    del shared["command"]
    for seed in seeds:
        for arm in arms:
            if (run(out, arm, seed) / "receipt.json").exists():
                continue
            fields = settings.merge(shared, ARMS[arm])
            fields |= {
                "model": {"path": str(start)}, "reward": str(out / "reward"), "evaluation": {"scorer": "gold"},
                "normalise": "running", "steps": RESPONSES // PER_STEP // (fields["iterations"] * fields["members"]),
                "seed": seed, "require": "any", "threads": 1, "choose": "knee", "out": str(run(out, arm, seed)),
            }  # fmt: skip
            warp(settings.build(WarpRun, fields))


def run(out: Path, arm: str, seed: int) -> Path:
    """The directory of a run."""
    return out / "runs" / f"{arm.replace(', ', '-').replace(' ', '-').replace('=', '')}-{seed}"


def front(out: Path, arm: str, seeds: list[int], part: str) -> Front:
    """Score and KL by seed, share and prompt."""
    by_seed = []
    for seed in seeds:
        rows = [json.loads(line) for line in (run(out, arm, seed) / "front.jsonl").read_text().splitlines()]
        rows = [row for row in rows if row["part"] == part and row["share"] is not None]
        prompts = sorted({row["group"] for row in rows})
        shares = sorted({row["share"] for row in rows})
        values = {(row["share"], row["group"]): (row["kl"], row["score"]) for row in rows}
        by_seed.append([[values[share, prompt] for prompt in prompts] for share in shares])
    table = np.array(by_seed)
    return Front(arm, table[..., 0], table[..., 1])


def best(fronts: dict[str, Front]) -> str:
    """Of the arms with the start as reference, the one whose front is highest on average over their common range."""
    arms = [arm for arm in REFERENCE_ARMS if arm in fronts]
    return max(arms, key=lambda arm: sum(between(fronts[other], fronts[arm], 2).gap.value for other in arms))


def rows_of(fronts: dict[str, Front], rival: str) -> list[str]:
    """Every arm: its last policy, and its front against the rival's."""
    rows = [
        "| arm | gold of the last policy | KL | front against the best beta | up to KL | p |",
        "|---|---|---|---|---|---|",
    ]
    for arm, each in fronts.items():
        last = f"| {arm} | {each.score[:, -1].mean():.3f} | {each.kl[:, -1].mean():.2f} |"
        if arm == rival:
            rows.append(f"{last} the best beta | | |")
            continue
        found: Between = between(fronts[rival], each)
        word = " (dominates)" if found.dominates else ""
        rows.append(f"{last} {change(found.gap)}{word} | {found.upto:.2f} | {found.gap.p:.2g} |")
    return rows


def change(gain: Difference) -> str:
    """A difference with its interval."""
    return f"{gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"


def draw(fronts: dict[str, Front], file: Path) -> None:
    """Mean fronts over seeds and prompts."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(8.4, 4.4), layout="constrained")
        for place, (arm, each) in enumerate(fronts.items()):
            axes.plot(each.kl.mean((0, 2)), each.score.mean((0, 2)), color=COLOURS[place % len(COLOURS)], linewidth=1.1,
                      marker=MARKERS[place % len(MARKERS)], markersize=4, label=arm)  # fmt: skip
        axes.set(xlabel="KL(policy, start), nats a response", ylabel="gold score")
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
        figure.savefig(file, dpi=160, facecolor="white")


def main() -> None:
    """Make what is missing, print the table, draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--part", choices=("validation", "test"), default="validation")
    parser.add_argument("--only", default="", help="arms by name, separated by semicolons")
    asked = parser.parse_args()
    seeds = [int(text) for text in asked.seeds.split(",")]
    arms = asked.only.split(";") if asked.only else list(ARMS)
    train(asked.out, arms, seeds)
    fronts = {arm: front(asked.out, arm, seeds, asked.part) for arm in arms}
    print(f"{len(seeds)} seeds, {next(iter(fronts.values())).kl.shape[2]} {asked.part} prompts")
    print("\n".join(rows_of(fronts, best(fronts))))
    draw(fronts, asked.out / "fronts.png")
    print(f"\n{asked.out / 'fronts.png'}")


if __name__ == "__main__":
    main()
