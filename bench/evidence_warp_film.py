"""WARP on film reviews, with three rates of the averaged reference.

`python bench/evidence_warp_film.py OUT` takes the policy, reward model and judge of evidence_dpo.py from OUT, or makes
them there. It trains two iterations of two members with each rate, on as many samples as REINFORCE has in
evidence_reinforce.py, prints the fronts, and measures the start and the last merge of each rate on 100 and on 500
held-out prompts. What is in OUT already is not made again; `--only RATE` runs some rates.
"""

import argparse
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import evidence_dpo as dpo
import film
from evidence_dpo import shown
from evidence_reinforce import SHARED, rows_of, samples
from treeward.runner import settings
from treeward.runner.evaluate import EvaluateRun, evaluate
from treeward.runner.warp import WarpRun, warp

RATES = (0.01, 0.05, 0.2)
HELD_OUT = (100, 500)
VALIDATION = 100
"""Validation prompts: REINFORCE needed none."""
ITERATIONS, MEMBERS = 2, 2
METRICS = {
    "score": "score", "judge": "judge", "KL, nats": "kl", "entropy, nats a token": "entropy",
    "perplexity under the start": "start_nll", "repetition": "repetition", "tokens": "length",
}  # fmt: skip
"""Columns of the table, and the metrics that they show; a perplexity is exp of the mean NLL a token."""


def main() -> None:
    """Make what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", type=float, nargs="+", default=RATES, metavar="RATE")
    asked = parser.parse_args()
    out: Path = asked.out
    film.prepare(dpo.DATA, out / "data")
    prompts, texts = out / "data/prompts-with-validation.jsonl", out / "data/held-out.jsonl"
    if not texts.exists():
        everything = rows_of(out / "data/texts.jsonl")
        validation = film.some(everything, "validation", VALIDATION)
        film.write(prompts, [*rows_of(out / "data/prompts.jsonl"), *validation])
        film.write(texts, film.some(everything, "test", max(HELD_OUT)))
    start, (reward, judge) = dpo.policy(out), dpo.judges(out)
    evaluation = {"scorer": str(reward), "judges": [str(judge)], "samples": 4, "max_new_tokens": 48}
    runs = {rate: out / "warp" / f"rate-{rate:g}" for rate in asked.only}
    for rate, path in runs.items():
        if not (path / "receipt.json").exists():
            fields = {
                **SHARED, "steps": SHARED["steps"] // (ITERATIONS * MEMBERS), "evaluate_every": None,
                "baseline": {"kind": "leave-one-out"}, "kl": {"kind": "in-reward-to-go", "beta": 0.2},
                "model": {"path": str(start)}, "data": {"source": str(prompts), "format": "text"},
                "reward": [str(reward)], "reference": {"rate": rate}, "iterations": ITERATIONS, "members": MEMBERS,
                "choose": "1", "threads": 1, "evaluation": {**evaluation, "prompts": 128}, "out": str(path),
            }  # fmt: skip
            warp(settings.build(WarpRun, fields))
    for rate, path in runs.items():
        print(f"\nrate {rate:g}\n\n" + "\n".join([*front(path), *angles(path)]))
    for count in HELD_OUT:
        print(f"\n{count} held-out prompts\n\n| policy | {' | '.join(METRICS)} |\n|{'---|' * (len(METRICS) + 1)}")
        for name, model in {"start": start, **{f"rate {rate:g}": path for rate, path in runs.items()}}.items():
            path = out / "warp" / f"{name.replace(' ', '-')}-on-{count}"
            if not path.exists():
                fields = {
                    "model": {"path": str(model)}, "start": str(start), "out": str(path),
                    "data": {"source": str(texts), "format": "text", "test": 0},
                    "evaluation": {**evaluation, "prompts": count},
                }  # fmt: skip
                evaluate(settings.build(EvaluateRun, fields))
            print(line(name, json.loads((path / "intervals.json").read_text())))
    for rate, path in runs.items():
        print(f"\nSamples of rate {rate:g}, before and after:\n\n" + "\n".join(samples(path)))


def front(run: Path) -> list[str]:
    """The front and the members on the 128 test prompts of training, a row each."""
    facts = json.loads((run / "receipt.json").read_text())["warp"]
    rows = ["| share of the way to the last merge | score | KL, nats |", "|---|---|---|"]
    for each in (*facts["front"], *facts["members"]):
        kl = "0 by construction" if each["share"] == 0 else shown(each["test"]["kl"])
        rows.append(f"| {each['name']} | {shown(each['test']['score'])} | {kl} |")
    return [*rows, "", *facts["remarks"]]


def angles(run: Path) -> list[str]:
    """What each iteration's members did."""
    return [
        f"iteration {number}: members moved {', '.join(format(member['moved'], '.2%') for member in each['members'])}, "
        f"{each['angles']['median']:.0f} degrees apart ({each['angles']['least']:.0f} to {each['angles']['most']:.0f})"
        for number, each in enumerate(json.loads((run / "receipt.json").read_text())["warp"]["iterations"], 1)
    ]


def line(name: str, figures: Mapping[str, Mapping[str, Any]]) -> str:
    """A policy's figures with their intervals."""
    cells = [name]
    for metric in METRICS.values():
        measured = next(facts for key, facts in figures.items() if key.split(":")[0] == metric)
        if metric == "start_nll":
            measured = {key: math.exp(measured[key]) for key in ("value", "low", "high")}
        cells.append("0 by construction" if metric == "kl" and not measured["value"] else shown(measured))
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
