"""REINFORCE on film reviews, beside DPO and best of n from the same start.

`python bench/evidence_reinforce.py OUT` uses the policy, the reward model, the judge and the pairs of evidence_dpo.py
(made if they are not in OUT yet), trains with REINFORCE on the prompts of the pairs, measures on the same held-out
prompts as DPO, prints one table in Markdown and samples before and after, and writes one frontier. What is in OUT
already is not made again; `--only NAME` runs some settings.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import evidence_dpo as dpo
import film
from made import made
from treeward.methods.dpo import DPO, DPORun
from treeward.methods.reinforce import REINFORCE, ReinforceRun
from treeward.report.frontier import write_frontier
from treeward.stats.intervals import clustered_mean

SHARED: dict[str, Any] = {
    "steps": 500, "batch_size": 16, "samples": 4, "max_new_tokens": 48, "unfinished": "keep", "lr": 1e-4,
    "schedule": "linear", "evaluate_every": 100, "save_every": 25, "require": "any", "skip_check": ["F42"],
}  # fmt: skip
"""Reviews are cut off at 48 tokens on purpose, so a missing end costs nothing."""
SETTINGS: dict[str, dict[str, Any]] = {
    "leave-one-out beta 0.2": {"baseline": {"kind": "leave-one-out"}, "kl": {"kind": "in-reward-to-go", "beta": 0.2}},
    "moving-average beta 0.2": {"baseline": {"kind": "moving-average"}, "kl": {"kind": "in-reward-to-go", "beta": 0.2}},
    "leave-one-out beta 0.1": {"baseline": {"kind": "leave-one-out"}, "kl": {"kind": "in-reward-to-go", "beta": 0.1}},
    "leave-one-out beta 0.2, 64 prompts a step": {
        "baseline": {"kind": "leave-one-out"}, "kl": {"kind": "in-reward-to-go", "beta": 0.2},
        "batch_size": 64, "lr": 7e-5, "steps": 400,
    },
}  # fmt: skip
"""The score is a logit whose spread within a prompt is about 2."""
BESIDE = ("sigmoid 0.1", "sigmoid 0.5")
"""Settings of evidence_dpo.py that are trained too."""
SAMPLES = 10


def main() -> None:
    """Make what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="settings such as `leave-one-out beta 0.2`")
    asked = parser.parse_args()
    film.prepare(dpo.DATA, asked.out / "data")
    start, (reward, judge) = dpo.policy(asked.out), dpo.judges(asked.out)
    pairs = dpo.pairs(asked.out, start, reward)
    shared = {"model": {"path": str(start)}, "data": {"source": str(pairs)}}
    evaluation = {"scorer": str(reward), "judges": [str(judge)], "prompts": 128, "samples": 4, "max_new_tokens": 48}
    done = []
    for name, fields in SETTINGS.items():
        path = asked.out / "reinforce" / name
        if asked.only is None or name in asked.only:
            given = {**shared, **SHARED, **fields, "reward": [str(reward)], "evaluation": evaluation}
            made(ReinforceRun, REINFORCE, given, path)
        done.append(path)
    for name, fields in dpo.points():
        path = asked.out / "dpo" / name
        if name in BESIDE and (asked.only is None or name in asked.only):
            given = {**shared, **dpo.SETTING, **fields, "require": "any", "evaluation": evaluation}
            made(DPORun, DPO, given, path)
        done.append(path)
    done = [path for path in done if (path / "receipt.json").exists()]
    print("\n".join(dpo.table(done)))
    print("\n" + "\n".join([dpo.best_of_n(done[0]), *(line for run in done for line in dpo.changes(run))]))
    print(f"best of 8 of the start on the same prompts: {dpo.shown(best_of_pairs(asked.out, done[0]))}")
    print("\n".join(line for run in done if run.parent.name == "reinforce" for line in curve(run)))
    print(f"\nSamples of {done[0].name}, before and after:\n")
    print("\n".join(samples(done[0])))
    page = asked.out / "reinforce-frontier.html"
    page.unlink(missing_ok=True)
    page.with_suffix(".png").unlink(missing_ok=True)
    print(f"\n{write_frontier(done, page)}")


def best_of_pairs(out: Path, run: Path) -> dict[str, Any]:
    """The mean of the best of the eight samples that the pairs are made of, on the prompts that measured a run."""
    measured = {row["group"] for row in rows_of(run / "samples.jsonl")}
    best = [max(row["scores"]) for row in rows_of(out / "pairs/samples.jsonl") if row["group"] in measured]
    return asdict(clustered_mean(best, range(len(best))))


def curve(run: Path) -> list[str]:
    """Means of the training's own samples over 20 steps."""
    steps = [row for row in rows_of(run / "metrics.jsonl") if "kl" in row]
    return [
        f"{run.name}, steps {part[0]['step']} to {part[-1]['step']}: score {fmean(row['score'] for row in part):.2f} "
        f"at {fmean(row['kl'] for row in part):.2f} nats"
        for part in (steps[n : n + 20] for n in range(0, len(steps), 20))
    ]


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def samples(run: Path) -> list[str]:
    """Ten responses before and after training, with their scores."""
    return [
        f"- {row['prompt']!r}\n  - before ({row['score_before']:.2f}): {row['before']!r}\n"
        f"  - after ({row['score_after']:.2f}): {row['after']!r}"
        for row in ten_rows(run)
    ]


def ten_rows(run: Path) -> list[dict[str, Any]]:
    """The first sample of ten prompts, taken evenly from all in alphabetical order."""
    first = (row for row in rows_of(run / "samples.jsonl") if row["sample"] == 0)
    rows = sorted(first, key=lambda row: row["prompt"])
    return rows[:: max(1, len(rows) // SAMPLES)][:SAMPLES]


if __name__ == "__main__":
    main()
