"""WARP against REINFORCE on the embedded world: fronts of gold score against KL at equal numbers of sampled responses.

Every arm samples 12,800 responses per seed and trains on the score of a small reward model; the gold score judges and
trains nothing. An arm's front is the policies between its first start and its last merge, so REINFORCE has one too: the
interpolation from the start to its policy.

`python bench/evidence_warp.py OUT --search` tries the settings of SETTINGS on seeds 0 to 2 and validation prompts, with
four arms each. `python bench/evidence_warp.py OUT --setting NAME --seeds 3,4,5,6,7 --part test` runs every arm with one
setting, prints fronts and claims with intervals, and draws OUT/fronts.png. What is in OUT is not made again.
"""

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evidence_reinforce import rows_of
from made import made
from treeward.cli.main import run as command
from treeward.methods.reward import Reward, RewardRun
from treeward.methods.sft import SFT, SFTRun
from treeward.report import figures
from treeward.report.frontier import front_of
from treeward.runner import settings
from treeward.runner.warp import WarpRun, warp
from treeward.stats.frontier import Front, between, resampled
from treeward.stats.intervals import Difference, Interval, by_group, clustered_mean

RESPONSES, PER_STEP = 12_800, 64
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
    "WARP": WARP,
    "WARP, I=3": {**WARP, "iterations": 3},
    "WARP with leave-one-out": {**WARP, "baseline": {"kind": "leave-one-out"}},
}
"""All arms sample equally many responses: the steps of a member are what iterations and members leave."""
SEARCHED = ["REINFORCE, beta 0.01", "REINFORCE, beta 0.05", "REINFORCE, beta 0.1", "WARP"]
"""The arms that are run with every setting."""
NOISY, LESS_NOISY = "3,000 pairs", "12,000 pairs"
SETTINGS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    NOISY: (NOISY, {}, {}),
    "3,000 pairs, WARP with beta 0.2": (NOISY, {}, {"kl": {"beta": 0.2}}),
    "3,000 pairs, WARP with beta 0.2, rate 0.01": (NOISY, {}, {"kl": {"beta": 0.2}, "reference": {"rate": 0.01}}),
    LESS_NOISY: (LESS_NOISY, {}, {}),
    "12,000 pairs, WARP with beta 0.2": (LESS_NOISY, {}, {"kl": {"beta": 0.2}}),
    "3,000 pairs, lr 3e-5": (NOISY, {"lr": 3e-5}, {}),
}
"""What was tried: pairs that the reward model learned from, changes of the recipe world-warp for all arms, and changes
for those with an averaged reference."""
SHARES = np.array([0.0, 0.1, 0.3, 0.5, 0.8, 1.0])
NEARLY_ORTHOGONAL = 78.0
"""Degrees: the paper has cosines from 0 to 0.2."""
REFERENCE_ARMS = [name for name in ARMS if name.startswith("REINFORCE")]


class InThisProcess:
    """Starts a member in this process, which has imported everything already."""

    def __init__(self, arguments: Sequence[str], output: Path, threads: int | None) -> None:
        output.touch()
        self.code = command(list(arguments))

    def poll(self) -> int:
        return self.code

    def interrupt(self) -> None:
        """It has ended."""


def train(out: Path, setting: str, arms: list[str], seeds: list[int], part: str) -> None:
    """Make what is missing: the start, the reward model, and a run for each seed and arm. The front is measured on
    the test prompts, and where `part` is validation on those too.
    """
    start = made(SFTRun, SFT, settings.recipe("world-sft") | {"require": "any"}, out / "start")
    pairs, changes, averaged = SETTINGS[setting]
    source = f"world:{pairs.split()[0].replace(',', '')}"
    reward = out / f"reward-{source.partition(':')[2]}"
    data = {"data": {"source": source}, "epochs": 3, "require": "any"}
    made(RewardRun, Reward, {**settings.recipe("world-reward"), **data}, reward)
    shared = settings.recipe("world-warp")
    del shared["command"]
    for seed in seeds:
        for arm in arms:
            path = run(out, setting, arm, seed)
            if (path / "receipt.json").exists():
                continue
            fields = settings.merge(settings.merge(shared, ARMS[arm]), changes)
            if arm not in REFERENCE_ARMS:
                fields = settings.merge(fields, averaged)
            fields |= {
                "model": {"path": str(start)}, "reward": str(reward), "evaluation": {"scorer": "gold"},
                "normalise": "running", "steps": RESPONSES // PER_STEP // (fields["iterations"] * fields["members"]),
                "seed": seed, "require": "any", "threads": 1,
                "choose": "knee" if part == "validation" else "1", "out": str(path),
            }  # fmt: skip
            warp(settings.build(WarpRun, fields), InThisProcess)


def run(out: Path, setting: str, arm: str, seed: int) -> Path:
    """The directory of a run. Settings that differ for the averaged reference alone share the other arms."""
    pairs, changes, _ = SETTINGS[setting]
    name = pairs if arm in REFERENCE_ARMS and not changes else setting
    return out / "runs" / re.sub(r"[ ,=]+", "-", name) / f"{re.sub('[ ,=]+', '-', arm)}-{seed}"


@dataclass(frozen=True)
class Arm:
    """What the runs of an arm measured.

    Attributes:
        front: Score and KL by seed, share and prompt.
        length: Tokens a response, likewise.
        angles: For each seed the median angle between task vectors, over blocks and iterations; NaN for one member.
        starts: Score of each iteration's start and of the last merge by seed, iteration and test prompt.
    """

    front: Front
    length: NDArray[np.float64]
    angles: list[float]
    starts: NDArray[np.float64]


def read(out: Path, setting: str, arm: str, seeds: list[int], part: str) -> Arm:
    """The measurements of an arm's runs."""
    paths = [run(out, setting, arm, seed) for seed in seeds]
    table = np.array([front_of(path, part, ("kl", "score", "length")) for path in paths])
    angles, starts = [], []
    for path in paths:
        iterations = json.loads((path / "receipt.json").read_text())["warp"]["iterations"]
        angles += [np.mean([each["angles"]["median"] for each in iterations if each["angles"]] or [np.nan])]
        before = [scores_before(path / f"iteration-{n}/member-1") for n in range(1, len(iterations) + 1)]
        starts.append([*before, front_of(path, "test", ("score",))[-1, :, 0]])
    return Arm(Front(arm, table[..., 0], table[..., 1]), table[..., 2], angles, np.array(starts))


def scores_before(member: Path) -> NDArray[np.float64]:
    """Mean score of each test prompt before a member's training, in the order of the prompts' names."""
    rows = rows_of(member / "evaluation.jsonl")
    return by_group([row["before"]["score"] for row in rows], [row["group"] for row in rows])


def best(fronts: dict[str, Front]) -> str:
    """Of the arms with the start as reference, the one whose front is highest on average over their common range."""
    arms = [arm for arm in REFERENCE_ARMS if arm in fronts]
    return max(arms, key=lambda arm: sum(between(fronts[other], fronts[arm], 2).gap.value for other in arms))


def comparisons(fronts: dict[str, Front], rival: str) -> list[str]:
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
        against = between(fronts[rival], each)
        word = " (dominates)" if against.dominates else ""
        rows.append(f"{last} {shown(against.gap)}{word} | {against.upto:.2f} | {against.gap.p:.2g} |")
    return rows


def shown(value: Difference | Interval, digits: int = 3) -> str:
    """A value or difference with its interval."""
    sign = "+" if isinstance(value, Difference) else ""
    return f"{value.value:{sign}.{digits}f} [{value.low:{sign}.{digits}f}, {value.high:{sign}.{digits}f}]"


def claims(arms: dict[str, Arm], rival: str) -> list[str]:
    """The claims of the paper, each with its figure and interval."""
    fronts = {name: arm.front for name, arm in arms.items()}
    ema, slerp, linear, warp_arm = (arms[name] for name in ("EMA reference", "M=2, slerp", "M=2, linear", "WARP"))

    def last(a: Arm, b: Arm, what: str) -> Difference:
        first, second = (getattr(each.front, what)[:, -1] for each in (a, b))
        return mean(second - first)

    def bend(arm: Arm, what: str) -> Difference:
        """How far the mean over the shares is from the straight line between start and merge."""
        values = getattr(arm.front, what)
        line = values[:, :1] + (values[:, -1:] - values[:, :1]) * SHARES[:, None]
        return mean((values - line).mean(1))

    angle = clustered_mean(np.array(warp_arm.angles), range(len(warp_arm.angles)))
    gains = np.diff(arms["WARP, I=3"].starts, axis=1)
    measured: list[tuple[str, str, Difference, int]] = [
        ("the front with an averaged reference is above that of the best beta", "score",
         between(fronts[rival], fronts["EMA reference"]).gap, 1),
        ("WARP's front is above that of the best beta", "score", between(fronts[rival], fronts["WARP"]).gap, 1),
        ("WARP's front is above that of the averaged reference alone", "score",
         between(ema.front, warp_arm.front).gap, 1),
        ("slerp has a higher score than linear", "score", last(linear, slerp, "score"), 1),
        ("slerp has a higher KL than linear", "nats", last(linear, slerp, "kl"), 1),
        ("the front of four members is above that of two", "score",
         between(slerp.front, arms["M=4, slerp"].front).gap, 1),
        ("score is concave in the share", "score above the line", bend(warp_arm, "score"), 1),
        ("KL is convex in the share", "nats above the line", bend(warp_arm, "kl"), -1),
        ("the second iteration gains less than the first (I=3)", "score",
         mean(gains[:, 1] - gains[:, 0]), -1),
        ("the third gains less than the second (I=3)", "score", mean(gains[:, 2] - gains[:, 1]), -1),
        ("responses grow longer", "tokens", mean(warp_arm.length[:, -1] - warp_arm.length[:, 0]), 1),
        ("at equal KL and equal length WARP is above the best beta", "score",
         at_equal_length(arms[rival], warp_arm), 1),
    ]  # fmt: skip
    rows = ["| claim | figure | | here |", "|---|---|---|---|"]
    right = "holds" if angle.low > NEARLY_ORTHOGONAL else "does not hold"
    rows.append(f"| task vectors are nearly orthogonal | {shown(angle, 1)} | degrees | {right} |")
    for text, unit, figure, sign in measured:
        rows.append(f"| {text} | {shown(figure)} | {unit} | {verdict(figure, sign)} |")
    return rows


def mean(cells: NDArray[np.float64]) -> Difference:
    """The mean of values by seed and prompt, both resampled."""
    return resampled(lambda seeds, prompts: np.einsum("ds,sp,dp->d", seeds, cells, prompts)[:, None], *cells.shape)[0]


def verdict(figure: Difference, sign: int) -> str:
    """Whether a claim of this sign holds."""
    if not figure.p < 0.05:
        return f"not distinguishable (p {figure.p:.2g})"
    return f"{'holds' if figure.value * sign > 0 else 'does not hold'} (p {figure.p:.2g})"


def at_equal_length(a: Arm, b: Arm) -> Difference:
    """The score of b minus that of a at the largest KL that both reach, and at equal length: the intercept of the
    regression of the difference in score on the difference in length, over seeds and prompts.
    """
    kl = min(float(each.front.kl[:, -1].mean()) for each in (a, b))

    def at(arm: Arm, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Values by seed and prompt where the arm's mean KL is this one, between two shares."""
        return np.array([
            [np.interp(kl, means, prompt) for prompt in table.T]
            for table, means in zip(values, arm.front.kl.mean(2), strict=True)
        ])  # fmt: skip

    score = at(b, b.front.score) - at(a, a.front.score)
    length = at(b, b.length) - at(a, a.length)

    def intercept(seeds: NDArray[np.float64], prompts: NDArray[np.float64]) -> NDArray[np.float64]:
        x, y, xx, xy = (
            np.einsum("ds,sp,dp->d", seeds, values, prompts)
            for values in (length, score, length * length, length * score)
        )
        slope = (xy - x * y) / (xx - x * x)
        return np.asarray(y - slope * x)[:, None]

    return resampled(intercept, *score.shape)[0]


def search(out: Path, seeds: list[int]) -> None:
    """The table of all settings that were tried."""
    print(f"{len(seeds)} seeds, validation prompts\n")
    print("| setting | best beta | its last policy | WARP's | WARP's angle | WARP's front against it | p |")
    print("|---|---|---|---|---|---|---|")
    for setting in SETTINGS:
        train(out, setting, SEARCHED, seeds, "validation")
        arms = {arm: read(out, setting, arm, seeds, "validation") for arm in SEARCHED}
        fronts = {name: arm.front for name, arm in arms.items()}
        rival = best(fronts)
        ends = [
            f"{front.score[:, -1].mean():.3f} at {front.kl[:, -1].mean():.2f}"
            for front in (fronts[rival], fronts["WARP"])
        ]
        gap = between(fronts[rival], fronts["WARP"]).gap
        angle = np.mean(arms["WARP"].angles)
        print(f"| {setting} | {rival} | {ends[0]} | {ends[1]} | {angle:.0f} | {shown(gap)} | {gap.p:.2g} |", flush=True)


def main() -> None:
    """Make what is missing, print the tables, draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--search", action="store_true")
    parser.add_argument("--setting", choices=SETTINGS, default=next(iter(SETTINGS)))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--part", choices=("validation", "test"), default="validation")
    asked = parser.parse_args()
    seeds = [int(text) for text in asked.seeds.split(",")]
    if asked.search:
        search(asked.out, seeds)
        return
    train(asked.out, asked.setting, list(ARMS), seeds, asked.part)
    arms = {arm: read(asked.out, asked.setting, arm, seeds, asked.part) for arm in ARMS}
    fronts = {name: arm.front for name, arm in arms.items()}
    rival = best(fronts)
    print(f"{asked.setting}: {len(seeds)} seeds, {fronts[rival].kl.shape[2]} {asked.part} prompts\n")
    print("\n".join(comparisons(fronts, rival)))
    print(f"\nn is {len(seeds)} seeds in every row; intervals resample seeds and prompts, that of the angle seeds.\n")
    print("\n".join(claims(arms, rival)))
    figure = figures.fronts(list(fronts.values()))
    figure.axes[0].set_xscale("function", functions=(np.sqrt, np.square))  # or most policies lie in a corner
    figure.axes[0].set_xticks([0, 0.5, 1, 2, 5, 10, 20])
    figure.savefig(asked.out / "fronts.png", dpi=130, facecolor="white")
    print(f"\n{asked.out / 'fronts.png'}")


if __name__ == "__main__":
    main()
